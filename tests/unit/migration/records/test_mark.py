"""The mark on a kept source, which goes with its file."""

from __future__ import annotations

import json
import os

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from blockmig.errors import Refused
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.mark import ATTRIBUTES, Mark, read_mark, remove_mark, set_mark
from blockmig.migration.records.verdict import CopyState, check_canonical, examine, verdict_of
from blockmig.storage import FileDisk
from blockmig.testing import MemoryDisk
from tests.unit.support import ONE

THERE = Location("there", "/copy", "nbd://there/x")


ATTRIBUTE = ATTRIBUTES[Kind.MIGRATED]


class MarkTests(SynchronousTestCase):
    def setUp(self):
        directory = os.path.realpath(os.path.abspath(self.mktemp()))
        os.mkdir(directory)
        self.path, self.moved = os.path.join(directory, "a"), os.path.join(directory, "b")
        with open(self.path, "wb") as file:
            file.write(b"12345")
        self.disk = FileDisk(self.path, writable=False)
        self.addCleanup(self.disk.close)
        self.record = Record(
            migration=ONE,
            phase=Phase.COPIED,
            attempt=1,
            size=5,
            source=Location("here", self.path),
            destination=THERE,
            began="then",
            identity=self.disk.identity(),
            retired="when",
        )
        set_mark(self.disk, Kind.MIGRATED, self.record)
        if read_mark(self.disk.fileno()) is None:
            raise SkipTest("no extended attributes here")

    def verdict(self, path):
        return verdict_of(examine(path))

    def test_a_mark_says_which_migration_retired_the_file(self):
        self.assertEqual(
            Mark(Kind.MIGRATED, ONE, self.path, self.disk.identity(), THERE, "when"),
            read_mark(self.disk.fileno()),
        )

    def test_a_disk_that_is_closed_meanwhile_keeps_its_number_until_it_is_marked(self):
        """Otherwise another file with that number would get the mark."""
        set_attribute = os.setxattr

        def close_and_set(number, *arguments):
            self.disk.close()
            self.assertEqual(os.stat(self.path).st_ino, os.fstat(number).st_ino)
            set_attribute(number, *arguments)

        self.patch(os, "setxattr", close_and_set)
        set_mark(self.disk, Kind.INCOMPLETE, self.record)
        self.assertIn(ATTRIBUTES[Kind.INCOMPLETE], os.listxattr(self.path))

    def test_a_renamed_source_is_not_canonical(self):
        os.rename(self.path, self.moved)
        verdict = self.verdict(self.moved)
        self.assertEqual(CopyState.NOT_CANONICAL, verdict.state)
        self.assertIn(f"migrated to {THERE} on when as {self.path}", verdict.why)

    def test_so_is_its_other_hard_link_and_a_link_to_it(self):
        os.link(self.path, self.moved)
        self.assertEqual(CopyState.NOT_CANONICAL, self.verdict(self.moved).state)
        os.symlink(self.moved, self.moved + "2")
        self.assertEqual(CopyState.NOT_CANONICAL, self.verdict(self.moved + "2").state)

    def test_a_copy_that_took_the_mark_along_is_unknown(self):
        with open(self.moved, "wb") as file:
            file.write(b"12345")
            os.setxattr(file.fileno(), ATTRIBUTE, os.getxattr(self.path, ATTRIBUTE))
        verdict = self.verdict(self.moved)
        self.assertEqual(CopyState.UNKNOWN, verdict.state)
        self.assertIn(f"is a copy of {self.path}, which was migrated to {THERE}", verdict.why)

    def test_a_record_says_more_than_a_mark(self):
        Records(self.path).write(Kind.MIGRATING, self.record.but(phase=Phase.COPYING, retired=""))
        self.assertEqual(CopyState.CANONICAL, self.verdict(self.path).state)

    def test_a_renamed_source_is_not_served(self):
        os.rename(self.path, self.moved)
        self.disk.close()
        with FileDisk(self.moved) as disk:
            error = self.assertRaises(Refused, check_canonical, disk)
            self.assertIn(f"as {self.path}", str(error))
            remove_mark(disk)
            check_canonical(disk)

    def test_a_mark_that_is_not_understood_is_none(self):
        good = json.loads(os.getxattr(self.path, ATTRIBUTE))
        for bad in (
            b"",
            b"[]",
            b"{",
            b"{}",
            json.dumps({**good, "identity": "device \ud800"}).encode(),
            json.dumps({**good, "disk": "/a\0b"}).encode(),
            json.dumps({**good, "other": 5}).encode(),
            json.dumps({**good, "other": {"host": 5}}).encode(),
            json.dumps({**good, "retired": None}).encode(),
        ):
            os.setxattr(self.path, ATTRIBUTE, bad)
            self.assertIsNone(read_mark(self.disk.fileno()), bad)

    def test_a_mark_of_a_later_version_may_have_more(self):
        found = json.loads(os.getxattr(self.path, ATTRIBUTE))
        found["more"] = found["other"]["more"] = 5
        os.setxattr(self.path, ATTRIBUTE, json.dumps(found).encode())
        self.assertEqual(ONE, read_mark(self.disk.fileno()).migration)

    def incomplete(self):
        """The file becomes a destination."""
        record = self.record.but(
            source=Location("there", "/disk"), destination=Location("here", self.path)
        )
        set_mark(self.disk, Kind.INCOMPLETE, record)

    def test_an_incomplete_copy_is_not_canonical_under_another_name(self):
        self.incomplete()
        os.rename(self.path, self.moved)
        verdict = self.verdict(self.moved)
        self.assertEqual(CopyState.UNKNOWN, verdict.state)
        self.assertIn(f"was {self.path}, which a migration from there:/disk began", verdict.why)
        self.assertIn(f"move it back to {self.path}", verdict.advice)

    def test_all_marks_are_removed(self):
        self.incomplete()
        remove_mark(self.disk)
        self.assertEqual([], [name for name in os.listxattr(self.path) if "blockmig" in name])
        self.assertEqual(CopyState.CANONICAL, self.verdict(self.path).state)

    def test_what_has_no_identity_or_is_a_device_is_not_marked(self):
        remove_mark(self.disk)
        for identity in ("", "device 8:0"):
            set_mark(self.disk, Kind.MIGRATED, self.record.but(identity=identity))
        self.assertIsNone(read_mark(self.disk.fileno()))

    def test_without_a_descriptor_nothing_happens(self):
        disk = MemoryDisk(b"x")
        set_mark(disk, Kind.MIGRATED, self.record)
        remove_mark(disk)
