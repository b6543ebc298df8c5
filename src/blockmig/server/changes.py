"""What clients change of a disk, told to somebody who mirrors it.

Owns who is told, and how much the clients are slowed for it. Rules:

* a change is told of before it touches the disk. One that is made while others may run (by a
  thread) is told of again after it, whatever became of it: whoever mirrors may have read the range
  in between;
* clients that are slowed are so by what they make dirty, not by what they write: a write of 4 KiB
  may have 64 KiB sent again;
* what they have not used up of their share is theirs for a tenth of a second, and then lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

_BURST: Final = 0.1
"""Seconds for which an unused share is kept."""

_LONGEST_DELAY: Final = 10.0
"""Seconds that a change is held back at most, so that no client takes the server for dead."""


class Throttle:
    """How fast clients may make the disk dirty.

    @param clock: tells the time.
    @param rate: bytes per second.
    @param dirtied: how many bytes they have made dirty so far; only grows.
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
        """None where a change may be made now; else what fires when it may."""
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
        """Hold nothing back any more."""
        waiting, self._waiting = self._waiting, {}
        for turn, call in waiting.items():
            call.cancel()
            turn.callback(None)


class Changes:
    """The changes of one disk.

    @ivar mark: called with the offset and the length of each change, and with False after them
        if it leaves only zeroes; None if nobody wants to know.
    @ivar throttle: holds changes back; None where nothing does.
    """

    def __init__(self) -> None:
        self.mark: Callable[..., None] | None = None
        self.throttle: Throttle | None = None

    def slow_down(self, throttle: Throttle | None) -> None:
        """Have changes held back by C{throttle} from now on; by none if it is None."""
        before, self.throttle = self.throttle, throttle
        if before is not None:
            before.lift()

    def notify(self, offset: int, length: int, data: bool = True) -> None:
        """C{length} bytes at C{offset} are about to be changed, or just were.

        @param data: by a write; otherwise they are zeroed, or trimmed.
        """
        if self.mark is not None:
            self.mark(offset, length, data)

    def around(
        self, offset: int, length: int, working: Deferred[Any], data: bool = True
    ) -> Deferred[Any]:
        """C{working} is changing them; the same Deferred, after which it is told of again."""
        self.notify(offset, length, data)

        def notify_again(result: Any) -> Any:
            self.notify(offset, length, data)
            return result

        return working.addBoth(notify_again)
