"""Doubles for the server's tests: a disk with a descriptor, a socket, and a strict client."""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from dataclasses import dataclass, field
from itertools import count

from twisted.internet import tcp
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from blockmig.nbd import Command, CommandFlag
from blockmig.server import LatencyMonitor, Server
from blockmig.syscalls import SystemCalls
from blockmig.testing import ManualThreads, MemoryDisk, synchronous
from tests.support.made import made

from .support import ADDRESS, request_bytes

SOCKET, FILE = 1_000_077, 1_000_088  # of nothing real: `has_hung_up` asks the kernel
DF, FUA, NO_HOLE = CommandFlag.DF, CommandFlag.FUA, CommandFlag.NO_HOLE
REQ_ONE, FAST_ZERO = CommandFlag.REQ_ONE, CommandFlag.FAST_ZERO
FIXED = struct.pack("!I", 3)
SIMPLE, STRUCTURED = 0x67446698, 0x668E33EF


def eio():
    return OSError(errno.EIO, "Input/output error")


class ServedDisk(MemoryDisk):
    """A disk in memory that has a descriptor: C{Kernel} knows it.

    `holes` are (start, end); `bad` are those that cannot be read; `not_fast` refuses FAST_ZERO.
    """

    descriptor = FILE

    def __init__(self, content, holes=(), bad=()):
        content = bytearray(content)
        for start, end in holes:
            content[start:end] = bytes(end - start)
        super().__init__(bytes(content), holes=[(start, end - start) for start, end in holes])
        self.bad = list(bad)
        self.not_fast = False

    def fileno(self):
        return self.descriptor

    def check(self, offset, length):
        assert 0 <= offset < offset + length <= self.size
        if any(offset < end and start < offset + length for start, end in self.bad):
            raise eio()

    def _called(self, call):
        super()._called(call)
        if call.method in ("read", "probe"):
            self.check(call.offset, call.length)
        if call.fast and self.not_fast:
            raise OSError(errno.EOPNOTSUPP, "slow")


class Kernel(SystemCalls):
    """Reads and writes a C{ServedDisk} by its descriptor, and sends to a C{SocketDouble}.

    `cold` is what preadv says when it is asked not to wait: nothing, or an error. `preads` and
    `pwrites` are scripts: an error, or the most that the next call does.
    """

    def __init__(self, disk):
        self.disk = disk
        self.transport = None
        self.cold = None
        self.preads = deque()
        self.pwrites = deque()
        self.sends = []
        self.sent_from_disk = []
        self.asked = []
        self.wrote = []

    def preadv(self, descriptor, buffers, offset, flags=0):
        assert descriptor == FILE
        (view,) = buffers
        self.asked.append((offset, len(view), flags))
        if flags and self.cold is not None:
            raise self.cold
        count = self._most(self.preads, len(view))
        self.disk.check(offset, len(view))
        view[:count] = self.disk.peek(offset, count)
        return count

    def pwrite(self, descriptor, data, offset):
        assert descriptor == FILE
        assert offset + len(data) <= self.disk.size
        self.wrote.append((offset, len(data)))
        count = self._most(self.pwrites, len(data))
        self.disk.poke(offset, bytes(data[:count]))
        return count

    @staticmethod
    def _most(script, count):
        most = script.popleft() if script else None
        if isinstance(most, OSError):
            raise most
        return count if most is None else min(most, count)

    def send(self, handle, data, flags):
        assert not handle.buffer, "it would overtake what is buffered"
        taken = handle.take(data)
        self.sends.append((taken, flags))
        return taken

    def sendfile(self, out, source, offset, count):
        assert (out, source) == (SOCKET, FILE)
        assert not self.transport.buffer, "it would overtake what is buffered"
        for start, end in self.disk.bad:
            if start <= offset < end:
                raise eio()
            if offset < start:
                count = min(count, start - offset)
        taken = self.transport.take(self.disk.peek(offset, count))
        self.sent_from_disk.append((offset, taken))
        return taken


class SocketDouble(tcp.Connection):
    """A plain socket's transport; the peer's hands are the test's.

    `room` is how much the socket takes before the peer reads; None for no end of it. `takes` is
    the most that each of the next calls takes, where 0 is EAGAIN.
    """

    def __init__(self, clock, room=None):
        self.clock = clock
        self.room = room
        self.takes = deque()
        self.out = bytearray()
        self.buffer = bytearray()
        self.incoming = deque()
        self.producer = None
        self.streaming = None
        self.writing = self.reading = True
        self.lost = self.closing = self.aborted = False
        self.gone_peer = False

    def connect(self, protocol):
        self.protocol = protocol
        protocol.makeConnection(self)

    # Towards the protocol.

    def fileno(self):
        return -1 if self.lost else SOCKET

    def getHandle(self):
        return self

    family = None

    def setTcpNoDelay(self, enabled):
        pass

    def setTcpKeepAlive(self, enabled):
        pass

    def setsockopt(self, *_):
        pass

    def getPeer(self):
        return ADDRESS

    getHost = getPeer

    def take(self, data):
        """What the socket takes now."""
        if self.gone_peer:
            raise OSError(errno.ECONNRESET, "reset")
        count = len(data)
        if self.takes:
            count = min(count, self.takes.popleft())
        if self.room is not None:
            count = min(count, self.room)
            self.room -= count
        if not count:
            raise BlockingIOError(errno.EAGAIN, "full")
        self.out += data[:count]
        return count

    def write(self, data):
        assert isinstance(data, bytes)
        if not self.lost and not self.closing:
            self.buffer += data
            self.writing = True

    def startWriting(self):
        self.writing = True

    def stopWriting(self):
        self.writing = False

    def pauseProducing(self):
        self.reading = False

    def resumeProducing(self):
        self.reading = True

    def registerProducer(self, producer, streaming):
        assert self.producer is None
        if self.lost:
            producer.stopProducing()
            return
        self.producer, self.streaming = producer, streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self):
        self.producer = None
        self.writing = True

    def loseConnection(self):
        self.closing = self.writing = True

    def abortConnection(self):
        if not self.aborted:
            self.aborted = True
            self.clock.callLater(0, self.lose, ConnectionAborted())

    def lose(self, reason=None):
        """The connection is gone."""
        if not self.lost:
            self.lost = True
            producer, self.producer = self.producer, None
            if producer is not None:
                producer.stopProducing()
            self.protocol.connectionLost(Failure(reason or ConnectionLost()))

    # The reactor's turns.

    def turn(self):
        """Deliver a piece, or write if the socket is writable; whether anything could be done."""
        if self.lost:
            return False
        if self.reading and self.incoming and not self.aborted:
            self.protocol.dataReceived(self.incoming.popleft())
            return True
        if not self.writing or self.room == 0:
            return False
        if self.buffer:
            del self.buffer[: self.take(bytes(self.buffer))]
            return True
        self.writing = False
        if self.producer is not None:
            if not self.streaming:
                self.producer.resumeProducing()
                return True
        elif self.closing:
            self.lose(ConnectionDone())
        return self.writing

    def run(self, most=200_000):
        for _ in range(most):
            if not self.turn():
                return
        raise AssertionError("it never rests")


@dataclass
class Outcome:
    """What came of one request."""

    error: int = 0
    data: bytes | None = None
    errors_at: list = field(default_factory=list)
    extents: list | None = None
    chunks: list = field(default_factory=list)


class BadReply(Exception):
    """The server broke the protocol."""


class Replies:
    """Decodes replies as strictly as the protocol document allows; Outcomes by cookie."""

    def __init__(self, structured):
        self.structured = structured
        self.data = bytearray()
        self.asked = {}
        self.parts = {}
        self.done = {}

    def need(self, fact, why):
        if not fact:
            raise BadReply(why)

    def feed(self, data):
        self.data += data
        while self._one():
            pass

    def end(self):
        """Nothing is left half-said."""
        self.need(not self.data, f"{len(self.data)} bytes of a reply")
        self.need(not self.parts, "a structured reply without an end")

    def _one(self):
        if len(self.data) < 16:
            return False
        (magic,) = struct.unpack_from("!I", self.data)
        if magic == SIMPLE:
            return self._simple()
        self.need(magic == STRUCTURED, f"bad reply magic {magic:#x}")
        self.need(self.structured, "a structured reply that was not negotiated")
        return self._chunk()

    def _request(self, cookie):
        self.need(cookie in self.asked, f"a reply to {cookie}, which is not in flight")
        return self.asked[cookie]

    def _finish(self, cookie, outcome):
        del self.asked[cookie]
        self.parts.pop(cookie, None)
        self.done[cookie] = outcome

    def _simple(self):
        _, error, cookie = struct.unpack_from("!IIQ", self.data)
        command, _, length, _ = self._request(cookie)
        self.need(cookie not in self.parts, "a simple reply in the middle of a structured one")
        outcome = Outcome(error)
        size = 16
        if command == Command.READ:
            self.need(not self.structured, "a simple reply to READ")
            if not error:
                size += length
                if len(self.data) < size:
                    return False
                outcome.data = bytes(self.data[16:size])
        elif command == Command.BLOCK_STATUS:
            self.need(error, "a simple reply to BLOCK_STATUS that is no error")
        del self.data[:size]
        self._finish(cookie, outcome)
        return True

    def _chunk(self):
        if len(self.data) < 20:
            return False
        _, flags, kind, cookie, size = struct.unpack_from("!IHHQI", self.data)
        if len(self.data) < 20 + size:
            return False
        content = bytes(self.data[20 : 20 + size])
        del self.data[: 20 + size]
        request = self._request(cookie)
        self.need(flags in (0, 1), f"chunk flags {flags}")
        self.need(request[0] in (Command.READ, Command.BLOCK_STATUS), "a chunk for another command")
        found = self.parts.setdefault(cookie, {"runs": [], "outcome": Outcome()})
        outcome = found["outcome"]
        outcome.chunks.append(kind)
        if kind == 0:
            self.need(flags == 1, "NONE without DONE")
            self.need(size == 0, "NONE with a payload")
        elif kind in (1, 2):
            self._content(request, kind, content, found["runs"])
        elif kind == 5:
            self.need(outcome.extents is None, "a second chunk for a context")
            outcome.extents = self._status(request, content)
        elif kind == 0x8001:
            outcome.error = self._error(content, 6)
        elif kind == 0x8002:
            error = self._error(content, 14)
            (at,) = struct.unpack("!Q", content[-8:])
            self.need(request[1] <= at < request[1] + request[2], "an error outside the request")
            outcome.errors_at.append((error, at))
        else:
            raise BadReply(f"chunk type {kind:#x}")
        if flags:
            self._end(cookie, request, found)
        return True

    def _error(self, content, size):
        self.need(len(content) >= size, "a short error chunk")
        error, words = struct.unpack_from("!IH", content)
        self.need(len(content) == size + words, "an error chunk of a wrong length")
        self.need(error, "an error chunk without an error")
        return error

    def _content(self, request, kind, content, runs):
        self.need(request[0] == Command.READ, "content for BLOCK_STATUS")
        if kind == 1:
            self.need(len(content) > 8, "an empty data chunk")
            (at,) = struct.unpack_from("!Q", content)
            data = content[8:]
        else:
            self.need(len(content) == 12, "a hole chunk of a wrong length")
            at, length = struct.unpack("!QI", content)
            self.need(length, "an empty hole")
            data = bytes(length)
        end = at + len(data)
        self.need(request[1] <= at < end <= request[1] + request[2], "content outside the request")
        for start, other in runs:
            self.need(end <= start or start + len(other) <= at, "content twice")
        self.need(not request[3] & DF or not runs, "several content chunks in spite of DF")
        runs.append((at, data))

    def _status(self, request, content):
        self.need(request[0] == Command.BLOCK_STATUS, "a status for READ")
        self.need(len(content) >= 12 and len(content) % 8 == 4, "a status of a wrong length")
        (context,) = struct.unpack_from("!I", content)
        self.need(context == 1, "a status of an unknown context")
        extents = list(struct.iter_unpack("!II", content[4:]))
        self.need(all(length for length, _ in extents), "an empty extent")
        self.need(sum(length for length, _ in extents[:-1]) < request[2], "extents beyond the end")
        self.need(sum(length for length, _ in extents) <= request[2], "more than was asked for")
        self.need(not request[3] & REQ_ONE or len(extents) == 1, "several in spite of REQ_ONE")
        return extents

    def _end(self, cookie, request, found):
        outcome = found["outcome"]
        if not outcome.error:
            if request[0] == Command.READ:
                runs = sorted(found["runs"])
                outcome.data = b"".join(data for _, data in runs)
                self.need(len(outcome.data) == request[2], "not all of the request was sent")
            else:
                self.need(outcome.extents is not None, "no status")
        self._finish(cookie, outcome)


def option(number, data=b""):
    return b"IHAVEOPT" + struct.pack("!II", number, len(data)) + data


def text(value):
    return struct.pack("!I", len(value)) + value


def meta(name, *queries):
    return text(name) + struct.pack("!I", len(queries)) + b"".join(map(text, queries))


def go(name=b""):
    return option(7, text(name) + b"\0\0")


class Peer:
    """A client of a C{Server}, on a C{SocketDouble}.

    @param structured: negotiate structured replies, and C{base:allocation} with them.
    """

    def __init__(self, server, clock, kernel=None, structured=True, room=None, oldstyle=False):
        self.clock = clock
        self.transport = SocketDouble(clock, None if structured is not None else room)
        if kernel is not None:
            kernel.transport = self.transport
        self.connection = server.factory().buildProtocol(ADDRESS)
        self.replies = Replies(structured)
        self.cookie = 0
        self.transport.connect(self.connection)
        if structured is None:
            return
        hello = FIXED
        if structured:
            hello += option(8) + option(10, meta(server.export.encode(), b"base:allocation"))
        if not oldstyle:
            self.transport.incoming.append(hello + go(server.export.encode()))
        self.run()
        self.transport.room = room
        self.handshake = bytes(self.transport.out)
        self.transport.out.clear()

    def run(self):
        """Everything that happens without time passing."""
        for _ in range(100):
            self.transport.run()
            before = len(self.clock.getDelayedCalls())
            self.clock.advance(0)
            if not self.transport.turn() and before == len(self.clock.getDelayedCalls()):
                return
        raise AssertionError("it never rests")

    def expect(self, command, offset=0, length=0, flags=0, payload=b""):
        """The bytes of a request whose reply is waited for; its cookie."""
        self.cookie += 1
        self.replies.asked[self.cookie] = (command, offset, length, flags)
        return self.cookie, request_bytes(command, offset, length, flags, self.cookie) + payload

    def send(self, *arguments, **keywords):
        """Send one request; its cookie."""
        cookie, data = self.expect(*arguments, **keywords)
        self.give(data)
        return cookie

    def give(self, data):
        self.transport.incoming.append(data)
        self.transport.run()

    def read(self, count=None):
        """Take what was sent, or some of it."""
        count = len(self.transport.out) if count is None else min(count, len(self.transport.out))
        self.replies.feed(self.transport.out[:count])
        del self.transport.out[:count]
        if self.transport.room is not None:
            self.transport.room += count
        self.transport.run()

    def read_all(self):
        for _ in range(100_000):
            self.read()
            if not self.transport.out:
                return
        raise AssertionError("no end of replies")

    def outcome(self, cookie):
        """The outcome of an answered request, or None."""
        self.read_all()
        return self.replies.done.get(cookie)

    def ask(self, *arguments, **keywords):
        """Send a request that is answered at once."""
        outcome = self.outcome(self.send(*arguments, **keywords))
        assert outcome is not None, "not answered"
        return outcome

    def write(self, offset, payload, flags=0):
        return self.send(Command.WRITE, offset, len(payload), flags, payload)


class Seconds:
    """The fine clock: the next calls may find that time has passed."""

    def __init__(self):
        self.now = 0.0
        self.steps = deque()

    def __call__(self):
        self.now += self.steps.popleft() if self.steps else 0
        return self.now


class ServerFixture:
    """A server of a disk with its kernel and its threads."""

    def __init__(self, disk, threads=False, **keywords):
        self.disk = disk
        self.clock = Clock()
        self.kernel = Kernel(disk)
        self.seconds = Seconds()
        self.threads = ManualThreads() if threads else None
        self.server = made(
            Server,
            disk,
            reactor=self.clock,
            in_thread=self.threads or synchronous,
            latency=LatencyMonitor(self.seconds, count().__next__),
            system=self.kernel,
            **keywords,
        )

    def peer(self, **keywords):
        return Peer(self.server, self.clock, self.kernel, **keywords)

    def slow(self):
        """Have the disk be slow from now on, until a second has passed."""
        self.server._access.latency.slow_until = self.seconds() + 1.0


def pattern(length, seed=1):
    """Bytes of which none is zero."""
    block = bytes((seed * 31 + i * 7) % 255 + 1 for i in range(251))
    return (block * (length // 251 + 1))[:length]


def descriptors():
    return set(os.listdir("/proc/self/fd"))
