"""Forwards clients to the server that serves their disk now, so that they see only a pause.

Owns the wait for that server (the upstream), and one connection to it for each client. The client's
side is a `ServerConnection` in its forwarding phase: it still sends what was queued for the client,
and after that everything that the upstream sends.

Rules:

* no client is forwarded until a server has answered that is no longer the migration's receiver: it
  does not list the receiver's side export, where the name of that is known;
* a client that has negotiated with us is forwarded only if everything that it was told also holds
  upstream. If anything is missing there its connection is closed, so that it can connect anew.
  Its stream is not changed in any other way;
* everything that a client sent and we have not answered is forwarded first, unchanged, each byte
  once: a WRITE that was partly taken off the wire is put together again from the disk and memory;
* a client that connects later is forwarded from its first byte, and waits until that is possible;
* a client that hung up while it waited is dropped together with its requests: it may already be
  repeating them on another connection, and its old requests must not overtake the new ones;
* back-pressure: nothing is read from one side that the other does not take. Never more is kept than
  one read of the reactor's, and the rest of an unanswered request;
* a client that has closed its sending side may still receive. A server that has closed its sending
  side is gone, since it can answer nothing any more: its client's connection is closed as well;
* a failed connection attempt loses nothing, and is repeated for ever.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..client import ClientConnection, ClientFactory, ClientHandler, Destination
from ..nbd import (
    REQUEST,
    REQUEST_MAGIC,
    ClientHandshake,
    Command,
    Negotiated,
    TransmissionFlag,
)
from ..runtime import BoundedThreads, Runtime
from ..transport import (
    FileRegion,
    has_hung_up,
    is_plain_socket,
)
from .connection import ServerConnection

_log = Logger()

_FIRST_RETRY: Final = 0.02
_LONGEST_RETRY: Final = 0.5
_REPORT_INTERVAL: Final = 60.0
_TIMEOUT: Final = 10.0
_DISCONNECT_TIMEOUT: Final = 1.0


class _UpstreamUser(typing.Protocol):
    """Receives the events of a connection to the upstream server."""

    def upstream_connected(self, upstream: _Upstream, negotiated: Negotiated | None) -> None:
        """Connected, and the handshake is over if there was to be one."""

    def upstream_received(self, data: bytes) -> None:
        """The server sent C{data}."""

    def upstream_drained(self) -> None:
        """The server has taken everything that was queued for it."""

    def upstream_lost(self, why: str) -> None:
        """The connection was lost, or could not be made; called once."""


class _Upstream(ClientHandler):
    """One connection to the upstream server.

    @param handshake: our handshake; None where the client is to shake hands itself.
    """

    def __init__(
        self, user: _UpstreamUser, handshake: ClientHandshake | None, runtime: Runtime
    ) -> None:
        self._user = user
        self._relays_greeting = handshake is None
        self._connection = ClientConnection(self, handshake, runtime)
        self._connected = False
        self._lost = False
        self._connecting: Deferred[Any] | None = None

    @property
    def why(self) -> str:
        """Why we gave the connection up; "" if we did not."""
        return self._connection.why

    def connect(self, endpoint: IStreamClientEndpoint) -> None:
        """Connect, and shake hands; give up after 10 s."""
        self._connection.set_timeout(_TIMEOUT, f"no answer in {_TIMEOUT:g} s")
        self._connecting = maybeDeferred(endpoint.connect, ClientFactory(self._connection))
        self._connecting.addCallbacks(lambda _: None, self._gone)

    def _gone(self, reason: Failure) -> None:
        self._connection.cancel_timeout()
        if not self._lost:
            self._lost = True
            self._user.upstream_lost(self.why or reason.getErrorMessage())

    # ClientHandler.

    def connection_made(self) -> None:
        """The server speaks first: to the client itself, if that has not been greeted."""
        if self._lost:
            self._connection.abort()  # given up, but its endpoint could not cancel it
        elif self._relays_greeting:
            self._ready(None)

    def negotiated(self, negotiated: Negotiated) -> None:
        self._ready(negotiated)

    def _ready(self, negotiated: Negotiated | None) -> None:
        self._connection.cancel_timeout()
        self._connected = True
        self._user.upstream_connected(self, negotiated)

    def received(self, data: bytes) -> None:
        if self._connected:
            self._user.upstream_received(data)

    def drained(self) -> None:
        if self._connected and not self._lost:
            self._user.upstream_drained()

    def sending_failed(self, error: OSError) -> None:
        """What the client had sent can no longer be read from the disk."""
        self._connection.fail(f"reading the disk failed: {error}")

    def connection_failed(self, why: str) -> None:
        """We gave the connection up, perhaps before it was made."""
        if self._connecting is not None and self._connection.transport is None:
            self._connecting.cancel()

    def connection_gone(self, reason: Failure) -> None:
        self._gone(reason)

    # For its user.

    @property
    def waiting(self) -> bool:
        """Whether the server has not yet taken everything that was sent."""
        return self._connection.outgoing.waiting

    def send(self, items: Sequence[bytes | FileRegion]) -> None:
        """Send C{items}, which nobody changes afterwards."""
        self._connection.outgoing.send(items)

    def send_view(self, data: bytes | memoryview) -> None:
        """Send C{data}, of which only what has to wait is copied."""
        self._connection.outgoing.send_view(data)

    def pause(self) -> None:
        """Read nothing more from the server until L{resume}."""
        if not self._lost:
            self._connection.transport.pauseProducing()

    def resume(self) -> None:
        if not self._lost:
            self._connection.transport.resumeProducing()

    def finish(self) -> None:
        """Close our sending side once everything was sent; where that is not possible, both."""
        if self._lost:
            return
        if is_plain_socket(self._connection.transport):
            self._connection.transport.loseWriteConnection()
        else:
            self.close()

    def disconnect(self) -> None:
        """Send DISC, and leave the server one second to close the connection."""
        self.send([REQUEST.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0)])
        self._connection.set_timeout(_DISCONNECT_TIMEOUT, "")

    def close(self) -> None:
        """Close when everything was sent, but after 10 s at the latest."""
        if not self._lost:
            self._connection.set_timeout(_TIMEOUT, "")
            self._connection.transport.loseConnection()

    def abort(self) -> None:
        """Close at once, or cancel the connection attempt."""
        self._connection.abort()
        if self._connection.transport is None and self._connecting is not None:
            self._connecting.cancel()


class _Probe:
    """Finds out whether the upstream server is there."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._is_server = False
        self._is_receiver = False

    def upstream_connected(self, upstream: _Upstream, negotiated: Negotiated | None) -> None:
        """A server is there. If it is still the receiver, say nothing to it, not even DISC."""
        assert negotiated is not None
        if negotiated.listed:
            self._is_receiver = True
            upstream.abort()
        else:
            self._is_server = True
            upstream.disconnect()

    def upstream_received(self, data: bytes) -> None:
        """Nothing was requested."""

    def upstream_drained(self) -> None:
        """There is nothing more to send."""

    def upstream_lost(self, why: str) -> None:
        """Report only now: a server that limits its connections no longer counts this one."""
        if self._is_receiver:
            why = "the migration's receiver still has the disk"
        self._relay.probe_finished("" if self._is_server else why or "it closed the connection")


class _RelayedClient:
    """One client that is forwarded.

    @param client: its connection.
    """

    def __init__(self, relay: Relay, client: ServerConnection) -> None:
        self._relay = relay
        self._client = client
        self._backlog: list[bytes | FileRegion] = []
        self._upstream: _Upstream | None = None
        self._is_relaying = False
        self._finished = False
        self._ended = False

    # From the client.

    def begin(self, unanswered: list[bytes | FileRegion] | None) -> None:
        """The client's connection is ours now."""
        self._relay.add(self)
        if unanswered is None:
            self._close("a WRITE that it is sending has failed here")
            return
        self._backlog = unanswered
        if self._client.negotiated is None:
            # It waits for a greeting, so the only thing to be read is that it gave up.
            self._client.resume_reading()
        self.connect()

    def received(self, data: bytes | memoryview) -> None:
        """Send C{data} upstream, or keep it until that is possible, and then read nothing more."""
        if self._ended:
            return
        if self._is_relaying:
            assert self._upstream is not None
            self._upstream.send_view(data)
            if self._upstream.waiting:
                self._client.pause_reading()
        else:
            self._backlog.append(bytes(data))
            self._client.pause_reading()

    def finished(self) -> None:
        """The client sends no more."""
        self._finished = True
        if self._ended:
            return
        if self._is_relaying:
            assert self._upstream is not None
            self._upstream.finish()
        elif not self._backlog:
            self._close("")

    def drained(self) -> None:
        """The client has taken everything: read from the server again."""
        if self._is_relaying and self._upstream is not None:
            self._upstream.resume()

    def lost(self, reason: Failure) -> None:
        """The client is gone. If it closed in good order, what it sent still reaches the server."""
        self._ended = True
        self._backlog = []
        self._relay.remove(self)
        if self._upstream is None:
            return
        if self._is_relaying and reason.check(ConnectionDone):
            self._upstream.close()
        else:
            self._upstream.abort()

    def _close(self, why: str) -> None:
        self._ended = True
        self._backlog = []
        if why:
            _log.warn(
                "{peer}: cannot be forwarded ({why}); connection closed",
                event="not-passed-on",
                peer=self._client.peer,
                why=why,
            )
        if self._upstream is not None and not self._is_relaying:
            self._upstream.abort()
        self._client.close()

    def give_up_if_gone(self) -> None:
        """Drop the client if it has hung up meanwhile."""
        if not self._is_relaying and not self._ended and has_hung_up(self._client.transport):
            self._close("it has hung up")

    # From the server, and what leads there.

    def connect(self) -> None:
        """Connect to the server, unless that is already done, or the server is not available."""
        if self._upstream is None and not self._ended and self._relay.is_available:
            self._upstream = self._relay.make_upstream(self, self._client.negotiated)
            self._relay.connect(self._upstream)

    def upstream_connected(self, upstream: _Upstream, negotiated: Negotiated | None) -> None:
        """Connected: forward the client, if everything that it was told holds here."""
        advertised = self._client.negotiated
        if advertised is not None and negotiated is not None:
            if negotiated.listed:
                upstream.abort()
                return
            hung_up = has_hung_up(self._client.transport)
            why = "it has hung up" if hung_up else missing_feature(advertised, negotiated)
            if why:
                self._upstream = None
                upstream.disconnect()
                self._close(why)
                return
        self._is_relaying = True
        self._relay.client_connected()
        backlog, self._backlog = self._backlog, []
        upstream.send(backlog)
        if self._finished:
            upstream.finish()
        if upstream.waiting:
            self._client.pause_reading()
        else:
            self._client.resume_reading()

    def upstream_received(self, data: bytes) -> None:
        """Send C{data} to the client."""
        if self._is_relaying and not self._ended and not self._client.answer(data):
            assert self._upstream is not None
            self._upstream.pause()

    def upstream_drained(self) -> None:
        """The server has taken everything: read from the client again."""
        if not self._ended:
            self._client.resume_reading()

    def upstream_lost(self, why: str) -> None:
        """Before the client was forwarded nothing is lost; after that, its connection is."""
        upstream, self._upstream = self._upstream, None
        if self._ended:
            return
        if self._is_relaying:
            self._close(upstream.why if upstream is not None else "")
        else:
            self._relay.unreachable(why)

    def stop(self) -> None:
        if not self._ended:
            self._close("")


class Relay:
    """Forwards clients to the server that has their disk now.

    Give it to L{Server.relay <blockmig.server.Server.relay>}.

    @param destination: where that server is, or will be, and the export's name there.
    @param receiver_export: the name of an export that only the migration's receiver lists; None if
        there is none.
    @param runtime: reactor, threads and system calls; None for the real ones.
    @ivar is_available: the server has answered.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        receiver_export: str | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        runtime = runtime or Runtime.of()
        self._threads = BoundedThreads(runtime.threads)
        self._runtime = replace(runtime, threads=self._threads)
        self.is_available = False
        self._endpoint = destination.endpoint
        self._export = destination.export
        self._receiver_exports = () if receiver_export is None else (receiver_export,)
        self._reactor = runtime.reactor
        self._clients: dict[_RelayedClient, None] = {}
        self._delay = _FIRST_RETRY
        self._reported_at = float("-inf")
        self._announced = False
        self._probe: _Upstream | None = None
        self._next_probe: IDelayedCall | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin to probe for the server."""
        self._start_probe()

    def forward(self, client: ServerConnection) -> None:
        """Forward a client that is held and idle, or was not greeted, as soon as possible."""
        client.forward(_RelayedClient(self, client))

    def stop(self) -> None:
        """Give up: close every client, and stop probing."""
        self._stopped = True
        if self._next_probe is not None:
            self._next_probe.cancel()
            self._next_probe = None
        if self._probe is not None:
            self._probe.abort()
        for client in list(self._clients):
            client.stop()

    def idle(self) -> Deferred[None]:
        """Fires when no thread is reading what a client had sent from the disk."""
        return self._threads.idle()

    # For the clients and the probe.

    def make_upstream(self, client: _RelayedClient, advertised: Negotiated | None) -> _Upstream:
        """A connection for a client that was told C{advertised}, or was not greeted (None)."""
        handshake: ClientHandshake | None = None
        if advertised is not None:
            handshake = ClientHandshake(
                self._export,
                self._receiver_exports,
                structured=advertised.structured,
                allocation=advertised.allocation,
            )
        return _Upstream(client, handshake, self._runtime)

    def connect(self, upstream: _Upstream) -> None:
        """Connect C{upstream}; that may fail at once."""
        upstream.connect(self._endpoint)

    def add(self, client: _RelayedClient) -> None:
        self._clients[client] = None

    def remove(self, client: _RelayedClient) -> None:
        self._clients.pop(client, None)

    def client_connected(self) -> None:
        """A client is being forwarded: the next failure is retried soon."""
        self._delay = _FIRST_RETRY

    def unreachable(self, why: str) -> None:
        """The server does not answer (yet), or the connection for a client failed."""
        self.is_available = False
        if self._stopped:
            return
        # Clients that wait are not read from, so nothing else notices that they hung up.
        for client in list(self._clients):
            client.give_up_if_gone()
        now = self._reactor.seconds()
        if now - self._reported_at >= _REPORT_INTERVAL:
            self._reported_at = now
            self._announced = False
            _log.info(
                "the server that takes over does not answer yet ({why}); trying again",
                event="not-there-yet",
                why=why,
            )
        if self._next_probe is None and self._probe is None:
            self._next_probe = self._reactor.callLater(self._delay, self._start_probe)
            self._delay = min(2 * self._delay, _LONGEST_RETRY)

    def probe_finished(self, why: str) -> None:
        """The probe is over.

        @param why: why the server is not available; "" if it is.
        """
        self._probe = None
        if why:
            self.unreachable(why)
        elif not self._stopped:
            self._became_available()

    def _became_available(self) -> None:
        self.is_available = True
        if not self._announced:
            self._announced = True
            _log.info(
                "the server that takes over answers; forwarding {clients} client(s)",
                event="passing-on",
                clients=len(self._clients),
            )
        for client in list(self._clients):
            client.connect()

    def _start_probe(self) -> None:
        self._next_probe = None
        handshake = ClientHandshake(self._export, self._receiver_exports)
        self._probe = _Upstream(_Probe(self), handshake, self._runtime)
        self.connect(self._probe)


def missing_feature(advertised: Negotiated, upstream: Negotiated) -> str:
    """What a client was told here that does not hold upstream, in words; "" if all of it does."""
    ours, theirs = advertised.export, upstream.export
    if theirs.size != ours.size:
        return f"the disk has {theirs.size} bytes there but {ours.size} here"
    if theirs.read_only and not ours.read_only:
        return "the export is read-only there"
    lacking = int(ours.flags) & ~int(theirs.flags) & ~int(TransmissionFlag.READ_ONLY)
    if lacking:
        names = ", ".join(str(flag.name) for flag in TransmissionFlag(lacking))
        return f"{names} is not offered there"
    if theirs.minimum_block > ours.minimum_block:
        return f"the minimum block size is {theirs.minimum_block} bytes there"
    if theirs.maximum_payload < ours.maximum_payload:
        return f"the maximum payload is {theirs.maximum_payload} bytes there"
    if advertised.structured and not upstream.structured:
        return "structured replies are not offered there"
    if advertised.allocation and not upstream.allocation:
        return "base:allocation is not offered there, or has another context id"
    return ""
