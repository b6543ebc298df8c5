"""What servers use of outgoing.py: MSG_MORE, views, and rescue of regions that fail."""

from __future__ import annotations

import errno
import socket

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from blockmig.transport import FileRegion, RegionProducer
from tests.unit.served import Kernel, ServedDisk, SocketDouble, pattern

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
