"""Cuts a disk's content into segments for requests: data, and zeroes.

Owns the position of one pass over a disk, or over some ranges of it. A `Scan` is advanced by one
caller at a time, in a thread, since it reads the disk; each step takes a bounded time.

Rules:

* the segments come in order, do not overlap, and make up the ranges exactly;
* a segment of data is at most one request long, and is cut at multiples of the request size, so
  that both ends are page-aligned; a segment of zeroes is at most `LONGEST_ZEROES` long;
* a segment that is not complete after `_STEP_SECONDS` is given out as it is: where the medium is
  slow, the destination would hear nothing of us for minutes, and take us for dead;
* every cut except a range's end is at a multiple of the block size that the peer wants;
* zeroes are what reads as zeroes: a hole of the file system, or bytes that were probed, 256 KiB at
  a time (each probe costs a call), or in finer steps where the disk knows of no holes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from ..interfaces import IDisk
from .disk import PROBE_SIZE

LONGEST_ZEROES: Final = 256 << 20

_STEP_SEGMENTS: Final = 256
_STEP_BYTES: Final = 16 << 20
_STEP_SECONDS: Final = 1.0
# A shorter range is probed completely: finding the file's next hole may take longer, since that may
# be far away.
_SHORT_RANGE: Final = 1 << 20


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


class Scan:
    """One pass over a disk from its start to its end.

    @param request: bytes of the longest segment of data; a multiple of C{block}.
    @param block: bytes, a power of two of at most 64 KiB; cuts are at its multiples.
    @param find_zeroes: distinguish zeroes from data; otherwise everything is data.
    @param probe: look for zeroes in what the disk reports as data, too. Otherwise nothing is read,
        for a disk of which each call is slow: see L{split_data}.
    @param seconds: returns the time.
    @param ranges: the start and the end of each range to scan, in order and disjoint, at multiples
        of C{block} (except the disk's end); None for the whole disk.
    """

    def __init__(
        self,
        disk: IDisk,
        request: int,
        block: int = 1,
        find_zeroes: bool = True,
        ranges: Sequence[tuple[int, int]] | None = None,
        *,
        probe: bool = True,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._step_end = 0.0
        self._request = request
        self._block = block
        self._probe = probe
        self._bytes_probed = 0
        self._stopped = False
        self._segments = self._cut(
            run
            for start, end in ([(0, disk.size)] if ranges is None else ranges)
            for run in self._uncut(disk, start, end, find_zeroes)
        )

    def advance(self) -> list[Segment]:
        """The next segments; none at the end of the disk.

        @raise OSError: the disk could not be read.
        """
        segments: list[Segment] = []
        stop = self._bytes_probed + _STEP_BYTES
        self._step_end = self._seconds() + _STEP_SECONDS
        for segment in islice(self._segments, _STEP_SEGMENTS):
            segments.append(segment)
            if self._bytes_probed >= stop or self._is_late:
                break
        return segments

    def stop(self) -> None:
        """Make a step that is running in a thread end with what it has."""
        self._stopped = True

    @property
    def _is_late(self) -> bool:
        return self._seconds() >= self._step_end

    def _uncut(self, disk: IDisk, start: int, end: int, find_zeroes: bool) -> Iterator[Segment]:
        """Adjacent segments of any length, as they are found."""
        if find_zeroes and end - start >= min(_SHORT_RANGE, disk.size):
            return self._runs(disk, start, end)
        probed = self._probed(disk, start, end)
        if find_zeroes:
            return probed
        return (segment._replace(zero=False) for segment in probed)

    def _runs(self, disk: IDisk, position: int, last: int) -> Iterator[Segment]:
        block = self._block
        for extent in disk.extents(position):
            if extent.offset >= last:
                break
            end = min(extent.offset + extent.length, last)
            if extent.hole:
                # Where the peer's blocks are larger than the file system's, a hole is rounded
                # inwards: the data beside it then reaches into it.
                start = -(-extent.offset // block) * block
                stop = end if end == last else end // block * block
                if start >= stop:
                    continue
                yield from self._probed(disk, position, start)
                yield Segment(start, stop - start, True)
                position = stop
            else:
                stop = end if end == last else end // block * block
                yield from self._probed(disk, position, stop)
                position = max(position, stop)
        yield from self._probed(disk, position, last)

    def _probed(self, disk: IDisk, start: int, end: int) -> Iterator[Segment]:
        if not self._probe:
            if start < end:
                yield Segment(start, end - start, False)
            return
        while start < end and not self._stopped:
            stop = min((start // PROBE_SIZE + 1) * PROBE_SIZE, end)
            zero, cold = disk.probe(start, stop - start)
            self._bytes_probed += stop - start
            step = max(disk.shortest_zeroes, self._block)
            if zero or step >= stop - start:
                yield Segment(start, stop - start, zero, cold)
            else:
                yield from self._probed_finely(disk.read(start, stop - start), start, step, cold)
            start = stop

    @staticmethod
    def _probed_finely(data: bytes, start: int, step: int, cold: bool) -> Iterator[Segment]:
        zeroes = bytes(step)
        for position in range(0, len(data), step):
            part = data[position : position + step]
            yield Segment(start + position, len(part), part == zeroes[: len(part)], cold)

    def _cut(self, runs: Iterator[Segment]) -> Iterator[Segment]:
        """Join adjacent segments of one kind, and cut them to the allowed lengths."""
        waiting: Segment | None = None
        for run in runs:
            if waiting is not None and (waiting.zero, waiting.end) == (run.zero, run.offset):
                cold = waiting.cold or run.cold
                waiting = Segment(waiting.offset, waiting.length + run.length, run.zero, cold)
            else:
                if waiting is not None:
                    yield waiting
                waiting = run
            while (cut := self._next_cut(waiting)) < waiting.end:
                yield waiting._replace(length=cut - waiting.offset)
                waiting = waiting._replace(offset=cut, length=waiting.end - cut)
            if self._is_late:
                yield waiting
                waiting = None
        if waiting is not None:
            yield waiting

    def _next_cut(self, segment: Segment) -> int:
        limit = LONGEST_ZEROES if segment.zero else self._request
        return (segment.offset // limit + 1) * limit


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
