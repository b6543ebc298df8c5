"""The receiver: an NBD server that accepts one migration, and is done.

Owns the connections and the outcome; who has the attempt and what is on record is the affair of
`attempts`. The disk is the caller's, and so is the listening port.

Rules (design, sections 2 and 3):

* whoever only connects, negotiates or reads holds no place;
* beside the export there is the side export (`page`), where a sender of ours says which migration
  its connection belongs to, and is told how that stands;
* after the end, whichever it was, every connection is closed and no other is let in; but a side
  export's may first read that the migration is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ...errors import GaveUp, MigrationError, Summary, Unconfirmed
from ...interfaces import IDisk, IRecordedDisk
from ...nbd import (
    MAXIMUM_NAME,
    SIDE_EXPORT,
    Command,
    Errno,
    Export,
    Request,
    TransmissionFlag,
    changes_the_disk,
)
from ...runtime import Runtime, ThreadWork
from ...server import Clients, ConnectionSettings, IExportHandler, ServerConnection
from ..handoff.message import (
    PAGE_SIZE,
    BadPage,
    Page,
    Stage,
    decode_page,
)
from ..policy import NO_OVERRIDES, Overrides
from ..records.files import Records
from ..records.permitted import destination_record, may_overwrite
from .attempts import Answer, Attempts

_log = Logger()

_OFFERS: Final = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
)
_LINGER: Final = 5.0


@implementer(IExportHandler)
class _MigrationExport:
    """What the connections of a receiver ask and tell."""

    access = None
    at_once = False
    held = False

    def __init__(self, core: Attempts, export: Export) -> None:
        self.export = export
        self.disk = core.disk
        self._core = core

    def admit(self, connection: ServerConnection, request: Request) -> Answer:
        """Changes only from the attempt's connection; anything else from anybody."""
        core = self._core
        if not changes_the_disk(request):
            if request.command == Command.FLUSH:
                core.flush_begins(connection, request)
            return Errno.OK
        if core.attempt is None and (error := core.may_begin(connection)):
            return error
        if core.holds(connection) and (error := core.check_end(request)):
            return error
        answer = core.machine.change(connection)
        if answer == Errno.OK or isinstance(answer, Deferred):
            core.changing()
        return answer

    def needs_flush(self, connection: ServerConnection) -> bool:
        """Only the attempt's connection has written anything; others must cost no fdatasync."""
        return self._core.holds(connection)

    def may_be_silent(self, connection: ServerConnection) -> bool:
        """A sender that has sent all of it may take its time to retire the source.

        And we may take ours for the last flush.
        """
        core = self._core
        return core.holds(connection) and (core.copied or core.disconnected)

    def done(self, connection: ServerConnection, request: Request) -> Deferred[None] | None:
        """Coverage grows by what was changed; a flush makes a whole copy a durable one."""
        if not changes_the_disk(request):
            return self._core.flush_ended(request, True)
        if self._core.holds(connection):
            self._core.changed(connection)
            self._core.machine.covered(request)
        return None

    def failed(
        self, connection: ServerConnection, request: Request, error: BaseException | None
    ) -> None:
        """The disk is not fit for the migration."""
        if changes_the_disk(request):
            self._core.changed(connection)
        self._core.flush_ended(request, False)
        self._core.broke(error)

    def disconnected(self, connection: ServerConnection) -> None:
        """The end of the migration, or nothing much."""
        core = self._core
        if core.retired and core.claimed(connection):
            self._finish(connection)
        elif not core.holds(connection):
            connection.close()
        elif core.attempt is not None and core.attempt.coverage.complete:
            self._finish(connection)
        else:
            core.machine.drop("disconnect before the whole disk was covered")
            connection.close()

    def _finish(self, connection: ServerConnection) -> None:
        self._core.last = connection
        self._core.machine.disconnect()

    def gone(self, connection: ServerConnection) -> None:
        """The end of the attempt, if it was its connection."""
        if self._core.holds(connection):
            self._core.machine.drop("connection lost")


class _PageDisk:
    """The disk of a side export: what is read is the page, what is written is the message.

    Of L{blockmig.interfaces.IDisk} only what can come to be called.
    """

    name = "the side export"
    size = PAGE_SIZE

    def __init__(self, core: Attempts) -> None:
        self.message = bytearray(PAGE_SIZE)
        self.knows = False
        self._core = core

    def fileno(self) -> None:
        """In memory."""

    def read(self, offset: int, length: int) -> bytes:
        """A part of the page."""
        return self._core.page(self.knows).encode()[offset : offset + length]

    def write(self, offset: int, data: Any) -> None:
        """A part of the message."""
        self.message[offset : offset + len(data)] = data

    def flush(self) -> None:
        """A message is durable before it is acknowledged, whether or not that is asked for."""


@implementer(IExportHandler)
class _SideExport:
    """What one connection to the side export asks and tells; messages are not mixed up with those
    of another."""

    access = None
    at_once = False
    held = False

    def __init__(
        self, core: Attempts, export: Export, supersede: Callable[[ServerConnection], None]
    ) -> None:
        self.export = export
        self.disk: Any = _PageDisk(core)
        self._core = core
        self._supersede = supersede

    def admit(self, connection: ServerConnection, request: Request) -> Answer:
        """Whole messages only; who reads behind the disconnect is to hear how it ended."""
        if request.command == Command.READ:
            return self._core.at_end()
        if request.command == Command.WRITE and (request.offset, request.length) == (0, PAGE_SIZE):
            return Errno.OK
        return Errno.EINVAL

    def done(self, connection: ServerConnection, request: Request) -> Deferred[None]:
        """A message is here: act on it, then acknowledge it."""
        try:
            page = decode_page(bytes(self.disk.message))
        except BadPage:
            page = Page(Stage.NONE)
        answer: Answer = Errno.EINVAL
        if page.is_message:
            answer = self._core.machine.tell(page)
            if answer == Errno.OK or isinstance(answer, Deferred):
                self._core.speaker = connection
                self.disk.knows = page.phase == Stage.RETIRED
                if page.phase == Stage.COPYING:
                    self._supersede(connection)
        return _told(answer) if isinstance(answer, Errno) else answer.addCallback(_told)

    def failed(
        self, connection: ServerConnection, request: Request, error: BaseException | None
    ) -> None:
        """Nothing of the disk is concerned."""

    def needs_flush(self, connection: ServerConnection) -> bool:
        """There is nothing to flush."""
        return False

    def may_be_silent(self, connection: ServerConnection) -> bool:
        """It is the sender's, which has nothing to say here while it copies."""
        return self._core.speaker is connection

    def disconnected(self, connection: ServerConnection) -> None:
        """The end of the conversation."""
        connection.close()

    def gone(self, connection: ServerConnection) -> None:
        """Nothing depends on it."""


def _told(answer: Errno) -> Deferred[None]:
    """What is waited for before a message is acknowledged, or answered with an error."""
    told: Deferred[None] = Deferred()
    if answer == Errno.OK:
        told.callback(None)
    else:
        told.errback(OSError(int(answer), answer.name))
    return told


@implementer(IProtocolFactory)
class _ReceiverFactory:
    """Makes the connections of a receiver, and keeps them in sight."""

    noisy = False

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self.clients = Clients()
        self._closed = False

    def doStart(self) -> None:
        """A port begins to listen."""

    def doStop(self) -> None:
        """A port stopped listening."""

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        """A connection; none after the end."""
        if self._closed:
            return None
        connection = _ReceiverConnection(self._settings, addr)
        connection.factory = self
        self.clients.add(connection)
        return connection

    def supersede(self, connection: ServerConnection) -> None:
        """A new attempt was claimed by C{connection}: what comes late of an earlier one is void.

        A claim that was on its way when its connection broke could otherwise arrive when the
        attempt after it has come to its end.
        """
        for other in self.clients:
            if other is not connection and isinstance(other.handler, _SideExport):
                other.abort()

    def close(self, last: ServerConnection | None) -> Deferred[None]:
        """End every connection, and let in no other.

        @param last: where the migration is complete, the connection that said so. It is closed
            when all that is due to it was sent. Those to the side export may ask whether the
            migration is complete, for some seconds; the others are aborted.
        @return: fires when none is left.
        """
        self._closed = True
        closed = self.clients.none_left()
        lingering: list[ServerConnection] = []
        for connection in self.clients:
            if connection is last:
                connection.close()
            elif last is not None and isinstance(connection.handler, _SideExport):
                lingering.append(connection)
            else:
                connection.abort()
        if lingering:
            timer = self._settings.runtime.reactor.callLater(_LINGER, _abort_all, lingering)

            def stop(_: None) -> None:
                if timer.active():
                    timer.cancel()

            closed.addCallback(stop)
        return closed


def _abort_all(connections: list[ServerConnection]) -> None:
    for connection in connections:
        connection.abort()


class _ReceiverConnection(ServerConnection):
    """A connection that its factory knows of."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the factory too."""
        super().connectionLost(reason)
        self.factory.clients.forget(self)


class Receiver:
    """Accepts one migration into a disk.

    Give L{factory} to an endpoint, and wait for L{complete}. The port and the disk stay the
    caller's: when the outcome is there, every connection is closed, and both may be closed too.

    @param disk: where to; opened for writing.
    @param migrations: how many are accepted. A copy that became canonical must never be written
        over, so 1 is the only number there is.
    @param export: the name of the export; "" is the default export.
    @param oldstyle: speak the old handshake.
    @param handshake_timeout: seconds that a connection has to negotiate; 0 for no limit.
    @param idle_timeout: seconds of silence after which a connection (and with it an attempt) is
        ended; 0 for never.
    @param give_up_after: seconds without progress after which the migration is given up; None to
        wait for ever.
    @param overrides: what is done all the same: C{again} disregards what the records beside the
        disk say of earlier migrations, C{overwrite} writes over whatever is on the disk. Without
        it a disk that holds data, of which no record says that it is an unfinished copy, is
        refused: by L{check}, or when a sender is about to change it.
    @param runtime: what the outside world is; None for the real one.
    @raise ValueError: C{migrations} is not 1, or C{export} is too long.
    @raise blockmig.migration.Refused: the records forbid it, or cannot be kept.
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
        runtime: Runtime | None = None,
    ) -> None:
        if migrations != 1:
            raise ValueError("a receiver accepts one migration: migrations must be 1")
        if len(export.encode()) > MAXIMUM_NAME - len(SIDE_EXPORT):
            raise ValueError("the name of the export leaves no room for the side export's")
        runtime = runtime or Runtime.of()
        reactor = runtime.reactor
        self._threads = ThreadWork(runtime.threads)
        runtime = replace(runtime, threads=self._threads)
        self._reactor = reactor
        self._began = reactor.seconds()
        self._export = export
        self._outcome: Summary | MigrationError | None = None
        self._waiting: list[Deferred[Summary]] = []
        self._ended = False
        records = record = None
        if IRecordedDisk.providedBy(disk):
            records = Records(disk.record_path, runtime.system)
            record = destination_record(disk, records, overrides.again)
            if may_overwrite(disk, records, record, overrides.again):
                overrides = replace(overrides, overwrite=True)
        if record is not None:
            _log.info(
                "{disk}: an earlier receiver's record says {stage}, from {source}, on {when}",
                event="found",
                disk=disk.name,
                stage="retired" if record.retired else record.phase.value,
                source=str(record.source),
                when=record.changed,
            )
        self._core = core = Attempts(
            disk,
            records,
            record,
            overrides=overrides,
            runtime=runtime,
            finish=self._finish,
        )
        handler = _MigrationExport(core, Export(export, disk.size, _OFFERS))
        side = Export(export + SIDE_EXPORT, PAGE_SIZE, TransmissionFlag.HAS_FLAGS)

        def lookup(name: str) -> IExportHandler | None:
            if name == side.name:
                return _SideExport(core, side, self._factory.supersede)
            return handler if name == export else None

        self._factory = _ReceiverFactory(
            ConnectionSettings(
                runtime=runtime,
                lookup=lookup,
                names=lambda: [export, side.name],
                oldstyle=handler if oldstyle else None,
                handshake_timeout=handshake_timeout,
                idle_timeout=idle_timeout,
            )
        )
        if give_up_after is not None:
            self._patience: IDelayedCall | None = reactor.callLater(
                give_up_after, self._check_progress, give_up_after
            )
        else:
            self._patience = None

    @property
    def attempts(self) -> int:
        """How many attempts have begun."""
        return self._core.attempts

    @property
    def touched(self) -> bool:
        """Whether anything was put on record; if not, the disk is as it was."""
        return self._core.touched

    def status(self) -> dict[str, Any]:
        """What is going on, for humans and scripts: times in seconds, sizes in bytes."""
        core, now = self._core, self._reactor.seconds()
        stage = core.page().phase
        state = "copying" if core.attempt is not None and not core.copied else "waiting"
        if stage in (Stage.COPIED, Stage.RETIRED, Stage.COMPLETE):
            state = stage.value
        covered = core.attempt.coverage.covered if core.attempt is not None else 0
        return {
            "role": "receive",
            "state": state,
            "uptime": round(now - self._began, 3),
            "disk": core.disk.name,
            "size": core.disk.size,
            "export": self._export,
            "read_only": False,
            **self._factory.clients.status(now),
            "migration": {
                "attempts": core.attempts,
                "covered": covered,
                "source": str(core.record.source) if core.record is not None else "",
            },
        }

    def check(self) -> Deferred[None]:
        """See whether the disk may be written over, before anybody is let in.

        @return: fires with None, or fails with L{Refused} where the disk holds data. It need not be
            called: the same is looked at before the first change.
        """
        return self._threads(self._core.refuse_data)

    def factory(self) -> IProtocolFactory:
        """What to listen with; the same one each time, so that several ports may be given it."""
        return self._factory

    def complete(self) -> Deferred[Summary]:
        """The outcome, once everything is durable, every connection closed, no thread at work.

        @return: fires with a L{Summary}, or fails with a L{MigrationError}: L{LocalFailure} where
            the disk failed, L{Refused} where it holds data, L{GaveUp} where the receiver was
            stopped or gave up, L{Unconfirmed} where it did so with a copy that lacks nothing but
            the disconnect.
        """
        waiting: Deferred[Summary] = Deferred()
        self._waiting.append(waiting)
        self._tell()
        return waiting

    def stop(self, why: str = "stopped") -> None:
        """End the migration as it stands, unless its disconnect was accepted already."""
        core, record, name = self._core, self._core.record, self._core.disk.name
        if core.is_displaced():
            return
        if core.copied and core.retired:
            error: MigrationError = Unconfirmed(
                f"{why}; {name} is the canonical copy: its source was retired, and nothing but "
                "the sender's disconnect is missing"
            )
        elif core.copied and record is not None:
            error = Unconfirmed(
                f"{why}; all of {name} is here and durable, but the disconnect never came: it is "
                f"canonical only if the source was retired: look at {record.source}"
            )
        elif core.begun:
            error = GaveUp(f"{why}; {name} is not canonical")
        else:
            error = GaveUp(f"{why}; nothing was received into {name}")
        self._core.machine.give_up(error)

    def _check_progress(self, limit: float) -> None:
        now = self._reactor.seconds()
        if self._threads.busy:
            self._core.last_progress = now
        left = self._core.last_progress + limit - now
        if left > 0:
            self._patience = self._reactor.callLater(left, self._check_progress, limit)
        else:
            self._patience = None
            self.stop(f"gave up after {limit:g} seconds without progress")

    def _finish(self, outcome: Summary | MigrationError) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._outcome = outcome
        closed = self._factory.close(self._core.last if isinstance(outcome, Summary) else None)
        closed.addCallback(lambda _: self._threads.idle()).addCallback(self._closed)

    def _closed(self, _: None) -> None:
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        if not self._ended:
            return
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            if isinstance(self._outcome, MigrationError):
                deferred.errback(self._outcome)
            else:
                assert self._outcome is not None
                deferred.callback(self._outcome)
