"""Carries out the requests of one connection.

Owns a request's way from the wire's event to its reply: the check, the admission, the work on the
disk (`backend`), and the notification of the handler. Rules:

* every request has one reply: a list of what to put on the wire, now or later, and never a failure.
  Errors become replies here, and these are sent before the handler is notified of the error;
* nothing more is read from the client until it is known whether its latest request is admitted;
* a reply that reports success is made only after the disk reported it;
* FUA flushes after the request's own work;
* a WRITE's payload is taken off the wire whatever the answer; once a part of it could not be
  written, the rest is discarded.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..nbd import (
    REQUEST,
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    Errno,
    Negotiated,
    Request,
    ServerTransmission,
    check_request,
    errno_to_wire,
)
from ..transport import FileRegion
from .access import LONGEST_STATUS, SMALL
from .backend import IO_SIZE, Backend, EventualReply, ReplyItems
from .handler import IExportHandler
from .holds import CLOSING, DRAINING, Hold
from .phase import PhaseContext

_log = Logger()

_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_FLUSH: Final = int(Command.FLUSH)
_STATUS: Final = int(Command.BLOCK_STATUS)
_CACHE: Final = int(Command.CACHE)
_FUA: Final = int(CommandFlag.FUA)


class IncomingWrite:
    """The WRITE whose payload is on the wire.

    @ivar request: the WRITE.
    @ivar error: the error to answer with, 0 for none; with an error the payload is discarded. Until
        the request is admitted it is ESHUTDOWN.
    @ivar in_thread: the payload is written by a thread.
    @ivar position: where on the disk the next byte from the wire belongs.
    """

    __slots__ = ("_backend", "_buffered", "_pieces", "error", "in_thread", "position", "request")

    def __init__(self, request: Request, backend: Backend) -> None:
        self.request = request
        self.error = int(Errno.ESHUTDOWN)
        self.in_thread = False
        self.position = request.offset
        self._backend = backend
        self._pieces: list[bytes] = []
        self._buffered = 0

    def admit(self, error: int) -> None:
        """The request is admitted (C{error} is 0), or refused with C{error}."""
        self.error = error
        self.in_thread = not error and self._backend.writes_in_thread

    def take(self, data: memoryview) -> Deferred[Any] | None:
        """The next bytes of the payload have arrived.

        @return: None; or a Deferred that fires when more may be taken.
        @raise OSError: they could not be written.
        """
        offset = self.position
        self.position += len(data)
        if self.error:
            return None
        if not self.in_thread:
            self._backend.write(offset, data)
            return None
        self._pieces.append(bytes(data))
        self._buffered += len(data)
        return self.write_buffered() if self._buffered >= IO_SIZE else None

    def write_buffered(self) -> Deferred[Any] | None:
        """Write the buffered bytes in a thread; None if there are none."""
        if not self._pieces:
            return None
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        return self._backend.write_in_thread(self.position - len(data), data)

    def as_received(self, disk: Any) -> list[bytes | FileRegion]:
        """Its header, and the payload received so far: from C{disk}, and from memory."""
        start, written = self.request.offset, self.position - self._buffered - self.request.offset
        header = REQUEST.pack(REQUEST_MAGIC, *self.request)
        region = [FileRegion(disk, start, written)] if written else []
        return [header, *region, *self._pieces]


class RequestExecutor:
    """Carries out the requests of one connection.

    @param connection: what the handler knows the connection by.
    @param handler: decides about requests.
    @param negotiated: what was negotiated.
    @param wire: makes the replies.
    @param backend: works on the disk.
    """

    def __init__(
        self,
        context: PhaseContext,
        connection: Any,
        handler: IExportHandler,
        negotiated: Negotiated,
        *,
        wire: ServerTransmission,
        backend: Backend,
    ) -> None:
        self._handler = handler
        self._connection = connection
        self._export = negotiated.export
        self._allocation = negotiated.allocation
        self._wire = wire
        self._backend = backend
        self._holds = context.holds
        self._outgoing = context.outgoing
        self._traffic = context.traffic
        self._peer = context.peer
        self._refused = context.refused

    def execute(self, request: Request) -> EventualReply:
        """Carry out a request that has no payload.

        @return: its reply; empty if the connection has closed meanwhile.
        """
        admitted = self._admit(request)
        if not isinstance(admitted, Deferred):
            return self._begin(request, admitted)
        answered: Deferred[ReplyItems] = Deferred()

        def begin(error: int) -> Any:
            return [] if CLOSING in self._holds.reasons else self._begin(request, error)

        def begin_after(error: int) -> None:
            maybeDeferred(begin, error).chainDeferred(answered)

        self._after(admitted, begin_after)
        return answered

    def memory_for(self, request: Request) -> int:
        """How many bytes of memory the request may take until its reply is sent."""
        if request.command == _WRITE or request.length <= SMALL:
            return min(request.length, IO_SIZE)
        if request.command == _STATUS:
            return LONGEST_STATUS
        return self._backend.memory_to_read(request.length) if request.command == _READ else 0

    def abandon(self) -> None:
        """The connection is gone."""
        self._backend.abandon()

    # WRITE.

    def receive(self, request: Request) -> IncomingWrite:
        """A WRITE was received; its payload follows."""
        write = IncomingWrite(request, self._backend)
        admitted = self._admit(request)
        if isinstance(admitted, Deferred):
            self._after(admitted, write.admit)
        else:
            write.admit(admitted)
        return write

    def take(self, write: IncomingWrite, data: memoryview) -> Deferred[Any] | None:
        """A part of the payload was received.

        @return: None; or a Deferred that fires, or fails, when more may be taken.
        """
        try:
            return write.take(data)
        except OSError as error:
            self.write_failed(write, error)
            return None

    def write_failed(self, write: IncomingWrite, error: BaseException | None) -> None:
        """A part of the payload could not be written."""
        write.error = _wire_errno(error)
        self._handler.failed(self._connection, write.request, error)

    def finish(self, write: IncomingWrite) -> EventualReply:
        """The payload is complete.

        @return: the WRITE's reply.
        """
        if write.error:
            return self._wire.reply(write.request, write.error)
        return self._flush_if_asked(write.request, write.write_buffered())

    # From the request to the work.

    def _admit(self, request: Request) -> int | Deferred[int]:
        """0 if the request may be carried out, else the error to answer it with."""
        error = check_request(request, self._export, self._allocation)
        if error:
            self._refused.note(self._peer, request, self._export)
            return error
        if DRAINING in self._holds.reasons:
            return Errno.ESHUTDOWN
        admitted: int | Deferred[int] = self._handler.admit(self._connection, request)
        if not admitted or isinstance(admitted, Deferred):
            self._traffic.count_request(request)
        return admitted

    def _after(self, admission: Deferred[int], begin: Any) -> None:
        """Hold the client until it is known whether the request is admitted."""

        def admitted(result: int | Failure) -> None:
            if isinstance(result, Failure):
                _log.failure("while answering a request", failure=result)
                result = errno_to_wire(None)
            begin(result)

        self._holds.until(Hold.ADMITTING, admission, admitted)

    def _begin(self, request: Request, error: int) -> EventualReply:
        if error:
            return self._wire.reply(request, error)
        backend, command = self._backend, request.command
        backend.touch()
        if command == _READ:
            return self._reply_or_error(request, backend.read(request))
        if command == _STATUS:
            return self._reply_or_error(request, backend.status(request))
        if command == _CACHE:
            return self._reply_when_done(request, backend.cache(request))
        if command == _FLUSH:
            needed = self._handler.needs_flush(self._connection)
            return self._reply_when_done(request, backend.flush() if needed else None)
        try:
            changing = backend.change(request)
        except OSError as failed:
            return self._reply_failed(request, failed)
        return self._flush_if_asked(request, changing)

    # From the work to the reply.

    def _flush_if_asked(self, request: Request, changing: Deferred[Any] | None) -> EventualReply:
        """The disk is being changed, or was (None); with FUA, flush it after that."""
        if request.flags & _FUA:
            flush = self._backend.flush
            changing = flush() if changing is None else changing.addCallback(lambda _: flush())
        return self._reply_when_done(request, changing)

    def _reply_when_done(self, request: Request, working: Deferred[Any] | None) -> EventualReply:
        """Reply once the work is done; it has no result."""
        if working is None:
            return self._reply_done(request)
        return working.addCallbacks(
            lambda _: self._reply_done(request),
            lambda failure: self._reply_failed(request, failure.value),
        )

    def _reply_or_error(self, request: Request, answer: EventualReply) -> EventualReply:
        if isinstance(answer, Deferred):
            answer.addErrback(lambda failure: self._reply_failed(request, failure.value))
        return answer

    def _reply_done(self, request: Request) -> EventualReply:
        more = self._handler.done(self._connection, request)
        if not isinstance(more, Deferred):
            return self._wire.reply(request)
        # The handler still has something to do, and knows itself if that fails.
        return more.addCallbacks(
            lambda _: self._wire.reply(request),
            lambda failure: self._wire.reply(request, _wire_errno(failure.value)),
        )

    def failed(self, request: Request, error: BaseException | None) -> None:
        """Answer the client first: the handler may end the connection because of the error."""
        self._outgoing.send(self._wire.reply(request, _wire_errno(error)))
        self._handler.failed(self._connection, request, error)

    def _reply_failed(self, request: Request, error: BaseException | None) -> ReplyItems:
        self.failed(request, error)
        return []


def _wire_errno(error: BaseException | None) -> int:
    """The NBD error that stands for an exception."""
    return errno_to_wire(getattr(error, "errno", None))
