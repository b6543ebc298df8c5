"""Coverage, compared with a bytearray, and its bounds."""

from __future__ import annotations

import itertools
import random
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import Coverage
from blockmig.storage.coverage import BLOCK

# Edges where mistakes are made: around block limits, and anywhere.
SIZE = 3 * BLOCK + 777
edges = st.one_of(
    st.integers(0, SIZE),
    st.builds(
        lambda block, more: min(max(block * BLOCK + more, 0), SIZE),
        st.integers(0, 4),
        st.integers(-2, 2),
    ),
)
ranges = st.tuples(edges, edges).map(sorted).filter(lambda r: r[0] < r[1])


class ModelTests(SynchronousTestCase):
    @settings(max_examples=150)
    @given(st.lists(ranges, max_size=40))
    def test_coverage_agrees_with_a_bytearray(self, added):
        model = bytearray(SIZE)
        coverage = Coverage(SIZE)
        self.assertEqual((0, False), (coverage.covered, coverage.complete))
        for start, end in added:
            coverage.add(start, end - start)
            model[start:end] = b"\1" * (end - start)
            self.assertEqual(model.count(1), coverage.covered)
            self.assertEqual(model.count(1) == SIZE, coverage.complete)

    @settings(max_examples=100)
    @given(st.lists(ranges, max_size=20), ranges)
    def test_what_is_missing_agrees_with_a_bytearray(self, added, asked):
        model = bytearray(SIZE)
        coverage = Coverage(SIZE)
        for start, end in added:
            coverage.add(start, end - start)
            model[start:end] = b"\1" * (end - start)
        start, end = asked
        self.assertEqual(model[start:end].count(0), coverage.missing(start, end - start))

    @settings(max_examples=150)
    @given(st.lists(st.lists(st.one_of(ranges, st.none()), max_size=20), max_size=5), st.data())
    def test_a_batch_of_ranges_covers_what_each_of_them_does(self, batches, data):
        """Where there is None a range follows that begins where the last one has ended."""
        model = bytearray(SIZE)
        coverage = Coverage(SIZE)
        for batch in batches:
            added, end = [], 0
            for chosen in batch:
                if chosen is None and end == SIZE:
                    continue
                start, end = chosen or (end, data.draw(st.integers(end + 1, SIZE)))
                added.append((start, end - start))
                model[start:end] = b"\1" * (end - start)
            coverage.add_all(added)
            self.assertEqual(model.count(1), coverage.covered)

    def test_ranges_that_follow_each_other_in_a_batch_are_added_as_one(self):
        coverage = Coverage(SIZE)
        with mock.patch.object(coverage, "add", wraps=coverage.add) as add:
            coverage.add_all([(10, 5), (15, 3), (18, 2), (30, 1), (31, 9), (0, 10)])
        self.assertEqual(
            [mock.call(10, 10), mock.call(30, 10), mock.call(0, 10)], add.call_args_list
        )
        self.assertEqual(30, coverage.covered)

    @settings(max_examples=60)
    @given(st.lists(edges, max_size=30), st.integers(0, 10**6))
    def test_pieces_in_any_order_complete_the_coverage(self, cuts, seed):
        cuts = sorted({0, SIZE, *cuts})
        pieces = list(itertools.pairwise(cuts))
        random.Random(seed).shuffle(pieces)
        coverage = Coverage(SIZE)
        for start, end in pieces:
            self.assertFalse(coverage.complete)
            coverage.add(start, end - start)
        self.assertTrue(coverage.complete)

    def test_coverage_is_incomplete_while_one_byte_is_missing(self):
        for hole in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1, SIZE - 1):
            coverage = Coverage(SIZE)
            if hole:
                coverage.add(0, hole)
            if hole < SIZE - 1:
                coverage.add(hole + 1, SIZE - hole - 1)
            self.assertEqual((SIZE - 1, False), (coverage.covered, coverage.complete))
            coverage.add(hole, 1)
            self.assertTrue(coverage.complete)

    def test_disks_of_about_one_block_are_covered_completely(self):
        for size in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1):
            coverage = Coverage(size)
            coverage.add(0, size)
            coverage.add(0, size)
            self.assertEqual((size, True), (coverage.covered, coverage.complete))


class BoundTests(SynchronousTestCase):
    def test_too_many_ranges_within_a_block_are_never_overcounted(self):
        """Every second byte: more ranges than are kept."""
        coverage = Coverage(BLOCK)
        for true, offset in enumerate(range(0, 2000, 2), 1):
            coverage.add(offset, 1)
            self.assertLessEqual(coverage.covered, true)
            self.assertLessEqual(sum(map(len, coverage._partial.values())), 65)
        self.assertFalse(coverage.complete)
        coverage.add(0, BLOCK)
        self.assertTrue(coverage.complete)

    def test_too_many_partly_covered_blocks_are_forgotten(self):
        with mock.patch("blockmig.storage.coverage.PARTIAL_BLOCKS", 16):
            coverage = Coverage(1000 * BLOCK)
            for block in range(1000):
                coverage.add(block * BLOCK + 5, 10)
                self.assertLessEqual(len(coverage._partial), 16)
            self.assertEqual(160, coverage.covered)
            # What was forgotten must be sent again, to the last byte.
            for block in range(1000):
                coverage.add(block * BLOCK, 5)
                coverage.add(block * BLOCK + 15, BLOCK - 15)
            self.assertFalse(coverage.complete)
            coverage.add(0, 1000 * BLOCK)
            self.assertTrue(coverage.complete)

    @settings(max_examples=100)
    @given(st.lists(ranges, max_size=60))
    def test_forgotten_ranges_are_never_overcounted(self, added):
        with (
            mock.patch("blockmig.storage.coverage.PARTIAL_BLOCKS", 2),
            mock.patch("blockmig.storage.coverage._RANGES", 2),
        ):
            model = bytearray(SIZE)
            coverage = Coverage(SIZE)
            for start, end in added:
                coverage.add(start, end - start)
                model[start:end] = b"\1" * (end - start)
                self.assertLessEqual(0, coverage.covered)
                self.assertLessEqual(coverage.covered, model.count(1))
            coverage.add(0, SIZE)
            self.assertTrue(coverage.complete)

    def test_a_16_TiB_disk_takes_32_MiB_of_memory(self):
        coverage = Coverage(16 << 40)
        self.assertEqual(32 << 20, coverage._whole.nbytes)
