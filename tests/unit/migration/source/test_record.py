"""The record of the source, step by step."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid

from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import Refused
from blockmig.migration.handoff.channel import sender_message
from blockmig.migration.handoff.message import HandoffPhase, decode_message
from blockmig.migration.records.files import Kind, Location, Phase, Records
from blockmig.migration.records.finished import read_finished
from blockmig.migration.records.permitted import SourceState, source_state
from blockmig.migration.source.record import SourceRecord
from blockmig.storage import NotDurable
from blockmig.syscalls import SystemCalls
from tests.unit.support import ONE, BreakingCalls

URI = "nbd://there/x"
PLACE = Location("there", "/copy", URI)
WRITING = 2
"""The first call of a write, behind those of a look at what is recorded."""


class Case(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.records = Records(self.directory + "/disk")

    def make(self, found=None, records="", **keywords):
        keywords = {"identity": "inode 5, born 6", "destination": URI, **keywords}
        return SourceRecord(
            self.records if records == "" else records,
            found or SourceState(),
            disk="/disk",
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
    def test_nothing_is_recorded_before_the_first_attempt(self):
        source = self.make()
        uuid.UUID(source.record.migration)
        self.assertEqual((0, Phase.COPYING), (source.record.attempt, source.record.phase))
        self.assertEqual([], self.names())
        self.assertNotEqual(source.record.migration, self.make().record.migration)

    def test_the_record_of_an_unlinked_source_goes_through_every_step(self):
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
        self.assertEqual(["disk.MIGRATED"], self.names())
        self.assertTrue(self.migrated().unlink and self.migrated().retired)
        self.assertTrue(self.migrated().confirmed)

    def test_the_record_of_a_kept_source_ends_as_MIGRATED(self):
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

    def test_another_attempt_keeps_the_migration(self):
        source = self.make()
        source.copying(1, PLACE, True)
        source.copied()
        before = source.record
        source.copying(2, Location(address=URI), False)
        found = self.migrating()
        self.assertEqual(before.migration, found.migration)
        self.assertEqual((Phase.COPYING, 2, False), (found.phase, found.attempt, found.side_export))

    def test_a_later_run_continues_the_recorded_migration(self):
        first = self.make()
        first.copying(3, PLACE, True)
        second = self.make(SourceState(self.migrating()), unlink=True)
        self.assertEqual(first.record.migration, second.record.migration)
        self.assertEqual(first.record.began, second.record.began)
        self.assertEqual((3, True), (second.record.attempt, second.record.unlink))

    def test_a_record_to_be_finished_stays_unchanged(self):
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
        self.assertEqual(["disk.MIGRATED"], self.names())

    def test_a_source_without_records_keeps_its_state_in_memory(self):
        source = self.make(records=None)
        source.copying(1, PLACE, True)
        source.copied()
        self.assertEqual(Phase.COPIED, source.record.phase)
        source.mark_retired()
        source.acknowledged()
        source.complete()
        source.abandon()
        self.assertEqual([], self.names())


class EndTests(Case):
    def finished(self, seen, **keywords):
        source = self.make(unlink=True, **keywords)
        source.copying(1, PLACE, True)
        source.copied()
        source.acknowledged("token")
        self.assertFalse(source.end_seen)
        source.complete(seen=seen)
        return source

    def test_the_end_counts_as_seen_once_that_is_recorded(self):
        self.assertTrue(self.finished(True).end_seen)

    def test_an_end_that_was_only_told_is_not_seen(self):
        self.assertFalse(self.finished(False).end_seen)

    def test_what_is_recorded_nowhere_is_not_seen(self):
        self.assertFalse(self.finished(True, records=None).end_seen)

    def test_the_tombstone_names_the_server_to_which_clients_are_relayed(self):
        self.finished(True, successor="nbd://new/")
        self.assertEqual("nbd://new/", self.records.read(Kind.MIGRATED).successor)

    def test_a_later_attempt_says_anew_whether_clients_are_relayed(self):
        first = self.make(successor="nbd://new/")
        first.copying(1, PLACE, True)
        second = self.make(SourceState(self.migrating()))
        self.assertEqual("", second.record.successor)


class AbandonTests(Case):
    def test_abandoning_before_the_first_attempt_writes_nothing(self):
        calls = BreakingCalls()
        self.make(records=Records(self.records.path, calls)).abandon()
        self.assertEqual([], calls.calls)

    def test_the_record_stays_and_says_whether_a_whole_copy_may_exist(self):
        """What began at a receiver goes on there, and nowhere else under this id.

        A whole copy could be taken for the canonical one: only a destination that acknowledged a
        new attempt has none. What a foreign destination has is known by the record alone.
        """
        for earlier in (False, True):
            for steps, whole in (
                ("", False),
                ("side", False),
                ("plain", False),
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
                    left = self.migrating()
                    self.assertEqual(bool(earlier or steps), left is not None)
                    if left is not None:
                        self.assertEqual((Phase.COPYING, whole), (left.phase, left.whole))
                        self.assertEqual(source.record.migration, left.migration)

    def test_the_remaining_record_says_that_the_source_was_not_retired(self):
        """A source deleted later by others must not look as if we had deleted it."""
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

    def test_copying_again_is_recorded_as_not_whole(self):
        """The record says so until the copy is whole again."""
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

    def test_a_possible_copy_is_remembered_until_another_attempt_is_acknowledged(self):
        """However often the migration is begun and ended meanwhile."""
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

    def test_abandoning_a_copied_record_of_an_earlier_process_keeps_it_as_possible(self):
        """A process that died left the record; the next process ends before it has begun."""
        source = self.make(unlink=True)
        source.copying(1, PLACE, True)
        source.copied()
        self.make(SourceState(self.migrating()), unlink=True).abandon()
        found = self.migrating()
        self.assertEqual((Phase.COPYING, True), (found.phase, found.whole))
        self.assertEqual(PLACE, found.destination)


class LocationTests(Case):
    def going_on(self, *steps):
        first = self.make()
        first.copying(1, PLACE, True)
        for step in steps:
            getattr(first, step)()
        self.first = first.record.migration
        return self.make(SourceState(self.migrating()))

    def test_the_same_place_continues_the_migration(self):
        source = self.going_on("copied")
        source.check_location("there", "/copy")
        self.assertEqual(self.first, source.record.migration)

    def test_another_place_is_refused_after_the_copy_was_whole(self):
        for steps in (("copied",), ("copied", "abandon"), ("asking_copied", "abandon")):
            for place in (("there", "/other"), ("elsewhere", "/copy")):
                self.setUp()
                source = self.going_on(*steps)
                error = self.assertRaises(Refused, source.check_location, *place)
                for words in ("there:/copy", ":".join(place), "disk.MIGRATING"):
                    self.assertIn(words, str(error))
                self.assertEqual(self.first, source.record.migration)

    def test_another_place_gets_another_migration_while_the_copy_is_unfinished(self):
        source = self.going_on()
        source.check_location("there", "/other")
        self.assertNotEqual(self.first, source.record.migration)
        self.assertEqual(self.first, source.record.instead_of)
        self.assertEqual(self.first, self.migrating().migration)

    def test_the_first_migration_is_recorded_until_another_begins(self):
        """The other place may refuse; until then the record describes the first migration."""
        source = self.going_on()
        for _ in range(2):
            source.check_location("there", "/other")
            self.assertEqual(self.first, source.record.instead_of)
        source.abandon()
        found = self.migrating()
        self.assertEqual((self.first, "", PLACE), self.of(found))
        self.assertFalse(found.whole)

    def test_a_run_that_confirmed_nothing_adds_nothing_to_the_record(self):
        source = self.going_on()
        before = self.migrating()
        source.abandon()
        self.assertEqual(before, self.migrating())
        source.asking_copied()
        source.abandon()
        self.assertTrue(self.migrating().whole)

    def test_returning_to_the_first_place_continues_its_migration(self):
        source = self.going_on()
        source.check_location("there", "/other")
        source.check_location("there", "/copy")
        source.copying(2, PLACE, True)
        self.assertEqual((self.first, "", PLACE), self.of(self.migrating()))

    def of(self, record):
        return record.migration, record.instead_of, record.destination

    def test_an_attempt_that_never_flushed_needs_no_other_migration(self):
        """The first place acknowledged another attempt, and has no flush to answer."""
        source = self.make()
        source.copying(1, PLACE, True)
        before = source.record.migration
        source.check_location("there", "/other")
        self.assertEqual(before, source.record.migration)

    def test_an_unknown_place_continues_the_migration(self):
        source = self.make()
        source.copying(1, Location(address=URI), False)
        source.copied()
        source.check_location("there", "/copy")


class LaterTests(Case):
    """A migration after another one that is finished."""

    def test_a_torn_MIGRATED_is_replaced_at_the_end(self):
        with open(f"{self.records.path}.MIGRATED", "wb") as file:
            file.write(b"torn")
        source = self.make(unlink=True)
        source.copying(1, PLACE, True)
        source.copied()
        source.complete()
        self.assertEqual(["disk.MIGRATED"], self.names())
        self.assertEqual(source.record.migration, self.migrated().migration)

    def test_a_migration_that_replaces_another_is_continued(self):
        source = self.make(SourceState(instead_of=ONE), unlink=True)
        source.copying(1, PLACE, True)
        found = source_state(self.records, source.record.identity, URI, unlink=True)
        self.assertEqual(ONE, self.make(found, unlink=True).record.instead_of)

    def marked(self, **keywords):
        """The mark of an earlier migration, and another one beside it."""
        first = self.make(**keywords)
        first.record = first.record.but(id="one")
        first.copying(1, PLACE, True)
        first.copied()
        if not keywords:
            first.mark_retired()
        first.complete()
        self.before = self.migrated()
        found = source_state(
            self.records, first.record.identity, URI, size=5000, overwrite=True, id="two"
        )
        second = self.make(found, **keywords)
        second.copying(1, PLACE, True)
        return second

    def test_the_new_record_stands_beside_MIGRATED_and_names_it(self):
        for keywords in ({}, {"unlink": True}):
            second = self.marked(**keywords)
            self.assertEqual(["disk.MIGRATED", "disk.MIGRATING"], self.names())
            self.assertEqual(self.before, self.migrated())
            for record in (self.migrating(), second.record):
                self.assertEqual((self.before.migration, ("one",)), (record.follows, record.ids))
            second.copied()
            self.assertEqual(self.before, self.migrated())
            second.mark_retired()
            self.assertEqual(second.record.migration, self.migrated().migration)
            second.complete()
            self.assertEqual(["disk.MIGRATED"], self.names())
            found = self.migrated()
            self.assertEqual((self.before.migration, ("one",)), (found.follows, found.ids))
            self.records.remove(Kind.MIGRATED)

    def test_MIGRATED_counts_after_the_new_migration_is_abandoned(self):
        """Which goes on as itself, as after a crash."""
        second = self.marked()
        second.abandon()
        self.assertEqual(["disk.MIGRATED", "disk.MIGRATING"], self.names())
        self.assertEqual(self.before, self.migrated())
        again = self.migrating()
        self.assertEqual((second.record.migration, Phase.COPYING), (again.migration, again.phase))

    def test_a_retired_disk_that_is_sent_again_is_not_called_canonical(self):
        self.assertEqual("the canonical copy", self.make().standing)
        second = self.marked()
        about = self.records, second.record.identity, URI
        for source in (second, self.make(source_state(*about, id=second.record.id))):
            self.assertIn("retired, since it was migrated to", source.standing)
        # A tombstone is about another disk.
        self.records.write(Kind.MIGRATED, self.before.but(unlink=True))
        found = source_state(self.records, second.record.identity, URI)
        self.assertEqual("the canonical copy", self.make(found).standing)

    def test_the_first_migration_is_finished_beside_the_record_of_the_second(self):
        """Its end was not seen, and the second was stopped: that stays as it is."""
        second = self.marked()
        second.abandon()
        left = self.migrating()
        unseen = self.before.but(confirmed="", told="then", side_export=True)
        unseen = self.records.write(Kind.MIGRATED, unseen)
        state = SourceState(unseen, retired=True, finished=read_finished(self.records))
        first = SourceRecord.finishing(self.records, state)
        first.complete(seen=False)
        self.assertEqual((unseen, left), (self.migrated(), self.migrating()))
        first.complete()
        self.assertTrue(self.migrated().confirmed)
        self.assertEqual(unseen.migration, self.migrated().migration)
        self.assertEqual(left, self.migrating())

    def test_the_destination_is_told_that_a_disk_is_sent_again(self):
        def said(source):
            message = sender_message(HandoffPhase.COPIED, source.record, 7)
            return decode_message(message.encode()).sent_again, source.record.sent_again

        self.assertEqual((False, False), said(self.make()))
        second = self.marked()
        about = self.records, second.record.identity, URI
        for source in (second, self.make(source_state(*about, id=second.record.id))):
            self.assertEqual((True, True), said(source))
        # A tombstone is about another disk.
        self.records.write(Kind.MIGRATED, self.before.but(unlink=True))
        self.assertEqual((False, False), said(self.make(source_state(*about, id="two"))))

    def test_what_is_advised_after_a_stop_is_permitted(self):
        """Another migration of a retired disk needs what this one needed."""
        plain = self.make()
        plain.copying(1, PLACE, True)
        self.assertIn("or send it elsewhere to begin another", plain.goes_on)
        self.records.remove(*Kind)
        second = self.marked()
        self.assertIn("goes on with the same command", second.goes_on)
        self.assertIn("elsewhere, with overwrite=True and a new id=…,", second.goes_on)
        about = self.records, second.record.identity, "nbd://z/"
        self.assertRaises(Refused, source_state, *about, size=5000)
        self.assertRaises(Refused, source_state, *about, size=5000, id="new")
        self.assertIsNone(source_state(*about, size=5000, overwrite=True, id="new").record)
        self.records.remove(*Kind)
        another = self.marked(unlink=True)
        self.assertIn("elsewhere, with a new id=…,", another.goes_on)
        self.assertRaises(Refused, source_state, *about, size=5000)
        self.assertIsNone(source_state(*about, size=5000, id="new").record)

    def test_a_destination_without_an_address_is_any_one(self):
        """The same command goes on with this migration wherever it leads to."""
        plain = self.make(destination="")
        plain.copying(1, Location("there", "/copy"), True)
        self.assertIn("elsewhere, with a new id=…,", plain.goes_on)
        about = self.records, plain.record.identity, ""
        self.assertEqual(plain.record.id, source_state(*about, size=5000).record.id)
        self.assertIsNone(source_state(*about, size=5000, id="new").record)

    def test_what_was_received_is_named_when_it_goes_on(self):
        received = self.make().record.but(migration=ONE, id="one", confirmed="then")
        self.records.write(Kind.RECEIVED, received)
        found = source_state(self.records, "inode 5, born 6", URI)
        source = self.make(found, unlink=True)
        source.copying(1, PLACE, True)
        source.copied()
        source.complete()
        self.assertEqual((ONE, ("one",)), (self.migrated().follows, self.migrated().ids))
        self.assertEqual(["disk.MIGRATED", "disk.RECEIVED"], self.names())

    def test_what_goes_before_stays_named_in_a_later_run(self):
        second = self.marked()
        about = self.records, second.record.identity, URI
        third = self.make(source_state(*about, id=second.record.id))
        third.copying(2, PLACE, True)
        found = self.migrating()
        self.assertEqual((second.record.migration, ("one",)), (found.migration, found.ids))
        self.assertEqual(self.before.migration, found.follows)

    def test_one_that_is_to_be_finished_once_more_is_not_written_again(self):
        """Its destination is not found any more."""
        source = self.make(unlink=True)
        source.copying(1, PLACE, True)
        source.copied()
        source.acknowledged()
        source.complete(seen=False)
        self.assertEqual("", self.migrated().confirmed)
        before = os.stat(self.directory).st_mtime_ns, self.migrated()
        found = source_state(self.records, None, URI)
        self.assertEqual((self.migrated(), True), (found.record, found.retired))
        source = SourceRecord.finishing(self.records, found)
        source.complete(seen=False)
        self.assertEqual(before, (os.stat(self.directory).st_mtime_ns, self.migrated()))
        source.complete()
        self.assertTrue(self.migrated().confirmed)


class RetireTests(Case):
    def test_the_source_is_retired_if_and_only_if_MIGRATED_stands(self):
        """The retirement may not be durable, but it counts if and only if MIGRATED exists."""
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

    def test_a_MIGRATED_of_another_migration_does_not_retire_this_one(self):
        source = self.make()
        source.copying(1, PLACE, True)
        self.records.write(Kind.MIGRATED, source.record.but(migration="other"))
        source._records = Records(self.records.path, BreakingCalls(0))
        error = self.assertRaises(OSError, source.mark_retired)
        self.assertEqual(errno.EIO, error.errno)
        self.assertNotIsInstance(error, NotDurable)

    def test_ACCEPTED_is_removed_with_a_deleted_source(self):
        kept = ["disk.ACCEPTED", "disk.MIGRATED"]
        for unlink, names in ((True, ["disk.MIGRATED"]), (False, kept)):
            source = self.make(unlink=unlink)
            source.copying(1, PLACE, True)
            self.records.write(Kind.ACCEPTED, source.record)
            source.copied()
            source.complete()
            self.assertEqual(names, self.names())

    def test_a_step_that_could_not_be_recorded_is_not_believed(self):
        source = self.make()
        source.copying(1, PLACE, True)
        source._records = Records(self.records.path, BreakingCalls(1))
        self.assertRaises(OSError, source.copied)
        self.assertEqual(Phase.COPYING, source.record.phase)
        source._records = Records(self.records.path, BreakingCalls(1))
        self.assertRaises(OSError, source.mark_retired)
        self.assertEqual("", source.record.retired)

    def test_an_acknowledgement_is_believed_without_a_record(self):
        """A full disk does not undo the acknowledgement; it is part of the next record."""
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

    def test_a_MIGRATED_that_cannot_be_confirmed_leaves_that_to_another_run(self):
        for unlink in (True, False):
            source = self.make(unlink=unlink)
            source.copying(1, PLACE, True)
            source.copied()
            if not unlink:
                source.mark_retired()
            before = self.names()
            source._records = Records(self.records.path, BreakingCalls(1))
            self.assertRaises(OSError, source.complete)
            self.assertEqual(before, self.names())
            self.assertIn("disk.MIGRATING", before)

    def test_a_step_of_one_migration_leaves_the_records_of_another(self):
        """Which another process has begun meanwhile."""
        for step in ("complete", "acknowledged", "abandon"):
            for unlink in (True, False):
                source = self.make(unlink=unlink)
                source.copying(1, PLACE, True)
                later = self.make(unlink=True)
                later.copying(1, PLACE, True)
                found = self.migrating()
                with contextlib.suppress(OSError):
                    getattr(source, step)()
                self.assertEqual((found, None), (self.migrating(), self.migrated()), step)

    def test_a_copied_that_may_be_recorded_counts_as_recorded(self):
        """The record may have got its name before the error: it says that we may delete it."""

        class Unsynced(SystemCalls):
            def sync_directory(self, path):
                raise OSError(errno.EIO, "Input/output error")

        source = self.make(unlink=True)
        source.copying(1, PLACE, True)
        source._records = Records(self.records.path, Unsynced())
        self.assertRaises(OSError, source.copied)
        self.assertTrue(source.says_deleted)
        source._records = self.records
        source.record_not_retired()
        self.assertEqual((Phase.COPYING, True), (self.migrating().phase, self.migrating().whole))
        self.assertFalse(source.says_deleted)

    def test_a_copied_that_was_certainly_not_recorded_says_nothing(self):
        source = self.make(unlink=True)
        source.copying(1, PLACE, True)
        source._records = Records(self.records.path, BreakingCalls(0))
        self.assertRaises(OSError, source.copied)
        self.assertFalse(source.says_deleted)
