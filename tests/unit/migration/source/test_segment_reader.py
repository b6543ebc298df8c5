"""Segments that are read before they are sent: in order, whole, and cut where zeroes begin."""

from __future__ import annotations

import errno

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.source.segment_reader import SegmentReader
from blockmig.storage import Segment, split_data
from blockmig.testing import ManualThreads, MemoryDisk
from blockmig.transport import PIECE

STEP = 4096


def content(*runs):
    """Runs of C{STEP}: True is data."""
    return b"".join((b"x" if data else b"\0") * STEP for data in runs)


class SplitTests(SynchronousTestCase):
    def split(self, data, step=STEP, offset=1000):
        found = split_data(Segment(offset, len(data), False, True), memoryview(data), step)
        return [(s.offset - offset, s.length, s.zero) for s in found]

    def test_runs_of_a_kind_are_joined(self):
        self.assertEqual(
            [(0, 2 * STEP, False), (2 * STEP, STEP, True), (3 * STEP, STEP, False)],
            self.split(content(1, 1, 0, 1)),
        )

    def test_all_of_one_kind_is_one_segment(self):
        self.assertEqual([(0, 3 * STEP, True)], self.split(content(0, 0, 0)))
        self.assertEqual([(0, 3 * STEP, False)], self.split(content(1, 1, 1)))

    def test_the_last_run_may_be_short(self):
        self.assertEqual([(0, STEP, False), (STEP, 5, True)], self.split(content(1) + bytes(5)))

    def test_zeroes_that_are_shorter_than_a_step_are_data(self):
        self.assertEqual([(0, STEP, False)], self.split(bytes(STEP - 1) + b"x"))

    def test_data_has_its_bytes_and_zeroes_have_none(self):
        data = b"abcd" * 1024 + bytes(STEP)
        one, other = split_data(Segment(0, 2 * STEP, False, True), memoryview(data), STEP)
        self.assertEqual((data[:STEP], None), (bytes(one.data), other.data))
        self.assertEqual((True, True), (one.cold, other.cold))


class SegmentReaderTests(SynchronousTestCase):
    def setUp(self):
        self.threads = ManualThreads()
        self.ready = 0

    def make(self, data, step=STEP):
        self.disk = MemoryDisk(data)
        self.reader = SegmentReader(
            self.disk, self.threads, step=step, cold=True, ready=self.is_ready
        )

    def is_ready(self):
        self.ready += 1

    def take_all(self):
        found = []
        while self.reader.waiting:
            if not (taken := self.reader.take()):
                self.threads.run(1)
            found += taken
        return found

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(st.booleans(), min_size=1, max_size=600),
        st.lists(st.integers(1, 700), max_size=8),
        st.booleans(),
    )
    def test_the_segments_make_up_the_disk(self, runs, cuts, finds):
        """Whatever the scan has cut it into, and whether or not zeroes are looked for."""
        self.setUp()
        data = content(*runs)
        self.make(data, STEP if finds else None)
        ends = sorted({min(cut * STEP, len(data)) for cut in cuts} | {len(data)})
        start = 0
        for number, end in enumerate(ends):
            hole = not number % 3 and not any(data[start:end])
            self.reader.add([Segment(start, end - start, hole)])
            start = end
        position = 0
        for segment in self.take_all():
            self.assertEqual(position, segment.offset)
            position = segment.end
            if segment.zero:
                self.assertFalse(any(data[segment.offset : segment.end]))
            else:
                self.assertEqual(data[segment.offset : segment.end], bytes(segment.data))
                self.assertLessEqual(segment.length, PIECE)
        self.assertEqual(len(data), position)

    def test_a_segment_that_is_longer_than_a_piece_is_given_out_in_parts(self):
        self.make(b"x" * (2 * PIECE + 5))
        self.reader.add([Segment(0, 2 * PIECE + 5, False)])
        self.assertEqual([PIECE, PIECE, 5], [segment.length for segment in self.take_all()])

    def test_nothing_is_given_out_before_it_was_read(self):
        self.make(content(1))
        self.reader.add([Segment(0, STEP, False)])
        self.assertEqual([], self.reader.take())
        self.threads.run()
        self.assertEqual(1, self.ready)
        self.assertEqual(1, len(self.reader.take()))
        self.assertEqual([], self.reader.take())

    def test_zeroes_are_given_out_at_once(self):
        self.make(content(0, 1))
        self.reader.add([Segment(0, STEP, True), Segment(STEP, STEP, False)])
        self.assertEqual([Segment(0, STEP, True)], self.reader.take())

    def test_an_error_comes_when_it_is_its_turn(self):
        self.make(content(0, 1))
        self.disk.fail("read", OSError(errno.EIO, "bad"))
        self.reader.add([Segment(0, STEP, True), Segment(STEP, STEP, False)])
        self.threads.run()
        self.reader.take()
        self.assertRaises(OSError, self.reader.take)

    def test_nothing_is_read_after_the_stop(self):
        self.make(content(1))
        self.reader.add([Segment(0, STEP, False)])
        self.reader.take()
        self.reader.stop()
        self.threads.run()
        self.assertEqual(([], 0, 0), (self.disk.calls, self.ready, self.reader.waiting))
