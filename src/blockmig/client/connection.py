"""One connection to somebody's NBD server, from its greeting to its end.

Owns the transport, what goes out on it, the handshake, and the time that the server may take. What
is said after the handshake, and what its end means, is the affair of whoever uses it.

Rules:

* the user is told once that the connection is of no more use, in one of three ways: it failed (we
  gave it up), it was lost (the server, or the network, ended it), or, after our disconnect only, it
  was closed in good order. That it is gone is told in any case, once, after that;
* what a server says never raises out of here: what breaks the protocol ends the connection;
* nobody waits for ever: what a server owes us is given up in time.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..nbd import ClientHandshake, HandshakeRefused, Negotiated, ProtocolError
from ..runtime import Runtime
from ..transport import (
    Pacer,
    RegionProducer,
    has_hung_up,
    is_plain_socket,
    tune,
    unacknowledged,
)


class ClientHandler:
    """What a connection tells whoever uses it; what is of no interest need not be overridden."""

    def connection_made(self) -> None:
        """There is a connection; the server speaks first."""

    def negotiated(self, negotiated: Negotiated) -> None:
        """The handshake is over."""

    def received(self, data: bytes) -> None:
        """The server said this after the handshake.

        @raise ProtocolError: it breaks the protocol; that fails the connection.
        """

    def moved(self, count: int) -> None:
        """So many bytes of file regions were given to the kernel."""

    def drained(self) -> None:
        """Everything that was to be sent was given to the transport."""

    def sending_failed(self, error: OSError) -> None:
        """A file region could not be read, so that the connection is out of step."""

    def connection_failed(self, why: str) -> None:
        """We give the connection up."""

    def connection_lost(self, why: str, reason: Failure) -> None:
        """The server or the network has ended it, and not in good order.

        @param why: in words.
        @param reason: as it came.
        """

    def connection_closed(self) -> None:
        """The server has closed it in good order, after our disconnect."""

    def connection_gone(self, reason: Failure) -> None:
        """There is no connection any more."""

    def explain(self, error: Exception) -> str:
        """In words, why the server cannot be talked to.

        @param error: a L{ProtocolError} or L{HandshakeRefused}.
        """
        return str(error)


class ClientConnection(Protocol):
    """The connection.

    @param handler: hears of it; may be exchanged by another.
    @param handshake: to begin with; None for a connection whose handshake is somebody else's.
    @param runtime: what the outside world is.
    @param pacer: holds file regions back; None for no limit.
    @ivar outgoing: sends on it, once there is one.
    @ivar is_gone: there is none any more.
    @ivar why: why we have given it up; "" if we have not.
    """

    transport: Any
    factory: Any
    outgoing: RegionProducer

    def __init__(
        self,
        handler: ClientHandler,
        handshake: ClientHandshake | None,
        runtime: Runtime,
        pacer: Pacer | None = None,
    ) -> None:
        self.handler = handler
        self.is_gone = False
        self.why = ""
        self._handshake = handshake
        self._runtime = runtime
        self._pacer = pacer
        self._timeout: IDelayedCall | None = None
        self._is_usable = True

    # IProtocol.

    def connectionMade(self) -> None:
        """Connected."""
        tune(self.transport)
        self.outgoing = RegionProducer(
            self.transport,
            self._sending_failed,
            sent=self._moved,
            drained=self._drained,
            pacer=self._pacer,
            system=self._runtime.system,
        )
        if self._is_usable:
            self.handler.connection_made()
        else:
            self.transport.abortConnection()  # it was given up before

    # The user may be another by then.

    def _sending_failed(self, error: OSError) -> None:
        self.handler.sending_failed(error)

    def _moved(self, count: int) -> None:
        self.handler.moved(count)

    def _drained(self) -> None:
        self.handler.drained()

    def dataReceived(self, data: bytes) -> None:
        """Something from the server."""
        if not self._is_usable:
            return
        try:
            if self._handshake is not None:
                data = self._continue_handshake(self._handshake, data)
            if data:
                self.handler.received(data)
        except (ProtocolError, HandshakeRefused) as error:
            self.fail(self.handler.explain(error))

    def _continue_handshake(self, handshake: ClientHandshake, data: bytes) -> bytes:
        handshake.receive_data(data)
        if answer := handshake.data_to_send():
            self.outgoing.send([answer])
        event = handshake.next_event()
        if event is None:
            return b""
        self._handshake = None
        self.cancel_timeout()
        self.handler.negotiated(event)
        return handshake.trailing_data() if self._is_usable else b""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self.is_gone = True
        self.outgoing.stopProducing()
        self.cancel_timeout()
        if self._is_usable:
            self._ended(reason)
        self.handler.connection_gone(reason)

    def _ended(self, reason: Failure) -> None:
        # Aborted by us is what the other side has closed while we were sending.
        closed = reason.check(ConnectionAborted, ConnectionDone)
        why = "closed by the destination" if closed else f"lost: {reason.getErrorMessage()}"
        self._lose(f"the connection was {why}", reason)

    def _lose(self, why: str, reason: Failure) -> None:
        self._is_usable = False
        if self._handshake is not None:
            why = "the connection was closed during the handshake"
        self.handler.connection_lost(why, reason)

    # What is done with it.

    @property
    def is_hung_up(self) -> bool:
        """Whether the server has closed it, though we were not told yet."""
        return not self.is_gone and has_hung_up(self.transport)

    def set_timeout(self, seconds: float, why: str) -> None:
        """Give the connection up in a while, unless something else is waited for before that."""
        self.cancel_timeout()
        self._timeout = self._runtime.reactor.callLater(seconds, self._timed_out, why)

    def cancel_timeout(self) -> None:
        """What was waited for is there."""
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
        self._timeout = None

    def _timed_out(self, why: str) -> None:
        self._timeout = None
        self.fail(why)

    def fail(self, why: str) -> None:
        """Give the connection up."""
        if self._is_usable:
            self._is_usable = False
            self.why = why
            self.handler.connection_failed(why)
        self.abort()

    def abort(self) -> None:
        """End the connection at once, if there is one."""
        self.cancel_timeout()
        if self.transport is not None and not self.is_gone:
            self.outgoing.stopProducing()
            self.transport.abortConnection()


@implementer(IHalfCloseableProtocol)
class HalfClosingConnection(ClientConnection):
    """A connection that says in good order that nothing follows, and sees whether that was heard.

    The server's end of the stream confirms what came to it before: were more than our own end still
    unconfirmed by then, it would have closed without the disconnect.
    """

    _disconnecting = False
    _half_closes = False

    def disconnect(self, message: bytes) -> None:
        """Send the last message, with nothing else queued; then close our side, if that goes.

        @param message: the disconnect.
        """
        # By the transport, which sends it and closes its side in one go: a server that is quicker
        # could otherwise close before we know that the disconnect has left.
        self.transport.write(message)
        self._half_closes = self._can_half_close()
        if self._half_closes:
            self.transport.loseWriteConnection()
        else:
            self._disconnecting = True

    def _can_half_close(self) -> bool:
        """Whether the transport can say that nothing follows, hear on, and tell us of both.

        It tells the protocol that it knows of, which may be an endpoint's own, around ours.
        """
        transport = self.transport
        return (
            is_plain_socket(transport)
            and IHalfCloseableDescriptor.providedBy(transport)
            and IHalfCloseableProtocol.providedBy(transport.protocol)
        )

    def writeConnectionLost(self) -> None:
        """The disconnect, and that nothing follows it, was given to the kernel."""
        self._disconnecting = True

    def readConnectionLost(self) -> None:
        """The server closed its side: in good order, if it had the disconnect by then."""
        if not self._is_usable:
            self.abort()
        elif self._disconnecting and unacknowledged(self.transport) <= 1:
            self._close()
            self.transport.loseConnection()
        else:
            self._lose("the destination closed the connection", connectionDone)
            self.abort()

    def _ended(self, reason: Failure) -> None:
        if self._disconnecting and not self._half_closes and reason.check(ConnectionDone):
            self._close()
        else:
            super()._ended(reason)

    def _close(self) -> None:
        self._is_usable = False
        self.handler.connection_closed()


class ClientFactory(Factory):
    """Makes one connection.

    @param connection: that one.
    """

    noisy = False

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: object) -> ClientConnection:
        """The connection."""
        self._connection.factory = self
        return self._connection
