"""The disk of a migration, by what it can tell of itself at the destination.

Rules (design, section 2: R12, R13):

* data that somebody may miss is not written over, unless that was allowed: who holds none of ours
  is looked at before the first record is written;
* the file that was opened is the one that gets the data: its name, inode and size are looked at
  with each record.

A disk that knows nothing of its place, or keeps no records, is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import Refused
from ...interfaces import IDisk, IRecordedDisk, IWatchedDisk
from ...storage import find_data
from ..records.files import Location, this_host


class DestinationDisk:
    """A disk, and what may be done with it.

    @param disk: the disk itself.
    @param may_overwrite: whatever is on it may be written over.
    @param wanted: asked, in a thread, whether it still matters what is on it.
    @ivar may_overwrite: the same; so it may once our own record stands beside it.
    @ivar name: what to call it in messages.
    @ivar size: bytes.
    """

    def __init__(self, disk: IDisk, may_overwrite: bool, wanted: Callable[[], bool]) -> None:
        self.disk = disk
        self.name: str = disk.name
        self.size: int = disk.size
        self.may_overwrite = may_overwrite
        self._wanted = wanted
        self._looked: Any = None

    def location(self) -> Location:
        """This side of the migration."""
        return Location(this_host(), getattr(self.disk, "path", self.name))

    def identity(self) -> str:
        """What it is known by, which nobody could guess; "" where it has nothing of the kind."""
        return self.disk.identity() if IRecordedDisk.providedBy(self.disk) else ""

    def prepare(self) -> None:
        """I{Slow.} The first record stands; nothing was written yet."""
        if IRecordedDisk.providedBy(self.disk):
            self.disk.prepare()

    def check(self) -> None:
        """I{Slow.} All that is looked at before a record is written.

        @raise Refused: it holds what somebody may miss.
        @raise blockmig.storage.DiskChanged: its name leads elsewhere.
        """
        self.refuse_data()
        self.may_overwrite = True
        self.check_path()

    def refuse_data(self) -> None:
        """I{Slow.} See whether the disk may be written over.

        It is looked at once more before the first change: that may come days after the start.

        @raise Refused: it holds what somebody may miss.
        """
        if self.may_overwrite:
            return
        watched = self.disk if IWatchedDisk.providedBy(self.disk) else None
        version = watched.version(sync=False) if watched is not None else (True,)
        if version == self._looked and any(version):
            return
        if what := find_data(self.disk, self._wanted):
            raise Refused(
                f"{self.name}: holds {what}, and no record says that it may be overwritten "
                "(if a migration into it has ended, it is complete as far as can be told); to "
                "overwrite it, say --overwrite"
            )
        self._looked = version

    def check_path(self) -> None:
        """I{Slow.} Whether its name still leads to what was opened, of the same size.

        @raise blockmig.storage.DiskChanged: it does not.
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
