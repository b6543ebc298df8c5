"""The dirty map: what is marked stays so until it is taken, once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import GRAIN, DirtyMap

KIB = 1024


def grains(offset, length):
    return set(range(offset // GRAIN, (offset + length - 1) // GRAIN + 1))


class Model:
    """A set of grains."""

    def __init__(self, size):
        self.size = size
        self.dirty = set()
        self.marked = 0

    def mark(self, offset, length):
        new = grains(offset, length) - self.dirty
        self.dirty |= new
        self.marked += len(new) * GRAIN

    def mark_all(self):
        self.dirty = grains(0, self.size)

    def take(self, position, most):
        first = min((grain for grain in self.dirty if grain * GRAIN >= position), default=None)
        if first is None:
            return None
        stop = first
        while stop in self.dirty and (stop - first) * GRAIN < most:
            self.dirty.remove(stop)
            stop += 1
        return first * GRAIN, min(stop * GRAIN, self.size)

    @property
    def bytes(self):
        return min(len(self.dirty) * GRAIN, self.size)


# How far behind the start of a grain something lies.
BYTES = st.sampled_from([0, 1, GRAIN - 1])
SIZES = st.tuples(st.integers(1, 20), BYTES).map(lambda size: size[0] * GRAIN + size[1])
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
                offset = min(grain * GRAIN + extra, size - 1)
                length = min(1 + count * GRAIN, size - offset)
                dirty.mark(offset, length)
                model.mark(offset, length)
            elif what == "all":
                dirty.mark_all()
                model.mark_all()
            else:
                position = min(grain * GRAIN, size)
                most = (1 + count) * GRAIN
                self.assertEqual(model.take(position, most), dirty.take(position, most))
            self.assertEqual((model.bytes, model.marked), (dirty.bytes, dirty.marked))
        self.assertEqual(self.all_of(model), self.all_of(dirty))

    def all_of(self, dirty):
        found = []
        position = 0
        while (taken := dirty.take(position, 3 * GRAIN)) is not None:
            found.append(taken)
            position = taken[1]
        return found

    def test_nothing_at_first(self):
        dirty = DirtyMap(GRAIN * 3)
        self.assertEqual((0, 0, None), (dirty.bytes, dirty.marked, dirty.take(0, GRAIN)))

    def test_a_byte_makes_all_of_its_grain_dirty(self):
        for at in (GRAIN, GRAIN + 1, 2 * GRAIN - 1):
            dirty = DirtyMap(GRAIN * 3)
            dirty.mark(at, 1)
            self.assertEqual((GRAIN, GRAIN), (dirty.bytes, dirty.marked))
            self.assertEqual((GRAIN, 2 * GRAIN), dirty.take(0, 9 * GRAIN))

    def test_two_bytes_across(self):
        dirty = DirtyMap(GRAIN * 3)
        dirty.mark(GRAIN - 1, 2)
        self.assertEqual((0, 2 * GRAIN), dirty.take(0, 9 * GRAIN))

    def test_taken_once(self):
        dirty = DirtyMap(GRAIN * 3)
        dirty.mark(0, GRAIN)
        self.assertEqual((0, GRAIN), dirty.take(0, GRAIN))
        self.assertIsNone(dirty.take(0, GRAIN))
        self.assertEqual(0, dirty.bytes)
        dirty.mark(5, 5)
        self.assertEqual((GRAIN, 2 * GRAIN), (dirty.bytes, dirty.marked), "it is dirty again")
        self.assertEqual((0, GRAIN), dirty.take(0, GRAIN))

    def test_the_rest_of_a_long_run_stays(self):
        dirty = DirtyMap(GRAIN * 5)
        dirty.mark_all()
        self.assertEqual((0, 2 * GRAIN), dirty.take(0, 2 * GRAIN))
        self.assertEqual(3 * GRAIN, dirty.bytes)
        self.assertEqual((2 * GRAIN, 5 * GRAIN), dirty.take(2 * GRAIN, 99 * GRAIN))

    def test_no_more_than_asked_for(self):
        dirty = DirtyMap(GRAIN * 9)
        dirty.mark(0, 5 * GRAIN)
        self.assertEqual((0, 2 * GRAIN), dirty.take(0, 2 * GRAIN))
        self.assertEqual(3 * GRAIN, dirty.bytes)

    def test_from_a_position(self):
        dirty = DirtyMap(GRAIN * 5)
        dirty.mark(0, 1)
        dirty.mark(3 * GRAIN, 1)
        self.assertEqual((3 * GRAIN, 4 * GRAIN), dirty.take(GRAIN, GRAIN))
        self.assertIsNone(dirty.take(GRAIN, GRAIN), "what lies before it is for the next pass")
        self.assertEqual((0, GRAIN), dirty.take(0, GRAIN))

    def test_the_end_of_the_disk(self):
        size = 3 * GRAIN + 5
        dirty = DirtyMap(size)
        dirty.mark(size - 1, 1)
        self.assertEqual((GRAIN, None), (dirty.bytes, dirty.take(size, GRAIN)))
        self.assertEqual((3 * GRAIN, size), dirty.take(0, 9 * GRAIN))
        dirty.mark_all()
        self.assertEqual(size, dirty.bytes)
        self.assertEqual((0, size), dirty.take(0, 9 * GRAIN))

    def test_mark_all_is_nobodys_doing(self):
        dirty = DirtyMap(GRAIN * 3)
        dirty.mark_all()
        self.assertEqual((3 * GRAIN, 0), (dirty.bytes, dirty.marked))
        dirty.mark(0, 3 * GRAIN)
        self.assertEqual((3 * GRAIN, 0), (dirty.bytes, dirty.marked), "it was dirty already")

    def test_what_was_dirty_already_does_not_count_again(self):
        dirty = DirtyMap(GRAIN * 9)
        dirty.mark(GRAIN, 2 * GRAIN)
        dirty.mark(0, 5 * GRAIN)
        self.assertEqual((5 * GRAIN, 5 * GRAIN), (dirty.bytes, dirty.marked))

    def test_zeroes_are_not_likely_to_be_data(self):
        """They are as dirty as anything, but do not count for what clients write."""
        dirty = DirtyMap(GRAIN * 9)
        dirty.mark(0, 1, False)
        dirty.mark(GRAIN, 3 * GRAIN, False)
        self.assertEqual((4 * GRAIN, 0), (dirty.bytes, dirty.marked))
        dirty.mark(0, 5 * GRAIN)
        self.assertEqual((5 * GRAIN, GRAIN), (dirty.bytes, dirty.marked))
        self.assertEqual((0, 5 * GRAIN), dirty.take(0, 9 * GRAIN))

    def test_of_one_byte(self):
        dirty = DirtyMap(1)
        dirty.mark(0, 1)
        self.assertEqual((1, (0, 1)), (dirty.bytes, dirty.take(0, GRAIN)))

    def test_of_many_tebibytes(self):
        size = 16 << 40
        dirty = DirtyMap(size)
        dirty.mark(size - 1, 1)
        dirty.mark(5 << 40, GRAIN)
        self.assertEqual((5 << 40, (5 << 40) + GRAIN), dirty.take(0, 64 << 20))
        self.assertEqual((size - GRAIN, size), dirty.take((5 << 40) + GRAIN, 64 << 20))
        self.assertEqual(0, dirty.bytes)
