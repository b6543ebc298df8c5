"""Payloads from the socket into the disk, past the protocol."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket

from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import LocalFailure
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.policy import Overrides
from blockmig.nbd import Command, ServerTransmission
from blockmig.runtime import Runtime
from blockmig.storage import FileDisk
from blockmig.testing import MemoryDisk, synchronous
from blockmig.transport import PayloadReader
from tests.unit.support import (
    ADDRESS,
    FakeReactor,
    PayloadSink,
    SocketTransport,
    SpliceCalls,
    request_bytes,
)

SIZE = 3 << 20
DATA = random.Random(2).randbytes(SIZE)


class Case(SynchronousTestCase):
    length = SIZE
    prepared = True

    def setUp(self):
        path = self.mktemp()
        self.disk = FileDisk(path, size=SIZE)
        self.addCleanup(self.disk.close)
        if self.prepared:
            self.disk.prepare()
        self.make(SpliceCalls())

    def make(self, calls, protocol=None):
        self.calls = calls
        self.reactor = FakeReactor()
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.addCleanup(self.theirs.close)
        self.protocol = protocol or PayloadSink(self.disk, self.length)
        self.transport = SocketTransport(ours, self.protocol, self.reactor)
        self.addCleanup(ours.close)
        self.protocol.makeConnection(self.transport)
        self.reader = PayloadReader(self.reactor, self.transport, self.protocol, 28, calls)

    def feed(self, data):
        """Send C{data} while the reactor turns."""
        view = memoryview(data)
        for _ in range(100_000):
            if not view:
                break
            with contextlib.suppress(BlockingIOError):
                view = view[self.theirs.send(view) :]
            self.reactor.look()
        else:
            raise AssertionError("nobody reads")
        self.reactor.run_dry()

    def descriptors(self):
        return set(os.listdir("/proc/self/fd"))


class SpliceTests(Case):
    def test_moves(self):
        self.reader.take_over()
        self.assertEqual([self.reader], self.reactor.readers)
        self.feed(DATA + b"behind it")
        self.assertEqual(DATA, self.disk.read(0, SIZE))
        self.assertEqual((SIZE, b"behind it"), (self.protocol.moved, self.protocol.bytes))
        self.assertGreater(self.calls.splices, 2)

    def test_again_and_short_counts(self):
        self.make(SpliceCalls([-errno.EAGAIN, 1, 7, -errno.EAGAIN, 4097, 65536, None, 3]))
        self.reader.take_over()
        self.feed(DATA + b"x")
        self.assertEqual(DATA, self.disk.read(0, SIZE))
        self.assertEqual((SIZE, b"x"), (self.protocol.moved, self.protocol.bytes))

    def test_splice_unsupported(self):
        for number in (errno.EINVAL, errno.ENOSYS, errno.EMFILE):
            self.make(SpliceCalls([-number]))
            self.disk.write(0, bytes(SIZE))
            self.reader.take_over()
            self.feed(DATA + b"x")
            self.assertEqual(DATA, self.disk.read(0, SIZE))
            self.assertEqual(b"x", self.protocol.bytes)
            self.assertEqual(1, self.calls.splices)

    def test_splice_unsupported_by_the_disk(self):
        self.calls.file_error = errno.EINVAL
        self.reader.take_over()
        self.feed(DATA + b"x")
        self.assertEqual((DATA, b"x"), (self.disk.read(0, SIZE), self.protocol.bytes))

    def test_disk_without_descriptor(self):
        self.disk = MemoryDisk(bytes(SIZE))
        self.make(SpliceCalls())
        self.reader.take_over()
        self.feed(DATA + b"x")
        self.assertEqual((DATA, b"x"), (self.disk.content, self.protocol.bytes))
        self.assertEqual(0, self.calls.splices)

    def test_no_space(self):
        """The rest of the payload goes by dataReceived, not a byte missing or twice."""
        self.calls.file_error = errno.ENOSPC
        self.reader.take_over()
        self.feed(DATA + b"x")
        self.assertEqual([errno.ENOSPC], [error.errno for error in self.protocol.failed])
        self.assertGreater(self.protocol.moved, 0)
        self.assertEqual(DATA[self.protocol.moved :] + b"x", self.protocol.bytes)

    def test_exactly_a_header_behind_a_payload(self):
        self.reader.take_over()
        self.feed(DATA)
        self.calls.reads.clear()
        self.feed(b"h" * 100)
        self.assertEqual(28, self.calls.reads[0])
        self.assertEqual(b"h" * 100, self.protocol.bytes)

    def test_end_in_the_middle(self):
        before = self.descriptors()
        self.reader.take_over()
        self.feed(DATA[: 1 << 20])
        self.theirs.close()
        self.reactor.run_dry()
        self.assertIsNotNone(self.protocol.lost)
        self.assertEqual(1 << 20, self.protocol.moved)
        self.assertEqual([], self.reactor.readers)
        self.assertLessEqual(len(self.descriptors()), len(before))

    def test_reset_in_the_middle(self):
        self.make(SpliceCalls([None, -errno.ECONNRESET]))
        self.reader.take_over()
        self.feed(DATA[:1000])
        self.theirs.close()
        self.reactor.run_dry()
        self.assertTrue(self.transport._aborting)
        self.assertEqual([], self.reactor.readers)

    def test_pause_and_resume(self):
        self.reader.take_over()
        self.reader.pause()
        self.reader.pause()
        self.theirs.send(DATA[:1000])
        self.reactor.run_dry()
        self.assertEqual((0, []), (self.protocol.moved, self.reactor.readers))
        self.reader.resume()
        self.reactor.run_dry()
        self.assertEqual(1000, self.protocol.moved)

    def test_pause_before_taking_over(self):
        self.reader.pause()
        self.assertEqual([], self.reactor.readers)
        self.reader.take_over()
        self.assertEqual([], self.reactor.readers)
        self.reader.resume()
        self.assertEqual([self.reader], self.reactor.readers)
        self.reader.stop()

    def test_paused_from_inside(self):
        moved = self.protocol.payload_moved

        def payload_moved(count):
            moved(count)
            self.reader.pause()

        self.protocol.payload_moved = payload_moved
        self.make(SpliceCalls([1000, 1000]), self.protocol)
        self.reader.take_over()
        self.theirs.send(DATA[:5000])
        self.reactor.run_dry()
        self.assertEqual(1000, self.protocol.moved)

    def test_stop(self):
        before = self.descriptors()
        self.reader.take_over()
        self.feed(DATA[:100_000])
        self.assertGreaterEqual(len(self.descriptors()), len(before) + 3)
        self.reader.stop()
        self.reader.stop()
        self.assertEqual(before, self.descriptors())
        self.assertEqual([], self.reactor.readers)
        self.assertEqual(-1, self.reader.fileno())
        self.reader.resume()
        self.reader.take_over()
        self.assertEqual([], self.reactor.readers)


class TakingOverTests(Case):
    def test_not_for_little(self):
        self.protocol.left = (64 << 10) - 1
        self.reader.take_over()
        self.assertEqual([self.transport], self.reactor.readers)
        self.protocol.left = 64 << 10
        self.reader.take_over()
        self.assertEqual([self.reader], self.reactor.readers)
        self.reader.stop()

    def test_not_without_a_region(self):
        self.protocol.left = 0
        self.reader.take_over()
        self.assertEqual([self.transport], self.reactor.readers)

    def test_not_under_tls(self):
        self.transport.TLS = True
        self.reader.take_over()
        self.assertEqual([self.transport], self.reactor.readers)

    def test_not_by_a_reactor_without_descriptors(self):
        reader = PayloadReader(object(), self.transport, self.protocol, 28, self.calls)
        reader.take_over()
        self.assertEqual([self.transport], self.reactor.readers)

    def test_transport_goes_on_writing(self):
        self.reader.take_over()
        self.transport.write(b"a reply")
        self.reactor.run_dry()
        self.assertEqual(b"a reply", self.theirs.recv(100))
        self.reader.stop()


class ReceiverTests(Case):
    """The receiver's own connection above a real socket, and disks that fail."""

    prepared = False

    def begin(self, calls=None, disk=None):
        self.calls = calls or SpliceCalls()
        self.reactor = FakeReactor()
        self.receiver = Receiver(
            disk or self.disk,
            overrides=Overrides(overwrite=True),
            runtime=Runtime(self.reactor, synchronous, self.calls),
        )
        self.outcome = self.receiver.complete()
        self.make_for(self.receiver.factory().buildProtocol(ADDRESS))
        self.feed(b"\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\0")
        self.answers()

    def make_for(self, connection):
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.addCleanup(self.theirs.close)
        self.addCleanup(ours.close)
        self.transport = SocketTransport(ours, connection, self.reactor)
        connection.makeConnection(self.transport)

    def answers(self):
        try:
            return self.theirs.recv(1 << 20)
        except BlockingIOError:
            return b""

    def write(self, offset, data, cookie):
        self.feed(request_bytes(Command.WRITE, offset, len(data), 0, cookie) + data)

    def expected(self, cookie, error=0):
        request = ServerTransmission()
        request.receive_data(request_bytes(Command.WRITE, 0, 0, 0, cookie))
        return b"".join(ServerTransmission().reply(request.next_event(), error))

    def test_a_migration(self):
        self.begin()
        self.write(0, DATA[: 2 << 20], 1)
        self.write(2 << 20, DATA[2 << 20 :], 2)
        self.assertEqual(self.expected(1) + self.expected(2), self.answers())
        self.assertGreater(self.calls.splices, 2)
        self.feed(request_bytes(Command.DISC))
        self.reactor.advance(0)
        self.reactor.run_dry()
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)
        self.assertEqual(DATA, self.disk.read(0, SIZE))

    def check_failure(self):
        self.assertEqual(self.expected(9, 28), self.answers())
        self.theirs.close()
        self.reactor.run_dry()
        self.failureResultOf(self.outcome, LocalFailure)

    def test_no_space_at_the_first_bytes(self):
        self.begin()
        self.calls.file_error = errno.ENOSPC
        self.write(0, DATA, 9)
        self.check_failure()

    def test_no_space_at_the_last_bytes(self):
        """A write whose very end did not fit must never be answered as done."""
        self.begin()
        last = []

        class AtTheEnd(SpliceCalls):
            def splice(self, source, target, count, **offsets):
                if offsets and offsets["offset_dst"] + count >= SIZE:
                    last.append(count)
                    raise OSError(errno.ENOSPC, "full")
                return super().splice(source, target, count, **offsets)

        self.begin(AtTheEnd())
        self.write(0, DATA, 9)
        self.assertTrue(last)
        self.check_failure()

    def test_no_space_at_the_last_bytes_without_splice(self):
        class Full(MemoryDisk):
            def write(self, offset, data):
                if offset + len(data) == SIZE:
                    raise OSError(errno.ENOSPC, "full")
                super().write(offset, data)

        self.begin(disk=Full(bytes(SIZE)))
        self.write(0, DATA, 9)
        self.check_failure()
