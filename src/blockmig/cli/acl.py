"""`acl`: shows or replaces the allow-list of a running server or receiver; needs no reactor."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Final

from ..errors import ExitStatus
from ..units import printable
from . import common, usage
from .usage import Flag, Parameter
from .values import parse_network

_LONGEST_LIST: Final = 1 << 20
"""Letters of a list that is read from standard input, more than a request may have."""


class Options(usage.Options):
    """@ivar replaces: the list is replaced, and not only shown.
    @ivar nets: what is allowed then; None for everybody.
    """

    synopsis = "blockmig acl --control PATH [CIDR… | - | --any] [--json]"
    longdesc = (
        "Show from where clients may connect to a running `blockmig serve` or `blockmig receive` "
        "(--allow); or replace that by the CIDRs: addresses (192.0.2.4) and networks "
        "(192.0.2.0/24, 2001:db8::/64), or - to read them from standard input, one a line. "
        "Connected clients that are not among them are disconnected at once; the migration of a "
        "sender that is disconnected begins anew when it may connect again. The list is not "
        "remembered when the command ends: its own --allow is what it starts with. It does not "
        "concern UNIX sockets (see --allow-uid)."
    )
    examples = (
        (
            "blockmig acl --control /run/web.control",
            "Show the list.",
        ),
        (
            "blockmig acl --control /run/web.control 192.0.2.4 2001:db8:0:7::/64",
            "Let only these connect from now on.",
        ),
    )
    statuses = (0, 1)
    optFlags: ClassVar[tuple[Flag, ...]] = (
        Flag("any", "Remove the list: everybody may connect."),
        common.JSON,
    )
    optParameters: ClassVar[tuple[Parameter, ...]] = (common.CONTROL_SOCKET,)

    replaces: bool = False
    nets: list[str] | None = None

    def parseArgs(self, *arguments: str) -> None:
        given = _lines() if arguments == ("-",) else arguments
        if arguments:
            self.replaces = True
            self.nets = [usage.parse_value(one, parse_network) for one in given]

    def postOptions(self) -> None:
        common.check_control(self)
        if self["any"]:
            if self.replaces:
                raise usage.UsageError("--any and CIDRs contradict each other")
            self.replaces = True


def _lines() -> list[str]:
    """The list on standard input: one CIDR a line, and comments behind C{#}.

    @raise UsageError: there is none.
    """
    if sys.stdin is None:
        raise usage.UsageError("standard input is closed")
    try:
        text = sys.stdin.read(_LONGEST_LIST + 1)
    except (OSError, ValueError) as error:
        raise usage.UsageError(f"standard input: {error}") from None
    if len(text) > _LONGEST_LIST:
        raise usage.UsageError(f"standard input: has more than {_LONGEST_LIST} characters")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise usage.UsageError("standard input has no CIDR: to let everybody connect say --any")
    return found


def run(options: Options, ask: Callable[..., Any] | None = None) -> int:
    """Show or replace the list, and return 0, or 1 if that was refused.

    @param ask: asks the server; by default L{blockmig.control.ask}.
    """
    from .. import control  # noqa: PLC0415

    ask = ask or control.ask
    try:
        if options.replaces:
            answer = ask(options["control"], "POST", "/acl", {"allow": options.nets})
        else:
            answer = ask(options["control"], "GET", "/acl")
        if not isinstance(answer, dict):
            raise control.ControlError(f"the answer on {options['control']} is not an allow-list")
    except control.ControlError as error:
        usage.complain(printable(error))
        return ExitStatus.REFUSED
    usage.show(json.dumps(answer) if options["json"] else _as_text(answer, options.replaces))
    return ExitStatus.DONE


def _as_text(answer: dict[str, Any], replaced: bool) -> str:
    """The answer for people; a list as it can be given again, one CIDR a line."""
    nets = answer.get("allow")
    if not isinstance(nets, list):
        text = "everybody may connect"
    elif not replaced:
        text = "\n".join(map(printable, nets)) or "nobody may connect"
    elif len(nets) == 1:
        text = f"only {printable(nets[0])} may connect"
    else:
        text = f"{len(nets)} addresses and networks may connect"
    dropped = answer.get("dropped")
    return f"{text}; disconnected: {printable(dropped)}" if replaced and dropped else text
