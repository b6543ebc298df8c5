"""Doubles that the unit tests share: a disk in memory, threads and wires by hand, a reactor."""

from __future__ import annotations

import errno
import json
import os
import select
import struct
from dataclasses import replace

from twisted.internet import tcp
from twisted.internet.address import IPv4Address
from twisted.internet.defer import fail
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorFDSet, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from blockmig.interfaces import IRecordedDisk, IUnlinkableDisk, IWatchedDisk
from blockmig.migration.handoff.message import (
    MESSAGE_SIZE,
    HandoffMessage,
    HandoffPhase,
    Writer,
    decode_message,
    signed,
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
from blockmig.storage import DiskChanged, DiskRefused, DiskVersion, open_disk
from blockmig.syscalls import SystemCalls
from blockmig.testing import (
    Call,
    MemoryDisk,
    MemoryNetwork,
    MemoryTransport,
    RecordedMemoryDisk,
)
from blockmig.transport import FileRegion, IPayloadReceiver

ONE, TWO = (f"7d0b2d5c-9f5e-4d57-8c77-00000000000{number}" for number in (1, 2))
"""Two migrations."""
ADDRESS = IPv4Address("TCP", "192.0.2.7", 4711)


IDENTITY = "inode 5, born 6"


class RecordedDisk(RecordedMemoryDisk):
    """One that is called as any disk in memory, and that one record of the tests is of."""

    def __init__(self, content, path):
        super().__init__(content, path)
        self.name = "memory"

    def identity(self):
        return IDENTITY


class QuickDisk(MemoryDisk):
    """One that has a descriptor, as files have, so that its reads and writes need no thread.

    The descriptor is of nothing real: where transports are in memory nobody uses it.
    """

    def fileno(self):
        return 1_000_099


class QuickRecordedDisk(QuickDisk, RecordedDisk):
    """The same, with records."""


@implementer(IRecordedDisk, IUnlinkableDisk, IWatchedDisk)
class WatchedDisk(RecordedDisk):
    """One whose file other hands get at.

    `before` is called with the number of each look at its place: 0 for the first. `rescues` is
    what comes of each attempt to rescue it: an error, or None.
    """

    can_fail = RecordedMemoryDisk.can_fail | {"version"}
    displaced = ""
    gone = False

    def __init__(self, content, path):
        super().__init__(content, path)
        self.written, self.touched = 1, 1
        self.before = lambda look: None
        self.looks = 0
        self.rescues = []

    def check_path(self):
        self._called(Call("check_path"))
        if self.displaced:
            raise DiskChanged(f"{self.name}: {self.displaced}")

    def is_gone(self):
        return self.gone

    def version(self, sync=True):
        self._called(Call("version", wait=sync))
        self.before(self.looks)
        self.looks += 1
        return DiskVersion((self.written,), (self.touched,))

    def rescue(self, announce=None):
        self._called(Call("rescue"))
        error = self.rescues.pop(0) if self.rescues else None
        if error is not None:
            raise error
        announce(self.path + ".rescued")
        return self.path + ".rescued"


class Story(SystemCalls):
    """The real calls; what they do to records is told to C{tell}, in a few words.

    The next record that gets (or loses) the name that `fail` is, fails with that error.
    """

    def __init__(self, note=lambda words: None):
        self.note = note
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
        self.note(" ".join(words))

    def unlink(self, path):
        words = f"{path.rpartition('.')[2]} removed"
        self._may_fail(words)
        os.unlink(path)
        if not path.endswith(".tmp"):
            self.note(words)


class HandTransport(MemoryTransport):
    """A server's end of a connection whose other end is the test: what is closed ends at once."""

    def __init__(self, clock):
        super().__init__(ADDRESS, ADDRESS)
        self.clock = clock

    def loseConnection(self):
        super().loseConnection()
        self.clock.callLater(0, lambda: self.lose(self.reason))

    def abortConnection(self):
        super().abortConnection()
        self.clock.callLater(0, lambda: self.lose(self.reason))


@implementer(IStreamClientEndpoint)
class MemoryEndpoint(MemoryNetwork):
    """Reaches what C{build} makes; `refuse` makes connecting fail."""

    def __init__(self, clock, build):
        super().__init__(clock)
        self.build = build
        self.refuse = None
        factory = Factory()
        factory.buildProtocol = lambda address: self.build()
        self.listen("there", factory)

    def connect(self, factory):
        if self.refuse is not None:
            return fail(self.refuse)
        return self.client_endpoint("there").connect(factory)

    def cut_next(self, **most):
        """Have the next connection break; see L{MemoryConnection.cut_after}."""
        self.prepare(lambda connection: connection.cut_after(**most))

    def other(self, transport):
        """The other end of a server's."""
        (end,) = (link.client for link in self.connections if link.server is transport)
        return end


class Client:
    """An NBD client on the test's own hands, connected to a server protocol."""

    def __init__(self, clock, protocol, export="", oldstyle=False, shake=True, cookie=0):
        self.clock = clock
        self.connection = protocol
        self.transport = HandTransport(clock)
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
        data = b""
        while self.transport.has_more:
            data += self.transport.take()
            self.transport.go_on()
        return data

    def give(self, data):
        if not self.transport.gone:
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

    def message(self, phase, migration=ONE, cookie=7, secret=b"", **more):
        more = {"attempt": 1, "size": 5000, "host": "there", "disk": "/source", **more}
        message = HandoffMessage(HandoffPhase(phase), migration, cookie=f"{cookie:016x}", **more)
        nonce = self.read_message().nonce if secret else ""
        return signed(message, secret, nonce, Writer.SENDER).encode()

    def send_message(self, *arguments, **more):
        self.write(0, self.message(*arguments, **more))

    def notify(self, *arguments, **more):
        """Tell something that is answered at once: the error."""
        self.send_message(*arguments, **more)
        (error,) = self.errors()
        return error

    def read_message(self):
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
    names = [name for name in factory.settings.names() if not name.endswith(".handoff")]
    factory.settings = replace(factory.settings, names=lambda: names)


def request_bytes(command, offset=0, length=0, flags=0, cookie=0, magic=0x25609513):
    return struct.pack("!IHHQQI", magic, flags, command, cookie, offset, length)


@implementer(IPayloadReceiver)
class PayloadSink(Protocol):
    """Wants C{length} bytes in the disk, then a header by `dataReceived`, and again."""

    def __init__(self, disk, length, announced=0):
        self.disk = disk
        self.position = 0
        self.left = length
        self.bytes = b""
        self.failed = []
        self.lost = None
        self.moved = 0

    def payload_region(self):
        if not self.left or self.failed:
            return None
        return FileRegion(self.disk, self.position, self.left)

    def payload_moved(self, count):
        assert 0 < count <= self.left
        self.moved += count
        self.position += count
        self.left -= count

    def payload_failed(self, error):
        self.failed.append(error)

    def dataReceived(self, data):
        self.bytes += data

    def bufferReceived(self, view):
        self.dataReceived(bytes(view))

    def connectionLost(self, reason):
        self.lost = reason


class SpliceCalls(SystemCalls):
    """`script` is what the next splices from the socket do: an error, a count, or None."""

    def __init__(self, script=()):
        self.script = list(script)
        self.splices = 0
        self.pipes = []
        self.file_error = None
        self.reads = []

    def pipe(self):
        self.pipes.append(os.pipe())
        return self.pipes[-1]

    def readv(self, descriptor, buffers):
        self.reads.append(sum(map(len, buffers)))
        return os.readv(descriptor, buffers)

    def splice(self, source, target, count, **offsets):
        self.splices += 1
        if offsets:
            if self.file_error is not None:
                raise OSError(self.file_error, os.strerror(self.file_error))
        elif self.script:
            step = self.script.pop(0)
            if isinstance(step, int) and step < 0:
                raise OSError(-step, os.strerror(-step))
            count = min(count, step or count)
        return os.splice(source, target, count, **offsets)


class RecordedCalls(SystemCalls):
    """The real calls, written down; `fail[name]` is raised by that one instead."""

    def __init__(self, **fail):
        self.fail = fail
        self.made = []

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name in ("fail", "made") or name.startswith("__") or not callable(found):
            return found

        def call(*arguments, **keywords):
            self.made.append((name, *arguments))
            if name in self.fail:
                raise OSError(self.fail[name], os.strerror(self.fail[name]))
            return found(*arguments, **keywords)

        return call

    def names(self):
        return [call[0] for call in self.made]


class DiskCase(SynchronousTestCase):
    def make(self, content=b"x" * 5000):
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(content)
        return path

    def open(self, path, **keywords):
        disk = open_disk(path, **keywords)
        self.addCleanup(disk.close)
        return disk

    def content(self, path):
        with open(path, "rb") as file:
            return file.read()

    def refused(self, path, **keywords):
        error = self.assertRaises(DiskRefused, open_disk, path, **keywords)
        self.assertIn(path, str(error))
        self.assertNotIn("\n", str(error))
        return str(error)


class BreakingCalls(SystemCalls):
    """Keeps the calls; one may fail (before or after it was made), and writes may be short."""

    def __init__(self, fail=None, after=False, most=None):
        self.fail = fail
        self.after = after
        self.most = most
        self.calls = []
        self.names = {}

    def call(self, name, function, *arguments, what=()):
        index = len(self.calls)
        self.calls.append((name, *what))
        if index == self.fail and not self.after:
            raise OSError(errno.EIO, "broken")
        result = function(*arguments)
        if index == self.fail:
            if name == "open":
                os.close(result)
            raise OSError(errno.EIO, "broken")
        return result

    def open(self, path, flags, *mode):
        name = os.path.basename(path)
        descriptor = self.call("open", os.open, path, flags, *mode, what=(name,))
        self.names[descriptor] = name
        return descriptor

    def close(self, descriptor):
        self.call("close", os.close, descriptor, what=(self.names[descriptor],))

    def pwrite(self, descriptor, data, offset):
        if self.most is not None:
            data = data[: self.most]
        what = (self.names[descriptor], offset, len(data))
        return self.call("pwrite", os.pwrite, descriptor, data, offset, what=what)

    def fsync(self, descriptor):
        self.call("fsync", os.fsync, descriptor, what=(self.names[descriptor],))

    def rename(self, old, new):
        what = (os.path.basename(old), os.path.basename(new))
        self.call("rename", os.rename, old, new, what=what)

    def unlink(self, path):
        self.call("unlink", os.unlink, path, what=(os.path.basename(path),))


def option_replies(data):
    """(option, kind of reply, its content) of each of a server's replies."""
    found = []
    while data:
        magic, number, kind, length = struct.unpack_from("!QIII", data)
        assert magic == 0x3E889045565A9
        assert len(data) >= 20 + length
        found.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return found
