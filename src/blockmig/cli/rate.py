"""`rate`: changes how fast a running server mirrors its disk; no reactor is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

from ..errors import ExitStatus
from . import common, usage
from .usage import Parameter
from .values import human, parse_rate, printable, whole


class Options(usage.Options):
    """Options of `rate`."""

    synopsis = "blockmig rate --control PATH RATE"
    longdesc = (
        "Change how fast a running `blockmig serve` mirrors its disk: RATE is the most bytes of "
        "data to send per second, such as 100M, or none for no limit. "
        "Exit statuses: 0 done, 1 bad usage or refused."
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (common.CONTROL_SOCKET,)

    def parseArgs(self, *arguments: str) -> None:
        """How fast."""
        if len(arguments) != 1:
            raise usage.UsageError("exactly one argument is wanted: RATE")
        self["rate"] = usage.parse_value(arguments[0], parse_rate, "RATE")

    def postOptions(self) -> None:
        """A socket is needed."""
        common.check_control(self)


def run(options: Options, ask: Callable[..., Any] | None = None) -> int:
    """Change the limit; 0, or 1 if that was refused.

    @param ask: asks the server; None for L{blockmig.control.ask}.
    """
    from .. import control  # noqa: PLC0415

    body = {"max_rate": options["rate"]}
    try:
        answer = (ask or control.ask)(options["control"], "POST", "/rate", body)
    except control.ControlError as error:
        print(f"blockmig: {printable(error)}", file=sys.stderr)
        return ExitStatus.REFUSED
    rate = whole(answer, "max_rate") if isinstance(answer, dict) else None
    print("no limit" if rate is None else f"at most {human(rate)}/s")
    return ExitStatus.DONE
