"""A disk that is a block device.

Owns its exclusive claim, and the driver's calls beyond reading and writing.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import stat
from typing import Final

from zope.interface import implementer

from ..interfaces import IReadAheadDisk, IRecordedDisk, IWatchedDisk
from ..syscalls import (
    SYSTEM,
    SystemCalls,
)
from .disk import UNSUPPORTED, DescriptorDisk
from .errors import DiskRefused
from .identities import device_identity
from .record_paths import note_state_directory, record_path
from .watched import WatchedDevice

_BLOCK: Final = 4096
_EXCLUSIVE: Final = getattr(os, "O_EXCL", 0)
_BLKROGET: Final = 0x125E
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F


@implementer(IReadAheadDisk, IRecordedDisk, IWatchedDisk)
class BlockDisk(DescriptorDisk, WatchedDevice):
    """A block device, claimed exclusively: one that is mounted or part of another is refused.

    The parameters are those of L{FileDisk}, but a device is never created.

    @param exclusive: False only to look at it: it is neither claimed nor locked, and the directory
        of its records is not made.
    @param state_directory: where its records are; None for the default.
    @ivar record_path: what their paths begin with.
    @ivar state_directory: as given.
    """

    def __init__(
        self,
        path: str,
        *,
        writable: bool = True,
        size: int | None = None,
        exclusive: bool = True,
        state_directory: str | None = None,
        system: SystemCalls = SYSTEM,
    ) -> None:
        if not exclusive:
            self._open_flags = 0
        super().__init__(path, writable=writable, size=size, exclusive=exclusive, system=system)
        # It can be opened for writing all the same; only each write fails.
        if writable and self._is_read_only():
            self.close()
            raise DiskRefused(f"{self.name}: the device is read-only (blockdev --getro says so)")
        self.record_path = record_path(path, state_directory, system)
        self.state_directory = state_directory
        if not exclusive:
            return
        directory = os.path.dirname(self.record_path)
        _make_directory(directory, system)
        note_state_directory(directory)

    @property
    def given_path(self) -> str:
        """The absolute path by which it was opened. What that leads to (such as C{/dev/dm-3}) may
        be another device after a restart."""
        return self._given_path

    def identity(self) -> str:
        """Distinguishes this device from another one that has its name later."""
        with self._descriptor as number:
            return device_identity(self._system.fstat(number).st_rdev, self._system)

    # A device knows no extents, so zeroes have to be searched for.
    shortest_zeroes = _BLOCK
    # On a device O_EXCL (without O_CREAT) takes the exclusive claim that mounting also takes.
    _open_flags = _EXCLUSIVE

    def check_unlocked(self) -> None:
        """Nor claimed: it is, for a moment."""
        super().check_unlocked()
        try:
            descriptor = self._system.open(self.name, os.O_RDONLY | os.O_CLOEXEC | _EXCLUSIVE)
        except OSError as error:
            raise self._refused(error) from None
        self._system.close(descriptor)

    def _check_kind(self, mode: int) -> None:
        if not stat.S_ISBLK(mode):
            raise DiskRefused(f"{self.name}: is not a block device")

    def _fast_zero(self, offset: int, length: int, allocate: bool, fast: bool) -> None:
        """Zero whole blocks by the device, and what is beside them by writing.

        fallocate(2) on a device deallocates its space (and fails with EOPNOTSUPP where that would
        not leave zeroes, unlike BLKDISCARD); BLKZEROOUT keeps the space, and may write zeroes, as
        fallocate may where it is to keep the space.
        """
        if fast and allocate:
            raise OSError(errno.EOPNOTSUPP, "a device does not report whether it can")
        start, end = _whole_blocks(offset, length)
        if start >= end:
            self._write_zeroes(offset, length)
            return
        if fast:
            # Linux forgets what was written to the range, and is not on the medium yet, before it
            # finds out that the device cannot do it: nothing may have changed then.
            self.write_back(start, end - start, wait=True)
        try:
            super()._fast_zero(start, end - start, allocate, fast)
        except OSError as error:
            if fast or error.errno not in UNSUPPORTED:
                raise
            self._ioctl(_BLKZEROOUT, start, end - start)
        self._write_zeroes(offset, start - offset)
        self._write_zeroes(end, offset + length - end)

    def _is_read_only(self) -> bool:
        answer = array.array("i", [0])
        with self._descriptor as descriptor, contextlib.suppress(OSError):
            self._system.ioctl(descriptor, _BLKROGET, answer)
        return answer[0] != 0

    def _ioctl(self, request: int, offset: int, length: int) -> None:
        with self._descriptor as descriptor:
            self._system.ioctl(descriptor, request, array.array("Q", [offset, length]))

    def trim(self, offset: int, length: int) -> None:
        """BLKDISCARD, for the whole blocks of the range."""
        start, end = _whole_blocks(offset, length)
        if start < end:
            try:
                self._ioctl(_BLKDISCARD, start, end - start)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise


def _make_directory(path: str, system: SystemCalls) -> None:
    """Create the state directory, durably; if that fails, so will its first record."""
    if os.path.isdir(path):
        return
    with contextlib.suppress(OSError):
        os.makedirs(path, 0o755)
        parent = os.path.dirname(path)
        while parent != os.path.dirname(parent):
            system.sync_directory(parent)
            parent = os.path.dirname(parent)


def _whole_blocks(offset: int, length: int) -> tuple[int, int]:
    """Where the first whole block of a range starts and the last one ends."""
    return -(-offset // _BLOCK) * _BLOCK, (offset + length) // _BLOCK * _BLOCK
