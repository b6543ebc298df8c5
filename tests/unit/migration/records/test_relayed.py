"""Whether a disk went away with its clients relayed (relayed.py)."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import Refused
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.finished import Present
from blockmig.migration.records.relayed import relayed_away

THERE = "nbd://there/web"
GONE = Present()
KEPT = Present(5000, "inode 5, born 6")
ANOTHER = Present(5000, "inode 7, born 8")


def record(migration="m", **more):
    fields = {
        "unlink": True, "retired": "then", "told": "then", "confirmed": "then",
        "identity": KEPT.identity, "successor": THERE, **more,
    }  # fmt: skip
    return Record(migration, Phase.COPIED, 1, 5000, Location(), Location("far", "/d"), "", **fields)


class RelayedTests(SynchronousTestCase):
    def setUp(self):
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        self.records = Records(os.path.join(folder, "disk"))

    def write(self, kind, **more):
        self.records.write(kind, record(**more))

    def found(self, present=GONE):
        found = relayed_away(self.records, present)
        return None if found is None else found.successor

    def refused(self, present=GONE):
        words = str(self.assertRaises(Refused, relayed_away, self.records, present))
        self.assertIn(THERE, words)
        self.assertIn("blockmig inspect", words)

    def test_it_is_where_its_clients_were_relayed_to(self):
        self.write(Kind.MIGRATED)
        self.assertEqual(THERE, self.found())

    def test_a_source_that_was_kept_may_be_there_or_not(self):
        self.write(Kind.MIGRATED, unlink=False)
        self.assertEqual(THERE, self.found(KEPT))
        self.assertEqual(THERE, self.found())

    def test_it_did_not_go(self):
        self.assertIsNone(self.found())
        self.assertIsNone(self.found(KEPT))

    def test_nobody_said_that_clients_are_relayed(self):
        self.write(Kind.MIGRATED, successor="")
        self.assertIsNone(self.found())

    def test_another_disk_has_its_name(self):
        self.write(Kind.MIGRATED)
        self.assertIsNone(self.found(KEPT), "it was deleted")
        self.write(Kind.MIGRATED, unlink=False)
        self.assertIsNone(self.found(ANOTHER))
        self.write(Kind.MIGRATED, unlink=False, identity="")
        self.assertIsNone(self.found(KEPT), "nothing proves that it is the same")

    def test_it_was_kept_and_written_to_since(self):
        self.write(Kind.MIGRATED, unlink=False, written="5000 1")
        self.assertEqual(THERE, self.found(KEPT._replace(written="5000 1")))
        self.assertIsNone(self.found(KEPT._replace(written="5000 2")))

    def test_it_has_come_home(self):
        self.write(Kind.MIGRATED)
        self.write(Kind.RECEIVED, migration="n", follows="m", successor="")
        self.assertIsNone(self.found(KEPT))

    def test_it_came_home_and_went_away_again(self):
        self.write(Kind.RECEIVED, migration="n", successor="")
        self.write(Kind.MIGRATED, migration="o", follows="n")
        self.assertEqual(THERE, self.found())

    def test_a_later_migration_decides(self):
        self.write(Kind.MIGRATED, unlink=False)
        self.write(Kind.MIGRATING, migration="n", follows="m", unlink=False, confirmed="")
        self.assertIsNone(self.found(KEPT))

    def test_the_end_must_have_been_seen(self):
        self.write(Kind.MIGRATED, confirmed="")
        self.refused()
        self.write(Kind.MIGRATED, confirmed="", unlink=False)
        self.refused(KEPT)

    def test_a_source_that_is_deleted_but_not_told_is_not_relayed(self):
        self.write(Kind.MIGRATING, confirmed="", told="", retired="")
        self.refused()
        self.assertIsNone(self.found(KEPT), "it was not deleted")

    def test_a_migration_under_way_is_not_one_that_ended(self):
        self.records.write(Kind.MIGRATING, record(confirmed="").but(phase=Phase.COPYING))
        self.assertIsNone(self.found())

    def test_what_cannot_be_understood_is_left_to_who_opens_the_disk(self):
        with open(self.records.name(Kind.MIGRATED), "w") as file:
            file.write("{")
        self.assertIsNone(self.found())

    def test_what_cannot_be_read_is_refused(self):
        path = self.records.name(Kind.MIGRATED)
        os.symlink(os.path.basename(path), path)
        words = str(self.assertRaises(Refused, relayed_away, self.records, GONE))
        self.assertIn("its records", words)

    def test_a_record_of_an_earlier_version_names_none(self):
        self.write(Kind.MIGRATED)
        path = self.records.name(Kind.MIGRATED)
        with open(path) as file:
            text = file.read()
        with open(path, "w") as file:
            file.write(text.replace(f',\n  "successor": "{THERE}"', ""))
        self.assertEqual("", self.records.read(Kind.MIGRATED).successor)
        self.assertIsNone(self.found())
