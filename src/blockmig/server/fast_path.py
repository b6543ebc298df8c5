"""The fast path: carries out and answers all small reads and writes that were received, in one go.

Owns the shortest way from a request to its reply: from the socket, or the received bytes, to the
disk's page cache, and from there into one buffer that is sent in one piece. No event, object or
Deferred is made for such a request, which is what makes thousands of them cheap.

Rules:

* only plainly valid requests are handled here: a small READ or WRITE without flags, inside the
  disk, that need not wait. Everything else, errors included, is left for the general path;
* a WRITE whose payload is incomplete waits in the received bytes for the rest of it;
* whoever watches the disk's changes is notified before each one;
* all connections share the buffer: what it holds is sent or copied before anything else runs;
* the calls to the disk are timed, all those of a turn together: a turn ends after a slow call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from ..nbd import (
    CHUNK_DONE,
    CHUNK_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    Chunk,
    Command,
    Export,
)
from ..transport import FastTurn
from .access import SMALL, DiskAccess
from .traffic import TrafficCounters

# The messages of the protocol, with all that is constant in them as one number: that costs less.
_REQUEST: Final = struct.Struct("!QQQI")
_REPLY: Final = struct.Struct("!QQ")
_CHUNK: Final = struct.Struct("!QQIQ")
_READ: Final = REQUEST_MAGIC << 32 | int(Command.READ)
_WRITE: Final = REQUEST_MAGIC << 32 | int(Command.WRITE)
_DONE: Final = SIMPLE_REPLY_MAGIC << 32
_DATA: Final = CHUNK_MAGIC << 32 | CHUNK_DONE << 16 | int(Chunk.OFFSET_DATA)

_HEADER: Final = _REQUEST.size
_OFFSET: Final = 8
"""Bytes of a chunk's payload that come before the data."""

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
        self._unaligned = export.minimum_block - 1
        self._may_write = not export.read_only
        self._structured = structured
        self._traffic = traffic

    def turn(
        self,
        send: Callable[[memoryview], bool],
        fallback: Callable[[memoryview], None],
        begun: memoryview,
    ) -> FastTurn | None:
        """What reads and answers requests in this turn of the reactor.

        @param send: sends replies; returns whether all of them were taken.
        @param fallback: called, last of all, with received bytes that are not answered here.
        @param begun: what was received before of a request that was incomplete; perhaps empty.
        @return: see L{FastTurn<blockmig.transport.FastTurn>}; None where the disk is not quick, or
            its changes are watched.
        """
        latency, is_incomplete = self._access.latency, self.is_incomplete
        answer = None if self._access.changes.mark is not None else self._make_answer()
        if answer is None:
            return None

        def serve(
            read: Callable[[Sequence[memoryview]], int],
            received: memoryview,
            more: Callable[[], bool],
        ) -> bool:
            everything = (received,)
            began, calls = latency.begin(), 1
            # What was received and not answered is between these two.
            position, end = 0, len(begun)
            received[:end] = begun
            closed, goes_on = False, True
            while goes_on:
                try:
                    count = read((received[end:],) if end else everything)
                except BlockingIOError:
                    break
                if not count:
                    closed = True
                    break
                end += count
                while position < end:
                    position, used, answered = answer(received, position, end)
                    if not answered:
                        goes_on = is_incomplete(received, position, end)
                        break
                    calls = answered
                    if not send(_buffer[:used]):
                        goes_on = False
                        break
                if not goes_on:
                    break
                if position < end:
                    received[: end - position] = received[position:end]
                end -= position
                position = 0
                goes_on = more()
            latency.end(began, calls)
            if position < end:
                fallback(received[position:end])
            return closed

        return serve

    def answer(self, data: memoryview, position: int) -> tuple[int, memoryview]:
        """Carry out the requests that can be.

        @param data: what was received.
        @param position: where the next request begins in C{data}.
        @return: where the first request begins that was not carried out, and the replies: a view of
            the shared buffer, perhaps empty.
        """
        used = 0
        if len(data) - position >= _HEADER and (answer := self._make_answer()) is not None:
            latency = self._access.latency
            began = latency.begin()
            position, used, calls = answer(data, position, len(data))
            if calls:
                latency.end(began, calls)
        return position, _buffer[:used]

    # One long function: a call inside the loop would cost more than the work that it does. What
    # does not change between calls is looked up outside of the loop.
    def _make_answer(  # noqa: PLR0915
        self,
    ) -> Callable[[memoryview, int, int], tuple[int, int, int]] | None:
        """What answers the requests in received bytes; valid while nothing else runs.

        @return: a function of these bytes, and of where in them the requests begin and end. It
            returns where the first begins that was not carried out, the length of the replies, and
            their number. None where the disk is not quick.
        """
        access = self._access
        descriptor = access.disk.fileno()
        if descriptor is None or not access.latency.quick:
            return None
        size, unaligned, structured = self._size, self._unaligned, self._structured
        overhead = _CHUNK.size if structured else _REPLY.size
        unpack, preadv, pwrite = _REQUEST.unpack_from, access.preadv, access.pwrite
        no_wait, pack_reply, pack_chunk = access.no_wait, _REPLY.pack_into, _CHUNK.pack_into
        mark, count, may_write = access.changes.mark, self._traffic.count, self._may_write
        replies, room = _buffer, len(_buffer)

        def answer(  # noqa: PLR0912
            data: memoryview, position: int, end: int
        ) -> tuple[int, int, int]:
            reads = writes = read = written = used = kind = 0
            try:
                while end - position >= _HEADER:
                    kind, cookie, offset, length = unpack(data, position)
                    if (
                        not 0 < length <= SMALL
                        or offset + length > size
                        or (unaligned and (offset | length) & unaligned)
                    ):
                        break
                    if kind == _READ:
                        start = used + overhead
                        stop = start + length
                        if (
                            stop > room
                            or preadv(descriptor, (replies[start:stop],), offset, no_wait) != length
                        ):
                            break
                        if structured:
                            pack_chunk(replies, used, _DATA, cookie, length + _OFFSET, offset)
                        else:
                            pack_reply(replies, used, _DONE, cookie)
                        used = stop
                        position += _HEADER
                        reads += 1
                        read += length
                    elif kind == _WRITE and may_write:
                        start = position + _HEADER
                        stop = start + length
                        if stop > end or used + _REPLY.size > room:
                            break
                        if mark is not None:
                            mark(offset, length)
                        if pwrite(descriptor, data[start:stop], offset) != length:
                            break
                        pack_reply(replies, used, _DONE, cookie)
                        used += _REPLY.size
                        position = stop
                        writes += 1
                        written += length
                    else:
                        break
            except OSError as error:
                if kind == _READ:
                    access.nowait_failed(error)
            if used:
                count(reads, read, writes, written)
            return position, used, reads + writes

        return answer

    def is_incomplete(self, data: memoryview, position: int, end: int) -> bool:
        """Whether only the rest of the header or payload at C{position} is missing.

        True only of a request that L{answer} would carry out.

        @param end: where what was received ends.
        """
        if end - position < _HEADER:
            return True
        kind, _, offset, length = _REQUEST.unpack_from(data, position)
        small = 0 < length <= SMALL and offset + length <= self._size
        return small and kind == _WRITE and self._may_write and end - position - _HEADER < length
