"""What was said on NBD connections, decoded strictly: every rule that a server has to keep.

Written from the protocol document alone, and sharing nothing with blockmig, which is judged by it.
`decode` judges one connection by itself; `Contents` judges all of them together by what the disk
must hold. Whatever is wrong is a L{Broken}, which names the rule.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
NAMES = ("READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "ZEROES", "STATUS")
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, ENOMEM, EINVAL, ENOSPC = 1, 5, 12, 22, 28
EOVERFLOW, ENOTSUP, ESHUTDOWN = 75, 95, 108
ERRORS = {EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN}

HAS_FLAGS, READ_ONLY, SEND_DF = 1, 2, 128
MAXIMUM_PAYLOAD = 32 << 20
MOST_EXTENTS = 1 << 20

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED = 1, 2, 3, 5, 6, 7, 8
LIST_META, SET_META = 9, 10
ACK, SERVER, INFORMATION, META_CONTEXT = 1, 2, 3, 4
OPTION_ERRORS = range(2**31 + 1, 2**31 + 11)
UNSUP, POLICY, INVALID, TOO_BIG = 2**31 + 1, 2**31 + 2, 2**31 + 3, 2**31 + 9

NONE, OFFSET_DATA, OFFSET_HOLE, BLOCK_STATUS, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 2**15 + 1, 2**15 + 2
CHUNKS = {
    NONE: "NONE",
    OFFSET_DATA: "DATA",
    OFFSET_HOLE: "HOLE",
    BLOCK_STATUS: "STATUS",
    ERROR: "ERROR",
    ERROR_OFFSET: "ERROR_OFFSET",
}
_FLAGS = {
    READ: FUA | DF,
    WRITE: FUA,
    FLUSH: FUA,
    TRIM: FUA,
    CACHE: FUA,
    ZEROES: FUA | NO_HOLE | FAST_ZERO,
    STATUS: FUA | REQ_ONE,
}
_OFFERED = {FLUSH: 4, TRIM: 32, ZEROES: 64, CACHE: 1024}
_CHANGING = (WRITE, TRIM, ZEROES)


class Broken(AssertionError):
    """A rule was broken.

    @ivar rule: in short.
    """

    def __init__(self, rule: str, detail: object = "") -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


def _hold(rule: str, holds: object, detail: object = "") -> None:
    if not holds:
        raise Broken(rule, detail)


def _named(asked: bytes) -> bytes:
    """The export that an option asks about."""
    (size,) = struct.unpack_from("!I", asked)
    return asked[4 : 4 + size]


class _Torn(Exception):
    """A stream ends in the middle of something."""


@dataclass
class Piece:
    """Bytes as they passed by; none at the end of their direction.

    @ivar when: its place among all pieces of all connections.
    """

    when: int
    to_server: bool
    data: bytes


class _Stream:
    """One direction."""

    def __init__(self, pieces: Iterable[Piece], to_server: bool) -> None:
        mine = [piece for piece in pieces if piece.to_server == to_server]
        self.data = memoryview(b"".join(piece.data for piece in mine))
        self.position = 0
        self.ended = next((piece.when for piece in mine if not piece.data), None)
        self._whens = [piece.when for piece in mine if piece.data]
        self._ends: list[int] = []
        for piece in mine:
            if piece.data:
                self._ends.append((self._ends[-1] if self._ends else 0) + len(piece.data))

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, count: int) -> memoryview:
        if self.left < count:
            raise _Torn
        self.position += count
        return self.data[self.position - count : self.position]

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def when(self, position: int) -> int:
        """When the byte at C{position} passed."""
        return self._whens[bisect.bisect_right(self._ends, position)]


@dataclass
class Expected:
    """What the server must say of its disk.

    @ivar stops: the server is stopped meanwhile, and may refuse and close.
    """

    size: int
    name: str = ""
    read_only: bool = False
    oldstyle: bool = False
    stops: bool = False

    @property
    def notice(self) -> bytes | None:
        """The side export that says that the disk is served; None: its name would be too long."""
        name = self.name.encode() + b".served"
        return name if len(name) <= 4096 else None

    @property
    def exports(self) -> list[bytes]:
        """What LIST says."""
        return [self.name.encode(), *([self.notice] if self.notice else [])]


@dataclass
class Operation:
    """A request, and the whole of its answer.

    @ivar began: when its first byte passed.
    @ivar ended: when the last byte of its answer did.
    @ivar error: None as long as it was not answered.
    @ivar content: what it read: offset, length, and bytes (None for a hole).
    @ivar states: what BLOCK_STATUS said: the extents' lengths and states.
    """

    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    began: int
    sent: int
    payload: memoryview | bytes = b""
    ended: int | None = None
    error: int | None = None
    content: list[tuple[int, int, memoryview | None]] = field(default_factory=list)
    states: list[tuple[int, int]] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    failing: int = 0

    @property
    def end(self) -> int:
        return self.offset + self.length

    def __str__(self) -> str:
        name = NAMES[self.command] if self.command < len(NAMES) else f"command {self.command}"
        return f"{name} {self.offset}+{self.length} flags {self.flags:#x} cookie {self.cookie}"


@dataclass
class Said:
    """A conversation that kept all the rules.

    @ivar options: each option with the types of the replies to it.
    @ivar end: how it ended: DISC, ABORT, "left" (the client went), or "refused" (the server did,
        as it should).
    """

    expected: Expected
    options: list[tuple[int, list[int]]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    structured: bool = False
    contexts: dict[int, bytes] = field(default_factory=dict)
    context_export: bytes = b""
    flags: int | None = None
    end: str = "left"


def decode(pieces: list[Piece], expected: Expected) -> Said:
    """The conversation on one connection.

    @raise Broken: a rule was broken by the server.
    """
    return _Decoder(pieces, expected).decode()


class _Decoder:
    def __init__(self, pieces: list[Piece], expected: Expected) -> None:
        self._client = _Stream(pieces, to_server=True)
        self._server = _Stream(pieces, to_server=False)
        self._expected = expected
        self._said = Said(expected)
        self._waiting: dict[int, list[Operation]] = {}
        self._no_zeroes = False
        self._healthy = True
        """Nothing that the client said allows the server to close."""

    def decode(self) -> Said:
        client, server, said = self._client, self._server, self._said
        try:
            if self._expected.oldstyle:
                self._oldstyle()
                serving = True
            else:
                serving = self._handshake()
            if serving:
                self._requests()
                self._replies()
        except _Torn:
            first = client.ended is not None and (
                server.ended is None or client.ended < server.ended
            )
            _hold("torn", first or not self._healthy or self._expected.stops, "in mid-message")
        else:
            _hold("babble", not server.left, f"{server.left} bytes that nobody asked for")
        ended_first = server.ended is not None and (
            client.ended is None or server.ended < client.ended
        )
        if ended_first and said.end == "left" and not self._expected.stops:
            _hold("close", not self._healthy, "the server closed a healthy connection")
        if said.end == "DISC" and not self._expected.stops:
            left = [str(one) for waiting in self._waiting.values() for one in waiting]
            _hold("unanswered", not left, left)
        return said

    # The handshake.

    def _oldstyle(self) -> None:
        magic, old, size, flags = self._server.unpack("!QQQI124x")
        _hold("greeting", (magic, old) == (0x4E42444D41474943, 0x00420281861253))
        hello = self._server.data[:152]
        _hold("greeting", not any(hello[28:152]), "the reserved bytes are zeroes")
        self._export(size, flags)

    def _handshake(self) -> bool:
        """Whether it came to the transmission phase."""
        client, server, said = self._client, self._server, self._said
        magic, option_magic, offered = server.unpack("!QQH")
        _hold("greeting", (magic, option_magic) == (0x4E42444D41474943, 0x49484156454F5054))
        _hold("greeting", offered == 3, f"handshake flags {offered:#x}")
        (flags,) = client.unpack("!I")
        self._no_zeroes = bool(flags & 2)
        if flags & ~3:
            self._healthy = False
            return self._refused()
        while True:
            if not client.left:
                return False
            began = client.position
            magic, option, length = client.unpack("!QII")
            sent = client.when(client.position - 1)
            if magic != 0x49484156454F5054:
                self._healthy = False
                return self._refused()
            data = bytes(client.take(length))
            if server.left:
                early = server.when(server.position) < client.when(began)
                _hold("early", not early, f"an answer before option {option}")
                _hold("early", server.when(server.position) > sent, f"option {option}")
            if option == EXPORT_NAME:
                said.options.append((option, []))
                if data != self._expected.name.encode():
                    self._healthy = False
                    return self._refused()
                self._export(*server.unpack("!QH"))
                if not self._no_zeroes:
                    _hold("greeting", not any(server.take(124)), "124 zeroes")
                return True
            replies = self._option(option, data)
            said.options.append((option, replies))
            if option == ABORT:
                said.end = "ABORT"
                return False
            if option == GO and replies[-1] == ACK:
                return True

    def _refused(self) -> bool:
        self._said.end = "refused"
        return False

    def _option(self, option: int, data: bytes) -> list[int]:
        """Everything that answers one option."""
        server, said = self._server, self._said
        replies: list[int] = []
        infos: list[int] = []
        numbers: set[int] = set()
        listed: list[bytes] = []
        if option == SET_META:
            said.contexts = {}
        while not replies or (replies[-1] != ACK and replies[-1] < 2**31):
            magic, answered, kind, length = server.unpack("!QIII")
            _hold("option magic", magic == 0x3E889045565A9, hex(magic))
            _hold("option", answered == option, f"{answered} is answered, {option} was asked")
            content = bytes(server.take(length))
            replies.append(kind)
            if kind == ACK:
                _hold("ACK", not content, content)
            elif kind >= 2**31:
                _hold("option error", kind in OPTION_ERRORS, hex(kind))
                _hold("option error", length <= 4096)
                content.decode()
            elif kind == SERVER and option == LIST:
                (size,) = struct.unpack_from("!I", content)
                _hold("LIST", size <= min(length - 4, 4096), content)
                listed.append(content[4 : 4 + size])
            elif kind == INFORMATION and option in (INFO, GO):
                infos.append(self._information(content, data))
            elif kind == META_CONTEXT and option in (LIST_META, SET_META):
                number, name = struct.unpack_from("!I", content)[0], content[4:]
                _hold("context", bool(name) and b":" in name, name)
                if option == SET_META:
                    _hold("context", number not in numbers, f"{number} twice")
                    _hold("context", struct.pack("!I", len(name)) + name in data, "not asked for")
                    numbers.add(number)
                    said.contexts[number] = name
            else:
                raise Broken("option reply", f"type {kind} to option {option}")
        self._option_ended(option, data, replies, infos, listed)
        return replies

    def _option_ended(
        self, option: int, data: bytes, replies: list[int], infos: list[int], listed: list[bytes]
    ) -> None:
        said, last = self._said, replies[-1]
        mine = self._expected.name.encode()
        if option in (GO, INFO, LIST_META, SET_META) and last == ACK:
            _hold("export name", _named(data) in self._expected.exports, data[:80])
        if option in (GO, INFO) and last == ACK:
            _hold("INFO", infos.count(0) == 1, f"EXPORT must come once: {infos}")
            _hold("INFO", len(set(infos)) == len(infos), f"twice the same: {infos}")
        if option == LIST:
            want = (INVALID, []) if data else (ACK, self._expected.exports)
            _hold("LIST", (last, listed) == want, (hex(last), listed))
        if option == STRUCTURED:
            _hold("STRUCTURED_REPLY", last == (INVALID if data else ACK), hex(last))
            said.structured = said.structured or last == ACK
        if option in (LIST_META, SET_META) and not said.structured:
            _hold("context", last == INVALID, "without structured replies")
        if option == SET_META:
            if last != ACK:
                said.contexts = {}
            said.context_export = data[4 : 4 + len(mine)]
        known = (ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META)
        if option not in known:
            allowed = {UNSUP, TOO_BIG} if len(data) > 4096 else {UNSUP}
            _hold("unknown option", last in allowed, hex(last))
        if option == STARTTLS:
            _hold("STARTTLS", last == POLICY, f"{hex(last)}, of a server without TLS")
        if option == ABORT:
            _hold("ABORT", last == ACK, hex(last))

    def _information(self, content: bytes, asked: bytes) -> int:
        (kind,) = struct.unpack_from("!H", content)
        if kind == 0:
            _hold("INFO", len(content) == 12, content)
            if _named(asked) == self._expected.notice:
                size, flags = struct.unpack("!QH", content[2:])
                _hold("notice", size == 4096 and flags & 3 == HAS_FLAGS | READ_ONLY, content)
            else:
                self._export(*struct.unpack("!QH", content[2:]))
        elif kind == 1:
            _hold("INFO", content[2:] == _named(asked), content)
        elif kind == 2:
            content[2:].decode()
        elif kind == 3:
            _hold("INFO", len(content) == 14, content)
            least, good, most = struct.unpack("!III", content[2:])
            _hold("block size", least in [1 << bit for bit in range(17)], least)
            _hold("block size", good & (good - 1) == 0 and good >= max(512, least), good)
            _hold("block size", most % least == 0 and most >= good, most)
            _hold("block size", most == MAXIMUM_PAYLOAD, most)
        else:
            raise Broken("INFO", f"unknown type {kind}")
        return kind

    def _export(self, size: int, flags: int) -> None:
        said, expected = self._said, self._expected
        _hold("size", size == expected.size, f"{size} instead of {expected.size}")
        _hold("flags", flags & HAS_FLAGS, hex(flags))
        _hold("flags", not flags & ~0xFFF, f"{flags:#x} are unknown")
        _hold("flags", bool(flags & READ_ONLY) == expected.read_only, hex(flags))
        _hold("flags", said.structured or not flags & SEND_DF, "DF without structured replies")
        said.flags = flags

    # The transmission phase.

    def _requests(self) -> None:
        client, said = self._client, self._said
        while client.left:
            began = client.when(client.position)
            try:
                magic, *fields = client.unpack("!IHHQQI")
            except _Torn:
                return
            if magic != 0x25609513:
                self._healthy = False
                return
            if fields[1] == DISC:
                said.end = "DISC"
                return
            operation = Operation(*fields, began, client.when(client.position - 1))
            said.operations.append(operation)
            self._waiting.setdefault(operation.cookie, []).append(operation)
            if operation.command == WRITE:
                try:
                    operation.payload = client.take(operation.length)
                except _Torn:
                    return

    def _replies(self) -> None:
        server = self._server
        while server.left:
            position = server.position
            (magic,) = server.unpack("!I")
            if magic == 0x67446698:
                error, cookie = server.unpack("!IQ")
                operation = self._answered(cookie, position)
                self._simple(operation, error)
                self._finished(operation)
            elif magic == 0x668E33EF:
                flags, kind, cookie, length = server.unpack("!HHQI")
                operation = self._answered(cookie, position)
                self._chunk(operation, flags, kind, server.take(length))
                if flags & 1:
                    self._chunks_ended(operation)
                    self._finished(operation)
            else:
                raise Broken("reply magic", hex(magic))

    def _answered(self, cookie: int, position: int) -> Operation:
        waiting = self._waiting.get(cookie)
        if not waiting:
            raise Broken("once", f"a reply to {cookie}, which was answered or never asked")
        operation = waiting[0]
        early = self._server.when(position) <= operation.sent
        _hold("early", not early, f"{operation}: answered before it was asked")
        return operation

    def _finished(self, operation: Operation) -> None:
        self._waiting[operation.cookie].pop(0)
        operation.ended = self._server.when(self._server.position - 1)
        faults = self._faults(operation)
        error = operation.error
        if error == ESHUTDOWN and self._expected.stops:
            return
        if faults:
            _hold("should fail", error in faults, f"{operation}: {error} instead of {faults}")
        elif not (operation.flags & FAST_ZERO and error == ENOTSUP):
            _hold("should succeed", error == 0, f"{operation}: {error}")

    def _faults(self, operation: Operation) -> set[int]:
        """What is wrong with a request: errors that may answer it."""
        said, command, flags = self._said, operation.command, operation.flags
        offers = said.flags or 0
        faults: set[int] = set()
        if command not in _FLAGS:
            return {EINVAL}
        if flags & ~_FLAGS[command] or (flags & DF and not offers & SEND_DF):
            faults.add(EINVAL)
        if flags & FAST_ZERO and not offers & 2048:
            faults.add(EINVAL)
        if not offers & _OFFERED.get(command, 1):
            faults.add(EINVAL)
        if command == STATUS and not said.contexts:
            faults.add(EINVAL)
        if command == FLUSH:
            return faults | ({EINVAL} if operation.offset or operation.length else set())
        if command in _CHANGING and self._expected.read_only:
            faults.add(EPERM)
        if operation.end > self._expected.size:
            faults.add(ENOSPC if command in (WRITE, ZEROES) else EINVAL)
        if not operation.length:
            faults.add(EINVAL)
        if command in (READ, WRITE) and operation.length > 2 * MAXIMUM_PAYLOAD:
            faults.add(EINVAL)
        return faults

    def _simple(self, operation: Operation, error: int) -> None:
        said, command = self._said, operation.command
        _hold("simple", not operation.chunks, f"{operation}: behind chunks")
        _hold("simple", not (command == READ and said.structured), f"{operation}")
        _hold("simple", error or command != STATUS, f"{operation}: succeeds")
        _hold("error number", error in ERRORS | {0}, error)
        operation.error = error
        if command == READ and not error:
            data = self._server.take(operation.length)
            operation.content.append((operation.offset, operation.length, data))

    def _chunk(self, operation: Operation, flags: int, kind: int, content: memoryview) -> None:
        length = len(content)
        _hold("chunk", self._said.structured, "structured replies were not negotiated")
        _hold("chunk flags", not flags & ~1, hex(flags))
        _hold("chunk type", kind in CHUNKS, kind)
        operation.chunks.append(kind)
        if kind == NONE:
            _hold("chunk length", not length, length)
            _hold("NONE", flags & 1, "a NONE chunk that is not the last")
        elif kind in (OFFSET_DATA, OFFSET_HOLE):
            _hold("chunk type", operation.command == READ, f"{operation}: {kind}")
            self._content(operation, kind, content)
        elif kind == BLOCK_STATUS:
            _hold("chunk type", operation.command == STATUS, f"{operation}: {kind}")
            self._status(operation, content)
        else:
            self._error_chunk(operation, kind, content)

    def _content(self, operation: Operation, kind: int, content: memoryview) -> None:
        if kind == OFFSET_DATA:
            _hold("chunk length", len(content) > 8, len(content))
            offset, count, data = *struct.unpack_from("!Q", content), len(content) - 8, content[8:]
        else:
            _hold("chunk length", len(content) == 12, len(content))
            offset, count = struct.unpack("!QI", content)
            data = None
            _hold("hole", count, f"{operation}: an empty hole")
        detail = f"{operation}: {offset}+{count}"
        _hold("outside", operation.offset <= offset < offset + count <= operation.end, detail)
        for other, other_count, _ in operation.content:
            _hold("overlap", offset + count <= other or other + other_count <= offset, detail)
        _hold("DF", not (operation.flags & DF and operation.content), f"{operation}: two chunks")
        operation.content.append((offset, count, data))

    def _status(self, operation: Operation, content: memoryview) -> None:
        count, rest = divmod(len(content) - 4, 8)
        _hold("chunk length", count > 0 and not rest, len(content))
        (context,) = struct.unpack_from("!I", content)
        _hold("context", context in self._said.contexts, f"{context} was not negotiated")
        _hold("context", not operation.states, f"{operation}: two chunks of {context}")
        _hold("extents", count <= MOST_EXTENTS, count)
        states = list(struct.iter_unpack("!II", content[4:]))
        _hold("empty extent", all(length for length, _ in states), f"{operation}: {states[:20]}")
        _hold("state", all(not state & ~3 for _, state in states), states[:20])
        total = sum(length for length, _ in states)
        _hold("beyond", total <= operation.length, f"{operation}: extents of {total} bytes")
        if operation.flags & REQ_ONE:
            _hold("REQ_ONE", count == 1, f"{operation}: {count} extents")
        operation.states = states

    def _error_chunk(self, operation: Operation, kind: int, content: memoryview) -> None:
        fixed = 6 if kind == ERROR else 14
        _hold("chunk length", len(content) >= fixed, len(content))
        error, words = struct.unpack_from("!IH", content)
        _hold("chunk length", len(content) == fixed + words, (len(content), words))
        _hold("error number", error in ERRORS, error)
        bytes(content[6 : 6 + words]).decode()
        if kind == ERROR_OFFSET:
            (offset,) = struct.unpack("!Q", content[6 + words :])
            _hold("outside", operation.offset <= offset < operation.end, f"{operation}: {offset}")
        operation.failing = operation.failing or error

    def _chunks_ended(self, operation: Operation) -> None:
        operation.error = operation.failing
        if operation.error:
            return
        if operation.command == READ:
            covered = sum(count for _, count, _ in operation.content)
            _hold("cover", covered == operation.length, f"{operation}: {covered} bytes came")
        if operation.command == STATUS:
            _hold("cover", operation.states, f"{operation}: no extents")


# What the disk holds.

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_PIECE = 1 << 20


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def _data(file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What of a range is no hole."""
    while start < end:
        try:
            start = os.lseek(file, start, os.SEEK_DATA)
        except OSError:
            return
        if start >= end:
            return
        stop = min(os.lseek(file, start, os.SEEK_HOLE), end)
        yield start, stop
        start = stop


class Ranges:
    """Ranges of bytes."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        self.remove(start, end)
        if start < end:
            bisect.insort(self._ranges, (start, end))

    def remove(self, start: int, end: int) -> None:
        kept: list[tuple[int, int]] = []
        for first, last in self._ranges:
            if last <= start or end <= first:
                kept.append((first, last))
                continue
            kept += [(first, start)] if first < start else []
            kept += [(end, last)] if end < last else []
        self._ranges = kept

    def outside(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of a range is in none."""
        for first, last in self._ranges:
            if last <= start:
                continue
            if first >= end:
                break
            if start < first:
                yield start, first
            start = last
        if start < end:
            yield start, end


class Contents:
    """What a disk must hold, as requests change it.

    A READ must give what the disk held, except where a request that was not answered yet may have
    changed it. What BLOCK_STATUS calls zero must be.

    @param image: the disk as it is in the beginning, which is copied.
    """

    def __init__(self, image: Path, copy: Path) -> None:
        self._file = os.open(copy, os.O_RDWR | os.O_CREAT, 0o600)
        self._size = image.stat().st_size
        os.truncate(self._file, self._size)
        with _opened(image) as file:
            for start, end in _data(file, 0, self._size):
                for position in range(start, end, _PIECE):
                    data = os.pread(file, min(_PIECE, end - position), position)
                    os.pwrite(self._file, data, position)
        self._doubtful = Ranges()

    def close(self) -> None:
        os.close(self._file)

    def play(self, conversations: Iterable[Said]) -> None:
        """Go through all that was said, in its order.

        @raise Broken: something that was read is not what the disk must hold.
        """
        events: list[tuple[int, int, int, Operation]] = []
        for number, said in enumerate(conversations):
            for order, operation in enumerate(said.operations):
                key = number << 40 | order
                events.append((operation.began, 0, key, operation))
                if operation.ended is not None:
                    events.append((operation.ended, 1, key, operation))
        changing: dict[int, Operation] = {}
        looking: dict[int, tuple[Operation, Ranges]] = {}
        for _, ends, key, operation in sorted(events, key=lambda event: event[:3]):
            start, end = operation.offset, min(operation.end, self._size)
            if operation.command in _CHANGING:
                if not ends:
                    changing[key] = operation
                    for _, unknown in looking.values():
                        unknown.add(start, end)
                    continue
                del changing[key]
                self._change(operation, list(changing.values()))
            elif operation.command in (READ, STATUS):
                if not ends:
                    unknown = Ranges()
                    for other in changing.values():
                        unknown.add(other.offset, other.end)
                    looking[key] = (operation, unknown)
                    continue
                self._look(*looking.pop(key))
        for operation in changing.values():
            self._doubtful.add(operation.offset, min(operation.end, self._size))

    def _change(self, operation: Operation, others: list[Operation]) -> None:
        if operation.error and operation.error not in (EIO, ENOMEM):
            return
        start, end = operation.offset, operation.end
        if operation.error:
            self._doubtful.add(start, end)
            return
        if operation.command == WRITE:
            data = operation.payload
            assert os.pwrite(self._file, data, start) == len(data)
        elif _libc.fallocate(self._file, 3, start, end - start):
            raise OSError(ctypes.get_errno(), "fallocate")
        if operation.command == TRIM:
            self._doubtful.add(start, end)
        else:
            self._doubtful.remove(start, end)
        for other in others:
            self._doubtful.add(max(start, other.offset), min(end, other.end))

    def _look(self, operation: Operation, unknown: Ranges) -> None:
        if operation.error:
            return
        if operation.command == READ:
            for offset, count, data in operation.content:
                for start, end in self._certain(offset, offset + count, unknown):
                    seen = None if data is None else data[start - offset : end - offset]
                    self._compare("content", start, end, seen, operation)
            return
        offset = operation.offset
        for count, state in operation.states:
            if state & 2:
                for start, end in self._certain(offset, offset + count, unknown):
                    self._compare("not zero", start, end, None, operation)
            offset += count

    def _certain(self, start: int, end: int, unknown: Ranges) -> Iterator[tuple[int, int]]:
        for first, last in unknown.outside(start, end):
            yield from self._doubtful.outside(first, last)

    def _compare(
        self, rule: str, start: int, end: int, seen: memoryview | None, what: object
    ) -> None:
        """Whether the range is C{seen}, or zeroes."""
        runs = [(start, end)] if seen is not None else _data(self._file, start, end)
        for first, last in runs:
            for position in range(first, last, _PIECE):
                count = min(_PIECE, last - position)
                held = os.pread(self._file, count, position)
                said = bytes(count) if seen is None else seen[position - start :][:count]
                if said != held:
                    at = next(i for i in range(count) if said[i] != held[i])
                    detail = f"{said[at]:#x}, not {held[at]:#x}, at {position + at}"
                    raise Broken(rule, f"{what}: {detail}")

    def check(self, image: Path) -> None:
        """The disk itself must hold it, too.

        @raise Broken: it does not.
        """
        with _opened(image) as file:
            size = os.fstat(file).st_size
            _hold("final", size == self._size, f"the disk has {size} bytes, not {self._size}")
            for start, end in self._doubtful.outside(0, size):
                done = start
                for first, last in [*_data(file, start, end), (end, end)]:
                    self._compare("final", done, first, None, image)
                    done = last
                    for position in range(first, last, _PIECE):
                        held = os.pread(file, min(_PIECE, last - position), position)
                        self._compare(
                            "final", position, position + len(held), memoryview(held), image
                        )


def tally(conversations: Iterable[Said]) -> Counter[str]:
    """How often there was what: requests, their flags, chunks, errors, ends."""
    counts: Counter[str] = Counter()
    flags = {FUA: "FUA", NO_HOLE: "NO_HOLE", DF: "DF", REQ_ONE: "REQ_ONE", FAST_ZERO: "FAST_ZERO"}
    for said in conversations:
        counts["connections"] += 1
        counts[said.end] += 1
        counts["structured"] += said.structured
        for operation in said.operations:
            known = operation.command < len(NAMES)
            name = NAMES[operation.command] if known else "unknown"
            counts[name] += 1
            counts["extents"] += len(operation.states)
            counts.update(f"{name} {flags[bit]}" for bit in flags if operation.flags & bit)
            counts.update(f"{CHUNKS[kind]} chunk" for kind in operation.chunks)
            if operation.error:
                counts[f"error {operation.error}"] += 1
    return counts
