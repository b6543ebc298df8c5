"""Which parts of a disk are dirty: written by a client since they were last sent; and which parts
clients touch.

Owns one bit for each 64 KiB of the disk in each of the two maps, and nothing else: 32 MiB of memory
for 16 TiB each.

Rules:

* what is marked stays dirty until it is taken; it is taken once, and must then be sent by whoever
  took it;
* whoever changes the disk marks before the change, and again after it if other code could run in
  between: what was taken meanwhile may have been sent in its old state;
* a change within 64 KiB makes all of them dirty;
* nothing here blocks, and everything is called in one thread.
"""

from __future__ import annotations

from typing import Final

from bitarray import bitarray

GRANULARITY: Final = 64 << 10
"""Bytes of the disk that one bit stands for."""

_SHIFT: Final = 16


class DirtyMap:
    """The dirty parts of a disk.

    @param size: bytes of the disk.
    @ivar marked: how many bytes ever became dirty by writes, and so are likely to be data; what was
        dirty already does not count again. It only grows.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.marked = 0
        self._bits = bitarray(-(-size // GRANULARITY))
        self._bits.setall(0)
        self._count = 0

    @property
    def bytes(self) -> int:
        """How many bytes are dirty; the last block counts as a whole one."""
        return min(self._count << _SHIFT, self.size)

    def mark(self, offset: int, length: int, data: bool = True) -> None:
        """C{length} bytes, more than 0, at C{offset} are about to be changed, or just were.

        @param data: they are written; otherwise they are zeroed.
        """
        first = offset >> _SHIFT
        last = (offset + length - 1) >> _SHIFT
        bits = self._bits
        if first == last:
            if not bits[first]:
                bits[first] = 1
                self._count += 1
                self.marked += GRANULARITY * data
            return
        stop = last + 1
        new = stop - first - bits.count(1, first, stop)
        if new:
            bits[first:stop] = 1
            self._count += new
            self.marked += (new << _SHIFT) * data

    def mark_all(self) -> None:
        """Mark the whole disk, to be sent (again); it does not count in C{marked}."""
        self._bits.setall(1)
        self._count = len(self._bits)

    def take(self, position: int, most: int) -> tuple[int, int] | None:
        """Take the first dirty run at or after C{position}: it is not dirty any more.

        @param position: a multiple of L{GRANULARITY}, or the disk's size.
        @param most: bytes at most, a multiple of L{GRANULARITY}; a longer run's rest stays dirty.
        @return: where the run begins and where it ends; None if there is none.
        """
        bits = self._bits
        first = bits.find(1, -(-position // GRANULARITY))
        if first < 0:
            return None
        stop = bits.find(0, first, min(first + (most >> _SHIFT), len(bits)))
        if stop < 0:
            stop = min(first + (most >> _SHIFT), len(bits))
        bits[first:stop] = 0
        self._count -= stop - first
        return first << _SHIFT, min(stop << _SHIFT, self.size)


class TouchedMap:
    """Which parts of a disk clients have written to lately, whether or not they are dirty.

    It tells how much clients touch in a given time: the dirty map cannot, since what is dirty
    already does not become so again.

    @param size: bytes of the disk.
    @ivar written: bytes that clients wrote so far, each time anew, in whole blocks; only grows.
    """

    def __init__(self, size: int) -> None:
        self.written = 0
        self._bits = bitarray(-(-size // GRANULARITY))
        self._bits.setall(0)
        self._count = 0

    @property
    def bytes(self) -> int:
        """How many bytes were touched since L{restart}, each counted once."""
        return self._count << _SHIFT

    def touch(self, offset: int, length: int) -> None:
        """C{length} bytes, more than 0, at C{offset} are written."""
        first = offset >> _SHIFT
        last = (offset + length - 1) >> _SHIFT
        bits = self._bits
        if first == last:
            self.written += GRANULARITY
            if not bits[first]:
                bits[first] = 1
                self._count += 1
            return
        stop = last + 1
        self.written += (stop - first) << _SHIFT
        self._count += stop - first - bits.count(1, first, stop)
        bits[first:stop] = 1

    def restart(self) -> None:
        """Forget what was touched so far."""
        if self._count:
            self._bits.setall(0)
            self._count = 0
