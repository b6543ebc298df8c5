"""A limit to the mean rate of what is sent, without bursts.

The allowance grows with time, at most to a quarter of a second's worth: enough that a busy reactor
loses nothing, too little for a burst that others on the wire would feel. It is given out in slices
of a twentieth of a second.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.interfaces import IReactorTime

_LARGEST: Final = 0.25
_SLICE: Final = 0.05
_SMALLEST_SLICE: Final = 4096


class RateLimiter:
    """A token bucket.

    @param clock: tells the time.
    @param rate: bytes per second, more than 0; may be changed at any time by L{set_rate}.
    """

    def __init__(self, clock: IReactorTime, rate: float) -> None:
        self._clock = clock
        self._allowance = 0.0
        self._then = clock.seconds()
        self._rate = float(rate)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self._rate

    def set_rate(self, rate: float) -> None:
        """Go on with another rate from now."""
        self._grow()
        self._rate = float(rate)

    def allowed(self, wanted: int) -> int:
        """How many bytes may be sent now, at most C{wanted}; 0 where the slice is not full yet."""
        self._grow()
        if self._allowance < min(wanted, self._slice()):
            return 0
        return min(wanted, int(self._allowance))

    def spend(self, count: int) -> None:
        """C{count} bytes were sent."""
        self._allowance -= count

    def delay(self, wanted: int) -> float:
        """Seconds until L{allowed} gives something."""
        return max(0.0, min(wanted, self._slice()) - self._allowance) / self._rate + 0.001

    def _slice(self) -> float:
        return max(self._rate * _SLICE, _SMALLEST_SLICE)

    def _grow(self) -> None:
        now = self._clock.seconds()
        largest = max(self._rate * _LARGEST, _SMALLEST_SLICE)
        self._allowance = min(self._allowance + (now - self._then) * self._rate, largest)
        self._then = now
