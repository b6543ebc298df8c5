"""The files of the benchmarks: made, spoilt, and compared."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.places import data_of, differ, make_hole, make_random, spoil
from benchmarks.settings import MIB
from twisted.trial.unittest import SynchronousTestCase

SIZE = 3 * MIB + 5000


class PlacesTests(SynchronousTestCase):
    def setUp(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        self.one, self.other = folder / "one", folder / "other"
        make_random(self.one, SIZE)

    def copy(self) -> None:
        self.other.write_bytes(self.one.read_bytes())

    def test_a_random_file_has_exactly_its_size(self):
        self.assertEqual(SIZE, self.one.stat().st_size)

    def test_a_copy_does_not_differ(self):
        self.copy()
        self.assertFalse(differ(self.one, self.other))

    def test_one_byte_makes_a_difference(self):
        self.copy()
        with self.other.open("r+b") as file:
            os.pwrite(file.fileno(), b"\0\1", SIZE - 2)
        self.assertTrue(differ(self.one, self.other))

    def test_so_does_the_size(self):
        self.copy()
        os.truncate(self.other, SIZE - 1)
        self.assertTrue(differ(self.one, self.other))

    def test_so_does_data_where_the_source_has_a_hole(self):
        make_hole(self.one, SIZE)
        make_hole(self.other, SIZE)
        self.assertFalse(differ(self.one, self.other))
        with self.other.open("r+b") as file:
            os.pwrite(file.fileno(), b"\1", 2 * MIB)
        self.assertTrue(differ(self.one, self.other))

    def test_what_was_spoilt_differs_in_each_mib_and_nowhere_else(self):
        self.copy()
        spoil(self.other)
        before, after = self.one.read_bytes(), self.other.read_bytes()
        changed = {at for at in range(SIZE) if before[at] != after[at]}
        self.assertEqual({0, 1, 2, 3}, {at // MIB for at in changed})
        self.assertLess(max(at % MIB for at in changed), 16)

    def test_spoiling_adds_no_data_to_a_sparse_file(self):
        size = 64 * MIB
        make_hole(self.one, size)
        with self.one.open("r+b") as file:
            os.pwrite(file.fileno(), b"x" * 4096, 32 * MIB)
            before = list(data_of(file.fileno()))
            spoil(self.one)
            self.assertEqual(before, list(data_of(file.fileno())))
