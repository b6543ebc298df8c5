"""When a connection is given up, since its client says nothing, or takes nothing.

Owns the only timer of a connection. Rules:

* whoever has leave to be silent is not silent, however long it says nothing;
* a client that takes its replies, be it slowly, is not silent either;
* a time limit is another thing: nothing that the client does moves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..transport import unacknowledged


class ConnectionTimeout:
    """That of one connection.

    @param clock: tells the time.
    @param transport: of the connection.
    @param waiting: whether the client has not taken all that was sent.
    @param timed_out: called with the seconds of silence that were too many.
    """

    def __init__(
        self,
        clock: IReactorTime,
        transport: Any,
        waiting: Callable[[], bool],
        timed_out: Callable[[float], None],
    ) -> None:
        self._clock = clock
        self._seconds = clock.seconds
        self._transport = transport
        self._waiting = waiting
        self._timed_out = timed_out
        self._last_activity = clock.seconds()
        self._unacknowledged = 0
        self._timer: IDelayedCall | None = None

    def reset(self) -> None:
        """Something has happened."""
        self._last_activity = self._seconds()

    def watch(self, seconds: float, may_be_silent: Callable[[], bool]) -> None:
        """Give the client up once it has been silent for so long, from now on.

        @param seconds: 0 for never.
        @param may_be_silent: whether it has leave to be silent.
        """
        self.reset()
        self._start(seconds, self._check, seconds, may_be_silent)

    def limit(self, seconds: float, expired: Callable[[float], None]) -> None:
        """Call C{expired} after C{seconds}; 0 for never."""
        self._start(seconds, expired, seconds)

    def stop(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _start(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        self.stop()
        if seconds:
            self._timer = self._clock.callLater(seconds, function, *arguments)

    def _check(self, seconds: float, may_be_silent: Callable[[], bool]) -> None:
        now = self._seconds()
        before, self._unacknowledged = self._unacknowledged, unacknowledged(self._transport)
        # A socket is writable only when much of it is free; until then a slow reader shows here.
        takes = self._waiting() and self._unacknowledged != before
        if takes or may_be_silent():
            self._last_activity = now
        left = self._last_activity + seconds - now
        if left > 0:
            self._timer = self._clock.callLater(left, self._check, seconds, may_be_silent)
        else:
            self._timer = None
            self._timed_out(seconds)
