"""What servers use of outgoing.py and incoming.py: views, rescue, and reading at once."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from blockmig.runtime import Runtime
from blockmig.server import Server
from blockmig.storage import FileDisk
from blockmig.testing import synchronous
from blockmig.transport import FileRegion, PayloadReader, RegionProducer
from tests.unit.served import FIXED, Kernel, ServedDisk, SocketDouble, go, pattern
from tests.unit.support import (
    ADDRESS,
    FakeReactor,
    PayloadSink,
    SocketTransport,
    SpliceCalls,
    request_bytes,
)

SIZE = 1 << 20
MORE = socket.MSG_MORE


class Protocol:
    def makeConnection(self, transport):
        pass

    def connectionLost(self, reason):
        pass


class Case(SynchronousTestCase):
    def setUp(self):
        self.disk = ServedDisk(pattern(SIZE))
        self.kernel = Kernel(self.disk)
        self.transport = SocketDouble(Clock())
        self.transport.connect(Protocol())
        self.kernel.transport = self.transport
        self.failures, self.rescued = [], []
        self.make(self.transport)

    def make(self, transport):
        self.producer = RegionProducer(transport, self.failures.append, system=self.kernel)
        self.producer.send([b"hello"])
        self.transport.run()
        self.transport.out.clear()
        self.kernel.sends.clear()

    def rescue(self, error, rest):
        self.rescued.append((error.errno, rest.offset, rest.length))
        return [bytes(rest.length), b"<spoiled>"]

    def region(self, offset, length, rescue=True):
        return FileRegion(self.disk, offset, length, self.rescue if rescue else None)

    def sent(self):
        self.transport.run()
        return bytes(self.transport.out)


class MoreTests(Case):
    def test_a_header_is_sent_with_MSG_MORE_before_its_region(self):
        self.producer.send([b"head", self.region(0, 500_000), b"tail"])
        self.assertEqual(b"head" + pattern(SIZE)[:500_000] + b"tail", self.sent())
        self.assertEqual([(4, MORE), (4, 0)], self.kernel.sends)

    def test_small_regions_leave_in_the_same_piece(self):
        """Small regions are read, and leave in the same piece."""
        self.producer.send([b"head", self.region(0, 5000), b"tail"])
        self.sent()
        self.assertEqual([(5008, 0)], self.kernel.sends)

    def test_MSG_MORE_is_not_used_without_a_region(self):
        self.producer.send([b"a", b"b"])
        self.producer.send([b"c"])
        self.producer.send_view(memoryview(b"d"))
        self.sent()
        self.assertEqual({0}, {flags for _, flags in self.kernel.sends})

    def test_every_header_before_a_region_has_MSG_MORE(self):
        self.producer.send([b"1", self.region(0, 100_000), b"2", self.region(0, 100_000), b"3"])
        self.sent()
        self.assertEqual([(1, MORE), (1, MORE), (1, 0)], self.kernel.sends)


class ViewTests(Case):
    def test_a_view_is_not_copied_where_the_socket_takes_it(self):
        self.producer.send_view(memoryview(b"all of it"))
        self.assertEqual(b"all of it", bytes(self.transport.out))
        self.assertEqual(0, self.producer.pending)

    def test_the_rest_of_a_view_is_copied(self):
        """The buffer of the view is reused as soon as the call returns."""
        for taken in (0, 1, 8):
            self.setUp()
            self.transport.takes.extend([taken, 0])
            buffer = bytearray(b"all of it")
            self.producer.send_view(memoryview(buffer))
            buffer[:] = b"XXXXXXXXX"
            self.assertEqual((1, 9 - taken), (self.producer.pending, self.producer.pending_bytes))
            self.assertEqual(b"all of it", self.sent())
            self.assertEqual(0, self.producer.pending_bytes)

    def test_a_view_waits_after_earlier_items(self):
        self.transport.room = 3
        self.producer.send([b"first", self.region(0, 100_000), b"last"])
        buffer = bytearray(b"view")
        self.producer.send_view(memoryview(buffer))
        buffer[:] = b"XXXX"
        self.transport.room = None
        self.assertEqual(b"first" + pattern(SIZE)[:100_000] + b"lastview", self.sent())

    def test_a_view_waits_after_bytes_that_others_wrote(self):
        """Somebody else may have written to the transport."""
        transport = SocketDouble(Clock())
        transport.connect(Protocol())
        producer = RegionProducer(transport, self.failures.append, system=self.kernel)
        transport.write(b"theirs, ")
        producer.send_view(memoryview(b"ours"))
        self.assertEqual(b"", bytes(transport.out))
        transport.run()
        self.assertEqual(b"theirs, ours", bytes(transport.out))

    def test_a_view_waits_while_paused(self):
        self.producer.pauseProducing()
        self.producer.send_view(memoryview(b"later"))
        self.assertEqual(b"", self.sent())
        self.producer.resumeProducing()
        self.assertEqual(b"later", self.sent())

    def test_a_view_is_dropped_after_stopping(self):
        self.producer.stopProducing()
        self.producer.send_view(memoryview(b"never"))
        self.assertEqual((b"", 0), (self.sent(), self.producer.pending))

    def test_a_view_for_a_peer_that_is_gone_aborts_the_connection(self):
        self.transport.gone_peer = True
        self.producer.send_view(memoryview(b"never"))
        self.assertTrue(self.transport.aborted)
        self.assertEqual(([], 0), (self.failures, self.producer.pending))

    def test_a_view_is_copied_on_other_transports(self):
        other = StringTransport()
        producer = RegionProducer(other, self.failures.append, system=self.kernel)
        buffer = bytearray(b"a view")
        producer.send_view(memoryview(buffer))
        buffer[:] = b"XXXXXX"
        self.assertEqual(b"a view", other.value())

    def test_a_view_goes_through_the_transport_under_TLS(self):
        self.transport.TLS = True
        self.producer.send_view(memoryview(b"secret"))
        self.assertEqual(
            (b"", b"secret"), (bytes(self.transport.out), bytes(self.transport.buffer))
        )


class RescueTests(Case):
    def test_a_failure_within_a_region_is_padded_and_marked(self):
        self.disk.bad = [(300_000, 300_001)]
        self.producer.send([b"head", self.region(100_000, 400_000), b"tail"])
        expected = b"head" + pattern(SIZE)[100_000:300_000] + bytes(200_000) + b"<spoiled>tail"
        self.assertEqual(expected, self.sent())
        self.assertEqual([(errno.EIO, 300_000, 200_000)], self.rescued)
        self.assertEqual(
            ([], 0, 0), (self.failures, self.producer.pending, self.producer.pending_bytes)
        )
        self.producer.send([b"more"])
        self.assertEqual(expected + b"more", self.sent())

    def test_a_region_of_a_disk_that_shrank_is_padded(self):
        self.kernel.sendfile = lambda *_: 0
        self.producer.send([self.region(0, 100_000)])
        self.assertEqual(bytes(100_000) + b"<spoiled>", self.sent())
        self.assertEqual([(errno.EIO, 0, 100_000)], self.rescued)

    def test_a_small_region_that_fails_is_padded(self):
        self.disk.bad = [(50, 51)]
        self.producer.send([b"head", self.region(0, 100), self.region(100, 5), b"tail"])
        expected = b"head" + bytes(100) + b"<spoiled>" + pattern(SIZE)[100:105] + b"tail"
        self.assertEqual(expected, self.sent())

    def test_a_region_is_padded_on_other_transports_too(self):
        self.disk.bad = [(300_000, 300_001)]
        other = StringTransport()
        producer = RegionProducer(other, self.failures.append, system=self.kernel)
        producer.send([b"head", self.region(0, 500_000), b"tail"])
        out = other.value()
        self.assertEqual(len(b"head<spoiled>tail") + 500_000, len(out))
        self.assertTrue(out.endswith(b"\0<spoiled>tail"))
        ((_, offset, length),) = self.rescued
        self.assertEqual(500_000, offset + length)
        self.assertEqual(pattern(SIZE)[:offset], out[4 : 4 + offset])

    def test_a_region_without_a_rescue_fails_the_producer(self):
        self.disk.bad = [(300_000, 300_001)]
        self.producer.send([b"head", self.region(0, 500_000, rescue=False), b"tail"])
        self.assertEqual(b"head" + pattern(SIZE)[:300_000], self.sent())
        self.assertEqual([errno.EIO], [error.errno for error in self.failures])
        self.producer.send([b"more"])
        self.producer.send_view(memoryview(b"more"))
        self.assertEqual(b"head" + pattern(SIZE)[:300_000], self.sent())

    def test_a_peer_that_is_gone_needs_no_rescue(self):
        def sendfile(*_):
            raise OSError(errno.ECONNRESET, "reset")

        self.kernel.sendfile = sendfile
        self.producer.send([self.region(0, 100_000)])
        self.assertEqual(([], []), (self.rescued, self.failures))
        self.assertTrue(self.transport.aborted)

    def test_a_full_socket_needs_no_rescue(self):
        self.transport.room = 1000
        self.producer.send([self.region(0, 100_000)])
        self.transport.run()
        self.assertEqual([], self.rescued)
        self.transport.room = None
        self.assertEqual(pattern(SIZE)[:100_000], self.sent())

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_any_failures_keep_the_promised_number_of_bytes(self, data):
        """Whatever the socket accepts."""
        self.setUp()
        self.disk.bad = [
            (at, at + data.draw(st.integers(1, 100_000)))
            for at in data.draw(st.lists(st.integers(0, SIZE), max_size=3))
        ]
        self.transport.takes.extend(data.draw(st.lists(st.integers(0, 300_000), max_size=20)))
        items, promised = [], 0
        for _ in range(data.draw(st.integers(1, 4))):
            offset = data.draw(st.integers(0, SIZE - 1))
            length = data.draw(st.integers(1, SIZE - offset))
            items += [b"head", self.region(offset, length)]
            promised += 4 + length
        for item in items:
            self.producer.send([item])
        out = self.sent()
        self.assertEqual(promised + len(self.rescued) * len(b"<spoiled>"), len(out))
        self.assertEqual(([], 0), (self.failures, self.producer.pending_bytes))
        self.assertEqual(len(items) // 2, out.count(b"head"))


class ExpectsViews(PayloadSink):
    """Gets what is no payload as views that do not last."""

    answer = None

    def fast_responder(self):
        return self.answer

    def bufferReceived(self, view):
        self.bytes += bytes(view)
        self.views = getattr(self, "views", 0) + 1


class ReadingCase(SynchronousTestCase):
    def setUp(self):
        self.disk = FileDisk(self.mktemp(), size=SIZE)
        self.addCleanup(self.disk.close)
        self.disk.prepare()
        self.reactor = FakeReactor()
        self.ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.addCleanup(self.theirs.close)
        self.addCleanup(self.ours.close)

    def connect(self, protocol, calls=None):
        self.transport = SocketTransport(self.ours, protocol, self.reactor)
        protocol.makeConnection(self.transport)
        return PayloadReader(self.reactor, self.transport, protocol, 28, calls or SpliceCalls())


class AtOnceTests(ReadingCase):
    def test_small_messages_are_read_at_once(self):
        protocol = ExpectsViews(self.disk, 0)
        reader = self.connect(protocol)
        reader.take_over(at_once=True)
        self.assertEqual([reader], self.reactor.readers)
        for message in (b"one", b"two", b"three"):
            self.theirs.send(message)
            self.reactor.look()
        self.assertEqual(b"onetwothree", protocol.bytes)

    def test_reading_is_not_taken_over_unless_asked_for(self):
        protocol = ExpectsViews(self.disk, 0)
        self.connect(protocol).take_over()
        self.assertEqual([self.transport], self.reactor.readers)

    def test_payloads_are_still_moved(self):
        protocol = ExpectsViews(self.disk, 0)
        calls = SpliceCalls()
        self.connect(protocol, calls).take_over(at_once=True)
        self.theirs.send(b"head")
        self.reactor.run_dry()
        protocol.left = 100_000
        payload = random.Random(1).randbytes(100_000)
        self.theirs.send(payload)
        self.reactor.run_dry()
        self.assertEqual((b"head", payload), (protocol.bytes, self.disk.read(0, 100_000)))
        self.assertGreater(calls.splices, 0)
        self.theirs.send(b"tail")
        self.reactor.run_dry()
        self.assertEqual(b"headtail", protocol.bytes)

    def test_the_end_of_the_connection_is_noticed(self):
        protocol = ExpectsViews(self.disk, 0)
        before = len(os.listdir("/proc/self/fd"))
        self.connect(protocol).take_over(at_once=True)
        self.theirs.send(b"last words")
        self.theirs.shutdown(socket.SHUT_WR)
        self.reactor.run_dry()
        self.assertEqual(b"last words", protocol.bytes)
        self.assertIsNotNone(protocol.lost)
        self.assertEqual([], self.reactor.readers)
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)

    def test_a_pause_from_inside_a_callback_counts(self):
        protocol = ExpectsViews(self.disk, 0)
        reader = self.connect(protocol)
        reader.take_over(at_once=True)
        receive = protocol.bufferReceived

        def pausing(view):
            receive(view)
            reader.pause()

        protocol.bufferReceived = pausing
        self.theirs.send(b"one")
        self.reactor.run_dry()
        self.theirs.send(b"two")
        self.reactor.run_dry()
        self.assertEqual(b"one", protocol.bytes)
        reader.resume()
        self.reactor.run_dry()
        self.assertEqual(b"onetwo", protocol.bytes)

    def test_a_pause_before_taking_over_counts(self):
        protocol = ExpectsViews(self.disk, 0)
        reader = self.connect(protocol)
        reader.pause()
        reader.take_over(at_once=True)
        self.theirs.send(b"one")
        self.reactor.run_dry()
        self.assertEqual(b"", protocol.bytes)
        reader.resume()
        self.reactor.run_dry()
        self.assertEqual(b"one", protocol.bytes)

    def test_views_are_answered_without_the_general_path(self):
        protocol = ExpectsViews(self.disk, 0)
        answered = []

        def answer(view):
            answered.append(bytes(view))
            protocol.answer = answer if len(answered) < 2 else None
            return protocol.answer is not None

        protocol.answer = answer
        self.connect(protocol).take_over(at_once=True)
        for message in (b"one", b"two", b"three"):
            self.theirs.send(message)
            self.reactor.look()
        self.assertEqual(([b"one", b"two"], b"three"), (answered, protocol.bytes))

    def test_only_a_header_is_read_after_a_payload(self):
        protocol = ExpectsViews(self.disk, 100_000)
        answered = []
        protocol.answer = lambda view: answered.append(bytes(view)) or True
        self.connect(protocol).take_over(at_once=True)
        self.theirs.send(bytes(100_000) + b"h" * 28 + b"more")
        self.reactor.run_dry()
        self.assertEqual((b"h" * 28, b"more"), (protocol.bytes, b"".join(answered)))

    def test_the_end_is_noticed_on_the_short_path(self):
        protocol = ExpectsViews(self.disk, 0)
        answered = []
        protocol.answer = lambda view: answered.append(bytes(view)) or True
        self.connect(protocol).take_over(at_once=True)
        self.theirs.send(b"last words")
        self.theirs.shutdown(socket.SHUT_WR)
        self.reactor.run_dry()
        self.assertEqual([b"last words"], answered)
        self.assertIsNotNone(protocol.lost)

    def test_stopping_from_inside_a_callback_is_safe(self):
        protocol = ExpectsViews(self.disk, 0)
        reader = self.connect(protocol)
        reader.take_over(at_once=True)
        protocol.bufferReceived = lambda view: reader.stop()
        self.theirs.send(b"one")
        self.reactor.run_dry()
        self.assertEqual((-1, []), (reader.fileno(), self.reactor.readers))


class ServerReadsTests(ReadingCase):
    """The connections of a server are read past the transport."""

    def setUp(self):
        super().setUp()
        server = Server(self.disk, runtime=Runtime(self.reactor, synchronous))
        self.connection = server.factory().buildProtocol(ADDRESS)
        self.transport = SocketTransport(self.ours, self.connection, self.reactor)
        self.connection.makeConnection(self.transport)
        self.theirs.send(FIXED + go())
        self.reactor.run_dry()
        self.theirs.recv(1 << 16)

    def count_general(self):
        """How often something was left for the general way, from now on."""
        left = []
        session = self.connection._phase
        receive = session.bufferReceived
        session.bufferReceived = lambda view: left.append(bytes(view)) or receive(view)
        return left

    def test_small_requests_take_the_short_path(self):
        left = self.count_general()
        # Three READs, a TRIM that is refused, and half of a WRITE.
        whole = request_bytes(1, 0, 10) + b"x" * 10
        self.theirs.send(request_bytes(0, 0, 10) * 3)
        self.reactor.run_dry()
        self.assertEqual(3 * 26, len(self.theirs.recv(1 << 16)))
        self.assertEqual([], left)
        self.theirs.send(request_bytes(0, 0, 10) + request_bytes(4, 0, 0) + whole[:30])
        self.reactor.run_dry()
        self.assertEqual([request_bytes(4, 0, 0) + whole[:30]], left)
        self.theirs.send(whole[30:])
        self.reactor.run_dry()
        self.assertEqual(26 + 16 + 16, len(self.theirs.recv(1 << 16)))
        self.assertEqual(b"x" * 10, self.disk.read(0, 10))

    def test_replies_of_the_short_path_keep_their_order(self):
        calls = self.connection._context.outgoing._system
        taken = iter((20, 0))

        class TakesLittle(type(calls)):
            @staticmethod
            def send(handle, data, flags=0):
                if (most := next(taken, None)) == 0:
                    raise BlockingIOError
                return handle.send(data if most is None else data[:most], flags)

        count, length = 12, 30_000
        self.disk.write(0, random.Random(3).randbytes(count + length))
        self.connection._context.outgoing._system = TakesLittle()
        # More than one bufferful of replies, so that the rest of the first has to wait.
        self.theirs.send(b"".join(request_bytes(0, i, length) for i in range(count)))
        replies = b""
        while len(replies) < count * (16 + length):
            self.reactor.look()
            with contextlib.suppress(BlockingIOError):
                replies += self.theirs.recv(1 << 20)
        for i in range(count):
            start = i * (16 + length) + 16
            self.assertEqual(self.disk.read(i, length), replies[start : start + length])

    def test_a_change_on_the_short_path_is_reported(self):
        told = []
        self.connection.handler.access.changes.mark = lambda *change: told.append(change)
        left = self.count_general()
        self.theirs.send(request_bytes(1, 5, 10) + b"x" * 10)
        self.reactor.run_dry()
        self.assertEqual(([(5, 10)], 1), (told, len(left)))

    def test_small_requests_are_read_past_the_transport(self):
        for _ in range(3):
            self.theirs.send(request_bytes(0, 0, 10))
            self.reactor.run_dry()
            self.assertEqual(16 + 10, len(self.theirs.recv(1000)))
        self.assertNotIn(self.transport, self.reactor.readers)
        (reader,) = self.reactor.readers
        self.assertIsInstance(reader, PayloadReader)

    def test_a_client_that_closes_is_noticed(self):
        self.theirs.send(request_bytes(0, 0, 10))
        self.reactor.run_dry()
        self.theirs.close()
        self.reactor.run_dry()
        self.reactor.advance(0)
        self.assertEqual([], self.reactor.readers)
