"""What a connection sends: bytes and regions in order, by sendfile where possible."""

from __future__ import annotations

import errno
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides

from blockmig.testing import MemoryDisk
from blockmig.transport import (
    FileRegion,
    Pacer,
    RateLimiter,
    RegionProducer,
    is_plain_socket,
)
from tests.unit.served import Kernel, ServedDisk, SocketDouble


class ScriptedKernel(Kernel):
    """Of each sendfile and send as much is done as `counts` and `send_counts` say, or an error."""

    def __init__(self, transport, disk):
        super().__init__(disk)
        self.transport = transport
        self.counts = iter(())
        self.send_counts = iter(())
        self.calls = []

    def send(self, handle, data, flags):
        return super().send(handle, data[: self._allowed(self.send_counts, len(data))], flags)

    def sendfile(self, out, source, offset, count):
        self.calls.append((offset, count))
        allowed = self._allowed(self.counts, count)
        return super().sendfile(out, source, offset, allowed) if allowed else 0

    @staticmethod
    def _allowed(script, count):
        allowed = next(script, count)
        if isinstance(allowed, OSError):
            raise allowed
        return min(allowed, count)


class Case(SynchronousTestCase):
    def setUp(self):
        self.content = random.Random(1).randbytes(1 << 20)
        self.disk = ServedDisk(self.content)
        self.transport = SocketDouble(Clock())
        self.calls = ScriptedKernel(self.transport, self.disk)
        self.failures = []
        self.sent = []
        self.drained = []
        self.make()

    def make(self, transport=None, clock=None, limiter=None):
        self.producer = RegionProducer(
            transport or self.transport,
            self.failures.append,
            sent=self.sent.append,
            drained=lambda: self.drained.append(True),
            pacer=Pacer(clock, limiter) if limiter is not None else None,
            system=self.calls,
        )

    def region(self, offset=0, length=1 << 20):
        return FileRegion(self.disk, offset, length)

    def bytes_of(self, items):
        return b"".join(
            item if isinstance(item, bytes) else self.content[item.offset :][: item.length]
            for item in items
        )


class PlainSocketTests(Case):
    def test_a_TCP_connection_without_TLS_is_plain(self):
        self.assertTrue(is_plain_socket(self.transport))
        self.assertFalse(is_plain_socket(StringTransport()))
        self.transport.TLS = True
        self.assertFalse(is_plain_socket(self.transport))
        del self.transport.TLS
        directlyProvides(self.transport, ISSLTransport)
        self.assertFalse(is_plain_socket(self.transport))

    def test_bytes_are_sent_at_once(self):
        self.producer.send([b"first"])
        self.transport.run()
        self.producer.send([b"a", b"b"])
        self.producer.send_view(memoryview(b"c"))
        self.assertEqual((b"firstabc", 0), (bytes(self.transport.out), self.producer.pending))
        self.assertIsNone(self.transport.producer)

    def test_bytes_that_the_socket_does_not_take_wait(self):
        again = BlockingIOError(errno.EAGAIN, "")
        self.producer.send([b"first"])
        self.transport.run()
        self.calls.send_counts = iter([2, again, again, 1])
        self.producer.send([b"abcd"])
        self.producer.send_view(memoryview(b"ef"))
        self.assertEqual((b"firstab", 4), (bytes(self.transport.out), self.producer.pending_bytes))
        self.transport.run()
        self.assertEqual((b"firstabcdef", 0), (bytes(self.transport.out), self.producer.pending))
        self.calls.send_counts = iter([3, again])
        self.producer.send_view(memoryview(b"ghijk"))
        self.assertEqual(b"firstabcdefghi", bytes(self.transport.out))
        self.transport.run()
        self.assertEqual(b"firstabcdefghijk", bytes(self.transport.out))
        self.assertEqual(0, self.producer.pending_bytes)

    def test_a_region_is_sent_by_sendfile_between_its_neighbours(self):
        self.producer.send([b"head", self.region(), b"tail"])
        self.transport.run()
        self.assertEqual(b"head" + self.content + b"tail", bytes(self.transport.out))
        self.assertEqual([(0, 1 << 20)], self.calls.calls)
        self.assertEqual(1 << 20, sum(self.sent))
        self.assertEqual(
            ([True], None, 0), (self.drained, self.transport.producer, self.producer.pending)
        )

    def test_sendfile_waits_until_the_buffer_is_empty(self):
        self.transport.write(b"before")
        self.producer.send([self.region()])
        self.assertEqual([], self.calls.calls)
        self.transport.run()
        self.assertEqual(b"before" + self.content, bytes(self.transport.out))

    def test_partial_counts_of_sendfile_are_continued(self):
        self.calls.counts = iter(
            [1, 1000, BlockingIOError(errno.EAGAIN, ""), 65536, BlockingIOError(errno.EAGAIN, "")]
        )
        self.producer.send([b"head", self.region(), b"tail"])
        self.transport.run()
        self.assertEqual(b"head" + self.content + b"tail", bytes(self.transport.out))
        self.assertEqual([], self.failures)

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.binary(min_size=1, max_size=50),
                st.tuples(st.integers(0, 500_000), st.integers(1, 500_000)),
            ),
            max_size=12,
        ),
        st.lists(st.one_of(st.integers(1, 200_000), st.none()), max_size=30),
        st.lists(st.integers(0, 3), max_size=12),
        st.booleans(),
    )
    def test_any_items_keep_their_order(self, items, counts, turns, plain):
        self.setUp()
        self.calls.counts = iter(
            [BlockingIOError(errno.EAGAIN, "") if c is None else c for c in counts]
        )
        other = StringTransport()
        if not plain:
            self.make(other)
        items = [i if isinstance(i, bytes) else self.region(*i) for i in items]
        waits = iter(turns)
        for item in items:
            self.producer.send([item])
            for _ in range(next(waits, 0)):
                self.transport.turn()
        self.transport.run()
        out = bytes(self.transport.out) if plain else other.value()
        self.assertEqual(self.bytes_of(items), out)
        self.assertEqual(0, self.producer.pending)

    def test_a_disk_that_shrank_fails_the_producer(self):
        self.calls.counts = iter([1000, 0])
        self.producer.send([b"head", self.region(), b"tail"])
        self.transport.run()
        self.assertEqual([errno.EIO], [error.errno for error in self.failures])
        self.assertEqual(b"head" + self.content[:1000], bytes(self.transport.out))
        self.assertEqual((None, 0), (self.transport.producer, self.producer.pending))
        self.producer.send([b"more"])
        self.transport.run()
        self.assertEqual(b"head" + self.content[:1000], bytes(self.transport.out))

    def test_a_peer_that_is_gone_aborts_the_connection(self):
        for number in (errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT):
            self.setUp()
            self.calls.counts = iter([1000, OSError(number, "gone")])
            self.producer.send([self.region(), self.region()])
            self.transport.run()
            self.assertEqual([], self.failures)
            self.assertTrue(self.transport.aborted)
            self.assertEqual(2, len(self.calls.calls))

    def test_an_error_of_the_disk_fails_the_producer(self):
        self.calls.counts = iter([OSError(errno.EIO, "bad sector")])
        self.producer.send([self.region()])
        self.transport.run()
        self.assertEqual([errno.EIO], [error.errno for error in self.failures])

    def test_a_disk_that_times_out_is_not_taken_for_the_peer(self):
        """Network disks fail with network errors; read() shows whose error it is."""
        self.disk.fail("read", OSError(errno.ETIMEDOUT, "the disk timed out"), times=None)
        self.producer.send([self.region(0, 1000)])
        self.transport.run()
        self.assertEqual([errno.ETIMEDOUT], [error.errno for error in self.failures])

    def test_a_region_is_copied_where_sendfile_is_unsupported(self):
        for number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            self.setUp()
            self.calls.counts = iter([OSError(number, "no")])
            self.producer.send([b"head", self.region(), b"tail", self.region()])
            self.transport.run()
            self.assertEqual(
                b"head" + self.content + b"tail" + self.content, bytes(self.transport.out)
            )
            self.assertEqual(1, len(self.calls.calls))

    def test_a_region_of_a_disk_without_a_descriptor_is_copied(self):
        self.disk = MemoryDisk(self.content)
        self.producer.send([self.region()])
        self.transport.run()
        self.assertEqual((self.content, []), (bytes(self.transport.out), self.calls.calls))

    def test_a_region_whose_disk_loses_its_descriptor_is_copied(self):
        """As where another thread finds, between two looks, that the file has shrunk."""
        numbers = iter([5])
        self.disk = MemoryDisk(self.content)
        self.disk.fileno = lambda: next(numbers, None)
        self.producer.send([self.region()])
        self.transport.run()
        self.assertEqual((self.content, []), (bytes(self.transport.out), self.calls.calls))

    def test_small_regions_leave_with_their_headers(self):
        self.producer.send([b"head", self.region(0, 4096)] * 10)
        self.transport.run()
        self.assertEqual([], self.calls.calls)
        self.assertEqual((b"head" + self.content[:4096]) * 10, bytes(self.transport.out))

    def test_sendfile_is_never_used_under_TLS(self):
        def flag(transport):
            transport.TLS = True

        def interface(transport):
            directlyProvides(transport, ISSLTransport)

        for start in (flag, interface):
            self.setUp()
            start(self.transport)
            self.producer.send([b"head", self.region()])
            self.transport.run()
            self.assertEqual([], self.calls.calls)
            self.assertEqual(b"head" + self.content, bytes(self.transport.out))

    def test_sendfile_stops_when_TLS_starts(self):
        self.producer.send([self.region()])
        self.transport.run()
        self.assertEqual(1, len(self.calls.calls))
        self.transport.TLS = True
        self.producer.send([self.region()])
        self.transport.run()
        self.assertEqual(1, len(self.calls.calls))
        self.assertEqual(self.content * 2, bytes(self.transport.out))

    def test_one_turn_sends_a_bounded_amount(self):
        self.disk = ServedDisk(bytes(9 << 20))
        self.calls.disk = self.disk
        self.producer.send([self.region(0, 9 << 20)])
        self.transport.turn()
        self.assertLessEqual(len(self.transport.out), 4 << 20)
        self.transport.run()
        self.assertEqual(9 << 20, len(self.transport.out))

    def test_nothing_is_sent_between_pause_and_resume(self):
        self.calls.counts = iter([1000])
        self.producer.send([self.region()])
        self.producer.pauseProducing()
        self.transport.run()
        self.assertEqual(b"", bytes(self.transport.out))
        self.producer.send([b"tail"])
        self.transport.run()
        self.assertEqual(b"", bytes(self.transport.out))
        self.producer.resumeProducing()
        self.transport.run()
        self.assertEqual(self.content + b"tail", bytes(self.transport.out))

    def test_a_pause_before_the_first_item_counts(self):
        self.producer.pauseProducing()
        self.producer.send([b"a", self.region()])
        self.assertEqual((b"", None), (bytes(self.transport.buffer), self.transport.producer))
        self.producer.resumeProducing()
        self.transport.run()
        self.assertEqual(b"a" + self.content, bytes(self.transport.out))

    def test_nothing_is_sent_after_stopping(self):
        self.producer.send([self.region()])
        self.producer.stopProducing()
        self.producer.stopProducing()
        self.producer.send([b"x", self.region()])
        self.producer.resumeProducing()
        self.transport.run()
        self.assertEqual(b"", bytes(self.transport.out))
        self.assertIsNone(self.transport.producer)

    def test_the_transport_can_stop_the_producer(self):
        self.producer.send([self.region()])
        self.transport.producer.stopProducing()
        self.assertEqual(0, self.producer.pending)
        self.producer.send([b"x"])
        self.assertEqual(b"", bytes(self.transport.buffer))


class PushTransportTests(Case):
    def setUp(self):
        super().setUp()
        self.other = StringTransport()
        self.make(self.other)

    def test_a_region_is_written_in_order_on_other_transports(self):
        self.producer.send([b"head", self.region(), b"tail"])
        self.assertEqual(b"head" + self.content + b"tail", self.other.value())
        self.assertEqual(([True], None), (self.drained, self.other.producer))
        self.assertEqual([], self.calls.calls)

    def test_the_transport_can_pause_within_a_region(self):
        class Slow(StringTransport):
            def write(self, data):
                super().write(data)
                if self.producer is not None:
                    self.producer.pauseProducing()

        slow = Slow()
        self.make(slow)
        self.producer.send([b"head", self.region(), b"tail"])
        before = len(slow.value())
        self.assertLess(before, 1 << 20)
        self.assertTrue(slow.streaming)
        for _ in range(100):
            if slow.producer is None:
                break
            slow.producer.resumeProducing()
        self.assertEqual(b"head" + self.content + b"tail", slow.value())

    def test_a_transport_that_never_pauses_gets_everything(self):
        """A push producer continues until it is paused: nobody will resume it."""
        size = 9 << 20
        self.disk = MemoryDisk(b"x" * size)
        self.producer.send([self.region(0, size), b"tail"])
        self.assertEqual(size + 4, len(self.other.value()))

    def test_a_read_error_fails_the_producer(self):
        self.disk.fail("read", OSError(errno.EIO, "bad sector"), times=None)
        self.producer.send([b"head", self.region()])
        self.assertEqual([errno.EIO], [error.errno for error in self.failures])
        self.assertIsNone(self.other.producer)

    def test_a_full_transport_gets_nothing_more_until_it_resumes(self):
        """Registering again would not permit writing: the transport is still full."""

        class Full(StringTransport):
            def write(self, data):
                super().write(data)
                if self.producer is not None:
                    self.producer.pauseProducing()

        full = Full()
        self.make(full)
        items = []
        for number in range(100):
            items += [b"head", self.region(number * 10_000, 10_000), b"tail"]
            self.producer.send(items[-3:])
        self.assertLess(len(full.value()), 400 << 10)
        self.assertIsNotNone(full.producer)
        self.assertEqual([], self.drained)
        self.assertGreater(self.producer.pending, 100, "its owner cannot see what waits")
        for _ in range(1000):
            if full.producer is None:
                break
            full.producer.resumeProducing()
        self.assertEqual(self.bytes_of(items), full.value())
        self.assertEqual([True], self.drained)

    def test_a_full_transport_delays_what_is_sent_next(self):
        """The drained callback waits too."""

        class Full(StringTransport):
            def write(self, data):
                super().write(data)
                if self.producer is not None:
                    self.producer.pauseProducing()

        full = Full()
        self.make(full)
        self.producer.send([self.region(0, 1000)])
        self.assertEqual((1000, [], 0), (len(full.value()), self.drained, self.producer.pending))
        self.producer.send([b"more"])
        self.assertEqual(1000, len(full.value()))
        full.producer.resumeProducing()
        self.assertEqual(1004, len(full.value()))
        full.producer.resumeProducing()
        self.assertEqual(([True], None), (self.drained, full.producer))


class LimitedTests(Case):
    def run_for(self, clock, seconds):
        end = clock.seconds() + seconds
        while clock.seconds() < end:
            self.transport.run()
            clock.advance(0.01)
        self.transport.run()

    def test_the_rate_is_kept_over_time(self):
        clock = Clock()
        self.disk = ServedDisk(bytes(12 << 20))
        self.calls.disk = self.disk
        self.make(clock=clock, limiter=RateLimiter(clock, 1 << 20))
        self.producer.send([b"head", self.region(0, 12 << 20)])
        for second in range(1, 11):
            self.run_for(clock, 1)
            self.assertLess(abs(len(self.transport.out) / (second << 20) - 1), 0.1)
        self.assertLess(abs(len(self.transport.out) / (10 << 20) - 1), 0.05)

    def test_a_raised_rate_counts_at_once(self):
        clock = Clock()
        limiter = RateLimiter(clock, 100)
        self.make(clock=clock, limiter=limiter)
        self.producer.send([self.region()])
        self.run_for(clock, 1)
        limiter.set_rate(100 << 20)
        self.run_for(clock, 2)
        self.assertEqual(1 << 20, len(self.transport.out), "still waits for the old rate")

    def test_replies_without_regions_are_not_limited(self):
        clock = Clock()
        self.make(clock=clock, limiter=RateLimiter(clock, 1))
        self.producer.send([b"a reply"])
        self.transport.run()
        self.assertEqual(b"a reply", bytes(self.transport.out))

    def test_the_limit_pauses_and_resumes_the_producer(self):
        """There is no other way to hold the producer back."""
        clock = Clock()
        self.make(clock=clock, limiter=RateLimiter(clock, 1 << 20))
        calls = []
        for name in ("pauseProducing", "resumeProducing"):
            usual = getattr(self.producer, name)
            setattr(self.producer, name, lambda u=usual, n=name: (calls.append(n), u()))
        self.producer.send([self.region()])
        self.run_for(clock, 2)
        self.assertEqual(1 << 20, len(self.transport.out))
        self.assertGreater(len(calls), 10)
        self.assertEqual({"pauseProducing"}, set(calls[::2]))
        self.assertEqual({"resumeProducing"}, set(calls[1::2]))

    def test_stopping_while_waiting_leaves_no_timer(self):
        clock = Clock()
        self.make(clock=clock, limiter=RateLimiter(clock, 1))
        self.producer.send([self.region()])
        self.transport.run()
        self.assertEqual(1, len(clock.getDelayedCalls()))
        self.producer.stopProducing()
        self.assertEqual([], clock.getDelayedCalls())

    def test_a_header_waits_with_its_region(self):
        """A peer that got a header is in the middle of a message, and may lose patience."""
        for length in (1000, 100_000, 1 << 20):
            self.setUp()
            clock = Clock()
            self.make(clock=clock, limiter=RateLimiter(clock, 1 << 20))
            items = [b"header", self.region(0, length)]
            self.producer.send(items)
            self.transport.run()
            self.assertEqual(b"", bytes(self.transport.out))
            clock.advance(0.06)
            self.transport.run()
            self.assertGreaterEqual(len(self.transport.out), 6 + min(length, 50_000))
            self.run_for(clock, 2)
            self.assertEqual(self.bytes_of(items), bytes(self.transport.out))

    def test_many_small_regions_are_limited_too(self):
        clock = Clock()
        rate = 1 << 20
        limiter = RateLimiter(clock, rate)
        self.make(clock=clock, limiter=limiter)
        items = []
        for number in range(1000):
            items += [b"header", self.region(number * 1000, 1000)]
        self.producer.send(items)
        before = 0
        for _ in range(20):
            self.run_for(clock, 0.05)
            now = sum(self.sent)
            self.assertLessEqual(now - before, 0.11 * rate)
            before = now
        self.assertTrue(0.85 < before / rate < 1.05, before / rate)
        self.assertEqual([], [count for count in self.sent if count > 1000])
        self.run_for(clock, 1)
        self.assertEqual(self.bytes_of(items), bytes(self.transport.out))

    def test_the_limit_applies_on_other_transports_too(self):
        """A turn there has no end of its own: the limit ends it."""
        clock = Clock()
        other = StringTransport()
        self.disk = MemoryDisk(self.content)
        self.make(other, clock=clock, limiter=RateLimiter(clock, 1 << 20))
        items = []
        for number in range(1000):
            items += [b"header", self.region(number * 1000, 1000)]
        self.producer.send(items)
        self.assertEqual(b"", other.value())
        for _ in range(50):
            clock.advance(0.01)
        self.assertTrue(0.4 < len(other.value()) / (1 << 20) < 0.6)
        for _ in range(100):
            clock.advance(0.01)
        self.assertEqual(self.bytes_of(items), other.value())

    def test_bytes_are_charged_after_they_were_written(self):
        """Small regions leave in one piece; the time for that is part of their cost."""
        case = self

        class Limit:
            def __init__(self):
                self.spent = []

            def allowed(self, wanted):
                return wanted

            def spend(self, count):
                self.spent.append((count, len(case.out())))

            def delay(self, wanted):
                raise AssertionError("it never waits")

        for transport in (None, StringTransport()):
            self.setUp()
            limit = Limit()
            self.make(transport, clock=Clock(), limiter=limit)
            self.out = (lambda: self.transport.out) if transport is None else transport.value
            items = []
            for number in range(10):
                items += [b"header", self.region(number * 1000, 1000)]
            self.producer.send(items)
            self.transport.run()
            self.assertEqual(self.bytes_of(items), bytes(self.out()))
            gone = 0
            for count, sent in limit.spent:
                gone += count
                self.assertGreaterEqual(sent, gone, "they were not sent yet")
            self.assertEqual((10_000, 10_000), (gone, sum(self.sent)))

    def test_a_limit_set_while_regions_wait_applies_to_them(self):
        """Queued items follow the limit that applies when they are sent."""
        clock = Clock()
        self.make(clock=clock)
        self.producer.pacer = Pacer(clock, RateLimiter(clock, 1 << 20))
        self.producer.send([self.region()])
        self.run_for(clock, 0.5)
        self.assertTrue(0.3 < len(self.transport.out) / (1 << 20) < 0.7)
        self.producer.pacer = None
        self.run_for(clock, 0.3)
        self.assertEqual(self.content, bytes(self.transport.out))
