"""What the records permit a command to do: every permission and every refusal."""

from __future__ import annotations

import errno
import os

from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import AlreadyDone, Refused
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.finished import NOTHING_FINISHED, Present
from blockmig.migration.records.permitted import (
    SourceState,
    check_finished,
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
ALL = tuple(Kind)


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

    def found(self, overwrite=False, id=""):
        record = destination_record(self.disk, self.records, overwrite, id)
        return None if record is None else record.but(changed="")

    def refused(self, words, overwrite=False, id=""):
        return super().refused(
            words, lambda records: destination_record(self.disk, records, overwrite, id)
        )

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
            self.assertEqual(expected, self.found(overwrite=True))
            self.assertEqual(expected, self.found(overwrite=True, id="new"))

    def test_a_blank_disk_that_was_declared_canonical_may_be_received(self):
        self.stand(accepted=COPIED)
        self.disk.blank = True
        self.assertIsNone(self.found())

    def test_what_was_finished_before_an_unfinished_copy_does_not_count(self):
        """The command that began it is run again."""
        after = COPIED.but(migration=TWO)
        for record in (after.but(follows=ONE), after.but(again=True)):
            for others in ({"migrated": MARK}, {"received": END}, {"accepted": MARK}):
                self.stand(incomplete=record, **others)
                self.assertEqual(record, self.found())
                self.assertEqual(record, self.found(overwrite=True, id="new"))
        # Of two that know nothing of each other the unfinished one decides.
        self.stand(incomplete=after, received=END)
        self.assertEqual(after, self.found())

    def test_an_unfinished_copy_with_an_id_is_finished_with_that_id_only(self):
        for record, permitted in (
            (COPIED.but(id="web"), False),
            (MARK.but(id="web"), False),
            (COPYING.but(id="web"), True),
            (COPIED.but(id="web", identified=False), True),
            (COPIED, True),
        ):
            for overwrite in (False, True):
                self.stand(incomplete=record)
                if permitted:
                    self.assertEqual(record, self.found(overwrite, "other"))
                else:
                    self.refused(("the migration web", "id='web'"), overwrite, "other")
                self.assertEqual(record, self.found(overwrite, "web"))
                self.assertEqual(record, self.found(overwrite))

    def test_an_id_of_an_earlier_migration_is_not_used_in_an_unfinished_copy(self):
        self.stand(incomplete=COPYING.but(ids=("old",)))
        self.refused("never used twice", True, "old")

    def test_data_may_be_overwritten_where_a_migration_of_it_has_only_begun(self):
        self.stand(migrating=COPYING)
        self.refused("not known to be complete")
        self.assertIsNone(self.found(overwrite=True))
        self.stand(migrating=COPYING.but(migration=TWO), received=END)
        self.refused("id=", overwrite=True)
        self.assertIsNone(self.found(overwrite=True, id="new"))

    def test_no_option_passes_over_an_unfinished_hand_off(self):
        for records in (
            {"migrating": COPIED},
            {"migrating": COPYING.but(whole=True)},
            {"migrating": UNLINK},
            {"migrating": b"torn"},
            {"incomplete": b"torn"},
            {"migrating": COPIED, "migrated": MARK},
        ):
            self.stand(**records)
            self.refused("disk.", overwrite=True, id="new")

    def test_a_destination_is_refused_with_these_records(self):
        for records, words in (
            ({"accepted": COPIED}, ("was declared canonical", "disk.ACCEPTED", "overwrite=True")),
            ({"accepted": b"torn"}, ("torn", "overwrite=True")),
            ({"migrated": MARK}, ("was migrated to there:/copy", "when", "overwrite=True")),
            ({"migrating": COPYING}, ("not known to be complete", "inspect")),
            ({"migrating": COPIED}, "not known to be complete"),
            ({"migrated": MARK, "migrating": COPIED}, "not known to be complete"),
            ({"migrated": MARK, "incomplete": COPIED.but(migration=TWO)}, "was migrated to"),
            ({"incomplete": b"{"}, ("torn", "inspect", "move that file away")),
            ({"migrated": b"{"}, "torn"),
            ({"migrating": b"{"}, "torn"),
            ({"incomplete": b"5"}, "not a blockmig record"),
            ({"incomplete": b'{"blockmig": 2}'}, "later version"),
            ({"incomplete": COPIED.encode(Kind.MIGRATED)}, "another kind"),
        ):
            with self.subTest(records=records):
                self.stand(**records)
                self.refused(words)
                if records != {"migrating": COPYING}:
                    self.refused("", overwrite=True)

    def test_a_new_id_and_overwrite_pass_over_what_is_finished(self):
        for records in (
            {"accepted": COPIED},
            {"accepted": b"torn"},
            {"migrated": MARK},
            {"migrated": b"torn"},
            {"received": END},
            {"received": END, "migrated": MARK.but(migration=TWO, follows=ONE)},
        ):
            self.stand(**records)
            self.assertIsNone(self.found(overwrite=True, id="new"))
            self.refused("", id="new")
            self.refused("", overwrite=True)

    def test_an_INCOMPLETE_beside_its_RECEIVED_is_removed(self):
        here = Location(os.uname().nodename, self.records.path)
        received = END.but(destination=here)
        self.stand(incomplete=MARK, received=received)
        self.assertRaises(AlreadyDone, self.found)
        self.assertEqual(["disk.RECEIVED"], list(self.content()))
        self.assertRaises(AlreadyDone, self.found)

    def test_what_was_received_is_done_although_a_migration_onward_was_stopped(self):
        here = Location(os.uname().nodename, self.records.path)
        received = END.but(destination=here, id="r")
        begun = COPYING.but(migration=TWO, follows=ONE, id="on", ids=("r",))
        there = Present(5, SAME)
        for migrating in (begun, begun.but(whole=True), begun.but(unlink=True)):
            self.stand(received=received, migrating=migrating)
            for id in ("", "r"):
                for overwrite in (False, True):
                    self.assertRaises(AlreadyDone, self.found, overwrite, id)
                    keywords = {"overwrite": overwrite, "id": id}
                    about = self.records, lambda: there
                    self.assertRaises(AlreadyDone, check_finished, *about, **keywords)
            # Another migration is not this one, nor is another disk, nor one that is gone.
            self.refused("not known to be complete", id="new")
            for present in (Present(5, OTHER), Present(6, SAME), Present()):
                check_finished(self.records, lambda present=present: present, id="r")
            check_finished(self.records, lambda: there, overwrite=True, id="new")
        self.stand(received=received, migrating=begun.but(whole=True))
        self.refused("not known to be complete", True, "new")
        self.stand(received=received, migrating=begun)
        self.assertIsNone(self.found(True, "new"))
        # It may be about to be deleted, or is retired.
        self.stand(received=received, migrating=begun.but(phase=Phase.COPIED, unlink=True))
        check_finished(self.records, lambda: there, id="r")
        self.refused("not known to be complete", id="r")
        self.stand(received=received, migrating=begun, migrated=END.but(migration=TWO, follows=ONE))
        check_finished(self.records, lambda: there, id="r")
        self.refused("not known to be complete", id="r")

    def test_a_destination_whose_records_cannot_be_kept_is_refused(self):
        self.patch(os, "access", lambda *_: False)
        for overwrite in (False, True):
            self.refused("records cannot be kept there", overwrite)

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
        self.found(overwrite=True, id="new")
        self.assertEqual(before, self.content())

    def test_a_destination_whose_records_cannot_be_read_is_refused(self):
        class Denied(SystemCalls):
            def open(self, *_):
                raise PermissionError(errno.EACCES, "Permission denied")

        self.records = Records(self.records.path, Denied())
        for overwrite in (False, True):
            self.refused("Permission denied", overwrite, "new")

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
                self.refused(("another disk", "move the record"))
                self.refused("another disk", overwrite=True, id="new")
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
            found = may_overwrite(self.disk, record)
            self.assertIs(may, found, (identity, boot))

    def test_what_looks_the_same_after_a_restart_is_not_proved_to_be_the_same(self):
        self.disk.identity = lambda: NAMELESS
        for boot, may in (("earlier", False), (boot_id(), True)):
            record = COPYING.but(identity=NAMELESS, boot=boot)
            self.assertIs(may, may_overwrite(self.disk, record))

    def test_a_record_of_version_0_1_permits_it_by_the_name(self):
        self.disk.identity = lambda: DEVICE
        record = COPYING.but(identity="")
        self.assertTrue(may_overwrite(self.disk, record))

    def test_another_disk_with_the_name_is_not_sent(self):
        for kind, words in (
            (Kind.MIGRATED, "another disk can be sent with a new id=…"),
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
        keywords = {"size": 5, **keywords}
        found = source_state(self.records, identity, destination, **keywords)
        self.finished = found.finished
        found = found._replace(finished=NOTHING_FINISHED)
        if found.record is not None:
            return found._replace(record=found.record.but(changed=""))
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

    def test_a_new_id_begins_a_new_migration_beside_what_is_finished(self):
        for records, identity, overwrite in (
            ({"migrated": MARK}, OTHER, False),
            ({"migrated": MARK}, SAME, True),
            ({"migrated": MARK}, MAYBE, True),
            ({"migrated": MARK.but(unlink=True)}, OTHER, False),
            ({"migrated": MARK.but(unlink=True)}, MAYBE, False),
            ({"migrated": END.but(unlink=True)}, SAME, False),
        ):
            with self.subTest(records=records):
                self.stand(**records)
                for destination in (URI, "nbd://z"):
                    found = self.found(identity, destination, overwrite=overwrite, id="new")
                    self.assertEqual(SourceState(), found)
                    self.assertEqual(ONE, self.finished.latest.migration)
                    if overwrite:
                        arguments = identity, destination
                        self.refused("overwrite=True", source_state, *arguments, size=5, id="new")
                    self.refused("", source_state, identity, destination, overwrite=True)
        self.stand(migrated=b"torn")
        self.assertEqual(SourceState(), self.found(overwrite=True, id="new"))
        for records in ({"migrated": MARK}, {"migrated": END.but(unlink=True)}):
            self.stand(**records)
            self.refused("nothing is there", source_state, None, URI, overwrite=True, id="new")

    def test_what_was_received_may_be_sent_on(self):
        for records in ({"received": END}, {"received": END, "incomplete": MARK}):
            self.stand(**records)
            self.assertEqual(SourceState(), self.found())
            self.assertEqual(ONE, self.finished.latest.migration)
        self.stand(received=END.but(follows=TWO), migrated=MARK.but(migration=TWO))
        self.assertEqual(SourceState(), self.found(), "it has come home")

    def test_an_unfinished_migration_keeps_its_id(self):
        begun = COPYING.but(id="web")
        for record, identity in ((begun, SAME), (UNLINK.but(id="web"), SAME)):
            self.stand(migrating=record)
            self.assertEqual(SourceState(record), self.found(identity))
            self.assertEqual(SourceState(record), self.found(identity, id="web"))
        self.stand(migrating=begun)
        self.assertEqual(SourceState(instead_of=ONE), self.found(id="other"))
        for record, identity in (
            (COPIED, SAME),
            (COPYING.but(whole=True), SAME),
            (UNLINK, None),
        ):
            self.stand(migrating=record.but(id="web"))
            self.refused(("id='web'", "first"), source_state, identity, URI, id="other")

    def test_an_id_is_used_once(self):
        received = END.but(id="b", ids=("a",))
        self.stand(received=received)
        self.assertEqual(SourceState(), self.found(id="c"))
        for used in ("a", "b"):
            self.refused("never used twice", source_state, SAME, URI, id=used)
        self.stand(received=received, migrating=COPYING.but(migration=TWO, id="c", follows=ONE))
        self.assertIsNotNone(self.found(id="c").record)
        self.refused("never used twice", source_state, SAME, URI, id="a")

    def test_the_record_of_a_later_migration_counts(self):
        """Whether it was begun by this version, or by the one before with C{--again}."""
        old = MARK.but(migration=TWO)
        for begun, identity, retired in (
            (COPYING, SAME, False),
            (COPIED, MAYBE, False),
            (UNLINK, SAME, False),
            (UNLINK, None, True),
        ):
            for record in (begun.but(again=True), begun.but(follows=TWO)):
                for others in ({}, {"migrated": old}):
                    with self.subTest(record=record, others=others):
                        self.stand(migrating=record, **others)
                        found = self.found(identity)
                        self.assertEqual(SourceState(record, retired), found)
        self.stand(migrating=COPIED.but(again=True), migrated=MARK)
        self.assertTrue(self.found().retired)

    def test_the_last_write_is_looked_at_only_where_it_matters(self):
        def fail():
            raise AssertionError("nobody wants to know")

        self.stand(migrated=MARK)
        self.refused("", source_state, SAME, "nbd://z", size=5, written=fail)
        self.stand(migrated=MARK.but(written="5 17"))
        self.refused("written after", source_state, SAME, URI, size=5, written=lambda: "5 18")
        # What is not finished is finished, and keeps what was seen then.
        self.stand(migrated=MARK.but(written="5 17"), migrating=COPIED)
        self.assertEqual("5 17", self.found(written=fail).record.written)

    def test_the_permission_to_send_a_retired_disk_again_is_for_one_migration(self):
        begun = COPYING.but(id="b", follows=TWO, ids=("a",))
        self.stand(migrating=begun, migrated=MARK.but(migration=TWO, id="a"))
        self.assertEqual(begun, self.found(id="b").record)
        # The first command, to the same place: it had no id, or another one.
        for id in ("", "a"):
            words = ("was migrated to", "disk.MIGRATING away, then blockmig forget")
            self.refused(words, source_state, SAME, URI, id=id)
        found = self.found(overwrite=True, id="c")
        self.assertEqual(SourceState(instead_of=ONE), found)
        self.refused("overwrite=True", source_state, SAME, URI, id="c")
        self.refused("was migrated to", source_state, SAME, "nbd://z")
        # Another disk beside a tombstone needs none.
        self.stand(migrating=begun, migrated=MARK.but(migration=TWO, id="a", unlink=True))
        self.assertEqual(ONE, self.found(id="c").instead_of)

    def test_no_option_passes_over_an_unfinished_hand_off(self):
        for records, identity, destination in (
            ({"migrating": COPIED}, SAME, "nbd://z"),
            ({"migrating": COPYING.but(whole=True)}, SAME, "nbd://z"),
            ({"migrating": COPIED}, OTHER, URI),
            ({"migrating": UNLINK}, OTHER, URI),
            ({"migrating": UNLINK}, MAYBE, URI),
            ({"migrating": UNLINK}, None, "nbd://z"),
            ({"migrating": b"torn"}, SAME, URI),
            ({"incomplete": COPIED}, SAME, URI),
            ({"incomplete": b"torn"}, SAME, URI),
        ):
            with self.subTest(records=records):
                self.stand(**records)
                self.refused("", source_state, identity, destination, overwrite=True, id="new")

    def test_a_source_is_refused_with_these_records(self):
        for records, identity, more, words in (
            ({}, None, {}, "no such file"),
            ({}, None, {"overwrite": True}, "no such file"),
            ({"migrating": COPYING}, None, {"overwrite": True}, "did not delete it"),
            # What may be whole there, though the source was in use again.
            (
                {"migrating": COPYING.but(whole=True)},
                SAME,
                {"destination": "nbd://z"},
                "canonical copy there",
            ),
            # A copy that is not known to be canonical is nobody's source, whatever is said.
            ({"incomplete": COPYING}, SAME, {}, "not known to be complete"),
            ({"incomplete": COPIED}, SAME, {"overwrite": True}, "not known to be complete"),
            ({"incomplete": MARK}, SAME, {"overwrite": True}, "not known to be complete"),
            ({"incomplete": b"{"}, SAME, {}, "torn"),
            ({"incomplete": b"{"}, SAME, {"overwrite": True}, "torn"),
            ({"migrating": b"{"}, SAME, {}, ("torn", "inspect", "move that file away")),
            ({"migrated": b"{"}, SAME, {}, ("torn", "overwrite=True")),
            ({"migrated": b'{"blockmig": 2}'}, SAME, {}, "later version"),
            # Migrated away.
            ({"migrated": MARK}, SAME, {}, ("was migrated to there:/copy", "when", "forget")),
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
            ({"migrating": UNLINK}, OTHER, {}, ("not the file", "move it away")),
            ({"migrating": UNLINK}, MAYBE, {}, ("may or may not be the file", "inspect")),
            (
                {"migrating": COPIED, "migrated": MARK},
                SAME,
                {"unlink": True},
                ("is to be kept", "with unlink=False"),
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
        for overwrite in (False, True):
            words = self.refused("torn", source_state, SAME, URI, overwrite=overwrite, id="new")
            self.assertNotIn("overwrite=True", words)

    def test_a_source_whose_records_cannot_be_kept_is_refused(self):
        self.patch(os, "access", lambda *_: False)
        self.refused("records cannot be kept there", source_state, SAME, URI)
        self.refused("records cannot be kept there", source_state, SAME, URI, overwrite=True)
