"""What a connection sends from a disk without a descriptor: nothing is read in its own thread."""

from __future__ import annotations

import errno
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from blockmig.testing import ManualThreads, MemoryDisk
from blockmig.transport import FileRegion, Pacer, RateLimiter, RegionProducer, read_ahead
from tests.unit.served import Kernel, ServedDisk, SocketDouble

PIECE = 128 << 10
SIZE = 6 * PIECE
CONTENT = random.Random(1).randbytes(SIZE)


class Case(SynchronousTestCase):
    def setUp(self):
        self.patch(read_ahead, "PIECE", PIECE)
        self.clock = Clock()
        self.disk = MemoryDisk(CONTENT)
        self.threads = ManualThreads()
        self.failures, self.sent, self.drained = [], [], []
        self.transport = SocketDouble(self.clock)
        self.transport.connect(Protocol())
        self.kernel = Kernel(ServedDisk(CONTENT))
        self.kernel.transport = self.transport
        self.make()

    def make(self, transport=None, pacer=None):
        self.producer = RegionProducer(
            transport or self.transport,
            self.failures.append,
            sent=self.sent.append,
            drained=lambda: self.drained.append(True),
            pacer=pacer,
            in_thread=self.threads,
            system=self.kernel,
        )

    def region(self, offset=0, length=SIZE, on_read_error=None):
        return FileRegion(self.disk, offset, length, on_read_error)

    def run_all(self):
        while True:
            self.transport.run()
            if not self.threads.run(1):
                return bytes(self.transport.out)


class PlainSocketTests(Case):
    def test_nothing_is_read_outside_of_threads(self):
        self.producer.send([b"head", self.region(), b"tail"])
        self.transport.run()
        self.assertEqual(([], b"head"), (self.disk.calls, bytes(self.transport.out)))
        self.assertEqual(4, len(self.threads.waiting))

    def test_what_is_sent_is_in_order(self):
        self.producer.send([b"head", self.region(), b"tail", self.region(7, 70_000), b"end"])
        self.threads.rotate()
        self.assertEqual(b"head" + CONTENT + b"tail" + CONTENT[7:70_007] + b"end", self.run_all())
        self.assertEqual((SIZE + 70_000, 0), (sum(self.sent), self.producer.pending))
        self.assertEqual([True], self.drained)
        self.assertIsNone(self.transport.producer)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.binary(min_size=1, max_size=50),
                st.tuples(st.integers(0, 3 * PIECE), st.integers(1, 3 * PIECE), st.booleans()),
            ),
            max_size=8,
        ),
        st.lists(st.integers(0, 100_000), max_size=20),
        st.lists(st.sampled_from(["turn", "thread", "rotate", "pause", "resume"]), max_size=40),
    )
    def test_any_items_keep_their_order(self, items, takes, events):
        """Beside regions of a disk that has a descriptor, and whatever happens when."""
        self.setUp()
        other = ServedDisk(CONTENT)
        expected = b""
        self.transport.takes.extend(takes)
        for item in items:
            if isinstance(item, bytes):
                self.producer.send([item])
                expected += item
            else:
                offset, length, described = item
                disk = other if described else self.disk
                self.producer.send([FileRegion(disk, offset, length)])
                expected += CONTENT[offset : offset + length]
        for event in events:
            if event == "turn":
                self.transport.turn()
            elif event == "thread":
                self.threads.run(1)
            elif event == "rotate":
                self.threads.rotate()
            elif event == "pause":
                self.producer.pauseProducing()
            else:
                self.producer.resumeProducing()
        self.producer.resumeProducing()
        self.assertEqual(expected, self.run_all())
        self.assertEqual((0, 0), (self.producer.pending, self.producer.pending_bytes))

    def test_the_socket_is_not_watched_while_a_thread_reads(self):
        self.producer.send([b"head", self.region()])
        self.transport.run()
        self.assertFalse(self.transport.writing)

    def test_the_transport_does_not_close_while_a_thread_reads(self):
        """Not even if everything so far was taken at once."""
        self.producer.send([b"first"])
        self.transport.run()
        self.producer.send([b"head", self.region(0, 5)])
        self.transport.loseConnection()
        self.transport.run()
        self.assertFalse(self.transport.lost)
        self.assertEqual(b"firsthead" + CONTENT[:5], self.run_all())
        self.assertTrue(self.transport.lost)

    def test_a_pause_while_a_thread_reads_lasts(self):
        self.producer.send([self.region()])
        self.transport.run()
        self.producer.pauseProducing()
        self.threads.run()
        self.transport.run()
        self.assertEqual(b"", bytes(self.transport.out))
        self.producer.resumeProducing()
        self.assertEqual(CONTENT, self.run_all())

    def test_nothing_is_sent_or_read_after_stopping(self):
        self.producer.send([b"head", self.region()])
        self.transport.run()
        self.producer.stopProducing()
        self.threads.run()
        self.transport.run()
        self.assertEqual((b"head", []), (bytes(self.transport.out), self.disk.calls))
        self.assertEqual([], self.failures)

    def test_a_connection_that_is_lost_while_a_thread_reads_reports_no_error(self):
        self.disk.fail("read", OSError(errno.EIO, "bad"), times=None)
        self.producer.send([b"head", self.region()])
        self.transport.run()
        self.transport.producer.stopProducing()
        self.threads.run()
        self.assertEqual([], self.failures)

    def test_a_failed_read_fails_the_producer_once_after_what_came_before(self):
        self.disk.fail("read", OSError(errno.EIO, "bad"), within=range(PIECE, SIZE), times=None)
        self.producer.send([b"head", self.region(), b"tail"])
        self.assertEqual(b"head" + CONTENT[:PIECE], self.run_all())
        self.assertEqual([errno.EIO], [error.errno for error in self.failures])
        self.assertEqual((0, PIECE), (self.producer.pending, sum(self.sent)))

    def test_a_failed_read_is_replaced_where_that_is_possible(self):
        bad = range(2 * PIECE, 2 * PIECE + 1)
        self.disk.fail("read", OSError(errno.EIO, "bad"), within=bad)
        failed = []

        def instead(error, rest):
            failed.append((error.errno, rest.offset, rest.length))
            return [bytes(rest.length), b"<spoiled>"]

        self.producer.send(
            [b"head", self.region(0, 5 * PIECE, instead), self.region(3, 5), b"tail"]
        )
        expected = b"head" + CONTENT[: 2 * PIECE] + bytes(3 * PIECE) + b"<spoiled>"
        self.assertEqual(expected + CONTENT[3:8] + b"tail", self.run_all())
        self.assertEqual([(errno.EIO, 2 * PIECE, 3 * PIECE)], failed)
        self.assertEqual([], self.failures)

    def test_small_regions_leave_with_their_headers_once_they_were_read(self):
        self.producer.send([b"first"])
        self.transport.run()
        self.producer.pauseProducing()
        self.producer.send([b"head", self.region(0, 4096)])
        self.threads.run()
        before = len(self.kernel.sends)
        self.producer.resumeProducing()
        self.transport.run()
        self.assertEqual(1, len(self.kernel.sends) - before)


class OtherTransportTests(Case):
    def setUp(self):
        super().setUp()
        self.other = StringTransport()
        self.make(self.other)

    def test_what_is_sent_is_in_order(self):
        self.producer.send([b"head", self.region(), b"tail"])
        self.assertEqual(b"head", self.other.value())
        self.threads.run()
        self.assertEqual(b"head" + CONTENT + b"tail", self.other.value())
        self.assertEqual(([True], None), (self.drained, self.other.producer))

    def test_a_transport_that_is_full_meanwhile_gets_nothing(self):
        self.producer.send([self.region()])
        self.other.producer.pauseProducing()
        self.threads.run()
        self.assertEqual(b"", self.other.value())
        self.other.producer.resumeProducing()
        self.threads.run()
        self.assertEqual(CONTENT, self.other.value())


class KnownDataTests(Case):
    """Regions that were read already."""

    def known(self, offset, length):
        return self.region(offset, length)._replace(data=memoryview(CONTENT)[offset:][:length])

    def test_they_are_sent_without_another_read(self):
        self.transport.takes.extend([5, 0, 100_000, 0, 7])
        self.producer.send([b"head", self.known(5, 4 * PIECE), b"tail", self.known(0, 10)])
        self.transport.run()
        expected = b"head" + CONTENT[5 : 4 * PIECE + 5] + b"tail" + CONTENT[:10]
        self.assertEqual(expected, bytes(self.transport.out))
        self.assertEqual(([], []), (self.disk.calls, self.threads.waiting))
        self.assertEqual(4 * PIECE + 10, sum(self.sent))

    def test_they_are_sent_from_memory_although_their_disk_has_a_descriptor(self):
        self.disk = ServedDisk(bytes(SIZE))
        self.producer.send([self.known(0, SIZE)])
        self.transport.run()
        self.assertEqual((CONTENT, []), (bytes(self.transport.out), self.kernel.sent_from_disk))

    def test_their_rate_is_limited_too(self):
        self.make(pacer=Pacer(self.clock, RateLimiter(self.clock, PIECE)))
        self.producer.send([self.known(0, SIZE)])
        for _ in range(20):
            self.clock.advance(0.1)
            self.transport.run()
        self.assertAlmostEqual(2 * PIECE, sum(self.sent), delta=PIECE // 4)


class PacedTests(Case):
    def test_the_rate_counts_what_was_read_in_threads(self):
        limiter = RateLimiter(self.clock, PIECE)
        self.make(pacer=Pacer(self.clock, limiter))
        self.producer.send([self.region()])
        self.run_all()
        for _ in range(20):
            self.clock.advance(0.1)
            self.run_all()
        self.assertAlmostEqual(2 * PIECE, sum(self.sent), delta=PIECE // 4)
        for _ in range(50):
            self.clock.advance(0.1)
            self.run_all()
        self.assertEqual(CONTENT, bytes(self.transport.out))

    def test_no_more_is_read_than_the_rate_lets_out(self):
        self.make(pacer=Pacer(self.clock, RateLimiter(self.clock, 1000)))
        self.producer.send([self.region()])
        self.run_all()
        self.assertEqual(4, len(self.disk.calls))


class WithoutThreadsTests(Case):
    def test_a_region_in_memory_is_read_at_once(self):
        producer = RegionProducer(self.transport, self.failures.append, system=Kernel(None))
        producer.send([self.region(0, 5)])
        self.transport.run()
        self.assertEqual(CONTENT[:5], bytes(self.transport.out))
