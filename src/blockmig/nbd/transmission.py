"""The transmission phase, both roles, sans-IO: requests, simple replies and structured ones.

Source: the NBD protocol document, "Transmission phase", "Request message", "Simple reply message",
"Structured reply chunk message". (The client's side knows simple replies only.)

`ServerTransmission` turns bytes into `Request` events and makes replies; `ClientTransmission`
makes requests and turns bytes into `Reply` events. A payload need not pass through here:

* sending: `reply` returns a list in which the payload is whatever object the caller passed (bytes,
  a file region); the caller puts each item on the wire, in order. `request` returns the header;
* receiving: `payload_expected` is how many payload bytes come next on the wire. The caller may take
  them off the wire itself (splice them into a disk) and report that with `payload_moved`; what is
  passed to `receive_data` instead comes back as `Payload` events.

Rules:

* events come in wire order; a message is followed by its Payload events, and these by its
  EndOfPayload;
* a message with a payload of zero bytes has an EndOfPayload too;
* `payload_moved` is allowed only when no received byte is buffered here, since those come first;
* a bad magic is fatal: `RemoteProtocolError`, and every later call raises it again;
* memory: at most one incomplete header is kept, besides what the caller passed in and has not yet
  fetched with `next_event`;
* the client never reuses the cookie of a request in flight, and a reply to a cookie that is not in
  flight is the server's error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from .constants import (
    CHUNK_DONE,
    CHUNK_MAGIC,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    Chunk,
    Command,
)
from .errors import LocalProtocolError, RemoteProtocolError

_REQUEST = struct.Struct("!IHHQQI")
_SIMPLE_REPLY = struct.Struct("!IIQ")
_CHUNK = struct.Struct("!IHHQI")

# A member of an Enum is looked up slowly, and this is asked of every request and reply.
_READ: Final = int(Command.READ)
_DISC: Final = int(Command.DISC)

REQUEST: Final = _REQUEST
"""The layout of a request, the magic first."""

REQUEST_SIZE: Final = _REQUEST.size

SIMPLE_REPLY: Final = _SIMPLE_REPLY
"""The layout of a simple reply: magic, error, cookie."""

DATA_CHUNK: Final = struct.Struct("!IHHQIQ")
"""The layout of a chunk of data, before the data: magic, flags, type, cookie, length, offset."""


class Request(NamedTuple):
    """One request, as on the wire; a WRITE's payload follows as events.

    @ivar command: a number of L{Command}, or an unknown one.
    @ivar offset: bytes from the start of the export.
    @ivar length: bytes.
    """

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class Reply(NamedTuple):
    """A simple reply; a successful READ's payload follows as events.

    @ivar request: the request that it answers.
    @ivar error: 0, or a number of L{Errno} (or an unknown one).
    """

    request: Request
    error: int


class Payload(NamedTuple):
    """Some payload bytes of the latest Request or Reply, in order."""

    data: memoryview


class EndOfPayload(NamedTuple):
    """The payload of the latest Request or Reply is complete."""

    message: Request | Reply


Event = Request | Reply | Payload | EndOfPayload


class _Transmission:
    """What both roles share: fixed headers with payloads between them."""

    _header: struct.Struct

    def __init__(self) -> None:
        self._data: bytes | memoryview = b""
        self._position = 0
        self._failure: str | None = None
        self._expected = 0
        self._message: Request | Reply | None = None

    @property
    def payload_expected(self) -> int:
        """How many bytes of the current payload were not yet returned as events, or moved."""
        return self._expected

    @property
    def buffered(self) -> int:
        """How many received bytes are buffered for `next_event`."""
        return len(self._data) - self._position

    def unread(self) -> tuple[bytes | memoryview, int]:
        """The received bytes, and where the unprocessed ones begin.

        For a caller that parses messages there itself, and reports that with L{skip}; only while no
        payload is expected.
        """
        return self._data, self._position

    def skip(self, position: int) -> None:
        """Continue at C{position} of L{unread}, where a message begins."""
        self._position = position

    def receive_data(self, data: bytes | memoryview) -> None:
        """Take bytes from the peer; before the next call, fetch events until there is none."""
        if self._position < len(self._data):
            data = b"".join((self._data[self._position :], data))
        self._data = data
        self._position = 0

    def copy_unread(self) -> None:
        """Copy the unprocessed rest of a received view, which is about to become invalid."""
        if isinstance(self._data, memoryview):
            self._data = bytes(self._data[self._position :])
            self._position = 0

    def payload_moved(self, count: int) -> None:
        """The caller took C{count} payload bytes off the wire itself.

        @raise LocalProtocolError: more than are expected, or buffered bytes come before them.
        """
        if self.buffered or count > self._expected:
            raise LocalProtocolError("these payload bytes are not the next on the wire")
        self._expected -= count

    def next_event(self) -> Event | None:
        """The next event, or None until more bytes come.

        @raise RemoteProtocolError: the peer broke the protocol.
        """
        if self._failure is not None:
            raise RemoteProtocolError(self._failure)
        if self._message is not None:
            return self._payload_event()
        if len(self._data) - self._position < self._header.size:
            return None
        fields = self._header.unpack_from(self._data, self._position)
        self._position += self._header.size
        try:
            return self._message_event(*fields)
        except RemoteProtocolError as error:
            self._failure = str(error)
            raise

    def _payload_event(self) -> Event | None:
        if self._expected == 0:
            message, self._message = self._message, None
            assert message is not None
            return EndOfPayload(message)
        available = min(self.buffered, self._expected)
        if not available:
            return None
        start = self._position
        self._position += available
        self._expected -= available
        return Payload(memoryview(self._data)[start : self._position])

    def _message_event(self, *fields: int) -> Event:
        raise NotImplementedError


class ServerTransmission(_Transmission):
    """The server's side: requests in, replies out."""

    _header = _REQUEST

    def __init__(self, structured: bool = False) -> None:
        super().__init__()
        self._structured = structured

    def _message_event(self, *fields: int) -> Request:
        magic, *rest = fields
        if magic != REQUEST_MAGIC:
            raise RemoteProtocolError(f"bad request magic {magic:#x}")
        request = Request(*rest)
        if request.command == Command.WRITE:
            self._message = request
            self._expected = request.length
        return request

    def reply(self, request: Request, error: int = 0, payload: Iterable[Any] = ()) -> list[Any]:
        """What to put on the wire to answer C{request}.

        With structured replies, a READ (and a BLOCK_STATUS) is answered by chunks whatever the
        outcome; for the other commands a simple reply suffices.

        @param error: 0, or the number of L{Errno} that it failed with.
        @param payload: for a successful READ, items that are C{request.length} bytes in all, and
            cannot fail any more.
        @return: bytes, then the payload's items as they were passed.
        """
        if self._structured and request.command in (Command.READ, Command.BLOCK_STATUS):
            if error:
                return [self.chunk(request, Chunk.ERROR, struct.pack("!IH", error, 0))]
            return self.data(request, request.offset, request.length, payload)
        header = _SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, request.cookie)
        return [header, *payload] if not error else [header]

    @staticmethod
    def chunk(
        request: Request, kind: Chunk, content: bytes, done: bool = True, more: int = 0
    ) -> bytes:
        """One chunk of a structured reply.

        @param content: the start of its payload.
        @param done: it is the last.
        @param more: bytes of payload that follow C{content}.
        """
        flags = CHUNK_DONE if done else 0
        length = len(content) + more
        return _CHUNK.pack(CHUNK_MAGIC, flags, kind, request.cookie, length) + content

    def data(
        self,
        request: Request,
        offset: int,
        length: int,
        payload: Iterable[Any],
        done: bool = True,
    ) -> list[Any]:
        """A chunk of data, followed by its payload's items.

        @param done: it is the last, and cannot fail any more.
        """
        start = struct.pack("!Q", offset)
        return [self.chunk(request, Chunk.OFFSET_DATA, start, done, length), *payload]

    def hole(self, request: Request, offset: int, length: int, done: bool = True) -> bytes:
        """A chunk for a range that reads as zeroes."""
        return self.chunk(request, Chunk.OFFSET_HOLE, struct.pack("!QI", offset, length), done)

    def error_at(self, request: Request, error: int, offset: int) -> bytes:
        """An error chunk: what was sent from C{offset} on is not the disk's content.

        It is not the last chunk: L{end} must follow.
        """
        content = struct.pack("!IHQ", error, 0, offset)
        return self.chunk(request, Chunk.ERROR_OFFSET, content, done=False)

    def end(self, request: Request) -> bytes:
        """The empty chunk that ends a reply."""
        return self.chunk(request, Chunk.NONE, b"")

    def block_status(
        self, request: Request, context: int, extents: Iterable[tuple[int, int]]
    ) -> bytes:
        """The reply to BLOCK_STATUS.

        @param context: the id of the metadata context.
        @param extents: (length, state) of each, from the request's offset on, none empty.
        """
        content = struct.pack("!I", context)
        content += b"".join(struct.pack("!II", *extent) for extent in extents)
        return self.chunk(request, Chunk.BLOCK_STATUS, content)


class ClientTransmission(_Transmission):
    """The client's side: requests out, replies in.

    @param constant_cookie: send every request with cookie 0, for old servers; then only one
        request may be in flight.
    @param first_cookie: the cookie of the first request; later ones count up from it.
    """

    _header = _SIMPLE_REPLY

    def __init__(self, constant_cookie: bool = False, first_cookie: int = 0) -> None:
        super().__init__()
        self._step = 0 if constant_cookie else 1
        self._next_cookie = first_cookie
        self._in_flight: dict[int, Request] = {}
        self._disconnected = False

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def request(
        self, command: Command, offset: int = 0, length: int = 0, flags: int = 0
    ) -> tuple[Request, bytes]:
        """Make a request; a WRITE's payload of C{length} bytes must follow it on the wire.

        @return: the request, with its cookie, and its header for the wire.
        @raise LocalProtocolError: the request follows a DISC, is a DISC while requests are in
            flight, or would be a second one in flight with a constant cookie.
        """
        if self._disconnected:
            raise LocalProtocolError("nothing may be sent after a disconnect")
        disconnects = command == _DISC
        if disconnects and self._in_flight:
            raise LocalProtocolError("a disconnect with requests in flight")
        cookie = self._next_cookie
        if cookie in self._in_flight:
            raise LocalProtocolError(f"cookie {cookie} is in flight")
        request = Request(flags, command, cookie, offset, length)
        if disconnects:
            self._disconnected = True
        else:
            self._in_flight[cookie] = request
            self._next_cookie = (cookie + self._step) & 0xFFFF_FFFF_FFFF_FFFF
        return request, _REQUEST.pack(REQUEST_MAGIC, *request)

    def _message_event(self, *fields: int) -> Reply:
        magic, error, cookie = fields
        if magic != SIMPLE_REPLY_MAGIC:
            raise RemoteProtocolError(f"bad reply magic {magic:#x}")
        request = self._in_flight.pop(cookie, None)
        if request is None:
            raise RemoteProtocolError(f"a reply to cookie {cookie}, which is not in flight")
        reply = Reply(request, error)
        if request.command == _READ and not error:
            self._message = reply
            self._expected = request.length
        return reply
