"""One NBD connection on the server's side, from when it is made to its end.

Owns the transport, the timeouts, the connection's end, and the phase that it is in (`phase`):
handshake, session or forwarding. Everything else is delegated to that phase. What an export is,
which requests are admitted, and what their outcome means is decided by an `IExportHandler`; the
order in which a connection ends is declared in `lifetime`.

Rules:

* until the client has said something, there is little more of its connection than the greeting and
  a timer: most strangers never do, and they may be thousands a second;
* a connection is aborted if it has not negotiated within the handshake timeout, if it has been
  silent, or has made no progress where that is expected, for the idle timeout while it was not
  waiting for us, or if it does not take what is still due to it when we close;
* while the handler holds the clients, nothing more is read from one that has negotiated; a
  handshake may continue;
* where TLS is started (`secured`), everything above the transport is made anew, so that nothing of
  what was said, queued or held before is left; the time that a handshake may take goes on;
* a connection may be forwarded to another server: what was not answered is handed over unchanged,
  and from then on only bytes are moved here;
* nothing that a peer does raises an exception out of here.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..nbd import GREETING, REQUEST_SIZE, Negotiated, Request, StartTLS
from ..transport import (
    PayloadReader,
    RegionProducer,
    TLSFailure,
    accept_few,
    describe_address,
    is_plain_socket,
    tune,
)
from .forwarding import Forwarder, Forwarding
from .handler import IExportHandler
from .handshake import ConnectionSettings, HandshakePhase
from .holds import HELD, Hold, Holds
from .lifetime import LifetimeInputs, make_lifetime
from .origin import origin_of
from .phase import Phase, PhaseContext
from .secured import Secured
from .session import Session
from .timeout import ConnectionTimeout
from .traffic import TrafficCounters

_log = Logger()

_CLOSE_TIMEOUT: Final = 10.0

_MOST_STEPS: Final = 8
"""Of a handshake; ours takes three."""


@implementer(IHalfCloseableProtocol)
class ServerConnection(Protocol):
    """The protocol of one connection.

    @ivar settings: what it has in common with others.
    @ivar origin: where it comes from (L{origin}).
    @ivar handler: the export's handler, once negotiated.
    @ivar negotiated: what the peer was told.
    @ivar traffic: counts its requests.
    @ivar connected_at: when the connection was made, by the reactor's clock.
    @ivar advanced_at: when it last got further: was made, took one of the first steps of its
        handshake, or ended that. Nothing that can be repeated for ever counts.
    @ivar said_nothing: the client has not said anything yet; asked of every connection whenever
        another one comes, so it is an attribute.
    @ivar gave_way: it was closed for another one.
    """

    transport: Any
    factory: Any
    greets = True
    """Whether the client is greeted by us; it may be forwarded from its first byte."""

    def __init__(self, settings: ConnectionSettings, address: IAddress) -> None:
        self._address = address
        self.origin = origin_of(address)
        self.handler: IExportHandler | None = None
        self.negotiated: Negotiated | None = None
        self.traffic = TrafficCounters()
        self.connected_at: float = settings.runtime.reactor.seconds()
        self.advanced_at: float = self.connected_at
        self.settings = settings
        self.gave_way = False
        self.said_nothing = True
        self._steps = 0
        self._secured: Secured | None = None
        self._timeout: ConnectionTimeout | None = None
        self._made: PhaseContext | None = None
        self._is_greeted = False
        self._ended_early = False

    @property
    def peer(self) -> str:
        """The client's address, for messages."""
        return describe_address(self._address)

    # IProtocol, and IHalfCloseableProtocol.

    def connectionMade(self) -> None:
        """The server speaks first."""
        settings = self.settings
        self._timeout = ConnectionTimeout(
            settings.runtime.reactor, self.transport, self._is_waiting, self._silent
        )
        self._is_greeted = self._greet()
        if self._is_greeted:
            self._limit_handshake()
        else:
            self._make()

    def _greet(self) -> bool:
        """Send the greeting at once, past everything that is yet to be made, if that is possible.

        Without a limit of time only the kernel's keepalive finds out that a client is gone, and
        that is set later.
        """
        settings = self.settings
        if not (self.greets and settings.oldstyle is None and settings.handshake_timeout):
            return False
        if not is_plain_socket(self.transport):
            return False
        accept_few(getattr(self.transport, "server", None))
        try:
            sent: int = settings.runtime.system.send(self.transport.getHandle(), GREETING, 0)
        except OSError:  # it is gone already, which the transport finds out
            return False
        if sent < len(GREETING):
            self.transport.write(GREETING[sent:])
        return True

    def _is_waiting(self) -> bool:
        return self._made is not None and self._made.outgoing.waiting

    @property
    def _context(self) -> PhaseContext:
        """What the phases use, made when it is first needed."""
        return self._made or self._make()

    @property
    def _phase(self) -> Phase:
        if self._made is None:
            self._make()
        return self._present_phase

    @property
    def _lifetime(self) -> LifetimeInputs:
        return self._context.lifetime

    def _make(self, inside_tls: StartTLS | None = None) -> PhaseContext:
        """Make everything that a client needs who does something, and begin the handshake.

        @param inside_tls: what was agreed on, where it is begun anew inside TLS.
        """
        transport, runtime, timeout = self.transport, self.settings.runtime, self._timeout
        assert timeout is not None
        self.said_nothing = False
        if not self._ended_early:
            tune(transport)
        lifetime = make_lifetime(self) if self._made is None else self._made.lifetime
        outgoing = RegionProducer(
            transport,
            self._sending_failed,
            drained=self._drained,
            progressed=timeout.reset,
            system=runtime.system,
        )
        incoming = PayloadReader(runtime.reactor, transport, None, REQUEST_SIZE, runtime.system)
        self._made = context = PhaseContext(
            self.peer,
            outgoing,
            incoming,
            Holds(incoming, self._released),
            timeout,
            lifetime,
            self.traffic,
            self.settings.refused,
        )
        handshake = HandshakePhase(
            context,
            self.settings,
            self.begin_session,
            self._advanced,
            begin_tls=self._begin_tls,
            inside_tls=inside_tls,
        )
        self._enter(handshake)
        if self._ended_early:
            context.lifetime.abort()
        elif inside_tls is not None:
            pass  # it has no greeting
        elif self._is_greeted:
            handshake.go_on()
        else:
            self.begin(handshake)
        return context

    def begin(self, handshake: HandshakePhase) -> None:
        """Greet the client; an oldstyle handshake consists of nothing else."""
        if self.settings.oldstyle is None:
            self._limit_handshake()
        handshake.begin()

    def _limit_handshake(self) -> None:
        assert self._timeout is not None
        self._timeout.limit(self.settings.handshake_timeout, self._handshake_took_too_long)

    def _handshake_took_too_long(self, seconds: float) -> None:
        _log.info(
            "{peer}: no handshake within {timeout} s; connection closed",
            peer=self.peer,
            timeout=seconds,
        )
        self.abort()

    def _enter(self, phase: Phase) -> None:
        self._present_phase = self._context.incoming.protocol = phase

    def dataReceived(self, data: bytes) -> None:
        if self._secured is None:
            self._phase.dataReceived(data)
        else:
            self._secured.transport.receive(data)

    def readConnectionLost(self) -> None:
        """The peer has closed its sending side."""
        if self._secured is not None:
            self._secured.finished()
        elif self._made is not None:
            self._phase.finished()
        else:
            self._ended_early = True
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Never: we close both ways at once."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection was lost, for whatever reason."""
        context = self._made
        if context is None:
            self._ended_early = True
            assert self._timeout is not None
            self._timeout.stop()
            return
        context.lifetime.lose()
        if self._secured is not None:
            self._secured.transport.lost()
        context.incoming.stop()
        context.outgoing.stopProducing()
        context.timeout.stop()
        self._phase.lost(reason)
        self._phase.check_idle()

    # Events for the phase.

    def _drained(self) -> None:
        self._phase.drained()

    def _released(self) -> None:
        self._phase.released()

    def _sending_failed(self, error: OSError) -> None:
        """A READ failed after its header was sent: only a lost connection can report that."""
        _log.warn("{peer}: reading the disk failed: {error}", peer=self.peer, error=str(error))
        if self.handler is not None and self.handler.access is not None:
            self.handler.access.read_failed(error)
        self.abort()

    def _advanced(self) -> None:
        """A step of the handshake was taken; there is no end of them for who does not want one."""
        self._steps += 1
        if self._steps <= _MOST_STEPS:
            self.advanced_at = self.settings.runtime.reactor.seconds()

    def _silent(self, seconds: float) -> None:
        _log.info(
            "{peer}: silent for {timeout} s; connection closed", peer=self.peer, timeout=seconds
        )
        self.abort()

    def _stalled(self, seconds: float) -> None:
        _log.warn(
            "{peer}: no progress for {timeout} s; connection closed",
            event="stalled",
            peer=self.peer,
            timeout=seconds,
        )
        self.abort()

    # TLS, and what is said inside it.

    def _begin_tls(self, creator: Any, start: StartTLS) -> None:
        """Our ACK has left: speak TLS from now on."""
        from ..transport.secure import SecureTransport  # noqa: PLC0415

        settings, old = self.settings, self._context
        assert settings.tls is not None
        secured = Secured(self, settings.tls, settings.tls_log)
        try:
            secured.transport = SecureTransport(
                self.transport,
                secured,
                creator,
                is_client=False,
                reactor=settings.runtime.reactor,
                system=settings.runtime.system,
                seen_empty=old.outgoing.seen_empty,
            )
        except Exception as error:  # a policy's creator raises what it likes
            secured.tls_failed(TLSFailure(str(error)))
            return
        old.outgoing.stopProducing()
        old.incoming.stop()
        self._secured, self.transport = secured, secured.transport
        self._make(start)
        secured.transport.start()

    def tls_stands(self) -> None:
        """TLS stands, and the client is let in: that is a step of the handshake."""
        log = self.settings.names_log
        if (name := self.tls_name) and log.has_room():
            _log.info(
                "{peer}: is {name} by its certificate{others}",
                event="tls-client",
                peer=self.peer,
                name=name,
                others=log.others(),
            )
        self._advanced()

    def plaintext_received(self, view: memoryview) -> None:
        self._phase.bufferReceived(view)

    def plaintext_finished(self) -> None:
        """The peer sends no more, as it has said, or as the end of its stream says."""
        self._phase.finished()

    @property
    def certificate(self) -> Any:
        """The client's verified certificate, an C{OpenSSL.crypto.X509}, where TLS stands and it has
        shown one; else None."""
        return None if self._secured is None else self._secured.certificate

    @property
    def tls_name(self) -> str:
        """Whom the client's verified certificate names, for people; "" where there is none."""
        if self.certificate is None:
            return ""
        from ..transport.certified import peer_name  # noqa: PLC0415

        return peer_name(self.certificate)

    @property
    def tls_version(self) -> str:
        """As C{TLSv1.3}; "" without TLS."""
        return "" if self._secured is None else self._secured.transport.version

    # From phase to phase.

    def begin_session(self, handler: IExportHandler, negotiated: Negotiated, data: bytes) -> None:
        """The handshake is over; C{data} came after it."""
        settings = self.settings
        self.handler, self.negotiated = handler, negotiated
        self.advanced_at = settings.runtime.reactor.seconds()
        session = Session(self._context, self, handler, negotiated, settings.runtime.threads)
        self._enter(session)
        self._context.timeout.watch_progress(
            settings.idle_timeout, session.may_be_silent, session.progress, self._stalled
        )
        session.begin(data)
        self.session_began()

    def session_began(self) -> None:
        """Hook: the handshake is over, and what came after it was processed as far as allowed."""

    def forward(self, forwarder: Forwarder) -> None:
        """Have another server answer; for a connection that is held and idle, or was not greeted.

        Where the connection is ending already nothing happens, and C{forwarder} is not called.
        """
        self._lifetime.forward(forwarder)

    def begin_forwarding(self, forwarder: Forwarder) -> None:
        """Hand the connection over (see L{lifetime})."""
        context, unanswered = self._context, self._phase.unanswered()
        self._enter(Forwarding(context, forwarder))
        context.timeout.stop()
        context.holds.clear()
        self.pause_reading()
        forwarder.begin(unanswered)

    def answer(self, data: bytes) -> bool:
        """Send C{data} from the other server after our own; return whether all of it was taken."""
        self._context.outgoing.send_view(data)
        return not self._context.outgoing.waiting

    # For handlers, and for whoever makes the client wait.

    @property
    def first_cookie(self) -> int | None:
        """The cookie of the first request, by which a client may identify itself."""
        return self._phase.first_cookie

    @property
    def is_mid_exchange(self) -> bool:
        """Whether the peer has sent a part of a request, or has replies to take."""
        return self._phase.is_mid_exchange

    @property
    def has_replies_due(self) -> bool:
        """Whether the peer has not taken everything that was queued for it."""
        return self._is_waiting()

    @property
    def heard_at(self) -> float:
        """When the peer last sent something, or took some of a reply; by the reactor's clock."""
        return self.connected_at if self._timeout is None else self._timeout.last_activity

    @property
    def waits_for_us(self) -> bool:
        """Whether the peer can do nothing before we have done something."""
        return bool(self.connected) and self._made is not None and self._phase.waits_for_us

    @property
    def receiving(self) -> tuple[Request, int] | None:
        """The WRITE whose payload is on the wire, and how many bytes of that are here."""
        return self._phase.receiving

    @property
    def has_asked(self) -> bool:
        """Whether the peer has asked anything of an export."""
        return bool(self.connected) and self._made is not None and self._phase.has_asked

    def pause_reading(self) -> None:
        """Read nothing more until L{resume_reading}.

        For a handler whose disk is too slow, and for whoever forwards the connection.
        """
        self._context.holds.add(Hold.BACKPRESSURE)

    def resume_reading(self) -> None:
        """Read on, unless the peer is held for another reason."""
        self._context.holds.release(Hold.BACKPRESSURE)

    def hold(self) -> Deferred[None]:
        """Begin no more requests of the peer's until L{release}; a handshake may continue.

        @return: fires when none of its requests is being carried out any more.
        """
        return self._phase.hold()

    def release(self) -> None:
        """End the L{hold}."""
        if HELD in self._context.holds.reasons:
            self._context.holds.release(HELD)

    # The end.

    def drain(self) -> None:
        """Finish the requests in progress, refuse new ones, then close."""
        self._lifetime.drain()
        self._phase.check_idle()

    def close(self) -> None:
        """Send what is due, then close; abort if the peer takes nothing for 10 s."""
        self._lifetime.close()

    def abort(self) -> None:
        """Close at once."""
        if self._made is not None:
            self._lifetime.abort()
        else:
            self._ended_early = True
            self.transport.abortConnection()

    def give_way(self) -> None:
        """Close at once, for another connection."""
        self.gave_way = True
        if self.connected:
            self.abort()

    # LifetimeCore, for the machine (see L{lifetime}).

    def refuse(self) -> None:
        """Finish the requests in progress, and refuse new ones."""
        self._context.holds.add(Hold.DRAINING)

    def ignore(self) -> None:
        """Process nothing more that the peer sends."""
        self._context.holds.add(Hold.CLOSING)

    def announce_disconnected(self) -> None:
        """The client disconnected, and none of its requests is being carried out."""
        if self.handler is not None:
            self.handler.disconnected(self)

    def announce_gone(self) -> None:
        """The connection is gone, and none of its requests is being carried out."""
        if self.handler is not None:
            self.handler.gone(self)

    def close_transport(self) -> None:
        """Close once everything was sent."""
        self._context.timeout.watch(_CLOSE_TIMEOUT, lambda: False)
        self.transport.loseConnection()

    def abort_transport(self) -> None:
        """Close at once."""
        self.transport.abortConnection()
