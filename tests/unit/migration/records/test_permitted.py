"""What the records permit a command to do: every permission and every refusal."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import Refused
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.permitted import (
    SourceState,
    destination_record,
    may_overwrite,
    source_state,
)
from blockmig.storage import boot_id
from blockmig.syscalls import SystemCalls
from tests.unit.support import ONE, TWO, RecordedDisk

URI = "nbd://there/x"
SAME, OTHER, MAYBE = "inode 5, born 1", "inode 6, born 2", "inode 5, written 2"
COPYING = Record(
    migration=ONE,
    phase=Phase.COPYING,
    attempt=2,
    size=5,
    source=Location("here", "/disk"),
    destination=Location("there", "/copy", URI),
    began="then",
    identity=SAME,
)
COPIED = COPYING.but(phase=Phase.COPIED)
UNLINK = COPIED.but(unlink=True)
MARK = COPIED.but(retired="when")
END = MARK.but(confirmed="later")
ALL = (Kind.INCOMPLETE, Kind.MIGRATING, Kind.MIGRATED, Kind.ACCEPTED)


class Case(SynchronousTestCase):
    def setUp(self):
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.records = Records(directory + "/disk")

    def stand(self, **records):
        self.records.remove(*ALL)
        for name, record in records.items():
            kind = Kind(name.upper())
            if isinstance(record, bytes):
                with open(self.records.name(kind), "wb") as file:
                    file.write(record)
            else:
                self.records.write(kind, record)

    def refused(self, words, function, *arguments, **keywords):
        before = self.content()
        error = self.assertRaises(Refused, function, self.records, *arguments, **keywords)
        for word in (words,) if isinstance(words, str) else words:
            self.assertIn(word, str(error))
        self.assertNotIn("\n", str(error))
        self.assertEqual(before, self.content(), "a refusal touches nothing")
        return str(error)

    def content(self):
        found = {}
        directory = os.path.dirname(self.records.path)
        for name in os.listdir(directory):
            with open(os.path.join(directory, name), "rb") as file:
                found[name] = file.read()
        return found


class DestinationTests(Case):
    def setUp(self):
        super().setUp()
        self.disk = RecordedDisk(b"12345", self.records.path)
        self.disk.identity = lambda: SAME

    def found(self, again=False):
        record = destination_record(self.disk, self.records, again)
        return None if record is None else record.but(changed="")

    def refused(self, words, again=False):
        return super().refused(words, lambda records: destination_record(self.disk, records, again))

    def test_a_destination_is_permitted_with_these_records(self):
        for records, expected in (
            ({}, None),
            ({"accepted": COPIED, "incomplete": COPYING}, COPYING),
            ({"incomplete": COPYING}, COPYING),
            ({"incomplete": COPIED}, COPIED),
            ({"incomplete": MARK}, MARK),
        ):
            self.stand(**records)
            self.assertEqual(expected, self.found())
            self.assertIsNone(self.found(again=True))

    def test_a_blank_disk_that_was_declared_canonical_may_be_received(self):
        self.stand(accepted=COPIED)
        self.disk.blank = True
        self.assertIsNone(self.found())

    def test_again_continues_a_migration_that_was_begun_with_it(self):
        for earlier in (COPYING, COPIED, MARK):
            record = earlier.but(again=True)
            for others in ({}, {"migrated": MARK}, {"migrating": b"torn"}):
                self.stand(incomplete=record, **others)
                self.assertEqual(record, self.found(again=True))

    def test_again_does_not_continue_a_whole_copy_on_another_disk(self):
        """The record of a whole copy must not describe one that is not whole."""
        for name, value in (("blank", True), ("size", 6), ("identity", lambda: OTHER)):
            for earlier, expected in ((COPYING, True), (COPIED, False), (MARK, False)):
                self.setUp()
                record = earlier.but(again=True)
                self.stand(incomplete=record)
                setattr(self.disk, name, value)
                self.assertEqual(record if expected else None, self.found(again=True))

    def test_a_destination_is_refused_with_these_records(self):
        for records, words in (
            ({"accepted": COPIED}, ("was declared canonical", "disk.ACCEPTED", "--again")),
            ({"accepted": b"torn"}, ("torn", "--again")),
            ({"migrated": MARK}, ("was migrated to there:/copy", "when", "--again")),
            ({"migrating": COPYING}, ("not known to be complete", "inspect", "--again")),
            ({"migrating": COPIED}, "not known to be complete"),
            ({"migrated": MARK, "migrating": COPIED}, "was migrated to"),
            ({"migrated": MARK, "incomplete": COPIED}, "was migrated to"),
            ({"incomplete": b"{"}, ("torn", "inspect", "--again")),
            ({"migrated": b"{"}, "torn"),
            ({"migrating": b"{"}, "torn"),
            ({"incomplete": b"5"}, "not a blockmig record"),
            ({"incomplete": b'{"blockmig": 2}'}, "later version"),
            ({"incomplete": COPIED.encode(Kind.MIGRATED)}, "another kind"),
        ):
            with self.subTest(records=records):
                self.stand(**records)
                self.refused(words)
                self.assertIsNone(self.found(again=True))

    def test_a_destination_whose_records_cannot_be_kept_is_refused(self):
        self.patch(os, "access", lambda *_: False)
        for again in (False, True):
            self.refused("records cannot be kept there", again)

    def test_a_permission_changes_nothing_yet(self):
        """The first record is written later, in a thread."""

        class Broken(SystemCalls):
            def fsync(self, descriptor):
                raise OSError(errno.EIO, "broken")

        self.stand(incomplete=COPYING)
        self.records = Records(self.records.path, Broken())
        self.assertEqual(COPYING, self.found())
        self.records.remove_existing = self.records.remove = None
        before = self.content()
        self.found(again=True)
        self.assertEqual(before, self.content())

    def test_a_destination_whose_records_cannot_be_read_is_refused(self):
        class Denied(SystemCalls):
            def open(self, *_):
                raise PermissionError(errno.EACCES, "Permission denied")

        self.records = Records(self.records.path, Denied())
        for again in (False, True):
            self.refused("Permission denied", again)

    def test_another_disk_than_the_whole_copy_is_refused(self):
        """The record may be the only trace of the other copy."""
        for name, value in (
            ("size", 6),
            ("blank", True),
            ("identity", lambda: OTHER),
            ("identity", lambda: "inode 5, born 2"),
        ):
            for record in (COPIED, MARK):
                self.setUp()
                self.stand(incomplete=record)
                setattr(self.disk, name, value)
                self.refused(("another disk", "--again"))
                self.assertIsNone(self.found(again=True))
                self.stand(incomplete=COPYING)
                self.assertEqual(COPYING, self.found())

    def test_a_disk_that_may_be_the_whole_copy_is_permitted(self):
        for identity, record in (
            (MAYBE, COPIED),
            ("inode 6, born 1", COPIED),  # inodes are not kept everywhere
            ("", COPIED),
            (OTHER, COPIED.but(identity="")),
        ):
            self.stand(incomplete=record)
            self.disk.identity = lambda identity=identity: identity
            self.assertEqual(record, self.found())


DEVICE, AGAIN = "device 8:0; diskseq 9; wwid naa.5", "device 8:16; diskseq 12; wwid naa.5"
STRANGER, NAMELESS = "device 8:0; diskseq 12; wwid naa.6", "device 8:0; diskseq 12"


class DeviceTests(Case):
    """What the records permit with a device that has the name of the one that they are about."""

    def setUp(self):
        super().setUp()
        self.records = Records(self.records.path, device="/dev/sdb")
        self.disk = RecordedDisk(b"12345", self.records.path)

    def test_an_unfinished_copy_may_be_overwritten_only_on_the_disk_that_it_is_on(self):
        for identity, boot, may in (
            (DEVICE, "", True),
            (AGAIN, "", True),
            (STRANGER, "", False),
            (NAMELESS, "", False),  # it cannot be proved that it is that disk
            (STRANGER, boot_id(), False),
            (DEVICE, boot_id(), True),
        ):
            self.disk.identity = lambda identity=identity: identity
            record = COPYING.but(identity=DEVICE, boot=boot)
            found = may_overwrite(self.disk, self.records, record, False)
            self.assertIs(may, found, (identity, boot))

    def test_what_looks_the_same_after_a_restart_is_not_proved_to_be_the_same(self):
        self.disk.identity = lambda: NAMELESS
        for boot, may in (("earlier", False), (boot_id(), True)):
            record = COPYING.but(identity=NAMELESS, boot=boot)
            self.assertIs(may, may_overwrite(self.disk, self.records, record, False))

    def test_a_record_of_version_0_1_permits_it_by_the_name(self):
        self.disk.identity = lambda: DEVICE
        record = COPYING.but(identity="")
        self.assertTrue(may_overwrite(self.disk, self.records, record, False))

    def test_another_disk_with_the_name_is_not_sent(self):
        for kind, words in (
            (Kind.MIGRATED, "/dev/sdb: is another disk than the one that was migrated"),
            (Kind.INCOMPLETE, "/dev/sdb: is another disk than the copy that is not known"),
        ):
            self.records.write(kind, MARK.but(identity=DEVICE))
            self.refused(words, source_state, STRANGER, URI)
            self.records.remove(kind)

    def test_a_refusal_names_the_device_and_its_state_directory(self):
        self.records.write(Kind.INCOMPLETE, MARK.but(identity=DEVICE))
        directory = os.path.dirname(self.records.path)
        self.refused(
            f"see `blockmig inspect /dev/sdb --state-dir {directory}`",
            source_state,
            DEVICE,
            URI,
        )


class SourceTests(Case):
    def found(self, identity=SAME, destination=URI, **keywords):
        found = source_state(self.records, identity, destination, **keywords)
        if found.record is not None:
            return replace(found, record=found.record.but(changed=""))
        return found

    def test_a_source_is_permitted_with_these_records(self):
        new = SourceState()
        # records, identity, what else; what is found
        for records, identity, more, expected in (
            ({}, SAME, {}, new),
            ({}, SAME, {"unlink": True}, new),
            ({"accepted": COPIED}, SAME, {}, new),
            # An attempt that did not come to its end goes on.
            ({"migrating": COPYING}, SAME, {}, SourceState(COPYING)),
            ({"migrating": COPIED}, SAME, {}, SourceState(COPIED)),
            ({"migrating": COPIED}, SAME, {"unlink": True}, SourceState(COPIED)),
            ({"migrating": UNLINK}, SAME, {"unlink": True}, SourceState(UNLINK)),
            ({"migrating": UNLINK}, SAME, {}, SourceState(UNLINK)),
            # Another file has the name: it goes on with nothing.
            ({"migrating": COPYING}, OTHER, {}, SourceState(instead_of=ONE)),
            (
                {"migrating": COPYING.but(unlink=True)},
                OTHER,
                {},
                SourceState(instead_of=ONE),
            ),
            # Perhaps the same, where that is not told: as long as it is not to be deleted.
            ({"migrating": COPIED}, MAYBE, {}, SourceState(COPIED)),
            # To another place: a new migration, unless the copy is whole.
            (
                {"migrating": COPYING},
                SAME,
                {"destination": "nbd://z"},
                SourceState(instead_of=ONE),
            ),
            # Retired: there to be finished.
            ({"migrating": UNLINK}, None, {"unlink": True}, SourceState(UNLINK, True)),
            ({"migrating": UNLINK}, None, {}, SourceState(UNLINK, True)),
            ({"migrating": COPIED, "migrated": MARK}, SAME, {}, SourceState(MARK, True)),
            ({"migrating": COPIED, "migrated": MARK}, None, {}, SourceState(MARK, True)),
            ({"migrating": COPIED, "migrated": END}, SAME, {}, SourceState(END, True)),
        ):
            with self.subTest(records=records, identity=identity, more=more):
                self.stand(**records)
                self.assertEqual(expected, self.found(identity, **more))

    def test_again_begins_a_new_migration(self):
        for records, instead, *bad in (
            ({}, ""),
            ({"migrated": MARK}, ""),
            ({"migrated": b"torn"}, "", Kind.MIGRATED),
            ({"migrating": b"torn"}, "", Kind.MIGRATING),
            ({"migrating": b"torn", "migrated": b"{"}, "", Kind.MIGRATED, Kind.MIGRATING),
            ({"migrating": COPYING, "migrated": b"{"}, ONE, Kind.MIGRATED),
            ({"migrating": COPYING}, ONE),
            ({"migrating": COPIED}, ONE),
            ({"migrating": UNLINK}, ONE),
            ({"migrating": COPIED, "migrated": MARK}, ONE),
        ):
            with self.subTest(records=records):
                self.stand(**records)
                for identity in (SAME, OTHER, MAYBE):
                    expected = SourceState(instead_of=instead, unreadable=tuple(bad))
                    self.assertEqual(expected, self.found(identity, again=True))
                    self.assertEqual(expected, self.found(identity, "nbd://z", again=True))

    def test_again_continues_a_source_migration_that_was_begun_with_it(self):
        """Whether or not `--again` is given once more; an earlier MIGRATED no longer counts."""
        old = MARK.but(migration=TWO)
        for begun, identity, retired in (
            (COPYING, SAME, False),
            (COPIED, MAYBE, False),
            (UNLINK, SAME, False),
            (UNLINK, None, True),
        ):
            record = begun.but(again=True)
            for others in ({}, {"migrated": old}):
                for again in (True, False):
                    with self.subTest(record=record, again=again, others=others):
                        self.stand(migrating=record, **others)
                        found = self.found(identity, again=again)
                        self.assertEqual(SourceState(record, retired), found)
        self.stand(migrating=COPIED.but(again=True), migrated=MARK)
        self.assertTrue(self.found(again=True).retired)

    def test_again_for_another_place_or_disk_begins_a_new_migration(self):
        for record, identity, destination in (
            (COPYING, SAME, "nbd://z"),
            (COPIED, SAME, "nbd://z"),
            (COPYING.but(whole=True), SAME, "nbd://z"),
            (COPIED, OTHER, URI),
            (UNLINK, OTHER, URI),
            (UNLINK, MAYBE, URI),
        ):
            with self.subTest(record=record, identity=identity):
                self.stand(migrating=record.but(again=True))
                found = self.found(identity, destination, again=True)
                self.assertEqual(SourceState(instead_of=ONE), found)

    def test_again_finishes_a_migration_whose_source_is_gone(self):
        """`--again` can only be about that migration."""
        self.stand(migrating=UNLINK)
        self.assertEqual(SourceState(UNLINK, True), self.found(None, again=True))

    def test_a_source_is_refused_with_these_records(self):
        for records, identity, more, words in (
            ({}, None, {}, "no such file"),
            ({}, None, {"again": True}, "no such file"),
            ({"migrating": COPYING}, None, {"again": True}, "did not delete it"),
            # What may be whole there, though the source was in use again.
            (
                {"migrating": COPYING.but(whole=True)},
                SAME,
                {"destination": "nbd://z"},
                "canonical copy there",
            ),
            # A copy that is not known to be canonical is nobody's source, whatever is said.
            ({"incomplete": COPYING}, SAME, {}, "not known to be complete"),
            ({"incomplete": COPIED}, SAME, {"again": True}, "not known to be complete"),
            ({"incomplete": MARK}, SAME, {"again": True}, "not known to be complete"),
            ({"incomplete": b"{"}, SAME, {}, "torn"),
            ({"incomplete": b"{"}, SAME, {"again": True}, "torn"),
            ({"migrating": b"{"}, SAME, {}, ("torn", "inspect", "--again")),
            ({"migrated": b"{"}, SAME, {}, ("torn", "--again")),
            ({"migrated": b'{"blockmig": 2}'}, SAME, {}, "later version"),
            # Migrated away.
            ({"migrated": MARK}, SAME, {}, ("was migrated to there:/copy", "when", "--again")),
            ({"migrated": MARK}, None, {}, "was migrated to"),
            (
                {"migrated": MARK, "migrating": COPIED.but(migration=TWO)},
                SAME,
                {},
                "was migrated to",
            ),
            # Gone, but not by us.
            ({"migrating": COPYING}, None, {}, ("is gone", "did not delete it")),
            ({"migrating": COPIED}, None, {}, ("is gone", "did not delete it")),
            ({"migrating": COPYING.but(unlink=True)}, None, {"unlink": True}, "is gone"),
            # To be finished, but not so.
            ({"migrating": UNLINK}, None, {"destination": "nbd://z"}, ("retired it", URI)),
            ({"migrating": COPIED, "migrated": MARK}, SAME, {"destination": "nbd://z"}, URI),
            ({"migrating": UNLINK}, OTHER, {}, ("not the file", "move it away", "--again")),
            ({"migrating": UNLINK}, MAYBE, {}, ("may or may not be the file", "--again")),
            (
                {"migrating": COPIED, "migrated": MARK},
                SAME,
                {"unlink": True},
                ("is to be kept", "without --unlink"),
            ),
            # Whole somewhere, and now to another place.
            ({"migrating": COPIED}, SAME, {"destination": "nbd://z"}, "canonical copy there"),
            ({"migrating": UNLINK}, SAME, {"destination": "nbd://z"}, "canonical copy there"),
        ):
            with self.subTest(records=records, identity=identity, more=more):
                self.stand(**records)
                arguments = {"destination": URI, **more}
                self.refused(words, source_state, identity, **arguments)

    def test_a_copy_with_a_torn_record_is_no_source(self):
        """No option makes it one."""
        self.stand(incomplete=b"{")
        for again in (False, True):
            words = self.refused("torn", source_state, SAME, URI, again=again)
            self.assertNotIn("--again", words)

    def test_a_source_whose_records_cannot_be_kept_is_refused(self):
        self.patch(os, "access", lambda *_: False)
        self.refused("records cannot be kept there", source_state, SAME, URI)
        self.refused("records cannot be kept there", source_state, SAME, URI, again=True)
