"""What `serve --standby` does before it serves: it waits until a receiver is done with the disk.

Owns when the disk may be opened. Rules:

* nothing is held open meanwhile: not the disk, so that its receiver finds it as if nobody waited,
  nor any port;
* with an id it is waited for the record that this migration was received, which may be there
  already. Without one for the record of a migration that is not the one recorded at the start:
  what was received earlier says nothing of what is under way;
* only the receiver knows when it has let go of the disk: when the record is there the disk is
  opened as often as it takes until it is not locked any more;
* the record is looked at by stat(2), every 10 ms: that costs a few microseconds, needs neither a
  descriptor nor the directory to be there, and works on network file systems, where inotify(7)
  reports nothing that another host does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..errors import GaveUp, Refused
from ..migration.records.files import BadRecord, Kind, Record, Records, records_at
from ..runtime import Runtime
from ..storage import DiskInUse, DiskRefused

_log = Logger()

_INTERVAL: Final = 0.01
_RELOCATION: Final = 1.0
"""Seconds between two looks at where the records are: a device may appear, or a link to it."""

T = TypeVar("T")


class Standby:
    """Waits for one disk; to be made, and used, once.

    @param path: of the disk, which may not be there yet.
    @param id: the migration to wait for; "" for any that is received from now on.
    @param give_up_after: seconds to wait; None to wait for ever.
    @raise Refused: C{path} cannot be examined.
    """

    def __init__(
        self,
        path: str,
        runtime: Runtime,
        *,
        state_directory: str | None = None,
        id: str = "",
        give_up_after: float | None = None,
    ) -> None:
        self._path = path
        self._runtime = runtime
        self._state_directory = state_directory
        self._id = id
        self._began = runtime.reactor.seconds()
        self._give_up_after = give_up_after
        try:
            self._records = self._locate()
        except DiskRefused as error:
            raise Refused(str(error)) from None
        self._located_at = self._began
        self._seen: Any = None
        self._earlier = self._read()
        self._seen = None

    @property
    def what(self) -> str:
        """What is waited for."""
        which = f"the migration {self._id}" if self._id else "a migration"
        return f"waiting until {which} into {self._path} is complete"

    async def open(self, opener: Callable[[], T]) -> T:
        """Open the disk, once that is possible.

        @param opener: opens it, or raises L{DiskInUse}.
        @raise GaveUp: it was waited for long enough.
        """
        self._announce()
        while not self._is_received():
            await self._pause("it was not received")
        while True:
            try:
                return opener()
            except DiskInUse as error:
                await self._pause(str(error))

    def _announce(self) -> None:
        earlier = self._earlier
        if not self._id and earlier is not None:
            _log.info(
                "{what}; {record} says that the migration {id} was received already: to serve what "
                "that has left, give --id, or no --standby",
                event="standby",
                what=self.what,
                record=self._records.name(Kind.RECEIVED),
                id=earlier.id or earlier.migration,
            )
        else:
            _log.info("{what}", event="standby", what=self.what)

    async def _pause(self, why: str) -> None:
        reactor, limit = self._runtime.reactor, self._give_up_after
        if limit is not None and reactor.seconds() - self._began >= limit:
            raise GaveUp(f"gave up after {limit:g} seconds: {self._path}: {why}")
        await deferLater(reactor, _INTERVAL)

    def _is_received(self) -> bool:
        now = self._runtime.reactor.seconds()
        if now - self._located_at >= _RELOCATION:
            self._located_at = now
            try:
                self._records = self._locate()
            except DiskRefused:
                return False
        record = self._read()
        if record is None or not record.confirmed:
            return False
        if self._id:
            return record.id == self._id
        return self._earlier is None or record.migration != self._earlier.migration

    def _locate(self) -> Records:
        return records_at(self._path, self._state_directory, self._runtime.system)

    def _read(self) -> Record | None:
        """The record of what was received, if it is another file than the last time."""
        path = self._records.name(Kind.RECEIVED)
        try:
            found = os.stat(path)
        except OSError:
            return None
        seen = (path, found.st_ino, found.st_mtime_ns, found.st_size)
        if seen == self._seen:
            return None
        try:
            record = self._records.read(Kind.RECEIVED)
        except (BadRecord, OSError):
            return None
        self._seen = seen
        return record
