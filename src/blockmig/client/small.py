"""A client for a few small requests, one after another: the side export's, and a lone disconnect's.

Owns one connection. Nothing of it is fast, and nothing large passes through it; the sender's own
protocol moves the data.

Rules:

* every request is answered in time, or fails: a silent peer is a failed one;
* whatever goes wrong fails what is waited for with L{ClientFailed}, and ends the connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from ..nbd import (
    ClientHandshake,
    ClientTransmission,
    Command,
    HandshakeRefused,
    Negotiated,
    Payload,
    ProtocolError,
    Reply,
    describe_errno,
)
from ..transport import tune

TIMEOUT: Final = 60.0


class ClientFailed(Exception):
    """The peer could not be asked; the message is one line that says why.

    @ivar error: the number of the error that the peer answered with; 0 where it did not answer.
    """

    def __init__(self, why: str, error: int = 0) -> None:
        super().__init__(why)
        self.error = error


class SmallClient(Protocol):
    """One connection to one export.

    @param reactor: tells the time.
    @param export: the export's name.
    @param look_for: the names of others, to see which of them the server lists.
    @param first_cookie: the cookie of the first request.
    @param timeout: seconds within which each request must be answered, if less than C{TIMEOUT}.
    @ivar negotiated: fires once the handshake is over.
    """

    transport: Any

    def __init__(
        self,
        reactor: Any,
        export: str,
        look_for: Iterable[str] = (),
        first_cookie: int = 0,
        timeout: float | None = None,
    ) -> None:
        self.negotiated: Deferred[Negotiated] = Deferred()
        self._reactor = reactor
        self._patience = TIMEOUT if timeout is None else min(timeout, TIMEOUT)
        self._handshake: ClientHandshake | None = ClientHandshake(export, look_for)
        self._wire = ClientTransmission(first_cookie=first_cookie)
        self._waiting: Deferred[Any] | None = self.negotiated
        self._closed: Deferred[None] = Deferred()
        self._payload = b""
        self._timeout: IDelayedCall | None = None
        self._lost = False

    def connectionMade(self) -> None:
        """Connected; the server speaks first."""
        tune(self.transport)
        self._start_timeout()

    def dataReceived(self, data: bytes) -> None:
        """Something from the server."""
        try:
            if self._handshake is not None:
                data = self._shake_hands(self._handshake, data)
            self._wire.receive_data(data)
            while (event := self._wire.next_event()) is not None:
                if isinstance(event, Payload):
                    self._payload += bytes(event.data)
                elif isinstance(event, Reply):
                    self._reply(event)
                else:
                    self._answer(self._payload)
        except (ProtocolError, HandshakeRefused) as error:
            self._fail(ClientFailed(str(error)))

    def _shake_hands(self, handshake: ClientHandshake, data: bytes) -> bytes:
        handshake.receive_data(data)
        self.transport.write(handshake.data_to_send())
        event = handshake.next_event()
        if event is None:
            return b""
        self._handshake = None
        self._answer(event)
        return handshake.trailing_data()

    def _reply(self, reply: Reply) -> None:
        command = Command(reply.request.command)
        if reply.error:
            why = f"the destination answered {command.name} with {describe_errno(reply.error)}"
            self._end_waiting(Failure(ClientFailed(why, reply.error)))
        elif command != Command.READ:
            self._answer(None)

    def _answer(self, result: Any) -> None:
        self._end_waiting(result)

    def _fail(self, error: ClientFailed) -> None:
        self._end_waiting(Failure(error))
        self.abort()

    def _end_waiting(self, result: Any) -> None:
        self._stop_timeout()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(result)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self._lost = True
        self._end_waiting(Failure(ClientFailed("the connection was lost")))
        closed, self._closed = self._closed, Deferred()
        closed.callback(None)

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """Bytes of the export."""
        self._payload = b""
        return self._request(Command.READ, offset, length)

    def write(self, offset: int, data: bytes) -> Deferred[None]:
        """Bytes into the export; a reply with an error fails, and the connection lives."""
        return self._request(Command.WRITE, offset, len(data), data)

    def _request(
        self, command: Command, offset: int, length: int, payload: bytes = b""
    ) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred(self._cancelled)
        self._waiting = waiting
        if self._lost:
            self._end_waiting(Failure(ClientFailed("the connection was lost")))
        else:
            self._start_timeout()
            _, header = self._wire.request(command, offset, length)
            self.transport.write(header + payload)
        return waiting

    def _cancelled(self, _: object) -> None:
        self._waiting = None
        self.abort()

    def disconnect(self) -> Deferred[None]:
        """Send the disconnect.

        @return: fires when the connection is gone, in whichever way.
        """
        closed = self._closed
        if self._lost:
            return self._gone()
        _, header = self._wire.request(Command.DISC)
        self.transport.write(header)
        self._start_timeout()
        return closed

    @staticmethod
    def _gone() -> Deferred[None]:
        gone: Deferred[None] = Deferred()
        gone.callback(None)
        return gone

    def abort(self) -> None:
        """End the connection now."""
        self._stop_timeout()
        if self.transport is not None and not self._lost:
            self.transport.abortConnection()

    def _start_timeout(self) -> None:
        self._stop_timeout()
        self._timeout = self._reactor.callLater(self._patience, self._timed_out)

    def _timed_out(self) -> None:
        self._timeout = None
        self._fail(ClientFailed(f"the destination said nothing for {self._patience:g} s"))

    def _stop_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None


async def connect_client(
    endpoint: IStreamClientEndpoint, client: SmallClient
) -> tuple[SmallClient, Negotiated]:
    """Connect C{client}, and shake hands.

    @raise ClientFailed: that did not come about.
    """
    factory = Factory.forProtocol(lambda: client)
    factory.noisy = False
    try:
        await endpoint.connect(factory)
    except (CancelledError, ConnectingCancelledError):
        raise CancelledError from None
    except Exception as error:  # each endpoint fails in its own ways
        client.negotiated.addErrback(lambda _: None)
        raise ClientFailed(f"cannot connect to the destination: {error}") from None
    try:
        return client, await client.negotiated
    except CancelledError:
        client.abort()
        raise
