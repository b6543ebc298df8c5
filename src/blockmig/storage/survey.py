"""How much of each part of a disk is data, for estimates of the time that is left.

Owns the count of data in each of a few thousand equal parts of a disk, and how far it was counted.
Rules:

* data is what the disk does not report as holes; nothing is read for it;
* the count is made in small steps, in a thread, beside the scan. What was not counted yet is taken
  for as dense as what was; before the first step, and on a disk that knows of no holes, everything
  is data;
* it is an estimate: what has changed since is not counted again, and a part is taken for evenly
  filled.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Final

from ..interfaces import Extent, IDisk

_PARTS: Final = 4096
_SMALLEST_PART: Final = 1 << 20
_STEP_EXTENTS: Final = 4096


class Survey:
    """Where a disk has data, roughly.

    @param size: bytes of the disk.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._part = max(_SMALLEST_PART, -(-size // _PARTS))
        self._data = array("Q", bytes(8 * -(-size // self._part)))
        self._extents: Iterator[Extent] | None = None
        self._counted = 0
        self._found = 0

    @property
    def is_complete(self) -> bool:
        """Whether all of the disk was counted."""
        return self._counted >= self._size

    def advance(self, disk: IDisk) -> None:
        """I{Slow.} Count a little further; nothing is left to do at the end of the disk.

        @raise OSError: the disk could not be asked.
        """
        if self.is_complete:
            return
        if self._extents is None:
            self._extents = iter(disk.extents(0))
        counted = self._counted
        for extent in islice(self._extents, _STEP_EXTENTS):
            counted = extent.offset + extent.length
            if not extent.hole:
                self._add(extent.offset, counted)
        # Whoever asks meanwhile, in another thread, sees a part that is not quite counted yet.
        self._counted = counted

    def _add(self, start: int, end: int) -> None:
        self._found += end - start
        while start < end:
            part = start // self._part
            stop = min(end, (part + 1) * self._part)
            self._data[part] += stop - start
            start = stop

    def data(self, start: int, end: int) -> int:
        """About how many bytes between C{start} and C{end} are data."""
        counted = min(max(self._counted, start), end)
        density = self._found / self._counted if self._counted else 1.0
        return round(self._counted_data(start, counted) + (end - counted) * density)

    def _counted_data(self, start: int, end: int) -> float:
        if start >= end:
            return 0.0
        first, last = start // self._part, (end - 1) // self._part
        whole = sum(self._data[first : last + 1])
        before = self._share(first, first * self._part, start)
        after = self._share(last, end, min((last + 1) * self._part, self._size))
        return whole - before - after

    def _share(self, part: int, start: int, end: int) -> float:
        length = min(self._part, self._size - part * self._part)
        return self._data[part] * (end - start) / length
