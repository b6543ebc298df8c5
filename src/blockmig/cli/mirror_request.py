"""The request that starts a mirror in a running server, and what its answer means.

Waits only until the destination has accepted or refused; needs no reactor.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from typing import Any, Final

from twisted.logger import Logger

from ..control import ControlError, ControlLost, ask
from ..errors import ExitStatus, GaveUp, MigrationError, Refused, Unconfirmed
from ..units import printable
from .logs import warn_of_again
from .mirror import Options
from .tls import absolute

_log = Logger()

START_TIMEOUT: Final = 180.0
"""Seconds. The server answers when the destination has accepted or refused the handshake."""

Ask = Callable[..., Any]
"""A function like L{blockmig.control.ask}; it blocks."""


def request_mirror(options: Options, ask: Ask = ask) -> int:
    """Start the mirror, log whether that succeeded, and return the exit status."""
    path = options["control"]
    warn_of_again(options)
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
    """The body of the request for the mirror that C{options} describe."""
    linger = options["linger"]
    certificates = options.certificates.decode()
    return {
        "uri": str(absolute(options.uri)),
        "unlink": bool(options["unlink"]),
        "again": bool(options["again"]),
        "overwrite": bool(options["overwrite"]),
        "plain": bool(options["plain"]),
        "id": options["id"] or "",
        "secret": options.secret.hex(),
        **({"certificates": certificates} if certificates else {}),
        "max_rate": options["max-rate"],
        "max_pause": options["max-pause"] / 1000,
        "timeout": options["timeout"],
        "converge": options["converge"],
        "then": options["then"],
        "relay_to": None if options.relay_to is None else str(absolute(options.relay_to)),
        "linger": "forever" if linger == math.inf else linger,
    }


def log_started(answer: Any) -> None:
    """Log that the mirror has begun, with the fields of the server's answer."""
    fields = answer if isinstance(answer, dict) else {}
    _log.info(
        "the mirror to {destination} has begun",
        event="mirroring",
        destination=printable(fields.get("destination", "?")),
        attempt=fields.get("attempt"),
    )


def start_error(error: ControlError, path: str) -> MigrationError:
    """The error to report when the server at C{path} did not start the mirror."""
    if isinstance(error, ControlLost):
        return Unconfirmed(
            f"{printable(error)}; the mirror may have begun all the same: "
            f"`blockmig status --control {shlex.quote(path)}` shows it, or, if the server has "
            "ended, `blockmig inspect DISK`"
        )
    return Refused(printable(error))


def still_running(why: str, path: str) -> str:
    """The message when the waiting ends before the mirror of the server at C{path}."""
    return f"{why}: the mirror goes on; `blockmig break --control {shlex.quote(path)}` cancels it"
