"""Payloads that go from the socket to the disk, past the protocol (transport/incoming.py)."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket

from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import LocalFailure
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.policy import Overrides
from blockmig.nbd import Command, ServerTransmission
from blockmig.runtime import Runtime
from blockmig.storage import FileDisk
from blockmig.testing import MemoryDisk, synchronous
from blockmig.transport import LONGEST_MOVE, PayloadReader
from blockmig.transport.low_water import MARK
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

    def make(self, calls, protocol=None, **more):
        self.calls = calls
        self.reactor = FakeReactor()
        ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.addCleanup(self.theirs.close)
        self.protocol = protocol or PayloadSink(self.disk, self.length)
        self.transport = SocketTransport(ours, self.protocol, self.reactor)
        self.addCleanup(ours.close)
        self.protocol.makeConnection(self.transport)
        self.reader = PayloadReader(self.reactor, self.transport, self.protocol, 28, calls, **more)

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
    def test_a_payload_is_spliced_into_the_disk(self):
        self.reader.take_over()
        self.assertEqual([self.reader], self.reactor.readers)
        self.feed(DATA + b"behind it")
        self.assertEqual(DATA, self.disk.read(0, SIZE))
        self.assertEqual((SIZE, b"behind it"), (self.protocol.moved, self.protocol.bytes))
        self.assertGreater(self.calls.splices, 2)

    def test_EAGAIN_and_short_counts_are_continued(self):
        self.make(SpliceCalls([-errno.EAGAIN, 1, 7, -errno.EAGAIN, 4097, 65536, None, 3]))
        self.reader.take_over()
        self.feed(DATA + b"x")
        self.assertEqual(DATA, self.disk.read(0, SIZE))
        self.assertEqual((SIZE, b"x"), (self.protocol.moved, self.protocol.bytes))

    def test_a_system_without_splice_gets_a_copy(self):
        for number in (errno.EINVAL, errno.ENOSYS, errno.EMFILE):
            self.make(SpliceCalls([-number]))
            self.disk.write(0, bytes(SIZE))
            self.reader.take_over()
            self.feed(DATA + b"x")
            self.assertEqual(DATA, self.disk.read(0, SIZE))
            self.assertEqual(b"x", self.protocol.bytes)
            self.assertEqual(1, self.calls.splices)

    def test_a_disk_without_splice_gets_a_copy(self):
        self.calls.file_error = errno.EINVAL
        self.reader.take_over()
        self.feed(DATA + b"x")
        self.assertEqual((DATA, b"x"), (self.disk.read(0, SIZE), self.protocol.bytes))

    def test_a_disk_without_a_descriptor_gets_a_copy(self):
        self.disk = MemoryDisk(bytes(SIZE))
        self.make(SpliceCalls())
        self.reader.take_over()
        self.feed(DATA + b"x")
        self.assertEqual((DATA, b"x"), (self.disk.content, self.protocol.bytes))
        self.assertEqual(0, self.calls.splices)

    def test_a_disk_that_loses_its_descriptor_with_a_payload_on_its_way_fails_the_payload(self):
        """As where another thread finds that the file has shrunk."""
        disk = self.disk

        class Losing(SpliceCalls):
            def splice(self, source, target, count, **offsets):
                moved = super().splice(source, target, count, **offsets)
                disk.close()
                return moved

        self.make(Losing())
        self.reader.take_over()
        self.feed(b"payload")
        self.assertEqual([errno.EBADF], [error.errno for error in self.protocol.failed])

    def test_the_rest_of_a_payload_that_failed_goes_to_the_protocol(self):
        """The rest goes through dataReceived, with no byte lost or repeated."""
        self.calls.file_error = errno.ENOSPC
        self.reader.take_over()
        self.feed(DATA + b"x")
        self.assertEqual([errno.ENOSPC], [error.errno for error in self.protocol.failed])
        self.assertGreater(self.protocol.moved, 0)
        self.assertEqual(DATA[self.protocol.moved :] + b"x", self.protocol.bytes)

    def test_a_turn_goes_on_for_half_a_millisecond_only(self):
        """A step moves so many bytes at most; after the time is over there is no other."""
        now = [0.0]
        steps = []

        class Slow(SpliceCalls):
            def splice(self, source, target, count, **offsets):
                if not offsets:
                    steps.append(count)
                    now[0] += 0.0004
                return super().splice(source, target, count, **offsets)

        self.make(Slow(), seconds=lambda: now[0])
        self.reader.take_over()
        self.theirs.send(DATA[:100_000])
        self.calls.script = [1000] * 100
        self.reactor.look()
        self.assertEqual([LONGEST_MOVE] * 2, steps)
        self.reader.stop()

    def test_a_turn_goes_on_from_payload_to_payload(self):
        class Again(PayloadSink):
            def dataReceived(self, data):
                super().dataReceived(data)
                self.left = 70_000

        self.make(SpliceCalls(), Again(self.disk, 70_000), seconds=lambda: 0.0)
        self.reader.take_over()
        self.theirs.send(DATA[:70_000] + b"x" * 28 + DATA[:70_000])
        self.reactor.look()
        self.assertEqual((140_000, b"x" * 28), (self.protocol.moved, self.protocol.bytes))
        self.reader.stop()

    def test_only_a_header_is_read_after_a_payload(self):
        self.reader.take_over()
        self.feed(DATA)
        self.calls.reads.clear()
        self.feed(b"h" * 100)
        self.assertEqual(28, self.calls.reads[0])
        self.assertEqual(b"h" * 100, self.protocol.bytes)

    def test_a_connection_that_ends_within_a_payload_is_lost_cleanly(self):
        before = self.descriptors()
        self.reader.take_over()
        self.feed(DATA[: 1 << 20])
        self.theirs.close()
        self.reactor.run_dry()
        self.assertIsNotNone(self.protocol.lost)
        self.assertEqual(1 << 20, self.protocol.moved)
        self.assertEqual([], self.reactor.readers)
        self.assertLessEqual(len(self.descriptors()), len(before))

    def test_whoever_raises_what_is_no_error_of_the_socket_ends_the_connection(self):
        """A bug's: the reactor reports it to the reader as the end."""
        for error, aborted in ((RuntimeError("a bug"), True), (ConnectionLost(), False)):
            self.make(SpliceCalls())
            self.reader.take_over(at_once=True)
            self.reader.connectionLost(Failure(error))
            self.assertEqual((-1, aborted), (self.reader.fileno(), self.transport._aborting))

    def test_a_reset_within_a_payload_aborts_the_connection(self):
        self.make(SpliceCalls([None, -errno.ECONNRESET]))
        self.reader.take_over()
        self.feed(DATA[:1000])
        self.theirs.close()
        self.reactor.run_dry()
        self.assertTrue(self.transport._aborting)
        self.assertEqual([], self.reactor.readers)

    def test_nothing_moves_between_pause_and_resume(self):
        self.reader.take_over()
        self.reader.pause()
        self.reader.pause()
        self.theirs.send(DATA[:1000])
        self.reactor.run_dry()
        self.assertEqual((0, []), (self.protocol.moved, self.reactor.readers))
        self.reader.resume()
        self.reactor.run_dry()
        self.assertEqual(1000, self.protocol.moved)

    def test_a_pause_before_taking_over_counts(self):
        self.reader.pause()
        self.assertEqual([], self.reactor.readers)
        self.reader.take_over()
        self.assertEqual([], self.reactor.readers)
        self.reader.resume()
        self.assertEqual([self.reader], self.reactor.readers)
        self.reader.stop()

    def test_a_pause_from_inside_a_callback_counts(self):
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

    def test_stopping_closes_every_descriptor(self):
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


class MarkedSocket:
    """The socket, as if it were TCP's; notes for how many bytes the reader wants to be woken up."""

    family = socket.AF_INET

    def __init__(self):
        self.marks = []

    def setsockopt(self, level, option, value):
        self.marks.append(value)


class WakingUpTests(Case):
    """For how many bytes the reader wants to be woken up."""

    def setUp(self):
        super().setUp()
        self.begin(SpliceCalls())

    def begin(self, calls):
        self.make(calls)
        self.handle = MarkedSocket()
        self.transport.getHandle = lambda: self.handle
        self.reader.take_over()
        self.addCleanup(self.reader.stop)

    def test_in_the_middle_of_a_payload_it_is_many(self):
        self.feed(DATA[: 1 << 20])
        self.assertEqual([MARK], self.handle.marks)

    def test_shortly_before_its_end_it_is_what_is_left(self):
        self.feed(DATA[: SIZE - 1000])
        self.assertEqual(1000, self.handle.marks[-1])

    def test_after_its_end_it_is_every_byte(self):
        self.feed(DATA)
        self.assertEqual(1, self.handle.marks[-1])

    def test_after_a_failure_it_is_every_byte(self):
        self.feed(DATA[: 1 << 20])
        self.calls.file_error = errno.ENOSPC
        self.feed(DATA[1 << 20 : 2 << 20])
        self.assertEqual([errno.ENOSPC], [error.errno for error in self.protocol.failed])
        self.assertEqual(1, self.handle.marks[-1])

    def test_for_the_transport_it_is_every_byte(self):
        """Who reads on where this reader stops."""
        self.feed(DATA[: 1 << 20])
        self.theirs.close()
        self.reactor.run_dry()
        self.assertEqual(1, self.handle.marks[-1])


class TakingOverTests(Case):
    def test_a_small_payload_is_left_to_the_transport(self):
        self.protocol.left = (64 << 10) - 1
        self.reader.take_over()
        self.assertEqual([self.transport], self.reactor.readers)
        self.protocol.left = 64 << 10
        self.reader.take_over()
        self.assertEqual([self.reader], self.reactor.readers)
        self.reader.stop()

    def test_small_messages_are_read_past_the_transport_too_where_that_is_wanted(self):
        self.protocol.left = 0
        self.reader.take_over(at_once=True, poll=False)
        self.assertEqual([self.reader], self.reactor.readers)
        self.feed(b"a message")
        self.assertEqual(b"a message", self.protocol.bytes)
        self.reader.stop()

    def test_without_a_region_reading_is_left_to_the_transport(self):
        self.protocol.left = 0
        self.reader.take_over()
        self.assertEqual([self.transport], self.reactor.readers)

    def test_where_few_descriptors_are_left_reading_is_left_to_the_transport(self):
        self.calls.descriptors = lambda: (3, 1024)
        self.reader.take_over()
        self.assertEqual(-1, self.reader.fileno())
        self.feed(DATA[:1000])
        self.assertEqual(DATA[:1000], self.protocol.bytes)

    def test_under_TLS_reading_is_left_to_the_transport(self):
        self.transport.TLS = True
        self.reader.take_over()
        self.assertEqual([self.transport], self.reactor.readers)

    def test_a_reactor_without_descriptors_keeps_reading_by_the_transport(self):
        reader = PayloadReader(object(), self.transport, self.protocol, 28, self.calls)
        reader.take_over()
        self.assertEqual([self.transport], self.reactor.readers)

    def test_the_transport_continues_to_write(self):
        self.reader.take_over()
        self.transport.write(b"a reply")
        self.reactor.run_dry()
        self.assertEqual(b"a reply", self.theirs.recv(100))
        self.reader.stop()


class ReceiverTests(Case):
    """The connection of a receiver over a real socket, and disks that fail."""

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

    def test_a_whole_migration_is_spliced(self):
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

    def test_small_writes_are_answered_in_one_piece(self):
        self.begin()
        self.write(0, DATA[:4096], 1)
        self.answers()
        sends = []
        self.calls.send = lambda handle, data, flags: sends.append(bytes(data)) or len(data)
        messages = [
            request_bytes(Command.WRITE, offset, 4096, 0, offset) + DATA[offset : offset + 4096]
            for offset in range(4096, 40960, 4096)
        ]
        self.feed(b"".join(messages))
        self.assertEqual([b"".join(map(self.expected, range(4096, 40960, 4096)))], sends)
        self.assertEqual(DATA[:40960], self.disk.read(0, 40960))

    def test_after_small_writes_the_reading_is_taken_over(self):
        self.begin()
        self.write(0, DATA[:4096], 1)
        self.assertEqual([self.transport], self.reactor.readers)
        self.write(4096, DATA[4096:8192], 2)
        self.assertNotIn(self.transport, self.reactor.readers)
        self.assertEqual(self.expected(1) + self.expected(2), self.answers())

    def check_failure(self):
        self.assertEqual(self.expected(9, 28), self.answers())
        self.theirs.close()
        self.reactor.run_dry()
        self.failureResultOf(self.outcome, LocalFailure)

    def test_no_space_at_the_first_bytes_fails_the_write(self):
        self.begin()
        self.calls.file_error = errno.ENOSPC
        self.write(0, DATA, 9)
        self.check_failure()

    def test_no_space_at_the_last_bytes_fails_the_write(self):
        """A write whose last bytes did not fit must never be answered as done."""
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

    def test_no_space_at_the_last_bytes_fails_the_write_without_splice(self):
        class Full(FileDisk):
            def write(self, offset, data):
                if offset + len(data) == SIZE:
                    raise OSError(errno.ENOSPC, "full")
                super().write(offset, data)

        disk = Full(self.mktemp(), size=SIZE)
        self.addCleanup(disk.close)
        calls = SpliceCalls()
        calls.splice = None
        self.begin(calls, disk)
        self.write(0, DATA, 9)
        self.check_failure()
