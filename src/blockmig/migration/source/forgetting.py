"""Drops from the page cache what was read for the copy only.

Owns the segments that were not cached before, from their acknowledgement until the cache has
dropped them. Rules:

* what was cached before stays: somebody has a use for it;
* a call waits for all processors where it meets pages that are quite new, so that it is made in a
  thread, for many segments together;
* there is one such thread at a time: a disk that is slow to forget leaves threads to all else;
* it is an advice: that it fails costs nothing, and by then the disk may be retired.
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

_AT_ONCE: Final = 32
"""Segments."""


class Forgetting:
    """What one attempt has read from the medium.

    @param in_thread: runs a function in a thread.
    """

    def __init__(self, disk: IDisk, in_thread: InThread) -> None:
        self._disk = disk
        self._in_thread = in_thread
        self._cold: list[Segment] = []
        self._forgetting: Deferred[None] = succeed(None)

    def acknowledged(self, segment: Segment) -> None:
        """The destination has it; it will be dropped some time if it was cold."""
        if not segment.cold:
            return
        self._cold.append(segment)
        if len(self._cold) >= _AT_ONCE and self._forgetting.called:
            self.forget()

    def forget(self) -> None:
        """Drop now what is left."""
        cold, self._cold = self._cold, []
        self._forgetting = forgetting = self._in_thread(self._forget, cold)
        forgetting.addErrback(lambda failure: failure.trap(OSError)).addErrback(_bug)

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
