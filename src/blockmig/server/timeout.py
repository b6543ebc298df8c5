"""When a connection is given up: its client sends nothing, takes nothing, or gets no further.

Owns the only timer of a connection. Rules:

* a client that may be silent is never given up, however long it sends nothing;
* a client that takes its replies, even slowly, does not count as silent; one that takes none of
  what waited for it when the time began does;
* where progress is expected of a client, to send something is not enough. The time in which we do
  one thing that it has asked for, and it sends nothing, counts nothing, however long that takes.
  Otherwise the time in which it waits for us counts a tenth: flush after flush is no progress
  either;
* a time limit is different: nothing that the client does extends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..transport import unacknowledged

_LOOKS: Final = 8
"""How often a client's progress is looked at in the time in which it must have made some."""

_WAITING: Final = 0.1
"""How much of the time counts in which a client waits for us."""


class Progress:
    """For how long a client has got no further.

    @param measure: returns how far it is, which changes only while it gets further; None while that
        is not expected of it.
    @param now: the time.
    """

    def __init__(self, measure: Callable[[], int | None], now: float) -> None:
        self._measure = measure
        self._looked_at = now
        self._reached: int | None = None
        self._stalled = 0.0

    def stalled(self, now: float, excused: bool, same: bool) -> float:
        """Look at it; return for how many seconds it has got no further.

        @param excused: it could not have, since the last look: it waited for us.
        @param same: for one and the same thing, all the time.
        """
        reached = self._measure()
        if reached is None or reached != self._reached:
            self._stalled = 0.0
        elif not (excused and same):
            self._stalled += (now - self._looked_at) * (_WAITING if excused else 1.0)
        self._reached, self._looked_at = reached, now
        return self._stalled


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
        self._excused_at: float | None = None
        self._unacknowledged = 0
        self._progress: Progress | None = None
        self._stalled = timed_out
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
        self._progress = None
        self._unacknowledged = unacknowledged(self._transport)
        self._start(seconds, self._check, seconds, may_be_silent)

    def watch_progress(
        self,
        seconds: float,
        may_be_silent: Callable[[], bool],
        measure: Callable[[], int | None],
        stalled: Callable[[float], None],
    ) -> None:
        """As L{watch}; and call C{stalled} once it has got no further for C{seconds}.

        @param measure: see L{Progress}.
        """
        self.watch(seconds, may_be_silent)
        self._progress = Progress(measure, self._seconds())
        self._stalled = stalled
        self._start(seconds / _LOOKS, self._check, seconds, may_be_silent)

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
        excused = may_be_silent()
        # Nothing has come, and nothing was done, since it was excused the last time.
        same = self.last_activity == self._excused_at
        self._excused_at = now if excused else None
        if takes or excused:
            self.last_activity = now
        left, give_up = self.last_activity + seconds - now, self._timed_out
        if left > 0 and (progress := self._progress) is not None:
            left = min(left, seconds / _LOOKS)
            if progress.stalled(now, excused, same) >= seconds:
                left, give_up = 0.0, self._stalled
        if left > 0:
            self._timer = self._clock.callLater(left, self._check, seconds, may_be_silent)
        else:
            self._timer = None
            give_up(seconds)
