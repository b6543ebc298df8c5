"""How a mirror begins: what a running server is told, and what its answer means.

Waits for nothing more than that the destination has accepted, or has not; needs no reactor.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from twisted.logger import Logger

from ..control import ControlError, ControlLost, ask
from ..errors import ExitStatus, GaveUp, MigrationError, Refused, Unconfirmed
from ..nbd import NBDURI
from .mirror import Options
from .values import printable

_log = Logger()

START_TIMEOUT: Final = 180.0
"""Seconds. The server answers when the destination has accepted the handshake, or has not for long.
"""

Ask = Callable[..., Any]
"""As L{blockmig.control.ask}; it blocks."""


def request_mirror(options: Options, ask: Ask = ask) -> int:
    """Have the server begin, and log one line of whether it did.

    @return: the exit status.
    """
    path = options["control"]
    try:
        try:
            answer = ask(path, "POST", "/mirror", request_body(options), START_TIMEOUT)
        except ControlError as error:
            raise start_error(error, path) from None
        except KeyboardInterrupt:
            raise GaveUp(still_running("stopped by SIGINT", path)) from None
    except MigrationError as error:
        _log.error("{why}", event="error", why=str(error), status=int(error.status))
        return error.status
    log_started(answer)
    return ExitStatus.DONE


def request_body(options: Options) -> dict[str, Any]:
    """What C{options} ask for, as the control socket takes it."""
    return {
        "uri": _from_the_root(options.uri),
        "unlink": bool(options["unlink"]),
        "again": bool(options["again"]),
        "overwrite": bool(options["overwrite"]),
        "max_rate": options["max-rate"],
        "max_pause": options["max-pause"] / 1000,
        "timeout": options["timeout"],
        "converge": options["converge"],
        "then": options["then"],
        "relay_to": None if options.relay_to is None else _from_the_root(options.relay_to),
    }


def _from_the_root(uri: NBDURI) -> str:
    """C{uri} as text; the server need not be in the directory that a socket's path starts from."""
    return str(replace(uri, socket=os.path.abspath(uri.socket)) if uri.socket else uri)


def log_started(answer: Any) -> None:
    """Log that the mirror has begun, with what the server answered."""
    fields = answer if isinstance(answer, dict) else {}
    _log.info(
        "the mirror to {destination} has begun",
        event="mirroring",
        destination=printable(fields.get("destination", "?")),
        attempt=fields.get("attempt"),
    )


def start_error(error: ControlError, path: str) -> MigrationError:
    """What it means that the server at C{path} gave no good answer."""
    if isinstance(error, ControlLost):
        return Unconfirmed(
            f"{printable(error)}; the server may mirror all the same: "
            f"`blockmig status --control {shlex.quote(path)}` tells, or if it has ended, "
            "`blockmig inspect DISK`"
        )
    return Refused(printable(error))


def still_running(why: str, path: str) -> str:
    """What to say where nobody waits any longer for the server at C{path}."""
    return f"{why}: the mirror goes on; `blockmig break --control {shlex.quote(path)}` ends it"
