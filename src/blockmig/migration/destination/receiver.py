"""The receiver: an NBD server that accepts one migration, and is done.

Owns its life, and the assembly. The port is the caller's, and so is the disk, but nobody else may
use the disk object until the receiver has ended. It runs once its factory was asked for. Its parts
are the `migration`, the two exports that senders meet (`export`, `handoff_export`), their
`connections`, and the `outcome`. The numbers in its status are theirs: the `migration`'s, and those
of `Clients`, which counts a server's connections as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...claims import Claim, check_unclaimed
from ...errors import LocalFailure, Refused, Summary
from ...interfaces import IDisk, IRecordedDisk
from ...lives import Life, LifeState
from ...nbd import LONGEST_SUFFIX, MAXIMUM_NAME, size_in_name
from ...runtime import BoundedThreads, Runtime
from ...server import Clients, ConnectionSettings, ServerConnection
from ...storage import DiskRefused
from ...syscalls import describe_error
from ...transport import ServerTLS
from ..disk import failing_locally, guarded
from ..identity import ANYBODY, Identity
from ..policy import NO_OVERRIDES, Overrides
from ..records.files import Record, records_of
from ..records.permitted import destination_record, may_overwrite
from ..records.verdict import check_data
from .checks import Checks
from .claims import StandingClaims
from .connections import ReceiverFactory
from .disk import DestinationDisk, location_of
from .export import MigrationExport
from .handoff_export import HandoffExport, HandoffExportFactory
from .migration import IncomingMigration
from .outcome import Outcome
from .progress_timer import ProgressTimer
from .record import DestinationRecord
from .scratch import ScratchExport

_log = Logger()

_NO_SIZE: Final = "no size yet: say --size"


class Receiver:
    """Accepts one migration into a disk.

    Give L{factory} to an endpoint, and wait for L{complete}. The port and the disk stay the
    caller's: once the outcome is there, every connection is closed, and both may be closed too.

    @param disk: where to; opened for writing. One that has no size yet (L{ISizedLater}) gets that
        of the first blockmig sender that sends data; other clients are refused until then.
    @param migrations: how many are accepted. A copy that became canonical must never be
        overwritten, so 1 is the only possible number.
    @param export: the name of the export; "" is the default export.
    @param oldstyle: speak the old handshake.
    @param handshake_timeout: seconds that a connection has to negotiate; 0 for no limit.
    @param idle_timeout: seconds after which a connection is ended if it is silent, and one that has
        the attempt if it has covered nothing new, or, where all is covered, has changed nothing; 0
        for never.
    @param give_up_after: seconds without progress after which the migration is given up; None to
        wait for ever.
    @param overrides: checks to override: C{overwrite} overwrites whatever is on the disk. Without
        it a disk that holds data, of which no record says that it is an unfinished copy, is
        refused: by L{check}, or when a sender is about to change it.
    @param identity: the migration that it waits for: where an id or a secret is given, senders
        that have not the same are refused, and so are those that say nothing of themselves.
    @param runtime: the reactor, threads and system calls to use; None for the real ones.
    @raise ValueError: C{migrations} is not 1, or C{export} is too long; or the old handshake is to
        be spoken of a disk that has no size yet, or with TLS.
    @raise InUse: the disk object is in use.
    @raise LocalFailure: the disk has failed already.
    @raise AlreadyDone: the records say that the disk was received already: there is nothing to do.
    @raise Refused: the records forbid it, or cannot be kept.
    """

    def __init__(
        self,
        disk: IDisk,
        migrations: int = 1,
        export: str = "",
        *,
        oldstyle: bool = False,
        handshake_timeout: float = 30.0,
        idle_timeout: float = 60.0,
        give_up_after: float | None = None,
        overrides: Overrides = NO_OVERRIDES,
        identity: Identity = ANYBODY,
        tls: ServerTLS | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        if oldstyle and tls is not None:
            raise ValueError("the old handshake has no TLS")
        if migrations != 1:
            raise ValueError("a receiver accepts one migration: migrations must be 1")
        if len(export.encode()) > MAXIMUM_NAME - LONGEST_SUFFIX:
            raise ValueError("the name of the export leaves no room for the side export's")
        given, disk = disk, guarded(disk)
        if oldstyle and not disk.size:
            raise ValueError("the old handshake begins with the size, which is not known yet")
        check_unclaimed(given, disk.name)
        runtime = runtime or Runtime.of()
        self._threads = BoundedThreads(runtime.threads)
        self._runtime = runtime = replace(runtime, threads=self._threads)
        self._began = runtime.reactor.seconds()
        self._export = export
        self._clients = Clients()
        self._give_up_after = give_up_after
        self._outcome = Outcome(self._wind_up, self._end)
        self._life: Life[Summary] = Life(
            f"the receiver of {disk.name}", begin=self._begin, call_off=self._call_off
        )
        self._progress = ProgressTimer(runtime.reactor, self._threads)
        with failing_locally(disk):
            self._migration = self._incoming(disk, overrides, identity)
        self._factory = ReceiverFactory(
            self._settings(oldstyle, handshake_timeout, idle_timeout, tls),
            self._clients,
            self._migration.owns_attempt,
        )
        self._claim = Claim(given, self, disk.name)

    def _incoming(self, disk: IDisk, overrides: Overrides, identity: Identity) -> IncomingMigration:
        """The migration, continued from the records beside the disk."""
        records, previous, overwrite = None, None, overrides.overwrite
        if IRecordedDisk.providedBy(disk):
            records = records_of(disk, self._runtime.system)
            previous = destination_record(disk, records, overrides.overwrite, identity.id)
            if previous is None and not overrides.overwrite:
                check_data(disk, "overwrite=True", self._runtime.system)
            overwrite = overwrite or may_overwrite(disk, previous)
        if previous is not None:
            _log_previous(disk, previous)
        location = location_of(disk, records, previous)
        destination = DestinationDisk(
            disk,
            location,
            overwrite,
            lambda: self._outcome.result is None,
            check_room=not overrides.no_space_check,
        )
        record = DestinationRecord(destination, records, previous, self._threads)
        return IncomingMigration(
            destination,
            record,
            StandingClaims(identity),
            progress=self._progress,
            outcome=self._outcome,
            runtime=self._runtime,
        )

    def _settings(
        self,
        oldstyle: bool,
        handshake_timeout: float,
        idle_timeout: float,
        tls: ServerTLS | None,
    ) -> ConnectionSettings:
        """What its connections have in common."""
        disk, export = self._migration.disk, self._export
        self._checks = checks = Checks(self._migration, self._runtime)
        handoff = HandoffExportFactory(self._migration, export, self._clients, checks)
        scratch = ScratchExport(export, self._migration, checks, self._runtime.reactor)
        self._migration.attempt_begins = scratch.attempt_begins

        def sized(name: str, size: int) -> MigrationExport:
            return MigrationExport(self._migration, name, size, self._clients.prove)

        def lookup(name: str) -> MigrationExport | HandoffExport | ScratchExport | None:
            if name == handoff.export.name:
                return handoff.handler()
            if name == scratch.export.name:
                return scratch
            if name == export:
                return sized(name, disk.size)
            size = size_in_name(name, export)
            return sized(name, size) if size and disk.size in (0, size) else None

        def refusal(name: str) -> str:
            if name == scratch.export.name:
                return scratch.refusal()
            return _NO_SIZE if name == export and not disk.size else ""

        return ConnectionSettings(
            runtime=self._runtime,
            lookup=lookup,
            names=lambda: [export, handoff.export.name],
            oldstyle=sized(export, disk.size) if oldstyle else None,
            handshake_timeout=handshake_timeout,
            idle_timeout=idle_timeout,
            refusal=refusal,
            tls=tls,
        )

    @property
    def attempts(self) -> int:
        """How many attempts have begun."""
        return self._migration.attempts

    @property
    def touched(self) -> bool:
        """Whether anything was recorded; if not, the disk is as it was."""
        return self._migration.record.touched

    @property
    def may_be_the_only_copy(self) -> bool:
        """Whether the source may be retired, as far as is known here."""
        return self._migration.may_be_the_only_copy()

    def status(self) -> dict[str, Any]:
        """What is going on, for humans and scripts: times in seconds, sizes in bytes."""
        now = self._runtime.reactor.seconds()
        migration, disk = self._migration, self._migration.disk
        return {
            "role": "receive",
            "state": migration.report.state(migration.attempt is not None),
            "uptime": round(now - self._began, 3),
            "disk": disk.name,
            "size": disk.size or None,
            "export": self._export,
            "read_only": False,
            **self._clients.status(now),
            "migration": migration.status(),
        }

    def check(self) -> Deferred[None]:
        """Check that the disk may be overwritten, and that there is room for all of it, before any
        connection is accepted.

        @return: fires with None, or fails with L{Refused} where the disk holds data, or cannot have
            its size, or with L{LocalFailure} where it cannot be read. Calling it is optional: that
            it holds no data is checked before the first change too. Of a receiver that is stopped,
            or has ended, nothing is checked: it fails as L{complete} does.
        """
        if self._is_over:
            return self._ended()
        checking = self._threads(self._check_disk)
        return checking.addErrback(self._check_failed)

    def _check_disk(self) -> None:
        """In a thread."""
        migration = self._migration
        migration.disk.refuse_data()
        if migration.disk.size and migration.record.current is None:
            # What has begun goes on: it may be the only copy, and lack nothing any more.
            try:
                migration.disk.check_size(migration.disk.size)
            except DiskRefused as error:
                raise Refused(str(error)) from None

    def _check_failed(self, failure: Failure) -> Deferred[None]:
        if self._is_over:
            return self._ended()
        if not failure.check(OSError):
            failure.raiseException()
        name = self._migration.disk.name
        raise LocalFailure(f"{name}: {describe_error(failure.value)}") from failure.value

    @property
    def _is_over(self) -> bool:
        return self._life.state in (LifeState.STOPPING, LifeState.ENDED)

    def _ended(self) -> Deferred[None]:
        return self._life.wait().addCallback(lambda _: None)

    @property
    def owner(self) -> Any:
        """Whose its connections are (L{IConnectionOwner}); to ask for it begins nothing."""
        return self._factory

    @property
    def requires_tls(self) -> bool:
        """Whether nobody is served without TLS."""
        tls = self._factory.settings.tls
        return tls is not None and tls.required

    def factory(self) -> IProtocolFactory:
        """The factory to listen with; the same one each time, so that several ports may use it.

        From the first time on the receiver runs: what it waits for counts for C{give_up_after}.
        After its end the factory accepts no connection.
        """
        if self._life.state == LifeState.MADE:
            self._life.start()
        return self._factory

    def complete(self) -> Deferred[Summary]:
        """The outcome, once everything is durable, every connection closed, and no thread at work.

        @return: fires with a L{Summary}, or fails with a L{MigrationError}: L{LocalFailure} where
            the disk failed, L{Refused} where it holds data, L{GaveUp} where the receiver was
            stopped or gave up, L{Unconfirmed} where it did so with a copy that lacks nothing but
            the disconnect. It may be asked for at any time, and repeatedly; cancelling it only
            stops waiting.
        """
        return self._life.wait()

    def stop(self, why: str = "stopped") -> None:
        """End the migration as it stands, unless its disconnect was accepted already."""
        self._life.stop(why)

    def _begin(self) -> None:
        if self._give_up_after is not None:
            self._progress.watch(self._give_up_after, self.stop)

    def _call_off(self, why: str) -> None:
        self._migration.stop(why)

    def _end(self, outcome: Summary | Failure) -> None:
        self._threads.end()
        self._claim.release()
        self._life.end(outcome)

    def _wind_up(self, last: ServerConnection | None) -> Deferred[None]:
        """The outcome is known: end whatever of the migration is still under way."""
        self._progress.stop_watching()
        self._checks.end()
        self._migration.sizing.end()
        return self._factory.close(last).addCallback(lambda _: self._threads.idle())


def _log_previous(disk: IDisk, record: Record) -> None:
    _log.info(
        "{disk}: an earlier receiver's record says {stage}, from {source}, on {when}",
        event="found",
        disk=disk.name,
        stage="retired" if record.retired else record.phase.value,
        source=str(record.source),
        when=record.changed,
    )
