"""What the source has on record about its migration, and how that changes.

Owns DISK.MIGRATING and DISK.MIGRATED; the order of the steps is the `handoff` machine's.

Rules (design, section 2: R1, R6, R7):

* MIGRATING stands from before the first byte is sent until the destination is known to be complete,
  and says C{copied} before the source is retired: with the source gone it then tells that we have
  deleted it, and where its copy is;
* MIGRATED appears in one piece; that is what retires a source that is kept. It stays;
* a migration that was begun with C{--again} stands beside the mark of the one before it: if it ends
  without retiring the source, that mark counts as before;
* where a migration ends without the source being retired, its record says so: a source that is
  moved or deleted afterwards is not taken for one that we have deleted.

The calls block: they are made from threads, one at a time.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable

from ...errors import Refused
from ...storage import NotDurable
from ...syscalls import describe_error
from ..records.files import (
    BadRecord,
    Kind,
    Location,
    Phase,
    Record,
    Records,
    this_host,
    timestamp,
)
from ..records.permitted import SourceState


class SourceRecord:
    """The record of one source.

    @param records: where it is kept; None where it is not.
    @param found: what the source was found to be.
    @param disk: the path of the disk.
    @param destination: the URI that it goes to.
    @param size: bytes of the disk.
    @param unlink: it is retired by deleting it.
    @param identity: of the disk.
    @param again: a human disregards earlier migrations.
    @ivar record: what is on record, or would be.
    """

    def __init__(
        self,
        records: Records | None,
        found: SourceState,
        *,
        disk: str,
        destination: str,
        size: int,
        unlink: bool = False,
        identity: str = "",
        again: bool = False,
    ) -> None:
        before = found.record
        self._records = records
        self._unreadable = found.unreadable
        self._found = before
        self._standing = before  # as it was last put down, or found
        self._may_be_copied = before is not None
        self._asked = False
        if found.retired and before is not None:
            self.record = before
            return
        self.record = Record(
            migration=before.migration if before is not None else str(uuid.uuid4()),
            phase=before.phase if before is not None else Phase.COPYING,
            attempt=before.attempt if before is not None else 0,
            size=size,
            source=Location(this_host(), disk),
            destination=before.destination if before is not None else Location(address=destination),
            began=before.began if before is not None else timestamp(),
            unlink=unlink,
            identity=identity,
            instead_of=before.instead_of if before is not None else found.instead_of,
            whole=before is not None and before.whole,
            again=again or (before is not None and before.again),
        )

    @classmethod
    def finishing(cls, records: Records, found: SourceState) -> SourceRecord:
        """The record of a source that is retired, to be given to a L{Finisher}."""
        record = found.record
        assert record is not None
        return cls(
            records,
            found,
            disk=record.source.disk,
            destination=record.destination.address,
            size=record.size,
        )

    def sync(self) -> None:
        """I{Slow.} Make durable what is seen here, before anybody is told of it."""
        if self._records is not None:
            self._records.sync()

    def _write(
        self, kind: Kind, record: Record, check: Callable[[], object] = lambda: None
    ) -> None:
        if self._records is not None:
            record = self._records.write(kind, record, check)
        else:
            check()
        self.record = record
        if kind == Kind.MIGRATING:
            self._standing = record

    def was_copying_to(self, address: str) -> bool:
        """Whether the unfinished copy at C{address}, a foreign destination, is this migration's.

        An address that nobody gave is the same in this process only.
        """
        record = self._standing
        return (
            record is not None
            and not record.side_export
            and record.destination.address == address
            and (bool(address) or record is not self._found)
        )

    def check_path(self, host: str, disk: str) -> None:
        """See whether this is where the migration went before, if it may have left a copy there.

        It must not have two whole copies by one UUID, so that a place of another copy gets another.

        @raise Refused: all of it is at the other place.
        """
        record = self._standing
        if record is None:
            return
        # Until the next attempt is put down, whatever was found elsewhere counts for nothing.
        self.record = self.record.but(migration=record.migration, instead_of=record.instead_of)
        place = record.destination
        if not self._may_be_copied or not place.disk or (place.host, place.disk) == (host, disk):
            return
        if record.phase == Phase.COPIED or record.whole:
            raise Refused(
                f"all of it was copied to {place}, which could be taken for the canonical copy, "
                f"but the destination is {host}:{disk} now: send it there, or delete that copy and "
                "say --again"
            )
        self.record = self.record.but(migration=str(uuid.uuid4()), instead_of=record.migration)

    def copying(self, attempt: int, destination: Location, side_export: bool) -> None:
        """I{Slow.} An attempt begins.

        @param attempt: its number.
        @param destination: what is known of the other side.
        @param side_export: it has the side export, and has acknowledged that the attempt begins.
        """
        if side_export:
            self._may_be_copied = self._asked = False
        if self._unreadable and self._records is not None:
            self._records.remove(*self._unreadable)
            self._unreadable = ()
        record = self.record.but(
            phase=Phase.COPYING,
            attempt=attempt,
            destination=destination,
            side_export=side_export,
            whole=False,
        )
        self._write(Kind.MIGRATING, record)

    @property
    def asked(self) -> bool:
        """Whether the destination was asked whether its copy is whole, and may have said so."""
        return self._asked

    @property
    def may_be_copied(self) -> bool:
        """Whether the destination's copy may be whole."""
        return self._asked or (
            self._standing is not None
            and (self._standing.phase == Phase.COPIED or self._standing.whole)
        )

    def not_to_be_retired(self) -> None:
        """I{Slow.} The source is kept, and nobody is to take it for one that we have deleted.

        @raise OSError: it may stand so still.
        """
        record = self._standing
        if record is not None and record.phase == Phase.COPIED:
            self._write(Kind.MIGRATING, record.but(phase=Phase.COPYING, whole=True))

    def taken_back(self) -> None:
        """The destination has it on record no more."""
        self._may_be_copied = self._asked = False

    def copying_on(self) -> None:
        """I{Slow.} The copy is not whole any more, since the disk came into use again."""
        self._write(Kind.MIGRATING, self.record.but(phase=Phase.COPYING))

    def flushing(self) -> None:
        """The destination is about to be asked whether its copy is whole, and may say so."""
        self._may_be_copied = self._asked = True

    def copied(self) -> None:
        """I{Slow.} The destination's copy is whole and durable; the source may be retired."""
        self._may_be_copied = True
        self._write(Kind.MIGRATING, self.record.but(phase=Phase.COPIED))

    def retire_kept(self, check: Callable[[], object] = lambda: None) -> None:
        """I{Slow.} Retire a source that stays where it is, by saying so.

        @param check: called last before that; it is not retired if it raises.
        @raise OSError: it is not retired.
        @raise NotDurable: it is, but that may be undone by a power failure.
        """
        record = self.record.but(retired=timestamp())
        try:
            self._write(Kind.MIGRATED, record, check)
        except OSError as error:
            if self._is_marked():
                why = f"{self._path} is marked as migrated, but perhaps not durably"
                raise NotDurable(f"{why}: {describe_error(error)}") from None
            raise

    @property
    def _path(self) -> str:
        return self._records.path if self._records is not None else ""

    def _is_marked(self) -> bool:
        try:
            found = self._records.read(Kind.MIGRATED) if self._records is not None else None
        except (OSError, BadRecord):
            return True  # something stands there now
        return found is not None and found.migration == self.record.migration

    def acknowledged(self, token: str = "") -> None:
        """I{Slow.} The destination has acknowledged that the source is retired.

        @param token: what it says that its disk is known by.
        """
        self.record = self.record.but(told=timestamp(), token=token)
        self._write(Kind.MIGRATING, self.record)

    def complete(self) -> None:
        """I{Slow.} The destination is complete: nothing is left to be finished."""
        if self._records is None:
            return
        record = self.record
        if not record.unlink or record.instead_of:
            retired = record.retired or timestamp()
            # The mark is there already, but for what it says of the end.
            needed = contextlib.nullcontext() if record.unlink else contextlib.suppress(OSError)
            with needed:
                self._records.write(
                    Kind.MIGRATED, record.but(retired=retired, confirmed=timestamp())
                )
        gone = [Kind.MIGRATING]
        if record.unlink:
            gone += [Kind.ACCEPTED] if record.instead_of else [Kind.ACCEPTED, Kind.MIGRATED]
        self._records.remove(*gone)

    def abandon(self) -> None:
        """I{Slow.} The migration ends without the source being retired.

        Where there may be a copy that is whole, the record stays: that copy could be taken for the
        canonical one, and only the same migration may write it anew. It stays too where a foreign
        destination may have a part: nothing else tells that this is ours to write over.
        """
        record = self._standing
        if self._records is None or record is None:
            return
        if not self._may_be_copied and record.side_export:
            self._records.remove(Kind.MIGRATING)
        elif record.phase == Phase.COPIED or (self._asked and not record.whole):
            self._write(Kind.MIGRATING, record.but(phase=Phase.COPYING, whole=True))
