"""Regions of a disk without a descriptor: read in threads, ahead, and given out in order."""

from __future__ import annotations

import errno
import random

from twisted.trial.unittest import SynchronousTestCase

from blockmig.testing import ManualThreads, MemoryDisk, synchronous
from blockmig.transport import FileRegion, read_ahead
from blockmig.transport.read_ahead import MOST_PIECES, ReadAhead

PIECE = 65536
SIZE = 8 * PIECE


class Case(SynchronousTestCase):
    def setUp(self):
        self.patch(read_ahead, "PIECE", PIECE)
        self.disk = MemoryDisk(random.Random(1).randbytes(PIECE) * 8)
        self.threads = ManualThreads()
        self.ready = 0
        self.reading = ReadAhead(self.threads, self.is_ready)

    def is_ready(self):
        self.ready += 1

    def add(self, offset=0, length=SIZE):
        self.reading.add(FileRegion(self.disk, offset, length))

    def reads(self):
        return [(call.offset, call.length) for call in self.disk.calls]

    def take_all(self, length):
        taken = b""
        while len(taken) < length:
            while not self.reading.is_ready:
                self.threads.run(1)
            taken += self.reading.take(10_001)
        return taken


class SizeTests(SynchronousTestCase):
    def test_all_pieces_together_take_at_most_four_MiB(self):
        self.assertEqual(4 << 20, read_ahead.PIECE * MOST_PIECES)


class ReadAheadTests(Case):
    def test_what_is_given_out_is_what_the_disk_has(self):
        self.add(5, SIZE - 9)
        self.assertEqual(self.disk.peek(5, SIZE - 9), self.take_all(SIZE - 9))

    def test_at_most_four_pieces_are_read_at_a_time(self):
        self.add()
        self.assertEqual(MOST_PIECES, len(self.threads.waiting))

    def test_pieces_that_were_not_sent_count(self):
        self.add()
        self.threads.run()
        self.assertEqual(MOST_PIECES, len(self.disk.calls))
        self.reading.take(PIECE - 1)
        self.assertEqual([], self.threads.waiting)
        self.reading.take(PIECE)
        self.assertEqual(1, len(self.threads.waiting))

    def test_a_piece_ends_at_a_multiple_of_its_size(self):
        self.add(PIECE - 100, 2 * PIECE)
        self.threads.run()
        self.assertEqual(
            [(PIECE - 100, 100), (PIECE, PIECE), (2 * PIECE, PIECE - 100)], self.reads()
        )

    def test_pieces_that_are_read_out_of_order_are_given_out_in_order(self):
        self.add(0, 3 * PIECE)
        self.threads.rotate()
        self.threads.run(1)
        self.assertEqual([(2 * PIECE, PIECE)], self.reads())
        self.assertFalse(self.reading.is_ready)
        self.assertEqual(self.disk.peek(0, 3 * PIECE), self.take_all(3 * PIECE))

    def test_several_regions_are_read_in_their_order(self):
        for offset in (700, 50, 9000):
            self.add(offset, 10)
        self.assertEqual(
            b"".join(self.disk.peek(offset, 10) for offset in (700, 50, 9000)), self.take_all(30)
        )

    def test_whoever_waits_is_notified_once_when_the_first_piece_is_there(self):
        self.add(0, 2 * PIECE)
        self.reading.wait()
        self.threads.rotate()
        self.threads.run(1)
        self.assertEqual((0, True), (self.ready, self.reading.is_waiting))
        self.threads.run()
        self.assertEqual((1, False), (self.ready, self.reading.is_waiting))

    def test_who_does_not_wait_is_not_notified(self):
        self.add()
        self.threads.run()
        self.assertEqual(0, self.ready)

    def test_threads_that_are_done_at_once_notify_nobody(self):
        self.reading = ReadAhead(synchronous, self.is_ready)
        self.add()
        self.assertEqual(self.disk.peek(0, SIZE), self.take_all(SIZE))
        self.assertEqual(0, self.ready)

    def test_an_error_comes_after_everything_before_it(self):
        self.disk.fail("read", OSError(errno.EIO, "bad"), within=range(PIECE, PIECE + 1))
        self.add(0, 3 * PIECE)
        self.threads.rotate(2)
        self.threads.run()
        self.assertEqual(self.disk.peek(0, PIECE), self.take_all(PIECE))
        for _ in range(2):
            self.assertEqual(errno.EIO, self.assertRaises(OSError, self.reading.take, 5).errno)

    def test_the_rest_of_a_region_can_be_dropped_before_it_was_read(self):
        self.add(0, 6 * PIECE)
        self.add(7, 5)
        self.threads.run(1)
        self.reading.take(100)
        self.reading.drop(6 * PIECE - 100)
        self.assertEqual(self.disk.peek(7, 5), self.take_all(5))
        # Nobody reads what was dropped.
        self.assertEqual([(0, PIECE), (7, 5)], self.reads())

    def test_whoever_waits_behind_dropped_reads_is_notified(self):
        """Their threads are still busy, and more than four would be too many."""
        self.add(0, 4 * PIECE)
        self.add(7, 5)
        self.reading.drop(4 * PIECE)
        self.assertFalse(self.reading.is_ready)
        self.assertEqual(MOST_PIECES, len(self.threads.waiting))
        self.reading.wait()
        self.threads.run()
        self.assertEqual(1, self.ready)
        self.assertEqual(self.disk.peek(7, 5), bytes(self.reading.take(10)))

    def test_nothing_happens_after_the_stop(self):
        self.add()
        self.reading.wait()
        self.reading.stop()
        self.threads.run()
        self.assertEqual(([], 0, False), (self.reads(), self.ready, self.reading.is_waiting))

    def test_a_read_that_fails_after_the_stop_is_dropped(self):
        self.disk.fail("read", OSError(errno.EIO, "bad"), times=None)
        self.add()
        self.threads.run(1)
        self.reading.stop()
        self.threads.run()
        self.assertEqual(0, self.ready)
