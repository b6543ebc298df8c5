"""Reads the segments of a disk without a descriptor before they are sent.

Of a file the scan probes what the page cache then has, and the kernel sends that. Such a disk may
take long for each call, and nobody keeps what it has read. So its scan reads nothing (`Scan`), and
each byte is read once, here, in threads and several pieces at a time; zeroes are looked for in what
was read.

Owns the segments between the scan and the requests. Rules:

* they are given out in the order in which they came, cut where zeroes and data meet;
* what is read and not given out is bounded by `ReadAhead`; what was given out and not sent yet is
  up to whoever takes it;
* an error is reported when it is that segment's turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from ...interfaces import IDisk
from ...runtime import InThread
from ...storage import Segment, split_data
from ...transport import FileRegion, ReadAhead


class SegmentReader:
    """The segments of one attempt.

    @param in_thread: runs a function in a thread.
    @param step: bytes of the shortest run of zeroes to look for; None to look for none.
    @param cold: what is read need not stay in any cache.
    @param ready: called when L{take}, which had nothing to give out, has.
    """

    def __init__(
        self,
        disk: IDisk,
        in_thread: InThread,
        *,
        step: int | None,
        cold: bool,
        ready: Callable[[], None],
    ) -> None:
        self._disk = disk
        self._step = step
        self._cold = cold
        self._read_ahead = ReadAhead(in_thread, ready)
        self._waiting: deque[Segment] = deque()

    @property
    def waiting(self) -> int:
        """How many segments were not given out."""
        return len(self._waiting)

    def add(self, segments: Iterable[Segment]) -> None:
        """Segments that follow those before."""
        for segment in segments:
            self._waiting.append(segment)
            if not segment.zero:
                self._read_ahead.add(FileRegion(self._disk, segment.offset, segment.length))

    def take(self) -> list[Segment]:
        """What the next segment, or a part of it, consists of; empty as long as that is not known.

        @raise OSError: it could not be read.
        """
        if not self._waiting:
            return []
        segment = self._waiting[0]
        if segment.zero:
            return [self._waiting.popleft()]
        if not self._read_ahead.is_ready:
            self._read_ahead.wait()
            return []
        data = self._read_ahead.take(segment.length)
        taken = segment._replace(length=len(data), cold=self._cold)
        self._waiting.popleft()
        if taken.length < segment.length:
            rest = segment._replace(offset=taken.end, length=segment.length - taken.length)
            self._waiting.appendleft(rest)
        if self._step is None:
            return [taken._replace(data=data)]
        return list(split_data(taken, data, self._step))

    def stop(self) -> None:
        """Nothing is needed any more."""
        self._waiting.clear()
        self._read_ahead.stop()
