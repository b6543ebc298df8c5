"""What the source has on record, step by step."""

from __future__ import annotations

import errno
import os
import uuid

from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import Refused
from blockmig.migration.records.files import Kind, Location, Phase, Records
from blockmig.migration.records.permitted import SourceState, source_state
from blockmig.migration.source.record import SourceRecord
from blockmig.storage import NotDurable
from tests.unit.support import ONE, BreakingCalls

URI = "nbd://there/x"
PLACE = Location("there", "/copy", URI)


class Case(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.records = Records(self.directory + "/disk")

    def make(self, found=None, records="", **keywords):
        keywords = {"identity": "inode 5, born 6", **keywords}
        return SourceRecord(
            self.records if records == "" else records,
            found or SourceState(),
            disk="/disk",
            destination=URI,
            size=5000,
            **keywords,
        )

    def names(self):
        return sorted(os.listdir(self.directory))

    def migrating(self):
        return self.records.read(Kind.MIGRATING)

    def migrated(self):
        return self.records.read(Kind.MIGRATED)


class StepTests(Case):
    def test_nothing_before_the_first_attempt(self):
        source = self.make()
        uuid.UUID(source.record.migration)
        self.assertEqual((0, Phase.COPYING), (source.record.attempt, source.record.phase))
        self.assertEqual([], self.names())
        self.assertNotEqual(source.record.migration, self.make().record.migration)

    def test_unlinked(self):
        source = self.make(unlink=True)
        source.copying(1, PLACE, True)
        found = self.migrating()
        self.assertEqual(found, source.record)
        self.assertEqual(
            (Phase.COPYING, 1, 5000, PLACE, True, True, "inode 5, born 6", ""),
            (
                found.phase,
                found.attempt,
                found.size,
                found.destination,
                found.unlink,
                found.side_export,
                found.identity,
                found.told,
            ),
        )
        self.assertEqual("/disk", found.source.disk)
        source.copied()
        self.assertEqual(Phase.COPIED, self.migrating().phase)
        self.assertEqual("", self.migrating().told)
        source.acknowledged()
        self.assertNotEqual("", self.migrating().told)
        self.assertEqual(Phase.COPIED, self.migrating().phase)
        source.complete()
        self.assertEqual([], self.names())

    def test_kept(self):
        source = self.make()
        source.copying(1, PLACE, True)
        source.copied()
        self.assertIsNone(self.migrated())
        source.mark_retired()
        found = self.migrated()
        self.assertEqual(("", True), (found.confirmed, bool(found.retired)))
        self.assertEqual(source.record.migration, found.migration)
        self.assertEqual("", self.migrating().retired)
        source.acknowledged()
        self.assertEqual(["disk.MIGRATED", "disk.MIGRATING"], self.names())
        source.complete()
        self.assertEqual(["disk.MIGRATED"], self.names())
        self.assertTrue(self.migrated().confirmed)
        self.assertEqual(found.retired, self.migrated().retired)

    def test_another_attempt(self):
        source = self.make()
        source.copying(1, PLACE, True)
        source.copied()
        before = source.record
        source.copying(2, Location(address=URI), False)
        found = self.migrating()
        self.assertEqual(before.migration, found.migration)
        self.assertEqual((Phase.COPYING, 2, False), (found.phase, found.attempt, found.side_export))

    def test_goes_on(self):
        first = self.make()
        first.copying(3, PLACE, True)
        second = self.make(SourceState(self.migrating()), unlink=True)
        self.assertEqual(first.record.migration, second.record.migration)
        self.assertEqual(first.record.began, second.record.began)
        self.assertEqual((3, True), (second.record.attempt, second.record.unlink))

    def test_to_be_finished_stays_as_it_is(self):
        first = self.make(unlink=True)
        first.copying(1, PLACE, True)
        first.copied()
        found = self.migrating()
        second = self.make(SourceState(found, True), identity="", unlink=False)
        self.assertIs(found, second.record)
        second.acknowledged()
        self.assertTrue(self.migrating().unlink)
        self.assertEqual("inode 5, born 6", self.migrating().identity)
        second.complete()
        self.assertEqual([], self.names())

    def test_without_records(self):
        source = self.make(records=None)
        source.copying(1, PLACE, True)
        source.copied()
        self.assertEqual(Phase.COPIED, source.record.phase)
        source.mark_retired()
        source.acknowledged()
        source.complete()
        source.abandon()
        self.assertEqual([], self.names())


class AbandonTests(Case):
    def test_before_the_first_attempt_nothing_is_touched(self):
        calls = BreakingCalls()
        self.make(records=Records(self.records.path, calls)).abandon()
        self.assertEqual([], calls.calls)

    def test_table(self):
        """The record stays where there may be a copy that is whole: it could be taken for the
        canonical one. Only a destination that acknowledged a new attempt has none. What a foreign
        destination has of it is known by the record alone."""
        for earlier in (False, True):
            for steps, stays in (
                ("", earlier),
                ("side", False),
                ("plain", True),
                ("side asking_copied", True),
                ("plain asking_copied", True),
                ("side asking_copied copied", True),
                ("side asking_copied side", False),
                ("side asking_copied copied side", False),
                ("side asking_copied copied_withdrawn", False),
                ("side asking_copied copied copied_withdrawn", False),
                ("side asking_copied copied copying_again", True),
                ("side asking_copied copied copying_again copied_withdrawn", False),
                ("side asking_copied copied copying_again asking_copied copied", True),
                ("side asking_copied copied_withdrawn asking_copied", True),
                ("side asking_copied copied plain", True),
                ("plain asking_copied copied plain", True),
                ("plain asking_copied side", False),
            ):
                with self.subTest(earlier=earlier, steps=steps):
                    self.records.remove(Kind.MIGRATING)
                    found = None
                    if earlier:
                        self.make().copying(1, PLACE, True)
                        found = SourceState(self.migrating())
                    source = self.make(found)
                    for step in steps.split():
                        if step in ("side", "plain"):
                            source.copying(1, PLACE, step == "side")
                        else:
                            getattr(source, step)()
                    source.abandon()
                    self.assertEqual(["disk.MIGRATING"] if stays else [], self.names())

    def test_what_is_left_says_that_it_was_not_retired(self):
        """A source that is deleted later on must not be taken for one that we have deleted."""
        for steps in (
            ("asking_copied",),
            ("asking_copied", "copied"),
            ("asking_copied", "copied", "copying_again"),
        ):
            self.setUp()
            source = self.make(unlink=True)
            source.copying(1, PLACE, True)
            for step in steps:
                getattr(source, step)()
            source.abandon()
            found = self.migrating()
            self.assertEqual((Phase.COPYING, True), (found.phase, found.whole))
            self.assertEqual(PLACE, found.destination)

    def test_in_use_again(self):
        """From then on it is on record that the copy is not whole, until it is once more."""
        source = self.make(unlink=True)
        self.assertFalse(source.asked)
        source.copying(3, PLACE, True)
        for _ in range(2):
            source.asking_copied()
            source.copied()
            before = self.migrating()
            self.assertEqual(Phase.COPIED, before.phase)
            source.copying_again()
            found = self.migrating()
            self.assertEqual(found, source.record)
            self.assertEqual(before.but(phase=Phase.COPYING, changed=found.changed), found)
            self.assertTrue(source.asked, "the destination has not heard of that yet")
        source.copied_withdrawn()
        self.assertFalse(source.asked)

    def test_it_stays_so(self):
        """However often it is begun and ended, until the destination has heard of another one."""
        source = self.make(unlink=True)
        source.copying(1, PLACE, True)
        source.copied()
        source.abandon()
        left = self.migrating()
        calls = BreakingCalls()
        again = self.make(SourceState(left), Records(self.records.path, calls), unlink=True)
        self.assertEqual((PLACE, True), (again.record.destination, again.record.whole))
        again.abandon()
        self.assertEqual((left, []), (self.migrating(), calls.calls))
        again = self.make(SourceState(left), unlink=True)
        again.copying(2, PLACE, True)
        self.assertFalse(self.migrating().whole)

    def test_one_that_said_copied(self):
        """A process that died left it so; the next one ends before it has begun."""
        source = self.make(unlink=True)
        source.copying(1, PLACE, True)
        source.copied()
        self.make(SourceState(self.migrating()), unlink=True).abandon()
        found = self.migrating()
        self.assertEqual((Phase.COPYING, True), (found.phase, found.whole))
        self.assertEqual(PLACE, found.destination)


class PlaceTests(Case):
    def going_on(self, *steps):
        first = self.make()
        first.copying(1, PLACE, True)
        for step in steps:
            getattr(first, step)()
        self.first = first.record.migration
        return self.make(SourceState(self.migrating()))

    def test_the_same(self):
        source = self.going_on("copied")
        source.check_location("there", "/copy")
        self.assertEqual(self.first, source.record.migration)

    def test_all_of_it_is_elsewhere(self):
        for steps in (("copied",), ("copied", "abandon"), ("asking_copied", "abandon")):
            for place in (("there", "/other"), ("elsewhere", "/copy")):
                self.setUp()
                source = self.going_on(*steps)
                error = self.assertRaises(Refused, source.check_location, *place)
                for words in ("there:/copy", ":".join(place), "--again"):
                    self.assertIn(words, str(error))
                self.assertEqual(self.first, source.record.migration)

    def test_it_may_be(self):
        source = self.going_on()
        source.check_location("there", "/other")
        self.assertNotEqual(self.first, source.record.migration)
        self.assertEqual(self.first, source.record.instead_of)
        self.assertEqual(self.first, self.migrating().migration)

    def test_not_before_it_has_begun_there(self):
        """That place may refuse it: what stands is still about the first one."""
        source = self.going_on()
        for _ in range(2):
            source.check_location("there", "/other")
            self.assertEqual(self.first, source.record.instead_of)
        source.abandon()
        found = self.migrating()
        self.assertEqual((self.first, "", PLACE), self.of(found))
        self.assertFalse(found.whole)

    def test_nothing_was_asked_for_this_time(self):
        """A run that came to nothing says no more than was known before it; one that did, does."""
        source = self.going_on()
        before = self.migrating()
        source.abandon()
        self.assertEqual(before, self.migrating())
        source.asking_copied()
        source.abandon()
        self.assertTrue(self.migrating().whole)

    def test_back_at_the_first(self):
        source = self.going_on()
        source.check_location("there", "/other")
        source.check_location("there", "/copy")
        source.copying(2, PLACE, True)
        self.assertEqual((self.first, "", PLACE), self.of(self.migrating()))

    def of(self, record):
        return record.migration, record.instead_of, record.destination

    def test_it_cannot_be(self):
        """The first one has heard of another attempt, and has no flush to answer."""
        source = self.make()
        source.copying(1, PLACE, True)
        before = source.record.migration
        source.check_location("there", "/other")
        self.assertEqual(before, source.record.migration)

    def test_where_no_place_is_known(self):
        source = self.make()
        source.copying(1, Location(address=URI), False)
        source.copied()
        source.check_location("there", "/copy")


class AgainTests(Case):
    def test_what_is_unreadable_goes_before_the_new_record_appears(self):
        for kind in ("MIGRATED", "MIGRATING"):
            with open(f"{self.records.path}.{kind}", "wb") as file:
                file.write(b"torn")
        calls = BreakingCalls()
        found = SourceState(instead_of=ONE, unreadable=(Kind.MIGRATED, Kind.MIGRATING))
        second = self.make(found, Records(self.records.path, calls), again=True)
        self.assertEqual(["disk.MIGRATED", "disk.MIGRATING"], self.names())
        second.copying(1, PLACE, True)
        names = [call[:2] for call in calls.calls]
        directory = os.path.basename(self.directory)
        synced = names.index(("fsync", directory))
        for kind in ("MIGRATED", "MIGRATING"):
            self.assertLess(names.index(("unlink", f"disk.{kind}")), synced)
        self.assertLess(synced, names.index(("open", "disk.MIGRATING.tmp")))
        self.assertEqual(ONE, self.migrating().instead_of)
        calls.calls.clear()
        second.copying(2, PLACE, True)
        self.assertNotIn("unlink", [call[0] for call in calls.calls], "once only")

    def test_instead_of_a_whole_copy_the_mark_stays(self):
        """The other copy may yet be taken for the canonical one; MIGRATED tells that it is not."""
        source = self.make(SourceState(instead_of=ONE), unlink=True, again=True)
        source.copying(1, PLACE, True)
        source.copied()
        source.acknowledged()
        source.complete()
        self.assertEqual(["disk.MIGRATED"], self.names())
        self.assertTrue(self.migrated().retired)
        self.assertTrue(self.migrated().confirmed)

    def test_instead_of_goes_on_with_the_migration(self):
        source = self.make(SourceState(instead_of=ONE), unlink=True, again=True)
        source.copying(1, PLACE, True)
        found = source_state(self.records, source.record.identity, URI, unlink=True)
        self.assertEqual(ONE, self.make(found, unlink=True).record.instead_of)

    def marked(self):
        """The mark of an earlier migration, and another one beside it."""
        first = self.make()
        first.copying(1, PLACE, True)
        first.copied()
        first.mark_retired()
        first.complete()
        self.before = self.migrated()
        found = source_state(self.records, first.record.identity, URI, again=True)
        second = self.make(found, again=True)
        second.copying(1, PLACE, True)
        return second

    def test_stands_beside_the_mark(self):
        second = self.marked()
        self.assertEqual(["disk.MIGRATED", "disk.MIGRATING"], self.names())
        self.assertEqual(self.before, self.migrated())
        self.assertTrue(self.migrating().again)
        second.copied()
        self.assertEqual(self.before, self.migrated())
        second.mark_retired()
        self.assertEqual(second.record.migration, self.migrated().migration)

    def test_the_mark_counts_as_before(self):
        self.marked().abandon()
        self.assertEqual(["disk.MIGRATED"], self.names())
        self.assertEqual(self.before, self.migrated())

    def test_the_mark_goes_with_a_source_that_is_deleted(self):
        self.unlinked(self.marked().record.identity)
        self.assertEqual([], self.names())

    def unlinked(self, identity):
        found = source_state(self.records, identity, URI, again=True)
        source = self.make(found, unlink=True, again=True)
        source.copied()
        source.acknowledged()
        source.complete()

    def test_on_record_though_it_is_not_said_again(self):
        """Or else the mark before it would count while it goes on."""
        second = self.marked()
        found = source_state(self.records, second.record.identity, URI)
        third = self.make(found)
        third.copying(2, PLACE, True)
        self.assertEqual((second.record.migration, True), self.of(self.migrating()))

    def of(self, record):
        return record.migration, record.again


class RetireTests(Case):
    def test_a_failure_at_each_call(self):
        """It is retired, perhaps not durably, if and only if the mark stands."""
        source = self.make()
        source.copying(1, PLACE, True)
        source.copied()
        for after in (False, True):
            index = 0
            while True:
                self.records.remove(Kind.MIGRATED)
                source._records = Records(self.records.path, BreakingCalls(index, after))
                try:
                    source.mark_retired()
                except NotDurable as error:
                    self.assertIsNotNone(self.migrated())
                    self.assertIn("perhaps not durably", str(error))
                except OSError:
                    self.assertIsNone(self.migrated())
                else:
                    break
                index += 1
            self.assertGreater(index, 6)
            self.assertIsNotNone(self.migrated())

    def test_a_mark_of_another_migration(self):
        """It does not retire this one."""
        source = self.make()
        source.copying(1, PLACE, True)
        self.records.write(Kind.MIGRATED, source.record.but(migration="other"))
        source._records = Records(self.records.path, BreakingCalls(0))
        error = self.assertRaises(OSError, source.mark_retired)
        self.assertEqual(errno.EIO, error.errno)
        self.assertNotIsInstance(error, NotDurable)

    def test_accepted_goes_with_a_source_that_is_deleted(self):
        for unlink, names in ((True, []), (False, ["disk.ACCEPTED", "disk.MIGRATED"])):
            source = self.make(unlink=unlink)
            source.copying(1, PLACE, True)
            self.records.write(Kind.ACCEPTED, source.record)
            source.copied()
            source.complete()
            self.assertEqual(names, self.names())

    def test_what_could_not_be_written_is_not_believed(self):
        source = self.make()
        source.copying(1, PLACE, True)
        source._records = Records(self.records.path, BreakingCalls(1))
        self.assertRaises(OSError, source.copied)
        self.assertEqual(Phase.COPYING, source.record.phase)
        source._records = Records(self.records.path, BreakingCalls(1))
        self.assertRaises(OSError, source.mark_retired)
        self.assertEqual("", source.record.retired)

    def test_but_what_was_acknowledged_is(self):
        """It is not made untrue by a disk that is full; and goes into the next record."""
        source = self.make()
        source.copying(1, PLACE, True)
        source.copied()
        source._records = Records(self.records.path, BreakingCalls(0))
        self.assertRaises(OSError, source.acknowledged, "key")
        self.assertEqual(("key", True), (source.record.token, bool(source.record.told)))
        self.assertEqual("", self.migrating().told)
        source._records = self.records
        source.complete()
        self.assertTrue(self.migrated().told)

    def test_a_mark_that_cannot_be_amended(self):
        """It stands all the same, and nothing is left to be finished."""
        source = self.make()
        source.copying(1, PLACE, True)
        source.copied()
        source.mark_retired()
        source._records = Records(self.records.path, BreakingCalls(0))
        source.complete()
        self.assertEqual(["disk.MIGRATED"], self.names())
        self.assertEqual("", self.migrated().confirmed)
        # Unlike one that is not there yet, and is all that tells of a copy.
        source = self.make(SourceState(instead_of=ONE), unlink=True)
        source.copying(1, PLACE, True)
        source._records = Records(self.records.path, BreakingCalls(0))
        self.assertRaises(OSError, source.complete)
        self.assertEqual(["disk.MIGRATED", "disk.MIGRATING"], self.names())
