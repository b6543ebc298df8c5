"""The verdicts, as a table, and how a disk is examined."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.verdict import (
    CopyState,
    DiskState,
    examine,
    examine_until_stable,
    unstable_verdict,
    verdict_of,
    verdict_of_pair,
)
from blockmig.storage import DiskRefused, FileDisk, Relation
from blockmig.syscalls import SystemCalls
from tests.unit.support import ONE, TWO

URI = "nbd://there/x"


SAME, OTHER, MAYBE = "inode 5, born 1", "inode 6, born 2", "inode 5, written 2"


RECORD = Record(
    migration=ONE,
    phase=Phase.COPYING,
    attempt=2,
    size=5,
    source=Location("here", "/disk"),
    destination=Location("there", "/copy", URI),
    began="then",
    changed="since",
    identity=SAME,
)


COPIED = RECORD.but(phase=Phase.COPIED)


RETIRED = COPIED.but(retired="when")


FOREIGN = COPIED.but(identified=False, source=Location(address="192.0.2.7:4711"))


UNLINK = COPIED.but(unlink=True)


ACCEPTED = COPIED.but(by="me")


EARLIER = RETIRED.but(migration=TWO)


# The end of the first migration, at either end, and another one after it.
GONE = RETIRED.but(unlink=True, confirmed="then")
RECEIVED = RETIRED.but(confirmed="then")
LATER = RECORD.but(migration=TWO, follows=ONE)
LATER_COPIED = LATER.but(phase=Phase.COPIED)
LATER_GONE = LATER_COPIED.but(unlink=True)
NEXT = LATER

# A retired disk that was kept, and is sent once more.
AGAIN = RECORD.but(follows=TWO)
AGAIN_COPIED = COPIED.but(follows=TWO)
AGAIN_GONE = UNLINK.but(again=True)
ON = EARLIER.but(follows=ONE)
HOME = RECEIVED.but(migration="three", follows=TWO)


HERE = os.uname().nodename


YES, NO = CopyState.CANONICAL, CopyState.NOT_CANONICAL


IF, UNKNOWN = CopyState.CONDITIONAL, CopyState.UNKNOWN


def place(path="/a", size=5, identity=SAME, bad=(), **records):
    found = {Kind(name.upper()): record for name, record in records.items()}
    broken = {Kind(name.upper()): f"/a.{name} is torn" for name in bad}
    return DiskState(path, size, identity, records=found, bad=broken)


def gone(path="/a", **more):
    return place(path, None, "", **more)


class Case(SynchronousTestCase):
    def check_form(self, verdict):
        for text in (verdict.line, verdict.why, verdict.advice):
            self.assertTrue(text)
            self.assertNotIn("\n", text)
        beginnings = {
            YES: "canonical",
            NO: "not canonical",
            IF: "canonical only if the source was retired",
            UNKNOWN: "unknown: ",
        }
        self.assertTrue(verdict.line.startswith(beginnings[verdict.state]), verdict.line)
        self.assertEqual(verdict.state == YES, bool(verdict.canonical))


class RescuedTests(Case):
    """A copy that lost its name after the retirement and got another one."""

    MOVED = RETIRED.but(identity="", destination=Location(HERE, "/a", URI))

    def test_a_rescued_copy_is_canonical_and_is_to_be_accepted(self):
        verdict = verdict_of(place("/a.rescued", incomplete=self.MOVED))
        self.check_form(verdict)
        self.assertEqual(YES, verdict.state)
        self.assertIn("blockmig accept /a.rescued", verdict.advice)
        self.assertNotIn("run both commands", verdict.advice)
        verdict = verdict_of(place("/a", incomplete=self.MOVED))
        self.assertIn("run both commands", verdict.advice)

    def test_a_rescued_copy_is_canonical_beside_its_source_record(self):
        source = gone("/b", migrating=UNLINK.but(destination=Location(HERE, "/a", URI)))
        for migration, canonical in ((ONE, "/a.rescued"), (TWO, "")):
            copy = place("/a.rescued", incomplete=self.MOVED.but(migration=migration))
            for pair in ((source, copy), (copy, source)):
                self.assertEqual(canonical, verdict_of_pair(*pair).canonical)


class VerdictTests(Case):
    def test_a_single_place_is_judged_as_the_table_says(self):
        for found, state, words in (
            # Nothing on record.
            (place(), YES, "no record"),
            (gone(), UNKNOWN, "neither /a nor a record"),
            (place(size=0), NO, "empty"),
            # Destinations.
            (place(incomplete=RECORD), NO, "attempt 2 of a migration from here:/disk"),
            (place(size=0, incomplete=RECORD), NO, "attempt 2"),
            (gone(incomplete=RECORD), NO, "attempt 2"),
            (place(identity=OTHER, incomplete=RECORD), UNKNOWN, "is another file"),
            (place(identity=MAYBE, incomplete=RECORD), NO, "attempt 2"),
            (place(identity=OTHER, size=0, incomplete=RECORD), NO, "attempt 2"),
            (
                place(incomplete=COPIED),
                IF,
                "the sender never reported whether the source was retired",
            ),
            (place(incomplete=FOREIGN), IF, "never reported"),
            (place(identity=MAYBE, incomplete=COPIED), IF, "never reported"),
            (place(identity=OTHER, incomplete=COPIED), UNKNOWN, "another disk"),
            (place(identity=OTHER, incomplete=RETIRED), UNKNOWN, "another disk"),
            (place(identity=OTHER, incomplete=COPIED.but(identity="")), IF, "never reported"),
            (place(size=6, incomplete=COPIED), UNKNOWN, "another disk"),
            (place(size=0, incomplete=COPIED), UNKNOWN, "another disk"),
            (gone(incomplete=COPIED), UNKNOWN, "is gone"),
            (gone(incomplete=RETIRED), UNKNOWN, "is gone"),
            (place(incomplete=RETIRED), YES, "was retired before when"),
            # What cannot be understood.
            (place(bad=["incomplete"]), UNKNOWN, "torn"),
            (place(bad=["migrated"]), UNKNOWN, "torn"),
            (place(bad=["migrating"]), UNKNOWN, "torn"),
            (gone(bad=["migrating"]), UNKNOWN, "torn"),
            (place(bad=["migrating"], migrated=RETIRED), UNKNOWN, "torn"),
            (place(bad=["migrated"], incomplete=COPIED), UNKNOWN, "torn"),
            # That it arrived, where that decides.
            (place(bad=["accepted"]), UNKNOWN, "torn"),
            (place(bad=["accepted"], migrated=RETIRED), UNKNOWN, "torn"),
            (place(bad=["accepted"], incomplete=COPIED), IF, "never reported"),
            (place(bad=["accepted"], incomplete=RECORD), NO, "attempt 2"),
            (place(bad=["accepted"], received=RECEIVED), YES, "was received from"),
            # Accepted.
            (place(accepted=ACCEPTED), YES, "me declared it canonical on since"),
            (gone(accepted=ACCEPTED), UNKNOWN, "is gone"),
            (place(accepted=ACCEPTED, incomplete=COPIED), YES, "me declared"),
            (place(accepted=ACCEPTED, incomplete=RECORD), NO, "attempt 2"),
            (place(accepted=ACCEPTED.but(migration=TWO), incomplete=COPIED), IF, "never reported"),
            (place(size=0, accepted=ACCEPTED), NO, "empty"),
            # Sources.
            (place(migrating=RECORD), YES, "is not known to be whole"),
            (place(migrating=RECORD.but(whole=True)), YES, "may have all of it"),
            (place(migrating=RECORD.but(whole=True, unlink=True)), YES, "may have all of it"),
            (gone(migrating=RECORD.but(whole=True, unlink=True)), UNKNOWN, "did not delete it"),
            (place(migrating=COPIED), YES, "this one was not retired"),
            (place(migrating=UNLINK), YES, "this one was not retired"),
            (place(identity=MAYBE, migrating=COPIED), YES, "was not retired"),
            # Another file has the name, whatever became of the one that was sent.
            (place(identity=OTHER, migrating=COPIED), UNKNOWN, "is another file"),
            (place(identity=OTHER, migrating=RECORD), UNKNOWN, "is another file"),
            (place(identity=OTHER, migrating=RECORD.but(unlink=True)), UNKNOWN, "is another file"),
            (gone(migrating=UNLINK), NO, "was deleted once all of it was durable"),
            # Somebody has put a file there, perhaps our source's own back-up.
            (
                place(identity=OTHER, migrating=UNLINK),
                UNKNOWN,
                "another file may have taken its place",
            ),
            (place(identity=MAYBE, migrating=UNLINK), UNKNOWN, "may not be the file"),
            (gone(migrating=RECORD), UNKNOWN, "did not delete it"),
            (gone(migrating=RECORD.but(unlink=True)), UNKNOWN, "did not delete it"),
            (gone(migrating=COPIED), UNKNOWN, "did not delete it"),
            (place(migrated=RETIRED), NO, "was migrated to there:/copy"),
            (place(migrated=RETIRED, migrating=COPIED), NO, "was migrated to"),
            (gone(migrated=RETIRED), NO, "was migrated to"),
            (place(migrated=RETIRED, accepted=ACCEPTED), NO, "was migrated to"),
            (place(identity=MAYBE, migrated=RETIRED), NO, "was migrated to"),
            (place(identity=OTHER, migrated=RETIRED), UNKNOWN, "another file has the name of the"),
            # The tombstone of a disk that was deleted.
            (gone(migrated=GONE), NO, "was migrated to there:/copy"),
            (gone(migrated=GONE, migrating=UNLINK), NO, "and deleted here"),
            (place(migrated=GONE), UNKNOWN, "another file has the name of the disk that went to"),
            (place(identity=OTHER, migrated=GONE), UNKNOWN, "another file has the name"),
            (place(migrated=GONE, migrating=LATER), YES, "not known to be whole"),
            (gone(migrated=GONE, migrating=LATER), UNKNOWN, "is gone"),
            # Received.
            (place(received=RECEIVED), YES, "was received from here:/disk"),
            (place(identity=MAYBE, received=RECEIVED), YES, "was received from"),
            (place(size=6, received=RECEIVED), YES, "was received from"),
            (place(size=0, received=RECEIVED), UNKNOWN, "is empty"),
            (gone(received=RECEIVED), UNKNOWN, "is gone"),
            (place(identity=OTHER, received=RECEIVED), YES, "about another file"),
            (place(incomplete=RETIRED, received=RECEIVED), YES, "was received from"),
            (place(incomplete=COPIED, received=RECEIVED), YES, "was received from"),
            (place(incomplete=NEXT, received=RECEIVED), NO, "attempt 2"),
            (place(bad=["received"]), UNKNOWN, "torn"),
            (gone(bad=["received"]), UNKNOWN, "torn"),
            (place(bad=["received"], incomplete=COPIED), IF, "never reported"),
            (place(bad=["received"], incomplete=RECORD), UNKNOWN, "torn"),
            (place(bad=["received"], migrated=RETIRED), UNKNOWN, "torn"),
            (place(bad=["received"], migrating=RECORD), YES, "not known to be whole"),
            (place(bad=["received"], accepted=ACCEPTED), YES, "declared it canonical"),
            # Received, then sent on; the later record names the earlier one.
            (place(received=RECEIVED, migrating=LATER), YES, "not known to be whole"),
            (place(received=RECEIVED, migrated=ON), NO, "was migrated to"),
            (gone(received=RECEIVED, migrated=ON.but(unlink=True)), NO, "was migrated to"),
            (place(received=RECEIVED, migrated=ON.but(follows="")), NO, "was migrated to"),
            # Sent away, and come home.
            (place(migrated=ON.but(follows=""), received=HOME), YES, "was received from"),
            (place(migrated=EARLIER, migrating=RECORD), NO, "was migrated to"),
            (place(migrated=RETIRED, migrating=COPIED.but(again=True)), NO, "was migrated to"),
        ):
            with self.subTest(found=found):
                verdict = verdict_of(found)
                self.assertEqual(state, verdict.state, verdict)
                self.assertIn(words, verdict.why)
                self.check_form(verdict)

    def test_a_retired_disk_that_is_sent_again_stays_retired_until_it_is_retired_anew(self):
        """A human has it sent once more with --overwrite: by whichever version."""
        copying, whole = RECORD, RECORD.but(whole=True)
        deleting, told = UNLINK, UNLINK.but(told="when")
        for later, here, gone_here in (
            (copying, NO, NO),
            (copying.but(unlink=True), NO, NO),
            (whole, NO, NO),
            (whole.but(unlink=True), NO, NO),
            (COPIED, NO, UNKNOWN),
            (deleting, NO, NO),
            (told, NO, NO),
        ):
            for begun in (later.but(follows=TWO), later.but(again=True)):
                went = EARLIER.but(destination=Location("old", "/old", "nbd://old"))
                records = {"migrated": went, "migrating": begun}
                for identity, state in ((SAME, here), (MAYBE, here), (OTHER, UNKNOWN)):
                    with self.subTest(begun=begun, identity=identity):
                        verdict = verdict_of(place(identity=identity, **records))
                        self.check_form(verdict)
                        self.assertEqual(state, verdict.state, verdict)
                        if state == NO:
                            self.assertIn("was migrated to old:/old", verdict.why)
                            self.assertIn("sent again to there:/copy", verdict.why)
                            self.assertIn("--overwrite", verdict.why)
                with self.subTest(begun=begun):
                    verdict = verdict_of(gone(**records))
                    self.check_form(verdict)
                    self.assertEqual(gone_here, verdict.state, verdict)
                    decides = begun.phase == Phase.COPIED
                    self.assertIn("there:/copy" if decides else "old:/old", verdict.why)
        # MIGRATED of another disk: what is here is an ordinary one.
        for other in (EARLIER.but(identity=OTHER), EARLIER.but(unlink=True)):
            found = place(migrated=other, migrating=RECORD.but(follows=TWO))
            self.assertEqual(YES, verdict_of(found).state)

    def test_of_the_copy_of_a_disk_that_was_sent_again_the_source_says_which_it_is(self):
        """That it is not canonical there does not make this copy the canonical one."""
        verdict = verdict_of(place(incomplete=COPIED.but(sent_again=True)))
        self.check_form(verdict)
        self.assertEqual(IF, verdict.state)
        self.assertIn("was retired anew: look at here:/disk", verdict.line)
        self.assertIn("retired anew", verdict.why)
        self.assertIn("only if it says that it was migrated to there:/copy", verdict.advice)
        self.assertNotIn("accept", verdict.advice)
        told = verdict_of(place(incomplete=COPIED.but(sent_again=True, retired="then")))
        self.assertEqual(YES, told.state)
        # Both in front of you.
        again = place("/disk", migrated=EARLIER, migrating=AGAIN_COPIED)
        copy = place("/copy", incomplete=AGAIN_COPIED.but(sent_again=True))
        self.assertEqual(UNKNOWN, verdict_of_pair(again, copy).state)
        anew = verdict_of_pair(place("/disk", migrated=RETIRED.but(follows=TWO)), copy)
        self.assertEqual("/copy", anew.canonical)
        self.assertNotIn("accept", anew.advice)

    def test_what_was_written_after_it_was_retired_is_said(self):
        retired = RETIRED.but(written="5 17")
        found = replace(place(migrated=retired), written="5 18")
        verdict = verdict_of(found)
        self.check_form(verdict)
        self.assertEqual(NO, verdict.state)
        self.assertIn("it was written after that", verdict.why)
        self.assertIn("--overwrite", verdict.advice)
        for same in (replace(found, written="5 17"), replace(found, written="")):
            self.assertNotIn("written", verdict_of(same).why)

    def test_the_advice_fits_the_verdict(self):
        for found, words in (
            (place(incomplete=COPIED), "on here run `blockmig inspect /disk`"),
            (place(incomplete=COPIED), "blockmig accept /a --i-have-checked-the-source"),
            (place(incomplete=FOREIGN), "the sender did not identify itself"),
            (place(incomplete=FOREIGN), "its MIGRATING says that it was not deleted"),
            (place(incomplete=RECORD), "run both commands again"),
            (gone(migrating=UNLINK), "run the same send command again to finish"),
            (place(migrated=RETIRED), "use the copy at there:/copy"),
            (place(migrated=RETIRED, migrating=COPIED), "run the same send command again"),
        ):
            self.assertIn(words, verdict_of(found).advice)
        line = verdict_of(place(incomplete=COPIED)).line
        self.assertEqual("canonical only if the source was retired: look at here:/disk", line)


class PairTests(Case):
    def both(self, source, copy, canonical, words=""):
        """In whichever order, the verdict is the same."""
        for one, other in ((source, copy), (copy, source)):
            verdict = verdict_of_pair(one, other)
            self.check_form(verdict)
            self.assertEqual(canonical or "", verdict.canonical, verdict)
            self.assertEqual(YES if canonical else UNKNOWN, verdict.state)
            if canonical:
                self.assertEqual(f"canonical: {canonical}", verdict.line)
            self.assertIn(words, verdict.why)

    def test_two_places_are_judged_as_the_table_says(self):
        def s(**more):
            return place("/s", **more)

        def sgone(**more):
            return gone("/s", **more)

        def d(**more):
            return place("/d", **more)

        def elsewhere(record):
            return record.but(destination=Location(HERE, "/z", URI))

        for source, copy, canonical in (
            # From the beginning to the end, --unlink.
            (s(), gone("/d"), None),
            (s(), d(size=0), "/s"),
            (s(), d(size=0, incomplete=RECORD), "/s"),
            (s(migrating=RECORD), d(incomplete=RECORD), "/s"),
            (s(migrating=RECORD), d(incomplete=COPIED), "/s"),
            (s(migrating=UNLINK), d(incomplete=COPIED), "/s"),
            (sgone(migrating=UNLINK), d(incomplete=COPIED), "/d"),
            (s(identity=OTHER, migrating=UNLINK), d(incomplete=COPIED), None),
            (sgone(migrating=UNLINK), d(incomplete=RETIRED), "/d"),
            (sgone(migrating=UNLINK), d(), "/d"),
            (sgone(), d(), None),
            # Kept.
            (s(migrating=COPIED), d(incomplete=COPIED), "/s"),
            (s(migrating=COPIED, migrated=RETIRED), d(incomplete=COPIED), "/d"),
            (s(migrating=COPIED, migrated=RETIRED), d(incomplete=RETIRED), "/d"),
            (s(migrating=COPIED, migrated=RETIRED), d(), "/d"),
            (s(migrated=RETIRED), d(), "/d"),
            # A foreign sender's copy, and its source is still there.
            (s(), d(incomplete=FOREIGN), "/s"),
            (sgone(), d(incomplete=FOREIGN), None),
            (s(size=6), d(incomplete=FOREIGN), None),
            # Or a sender of ours that found no side export there.
            (s(migrated=RETIRED), d(incomplete=FOREIGN.but(migration=TWO)), "/d"),
            (s(migrated=elsewhere(RETIRED)), d(incomplete=FOREIGN.but(migration=TWO)), None),
            (s(migrated=RETIRED.but(size=6)), d(incomplete=FOREIGN.but(migration=TWO)), None),
            # What arrived is canonical whatever became of the records of its source.
            (sgone(), d(received=RECEIVED), "/d"),
            (sgone(migrated=GONE), d(received=RECEIVED), "/d"),
            (sgone(migrated=GONE), d(size=6, received=RECEIVED), "/d"),
            (sgone(migrating=UNLINK), d(incomplete=RETIRED, received=RECEIVED), "/d"),
            (s(migrated=RETIRED), d(received=RECEIVED), "/d"),
            (s(migrated=RETIRED), d(received=RECEIVED.but(migration=TWO)), None),
            (s(migrated=RETIRED), d(received=RECEIVED.but(migration=TWO, identified=False)), "/d"),
            (s(migrating=COPIED), d(received=RECEIVED), None),
            (sgone(), d(identity=OTHER, received=RECEIVED), None),
            (sgone(migrated=GONE), gone("/d", received=RECEIVED), None),
            (sgone(migrated=GONE), gone("/d"), None),
            (gone("/s", migrated=GONE, migrating=LATER_GONE), d(incomplete=LATER_COPIED), "/d"),
            # Kept, and sent once more to another place: where it went first, and there.
            (s(migrated=EARLIER, migrating=AGAIN), d(received=RECEIVED.but(migration=TWO)), "/d"),
            (s(migrated=EARLIER, migrating=AGAIN_COPIED), d(received=RECEIVED), None),
            (s(migrated=EARLIER, migrating=AGAIN), d(incomplete=RECORD), None),
            (s(migrated=EARLIER, migrating=AGAIN_COPIED), d(incomplete=COPIED), None),
            (s(migrated=RETIRED, migrating=AGAIN_COPIED), d(incomplete=COPIED), "/d"),
            (sgone(migrated=EARLIER, migrating=AGAIN_GONE), d(incomplete=COPIED), "/d"),
            (sgone(migrated=EARLIER, migrating=AGAIN_GONE), d(incomplete=RETIRED), "/d"),
            (sgone(migrated=EARLIER, migrating=AGAIN_GONE), d(received=RECEIVED), "/d"),
            (
                sgone(migrated=EARLIER, migrating=AGAIN),
                d(received=RECEIVED.but(migration=TWO)),
                "/d",
            ),
            # Accepted by a human.
            (sgone(), d(accepted=ACCEPTED), "/d"),
            (s(migrated=RETIRED), d(accepted=ACCEPTED), "/d"),
            # While a source is not retired, it does not matter what the destination looks like.
            (s(migrating=RECORD), d(), "/s"),
            (s(migrating=RECORD), d(bad=["incomplete"]), "/s"),
            (s(migrating=UNLINK), gone("/d"), "/s"),
            # Sizes and places must fit.
            (s(), d(incomplete=COPIED), "/s"),
            (s(size=6), d(incomplete=COPIED), None),
            (s(), d(incomplete=COPIED.but(source=Location(HERE, "/s"))), "/s"),
            (s(), d(incomplete=COPIED.but(source=Location(HERE, "/z"))), None),
            (s(migrated=RETIRED), d(size=6), None),
            (sgone(migrating=UNLINK), d(size=6), None),
            (s(migrated=RETIRED.but(destination=Location(HERE, "/d", URI))), d(), "/d"),
            (s(migrated=elsewhere(RETIRED)), d(), None),
            (sgone(migrating=elsewhere(UNLINK)), d(), None),
            (sgone(migrating=elsewhere(UNLINK)), d(incomplete=COPIED), None),
            (s(migrating=elsewhere(UNLINK)), d(incomplete=COPIED), None),
            (
                sgone(migrating=UNLINK.but(destination=Location(address=URI))),
                d(incomplete=COPIED),
                "/d",
            ),
            # What is a copy itself does not tell of the source.
            (place("/e", incomplete=RECORD), d(incomplete=COPIED), None),
            (place("/e", incomplete=RECORD, migrating=RECORD), d(incomplete=COPIED), None),
            # Nothing is known, or it contradicts itself.
            (s(), d(), None),
            (s(), d(bad=["incomplete"]), None),
            (s(), d(incomplete=RETIRED), None),
            (s(migrating=UNLINK), d(incomplete=RETIRED), None),
            (s(migrating=RECORD), d(accepted=ACCEPTED), None),
            (sgone(), gone("/d"), None),
            (sgone(), d(incomplete=COPIED), None),
            (sgone(), d(incomplete=RECORD), None),
            (sgone(migrating=UNLINK), d(incomplete=RECORD), None),
            (sgone(migrating=UNLINK), gone("/d"), None),
            (sgone(migrating=UNLINK), d(incomplete=COPIED.but(migration=TWO)), None),
            (s(migrated=RETIRED), d(incomplete=COPIED.but(migration=TWO)), None),
            (s(bad=["migrating"]), d(incomplete=COPIED), None),
            (s(identity=MAYBE, migrating=UNLINK), d(incomplete=COPIED), None),
            (sgone(migrating=RECORD), d(incomplete=COPIED), None),
            (d(incomplete=COPIED), gone("/e", incomplete=COPIED), None),
        ):
            with self.subTest(source=source, copy=copy):
                self.both(source, copy, canonical)

    def test_a_copy_of_a_retired_disk_is_not_recommended_before_it_is_retired_anew(self):
        source = place("/s", migrated=EARLIER, migrating=AGAIN_COPIED)
        for pair in (
            (source, place("/d", incomplete=COPIED)),
            (place("/d", incomplete=COPIED), source),
        ):
            verdict = verdict_of_pair(*pair)
            self.assertIn("neither", verdict.why)
            self.assertNotIn("accept", verdict.advice)

    def test_never_are_both_places_canonical(self):
        """No place is called canonical whose own record says otherwise."""
        states = [place("/a", **more) for more in STATES] + [gone("/a", **more) for more in STATES]
        for one in states:
            for other in states:
                there = replace(other, path="/b")
                verdict = verdict_of_pair(one, there)
                self.check_form(verdict)
                for found in (one, there):
                    if verdict.canonical == found.path:
                        alone = verdict_of(found).state
                        self.assertIn(alone, (YES, IF), (one, there))
                again = verdict_of_pair(there, one)
                self.assertEqual(verdict.canonical, again.canonical)


STATES = [
    {},
    *({"incomplete": record} for record in (RECORD, COPIED, RETIRED, FOREIGN)),
    *({"migrating": record} for record in (RECORD, COPIED, UNLINK)),
    {"migrated": RETIRED},
    {"migrated": GONE},
    {"migrated": GONE, "migrating": LATER},
    {"received": RECEIVED},
    {"received": RECEIVED, "incomplete": RETIRED},
    {"received": RECEIVED, "incomplete": NEXT},
    {"received": RECEIVED, "migrated": ON},
    {"received": HOME, "migrated": ON.but(follows="")},
    *({"migrated": EARLIER, "migrating": record} for record in (AGAIN, AGAIN_COPIED, AGAIN_GONE)),
    {"incomplete": RECORD, "migrating": RECORD},
    {"migrated": RETIRED, "migrating": COPIED},
    {"accepted": ACCEPTED},
    {"accepted": ACCEPTED, "incomplete": COPIED},
    {"bad": ["incomplete"]},
    {"bad": ["migrating"]},
]


DEVICE, STRANGER = "device 8:0; diskseq 9; wwid naa.5", "device 8:0; diskseq 12; wwid naa.6"


class DeviceTests(Case):
    """A device is judged by what it is, not by its name."""

    def judge(self, identity=STRANGER, **records):
        found = {name: record.but(identity=DEVICE) for name, record in records.items()}
        verdict = verdict_of(place("/dev/sda", identity=identity, **found))
        self.check_form(verdict)
        return verdict

    def test_another_disk_with_the_name_is_unknown_whatever_the_record(self):
        for records in (
            {"incomplete": RECORD},
            {"incomplete": COPIED},
            {"incomplete": RETIRED},
            {"incomplete": COPIED, "accepted": ACCEPTED},
            {"migrated": RETIRED},
            {"migrating": RECORD},
            {"migrating": COPIED},
            {"migrating": RETIRED, "migrated": RETIRED},
        ):
            verdict = self.judge(**records)
            self.assertEqual(UNKNOWN, verdict.state, records)
            self.assertRegex(verdict.why, "is another disk now|another disk has the name")

    def test_the_disk_itself_is_judged_by_the_record_under_whichever_name(self):
        for number in ("8:0", "8:16"):
            identity = DEVICE.replace("8:0", number)
            self.assertEqual(NO, self.judge(identity, migrated=RETIRED).state)
            self.assertEqual(YES, self.judge(identity, incomplete=RETIRED).state)

    def test_a_record_of_version_0_1_says_nothing_of_a_device_but_its_name(self):
        verdict = verdict_of(place("/dev/sda", identity=DEVICE, migrated=RETIRED.but(identity="")))
        self.assertEqual(NO, verdict.state)

    def test_the_record_of_another_host_is_a_shared_state_directory(self):
        for records in ({"migrated": RETIRED}, {"migrating": RECORD}, {"incomplete": COPIED}):
            self.assertIn("--state-dir of their own", self.judge(**records).advice)
        ours = RETIRED.but(source=Location(HERE, "/dev/sda"))
        self.assertNotIn("--state-dir", self.judge(migrated=ours).advice)


class AcceptedTests(Case):
    def test_an_acceptance_of_another_file_says_nothing(self):
        verdict = verdict_of(place(identity=OTHER, accepted=ACCEPTED))
        self.check_form(verdict)
        self.assertEqual(YES, verdict.state)
        self.assertIn("ACCEPTED is about another file", verdict.why)

    def test_nor_does_it_make_an_incomplete_file_canonical(self):
        state = place(identity=OTHER, incomplete=COPIED, accepted=ACCEPTED)
        self.assertEqual(UNKNOWN, verdict_of(state).state)


class LayerTests(Case):
    """A disk that has data in common with another one."""

    def judge(self, relation, layer, **own):
        state = replace(place("/dev/loop0", **own), layers=((relation, layer),))
        verdict = verdict_of(state)
        self.check_form(verdict)
        return verdict

    def test_what_stands_on_a_retired_disk_is_retired(self):
        for relation in (Relation.BELOW, Relation.WHOLE, Relation.ABOVE):
            verdict = self.judge(relation, place("/b", migrated=RETIRED))
            self.assertEqual(NO, verdict.state)
            self.assertIn(f"/dev/loop0 {relation} /b: it was migrated to", verdict.why)

    def test_it_is_what_that_is(self):
        for state, records in (
            (NO, {"incomplete": RECORD}),
            (IF, {"incomplete": COPIED}),
            (YES, {"incomplete": RETIRED}),
            (YES, {"migrating": RECORD}),
            (YES, {}),
            (UNKNOWN, {"bad": ["migrated"]}),
        ):
            self.assertEqual(state, self.judge(Relation.BELOW, place("/b", **records)).state)

    def test_a_disk_with_a_retired_part_is_unknown(self):
        verdict = self.judge(
            Relation.PART, replace(place("/dev/b 1", migrated=RETIRED), state_directory="/st")
        )
        self.assertEqual(UNKNOWN, verdict.state)
        self.assertIn("`blockmig inspect '/dev/b 1' --state-dir /st`", verdict.advice)

    def test_a_file_that_was_deleted_as_a_source_is_retired_where_it_is_still_used(self):
        verdict = self.judge(Relation.BELOW, gone("/b", migrating=UNLINK))
        self.assertEqual(NO, verdict.state)

    def test_what_was_received_over_a_retired_disk_is_unknown(self):
        layer = place("/b", migrated=RETIRED)
        for own in ({"incomplete": RETIRED}, {"accepted": ACCEPTED}):
            self.assertEqual(UNKNOWN, self.judge(Relation.BELOW, layer, **own).state)

    def test_a_disk_that_was_sent_into_itself_is_still_there(self):
        own = RECORD.but(source=Location(HERE, "/dev/loop0"))
        self.assertEqual(YES, self.judge(Relation.ABOVE, place("/b", incomplete=own)).state)
        other = RECORD.but(source=Location(HERE, "/dev/loop1"))
        self.assertEqual(NO, self.judge(Relation.ABOVE, place("/b", incomplete=other)).state)

    def test_a_disk_that_is_not_canonical_by_itself_stays_so(self):
        verdict = self.judge(Relation.BELOW, place("/b"), migrated=RETIRED)
        self.assertEqual(NO, verdict.state)
        self.assertNotIn("stands on", verdict.why)


class CommandTests(Case):
    """What a verdict recommends."""

    def test_commands_for_here_have_the_path_and_the_state_directory(self):
        state = replace(place("/dev/my disk", incomplete=COPIED), state_directory="/st")
        self.assertIn(
            "blockmig accept '/dev/my disk' --i-have-checked-the-source --state-dir /st",
            verdict_of(state).advice,
        )

    def test_a_relative_path_becomes_absolute(self):
        verdict = verdict_of(place("disk", incomplete=COPIED))
        self.assertIn(f"blockmig accept {os.path.abspath('disk')} ", verdict.advice)

    def test_commands_for_there_have_what_the_other_end_has_told(self):
        end = Location("there", "/dev/it's", "", "/st")
        copied = COPIED.but(source=end)
        self.assertIn(
            "on there run `blockmig inspect '/dev/it'\"'\"'s' --state-dir /st`",
            verdict_of(place(incomplete=copied)).advice,
        )
        moved = UNLINK.but(destination=end, whole=True, unlink=False)
        self.assertIn(
            "on there run `blockmig accept '/dev/it'\"'\"'s' --i-have-checked-the-source "
            "--state-dir /st`",
            verdict_of(gone(migrating=moved)).advice,
        )


class FileCase(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.path = os.path.join(self.directory, "disk")
        self.records = Records(self.path)

    def make(self, content=b"12345"):
        with open(self.path, "wb") as file:
            file.write(content)

    def names(self):
        return sorted(os.listdir(self.directory))


class ExamineTests(FileCase):
    def test_a_missing_disk_without_records_is_nothing(self):
        self.assertEqual(DiskState(self.path), examine(self.path))

    def test_the_verdict_says_where_records_would_be(self):
        """Humans look for records where they are said to be."""
        self.make()
        self.assertIn("a migration beside it:", verdict_of(examine(self.path)).why)
        directory = os.path.join(self.directory, "state")
        found = replace(examine(self.path), records_where=f"in {directory}")
        self.assertIn(f"a migration in {directory}:", verdict_of(found).why)

    def test_everything_about_a_disk_is_found(self):
        self.make()
        for kind in Kind:
            self.records.write(kind, RECORD)
        found = examine(self.path)
        self.assertEqual((5, set(Kind), {}), (found.size, set(found.records), found.bad))
        self.assertIn("inode", found.identity)
        with FileDisk(self.path) as disk:
            self.assertEqual(disk.identity(), found.identity)
            self.assertTrue(examine(self.path).in_use)
        self.assertFalse(found.in_use)

    def test_records_that_cannot_be_read_are_reported(self):
        self.make()
        with open(self.path + ".INCOMPLETE", "wb") as file:
            file.write(b"{")
        os.mkdir(self.path + ".MIGRATED")
        os.mkfifo(self.path + ".MIGRATING")
        found = examine(self.path)
        self.assertEqual({Kind.INCOMPLETE, Kind.MIGRATED, Kind.MIGRATING}, set(found.bad))
        self.assertIn("torn", found.bad[Kind.INCOMPLETE])
        self.assertIn("directory", found.bad[Kind.MIGRATED])
        self.assertIn("FIFO", found.bad[Kind.MIGRATING])

    def test_the_records_are_read_before_the_disk(self):
        """A disk that vanishes meanwhile then looks as it did while the records were true."""
        self.make()
        self.records.write(Kind.MIGRATING, UNLINK)
        order = []

        class Calls(SystemCalls):
            def open(self, path, *arguments):
                order.append(os.path.basename(path))
                return os.open(path, *arguments)

            def stat(self, path):
                order.append("stat")
                return os.stat(path)

        examine(self.path, None, Calls())
        last = max(order.index(f"disk.{kind}") for kind in Kind)
        self.assertLess(last, order.index("stat"))
        self.assertLess(order.index("stat"), order.index("disk"))

    def test_the_directory_is_synced_before_the_records_are_read(self):
        """A power failure must not undo what was reported."""
        self.make()
        for fails in (False, True):
            order = []

            class Calls(SystemCalls):
                def open(self, path, *arguments, order=order):
                    order.append(os.path.basename(path))
                    return os.open(path, *arguments)

                def fsync(self, descriptor, order=order, fails=fails):
                    order.append("fsync")
                    if fails:
                        raise OSError(errno.EROFS, "read-only")

            self.assertEqual(5, examine(self.path, None, Calls()).size)
            directory = os.path.basename(self.directory)
            self.assertEqual([directory, "fsync", "disk.INCOMPLETE"], order[:3])

    def test_what_is_no_disk_is_refused(self):
        os.mkdir(self.path)
        self.assertIn("directory", str(self.assertRaises(DiskRefused, examine, self.path)))
        os.rmdir(self.path)
        os.mkfifo(self.path)
        self.assertRaises(DiskRefused, examine, self.path)

    def test_examining_changes_nothing(self):
        self.make()
        self.records.write(Kind.INCOMPLETE, COPIED)
        before = self.names()
        with FileDisk(self.path):
            examine(self.path)
        self.assertEqual(before, self.names())

    def test_a_symbolic_link_leads_to_the_records(self):
        self.make()
        self.records.write(Kind.INCOMPLETE, COPIED)
        link = os.path.join(self.directory, "link")
        os.symlink("disk", link)
        self.assertIsNotNone(examine(link).record(Kind.INCOMPLETE))
        os.unlink(self.path)
        found = examine(link)
        self.assertEqual((None, True), (found.size, Kind.INCOMPLETE in found.records))


class LookSteadilyTests(FileCase):
    """Two places, one of which may change while the other is examined."""

    def setUp(self):
        super().setUp()
        self.make()
        self.other = os.path.join(self.directory, "other")
        self.looks = 0

    def look(self, change=lambda looks: None):
        test = self

        class Calls(SystemCalls):
            def stat(self, path):
                if path == test.other:
                    test.looks += 1
                    change(test.looks)
                return os.stat(path)

        return examine_until_stable([self.path, self.other], None, Calls())

    def test_two_unchanged_places_are_read_twice(self):
        found, steady = self.look()
        self.assertEqual(([self.path, self.other], True), ([at.path for at in found], steady))
        self.assertEqual([5, None], [place.size for place in found])
        self.assertEqual(2, self.looks)

    def test_a_single_place_is_read_on_its_own(self):
        found, steady = examine_until_stable([self.path])
        self.assertEqual(([examine(self.path)], True), (found, steady))

    def test_a_place_that_changed_once_is_read_again(self):
        """The verdict is about one instant."""

        def change(looks):
            if looks == 1:
                self.records.write(Kind.MIGRATING, UNLINK)

        found, steady = self.look(change)
        self.assertTrue(steady)
        self.assertIn(Kind.MIGRATING, found[0].records)
        self.assertEqual(3, self.looks)

    def test_a_place_that_keeps_changing_is_reported_as_unsteady(self):
        changes = (
            lambda looks: self.records.write(Kind.MIGRATING, RECORD.but(attempt=looks)),
            lambda looks: self.make(bytes(looks)),
            lambda looks: os.rename(self.path, self.path + str(looks)) or self.make(),
        )
        for change in changes:
            self.looks = 0
            _, steady = self.look(change)
            self.assertFalse(steady)
            self.assertEqual(10, self.looks)

    def test_the_write_time_of_a_disk_may_change(self):
        """A source is in use, and its file may show no more than the time of its last write."""
        self.patch(SystemCalls, "birth", lambda self, descriptor: None)

        def change(looks):
            os.utime(self.path, ns=(looks, looks))

        _, steady = self.look(change)
        self.assertTrue(steady)

    def test_the_verdict_about_changing_places_is_unknown(self):
        verdict = unstable_verdict(["/a", "/b"])
        self.assertEqual((UNKNOWN, ""), (verdict.state, verdict.canonical))
        self.assertIn("/a and /b changed while they were examined", verdict.line)
        self.assertIn("try again", verdict.advice)
