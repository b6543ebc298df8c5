"""One connection to an NBD server, from its greeting to its end.

Owns the transport, what is sent on it, the handshake, and the timeout. What is said after the
handshake, and what the connection's end means, is up to its handler (`ClientHandler`).

Rules:

* the handler is notified once that the connection can no longer be used, in one of three ways: it
  failed (we gave it up), it was lost (the server or the network ended it), or, only after our DISC,
  it was closed in good order. After that it is notified, once, that the connection is gone;
* nothing that a server sends raises an exception out of here: a violation of the protocol ends the
  connection;
* nothing waits for ever: a connection whose server does not answer in time is given up;
* a connection that is to use TLS says nothing but STARTTLS before that stands, and nothing at all
  where the server answers it with anything but ACK, or is not who it should be.

The end, under TLS. A connection that half-closes sends its DISC and close_notify in one piece, and
the end of the stream after them. The server's close_notify, or the end of its stream, is then what
its end-of-stream is without TLS: a server that closes after all of that was acknowledged has
received the DISC. The end of a stream can be forged, and so can an acknowledgement; but nobody's
data depends on it: every byte was flushed, and that was answered inside TLS, before. Where the
destination is a receiver of ours it is asked in any case, inside TLS. Not to take the end of the
stream would be to call every migration to QEMU unconfirmed, which never says close_notify.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..nbd import (
    ClientHandshake,
    HandshakeRefused,
    Negotiated,
    OptionReply,
    ProtocolError,
    StartTLS,
    TLSRefused,
)
from ..runtime import Runtime
from ..syscalls import describe_error
from ..transport import (
    Pacer,
    RegionProducer,
    has_hung_up,
    is_plain_socket,
    tune,
    unacknowledged,
)

if TYPE_CHECKING:
    from ..transport import ClientTLS, TLSFailure
    from ..transport.secure import SecureTransport

_ALERT_TIMEOUT: Final = 2.0
"""Seconds for the server to take what we say of a TLS that failed."""


class ClientHandler:
    """Receives the events of a connection; override those of interest."""

    def connection_made(self) -> None:
        """Connected; the server speaks first."""

    def negotiated(self, negotiated: Negotiated) -> None:
        """The handshake is over."""

    def received(self, data: bytes) -> None:
        """The server sent C{data} after the handshake.

        @raise ProtocolError: it breaks the protocol; that fails the connection.
        """

    def moved(self, count: int) -> None:
        """C{count} bytes of file regions were given to the kernel."""

    def drained(self) -> None:
        """Everything that was queued was given to the transport."""

    def sending_failed(self, error: OSError) -> None:
        """A file region could not be read, so the connection cannot be used any more."""

    def connection_failed(self, why: str) -> None:
        """We gave the connection up.

        @param why: in words.
        """

    def connection_lost(self, why: str, reason: Failure) -> None:
        """The server or the network ended the connection, and not in good order.

        @param why: in words.
        @param reason: Twisted's reason.
        """

    def connection_closed(self) -> None:
        """The server closed the connection in good order after our DISC."""

    def connection_gone(self, reason: Failure) -> None:
        """The connection is gone; always the last event."""

    def explain(self, error: Exception) -> str:
        """Why the connection fails, in words.

        @param error: a L{ProtocolError} or L{HandshakeRefused}.
        """
        return str(error)


class ClientConnection(Protocol):
    """The protocol of one connection.

    @param handler: receives the events; may be replaced at any time.
    @param handshake: our handshake; None where somebody else shakes hands.
    @param runtime: reactor, threads and system calls.
    @param pacer: limits the rate of file regions; None for no limit.
    @param tls: how it speaks TLS; None for not at all. It needs a handshake of ours.
    @ivar outgoing: sends on the connection, once that is made; another one from when TLS begins.
    @ivar is_gone: the connection was made, and is gone.
    @ivar why: why we gave it up; "" if we did not.
    @ivar is_unwelcome: what has ended it does not pass by itself: the server does not start TLS, or
        demands it, or one end does not accept the other's certificate.
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
        tls: ClientTLS | None = None,
    ) -> None:
        if tls is not None:
            assert handshake is not None
            handshake.start_tls()
        self.handler = handler
        self.is_gone = False
        self.is_unwelcome = False
        self.why = ""
        self._tls = tls
        self._secure: SecureTransport | None = None
        self._tls_stands = False
        self._handshake = handshake
        self._runtime = runtime
        self._pacer = pacer
        self._timeout: IDelayedCall | None = None
        self._is_usable = True
        self._has_heard = False

    # IProtocol.

    def connectionMade(self) -> None:
        tune(self.transport)
        self._make_outgoing()
        if self._is_usable:
            self.handler.connection_made()
        else:
            self.transport.abortConnection()  # it was given up before that

    def _make_outgoing(self) -> None:
        self.outgoing = RegionProducer(
            self.transport,
            self._sending_failed,
            sent=self._moved,
            drained=self._drained,
            pacer=self._pacer,
            in_thread=self._runtime.threads,
            system=self._runtime.system,
        )

    # Not bound methods of the handler: that may be replaced.

    def _sending_failed(self, error: OSError) -> None:
        self.handler.sending_failed(error)

    def _moved(self, count: int) -> None:
        self.handler.moved(count)

    def _drained(self) -> None:
        self.handler.drained()

    def dataReceived(self, data: bytes) -> None:
        if self._secure is not None:
            self._secure.receive(data)
        else:
            self._heard(data)

    def tls_received(self, view: memoryview) -> None:
        self._heard(bytes(view))

    def _heard(self, data: bytes) -> None:
        """The server has said that, inside TLS or without it."""
        if not self._is_usable:
            return
        self._has_heard = True
        try:
            if self._handshake is not None:
                data = self._continue_handshake(self._handshake, data)
            if data:
                self.handler.received(data)
        except (ProtocolError, HandshakeRefused) as error:
            demands = (
                isinstance(error, HandshakeRefused) and error.reply == OptionReply.ERR_TLS_REQD
            )
            self.is_unwelcome = demands or isinstance(error, TLSRefused)
            self.fail(self.handler.explain(error))

    def _continue_handshake(self, handshake: ClientHandshake, data: bytes) -> bytes:
        handshake.receive_data(data)
        if answer := handshake.data_to_send():
            self.outgoing.send([answer])
        event = handshake.next_event()
        if event is None:
            return b""
        if isinstance(event, StartTLS):
            self._begin_tls(handshake.over_tls(event))
            return b""
        self._handshake = None
        self.cancel_timeout()
        self.handler.negotiated(event)
        return handshake.trailing_data() if self._is_usable else b""

    # TLS; the rest is a C{SecureUser}.

    def _begin_tls(self, handshake: ClientHandshake) -> None:
        """The server has acknowledged STARTTLS.

        @param handshake: what follows inside TLS.
        """
        from ..transport.secure import SecureTransport  # noqa: PLC0415

        assert self._tls is not None
        self._handshake = handshake
        try:
            secure = SecureTransport(
                self.transport,
                self,
                self._tls.creator(),
                is_client=True,
                reactor=self._runtime.reactor,
                system=self._runtime.system,
                seen_empty=self.outgoing.seen_empty,
            )
        except Exception as error:  # a policy's creator raises what it likes
            self.is_unwelcome = True
            self.fail(f"TLS with the destination is not possible: {error}")
            return
        self.outgoing.stopProducing()
        self._secure = self.transport = secure
        self._make_outgoing()
        secure.start()

    def tls_established(self) -> None:
        """The server is who it should be: begin with the options."""
        self._tls_stands = True
        if self._is_usable:
            assert self._handshake is not None
            self.outgoing.send([self._handshake.data_to_send()])

    def tls_finished(self) -> None:
        """The server has said that it sends no more: it is gone, as one that closes its side is
        without TLS, whether or not it takes what is still queued for it."""
        assert self._secure is not None
        if self._secure.waiting:
            self.abort()
        else:
            self._secure.loseConnection()

    def tls_failed(self, failure: TLSFailure) -> None:
        """The server is told why, as far as it listens."""
        self.outgoing.stopProducing()
        self.transport.loseConnection()
        if self._is_usable:
            # With TLS 1.3 the server looks at our certificate when TLS stands here already.
            self.is_unwelcome = self._handshake is not None
            self._give_up(f"TLS with the destination failed: {failure}")
        self.set_timeout(_ALERT_TIMEOUT, "")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.is_gone = True
        if self._secure is not None:
            self._secure.lost()
        self.outgoing.stopProducing()
        self.cancel_timeout()
        if self._is_usable:
            self._ended(reason)
        self.handler.connection_gone(reason)

    def _ended(self, reason: Failure) -> None:
        # Twisted also reports ConnectionAborted where the peer closed while we were sending.
        closed = reason.check(ConnectionAborted, ConnectionDone)
        why = "closed by the destination" if closed else f"lost: {describe_error(reason.value)}"
        self._lose(f"the connection was {why}", reason)

    def _lose(self, why: str, reason: Failure) -> None:
        self._is_usable = False
        if self._handshake is not None:
            why = "the connection was closed during the handshake"
            if self._secure is not None:
                why = "the destination closed the connection during the TLS handshake"
                if self._tls_stands:
                    why = (
                        "the destination closed the connection when TLS stood: if it lets in only "
                        "some names, is that of our certificate one of them?"
                    )
            elif not self._has_heard:
                why += (
                    ", before a greeting: perhaps this host is not on an allow-list there, or "
                    "there are as many clients as there may be"
                )
        self.handler.connection_lost(why, reason)

    # For its user.

    @property
    def is_hung_up(self) -> bool:
        """Whether the server has closed the connection, even if that was not reported yet."""
        return not self.is_gone and has_hung_up(self.transport)

    def set_timeout(self, seconds: float, why: str) -> None:
        """Give the connection up after C{seconds}; replaces the timeout that was set before."""
        self.cancel_timeout()
        self._timeout = self._runtime.reactor.callLater(seconds, self._timed_out, why)

    def cancel_timeout(self) -> None:
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
        self._timeout = None

    def _timed_out(self, why: str) -> None:
        self._timeout = None
        self.fail(why)

    def fail(self, why: str) -> None:
        """Give the connection up.

        @param why: in words.
        """
        if self._is_usable:
            self._give_up(why)
        self.abort()

    def _give_up(self, why: str) -> None:
        self._is_usable = False
        self.why = why
        self.handler.connection_failed(why)

    def abort(self) -> None:
        """Close the connection at once, if there is one; one that is made later as well."""
        self.cancel_timeout()
        if self.transport is None:
            self._is_usable = False
        if self.transport is not None and not self.is_gone:
            self.outgoing.stopProducing()
            self.transport.abortConnection()


@implementer(IHalfCloseableProtocol)
class HalfClosingConnection(ClientConnection):
    """A connection that half-closes after its DISC, and checks that the server received it.

    Under TLS its last words are close_notify as well, and the server's are taken as the end of its
    stream (see above).

    When the server closes its side, everything but our end-of-stream must be acknowledged: if more
    is still unacknowledged by then, the server has closed without having received the DISC.
    """

    _disconnecting = False
    _half_closes = False

    def disconnect(self, message: bytes) -> None:
        """Send the last message, with nothing else queued; then close our side if that is possible.

        @param message: the DISC request.
        """
        # Through the transport, which sends it and closes its side in one step: a quick server
        # could otherwise close before we know that the DISC was sent.
        if self._secure is not None:
            self._half_closes = _can_half_close(self._secure.beneath)
            self._secure.finish(message, self._half_closes)
        else:
            self.transport.write(message)
            self._half_closes = _can_half_close(self.transport)
            if self._half_closes:
                self.transport.loseWriteConnection()
        if not self._half_closes:
            self._disconnecting = True

    def writeConnectionLost(self) -> None:
        """The DISC and the end-of-stream were given to the kernel."""
        self._disconnecting = True

    def readConnectionLost(self) -> None:
        """The server closed its side: in good order, if it had received the DISC by then."""
        if not self._is_usable:
            self.abort()
        elif self._disconnecting and unacknowledged(self.transport) <= 1:
            self._close()
            self.transport.loseConnection()
        else:
            self._lose("the destination closed the connection", connectionDone)
            self.abort()

    def tls_finished(self) -> None:
        self.readConnectionLost()

    def _ended(self, reason: Failure) -> None:
        if self._disconnecting and not self._half_closes and reason.check(ConnectionDone):
            self._close()
        else:
            super()._ended(reason)

    def _close(self) -> None:
        self._is_usable = False
        self.handler.connection_closed()


def _can_half_close(transport: Any) -> bool:
    """Whether C{transport} can half-close, and report both half-closes to us.

    It reports to the protocol that it knows, which may be an endpoint's wrapper around ours.
    """
    return (
        is_plain_socket(transport)
        and IHalfCloseableDescriptor.providedBy(transport)
        and IHalfCloseableProtocol.providedBy(transport.protocol)
    )


class ClientFactory(Factory):
    """A factory for the one connection that it is given."""

    noisy = False

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: object) -> ClientConnection:
        self._connection.factory = self
        return self._connection
