"""`rate`, or `set-rate`: changes the rate limit of a running mirror; needs no reactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..errors import ExitStatus
from ..units import format_bytes, printable
from . import common, usage
from .usage import Parameter
from .values import integer_field, parse_rate


class Options(usage.Options):
    synopsis = "blockmig rate --control PATH RATE"
    longdesc = (
        "Change the rate limit of the mirror that is running in a `blockmig serve`. "
        "RATE is the most bytes of data to send per second, such as 100M, or `none` for no limit."
    )
    examples = (
        (
            "blockmig rate --control /run/web.control 100M",
            "Send at most 100 MiB of data per second.",
        ),
        (
            "blockmig rate --control /run/web.control none",
            "Send as fast as possible.",
        ),
    )
    statuses = (0, 1)
    optParameters: ClassVar[tuple[Parameter, ...]] = (common.CONTROL_SOCKET,)

    def parseArgs(self, *arguments: str) -> None:
        if len(arguments) != 1:
            raise usage.UsageError("expected one argument: RATE")
        self["rate"] = usage.parse_value(arguments[0], parse_rate, "RATE")

    def postOptions(self) -> None:
        common.check_control(self)


def run(options: Options, ask: Callable[..., Any] | None = None) -> int:
    """Change the limit, and return 0, or 1 if that was refused.

    @param ask: asks the server; by default L{blockmig.control.ask}.
    """
    from .. import control  # noqa: PLC0415

    body = {"max_rate": options["rate"]}
    try:
        answer = (ask or control.ask)(options["control"], "POST", "/rate", body)
    except control.ControlError as error:
        usage.complain(printable(error))
        return ExitStatus.REFUSED
    rate = integer_field(answer, "max_rate") if isinstance(answer, dict) else None
    usage.show("no limit" if rate is None else f"at most {format_bytes(rate)}/s")
    return ExitStatus.DONE
