"""How much room there is for a disk, where it is."""

from __future__ import annotations

from typing import Final, NamedTuple

from ..interfaces import IDisk
from ..syscalls import SYSTEM, SystemCalls
from .disk import held_descriptor
from .file import FileDisk

_BLOCK: Final = 512
"""Bytes of a block in the result of stat(2)."""


class Room(NamedTuple):
    """The room for a file, in bytes.

    @ivar free: what this process may still use of the file system.
    @ivar allocated: what the file has already.
    """

    free: int
    allocated: int


def room_of(disk: IDisk, system: SystemCalls = SYSTEM) -> Room | None:
    """I{Slow.} The room for a disk; None where it is no file of a file system.

    @raise OSError: that cannot be found out.
    """
    if not isinstance(disk, FileDisk):
        return None
    with held_descriptor(disk) as descriptor:
        allocated = system.fstat(descriptor).st_blocks * _BLOCK
        there = system.fstatvfs(descriptor)
    blocks = there.f_bfree if system.geteuid() == 0 else there.f_bavail
    return Room(blocks * there.f_frsize, allocated)
