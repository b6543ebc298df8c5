"""How far a migration is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from ...storage import Segment


class Phase(StrEnum):
    """What the source does, in words."""

    CONNECTING = "connecting"
    WAITING = "waiting to try again"
    COPYING = "copying"
    FLUSHING = "making the copy durable"
    CONFIRMING = "checking the copy"
    RETIRING = "retiring the source"
    ENDING = "telling the destination"
    DONE = "done"


@dataclass(slots=True)
class Progress:
    """How far a migration is, as its source sees it.

    @ivar total: bytes of the disk.
    @ivar data: bytes acknowledged as data in the present attempt.
    @ivar zeroes: bytes acknowledged as zeroes in it.
    @ivar attempt: its number, counted from 1; 0 before the first.
    @ivar earlier: how many attempts earlier processes have made.
    @ivar remaining: returns about how many bytes of data are left; None where nobody knows.
    @ivar seconds: returns the time.
    @ivar began: when the first attempt did, by that clock; None before.
    @ivar latest: when the last progress was made.
    @ivar phase: what is being done.
    @ivar forecast: seconds until the end, where whoever updates this can tell; None where not.
    """

    total: int
    data: int = 0
    zeroes: int = 0
    attempt: int = 0
    earlier: int = 0
    remaining: Callable[[], int] | None = field(default=None, repr=False)
    seconds: Callable[[], float] = field(default=lambda: 0.0, repr=False)
    began: float | None = None
    latest: float = 0.0
    phase: str = Phase.CONNECTING
    forecast: float | None = None

    @property
    def done(self) -> int:
        """Bytes acknowledged in the present attempt."""
        return self.data + self.zeroes

    @property
    def data_left(self) -> int:
        """About how many bytes of data are still to be sent; what is not known to be a hole is."""
        left = max(0, self.total - self.done)
        return left if self.remaining is None else min(self.remaining(), self.total)

    @property
    def number(self) -> int:
        """The number of the present attempt, those of earlier processes included."""
        return self.earlier + self.attempt

    def begin_attempt(self) -> None:
        """Another attempt begins: nothing of the last one counts."""
        if self.began is None:
            self.began = self.seconds()
        self.attempt += 1
        self.data = self.zeroes = 0

    def moved(self, count: int) -> None:
        """So many bytes were written to the connection, or read from it."""
        self.latest = self.seconds()

    def acknowledged(self, segment: Segment) -> None:
        """The destination has C{segment}."""
        self.latest = self.seconds()
        if segment.zero:
            self.zeroes += segment.length
        else:
            self.data += segment.length
