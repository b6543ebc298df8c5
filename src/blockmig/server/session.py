"""The phase in which a client's requests are carried out.

Owns what was received and not yet processed, the WRITE whose payload is on the wire, and the count
of what is in progress. `executor` carries a request out and makes its reply; `fast_path`, and
`fast_changes` at a receiver, answer small requests that need no admission and no waiting.

Rules:

* every request is answered exactly once, perhaps out of order; DISC never;
* while 256 requests, or 1 MiB of memory for them, are being carried out or waiting to be sent,
  nothing more is read: the back-pressure reaches the client through its socket;
* a part of a payload that a thread writes is written before more of it is taken;
* while the handler holds the clients, nothing more is processed: requests stay unanswered, and the
  disk unchanged;
* what is not a request ends the connection, after everything that came before it was answered.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..nbd import (
    REQUEST,
    Command,
    Negotiated,
    Payload,
    RemoteProtocolError,
    Request,
    ServerTransmission,
)
from ..runtime import InThread
from ..transport import FastTurn, FileRegion
from .access import SMALL
from .backend import Backend, EventualReply, PlainBackend, ReplyItems
from .executor import IncomingWrite, RequestExecutor
from .fast_changes import FastChanges
from .fast_path import FastPath
from .handler import IBatchHandler, IExportHandler
from .holds import BACKLOG, BLOCKING, CLIENT_WAITS, CLOSING, DRAINING, HELD, IN_PROGRESS, Hold
from .phase import Phase, PhaseContext
from .shared import SharedBackend

_log = Logger()

_MOST_REQUESTS: Final = 256
_MOST_BYTES: Final = 1 << 20
_LONGEST_BEGUN: Final = REQUEST.size + SMALL
"""Bytes of the longest request that the fast path may find begun."""

_DISC: Final = int(Command.DISC)
_WRITE: Final = int(Command.WRITE)


class Session(Phase):
    """The phase of a connection that has negotiated an export.

    @param context: the connection.
    @param connection: what the handler knows it by.
    @param handler: decides what may be done with the export.
    @param negotiated: what was negotiated.
    @param in_thread: runs a function in a thread.
    """

    def __init__(
        self,
        context: PhaseContext,
        connection: Any,
        handler: IExportHandler,
        negotiated: Negotiated,
        in_thread: InThread,
    ) -> None:
        super().__init__(context)
        self._connection = connection
        self._handler = handler
        self._outgoing = context.outgoing
        self._reasons = context.holds.reasons
        self._reset_timeout = context.timeout.reset
        structured = negotiated.structured
        self._wire = wire = ServerTransmission(structured)
        access = handler.access
        self._fast_path: FastPath | None = None
        self._fast_changes: FastChanges | None = None
        self._backend: Backend
        if access is None:
            self._backend = PlainBackend(handler.disk, wire, in_thread)
            if IBatchHandler.providedBy(handler):
                self._fast_changes = FastChanges(
                    handler, connection, negotiated.export, context.traffic
                )
        else:
            self._backend = SharedBackend(access, wire, structured)
            self._fast_path = FastPath(access, negotiated.export, structured, context.traffic)
        self._executor = RequestExecutor(
            context, connection, handler, negotiated, wire=wire, backend=self._backend
        )
        self._write: IncomingWrite | None = None
        self._in_progress = 0
        self._bytes_in_progress = 0
        self._processing = False
        self._until_idle: list[Deferred[None]] = []

    def begin(self, data: bytes) -> None:
        """Process what came after the handshake, and read on."""
        if self._fast_path is not None:
            self._context.incoming.take_over(at_once=True)
        if self._handler.held:
            self._context.holds.add(HELD)
        self._wire.receive_data(data)
        self._process()

    # From the client.

    def dataReceived(self, data: bytes) -> None:
        """Bytes that were not moved straight into the disk."""
        if CLOSING not in self._reasons:
            self._reset_timeout()
            self._wire.receive_data(data)
            self._process()

    def bufferReceived(self, view: memoryview) -> None:
        """As L{dataReceived}, with bytes that are valid only during this call."""
        if CLOSING not in self._reasons:
            self._reset_timeout()
            self._wire.receive_data(view)
            self._process()
            self._wire.copy_unread()

    def fast_turn(self) -> FastTurn | None:
        """The fast path, while nothing is queued before it and nobody watches the changes."""
        if (fast_path := self._usable_fast_path()) is None:
            return None
        if (send := self._outgoing.direct_send()) is None:
            return None
        if self._wire.buffered > _LONGEST_BEGUN:
            return None
        received, position = self._wire.unread()
        turn = fast_path.turn(send, self.bufferReceived, memoryview(received)[position:])
        if turn is not None:
            self._wire.skip(len(received))
            self._reset_timeout()
        return turn

    def _process(self) -> None:
        """Process what was received, as far as that is allowed."""
        if self._processing or self._take_short_way():
            return
        self._processing = True
        try:
            while self._may_process():
                event = self._wire.next_event()
                if type(event) is Request:
                    self._request(event)
                elif event is None or (write := self._write) is None:
                    break
                elif type(event) is Payload:
                    self._payload(write, event.data)
                else:
                    self._end_of_payload(write)
                if self._write is None and self._take_short_way():
                    break
        except RemoteProtocolError as error:
            self._protocol_error(error)
        finally:
            self._processing = False
        if DRAINING in self._reasons:
            self.check_idle()
        elif self._reasons.isdisjoint(BLOCKING):
            self._context.incoming.take_over()

    def _may_process(self) -> bool:
        """Whether the next message may be processed; not while the client's backlog is too large.

        That does not stop the payload of a WRITE that was begun, or it would never be complete.
        """
        if self._write is None and (
            self._in_progress + self._outgoing.pending >= _MOST_REQUESTS
            or self._bytes_in_progress + self._outgoing.pending_bytes >= _MOST_BYTES
        ):
            self._context.holds.add(BACKLOG)
        return self._reasons.isdisjoint(BLOCKING)

    def _take_short_way(self) -> bool:
        """Carry out small requests in one go, where that is possible.

        @return: whether there is nothing more to do until more was received.
        """
        return self._take_fast_path() if self._fast_changes is None else self._change_fast()

    def _change_fast(self) -> bool:
        """As L{_take_fast_path}, with the changes at a receiver."""
        assert self._fast_changes is not None
        if self._reasons or self._write is not None or self._outgoing.pending:
            return False
        received, position = self._wire.unread()
        end, replies, failed = self._fast_changes.carry_out(memoryview(received), position)
        if end == position:
            return False
        self._wire.skip(end)
        self._outgoing.send_view(replies)
        # More is read at a time than by the transport.
        self._context.incoming.take_over(at_once=True, poll=False)
        if failed is not None:
            self._executor.failed(*failed)
        return end == len(received)

    def _take_fast_path(self) -> bool:
        """Answer as many of the next requests as the fast path can.

        @return: whether there is nothing more to do until more was received.
        """
        while (fast_path := self._usable_fast_path()) is not None:
            received, position = self._wire.unread()
            data = memoryview(received)
            end, replies = fast_path.answer(data, position)
            if end == position:
                return fast_path.is_incomplete(data, position, len(data))
            self._wire.skip(end)
            self._outgoing.send_view(replies)
            if end == len(data):
                return True
        return False

    def _usable_fast_path(self) -> FastPath | None:
        """The fast path, if a request may be next on the wire, and nothing is queued before it."""
        if (
            self._reasons
            or self._write is not None
            or self._outgoing.pending
            or not self._handler.allows_fast_path
        ):
            return None
        return self._fast_path

    def _request(self, request: Request) -> None:
        if self.first_cookie is None:
            self.first_cookie = request.cookie
        if request.command == _WRITE:
            self._write = self._executor.receive(request)
        elif request.command != _DISC:
            self._send_reply(request, self._executor.execute(request))
        else:
            self._context.lifetime.disconnect()
            self.check_idle()

    def finished(self) -> None:
        """The client sends no more; it still gets the replies to its complete requests."""
        self._write = None
        super().finished()

    # The payload of a WRITE: through memory, and moved straight into the disk.

    def _payload(self, write: IncomingWrite, data: memoryview) -> None:
        writing = self._executor.take(write, data)
        if writing is not None:
            self._context.holds.until(Hold.WRITING, writing, self._written)

    def _written(self, result: Any) -> None:
        if isinstance(result, Failure) and self._write is not None:
            self._executor.write_failed(self._write, result.value)

    def _end_of_payload(self, write: IncomingWrite) -> None:
        self._write = None
        self._send_reply(write.request, self._executor.finish(write))
        self.check_idle()

    def payload_region(self) -> FileRegion | None:
        """Where the rest of the current WRITE belongs; None if it is not to be moved there."""
        write = self._write
        if write is None or write.error or write.in_thread:
            return None
        if CLOSING in self._reasons or self._wire.buffered:
            return None
        return self._backend.write_region(write.position, self._wire.payload_expected)

    def payload_moved(self, count: int) -> None:
        assert self._write is not None
        self._reset_timeout()
        self._backend.payload_moved()
        self._write.position += count
        self._wire.payload_moved(count)
        if not self._wire.payload_expected:
            self._process()

    def payload_failed(self, error: OSError) -> None:
        """The disk did not take what L{payload_moved} is about to report."""
        assert self._write is not None
        self._executor.write_failed(self._write, error)

    # From our side.

    def _send_reply(self, request: Request, answer: EventualReply) -> None:
        if isinstance(answer, Deferred):
            self._send_reply_later(request, answer)
        else:
            self._outgoing.send(answer)

    def _send_reply_later(self, request: Request, answer: Deferred[ReplyItems]) -> None:
        """Send the reply when it is known; until then the request counts as in progress."""
        memory = self._executor.memory_for(request)
        self._in_progress += 1
        self._bytes_in_progress += memory

        def known(reply: ReplyItems | Failure) -> None:
            self._in_progress -= 1
            self._bytes_in_progress -= memory
            self._reset_timeout()
            if isinstance(reply, Failure):
                _bug(reply)
            else:
                self._outgoing.send(reply)
            self.drained()
            self.check_idle()

        answer.addBoth(known).addErrback(_bug)

    def drained(self) -> None:
        """A reply was sent, or a request carried out: read on if the backlog is small enough."""
        if (
            BACKLOG in self._reasons
            and self._in_progress + self._outgoing.pending < _MOST_REQUESTS // 2
            and self._bytes_in_progress + self._outgoing.pending_bytes < _MOST_BYTES // 2
        ):
            self._context.holds.release(BACKLOG)

    def released(self) -> None:
        """Process what was held; an ending connection may be idle now."""
        self._reset_timeout()
        self._process()
        self.check_idle()

    # Holding, and the end.

    def hold(self) -> Deferred[None]:
        """Begin no more requests of the client's until that is released.

        @return: fires when none of its requests is being carried out any more.
        """
        self._context.holds.add(HELD)
        idle: Deferred[None] = Deferred()
        self._until_idle.append(idle)
        self.check_idle()
        return idle

    def check_idle(self) -> None:
        """If no request is being carried out, tell whoever holds, and an ending connection."""
        if self._is_executing():
            return
        if self._until_idle:
            waiting, self._until_idle = self._until_idle, []
            for idle in waiting:
                idle.callback(None)
        reasons = self._reasons
        if CLOSING in reasons or (DRAINING in reasons and not self._is_mid_request()):
            self._context.lifetime.idle()

    def _is_executing(self) -> bool:
        """Whether a request of the client's is being carried out."""
        return bool(self._in_progress) or not self._reasons.isdisjoint(IN_PROGRESS)

    def _is_mid_request(self) -> bool:
        """Whether the client has sent only a part of a request."""
        return self._write is not None or bool(self._wire.buffered)

    def lost(self, reason: Failure) -> None:
        self._executor.abandon()

    def may_be_silent(self) -> bool:
        """Whether the client is waiting for us, or its handler lets it be silent."""
        return self.waits_for_us or bool(self._handler.may_be_silent(self._connection))

    @property
    def waits_for_us(self) -> bool:
        """Whether a request of the client's is being carried out, or it is held."""
        return self._is_executing() or not self._reasons.isdisjoint(CLIENT_WAITS)

    @property
    def receiving(self) -> tuple[Request, int] | None:
        """The WRITE whose payload is on the wire, and how many bytes of that are here."""
        write = self._write
        return None if write is None else (write.request, write.position - write.request.offset)

    def progress(self) -> int | None:
        """How far the client is; see L{IExportHandler.progress}."""
        progress: int | None = self._handler.progress(self._connection)
        return progress

    @property
    def has_asked(self) -> bool:
        """Whether a request of the client's was admitted."""
        return self._context.traffic.any

    @property
    def is_mid_exchange(self) -> bool:
        """Whether the client has sent a part of a request, or has replies to take."""
        return self._is_mid_request() or self._outgoing.waiting

    def unanswered(self) -> list[bytes | FileRegion] | None:
        """Take away what the client has sent and was not answered; see L{Phase.unanswered}."""
        write, self._write = self._write, None
        data, position = self._wire.unread()
        items: list[bytes | FileRegion] = []
        if write is not None:
            if write.error:
                return None
            items = write.as_received(self._handler.disk)
        if position < len(data):
            items.append(bytes(data[position:]))
        return items


def _bug(failure: Failure) -> None:
    _log.failure("while answering a request", failure=failure)
