"""Cuts a disk's content into segments for requests: data, and zeroes.

Owns the position of one pass over a disk, or over some ranges of it. A `Scan` is advanced by one
caller at a time, in a thread, since it reads the disk; each step takes a bounded time.

Rules:

* the segments come in order, do not overlap, and make up the ranges exactly;
* a segment of data is at most one request long, and is cut at multiples of the request size, so
  that both ends are page-aligned; one of zeroes has a longest length of its own;
* a segment that is not complete after `_STEP_SECONDS` is given out as it is: where the medium is
  slow, the destination would hear nothing of us for minutes, and take us for dead;
* every cut except a range's end is at a multiple of the block size that the peer wants;
* zeroes are what reads as zeroes: a hole of the file system, or bytes that were probed, 256 KiB at
  a time, or in finer steps where the disk knows of no holes. A probe costs a call: after a MiB
  without zeroes the next one is probed only at its end, and everywhere if there are some;
* what the medium has yet to read is asked for in front of the position (`ReadAheadWindow`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Final

from ..interfaces import IDisk, IReadAheadDisk
from .disk import PROBE_SIZE
from .read_ahead_window import ReadAheadWindow
from .segment import Segment

LONGEST_ZEROES: Final = 256 << 20
"""Bytes. A server that writes zeroes out must have done so before it is taken for dead."""

_STEP_SEGMENTS: Final = 256
_STEP_BYTES: Final = 16 << 20
_STEP_SECONDS: Final = 1.0
# A shorter range is probed completely: finding the file's next hole may take longer, since that may
# be far away.
_SHORT_RANGE: Final = 1 << 20


class Scan:
    """One pass over a disk from its start to its end.

    @param request: bytes of the longest segment of data; a multiple of C{block}.
    @param block: bytes, a power of two of at most 64 KiB; cuts are at its multiples.
    @param find_zeroes: distinguish zeroes from data; otherwise everything is data.
    @param probe: look for zeroes in what the disk reports as data, too. Otherwise nothing is read,
        for a disk of which each call is slow; L{split_data} tells what was read apart.
    @param longest_zeroes: bytes of the longest segment of zeroes; a multiple of C{block}.
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
        longest_zeroes: int = LONGEST_ZEROES,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._step_end = 0.0
        self._request = request
        self._longest_zeroes = longest_zeroes
        self._block = block
        self._find_zeroes = find_zeroes
        self._bytes_examined = 0
        self._stopped = False
        self._window = ReadAheadWindow(disk.read_ahead if IReadAheadDisk.providedBy(disk) else None)
        runs = (
            run
            for start, end in ([(0, disk.size)] if ranges is None else ranges)
            for run in self._runs(disk, start, end)
        )
        self._segments = self._cut(
            self._examined(disk, self._window.slide(runs)) if probe else runs
        )

    def advance(self, most: int = _STEP_BYTES) -> list[Segment]:
        """The next segments; none at the end of the disk.

        @param most: bytes of data from which on the step ends.
        @raise OSError: the disk could not be read.
        """
        segments: list[Segment] = []
        stop = self._bytes_examined + most
        self._step_end = self._seconds() + _STEP_SECONDS
        for segment in islice(self._segments, _STEP_SEGMENTS):
            segments.append(segment)
            if self._bytes_examined >= stop or self._is_late:
                break
        return segments

    def stop(self) -> None:
        """Make a step that is running in a thread end with what it has."""
        self._stopped = True

    @property
    def _is_late(self) -> bool:
        return self._seconds() >= self._step_end

    def _runs(self, disk: IDisk, position: int, last: int) -> Iterator[Segment]:
        """Adjacent segments of any length: what the disk calls holes, and all else as data."""
        if not self._find_zeroes or last - position < min(_SHORT_RANGE, disk.size):
            yield Segment(position, last - position, False)
            return
        block = self._block
        for extent in disk.extents(position):
            if extent.offset >= last:
                break
            end = min(extent.offset + extent.length, last)
            # Where the peer's blocks are larger than the file system's, a hole is rounded inwards:
            # the data beside it then reaches into it.
            start = -(-extent.offset // block) * block if extent.hole else position
            stop = end if end == last else end // block * block
            if start >= stop:
                continue
            if position < start:
                yield Segment(position, start - position, False)
            yield Segment(start, stop - start, extent.hole)
            position = stop
        if position < last:
            yield Segment(position, last - position, False)

    def _examined(self, disk: IDisk, pieces: Iterator[Segment]) -> Iterator[Segment]:
        """The same, with zeroes told from data in what is no hole."""
        look_everywhere = self._find_zeroes
        for piece in pieces:
            if self._stopped:
                return
            if piece.zero:
                yield piece
                continue
            self._bytes_examined += piece.length
            *granules, last = _granules(piece)
            at_end: list[Segment] = []
            if not look_everywhere:
                at_end = self._probe(disk, piece, *last)
                if not (self._find_zeroes and any(part.zero for part in at_end)):
                    cold = at_end[0].cold and not piece.cold
                    yield piece._replace(cold=True) if cold else piece
                    continue
            else:
                granules.append(last)
            look_everywhere = bool(at_end)
            for start, stop in granules:
                if self._stopped:
                    return
                for part in self._probe(disk, piece, start, stop):
                    look_everywhere = look_everywhere or part.zero
                    yield part
            yield from at_end

    def _probe(self, disk: IDisk, piece: Segment, start: int, stop: int) -> list[Segment]:
        """What a granule of a piece consists of."""
        zero, missed = disk.probe(start, stop - start)
        if missed and not piece.cold:
            self._window.missed()
        cold = piece.cold or missed
        step = max(disk.shortest_zeroes, self._block)
        if zero or step >= stop - start:
            return [Segment(start, stop - start, zero, cold)]
        return list(_told_apart(disk.read(start, stop - start), start, step, cold))

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
            limit = self._longest_zeroes if waiting.zero else self._request
            while (cut := (waiting.offset // limit + 1) * limit) < waiting.end:
                yield waiting._replace(length=cut - waiting.offset)
                waiting = waiting._replace(offset=cut, length=waiting.end - cut)
            if self._is_late:
                yield waiting
                waiting = None
        if waiting is not None:
            yield waiting


def _granules(piece: Segment) -> list[tuple[int, int]]:
    """The start and the end of each part that is probed by itself."""
    start, end = piece.offset, piece.end
    first = (start // PROBE_SIZE + 1) * PROBE_SIZE
    if first >= end:
        return [(start, end)]
    cuts = [start, *range(first, end, PROBE_SIZE), end]
    return list(pairwise(cuts))


def _told_apart(data: bytes, start: int, step: int, cold: bool) -> Iterator[Segment]:
    zeroes = bytes(step)
    for position in range(0, len(data), step):
        part = data[position : position + step]
        yield Segment(start + position, len(part), part == zeroes[: len(part)], cold)
