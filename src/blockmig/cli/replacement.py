"""Ends the receiver of the same migration that an earlier command has left behind.

A connection that has died silently leaves its receiver waiting on a host that knows nothing of it,
with the disk locked. The next receiver of the same id and disk ends it as SIGTERM would.

Owns the place where such receivers find each other: a control socket in the state directory, which
is the user's own, named after the id and the disk.

Rules:

* only a receiver that was started so, of the same id and the same disk, is ended; of two that start
  at once the lock on the disk decides;
* nothing is opened, made or locked before the other process has ended: until then it may remove the
  file that it has made.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
from typing import Any, Final

from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..control import ControlError, ask
from ..control.server import Routes
from ..errors import Refused
from ..runtime import Runtime
from ..storage import default_state_directory
from ..syscalls import describe_error

_log = Logger()

STOP: Final = "/stop"
_END_TIMEOUT: Final = 30.0
_INTERVAL: Final = 0.05
_LONGEST_PATH: Final = 107
"""Bytes of a UNIX socket's path (unix(7))."""


def meeting_place(disk: str, id: str, state_directory: str | None) -> str | None:
    """The path of the control socket of a receiver that can be replaced.

    @return: None where there can be none, as for a user without a home: a file's migration needs no
        state directory, and goes on without.
    """
    directory = os.path.abspath(state_directory or default_state_directory())
    facts = json.dumps([os.path.realpath(disk), id])
    name = hashlib.sha256(facts.encode()).hexdigest()[:16]
    path = os.path.join(directory, f"{name}.receiver")
    try:
        os.makedirs(directory, 0o755, exist_ok=True)
        why = "" if os.access(directory, os.W_OK | os.X_OK) else "it cannot be written"
    except OSError as error:
        why = describe_error(error)
    if len(os.fsencode(path)) > _LONGEST_PATH:
        why = "its path is too long for a socket"
    if not why:
        return path
    _log.warn(
        "{directory}: {why}; if this receiver is left behind, it must be ended by hand",
        event="not-replaceable",
        directory=directory,
        why=why,
    )
    return None


def routes(stop: Any, reactor: Any) -> Routes:
    """What a receiver that can be replaced answers to."""

    def give_way(_: Any) -> dict[str, Any]:
        # The answer comes first.
        reactor.callLater(0, stop, "another receiver of the same migration takes its place")
        return {}

    return {("POST", STOP): give_way}


async def end_other(path: str, disk: str, runtime: Runtime) -> None:
    """End the receiver whose control socket is at C{path}, if there is one, and wait for its end.

    @raise Refused: it does not end.
    """
    try:
        status = await runtime.threads(ask, path, "GET", "/status")
        process = int(status["pid"])
        await runtime.threads(ask, path, "POST", STOP)
    except (ControlError, KeyError, TypeError, ValueError):
        return  # there is none; or it ends now; or it is something else, and has no such lock
    _log.warn(
        "{disk}: ended the receiver of the same migration that was still there (process {pid})",
        event="replaced",
        disk=disk,
        pid=process,
    )
    end = runtime.reactor.seconds() + _END_TIMEOUT
    while _is_running(process):
        if runtime.reactor.seconds() >= end:
            raise Refused(
                f"{disk}: the receiver that is still there (process {process}) does not end"
            )
        await deferLater(runtime.reactor, _INTERVAL)


def _is_running(process: int) -> bool:
    """Whether a process runs; one that has ended, and that nobody has waited for, does not."""
    try:
        descriptor = os.pidfd_open(process)
    except OSError:
        return False
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return not poll.poll(0)
    finally:
        os.close(descriptor)
