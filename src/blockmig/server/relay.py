"""Clients whose disk another server serves now, passed on to it so that they see only a pause.

Owns the wait for that server, and the connections to it: one for each client. A client's own end is
a `ServerConnection` that was passed on; it goes on sending what we owe the client, and everything
after that comes from the other server.

Rules:

* nobody is passed on before a server has answered that is not the migration's receiver any more:
  the name of the receiver's side export, where one is known, is not listed;
* a client that has negotiated with us goes on only where everything that it was told holds: what is
  less there costs its connection, so that it may connect anew. Nothing else of its stream is
  changed;
* everything that it sent and we have not answered goes first, as it came, and each byte once: a
  WRITE that was taken off the wire in part is made whole again, from the disk and from memory;
* a client that connects later is passed on from its first byte, and is only waited with until then;
* a client that has hung up while it waited is done with, and so is what it had asked for: it may
  already be repeating that on another connection, and must not be overtaken by itself;
* what one side does not take is not read from the other: one message of the reactor's, and the rest
  of an unanswered one, is all that is ever kept;
* a client that says no more may still listen. A server that says no more is gone, since there is
  nothing that it could be told any more; then its client's connection is closed too;
* a connection that does not come about has cost nothing: it is tried again, for ever.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
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
from ..runtime import Runtime
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
    """Whoever has a connection to the other server made, and is told of what happens to it."""

    def upstream_connected(self, upstream: _Upstream, negotiated: Negotiated | None) -> None:
        """Connected; with a handshake, if there was to be one."""

    def upstream_received(self, data: bytes) -> None:
        """The server sent this."""

    def upstream_drained(self) -> None:
        """The server has taken all there was for it."""

    def upstream_lost(self, why: str) -> None:
        """The connection is gone, or did not come about; told once."""


class _Upstream(ClientHandler):
    """One connection to the other server.

    @param handshake: what to begin with; None for nothing.
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
        """Why we gave it up; empty if we did not."""
        return self._connection.why

    def connect(self, endpoint: IStreamClientEndpoint) -> None:
        """Connect, and shake hands, with patience."""
        self._connection.set_timeout(_TIMEOUT, f"no answer in {_TIMEOUT:g} s")
        self._connecting = maybeDeferred(endpoint.connect, ClientFactory(self._connection))
        self._connecting.addCallbacks(lambda _: None, self._gone)

    def _gone(self, reason: Failure) -> None:
        self._connection.cancel_timeout()
        if not self._lost:
            self._lost = True
            self._user.upstream_lost(self.why or reason.getErrorMessage())

    # ClientUser.

    def connection_made(self) -> None:
        """The server speaks first; to the client, if that one was not greeted."""
        if self._lost:
            self._connection.abort()  # given up, by an endpoint that could not take it back
        elif self._relays_greeting:
            self._ready(None)

    def negotiated(self, negotiated: Negotiated) -> None:
        """It is there."""
        self._ready(negotiated)

    def _ready(self, negotiated: Negotiated | None) -> None:
        self._connection.cancel_timeout()
        self._connected = True
        self._user.upstream_connected(self, negotiated)

    def received(self, data: bytes) -> None:
        """It goes on to the client."""
        if self._connected:
            self._user.upstream_received(data)

    def drained(self) -> None:
        """There may be more."""
        if self._connected and not self._lost:
            self._user.upstream_drained()

    def sending_failed(self, error: OSError) -> None:
        """What the client had sent cannot be had any more."""
        self._connection.fail(f"reading the disk failed: {error}")

    def connection_failed(self, why: str) -> None:
        """We gave it up, perhaps before there was one."""
        if self._connecting is not None and self._connection.transport is None:
            self._connecting.cancel()

    def connection_gone(self, reason: Failure) -> None:
        """It is."""
        self._gone(reason)

    # What is done with it.

    @property
    def waiting(self) -> bool:
        """Whether the server has not taken all that was sent."""
        return self._connection.outgoing.waiting

    def send(self, items: Sequence[bytes | FileRegion]) -> None:
        """Send what is here to stay."""
        self._connection.outgoing.send(items)

    def send_view(self, data: bytes | memoryview) -> None:
        """Send what may not last."""
        self._connection.outgoing.send_view(data)

    def pause(self) -> None:
        """Read nothing more until L{resume}."""
        if not self._lost:
            self._connection.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        if not self._lost:
            self._connection.transport.resumeProducing()

    def finish(self) -> None:
        """Tell the server that nothing more comes, once all was sent."""
        if self._lost:
            return
        if is_plain_socket(self._connection.transport):
            self._connection.transport.loseWriteConnection()
        else:
            self.close()

    def disconnect(self) -> None:
        """Take leave of the server, which is to close."""
        self.send([REQUEST.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0)])
        self._connection.set_timeout(_DISCONNECT_TIMEOUT, "")

    def close(self) -> None:
        """Close when all was sent, or after a while."""
        if not self._lost:
            self._connection.set_timeout(_TIMEOUT, "")
            self._connection.transport.loseConnection()

    def abort(self) -> None:
        """Close at once, or do not connect any more."""
        self._connection.abort()
        if self._connection.transport is None and self._connecting is not None:
            self._connecting.cancel()


class _Probe:
    """A look at whether the other server is there."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._is_server = False
        self._is_receiver = False

    def upstream_connected(self, upstream: _Upstream, negotiated: Negotiated | None) -> None:
        """Somebody is there, who may still be the receiver: to that one no word is said."""
        assert negotiated is not None
        if negotiated.listed:
            self._is_receiver = True
            upstream.abort()
        else:
            self._is_server = True
            upstream.disconnect()

    def upstream_received(self, data: bytes) -> None:
        """Nothing was asked."""

    def upstream_drained(self) -> None:
        """It has."""

    def upstream_lost(self, why: str) -> None:
        """Only now: where connections are counted, this one counts no more."""
        if self._is_receiver:
            why = "the migration's receiver still has the disk"
        self._relay.probe_finished("" if self._is_server else why or "it closed the connection")


class _RelayedClient:
    """One client, passed on.

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
        """Its connection was given up to us."""
        self._relay.add(self)
        if unanswered is None:
            self._close("a WRITE of it that is under way has failed here")
            return
        self._backlog = unanswered
        if self._client.negotiated is None:
            # It waits for a greeting, so that all there is to be read is that it gave up.
            self._client.resume_reading()
        self.connect()

    def received(self, data: bytes | memoryview) -> None:
        """To the server; or to be kept for it, but then only this."""
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
        """It sends no more."""
        self._finished = True
        if self._ended:
            return
        if self._is_relaying:
            assert self._upstream is not None
            self._upstream.finish()
        elif not self._backlog:
            self._close("")

    def drained(self) -> None:
        """It has taken everything: there may be more."""
        if self._is_relaying and self._upstream is not None:
            self._upstream.resume()

    def lost(self, reason: Failure) -> None:
        """It has gone. What it sent before it closed in order still reaches the server."""
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
                "{peer}: cannot be passed on, and is closed: {why}",
                event="not-passed-on",
                peer=self._client.peer,
                why=why,
            )
        if self._upstream is not None and not self._is_relaying:
            self._upstream.abort()
        self._client.close()

    def give_up_if_gone(self) -> None:
        """The client may not have had the patience."""
        if not self._is_relaying and not self._ended and has_hung_up(self._client.transport):
            self._close("it has hung up")

    # From the server, and what leads there.

    def connect(self) -> None:
        """Connect to the server, unless that is done, or too early."""
        if self._upstream is None and not self._ended and self._relay.is_available:
            self._upstream = self._relay.make_upstream(self, self._client.negotiated)
            self._relay.connect(self._upstream)

    def upstream_connected(self, upstream: _Upstream, negotiated: Negotiated | None) -> None:
        """Connected: the client may go on, if it is what the client was told."""
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
        """To the client."""
        if self._is_relaying and not self._ended and not self._client.answer(data):
            assert self._upstream is not None
            self._upstream.pause()

    def upstream_drained(self) -> None:
        """It has taken everything: there may be more."""
        if not self._ended:
            self._client.resume_reading()

    def upstream_lost(self, why: str) -> None:
        """Before they were joined nothing is lost; after that the client's connection is."""
        upstream, self._upstream = self._upstream, None
        if self._ended:
            return
        if self._is_relaying:
            self._close(upstream.why if upstream is not None else "")
        else:
            self._relay.unreachable(why)

    def stop(self) -> None:
        """Close."""
        if not self._ended:
            self._close("")


class Relay:
    """Passes clients on to the server that has their disk now.

    Give it to L{Server.relay <blockmig.server.Server.relay>}.

    @param destination: where that server is, or will be, and the name of the disk there.
    @param receiver_export: the name of another export, which only the migration's receiver lists;
        None if there is no such.
    @param runtime: what the outside world is; None for the real one.
    @ivar is_available: it has answered.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        receiver_export: str | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._runtime = runtime = runtime or Runtime.of()
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
        """Look for the server."""
        self._start_probe()

    def forward(self, client: ServerConnection) -> None:
        """Pass a client on that is held and idle, or was not greeted; now, or when that can be."""
        client.forward(_RelayedClient(self, client))

    def stop(self) -> None:
        """Give up: close every client, and look for nobody any more."""
        self._stopped = True
        if self._next_probe is not None:
            self._next_probe.cancel()
            self._next_probe = None
        if self._probe is not None:
            self._probe.abort()
        for client in list(self._clients):
            client.stop()

    # For passages and probes.

    def make_upstream(self, client: _RelayedClient, advertised: Negotiated | None) -> _Upstream:
        """A connection for a client: for one who was told this, or was not greeted."""
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
        """Have it connect; it may fail at once."""
        upstream.connect(self._endpoint)

    def add(self, client: _RelayedClient) -> None:
        """One more."""
        self._clients[client] = None

    def remove(self, client: _RelayedClient) -> None:
        """One less."""
        self._clients.pop(client, None)

    def client_connected(self) -> None:
        """Somebody got through."""
        self._delay = _FIRST_RETRY

    def unreachable(self, why: str) -> None:
        """The server is not there, or not yet; or somebody did not get through to it."""
        self.is_available = False
        if self._stopped:
            return
        # Those who wait are not read from, so that nobody else notices.
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

        @param why: why the server is not there; empty if it is.
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
                "the server that takes over answers; passing {clients} client(s) on",
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
    """What a client was told that does not hold at another server; nothing if all does."""
    ours, theirs = advertised.export, upstream.export
    if theirs.size != ours.size:
        return f"the disk has {theirs.size} bytes there, and {ours.size} here"
    if theirs.read_only and not ours.read_only:
        return "it may only be read there"
    lacking = int(ours.flags) & ~int(theirs.flags) & ~int(TransmissionFlag.READ_ONLY)
    if lacking:
        names = ", ".join(str(flag.name) for flag in TransmissionFlag(lacking))
        return f"{names} is not offered there"
    if theirs.minimum_block > ours.minimum_block:
        return f"blocks have at least {theirs.minimum_block} bytes there"
    if theirs.maximum_payload < ours.maximum_payload:
        return f"a request has at most {theirs.maximum_payload} bytes there"
    if advertised.structured and not upstream.structured:
        return "there are no structured replies there"
    if advertised.allocation and not upstream.allocation:
        return "base:allocation is not told there, or not by the same number"
    return ""
