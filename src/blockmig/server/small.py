"""Small reads and writes: as many as have come, carried out and answered in one go.

Owns the shortest way from a request to its reply: from the received bytes to the disk's page cache,
and from there into one buffer that goes out in one piece. No event, no object, no Deferred is made
for such a request, which is what makes thousands of them cheap.

Rules:

* only what is plainly right is done here: a small READ or WRITE without flags, inside the disk,
  that needs no waiting. Everything else, every error too, is left on the wire for the general way;
* a WRITE whose payload has not all come is left there too;
* the buffer is one for all connections: what it holds is sent, or copied, before anybody else gets
  to run.
"""

from __future__ import annotations

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
    ServerTransmission,
)
from .access import SMALL, DiskAccess
from .traffic import Traffic

_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_DATA: Final = int(Chunk.OFFSET_DATA)
_OFFSET_SIZE: Final = 8
_HEADER: Final = REQUEST.size

_buffer: Final = memoryview(bytearray(4 * SMALL))


class SmallRequests:
    """The small requests of one connection.

    @param access: the disk.
    @param export: as it was told to the client.
    @param structured: replies are structured.
    @param traffic: is told of what was done.
    """

    def __init__(
        self, access: DiskAccess, export: Export, structured: bool, traffic: Traffic
    ) -> None:
        self._access = access
        self._size = export.size
        self._block = export.minimum_block
        self._may_write = not export.read_only
        self._structured = structured
        self._overhead = DATA_CHUNK.size if structured else SIMPLE_REPLY.size
        self._traffic = traffic

    def answer(self, wire: ServerTransmission) -> memoryview:  # noqa: PLR0912 (calls cost time)
        """Carry out what can be, from where the wire's events have come to.

        @return: the replies; shown by a view of the shared buffer, perhaps empty.
        """
        access = self._access
        if not access.quick:
            return _buffer[:0]
        data, position = wire.unread()
        end, room = len(data), len(_buffer)
        size, block, overhead = self._size, self._block, self._overhead
        unpack, seconds = REQUEST.unpack_from, access.seconds
        view = None
        reads = writes = read = written = used = 0
        began = seconds()
        while end - position >= _HEADER:
            magic, flags, command, cookie, offset, length = unpack(data, position)
            if flags or magic != REQUEST_MAGIC or not 0 < length <= SMALL or offset + length > size:
                break
            if block > 1 and (offset % block or length % block):
                break
            if command == _READ:
                if room - used < length + overhead:
                    break
                start = used + overhead
                if not access.read_now(_buffer[start : start + length], offset):
                    break
                if self._structured:
                    DATA_CHUNK.pack_into(
                        _buffer,
                        used,
                        CHUNK_MAGIC,
                        CHUNK_DONE,
                        _DATA,
                        cookie,
                        length + _OFFSET_SIZE,
                        offset,
                    )
                else:
                    SIMPLE_REPLY.pack_into(_buffer, used, SIMPLE_REPLY_MAGIC, 0, cookie)
                used = start + length
                position += _HEADER
                reads += 1
                read += length
            elif command == _WRITE and self._may_write:
                start = position + _HEADER
                if end - start < length or room - used < SIMPLE_REPLY.size:
                    break
                if view is None:
                    view = memoryview(data)
                if not access.write_now(view[start : start + length], offset):
                    break
                SIMPLE_REPLY.pack_into(_buffer, used, SIMPLE_REPLY_MAGIC, 0, cookie)
                used += SIMPLE_REPLY.size
                position = start + length
                writes += 1
                written += length
            else:
                break
        if used:
            access.took(seconds() - began, reads + writes)
            wire.skip(position)
            self._traffic.count(reads, read, writes, written)
        return _buffer[:used]
