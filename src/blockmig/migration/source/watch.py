"""Detects whether a source is, at its retirement, what it was when its copying began.

Owns what was observed then. Rules (design, section 2: R13):

* before its copy is recorded as whole, and again just before it is retired, its name must lead to
  the file that was opened, of the same size;
* it must not have been written to since the scan began. A disk whose only writer is our own server
  was written to all the time: that one must not have been since it was quiescent, with its clients
  held;
* nobody else may have it open for writing by then, as far as can be found out, unless that was
  allowed; whether another program writes to a disk in use is checked at the beginning of each
  attempt;
* what was touched, though not written to (another owner, a label, a hard link that came and went),
  may have been written to by a program that set its time back: that is no failure, but it is copied
  anew;
* a source whose last name was removed by somebody else is a case of its own: what was copied may be
  all that is left of it;
* where it cannot be found out whether the source is still there, nothing is concluded: it counts
  neither as there nor as gone. A descriptor that was closed, or fails, says nothing of the file,
  whose path is asked then.

The calls block: they are made from threads.
"""

from __future__ import annotations

import contextlib
import os
import stat
from enum import StrEnum

from ...interfaces import IDisk, IWatchedDisk
from ...storage import (
    BlockDisk,
    DiskChanged,
    DiskVersion,
    FileDisk,
    boot_id,
    describe_version,
    device_identity,
    file_identity,
    has_descriptor,
    held_descriptor,
    is_open_elsewhere,
    path_of,
    same_disk,
    users_of,
)
from ...syscalls import SystemCalls
from ..in_use import describe_users


class Presence(StrEnum):
    """What is known of a source that was not retired."""

    THERE = "there"
    GONE = "gone"
    """Somebody else has removed the last name of its file."""
    UNKNOWN = "unknown"


class SourceTouched(Exception):
    """The source may have been written to, and must be copied anew; the message is one line."""


class SourceGone(Exception):
    """The source's last name was removed by somebody else; the message is one line.

    @ivar unchanged: nothing speaks against the copy: nobody wrote to the source meanwhile.
    @ivar replaced: another file has its name.
    """

    def __init__(self, message: str, unchanged: bool, replaced: bool) -> None:
        super().__init__(message)
        self.unchanged = unchanged
        self.replaced = replaced


def last_write(disk: IDisk | None) -> str:
    """I{Slow.} What is known of the last write to a disk, as L{SourceWatch.written} has it.

    Of a file that is known at once; a device is synced first, since it counts only what has reached
    it.

    @raise OSError: the medium failed.
    """
    if not isinstance(disk, FileDisk | BlockDisk):
        return ""
    return describe_version(disk.version(sync=isinstance(disk, BlockDisk)))


class SourceWatch:
    """Watches one source.

    @param disk: the source.
    @param identity: what distinguishes its file from others; "" where nothing does.
    @param in_use: its only writer is a server of ours.
    @param ignore_writers: another program may have it open for writing.
    @param system: the system calls to use.
    """

    def __init__(
        self,
        disk: IDisk,
        *,
        identity: str = "",
        in_use: bool = False,
        ignore_writers: bool = False,
        system: SystemCalls,
    ) -> None:
        self._disk = disk
        self._watched = disk if IWatchedDisk.providedBy(disk) else None
        self._in_use = in_use
        self._ignore_writers = ignore_writers
        self._system = system
        self._seen: DiskVersion | None = None
        self._identity = identity

    @property
    def watches(self) -> bool:
        """Whether the disk can be watched at all."""
        return self._watched is not None

    @property
    def presence(self) -> Presence:
        """Whether the source is still there; one that cannot be watched always is."""
        try:
            gone = self._watched is not None and self._watched.is_gone()
        except OSError:
            return Presence.THERE if self._is_at_its_path() else Presence.UNKNOWN
        return Presence.GONE if gone else Presence.THERE

    def _is_at_its_path(self) -> bool:
        """Whether the path certainly leads to the source, whose descriptor tells nothing."""
        if not self._identity:
            return False
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = self._system.open(path_of(self._disk), flags)
        except OSError:
            return False
        try:
            status = self._system.fstat(descriptor)
            found = (
                device_identity(status.st_rdev, self._system)
                if stat.S_ISBLK(status.st_mode)
                else file_identity(descriptor, self._system)
            )
        except OSError:
            return False
        finally:
            self._system.close(descriptor)
        boot = boot_id()
        return same_disk(self._identity, boot, found, boot) is True

    @property
    def written(self) -> str:
        """What was last seen of the writes to the source, to be recorded; "" where nothing was.

        Of a disk of somebody else's kind it may mean nothing to another process.
        """
        if not isinstance(self._disk, FileDisk | BlockDisk) or self._seen is None:
            return ""
        return describe_version(self._seen)

    def begin(self) -> None:
        """I{Slow.} The copying begins.

        @raise DiskChanged: another program writes to a disk in use. That is checked now, since it
            may take longer than its clients can be held.
        @raise OSError: the disk's version cannot be read.
        """
        if self._watched is None:
            return
        self._seen = None if self._in_use else self._watched.version()
        if self._in_use and not self._ignore_writers:
            self._check_writers()

    def is_quiescent(self) -> None:
        """I{Slow.} Nobody may write to a disk in use from now on: its clients are held."""
        if self._watched is not None and self._in_use:
            self._seen = self._watched.version(sync=False)

    def check(self) -> None:
        """I{Slow.} The copy is about to be recorded as whole, or the source to be retired.

        @raise SourceGone: there is nothing left to be retired.
        @raise DiskChanged: it must not be.
        @raise SourceTouched: it must not be, before it was copied anew.
        @raise OSError: that cannot be decided.
        """
        disk, seen = self._watched, self._seen
        if disk is None:
            return
        try:
            now = disk.version(sync=not self._in_use) if seen is not None else None
            if not disk.is_gone():
                disk.check_path()
        except (DiskChanged, OSError):
            if disk.is_gone():
                raise self._gone(disk) from None
            raise
        if disk.is_gone():
            raise self._gone(disk)
        written = seen is not None and now is not None and now.written != seen.written
        if written:
            when = "its clients were held" if self._in_use else "it was being sent"
            raise DiskChanged(f"{disk.name} was written to by another program while {when}")
        touched = seen is not None and now is not None and now.touched != seen.touched
        if touched and not self._in_use:
            raise SourceTouched(
                f"{disk.name} was touched while it was being sent (its ctime changed), and is "
                "copied anew"
            )
        if not self._ignore_writers and not self._in_use:
            self._check_writers()

    def _gone(self, disk: IWatchedDisk) -> SourceGone:
        unchanged = self._seen is None
        with contextlib.suppress(OSError):  # then it cannot be decided
            now = disk.version(sync=not self._in_use)
            unchanged = self._seen is None or now.written == self._seen.written
        try:
            replaced = self._system.exists(path_of(self._disk))
            how = "replaced" if replaced else "deleted"
        except OSError:  # a mark must not get the name of what may be another disk
            replaced, how = True, "deleted or replaced"
        return SourceGone(f"{disk.name} was {how} by somebody else", unchanged, replaced)

    def _check_writers(self) -> None:
        """A program that has it open for writing would go on writing to what is no longer the
        disk."""
        if not has_descriptor(self._disk):
            return
        writable = bool(getattr(self._disk, "writable", False))
        with held_descriptor(self._disk) as descriptor:
            if not is_open_elsewhere(descriptor, writable, self._system):
                return
            writers = [user for user in users_of(descriptor) if user.writes]
        if writers or not writable:  # a lease on a writable descriptor also conflicts with readers
            raise DiskChanged(f"{self._disk.name} is open for writing in {describe_users(writers)}")
