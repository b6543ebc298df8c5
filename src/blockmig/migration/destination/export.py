"""The export that receives a migration's data: what it admits, and the consequences.

Rules (design, section 2: R5, R12):

* a connection that only negotiates or reads occupies nothing;
* of a disk that has no size yet nothing can be read, and only a connection that a claim names, with
  the size that it was offered, begins an attempt. Once the disk has a size, whoever was offered
  another one can neither read nor change anything;
* only the attempt's connection may change the disk, and nobody may change what may be the only
  copy;
* only its flushes cost an fdatasync.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from weakref import WeakSet

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from ...nbd import Command, Errno, Export, Request, TransmissionFlag, changes_the_disk
from ...server import IBatchHandler, ServerConnection
from .errnos import EventualErrno
from .migration import IncomingMigration

_log = Logger()

_OFFERS: Final = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
)


@implementer(IBatchHandler)
class MigrationExport:
    """Handles the requests of a receiver's connections.

    @param migration: what they are about.
    @param name: the export's.
    @param size: the size to offer, in bytes.
    @param prove: called with a connection that a claim names, when that is seen.
    """

    access = None
    allows_fast_path = False
    held = False

    def __init__(
        self,
        migration: IncomingMigration,
        name: str,
        size: int,
        prove: Callable[[ServerConnection], None],
    ) -> None:
        self.export = Export(name, size, _OFFERS, allocation=False)
        self.disk = migration.disk.disk
        self._migration = migration
        self._prove = prove
        self._refused: WeakSet[ServerConnection] = WeakSet()

    def admit(self, connection: ServerConnection, request: Request) -> EventualErrno:
        """Changes only from the attempt's connection; anything else from any."""
        migration = self._migration
        if not connection.has_asked and migration.is_named(connection):
            self._prove(connection)
        if request.command == Command.FLUSH:
            migration.flush_begins(connection, request)
            return Errno.OK
        if not changes_the_disk(request):
            return Errno.OK if self.export.size == migration.disk.size else Errno.EINVAL
        if (replaced := migration.is_replaced_by(connection)) is not None:
            return replaced.addCallback(lambda _: self.admit(connection, request))
        if migration.attempt is None and (error := self._may_begin(connection)):
            return error
        if migration.owns_attempt(connection) and (
            error := migration.failures.check_last_byte(request)
        ):
            return error
        if migration.may_go_on(connection):
            migration.change_begins()
            return Errno.OK
        answer = migration.ending_errno or migration.machine.change(connection)
        if answer == Errno.OK or isinstance(answer, Deferred):
            migration.change_begins()
        return answer

    def _may_begin(self, connection: ServerConnection) -> Errno:
        """Whether an attempt of C{connection} would destroy what may be the only copy."""
        if self._migration.record.retired:
            why = "the source of this copy was retired"
        elif self._migration.record.is_protected:
            why = "this copy is whole, and may be changed by its own sender only"
        elif self._migration.claims.are_needed and self._migration.claims.of(connection) is None:
            why = "it has not said that it belongs to the migration that this receiver waits for"
        elif self._migration.is_taken and self._migration.claims.of(connection) is None:
            why = "a migration that has said who it is has begun here"
        elif other := self._other_size(connection):
            why = other
        else:
            return Errno.OK
        if connection not in self._refused and self._migration.refusals.has_room():
            self._refused.add(connection)
            _log.warn(
                "{peer}: may not change the disk: {why}",
                event="refused",
                peer=connection.peer,
                why=why,
            )
        return Errno.EPERM

    def _other_size(self, connection: ServerConnection) -> str:
        """Why C{connection} may not begin an attempt for the size that it was offered; "" if it
        may."""
        offered, size = self.export.size, self._migration.disk.size
        if offered == size:
            return ""
        if size:
            return f"it was offered {offered} bytes, and this disk has got {size} meanwhile"
        claim = self._migration.claims.of(connection)
        if claim is None:
            return "it has not said of which migration it is, and this disk has no size yet"
        if claim.size != offered:
            return f"its migration has {claim.size} bytes, and it was offered {offered}"
        return ""

    def needs_flush(self, connection: ServerConnection) -> bool:
        """Only the attempt's connection has written anything; others must cost no fdatasync."""
        return self._migration.owns_attempt(connection)

    def may_be_silent(self, connection: ServerConnection) -> bool:
        """A sender that has said who it is, and has sent everything, may take its time to retire
        the source.

        And we may take ours for the last flush.
        """
        return self._migration.may_be_silent(connection)

    def progress(self, connection: ServerConnection) -> int | None:
        """Of the sender that has the attempt: how much of the disk it has covered."""
        return self._migration.progress_of(connection)

    def done(self, connection: ServerConnection, request: Request) -> Deferred[None] | None:
        """Coverage grows by what was changed; a flush makes a whole copy a durable one."""
        if not changes_the_disk(request):
            return self._migration.flush_ended(request, True)
        if self._migration.owns_attempt(connection):
            self._migration.change_ended(connection)
            self._migration.machine.covered([request])
        return None

    def begin_batch(self, connection: ServerConnection) -> bool:
        """Only in the middle of its own attempt: what begins one, or undoes what was recorded, has
        to be waited for."""
        migration = self._migration
        if not migration.may_go_on(connection):
            return False
        migration.change_begins()
        return True

    def end_batch(
        self, connection: ServerConnection, requests: Sequence[Request], failed: bool
    ) -> None:
        if not failed:
            self._migration.change_ended(connection)
        self._migration.batch_covered(requests)

    def failed(
        self, connection: ServerConnection, request: Request, error: BaseException | None
    ) -> None:
        """The disk is not fit for the migration."""
        if changes_the_disk(request):
            self._migration.change_ended(connection)
        self._migration.flush_ended(request, False)
        self._migration.failures.handle(error)

    def disconnected(self, connection: ServerConnection) -> None:
        """The end of the migration, of an attempt, or of a connection that had none."""
        machine = self._migration.machine
        if self._migration.completes(connection):
            machine.disconnect(connection)
            return
        if self._migration.owns_attempt(connection):
            machine.drop("disconnect before the whole disk was covered")
        connection.close()

    def gone(self, connection: ServerConnection) -> None:
        """The end of the attempt, if it was its connection."""
        if self._migration.owns_attempt(connection):
            self._migration.machine.drop("connection lost")
