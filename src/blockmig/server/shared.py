"""What the requests of one connection do to a disk that it shares with the others of a server.

Owns the ways from an admitted request to the disk as `DiskAccess` has it: at once where that need
not wait, by threads otherwise.

Rules:

* a large READ is sent from the disk by region, when it is ready (`access`); one that cannot be read
  although its bytes were promised is filled up with zeroes and spoiled by an error chunk, or, where
  replies are not structured, costs the connection;
* a small READ is read into memory before anything of it is said;
* where replies are structured, and the client does not forbid it, holes go as holes;
* a WRITE goes by threads while the disk is not quick;
* whoever watches the disk's changes (`changes`) is told before each, and again after one that a
  thread made;
* once the connection is gone, what was not begun is not done.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred

from ..interfaces import Extent
from ..nbd import ALLOCATION_ID, CommandFlag, Request, ServerTransmission, errno_to_wire
from ..transport import LONGEST_MOVE, FileRegion
from .access import SHORTEST_HOLE, SMALL, DiskAccess
from .backend import IO_SIZE, SHORT_ZEROES, EventualReply, ReplyItems, cache, change
from .jobs import JobOwner
from .latency import CallStart

# Bytes of memory that one run of a READ's reply takes, or nearly so.
_RUN_MEMORY: Final = 256
_ZEROES: Final = bytes(IO_SIZE)


class SharedBackend:
    """A disk that other connections use as well; a L{Backend}.

    @param access: the disk as all of them share it.
    @param wire: makes the replies.
    @param structured: replies are structured.
    """

    def __init__(self, access: DiskAccess, wire: ServerTransmission, structured: bool) -> None:
        self._access = access
        self._disk = access.disk
        self._latency = access.latency
        self._changes = access.changes
        self._wire = wire
        self._structured = structured
        self._owner = JobOwner()
        self._call_start: CallStart = (0.0, -1)

    def touch(self) -> None:
        """The disk is in use."""
        self._latency.touch()

    def abandon(self) -> None:
        """What was not begun is not to be done."""
        self._access.jobs.abandon(self._owner)

    def _check(self) -> None:
        if self._owner.gone:
            raise CancelledError

    # WRITE.

    @property
    def writes_in_thread(self) -> bool:
        """While the disk is not quick."""
        return not self._access.quick

    def write(self, offset: int, data: memoryview) -> None:
        """Write some of a payload at once."""
        self._changes.notify(offset, len(data))
        began = self._latency.begin()
        try:
            self._disk.write(offset, data)
        finally:
            self._latency.end(began)

    def write_in_thread(self, offset: int, data: bytes) -> Deferred[Any]:
        """I{In a thread.} Write some of a payload."""
        writing = self._access.write(offset, data, self._owner)
        return self._changes.around(offset, len(data), writing)

    def write_region(self, offset: int, length: int) -> FileRegion:
        """Where so much of a payload belongs; no more than can be moved in one go is announced."""
        self._call_start = self._latency.begin()
        if self._changes.mark is not None:
            self._changes.notify(offset, min(length, LONGEST_MOVE))
        return FileRegion(self._disk, offset, length)

    def payload_moved(self) -> None:
        """Some of it is there, or lost."""
        self._latency.end(self._call_start)

    # READ.

    def read(self, request: Request) -> EventualReply:
        """Small ones in memory, large ones from the disk."""
        access, offset, length = self._access, request.offset, request.length
        if length <= SMALL:
            if access.quick:
                buffer = bytearray(length)
                if access.read_nowait(memoryview(buffer), offset):
                    return self._wire.reply(request, 0, [bytes(buffer)])
            return self._read_in_thread(request)
        if self._must_read_first():
            return self._read_in_thread(request)
        with_holes = self._structured and not request.flags & CommandFlag.DF
        if access.is_ready(offset, length, with_holes):
            return self._send(request, [Extent(offset, length, hole=False)])
        preparing = access.prepare(offset, length, with_holes, self._owner)
        return preparing.addCallback(lambda runs: self._send(request, runs))

    def _must_read_first(self) -> bool:
        return self._access.reads_first or self._disk.fileno() is None

    def memory_to_read(self, length: int) -> int:
        """All of it, or what its runs take."""
        return length if self._must_read_first() else length // SHORTEST_HOLE * _RUN_MEMORY

    def _read_in_thread(self, request: Request) -> Deferred[ReplyItems]:
        reading = self._access.read(request.offset, request.length, self._owner)
        return reading.addCallback(lambda data: self._wire.reply(request, 0, [data]))

    def _send(self, request: Request, runs: list[Extent]) -> ReplyItems:
        wire, disk = self._wire, self._disk
        if not self._structured:
            return wire.reply(request, 0, [FileRegion(disk, request.offset, request.length)])

        def on_read_error(error: OSError, rest: FileRegion) -> list[bytes]:
            self._access.read_failed(error)
            number = errno_to_wire(error.errno)
            return [*_zeroes(rest.length), wire.error_at(request, number, rest.offset)]

        items: ReplyItems = []
        for offset, length, hole in runs:
            if hole:
                items.append(wire.hole(request, offset, length, done=False))
            else:
                region = FileRegion(disk, offset, length, on_read_error)
                items += wire.data(request, offset, length, [region], done=False)
        return [*items, wire.end(request)]

    # All the others.

    def status(self, request: Request) -> Deferred[ReplyItems]:
        """I{In a thread.} Where there is data, and where none."""
        one = bool(request.flags & CommandFlag.REQ_ONE)
        looking = self._access.status(request.offset, request.length, one, self._owner)
        return looking.addCallback(
            lambda extents: [self._wire.block_status(request, ALLOCATION_ID, extents)]
        )

    def change(self, request: Request) -> Deferred[Any] | None:
        """Zero, or trim: at once while the disk is quick, and it is not for much."""
        access, offset, length = self._access, request.offset, request.length
        if not request.flags & CommandFlag.NO_HOLE:
            access.forget_layout()
        if not access.quick or length > SHORT_ZEROES:
            changing = access.jobs.run(self._owner, self._change, request, changing=True)
            return self._changes.around(offset, length, changing, data=False)
        self._changes.notify(offset, length, data=False)
        began = self._latency.begin()
        try:
            self._change(request)
        finally:
            self._latency.end(began)
        return None

    def _change(self, request: Request) -> None:
        change(self._disk, request, self._check)

    def cache(self, request: Request) -> Deferred[Any]:
        """I{In a thread.} Read it all."""
        return self._access.jobs.run(self._owner, cache, self._disk, request, self._check)

    def flush(self) -> Deferred[Any]:
        """Together with whoever else wants that."""
        return self._access.flush()


def _zeroes(count: int) -> list[bytes]:
    whole, rest = divmod(count, IO_SIZE)
    return [_ZEROES] * whole + ([_ZEROES[:rest]] if rest else [])
