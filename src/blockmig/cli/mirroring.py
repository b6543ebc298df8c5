"""`mirror`, `break` and `rate`: what a running server is told to do with the mirror of its disk.

Owns what is said on the control socket, and what the answers mean for the exit status. The rules:
how a mirror ended is only ever told as the server told it; where it did not tell, that is told.
Nobody ends a mirror by ceasing to wait for it. Only waiting needs a reactor, which is given.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from threading import Thread
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..control import ControlError, ControlLost, ControlRefused, ask
from ..errors import (
    ExitStatus,
    GaveUp,
    MigrationError,
    Refused,
    Summary,
    Unconfirmed,
)
from ..migration.source.progress import Progress
from ..nbd import NBDURI
from .options import BreakOptions, MirrorOptions, RateOptions
from .progress import Display
from .status import human, printable

_log = Logger()

# Seconds. The server answers when the destination has accepted the handshake, or has not for long.
_ACCEPTING: Final = 180.0
_BREAKING: Final = 60.0

Ask = Callable[..., Any]
InThread = Callable[[Any, Callable[[], Any]], "Deferred[Any]"]


class Told(MigrationError):
    """The mirror did not complete: the server's exit status, and its words."""

    def __init__(self, status: ExitStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def run_mirror(options: MirrorOptions, ask: Ask = ask) -> ExitStatus:
    """Have the server begin, and log one line of whether it did; waits for nothing more."""
    try:
        try:
            answer = ask(options["control"], "POST", "/mirror", request(options), _ACCEPTING)
        except ControlError as error:
            raise _not_begun(error, options["control"]) from None
        except KeyboardInterrupt:
            raise GaveUp(_left("stopped by SIGINT", options["control"])) from None
    except MigrationError as error:
        _log.error("{why}", event="error", why=str(error), status=int(error.status))
        return error.status
    _begun(answer)
    return ExitStatus.DONE


def run_break(options: BreakOptions, ask: Ask = ask) -> ExitStatus:
    """Abandon the mirror; 0, or 1 if that was refused."""
    try:
        ask(options["control"], "POST", "/break", {}, _BREAKING)
    except ControlError as error:
        print(f"blockmig: {printable(error)}", file=sys.stderr)
        return ExitStatus.REFUSED
    print("the mirror is abandoned")
    return ExitStatus.DONE


def run_rate(options: RateOptions, ask: Ask = ask) -> ExitStatus:
    """Change the limit; 0, or 1 if that was refused."""
    try:
        answer = ask(options["control"], "POST", "/rate", {"max_rate": options["rate"]})
    except ControlError as error:
        print(f"blockmig: {printable(error)}", file=sys.stderr)
        return ExitStatus.REFUSED
    rate = _whole(answer, "max_rate") if isinstance(answer, dict) else None
    print("no limit" if rate is None else f"at most {human(rate)}/s")
    return ExitStatus.DONE


def request(options: MirrorOptions) -> dict[str, Any]:
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


def _begun(answer: Any) -> None:
    fields = answer if isinstance(answer, dict) else {}
    _log.info(
        "the mirror to {destination} has begun",
        event="mirroring",
        destination=printable(fields.get("destination", "?")),
        attempt=fields.get("attempt"),
    )


def _not_begun(error: ControlError, path: str) -> MigrationError:
    if isinstance(error, ControlLost):
        return Unconfirmed(
            f"{printable(error)}; the server may mirror all the same: "
            f"`blockmig status --control {shlex.quote(path)}` tells, or if it has ended, "
            "`blockmig inspect DISK`"
        )
    return Refused(printable(error))


def _left(why: str, path: str) -> str:
    return f"{why}: the mirror goes on; `blockmig break --control {shlex.quote(path)}` ends it"


def in_thread(reactor: Any, function: Callable[[], Any]) -> Deferred[Any]:
    """Call C{function} in a thread of its own, which may still be in it when the process exits.

    That is why it is none of the reactor's, which are waited for.
    """
    result: Deferred[Any] = Deferred()

    def call() -> None:
        try:
            value = function()
        except BaseException:
            reactor.callFromThread(result.errback, Failure())
        else:
            reactor.callFromThread(result.callback, value)

    Thread(target=call, daemon=True).start()
    return result


class Mirror:
    """`mirror --wait`: begins a mirror, and shows how it goes until it ends.

    @param ask: asks the server; it blocks.
    @param in_thread: calls a function elsewhere, and gives a Deferred of its result.
    """

    def __init__(
        self,
        options: MirrorOptions,
        reactor: Any,
        display: Display,
        ask: Ask = ask,
        in_thread: InThread = in_thread,
    ) -> None:
        self._options = options
        self._path: str = options["control"]
        self._reactor = reactor
        self._display = display
        self._ask = ask
        self._in_thread = in_thread
        self._waiting: Deferred[Any] | None = None
        self._stopped = ""
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._progress: Progress | None = None
        self._disk = "DISK"
        self._attempts = 0
        self._last_error = ""
        self._converging = True

    async def run(self) -> Summary | None:
        """Begin, and wait for the end; None if nothing was copied."""
        try:
            try:
                wanted = {**request(self._options), "wait": True}
                answer = await self._answer("/mirror", wanted, _ACCEPTING)
            except ControlError as error:
                raise _not_begun(error, self._path) from None
            _begun(answer)
            self._looking.start(self._display.interval).addErrback(self._cannot_look)
            try:
                end = await self._answer("/mirror/wait", {}, None)
            except ControlRefused as error:
                raise self._not_told(f"the server does not tell: {printable(error)}") from None
            except ControlError:
                what = "the server ended without telling how the mirror ended"
                raise self._not_told(what) from None
            return self._ended(end)
        except CancelledError:
            raise GaveUp(_left(self._stopped, self._path)) from None
        finally:
            if self._looking.running:
                self._looking.stop()
            if self._progress is not None:
                self._display.stop()

    def stop(self, why: str) -> None:
        """Wait no longer; the mirror goes on."""
        self._stopped = why
        if self._waiting is not None:
            self._waiting.cancel()

    def _answer(self, resource: str, body: Any, timeout: float | None) -> Deferred[Any]:
        self._waiting = self._in_thread(
            self._reactor, lambda: self._ask(self._path, "POST", resource, body, timeout)
        )
        return self._waiting

    def _ended(self, answer: Any) -> Summary | None:
        """What the server said at the end."""
        try:
            status, message = ExitStatus(answer["status"]), printable(answer["message"])
            summary = _summary(answer["summary"])
        except (KeyError, TypeError, ValueError):
            what = "what the server tells of the end is not understood"
            raise self._not_told(what) from None
        if status is not ExitStatus.DONE:
            raise Told(status, message)
        if summary is None:
            _log.info("{how}", event="complete", how=message)
            return None
        # What clients wrote meanwhile was sent more than once: that is more than the disk has.
        zeroes = min(summary.zeroes, summary.bytes)
        self._show(summary.bytes, summary.bytes - zeroes, zeroes, summary.attempts)
        return summary

    def _not_told(self, what: str) -> Unconfirmed:
        return Unconfirmed(f"{what}; `blockmig inspect {self._disk}` says which copy is canonical")

    def _look(self) -> Deferred[None]:
        """Ask how things stand; whoever cannot be asked now is asked again."""
        asked = self._in_thread(self._reactor, lambda: self._ask(self._path, "GET", "/status"))
        return asked.addCallbacks(self._seen, self._unseen)

    def _cannot_look(self, failure: Failure) -> None:
        _log.failure("this is a bug of blockmig: the progress is not shown", failure, event="bug")

    def _unseen(self, failure: Failure) -> None:
        failure.trap(ControlError)

    def _seen(self, status: Any) -> None:
        """Show C{status}, unless the end was told meanwhile."""
        mirror = status.get("mirror") if isinstance(status, dict) else None
        if not self._looking.running or not isinstance(mirror, dict):
            return
        disk = status.get("disk")
        if isinstance(disk, str) and os.path.isabs(disk):
            self._disk = shlex.quote(printable(disk))
        total, left = _whole(status, "size"), _whole(mirror, "left")
        attempts = _whole(mirror, "attempts") or 0
        if total is not None and left is not None:
            done = max(0, total - left)
            zeroes = min(_whole(mirror, "zeroes") or 0, done)
            self._show(total, done - zeroes, zeroes, attempts)
        self._tell(mirror, attempts)

    def _show(self, total: int, data: int, zeroes: int, attempt: int) -> None:
        progress = self._progress or Progress(total)
        progress.data, progress.zeroes, progress.attempt = data, zeroes, attempt
        if self._progress is None:
            self._progress = progress
            self._display.start(progress, self._reactor)

    def _tell(self, mirror: dict[str, Any], attempts: int) -> None:
        """Log what somebody who waits wonders about: why it starts again, why it does not end."""
        error = mirror.get("last_error")
        over = mirror.get("state") in ("complete", "failed", "broken")
        if isinstance(error, str) and error not in ("", self._last_error) and not over:
            _log.warn("{why}", event="restart", why=printable(error))
            self._last_error = error
        if attempts > self._attempts:
            _log.info("attempt {number} began", event="attempt", number=attempts)
            self._attempts = attempts
        converging = mirror.get("converging") is not False
        if self._converging and not converging:
            _log.warn(
                "the clients write faster than it can be sent: the mirror does not come to an end "
                "like this (--converge is {converge})",
                event="not-converging",
                converge=printable(mirror.get("converge", "?")),
            )
        self._converging = converging


def _whole(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    return int(value) if isinstance(value, int | float) else None


def _summary(fields: Any) -> Summary | None:
    if fields is None:
        return None
    whole = {name: int(fields[name]) for name in ("bytes", "data", "zeroes", "attempts")}
    return Summary(seconds=float(fields["seconds"]), **whole)
