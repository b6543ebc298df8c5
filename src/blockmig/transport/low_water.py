"""Waking up less often: how much must have been received before a TCP socket counts as readable.

Left alone, the kernel wakes a receiver up for each segment, however busy the connection is. In the
middle of a large payload that is too often: each wake-up costs both ends some microseconds, and on
loopback even the sender's sendfile(2) waits for it. With SO_RCVLOWAT the socket becomes readable
when so many bytes are there, or the connection has ended. (A UNIX socket takes the option, and
ignores it.)

Owns the socket's mark, and the timer that takes it back.

Rules:

* the mark is never beyond what is left of a payload, so that its last byte, and whatever follows
  it, is noticed at once;
* a line that brings less than the mark in `PATIENCE` seconds is a slow one: for the rest of that
  payload every byte counts, since whoever watches the progress of a connection goes by what was
  read;
* an error of the option costs nothing but the wake-ups.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall

MARK: Final = 256 << 10
"""Bytes for which it is worth waking up."""

PATIENCE: Final = 0.25

_OPTION: Final[int | None] = getattr(socket, "SO_RCVLOWAT", None)
_TCP: Final = (socket.AF_INET, socket.AF_INET6)


class LowWater:
    """The mark of one socket.

    @param handle: the socket; nothing is done to one that is not TCP's.
    @param clock: an IReactorTime.
    """

    def __init__(self, handle: Any, clock: Any) -> None:
        self._handle: Any = handle if _OPTION is not None and handle.family in _TCP else None
        self._clock = clock
        self._mark = 1
        self._left = 0
        self._slow = False
        self._fed = False
        self._timer: IDelayedCall | None = None

    def expect(self, left: int) -> None:
        """Something was read, and all that was there, or as much as one turn may read.

        @param left: bytes of a payload that are next on the wire; 0 where that is not known.
        """
        if self._handle is None:
            return
        self._fed = True
        if left > self._left:
            self._slow = False
        self._left = left
        mark = 1 if self._slow else max(1, min(left, MARK))
        if mark != self._mark:
            self._set(mark)
            if self._timer is None and mark > 1:
                self._watch()

    def stop(self) -> None:
        """Let every byte count again; to be called before somebody else reads, and at the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._mark > 1:
            self._set(1)
        self._handle = None

    def _set(self, mark: int) -> None:
        self._mark = mark
        with contextlib.suppress(OSError):
            self._handle.setsockopt(socket.SOL_SOCKET, _OPTION, mark)

    def _watch(self) -> None:
        self._fed = False
        self._timer = self._clock.callLater(PATIENCE, self._look)

    def _look(self) -> None:
        """Take the mark back if it was not reached since the last look."""
        self._timer = None
        if self._mark == 1:
            return
        if self._fed:
            self._watch()
        else:
            self._slow = True
            self._set(1)
