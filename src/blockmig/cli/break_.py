"""`break`: has a running server abandon the mirror of its disk; no reactor is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar, Final

from ..errors import ExitStatus
from . import common, usage
from .usage import Parameter
from .values import printable

_TIMEOUT: Final = 60.0
"""Seconds for the answer, which comes when clients are as before."""


class Options(usage.Options):
    """Options of `break`."""

    synopsis = "blockmig break --control PATH"
    longdesc = (
        "Abandon the mirror that a running `blockmig serve` makes of its disk, which stays the "
        "canonical copy; its clients go on. "
        "Exit statuses: 0 done, 1 bad usage or refused (nothing is being mirrored, or it is too "
        "late)."
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (common.CONTROL_SOCKET,)

    def postOptions(self) -> None:
        """A socket is needed."""
        common.check_control(self)


def run(options: Options, ask: Callable[..., Any] | None = None) -> int:
    """Abandon the mirror; 0, or 1 if that was refused.

    @param ask: asks the server; None for L{blockmig.control.ask}.
    """
    from .. import control  # noqa: PLC0415

    try:
        (ask or control.ask)(options["control"], "POST", "/break", {}, _TIMEOUT)
    except control.ControlError as error:
        print(f"blockmig: {printable(error)}", file=sys.stderr)
        return ExitStatus.REFUSED
    print("the mirror is abandoned")
    return ExitStatus.DONE
