"""What the requests of one connection do to a disk that has no other clients.

Owns the direct way from a checked and admitted request to the disk; for a disk with many clients
there is another backend (`shared`). Both implement `Backend`, so that `executor`, which carries the
requests out, need not know which one it has.

Rules:

* a READ is sent from the disk as a file region, unread: if that fails the connection is lost;
* a WRITE's payload is written to the disk as it arrives;
* WRITE_ZEROES and TRIM run in the reactor's thread if they are short (1 MiB) and without FUA;
  otherwise, like flushes, in a thread;
* but every call of a disk without a descriptor is slow, and is made in a thread: a READ is then
  read before its reply begins;
* a request that was received is carried out to its end, even if its client has gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred

from ..interfaces import IDisk
from ..nbd import Command, CommandFlag, Errno, Request, ServerTransmission
from ..runtime import InThread
from ..storage import is_untouched
from ..transport import FileRegion

ReplyItems = list[Any]
"""What to put on the wire for a reply, in order: bytes and file regions."""

EventualReply = ReplyItems | Deferred[ReplyItems]
"""The reply to a request, or a Deferred of it."""

SHORT_ZEROES: Final = 1 << 20
"""Bytes of the longest range that may be zeroed or trimmed in the reactor's thread."""

IO_SIZE: Final = 1 << 20
"""Bytes that a thread reads or writes at a time."""

# Enum's own operators are Python functions, and these are used for each request.
_FUA: Final = int(CommandFlag.FUA)
_NO_HOLE: Final = int(CommandFlag.NO_HOLE)
_FAST_ZERO: Final = int(CommandFlag.FAST_ZERO)

_ZEROING_SLICE: Final = 256 << 20


class Backend(Protocol):
    """The operations on a disk. Exceptions and failures are the disk's own errors."""

    @property
    def writes_in_thread(self) -> bool:
        """Whether payloads are to be written by L{write_in_thread}, not as they arrive."""

    def touch(self) -> None:
        """A request is about to be carried out, other than by the write methods."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write a part of a payload."""

    def write_in_thread(self, offset: int, data: bytes) -> Deferred[Any]:
        """I{In a thread.} Write a part of a payload."""

    def write_region(self, offset: int, length: int) -> FileRegion:
        """Where C{length} bytes of a payload belong; some of them may be moved there next."""

    def payload_moved(self) -> None:
        """Some bytes were moved into the last region (or lost)."""

    def read(self, request: Request) -> EventualReply:
        """Carry out a READ."""

    def status(self, request: Request) -> EventualReply:
        """Carry out a BLOCK_STATUS."""

    def memory_to_read(self, length: int) -> int:
        """How many bytes of memory a large READ may take until its reply is sent."""

    def change(self, request: Request) -> Deferred[Any] | None:
        """Carry out a WRITE_ZEROES or a TRIM.

        @return: None if it is done.
        """

    def cache(self, request: Request) -> Deferred[Any]:
        """Carry out a CACHE."""

    def flush(self) -> Deferred[Any]:
        """Make everything written so far durable."""

    def abandon(self) -> None:
        """The connection is gone."""


class PlainBackend:
    """Direct access to a disk whose only client, or nearly so, is this connection.

    @param wire: makes the replies.
    @param in_thread: runs a function in a thread.
    """

    def __init__(self, disk: IDisk, wire: ServerTransmission, in_thread: InThread) -> None:
        self._disk = disk
        self._wire = wire
        self._in_thread = in_thread

    @property
    def _is_slow(self) -> bool:
        """Whether the disk's calls belong in threads; not those of a message, which is no IDisk."""
        return self._disk.fileno() is None and IDisk.providedBy(self._disk)

    @property
    def writes_in_thread(self) -> bool:
        return self._is_slow

    def touch(self) -> None:
        """Nobody measures the disk's latency here."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write a part of a payload."""
        self._disk.write(offset, data)

    def write_in_thread(self, offset: int, data: bytes) -> Deferred[Any]:
        """I{In a thread.} Write a part of a payload."""
        return self._in_thread(self._disk.write, offset, data)

    def write_region(self, offset: int, length: int) -> FileRegion:
        return FileRegion(self._disk, offset, length)

    def payload_moved(self) -> None:
        """Nobody measures the disk's latency here."""

    def read(self, request: Request) -> EventualReply:
        if not self._is_slow:
            region = FileRegion(self._disk, request.offset, request.length)
            return self._wire.reply(request, 0, [region])
        reading = self._in_thread(self._disk.read, request.offset, request.length)
        return reading.addCallback(lambda data: self._wire.reply(request, 0, [data]))

    def status(self, request: Request) -> ReplyItems:
        """Refuse: metadata contexts are not offered."""
        return self._wire.reply(request, Errno.ENOTSUP)

    def memory_to_read(self, length: int) -> int:
        return length if self._is_slow else 0

    def change(self, request: Request) -> Deferred[Any] | None:
        if self._is_done(request):
            return None
        short = request.length <= SHORT_ZEROES and not request.flags & _FUA
        if short and not self._is_slow:
            self._change(request)
            return None
        return self._in_thread(self._change, request)

    def _is_done(self, request: Request) -> bool:
        """Whether zeroes are where they are to be: a new file's hole, however long it is."""
        zeroes = request.command == Command.WRITE_ZEROES
        if not zeroes or request.flags & (_NO_HOLE | _FUA):
            return False
        return is_untouched(self._disk, request.offset, request.length)

    def _change(self, request: Request) -> None:
        change(self._disk, request)

    def cache(self, request: Request) -> Deferred[Any]:
        return self._in_thread(cache, self._disk, request)

    def flush(self) -> Deferred[Any]:
        return self._in_thread(self._disk.flush)

    def abandon(self) -> None:
        """What the client requested is carried out nevertheless."""


def change(disk: IDisk, request: Request, check: Callable[[], None] = lambda: None) -> None:
    """I{Slow.} Carry out a WRITE_ZEROES or a TRIM, in slices.

    @param check: called before each slice; raises if the rest is no longer wanted.
    """
    offset, end = request.offset, request.offset + request.length
    allocate = bool(request.flags & _NO_HOLE)
    fast = bool(request.flags & _FAST_ZERO)
    while offset < end:
        check()
        length = min(_ZEROING_SLICE, end - offset)
        if request.command == Command.TRIM:
            disk.trim(offset, length)
        else:
            disk.zero(offset, length, allocate, fast)
        offset += length


def cache(disk: IDisk, request: Request, check: Callable[[], None] = lambda: None) -> None:
    """I{Slow.} Read a range into the page cache.

    @param check: see L{change}.
    """
    offset, end = request.offset, request.offset + request.length
    while offset < end:
        check()
        offset += len(disk.read(offset, min(IO_SIZE, end - offset)))
