"""The record at the destination: DISK.INCOMPLETE, then DISK.RECEIVED, as the receiver keeps it.

Owns the record, the order in which it is written, and the identity of the migration that it is
about, by which a sender is recognized again.

Rules (design, section 2: R2, R6, R12, R13):

* one write at a time, in the order in which they were requested; each starts from the result of the
  one before it;
* what is about another device that had the name gives way before the first;
* before each the disk is checked (L{DestinationDisk.check}); once the first is durable, what an
  earlier migration has left is removed, and only then does a new file get its size. The record
  says which finished one that was, and which ids are used up;
* at the end, only when the disk is durable and still where it was, RECEIVED appears; the record is
  removed only when that is durable: both of one migration mean that it is complete;
* a sender that uses the side export gives the migration its UUID (a I{claim}), and makes its
  connection known by the cookie of the first request there. It is recorded when that connection
  begins an attempt. A whole copy of such a migration is
  changed by nobody else, and once the source is retired by nobody at all.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredLock, succeed

from ...runtime import InThread
from ...server import ServerConnection
from ...syscalls import describe_error
from ..handoff.message import HandoffMessage
from ..records.aside import set_aside
from ..records.files import (
    Kind,
    Location,
    Phase,
    Record,
    Records,
    UntrustedRecord,
    boot_of,
    timestamp,
)
from ..records.finished import read_finished
from ..records.mark import remove_mark, set_mark
from .disk import DestinationDisk


class _Claim(NamedTuple):
    """What a sender said of itself through the side export."""

    migration: str
    cookie: int


class DestinationRecord:
    """The record of one migration.

    @param disk: what it is about.
    @param records: where it is kept; None where none are.
    @param previous: the one to continue from, if there is one.
    @param in_thread: runs a function in a thread.
    @ivar current: the record beside the disk now, or what it would be if records were kept.
    @ivar phase: the phase as last requested, which may not be written yet; None before the first.
    @ivar retired: the source is known to be retired, which may not be written yet.
    @ivar place: a UUID of the disk, as the destination of migrations.
    @ivar touched: something was recorded, and perhaps written to the disk.
    """

    def __init__(
        self,
        disk: DestinationDisk,
        records: Records | None,
        previous: Record | None,
        in_thread: InThread,
    ) -> None:
        self.current = previous
        self.phase = previous.phase if previous is not None else None
        self.retired = previous is not None and bool(previous.retired)
        self.touched = False
        self.place = (previous.place if previous is not None else "") or str(uuid.uuid4())
        self._disk = disk
        self._records = records
        self._in_thread = in_thread
        self._claim: _Claim | None = None
        self._writing = DeferredLock()
        self._prepared = False

    # What it is about.

    @property
    def is_protected(self) -> bool:
        """Whether it is of a whole copy that may be changed by its own sender only."""
        current = self.current
        return current is not None and current.identified and self.phase == Phase.COPIED

    def matches(self, message: HandoffMessage) -> bool:
        """Whether it is about the migration that a message names."""
        current = self.current
        return current is not None and current.identified and current.migration == message.migration

    def describe_source(self) -> str:
        """Whose copy it is, for messages."""
        current = self.current
        if current is None:
            return "a sender that began just now"
        named = f"migration {current.id} of " if current.id else ""
        return f"{named}{current.source.in_full}, since {current.began}"

    def claimed(self, connection: ServerConnection) -> bool:
        """Whether C{connection} belongs to the migration that it is about."""
        claim, current = self._claim, self.current
        return (
            claim is not None
            and current is not None
            and current.identified
            and claim.migration == current.migration
            and claim.cookie == connection.first_cookie
        )

    def claim(self, message: HandoffMessage) -> None:
        """The connection that a message names belongs to its migration."""
        self._claim = _Claim(message.migration, int(message.cookie, 16))

    def why_unrecorded(self) -> str:
        """I{Slow.} Why nothing can be recorded beside the disk now; "" where it can, or need
        not."""
        if self._records is None:
            return ""
        try:
            self._records.check_writable()
        except OSError as error:
            return describe_error(error)
        return ""

    # Writes. Each Deferred fires once the write is durable.

    def record_attempt(self, message: HandoffMessage, peer: str) -> Deferred[None]:
        """An attempt of the migration that a message names is about to begin.

        @param peer: the address of its connection.
        """
        self.claim(message)
        self.phase = Phase.COPYING
        return self._update(lambda before: self._identified(before, message, peer))

    def record_anonymous_attempt(self, peer: str) -> Deferred[None]:
        """An attempt is about to begin by a sender that does not identify itself.

        @param peer: its address.
        """
        self.phase = Phase.COPYING
        source = Location(address=peer)
        return self._update(lambda before: self._anonymous(before, source))

    def record_phase(self, phase: Phase) -> Deferred[None]:
        """The copy is whole and durable now, or is about to be so no longer."""
        self.phase = phase
        return self._update(lambda record: _existing(record).but(phase=phase))

    def record_retired(self) -> Deferred[None]:
        """The source is retired."""
        self.retired = True
        return self._update(lambda record: _existing(record).but(retired=timestamp()))

    def wait_for_writes(self) -> Deferred[None]:
        """Fires once all that was requested so far is written."""
        return self._writing.run(lambda: None)

    def remove(self) -> Deferred[None]:
        """The migration is complete: make the disk durable, record that, then remove this
        record."""

        def finish() -> None:
            self._disk.check_path()
            self._disk.disk.flush()
            if self._records is None or self.current is None:
                self._disk.check_path()
                return
            identity = self._disk.identity()
            received = self.current.but(
                phase=Phase.COPIED,
                identity=identity,
                boot=boot_of(identity),
                confirmed=timestamp(),
            )
            self._records.write(Kind.RECEIVED, received, self._disk.check_path)
            remove_mark(self._disk.disk)
            self._records.remove(Kind.INCOMPLETE)

        return self.run(finish)

    def run(self, function: Callable[[], Any]) -> Deferred[Any]:
        """Call C{function} in a thread, after everything that was requested before.

        @return: fires with its result.
        """
        return self._writing.run(self._in_thread, function)

    # Records that are not written here.

    def assume_retired(self, message: HandoffMessage) -> None:
        """An earlier receiver has completed the migration that a message names, and removed the
        record; the sender has it still, with the UUID of this disk."""
        self.place = message.place or self.place
        self.current = self._identified(None, message, "").but(
            phase=Phase.COPIED, retired=timestamp()
        )
        self.phase = Phase.COPIED
        self.retired = True

    def rescued(self) -> Record | None:
        """I{In a thread.} The record to keep beside the disk under another name, if any."""
        if self.current is None or self._records is None:
            return None
        retired = self.current.retired or (timestamp() if self.retired else "")
        return self.current.but(phase=Phase.COPIED, retired=retired, identity="", boot="")

    def _identified(self, before: Record | None, message: HandoffMessage, peer: str) -> Record:
        """The record of an attempt that was claimed."""
        if before is not None and before.migration != message.migration:
            before = None
        source = Location(message.host, message.disk, peer, message.state_directory)
        record = self._attempt(before, message.migration, source)
        return record.but(
            unlink=message.unlink, side_export=True, id=message.id, sent_again=message.sent_again
        )

    def _anonymous(self, before: Record | None, source: Location) -> Record:
        """The record of an attempt by a sender that does not identify itself."""
        if before is not None and before.identified:
            before = None
        migration = before.migration if before is not None else str(uuid.uuid4())
        return self._attempt(before, migration, source).but(identified=False)

    def _attempt(self, before: Record | None, migration: str, source: Location) -> Record:
        """The record of an attempt.

        @param before: that of the attempt before it, if it is of the same migration.
        """
        # Another migration's unfinished copy is not remembered, but what was finished before it.
        earlier = self.current
        return Record(
            migration=migration,
            phase=Phase.COPYING,
            attempt=before.attempt + 1 if before is not None else 1,
            size=self._disk.size,
            source=source,
            destination=self._disk.location(),
            began=before.began if before is not None else timestamp(),
            place=self.place,
            follows=earlier.follows if earlier is not None else "",
            ids=earlier.ids if earlier is not None else (),
        )

    def _update(self, change: Callable[[Record | None], Record]) -> Deferred[None]:
        """Change the record, after everything that was requested before."""
        return self._writing.run(self._update_now, change)

    def _update_now(self, change: Callable[[Record | None], Record]) -> Deferred[None]:
        record = change(self.current)

        def written(result: Record) -> None:
            self.current = result
            self.touched = True

        if self._records is None and self._disk.may_overwrite:
            written(record)
            return succeed(None)
        return self._in_thread(self._write, record).addCallback(written)

    def _write(self, record: Record) -> Record:
        """In a thread."""
        self._disk.check()
        if (records := self._records) is None:
            return record
        identity = self._disk.identity()
        record = record.but(identity=identity, boot=boot_of(identity))
        if not self._prepared:
            try:
                record = read_finished(records, disregard=True).precede(record)
            except UntrustedRecord as error:  # which came there since we have checked that
                raise PermissionError(errno.EPERM, str(error)) from None
            set_aside(records, identity)
        written = records.write(Kind.INCOMPLETE, record)
        if not self._prepared:
            records.sync()
            # What an earlier migration left is no longer true.
            records.remove_existing(Kind.ACCEPTED, Kind.MIGRATING, Kind.MIGRATED, Kind.RECEIVED)
            remove_mark(self._disk.disk)
            self._disk.prepare()
            set_mark(self._disk.disk, Kind.INCOMPLETE, written)
            self._prepared = True
        return written


def _existing(record: Record | None) -> Record:
    assert record is not None
    return record
