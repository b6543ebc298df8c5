"""What the requests of one connection do to a disk that they need not share.

Owns the plain way from a checked and admitted request to the disk; where the disk has many clients
another backend takes its place (`shared`). Both offer the same operations (`Backend`), so that
whoever carries requests out (`executor`) need not know which it is.

Rules:

* a READ is sent from the disk by region, unseen: if it fails, that costs the connection;
* a WRITE's payload goes to the disk as it comes;
* zeroes and trims are done at once where they are short, and are not to be durable; otherwise, like
  flushes, in a thread;
* what the client said is carried out to the end, also when it is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred

from ..interfaces import IDisk
from ..nbd import Command, CommandFlag, Errno, Request, ServerTransmission
from ..runtime import InThread
from ..transport import FileRegion

ReplyItems = list[Any]
"""What to put on the wire, in order: bytes and file regions."""

EventualReply = ReplyItems | Deferred[ReplyItems]
"""The reply to a request, now or once it is known."""

SHORT_ZEROES: Final = 1 << 20
"""Bytes of the longest range that may be zeroed, or trimmed, in the reactor's thread."""

IO_SIZE: Final = 1 << 20
"""Bytes that are read or written at a time by a thread."""

_ZEROING_SLICE: Final = 64 << 20


class Backend(Protocol):
    """The operations of a disk. What fails, or raises, does so with the disk's error."""

    @property
    def writes_in_thread(self) -> bool:
        """Whether payloads are to be written by L{write_in_thread}, rather than as they come."""

    def touch(self) -> None:
        """A request is about to be carried out, other than by the next two."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write some of a payload."""

    def write_in_thread(self, offset: int, data: bytes) -> Deferred[Any]:
        """I{In a thread.} Write some of a payload."""

    def write_region(self, offset: int, length: int) -> FileRegion:
        """Where so much of a payload belongs, some of which may now be moved there."""

    def payload_moved(self) -> None:
        """Some of it was."""

    def read(self, request: Request) -> EventualReply:
        """Carry out a READ."""

    def status(self, request: Request) -> EventualReply:
        """Carry out a BLOCK_STATUS."""

    def memory_to_read(self, length: int) -> int:
        """How many bytes of memory a large READ may take before its reply is sent."""

    def change(self, request: Request) -> Deferred[Any] | None:
        """Carry out a WRITE_ZEROES or a TRIM.

        @return: None if it is done.
        """

    def cache(self, request: Request) -> Deferred[Any]:
        """Carry out a CACHE."""

    def flush(self) -> Deferred[Any]:
        """Make durable what was written so far."""

    def abandon(self) -> None:
        """The connection is gone."""


class PlainBackend:
    """A disk that has the connection for its only client, or nearly so.

    @param disk: the disk.
    @param wire: makes the replies.
    @param in_thread: runs a function in a thread.
    """

    writes_in_thread = False

    def __init__(self, disk: IDisk, wire: ServerTransmission, in_thread: InThread) -> None:
        self._disk = disk
        self._wire = wire
        self._in_thread = in_thread

    def touch(self) -> None:
        """It matters to nobody."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write some of a payload."""
        self._disk.write(offset, data)

    def write_in_thread(self, offset: int, data: bytes) -> Deferred[Any]:
        """I{In a thread.} Write some of a payload."""
        return self._in_thread(self._disk.write, offset, data)

    def write_region(self, offset: int, length: int) -> FileRegion:
        """Where so much of a payload belongs."""
        return FileRegion(self._disk, offset, length)

    def payload_moved(self) -> None:
        """It matters to nobody."""

    def read(self, request: Request) -> ReplyItems:
        """Send it from the disk."""
        region = FileRegion(self._disk, request.offset, request.length)
        return self._wire.reply(request, 0, [region])

    def status(self, request: Request) -> ReplyItems:
        """It is offered to nobody."""
        return self._wire.reply(request, Errno.ENOTSUP)

    def memory_to_read(self, length: int) -> int:
        """None."""
        return 0

    def change(self, request: Request) -> Deferred[Any] | None:
        """Zero, or trim."""
        if request.length <= SHORT_ZEROES and not request.flags & CommandFlag.FUA:
            self._change(request)
            return None
        return self._in_thread(self._change, request)

    def _change(self, request: Request) -> None:
        change(self._disk, request)

    def cache(self, request: Request) -> Deferred[Any]:
        """I{In a thread.} Read it all."""
        return self._in_thread(cache, self._disk, request)

    def flush(self) -> Deferred[Any]:
        """I{In a thread.} Flush the disk."""
        return self._in_thread(self._disk.flush)

    def abandon(self) -> None:
        """What the client said is carried out all the same."""


def change(disk: IDisk, request: Request, check: Callable[[], None] = lambda: None) -> None:
    """I{Slow.} Carry out a WRITE_ZEROES or a TRIM, in slices.

    @param check: called before each slice; raises if nobody wants the rest any more.
    """
    offset, end = request.offset, request.offset + request.length
    allocate = bool(request.flags & CommandFlag.NO_HOLE)
    fast = bool(request.flags & CommandFlag.FAST_ZERO)
    while offset < end:
        check()
        length = min(_ZEROING_SLICE, end - offset)
        if request.command == Command.TRIM:
            disk.trim(offset, length)
        else:
            disk.zero(offset, length, allocate, fast)
        offset += length


def cache(disk: IDisk, request: Request, check: Callable[[], None] = lambda: None) -> None:
    """I{Slow.} Read all of a range, and forget it.

    @param check: see L{change}.
    """
    offset, end = request.offset, request.offset + request.length
    while offset < end:
        check()
        offset += len(disk.read(offset, min(IO_SIZE, end - offset)))
