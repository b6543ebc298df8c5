"""The server: serves one disk to any number of clients.

Owns the export and its clients. The disk and the ports are the caller's.

Rules:

* what was acknowledged to one client all clients can read, and a flush on one connection covers
  what was answered on all (CAN_MULTI_CONN): there is one descriptor, one page cache, one
  `DiskAccess`;
* the disk object is the server's from when it is made until it has ended; a disk that its records
  do not call the canonical copy is not served;
* the number of connections is limited (`connections`);
* a mirror may hold the clients, and release them: new clients may shake hands, but no request is
  begun. When none is in progress any more the disk does not change until the release;
* how it ends (stopped, handed over, or relayed to another server) is up to `ending`;
* errors of the disk are reported to the clients, and never end the server;
* beside the export there is a side export that shows that it is served (`served_export`): our
  senders refuse such a server as a destination.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..claims import Claim, check_unclaimed
from ..interfaces import IDisk, IRecordedDisk
from ..lives import Life, LifeState, OneShot
from ..migration.disk import failing_locally, guarded
from ..migration.records.verdict import check_canonical
from ..nbd import (
    MAXIMUM_NAME,
    Errno,
    Export,
    Request,
    TransmissionFlag,
    changes_the_disk,
    served_export_name,
)
from ..runtime import BoundedThreads, Runtime
from ..transport import ServerTLS
from .access import DiskAccess
from .changes import Changes
from .clients import Clients
from .connection import ServerConnection
from .connections import ServerFactory
from .ending import Ending, ServedMirror
from .errors import DiskErrors
from .handler import IExportHandler
from .handshake import ConnectionSettings
from .jobs import MOST_JOBS
from .latency import LatencyMonitor
from .relay import Relay
from .served_export import ServedSideExport

_log = Logger()

_READ_FLAGS: Final = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_DF
    | TransmissionFlag.SEND_CACHE
    | TransmissionFlag.CAN_MULTI_CONN
)
_WRITE_FLAGS: Final = (
    TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_FAST_ZERO
)


@implementer(IExportHandler)
class _DiskExport:
    """The handler of the disk's export."""

    def __init__(self, export: Export, access: DiskAccess, seconds: Callable[[], float]) -> None:
        self.export = export
        self.access = access
        self.disk = access.disk
        self.held = False
        self.errors = DiskErrors(access.disk.name, seconds)

    @property
    def allows_fast_path(self) -> bool:
        """Yes, unless a change has to wait."""
        return not self.access.jobs.has_orphans and self.access.changes.throttle is None

    def admit(self, connection: ServerConnection, request: Request) -> Errno | Deferred[Errno]:
        """Admit everything, but delay changes in two cases.

        While a change for a lost connection is still in progress (the same client may be repeating
        it here), and while changes are throttled.
        """
        if not changes_the_disk(request):
            return Errno.OK
        if self.access.jobs.has_orphans:
            return self.access.jobs.orphans_finished().addCallback(lambda _: Errno.OK)
        throttle = self.access.changes.throttle
        turn = throttle.turn() if throttle is not None else None
        return Errno.OK if turn is None else turn.addCallback(lambda _: Errno.OK)

    def done(self, connection: ServerConnection, request: Request) -> None:
        """Nothing to do."""

    def failed(
        self, connection: ServerConnection, request: Request, error: BaseException | None
    ) -> None:
        """Log and count the error."""
        if not isinstance(error, CancelledError):
            self.errors.add(request, error)

    def needs_flush(self, connection: ServerConnection) -> bool:
        """Always: a flush covers what was answered on other connections too."""
        return True

    def may_be_silent(self, connection: ServerConnection) -> bool:
        """A client that is not in the middle of a request or a reply may stay for ever."""
        return not connection.is_mid_exchange

    def progress(self, connection: ServerConnection) -> None:
        """None is expected."""

    def disconnected(self, connection: ServerConnection) -> None:
        """Close the connection."""
        connection.close()

    def gone(self, connection: ServerConnection) -> None:
        """Nothing to do: the connection itself tells its server."""


class Server:
    """Serves a disk to clients until it is stopped.

    Listen with L{factory} on any number of endpoints, and wait for L{complete}. The ports and the
    disk remain the caller's: close the ports, call L{stop}, and when L{complete} has fired close
    the disk.

    @param disk: what to serve; opened for writing unless C{read_only}.
    @param export: the name of the export; "" is the default export.
    @param read_only: clients may only read.
    @param oldstyle: speak the old handshake.
    @param max_connections: how many connections there may be at a time; 0 for no limit. One that
        has asked nothing of the disk is closed for a new one.
    @param max_per_address: how many of them one IPv4 address, or one IPv6 network of 64 bits, may
        have; 0 for no limit. This host's own (loopback, UNIX sockets) has none.
    @param handshake_timeout: seconds that a connection has to negotiate; 0 for no limit.
    @param request_timeout: seconds of silence after which a client that has begun a request, or has
        replies to take, is given up; 0 for never.
    @param latency: measures how quick the disk is; None for the default.
    @param tls: how its clients may, or must, speak TLS; None where it is not offered.
    @param runtime: reactor, threads and system calls; None for the real ones.
    @raise ValueError: C{export} is too long, or the old handshake is to be spoken with TLS.
    @raise InUse: the disk object is in use.
    @raise LocalFailure: the disk has failed already.
    @raise Refused: it cannot be a disk, or the records beside it do not call it the canonical copy.
    """

    def __init__(
        self,
        disk: IDisk,
        export: str = "",
        *,
        read_only: bool = False,
        oldstyle: bool = False,
        max_connections: int = 0,
        max_per_address: int = 0,
        handshake_timeout: float = 30.0,
        request_timeout: float = 300.0,
        latency: LatencyMonitor | None = None,
        tls: ServerTLS | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        if oldstyle and tls is not None:
            raise ValueError("the old handshake has no TLS")
        if len(export.encode()) > MAXIMUM_NAME:
            raise ValueError(f"the export's name is longer than {MAXIMUM_NAME} bytes")
        given, disk = disk, guarded(disk)
        check_unclaimed(given, disk.name)
        runtime = runtime or Runtime.of()
        if IRecordedDisk.providedBy(disk):
            with failing_locally(disk):
                check_canonical(disk, runtime.system)
        reactor = runtime.reactor
        self.disk = given
        self.export = export
        self.read_only = read_only
        self._reactor = reactor
        self._started_at = reactor.seconds()
        self._threads = BoundedThreads(runtime.threads, limit=MOST_JOBS + 1)  # and one that flushes
        runtime = replace(runtime, threads=self._threads)
        self._access = DiskAccess(disk, self._threads, latency or LatencyMonitor(), runtime.system)
        flags = _READ_FLAGS | (TransmissionFlag.READ_ONLY if read_only else _WRITE_FLAGS)
        self._handler = _DiskExport(Export(export, disk.size, flags), self._access, reactor.seconds)
        exports: dict[str, IExportHandler] = {export: self._handler}
        if (notice := served_export_name(export)) is not None:
            exports[notice] = ServedSideExport(export, disk.size, runtime)
        settings = ConnectionSettings(
            runtime=runtime,
            lookup=exports.get,
            names=lambda: list(exports),
            oldstyle=self._handler if oldstyle else None,
            structured=True,
            handshake_timeout=handshake_timeout,
            idle_timeout=request_timeout,
            tls=tls,
        )
        self._clients = Clients()
        self._held_at = 0.0
        self._disk_unused: OneShot[None] = OneShot()
        self._life: Life[None] = Life(
            f"the server of {disk.name}", begin=lambda: None, call_off=self._call_off
        )
        self._ending = Ending(
            self._clients,
            self._threads,
            reactor,
            hold=self.hold,
            held_at=lambda: self._held_at if self._handler.held else None,
            flush=None if read_only else self._access.flush,
            disk_unused=lambda: self._disk_unused.resolve(None),
            ended=self._end,
        )
        self._factory = ServerFactory(
            settings,
            self._clients,
            self._access,
            most=max_connections,
            most_of_one=max_per_address,
            is_open=lambda: not self._ending.begun,
            relay=lambda: self._ending.relay,
        )
        self._claim = Claim(given, self, disk.name)

    @property
    def owner(self) -> Any:
        """Whose its connections are (L{IConnectionOwner}); to ask for it begins nothing."""
        return self._factory

    def factory(self) -> IProtocolFactory:
        """The protocol factory to listen with, the same one each time."""
        return self._factory

    @property
    def requires_tls(self) -> bool:
        """Whether nobody is served without TLS."""
        tls = self._factory.settings.tls
        return tls is not None and tls.required

    @property
    def state(self) -> str:
        """C{serving}, C{holding}, C{relaying}, C{stopping} or C{stopped}."""
        if self._life.state == LifeState.ENDED:
            return "stopped"
        if self._ending.begun:
            return "stopping"
        if self._ending.relay is not None:
            return "relaying"
        return "holding" if self._handler.held else "serving"

    def status(self) -> dict[str, Any]:
        """The state, for people and scripts: times in seconds, sizes in bytes."""
        now = self._reactor.seconds()
        return {
            "role": "serve",
            "state": self.state,
            "uptime": round(now - self._started_at, 3),
            "disk": self._access.disk.name,
            "size": self._access.disk.size,
            "export": self.export,
            "read_only": self.read_only,
            "errors": self._handler.errors.count,
            "last_error": self._handler.errors.last,
            **self._clients.status(now),
            **self._relay_status(now),
        }

    def _relay_status(self, now: float) -> dict[str, Any]:
        relay = self._ending.relay
        if relay is None or self.state != "relaying":
            return {}
        until = self._ending.machine.lingers_until()
        left = None if until is None else round(until - now, 3)
        return {"relay": {**relay.status(), "linger_left": left}}

    @property
    def relayed_pause(self) -> float | None:
        """Seconds from the hold to the first reply that reached a client by the L{relay}; None
        where there is none (yet)."""
        return None if self._ending.relay is None else self._ending.relay.pause

    def complete(self) -> Deferred[None]:
        """Fires when the server was stopped, every client is gone, and the disk is flushed.

        Nothing is flushed after L{hand_over} or L{relay}. After L{relay} it fires by itself when
        the last client has left, and none has come back for as long as the relay lingers. It may be
        asked for at any time, and repeatedly; cancelling it only stops waiting.

        It fails with the L{OSError} of that last flush.
        """
        return self._life.wait()

    def stop(self, why: str = "") -> None:
        """Finish the requests in progress, close every client, flush; then L{complete} fires.

        A mirror is called off first, and its end is waited for; where it is too late for that, the
        disk is handed over. Clients that are held or forwarded are closed with their requests
        unanswered.

        @param why: the reason, for the log; "" to log nothing.
        """
        self._life.stop(why)

    def _call_off(self, why: str) -> None:
        self._ending.machine.stop(why)

    def _end(self, outcome: Failure | None) -> None:
        self._threads.end()
        self._claim.release()
        self._life.end(outcome)

    # For a mirror.

    @property
    def changes(self) -> Changes:
        """The clients' changes, which can be watched and throttled."""
        return self._access.changes

    @property
    def latency(self) -> LatencyMonitor:
        """How quick the disk is, and when it was last called for a client."""
        return self._access.latency

    def hold(self) -> Deferred[None]:
        """Begin no more requests until L{release} or L{hand_over}.

        @return: fires when none is in progress, so that the disk does not change.
        """
        if not self._handler.held:
            self._handler.held, self._held_at = True, self._reactor.seconds()
        holding: list[Deferred[Any]] = [client.hold() for client in self._clients]
        still: Deferred[Any] = gatherResults([*holding, self._access.jobs.orphans_finished()])
        return still.addCallback(lambda _: None)

    def release(self) -> None:
        """End the L{hold}: process the clients' requests again."""
        if self._ending.relay is not None:
            return
        self._handler.held = False
        for client in self._clients:
            client.release()

    @property
    def mirror(self) -> ServedMirror | None:
        """The mirror that is running, which L{stop} calls off; set by the mirror itself."""
        return self._ending.mirror

    @mirror.setter
    def mirror(self, mirror: ServedMirror | None) -> None:
        self._ending.mirror = mirror

    def hand_over(self) -> None:
        """Another server serves the disk now: close every client; then L{complete} fires."""
        self._ending.machine.hand_over()

    def relay(self, relay: Relay) -> None:
        """Another server serves the disk now: forward every client to it, including later ones.

        The clients are held first, if they are not yet. Requests that were not answered are sent
        there first. Keep the ports listening until L{complete} fires, when the last client has left
        and the relay has lingered for as long as it was told to: at once if there is no client, and
        it does not linger. Keep the disk open until L{disk_unused} fires, or L{complete}. L{stop}
        ends it sooner, and L{release} does nothing any more. A server that was stopped before only
        closes its clients.

        @param relay: how to reach that server, as in
            C{Relay(Destination(client_endpoint(reactor, uri), uri.export),
            receiver_export=uri.export + HANDOFF_EXPORT)}.
        """
        self._ending.machine.relay(relay)

    def disk_unused(self) -> Deferred[None]:
        """Fires when clients are forwarded, and nothing here needs the disk any more.

        It does not fire without a L{relay}; and it may be later than L{complete}, or not fire at
        all, where clients are closed. Cancelling it only stops waiting.
        """
        return self._disk_unused.wait()
