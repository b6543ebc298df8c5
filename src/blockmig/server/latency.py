"""Whether the calls to a disk in the reactor's thread have been quick.

Owns the measurement, and the back-off after a slow call. Rules:

* a slow call counts only if the thread slept in it, where the system can tell (getrusage(2)): on a
  busy machine a thread may be kept from running, and that is not the disk's fault;
* while threads of ours are busy all the time, this one may sleep until the interpreter is free,
  which is not the disk's fault either: a call may then take ten times as long;
* the count of sleeps costs a system call, so it is read only for a while after a call took long;
* a slow disk is not called in the reactor's thread for a while: one second, and twice as long each
  time that it is slow again soon after, up to 32 seconds.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Callable
from typing import Final

SLOW: Final = 0.005
"""Seconds that one call may take and still counts as quick."""

# The time allowed for many calls together is that of so few, or one slow call would go unnoticed.
_MOST_COUNTED: Final = 4
_BUSY_FACTOR: Final = 10
_SUSPICION: Final = 10.0
_BACKOFF: Final = 1.0
_LONGEST_BACKOFF: Final = 32.0

CallStart = tuple[float, int]
"""When some calls began, and how often the thread had slept by then (-1: not measured)."""


def _sleeps_of_this_thread() -> Callable[[], int]:
    who = getattr(resource, "RUSAGE_THREAD", None)
    if who is None:
        return itertools.count().__next__
    return lambda: resource.getrusage(who).ru_nvcsw


class LatencyMonitor:
    """Measures one disk.

    @param seconds: the time, in seconds from any origin; fine enough to time one call.
    @param sleeps: how often the thread has slept so far; None to ask the system.
    @ivar slow_until: when the disk may be called in the reactor's thread again.
    @ivar last_used: when it was last called.
    @ivar threads_busy: threads of ours are busy all the time.
    """

    def __init__(
        self,
        seconds: Callable[[], float] = time.perf_counter,
        sleeps: Callable[[], int] | None = None,
    ) -> None:
        self.slow_until = self.last_used = float("-inf")
        self.threads_busy = False
        self._seconds = seconds
        self._sleeps = sleeps or _sleeps_of_this_thread()
        self._suspicious_until = float("-inf")
        self._backoff = _BACKOFF

    @property
    def quick(self) -> bool:
        """Whether the disk may be called in the reactor's thread now."""
        return self._seconds() >= self.slow_until

    def touch(self) -> None:
        """The disk is about to be called, but not by calls that are timed here."""
        self.last_used = self._seconds()

    def begin(self) -> CallStart:
        """Start timing some calls; pass the result to L{end}."""
        now = self._seconds()
        return now, self._sleeps() if now < self._suspicious_until else -1

    def end(self, began: CallStart, calls: int = 1) -> None:
        """Stop timing: C{calls} calls were made."""
        self.last_used = now = self._seconds()
        slow = SLOW * _BUSY_FACTOR if self.threads_busy else SLOW
        if now - began[0] <= slow * min(calls, _MOST_COUNTED):
            return
        if began[1] >= 0 and self._sleeps() > began[1]:
            again = now - self.slow_until < _LONGEST_BACKOFF
            longer = min(2 * self._backoff, _LONGEST_BACKOFF)
            self._backoff = longer if again else _BACKOFF
            self.slow_until = now + self._backoff
        self._suspicious_until = now + _SUSPICION + self._backoff
