"""The disk as the clients of a server share it: reads at once, known layout, and flushes."""

from __future__ import annotations

import errno
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.interfaces import Extent
from blockmig.nbd import STATE_HOLE, STATE_ZERO
from blockmig.server import DiskAccess, LatencyMonitor
from blockmig.server.access import SHORTEST_HOLE
from blockmig.storage import PROBE_SIZE
from blockmig.syscalls import NO_WAIT
from blockmig.testing import ManualThreads, synchronous
from tests.unit.served import Kernel, Seconds, ServedDisk, eio, pattern

SIZE = 4 << 20
HOLE = STATE_HOLE | STATE_ZERO
EAGAIN = BlockingIOError(errno.EAGAIN, "would wait")


class Case(SynchronousTestCase):
    def setUp(self):
        self.make()

    def make(self, holes=(), bad=(), content=None, threads=None):
        self.disk = ServedDisk(pattern(SIZE) if content is None else content, holes, bad)
        self.kernel = Kernel(self.disk)
        self.seconds = Seconds()
        self.threads = threads
        self.access = DiskAccess(
            self.disk, threads or synchronous, LatencyMonitor(self.seconds), self.kernel
        )

    def read_nowait(self, offset=0, length=10):
        view = memoryview(bytearray(length))
        return bytes(view) if self.access.read_nowait(view, offset) else None

    def prepare(self, offset, length, with_holes=True):
        return self.successResultOf(self.access.prepare(offset, length, with_holes))


class ReadNowTests(Case):
    def test_cached_data_is_read_at_once(self):
        self.assertEqual(pattern(SIZE)[5:15], self.read_nowait(5))
        self.assertEqual([(5, 10, NO_WAIT)], self.kernel.asked)
        self.assertTrue(NO_WAIT, "these tests are for a platform that has it")

    def test_a_read_that_would_wait_returns_nothing(self):
        self.kernel.cold = EAGAIN
        for _ in range(2):
            self.assertIsNone(self.read_nowait())
        self.assertTrue(all(flags for _, _, flags in self.kernel.asked))

    def test_a_kernel_that_knows_no_such_flag_is_asked_without_it_for_ever(self):
        for number in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            self.make()
            self.kernel.cold = OSError(number, "unknown flag")
            for _ in range(3):
                self.assertEqual(pattern(SIZE)[:10], self.read_nowait())
            self.assertEqual([NO_WAIT, 0, 0, 0], [flags for _, _, flags in self.kernel.asked])

    def test_other_errors_return_nothing_and_change_nothing(self):
        """The general path reports them."""
        self.make(bad=[(0, 10)])
        self.assertIsNone(self.read_nowait())
        self.assertEqual(pattern(SIZE)[100:110], self.read_nowait(100))
        self.assertEqual([NO_WAIT] * 2, [flags for _, _, flags in self.kernel.asked])

    def test_an_error_without_the_flag_returns_nothing(self):
        self.kernel.cold = OSError(errno.EOPNOTSUPP, "unknown flag")
        self.read_nowait()
        self.kernel.preads.append(OSError(errno.EINVAL, "odd"))
        self.assertIsNone(self.read_nowait())

    def test_a_short_read_returns_nothing(self):
        self.kernel.preads.extend([9, 0])
        self.assertIsNone(self.read_nowait())
        self.assertIsNone(self.read_nowait())

    def test_a_disk_that_has_lost_its_descriptor_reads_nothing_at_once(self):
        self.disk.descriptor = None
        self.assertIsNone(self.read_nowait())
        self.assertEqual([], self.kernel.asked)

    def test_reads_and_writes_are_done_in_threads(self):
        self.make(threads=ManualThreads())
        reading, writing = self.access.read(5, 10), self.access.write(0, b"data")
        self.assertEqual(["read", "write"], self.threads.names())
        self.threads.run()
        self.assertEqual(pattern(SIZE)[5:15], self.successResultOf(reading))
        self.successResultOf(writing)
        self.assertEqual(b"data", self.disk.content[:4])


class QuickTests(Case):
    def test_the_disk_is_quick_at_first(self):
        self.assertTrue(self.access.quick)

    def test_a_disk_without_a_descriptor_is_not_quick(self):
        self.disk.descriptor = None
        self.assertFalse(self.access.quick)

    def test_a_disk_whose_calls_were_slow_is_not_quick(self):
        self.access.latency.slow_until = self.seconds() + 1
        self.assertFalse(self.access.quick)


class FlushTests(Case):
    def setUp(self):
        self.make(threads=ManualThreads())

    def test_a_flush_is_done_in_a_thread(self):
        flushing = self.access.flush()
        self.assertNoResult(flushing)
        self.threads.run()
        self.assertIsNone(self.successResultOf(flushing))
        self.assertEqual(["flush"], self.disk.names())

    def test_a_flush_asked_for_meanwhile_waits_for_the_next_one(self):
        first = self.access.flush()
        later = [self.access.flush() for _ in range(5)]
        self.assertEqual(["flush"], self.threads.names())
        self.threads.run(1)
        self.assertIsNone(self.successResultOf(first))
        for waiting in later:
            self.assertNoResult(waiting)
        self.assertEqual(["flush"], self.threads.names(), "one for all who wait")
        last = self.access.flush()
        self.threads.run(1)
        for waiting in later:
            self.assertIsNone(self.successResultOf(waiting))
        self.assertNoResult(last)
        self.threads.run(1)
        self.assertIsNone(self.successResultOf(last))
        self.assertEqual((["flush"] * 3, []), (self.disk.names(), self.threads.names()))

    def test_an_error_reaches_exactly_those_who_waited_for_that_flush(self):
        first = self.access.flush()
        later = [self.access.flush(), self.access.flush()]
        self.threads.run(1)
        self.successResultOf(first)
        last = self.access.flush()
        self.disk.fail("flush", eio(), times=None)
        self.threads.run(1)
        for waiting in later:
            self.assertEqual(errno.EIO, self.failureResultOf(waiting, OSError).value.errno)
        self.assertNoResult(last)
        self.disk.heal()
        self.threads.run(1)
        self.assertIsNone(self.successResultOf(last))

    def test_an_error_of_the_first_flush_does_not_fail_the_second(self):
        self.disk.fail("flush", eio(), times=None)
        first, second = self.access.flush(), self.access.flush()
        self.threads.run(1)
        self.failureResultOf(first, OSError)
        self.assertNoResult(second)
        self.disk.heal()
        self.threads.run()
        self.assertIsNone(self.successResultOf(second))

    def test_a_callback_of_one_flush_can_ask_for_the_next(self):
        asked = []
        self.access.flush().addCallback(lambda _: asked.append(self.access.flush()))
        self.threads.run(1)
        self.assertNoResult(asked[0])
        self.threads.run(1)
        self.assertIsNone(self.successResultOf(asked[0]))

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.sampled_from(["ask", "run", "fail"]), max_size=20))
    def test_each_request_waits_for_a_flush_that_began_after_it(self, steps):
        self.setUp()
        began = []
        real = self.disk.flush

        def flush():
            began.append(len(asked))
            real()

        self.disk.flush = flush
        asked = []
        for step in steps:
            if step == "ask":
                asked.append(self.access.flush())
            elif self.threads.waiting:
                # What was asked for after a flush was handed to a thread is not of it.
                self.disk.heal()
                if step == "fail":
                    self.disk.fail("flush", eio())
                waiting = [flushing for flushing in asked if not flushing.called]
                self.threads.run(1)
                for flushing in asked:
                    if flushing.called and flushing in waiting and step == "fail":
                        self.failureResultOf(flushing, OSError)
        self.disk.heal()
        self.threads.run()
        self.assertTrue(all(flushing.called for flushing in asked))
        self.assertLessEqual(len(began), len(asked))
        for flushing in asked:
            flushing.addErrback(lambda _: None)


class PrepareTests(Case):
    def test_without_holes_the_range_is_one_run_of_data(self):
        self.make(holes=[(0, SIZE)])
        self.assertEqual([Extent(5, 600_000, False)], self.prepare(5, 600_000, False))
        probes = [call[1:3] for call in self.disk.calls if call.method == "probe"]
        self.assertEqual([(5, PROBE_SIZE), (5 + PROBE_SIZE, PROBE_SIZE)], probes[:2])
        self.assertEqual(600_000, sum(length for _, length in probes))
        self.assertNotIn("extents", self.disk.names())

    def test_runs_are_clipped_to_the_range(self):
        self.make(holes=[(100_000, 300_000), (400_000, 900_000)])
        self.assertEqual(
            [
                Extent(50_000, 50_000, False),
                Extent(100_000, 200_000, True),
                Extent(300_000, 100_000, False),
                Extent(400_000, 100_000, True),
            ],
            self.prepare(50_000, 450_000),
        )
        self.assertEqual([Extent(150_000, 70_000, True)], self.prepare(150_000, 70_000))
        self.assertEqual(
            [Extent(230_000, 70_000, True), Extent(300_000, 1, False)],
            self.prepare(230_000, 70_001),
        )

    def test_short_holes_count_as_data(self):
        """Otherwise a reply could have a chunk for each message."""
        short = SHORTEST_HOLE - 1
        self.make(holes=[(at, at + short) for at in range(0, SIZE, SHORTEST_HOLE)])
        self.assertEqual([Extent(0, SIZE, False)], self.prepare(0, SIZE))
        self.make(holes=[(SHORTEST_HOLE, 2 * SHORTEST_HOLE)])
        self.assertEqual([False, True, False], [run.hole for run in self.prepare(0, SIZE)])

    def test_holes_are_not_probed(self):
        self.make(holes=[(PROBE_SIZE, SIZE)], bad=[(PROBE_SIZE, SIZE)])
        runs = self.prepare(0, SIZE)
        self.assertEqual([False, True], [run.hole for run in runs])

    def test_allocated_zeroes_merge_with_adjacent_holes(self):
        """Data merge with adjacent data, too."""
        content = bytearray(pattern(SIZE))
        content[PROBE_SIZE : 2 * PROBE_SIZE] = bytes(PROBE_SIZE)
        self.make(holes=[(2 * PROBE_SIZE, 3 * PROBE_SIZE)], content=content)
        self.assertEqual(
            [
                Extent(0, PROBE_SIZE, False),
                Extent(PROBE_SIZE, 2 * PROBE_SIZE, True),
                Extent(3 * PROBE_SIZE, SIZE - 3 * PROBE_SIZE, False),
            ],
            self.prepare(0, SIZE),
        )

    def test_adjacent_extents_of_one_kind_are_merged(self):
        self.disk.extents = lambda offset: iter(
            [
                Extent(offset, 100_000, True),
                Extent(offset + 100_000, 100_000, True),
                Extent(offset + 200_000, 500, False),
                Extent(offset + 200_500, SIZE, False),
            ]
        )
        self.assertEqual(
            [Extent(0, 200_000, True), Extent(200_000, 100_000, False)], self.prepare(0, 300_000)
        )

    def test_a_range_that_cannot_be_read_fails(self):
        self.make(bad=[(500_000, 500_001)])
        self.failureResultOf(self.access.prepare(0, SIZE, True), OSError)
        self.failureResultOf(self.access.prepare(0, SIZE, False), OSError)

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_runs_adjoin_alternate_and_cover_the_range(self, data):
        """Every hole reads as zeroes."""
        points = sorted(
            data.draw(st.lists(st.integers(0, SIZE), max_size=8, unique=True), label="points")
        )
        holes = list(zip(points[::2], points[1::2], strict=False))
        content = bytearray(pattern(SIZE))
        for at in data.draw(st.lists(st.integers(0, SIZE - 1), max_size=3)):
            length = len(content[at : at + PROBE_SIZE])
            content[at : at + length] = bytes(length)
        self.make(holes=holes, content=content)
        offset = data.draw(st.integers(0, SIZE - 1))
        length = data.draw(st.integers(1, SIZE - offset))
        with_holes = data.draw(st.booleans())
        runs = self.prepare(offset, length, with_holes)
        position = offset
        for run in runs:
            self.assertEqual(position, run.offset)
            self.assertGreater(run.length, 0)
            if run.hole:
                self.assertFalse(any(self.disk.content[run.offset : run.offset + run.length]))
            position += run.length
        self.assertEqual(offset + length, position)
        kinds = [run.hole for run in runs]
        self.assertTrue(all(one != two for one, two in pairwise(kinds)))
        if not with_holes:
            self.assertEqual([False], kinds)
        elif any(
            min(end, offset + length) - max(start, offset) >= SHORTEST_HOLE for start, end in holes
        ):
            self.assertIn(True, kinds)


class ReadyTests(Case):
    """Known layout only widens what may be sent as data."""

    def test_nothing_is_ready_at_first(self):
        self.assertFalse(self.access.is_ready(0, 1000, True))
        self.assertTrue(self.access.is_ready(0, 1000, False))

    def test_an_extent_that_was_found_to_be_data_is_ready(self):
        self.make(holes=[(1_000_000, 1_100_000)])
        self.prepare(0, 300_000)
        self.assertTrue(self.access.is_ready(0, 1_000_000, True), "the whole extent is data")
        self.assertTrue(self.access.is_ready(999_999, 1, True))
        for offset, length in ((0, 1_000_001), (999_999, 2), (1_000_000, 1), (2_000_000, 1000)):
            self.assertFalse(self.access.is_ready(offset, length, True))

    def test_known_data_is_extended_by_what_touches_it(self):
        self.make(holes=[(0, 100_000)])
        self.prepare(200_000, 100_000)
        self.assertTrue(self.access.is_ready(200_000, SIZE - 200_000, True))
        self.assertFalse(self.access.is_ready(199_999, 1000, True))
        self.prepare(100_000, 100_000)
        self.assertTrue(self.access.is_ready(100_000, SIZE - 100_000, True), "they touch")

    def test_data_found_elsewhere_replaces_what_was_known(self):
        self.make(holes=[(1_000_000, 1_100_000)])
        self.prepare(0, 1000)
        self.prepare(2_000_000, 1000)
        self.assertTrue(self.access.is_ready(2_000_000, 5000, True))
        self.assertFalse(self.access.is_ready(0, 1000, True))

    def test_zeroes_are_never_known_as_data(self):
        """Neither holes nor what reads as zeroes."""
        self.make(content=bytes(SIZE))
        self.prepare(0, SIZE)
        self.assertFalse(self.access.is_ready(0, 1000, True))
        content = bytearray(pattern(SIZE))
        content[PROBE_SIZE : 2 * PROBE_SIZE] = bytes(PROBE_SIZE)
        self.make(content=content)
        self.prepare(0, 4 * PROBE_SIZE)
        self.assertFalse(self.access.is_ready(PROBE_SIZE, 1000, True))
        self.make(holes=[(0, SIZE)])
        self.prepare(0, SIZE)
        self.assertFalse(self.access.is_ready(0, 1000, True))

    def test_nothing_is_ready_after_the_layout_is_forgotten(self):
        self.prepare(0, 1000)
        self.assertTrue(self.access.is_ready(0, SIZE, True))
        self.access.forget_layout()
        self.assertFalse(self.access.is_ready(0, 1, True))
        self.prepare(1000, 1000)
        self.assertTrue(self.access.is_ready(1000, 1000, True))
        self.assertFalse(self.access.is_ready(0, 1, True))

    def test_a_range_outside_the_page_cache_is_not_ready(self):
        self.prepare(0, 1000)
        self.kernel.cold = EAGAIN
        for with_holes in (False, True):
            self.assertFalse(self.access.is_ready(0, 1000, with_holes))

    def test_the_page_cache_is_checked_over_the_whole_range(self):
        """To the last byte and not beyond."""
        self.kernel.asked.clear()
        self.assertTrue(self.access.is_ready(1000, 1_000_000, False))
        looked = [offset for offset, _, _ in self.kernel.asked]
        self.assertEqual(1_000_999, looked[-1])
        steps = [two - one for one, two in zip([999, *looked], looked, strict=False)]
        self.assertLessEqual(max(steps), PROBE_SIZE)
        self.assertTrue(all(length == 1 for _, length, _ in self.kernel.asked))

    def test_a_partly_cached_range_is_not_ready(self):
        for cold in (0, 1, 2, 3):
            self.make()
            self.kernel.preads.extend([None] * cold + [EAGAIN])
            self.assertFalse(self.access.is_ready(0, 1_000_000, False))

    def test_nothing_is_ready_on_a_disk_without_a_descriptor(self):
        self.disk.descriptor = None
        self.assertFalse(self.access.is_ready(0, 1000, False))

    def test_nothing_is_ready_after_reads_have_failed_twice(self):
        self.prepare(0, 1000)
        self.assertFalse(self.access.reads_first)
        for _ in range(2):
            self.access.read_failed(eio())
        self.assertTrue(self.access.reads_first)
        for with_holes in (False, True):
            self.assertFalse(self.access.is_ready(0, 1000, with_holes))


class StatusTests(Case):
    def status(self, offset=0, length=SIZE, one=False):
        return self.successResultOf(self.access.status(offset, length, one))

    def test_a_disk_without_holes_is_one_data_extent(self):
        self.assertEqual([(SIZE, 0)], self.status())
        self.assertEqual([(1000, 0)], self.status(5, 1000))

    def test_holes_are_reported_with_their_exact_lengths(self):
        self.make(holes=[(1000, 3000)])
        self.assertEqual([(1000, 0), (2000, HOLE), (SIZE - 3000, 0)], self.status())
        self.assertEqual([(500, 0), (2000, HOLE), (1, 0)], self.status(500, 2501))
        self.assertEqual([(500, 0), (2000, HOLE)], self.status(500, 2500))
        self.assertEqual([(100, HOLE)], self.status(2000, 100))

    def test_only_the_first_extent_is_returned_when_one_is_asked_for(self):
        self.make(holes=[(1000, 3000)])
        self.assertEqual([(1000, 0)], self.status(one=True))
        self.assertEqual([(300, 0)], self.status(100, 300, one=True))
        self.assertEqual([(1000, HOLE)], self.status(2000, 5000, one=True))

    def test_the_number_of_extents_is_bounded(self):
        """A fragmented disk is reported in part, and the client asks again."""
        self.make(holes=[(i, i + 1) for i in range(1, 200_000, 2)])
        found = self.status()
        self.assertLessEqual(len(found), 1 << 20)
        self.assertGreater(len(found), 1000)
        self.assertLess(len(found), 100_000)
        self.assertTrue(all(length == 1 for length, _ in found))

    def test_extents_are_looked_up_in_a_thread(self):
        self.make(threads=ManualThreads())
        asking = self.access.status(0, 10, False)
        self.assertNoResult(asking)
        self.threads.run()
        self.assertEqual([(10, 0)], self.successResultOf(asking))

    def test_an_error_of_the_lookup_fails_the_request(self):
        self.disk.fail("extents", eio(), times=None)
        self.failureResultOf(self.access.status(0, 10, False), OSError)

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_extents_agree_with_the_holes_of_the_disk(self, data):
        points = sorted(data.draw(st.lists(st.integers(0, SIZE), max_size=8, unique=True)))
        self.make(holes=list(zip(points[::2], points[1::2], strict=False)))
        offset = data.draw(st.integers(0, SIZE - 1))
        length = data.draw(st.integers(1, SIZE - offset))
        found = self.status(offset, length)
        self.assertEqual(length, sum(count for count, _ in found))
        position = offset
        for count, state in found:
            self.assertGreater(count, 0)
            at = next(self.disk.extents(position))
            self.assertEqual(HOLE if at.hole else 0, state)
            position += count
