"""The window in front of a scan: what is asked for, when, and what is given out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage.read_ahead_window import PIECE, ReadAheadWindow
from blockmig.storage.segment import Segment

MOST = 32 * PIECE


class Medium:
    """Notes what is asked for; `cached` tells what is there."""

    def __init__(self, cached=lambda offset: False, error=None):
        self.asked = []
        self.cached = cached
        self.error = error

    def read_ahead(self, offset, length):
        self.asked.append((offset, length))
        if self.error is not None:
            raise self.error
        return not self.cached(offset)


def runs_of(*lengths):
    """Runs by turns of data and holes."""
    offset = 0
    for number, length in enumerate(lengths):
        yield Segment(offset, length, number % 2 == 1)
        offset += length


class ReadAheadWindowTests(SynchronousTestCase):
    def open(self, medium):
        window = ReadAheadWindow(medium.read_ahead)
        window.missed()
        return window

    def test_nothing_is_asked_for_while_nothing_was_missed(self):
        medium = Medium()
        pieces = list(ReadAheadWindow(medium.read_ahead).slide(runs_of(5 * PIECE)))
        self.assertEqual(([], 5), (medium.asked, len(pieces)))

    def test_nothing_is_asked_of_a_disk_that_cannot_read_ahead(self):
        window = ReadAheadWindow(None)
        window.missed()
        pieces = list(window.slide(runs_of(2 * PIECE)))
        self.assertEqual([False, False], [piece.cold for piece in pieces])

    def test_a_piece_is_given_out_at_once_while_nothing_was_missed(self):
        taken = []

        def runs():
            for run in runs_of(PIECE, PIECE, PIECE):
                taken.append(run)
                yield run

        next(ReadAheadWindow(Medium().read_ahead).slide(runs()))
        self.assertEqual(1, len(taken))

    def test_what_is_missing_is_asked_for_in_front_and_is_cold(self):
        medium = Medium()
        position = 0
        for piece in self.open(medium).slide(runs_of(200 * PIECE)):
            self.assertTrue(piece.cold)
            position = piece.end
            ahead = medium.asked[-1][0] + PIECE - position
            self.assertLessEqual(ahead, MOST)
            if 40 * PIECE < position < 160 * PIECE:
                self.assertGreaterEqual(ahead, MOST - PIECE)
        self.assertEqual([(n * PIECE, PIECE) for n in range(200)], medium.asked)

    def test_two_pieces_at_most_are_asked_for_before_one_is_given_out(self):
        """A slow medium may take long for each: the first must not wait for the whole window."""
        medium = Medium()
        before = 0
        for _ in self.open(medium).slide(runs_of(100 * PIECE)):
            self.assertLessEqual(len(medium.asked) - before, 2)
            before = len(medium.asked)

    def test_the_window_closes_where_all_is_there(self):
        medium = Medium(cached=lambda offset: offset >= 50 * PIECE)
        pieces = list(self.open(medium).slide(runs_of(1000 * PIECE)))
        self.assertEqual([n < 50 for n in range(1000)], [piece.cold for piece in pieces])
        self.assertLess(len(medium.asked), 500)

    def test_holes_are_not_asked_for(self):
        medium = Medium()
        lengths = (PIECE // 2, 7 * PIECE, 2 * PIECE, 1 << 40, 5)
        pieces = list(self.open(medium).slide(runs_of(*lengths)))
        self.assertEqual(sum(lengths), sum(piece.length for piece in pieces))
        asked = [(piece.offset, piece.length) for piece in pieces if not piece.zero]
        self.assertEqual(asked, medium.asked)
        self.assertLessEqual(max(length for _, length in asked), PIECE)

    def test_small_pieces_are_asked_for_together(self):
        medium = Medium()
        pieces = self.open(medium).slide(runs_of(*[4096] * 2000))
        next(pieces)
        self.assertGreater(len(medium.asked), 100)
        self.assertLess(len(medium.asked), 300)

    def test_an_error_is_left_to_the_scan(self):
        medium = Medium(error=OSError(5, "broken"))
        pieces = list(self.open(medium).slide(runs_of(3 * PIECE)))
        self.assertEqual([(n * PIECE, PIECE, False) for n in range(3)], [p[:3] for p in pieces])

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(1, 5 * PIECE), min_size=1, max_size=30), st.integers(1, 7))
    def test_the_pieces_are_the_runs(self, lengths, modulus):
        medium = Medium(cached=lambda offset: offset // PIECE % modulus == 0)
        expected = list(runs_of(*lengths))
        position = 0
        for piece in self.open(medium).slide(runs_of(*lengths)):
            self.assertEqual(position, piece.offset)
            while expected[0].end <= piece.offset:
                del expected[0]
            self.assertEqual(expected[0].zero, piece.zero)
            self.assertLessEqual(piece.end, expected[0].end)
            position = piece.end
        self.assertEqual(sum(lengths), position)
