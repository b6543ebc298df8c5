"""Whether the calls to a disk in the reactor's thread have been quick.

Owns the suspicion that they are not. Rules:

* only time in which the thread slept counts, as far as the system tells (getrusage(2)): on a busy
  machine a thread may be kept from running, and that is not the disk's fault;
* where threads of ours are at work all the time, this one may sleep until the interpreter is free,
  which is not the disk's fault either: a call may then take ten times as long;
* asking for that costs something, so that it is begun when a call has taken long;
* what was slow is left alone for a while, and for longer if it is slow again soon after.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable
from typing import Final

SLOW: Final = 0.005
"""Seconds that one call may take."""

# One that is slow should not go unnoticed among many that are quick.
_MANY: Final = 4
_CROWDED: Final = 10
_SUSPICIOUS: Final = 10.0
_LEAVE_ALONE: Final = 1.0
_LEAVE_ALONE_LONGEST: Final = 32.0

Beginning = tuple[float, int]
"""When some calls began, and how often the thread had slept by then (-1: not asked for)."""


def _sleeps_of_this_thread() -> Callable[[], int]:
    who = getattr(resource, "RUSAGE_THREAD", None)
    if who is None:
        return itertools.count().__next__
    return lambda: resource.getrusage(who).ru_nvcsw


class LatencyMonitor:
    """That of one disk.

    @param seconds: the time, in seconds from anywhere; fine enough to time one call.
    @param sleeps: how often the thread has slept so far; None to ask the system.
    @ivar slow_until: when the disk may be tried again.
    @ivar latest: when it was last called.
    @ivar crowded: threads of ours are at work all the time.
    """

    def __init__(
        self,
        seconds: Callable[[], float] = time.perf_counter,
        sleeps: Callable[[], int] | None = None,
    ) -> None:
        self.slow_until = self.latest = float("-inf")
        self.crowded = False
        self._seconds = seconds
        self._sleeps = sleeps or _sleeps_of_this_thread()
        self._suspicious_until = float("-inf")
        self._leave_alone = _LEAVE_ALONE

    @property
    def quick(self) -> bool:
        """Whether the disk may be called in the reactor's thread now."""
        return self._seconds() >= self.slow_until

    def note(self) -> None:
        """The disk is about to be called in another way."""
        self.latest = self._seconds()

    def begin(self) -> Beginning:
        """Some calls are about to be made; give the result to L{end}."""
        now = self._seconds()
        return now, self._sleeps() if now < self._suspicious_until else -1

    def end(self, began: Beginning, calls: int = 1) -> None:
        """C{calls} calls were made."""
        self.latest = now = self._seconds()
        slow = SLOW * _CROWDED if self.crowded else SLOW
        if now - began[0] <= slow * min(calls, _MANY):
            return
        if began[1] >= 0 and self._sleeps() > began[1]:
            again = now - self.slow_until < _LEAVE_ALONE_LONGEST
            longer = min(2 * self._leave_alone, _LEAVE_ALONE_LONGEST)
            self._leave_alone = longer if again else _LEAVE_ALONE
            self.slow_until = now + self._leave_alone
        self._suspicious_until = now + _SUSPICIOUS + self._leave_alone
