"""What `mirror --wait` does: starts a mirror, and shows its progress until it ends.

Rules: how the mirror ended is reported only as the server reported it; if the server did not, the
outcome is reported as unconfirmed. The mirror goes on when the waiting is interrupted.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from threading import Thread
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..control import ControlError, ControlRefused, ask
from ..errors import ExitStatus, GaveUp, MigrationError, Summary, Unconfirmed
from ..migration.source.progress import Phase, Progress
from ..units import printable
from .logs import warn_of_again
from .mirror import Options
from .mirror_request import (
    START_TIMEOUT,
    Ask,
    log_started,
    request_body,
    start_error,
    still_running,
)
from .progress import Display
from .values import integer_field

_log = Logger()

InThread = Callable[[Any, Callable[[], Any]], "Deferred[Any]"]


class MirrorFailed(MigrationError):
    """The mirror did not complete; status and message are those that the server reported."""

    def __init__(self, status: ExitStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def in_thread(reactor: Any, function: Callable[[], Any]) -> Deferred[Any]:
    """Call C{function} in a daemon thread: the process can exit while it is still running.

    The threads of the reactor's pool are joined at exit instead.
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


class MirrorOperation:
    """Starts a mirror, polls the server's status, and receives the outcome.

    @param ask: sends a request to the server, and blocks until it is answered.
    @param address: how records and messages are to call the destination; "" for by its URI.
    @param in_thread: calls a function in a thread, and returns a Deferred of its result.
    """

    hung_up: Final = None

    def __init__(
        self,
        options: Options,
        reactor: Any,
        display: Display,
        ask: Ask = ask,
        in_thread: InThread = in_thread,
        *,
        address: str = "",
    ) -> None:
        self._options = options
        self._reactor = reactor
        self._ask = ask
        self._in_thread = in_thread
        self._address = address
        self._view = _MirrorView(display, reactor)
        self._poll_loop = LoopingCall(self._poll)
        self._poll_loop.clock = reactor
        self._pending: Deferred[Any] | None = None
        self._stop_reason = ""

    async def run(self) -> Summary | None:
        """Start the mirror, and wait for its end; None if nothing was copied."""
        path: str = self._options["control"]
        warn_of_again(self._options)
        try:
            try:
                body = {**request_body(self._options), "wait": True}
                if self._address:
                    body["address"] = self._address
                answer = await self._request("/mirror", body, START_TIMEOUT)
            except ControlError as error:
                raise start_error(error, path) from None
            log_started(answer)
            self._poll_loop.start(self._view.interval).addErrback(self._poll_crashed)
            try:
                end = await self._request("/mirror/wait", {}, None)
            except ControlRefused as error:
                what = f"the server does not report how the mirror ended: {printable(error)}"
                raise self._unknown_end(what) from None
            except ControlError:
                what = "the server ended without reporting how the mirror ended"
                raise self._unknown_end(what) from None
            return self._outcome(end)
        except CancelledError:
            raise GaveUp(still_running(self._stop_reason, path)) from None
        finally:
            if self._poll_loop.running:
                self._poll_loop.stop()
            self._view.stop()

    def stop(self, why: str) -> None:
        """Stop waiting; the mirror goes on."""
        self._stop_reason = why
        if self._pending is not None:
            self._pending.cancel()

    def _request(self, resource: str, body: Any, timeout: float | None) -> Deferred[Any]:
        path = self._options["control"]
        self._pending = self._in_thread(
            self._reactor, lambda: self._ask(path, "POST", resource, body, timeout)
        )
        return self._pending

    def _outcome(self, answer: Any) -> Summary | None:
        """The outcome that the server reported."""
        try:
            status, message = ExitStatus(answer["status"]), printable(answer["message"])
            summary = _summary(answer["summary"])
        except (KeyError, TypeError, ValueError):
            what = "the server's report of the end is not understood"
            raise self._unknown_end(what) from None
        if status is not ExitStatus.DONE:
            raise MirrorFailed(status, message)
        if summary is None:
            _log.info("{how}", event="complete", how=message)
            return None
        # What clients wrote meanwhile was sent again, so the sums can exceed the disk's size.
        zeroes = min(summary.zeroes, summary.bytes)
        self._view.show(summary.bytes, summary.bytes - zeroes, zeroes, summary.attempts, Phase.DONE)
        return summary

    def _unknown_end(self, what: str) -> Unconfirmed:
        disk = self._view.disk
        return Unconfirmed(f"{what}; `blockmig inspect {disk}` says which copy is canonical")

    def _poll(self) -> Deferred[None]:
        """Request the status; a failure does not matter, since it is requested again."""
        path = self._options["control"]
        asked = self._in_thread(self._reactor, lambda: self._ask(path, "GET", "/status"))
        return asked.addCallbacks(self._status_received, self._status_failed)

    def _status_received(self, status: Any) -> None:
        if self._poll_loop.running:  # the outcome may have come meanwhile
            self._view.update(status)

    def _status_failed(self, failure: Failure) -> None:
        failure.trap(ControlError)

    def _poll_crashed(self, failure: Failure) -> None:
        _log.failure("this is a bug of blockmig: the progress is not shown", failure, event="bug")


class _MirrorView:
    """What the server's status shows.

    @ivar disk: the server's disk as a word of a shell command; C{DISK} if it is not known.
    """

    def __init__(self, display: Display, reactor: Any) -> None:
        self.disk = "DISK"
        self._display = display
        self._reactor = reactor
        self._progress: Progress | None = None
        self._data_left: int | None = None
        self._change_log = _ChangeLog()

    @property
    def interval(self) -> float:
        """Seconds between two requests for the status."""
        return self._display.interval

    def update(self, status: Any) -> None:
        """Show C{status}, if there is a mirror in it."""
        mirror = status.get("mirror") if isinstance(status, dict) else None
        if not isinstance(mirror, dict):
            return
        disk = status.get("disk")
        if isinstance(disk, str) and os.path.isabs(disk):
            self.disk = shlex.quote(printable(disk))
        size, rest = integer_field(status, "size"), integer_field(mirror, "left")
        attempts = integer_field(mirror, "attempts") or 0
        if size is not None and rest is not None:
            done = max(0, size - rest)
            zeroes = min(integer_field(mirror, "zeroes") or 0, done)
            self._data_left = integer_field(mirror, "data_left")
            self.show(size, done - zeroes, zeroes, attempts, _phase(mirror))
            assert self._progress is not None
            self._progress.forecast = integer_field(mirror, "expected_end")
        self._change_log.update(mirror, attempts)

    def show(self, total: int, data: int, zeroes: int, attempt: int, phase: str) -> None:
        """Show the progress; all numbers but C{attempt} are bytes."""
        progress = self._progress or Progress(total)
        progress.data, progress.zeroes, progress.attempt = data, zeroes, attempt
        left = self._data_left if progress.done < total else 0
        progress.remaining = None if left is None else lambda: left
        progress.phase = phase
        if self._progress is None:
            self._progress = progress
            self._display.start(progress, self._reactor)

    def stop(self) -> None:
        """Show the final progress, if there was any."""
        if self._progress is not None:
            self._display.stop()


def _phase(mirror: dict[str, Any]) -> str:
    """The state of a mirror as a phase, in words."""
    state = printable(mirror.get("state", "?"))
    words = {
        "starting": Phase.CONNECTING,
        "waiting": Phase.WAITING,
        "holding": "sending the rest while clients wait",
        "complete": Phase.DONE,
        "relaying": Phase.DONE,
    }
    return words.get(state, state)


class _ChangeLog:
    """Logs what changed since the last status: errors, new attempts, convergence."""

    def __init__(self) -> None:
        self._attempts = 0
        self._last_error = ""
        self._converging = True

    def update(self, mirror: dict[str, Any], attempts: int) -> None:
        error = mirror.get("last_error")
        over = mirror.get("state") in ("complete", "failed", "broken")
        if isinstance(error, str) and error not in ("", self._last_error) and not over:
            why = printable(error)
            if isinstance(cause := mirror.get("cause"), str) and cause:
                why += f"; before that: {printable(cause)}"
            _log.warn("{why}", event="restart", why=why)
            self._last_error = error
        if attempts > self._attempts:
            _log.info("attempt {number} began", event="attempt", number=attempts)
            self._attempts = attempts
        converging = mirror.get("converging") is not False
        if self._converging and not converging:
            _log.warn(
                "clients write too fast for their writes to be sent: the mirror cannot complete "
                "like this (--converge is {converge})",
                event="not-converging",
                converge=printable(mirror.get("converge", "?")),
            )
        self._converging = converging


def _summary(fields: Any) -> Summary | None:
    if fields is None:
        return None
    numbers = {name: int(fields[name]) for name in ("bytes", "data", "zeroes", "attempts")}
    return Summary(seconds=float(fields["seconds"]), **numbers)
