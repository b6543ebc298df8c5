"""Segments: runs of a disk's bytes that are sent with one request each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Segment(NamedTuple):
    """A run of bytes for one request.

    @ivar offset: bytes from the start of the disk.
    @ivar length: bytes.
    @ivar zero: it reads as zeroes, so that its bytes need not be sent.
    @ivar cold: it was not in the page cache before, and need not stay there.
    @ivar data: its bytes, where they were read already; None if they are still to be.
    """

    offset: int
    length: int
    zero: bool
    cold: bool = False
    data: memoryview | None = None

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + self.length


def split_data(segment: Segment, data: memoryview, step: int) -> Iterator[Segment]:
    """Tell zeroes from data in a segment that was read.

    @param step: bytes of the shortest run of zeroes to look for; cuts are at its multiples from the
        segment's start.
    @return: adjacent segments, by turns zeroes and data, which has its bytes.
    """
    zeroes = bytes(step)
    start, kind = 0, None
    for position in range(0, len(data), step):
        part = data[position : position + step]
        zero = part == zeroes[: len(part)]
        if kind is not None and zero != kind:
            yield _part(segment, data, start, position, kind)
            start = position
        kind = zero
    if kind is not None:
        yield _part(segment, data, start, len(data), kind)


def _part(segment: Segment, data: memoryview, start: int, end: int, zero: bool) -> Segment:
    known = None if zero else data[start:end]
    return Segment(segment.offset + start, end - start, zero, segment.cold, known)
