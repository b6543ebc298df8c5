"""What the source records of its migration, and how that changes.

Owns DISK.MIGRATING and DISK.MIGRATED; the order of the steps is the hand-off `machine`'s.

Rules (design, section 2: R1, R6, R7):

* MIGRATING exists from before the first byte is sent until the destination is known to be complete,
  and says C{copied} before the source is retired: once the source is gone the record says that we
  have deleted it, and where its copy is;
* MIGRATED appears atomically; that is what retires a source that is kept. Of one that is deleted
  it is the tombstone, and appears only when nothing is left to be finished. It stays;
* the record of a migration names the finished one before it (C{follows}), and is kept beside the
  MIGRATED of that one. Where that is of this very disk, it counts until this one retires it;
  where it is of another, as soon as this one ends without retiring the source;
* a migration that a receiver has acknowledged stays the same one, whoever stops it: its record
  stays, whether it is whole there or not;
* where a migration ends without the source being retired, its record says so: a source that is
  moved or deleted afterwards is not taken for one that we have deleted.

The calls block: they are made from threads, one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable

from ...errors import Refused
from ...storage import NotDurable
from ...syscalls import describe_error
from ..identity import make_id
from ..records.aside import set_aside
from ..records.files import (
    BadRecord,
    Kind,
    Location,
    Phase,
    Record,
    Records,
    boot_of,
    is_about,
    this_host,
    timestamp,
)
from ..records.permitted import SourceState


class SourceRecord:
    """The record of one source.

    @param records: where it is kept; None where it is not.
    @param state: what the records beside the source said.
    @param disk: the path of the disk.
    @param destination: the URI that it goes to.
    @param size: bytes of the disk.
    @param unlink: it is retired by deleting it.
    @param identity: of the disk.
    @param id: what people call the migration; "" where one is to be made up.
    @param successor: URI of the server to which clients are relayed; "" where they are not.
    @ivar record: what is recorded, or would be.
    @ivar end_seen: that the destination was seen to be complete is recorded.
    """

    def __init__(
        self,
        records: Records | None,
        state: SourceState,
        *,
        disk: str,
        destination: str,
        size: int,
        unlink: bool = False,
        identity: str = "",
        id: str = "",
        successor: str = "",
    ) -> None:
        before = state.record
        went = state.finished.went
        kept = went is not None and not went.unlink and is_about(went, identity) is not False
        self._went = went if kept else None
        self._is_second = went is not None
        self._records = records
        self._previous = before
        self._on_disk = before  # as last written, or found
        self._may_be_copied = before is not None
        self._asked = False
        self.end_seen = False
        if state.retired and before is not None:
            self.record = before
            return
        kept_in = records.state_directory if records is not None else ""
        record = Record(
            migration=before.migration if before is not None else str(uuid.uuid4()),
            phase=before.phase if before is not None else Phase.COPYING,
            attempt=before.attempt if before is not None else 0,
            size=size,
            source=Location(this_host(), disk, state_directory=kept_in),
            destination=before.destination if before is not None else Location(address=destination),
            began=before.began if before is not None else timestamp(),
            unlink=unlink,
            identity=identity,
            boot=boot_of(identity),
            instead_of=before.instead_of if before is not None else state.instead_of,
            whole=before is not None and before.whole,
            again=before is not None and before.again,
            id=(before.id if before is not None else "") or id or make_id(),
            place=before.place if before is not None else "",
            follows=before.follows if before is not None else "",
            ids=before.ids if before is not None else (),
            sent_again=kept,
            successor=successor,
        )
        self.record = record if before is not None else state.finished.precede(record)

    @classmethod
    def finishing(cls, records: Records, state: SourceState) -> SourceRecord:
        """The record of a source that is retired, to be given to a L{Finisher}."""
        record = state.record
        assert record is not None
        return cls(
            records,
            state,
            disk=record.source.disk,
            destination=record.destination.address,
            size=record.size,
        )

    @property
    def standing(self) -> str:
        """What a source is that is not retired by this migration."""
        if self._went is None:
            return "the canonical copy"
        return (
            f"what it was before: retired, since it was migrated to {self._went.destination} on "
            f"{self._went.retired}"
        )

    @property
    def used(self) -> tuple[str, ...]:
        """What nobody else may work on meanwhile: the path of the records, if there are any."""
        return (os.path.realpath(self._records.path),) if self._records is not None else ()

    def _is_ours(self) -> bool:
        """I{Slow.} Whether what is recorded now is still this migration.

        Another process may have finished it meanwhile, and sent the disk anew.

        @raise OSError: that cannot be found out.
        """
        if self._records is None:
            return True
        try:
            found = self._records.read(Kind.MIGRATING) or self._records.read(Kind.MIGRATED)
        except BadRecord:
            return False
        return found is not None and found.migration == self.record.migration

    def _check_ours(self) -> None:
        if not self._is_ours():
            raise OSError(errno.ESTALE, f"{self._path} has no record of this migration any more")

    def sync(self) -> None:
        """I{Slow.} Make durable what was read here, before anything is announced because of it."""
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
            self._on_disk = record

    def was_copying_to(self, address: str) -> bool:
        """Whether the unfinished copy at C{address}, a foreign destination, is this migration's.

        An empty address is the same one only within this process.
        """
        record = self._on_disk
        return (
            record is not None
            and not record.side_export
            and record.destination.address == address
            and (bool(address) or record is not self._previous)
        )

    @property
    def goes_on(self) -> str:
        """How the migration can go on after an end that has not retired the source; "" where it has
        left nothing."""
        receiver = self.receiver
        if self._records is None or receiver is None:
            return ""
        elsewhere = (
            "" if self.may_be_copied else f", or send it elsewhere{self._with} to begin another"
        )
        return f"its migration to {receiver} goes on with the same command{elsewhere}"

    @property
    def _with(self) -> str:
        """What another migration needs, because of what was finished here; or because a destination
        without an address is not told from another one."""
        if self._went is not None:
            return ", with overwrite=True and a new id=…,"
        unnamed = not self.record.destination.address
        return ", with a new id=…," if self._is_second or unnamed else ""

    @property
    def receiver(self) -> Location | None:
        """The receiver that knows this migration, if one does."""
        record = self._on_disk
        return record.destination if record is not None and record.side_export else None

    def check_location(self, host: str, disk: str, place: str = "", *, named: bool = False) -> None:
        """Check that this is where the migration went before, if it may have left a copy there.

        There must not be two whole copies with one UUID, so that the copy at another location gets
        another.

        @param place: the UUID of the disk there; "" where it is not known.
        @param named: people have named the migration: it stays where it has begun.
        @raise Refused: all of it is at the other location, or it is to stay there.
        """
        record = self._on_disk
        self.record = self.record.but(place=place)
        if record is None:
            return
        # Until the next attempt is recorded, whatever was found elsewhere does not count.
        self.record = self.record.but(migration=record.migration, instead_of=record.instead_of)
        location = record.destination
        namesake = (location.host, location.disk) == (host, disk)
        whole = record.phase == Phase.COPIED or record.whole
        same = place == record.place if place and record.place else namesake
        if not location.disk or same:
            return
        if self._may_be_copied and whole:
            other = "another disk of that name" if namesake else f"{host}:{disk}"
            raise Refused(
                f"all of it was copied to {location}, which could be taken for the canonical copy, "
                f"but the destination is {other} now: send it there, or delete that copy and then "
                f"{self._path}.{Kind.MIGRATING}"
            )
        if named and record.side_export and not namesake:
            raise Refused(
                f"the migration {record.id} has begun at {location}, but the receiver of "
                f"{host}:{disk} has that address now: start the right one again, or begin another "
                "migration with a new id=…"
            )
        if self._may_be_copied:
            self.record = self.record.but(migration=str(uuid.uuid4()), instead_of=record.migration)

    def copying(self, attempt: int, destination: Location, side_export: bool) -> None:
        """I{Slow.} An attempt begins.

        @param attempt: its number.
        @param destination: what is known of the other side.
        @param side_export: the destination has the side export, and has acknowledged that the
            attempt begins.
        """
        if self._records is not None:
            set_aside(self._records, self.record.identity)
        if side_export:
            self._may_be_copied = self._asked = False
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
        """Whether the destination was asked whether its copy is whole, and may have recorded that
        it is."""
        return self._asked

    @property
    def may_be_copied(self) -> bool:
        """Whether the destination's copy may be whole."""
        return self._asked or (
            self._on_disk is not None
            and (self._on_disk.phase == Phase.COPIED or self._on_disk.whole)
        )

    def record_not_retired(self) -> None:
        """I{Slow.} The source is kept, and must not be taken for one that we have deleted.

        @raise OSError: the record may still say so.
        """
        record = self._on_disk
        if record is not None and record.phase == Phase.COPIED:
            self._write(Kind.MIGRATING, record.but(phase=Phase.COPYING, whole=True))

    @property
    def says_deleted(self) -> bool:
        """Whether the record may say that the source, once it is not there any more, was deleted by
        us."""
        record = self._on_disk
        return (
            self._records is not None
            and record is not None
            and record.unlink
            and record.phase == Phase.COPIED
        )

    def copied_withdrawn(self) -> None:
        """The destination no longer has its copy recorded as whole."""
        self._may_be_copied = self._asked = False

    def copying_again(self) -> None:
        """I{Slow.} The copy is not whole any more, since the disk came into use again."""
        self._write(Kind.MIGRATING, self.record.but(phase=Phase.COPYING))

    def asking_copied(self) -> None:
        """The destination is about to be asked whether its copy is whole, and may record that it
        is."""
        self._may_be_copied = self._asked = True

    def copied(self) -> None:
        """I{Slow.} The destination's copy is whole and durable; the source may be retired."""
        self._may_be_copied = True
        record = self.record.but(phase=Phase.COPIED)
        try:
            self._write(Kind.MIGRATING, record)
        except OSError:
            if self._may_read_copied():
                self._on_disk = record
            raise

    def _may_read_copied(self) -> bool:
        """I{Slow.} Whether a record whose writing has failed may be there nevertheless."""
        try:
            found = self._records.read(Kind.MIGRATING) if self._records is not None else None
        except (OSError, BadRecord):
            return True
        return found is not None and found.phase == Phase.COPIED

    def mark_retired(self, check: Callable[[], object] = lambda: None, written: str = "") -> None:
        """I{Slow.} Retire a source that stays where it is, by writing MIGRATED.

        @param written: what is known of the last write to it, which C{check} confirms.
        @param check: called last before that; it is not retired if it raises.
        @raise OSError: it is not retired.
        @raise NotDurable: it is, but a power failure may undo that.
        """
        record = self.record.but(retired=timestamp(), written=written)
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
            mark = self._records.read(Kind.MIGRATED) if self._records is not None else None
        except (OSError, BadRecord):
            return True  # something is there now
        return mark is not None and mark.migration == self.record.migration

    def acknowledged(self, token: str = "") -> None:
        """I{Slow.} The destination has acknowledged that the source is retired.

        @param token: the identity of the destination's disk, from its message.
        """
        self.record = self.record.but(told=timestamp(), token=token)
        self._write(Kind.MIGRATING, self.record, self._check_ours)

    def complete(self, seen: bool = True) -> None:
        """I{Slow.} Nothing is left to be finished.

        @param seen: the destination was seen to be complete; otherwise only what it acknowledged
            before says so, and another run looks for it once more.
        @raise OSError: that could not be recorded, and another run is to do so.
        """
        records = self._records
        if records is None:
            return
        ours = self._is_ours()
        if not ours and not self._is_before_another():
            return
        record = self.record
        record = record.but(retired=record.retired or record.told or timestamp())
        if seen and not record.confirmed:
            record = record.but(confirmed=timestamp())
        mark = None
        with contextlib.suppress(BadRecord):
            mark = records.read(Kind.MIGRATED)
        if mark is None or mark.but(changed="") != record.but(changed=""):
            records.write(Kind.MIGRATED, record)
        gone = [Kind.MIGRATING, Kind.ACCEPTED] if record.unlink else [Kind.MIGRATING]
        if ours:
            records.remove_existing(*gone)
        self.end_seen = bool(record.confirmed)

    def _is_before_another(self) -> bool:
        """I{Slow.} Whether MIGRATED is of this migration, though MIGRATING is of a later one: the
        record of that stays."""
        try:
            mark = self._records.read(Kind.MIGRATED) if self._records is not None else None
        except BadRecord:
            return False
        return mark is not None and mark.migration == self.record.migration

    def abandon(self) -> None:
        """I{Slow.} The migration ends without the source being retired.

        The record stays, as if this process had been killed: the destination has acknowledged which
        migration this is, and the next run must not go on as another one, nor as plain NBD. Where
        its copy may be whole, only the same migration may overwrite that; where it is foreign,
        nothing else says that what is there is ours to overwrite.

        Of a disk that was retired before, that goes on to count.
        """
        record = self._on_disk
        if self._records is None or record is None:
            return
        if not self._may_be_copied and record.side_export:
            if not self._is_ours():
                return
            if record.phase == Phase.COPIED or record.whole:
                self._write(Kind.MIGRATING, record.but(phase=Phase.COPYING, whole=False))
        elif record.phase == Phase.COPIED or (self._asked and not record.whole):
            self._write(Kind.MIGRATING, record.but(phase=Phase.COPYING, whole=True))
