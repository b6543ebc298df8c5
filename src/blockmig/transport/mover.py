"""Moving: bytes go from a socket straight into a disk, by splice(2) through a pipe.

Owns the pipe, and whether this kernel and this disk can splice. Rules:

* where splice cannot be used, bytes are moved by readv into a buffer and pwrite;
* what is in the pipe belongs to the disk: a disk that can no longer be spliced into gets the rest
  by write; where a disk fails, what was on its way counts as lost, and the pipe is closed with it;
* where few descriptors are left, none is taken for a pipe: the process needs them for its files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from typing import Final

from ..syscalls import SystemCalls
from .regions import FileRegion

LONGEST_MOVE: Final = 512 << 10
"""Bytes that are moved at a time, at most."""

_PIPE_SIZE: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031
_NO_SPLICE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_KEPT_FREE: Final = 16
"""Descriptors that are not taken for speed."""


def check_descriptors(system: SystemCalls) -> None:
    """Fail as if there were no descriptors, while few are left.

    @raise OSError: EMFILE.
    """
    free, limit = system.descriptors()
    if free < min(_KEPT_FREE, limit // 8):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Mover:
    """Moves the payloads of one connection."""

    def __init__(self, system: SystemCalls) -> None:
        self._system = system
        self._can_splice = system.splice is not None
        self._pipe: tuple[int, int] | None = None
        self._buffer: memoryview | None = None

    def move(self, descriptor: int, region: FileRegion, failed: Callable[[OSError], None]) -> int:
        """Move some of what a socket has received into the beginning of a region.

        @param descriptor: the socket's.
        @param failed: called with the disk's error; what was taken off the wire is lost then.
        @return: bytes that were taken off the wire; 0 at its end.
        @raise OSError: the socket's; L{BlockingIOError} if nothing was received.
        """
        count = min(region.length, LONGEST_MOVE)
        if self._can_splice and region.disk.fileno() is not None:
            return self._splice(descriptor, region, count, failed)
        return self._copy(descriptor, region, count, failed)

    def close(self) -> None:
        """Close the pipe, and free the buffer."""
        self._close_pipe()
        self._buffer = None

    def _splice(
        self, descriptor: int, region: FileRegion, count: int, failed: Callable[[OSError], None]
    ) -> int:
        try:
            from_pipe, to_pipe = self._open_pipe()
            taken: int = self._system.splice(descriptor, to_pipe, count)
        except OSError as error:
            if error.errno not in (*_NO_SPLICE, errno.EMFILE, errno.ENFILE):
                raise
            self._can_splice = False
            return self._copy(descriptor, region, count, failed)
        try:
            self._drain(from_pipe, region, taken)
        except OSError as error:
            self._close_pipe()
            failed(error)
        return taken

    def _drain(self, pipe: int, region: FileRegion, left: int) -> None:
        """Move C{left} bytes from the pipe into the disk, through memory where it cannot splice."""
        offset = region.offset
        while left:
            # Each time anew: a thread may have found just now that the disk has none any more.
            descriptor = region.disk.fileno()
            if self._can_splice and descriptor is not None:
                try:
                    moved = self._system.splice(pipe, descriptor, left, offset_dst=offset)
                except OSError as error:
                    if error.errno not in _NO_SPLICE:
                        raise
                    self._can_splice = False
                    continue
            else:
                data = self._system.read(pipe, left)
                region.disk.write(offset, data)
                moved = len(data)
            left -= moved
            offset += moved

    def _copy(
        self, descriptor: int, region: FileRegion, count: int, failed: Callable[[OSError], None]
    ) -> int:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(LONGEST_MOVE))
        taken = self._system.readv(descriptor, [self._buffer[:count]])
        if taken:
            try:
                region.disk.write(region.offset, self._buffer[:taken])
            except OSError as error:
                failed(error)
        return taken

    def _open_pipe(self) -> tuple[int, int]:
        if self._pipe is None:
            check_descriptors(self._system)
            self._pipe = self._system.pipe()
            with contextlib.suppress(OSError):  # beyond the user's limit: a small pipe works too
                fcntl.fcntl(self._pipe[1], _F_SETPIPE_SZ, _PIPE_SIZE)
        return self._pipe

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None
