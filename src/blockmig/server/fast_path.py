"""The fast path: carries out and answers all small reads and writes that were received, in one go.

Owns the shortest way from a request to its reply: from the received bytes to the disk's page cache,
and from there into one buffer that is sent in one piece. No event, object or Deferred is made for
such a request, which is what makes thousands of them cheap.

Rules:

* only plainly valid requests are handled here: a small READ or WRITE without flags, inside the
  disk, that need not wait. Everything else, errors included, is left for the general path;
* a WRITE whose payload is incomplete waits in the received bytes for the rest of it;
* whoever watches the disk's changes is notified before each one;
* all connections share the buffer: what it holds is sent or copied before anything else runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..nbd import (
    CHUNK_DONE,
    CHUNK_MAGIC,
    DATA_CHUNK,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    Chunk,
    Command,
    Export,
)
from .access import SMALL, DiskAccess
from .traffic import TrafficCounters

_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_HEADER: Final = REQUEST.size
_REPLY: Final = SIMPLE_REPLY.size
_CHUNK_START: Final = (CHUNK_MAGIC, CHUNK_DONE, int(Chunk.OFFSET_DATA))
_pack_chunk: Final = DATA_CHUNK.pack_into

_buffer: Final = memoryview(bytearray(4 * SMALL))


class FastPath:
    """Answers the small requests of one connection.

    @param export: the export as the client was told of it.
    @param structured: replies are structured.
    @param traffic: counts the requests.
    """

    def __init__(
        self, access: DiskAccess, export: Export, structured: bool, traffic: TrafficCounters
    ) -> None:
        self._access = access
        self._size = export.size
        self._block = export.minimum_block
        self._may_write = not export.read_only
        self._structured = structured
        self._overhead = DATA_CHUNK.size if structured else SIMPLE_REPLY.size
        self._traffic = traffic

    def responder(
        self, send: Callable[[memoryview], bool], fallback: Callable[[memoryview], None]
    ) -> Callable[[memoryview], bool] | None:
        """A function that answers what is received; None where the changes are watched.

        @param send: sends replies; returns whether all of them were taken.
        @param fallback: called with what cannot be answered here.
        @return: a function for use while nothing else runs. It takes received bytes that begin with
            a request, and returns whether all of them were answered: if so, it may be called again.
        """
        if self._access.changes.mark is not None:
            return None
        answer = self._make_answer()

        def answer_at_once(view: memoryview) -> bool:
            position, replies = answer(view, 0)
            end = len(view)
            while position:
                if not send(replies):
                    break
                if position == end:
                    return True
                start = position
                position, replies = answer(view, start)
                if position == start:
                    break
            if position < end:
                fallback(view[position:])
            return False

        return answer_at_once

    def answer(self, data: bytes | memoryview, position: int) -> tuple[int, memoryview]:
        """Carry out the requests that can be.

        @param data: what was received.
        @param position: where the next request begins in C{data}.
        @return: where the first request begins that was not carried out, and the replies: a view of
            the shared buffer, perhaps empty.
        """
        if len(data) - position < _HEADER:
            return position, _buffer[:0]
        return self._make_answer()(data, position)

    # One long function: a call inside the loop would cost more than the work that it does. What
    # does not change between calls is looked up outside of the loop.
    def _make_answer(self) -> Callable[[bytes | memoryview, int], tuple[int, memoryview]]:  # noqa: PLR0915
        """L{answer} as a closure that is valid while nothing else runs."""
        access, latency = self._access, self._access.latency
        descriptor = access.disk.fileno()
        size, block, overhead = self._size, self._block, self._overhead
        structured, may_write = self._structured, self._may_write
        unpack, preadv, pwrite = REQUEST.unpack_from, access.preadv, access.pwrite
        no_wait, pack_reply = access.no_wait, SIMPLE_REPLY.pack_into
        mark, count = access.changes.mark, self._traffic.count
        begin, finish = latency.begin, latency.end
        room = len(_buffer) - overhead
        nothing = _buffer[:0]

        def answer(data: bytes | memoryview, position: int) -> tuple[int, memoryview]:  # noqa: PLR0912
            began = begin()
            if descriptor is None or began[0] < latency.slow_until:
                return position, nothing
            end = len(data)
            view = None
            reads = writes = read = written = used = 0
            try:
                while end - position >= _HEADER:
                    magic, flags, command, cookie, offset, length = unpack(data, position)
                    if (
                        magic != REQUEST_MAGIC
                        or flags
                        or not 0 < length <= SMALL
                        or offset + length > size
                        or (block > 1 and (offset % block or length % block))
                    ):
                        break
                    if command == _READ:
                        start = used + overhead
                        if start + length > room:
                            break
                        page = _buffer[start : start + length]
                        if preadv(descriptor, (page,), offset, no_wait) != length:
                            break
                        if structured:
                            _pack_chunk(_buffer, used, *_CHUNK_START, cookie, length + 8, offset)
                        else:
                            pack_reply(_buffer, used, SIMPLE_REPLY_MAGIC, 0, cookie)
                        used = start + length
                        position += _HEADER
                        reads += 1
                        read += length
                    elif command == _WRITE and may_write:
                        start = position + _HEADER
                        if end - start < length or used > room:
                            break
                        if view is None:
                            view = memoryview(data)
                        if mark is not None:
                            mark(offset, length)
                        if pwrite(descriptor, view[start : start + length], offset) != length:
                            break
                        pack_reply(_buffer, used, SIMPLE_REPLY_MAGIC, 0, cookie)
                        used += _REPLY
                        position = start + length
                        writes += 1
                        written += length
                    else:
                        break
            except OSError as error:
                if command == _READ:
                    access.nowait_failed(error)
            if used:
                finish(began, reads + writes)
                count(reads, read, writes, written)
            return position, _buffer[:used]

        return answer

    def is_incomplete(self, data: bytes | memoryview, position: int) -> bool:
        """Whether only the rest of the header or payload at C{position} is missing.

        True only of a request that L{answer} would carry out.
        """
        if len(data) - position < _HEADER:
            return True
        magic, flags, command, _, offset, length = REQUEST.unpack_from(data, position)
        small = 0 < length <= SMALL and offset + length <= self._size
        writes = magic == REQUEST_MAGIC and command == _WRITE and not flags and self._may_write
        return small and writes and len(data) - position - _HEADER < length
