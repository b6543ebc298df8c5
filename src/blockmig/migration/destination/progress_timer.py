"""Measures how long a migration takes, and gives it up when it makes no progress.

Rule: no time passes while an attempt gets further. One that has ended no further than the best
before it was no progress, for as long as it took.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from ...runtime import BoundedThreads


class ProgressTimer:
    """The time since a migration began, and since its last progress.

    @param reactor: the clock.
    @param threads: as long as one works for the migration, that is progress.
    """

    def __init__(self, reactor: Any, threads: BoundedThreads) -> None:
        self._reactor = reactor
        self._threads = threads
        self._began: float | None = None
        self._last: float = reactor.seconds()
        self._before_attempt: float | None = None
        self._furthest = 0
        self._next_check: IDelayedCall | None = None

    @property
    def seconds(self) -> float:
        """Seconds since it began; 0 before that."""
        now: float = self._reactor.seconds()
        return 0.0 if self._began is None else now - self._began

    def begin(self) -> None:
        """The migration begins, if it has not already."""
        if self._began is None:
            self._began = self._reactor.seconds()

    def made(self) -> None:
        """Progress was made, that is not undone by the end of an attempt."""
        self._last = self._reactor.seconds()
        self._before_attempt = None

    def attempt_begins(self) -> None:
        """An attempt begins, and with it perhaps the migration."""
        self.begin()
        self._before_attempt = self._last

    def attempt_advances(self) -> None:
        """It has got further than it was."""
        self._last = self._reactor.seconds()

    def attempt_ended(self, covered: int) -> None:
        """It has ended early, and so many bytes of the disk were covered by then."""
        if covered > self._furthest:
            self._furthest = covered
        elif self._before_attempt is not None:
            self._last = self._before_attempt
            if self._next_check is not None:  # that comes too late by now
                self._next_check.reset(0)

    def watch(self, limit: float, give_up: Callable[[str], None]) -> None:
        """Give the migration up when it makes no progress.

        @param limit: for so many seconds.
        @param give_up: called with the reason.
        """
        self._check_in(limit, limit, give_up)

    def _check_in(self, delay: float, limit: float, give_up: Callable[[str], None]) -> None:
        self._next_check = self._reactor.callLater(delay, self._check, limit, give_up)

    def _check(self, limit: float, give_up: Callable[[str], None]) -> None:
        self._next_check = None
        if self._threads.busy:
            self._last = self._reactor.seconds()
        left = self._last + limit - self._reactor.seconds()
        if left > 0:
            self._check_in(left, limit, give_up)
        else:
            give_up(f"gave up after {limit:g} seconds without progress")

    def stop_watching(self) -> None:
        if self._next_check is not None:
            self._next_check.cancel()
            self._next_check = None
