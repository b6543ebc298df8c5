"""What is finished: which record is the latest, which ids are used up, what is done already."""

from __future__ import annotations

import os

from blockmig.errors import AlreadyDone, ExitStatus, Refused
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.finished import (
    MOST_IDS,
    Finished,
    Present,
    check_migrated,
    check_received,
    read_finished,
)
from blockmig.storage import boot_id
from tests.unit.migration.records.test_permitted import Case as RecordsCase
from tests.unit.support import ONE, TWO

URI = "nbd://there/x"
SAME, OTHER, MAYBE = "inode 5, born 1", "inode 6, born 2", "inode 5, written 2"
HERE = os.uname().nodename
THERE = Present(5, SAME)
NOTHING = Present()


class Case(RecordsCase):
    def setUp(self):
        super().setUp()
        here = Location(HERE, self.records.path)
        self.received = Record(
            migration=ONE,
            phase=Phase.COPIED,
            attempt=2,
            size=5,
            source=Location("far", "/disk"),
            destination=here,
            began="then",
            identity=SAME,
            retired="when",
            confirmed="later",
            id="web",
        )
        self.migrated = self.received.but(
            source=here, destination=Location("far", "/copy", URI), told="when", side_export=True
        )
        self.deleted = self.migrated.but(unlink=True)

    def done(self, check, *words):
        before = self.content()
        error = self.assertRaises(AlreadyDone, check)
        self.assertEqual(ExitStatus.DONE, error.status)
        self.assertNotIn("\n", str(error))
        for word in words:
            self.assertIn(word, str(error))
        self.assertEqual(before, self.content())

    def stopped(self, check, *words):
        error = self.assertRaises(Refused, check)
        for word in words:
            self.assertIn(word, str(error))
        return str(error)


class OrderTests(Case):
    def test_the_later_record_names_the_earlier_one(self):
        other = self.migrated.but(migration=TWO)
        for finished, latest in (
            (Finished(), None),
            (Finished(migrated=other), TWO),
            (Finished(received=self.received), ONE),
            (Finished(accepted=self.received), ONE),
            (Finished(other.but(follows=ONE), self.received), TWO),
            (Finished(other, self.received.but(follows=TWO)), ONE),
            (Finished(other.but(follows=ONE), accepted=self.received), TWO),
            # Neither names the other: nothing is there, as far as anybody can tell.
            (Finished(other, self.received), TWO),
        ):
            found = finished.latest
            self.assertEqual(latest, found.migration if found is not None else None)

    def test_ids_are_remembered_in_their_order(self):
        old = tuple(f"id{number}" for number in range(MOST_IDS))
        finished = Finished(
            self.migrated.but(migration=TWO, follows=ONE, id="last", ids=("a", "web")),
            self.received.but(ids=("a",)),
        )
        self.assertEqual(("a", "web", "last"), finished.ids)
        finished = Finished(received=self.received.but(ids=old))
        self.assertEqual((*old[1:], "web"), finished.ids)
        self.assertEqual((), Finished(received=self.received.but(id="")).ids)

    def test_a_new_record_names_what_goes_before(self):
        new = self.received.but(migration=TWO, follows="", ids=(), id="new")
        found = Finished(received=self.received.but(ids=("a",))).precede(new)
        self.assertEqual((ONE, ("a", "web")), (found.follows, found.ids))
        self.assertEqual(new, Finished().precede(new))
        self.assertEqual(new, Finished(received=new).precede(new), "it does not follow itself")


class ReceivedTests(Case):
    def check(self, present=THERE, **keywords):
        check_received(self.records, read_finished(self.records), present, **keywords)

    def test_the_same_command_is_done(self):
        self.stand(received=self.received)
        for keywords in ({}, {"id": "web"}, {"overwrite": True}, {"overwrite": True, "id": "web"}):
            self.done(lambda keywords=keywords: self.check(**keywords), "far:/disk", "later", "web")

    def test_it_is_not_done_where_anything_differs(self):
        here = self.received.destination
        for changes, present, words in (
            ({"confirmed": ""}, THERE, "was not seen"),
            ({"destination": Location("far", here.disk)}, THERE, "that was on far"),
            ({"destination": Location(HERE, "/z")}, THERE, "that was /z"),
            ({"destination": Location(HERE)}, THERE, "that was"),
            ({"size": 6}, THERE, "it had 6 bytes then, and has 5 now"),
            ({}, Present(5, OTHER), "another disk has its name"),
            ({}, Present(5, MAYBE), "nothing proves"),
            ({"identity": ""}, Present(5, ""), "nothing proves"),
            ({}, NOTHING, "nothing is there"),
        ):
            self.stand(received=self.received.but(**changes))
            for keywords in ({}, {"id": "web"}, {"overwrite": True, "id": "web"}):
                self.stopped(
                    lambda present=present, keywords=keywords: self.check(present, **keywords),
                    words,
                    "was received from far:/disk",
                    "disk.RECEIVED",
                    "blockmig forget",
                )

    def test_another_migration_needs_a_new_id_and_overwrite(self):
        for records in (
            {"received": self.received},
            {"migrated": self.migrated},
            {"accepted": self.received},
        ):
            self.stand(**records)
            self.check(overwrite=True, id="new")
            self.stopped(lambda: self.check(id="new"), "overwrite=True")
            self.stand(**{kind: record.but(ids=("old",)) for kind, record in records.items()})
            self.stopped(lambda: self.check(overwrite=True, id="old"), "never used twice")

    def test_what_was_sent_away_since_is_not_received(self):
        on = self.migrated.but(migration=TWO, follows=ONE)
        self.stand(received=self.received, migrated=on)
        for keywords in ({}, {"id": "web"}, {"overwrite": True}):
            self.stopped(lambda keywords=keywords: self.check(**keywords))

    def test_nothing_on_record_permits_everything(self):
        self.check()
        self.check(NOTHING, id="new")


class MigratedTests(Case):
    def check(self, present=THERE, destination=URI, **keywords):
        finished = read_finished(self.records)
        return check_migrated(self.records, finished, present, destination, **keywords)

    def test_the_same_command_is_done(self):
        for record, present in ((self.migrated, THERE), (self.deleted, NOTHING)):
            self.stand(migrated=record)
            for keywords in ({}, {"id": "web"}, {"overwrite": True}, {"unlink": record.unlink}):
                self.done(
                    lambda keywords=keywords, present=present: self.check(present, **keywords),
                    "far:/copy",
                    "later",
                    "web",
                )

    def test_it_is_not_done_where_anything_differs(self):
        here = self.migrated.source
        for record, present, keywords, words in (
            (self.migrated, THERE, {"destination": "nbd://z"}, "nbd://z"),
            (self.migrated, THERE, {"destination": ""}, "without a URI"),
            (self.migrated, THERE, {"unlink": True}, "it was kept"),
            (self.migrated, NOTHING, {}, "nothing is there"),
            (self.migrated, Present(6, SAME), {}, "5 bytes then, and has 6 now"),
            (self.migrated, Present(5, OTHER), {}, "another disk"),
            (self.migrated, Present(5, MAYBE), {}, "nothing proves"),
            (self.migrated.but(identity=""), Present(5), {}, "nothing proves"),
            (self.deleted, THERE, {}, "another file"),
            (self.deleted.but(source=Location("far", here.disk)), NOTHING, {}, "on far"),
            (self.deleted.but(source=Location(HERE, "/z")), NOTHING, {}, "that was /z"),
        ):
            self.stand(migrated=record)
            for id in ("", "web"):
                self.stopped(
                    lambda present=present, keywords=keywords, id=id: self.check(
                        present, **keywords, id=id
                    ),
                    words,
                    "disk.MIGRATED",
                    "blockmig forget",
                )

    def test_a_disk_that_was_written_since_is_not_the_one_that_went(self):
        record = self.migrated.but(written="5 17")
        written = Present(5, SAME, "5 18")
        device = "device 8:0; diskseq 9; wwid naa.5"
        counted = record.but(identity=device, boot=boot_id())
        for left, present in (
            (record, written),
            (record.but(confirmed=""), written),
            (record, Present(6, SAME, "6 17")),
            (counted, Present(5, device, "5 18")),
            # A clone of another partition was attached meanwhile; that is no other disk.
            (counted, Present(5, f"{device}; partuuid-of-several 7", "5 18")),
        ):
            self.stand(migrated=left)
            for keywords in (
                {},
                {"id": "web"},
                {"id": "new"},
                {"overwrite": True},
                {"overwrite": True, "id": "web"},
                {"destination": "nbd://z"},
            ):
                self.stopped(
                    lambda present=present, keywords=keywords: self.check(present, **keywords),
                    "was written after it went to far:/copy",
                    "on far `blockmig inspect /copy`",
                    "overwrite=True with a new id=…",
                    f"`blockmig forget {self.records.path} --i-have-checked-the-destination`",
                )
            self.assertIsNone(self.check(present, overwrite=True, id="new"))
        # Nothing is concluded from what is not known, or not comparable.
        for left, present in (
            (self.migrated, written),
            (self.migrated.but(written="5 18"), written),
            (self.migrated.but(written="5 17"), THERE),
            (counted.but(written="5 18"), Present(5, device, "5 18")),
            (counted, Present(5, device.replace("diskseq 9", "diskseq 12"), "0 0")),
            (counted.but(boot="earlier"), Present(5, device, "0 0")),
            (
                counted.but(identity="device 8:0; wwid naa.5"),
                Present(5, "device 8:0; wwid naa.5", "0"),
            ),
        ):
            self.stand(migrated=left)
            self.done(lambda present=present: self.check(present), "nothing to do")

    def test_a_destination_without_a_URI_cannot_be_compared(self):
        record = self.deleted.but(destination=Location("far", "/copy"))
        self.stand(migrated=record)
        self.stopped(lambda: self.check(NOTHING, ""), "has a URI")

    def test_an_end_that_was_not_seen_is_looked_for_once_more(self):
        unseen = self.deleted.but(confirmed="")
        for record, finishes in (
            (unseen, True),
            (unseen.but(told="", side_export=False), True),
            (unseen.but(told=""), False),
        ):
            self.stand(migrated=record)
            if finishes:
                self.assertEqual(record, self.check(NOTHING).but(changed=""))
            else:
                self.stopped(lambda: self.check(NOTHING), "not seen to be complete")
            self.stopped(lambda: self.check(NOTHING, "nbd://z"))

    def test_the_command_that_forgets_names_the_disk(self):
        self.stand(migrated=self.deleted)
        words = self.stopped(self.check)
        self.assertIn(f"blockmig forget {self.records.path} --i-have-checked", words)
        directory = os.path.dirname(self.records.path)
        records = Records(f"{directory}/dev-vg0-web", device="/dev/vg0/web")
        records.write(Kind.MIGRATED, self.migrated.but(source=Location(HERE, "/dev/vg0/web")))
        words = self.stopped(
            lambda: check_migrated(records, read_finished(records), NOTHING, URI),
        )
        self.assertTrue(words.endswith(f"blockmig forget /dev/vg0/web --state-dir {directory}"))
