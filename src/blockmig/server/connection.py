"""One NBD connection as the server sees it: the wire, joined to a disk and to whoever decides.

Owns the conversation from the greeting to the close, and nothing that outlives it. What an export
is, which requests are admitted and what their outcome means is decided by an `IExportHandler`; how
requests are carried out is `carrying`'s; small ones that need no admission and no waiting are
answered by `small`; how it all ends is the machine's in `lifetime`.

Rules:

* every request is answered exactly once, perhaps out of order; DISC never;
* a WRITE's payload is taken off the wire whatever the answer;
* a reply that says success is made only after the disk said so;
* what may take long runs in threads;
* memory: while so many requests, or so many bytes for them, are being carried out or wait to be
  sent, nothing more is read, so that a peer is held back by its own socket;
* while its handler holds the clients, nothing more is taken from one that has negotiated: what it
  asks stays unanswered, and the disk unchanged;
* a connection may be passed on to another server: what was not answered is given up as it came, and
  from then on only bytes are moved here;
* a connection that has not negotiated within the handshake timeout, or that has been silent for
  the idle timeout with nothing of ours to wait for, is aborted;
* nothing that a peer does raises out of here.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import IExportHandler, IPayloadReceiver
from ..nbd import (
    REQUEST,
    REQUEST_MAGIC,
    REQUEST_SIZE,
    Aborted,
    Command,
    EndOfPayload,
    Errno,
    Export,
    Negotiated,
    Payload,
    RemoteProtocolError,
    Request,
    ServerHandshake,
    ServerTransmission,
    TransmissionFlag,
    check_request,
    errno_to_wire,
    oldstyle_hello,
)
from ..runtime import Runtime
from ..transport import (
    LONGEST_MOVE,
    FileRegion,
    PayloadReader,
    RegionProducer,
    describe_address,
    tune,
    unacknowledged,
)
from .carrying import Carrying, IncomingWrite
from .lifetime import make_lifetime
from .pace import Beginning
from .small import SmallRequests
from .traffic import Traffic

_log = Logger()

_MOST_REQUESTS: Final = 256
_MOST_BYTES: Final = 1 << 20
_CLOSE_TIMEOUT: Final = 10.0


@dataclass(frozen=True)
class ConnectionSettings:
    """What all connections of one listener have in common.

    @ivar runtime: what the outside world is.
    @ivar lookup: the handler of an export's name, or None.
    @ivar names: the names to list.
    @ivar oldstyle: speak the old handshake, for the export named "".
    @ivar structured: offer structured replies, and the metadata context C{base:allocation}.
    @ivar handshake_timeout: seconds; 0 for none.
    @ivar idle_timeout: seconds; 0 for none.
    """

    runtime: Runtime
    lookup: Callable[[str], IExportHandler | None]
    names: Callable[[], list[str]]
    oldstyle: IExportHandler | None = None
    structured: bool = False
    handshake_timeout: float = 30.0
    idle_timeout: float = 60.0


class _Hold(Enum):
    """Why nothing is read from the peer at present."""

    # That of Enum is no built-in function, and is asked for with each request.
    __hash__ = object.__hash__

    FULL = "so much of it is under way that it must wait"
    BEHIND = "its handler's disk is behind, or the server that it was passed on to"
    ADMITTING = "it is not known yet whether its latest request is admitted"
    WRITING = "a part of its payload is being written by a thread"
    HELD = "all clients are held while the disk is handed over"


_OURS: Final = frozenset({_Hold.BEHIND, _Hold.HELD})
_MUST_WAIT: Final = frozenset({_Hold.ADMITTING, _Hold.WRITING, _Hold.HELD})


class Passing(typing.Protocol):
    """Whoever passes a connection on to another server, and is told of what happens to it."""

    def begin(self, unanswered: list[bytes | FileRegion] | None) -> None:
        """It is yours, and paused.

        @param unanswered: what the peer has sent so far that was not answered, in order; None where
            not all of it is to be had any more.
        """

    def received(self, data: bytes | memoryview) -> None:
        """The peer sent this; a view will not last."""

    def drained(self) -> None:
        """The peer has taken all there was for it."""

    def finished(self) -> None:
        """The peer sends no more, and still listens."""

    def lost(self, reason: Failure) -> None:
        """The connection is gone."""


@implementer(IPayloadReceiver, IHalfCloseableProtocol)
class ServerConnection(Protocol):
    """The protocol of one connection.

    @ivar peer: who it is, for messages.
    @ivar handler: the export's handler, once negotiated.
    @ivar negotiated: what the peer was told.
    @ivar first_cookie: the cookie of the first request, by which a client may make itself known.
    @ivar traffic: what was asked for.
    @ivar made: when the connection was made, by the reactor's clock.
    """

    transport: Any
    factory: Any

    def __init__(self, settings: ConnectionSettings, address: IAddress) -> None:
        self.peer = describe_address(address)
        self.handler: IExportHandler | None = None
        self.negotiated: Negotiated | None = None
        self.first_cookie: int | None = None
        self.traffic = Traffic()
        self.made = settings.runtime.reactor.seconds()
        self.reading = True
        self.draining = False
        self._settings = settings
        self._reactor = settings.runtime.reactor
        self._seconds = settings.runtime.reactor.seconds
        self._life = make_lifetime(self)
        self._handshake: ServerHandshake | None = None
        self._wire = ServerTransmission()
        self._export: Export | None = None
        self._allocation = False
        self._small: SmallRequests | None = None
        self._write: IncomingWrite | None = None
        self._in_progress = 0
        self._bytes_in_progress = 0
        self._holds: set[_Hold] = set()
        self._processing = False
        self._ending = False
        self._last_activity = 0.0
        self._untaken = 0
        self._began_moving: Beginning = (0.0, -1)
        self._silence: IDelayedCall | None = None
        self._until_idle: list[Deferred[None]] = []
        self._passing: Passing | None = None

    # IProtocol.

    def connectionMade(self) -> None:
        """The server speaks first."""
        transport, settings = self.transport, self._settings
        tune(transport)
        self._outgoing = RegionProducer(
            transport,
            self._sending_failed,
            drained=self._resume,
            room=self._note_activity,
            system=settings.runtime.system,
        )
        self._incoming = PayloadReader(
            self._reactor, transport, self, REQUEST_SIZE, settings.runtime.system
        )
        self._note_activity()
        self.begin()

    def begin(self) -> None:
        """Greet the peer."""
        settings = self._settings
        self._watch(settings.handshake_timeout)
        if settings.oldstyle is not None:
            export = settings.oldstyle.export.without(TransmissionFlag.SEND_DF)
            self._outgoing.send([oldstyle_hello(export)])
            self._begin_transmission(settings.oldstyle, Negotiated(export))
            self.agreed()
        else:
            self._handshake = ServerHandshake(
                self._exported, settings.names, structured=settings.structured
            )
            self._outgoing.send([self._handshake.data_to_send()])

    def _exported(self, name: str) -> Export | None:
        handler = self._settings.lookup(name)
        return None if handler is None else handler.export

    def dataReceived(self, data: bytes) -> None:
        """Bytes that were not moved past us."""
        if not self.reading:
            if self._passing is not None:
                self._passing.received(data)
            return
        self._note_activity()
        try:
            if self._handshake is not None:
                self._shake_hands(data)
            else:
                self._wire.receive_data(data)
                self._process()
        except RemoteProtocolError as error:
            self._broken(error)

    def viewReceived(self, view: memoryview) -> None:
        """As L{dataReceived}, on the shortest way, with bytes that will not last."""
        if not self.reading:
            if self._passing is not None:
                self._passing.received(view)
            return
        self._note_activity()
        self._wire.receive_data(view)
        self._go_on()
        self._wire.keep()

    def answers_at_once(self) -> Callable[[memoryview], bool] | None:
        """The shortest way, while nothing stands before it and nobody is told of changes."""
        if self._small is None or self._wire.buffered or not self._may_answer_small():
            return None
        give = self._outgoing.direct()
        if give is None:
            return None
        self._note_activity()
        return self._small.answering(give, self.viewReceived)

    def readConnectionLost(self) -> None:
        """The peer sends no more; it still hears of what it has asked for."""
        if self._passing is not None:
            self._passing.finished()
        else:
            self._finish()

    def writeConnectionLost(self) -> None:
        """Never: we close both ways at once."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection has gone, for whatever reason."""
        self._life.lose()
        self._ending = True
        self._incoming.stop()
        self._outgoing.stopProducing()
        if self.handler is not None:
            self._carrying.abandon()
        self._watch(0)
        if self._passing is not None:
            self._passing.lost(reason)
        self._settle()

    # The handshake.

    def _shake_hands(self, data: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        try:
            handshake.receive_data(data)
        finally:
            answer = handshake.data_to_send()
            if answer:
                self._outgoing.send([answer])
        self._is_full()
        event = handshake.next_event()
        if isinstance(event, Aborted):
            self.close()
        elif isinstance(event, Negotiated):
            self._handshake = None
            handler = self._settings.lookup(event.export.name)
            assert handler is not None
            self._begin_transmission(handler, event)
            self._wire.receive_data(handshake.trailing_data())
            self._process()
            self.agreed()

    def agreed(self) -> None:
        """The handshake is over, and what came behind it was acted on as far as it may be."""

    def _begin_transmission(self, handler: IExportHandler, negotiated: Negotiated) -> None:
        self.handler = handler
        self.negotiated = negotiated
        self._export = export = negotiated.export
        self._allocation = negotiated.allocation
        self._wire = ServerTransmission(negotiated.structured)
        access = handler.access
        self._carrying = Carrying(
            handler, access, self._wire, self._settings.runtime.threads, negotiated.structured
        )
        if access is not None:
            self._small = SmallRequests(access, export, negotiated.structured, self.traffic)
            self._incoming.take_over(at_once=True)
        self._watch(self._settings.idle_timeout)
        if handler.held:
            self._hold(_Hold.HELD)

    # Requests.

    def _process(self) -> None:
        """Act on what was received, as far as the limits allow."""
        if self._processing or self._answer_small():
            return
        self._processing = True
        try:
            while self.reading and not self._is_full() and not self._must_wait():
                event = self._wire.next_event()
                kind = type(event)
                if kind is Request:
                    self._request(cast(Request, event))
                elif kind is Payload:
                    self._payload(cast(Payload, event).data)
                elif kind is EndOfPayload:
                    self._end_of_payload()
                else:
                    break
                if self._write is None and self._answer_small():
                    break
        finally:
            self._processing = False
        if self.draining:
            self._settle()
        elif self.reading and not self._must_wait():
            self._incoming.take_over()

    def _must_wait(self) -> bool:
        """Whether even what was received already is not to be looked at yet."""
        return not self._holds.isdisjoint(_MUST_WAIT)

    def _answer_small(self) -> bool:
        """Answer as many of the next requests as can be carried out at once, if any can.

        @return: whether there is nothing to do before more has come.
        """
        while self._may_answer_small():
            assert self._small is not None
            data, position = self._wire.unread()
            end, replies = self._small.answer(data, position)
            if end == position:
                return self._small.is_incomplete(data, position)
            self._wire.skip(end)
            self._outgoing.send_view(replies)
            if end == len(data):
                return True
        return False

    def _may_answer_small(self) -> bool:
        """Whether the next on the wire may be small requests, and nothing stands before them."""
        return (
            self._small is not None
            and self.reading
            and self._write is None
            and not self._holds
            and not self.draining
            and not self._outgoing.pending
            and self.handler is not None
            and self.handler.at_once
        )

    def _is_full(self) -> bool:
        """Whether the peer has so much under way that it must wait."""
        most = 1 if self._handshake is not None else _MOST_REQUESTS
        if self._write is None and (
            self._in_progress + self._outgoing.pending >= most
            or self._bytes_in_progress + self._outgoing.pending_bytes >= _MOST_BYTES
        ):
            self._hold(_Hold.FULL)
        return _Hold.FULL in self._holds

    def _resume(self) -> None:
        """Something of ours was done: go on with what waited for it."""
        if self._passing is not None:
            self._passing.drained()
        elif (
            _Hold.FULL in self._holds
            and self._in_progress + self._outgoing.pending < _MOST_REQUESTS // 2
            and self._bytes_in_progress + self._outgoing.pending_bytes < _MOST_BYTES // 2
        ):
            self._release(_Hold.FULL)
            if self._handshake is None:
                self._go_on()

    def _go_on(self) -> None:
        try:
            self._process()
        except RemoteProtocolError as error:
            self._broken(error)

    def pause_reading(self) -> None:
        """Read nothing more until L{resume_reading}.

        For a handler whose disk is behind, and for who passes the connection on.
        """
        self._hold(_Hold.BEHIND)

    def resume_reading(self) -> None:
        """Read on, unless the peer is to wait for another reason."""
        self._note_activity()
        self._release(_Hold.BEHIND)

    def hold(self) -> Deferred[None]:
        """Begin nothing more for the peer until L{release}; a handshake may go on.

        @return: fires when nothing of it is being carried out any more.
        """
        if self.handler is not None and self._passing is None:
            self._hold(_Hold.HELD)
        idle: Deferred[None] = Deferred()
        self._until_idle.append(idle)
        self._tell_idle()
        return idle

    def _tell_idle(self) -> None:
        if not self._in_progress and self._until_idle:
            waiting, self._until_idle = self._until_idle, []
            for idle in waiting:
                idle.callback(None)

    def release(self) -> None:
        """Go on where L{hold} had it stop."""
        if _Hold.HELD in self._holds:
            self._note_activity()
            self._release(_Hold.HELD)
            self._go_on()

    def pass_on(self, passing: Passing) -> None:
        """Have another server answer; for one that is held and idle, or was not greeted.

        Nothing happens if the connection is at its end already, and C{passing} hears of nothing.
        """
        if self.reading and not self.draining:
            self._passing = passing
            self._life.pass_on()

    def begin_passing(self) -> None:
        """Give the connection up (see L{lifetime})."""
        assert self._passing is not None
        self._watch(0)
        self._holds.clear()
        self.pause_reading()
        self._passing.begin(self._unanswered())

    def _unanswered(self) -> list[bytes | FileRegion] | None:
        """What the peer has sent that was not answered, as it came, taken from us."""
        write, self._write = self._write, None
        data, position = self._wire.unread()
        rest = bytes(data[position:])
        self._wire = ServerTransmission()
        items: list[bytes | FileRegion] = []
        if write is not None:
            if write.error:
                return None
            assert self.handler is not None
            start = write.request.offset
            items.append(REQUEST.pack(REQUEST_MAGIC, *write.request))
            if (written := write.position - write.gathered - start) > 0:
                items.append(FileRegion(self.handler.disk, start, written))
            items += write.pieces or []
        if rest:
            items.append(rest)
        return items

    def answer(self, data: bytes) -> bool:
        """Send what the other server says, behind what we did; whether the peer has taken all."""
        self._outgoing.send_view(data)
        return not self._outgoing.waiting

    def _hold(self, why: _Hold) -> None:
        self._holds.add(why)
        self._incoming.pause()

    def _release(self, why: _Hold) -> None:
        self._holds.discard(why)
        if not self._holds:
            self._incoming.resume()

    def _settle(self) -> None:
        """Go on towards the end, if there is one, once nothing is being carried out any more."""
        self._tell_idle()
        if self.reading and not self.draining:
            return
        receiving = self.reading and (self._write is not None or bool(self._wire.buffered))
        if not self._in_progress and not receiving:
            self._life.settle()

    def tell_disconnected(self) -> None:
        """The client disconnected, and nothing of it is being carried out (see L{lifetime})."""
        if self.handler is not None:
            self.handler.disconnected(self)

    def tell_gone(self) -> None:
        """The connection is gone, and nothing of it is being carried out (see L{lifetime})."""
        handler, self.handler = self.handler, None
        if handler is not None:
            handler.gone(self)

    def _request(self, request: Request) -> None:
        handler = self.handler
        assert handler is not None
        if self.first_cookie is None:
            self.first_cookie = request.cookie
        if request.command == Command.DISC:
            self._life.disconnect()
            self._settle()
            return
        assert self._export is not None
        answer: Any = check_request(request, self._export, self._allocation)
        if not answer:
            answer = Errno.ESHUTDOWN if self.draining else handler.admit(self, request)
        if not answer or isinstance(answer, Deferred):
            self.traffic.count_request(request)
        if isinstance(answer, Deferred):
            self._carry_out_after(request, answer)
        else:
            self._carry_out(request, answer)

    def _carry_out_after(self, request: Request, admitting: Deferred[int]) -> None:
        """Do nothing more for the peer until it is known whether C{request} is admitted."""
        self._in_progress += 1
        self._hold(_Hold.ADMITTING)

        def admitted(result: object) -> None:
            if isinstance(result, Failure):
                _bug(result)
                result = errno_to_wire(None)
            assert isinstance(result, int)
            self._in_progress -= 1
            self._note_activity()
            if self.reading:
                self._carry_out(request, result)
                self._release(_Hold.ADMITTING)
                self._go_on()
            self._settle()

        admitting.addBoth(admitted).addErrback(_bug)

    def _carry_out(self, request: Request, error: int) -> None:
        if request.command == Command.WRITE:
            self._write = self._carrying.receive(request, error)
        elif error:
            self._reply(request, error)
        else:
            self._answer_with(request, self._carrying.carry_out(request, self))

    def _answer_with(self, request: Request, doing: Deferred[Any] | list[Any] | None) -> None:
        """Send the reply's items once they are known; None is success without more to say."""
        if isinstance(doing, Deferred):
            self._answer_after(request, doing)
        elif doing is None:
            self._done(request)
        else:
            self._outgoing.send(doing)

    def _answer_after(self, request: Request, doing: Deferred[Any]) -> None:
        held = self._carrying.memory_for(request)
        self._in_progress += 1
        self._bytes_in_progress += held

        def finished(result: Any) -> None:
            self._in_progress -= 1
            self._bytes_in_progress -= held
            self._note_activity()
            if isinstance(result, Failure):
                self._failed(request, result.value)
            else:
                self._answer_with(request, result)
            self._resume()
            self._settle()

        doing.addBoth(finished).addErrback(_bug)

    # IPayloadReceiver, and the payloads that come through memory.

    def payload_region(self) -> FileRegion | None:
        """Where the rest of the WRITE on the wire belongs, if it is to be written at all."""
        write = self._write
        if write is None or write.error or not self.reading or self._wire.buffered:
            return None
        if write.pieces is not None:
            return None
        assert self.handler is not None
        expected = self._wire.payload_expected
        if self.handler.access is not None:
            self._began_moving = self.handler.access.pace.begin()
            self.handler.access.changes.tell(write.position, min(expected, LONGEST_MOVE))
        return FileRegion(self.handler.disk, write.position, expected)

    def payload_moved(self, count: int) -> None:
        """So much of it is off the wire."""
        assert self._write is not None
        self._note_activity()
        if self.handler is not None and self.handler.access is not None:
            self.handler.access.pace.end(self._began_moving)
        self._write.position += count
        self._wire.payload_moved(count)
        if not self._wire.payload_expected:
            self._process()

    def payload_failed(self, error: OSError) -> None:
        """The disk did not take what is about to be announced as moved."""
        self._write_failed(error)

    def _payload(self, data: memoryview) -> None:
        write = self._write
        assert write is not None
        try:
            writing = self._carrying.take(write, data)
        except OSError as error:
            self._write_failed(error)
        else:
            if writing is not None:
                self._wait_for(writing)

    def _wait_for(self, writing: Deferred[None]) -> None:
        """Take no more of the payload until what came of it is written."""
        self._in_progress += 1
        self._hold(_Hold.WRITING)

        def written(result: object) -> None:
            self._in_progress -= 1
            self._note_activity()
            if isinstance(result, Failure) and self._write is not None:
                self._write_failed(result.value)
            self._release(_Hold.WRITING)
            self._go_on()
            self._settle()

        writing.addBoth(written).addErrback(_bug)

    def _write_failed(self, error: BaseException | None) -> None:
        assert self._write is not None
        self._write.error = errno_to_wire(getattr(error, "errno", None))
        self._handler_failed(self._write.request, error)

    def _end_of_payload(self) -> None:
        write, self._write = self._write, None
        assert write is not None
        if write.error:
            self._reply(write.request, write.error)
        else:
            self._answer_with(write.request, self._carrying.finish(write))
        self._settle()

    # Outcomes.

    def _done(self, request: Request) -> None:
        assert self.handler is not None
        more = self.handler.done(self, request)
        if isinstance(more, Deferred):
            self._reply_after(request, more)
        else:
            self._reply(request, 0)

    def _reply_after(self, request: Request, working: Deferred[Any]) -> None:
        """The handler has something to do yet, and knows itself if that fails."""
        self._in_progress += 1

        def finished(result: object) -> None:
            self._in_progress -= 1
            self._note_activity()
            error = getattr(result.value, "errno", None) if isinstance(result, Failure) else 0
            self._reply(request, errno_to_wire(error) if error != 0 else 0)
            self._resume()
            self._settle()

        working.addBoth(finished).addErrback(_bug)

    def _failed(self, request: Request, error: BaseException | None) -> None:
        self._reply(request, errno_to_wire(getattr(error, "errno", None)))
        self._handler_failed(request, error)

    def _handler_failed(self, request: Request, error: BaseException | None) -> None:
        assert self.handler is not None
        self.handler.failed(self, request, error)

    def _reply(self, request: Request, error: int) -> None:
        self._outgoing.send(self._wire.reply(request, error))

    def _sending_failed(self, error: OSError) -> None:
        """A READ broke off behind its header, where only dropping the connection tells of it."""
        _log.warn("{peer}: reading the disk failed: {error}", peer=self.peer, error=str(error))
        if self.handler is not None and self.handler.access is not None:
            self.handler.access.read_failed(error)
        self.abort()

    def _broken(self, error: RemoteProtocolError) -> None:
        _log.info("{peer}: {error}; connection closed", peer=self.peer, error=str(error))
        self._finish()

    # The end.

    def _finish(self) -> None:
        """Nothing more can come: answer what is being carried out, then close."""
        self._write = None
        self._life.finish()
        self._settle()

    def drain(self) -> None:
        """Finish what is being carried out, refuse what comes new, then close."""
        self._life.drain()
        self._settle()

    def close(self) -> None:
        """Send what is due, then close; the connection is aborted if that takes long."""
        self._life.close()

    def close_transport(self) -> None:
        """Close when all was sent (see L{lifetime})."""
        self._ending = True
        self._watch(_CLOSE_TIMEOUT)
        self._note_activity()
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self._life.abort()

    def abort_transport(self) -> None:
        """Close at once (see L{lifetime})."""
        self.transport.abortConnection()

    def _watch(self, timeout: float) -> None:
        """Abort the connection once it has been silent for C{timeout} seconds; 0 for never."""
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        if timeout:
            self._silence = self._reactor.callLater(timeout, self._check_silence, timeout)

    def _note_activity(self) -> None:
        self._last_activity = self._seconds()

    def _check_silence(self, timeout: float) -> None:
        self._silence = None
        untaken, self._untaken = self._untaken, unacknowledged(self.transport)
        if self._handshake is not None and not self._ending:
            _log.info("{peer}: no handshake in {timeout} s", peer=self.peer, timeout=timeout)
            self.abort()
            return
        now = self._reactor.seconds()
        # A socket is writable only when much of it is free; until then a slow reader shows here.
        takes = self._outgoing.waiting and self._untaken != untaken
        if takes or (not self._ending and self._may_be_silent()):
            self._last_activity = now
        left = self._last_activity + timeout - now
        if left > 0:
            self._silence = self._reactor.callLater(left, self._check_silence, timeout)
        else:
            _log.info("{peer}: silent for {timeout} s", peer=self.peer, timeout=timeout)
            self.abort()

    @property
    def owes(self) -> bool:
        """Whether the peer has begun what it has to finish: a request, or taking its replies."""
        return self._write is not None or bool(self._wire.buffered) or self._outgoing.waiting

    def _may_be_silent(self) -> bool:
        """Whether the peer is waiting for us, or has leave to say nothing."""
        handler = self.handler
        waits = bool(self._in_progress) or not self._holds.isdisjoint(_OURS)
        return waits or (handler is not None and handler.may_be_silent(self))


def _bug(failure: Failure) -> None:
    _log.failure("while answering a request", failure=failure)
