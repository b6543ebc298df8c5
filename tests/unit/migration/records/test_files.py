"""The records: their form, what is no record, and how they are written durably."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.records.files import (
    BadRecord,
    Kind,
    Location,
    Phase,
    Record,
    Records,
    UntrustedRecord,
    decode_record,
    timestamp,
)
from blockmig.syscalls import SystemCalls
from tests.unit.support import BreakingCalls

RECORD = Record(
    migration="7d0b2d5c-9f5e-4d57-8c77-000000000001",
    phase=Phase.COPIED,
    attempt=3,
    size=5000,
    source=Location("here", "/images/ä disk\n", "192.0.2.7:4711"),
    destination=Location("there", "/dev/vg0/web", "nbd://there/x"),
    began="2026-11-23T01:02:03Z",
    changed="2026-11-23T01:02:04Z",
    identified=False,
    unlink=True,
    identity="inode 5, born 6",
    side_export=True,
    retired="r",
    told="t",
    confirmed="c",
    instead_of="i",
    by="b",
    whole=True,
    again=True,
    token="k",
    id="nightly-42",
    place="p",
    boot="o",
    follows="f",
    ids=("monday", "tuesday"),
    written="5000 17",
    sent_again=True,
    successor="nbd://there/new",
)
OF_0_1 = b"""{
  "blockmig": 1,
  "record": "MIGRATING",
  "migration": "7d0b2d5c-9f5e-4d57-8c77-000000000001",
  "phase": "copied",
  "attempt": 3,
  "size": 5000,
  "source": {"host": "here", "disk": "/images/web.img", "address": ""},
  "destination": {"host": "there", "disk": "/d", "address": "nbd://there/x"},
  "began": "2026-11-23T01:02:03Z",
  "changed": "2026-11-23T01:02:04Z",
  "identified": true,
  "unlink": true,
  "identity": "inode 5, born 6",
  "side_export": true,
  "retired": "",
  "told": "",
  "confirmed": "",
  "instead_of": "",
  "by": "",
  "whole": false,
  "again": false,
  "token": ""
}
"""
NEW = ("id", "place", "boot", "follows", "ids", "written", "sent_again", "successor")
# As the system gives them: any bytes but zero, of which some are no UTF-8.
texts = st.binary(max_size=20).map(lambda some: os.fsdecode(some.replace(b"\0", b"0")))
sides = st.builds(Location, texts, texts, texts, texts)
records = st.builds(
    Record,
    **{
        field.name: {
            "str": texts,
            "int": st.integers(0, 2**63),
            "bool": st.booleans(),
            "Phase": st.sampled_from(Phase),
            "Location": sides,
            "tuple[str, ...]": st.lists(texts, max_size=3).map(tuple),
        }[field.type]
        for field in fields(Record)
    },
)


class FormTests(SynchronousTestCase):
    def bad(self, text, kind=Kind.INCOMPLETE):
        error = self.assertRaises(BadRecord, decode_record, text, kind, "/x.INCOMPLETE")
        self.assertEqual("/x.INCOMPLETE", error.path)
        self.assertTrue(str(error).startswith("/x.INCOMPLETE "), str(error))
        return str(error)

    def changed(self, **changes):
        return json.dumps({**json.loads(RECORD.encode(Kind.INCOMPLETE)), **changes}).encode()

    def test_a_record_of_version_0_1_is_read(self):
        record = decode_record(OF_0_1, Kind.MIGRATING, "x")
        self.assertEqual((Phase.COPIED, 5000), (record.phase, record.size))
        self.assertEqual(Location("there", "/d", "nbd://there/x"), record.destination)
        self.assertEqual(
            ("", "", "", "", (), "", False, ""), tuple(getattr(record, name) for name in NEW)
        )

    def test_what_every_version_has_may_not_be_missing(self):
        for name in json.loads(OF_0_1):
            content = {key: value for key, value in json.loads(OF_0_1).items() if key != name}
            self.bad(json.dumps(content), Kind.MIGRATING)

    @given(records, st.sampled_from(Kind))
    def test_any_record_survives_a_round_trip(self, record, kind):
        self.assertEqual(record, decode_record(record.encode(kind), kind, "x"))

    def test_the_test_record_sets_every_field(self):
        """A new field must be added to the test record."""
        for field in fields(Record):
            default = field.default
            self.assertNotEqual(default, getattr(RECORD, field.name), field.name)

    def test_a_record_torn_at_any_byte_is_bad(self):
        text = RECORD.encode(Kind.INCOMPLETE)
        whole = text.rstrip()
        for length in range(len(whole)):
            self.assertIn("torn", self.bad(text[:length]), length)
        self.assertEqual(RECORD, decode_record(whole, Kind.INCOMPLETE, "x"))

    def test_a_record_that_ends_in_zeroes_is_bad(self):
        text = RECORD.encode(Kind.INCOMPLETE)
        for length in (0, 1, len(text) // 2, len(text) - 2):
            self.assertIn("torn", self.bad(text[:length] + bytes(len(text) - length)))

    def test_other_JSON_is_not_a_record(self):
        for text in (b"{}", b"[]", b"5", b"null", b'"x"', b'{"blockmig": "1"}', b'{"a": 1}'):
            self.assertIn("not a blockmig record", self.bad(text))

    def test_bytes_that_are_no_text_are_bad(self):
        for text in (b"\xff\xfe\0", b"\x80", b"NaN", b"[" * 5000):
            self.bad(text)

    def test_a_record_of_a_later_version_is_bad(self):
        self.assertIn("later version (format 2)", self.bad(self.changed(blockmig=2)))
        # Whatever else it has: nothing of it is understood.
        self.assertIn("later version", self.bad(b'{"blockmig": 9}'))

    def test_a_record_of_another_kind_is_bad(self):
        for kind in Kind:
            for other in Kind:
                text = RECORD.encode(kind)
                if kind == other:
                    self.assertEqual(RECORD, decode_record(text, other, "x"))
                else:
                    self.assertIn("another kind", self.bad(text, other))
        self.bad(self.changed(record=None))
        self.bad(self.changed(record=["INCOMPLETE"]))

    def test_fields_of_wrong_types_are_bad(self):
        wrong = {
            "str": (None, 5, [], {}, True, 1.5),
            "int": (None, "5", 5.0, True, [], {}),
            "bool": (None, 0, 1, "", "true", []),
            "Phase": (None, "", "retired", 1, [], {}),
            "Location": (None, "", [], ["a", "b", "c"], {"host": 1}, {"port": "x"}, {"disk": None}),
            "tuple[str, ...]": (None, "", 5, {}, [5], [None]),
        }
        for field in fields(Record):
            for value in wrong[field.type]:
                with self.subTest(field=field.name, value=value):
                    words = self.bad(self.changed(**{field.name: value}))
                    self.assertIn("not a blockmig record", words)

    def test_a_text_that_the_system_cannot_have_is_bad(self):
        """`inspect` ended in a traceback over such a path, or such an identity of a device."""
        for text in ("a\0b", "\ud800", "device \ud800"):
            for field in ("identity", "migration", "successor"):
                self.assertIn("not a blockmig record", self.bad(self.changed(**{field: text})))
            for end in ("source", "destination"):
                self.assertIn(
                    "not a blockmig record", self.bad(self.changed(**{end: {"disk": text}}))
                )

    def test_a_path_that_is_no_UTF_8_is_read(self):
        record = RECORD.but(source=Location("here", "/\udcff"))
        self.assertEqual(record, decode_record(record.encode(Kind.MIGRATED), Kind.MIGRATED, "x"))

    def test_a_record_has_one_line_for_each_field(self):
        lines = RECORD.encode(Kind.MIGRATED).decode().splitlines()
        self.assertIn('  "record": "MIGRATED",', lines)
        self.assertIn('  "phase": "copied",', lines)

    @given(st.binary(max_size=300))
    def test_any_bytes_raise_only_BadRecord(self, data):
        self.assertRaises(BadRecord, decode_record, data, Kind.MIGRATED, "x")

    def test_locations_are_shown_as_text(self):
        for side, text in (
            (Location(), "(unknown)"),
            (Location("h"), "h"),
            (Location("h", "/d"), "h:/d"),
            (Location("h", "/d", "nbd://a/"), "h:/d (nbd://a/)"),
            (Location("h", "/d", "192.0.2.7:4711"), "h:/d"),
            (Location(address="a"), "a"),
        ):
            self.assertEqual(text, str(side))

    def test_timestamps_are_in_UTC(self):
        self.assertRegex(timestamp(), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")


class Case(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.path = os.path.join(self.directory, "disk")
        self.records = Records(self.path)

    def put(self, text, name="disk.INCOMPLETE"):
        with open(os.path.join(self.directory, name), "wb") as file:
            file.write(text)

    def names(self):
        return sorted(os.listdir(self.directory))


class ReadTests(Case):
    def bad(self, words):
        error = self.assertRaises(BadRecord, self.records.read, Kind.INCOMPLETE)
        self.assertIn(words, str(error))
        self.assertEqual(self.path + ".INCOMPLETE", error.path)

    def test_a_missing_record_reads_as_None(self):
        for kind in Kind:
            self.assertIsNone(self.records.read(kind))
        self.assertIsNone(Records(self.path + "/no/where").read(Kind.MIGRATED))
        self.put(b"", "file")
        self.assertIsNone(Records(self.directory + "/file/disk").read(Kind.MIGRATED))

    def test_a_record_that_was_written_is_read(self):
        for kind in Kind:
            written = self.records.write(kind, RECORD)
            self.assertEqual(written, self.records.read(kind))
            self.assertEqual(RECORD, written.but(changed=RECORD.changed))
            self.assertNotEqual(RECORD.changed, written.changed)
        self.assertEqual(sorted(f"disk.{kind}" for kind in Kind), self.names())

    def test_a_temporary_file_is_no_record(self):
        self.put(RECORD.encode(Kind.INCOMPLETE), "disk.INCOMPLETE.tmp")
        self.assertIsNone(self.records.read(Kind.INCOMPLETE))

    def test_an_empty_record_is_torn(self):
        self.put(b"")
        self.bad("torn")

    def test_a_record_of_deeply_nested_JSON_is_bad(self):
        for opening in ("[", '{"x":'):
            self.put(opening.encode() * 10_000)
            self.bad("torn")

    def test_a_record_longer_than_64_KiB_is_bad(self):
        text = RECORD.encode(Kind.INCOMPLETE)
        self.put(text + b" " * (65536 - len(text)))
        self.assertEqual(RECORD, self.records.read(Kind.INCOMPLETE))
        self.put(text + b" " * (65537 - len(text)))
        self.bad("too long")

    def test_a_directory_in_the_place_of_a_record_is_bad(self):
        os.mkdir(self.path + ".INCOMPLETE")
        self.bad("directory")

    def test_a_FIFO_in_the_place_of_a_record_is_not_waited_for(self):
        os.mkfifo(self.path + ".INCOMPLETE")
        self.assertRaises(UntrustedRecord, self.records.read, Kind.INCOMPLETE)

    def test_a_symbolic_link_to_a_record_is_not_followed(self):
        self.put(RECORD.encode(Kind.INCOMPLETE), "elsewhere")
        os.symlink("elsewhere", self.path + ".INCOMPLETE")
        self.bad("symbolic link")

    def test_a_link_that_leads_nowhere_is_not_taken_for_absence(self):
        os.symlink("nowhere", self.path + ".INCOMPLETE")
        self.bad("symbolic link")

    def test_a_record_of_another_user_is_not_believed(self):
        class OfAnother(SystemCalls):
            def fstat(self, descriptor):
                found = os.fstat(descriptor)
                return os.stat_result((*found[:4], 54321, *found[5:]))

        self.records.write(Kind.INCOMPLETE, RECORD)
        records = Records(self.path, OfAnother())
        error = self.assertRaises(UntrustedRecord, records.read, Kind.INCOMPLETE)
        self.assertIn("belongs to the user 54321", str(error))

    def test_records_are_for_their_owner_only(self):
        """They have the UUID of the migration, which proves to a receiver which one it is."""
        self.addCleanup(os.umask, os.umask(0))
        for kind in Kind:
            self.records.write(kind, RECORD)
            self.assertEqual(0o600, os.stat(self.records.name(kind)).st_mode & 0o7777)

    def test_an_unreadable_record_raises_its_error(self):
        class Denied(SystemCalls):
            def open(self, *_):
                raise PermissionError(errno.EACCES, "Permission denied")

        self.assertRaises(PermissionError, Records(self.path, Denied()).read, Kind.INCOMPLETE)

    def test_bad_records_leave_no_descriptors_open(self):
        before = len(os.listdir("/proc/self/fd"))
        self.put(b"x" * 70_000)
        self.bad("too long")
        self.put(b"x")
        self.bad("torn")
        self.assertEqual(before, len(os.listdir("/proc/self/fd")))


class WriteTests(Case):
    temporary = "disk.INCOMPLETE.tmp"

    def test_a_record_is_written_synced_renamed_and_synced_again(self):
        calls = BreakingCalls()
        record = Records(self.path, calls).write(Kind.INCOMPLETE, RECORD)
        size = len(record.encode(Kind.INCOMPLETE))
        self.assertEqual(
            [
                ("open", self.temporary),
                ("pwrite", self.temporary, 0, size),
                ("fsync", self.temporary),
                ("close", self.temporary),
                ("rename", self.temporary, "disk.INCOMPLETE"),
                ("open", os.path.basename(self.directory)),
                ("fsync", os.path.basename(self.directory)),
                ("close", os.path.basename(self.directory)),
            ],
            calls.calls,
        )

    def test_the_check_runs_last_before_the_record_appears(self):
        calls = BreakingCalls()
        seen = []
        Records(self.path, calls).write(
            Kind.MIGRATED, RECORD, lambda: seen.extend(call[0] for call in calls.calls)
        )
        self.assertEqual(["open", "pwrite", "fsync", "close"], seen)

    def test_a_record_does_not_appear_if_the_check_fails(self):
        def look():
            raise ValueError("no")

        self.assertRaises(ValueError, self.records.write, Kind.MIGRATED, RECORD, look)
        self.assertEqual([], os.listdir(self.directory))

    def test_short_writes_are_continued(self):
        calls = BreakingCalls(most=100)
        record = Records(self.path, calls).write(Kind.INCOMPLETE, RECORD)
        self.assertEqual(record, self.records.read(Kind.INCOMPLETE))
        writes = [call for call in calls.calls if call[0] == "pwrite"]
        self.assertGreater(len(writes), 5)
        self.assertEqual([100 * n for n in range(len(writes))], [call[2] for call in writes])

    def test_a_left_over_temporary_file_is_replaced(self):
        self.put(b"x" * 60_000, self.temporary)
        written = self.records.write(Kind.INCOMPLETE, RECORD)
        self.assertEqual(written, self.records.read(Kind.INCOMPLETE))
        self.assertEqual(["disk.INCOMPLETE"], self.names())

    def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(self):
        """No other file is overwritten through a link."""
        self.put(b"precious", "other")
        os.symlink("other", os.path.join(self.directory, self.temporary))
        written = self.records.write(Kind.INCOMPLETE, RECORD)
        with open(os.path.join(self.directory, "other"), "rb") as file:
            self.assertEqual(b"precious", file.read())
        self.assertEqual(["disk.INCOMPLETE", "other"], self.names())
        self.assertEqual(written, self.records.read(Kind.INCOMPLETE))

    def test_a_FIFO_in_the_place_of_the_temporary_file_is_replaced(self):
        os.mkfifo(os.path.join(self.directory, self.temporary))
        written = self.records.write(Kind.INCOMPLETE, RECORD)
        self.assertEqual(written, self.records.read(Kind.INCOMPLETE))
        self.assertTrue(os.path.isfile(self.path + ".INCOMPLETE"))

    def test_a_directory_in_the_place_of_the_temporary_file_is_an_error(self):
        os.mkdir(os.path.join(self.directory, self.temporary))
        error = self.assertRaises(OSError, self.records.write, Kind.INCOMPLETE, RECORD)
        self.assertIn(self.path + ".INCOMPLETE", str(error))

    def test_the_temporary_file_is_created_exclusively(self):
        """Nobody else can have it open, or have written to it."""
        flags = []

        class Flags(SystemCalls):
            def open(self, path, how, *mode):
                flags.append((how & os.O_EXCL, how & os.O_TRUNC, *mode))
                return os.open(path, how, *mode)

        Records(self.path, Flags()).write(Kind.INCOMPLETE, RECORD)
        self.assertEqual((os.O_EXCL, 0, 0o600), flags[0])

    def test_a_record_is_readable_for_its_owner_only(self):
        """The record has the UUID, with which one could act as the sender."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.put(b"left", self.temporary)
        os.chmod(os.path.join(self.directory, self.temporary), 0o666)
        self.records.write(Kind.INCOMPLETE, RECORD)
        self.assertEqual(0o600, os.stat(self.path + ".INCOMPLETE").st_mode & 0o777)

    def test_errors_of_writing_name_the_record(self):
        for index in range(8):
            calls = BreakingCalls(index)
            error = self.assertRaises(
                OSError, Records(self.path, calls).write, Kind.MIGRATED, RECORD
            )
            self.assertEqual(errno.EIO, error.errno)
            self.assertIn(self.path + ".MIGRATED: ", str(error))
            self.assertNotIn(self.temporary, self.names(), "what is not used is taken away")

    def test_a_failure_at_any_call_leaves_the_old_or_the_new_record(self):
        """No other name than the two is left."""
        old = self.records.write(Kind.INCOMPLETE, RECORD.but(attempt=1))
        probe = BreakingCalls(most=300)
        Records(self.path, probe).write(Kind.INCOMPLETE, RECORD.but(attempt=1))
        total = len(probe.calls)
        renamed = [call[0] for call in probe.calls].index("rename")
        before = len(os.listdir("/proc/self/fd"))
        for index in range(total):
            for after in (False, True):
                self.records.write(Kind.INCOMPLETE, old)
                calls = BreakingCalls(index, after, 300)
                records = Records(self.path, calls)
                self.assertRaises(OSError, records.write, Kind.INCOMPLETE, RECORD)
                new = index > renamed or (index == renamed and after)
                found = self.records.read(Kind.INCOMPLETE)
                self.assertEqual(3 if new else 1, found.attempt, (probe.calls[index], after))
                self.assertLessEqual({*self.names()}, {"disk.INCOMPLETE", self.temporary})
                # The lock is free, and what was left is used up.
                records._system = SystemCalls()
                records.write(Kind.INCOMPLETE, RECORD)
                self.assertEqual(["disk.INCOMPLETE"], self.names())
        # close() that failed before it was made is the only one that may keep its descriptor.
        leaked = len(os.listdir("/proc/self/fd")) - before
        self.assertLessEqual(leaked, 2)

    def test_nothing_is_renamed_before_it_was_synced(self):
        for index in range(4):
            calls = BreakingCalls(index)
            self.assertRaises(OSError, Records(self.path, calls).write, Kind.MIGRATED, RECORD)
            self.assertNotIn("rename", [call[0] for call in calls.calls])
            self.assertIsNone(self.records.read(Kind.MIGRATED))


class OwnerTests(Case):
    """Whose a record is that root has written."""

    def setUp(self):
        super().setUp()
        outer = self
        self.disk, self.home, self.user, self.owner = 0, 0, 0, 0

        class Owned(SystemCalls):
            def geteuid(self):
                return outer.user

            def stat(self, path):
                owner = outer.home if path == outer.directory else outer.disk
                if owner is None:
                    raise FileNotFoundError(errno.ENOENT, "No such file or directory")
                return outer.owned(os.stat(outer.directory), owner)

            def fstat(self, descriptor):
                return outer.owned(os.fstat(descriptor), outer.owner)

            def fchown(self, descriptor, owner, group):
                outer.assertEqual(-1, group)
                outer.owner = owner

        self.system = Owned()

    def owned(self, status, owner):
        return os.stat_result((*status[:4], owner, *status[5:10]))

    def write(self, disk, directory, user=0, device=""):
        """The owner of a record, given those of the disk and of its directory."""
        self.disk, self.home, self.user, self.owner = disk, directory, user, user
        Records(self.path, self.system, device).write(Kind.RECEIVED, RECORD)
        return self.owner

    def test_it_is_the_owners_of_the_directory(self):
        for disk in (107, 0, 1000, None):
            self.assertEqual(107, self.write(disk, directory=107))

    def test_it_stays_roots_in_a_directory_of_roots(self):
        for disk in (107, 0, None):
            self.assertEqual(0, self.write(disk, directory=0))

    def test_it_is_believed_whoever_the_disk_is_given_to_and_once_it_is_gone(self):
        for before, directory in ((107, 0), (107, 107), (0, 107)):
            self.write(before, directory)
            for self.disk in (before, 0, 64055, None):
                found = Records(self.path, self.system).read(Kind.RECEIVED)
                self.assertEqual(RECORD.migration, found.migration)

    def test_of_a_device_it_stays_roots(self):
        self.assertEqual(0, self.write(disk=107, directory=107, device="/dev/vg0/web"))

    def test_others_give_nothing_away(self):
        self.assertEqual(1000, self.write(disk=107, directory=107, user=1000))


class RemoveTests(Case):
    def test_a_record_is_removed_with_its_temporary_file_and_synced(self):
        self.records.write(Kind.INCOMPLETE, RECORD)
        self.put(b"torn", "disk.INCOMPLETE.tmp")
        calls = BreakingCalls()
        Records(self.path, calls).remove(Kind.INCOMPLETE, Kind.MIGRATED)
        directory = os.path.basename(self.directory)
        self.assertEqual(
            [
                ("unlink", "disk.INCOMPLETE"),
                ("unlink", "disk.INCOMPLETE.tmp"),
                ("unlink", "disk.MIGRATED"),
                ("unlink", "disk.MIGRATED.tmp"),
                ("open", directory),
                ("fsync", directory),
                ("close", directory),
            ],
            calls.calls,
        )
        self.assertEqual([], self.names())

    def test_removing_syncs_even_where_nothing_was_there(self):
        """An earlier removal may not have become durable."""
        calls = BreakingCalls()
        Records(self.path, calls).remove(Kind.MIGRATING)
        self.assertIn("fsync", [call[0] for call in calls.calls])

    def test_failures_of_removing_are_raised(self):
        for index in (0, 1, 2, 3):
            self.records.write(Kind.MIGRATED, RECORD)
            self.put(b"", "disk.MIGRATED.tmp")
            self.assertRaises(
                OSError, Records(self.path, BreakingCalls(index)).remove, Kind.MIGRATED
            )

    def test_only_the_named_kinds_are_removed(self):
        for kind in Kind:
            self.records.write(kind, RECORD)
        self.records.remove(Kind.MIGRATING)
        self.assertEqual(
            sorted(f"disk.{kind}" for kind in Kind if kind != Kind.MIGRATING), self.names()
        )

    def test_kinds_that_are_not_there_cost_no_sync(self):
        self.put(b"torn", "disk.ACCEPTED")
        calls = BreakingCalls()
        records = Records(self.path, calls)
        records.remove_existing(Kind.INCOMPLETE, Kind.MIGRATED)
        self.assertEqual([], calls.calls)
        records.remove_existing(Kind.ACCEPTED, Kind.MIGRATED)
        self.assertEqual([], self.names())
        self.assertEqual("fsync", calls.calls[-2][0])


class SyncTests(Case):
    def test_syncing_syncs_the_directory(self):
        calls = BreakingCalls()
        Records(self.path, calls).sync()
        self.assertEqual(["open", "fsync", "close"], [call[0] for call in calls.calls])
        self.assertRaises(OSError, Records(self.path, BreakingCalls(1)).sync)

    def test_a_missing_directory_needs_no_sync(self):
        Records(self.path + "/no/where").sync()


class WritableTests(Case):
    def test_checking_creates_no_directory(self):
        """The check changes nothing; the state directory is made when a device is opened."""
        records = Records(self.path + "-state/deep/dev-sda")
        error = self.assertRaises(FileNotFoundError, records.check_writable)
        self.assertIn(self.path + "-state/deep", str(error))
        self.assertEqual([], self.names())
        os.makedirs(self.path + "-state/deep")
        records.check_writable()
        records.write(Kind.MIGRATED, RECORD)
        self.assertIsNotNone(records.read(Kind.MIGRATED))

    def test_a_directory_that_is_to_be_made_must_be_possible(self):
        records = Records(self.path + "-state/deep/dev-sda", device="/dev/sda", to_be_made=True)
        records.check_writable()
        self.assertEqual(self.path + "-state/deep", records.unmade)
        self.assertEqual([], self.names())
        self.patch(os, "access", lambda path, mode: path != self.directory)
        self.assertRaises(PermissionError, records.check_writable)
        self.put(b"", "file")
        below = Records(self.directory + "/file/x/dev-sda", device="/dev/sda", to_be_made=True)
        self.assertRaises(OSError, below.check_writable)
        os.makedirs(self.path + "-state/deep")
        self.assertEqual("", records.unmade)

    def test_a_directory_in_which_names_stay_is_an_error(self):
        """A record could be begun there, but neither replaced nor removed."""

        class Flags(SystemCalls):
            def ioctl(self, descriptor, request, argument):
                return (0x20).to_bytes(8, "little")

        error = self.assertRaises(OSError, Records(self.path, Flags()).check_writable)
        self.assertEqual(errno.EPERM, error.errno)
        self.assertIn("append-only: chattr -a", str(error))
        self.assertEqual([], self.names())

    def test_a_directory_that_cannot_exist_is_an_error(self):
        self.put(b"", "file")
        self.assertRaises(OSError, Records(self.directory + "/file/x/disk").check_writable)

    def test_a_directory_without_permission_is_an_error(self):
        self.patch(os, "access", lambda path, mode: False)
        self.assertRaises(PermissionError, self.records.check_writable)

    def test_a_directory_in_which_no_file_can_be_made_is_an_error(self):
        """Whatever access(2) says."""
        for first in (None, errno.EOPNOTSUPP, errno.EISDIR):
            tried = []

            def no_file(path, flags, mode=0, *, first=first, tried=tried):
                if not flags & os.O_WRONLY:
                    raise OSError(errno.EACCES, "may not be listed")
                tried.append(path)
                number = first if first and len(tried) == 1 else errno.EROFS
                raise OSError(number, os.strerror(number))

            system = SystemCalls()
            self.patch(system, "open", no_file)
            error = self.assertRaises(OSError, Records(self.path, system).check_writable)
            self.assertEqual(errno.EROFS, error.errno)
            self.assertEqual(2 if first else 1, len(tried))

    def test_checking_leaves_nothing_behind(self):
        """Nor takes away what another run is writing."""
        real = os.open

        def no_nameless(path, flags, mode=0):
            if path == self.directory:
                raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE")
            return real(path, flags, mode)

        system = SystemCalls()
        self.patch(system, "open", no_nameless)
        for records in (self.records, Records(self.path, system)):
            records.check_writable()
            self.assertEqual([], self.names())
        self.put(b"x", "disk.INCOMPLETE.tmp")
        Records(self.path, system).check_writable()
        self.assertEqual(["disk.INCOMPLETE.tmp"], self.names())

    def test_a_check_takes_nothing_from_who_writes_a_record(self):
        """It has no lock on the disk, and a receiver may be at work there meanwhile."""
        real, system = os.open, SystemCalls()

        def no_nameless(path, flags, mode=0):
            if path == self.directory:
                raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE")
            return real(path, flags, mode)

        self.patch(system, "open", no_nameless)
        checks = Records(self.path, system)
        made = []
        self.patch(system, "unlink", made.append)
        checks.check_writable()
        self.assertEqual([os.path.join(self.directory, name) for name in self.names()], made)
        # The check has made its file; it removes that while a record has its temporary name.
        self.records.write(Kind.INCOMPLETE, RECORD, lambda: os.unlink(made[0]))
        self.assertEqual(["disk.INCOMPLETE"], self.names())

    def test_what_a_check_that_died_has_left_is_used_up(self):
        real, system = os.open, SystemCalls()

        def no_nameless(path, flags, mode=0):
            if path == self.directory:
                raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE")
            return real(path, flags, mode)

        self.patch(system, "open", no_nameless)
        self.patch(system, "unlink", lambda path: None)
        Records(self.path, system).check_writable()
        self.assertEqual(1, len(self.names()))
        self.patch(system, "unlink", os.unlink)
        Records(self.path, system).check_writable()
        self.assertEqual([], self.names())

    def test_where_the_directory_is_yet_to_be_made_the_one_above_is_tried(self):
        real, system, made = os.open, SystemCalls(), []

        def no_nameless(path, flags, mode=0):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no O_TMPFILE")
            made.append(os.path.dirname(path))
            return real(path, flags, mode)

        path = os.path.join(self.directory, "lib", "blockmig", "vda")
        self.patch(system, "open", no_nameless)
        Records(path, system, "/dev/vda", to_be_made=True).check_writable()
        self.assertEqual([], self.names())
        self.assertEqual(self.directory, made[-1])

    def test_a_name_must_leave_room_for_the_longest_record_name(self):
        longest = os.pathconf(self.directory, "PC_NAME_MAX")
        room = longest - len(".INCOMPLETE.tmp")
        good = Records(os.path.join(self.directory, "x" * room))
        good.check_writable()
        for kind in Kind:
            good.write(kind, RECORD)
        for name in ("x" * (room + 1), "ä" * (room // 2 + 1)):
            records = Records(os.path.join(self.directory, name))
            self.assertEqual(
                errno.ENAMETOOLONG, self.assertRaises(OSError, records.check_writable).errno
            )
