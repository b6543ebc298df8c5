"""What is written back of a receiver's disk, and how much at a time (write_behind.py)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.destination.write_behind import WriteBehind
from blockmig.testing import synchronous

WINDOW = 32 << 20
MIB = 1 << 20


class Disk:
    """Notes what is written back without waiting."""

    def __init__(self):
        self.begun = []

    def write_back(self, offset, length, wait):
        if not wait:
            self.begun.append((offset, length))


class RangesTests(SynchronousTestCase):
    def setUp(self):
        self.disk = Disk()
        self.write_behind = WriteBehind(
            self.disk,
            synchronous,
            behind=lambda: None,
            caught_up=lambda: None,
            failed=lambda error: None,
        )

    def written_back(self, *ranges):
        """What is written back once these were written, and enough somewhere else."""
        for offset, length in ranges:
            self.write_behind.wrote(offset, length)
        self.write_behind.wrote(1 << 40, WINDOW)
        *found, last = self.disk.begun
        self.assertEqual((1 << 40, WINDOW), last)
        return found

    def test_adjacent_ranges_are_one(self):
        self.assertEqual([(0, 8192)], self.written_back((0, 4096), (4096, 4096)))

    def test_ranges_near_each_other_are_one(self):
        self.assertEqual([(0, MIB + 8192)], self.written_back((0, 4096), (MIB + 4096, 4096)))

    def test_ranges_far_from_each_other_are_two(self):
        ranges = [(0, 4096), (MIB + 4097, 4096)]
        self.assertEqual(ranges, self.written_back(*ranges))

    def test_a_range_before_the_last_one_is_another(self):
        ranges = [(8192, 4096), (0, 4096)]
        self.assertEqual(ranges, self.written_back(*ranges))

    def test_what_is_between_them_does_not_fill_a_window(self):
        for offset in range(0, 2 * WINDOW, MIB):
            self.write_behind.wrote(offset, 4096)
        self.assertEqual([], self.disk.begun)

    def test_many_ranges_do(self):
        """However short they are: each is kept in memory until it is written back."""
        scattered = [(2 * MIB * number, 4096) for number in range(256)]
        for offset, length in scattered:
            self.assertEqual([], self.disk.begun)
            self.write_behind.wrote(offset, length)
        self.assertEqual(scattered, self.disk.begun)
