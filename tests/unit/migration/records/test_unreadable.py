"""What cannot be read is not taken for absent: neither a record, nor a mark, nor a name."""

from __future__ import annotations

import errno
import os

from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import Refused
from blockmig.migration.records import mark as mark_module
from blockmig.migration.records.accept import accept
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.forget import forget
from blockmig.migration.records.permitted import destination_record, source_state
from blockmig.migration.records.verdict import CopyState, check_canonical, examine, verdict_of
from blockmig.migration.source.watch import SourceGone, SourceWatch
from blockmig.storage import DiskRefused, FileDisk, device_record_path
from blockmig.syscalls import SystemCalls
from tests.unit.support import ONE, TWO, RecordedDisk, WatchedDisk

ERRORS = (errno.EIO, errno.EACCES)


class UnreadableCalls(SystemCalls):
    """Whatever ends in C{suffix} can be neither opened nor asked for its status."""

    def __init__(self, suffix, number=errno.EIO):
        self.suffix = suffix
        self.number = number

    def _check(self, path):
        if os.fspath(path).endswith(self.suffix):
            raise OSError(self.number, os.strerror(self.number), path)

    def open(self, path, *arguments):
        self._check(path)
        return os.open(path, *arguments)

    def stat(self, path):
        self._check(path)
        return os.stat(path)

    def lstat(self, path):
        self._check(path)
        return os.lstat(path)

    def listdir(self, path):
        self._check(path)
        return os.listdir(path)


class Case(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.realpath(os.path.abspath(self.mktemp()))
        os.mkdir(self.directory)
        self.path = os.path.join(self.directory, "disk")
        with open(self.path, "wb") as file:
            file.write(b"12345")
        with FileDisk(self.path) as disk:
            identity = disk.identity()
        self.record = Record(
            migration=ONE,
            phase=Phase.COPIED,
            attempt=1,
            size=5,
            source=Location("here", "/disk"),
            destination=Location(os.uname().nodename, self.path),
            began="then",
            identity=identity,
            confirmed="later",
        )
        self.records = Records(self.path)

    def names(self):
        return sorted(os.listdir(self.directory))


class ExistenceTests(Case):
    def test_what_is_there_exists_and_what_is_not_does_not(self):
        system = SystemCalls()
        os.symlink("nowhere", self.path + ".link")
        self.assertTrue(system.exists(self.path))
        self.assertTrue(system.exists(self.path + ".link"))
        self.assertFalse(system.exists(self.path + ".none"))
        self.assertFalse(system.exists(self.path + "/none"))

    def test_what_fails_is_neither_there_nor_absent(self):
        for number in ERRORS:
            error = self.assertRaises(OSError, UnreadableCalls("disk", number).exists, self.path)
            self.assertEqual(number, error.errno)


class VerdictTests(Case):
    def test_a_record_of_any_kind_that_cannot_be_read_leaves_the_verdict_open(self):
        for kind in Kind:
            self.records.write(kind, self.record)
            for number in ERRORS:
                found = examine(self.path, system=UnreadableCalls(kind.value, number))
                verdict = verdict_of(found)
                self.assertEqual(CopyState.UNKNOWN, verdict.state, kind)
                self.assertIn(f"disk.{kind} cannot be read", verdict.line)
            self.records.remove(kind)

    def test_a_disk_with_such_a_record_is_not_served(self):
        for kind in (Kind.RECEIVED, Kind.ACCEPTED):
            self.records.write(kind, self.record)
            with FileDisk(self.path) as disk:
                check_canonical(disk)
                calls = UnreadableCalls(kind.value)
                error = self.assertRaises(Refused, check_canonical, disk, calls)
            self.assertIn("make that file readable", str(error))
            self.records.remove(kind)

    def test_a_disk_that_fails_when_it_is_looked_at_is_refused(self):
        class Calls(SystemCalls):
            def lseek(self, *_):
                raise OSError(errno.EIO, "Input/output error")

        error = self.assertRaises(DiskRefused, examine, self.path, system=Calls())
        self.assertEqual(f"{self.path}: Input/output error", str(error))

    def test_a_mark_that_cannot_be_read_is_not_taken_for_none(self):
        def fail(*_):
            raise OSError(errno.EIO, "Input/output error")

        self.patch(mark_module.os, "getxattr", fail)
        self.assertRaises(DiskRefused, examine, self.path)
        self.records.write(Kind.RECEIVED, self.record)
        self.assertRaises(Refused, forget, self.path)
        self.assertEqual(["disk", "disk.RECEIVED"], self.names())


class PermissionTests(Case):
    def setUp(self):
        super().setUp()
        self.disk = RecordedDisk(b"12345", self.path)
        self.disk.identity = lambda: self.record.identity

    def test_a_copy_that_may_be_complete_is_not_received_over(self):
        """Its receiver has died between its last two acts, and the first cannot be read."""
        copying = self.record.but(phase=Phase.COPYING)
        self.records.write(Kind.INCOMPLETE, copying)
        self.records.write(Kind.RECEIVED, self.record)
        for overwrite in (False, True):
            records = Records(self.path, UnreadableCalls("RECEIVED"))
            self.assertRaises(Refused, destination_record, self.disk, records, overwrite, "new")
        self.assertEqual(["disk", "disk.INCOMPLETE", "disk.RECEIVED"], self.names())

    def test_a_source_that_may_be_a_copy_is_not_sent(self):
        for kind in (Kind.INCOMPLETE, Kind.MIGRATED, Kind.MIGRATING):
            self.records.write(kind, self.record)
            records = Records(self.path, UnreadableCalls(kind.value))
            self.assertRaises(Refused, source_state, records, self.record.identity, "nbd://there/")
            self.records.remove(kind)


class RemovalTests(Case):
    def test_a_record_of_which_it_is_not_known_whether_it_exists_was_not_removed(self):
        self.records.write(Kind.MIGRATED, self.record)
        for number in ERRORS:
            records = Records(self.path, UnreadableCalls("MIGRATED", number))
            error = self.assertRaises(OSError, records.remove_existing, Kind.MIGRATED)
            self.assertEqual(number, error.errno)

    def test_nothing_is_forgotten_beside_what_may_be_unfinished(self):
        self.records.write(Kind.RECEIVED, self.record)
        for kind in (Kind.INCOMPLETE, Kind.MIGRATING):
            self.records.write(kind, self.record.but(migration=TWO))
            calls = UnreadableCalls(kind.value)
            self.assertRaises(Refused, forget, self.path, system=calls)
            self.assertIn("disk.RECEIVED", self.names())
            self.records.remove(kind)

    def test_what_may_be_there_still_needs_to_be_checked_before_it_is_forgotten(self):
        self.records.write(Kind.MIGRATED, self.record.but(retired="when"))
        self.assertRaises(Refused, forget, self.path, system=UnreadableCalls("disk"))
        self.assertEqual(["disk", "disk.MIGRATED"], self.names())

    def test_a_disk_that_cannot_be_looked_at_is_not_said_to_be_missing(self):
        calls = UnreadableCalls("disk")
        error = self.assertRaises(Refused, accept, self.path, "me", system=calls)
        self.assertIn("Input/output error", str(error))

    def test_a_directory_that_cannot_be_looked_at_is_not_said_to_be_missing(self):
        for records in (
            Records(self.path, UnreadableCalls(self.directory)),
            Records(self.path, UnreadableCalls(self.directory), "/dev/x", to_be_made=True),
        ):
            error = self.assertRaises(OSError, records.check_writable)
            self.assertEqual(errno.EIO, error.errno)


class NameTests(Case):
    def test_what_may_have_the_name_of_a_source_that_is_gone_may_be_another_disk(self):
        disk = WatchedDisk(b"12345", self.path)
        watch = SourceWatch(disk, system=UnreadableCalls("disk"))
        watch.begin()
        disk.gone = True
        error = self.assertRaises(SourceGone, watch.check)
        self.assertTrue(error.replaced)
        self.assertIn("deleted or replaced by somebody else", str(error))

    def test_a_rescued_disk_does_not_replace_what_may_be_there(self):
        calls = UnreadableCalls(".rescued")
        with FileDisk(self.path, system=calls) as disk:
            os.unlink(self.path)
            with open(self.path + ".rescued", "wb") as file:
                file.write(b"other")
            error = self.assertRaises(OSError, disk.rescue)
        self.assertEqual(errno.EIO, error.errno)
        with open(self.path + ".rescued", "rb") as file:
            self.assertEqual(b"other", file.read())

    def test_a_state_directory_that_fails_is_not_taken_for_empty(self):
        state = os.path.join(self.directory, "state")
        os.mkdir(state)
        calls = UnreadableCalls("state")
        error = self.assertRaises(DiskRefused, device_record_path, "/dev/x", None, state, calls)
        self.assertIn("Input/output error", str(error))
        self.assertIn(state, str(error))
