"""Reads regions in threads, ahead of being sent: those of a disk that has no descriptor.

Owns the pieces that are being read, and those that were read and not yet given out.

Rules:

* regions are read in the order in which they were added, in pieces of at most 1 MiB. Several are
  read at a time, in any order, and given out in theirs;
* at most 4 pieces exist at a time, read or being read, so that they take at most 4 MiB;
* nothing is given out of a piece before all of it was read; an error is reported when it is that
  piece's turn, after everything before it;
* whoever waits for a piece is notified once, and never from inside a call of its own;
* a read that was not begun when all this was stopped is not made. One that was begun runs to its
  end: its result is dropped, and whoever gave the threads waits for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..interfaces import IDisk
from .regions import FileRegion

PIECE: Final = 1 << 20
"""Bytes that are read at a time."""

MOST_PIECES: Final = 4
"""How many pieces exist at a time."""


class _Piece:
    """A part of a region.

    @ivar left: bytes that were not given out yet.
    @ivar data: those; None until they were read.
    @ivar error: why they could not be.
    @ivar dropped: nobody wants them any more.
    """

    __slots__ = ("data", "disk", "dropped", "error", "left", "offset")

    def __init__(self, disk: IDisk, offset: int, length: int) -> None:
        self.disk = disk
        self.offset = offset
        self.left = length
        self.data: memoryview | None = None
        self.error: BaseException | None = None
        self.dropped = False

    @property
    def is_read(self) -> bool:
        return self.data is not None or self.error is not None

    def read(self) -> bytes:
        """In a thread."""
        return b"" if self.dropped else self.disk.read(self.offset, self.left)


class ReadAhead:
    """Regions that are read in threads, for one who takes what they hold in their order.

    @param in_thread: runs a function in a thread.
    @param ready: called, after L{wait}, when the next bytes were read.
    @ivar is_waiting: somebody waits for the next bytes.
    """

    def __init__(self, in_thread: Callable[..., Deferred[Any]], ready: Callable[[], None]) -> None:
        self._in_thread = in_thread
        self._ready = ready
        self._regions: deque[FileRegion] = deque()
        self._pieces: deque[_Piece] = deque()
        self._strays = 0
        self.is_waiting = False

    def add(self, region: FileRegion) -> None:
        """C{region} is to be sent after all those before it."""
        self._regions.append(region)
        self._read_on()

    @property
    def is_ready(self) -> bool:
        """Whether the next bytes were read, or could not be."""
        return bool(self._pieces) and self._pieces[0].is_read

    def wait(self) -> None:
        """Have C{ready} called when the next bytes, which are not ready, are."""
        self.is_waiting = True

    def take(self, count: int) -> memoryview:
        """Some of the next bytes, which are ready: at least one, and at most C{count}.

        @raise OSError: they could not be read; L{drop} what is left of their region.
        """
        first = self._pieces[0]
        if first.error is not None:
            raise first.error
        assert first.data is not None
        taken, first.data = first.data[:count], first.data[count:]
        first.left -= len(taken)
        if not first.left:
            self._pieces.popleft()
            self._read_on()
        return taken

    def drop(self, length: int) -> None:
        """The next C{length} bytes, which are the rest of a region, are not wanted any more."""
        while length > 0 and self._pieces:
            piece = self._pieces.popleft()
            length -= piece.left
            self._abandon(piece)
        if length > 0:
            region = self._regions.popleft()
            if length < region.length:
                self._regions.appendleft(region.after(length))
        self._read_on()

    def stop(self) -> None:
        """Nothing is wanted any more."""
        self.is_waiting = False
        self._regions.clear()
        pieces, self._pieces = self._pieces, deque()
        for piece in pieces:
            self._abandon(piece)

    def _abandon(self, piece: _Piece) -> None:
        piece.dropped = True
        if not piece.is_read:
            self._strays += 1

    def _read_on(self) -> None:
        """Begin to read as much as may be."""
        while self._regions and len(self._pieces) + self._strays < MOST_PIECES:
            region = self._regions.popleft()
            # Cut at multiples of the piece's size, where the disk's own blocks end, too.
            length = min(region.length, PIECE - region.offset % PIECE)
            if length < region.length:
                self._regions.appendleft(region.after(length))
            piece = _Piece(region.disk, region.offset, length)
            self._pieces.append(piece)
            self._in_thread(piece.read).addBoth(self._was_read, piece)

    def _was_read(self, result: bytes | Failure, piece: _Piece) -> None:
        if piece.dropped:
            self._strays -= 1
            self._read_on()
        elif isinstance(result, Failure):
            piece.error = result.value
        else:
            piece.data = memoryview(result)
        if self.is_waiting and self.is_ready:
            self.is_waiting = False
            self._ready()
