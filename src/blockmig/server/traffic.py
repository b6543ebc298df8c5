"""Counters of what was requested on a connection, or on all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..nbd import Command, Request


@dataclass
class TrafficCounters:
    """Counts the admitted requests, and their bytes.

    @ivar reads: READ requests.
    @ivar bytes_read: their bytes.
    @ivar writes: WRITE requests.
    @ivar bytes_written: their bytes.
    @ivar other: all other requests.
    """

    reads: int = 0
    bytes_read: int = 0
    writes: int = 0
    bytes_written: int = 0
    other: int = 0

    def count(self, reads: int, bytes_read: int, writes: int, bytes_written: int) -> None:
        self.reads += reads
        self.bytes_read += bytes_read
        self.writes += writes
        self.bytes_written += bytes_written

    def count_request(self, request: Request) -> None:
        if request.command == Command.READ:
            self.count(1, request.length, 0, 0)
        elif request.command == Command.WRITE:
            self.count(0, 0, 1, request.length)
        else:
            self.other += 1

    def add(self, other: TrafficCounters) -> None:
        self.count(other.reads, other.bytes_read, other.writes, other.bytes_written)
        self.other += other.other

    @property
    def any(self) -> bool:
        """Whether there was any."""
        return bool(self.reads or self.writes or self.other)

    def as_json(self) -> dict[str, int]:
        return {"requests": self.reads + self.writes + self.other, **asdict(self)}
