"""Limits how much of what a receiver has written is not on its medium yet.

Left alone, the kernel would let a migration fill the page cache with dirty pages, evict what the
host needs, and in the end block the reactor in the middle of a write until the medium has caught
up. So the write-back of each window of written bytes is started as soon as the window is full,
waited for (in a thread) when the next one is, and the window is then dropped from the page cache. A
sender that is faster than the medium is held back by its socket.

Rules:

* at most `_WINDOWS` windows are written and not yet on the medium; then `behind` is called, and
  `caught_up` when there is room again;
* an error that the medium reports in this way is passed to `failed`;
* of a fragmented disk, ranges that are near each other are one: what is between them is clean, or
  was written as well, and a call for each piece would cost more than the writing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...interfaces import IDisk

_WINDOW: Final = 32 << 20
_WINDOWS: Final = 4
_MOST_RANGES: Final = 256
_GAP: Final = 1 << 20
"""Bytes between two ranges, from which on they are not written back as one."""

Ranges = list[tuple[int, int]]


class WriteBehind:
    """The windows of one attempt.

    @param in_thread: runs a function in a thread; fires with its result.
    """

    def __init__(
        self,
        disk: IDisk,
        in_thread: Callable[..., Deferred[Any]],
        *,
        behind: Callable[[], None],
        caught_up: Callable[[], None],
        failed: Callable[[BaseException | None], None],
    ) -> None:
        self._disk = disk
        self._in_thread = in_thread
        self._behind = behind
        self._caught_up = caught_up
        self._failed = failed
        self._ranges: Ranges = []
        self._written = 0
        self._windows: deque[Ranges] = deque()
        self._writing_back = False
        self._is_behind = False
        self._waiting: list[Deferred[None]] = []

    def flushed(self) -> Deferred[None]:
        """Everything was made durable meanwhile, so that no window needs a write-back any more.

        @return: fires once no write-back is under way: all its errors have been reported then.
        """
        self._ranges, self._written = [], 0
        self._windows.clear()
        self._resume_if_caught_up()
        done: Deferred[None] = Deferred()
        if self._writing_back:
            self._waiting.append(done)
        else:
            done.callback(None)
        return done

    def wrote(self, offset: int, length: int) -> None:
        """C{length} bytes were written at C{offset}."""
        ranges = self._ranges
        if ranges and 0 <= offset - sum(ranges[-1]) <= _GAP:
            start = ranges[-1][0]
            ranges[-1] = (start, offset + length - start)
        else:
            ranges.append((offset, length))
        self._written += length
        if self._written >= _WINDOW or len(ranges) >= _MOST_RANGES:
            self._ranges, self._written = [], 0
            self._windows.append(ranges)
            self._write_back_next()
            if len(self._windows) >= _WINDOWS and not self._is_behind:
                self._is_behind = True
                self._behind()

    def _resume_if_caught_up(self) -> None:
        if self._is_behind and len(self._windows) < _WINDOWS:
            self._is_behind = False
            self._caught_up()

    def _write_back_next(self) -> None:
        """Start the write-back of the newest window and wait for the oldest, one pair at a time."""
        if self._writing_back or not self._windows:
            return
        self._writing_back = True
        newest = self._windows[-1]
        oldest = self._windows[0] if len(self._windows) > 1 else None

        def work() -> None:
            for offset, length in newest:
                self._disk.write_back(offset, length, False)
            for offset, length in oldest or ():
                self._disk.write_back(offset, length, True)

        def finished(result: object) -> None:
            self._writing_back = False
            if isinstance(result, Failure):
                self._windows.clear()
                self._failed(result.value)
            elif oldest is not None and self._windows and self._windows[0] is oldest:
                self._windows.popleft()
            self._resume_if_caught_up()
            if len(self._windows) > 1:
                self._write_back_next()
            waiting, self._waiting = self._waiting, []
            for done in waiting:
                done.callback(None)

        self._in_thread(work).addBoth(finished)
