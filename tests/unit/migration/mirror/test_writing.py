"""How much of a disk clients touch: the fit, with made-up clients (mirror/writing.py)."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.mirror.writing import Writing

MB = 1_000_000
BLOCK = 65536


class Clients:
    """Clients that write blocks, sampled ten times a second.

    @param next_block: returns the next block that they write to.
    """

    def __init__(self, next_block, writing=None):
        self.next_block = next_block
        self.writing = writing or Writing()
        self.now, self.written, self.touched = 0.0, 0, set()
        self.writing.sample(0, 0, 0)

    def write(self, seconds, a_second):
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            for _ in range(a_second // 10):
                self.touched.add(self.next_block())
                self.written += BLOCK
            self.writing.sample(self.now, self.written, len(self.touched) * BLOCK)
        return self

    def next_window(self):
        self.writing.next_window(self.now)
        self.touched.clear()


def anywhere(blocks, seed=1):
    chance = random.Random(seed)
    return lambda: chance.randrange(blocks)


def in_turn(each=1):
    """One block after the other, each so many times."""
    numbers = iter(range(10**9))
    return lambda: next(numbers) // each


class Case(SynchronousTestCase):
    def near(self, expected, found, tolerance=0.1):
        self.assertTrue(abs(found - expected) <= tolerance * abs(expected), (expected, found))


class WritingTests(Case):
    def test_who_writes_from_one_end_to_the_other_touches_all_that_is_written(self):
        writing = Clients(in_turn()).write(5, 200).writing
        for seconds in (0.1, 1, 5, 50, 1000):
            self.near(seconds * 200 * BLOCK, writing.touched_in(seconds))

    def test_small_writes_side_by_side_touch_a_block_once(self):
        """16 of 4 KiB in each; as seen by the server each is a write to one block."""
        writing = Clients(in_turn(16)).write(5, 1600).writing
        for seconds in (1, 5, 50, 1000):
            self.near(seconds * 100 * BLOCK, writing.touched_in(seconds))

    def test_who_writes_to_the_same_places_touches_no_more(self):
        writing = Clients(anywhere(100)).write(5, 1000).writing
        for seconds in (2, 5, 100, 10_000):
            self.near(100 * BLOCK, writing.touched_in(seconds))
        self.near(63 * BLOCK, writing.touched_in(0.1), 0.2)

    def test_what_is_touched_later_is_told_from_how_the_curve_bends(self):
        """In 4 s each of 10 000 blocks was written to with a chance of one third."""
        writing = Clients(anywhere(10_000)).write(4, 1000).writing
        for seconds in (1, 2, 4, 8, 20, 1000):
            expected = 10_000 * (1 - (1 - 1 / 10_000) ** (1000 * seconds))
            self.near(expected * BLOCK, writing.touched_in(seconds), 0.15)

    def test_no_more_is_touched_than_there_is(self):
        clients = Clients(in_turn(), Writing(300 * BLOCK)).write(1, 200)
        self.assertEqual(300 * BLOCK, clients.writing.touched_in(100))

    def test_who_stops_is_noticed_at_once(self):
        clients = Clients(anywhere(100)).write(5, 1000).write(3, 0)
        self.assertLess(clients.writing.rate, 0.05 * 1000 * BLOCK)
        clients.write(10, 0)
        self.assertLess(clients.writing.touched_in(1), BLOCK)

    def test_who_begins_is_noticed_at_once(self):
        clients = Clients(in_turn()).write(1, 100)
        clients.next_window()
        clients.write(20, 0).write(2, 100)
        self.near(1000 * BLOCK, clients.writing.touched_in(10), 0.2)

    def test_what_was_learned_counts_until_as_much_was_seen_again(self):
        """A window's first writes are all to new places, whatever the places."""
        clients = Clients(anywhere(100)).write(4, 1000)
        clients.next_window()
        clients.write(0.1, 1000)
        self.near(100 * BLOCK, clients.writing.touched_in(100))
        clients.next_block = in_turn()
        clients.write(4, 1000)
        self.assertGreater(clients.writing.touched_in(100), 1000 * BLOCK)

    def test_a_window_has_a_length_and_a_mean_rate(self):
        clients = Clients(in_turn())
        self.assertEqual((0, 0), (clients.writing.window(0), clients.writing.mean_rate(0)))
        clients.write(2, 100).write(2, 300)
        self.near(4, clients.writing.window(clients.now))
        self.near(200 * BLOCK, clients.writing.mean_rate(clients.now))
        clients.next_window()
        self.assertEqual(0, clients.writing.window(clients.now))
        clients.write(1, 100)
        self.near(100 * BLOCK, clients.writing.mean_rate(clients.now))

    def test_without_any_knowledge_each_write_is_to_a_new_place(self):
        writing = Writing()
        self.assertEqual(0, writing.touched_in(100))
        for tenths in range(100):
            writing.sample(tenths / 10, tenths * MB)
        self.near(100 * MB, writing.touched_in(10))

    @given(st.integers(1, 20_000), st.integers(10, 3000), st.floats(1, 10))
    def test_more_time_touches_more_and_never_more_than_is_written(self, blocks, a_second, seconds):
        writing = Clients(anywhere(blocks)).write(seconds, a_second).writing
        before = 0.0
        for tenths in range(1, 1000, 37):
            touched = writing.touched_in(tenths / 10)
            self.assertGreaterEqual(touched, before * 0.999)
            self.assertLessEqual(touched, 1.01 * writing.rate * tenths / 10 + 1)
            before = touched
