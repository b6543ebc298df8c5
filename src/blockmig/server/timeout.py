"""When a connection is given up because its client sends nothing, or takes nothing.

Owns the only timer of a connection. Rules:

* a client that may be silent is never given up, however long it sends nothing;
* a client that takes its replies, even slowly, does not count as silent;
* a time limit is different: nothing that the client does extends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..transport import unacknowledged


class ConnectionTimeout:
    """The timer of one connection.

    @param waiting: whether the client has not taken everything that was sent.
    @param timed_out: called with the allowed seconds of silence, once they are over.
    @ivar last_activity: when the client did something last.
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
        self.last_activity = clock.seconds()
        self._unacknowledged = 0
        self._timer: IDelayedCall | None = None

    def reset(self) -> None:
        """The client did something: count its silence from now."""
        self.last_activity = self._seconds()

    def watch(self, seconds: float, may_be_silent: Callable[[], bool]) -> None:
        """Give the client up once it has been silent for C{seconds}, from now on.

        @param seconds: 0 for never.
        @param may_be_silent: asked whether its silence is to be ignored.
        """
        self.reset()
        self._start(seconds, self._check, seconds, may_be_silent)

    def limit(self, seconds: float, expired: Callable[[float], None]) -> None:
        """Call C{expired} after C{seconds}; 0 for never."""
        self._start(seconds, expired, seconds)

    def stop(self) -> None:
        """Cancel the timer."""
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
        # A socket is writable only when much of its buffer is free; until then only the count of
        # unacknowledged bytes shows that a slow client is reading.
        takes = self._waiting() and self._unacknowledged != before
        if takes or may_be_silent():
            self.last_activity = now
        left = self.last_activity + seconds - now
        if left > 0:
            self._timer = self._clock.callLater(left, self._check, seconds, may_be_silent)
        else:
            self._timer = None
            self._timed_out(seconds)
