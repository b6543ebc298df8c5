"""The disk of a migration, at its destination.

Rules (design, section 2: R12, R13):

* data that somebody may miss is not overwritten, unless that was allowed: a disk without a record
  of ours is checked before the first record is written;
* a new file may get its size from the migration: with the first change that its claimed connection
  makes, not before; and only a size that its file system can hold, and has room for, unless that
  was not to be checked;
* the file that was opened is the one that gets the data: its name, inode and size are checked with
  each record.

A disk that cannot check its place, or keeps no records, is taken as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ...errors import Refused
from ...interfaces import IDisk, IRecordedDisk, ISizedLater, IWatchedDisk
from ...runtime import InThread, Runtime
from ...storage import DescriptorDisk, Room, find_data, is_device_identity, path_of
from ..records.files import Location, Record, Records, this_host


def location_of(disk: IDisk, records: Records | None, previous: Record | None) -> Location:
    """Where a destination's disk is, for its records and for the sender.

    @param previous: the record to continue from. What that calls a device is kept as long as it
        leads there: a sender knows the destination by it.
    """
    path, kept_in = path_of(disk), records.state_directory if records is not None else ""
    known_as = previous.destination.disk if previous is not None else ""
    if known_as and os.path.realpath(known_as) == os.path.realpath(path):
        path = known_as
    return Location(this_host(), path, state_directory=kept_in)


class DestinationDisk:
    """A disk, and the checks on it.

    @param disk: the disk itself.
    @param location: this end of the migration (L{location_of}).
    @param may_overwrite: whatever is on it may be overwritten.
    @param still_wanted: called in a thread: whether the result of a check still matters.
    @param check_room: check whether there is room for all of it.
    @ivar may_overwrite: the same; also true once our own record exists.
    @ivar name: what to call it in messages.
    """

    def __init__(
        self,
        disk: IDisk,
        location: Location,
        may_overwrite: bool,
        still_wanted: Callable[[], bool],
        *,
        check_room: bool = False,
    ) -> None:
        self.disk = disk
        self.name: str = disk.name
        self.may_overwrite = may_overwrite
        self._location = location
        self._still_wanted = still_wanted
        self._check_room = check_room
        self._checked_version: Any = None

    @property
    def size(self) -> int:
        """Bytes; 0 as long as nobody has said how many they will be (L{ISizedLater})."""
        size: int = self.disk.size
        return size

    def determine_size(self, size: int) -> None:
        """The disk will have that size."""
        assert ISizedLater.providedBy(self.disk)
        self.disk.determine_size(size)

    def check_size(self, size: int) -> None:
        """I{Slow.} Check that the disk can have that size.

        @raise blockmig.storage.DiskRefused: it cannot, or there is no room for all of it.
        """
        if ISizedLater.providedBy(self.disk):
            self.disk.check_size(size, self._check_room)

    def location(self) -> Location:
        """This end of the migration."""
        return self._location

    def identity(self) -> str:
        """What identifies it; "" where there is nothing of the kind."""
        return self.disk.identity() if IRecordedDisk.providedBy(self.disk) else ""

    def token(self) -> str:
        """The identity, if nobody could guess it; "" if somebody could."""
        identity = self.identity()
        return "" if is_device_identity(identity) else identity

    def prepare(self) -> None:
        """I{Slow.} The first record exists; nothing was written yet."""
        if IRecordedDisk.providedBy(self.disk):
            self.disk.prepare()

    def check(self) -> None:
        """I{Slow.} All checks that come before a record is written.

        @raise Refused: the disk holds data that somebody may miss.
        @raise blockmig.storage.DiskChanged: its name leads elsewhere.
        """
        self.refuse_data()
        self.may_overwrite = True
        self.check_path()

    def refuse_data(self) -> None:
        """I{Slow.} Refuse a disk that holds data.

        It is checked once more before the first change, which may come days after the start.

        @raise Refused: it holds data that somebody may miss.
        """
        if self.may_overwrite:
            return
        watched = self.disk if IWatchedDisk.providedBy(self.disk) else None
        version = watched.version(sync=False) if watched is not None else (True,)
        if version == self._checked_version and any(version):
            return
        if what := find_data(self.disk, self._still_wanted):
            raise Refused(
                f"{self.name}: holds {what}, and no record says that it may be overwritten "
                "(if a migration into it has ended, it is presumably complete, and nothing is left "
                "to do); overwrite=True overwrites it"
            )
        self._checked_version = version

    @property
    def takes_only_what_fits(self) -> bool:
        """Whether a size is refused for which there is no room."""
        return self._check_room and not self.size

    def threads_for_looks(self, runtime: Runtime) -> InThread:
        """Where L{room} and L{check_size} are called, which may take for ever.

        Nobody need wait for one of our disks, whose descriptor stays open for who is using it. Of
        somebody else's nobody knows that: all calls to it end before its owner may close it.
        """
        disk = self.disk
        is_ours = isinstance(disk, DescriptorDisk) or not ISizedLater.providedBy(disk)
        return runtime.apart if is_ours else runtime.threads

    def room(self) -> Room | None:
        """I{Slow.} The room that there is for it; None where nobody can tell.

        @raise OSError: that failed.
        """
        room: Room | None = self.disk.room() if ISizedLater.providedBy(self.disk) else None
        return room

    def check_path(self) -> None:
        """I{Slow.} Check that its name still leads to what was opened, and that the size is the
        same.

        @raise blockmig.storage.DiskChanged: one of the two is not so.
        """
        if IWatchedDisk.providedBy(self.disk):
            self.disk.check_path()

    def rescue(self, announce: Callable[[str], None]) -> str:
        """I{Slow.} Give it another name (L{IWatchedDisk.rescue}); only where it has lost its own.

        @param announce: called with that name before the disk has it.
        @return: that name.
        """
        assert IWatchedDisk.providedBy(self.disk)
        return self.disk.rescue(announce)
