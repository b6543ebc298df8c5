"""Whether to wait a moment for a peer's next message, rather than go round by the reactor.

A client with few requests in flight sends the next one as soon as it has the reply: within some ten
microseconds. To sleep and be woken by the reactor costs several times as much, and makes up most of
the time that such a client waits for. So whoever has just answered looks again for a moment.

Rules:

* never longer than `SPIN`, and only while no other connection is being served as well;
* where it does not pay, it is tried less and less often;
* a turn that has gone on for a third of a millisecond is over, paid or not;
* the processor is offered to others (the client, if it has no other) each time.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import ClassVar, Final

SPIN: Final = 50e-6
"""Seconds."""

_LONGEST_TURN: Final = 0.0003
_LONGEST_SKIP: Final = 63

_yield: Final[Callable[[], None]] = getattr(os, "sched_yield", lambda: None)


class BusyPoll:
    """One connection's.

    @param descriptor: of its socket.
    @param seconds: a clock that is fine enough.
    @param poll: whether C{descriptor} is readable now, as L{select.poll} tells; for tests.
    """

    _latest: ClassVar[BusyPoll | None] = None

    def __init__(
        self,
        descriptor: int,
        seconds: Callable[[], float] = time.perf_counter,
        poll: Callable[[int], object] | None = None,
    ) -> None:
        if poll is None:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poll = poller.poll
        self._poll = poll
        self._seconds = seconds
        self._skip = 0
        self._skipped = 0
        self._may_spin = False
        self._end = 0.0

    def begin(self) -> None:
        """A turn begins: something has come."""
        alone = BusyPoll._latest is self
        BusyPoll._latest = self
        self._skipped += 1
        self._may_spin = alone and self._skipped > self._skip
        self._end = self._seconds() + _LONGEST_TURN

    def more(self) -> bool:
        """What had come was answered: whether more has, now or after a moment, in this turn."""
        poll, seconds = self._poll, self._seconds
        now = seconds()
        if now >= self._end:
            return False
        if poll(0):
            return True
        if not self._may_spin:
            return False
        until = now + SPIN
        while seconds() < until:
            _yield()
            if poll(0):
                self._skip = 0
                return True
        self._skip = min(2 * self._skip + 1, _LONGEST_SKIP)
        self._skipped = 0
        self._may_spin = False
        return False
