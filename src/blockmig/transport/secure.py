"""TLS on a connection that exists: a transport above another one.

Owns the TLS of one connection, from its handshake to its end. What the protocol writes here is
encrypted and goes to the transport beneath; what arrives there is given to L{receive}, and what it
says to the L{SecureUser}. That makes no demands on the transport beneath, which may be a TCP or a
UNIX socket, in memory, or an embedder's own.

Rules:

* a reply leaves at once, not with the next turn of the reactor, where the socket takes it;
* memory does not grow with what the peer does not take: a producer is paused as soon as anything
  waits; where much waits that TLS itself has to say (answers to KeyUpdate, of which a peer can ask
  for any number), nothing more is read;
* nothing is received after the end, nor after an abort, whatever was decrypted by then;
* there is one handshake: renegotiation ends the connection;
* whatever fails is said to the peer, in an alert, as far as it still listens; the user says when
  the connection is closed, and for how long that may take.

Ends. A peer that has said everything says so, with close_notify (L{SecureUser.tls_finished}); the
end of the stream beneath says nothing, since anybody on the way can forge that. Twisted's TLS can
only close both ways at once. Here L{finish} says close_notify in one piece with the last message,
closes the sending side beneath where that is possible, and goes on receiving.

Why not Twisted's C{startTLS}: it gathers small writes until the next turn, without a bound while
the peer takes nothing; it sends 32 KiB of its own at a time and then waits, so that a long chain of
certificates stands still; and it swaps the protocol of the transport, which not all have.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IPushProducer,
    ITransport,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from ..syscalls import SystemCalls
from .outgoing import RegionProducer
from .plain import LayeredTransport, is_plain_socket
from .tls import TLSFailure
from .tls_words import describe_tls_error

_PIECE: Final = 128 << 10
"""Bytes that are encrypted at a time. With more, the C library would give the memory back to the
kernel each time, and have it zeroed anew."""

_RECEIVED: Final = 288 << 10
"""Bytes that are read and decrypted at a time: what our own end sends in one piece, encrypted, and
some more. OpenSSL keeps as much, and a third more, for as long as the connection exists."""

_RECORD: Final = 16 << 10
_SMALL: Final = 4 << 10
_TURN_BUDGET: Final = 1 << 20
"""Bytes that a producer may write before the reactor has its turn."""

_MOST_WAITING: Final = 512 << 10
"""Bytes that may wait for the peer while more is read of it: as much as a producer writes in one
piece, and as much again."""

_buffers: Final[list[memoryview]] = []
"""What is decrypted into, shared by all connections: as many as have delivered at the same time,
one from within another."""


class SecureUser(typing.Protocol):
    """Receives what happens under TLS."""

    def tls_established(self) -> None:
        """The handshake is over, and the other end is verified as the policy says."""

    def tls_received(self, view: memoryview) -> None:
        """The peer sent the bytes of C{view}, which are valid only until this returns."""

    def tls_finished(self) -> None:
        """The peer has said that it sends no more."""

    def tls_failed(self, failure: TLSFailure) -> None:
        """TLS failed, and nothing more is received; close the connection."""


class _State(Enum):
    SHAKING = "the handshake"
    OPEN = "both ends may send"
    FINISHING = "close_notify follows what the producer has, and we still receive"
    FINISHED = "we have said close_notify, and still receive"
    CLOSING = "nothing more is received; what is queued is still sent"
    FAILED = "TLS has failed"
    CLOSED = "nothing more is sent either"


_RECEIVING: Final = (_State.OPEN, _State.FINISHING, _State.FINISHED)
_WRITABLE: Final = (_State.OPEN, _State.FINISHING, _State.CLOSING)


class _NoProtocols:
    """For creators of Twisted's, which ask here which protocols can be negotiated (ALPN)."""

    wrappedFactory = None


@implementer(ITransport, IConsumer, IPushProducer)
class SecureTransport(LayeredTransport):
    """TLS above a transport.

    @param beneath: the transport; nobody else writes to it any more.
    @param user: receives what happens.
    @param creator: an C{IOpenSSLServerConnectionCreator} or C{IOpenSSLClientConnectionCreator}; for
        a server, an object with C{getContext} will do as well.
    @param is_client: this end begins the handshake.
    @param reactor: the clock.
    @param system: the system calls.
    @param seen_empty: nothing that was written to C{beneath} before is still to be sent.
    @ivar beneath: the transport, which is to be looked at only.
    """

    factory = _NoProtocols()

    def __init__(
        self,
        beneath: Any,
        user: SecureUser,
        creator: Any,
        *,
        is_client: bool,
        reactor: Any,
        system: SystemCalls,
        seen_empty: bool = False,
    ) -> None:
        self.beneath = beneath
        if is_plain_socket(beneath):
            beneath.bufferSize = _RECEIVED
        self._user = user
        self._reactor = reactor
        self._state = _State.SHAKING
        self._failure: TLSFailure | None = None
        self._producer: Any = None
        self._producer_paused = False
        self._burst = 0
        self._turn: IDelayedCall | None = None
        self._reading_paused = False
        self._flooded = False
        self._can_receive = True
        self._connection: SSL.Connection = _connection(creator, self, is_client)
        self._below = RegionProducer(
            beneath, lambda error: None, drained=self._drained, system=system, seen_empty=seen_empty
        )

    def start(self) -> None:
        """Begin the handshake."""
        self._shake()

    # From beneath.

    def receive(self, data: bytes) -> None:
        """C{data} arrived beneath."""
        if self._state != _State.SHAKING and not self._receives:
            return  # and is not kept either: there is no end of it
        self._connection.bio_write(data)
        if self._state == _State.SHAKING and not self._shake():
            return
        self._deliver()

    def _shake(self) -> bool:
        """Go on with the handshake; return whether it is over, and well."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return False
        except Exception as error:  # a policy's checks raise what they like, from within
            self._fail(error)
            return False
        if self._failure is not None:
            self._fail(self._failure)
            return False
        self._state = _State.OPEN
        self._flush()
        self._user.tls_established()
        return self._receives

    @property
    def _receives(self) -> bool:
        return self._state in _RECEIVING and self._can_receive

    def _deliver(self) -> None:
        """Decrypt what has arrived, and give it to the user."""
        buffer = _buffers.pop() if _buffers else memoryview(bytearray(_RECEIVED))
        more = True
        ended = False
        failed: Exception | None = None
        decrypt = self._connection.recv_into
        while more and self._receives:
            filled = 0
            try:
                while filled <= _RECEIVED - _RECORD:
                    filled += decrypt(buffer[filled:], _RECORD)
            except SSL.WantReadError:
                more = False
            except SSL.ZeroReturnError:
                more, ended = False, True
            except Exception as error:
                more, failed = False, error
            if self._connection.total_renegotiations():
                more, failed = False, failed or TLSFailure("renegotiation is not allowed")
            if filled:
                self._user.tls_received(buffer[:filled])
        _buffers.append(buffer)
        if not self._receives:
            return
        if failed is not None:
            self._fail(failed)
        elif ended:
            self._can_receive = False
            self._user.tls_finished()
        if self._state != _State.CLOSED:
            self._flush()

    def _fail(self, error: Exception) -> None:
        """TLS is over: say so to the peer, and to the user."""
        failure = self._failure or TLSFailure(describe_tls_error(error))
        self._state = _State.FAILED
        self._flush()
        self._stop_producer()
        self._user.tls_failed(failure)

    def failVerification(self, reason: Failure) -> None:
        """For creators that verify as those of Twisted do, in a callback during the handshake."""
        self._failure = TLSFailure(describe_tls_error(reason.value or TLSFailure(str(reason))))

    def lost(self) -> None:
        """The connection beneath is lost."""
        self._state = _State.CLOSED
        self._stop_producer()
        self._below.stopProducing()
        self._connection.set_app_data(None)  # or its memory waited for the garbage collector

    # To what is beneath.

    def _flush(self, expected: int = _SMALL) -> None:
        """Send what TLS has to send, which is probably less than C{expected} bytes."""
        pieces: list[bytes] = []
        with contextlib.suppress(SSL.WantReadError):
            while True:
                pieces.append(self._connection.bio_read(expected))
                if len(pieces[-1]) < expected:  # or an exception says that there is no more
                    break
        # Behind our close_notify nothing counts; and it could overtake that (see L{finish}).
        if pieces and self._state != _State.FINISHED:
            self._below.send_view(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._below.pending_bytes > _MOST_WAITING and not self._flooded:
            self._flooded = True
            if not self._reading_paused:
                self.beneath.pauseProducing()

    def _drained(self) -> None:
        """The transport beneath has taken everything."""
        if self._flooded:
            self._flooded = False
            if not self._reading_paused and self._state != _State.CLOSED:
                self.beneath.resumeProducing()
        self._go_on()

    def _next_turn(self) -> None:
        self._turn = None
        self._go_on()

    def _go_on(self) -> None:
        """There is room: have the producer write again."""
        self._burst = 0
        if self._producer_paused and not self._below.waiting:
            self._producer_paused = False
            if self._producer is not None:
                self._producer.resumeProducing()

    # ITransport.

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt C{data}, and send it; nothing after the end."""
        if self._state == _State.SHAKING:
            raise RuntimeError("nothing can be sent before the TLS handshake is over")
        if self._state not in _WRITABLE:
            return
        if not self._encrypt(data):
            return
        self._burst += len(data)
        if self._producer is None or self._producer_paused:
            return
        if self._below.waiting:
            self._pause_producer()
        elif self._burst >= _TURN_BUDGET:
            self._pause_producer()
            if self._turn is None:
                self._turn = self._reactor.callLater(0, self._next_turn)

    def _encrypt(self, data: bytes | memoryview) -> bool:
        """Return whether that was possible."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), _PIECE):
                piece = view[start : start + _PIECE]
                length = len(piece)
                while piece:  # in one step, or by 16 KiB: as the context says
                    piece = piece[self._connection.send(piece) :]
                self._flush(length + length // 256 + 64)
        except Exception as error:
            # It wants to read first only in a renegotiation, which is not allowed.
            self._fail(
                TLSFailure("renegotiation is not allowed")
                if isinstance(error, SSL.WantReadError)
                else error
            )
            return False
        return True

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def finish(self, message: bytes, half_close: bool) -> None:
        """Send the last message and close_notify in one piece, and go on receiving.

        @param half_close: close the sending side beneath as well.
        """
        if self._state not in (_State.OPEN, _State.FINISHING):
            return
        pieces: list[bytes] = []
        try:
            if message:
                self._connection.send(message)
            self._connection.shutdown()
            while True:
                pieces.append(self._connection.bio_read(_PIECE))
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            self._fail(error)
            return
        self._state = _State.FINISHED
        if self._below.waiting:
            self._below.send_view(b"".join(pieces))
        else:
            # Through the transport, which sends it and closes its side in one step.
            self.beneath.write(b"".join(pieces))
        if half_close:
            self.beneath.loseWriteConnection()

    def loseWriteConnection(self) -> None:
        """Once the producer is done, say close_notify, and close the sending side beneath where
        that is possible; go on receiving."""
        if self._state == _State.OPEN:
            self._state = _State.FINISHING
            if self._producer is None:
                self._finish_sending()

    def _finish_sending(self) -> None:
        self.finish(b"", is_plain_socket(self.beneath))

    def loseConnection(self) -> None:
        """Close once the producer is done: with close_notify, unless TLS does not stand."""
        if self._state == _State.SHAKING:
            self.abortConnection()
        elif self._state in _RECEIVING:
            notify = self._state != _State.FINISHED
            self._state = _State.CLOSING
            if self._producer is None or not notify:
                self._close(notify)
        elif self._state == _State.FAILED:
            self._close(False)

    def _close(self, notify: bool) -> None:
        if notify:
            with contextlib.suppress(SSL.Error):  # it is closed without
                self._connection.shutdown()
            self._flush()
        self._state = _State.CLOSED
        self.beneath.loseConnection()

    def abortConnection(self) -> None:
        """Close at once; nothing more is received."""
        self._state = _State.CLOSED
        self._stop_producer()  # or it would write all that it has, to nobody
        self.beneath.abortConnection()

    def getPeer(self) -> Any:
        return self.beneath.getPeer()

    def getHost(self) -> Any:
        return self.beneath.getHost()

    @property
    def waiting(self) -> bool:
        """Whether the peer has not taken everything that was encrypted."""
        return self._below.waiting

    @property
    def connected(self) -> bool:
        """Whether the connection is there still, as far as that is known beneath."""
        return bool(getattr(self.beneath, "connected", True))

    @property
    def disconnecting(self) -> bool:
        """Whether the connection is being closed by us."""
        return self._state in (_State.CLOSING, _State.CLOSED)

    # What is known of the peer.

    def getPeerCertificate(self) -> Any:
        """The certificate that the peer has shown, an C{OpenSSL.crypto.X509}; None without one."""
        return self._connection.get_peer_certificate()

    @property
    def verified_certificate(self) -> Any:
        """The same, if it was verified."""
        if self._connection.get_verify_mode() == SSL.VERIFY_NONE:
            return None
        return self.getPeerCertificate()

    @property
    def version(self) -> str:
        """The version of TLS, as C{TLSv1.3}."""
        return self._connection.get_protocol_version_name()

    # IConsumer.

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Have C{producer} write while there is room.

        @param streaming: True; others are not needed here.
        """
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        if not streaming:
            raise RuntimeError("only push producers can be registered")
        if self._state not in (_State.SHAKING, _State.OPEN):
            producer.stopProducing()
            return
        self._producer = producer
        self._producer_paused = False
        if self._below.waiting:
            self._pause_producer()

    def unregisterProducer(self) -> None:
        """The producer is done; so is the connection, if it is to be closed."""
        if self._producer is None:
            return
        self._producer = None
        self._producer_paused = False
        if self._state == _State.CLOSING:
            self._close(True)
        elif self._state == _State.FINISHING:
            self._finish_sending()

    def _pause_producer(self) -> None:
        self._producer_paused = True
        self._producer.pauseProducing()

    def _stop_producer(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()

    # IPushProducer: of what arrives.

    def pauseProducing(self) -> None:
        """Receive nothing until L{resumeProducing}, but what has arrived already."""
        self._reading_paused = True
        self.beneath.pauseProducing()

    def resumeProducing(self) -> None:
        self._reading_paused = False
        if not self._flooded:
            self.beneath.resumeProducing()

    def stopProducing(self) -> None:
        self.loseConnection()


def _connection(creator: Any, transport: Any, is_client: bool) -> SSL.Connection:
    """The TLS connection, in memory, that C{creator} makes for C{transport}."""
    make: Callable[[Any], SSL.Connection]
    if is_client and IOpenSSLClientConnectionCreator.providedBy(creator):
        make = creator.clientConnectionForTLS
    elif not is_client and IOpenSSLServerConnectionCreator.providedBy(creator):
        make = creator.serverConnectionForTLS
    else:

        def make(_: Any) -> SSL.Connection:
            return SSL.Connection(creator.getContext(), None)

    connection = make(transport)
    connection.set_app_data(transport)
    if is_client:
        connection.set_connect_state()
    else:
        connection.set_accept_state()
    return connection
