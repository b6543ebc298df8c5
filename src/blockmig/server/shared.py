"""What the requests of one connection do to a disk that it shares with a server's other clients.

Owns the ways from an admitted request to the disk through `DiskAccess`: in the reactor's thread
where that need not wait, in other threads otherwise.

Rules:

* a large READ is sent from the disk as a file region, once that is ready (`access`). If it cannot
  be read although the reply's header has promised its bytes, it is filled up with zeroes and marked
  by an error chunk; without structured replies the connection is lost;
* a small READ is read into memory before its reply begins;
* with structured replies, and unless the client sets DF, holes are sent as hole chunks;
* a WRITE is written by threads while the disk is not quick;
* whoever watches the disk's changes (`changes`) is notified before each one, and again after one
  that a thread made;
* once the connection is gone, requests that were not begun are dropped.
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

# About the bytes of memory that one run (data or hole) of a READ's reply takes.
_RUN_MEMORY: Final = 256
_ZEROES: Final = bytes(IO_SIZE)


class SharedBackend:
    """A L{Backend} for a disk that other connections use as well.

    @param access: the shared access to the disk.
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
        self._latency.touch()

    def abandon(self) -> None:
        """Drop the requests that were not begun."""
        self._access.jobs.abandon(self._owner)

    def _check(self) -> None:
        if self._owner.gone:
            raise CancelledError

    # WRITE.

    @property
    def writes_in_thread(self) -> bool:
        return not self._access.quick

    def write(self, offset: int, data: memoryview) -> None:
        self._changes.notify(offset, len(data))
        began = self._latency.begin()
        try:
            self._disk.write(offset, data)
        finally:
            self._latency.end(began)

    def write_in_thread(self, offset: int, data: bytes) -> Deferred[Any]:
        writing = self._access.write(offset, data, self._owner)
        return self._changes.around(offset, len(data), writing)

    def write_region(self, offset: int, length: int) -> FileRegion:
        """Where the payload belongs; watchers are notified only of what one move can change."""
        self._call_start = self._latency.begin()
        if self._changes.mark is not None:
            self._changes.notify(offset, min(length, LONGEST_MOVE))
        return FileRegion(self._disk, offset, length)

    def payload_moved(self) -> None:
        self._latency.end(self._call_start)

    # READ.

    def read(self, request: Request) -> EventualReply:
        """Read small ones into memory; send large ones from the disk."""
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
        """All of it where it is read in a thread, else what its runs take."""
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

    # The other commands.

    def status(self, request: Request) -> Deferred[ReplyItems]:
        one = bool(request.flags & CommandFlag.REQ_ONE)
        looking = self._access.status(request.offset, request.length, one, self._owner)
        return looking.addCallback(
            lambda extents: [self._wire.block_status(request, ALLOCATION_ID, extents)]
        )

    def change(self, request: Request) -> Deferred[Any] | None:
        """Zero or trim: in the reactor's thread if the disk is quick and the range short."""
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
        return self._access.jobs.run(self._owner, cache, self._disk, request, self._check)

    def flush(self) -> Deferred[Any]:
        return self._access.flush()


def _zeroes(count: int) -> list[bytes]:
    whole, rest = divmod(count, IO_SIZE)
    return [_ZEROES] * whole + ([_ZEROES[:rest]] if rest else [])
