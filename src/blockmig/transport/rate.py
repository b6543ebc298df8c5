"""Limits on sending: a mean rate without bursts, and a share of the time that yields to others.

A limiter says how much may be sent; a `Pacer` applies it to a push producer, which it pauses, and
resumes when something may be sent again.

The allowance of a rate grows with time, up to a quarter of a second's worth: enough that a busy
reactor loses nothing, too little for a burst that others on the wire would notice. It is given out
in slices of a twentieth of a second.

`YieldingLimiter`: while others were busy within the last 3 ms, sending takes at most a seventh of
the reactor's time, in turns of 128 KiB, so that nobody waits long for one to end. (Time in which
the socket is full does not count.) How fast it sends in its turns says how fast it could if it had
all of the time, and the wire allowed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime

_BURST: Final = 0.25
_SLICE: Final = 0.05
_SMALLEST_SLICE: Final = 4096


_TURN_SIZE: Final = 128 << 10
_RECENT: Final = 0.003
_YIELD_FACTOR: Final = 6
_DECAY: Final = 0.99
# Seconds, so that a changed limit takes effect soon.
_LONGEST_WAIT: Final = 0.25


class Limiter(Protocol):
    """Says how much may be sent."""

    def allowed(self, wanted: int) -> int:
        """How many bytes may be sent now, at most C{wanted}."""

    def spend(self, count: int) -> None:
        """C{count} bytes were sent."""

    def delay(self, wanted: int) -> float:
        """Seconds until L{allowed} returns more than 0, after it returned 0."""


class Pacer:
    """Applies a limiter to one producer, which nobody else may pause.

    @param limiter: says how much may be sent.
    """

    def __init__(self, clock: IReactorTime, limiter: Limiter) -> None:
        self._clock = clock
        self._limiter = limiter
        self._waiting: IDelayedCall | None = None

    def allowed(self, wanted: int, producer: IPushProducer) -> int:
        """How many bytes C{producer} may send now, at most C{wanted}.

        If it is 0 the producer is paused, and resumed later.
        """
        allowed = self._limiter.allowed(wanted)
        if not allowed:
            self.stop()
            producer.pauseProducing()
            delay = min(self._limiter.delay(wanted), _LONGEST_WAIT)
            self._waiting = self._clock.callLater(delay, self._resume, producer)
        return allowed

    def _resume(self, producer: IPushProducer) -> None:
        self._waiting = None
        producer.resumeProducing()

    def spend(self, count: int) -> None:
        """C{count} bytes were sent."""
        self._limiter.spend(count)

    def stop(self) -> None:
        """Do not resume the producer any more."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class RateLimiter:
    """A token bucket.

    @param rate: bytes per second, more than 0; may be changed at any time by L{set_rate}.
    """

    def __init__(self, clock: IReactorTime, rate: float) -> None:
        self._clock = clock
        self._allowance = 0.0
        self._updated_at = clock.seconds()
        self._rate = float(rate)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self._rate

    def set_rate(self, rate: float) -> None:
        """Use another rate from now on."""
        self._refill()
        self._rate = float(rate)

    def allowed(self, wanted: int) -> int:
        """How many bytes may be sent now, at most C{wanted}; 0 while the slice is not full."""
        self._refill()
        if self._allowance < min(wanted, self._slice()):
            return 0
        return min(wanted, int(self._allowance))

    def spend(self, count: int) -> None:
        """C{count} bytes were sent."""
        self._allowance -= count

    def delay(self, wanted: int) -> float:
        """Seconds until L{allowed} returns more than 0."""
        return max(0.0, min(wanted, self._slice()) - self._allowance) / self._rate + 0.001

    def _slice(self) -> float:
        return max(self._rate * _SLICE, _SMALLEST_SLICE)

    def _refill(self) -> None:
        now = self._clock.seconds()
        burst = max(self._rate * _BURST, _SMALLEST_SLICE)
        self._allowance = min(self._allowance + (now - self._updated_at) * self._rate, burst)
        self._updated_at = now


class YieldingLimiter:
    """Lets others go first, and keeps to a rate that can be changed.

    @param clock: for the rate.
    @param others_last_busy: returns when others were last busy, by C{seconds}.
    @param rate: bytes per second; None for no limit.
    @param seconds: a clock fine enough to time one turn.
    @ivar unhindered_rate: bytes per second that it sent lately in its best turns; 0 if nobody else
        was busy yet.
    """

    def __init__(
        self,
        clock: IReactorTime,
        others_last_busy: Callable[[], float],
        rate: float | None = None,
        seconds: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._others_last_busy = others_last_busy
        self._seconds = seconds
        self.unhindered_rate = 0.0
        self._limiter: RateLimiter | None = None
        self._not_before = float("-inf")
        self._left_in_turn = _TURN_SIZE
        self._time_used = 0.0
        self._asked_at = 0.0
        self.set_rate(rate)

    @property
    def rate(self) -> float | None:
        """Bytes per second; None where there is no limit."""
        return self._limiter.rate if self._limiter is not None else None

    def set_rate(self, rate: float | None) -> None:
        """Use another rate from now on; None for no limit."""
        if rate is None:
            self._limiter = None
        elif self._limiter is None:
            self._limiter = RateLimiter(self._clock, rate)
        else:
            self._limiter.set_rate(rate)

    def allowed(self, wanted: int) -> int:
        """How many bytes may be sent now, at most C{wanted}."""
        self._asked_at = now = self._seconds()
        if now - self._others_last_busy() < _RECENT:
            if now < self._not_before:
                return 0
            if self._left_in_turn <= 0:
                # The turn is over: now the others get six times as long.
                self._measure()
                self._not_before = now + _YIELD_FACTOR * self._time_used
                self._left_in_turn, self._time_used = _TURN_SIZE, 0.0
                return 0
            wanted = min(wanted, self._left_in_turn)
        else:
            # What is sent while nobody else is busy need not be made up for.
            self._left_in_turn, self._time_used, self._not_before = _TURN_SIZE, 0.0, now
        return self._limiter.allowed(wanted) if self._limiter is not None else wanted

    def _measure(self) -> None:
        """A turn has ended."""
        if self._time_used > 0:
            # The best of the last turns: in others the system may have had better things to do.
            rate = (_TURN_SIZE - self._left_in_turn) / self._time_used
            self.unhindered_rate = max(rate, _DECAY * self.unhindered_rate)

    def spend(self, count: int) -> None:
        """C{count} bytes were sent."""
        self._left_in_turn -= count
        now = self._seconds()
        self._time_used += now - self._asked_at
        self._asked_at = now
        if self._limiter is not None:
            self._limiter.spend(count)

    def delay(self, wanted: int) -> float:
        """Seconds until L{allowed} returns more than 0."""
        others = max(0.0, self._not_before - self._seconds())
        if others or self._limiter is None:
            return others
        return self._limiter.delay(wanted)
