"""Drops from the page cache what was read for the copy only.

Owns the segments that were not cached before, from their acknowledgement until a thread drops them.
Rules:

* what was cached before stays: somebody has a use for it;
* a call waits for all processors where it meets pages that are quite new, so that it is made in a
  thread, for many segments together;
* there is one such thread at a time: a disk that is slow to forget leaves threads to all else;
* it is an advice: that it fails costs nothing, and by then the disk may be retired. What an attempt
  leaves behind when it is lost is some MiB.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...interfaces import IDisk
from ...runtime import InThread
from ...storage import Segment

_log = Logger()

_WORTH_A_CALL: Final = 32
"""Segments."""


class Forgetting:
    """What one attempt has read from the medium.

    @param in_thread: runs a function in a thread.
    """

    def __init__(self, disk: IDisk, in_thread: InThread) -> None:
        self._disk = disk
        self._in_thread = in_thread
        self._cold: list[Segment] = []
        self._at_work: Deferred[None] = succeed(None)

    def acknowledged(self, segment: Segment) -> None:
        """The destination has it; if it was cold it may be dropped."""
        if not segment.cold:
            return
        self._cold.append(segment)
        if len(self._cold) >= _WORTH_A_CALL and self._at_work.called:
            self._drop()

    def finish(self) -> None:
        """Drop what is left, once the thread that is at work is through."""
        self._at_work.addCallback(lambda _: self._drop()).addErrback(_bug)

    def _drop(self) -> None:
        if self._cold:
            cold, self._cold = self._cold, []
            self._at_work = self._in_thread(self._forget, cold)
            self._at_work.addErrback(lambda failure: failure.trap(OSError)).addErrback(_bug)

    def _forget(self, cold: list[Segment]) -> None:
        """In a thread."""
        for start, end in _joined(cold):
            self._disk.forget(start, end - start)


def _joined(segments: list[Segment]) -> list[tuple[int, int]]:
    """The start and the end of each range that they make up."""
    ranges: list[tuple[int, int]] = []
    for segment in sorted(segments):
        if ranges and ranges[-1][1] == segment.offset:
            ranges[-1] = (ranges[-1][0], segment.end)
        else:
            ranges.append((segment.offset, segment.end))
    return ranges


def _bug(failure: Failure) -> None:
    _log.failure("while forgetting what was read", failure=failure)
