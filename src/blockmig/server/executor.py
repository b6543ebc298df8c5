"""The requests of one connection, carried out.

Owns the way of a request from the wire's event to its reply: whether it is right, whether it is
admitted, what it does to the disk (`backend`), what whoever decides is told of it. Rules:

* every request has one reply: a list of what goes on the wire, now or later, and never a failure;
  here errors become replies, which are sent before anybody else hears of the error;
* nothing more is taken from the client before it is known whether its latest request is admitted;
* a reply that says success is made only after the disk said so;
* FUA flushes after the request's own work;
* a WRITE's payload is taken off the wire whatever the answer; once some of it could not be written
  no more of it is.
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


class IncomingWrite:
    """The WRITE whose payload is on the wire.

    @ivar request: the WRITE.
    @ivar error: what to answer it with; its payload is then only taken off the wire. So it is
        before the request is admitted.
    @ivar in_thread: what comes of the payload is to be written by a thread.
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
        """It is known whether it is to be tried."""
        self.error = error
        self.in_thread = not error and self._backend.writes_in_thread

    def take(self, data: memoryview) -> Deferred[Any] | None:
        """The next bytes have come.

        @return: None; or what fires when more may be taken.
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
        """Write what has come and is to be written by a thread; None if there is nothing."""
        if not self._pieces:
            return None
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        return self._backend.write_in_thread(self.position - len(data), data)

    def as_received(self, disk: Any) -> list[bytes | FileRegion]:
        """Its header, and what has come of its payload: from C{disk}, and from memory."""
        start, written = self.request.offset, self.position - self._buffered - self.request.offset
        header = REQUEST.pack(REQUEST_MAGIC, *self.request)
        region = [FileRegion(disk, start, written)] if written else []
        return [header, *region, *self._pieces]


class RequestExecutor:
    """The requests of one connection.

    @param context: the connection.
    @param connection: what the handler knows it by.
    @param handler: who decides.
    @param negotiated: what was agreed on.
    @param wire: makes the replies.
    @param backend: what is done to the disk.
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

    def execute(self, request: Request) -> EventualReply:
        """Carry out a request that has no payload.

        @return: its reply; empty where the client is not to be answered any more.
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
        """How many bytes of memory the request may take while it is being carried out."""
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
        """A WRITE's payload is about to come."""
        write = IncomingWrite(request, self._backend)
        admitted = self._admit(request)
        if isinstance(admitted, Deferred):
            self._after(admitted, write.admit)
        else:
            write.admit(admitted)
        return write

    def take(self, write: IncomingWrite, data: memoryview) -> Deferred[Any] | None:
        """Some of the payload came.

        @return: None; or what fires, or fails, when more may be taken.
        """
        try:
            return write.take(data)
        except OSError as error:
            self.write_failed(write, error)
            return None

    def write_failed(self, write: IncomingWrite, error: BaseException | None) -> None:
        """The disk did not take some of the payload."""
        write.error = _wire_errno(error)
        self._handler.failed(self._connection, write.request, error)

    def finish(self, write: IncomingWrite) -> EventualReply:
        """All of the payload came.

        @return: the WRITE's reply.
        """
        if write.error:
            return self._wire.reply(write.request, write.error)
        return self._flush_if_asked(write.request, write.write_buffered())

    # From the request to what is done.

    def _admit(self, request: Request) -> int | Deferred[int]:
        """The error to answer with before anything is tried; 0 if it may be tried."""
        error = check_request(request, self._export, self._allocation)
        if error:
            return error
        if DRAINING in self._holds.reasons:
            return Errno.ESHUTDOWN
        admitted: int | Deferred[int] = self._handler.admit(self._connection, request)
        if not admitted or isinstance(admitted, Deferred):
            self._traffic.count_request(request)
        return admitted

    def _after(self, admission: Deferred[int], begin: Any) -> None:
        """Do nothing more for the client until it is known whether the request is admitted."""

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

    # From what is done to the reply.

    def _flush_if_asked(self, request: Request, changing: Deferred[Any] | None) -> EventualReply:
        """The disk is being changed, or was; FUA wants it flushed after that."""
        if request.flags & CommandFlag.FUA:
            flush = self._backend.flush
            changing = flush() if changing is None else changing.addCallback(lambda _: flush())
        return self._reply_when_done(request, changing)

    def _reply_when_done(self, request: Request, working: Deferred[Any] | None) -> EventualReply:
        """There is nothing to say of the work but that it is done."""
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
        # The handler has something to do yet, and knows itself if that fails.
        return more.addCallbacks(
            lambda _: self._wire.reply(request),
            lambda failure: self._wire.reply(request, _wire_errno(failure.value)),
        )

    def _reply_failed(self, request: Request, error: BaseException | None) -> ReplyItems:
        """The client is told first: whoever decides may end the connection because of it."""
        self._outgoing.send(self._wire.reply(request, _wire_errno(error)))
        self._handler.failed(self._connection, request, error)
        return []


def _wire_errno(error: BaseException | None) -> int:
    """The error of the wire for what the system said."""
    return errno_to_wire(getattr(error, "errno", None))
