"""Twisted services: a receiver, a server or a sender that starts and stops with its program.

Owns the order of starting and stopping, what was opened for it, and the outcome. What goes on in
between is the object's own affair.

Rules:

* ports are opened first, while the process may still have the right to (C{privilegedStartService}),
  then the disk, by whoever it will be used by; nobody is served before the object is there;
* a receiver's disk is checked when it starts, not only when a sender is there;
* a stop closes the ports, stops the object, waits until it has ended and every thread has left the
  disk, and closes the disk last; an end of the object's own, or a failure at any point of the
  start, ends in the same order;
* a disk is closed by the service only if the service opened it;
* what fails while a service is started is raised there, as Twisted's services do; it is the outcome
  as well. What fails later is the outcome, and logged. That there is nothing to do, since an
  earlier run has completed it (L{AlreadyDone}), is no failure to start: it is only the outcome;
* one object is made for each start. When it has ended the service does nothing more: a receiver
  that has its disk is not followed by a server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    NamedTuple,
    Protocol,
    TypeVar,
    cast,
    runtime_checkable,
)

from automat import TypeMachineBuilder
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .client import Destination
from .errors import AlreadyDone, GaveUp, MigrationError, Refused, Summary
from .interfaces import IDisk
from .lives import OneShot
from .migration.destination.receiver import Receiver
from .migration.source.finisher import Finisher
from .migration.source.resume import resume
from .migration.source.sender import Sender
from .nbd import parse_uri
from .runtime import Runtime
from .server import AllowList, Exports, RefusedConnection, Server
from .transport import (
    CannotListen,
    client_endpoint,
    listen,
    listening_uris,
    server_endpoint,
    stop_listening,
)

__all__ = ["ReceiverService", "SenderService", "ServerService"]

_log = Logger()

_WHY: Final = "its service was stopped"

if TYPE_CHECKING:  # older interfaces of zope.interface have no |
    DiskOrOpener = IDisk | Callable[[], IDisk]
    """A disk, which stays the caller's; or what opens one, which the service then closes."""

    Where = IStreamServerEndpoint | str | Exports
    """Where clients connect: an endpoint, the description of one, or a port that is shared."""

T = TypeVar("T")


@runtime_checkable  # Automat checks what a state carries
class _Stoppable(Protocol):
    def stop(self, why: str = ...) -> None:
        """End."""


Part = TypeVar("Part", bound=_Stoppable)


@implementer(IProtocolFactory)
class ServiceFactory:
    """The factory of a port that was opened before the object which serves it was there."""

    noisy = False

    def __init__(self) -> None:
        self.factory: IProtocolFactory | None = None

    def doStart(self) -> None:
        """Nothing to do."""

    def doStop(self) -> None:
        """Nothing to do."""

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        """A connection of the object's; before that is there, one that is closed at once."""
        factory = self.factory
        return RefusedConnection() if factory is None else factory.buildProtocol(addr)


class _Ports:
    """The ports of one run, and its place on those that it shares.

    @param endpoints: where to listen, each with its description.
    @param shared: where to be added.
    @param failed: called if listening fails after L{open} has returned.
    @param allow: who may connect to the ports of its own; None for everybody.
    @ivar listening: the ports that are open.
    """

    def __init__(
        self,
        reactor: Any,
        endpoints: Sequence[tuple[str, IStreamServerEndpoint]],
        shared: Sequence[Exports],
        failed: Callable[[Failure], None],
        allow: AllowList | None = None,
    ) -> None:
        self.listening: list[IListeningPort] = []
        self._reactor = reactor
        self._endpoints = endpoints
        self._shared = shared
        self._failed = failed
        self._factory = ServiceFactory()
        self._guarded: IProtocolFactory = self._factory
        if allow is not None:
            self._guarded = allow.guard(self._factory, reactor.seconds)
        self._opening: Deferred[bool | None] | None = None
        self._closing: Deferred[None] | None = None

    def open(self) -> None:
        """Begin to listen; most endpoints are done with that at once.

        @raise Refused: it failed at once.
        """
        opening: Deferred[bool | None] = Deferred.fromCoroutine(self._listen())
        self._opening = opening
        at_once = opening.result if opening.called else None
        if isinstance(at_once, Failure):
            opening.addErrback(lambda _: None)
            at_once.raiseException()
        opening.addErrback(self._not_opened)

    async def _listen(self) -> bool | None:
        for text, endpoint in self._endpoints:
            try:
                port = await listen(self._reactor, endpoint, self._guarded, text)
            except CannotListen as error:
                raise Refused(str(error)) from None
            self.listening.append(port)
        return True

    def _not_opened(self, failure: Failure) -> None:
        if self._closing is None:
            self._failed(failure)

    def attach(self, part: Receiver | Server) -> None:
        """Connections are for C{part} from now on.

        @raise ValueError: a shared port cannot offer it.
        """
        assert self._opening is not None
        self._factory.factory = part.factory()
        for exports in self._shared:
            exports.add(part)
        self._opening.addCallback(self._announce, part)

    def _announce(self, opened: bool | None, part: Receiver | Server) -> None:
        if opened:
            status = part.status()
            for port in self.listening:
                uris, _ = listening_uris(port, status["export"], tls=part.requires_tls)
                for uri in uris:
                    _log.info(
                        "listening on {uri} for {disk}",
                        event="listening",
                        uri=uri,
                        disk=status["disk"],
                    )

    def close(self) -> Deferred[None]:
        """Let nobody in any more; fires when every port is closed.

        A shared port offers nothing any more that is ending.
        """
        if self._closing is None:
            self._closing = Deferred()
            Deferred.fromCoroutine(self._close()).chainDeferred(self._closing)
        return self._closing

    async def _close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        ports, self.listening = self.listening, []
        closing = [Deferred.fromCoroutine(stop_listening(port)) for port in ports]
        for closed in closing:
            await closed


class RunInputs(Protocol):
    """The events of a run."""

    def begun(self, part: _Stoppable) -> None:
        """The object is there."""

    def stop(self) -> None:
        """It is to end."""

    def fail(self, ended: Ended) -> None:
        """It cannot go on, and that is its outcome."""

    def ended(self, ended: Ended) -> None:
        """The object has ended."""

    def closed(self, ended: Ended) -> None:
        """The ports and the disk are closed."""


class RunActions(Protocol):
    """What the machine does."""

    def work(self) -> None:
        """The object may have clients now."""

    def stop_part(self, part: _Stoppable) -> None:
        """Let nobody in any more, and stop the object; answer with C{ended}."""

    def close(self, ended: Ended) -> None:
        """Close the ports, and what was opened; answer with C{closed}."""

    def over(self, ended: Ended) -> None:
        """Nothing of it is left: tell everybody who waits."""


class Ended(NamedTuple):
    """How a run has ended.

    @ivar outcome: what L{complete} fires, or fails, with.
    @ivar raised: it was raised already, to whoever has started the service.
    """

    outcome: Any
    raised: bool = False


class RunState(StrEnum):
    OPEN = "open"
    WORKING = "working"
    ENDING = "ending"


def _part(machine: RunInputs, actions: RunActions, part: _Stoppable) -> _Stoppable:
    return part


def _cause(machine: RunInputs, actions: RunActions, ended: Ended) -> Ended:
    return ended


_builder = TypeMachineBuilder(RunInputs, RunActions)  # type: ignore[type-abstract]
_open = _builder.state("open")
"""There is no object yet. The ports may be open."""
_working = _builder.state("working", _part)
"""The object works."""
_stopping = _builder.state("stopping")
"""The object was stopped from outside; its outcome is the run's."""
_failing = _builder.state("failing", _cause)
"""The object was stopped because of what is the run's outcome; its own is none."""
_closing = _builder.state("closing")
"""There is no object any more. The ports and the disk are being closed."""
_over = _builder.state("over")
"""Nothing is left."""


@_open.upon(RunInputs.begun).to(_working)
def _work(machine: RunInputs, actions: RunActions, part: _Stoppable) -> None:
    actions.work()


@_open.upon(RunInputs.stop).to(_closing)
def _call_off(machine: RunInputs, actions: RunActions) -> None:
    actions.close(Ended(Failure(GaveUp(_WHY))))


@_working.upon(RunInputs.stop).to(_stopping)
def _stop_part(machine: RunInputs, actions: RunActions, part: _Stoppable) -> None:
    actions.stop_part(part)


@_working.upon(RunInputs.fail).to(_failing)
def _stop_failing(machine: RunInputs, actions: RunActions, part: _Stoppable, ended: Ended) -> None:
    actions.stop_part(part)


@_open.upon(RunInputs.fail).to(_closing)
@_stopping.upon(RunInputs.ended).to(_closing)
def _close(machine: RunInputs, actions: RunActions, ended: Ended) -> None:
    actions.close(ended)


@_working.upon(RunInputs.ended).to(_closing)
def _close_ended(machine: RunInputs, actions: RunActions, part: _Stoppable, ended: Ended) -> None:
    actions.close(ended)


@_failing.upon(RunInputs.ended).to(_closing)
def _close_failed(machine: RunInputs, actions: RunActions, cause: Ended, ended: Ended) -> None:
    actions.close(cause)


@_closing.upon(RunInputs.begun).loop()
@_over.upon(RunInputs.begun).loop()
def _too_late(machine: RunInputs, actions: RunActions, part: _Stoppable) -> None:
    part.stop(_WHY)  # it was stopped by what has made the object


@_closing.upon(RunInputs.closed).to(_over)
def _end(machine: RunInputs, actions: RunActions, ended: Ended) -> None:
    actions.over(ended)


for _data_state in (_stopping, _failing):
    _data_state.upon(RunInputs.stop).loop().returns(None)
    _data_state.upon(RunInputs.fail).loop().returns(None)
for _state in (_closing, _over):
    _state.upon(RunInputs.stop).loop().returns(None)
    _state.upon(RunInputs.fail).loop().returns(None)
    _state.upon(RunInputs.ended).loop().returns(None)

_make_run = _builder.build()


class _Run(Generic[Part, T]):
    """One run of a service, to the end of everything that it began.

    @param disk: what to work on: a disk, what opens one, or a path for C{make} to open.
    @param make: makes the object of the disk.
    @param begin: has the object begin; returns its outcome.
    @param check: looks whether the object can do its work at all; fails if not, fires or is None.
    @param ended: called once, with how it has ended.
    @ivar ports: where clients connect; set before anything is begun, None for a sender.
    @ivar part: the object, once there is one.
    @ivar state: the present state.
    """

    ports: _Ports | None = None

    def __init__(
        self,
        disk: Any,
        make: Callable[[Any], Part],
        begin: Callable[[Part], Deferred[T]],
        check: Callable[[Part], Deferred[None] | None],
        ended: Callable[[Ended], None],
    ) -> None:
        self.part: Part | None = None
        self.state = RunState.OPEN
        self._opener = disk
        self._make = make
        self._begin = begin
        self._check = check
        self._ended = ended
        self._disk: IDisk | None = None
        self._over: OneShot[None] = OneShot()
        self._machine = _make_run(self)

    def open(self) -> None:
        """Open the ports.

        @raise Refused: they cannot be opened; then L{fail} is to be called.
        """
        if self.ports is not None:
            self.ports.open()

    def begin(self) -> None:
        """Open the disk, and have the object begin.

        @raise Exception: that was not possible; then L{fail} is to be called.
        """
        disk = self._opener
        if not IDisk.providedBy(disk) and not isinstance(disk, str | os.PathLike):
            opened = disk()
            if self.state != RunState.OPEN:  # it was stopped by what has opened the disk
                opened.close()
                return
            self._disk = disk = opened
        part = self._make(disk)
        self._machine.begun(part)
        if self.state != RunState.WORKING:
            return
        # What follows may raise: that must not happen inside of the machine.
        self.part = part
        self._begin(part).addBoth(lambda outcome: self._machine.ended(Ended(outcome)))
        if self.ports is not None and self.state == RunState.WORKING:
            self.ports.attach(cast(Any, part))
        checking = self._check(part)
        if checking is not None:
            checking.addErrback(self.fail)

    def fail(self, failure: Failure, raised: bool = False) -> None:
        """End it; C{failure} is the outcome.

        @param raised: it is raised as well.
        """
        self._machine.fail(Ended(failure, raised))

    def stop(self) -> None:
        """End it; harmless if repeated."""
        self._machine.stop()

    def until_over(self) -> Deferred[None]:
        """Fires when it has ended."""
        return self._over.wait()

    # RunActions.

    def work(self) -> None:
        self.state = RunState.WORKING

    def stop_part(self, part: _Stoppable) -> None:
        self.state = RunState.ENDING
        if self.ports is not None:
            self.ports.close()
        part.stop(_WHY)

    def close(self, ended: Ended) -> None:
        self.state = RunState.ENDING
        Deferred.fromCoroutine(self._close(ended)).addErrback(_bug)

    async def _close(self, ended: Ended) -> None:
        if self.ports is not None:
            await self.ports.close()
        if self._disk is not None:
            try:
                self._disk.close()
            except Exception as error:  # the outcome is known, whatever this is
                _log.warn("while closing {disk}: {error}", disk=self._disk.name, error=str(error))
        self._machine.closed(ended)

    def over(self, ended: Ended) -> None:
        self._ended(ended)
        self._over.resolve(None)


class _PartService(Service, Generic[Part, T]):
    """A service that has an object work on a disk."""

    _takes_paths = False

    def __init__(self, disk: Any, make: Callable[[Any], Part]) -> None:
        is_path = self._takes_paths and isinstance(disk, str | os.PathLike)
        if not IDisk.providedBy(disk) and not callable(disk) and not is_path:
            raise TypeError(f"{disk!r} is neither a disk nor a function that opens one")
        self._disk = disk
        self._make = make
        self._run: _Run[Part, T] | None = None
        self._again = False
        self._outcome: OneShot[T] = OneShot()

    def privilegedStartService(self) -> None:
        """Open the ports.

        @raise Refused: they cannot be opened; L{complete} fails with the same.
        """
        super().privilegedStartService()
        if self._run is None and not self.running:
            self._open()

    def startService(self) -> None:
        """Open the disk, and begin; harmless while it runs. What is still stopping ends first.

        @raise Exception: why it cannot begin; L{complete} fails with the same.
        """
        if self.running:
            return
        self.privilegedStartService()
        super().startService()
        assert self._run is not None
        if self._run.state == RunState.ENDING:
            self._again = True
        else:
            self._attempt(self._run.begin)

    def stopService(self) -> Deferred[None]:
        """Stop; harmless at any time.

        @return: fires when everything has ended, whatever the outcome.
        """
        super().stopService()
        self._again = False
        run = self._run
        if run is None:
            self._outcome.resolve(Failure(GaveUp(_WHY)))  # unless there was a run before
            return succeed(None)
        run.stop()
        return run.until_over()

    def complete(self) -> Deferred[T]:
        """The outcome, once everything that the service began has ended.

        It may be asked for at any time, and any number of times; nothing is unhandled if nobody
        does. After another start it is the outcome of the new run.

        @return: fires, or fails, as the object's own; or fails with what L{startService} has
            raised, with L{AlreadyDone} where an earlier run has completed it, or with L{Refused}
            where it turned out later that it cannot listen.
        """
        return self._outcome.wait()

    # The runs.

    def _open(self) -> None:
        if self._outcome.is_known:
            self._outcome = OneShot()
        self._run = run = _Run(self._disk, self._make, self._begin, self._check, self._ended)
        run.ports = self._ports(run)
        self._attempt(run.open)

    def _attempt(self, step: Callable[[], None]) -> None:
        run = self._run
        assert run is not None
        try:
            step()
        except AlreadyDone:
            self._not_started(run)
            run.fail(Failure())
        except Exception:
            self._not_started(run)
            run.fail(Failure(), raised=True)
            raise

    def _not_started(self, run: _Run[Part, T]) -> None:
        """A step of C{run} has failed: the start that it belongs to counts no more.

        Where what failed has stopped the service before, that start was taken back already, and
        another may count by now.
        """
        if run.state != RunState.ENDING:
            super().stopService()

    def _ended(self, ended: Ended) -> None:
        self._run = None
        if not ended.raised:
            _report(ended.outcome, asked=not self.running)
        self._outcome.resolve(ended.outcome)
        if self._again:
            self._again = False
            super().stopService()
            try:
                self.startService()
            except Exception:
                _log.failure("cannot start again", event="error")

    def _ports(self, run: _Run[Part, T]) -> _Ports | None:
        """Where its clients connect; None if it has none."""
        return None

    def _begin(self, part: Part) -> Deferred[T]:
        """Have the object begin; returns its outcome."""
        raise NotImplementedError

    def _check(self, part: Part) -> Deferred[None] | None:
        """Look whether the object can do its work at all; fails if not. None for no look."""
        return None


class _ListeningService(_PartService[Part, T]):
    """A service with clients.

    @param where: at least one.
    @raise ValueError: there is none, or a description is wrong.
    """

    def __init__(
        self,
        disk: DiskOrOpener,
        where: Sequence[Where],
        make: Callable[[IDisk], Part],
        allow: AllowList | None,
        reactor: Any,
    ) -> None:
        super().__init__(disk, make)
        self._allow = allow
        if not where:
            raise ValueError("it needs at least one endpoint to listen on, or Exports")
        self._reactor = reactor = Runtime.of(reactor).reactor
        self._shared = [one for one in where if isinstance(one, Exports)]
        self._endpoints = [
            (one, server_endpoint(reactor, one)) if isinstance(one, str) else (repr(one), one)
            for one in where
            if not isinstance(one, Exports)
        ]

    @property
    def ports(self) -> list[IListeningPort]:
        """The ports of its own that it listens on now, in the order in which they were given."""
        ports = None if self._run is None else self._run.ports
        return [] if ports is None else list(ports.listening)

    def _ports(self, run: _Run[Part, T]) -> _Ports:
        return _Ports(self._reactor, self._endpoints, self._shared, run.fail, self._allow)


class ReceiverService(_ListeningService[Receiver, Summary]):
    """Accepts one migration into a disk.

    @param disk: where to: a disk, which stays yours; or a function that opens one, and is called
        when the service starts, such as C{partial(FileDisk, path, size=size)}. What it opens is
        closed when all has ended.
    @param where: endpoints, or their descriptions (C{"tcp:10809:interface=127.0.0.1"}); L{Exports}
        to be one of several exports on a port.
    @param make: makes the L{Receiver} of the disk, such as C{partial(Receiver, export="web")}.
    @param allow: who may connect to its endpoints; None for everybody. Not for L{Exports}, whose
        port is yours.
    @param reactor: to listen with; None for the global one.
    """

    def __init__(
        self,
        disk: DiskOrOpener,
        *where: Where,
        make: Callable[[IDisk], Receiver] = Receiver,
        allow: AllowList | None = None,
        reactor: Any = None,
    ) -> None:
        super().__init__(disk, where, make, allow, reactor)

    @property
    def receiver(self) -> Receiver | None:
        """The receiver; None before its start, and after its end."""
        return None if self._run is None else self._run.part

    def _begin(self, part: Receiver) -> Deferred[Summary]:
        return part.complete()

    def _check(self, part: Receiver) -> Deferred[None]:
        def failed(failure: Failure) -> None:
            # What it has found may be what a sender has written: that was checked before.
            if not part.attempts:
                failure.raiseException()

        return part.check().addErrback(failed)


class ServerService(_ListeningService[Server, None]):
    """Serves a disk until it is stopped, or handed over to another server.

    @param disk: what to serve: as for L{ReceiverService}.
    @param where: as for L{ReceiverService}.
    @param make: makes the L{Server} of the disk, such as C{partial(Server, export="web")}.
    @param allow: who may connect to its endpoints; None for everybody. Not for L{Exports}, whose
        port is yours.
    @param reactor: to listen with; None for the global one.
    """

    def __init__(
        self,
        disk: DiskOrOpener,
        *where: Where,
        make: Callable[[IDisk], Server] = Server,
        allow: AllowList | None = None,
        reactor: Any = None,
    ) -> None:
        super().__init__(disk, where, make, allow, reactor)

    @property
    def server(self) -> Server | None:
        """The server, for a L{Mirror}; None before its start, and after its end."""
        return None if self._run is None else self._run.part

    def _begin(self, part: Server) -> Deferred[None]:
        return part.complete().addBoth(self._mirror_ended, part)

    def _mirror_ended(self, result: Failure | None, part: Server) -> Any:
        """Fires with C{result} when no mirror works on the disk any more."""
        mirror = part.mirror
        return result if mirror is None else mirror.complete().addBoth(lambda _: result)


class SenderService(_PartService[Sender | Finisher, Summary]):
    """Sends a disk to a destination, and then does nothing more.

    Started again after a crash it goes on where the disk was retired already (L{resume}).

    @param disk: what to send: its path, which may be that of a disk that is gone; or as for
        L{ReceiverService}, such as C{partial(FileDisk, path, writable=False)}.
    @param destination: where to; or an NBD URI.
    @param make: makes the L{Sender} of both, such as C{partial(resume, unlink=True)}.
    @param reactor: to connect with where C{destination} is a URI; None for the global one.
    @raise ValueError: the URI is wrong.
    """

    _takes_paths = True

    def __init__(
        self,
        disk: DiskOrOpener | str | os.PathLike[str],
        destination: Destination | str,
        *,
        make: Callable[[Any, Destination], Sender | Finisher] = resume,
        reactor: Any = None,
    ) -> None:
        if isinstance(destination, str):
            uri = parse_uri(destination)
            endpoint = client_endpoint(Runtime.of(reactor).reactor, uri)
            destination = Destination(endpoint, uri.export, str(uri))
        to = destination
        super().__init__(disk, lambda disk: make(disk, to))

    @property
    def sender(self) -> Sender | Finisher | None:
        """The sender; None before its start, and after its end."""
        return None if self._run is None else self._run.part

    def _begin(self, part: Sender | Finisher) -> Deferred[Summary]:
        return part.run()


def _report(outcome: object, asked: bool) -> None:
    """Log an outcome that was raised nowhere.

    @param asked: whether the service was asked to stop.
    """
    if isinstance(outcome, Summary):
        _log.info("complete: {bytes} bytes", event="complete", bytes=outcome.bytes)
    elif not isinstance(outcome, Failure):
        return
    elif outcome.check(AlreadyDone):
        _log.info("{why}", event="already-done", why=outcome.getErrorMessage())
    elif asked and outcome.check(GaveUp):
        _log.info("{why}", event="stopped", why=outcome.getErrorMessage())
    elif outcome.check(MigrationError, OSError):
        _log.error("{why}", event="error", why=outcome.getErrorMessage())
    else:
        _log.failure("a service has failed", outcome, event="error")


def _bug(failure: Failure) -> None:
    _log.failure("while stopping", failure, event="bug")
