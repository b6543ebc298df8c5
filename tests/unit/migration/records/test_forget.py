"""What is forgotten, and what must not be; and the disks of which a directory has records."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from blockmig.errors import LocalFailure, Refused
from blockmig.migration.records.directory import recorded_disks
from blockmig.migration.records.files import Kind, Location, Records
from blockmig.migration.records.finished import read_finished
from blockmig.migration.records.forget import forget, forget_old
from blockmig.syscalls import SystemCalls
from tests.unit.migration.records.test_finished import HERE, Case
from tests.unit.support import ONE, TWO


class ForgetTests(Case):
    def setUp(self):
        super().setUp()
        self.path = self.records.path

    def there(self):
        with open(self.path, "wb") as file:
            file.write(b"12345")

    def names(self):
        return sorted(os.listdir(os.path.dirname(self.path)))

    def test_what_is_finished_is_forgotten(self):
        for records in (
            {"received": self.received},
            {"accepted": self.received},
            {"migrated": self.deleted},
            {"migrated": self.migrated.but(migration=TWO, follows=ONE), "received": self.received},
            {"migrated": b"torn"},
            {"received": b"torn"},
        ):
            self.stand(**records)
            kinds = {Kind(name.upper()) for name in records}
            self.assertEqual(kinds, set(forget(self.path).removed))
            self.assertEqual([], self.names())

    def test_what_is_there_and_was_migrated_needs_to_be_checked(self):
        self.there()
        for record in (self.migrated, self.deleted, b"torn"):
            self.stand(migrated=record)
            error = self.assertRaises(Refused, forget, self.path)
            self.assertIn("--i-have-checked-the-destination", str(error))
            self.assertEqual(["disk", "disk.MIGRATED"], self.names())
            forget(self.path, checked_destination=True)
            self.assertEqual(["disk"], self.names())

    def test_what_came_home_needs_no_check(self):
        self.there()
        home = self.received.but(follows=TWO)
        self.stand(migrated=self.migrated.but(migration=TWO), received=home)
        forget(self.path)
        self.assertEqual(["disk"], self.names())

    def test_what_is_not_finished_is_never_forgotten(self):
        for unfinished in (
            {"incomplete": self.received.but(migration=TWO)},
            {"migrating": b"torn"},
        ):
            self.stand(received=self.received, **unfinished)
            before = self.names()
            for checked in (False, True):
                error = self.assertRaises(Refused, forget, self.path, checked_destination=checked)
                self.assertIn("not known to be complete", str(error))
                self.assertIn(f"blockmig inspect {self.path}", str(error))
            self.assertEqual(before, self.names())

    def test_what_is_complete_is_forgotten_though_its_receiver_died_before_it_had_tidied_up(self):
        """Each removal is durable before the next: alone, INCOMPLETE would say something else."""
        incomplete = self.received.but(confirmed="")
        self.stand(incomplete=incomplete, received=self.received)
        calls = []

        class Calls(SystemCalls):
            def unlink(self, path):
                super().unlink(path)
                calls.append(os.path.basename(path))

            def sync_directory(self, path):
                super().sync_directory(path)
                calls.append("sync")

        done = forget(self.path, system=Calls())
        self.assertEqual((Kind.INCOMPLETE, Kind.RECEIVED), done.removed)
        self.assertEqual(["disk.INCOMPLETE", "sync", "disk.RECEIVED", "sync"], calls)
        self.assertEqual([], self.names())
        for other in (incomplete.but(migration=TWO), b"torn"):
            self.stand(incomplete=other, received=self.received)
            self.assertRaises(Refused, forget, self.path)

    def test_where_there_is_nothing_nothing_is_forgotten(self):
        """A mistyped name must not pass for success."""
        self.there()
        self.assertIn("no record", str(self.assertRaises(Refused, forget, self.path)))

    def test_what_does_not_count_any_more_goes_first(self):
        """Whenever it ends, no record counts that had been superseded."""
        for records in (
            {"migrated": self.migrated.but(migration=TWO, follows=ONE), "received": self.received},
            {
                "migrated": self.migrated.but(migration=TWO),
                "received": self.received.but(follows=TWO),
            },
        ):
            self.stand(**records)
            latest = read_finished(self.records).latest
            system = SystemCalls()
            seen = []

            def unlink(path, seen=seen):
                os.unlink(path)
                if read_finished(self.records) is not None:
                    seen.append(read_finished(self.records).latest)

            system.unlink = unlink
            forget(self.path, system=system)
            self.assertEqual([latest, None], seen)

    def test_a_failure_is_reported(self):
        class Broken(SystemCalls):
            def unlink(self, path):
                raise PermissionError(1, "not now")

        self.stand(received=self.received)
        error = self.assertRaises(LocalFailure, forget, self.path, system=Broken())
        self.assertIn("not now", str(error))


class DirectoryTests(Case):
    def setUp(self):
        super().setUp()
        self.directory = os.path.dirname(self.records.path)
        for name, kind in (("a", Kind.RECEIVED), ("b", Kind.MIGRATED), ("c", Kind.INCOMPLETE)):
            Records(f"{self.directory}/{name}").write(kind, self.received)
        with open(f"{self.directory}/a", "wb") as file:
            file.write(b"12345")
        for name in ("other.NOTES", "d", "MIGRATED", ".RECEIVED"):
            with open(f"{self.directory}/{name}", "wb"):
                pass

    def names(self):
        return sorted(name for name in os.listdir(self.directory) if "." in name[1:])

    def test_disks_are_known_by_their_records(self):
        expected = [f"{self.directory}/{name}" for name in "abc"]
        self.assertEqual(expected, recorded_disks(self.directory))
        for name, disk in (("dev-vg0-web", "/dev/vg0/web"), ("dev-sdz", "/dev/sdz")):
            Records(f"{self.directory}/{name}").write(
                Kind.MIGRATED, self.migrated.but(source=Location(HERE, disk))
            )
        # Sorted by name, and the directory of this run may come before /dev.
        expected = sorted(["/dev/sdz", "/dev/vg0/web", *expected])
        self.assertEqual(expected, recorded_disks(self.directory))
        self.assertRaises(LocalFailure, recorded_disks, f"{self.directory}/none")

    def test_only_what_is_old_enough_is_forgotten(self):
        now = datetime.now(UTC)
        self.assertEqual([], list(forget_old(self.directory, 60, now=now)))
        later = now + timedelta(seconds=90)
        found = dict(forget_old(self.directory, 60, now=later))
        self.assertEqual({f"{self.directory}/{name}": None for name in "ab"}, found)
        self.assertEqual(["c.INCOMPLETE", "other.NOTES"], self.names())

    def test_one_that_must_stay_does_not_hold_up_the_others(self):
        with open(f"{self.directory}/b", "wb"):
            pass
        later = datetime.now(UTC) + timedelta(days=3)
        found = dict(forget_old(self.directory, 60, now=later))
        self.assertIsNone(found[f"{self.directory}/a"])
        self.assertIsInstance(found[f"{self.directory}/b"], Refused)
        found = dict(forget_old(self.directory, 60, now=later, checked_destination=True))
        self.assertEqual({f"{self.directory}/b": None}, found)
