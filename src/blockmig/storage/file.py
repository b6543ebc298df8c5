"""A disk in a regular file: a raw image.

Owns how it is created, and how it is retired by deleting it.
"""

from __future__ import annotations

import errno
import os
import stat

from zope.interface import implementer

from ..interfaces import (
    IReadAheadDisk,
    IRecordedDisk,
    ISizedLater,
    IUnlinkableDisk,
    IWatchedDisk,
)
from .deletable import check_deletable
from .disk import UNSUPPORTED, DescriptorDisk
from .errors import DiskRefused, NotDurable
from .identities import file_identity
from .mounts import filesystem_of, is_below_dev, is_remote
from .room import Room, can_hold, room_at
from .watched import WatchedFile


@implementer(IReadAheadDisk, IUnlinkableDisk, IRecordedDisk, IWatchedDisk, ISizedLater)
class FileDisk(DescriptorDisk, WatchedFile):
    """A raw image in a regular file.

    @param path: of the file.
    @param writable: open it for writing; a source is only read.
    @param size: bytes; a missing file is created, empty until L{prepare}d; an existing one must
        have that size (or be empty).
    @param sized_later: without C{size}: a file that is missing or empty gets it from the migration
        (L{ISizedLater}).
    @param exclusive: False only to look at it: it is not locked.
    @param system: the system calls.
    @ivar created: the file did not exist before.
    @raise DiskRefused: the file cannot be used; nothing was changed.
    """

    # Opening a FIFO must not wait: it is refused.
    _open_flags = os.O_NONBLOCK

    @property
    def record_path(self) -> str:
        """What the paths of its records begin with: they are beside the file."""
        return self.path

    def _is_remote(self) -> bool:
        return is_remote(filesystem_of(self.path))

    def identity(self) -> str:
        """Distinguishes this file from another one that has its name later."""
        with self._descriptor as descriptor:
            return file_identity(descriptor, self._system)

    def _create(self, flags: int, size: int | None) -> int:
        if is_below_dev(self.path):
            raise DiskRefused(
                f"{self.name}: there is no such device, and a file in /dev would be in memory: "
                "the device must exist"
            )
        if size is None:
            raise DiskRefused(f"{self.name}: no such file")
        try:
            descriptor = self._system.open(self.name, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            why = error.strerror
            if isinstance(error, FileNotFoundError):
                why = f"there is no directory {os.path.dirname(self.name) or '.'}"
            elif isinstance(error, FileExistsError) and os.path.islink(self.name):
                why = "it is a symbolic link that leads nowhere"
            raise DiskRefused(f"{self.name}: cannot be created: {why}") from None
        self.created = True
        return descriptor

    def check_size(self, size: int, room: bool = True) -> None:
        """See L{ISizedLater}."""
        if self._unsized and not can_hold(os.path.dirname(self.path), size, self._system):
            raise DiskRefused(f"{self.name}: its file system holds no file of {size} bytes")
        found = self.room() if room else None
        if found is not None and size - found.allocated > found.free:
            raise DiskRefused(
                f"{self.name}: its file system has no room for it: {found.free} bytes are free, "
                f"and {size - found.allocated} are needed if all of the disk is data (to receive "
                "it all the same: no_space_check=True at the receiver)"
            )

    def room(self) -> Room | None:
        """See L{ISizedLater}."""
        with self._descriptor as descriptor:
            return room_at(descriptor, self._system)

    def _check_kind(self, mode: int) -> None:
        if stat.S_ISDIR(mode):
            raise DiskRefused(f"{self.name}: is a directory, not a disk")
        if not stat.S_ISREG(mode):
            raise DiskRefused(f"{self.name}: is neither a regular file nor a block device")
        if self.writable and is_below_dev(self.path):
            raise DiskRefused(
                f"{self.name}: is a regular file in /dev, which is in memory: the device must exist"
            )

    def trim(self, offset: int, length: int) -> None:
        """Punch a hole where that is possible."""
        try:
            self._fast_zero(offset, length, allocate=False, fast=True)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise

    def flush(self) -> None:
        """fdatasync(2), and for a new file fsync its directory, or the file may be lost."""
        super().flush()
        if self._new:
            self._system.sync_directory(os.path.dirname(self.path))

    def links(self) -> int:
        """How many names (hard links) the file has."""
        return self._fstat().st_nlink

    def check_unlink(self) -> None:
        """Check that `unlink` would retire this disk.

        @raise DiskRefused: it has other names, under which it would remain; or it cannot be
            deleted.
        """
        self._check_links()
        with self._descriptor as descriptor:
            check_deletable(descriptor, self.name, self.path, self._system)

    def _check_links(self) -> None:
        links = self.links()
        if links == 0:
            raise DiskRefused(f"{self.name}: was deleted by somebody else: send with unlink=False")
        if links != 1:
            raise DiskRefused(
                f"{self.name}: has {links} hard links; deleting one would not retire the disk"
            )

    def unlink(self) -> None:
        """I{Slow.} Delete the file, durably; the disk stays open.

        A symbolic link to it is kept: only the file itself is deleted.

        @raise OSError: it is still there; ESTALE if another file has taken its name.
        @raise DiskRefused: it is still there, since it got another name meanwhile.
        @raise NotDurable: it is deleted, but may come back after a power failure; or whether it is
            deleted cannot be found out.
        """
        with self._descriptor:  # whoever closes it meanwhile: the lock is ours until this is done
            self._unlink()

    def _unlink(self) -> None:
        self._check_name()
        self._check_links()
        try:
            self._system.unlink(self.path)
        except OSError as error:
            # A network file system may have deleted it, and then report that it was not found.
            try:
                there = self._is_there()
            except OSError:
                raise NotDurable(f"{self.name} may be deleted, or not: {error.strerror}") from None
            if there:
                raise
            raise NotDurable(
                f"{self.name} is deleted, but that was reported as an error: {error.strerror}"
            ) from None
        try:
            self._system.sync_directory(os.path.dirname(self.path))
        except OSError as error:
            raise NotDurable(
                f"{self.name} is deleted, but its directory could not be synced: {error.strerror}"
            ) from None

    def _is_there(self) -> bool:
        """Whether the file is there after its deletion has failed.

        @raise OSError: that cannot be found out.
        """
        try:
            self._check_name()
        except FileNotFoundError:
            # It may have been moved away just now. A network file system's answer may be stale.
            directory = os.path.dirname(self.path)
            return not is_remote(filesystem_of(directory)) and not self.is_gone()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return False
        return True
