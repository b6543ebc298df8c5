"""The short way for small changes to a disk that one connection fills: a receiver's.

Carries out all small WRITEs and WRITE_ZEROES that were received, in one go, and answers them in one
piece. Nothing is asked or made for each of them, since a fragmented disk is hundreds of thousands.

Rules:

* only plainly valid requests are carried out here: small ones, without flags, whose payload is here
  as a whole, and which end before the disk's last byte; and zeroes of any length for what is a new
  file's hole. Everything else is left for the general way: a WRITE of which a part is missing, too,
  since every page of it is to be noticed;
* the handler (`IBatchHandler`) is asked before the first change, and notified after the last one,
  before any of them is answered;
* the first one that the disk fails is the last one here; nothing is tried again.
"""

from __future__ import annotations

from typing import Any, Final

from ..nbd import (
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    Command,
    Export,
    Request,
)
from ..storage import is_untouched
from .access import SMALL
from .backend import SHORT_ZEROES
from .traffic import TrafficCounters

_WRITE: Final = int(Command.WRITE)
_ZEROES: Final = int(Command.WRITE_ZEROES)
_HEADER: Final = REQUEST.size

Failed = tuple[Request, OSError]
"""A request, and what the disk failed it with."""


class FastChanges:
    """Carries out the small changes of one connection.

    @param handler: admits them.
    @param connection: what the handler knows it by.
    @param export: the export as the client was told of it.
    @param traffic: counts the requests.
    """

    def __init__(
        self, handler: Any, connection: Any, export: Export, traffic: TrafficCounters
    ) -> None:
        self._handler = handler
        self._connection = connection
        self._size = export.size
        self._unaligned = export.minimum_block - 1
        self._traffic = traffic

    def carry_out(self, data: memoryview, position: int) -> tuple[int, bytes, Failed | None]:
        """Carry out the changes that can be.

        @param data: what was received.
        @param position: where the next request begins in C{data}.
        @return: where the first request begins that is yet to be carried out; the replies; and the
            one that failed, if one did: the handler has yet to be notified of that.
        """
        handler, connection, disk = self._handler, self._connection, self._handler.disk
        requests: list[Request] = []
        if len(data) - position < _HEADER or disk.fileno() is None:
            return position, b"", None
        begun, failed = False, None
        try:
            while (found := self._next(data, position)) is not None:
                if not begun:
                    begun = handler.begin_batch(connection)
                    if not begun:
                        break
                request, payload = found
                if request.command == _WRITE:
                    position = payload + request.length
                    disk.write(request.offset, data[payload:position])
                else:
                    position = payload
                    if request.length <= SHORT_ZEROES:  # a longer range is zero already
                        disk.zero(request.offset, request.length, False)
                requests.append(request)
        except OSError as error:
            failed = (request, error)
        if begun:
            handler.end_batch(connection, requests, failed is not None)
            self._count([*requests, failed[0]] if failed is not None else requests)
        replies = [
            SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie) for _, _, cookie, _, _ in requests
        ]
        return position, b"".join(replies), failed

    def _next(self, data: memoryview, position: int) -> tuple[Request, int] | None:
        """The request at C{position}, and where its payload begins; None if it is not for here."""
        payload = position + _HEADER
        if payload > len(data):
            return None
        magic, flags, command, cookie, offset, length = REQUEST.unpack_from(data, position)
        if (
            magic != REQUEST_MAGIC
            or flags
            or not length
            or offset + length >= self._size
            or (offset | length) & self._unaligned
        ):
            return None
        if command == _WRITE:
            quick = length <= SMALL and payload + length <= len(data)
        else:
            quick = command == _ZEROES and (
                length <= SHORT_ZEROES or is_untouched(self._handler.disk, offset, length)
            )
        return (Request(flags, command, cookie, offset, length), payload) if quick else None

    def _count(self, requests: list[Request]) -> None:
        written = [length for _, command, _, _, length in requests if command == _WRITE]
        self._traffic.count(0, 0, len(written), sum(written))
        self._traffic.other += len(requests) - len(written)
