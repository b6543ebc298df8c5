"""The dirty map: what is marked stays so until it is taken, once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import GRANULARITY, DirtyMap

KIB = 1024


def grains(offset, length):
    return set(range(offset // GRANULARITY, (offset + length - 1) // GRANULARITY + 1))


class Model:
    """A set of grains."""

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


class DirtyTests(SynchronousTestCase):
    @settings(max_examples=400, deadline=None)
    @given(SIZES, STEPS)
    def test_as_a_set_of_grains(self, size, steps):
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

    def test_nothing_at_first(self):
        dirty = DirtyMap(GRANULARITY * 3)
        self.assertEqual((0, 0, None), (dirty.bytes, dirty.marked, dirty.take(0, GRANULARITY)))

    def test_a_byte_makes_all_of_its_grain_dirty(self):
        for at in (GRANULARITY, GRANULARITY + 1, 2 * GRANULARITY - 1):
            dirty = DirtyMap(GRANULARITY * 3)
            dirty.mark(at, 1)
            self.assertEqual((GRANULARITY, GRANULARITY), (dirty.bytes, dirty.marked))
            self.assertEqual((GRANULARITY, 2 * GRANULARITY), dirty.take(0, 9 * GRANULARITY))

    def test_two_bytes_across(self):
        dirty = DirtyMap(GRANULARITY * 3)
        dirty.mark(GRANULARITY - 1, 2)
        self.assertEqual((0, 2 * GRANULARITY), dirty.take(0, 9 * GRANULARITY))

    def test_taken_once(self):
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

    def test_the_rest_of_a_long_run_stays(self):
        dirty = DirtyMap(GRANULARITY * 5)
        dirty.mark_all()
        self.assertEqual((0, 2 * GRANULARITY), dirty.take(0, 2 * GRANULARITY))
        self.assertEqual(3 * GRANULARITY, dirty.bytes)
        self.assertEqual(
            (2 * GRANULARITY, 5 * GRANULARITY), dirty.take(2 * GRANULARITY, 99 * GRANULARITY)
        )

    def test_no_more_than_asked_for(self):
        dirty = DirtyMap(GRANULARITY * 9)
        dirty.mark(0, 5 * GRANULARITY)
        self.assertEqual((0, 2 * GRANULARITY), dirty.take(0, 2 * GRANULARITY))
        self.assertEqual(3 * GRANULARITY, dirty.bytes)

    def test_from_a_position(self):
        dirty = DirtyMap(GRANULARITY * 5)
        dirty.mark(0, 1)
        dirty.mark(3 * GRANULARITY, 1)
        self.assertEqual((3 * GRANULARITY, 4 * GRANULARITY), dirty.take(GRANULARITY, GRANULARITY))
        self.assertIsNone(
            dirty.take(GRANULARITY, GRANULARITY), "what lies before it is for the next pass"
        )
        self.assertEqual((0, GRANULARITY), dirty.take(0, GRANULARITY))

    def test_the_end_of_the_disk(self):
        size = 3 * GRANULARITY + 5
        dirty = DirtyMap(size)
        dirty.mark(size - 1, 1)
        self.assertEqual((GRANULARITY, None), (dirty.bytes, dirty.take(size, GRANULARITY)))
        self.assertEqual((3 * GRANULARITY, size), dirty.take(0, 9 * GRANULARITY))
        dirty.mark_all()
        self.assertEqual(size, dirty.bytes)
        self.assertEqual((0, size), dirty.take(0, 9 * GRANULARITY))

    def test_mark_all_is_nobodys_doing(self):
        dirty = DirtyMap(GRANULARITY * 3)
        dirty.mark_all()
        self.assertEqual((3 * GRANULARITY, 0), (dirty.bytes, dirty.marked))
        dirty.mark(0, 3 * GRANULARITY)
        self.assertEqual((3 * GRANULARITY, 0), (dirty.bytes, dirty.marked), "it was dirty already")

    def test_what_was_dirty_already_does_not_count_again(self):
        dirty = DirtyMap(GRANULARITY * 9)
        dirty.mark(GRANULARITY, 2 * GRANULARITY)
        dirty.mark(0, 5 * GRANULARITY)
        self.assertEqual((5 * GRANULARITY, 5 * GRANULARITY), (dirty.bytes, dirty.marked))

    def test_zeroes_are_not_likely_to_be_data(self):
        """They are as dirty as anything, but do not count for what clients write."""
        dirty = DirtyMap(GRANULARITY * 9)
        dirty.mark(0, 1, False)
        dirty.mark(GRANULARITY, 3 * GRANULARITY, False)
        self.assertEqual((4 * GRANULARITY, 0), (dirty.bytes, dirty.marked))
        dirty.mark(0, 5 * GRANULARITY)
        self.assertEqual((5 * GRANULARITY, GRANULARITY), (dirty.bytes, dirty.marked))
        self.assertEqual((0, 5 * GRANULARITY), dirty.take(0, 9 * GRANULARITY))

    def test_of_one_byte(self):
        dirty = DirtyMap(1)
        dirty.mark(0, 1)
        self.assertEqual((1, (0, 1)), (dirty.bytes, dirty.take(0, GRANULARITY)))

    def test_of_many_tebibytes(self):
        size = 16 << 40
        dirty = DirtyMap(size)
        dirty.mark(size - 1, 1)
        dirty.mark(5 << 40, GRANULARITY)
        self.assertEqual((5 << 40, (5 << 40) + GRANULARITY), dirty.take(0, 64 << 20))
        self.assertEqual((size - GRANULARITY, size), dirty.take((5 << 40) + GRANULARITY, 64 << 20))
        self.assertEqual(0, dirty.bytes)
