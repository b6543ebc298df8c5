"""Asks for what a scan is about to read, some way in front of it.

Owns the pieces of data between the file system's extents and the scan, and how far ahead of the
scan they are asked for. A medium is fast only while it has many requests; a scan that waits for one
piece and asks for the next only then leaves it idle in between.

Rules:

* nothing is asked for as long as all is in the page cache: the scan finds that out, and says when
  something was missing;
* from then on the window grows by a piece for each that is given out and was missing, so that the
  first ones are given out at once; it shrinks slowly while there are others;
* only data is asked for, not what the file system calls a hole: that would fill the cache;
* to ask is an advice: where it fails, the scan meets the error in its turn;
* the pieces are given out in order, and are what came in, cut at multiples of a piece's length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from .segment import Segment

PIECE: Final = 1 << 20
"""Bytes. The kernel reads no more for one advice than its device takes in one request."""

_LONGEST: Final = 32 << 20
_MOST_PIECES: Final = 256
_SHRINKS_BY: Final = PIECE // 8


class ReadAheadWindow:
    """The window of one scan.

    @param read_ahead: begins to read a range, and returns whether it was missing; None where that
        cannot be done.
    """

    def __init__(self, read_ahead: Callable[[int, int], bool] | None) -> None:
        self._read_ahead = read_ahead
        self._length = 0

    def missed(self) -> None:
        """Something had to be waited for that was not asked for."""
        if self._read_ahead is not None:
            self._length = max(self._length, 2 * PIECE)

    def slide(self, runs: Iterator[Segment]) -> Iterator[Segment]:
        """Cut data into pieces, and give them out when those ahead of them were asked for.

        @param runs: adjacent segments of any length.
        """
        pieces: deque[Segment] = deque()
        ahead = 0
        for run in _cut(runs):
            if not self._length:  # none is kept back, then
                yield run
                continue
            piece = self._asked_for(run)
            pieces.append(piece)
            ahead += _bytes_of_data(piece)
            while pieces and (ahead >= self._length or len(pieces) > _MOST_PIECES):
                piece = pieces.popleft()
                ahead -= _bytes_of_data(piece)
                if piece.cold:
                    self._length = min(self._length + PIECE, _LONGEST)
                yield piece
        yield from pieces

    def _asked_for(self, piece: Segment) -> Segment:
        if piece.zero or self._read_ahead is None:
            return piece
        try:
            missing = self._read_ahead(piece.offset, piece.length)
        except OSError:
            return piece
        if not missing:
            self._length = max(self._length - _SHRINKS_BY, 0)
        return piece._replace(cold=missing)


def _bytes_of_data(piece: Segment) -> int:
    return 0 if piece.zero else piece.length


def _cut(runs: Iterator[Segment]) -> Iterator[Segment]:
    for run in runs:
        start, last = run.offset, run.end
        while not run.zero and (end := (start // PIECE + 1) * PIECE) < last:
            yield Segment(start, end - start, False)
            start = end
        yield run if start == run.offset else Segment(start, last - start, False)
