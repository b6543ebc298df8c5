"""One NBD connection as the server sees it: the wire, joined to a disk and to whoever decides.

Owns the conversation from the greeting to the close, and nothing that outlives it. What an export
is, which requests are admitted and what their outcome means is decided by an `IExportHandler`.

Rules:

* every request is answered exactly once, perhaps out of order; DISC never;
* a WRITE's payload is taken off the wire whatever the answer;
* a reply that says success is made only after the disk said so;
* FLUSH, TRIM, FUA and long zeroing run in threads;
* memory: while `_MOST_REQUESTS` are being carried out or wait to be sent, nothing more is read, so
  that a peer is held back by its own socket;
* a connection that has not negotiated within the handshake timeout, or that has been silent for
  the idle timeout with nothing of ours to wait for, is aborted;
* nothing that a peer does raises out of here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..interfaces import IExportHandler, IPayloadReceiver
from ..nbd import (
    REQUEST_SIZE,
    Aborted,
    Command,
    CommandFlag,
    EndOfPayload,
    Negotiated,
    Payload,
    RemoteProtocolError,
    Request,
    ServerHandshake,
    ServerTransmission,
    check_request,
    errno_to_wire,
    oldstyle_hello,
)
from ..storage import SYSTEM, SystemCalls
from ..transport import (
    FileRegion,
    PayloadReader,
    RegionProducer,
    describe_address,
    tune,
)

_log = Logger()

_MOST_REQUESTS: Final = 256
_SHORT_ZEROES: Final = 1 << 20
_CLOSE_TIMEOUT: Final = 10.0


@dataclass(frozen=True)
class ConnectionSettings:
    """What all connections of one listener have in common.

    @ivar reactor: watches sockets and tells the time.
    @ivar in_thread: runs a function in a thread; fires with its result.
    @ivar lookup: the handler of an export's name, or None.
    @ivar names: the names to list.
    @ivar oldstyle: speak the old handshake, for the export named "".
    @ivar handshake_timeout: seconds; 0 for none.
    @ivar idle_timeout: seconds; 0 for none.
    """

    reactor: Any
    in_thread: Callable[..., Deferred[Any]]
    lookup: Callable[[str], IExportHandler | None]
    names: Callable[[], list[str]]
    oldstyle: IExportHandler | None = None
    handshake_timeout: float = 30.0
    idle_timeout: float = 60.0
    system: SystemCalls = SYSTEM


class _Write:
    """The WRITE whose payload is on the wire."""

    __slots__ = ("error", "position", "request")

    def __init__(self, request: Request, error: int) -> None:
        self.request = request
        self.error = error
        self.position = request.offset


@implementer(IPayloadReceiver, IHalfCloseableProtocol)
class ServerConnection(Protocol):
    """The protocol of one connection.

    @ivar peer: who it is, for messages.
    @ivar handler: the export's handler, once negotiated.
    @ivar first_cookie: the cookie of the first request, by which a client may make itself known.
    """

    transport: Any
    factory: Any

    def __init__(self, settings: ConnectionSettings, address: IAddress) -> None:
        self.peer = describe_address(address)
        self.handler: IExportHandler | None = None
        self.first_cookie: int | None = None
        self._settings = settings
        self._reactor = settings.reactor
        self._handshake: ServerHandshake | None = None
        self._wire = ServerTransmission()
        self._write: _Write | None = None
        self._in_progress = 0
        self._full = False
        self._behind = False
        self._admitting = False
        self._processing = False
        self._closing = False
        self._disconnecting = False
        self._ending = False
        self._lost = False
        self._last_activity = 0.0
        self._silence: IDelayedCall | None = None

    # IProtocol.

    def connectionMade(self) -> None:
        """The server speaks first."""
        transport = self.transport
        tune(transport)
        self._outgoing = RegionProducer(
            transport,
            self._read_failed,
            sent=self._sent,
            drained=self._resume,
            system=self._settings.system,
        )
        self._incoming = PayloadReader(
            self._reactor, transport, self, REQUEST_SIZE, self._settings.system
        )
        self._last_activity = self._reactor.seconds()
        self._watch(self._settings.handshake_timeout)
        if self._settings.oldstyle is not None:
            self._outgoing.send([oldstyle_hello(self._settings.oldstyle.export)])
            self._begin_transmission(self._settings.oldstyle)
        else:
            self._handshake = ServerHandshake(self._export, self._settings.names)
            self._outgoing.send([self._handshake.data_to_send()])

    def _export(self, name: str) -> Any:
        handler = self._settings.lookup(name)
        return None if handler is None else handler.export

    def dataReceived(self, data: bytes) -> None:
        """Bytes that were not moved past us."""
        if self._closing:
            return
        self._last_activity = self._reactor.seconds()
        try:
            if self._handshake is not None:
                self._shake_hands(data)
            else:
                self._wire.receive_data(data)
                self._process()
        except RemoteProtocolError as error:
            self._broken(error)

    def readConnectionLost(self) -> None:
        """The peer sends no more; behind its disconnect it still hears of ours."""
        if not self._closing:
            self.close()

    def writeConnectionLost(self) -> None:
        """Never: we close both ways at once."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection has gone, for whatever reason."""
        self._lost = self._closing = True
        self._incoming.stop()
        self._outgoing.stopProducing()
        self._watch(0)
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
            self._begin_transmission(handler)
            self._wire.receive_data(handshake.trailing_data())
            self._process()

    def _begin_transmission(self, handler: IExportHandler) -> None:
        self.handler = handler
        self._watch(self._settings.idle_timeout)

    # Requests.

    def _process(self) -> None:
        """Act on what was received, as far as the limits allow."""
        if self._processing:
            return
        self._processing = True
        try:
            while not self._closing and not self._admitting and not self._is_full():
                event = self._wire.next_event()
                if event is None:
                    break
                if isinstance(event, Request):
                    self._request(event)
                elif isinstance(event, Payload):
                    self._payload(event.data)
                elif isinstance(event, EndOfPayload):
                    self._end_of_payload()
        finally:
            self._processing = False
        if not self._closing and not self._admitting:
            self._incoming.take_over()

    def _is_full(self) -> bool:
        """Whether the peer has so much under way that it must wait."""
        most = 1 if self._handshake is not None else _MOST_REQUESTS
        if self._write is None and self._in_progress + self._outgoing.pending >= most:
            self._full = True
            self._incoming.pause()
        return self._full

    def _resume(self) -> None:
        """Something of ours was done: go on with what waited for it."""
        if self._full and self._in_progress + self._outgoing.pending < _MOST_REQUESTS // 2:
            self._full = False
            self._read_on()
            if self._handshake is None:
                self._go_on()

    def _go_on(self) -> None:
        try:
            self._process()
        except RemoteProtocolError as error:
            self._broken(error)

    def pause_reading(self) -> None:
        """Read nothing more until L{resume_reading}; for a handler whose disk is behind."""
        self._behind = True
        self._incoming.pause()

    def resume_reading(self) -> None:
        """Read on, unless the peer is to wait for another reason."""
        self._behind = False
        self._last_activity = self._reactor.seconds()
        self._read_on()

    def _read_on(self) -> None:
        if not self._full and not self._behind and not self._admitting:
            self._incoming.resume()

    def _settle(self) -> None:
        """Tell the handler of an end, once nothing is being carried out any more."""
        if self._in_progress or self.handler is None:
            return
        if self._disconnecting:
            self._disconnecting = False
            self.handler.disconnected(self)
        if self._lost:
            handler, self.handler = self.handler, None
            handler.gone(self)

    def _request(self, request: Request) -> None:
        handler = self.handler
        assert handler is not None
        if self.first_cookie is None:
            self.first_cookie = request.cookie
        if request.command == Command.DISC:
            self._closing = self._disconnecting = True
            self._settle()
            return
        answer: Any = check_request(request, handler.export)
        if not answer:
            answer = handler.admit(self, request)
        if isinstance(answer, Deferred):
            self._carry_out_after(request, answer)
        else:
            self._carry_out(request, handler, answer)

    def _carry_out_after(self, request: Request, admitting: Deferred[int]) -> None:
        """Do nothing more for the peer until it is known whether C{request} is admitted."""
        self._admitting = True
        self._in_progress += 1
        self._incoming.pause()

        def admitted(result: object) -> None:
            if isinstance(result, Failure):
                _bug(result)
                result = errno_to_wire(None)
            assert isinstance(result, int)
            error = result
            self._admitting = False
            self._in_progress -= 1
            self._last_activity = self._reactor.seconds()
            if not self._closing:
                assert self.handler is not None
                self._carry_out(request, self.handler, error)
                self._read_on()
                self._go_on()
            self._settle()

        admitting.addBoth(admitted).addErrback(_bug)

    def _carry_out(self, request: Request, handler: IExportHandler, error: int) -> None:
        if request.command == Command.WRITE:
            self._write = _Write(request, error)
        elif error:
            self._reply(request, error)
        elif request.command == Command.READ:
            region = FileRegion(handler.disk, request.offset, request.length)
            self._outgoing.send(self._wire.reply(request, 0, [region]))
        elif request.command == Command.FLUSH:
            if handler.needs_flush(self):
                self._answer_after(request, self._settings.in_thread(handler.disk.flush))
            else:
                self._done(request)
        else:
            self._zero_or_trim(request, handler)

    def _zero_or_trim(self, request: Request, handler: IExportHandler) -> None:
        disk = handler.disk
        durable = bool(request.flags & CommandFlag.FUA)
        allocate = bool(request.flags & CommandFlag.NO_HOLE)
        short = request.length <= _SHORT_ZEROES and not durable

        def work() -> None:
            if request.command == Command.TRIM:
                disk.trim(request.offset, request.length)
            else:
                disk.zero(request.offset, request.length, allocate)
            if durable:
                disk.flush()

        if not short:
            self._answer_after(request, self._settings.in_thread(work))
            return
        try:
            work()
        except OSError as error:
            self._failed(request, error)
        else:
            self._done(request)

    def _answer_after(self, request: Request, working: Deferred[Any]) -> None:
        self._in_progress += 1

        def finished(result: object) -> None:
            self._in_progress -= 1
            self._last_activity = self._reactor.seconds()
            if isinstance(result, Failure):
                self._failed(request, result.value)
            else:
                self._done(request)
            self._resume()
            self._settle()

        working.addBoth(finished).addErrback(_bug)

    # IPayloadReceiver, and the payloads that come through memory.

    def payload_region(self) -> FileRegion | None:
        """Where the rest of the WRITE on the wire belongs, if it is to be written at all."""
        write = self._write
        if write is None or write.error or self._closing or self._wire.buffered:
            return None
        assert self.handler is not None
        return FileRegion(self.handler.disk, write.position, self._wire.payload_expected)

    def payload_moved(self, count: int) -> None:
        """So much of it is off the wire."""
        assert self._write is not None
        self._last_activity = self._reactor.seconds()
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
        if not write.error:
            assert self.handler is not None
            try:
                self.handler.disk.write(write.position, data)
            except OSError as error:
                self._write_failed(error)
        write.position += len(data)

    def _write_failed(self, error: OSError) -> None:
        assert self._write is not None
        self._write.error = errno_to_wire(error.errno)
        self._handler_failed(self._write.request, error)

    def _end_of_payload(self) -> None:
        write, self._write = self._write, None
        assert write is not None
        assert self.handler is not None
        if write.error:
            self._reply(write.request, write.error)
        elif write.request.flags & CommandFlag.FUA:
            flushing = self._settings.in_thread(self.handler.disk.flush)
            self._answer_after(write.request, flushing)
        else:
            self._done(write.request)

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
            self._last_activity = self._reactor.seconds()
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
        if not self._lost:
            self._outgoing.send(self._wire.reply(request, error))

    def _sent(self, count: int) -> None:
        self._last_activity = self._reactor.seconds()

    def _read_failed(self, error: OSError) -> None:
        """A READ broke off behind its header, where only dropping the connection tells of it."""
        _log.warn("{peer}: reading the disk failed: {error}", peer=self.peer, error=str(error))
        self.abort()

    def _broken(self, error: RemoteProtocolError) -> None:
        _log.info("{peer}: {error}; connection closed", peer=self.peer, error=str(error))
        self.close()

    # The end.

    def close(self) -> None:
        """Send what is due, then close; the connection is aborted if that takes long."""
        self._closing = self._ending = True
        if self._lost:
            return
        self._watch(_CLOSE_TIMEOUT)
        self._last_activity = self._reactor.seconds()
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if not self._lost:
            self.transport.abortConnection()

    def _watch(self, timeout: float) -> None:
        """Abort the connection once it has been silent for C{timeout} seconds; 0 for never."""
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        if timeout and not self._lost:
            self._silence = self._reactor.callLater(timeout, self._check_silence, timeout)

    def _check_silence(self, timeout: float) -> None:
        self._silence = None
        if self._handshake is not None and not self._ending:
            _log.info("{peer}: no handshake in {timeout} s", peer=self.peer, timeout=timeout)
            self.abort()
            return
        now = self._reactor.seconds()
        if not self._ending and self._may_be_silent():
            self._last_activity = now
        left = self._last_activity + timeout - now
        if left > 0:
            self._silence = self._reactor.callLater(left, self._check_silence, timeout)
        else:
            _log.info("{peer}: silent for {timeout} s", peer=self.peer, timeout=timeout)
            self.abort()

    def _may_be_silent(self) -> bool:
        """Whether the peer is waiting for us, or has leave to say nothing."""
        handler = self.handler
        waits = bool(self._in_progress) or self._behind
        return waits or (handler is not None and handler.may_be_silent(self))


def _bug(failure: Failure) -> None:
    _log.failure("while answering a request", failure=failure)
