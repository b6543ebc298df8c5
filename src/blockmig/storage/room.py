"""How much room there is for a file, and whether its file system could hold it at all."""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from ..syscalls import SystemCalls

_BLOCK: Final = 512
"""Bytes of a block in the result of stat(2)."""
_TOO_LARGE: Final = (errno.EFBIG, errno.EINVAL, errno.EOVERFLOW)
_NAMELESS: Final = getattr(os, "O_TMPFILE", 0)


class Room(NamedTuple):
    """The room for a file, in bytes.

    @ivar free: what this process may still use of the file system.
    @ivar allocated: what the file has already.
    """

    free: int
    allocated: int


def room_at(descriptor: int, system: SystemCalls) -> Room | None:
    """I{Slow.} The room for the open file; None where its file system does not count.

    @raise OSError: that cannot be found out.
    """
    there = system.fstatvfs(descriptor)
    if not there.f_blocks:
        return None
    allocated = system.fstat(descriptor).st_blocks * _BLOCK
    blocks = there.f_bfree if system.geteuid() == 0 else there.f_bavail
    return Room(blocks * there.f_frsize, allocated)


def can_hold(directory: str, size: int, system: SystemCalls) -> bool:
    """I{Slow.} Whether a file in C{directory} can have that size.

    It is tried with a file that has no name, so that nobody sees it, whatever happens. Where there
    are no such files nothing is known: True.

    @raise OSError: that cannot be found out.
    """
    if not _NAMELESS:
        return True
    try:
        descriptor = system.open(directory, _NAMELESS | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return True
    try:
        system.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno not in _TOO_LARGE:
            raise
        return False
    finally:
        system.close(descriptor)
    return True
