"""`break`, or `cancel`: cancels the mirror of a running server; needs no reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from ..errors import ExitStatus
from ..units import printable
from . import common, usage
from .usage import Parameter

_TIMEOUT: Final = 60.0
"""Seconds. The server answers when it has released the clients."""


class Options(usage.Options):
    synopsis = "blockmig break --control PATH"
    longdesc = (
        "Cancel the mirror that is running in a `blockmig serve`. The disk there stays the "
        "canonical copy, and clients go on using it. This is refused if no mirror is running, and "
        "once the source is being retired, since that cannot be taken back."
    )
    examples = (
        (
            "blockmig break --control /run/web.control",
            "Cancel the mirror; clients do not notice.",
        ),
        (
            "blockmig cancel --control /run/web.control",
            "The same, by its other name.",
        ),
    )
    statuses = (0, 1)
    optParameters: ClassVar[tuple[Parameter, ...]] = (common.CONTROL_SOCKET,)

    def postOptions(self) -> None:
        common.check_control(self)


def run(options: Options, ask: Callable[..., Any] | None = None) -> int:
    """Cancel the mirror, and return 0, or 1 if that was refused.

    @param ask: asks the server; by default L{blockmig.control.ask}.
    """
    from .. import control  # noqa: PLC0415

    try:
        (ask or control.ask)(options["control"], "POST", "/break", {}, _TIMEOUT)
    except control.ControlError as error:
        usage.complain(printable(error))
        return ExitStatus.REFUSED
    usage.show("the mirror was cancelled")
    return ExitStatus.DONE
