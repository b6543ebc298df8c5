"""Doubles that the unit tests share: a disk in memory, threads and wires by hand, a reactor."""

from __future__ import annotations

import json
import os
import select
import struct
from collections import deque
from dataclasses import replace

from twisted.internet import tcp
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReactorFDSet, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from blockmig.interfaces import (
    Extent,
    IDisk,
    IRecordedDisk,
    IUnlinkableDisk,
    Probe,
)
from blockmig.migration.handoff.message import (
    MESSAGE_SIZE,
    HandoffMessage,
    HandoffPhase,
    decode_message,
)
from blockmig.nbd import (
    Aborted,
    ClientHandshake,
    ClientTransmission,
    Command,
    EndOfPayload,
    Payload,
    Reply,
)
from blockmig.storage import PROBE_SIZE
from blockmig.syscalls import SystemCalls

ONE, TWO = (f"7d0b2d5c-9f5e-4d57-8c77-00000000000{number}" for number in (1, 2))
"""Two migrations."""
ADDRESS = IPv4Address("TCP", "192.0.2.7", 4711)


@implementer(IDisk)
class MemoryDisk:
    """A disk in a bytearray.

    `fail[method]` is raised by that method, `calls` is what was called, in order.
    """

    name = "memory"

    def __init__(self, content, runs=None):
        self.data = bytearray(content)
        self.size = len(self.data)
        self.fail = {}
        self.calls = []
        self.runs = runs
        self.closed = False
        self.forgotten = []

    def _called(self, name, *arguments):
        self.calls.append((name, *arguments))
        error = self.fail.get(name)
        if error is not None:
            raise error

    def names(self):
        return [call[0] for call in self.calls]

    def fileno(self):
        return None

    def read(self, offset, length):
        self._called("read", offset, length)
        assert offset + length <= self.size
        return bytes(self.data[offset : offset + length])

    def write(self, offset, data):
        self._called("write", offset, len(data))
        assert offset + len(data) <= self.size
        self.data[offset : offset + len(data)] = data

    def zero(self, offset, length, allocate, fast=False):
        self._called("zero", offset, length, allocate)
        assert offset + length <= self.size
        self.data[offset : offset + length] = bytes(length)

    def trim(self, offset, length):
        self._called("trim", offset, length)
        assert offset + length <= self.size

    def flush(self):
        self._called("flush")

    def extents(self, offset):
        self._called("extents", offset)
        assert offset == 0
        position = 0
        for length, hole in self.runs or [(self.size, False)]:
            yield Extent(position, length, hole)
            position += length
        assert position == self.size

    def probe(self, offset, length):
        self._called("probe", offset, length)
        assert 0 < length <= PROBE_SIZE
        assert offset + length <= self.size
        return Probe(not any(self.data[offset : offset + length]), False)

    def forget(self, offset, length):
        self._called("forget", offset, length)

    shortest_zeroes = 65536

    def write_back(self, offset, length, wait):
        try:
            self._called("write_back", offset, length, wait)
        except OSError as error:
            self.fail.setdefault("flush", error)
            raise

    def close(self):
        self.closed = True


@implementer(IUnlinkableDisk)
class UnlinkableDisk(MemoryDisk):
    """One that can be deleted; it then counts as gone."""

    unlinked = False

    def check_unlink(self):
        self._called("check_unlink")

    def unlink(self):
        self._called("unlink")
        assert not self.unlinked
        self.unlinked = True


@implementer(IRecordedDisk)
class RecordedDisk(MemoryDisk):
    """One whose records are kept, in a directory of the test's."""

    blank = False

    def __init__(self, content, path):
        super().__init__(content)
        self.path = self.record_path = path

    def identity(self):
        return "inode 5, born 6"

    def prepare(self):
        self._called("prepare")


@implementer(IRecordedDisk, IUnlinkableDisk)
class RecordedSource(RecordedDisk, UnlinkableDisk):
    """One that can be deleted too."""

    unlink = UnlinkableDisk.unlink


class Story(SystemCalls):
    """The real calls; what they do to records is told to C{tell}, in a few words.

    The next record that gets (or loses) the name that `fail` is, fails with that error.
    """

    def __init__(self, tell=lambda words: None):
        self.tell = tell
        self.fail = {}

    def fsync(self, descriptor):
        """Nothing: it costs much, and the order of the calls is tested with the records."""

    def _may_fail(self, words):
        for key, error in list(self.fail.items()):
            if words.startswith(key):
                raise error

    def rename(self, old, new):
        with open(old, "rb") as file:
            found = json.load(file)
        words = [new.rpartition(".")[2], found["phase"]]
        words += [name for name in ("retired", "told", "confirmed") if found[name]]
        self._may_fail(" ".join(words))
        os.rename(old, new)
        self.tell(" ".join(words))

    def unlink(self, path):
        words = f"{path.rpartition('.')[2]} removed"
        self._may_fail(words)
        os.unlink(path)
        if not path.endswith(".tmp"):
            self.tell(words)


def in_thread(function, *arguments):
    """A thread that is done at once."""
    return maybeDeferred(function, *arguments)


class Threads:
    """Threads whose work is done when the test says so."""

    def __init__(self):
        self.waiting = deque()

    def __call__(self, function, *arguments):
        done = Deferred()
        self.waiting.append((done, function, arguments))
        return done

    def names(self):
        """What waits to be done."""
        return [function.__name__ for _, function, _ in self.waiting]

    def run(self, count=None):
        """Do the first C{count} works, or all."""
        while self.waiting and count != 0:
            done, function, arguments = self.waiting.popleft()
            maybeDeferred(function, *arguments).chainDeferred(done)
            if count is not None:
                count -= 1


class MemoryTransport(StringTransport):
    """Keeps each write as a piece of its own, and closes by the clock's next turn."""

    def __init__(self, clock):
        super().__init__(peerAddress=ADDRESS)
        self.clock = clock
        self.pieces = deque()
        self.protocol = None
        self.other = None
        self.lost = False
        self.ending = None
        self.log = None

    def write(self, data):
        assert isinstance(data, bytes)
        if self.lost or self.ending is not None or not data:
            return
        self.pieces.append(data)

    def connect(self, protocol):
        self.protocol = protocol
        protocol.makeConnection(self)

    def loseConnection(self):
        self.end(ConnectionDone())

    def abortConnection(self):
        self.pieces.clear()
        self.end(ConnectionAborted())

    def end(self, reason):
        if self.ending is None:
            self.ending = reason
            self.clock.callLater(0, self.closed)

    def closed(self):
        """What we sent goes over; then the connection is no more on our handoff, nor the other."""
        if self.lost:
            return
        if self.pieces and self.other is not None and not self.other.lost:
            self.clock.callLater(0, self.closed)
            return
        self.lose(self.ending)
        if self.other is not None and not self.other.lost:
            clean = isinstance(self.ending, ConnectionDone)
            self.other.lose(ConnectionDone() if clean else ConnectionLost())

    def lose(self, reason):
        if not self.lost:
            self.lost = True
            self.pieces.clear()
            self.protocol.connectionLost(Failure(reason))

    @property
    def gone(self):
        """Whether our side has ended the connection, or it is lost."""
        return self.lost or self.ending is not None


class Link:
    """Two protocols and the wire between them; C{budget} pieces (or bytes) then it is cut."""

    def __init__(self, clock, client, server, budget=None, count=lambda piece: 1):
        self.clock = clock
        self.client = MemoryTransport(clock)
        self.server = MemoryTransport(clock)
        self.client.other, self.server.other = self.server, self.client
        self.budget = budget
        self.count = count
        self.delivered = 0
        self.sent = {"client": bytearray(), "server": bytearray()}
        self._protocols = client, server

    def connect(self):
        client, server = self._protocols
        if server is not None:
            self.server.connect(server)
        self.client.connect(client)

    def step(self):
        """Deliver one piece; whether there was one."""
        for name, source in (("client", self.client), ("server", self.server)):
            target = source.other
            if not source.pieces or target.lost or target.producerState != "producing":
                continue
            piece = source.pieces.popleft()
            cut = False
            if self.budget is not None:
                cost = self.count(piece)
                if self.delivered + cost > self.budget:
                    piece = piece[: self.budget - self.delivered] if self.count is len else b""
                    cut = True
                self.delivered += cost
            self.sent[name] += piece
            if piece:
                target.protocol.dataReceived(piece)
            if cut:
                self.cut()
            return True
        return False

    def cut(self):
        """The network fails."""
        self.server.lose(ConnectionLost())
        self.client.lose(ConnectionLost())


@implementer(IStreamClientEndpoint)
class MemoryEndpoint:
    """Reaches C{server_factory} within the process; `refuse` makes connecting fail."""

    def __init__(self, clock, build):
        self.clock = clock
        self.build = build
        self.links = []
        self.refuse = None
        self.budgets = deque()
        self.count = lambda piece: 1

    def connect(self, factory):
        if self.refuse is not None:
            return fail(self.refuse)
        connected = Deferred()
        self.clock.callLater(0, self._connect, factory, connected)
        return connected

    def _connect(self, factory, connected):
        if connected.called:
            return
        client = factory.buildProtocol(ADDRESS)
        server = self.build()
        if server is None:
            connected.errback(ConnectionDone("nobody there"))
            return
        budget = self.budgets.popleft() if self.budgets else None
        link = Link(self.clock, client, server, budget, self.count)
        self.links.append(link)
        link.connect()
        connected.callback(client)

    def pump(self, most=100_000):
        """Let everything happen that happens without time passing."""
        for _ in range(most):
            moved = any(link.step() for link in self.links)
            due = [call for call in self.clock.getDelayedCalls() if call.getTime() <= now(self)]
            if not moved and not due:
                return
            self.clock.advance(0)
        raise AssertionError("the conversation has no end")


def now(endpoint):
    return endpoint.clock.seconds()


class Client:
    """An NBD client on the test's own hands, connected to a server protocol."""

    def __init__(self, clock, protocol, export="", oldstyle=False, shake=True, cookie=0):
        self.clock = clock
        self.connection = protocol
        self.transport = MemoryTransport(clock)
        self.events = []
        self.wire = ClientTransmission(first_cookie=cookie)
        self.handshake = ClientHandshake(export)
        self.transport.connect(protocol)
        if shake:
            self.shake()

    def drain(self):
        """Called before replies are looked for; a test may have threads do their work."""

    def received(self):
        """Everything the server sent since the last look."""
        data = b"".join(self.transport.pieces)
        self.transport.pieces.clear()
        return data

    def give(self, data):
        if not self.transport.lost:
            self.connection.dataReceived(data)

    def shake(self):
        while self.handshake is not None:
            data = self.received()
            assert data, "the server does not go on with the handshake"
            self.handshake.receive_data(data)
            answer = self.handshake.data_to_send()
            if answer:
                self.give(answer)
            event = self.handshake.next_event()
            if event is not None:
                assert not isinstance(event, Aborted)
                self.negotiated = event
                self.wire.receive_data(self.handshake.trailing_data())
                self.handshake = None

    def send(self, command, offset=0, length=0, flags=0, payload=b""):
        request, header = self.wire.request(command, offset, length, flags)
        self.give(header + payload)
        return request

    def write(self, offset, payload, flags=0):
        return self.send(Command.WRITE, offset, len(payload), flags, payload)

    def replies(self):
        """(error, payload) of each reply since the last look."""
        self.drain()
        self.wire.receive_data(self.received())
        found = []
        payload = b""
        while (event := self.wire.next_event()) is not None:
            if isinstance(event, Reply):
                if event.error or event.request.command != Command.READ:
                    found.append((event.request, event.error, b""))
            elif isinstance(event, Payload):
                payload += bytes(event.data)
            elif isinstance(event, EndOfPayload):
                found.append((event.message.request, 0, payload))
                payload = b""
        return found

    def errors(self):
        return [error for _, error, _ in self.replies()]

    def ask(self, *arguments, **keywords):
        """Send one request whose reply comes at once; its error and payload."""
        self.send(*arguments, **keywords)
        ((_, error, payload),) = self.replies()
        return error, payload

    def disconnect(self):
        """As rude as a client may be: whether or not all was answered."""
        self.give(request_bytes(Command.DISC, cookie=self.wire._next_cookie))
        self.clock.advance(0)

    def lose(self, reason=None):
        self.transport.lose(reason or ConnectionLost())


class HandoffClient(Client):
    """A connection to the side export."""

    def __init__(self, clock, protocol, export=".handoff"):
        super().__init__(clock, protocol, export)
        assert self.negotiated.export.size == MESSAGE_SIZE

    def send_message(self, phase, migration=ONE, cookie=7, **more):
        more = {"attempt": 1, "size": 5000, "host": "there", "disk": "/source", **more}
        message = HandoffMessage(HandoffPhase(phase), migration, cookie=f"{cookie:016x}", **more)
        self.write(0, message.encode())

    def notify(self, *arguments, **more):
        """Tell something that is answered at once: the error."""
        self.send_message(*arguments, **more)
        (error,) = self.errors()
        return error

    def page(self):
        error, data = self.ask(Command.READ, 0, MESSAGE_SIZE)
        assert error == 0
        return decode_message(data)


@implementer(IReactorFDSet)
class FakeReactor(Clock):
    """A clock that watches descriptors when it is told to look."""

    def __init__(self):
        super().__init__()
        self.readers = []
        self.writers = []

    def addReader(self, reader):
        if reader not in self.readers:
            self.readers.append(reader)

    def removeReader(self, reader):
        if reader in self.readers:
            self.readers.remove(reader)

    def addWriter(self, writer):
        if writer not in self.writers:
            self.writers.append(writer)

    def removeWriter(self, writer):
        if writer in self.writers:
            self.writers.remove(writer)

    def removeAll(self):
        found = [*self.readers, *self.writers]
        self.readers, self.writers = [], []
        return found

    def getReaders(self):
        return list(self.readers)

    def getWriters(self):
        return list(self.writers)

    def look(self, writers=True):
        """One turn: everything that is ready; how much was."""
        ready = 0
        readable, writable, _ = select.select(self.readers, self.writers if writers else [], [], 0)
        for reader in readable:
            if reader in self.readers:
                ready += 1
                why = reader.doRead()
                if why:
                    self.removeReader(reader)
                    reader.connectionLost(Failure(why))
        for writer in writable:
            if writer in self.writers:
                ready += 1
                why = writer.doWrite()
                if why:
                    self.removeWriter(writer)
                    writer.connectionLost(Failure(why))
        return ready

    def run_dry(self, most=10_000):
        for _ in range(most):
            if not self.look():
                return
            self.advance(0)
        raise AssertionError("never at rest")


class SocketTransport(tcp.Connection):
    """Twisted's own socket transport on one end of a socketpair."""

    def __init__(self, skt, protocol, reactor):
        skt.setblocking(False)
        super().__init__(skt, protocol, reactor)
        self.connected = 1
        self.startReading()

    def getPeer(self):
        return "a peer"

    def getHost(self):
        return "a host"

    def logPrefix(self):
        return "test"


def make_plain(receiver):
    """Have a receiver list no side export, as any other NBD server."""
    factory = receiver.factory()
    names = [name for name in factory._settings.names() if not name.endswith(".handoff")]
    factory._settings = replace(factory._settings, names=lambda: names)


def request_bytes(command, offset=0, length=0, flags=0, cookie=0, magic=0x25609513):
    return struct.pack("!IHHQQI", magic, flags, command, cookie, offset, length)
