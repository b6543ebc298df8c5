"""How much of a disk is data, roughly (storage/survey.py)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.interfaces import Extent
from blockmig.storage.survey import Survey

MIB = 1 << 20


class Disk:
    """Runs of data and holes by turns; data comes first."""

    def __init__(self, *runs):
        self.size, self.steps = sum(runs), []
        self.runs = runs

    def extents(self, offset):
        assert offset == 0
        for number, length in enumerate(self.runs):
            if length:
                self.steps.append(number)
                yield Extent(offset, length, number % 2 == 1)
            offset += length


def surveyed(disk, steps=1):
    survey = Survey(disk.size)
    for _ in range(steps):
        survey.advance(disk)
    return survey


class SurveyTests(SynchronousTestCase):
    def test_everything_is_data_before_anything_was_counted(self):
        survey = Survey(10 * MIB)
        self.assertEqual(10 * MIB, survey.data(0, 10 * MIB))
        self.assertEqual(3 * MIB, survey.data(MIB, 4 * MIB))

    def test_holes_are_not_data(self):
        survey = surveyed(Disk(64 * MIB, 960 * MIB))
        self.assertEqual(64 * MIB, survey.data(0, 1024 * MIB))
        self.assertEqual(4 * MIB, survey.data(60 * MIB, 1024 * MIB))
        self.assertEqual(0, survey.data(64 * MIB, 1024 * MIB))

    def test_a_disk_without_holes_is_all_data(self):
        survey = surveyed(Disk(5000))
        self.assertEqual((5000, 1000), (survey.data(0, 5000), survey.data(4000, 5000)))

    def test_a_part_is_taken_for_evenly_filled(self):
        survey = surveyed(Disk(MIB // 2, MIB // 2, MIB))
        self.assertEqual(MIB // 4, survey.data(0, MIB // 2))
        self.assertEqual(MIB // 4, survey.data(MIB // 2, MIB))

    def test_many_extents_are_counted_in_steps(self):
        """What was not counted yet is taken for as dense."""
        disk = Disk(*[4096, 3 * 4096] * 10_000)
        survey = surveyed(disk)
        self.assertEqual(4096, len(disk.steps))
        whole = survey.data(0, disk.size)
        self.assertTrue(abs(whole - disk.size / 4) < disk.size / 100, whole)
        for _ in range(10):
            survey.advance(disk)
        self.assertEqual(20_000, len(disk.steps), "and once only")
        self.assertEqual(disk.size // 4, survey.data(0, disk.size))

    @given(st.lists(st.integers(0, 1 << 34), min_size=1, max_size=30), st.data())
    def test_the_count_is_right_but_for_the_parts_at_both_ends(self, runs, data):
        disk = Disk(*runs)
        if not disk.size:
            return
        survey = surveyed(disk)
        start = data.draw(st.integers(0, disk.size))
        end = data.draw(st.integers(start, disk.size))
        true, offset = 0, 0
        for number, length in enumerate(runs):
            if number % 2 == 0:
                true += max(0, min(end, offset + length) - max(start, offset))
            offset += length
        part = max(MIB, -(-disk.size // 4096))
        self.assertLessEqual(abs(survey.data(start, end) - true), 2 * part)
