"""Whether a mirror will converge: what was measured, and what follows from it.

Owns the measurements of one attempt: how fast data is transferred, how long a flush takes, and (in
`writing`) how much of the disk clients touch meanwhile; the decision after each pass, and within
one; and the forecast. Has no clock of its own and does no I/O.

Rules:

* the transfer rate is measured only while there is something to send, and over so much of it that
  single requests do not matter;
* the rate at which clients make the disk dirty is what they touch while a pass goes on that sends
  what is left, each place counted once, divided by the time that it takes: what is left shrinks
  by the difference of the two rates, whatever was dirty before;
* clients are held only if what is left is likely to be transferred and flushed within three
  quarters of the longest pause that they may see: an estimate that is a little wrong costs no
  second hold. Where nothing is left it cannot get better, so that they are held however long a
  flush took;
* but another pass comes first while it is likely to halve the pause, and there is something to be
  gained;
* a hold that was too long shows how fast the transfer really was; the next hold does not come at
  once, and later each time. What was measured in it counts for less with each pass after it: it may
  have been bad luck;
* passes make less of what is left until so little is left that clients can be held: unless those
  touch, while that little is sent, four fifths of as much. Then the mirror does not converge. That
  is decided within a pass, each time that it has been so for most of an eighth of the pass, and of
  three seconds: what begins and ends in less is a burst;
* nor does a mirror converge if pass after pass leaves about as much as the one before;
* in neither case is anything gained by waiting. The transfer was measured while clients came first;
  while they are held it may be many times as fast. If what is left could possibly be sent in time
  like that, a hold is tried, at whichever point of a pass: it costs no more than the pause that is
  allowed. One that fails shows what is possible: the next one is tried where twice as much would
  do, and later where four times as much would, and so on, since it may have been bad luck;
* no estimate exceeds the limit that the user has set to the rate.
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import Final

from .writing import Writing

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
_SHORTEST_WINDOW: Final = 3.0
_WINDOW_SHARE: Final = 1 / 8
_MOST_OF_A_WINDOW: Final = 0.75
_LUCK: Final = 2.0
"""A hold may be so many times as fast as the last one that failed."""
_LITTLE: Final = 1 << 20
"""Bytes that can be sent in any hold."""
_MOST_PASSES: Final = 100
_AS_MANY: Final = 3
"""How many times as long the steps after the last flush take as those at the beginning."""


class Next(Enum):
    """What comes after a pass, or in the middle of one."""

    HOLD = "hold the clients, and send the rest"
    AGAIN = "another pass"
    NOT_CONVERGING = "another pass, but that alone will not do"


class Convergence:
    """The measurements of one attempt.

    @param longest_pause: seconds for which clients may be held.
    @param size: bytes of the disk.
    @param took: seconds that both ends took to agree on the attempt, and to record it. What follows
        the last flush is of the same kind, and up to three times as much.
    @ivar rate: bytes per second transferred lately.
    @ivar writing: what clients write.
    @ivar flush: seconds that the last flush took.
    @ivar steps: seconds that the small steps after it took in a hold that failed because of them.
    @ivar passes: how many were made.
    @ivar unhindered_rate: bytes per second that may be possible while clients are held; 0 where
        clients do not slow the transfer down.
    @ivar max_rate: the user's limit to the rate; None for none.
    @ivar decisive_rate: the dirty rate by which it was last decided that the mirror does not
        converge.
    """

    def __init__(self, longest_pause: float, size: int = sys.maxsize, took: float = 0.0) -> None:
        self.longest_pause = longest_pause
        self.rate = 0.0
        self.writing = Writing(size)
        self.flush = 0.0
        self.steps = 0.0
        self.passes = 0
        self.unhindered_rate = 0.0
        self.max_rate: float | None = None
        self.decisive_rate = 0.0
        self._took = took
        self._best = 0.0
        self._held_rate = 0.0
        self._last_held_rate = 0.0
        self._left = 0
        self._left_before = sys.maxsize
        self._passes_without_gain = 0
        self._too_fast: bool | None = None
        self._seconds_too_fast = 0.0
        self._judged = False
        self._failed = 0
        self._not_before = float("-inf")
        self._pass_began = 0.0
        self._sampled_at: float | None = None
        self._seconds = 0.0
        self._sent = 0

    # Measuring.

    def sample(
        self,
        now: float,
        sent: int,
        written: int,
        sending: bool = True,
        *,
        touched: int | None = None,
        left: int | None = None,
    ) -> None:
        """To be called often, unless clients are held.

        @param now: seconds, by any clock.
        @param sent: bytes of data that were acknowledged so far.
        @param written: bytes that clients wrote so far, each time anew.
        @param sending: there was something to send.
        @param touched: bytes that they touched in this window (L{judge}), each counted once; None
            if that is not known.
        @param left: bytes of data to be sent; None if that is not known.
        """
        self.writing.sample(now, written, touched)
        if left is not None:
            self._left = left
        if self._sampled_at is None:
            self._sampled_at, self._sent = now, sent
            if not self.passes:
                self._pass_began = now
            return
        passed, self._sampled_at = now - self._sampled_at, now
        if sending:
            self._seconds += passed
        if self._seconds >= _SAMPLE_SECONDS and sent - self._sent >= _SAMPLE_BYTES:
            rate = (sent - self._sent) / self._seconds
            weight = min(1.0, self._seconds)
            self.rate = rate if not self.rate else self.rate + weight * (rate - self.rate)
            self._best = max(_BEST_DECAY * self._best, rate)
            self._seconds, self._sent = 0.0, sent
        if self._touch_too_much():
            self._seconds_too_fast += passed
        elif self._too_fast:
            self._too_fast = None  # they rest

    @property
    def dirty_rate(self) -> float:
        """Bytes per second that clients make dirty, while what is left is sent."""
        return self._dirty_rate(self.writing.rate)

    def _dirty_rate(self, written: float) -> float:
        """As L{dirty_rate}, if clients write C{written} bytes per second."""
        seconds = self._most_holdable / self._usual_rate
        if not self._touch_too_much(written):
            seconds = max(seconds, self._left / self._usual_rate)
        return self.writing.touched_in(seconds, written) / seconds

    @property
    def _usual_rate(self) -> float:
        return self._limited(self.rate or _ASSUMED_RATE)

    def pause(self, left: int) -> float:
        """Seconds for which clients would have to be held to send C{left} bytes."""
        return self._pause(left, self._held_rate or self._best or _ASSUMED_RATE)

    def _pause(self, left: float, rate: float) -> float:
        return left / self._limited(rate) + self.flush + self.steps

    def _limited(self, rate: float) -> float:
        return rate if self.max_rate is None else min(rate, self.max_rate)

    @property
    def _longest_expected_pause(self) -> float:
        return _PAUSE_SHARE * self.longest_pause

    @property
    def _possible_rate(self) -> float:
        """The rate that a hold may have, with luck."""
        rate = max(self.unhindered_rate, self._best)
        if self._last_held_rate:
            rate = min(rate, _LUCK * self._last_held_rate)
        return rate or _ASSUMED_RATE

    @property
    def _most_holdable(self) -> float:
        """How many bytes may be left for clients to be held."""
        seconds = self._longest_expected_pause - self.flush - self.steps
        rate = self._limited(self._held_rate or self._best or _ASSUMED_RATE)
        return max(seconds * rate, _LITTLE)

    def _touch_too_much(self, written: float | None = None) -> bool:
        """Whether passes will never leave little enough for a hold.

        @param written: bytes per second that clients write; None for what they do now.
        """
        enough = self._most_holdable
        touched = self.writing.touched_in(enough / self._usual_rate, written)
        return bool(self.rate) and touched >= _NEARLY_AS_MUCH * enough

    # Deciding.

    @property
    def converging(self) -> bool | None:
        """Whether it is likely to converge; None as long as that is not known."""
        if self._gains_nothing:
            return False
        if not self.rate or self._touch_too_much():
            return None
        return True

    def judge(self, now: float) -> Next | None:
        """Decide, in the middle of a pass, whether it makes sense to go on as it is.

        @return: None as long as too little was measured; otherwise what clients touch is to be
            counted anew (L{next_window}).
        """
        if self._too_fast and self._failed and self._may_try_hold(now, self._left):
            return Next.HOLD
        passed = now - self._pass_began
        window = max(_SHORTEST_WINDOW, _WINDOW_SHARE * (passed + self._left / self._usual_rate))
        if not self.rate or self.writing.window(now) < window:
            return None
        mean = self.writing.mean_rate(now)
        lasting = self._seconds_too_fast >= _MOST_OF_A_WINDOW * self.writing.window(now)
        self._too_fast = lasting and self._touch_too_much() and self._touch_too_much(mean)
        if not self._too_fast:
            return Next.AGAIN
        if self._may_try_hold(now, self._left):
            return Next.HOLD
        self._judged = True
        return self._not_converging(now, self._dirty_rate(mean))

    def next_window(self, now: float) -> None:
        """What clients touch is counted anew."""
        self.writing.next_window(now)
        self._seconds_too_fast = 0.0

    def pass_ended(self, now: float, left: int) -> Next:
        """Decide what comes next.

        @param left: bytes that are dirty.
        """
        self.passes += 1
        self._pass_began = now
        judged, self._judged = self._judged, False
        self._left = left
        before, self._left_before = self._left_before, left
        self._passes_without_gain = (
            self._passes_without_gain + 1 if left >= _NEARLY_AS_MUCH * before else 0
        )
        pause, most = self.pause(left), self._longest_expected_pause
        if now >= self._not_before:
            if pause <= most or not left:
                return Next.AGAIN if left < before and self._gains(left) else Next.HOLD
            if self._gains_nothing and self._may_try_hold(now, left):
                return Next.HOLD
            self._relax_held_rate()
        if not left or pause <= most or judged:
            return Next.AGAIN
        if self.passes > 1 and self.dirty_rate >= _NEARLY_AS_MUCH * self._usual_rate:
            self._too_fast = True
        if not self._gains_nothing:
            return Next.AGAIN
        return self._not_converging(now, self.dirty_rate)

    def _not_converging(self, now: float, dirty_rate: float) -> Next:
        self.decisive_rate = dirty_rate
        if now >= self._not_before:
            self._last_held_rate *= 2
        return Next.NOT_CONVERGING

    def _gains(self, left: float) -> bool:
        """Whether another pass is likely to halve the pause."""
        pause = self.pause(int(left))
        after = self.pause(int(self.writing.touched_in(left / self._usual_rate)))
        return pause > _SHORT_PAUSE + self.flush + self.steps and after < pause / 2

    @property
    def leaves_as_much(self) -> bool:
        """Whether pass after pass leaves about as much as the one before."""
        return self._passes_without_gain > 1

    @property
    def _gains_nothing(self) -> bool:
        return bool(self._too_fast) or self.leaves_as_much

    def _may_try_hold(self, now: float, left: int) -> bool:
        """Whether it is time for a hold that may succeed, though that is not likely."""
        possible = self._pause(left, self._possible_rate) <= self.longest_pause
        return now >= self._not_before and possible

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
            self._held_rate = self._last_held_rate = sent / seconds
        self._not_before = now + min(
            _FIRST_HOLD_DELAY * 2 ** (self._failed - 1), _LONGEST_HOLD_DELAY
        )
        self._sampled_at = None  # what was sent meanwhile says nothing of the passes
        self._seconds = 0.0

    # The forecast.

    def forecast(self, left: int) -> tuple[float, float] | None:
        """Seconds until the end, and for which clients will be held; None if nobody knows.

        @param left: bytes of data to be sent.
        """
        if self.converging is not True:
            return None
        seconds, rest = 0.0, float(left)
        for _ in range(_MOST_PASSES):
            if self.pause(int(rest)) <= self._longest_expected_pause and not self._gains(rest):
                break
            took = rest / self._usual_rate
            seconds += took + self.flush
            rest = self.writing.touched_in(took)
        pause = self._pause(rest, self._expected_held_rate)
        pause += max(_AS_MANY * self._took - self.steps, 0.0)
        return seconds + pause, pause

    @property
    def _expected_held_rate(self) -> float:
        """Between what was seen beside clients and what is possible at best, whatever it is."""
        usual = self._held_rate or self._best or _ASSUMED_RATE
        return float((usual * max(usual, self._possible_rate)) ** 0.5)
