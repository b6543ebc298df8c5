"""Notifies a mirror of what clients change on a disk, and throttles the clients for it.

Owns who is notified, and the throttle. Rules:

* a change is notified before it touches the disk. A change that a thread makes, while other code
  may run, is notified again after it, whatever its outcome: the mirror may have read the range in
  between;
* the throttle counts what clients make dirty, not what they write: a write of 4 KiB may cause
  64 KiB to be sent again;
* allowance that clients have not used is kept for a tenth of a second, and then lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

_BURST: Final = 0.1
"""Seconds for which an unused allowance is kept."""

_LONGEST_DELAY: Final = 10.0
"""Seconds that a change is delayed at most, so that no client takes the server for dead."""


class Throttle:
    """Limits how fast clients make the disk dirty.

    @param rate: bytes per second.
    @param dirtied: returns how many bytes they have made dirty so far; only grows.
    """

    def __init__(self, clock: IReactorTime, rate: float, dirtied: Callable[[], int]) -> None:
        self.rate = rate
        self._clock = clock
        self._dirtied = dirtied
        self._updated_at = clock.seconds()
        self._dirtied_before = dirtied()
        self._allowance = 0.0
        self._waiting: dict[Deferred[None], IDelayedCall] = {}

    def turn(self) -> Deferred[None] | None:
        """None if a change may be made now; else a Deferred that fires when it may."""
        now, dirtied = self._clock.seconds(), self._dirtied()
        grown = self._allowance + (now - self._updated_at) * self.rate
        allowance = min(grown, self.rate * _BURST) - (dirtied - self._dirtied_before)
        self._allowance = max(allowance, -self.rate * _LONGEST_DELAY)
        self._updated_at, self._dirtied_before = now, dirtied
        if self._allowance >= 0:
            return None
        turn: Deferred[None] = Deferred()
        delay = -self._allowance / self.rate
        self._waiting[turn] = self._clock.callLater(delay, self._begin, turn)
        return turn

    def _begin(self, turn: Deferred[None]) -> None:
        del self._waiting[turn]
        turn.callback(None)

    def lift(self) -> None:
        """Release everything that is delayed."""
        waiting, self._waiting = self._waiting, {}
        for turn, call in waiting.items():
            call.cancel()
            turn.callback(None)


class Changes:
    """The changes of one disk.

    @ivar mark: called with the offset and length of each change, and with False as the third
        argument if it leaves only zeroes; None while nobody watches.
    @ivar throttle: delays changes; None for no limit.
    """

    def __init__(self) -> None:
        self.mark: Callable[..., None] | None = None
        self.throttle: Throttle | None = None

    def slow_down(self, throttle: Throttle | None) -> None:
        """Use C{throttle} (None for no limit) from now on; release what the last one delayed."""
        before, self.throttle = self.throttle, throttle
        if before is not None:
            before.lift()

    def notify(self, offset: int, length: int, data: bool = True) -> None:
        """C{length} bytes at C{offset} are about to be changed, or just were.

        @param data: they are written; otherwise they are zeroed or trimmed.
        """
        if self.mark is not None:
            self.mark(offset, length, data)

    def around(
        self, offset: int, length: int, working: Deferred[Any], data: bool = True
    ) -> Deferred[Any]:
        """Notify now, and again after C{working}, which is changing them; return that Deferred."""
        self.notify(offset, length, data)

        def notify_again(result: Any) -> Any:
            self.notify(offset, length, data)
            return result

        return working.addBoth(notify_again)
