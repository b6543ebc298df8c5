"""The receiver: an NBD server that accepts one migration, and is done.

Owns the attempt: who has it, what it covered, and how the migration ends. The disk is the caller's,
and so is the listening port.

Rules (design, section 2: R3, R4, R5):

* an attempt begins with the first request that changes the disk; while one goes on (and until
  nothing of it is under way any more) such requests of any other connection are answered EPERM;
* whoever only connects, negotiates or reads holds no place;
* coverage belongs to the attempt and is forgotten with it;
* a disconnect completes the migration only if it comes from the attempt's connection and the whole
  disk is covered; it is then flushed, whether or not the sender asked for that, before anybody is
  told that the migration is complete;
* a disk error ends the migration: the sender gets it as an NBD error first;
* after the end, whichever it was, every connection is closed and no other is let in.

The states, and what moves the migration between them, are declared below `_Core`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from automat import TypeMachineBuilder
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

from ..interfaces import IDisk, IExportHandler
from ..nbd import (
    Command,
    Errno,
    Export,
    Request,
    TransmissionFlag,
    changes_the_disk,
    errno_to_wire,
)
from ..server import ConnectionSettings, ServerConnection
from ..storage import SYSTEM, Coverage, SystemCalls, describe_error
from .outcome import GaveUp, LocalFailure, MigrationError, Summary, Unconfirmed
from .threads import InThread, ThreadWork
from .write_behind import WriteBehind

_log = Logger()

_OFFERS: Final = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
)
_TELL_TIMEOUT: Final = 5.0


class _Inputs(Protocol):
    """What can happen to a migration, as its destination sees it."""

    def change(self, connection: ServerConnection) -> Errno:
        """C{connection} asks to change the disk; the answer says whether it may."""

    def covered(self, request: Request) -> None:
        """A change that the attempt's connection asked for was made."""

    def disconnect(self) -> None:
        """The attempt's connection sent a disconnect, and the whole disk is covered."""

    def drop(self, why: str) -> None:
        """The attempt's connection ended in any other way, and nothing of it is under way."""

    def durable(self) -> None:
        """The flush behind the disconnect succeeded."""

    def disk_failed(self, error: BaseException | None) -> None:
        """The disk did not do what it was told to."""

    def give_up(self, error: MigrationError) -> None:
        """Somebody, or the clock, wants the migration to end as it stands."""


@dataclass
class _Attempt:
    """One connection's try; the bytes of C{data} and C{zeroes} count again when repeated."""

    connection: ServerConnection
    coverage: Coverage
    write_behind: WriteBehind
    data: int = 0
    zeroes: int = 0


class _Core:
    """What the states share, and what is done on the way from one to the next."""

    def __init__(
        self,
        disk: IDisk,
        reactor: Any,
        in_thread: InThread,
        finish: Callable[[Summary | MigrationError], None],
    ) -> None:
        self.disk = disk
        self.finish = finish
        self.attempt: _Attempt | None = None
        self.attempts = 0
        self.copied = False
        self.disconnected = False
        self.failure: MigrationError | None = None
        self.failure_told = Errno.EIO
        self.last_progress = reactor.seconds()
        self.machine: _Inputs = _machine(self)
        self._reactor = reactor
        self._in_thread = in_thread
        self._began = 0.0
        self._changes = 0
        self._whole_since: dict[int, int] = {}
        self._telling: IDelayedCall | None = None

    def holds(self, connection: ServerConnection) -> bool:
        """Whether the attempt is C{connection}'s."""
        return self.attempt is not None and self.attempt.connection is connection

    def changed(self) -> None:
        """The disk is about to be changed, or was: what was durable is no more."""
        self.copied = False
        self._changes += 1

    def flush_begins(self, request: Request) -> None:
        """A flush makes durable only what was written before it began."""
        if self.attempt is not None and self.attempt.coverage.complete:
            self._whole_since[id(request)] = self._changes

    def flush_ended(self, request: Request, succeeded: bool) -> None:
        """The copy is durable if it was whole at the start, and nobody changed it since."""
        changes = self._whole_since.pop(id(request), None)
        if succeeded and changes == self._changes:
            self.copied = True

    def begin(self, connection: ServerConnection) -> None:
        self.attempts += 1
        if self.attempts == 1:
            self._began = self._reactor.seconds()
        _log.info(
            "attempt {number} began, from {peer}",
            event="attempt",
            number=self.attempts,
            peer=connection.peer,
        )
        write_behind = WriteBehind(
            self.disk,
            self._in_thread,
            behind=connection.pause_reading,
            caught_up=connection.resume_reading,
            failed=self.machine.disk_failed,
        )
        self.attempt = _Attempt(connection, Coverage(self.disk.size), write_behind)

    def cover(self, request: Request) -> None:
        attempt = self.attempt
        assert attempt is not None
        self.changed()
        self.last_progress = self._reactor.seconds()
        attempt.coverage.add(request.offset, request.length)
        if request.command == Command.WRITE:
            attempt.data += request.length
            attempt.write_behind.wrote(request.offset, request.length)
        else:
            attempt.zeroes += request.length

    def restart(self, why: str) -> None:
        attempt, self.attempt = self.attempt, None
        assert attempt is not None
        self.last_progress = self._reactor.seconds()
        _log.warn(
            "attempt {number} ended early ({why}), {covered} of {size} bytes covered; "
            "waiting for the sender to start again",
            event="restart",
            number=self.attempts,
            why=why,
            covered=attempt.coverage.covered,
            size=self.disk.size,
        )

    def finish_attempt(self) -> None:
        self.disconnected = True

        def flushed(result: object) -> None:
            if isinstance(result, Failure):
                self.machine.disk_failed(result.value)
            else:
                self.machine.durable()

        self._in_thread(self.disk.flush).addBoth(flushed).addErrback(_bug)

    def complete(self) -> None:
        attempt = self.attempt
        assert attempt is not None
        seconds = self._reactor.seconds() - self._began
        self.finish(Summary(self.disk.size, attempt.data, attempt.zeroes, seconds, self.attempts))

    def fail(self, error: BaseException | None) -> None:
        """Keep the error; the sender has a little time to take it from us before the end."""
        self.failure_told = errno_to_wire(getattr(error, "errno", None))
        self.failure = LocalFailure(f"{self.disk.name}: {describe_error(error)}")
        _log.error("the disk failed: {error}", event="disk-failed", error=str(self.failure))
        delay = _TELL_TIMEOUT if self.attempt is not None else 0
        self._telling = self._reactor.callLater(delay, self.machine.give_up, self.failure)

    def failed(self) -> None:
        assert self.failure is not None
        if self._telling is not None and self._telling.active():
            self._telling.cancel()
        self.finish(self.failure)


_builder = TypeMachineBuilder(_Inputs, _Core)
_waiting = _builder.state("waiting")
"""No attempt goes on."""
_copying = _builder.state("copying")
"""One connection has the attempt."""
_finishing = _builder.state("finishing")
"""Its disconnect was accepted; the last flush is under way."""
_failing = _builder.state("failing")
"""The disk has failed, and the sender is being told."""
_over = _builder.state("over")
"""The outcome is known."""


@_waiting.upon(_Inputs.change).to(_copying)
def _begin(machine: _Inputs, core: _Core, connection: ServerConnection) -> Errno:
    core.begin(connection)
    return Errno.OK


@_copying.upon(_Inputs.change).loop()
def _change(machine: _Inputs, core: _Core, connection: ServerConnection) -> Errno:
    return Errno.OK if core.holds(connection) else Errno.EPERM


@_copying.upon(_Inputs.covered).loop()
def _cover(machine: _Inputs, core: _Core, request: Request) -> None:
    core.cover(request)


@_copying.upon(_Inputs.drop).to(_waiting)
def _restart(machine: _Inputs, core: _Core, why: str) -> None:
    core.restart(why)


@_copying.upon(_Inputs.disconnect).to(_finishing)
def _flush(machine: _Inputs, core: _Core) -> None:
    core.finish_attempt()


@_finishing.upon(_Inputs.durable).to(_over)
def _complete(machine: _Inputs, core: _Core) -> None:
    core.complete()


@_waiting.upon(_Inputs.disk_failed).to(_failing)
@_copying.upon(_Inputs.disk_failed).to(_failing)
@_finishing.upon(_Inputs.disk_failed).to(_failing)
def _fail(machine: _Inputs, core: _Core, error: BaseException | None) -> None:
    core.fail(error)


@_failing.upon(_Inputs.drop).to(_over)
def _told(machine: _Inputs, core: _Core, why: str) -> None:
    core.failed()


@_failing.upon(_Inputs.give_up).to(_over)
def _not_told(machine: _Inputs, core: _Core, error: MigrationError) -> None:
    core.failed()


@_waiting.upon(_Inputs.give_up).to(_over)
@_copying.upon(_Inputs.give_up).to(_over)
def _give_up(machine: _Inputs, core: _Core, error: MigrationError) -> None:
    core.finish(error)


@_failing.upon(_Inputs.change).loop()
def _tell(machine: _Inputs, core: _Core, connection: ServerConnection) -> Errno:
    return core.failure_told


for _state in (_finishing, _over):
    _state.upon(_Inputs.change).loop().returns(Errno.ESHUTDOWN)
for _state in (_waiting, _finishing, _failing, _over):
    _state.upon(_Inputs.covered).loop().returns(None)
    _state.upon(_Inputs.disconnect).loop().returns(None)
for _state in (_waiting, _copying, _failing, _over):
    _state.upon(_Inputs.durable).loop().returns(None)
for _state in (_failing, _over):
    _state.upon(_Inputs.disk_failed).loop().returns(None)
for _state in (_waiting, _finishing, _over):
    _state.upon(_Inputs.drop).loop().returns(None)
# Once the disconnect was accepted the sender holds the migration for done: it is finished.
for _state in (_finishing, _over):
    _state.upon(_Inputs.give_up).loop().returns(None)

_machine = _builder.build()


@implementer(IExportHandler)
class _MigrationExport:
    """What the connections of a receiver ask and tell."""

    def __init__(self, core: _Core, export: Export) -> None:
        self.export = export
        self.disk = core.disk
        self._core = core

    def admit(self, connection: ServerConnection, request: Request) -> int:
        """Changes only from the attempt's connection; anything else from anybody."""
        if not changes_the_disk(request):
            if request.command == Command.FLUSH:
                self._core.flush_begins(request)
            return Errno.OK
        answer = self._core.machine.change(connection)
        if answer == Errno.OK:
            self._core.changed()
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

    def done(self, connection: ServerConnection, request: Request) -> None:
        """Coverage grows by what was changed; a flush makes a whole copy a durable one."""
        if changes_the_disk(request):
            if self._core.holds(connection):
                self._core.machine.covered(request)
        elif request.command == Command.FLUSH:
            self._core.flush_ended(request, True)

    def failed(
        self, connection: ServerConnection, request: Request, error: BaseException | None
    ) -> None:
        """The disk is not fit for the migration."""
        self._core.flush_ended(request, False)
        self._core.machine.disk_failed(error)

    def disconnected(self, connection: ServerConnection) -> None:
        """The end of the migration, or nothing much."""
        core = self._core
        if not core.holds(connection):
            connection.close()
            return
        assert core.attempt is not None
        if core.attempt.coverage.complete:
            core.machine.disconnect()
        else:
            core.machine.drop("disconnect before the whole disk was covered")
            connection.close()

    def gone(self, connection: ServerConnection) -> None:
        """The end of the attempt, if it was its connection."""
        if self._core.holds(connection):
            self._core.machine.drop("connection lost")


@implementer(IProtocolFactory)
class _ReceiverFactory:
    """Makes the connections of a receiver, and keeps them in sight."""

    noisy = False

    def __init__(self, settings: ConnectionSettings) -> None:
        self._settings = settings
        self._connections: set[ServerConnection] = set()
        self._closed: Deferred[None] | None = None

    def doStart(self) -> None:
        """A port begins to listen."""

    def doStop(self) -> None:
        """A port stopped listening."""

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        """A connection; none after the end."""
        if self._closed is not None:
            return None
        connection = _ReceiverConnection(self._settings, addr)
        connection.factory = self
        self._connections.add(connection)
        return connection

    def forget(self, connection: ServerConnection) -> None:
        """C{connection} is no more."""
        self._connections.discard(connection)
        if self._closed is not None and not self._connections:
            self._closed.callback(None)

    def close(self, gracefully: ServerConnection | None) -> Deferred[None]:
        """End every connection, and let in no other.

        @param gracefully: the one that is closed when all that is due to it was sent; the others
            are aborted.
        @return: fires when none is left.
        """
        self._closed = Deferred()
        if not self._connections:
            self._closed.callback(None)
        for connection in list(self._connections):
            connection.close() if connection is gracefully else connection.abort()
        return self._closed


class _ReceiverConnection(ServerConnection):
    """A connection that its factory knows of."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the factory too."""
        super().connectionLost(reason)
        self.factory.forget(self)


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
    @param reactor: the reactor; None for the global one.
    @param in_thread: runs a function in a thread, and gives a Deferred of its result; None for the
        reactor's thread pool.
    @param system: the calls into the kernel that move payloads.
    @raise ValueError: C{migrations} is not 1.
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
        reactor: Any = None,
        in_thread: InThread | None = None,
        system: SystemCalls = SYSTEM,
    ) -> None:
        if migrations != 1:
            raise ValueError("a receiver accepts one migration: migrations must be 1")
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415
        self._threads = ThreadWork(reactor, in_thread)
        self._reactor = reactor
        self._give_up_after = give_up_after
        self._outcome: Summary | MigrationError | None = None
        self._waiting: list[Deferred[Summary]] = []
        self._ended = False
        self._core = _Core(disk, reactor, self._threads, self._finish)
        handler = _MigrationExport(self._core, Export(export, disk.size, _OFFERS))
        self._factory = _ReceiverFactory(
            ConnectionSettings(
                reactor=reactor,
                in_thread=self._threads,
                lookup={export: handler}.get,
                names=lambda: [export],
                oldstyle=handler if oldstyle else None,
                handshake_timeout=handshake_timeout,
                idle_timeout=idle_timeout,
                system=system,
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

    def factory(self) -> IProtocolFactory:
        """What to listen with; the same one each time, so that several ports may be given it."""
        return self._factory

    def complete(self) -> Deferred[Summary]:
        """The outcome, once everything is durable, every connection closed, no thread at work.

        @return: fires with a L{Summary}, or fails with a L{MigrationError}: L{LocalFailure} where
            the disk failed, L{GaveUp} where the receiver was stopped or gave up, L{Unconfirmed}
            where it did so with a copy that lacks nothing but the disconnect.
        """
        waiting: Deferred[Summary] = Deferred()
        self._waiting.append(waiting)
        self._tell()
        return waiting

    def stop(self, why: str = "stopped") -> None:
        """End the migration as it stands, unless its disconnect was accepted already."""
        name = self._core.disk.name
        if self._core.copied:
            error: MigrationError = Unconfirmed(
                f"{why}; all of {name} is here and durable, but the disconnect never came: "
                "it is canonical only if the source was deleted"
            )
        elif self.attempts:
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
        attempt = self._core.attempt
        complete = isinstance(outcome, Summary) and attempt is not None
        holder = attempt.connection if complete and attempt is not None else None
        closed = self._factory.close(holder)
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


def _bug(failure: Failure) -> None:
    _log.failure("while ending a migration", failure=failure)
