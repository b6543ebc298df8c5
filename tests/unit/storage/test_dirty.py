"""The dirty map: a marked range stays dirty until it is taken, once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import GRANULARITY, DirtyMap, TouchedMap

KIB = 1024


def grains(offset, length):
    return set(range(offset // GRANULARITY, (offset + length - 1) // GRANULARITY + 1))


class Model:
    """A set of blocks."""

    def __init__(self, size):
        self.size = size
        self.dirty = set()
        self.marked = 0

    def mark(self, offset, length):
        new = grains(offset, length) - self.dirty
        self.dirty |= new
        self.marked += len(new) * GRANULARITY

    def mark_all(self):
        self.dirty = grains(0, self.size)

    def take(self, position, most):
        first = min(
            (grain for grain in self.dirty if grain * GRANULARITY >= position), default=None
        )
        if first is None:
            return None
        stop = first
        while stop in self.dirty and (stop - first) * GRANULARITY < most:
            self.dirty.remove(stop)
            stop += 1
        return first * GRANULARITY, min(stop * GRANULARITY, self.size)

    @property
    def bytes(self):
        return min(len(self.dirty) * GRANULARITY, self.size)


# How far behind the start of a grain something lies.
BYTES = st.sampled_from([0, 1, GRANULARITY - 1])
SIZES = st.tuples(st.integers(1, 20), BYTES).map(lambda size: size[0] * GRANULARITY + size[1])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["mark", "mark", "mark", "take", "take", "all"]),
        st.integers(0, 20),
        BYTES,
        st.integers(0, 8),
    ),
    min_size=5,
    max_size=40,
)


class DirtyMapTests(SynchronousTestCase):
    @settings(max_examples=400, deadline=None)
    @given(SIZES, STEPS)
    def test_the_dirty_map_agrees_with_a_set_of_blocks(self, size, steps):
        dirty, model = DirtyMap(size), Model(size)
        for what, grain, extra, count in steps:
            if what == "mark":
                offset = min(grain * GRANULARITY + extra, size - 1)
                length = min(1 + count * GRANULARITY, size - offset)
                dirty.mark(offset, length)
                model.mark(offset, length)
            elif what == "all":
                dirty.mark_all()
                model.mark_all()
            else:
                position = min(grain * GRANULARITY, size)
                most = (1 + count) * GRANULARITY
                self.assertEqual(model.take(position, most), dirty.take(position, most))
            self.assertEqual((model.bytes, model.marked), (dirty.bytes, dirty.marked))
        self.assertEqual(self.all_of(model), self.all_of(dirty))

    def all_of(self, dirty):
        found = []
        position = 0
        while (taken := dirty.take(position, 3 * GRANULARITY)) is not None:
            found.append(taken)
            position = taken[1]
        return found

    def test_nothing_is_dirty_at_first(self):
        dirty = DirtyMap(GRANULARITY * 3)
        self.assertEqual((0, 0, None), (dirty.bytes, dirty.marked, dirty.take(0, GRANULARITY)))

    def test_one_byte_makes_its_whole_block_dirty(self):
        for at in (GRANULARITY, GRANULARITY + 1, 2 * GRANULARITY - 1):
            dirty = DirtyMap(GRANULARITY * 3)
            dirty.mark(at, 1)
            self.assertEqual((GRANULARITY, GRANULARITY), (dirty.bytes, dirty.marked))
            self.assertEqual((GRANULARITY, 2 * GRANULARITY), dirty.take(0, 9 * GRANULARITY))

    def test_two_bytes_across_a_boundary_make_both_blocks_dirty(self):
        dirty = DirtyMap(GRANULARITY * 3)
        dirty.mark(GRANULARITY - 1, 2)
        self.assertEqual((0, 2 * GRANULARITY), dirty.take(0, 9 * GRANULARITY))

    def test_a_dirty_block_is_taken_once_until_it_is_marked_again(self):
        dirty = DirtyMap(GRANULARITY * 3)
        dirty.mark(0, GRANULARITY)
        self.assertEqual((0, GRANULARITY), dirty.take(0, GRANULARITY))
        self.assertIsNone(dirty.take(0, GRANULARITY))
        self.assertEqual(0, dirty.bytes)
        dirty.mark(5, 5)
        self.assertEqual(
            (GRANULARITY, 2 * GRANULARITY), (dirty.bytes, dirty.marked), "it is dirty again"
        )
        self.assertEqual((0, GRANULARITY), dirty.take(0, GRANULARITY))

    def test_the_rest_of_a_long_run_stays_dirty(self):
        dirty = DirtyMap(GRANULARITY * 5)
        dirty.mark_all()
        self.assertEqual((0, 2 * GRANULARITY), dirty.take(0, 2 * GRANULARITY))
        self.assertEqual(3 * GRANULARITY, dirty.bytes)
        self.assertEqual(
            (2 * GRANULARITY, 5 * GRANULARITY), dirty.take(2 * GRANULARITY, 99 * GRANULARITY)
        )

    def test_no_more_is_taken_than_was_asked_for(self):
        dirty = DirtyMap(GRANULARITY * 9)
        dirty.mark(0, 5 * GRANULARITY)
        self.assertEqual((0, 2 * GRANULARITY), dirty.take(0, 2 * GRANULARITY))
        self.assertEqual(3 * GRANULARITY, dirty.bytes)

    def test_taking_starts_at_the_given_position(self):
        dirty = DirtyMap(GRANULARITY * 5)
        dirty.mark(0, 1)
        dirty.mark(3 * GRANULARITY, 1)
        self.assertEqual((3 * GRANULARITY, 4 * GRANULARITY), dirty.take(GRANULARITY, GRANULARITY))
        self.assertIsNone(
            dirty.take(GRANULARITY, GRANULARITY), "what lies before it is for the next pass"
        )
        self.assertEqual((0, GRANULARITY), dirty.take(0, GRANULARITY))

    def test_the_last_dirty_range_ends_where_the_disk_ends(self):
        size = 3 * GRANULARITY + 5
        dirty = DirtyMap(size)
        dirty.mark(size - 1, 1)
        self.assertEqual((GRANULARITY, None), (dirty.bytes, dirty.take(size, GRANULARITY)))
        self.assertEqual((3 * GRANULARITY, size), dirty.take(0, 9 * GRANULARITY))
        dirty.mark_all()
        self.assertEqual(size, dirty.bytes)
        self.assertEqual((0, size), dirty.take(0, 9 * GRANULARITY))

    def test_marking_everything_does_not_count_as_client_changes(self):
        dirty = DirtyMap(GRANULARITY * 3)
        dirty.mark_all()
        self.assertEqual((3 * GRANULARITY, 0), (dirty.bytes, dirty.marked))
        dirty.mark(0, 3 * GRANULARITY)
        self.assertEqual((3 * GRANULARITY, 0), (dirty.bytes, dirty.marked), "it was dirty already")

    def test_marking_a_dirty_block_again_does_not_count_again(self):
        dirty = DirtyMap(GRANULARITY * 9)
        dirty.mark(GRANULARITY, 2 * GRANULARITY)
        dirty.mark(0, 5 * GRANULARITY)
        self.assertEqual((5 * GRANULARITY, 5 * GRANULARITY), (dirty.bytes, dirty.marked))

    def test_marked_zeroes_are_dirty_but_do_not_count_as_client_changes(self):
        dirty = DirtyMap(GRANULARITY * 9)
        dirty.mark(0, 1, False)
        dirty.mark(GRANULARITY, 3 * GRANULARITY, False)
        self.assertEqual((4 * GRANULARITY, 0), (dirty.bytes, dirty.marked))
        dirty.mark(0, 5 * GRANULARITY)
        self.assertEqual((5 * GRANULARITY, GRANULARITY), (dirty.bytes, dirty.marked))
        self.assertEqual((0, 5 * GRANULARITY), dirty.take(0, 9 * GRANULARITY))

    def test_a_disk_of_one_byte_can_be_dirty(self):
        dirty = DirtyMap(1)
        dirty.mark(0, 1)
        self.assertEqual((1, (0, 1)), (dirty.bytes, dirty.take(0, GRANULARITY)))

    def test_dirty_blocks_of_a_16_TiB_disk_are_found(self):
        size = 16 << 40
        dirty = DirtyMap(size)
        dirty.mark(size - 1, 1)
        dirty.mark(5 << 40, GRANULARITY)
        self.assertEqual((5 << 40, (5 << 40) + GRANULARITY), dirty.take(0, 64 << 20))
        self.assertEqual((size - GRANULARITY, size), dirty.take((5 << 40) + GRANULARITY, 64 << 20))
        self.assertEqual(0, dirty.bytes)


class TouchedTests(SynchronousTestCase):
    @given(
        st.lists(st.tuples(st.integers(0, 3 << 20), st.integers(1, 1 << 20)), max_size=30),
        st.integers(0, 30),
    )
    def test_what_is_touched_twice_counts_once(self, changes, restart):
        """But all of it counts as written."""
        size = 4 << 20
        touched, model, written = TouchedMap(size), set(), 0
        for number, (offset, length) in enumerate(changes):
            if number == restart:
                touched.restart()
                model.clear()
            touched.touch(offset, length)
            model |= grains(offset, length)
            written += len(grains(offset, length)) * GRANULARITY
            self.assertEqual((len(model) * GRANULARITY, written), (touched.bytes, touched.written))
