"""How much of a disk clients touch in a given time: what was measured of it.

Owns the measurements of what clients write. Has no clock and no map, and does no I/O.

Rules:

* what matters to a mirror is in how many places clients write while a pass goes on: a place that
  they write to a hundred times meanwhile is sent once. Whether it was dirty already says nothing;
* that is learned in windows. Within one, the bytes touched, each counted once, are a curve over the
  bytes written: it begins as a line, and becomes flat where clients return to the same places;
* between two known points it is a line. Beyond the last it is continued as
  A * (1 - exp(-k * written)) through what was touched by the half of the window's writes and by all
  of them; as a line where the one is half of the other;
* what the last window has learned is used until the present one has seen half as much; as long as
  no window has seen a write, each write counts as one to a new place;
* how much clients will write in some seconds follows from the last second or so: whoever stops, or
  begins, is noticed at once. In which places they write is what the window has learned.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from typing import Final

_SAMPLE_SECONDS: Final = 0.1
_DENSE: Final = 1.1
"""Of two neighbouring points of a curve, the second is so many times as far from its beginning."""
_LINE: Final = 1.98
"""A curve that at its end is so many times as high as halfway is a line, or as good as one."""


class _Curve:
    """How many bytes were touched by so many bytes written, in one window."""

    def __init__(self) -> None:
        self._written: list[float] = [0]
        self._touched: list[float] = [0]

    @property
    def written(self) -> float:
        """The bytes written at its end."""
        return self._written[-1]

    def add(self, written: float, touched: float) -> None:
        """Both only grow."""
        if written <= self._written[-1]:
            return
        if len(self._written) > 2 and self._written[-1] < self._written[-2] * _DENSE:
            self._written.pop()
            self._touched.pop()
        self._written.append(written)
        self._touched.append(touched)

    def at(self, written: float) -> float:
        """How many bytes C{written} bytes touch."""
        last, touched = self._written[-1], self._touched[-1]
        if written <= last:
            return self._between(written)
        half = self._between(last / 2)
        if touched >= _LINE * half:
            return touched * written / last
        # What the second half of the writes touched anew, as a part of what the first did.
        part = touched / half - 1
        return float(half / (1 - part) * (1 - part ** (2 * written / last)))

    def _between(self, written: float) -> float:
        after = bisect_left(self._written, written)
        if after == 0:
            return 0.0
        start, end = self._written[after - 1], self._written[after]
        low, high = self._touched[after - 1], self._touched[after]
        return low + (high - low) * (written - start) / (end - start)


class Writing:
    """What one mirror's clients write, in one attempt.

    @param size: bytes of the disk.
    @ivar rate: bytes per second that they wrote lately, each time anew.
    """

    def __init__(self, size: int = sys.maxsize) -> None:
        self.rate = 0.0
        self._size = size
        self._sampled: tuple[float, int] | None = None
        self._began: tuple[float, int] = (0.0, 0)
        self._written = 0
        self._measured = False
        self._curve = _Curve()
        self._learned = _Curve()

    def sample(self, now: float, written: int, touched: int | None = None) -> None:
        """To be called often, and at the beginning, when nothing was touched yet.

        @param now: seconds, by any clock.
        @param written: bytes written so far, each time anew.
        @param touched: bytes touched in this window, each counted once; None if that is not known.
        """
        self._written = written
        if self._sampled is None:
            self._sampled = self._began = now, written
            return
        if touched is not None:
            self._curve.add(written - self._began[1], touched)
        seconds = now - self._sampled[0]
        if seconds >= _SAMPLE_SECONDS:
            rate = (written - self._sampled[1]) / seconds
            weight = min(1.0, seconds) if self._measured else 1.0
            self.rate += weight * (rate - self.rate)
            self._sampled, self._measured = (now, written), True

    def window(self, now: float) -> float:
        """For how many seconds the present window has gone on."""
        return now - self._began[0] if self._sampled is not None else 0.0

    def mean_rate(self, now: float) -> float:
        """Bytes per second written in the present window."""
        if self._sampled is None or now <= self._began[0]:
            return 0.0
        return (self._written - self._began[1]) / (now - self._began[0])

    def next_window(self, now: float) -> None:
        """Begin another window: what is touched counts from now."""
        if self._sampled is None:
            return
        if self._curve.written:
            self._learned, self._curve = self._curve, _Curve()
        self._began = now, self._written

    def touched_in(self, seconds: float, rate: float | None = None) -> float:
        """How many bytes clients touch in so many seconds, each counted once.

        @param rate: at which they write; None for the present one.
        """
        written = (self.rate if rate is None else rate) * seconds
        curve = self._curve
        if curve.written < self._learned.written / 2:
            curve = self._learned
        return min(curve.at(written) if curve.written else written, self._size)
