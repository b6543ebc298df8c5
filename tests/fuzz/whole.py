"""Whole servers, receivers and senders over connections in memory, judged by what came of it.

Owns the judges. A server's is a second disk to which is done what was answered without an error; a
receiver's is that nonsense does not complete it, and that its records say what is in its disk; a
sender's is that the source stays until the destination has it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import struct
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from blockmig.client import Destination
from blockmig.errors import MigrationError, Summary
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.identity import ANYBODY, Identity
from blockmig.migration.records.files import Kind, Phase, Records
from blockmig.migration.source.sender import Sender
from blockmig.nbd import (
    Command,
    Export,
    Negotiated,
    ProtocolError,
    ServerHandshake,
    TransmissionFlag,
)
from blockmig.server import LatencyMonitor, Server
from blockmig.testing import synchronous
from tests.support.made import made
from tests.unit.served import (
    BadReply,
    Kernel,
    Replies,
    Seconds,
    ServedDisk,
    SocketDouble,
    meta,
    option,
    pattern,
    text,
)
from tests.unit.support import (
    ADDRESS,
    HandTransport,
    MemoryEndpoint,
    QuickDisk,
    QuickRecordedDisk,
    Story,
    WatchedDisk,
)

from .target import need, nothing_logged_as_bug, pieces, target

SIZE = 20_480
_HOLE = (8192, 12_288)
_REQUEST = struct.Struct("!IHHQQI")
_MAGIC = 0x25609513
_CHANGES = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
_HOUR = 3600

PLAIN_START = b"\0\0\0\3" + option(7, text(b"") + b"\0\0")
"""What a client says that only wants the export."""
STRUCTURED_START = (
    b"\0\0\0\3" + option(8) + option(10, meta(b"", b"base:allocation")) + PLAIN_START[4:]
)


@contextlib.contextmanager
def _nothing_random() -> Iterator[None]:
    """Cookies, nonces and UUIDs are the same in each run."""
    source = random.Random(0)

    def uuid4() -> uuid.UUID:
        return uuid.UUID(bytes=source.randbytes(16), version=4)

    with (
        mock.patch("secrets.randbits", source.getrandbits),
        mock.patch("secrets.token_hex", lambda size: source.randbytes(size).hex()),
        mock.patch("uuid.uuid4", uuid4),
    ):
        yield


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A folder for records, in memory."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = tempfile.mkdtemp(prefix="blockmig-fuzz-", dir=place)
    try:
        yield path
    finally:
        shutil.rmtree(path)


# A server.


@dataclass
class _Asked:
    """One request of a client's stream."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    payload: bytes
    whole: bool = True


def _requests(stream: bytes) -> tuple[list[_Asked], bool]:
    """The requests in a stream, the last one perhaps incomplete; and whether it goes on after them:
    no disconnect has come, and nothing that is no request."""
    found: list[_Asked] = []
    position = 0
    while len(stream) - position >= _REQUEST.size:
        magic, *fields = _REQUEST.unpack_from(stream, position)
        if magic != _MAGIC:
            return found, False
        position += _REQUEST.size
        asked = _Asked(*fields, b"")
        if asked.command == Command.DISC:
            return found, False
        if asked.command == Command.WRITE:
            asked.payload = stream[position : position + asked.length]
            asked.whole = len(asked.payload) == asked.length
            position += asked.length
        found.append(asked)
        if not asked.whole:
            break
    return found, True


class _ServerRun:
    """A server, one client's stream, and what came of it."""

    def __init__(self, mode: int) -> None:
        self.clock = Clock()
        self.content = bytearray(pattern(SIZE))
        self.content[slice(*_HOLE)] = bytes(_HOLE[1] - _HOLE[0])
        keywords = {"read_only": bool(mode & 2), "oldstyle": bool(mode & 4)}
        seconds, number = Seconds(), iter(range(1 << 60))
        keywords["latency"] = LatencyMonitor(seconds, number.__next__)
        self.quick = bool(mode & 1)
        if self.quick:
            self.disk = ServedDisk(bytes(self.content), holes=[_HOLE])
            kernel = Kernel(self.disk)
            keywords["system"] = kernel
            self.transport = SocketDouble(self.clock)
            kernel.transport = self.transport
        else:
            hole = (_HOLE[0], _HOLE[1] - _HOLE[0])
            self.disk = QuickDisk(bytes(self.content), holes=[hole])
            self.disk.fileno = lambda: None
            self.transport = HandTransport(self.clock)
        self.server = made(Server, self.disk, reactor=self.clock, in_thread=synchronous, **keywords)
        self.protocol = self.server.factory().buildProtocol(ADDRESS)
        self.out = bytearray()
        self.transport.connect(self.protocol)
        self.rest()

    @property
    def gone(self) -> bool:
        return self.transport.lost if self.quick else self.transport.gone

    def give(self, data: bytes) -> None:
        if self.quick:
            self.transport.incoming.append(data)
        elif self.transport.listens:
            self.protocol.dataReceived(data)
        self.rest()

    def rest(self) -> None:
        """Everything that happens without time passing."""
        for _ in range(1000):
            if self.quick:
                self.transport.run()
                more = False
            else:
                more = self.transport.has_more
                while self.transport.has_more:
                    self.out += self.transport.take()
                    self.transport.go_on()
            due = any(c.getTime() <= self.clock.seconds() for c in self.clock.getDelayedCalls())
            self.clock.advance(0)
            if not (more or due):
                break
        else:
            need(False, "it never rests")
        if self.quick:
            self.out += self.transport.out
            self.transport.out.clear()

    def later(self, seconds: int) -> None:
        for _ in range(5):
            self.clock.advance(seconds / 5)
            self.rest()

    def lose(self) -> None:
        self.transport.lose(ConnectionLost())
        self.rest()


def _shaken(mode: int, stream: bytes) -> tuple[bytes, Negotiated | None, bytes, bool]:
    """What the handshake is answered with, its outcome, what comes after it, and whether it goes
    on."""
    flags = TransmissionFlag(0xD6D) | TransmissionFlag.SEND_CACHE
    flags |= TransmissionFlag.CAN_MULTI_CONN | TransmissionFlag.SEND_FAST_ZERO
    if mode & 2:
        flags |= TransmissionFlag.READ_ONLY
    exports = {"": Export("", SIZE, flags), ".served": Export(".served", 4096, flags)}
    if mode & 4:
        return b"", Negotiated(exports[""]), stream, True
    handshake = ServerHandshake(exports.get, lambda: list(exports), True)
    try:
        handshake.receive_data(stream)
    except ProtocolError:
        return b"", None, b"", False
    event = handshake.next_event()
    said = handshake.data_to_send()
    if event is None:
        return said, None, b"", True
    if not isinstance(event, Negotiated):
        return said, None, b"", False
    return said, event, handshake.trailing_data(), True


@target("server", longest=4096, seeds=("to-server", "requests"))
def server(data: bytes) -> None:
    """A client's stream to a whole server; the first byte says to which, and how it begins."""
    if not data:
        return
    mode, stream = data[0], data[1:]
    if not mode & 4:
        stream = (b"", PLAIN_START, STRUCTURED_START, b"")[mode >> 4 & 3] + stream
    with nothing_logged_as_bug():
        run = _ServerRun(mode)
        for piece in pieces(stream) if mode & 8 else [stream]:
            run.give(piece)
        said, negotiated, rest, goes_on = _shaken(mode, stream)
        if negotiated is None:
            if not goes_on:
                run.later(60)
                need(run.gone, "the connection outlives its handshake")
            else:
                need(not run.gone and bytes(run.out[:18]) == said[:18], "no answer, and no end")
                need(len(run.out) == len(said), "not all options were answered")
                run.later(120)
                need(run.gone, "nobody may shake hands for ever")
            _unchanged(run)
            return
        if negotiated.export.name:
            _unchanged(run)
        else:
            begun = 152 if mode & 4 else len(said)
            _judge(run, negotiated, rest, bytes(run.out[begun:]))
        run.lose()
        run.server.stop("the input is at its end")
        run.rest()
        need(run.server.state == "stopped", "the server does not end")


def _unchanged(run: _ServerRun) -> None:
    need(run.disk.content == bytes(run.content), "the disk has changed")


def _judge(run: _ServerRun, negotiated: Negotiated, stream: bytes, said: bytes) -> None:
    """Judge what was said to a client's requests, and what was done."""
    asked, goes_on = _requests(stream)
    whole = [request for request in asked if request.whole]
    replies = Replies(negotiated.structured)
    cookies = [request.cookie for request in whole]
    distinct = len(set(cookies)) == len(cookies)
    if distinct:
        for request in whole:
            detail = (request.command, request.offset, request.length, request.flags)
            replies.asked[request.cookie] = detail
        try:
            replies.feed(said)
        except BadReply as error:
            need(False, f"the server broke the protocol: {error}")
        if goes_on:
            need(not replies.asked or run.gone, "a request is neither answered nor refused")
            need(run.gone or not replies.data, "a part of a reply")
        _judge_disk(run, asked, replies)
    if not goes_on:
        run.later(60)
        need(run.gone, "the connection outlives its end")
    elif len(asked) > len(whole) or _has_rest(stream, asked):
        run.later(_HOUR)
        need(run.gone, "nobody may be in the middle of a request for ever")


def _has_rest(stream: bytes, asked: list[_Asked]) -> bool:
    """Whether a header has begun after the requests."""
    return len(stream) > sum(_REQUEST.size + len(request.payload) for request in asked)


def _judge_disk(run: _ServerRun, asked: list[_Asked], replies: Replies) -> None:
    """Do what was answered without an error to the content, in order, and compare."""
    unsure = []
    for request in asked:
        end = request.offset + request.length
        outcome = replies.done.get(request.cookie) if request.whole else None
        if outcome is None or request.command == Command.TRIM:
            if request.command in _CHANGES and end <= SIZE:
                unsure.append((request.offset, end))
            continue
        if outcome.error or end > SIZE:
            need(outcome.error or request.command not in _CHANGES, "written beyond the end")
            continue
        if request.command == Command.WRITE:
            need(not run.server.read_only, "a read-only disk is written")
            run.content[request.offset : end] = request.payload
        elif request.command == Command.WRITE_ZEROES:
            run.content[request.offset : end] = bytes(request.length)
        elif request.command == Command.READ and not unsure:
            need(outcome.data == run.content[request.offset : end], "other data than was written")
    found = bytearray(run.disk.content)
    for start, end in unsure:
        found[start:end] = run.content[start:end]
    need(found == run.content, "the disk has changed by what was refused, or not by what was done")


# A receiver.

COPY_SIZE = 5000


@dataclass
class _Link:
    """A connection to a receiver, and what was sent over it."""

    protocol: Protocol
    transport: HandTransport
    sent: bytearray

    def give(self, data: bytes) -> None:
        if self.transport.listens:
            self.sent += data
            self.protocol.dataReceived(data)

    def rest(self) -> bool:
        moved = self.transport.has_more
        while self.transport.has_more:
            self.transport.take()
            self.transport.go_on()
        return moved


DATA_ACT, CONNECT_ACT, SWITCH_ACT, END_ACT, TIME_ACT = range(5)


def acts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """What is done to a receiver: a byte that says what, two that say how long it is, and that."""
    position = 0
    while position + 3 <= len(data):
        kind, length = data[position] % 5, int.from_bytes(data[position + 1 : position + 3])
        position += 3
        yield kind, data[position : position + length]
        position += length


def act(kind: int, data: bytes = b"") -> bytes:
    """One of L{acts}, as bytes."""
    return bytes((kind,)) + len(data).to_bytes(2) + data


class _ReceiverRun:
    def __init__(self, folder: str, mode: int) -> None:
        self.clock = Clock()
        self.disk = QuickRecordedDisk(b"o" * COPY_SIZE, f"{folder}/disk")
        self.records = Records(self.disk.path)
        identity = ANYBODY
        if mode & 1:
            identity = Identity("one", b"nobody knows this secret")
        elif mode & 2:
            identity = Identity("one")
        self.receiver = made(
            Receiver,
            self.disk,
            reactor=self.clock,
            in_thread=synchronous,
            system=Story(),
            overwrite=not mode & 4,
            oldstyle=bool(mode & 8),
            identity=identity,
        )
        self.results: list[object] = []
        self.receiver.complete().addBoth(self.results.append)
        self.links: list[_Link] = []
        self.current: _Link | None = None

    def connect(self) -> None:
        protocol = self.receiver.factory().buildProtocol(ADDRESS)
        if protocol is None:
            return
        transport = HandTransport(self.clock)
        transport.connect(protocol)
        self.current = _Link(protocol, transport, bytearray())
        self.links.append(self.current)

    def do(self, kind: int, data: bytes) -> None:
        if kind == TIME_ACT:
            for _ in range(5):
                self.clock.advance(min(sum(data), 300) / 5)
                self.rest()
            return
        if kind == CONNECT_ACT or self.current is None:
            if len(self.links) < 6:
                self.connect()
        elif kind == SWITCH_ACT:
            self.current = self.links[sum(data) % len(self.links)]
        elif kind == END_ACT:
            self.current.transport.lose(ConnectionLost() if sum(data) else ConnectionDone())
        if kind == DATA_ACT and self.current is not None:
            for piece in pieces(data) if len(data) % 2 else [data]:
                self.current.give(piece)
                self.rest()
        self.rest()

    def rest(self) -> None:
        for _ in range(1000):
            moved = [link.rest() for link in self.links]
            due = any(c.getTime() <= self.clock.seconds() for c in self.clock.getDelayedCalls())
            self.clock.advance(0)
            if not (any(moved) or due):
                return
        need(False, "it never rests")

    def has(self, kind: Kind) -> bool:
        """Whether there is such a record, without reading it."""
        return os.path.exists(self.records.name(kind))

    def covered(self) -> bool:
        """Whether what was sent may have covered the disk, and ended: any bytes of any connection
        that are like requests count."""
        seen, disconnected = bytearray(COPY_SIZE), False
        for link in self.links:
            start = 0
            magic = _MAGIC.to_bytes(4)
            while (start := link.sent.find(magic, start)) >= 0:
                if len(link.sent) >= start + _REQUEST.size:
                    _, _, command, _, offset, length = _REQUEST.unpack_from(link.sent, start)
                    disconnected |= command == Command.DISC
                    end = offset + length
                    if command in _CHANGES and end <= COPY_SIZE:
                        seen[offset:end] = b"\1" * length
                start += 1
        return disconnected and all(seen)


@target("receiver", longest=24_576)
def receiver(data: bytes) -> None:
    """What several clients do to a receiver; the first byte says what it was started with."""
    if not data:
        return
    mode = data[0]
    with _folder() as folder, nothing_logged_as_bug(), _nothing_random():
        try:
            run = _ReceiverRun(folder, mode)
        except MigrationError:
            need(False, "refused, with an empty folder")
        for kind, what in acts(data[1:]):
            run.do(kind, what)
            _judge_receiver(run, mode)
            if run.results:
                break
        for _ in range(8):
            run.clock.advance(25.0)
            run.rest()
        # A sender that has said who it is may be silent while it copies, and while it retires.
        incomplete = run.records.read(Kind.INCOMPLETE)
        known = incomplete is not None and incomplete.identified
        for link in run.links:
            may_stay = known and _MAGIC.to_bytes(4) in link.sent
            need(link.transport.gone or may_stay, "a connection is neither answered nor closed")
        run.receiver.stop("the input is at its end")
        run.rest()
        need(run.results, "the receiver does not end")
        _judge_receiver(run, mode)
        if isinstance(run.results[0], Failure):
            need(run.results[0].check(MigrationError), "an end that has no exit status")
        left = set(os.listdir(folder)) - {f"disk.{kind}" for kind in Kind}
        need(not left, f"files that nobody knows: {left}")


def _judge_receiver(run: _ReceiverRun, mode: int) -> None:
    received, incomplete = run.has(Kind.RECEIVED), run.has(Kind.INCOMPLETE)
    complete = bool(run.results) and isinstance(run.results[0], Summary)
    changed = run.disk.content != b"o" * COPY_SIZE
    if complete or received:
        need(run.covered(), "complete by nonsense (R5)")
    elif changed:
        need(incomplete, "changed without a record (R2)")
    if complete:
        need(not incomplete, "complete, and INCOMPLETE (R2)")
    if mode & 1:
        need(not (complete or received or changed), "one without the secret was let in (R10)")
    if run.results and not complete:
        need(not received, "RECEIVED of what is not complete (R11)")


# A sender.

SENT = random.Random(0).randbytes(3000) + bytes(70_000) + b"the end"


class _Source(WatchedDisk):
    """One that can be deleted, and of which zeroes are not sent as data."""

    def __init__(self, content: bytes, path: str) -> None:
        super().__init__(content, path)
        self.shortest_zeroes = 4096


class _Scripted(Protocol):
    """A server that says what it says, whatever it is asked: a piece for each that it gets."""

    def __init__(self, script: Iterator[bytes]) -> None:
        self.script = script

    def connectionMade(self) -> None:
        self.transport.write(next(self.script, b""))

    def dataReceived(self, data: bytes) -> None:
        piece = next(self.script, None)
        if piece is None:
            self.transport.loseConnection()
        else:
            self.transport.write(piece)


class _SenderRun:
    """A sender whose source is in a folder.

    @param build: makes what it connects to.
    """

    def __init__(self, folder: str, build, mode: int) -> None:
        self.clock = Clock()
        os.mkdir(f"{folder}/source")
        self.disk = _Source(SENT, f"{folder}/source/disk")
        self.records = Records(self.disk.path)
        self.endpoint = MemoryEndpoint(self.clock, build)
        self.unlink = bool(mode & 1)
        self.sender = made(
            Sender,
            self.disk,
            Destination(self.endpoint, "", "nbd://there/"),
            reactor=self.clock,
            in_thread=synchronous,
            system=Story(),
            unlink=self.unlink,
            retry=bool(mode & 2),
            retry_policy=lambda failures: 5.0,
            overwrite=bool(mode & 4),
            give_up_after=30.0 if mode & 2 else None,
        )
        self.results: list[object] = []

    def go(self) -> None:
        self.sender.run().addBoth(self.results.append)
        self.endpoint.pump()
        for _ in range(400):
            if self.results:
                return
            self.endpoint.advance(2.0)
        self.sender.stop("the input is at its end")
        self.endpoint.advance(200.0)

    @property
    def done(self) -> bool:
        return bool(self.results) and isinstance(self.results[0], Summary)

    @property
    def retired(self) -> bool:
        return self.disk.unlinked or self.records.read(Kind.MIGRATED) is not None

    def judge(self) -> None:
        need(self.results, "the sender does not end")
        if isinstance(self.results[0], Failure):
            need(self.results[0].check(MigrationError), "an end that has no exit status")
            need("\n" not in str(self.results[0].value), "a message of several lines")
        need(self.disk.content == SENT, "the source has changed")
        need(not self.done or self.retired, "done, and not retired")


@target("sender", longest=4096, seeds=("to-client", "replies"))
def sender(data: bytes) -> None:
    """A server's stream to a sender; the first byte says how that was started."""
    if not data:
        return
    mode, stream = data[0], data[1:]
    with _folder() as folder, nothing_logged_as_bug(), _nothing_random():
        script = pieces(stream) if mode & 8 else iter([stream])
        run = _SenderRun(folder, lambda: _Scripted(script), mode)
        run.go()
        run.judge()
        if run.retired:
            need(stream.count(b"\x67\x44\x66\x98") > 1, "retired before anything was answered")


@dataclass
class _Edit:
    """One change of what goes over a wire: after so many bytes, what is done there."""

    to_server: bool
    kind: int
    after: int
    data: bytes


def _edits(data: bytes) -> Iterator[_Edit]:
    """A byte that says what and which way, two that say where, one that says how long, and that."""
    position = 0
    while position + 4 <= len(data):
        what, after, length = struct.unpack_from("!BHB", data, position)
        position += 4
        yield _Edit(bool(what & 0x80), (what & 0x7F) % 5, after, data[position : position + length])
        position += length


class Wire:
    """One direction of the wires between two ends, with edits of what passes.

    @ivar passed: how many bytes have passed.
    @ivar edited: how many edits were made.
    @ivar forged: whether a disconnect is among what was put in, or has come about by an edit.
    """

    _disconnect = re.compile(rb"\x25\x60\x95\x13..\x00\x02", re.DOTALL)

    def __init__(self, edits: list[_Edit], to_server: bool) -> None:
        self.edits = edits
        self.to_server = to_server
        self.forged = False
        self.passed = 0
        self.edited = 0

    def pass_on(self, piece: bytes, cut) -> bytes:
        """What arrives of a piece."""
        said = self._count(piece)
        out = bytearray()
        while self.edits and self.edits[0].after <= self.passed + len(piece):
            edit = self.edits.pop(0)
            here = max(0, edit.after - self.passed)
            out += piece[:here]
            self.passed += here
            piece = piece[here:]
            self.edited += 1
            match edit.kind:
                case 0:  # changed
                    piece = edit.data[: len(piece)] + piece[len(edit.data) :]
                case 1:  # put in
                    out += edit.data
                case 2:  # left out
                    piece = piece[len(edit.data) :]
                case 3:  # cut
                    cut()
                    return bytes(out)
                case 4:  # said twice
                    out += out[-len(edit.data) :] if edit.data else b""
        self.passed += len(piece)
        out += piece
        self.forged |= self._count(out) > said
        return bytes(out)

    def _count(self, data: bytes) -> int:
        """How many disconnects there are in it, by the look of it."""
        return len(self._disconnect.findall(data))


@target("sender-and-receiver", longest=400)
def sender_and_receiver(data: bytes) -> None:
    """A whole migration over wires that change, add, lose, repeat and cut what passes."""
    if not data:
        return
    mode = data[0]
    edits = list(_edits(data[1:]))
    there = Wire([edit for edit in edits if edit.to_server], True)
    back = Wire([edit for edit in edits if not edit.to_server], False)
    with _folder() as folder, nothing_logged_as_bug(), _nothing_random():
        os.mkdir(f"{folder}/copy")
        copy = QuickRecordedDisk(b"o" * len(SENT), f"{folder}/copy/disk")
        made_receiver: list[Receiver] = []
        run = _SenderRun(folder, lambda: made_receiver[0].factory().buildProtocol(ADDRESS), mode)
        receiver = made(
            Receiver,
            copy,
            reactor=run.clock,
            in_thread=synchronous,
            system=Story(),
            overwrite=True,
        )
        made_receiver.append(receiver)
        arrived: list[object] = []
        receiver.complete().addBoth(arrived.append)

        def tap(link) -> None:
            for wire, end in ((there, link.server), (back, link.client)):
                end.receive = _tapped(wire, end.receive, link.cut)

        connect = run.endpoint.connect

        def connect_tapped(factory):
            run.endpoint._preparing.clear()
            run.endpoint.prepare(tap)
            return connect(factory)

        run.endpoint.connect = connect_tapped
        run.go()
        run.judge()
        run.endpoint.advance(200.0)
        receiver.stop("the input is at its end")
        run.endpoint.advance(1.0)
        need(arrived, "the receiver does not end")
        complete = isinstance(arrived[0], Summary)
        if not complete:
            need(arrived[0].check(MigrationError), "an end that has no exit status")
        incomplete = Records(copy.path).read(Kind.INCOMPLETE)
        if not there.edited and not back.edited:
            need(run.done and complete, "an undisturbed migration is not complete")
        if complete and not there.forged:
            need(run.retired, "both copies are canonical (R1)")
        if run.retired and not back.edited:
            whole = incomplete is not None and incomplete.phase == Phase.COPIED
            need(whole or complete, "neither copy is canonical (R1)")
        if run.retired and not (back.edited or there.edited):
            need(copy.content == SENT, "another content")
        if not complete and copy.content != b"o" * len(SENT):
            need(incomplete is not None, "changed without a record (R2)")


def _tapped(wire: Wire, receive, cut):
    def received(piece: bytes) -> None:
        if left := wire.pass_on(piece, cut):
            receive(left)

    return received
