"""How the requests of one connection are carried out, and what the wire then says of it.

Owns the ways from an admitted request to the items of its reply. Whoever calls has checked the
request, sends the items, and answers with an error what raises or fails.

Rules:

* a large READ is sent from the disk by region, when it is ready (`access`); one that cannot be read
  although its bytes were promised is filled up with zeroes and spoiled by an error chunk, or, where
  replies are not structured, costs the connection;
* a small READ is read into memory before anything of it is said;
* where replies are structured, and the client does not forbid it, holes go as holes;
* a WRITE goes by threads while the disk is not quick, a large one piece by piece, and no more of it
  is taken meanwhile;
* FUA flushes behind the request's own work;
* whoever watches the disk's changes (`changes`) is told before each, and again behind one that a
  thread made.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred

from ..interfaces import Extent, IExportHandler
from ..nbd import (
    ALLOCATION_ID,
    Command,
    CommandFlag,
    Request,
    ServerTransmission,
    errno_to_wire,
)
from ..runtime import InThread
from ..transport import FileRegion
from .access import MOST_STATUS, SHORTEST_HOLE, SMALL, DiskAccess
from .work import Owner

Reply = list[Any]
"""What to put on the wire, in order: bytes and file regions."""

_SHORT_ZEROES: Final = 1 << 20
_SLICE: Final = 64 << 20
# Bytes of memory that one run of a READ's reply takes, or nearly so.
_RUN_SIZE: Final = 256
_PIECE: Final = 1 << 20
_ZEROES: Final = bytes(_PIECE)


class IncomingWrite:
    """The WRITE whose payload is on the wire.

    @ivar error: what to answer it with; its payload is then only taken off the wire.
    @ivar position: where on the disk the next byte from the wire belongs.
    @ivar pieces: what came of it and is to be written by a thread; None if that is not the way.
    @ivar gathered: how many bytes they are.
    """

    __slots__ = ("error", "gathered", "pieces", "position", "request")

    def __init__(self, request: Request, error: int, pieces: list[bytes] | None) -> None:
        self.request = request
        self.error = error
        self.position = request.offset
        self.pieces = pieces
        self.gathered = 0


class Carrying:
    """The requests of one connection.

    @param handler: whose disk it is.
    @param access: the disk as its clients share it; None to go the plain way.
    @param wire: makes the replies.
    @param in_thread: runs a function in a thread.
    @param structured: replies are structured.
    """

    def __init__(
        self,
        handler: IExportHandler,
        access: DiskAccess | None,
        wire: ServerTransmission,
        in_thread: InThread,
        structured: bool,
    ) -> None:
        self._handler = handler
        self._disk = handler.disk
        self._access = access
        self._wire = wire
        self._in_thread = in_thread
        self._structured = structured
        self._owner = Owner()

    def memory_for(self, request: Request) -> int:
        """How many bytes of memory the request may take while it is being carried out."""
        if request.command == Command.WRITE or request.length <= SMALL:
            return min(request.length, _PIECE)
        if request.command == Command.BLOCK_STATUS:
            return MOST_STATUS
        if request.command != Command.READ:
            return 0
        runs = request.length // SHORTEST_HOLE
        return request.length if self._reads_whole() else runs * _RUN_SIZE

    def _reads_whole(self) -> bool:
        access = self._access
        return access is not None and (access.careful or self._disk.fileno() is None)

    def abandon(self) -> None:
        """The connection is gone: what was not begun is not to be done.

        Where all is done the plain way, what the wire said is carried out to the end.
        """
        if self._access is not None:
            self._access.work.abandon(self._owner)

    def _run(self, function: Any, *arguments: Any, changing: bool = False) -> Deferred[Any]:
        """In a thread."""
        if self._access is None:
            return self._in_thread(function, *arguments)
        return self._access.work.run(self._owner, function, *arguments, changing=changing)

    # WRITE.

    def receive(self, request: Request, error: int) -> IncomingWrite:
        """A WRITE's payload is about to come."""
        access = self._access
        aside = not error and access is not None and not access.quick
        return IncomingWrite(request, error, [] if aside else None)

    def take(self, write: IncomingWrite, data: memoryview) -> Deferred[None] | None:
        """Some of it came.

        @return: None; or what fires when more may be taken.
        @raise OSError: it could not be written.
        """
        write.position += len(data)
        if write.error:
            return None
        if write.pieces is None:
            self._tell(write.position - len(data), len(data))
            self._timed(self._disk.write, write.position - len(data), data)
            return None
        write.pieces.append(bytes(data))
        write.gathered += len(data)
        return self._write_pieces(write) if write.gathered >= _PIECE else None

    def _write_pieces(self, write: IncomingWrite) -> Deferred[None]:
        assert self._access is not None
        assert write.pieces is not None
        data = b"".join(write.pieces)
        write.pieces.clear()
        write.gathered = 0
        offset = write.position - len(data)
        writing = self._access.write(offset, data, self._owner)
        return self._access.changes.around(offset, len(data), writing)

    def _tell(self, offset: int, length: int, data: bool = True) -> None:
        if self._access is not None:
            self._access.changes.tell(offset, length, data)

    def finish(self, write: IncomingWrite) -> Deferred[None] | None:
        """All of it came.

        @return: fires when it is on the disk; None if it is already.
        """
        return self._durable(write.request, self._write_pieces(write) if write.pieces else None)

    def _timed(self, work: Any, *arguments: Any) -> None:
        access = self._access
        if access is None:
            work(*arguments)
            return
        began = access.pace.begin()
        try:
            work(*arguments)
        finally:
            access.pace.end(began)

    # All the others.

    def carry_out(self, request: Request, connection: Any) -> Deferred[Any] | Reply | None:
        """Carry out a request that has no payload.

        @return: the reply, or None for plain success; or what fires with either.
        """
        command = request.command
        if self._access is not None:
            self._access.pace.note()
        if command == Command.READ:
            return self._read(request)
        if command == Command.BLOCK_STATUS:
            return self._block_status(request)
        if command == Command.FLUSH:
            return self._flush() if self._handler.needs_flush(connection) else None
        if command == Command.CACHE:
            return self._run(self._cache, request)
        return self._zero_or_trim(request)

    def _flush(self) -> Deferred[Any]:
        if self._access is not None:
            return self._access.flush()
        return self._in_thread(self._disk.flush)

    def _durable(self, request: Request, working: Deferred[Any] | None) -> Deferred[Any] | None:
        """C{working}, with the flush behind it that FUA asks for."""
        if not request.flags & CommandFlag.FUA:
            return working
        return self._flush() if working is None else working.addCallback(lambda _: self._flush())

    def _cache(self, request: Request) -> None:
        offset, end = request.offset, request.offset + request.length
        while offset < end:
            self._check_owner()
            offset += len(self._disk.read(offset, min(_PIECE, end - offset)))

    def _zero_or_trim(self, request: Request) -> Deferred[Any] | None:
        access = self._access
        if access is not None and not request.flags & CommandFlag.NO_HOLE:
            access.forget_layout()
        quick = access.quick if access is not None else not request.flags & CommandFlag.FUA
        working: Deferred[Any] | None = None
        if quick and request.length <= _SHORT_ZEROES:
            self._tell(request.offset, request.length, data=False)
            try:
                self._timed(self._change, request)
            except OSError as error:
                return _failed(error)
        else:
            working = self._run(self._change, request, changing=True)
            if access is not None:
                access.changes.around(request.offset, request.length, working, data=False)
        return self._durable(request, working)

    def _change(self, request: Request) -> None:
        """In slices, since nobody may want all of it any more."""
        offset, end = request.offset, request.offset + request.length
        allocate = bool(request.flags & CommandFlag.NO_HOLE)
        fast = bool(request.flags & CommandFlag.FAST_ZERO)
        while offset < end:
            self._check_owner()
            length = min(_SLICE, end - offset)
            if request.command == Command.TRIM:
                self._disk.trim(offset, length)
            else:
                self._disk.zero(offset, length, allocate, fast)
            offset += length

    def _check_owner(self) -> None:
        if self._owner.gone:
            raise CancelledError

    def _block_status(self, request: Request) -> Deferred[Reply]:
        assert self._access is not None
        one = bool(request.flags & CommandFlag.REQ_ONE)
        looking = self._access.status(request.offset, request.length, one, self._owner)
        return looking.addCallback(
            lambda extents: [self._wire.block_status(request, ALLOCATION_ID, extents)]
        )

    # READ.

    def _read(self, request: Request) -> Deferred[Reply] | Reply:
        access, offset, length = self._access, request.offset, request.length
        if access is None:
            return self._wire.reply(request, 0, [FileRegion(self._disk, offset, length)])
        if length <= SMALL:
            if access.quick:
                buffer = bytearray(length)
                if access.read_now(memoryview(buffer), offset):
                    return self._wire.reply(request, 0, [bytes(buffer)])
            return self._read_whole(request, access)
        if self._reads_whole():
            return self._read_whole(request, access)
        with_holes = self._structured and not request.flags & CommandFlag.DF
        if access.is_ready(offset, length, with_holes):
            return self._send(request, [Extent(offset, length, hole=False)])
        preparing = access.prepare(offset, length, with_holes, self._owner)
        return preparing.addCallback(lambda runs: self._send(request, runs))

    def _read_whole(self, request: Request, access: DiskAccess) -> Deferred[Reply]:
        reading = access.read(request.offset, request.length, self._owner)
        return reading.addCallback(lambda data: self._wire.reply(request, 0, [data]))

    def _send(self, request: Request, runs: list[Extent]) -> Reply:
        wire, disk = self._wire, self._disk
        if not self._structured:
            return wire.reply(request, 0, [FileRegion(disk, request.offset, request.length)])

        def rescue(error: OSError, rest: FileRegion) -> list[bytes]:
            assert self._access is not None
            self._access.read_failed(error)
            number = errno_to_wire(error.errno)
            return [*_zeroes(rest.length), wire.error_at(request, number, rest.offset)]

        items: Reply = []
        for offset, length, hole in runs:
            if hole:
                items.append(wire.hole(request, offset, length, done=False))
            else:
                region = FileRegion(disk, offset, length, rescue)
                items += wire.data(request, offset, length, [region], done=False)
        return [*items, wire.end(request)]


def _zeroes(count: int) -> list[bytes]:
    whole, rest = divmod(count, _PIECE)
    return [_ZEROES] * whole + ([_ZEROES[:rest]] if rest else [])


def _failed(error: OSError) -> Deferred[Any]:
    failed: Deferred[Any] = Deferred()
    failed.errback(error)
    return failed
