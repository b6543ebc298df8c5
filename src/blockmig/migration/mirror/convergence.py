"""Whether a mirror will converge: what was measured, and what follows from it.

Owns the measurements of one attempt: how fast data is transferred, how fast clients make the disk
dirty, how long a flush takes; and the decision after each pass. Has no clock of its own and does no
I/O.

Rules:

* the transfer rate is measured only while there is something to send, and over so much of it that
  single requests do not matter;
* clients are held only if what is left is likely to be transferred and flushed within three
  quarters of the longest pause that they may see: an estimate that is a little wrong costs no
  second hold. Where nothing is left it cannot get better, so that they are held however long a
  flush took;
* but another pass comes first while it is likely to halve the pause, and there is something to be
  gained;
* a hold that was too long shows how fast the transfer really was; the next hold does not come at
  once, and later each time. What was measured in it counts for less with each pass after it: it may
  have been bad luck;
* a mirror does not converge if clients make the disk dirty nearly as fast as it is transferred, or
  if pass after pass leaves about as much as the one before.
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import Final

_PAUSE_SHARE: Final = 0.75
_SHORT_PAUSE: Final = 0.05
"""Seconds of a pause that is not worth another pass."""
_NEARLY_AS_MUCH: Final = 0.8
_ASSUMED_RATE: Final = 16 << 20
_SAMPLE_BYTES: Final = 1 << 20
_SAMPLE_SECONDS: Final = 0.1
_BEST_DECAY: Final = 0.98
_FIRST_HOLD_DELAY: Final = 1.0
_LONGEST_HOLD_DELAY: Final = 60.0


class Next(Enum):
    """What comes after a pass."""

    HOLD = "hold the clients, and send the rest"
    AGAIN = "another pass"
    NOT_CONVERGING = "another pass, but that alone will not do"


class Convergence:
    """The measurements of one attempt.

    @param longest_pause: seconds for which clients may be held.
    @ivar rate: bytes per second transferred lately.
    @ivar dirty_rate: bytes per second that clients made dirty lately.
    @ivar flush: seconds that the last flush took.
    @ivar steps: seconds that the small steps after it took in a hold that failed because of them.
    @ivar passes: how many were made.
    """

    def __init__(self, longest_pause: float) -> None:
        self.longest_pause = longest_pause
        self.rate = 0.0
        self.dirty_rate = 0.0
        self.flush = 0.0
        self.steps = 0.0
        self.passes = 0
        self._best = 0.0
        self._held_rate = 0.0
        self._left_before = sys.maxsize
        self._passes_without_gain = 0
        self._failed = 0
        self._not_before = float("-inf")
        self._sampled_at: float | None = None
        self._seconds = 0.0
        self._sent = 0
        self._dirtied = (0.0, 0)

    # Measuring.

    def sample(self, now: float, sent: int, dirtied: int, sending: bool = True) -> None:
        """To be called often.

        @param now: seconds, by any clock.
        @param sent: bytes of data that were acknowledged so far.
        @param dirtied: bytes that became dirty so far.
        @param sending: there was something to send.
        """
        if self._sampled_at is None:
            self._sampled_at, self._sent, self._dirtied = now, sent, (now, dirtied)
            return
        if sending:
            self._seconds += now - self._sampled_at
        self._sampled_at = now
        if self._seconds >= _SAMPLE_SECONDS and sent - self._sent >= _SAMPLE_BYTES:
            rate = (sent - self._sent) / self._seconds
            weight = min(1.0, self._seconds)
            self.rate = rate if not self.rate else self.rate + weight * (rate - self.rate)
            self._best = max(_BEST_DECAY * self._best, rate)
            self._seconds, self._sent = 0.0, sent
        seconds = now - self._dirtied[0]
        if seconds >= _SAMPLE_SECONDS:
            dirty_rate = (dirtied - self._dirtied[1]) / seconds
            self.dirty_rate += min(1.0, seconds) * (dirty_rate - self.dirty_rate)
            self._dirtied = now, dirtied

    def pause(self, left: int) -> float:
        """Seconds for which clients would have to be held to send C{left} bytes."""
        rate = self._held_rate or self._best or _ASSUMED_RATE
        return left / rate + self.flush + self.steps

    # Deciding.

    def pass_ended(self, now: float, left: int) -> Next:
        """Decide what comes next.

        @param left: bytes that are dirty.
        """
        self.passes += 1
        before, self._left_before = self._left_before, left
        self._passes_without_gain = (
            self._passes_without_gain + 1 if left >= _NEARLY_AS_MUCH * before else 0
        )
        pause, most = self.pause(left), _PAUSE_SHARE * self.longest_pause
        if now >= self._not_before:
            if pause <= most or not left:
                after = self.pause(int(self.dirty_rate * pause))
                gains = pause > _SHORT_PAUSE + self.flush + self.steps and after < pause / 2
                return Next.AGAIN if gains and left < before else Next.HOLD
            self._relax_held_rate()
        too_fast = self.dirty_rate >= _NEARLY_AS_MUCH * (self.rate or _ASSUMED_RATE)
        if (
            left
            and pause > most
            and self.passes > 1
            and (too_fast or self._passes_without_gain > 1)
        ):
            return Next.NOT_CONVERGING
        return Next.AGAIN

    def _relax_held_rate(self) -> None:
        self.steps /= 2
        self._held_rate *= 2
        if self._held_rate >= self._best:
            self._held_rate = 0.0

    def hold_failed(self, now: float, sent: int, seconds: float, steps: float = 0.0) -> None:
        """Clients were held, and had to be released.

        @param sent: bytes that were transferred meanwhile.
        @param seconds: how long that took; 0 where nothing could be sent yet, or all was.
        @param steps: seconds for which only the steps after the last flush were waited for.
        """
        self._failed += 1
        self.steps = max(self.steps, steps)
        if sent > 0 and seconds > 0:
            self._held_rate = sent / seconds
        self._not_before = now + min(
            _FIRST_HOLD_DELAY * 2 ** (self._failed - 1), _LONGEST_HOLD_DELAY
        )
