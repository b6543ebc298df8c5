"""Which bytes of a disk were covered in this attempt.

Owns one bit for each 64 KiB block (16 TiB of disk: 32 MiB), and the covered ranges within partly
covered blocks.

Rules:

* a byte counts as covered only if it was; covering it again changes nothing;
* the order and size of the requests do not matter: any sender can complete a disk;
* memory is bounded: at most `PARTIAL_BLOCKS` partly covered blocks are kept, each with at most 64
  ranges. Beyond that the oldest is forgotten: a peer that sends such requests has to send that
  block again to complete, but it cannot use up our memory, nor make an uncovered byte count.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bitarray import bitarray

BLOCK: Final = 65536
PARTIAL_BLOCKS: Final = 65536
_RANGES: Final = 64


class Coverage:
    """The coverage of one attempt.

    @param size: bytes of the disk.
    @ivar covered: how many bytes are covered (a forgotten block counts as not covered).
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._whole = bitarray(-(-size // BLOCK))
        self._whole.setall(0)
        self._partial: dict[int, list[tuple[int, int]]] = {}
        self.covered = 0

    @property
    def complete(self) -> bool:
        """Whether every byte of the disk is covered."""
        return self.covered == self._size

    def missing(self, offset: int, length: int) -> int:
        """How many of C{length} bytes from C{offset} are not covered; they are within the disk."""
        end, missing = offset + length, 0
        for block in range(offset // BLOCK, (end - 1) // BLOCK + 1):
            if not self._whole[block]:
                start, stop = max(offset, block * BLOCK), min(end, (block + 1) * BLOCK)
                ranges = self._partial.get(block, ())
                known = sum(max(0, min(stop, last) - max(start, first)) for first, last in ranges)
                missing += stop - start - known
        return missing

    def add(self, offset: int, length: int) -> None:
        """Count C{length} bytes from C{offset} as covered; they must be within the disk."""
        end = offset + length
        first, last = offset // BLOCK, (end - 1) // BLOCK
        if first == last:
            self._add_within(first, offset, end)
            return
        self._add_within(first, offset, (first + 1) * BLOCK)
        self._add_within(last, last * BLOCK, end)
        self._add_whole(first + 1, last)

    def add_all(self, ranges: Iterable[tuple[int, int]]) -> None:
        """L{add} each of C{ranges}, an offset and a length.

        Those that follow each other without a gap are added as one: of a fragmented disk they are
        nearly all, and it is each call that costs.
        """
        start = end = 0
        for offset, length in ranges:
            if offset != end:
                if start < end:
                    self.add(start, end - start)
                start = offset
            end = offset + length
        if start < end:
            self.add(start, end - start)

    def _block_end(self, block: int) -> int:
        return min((block + 1) * BLOCK, self._size)

    def _add_whole(self, first: int, stop: int) -> None:
        """Cover the blocks from C{first} up to, not including, C{stop}; not the disk's last one."""
        new = stop - first - self._whole.count(1, first, stop)
        if not new:
            return
        self._whole[first:stop] = 1
        self.covered += new * BLOCK
        if self._partial:
            for block in [block for block in self._partial if first <= block < stop]:
                self._forget(block)

    def _add_within(self, block: int, start: int, end: int) -> None:
        if self._whole[block]:
            return
        ranges = self._partial.get(block, [])
        if len(ranges) == 1 and ranges[0][1] == start and end < self._block_end(block):
            # The next piece of a block that is filled in order, which most are.
            ranges[0] = (ranges[0][0], end)
            self.covered += end - start
            return
        known = sum(stop - begin for begin, stop in ranges)
        merged = _merge(ranges, start, end)
        now = sum(stop - begin for begin, stop in merged)
        self.covered += now - known
        if now == self._block_end(block) - block * BLOCK:
            self._whole[block] = 1
            self._partial.pop(block, None)
            return
        self._partial[block] = merged
        if len(merged) > _RANGES:
            self._forget(block)
        elif len(self._partial) > PARTIAL_BLOCKS:
            self._forget(next(iter(self._partial)))

    def _forget(self, block: int) -> None:
        self.covered -= sum(stop - begin for begin, stop in self._partial.pop(block))


def _merge(ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """Add a range to C{ranges}, which are and remain sorted and disjoint."""
    before = [(begin, stop) for begin, stop in ranges if stop < start]
    after = [(begin, stop) for begin, stop in ranges if begin > end]
    touching = ranges[len(before) : len(ranges) - len(after)]
    if touching:
        start = min(start, touching[0][0])
        end = max(end, touching[-1][1])
    return [*before, (start, end), *after]
