"""One connection from a relay to the server that takes over (the upstream server).

Owns its connecting, with a time limit, and its end. Whose bytes pass, and what a loss means, is up
to its user: a client that is forwarded (`relayed`), or the search for that server (`search`).
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from ..client import ClientConnection, ClientFactory, ClientHandler
from ..nbd import REQUEST, REQUEST_MAGIC, ClientHandshake, Command, Negotiated
from ..runtime import Runtime
from ..transport import ClientTLS, FileRegion, LayeredTransport, is_plain_socket

_TIMEOUT: Final = 10.0
_DISCONNECT_TIMEOUT: Final = 1.0


class UpstreamUser(typing.Protocol):
    """Receives the events of a connection to the upstream server."""

    def upstream_connected(self, upstream: Upstream, negotiated: Negotiated | None) -> None:
        """Connected, and the handshake is over if there was to be one."""

    def upstream_received(self, data: bytes) -> None:
        """The server sent C{data}."""

    def upstream_drained(self) -> None:
        """The server has taken everything that was queued for it."""

    def upstream_lost(self, why: str) -> None:
        """The connection was lost, or could not be made; called once."""


class Upstream(ClientHandler):
    """One connection to the upstream server.

    @param handshake: our handshake; None where the client is to shake hands itself.
    @param tls: how it speaks TLS, where the handshake is ours; None for not at all.
    """

    def __init__(
        self,
        user: UpstreamUser,
        handshake: ClientHandshake | None,
        runtime: Runtime,
        tls: ClientTLS | None = None,
    ) -> None:
        self._user = user
        self._relays_greeting = handshake is None
        self._connection = ClientConnection(self, handshake, runtime, tls=tls)
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
        transport = self._connection.transport
        if is_plain_socket(transport) or isinstance(transport, LayeredTransport):
            transport.loseWriteConnection()
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
