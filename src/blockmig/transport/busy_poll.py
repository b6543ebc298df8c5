"""Busy polling: waiting a moment for a peer's next message before returning to the reactor.

A client with few requests in flight sends the next one as soon as it has the reply, within about
ten microseconds. Sleeping until the reactor wakes up costs several times as much, and is most of
the latency that such a client sees. So after an answer the socket is polled again for a moment.

Rules:

* never for longer than `SPIN`, and only while no other connection is being served;
* where polling finds nothing twice in a row, it is tried less and less often;
* a turn ends after 0.3 ms, whether or not polling found anything. Even then the next message is
  awaited for a moment before the reactor is returned to: otherwise that would fall asleep, between
  two messages of a client that is busy;
* the processor is yielded between polls (to the client, if that has no other).
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import ClassVar, Final

SPIN: Final = 50e-6
"""Seconds that one wait may take."""

_LONGEST_TURN: Final = 0.0003
_MOST_MISSES: Final = 6
"""That count: after each, about twice as many turns do not poll, up to 62."""

_yield: Final[Callable[[], None]] = getattr(os, "sched_yield", lambda: None)


class BusyPoll:
    """Polls the socket of one connection.

    @param descriptor: of its socket.
    @param seconds: a clock fine enough for C{SPIN}.
    @param poll: replaces the poll of L{select.poll}, in tests.
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
        self._misses = 0
        self._skipped = 0
        self._may_spin = False
        self._end = 0.0

    def begin(self) -> None:
        """A turn begins: something was received."""
        alone = BusyPoll._latest is self
        BusyPoll._latest = self
        self._may_spin = alone and self._skipped >= (1 << self._misses) - 2
        self._skipped += 1
        self._end = self._seconds() + _LONGEST_TURN

    def more(self) -> bool:
        """Whether more was received, now or within a moment, and the turn is not over."""
        poll, seconds = self._poll, self._seconds
        now = seconds()
        if poll(0):
            return now < self._end
        if not self._may_spin:
            return False
        until = now + SPIN
        while seconds() < until:
            _yield()
            if poll(0):
                self._misses = 0
                return now < self._end
        self._misses = min(self._misses + 1, _MOST_MISSES)
        self._skipped = 0
        self._may_spin = False
        return False
