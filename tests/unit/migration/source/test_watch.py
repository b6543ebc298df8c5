"""The disk that was opened is the one that is retired, unchanged since the scan began (R13)."""

from __future__ import annotations

import errno
import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import Destination
from blockmig.errors import LocalFailure, Unconfirmed
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.policy import Overrides, Patience
from blockmig.migration.records.files import Kind, Phase, Records
from blockmig.migration.source import watch as watch_module
from blockmig.migration.source.sender import Sender
from blockmig.migration.source.watch import (
    Presence,
    SourceGone,
    SourceTouched,
    SourceWatch,
    last_write,
)
from blockmig.runtime import Runtime
from blockmig.storage import DiskChanged, DiskVersion, FileDisk, User, version_at
from blockmig.syscalls import SYSTEM
from blockmig.testing import Call, MemoryDisk, synchronous
from tests.unit.support import ADDRESS, MemoryEndpoint, RecordedDisk, Story, WatchedDisk

DATA = bytes(range(250)) * 20
SIZE = len(DATA)


class SourceWatchTests(SynchronousTestCase):
    def setUp(self):
        self.disk = WatchedDisk(DATA, "/nowhere/disk")

    def begun(self, **keywords):
        watch = SourceWatch(self.disk, system=SYSTEM, **keywords)
        watch.begin()
        return watch

    def test_an_unchanged_source_passes_the_check(self):
        self.begun().check()

    def test_a_source_that_was_written_to_is_refused(self):
        watch = self.begun()
        self.disk.written = 2
        self.assertIn("written to", str(self.assertRaises(DiskChanged, watch.check)))

    def test_a_source_that_was_touched_has_to_be_copied_again(self):
        watch = self.begun()
        self.disk.touched = 2
        self.assertIn("copied anew", str(self.assertRaises(SourceTouched, watch.check)))

    def test_a_source_that_was_moved_is_refused(self):
        watch = self.begun()
        self.disk.displaced = "is another file now"
        self.assertRaises(DiskChanged, watch.check)

    def test_a_source_that_cannot_say_so_is_neither_there_nor_gone(self):
        """Its copy may be all that is left; or it may be in use, and that copy be stale."""

        def is_gone():
            raise OSError(5, "Input/output error")

        watch = self.begun()
        self.assertEqual(Presence.THERE, watch.presence)
        self.disk.gone = True
        self.assertEqual(Presence.GONE, watch.presence)
        self.disk.is_gone = is_gone
        self.assertEqual(Presence.UNKNOWN, watch.presence)

    def test_a_disk_that_is_closed_meanwhile_keeps_its_number_until_its_writers_are_known(self):
        """Otherwise it would be another file, which has that number by now, that nobody writes
        to."""
        path = os.path.abspath(self.mktemp())
        with open(path, "wb") as file:
            file.write(DATA)
        disk, looked_at = FileDisk(path, writable=False), []

        def users(number):
            looked_at.append(os.fstat(number).st_ino)
            return [User("qemu (process 12)", True)]

        def elsewhere(number, readers, system):
            disk.close()
            looked_at.append(os.fstat(number).st_ino)
            return True

        self.patch(watch_module, "users_of", users)
        self.patch(watch_module, "is_open_elsewhere", elsewhere)
        watch = SourceWatch(disk, identity=disk.identity(), system=SYSTEM)
        watch.begin()
        self.assertIn("qemu", str(self.assertRaises(DiskChanged, watch.check)))
        self.assertEqual([os.stat(path).st_ino] * 2, looked_at)

    def closed(self):
        """The watch of a file that was closed, and its path."""
        path = os.path.abspath(self.mktemp())
        with open(path, "wb") as file:
            file.write(DATA)
        disk = FileDisk(path)
        watch = SourceWatch(disk, identity=disk.identity(), system=SYSTEM)
        watch.begin()
        disk.close()
        return watch, path

    def test_a_file_that_was_closed_is_looked_for_at_its_path(self):
        watch, _ = self.closed()
        self.assertEqual(Presence.THERE, watch.presence)

    def test_a_file_that_was_closed_and_has_left_its_path_may_be_anywhere(self):
        watch, path = self.closed()
        os.rename(path, path + ".moved")
        self.assertEqual(Presence.UNKNOWN, watch.presence)
        with open(path, "wb") as file:
            file.write(DATA)
        self.assertEqual(Presence.UNKNOWN, watch.presence, "that is another file")

    def test_a_source_that_is_gone_is_reported_with_whether_it_was_changed(self):
        watch = self.begun()
        self.disk.gone = True
        self.assertTrue(self.assertRaises(SourceGone, watch.check).unchanged)
        self.disk.written = 2
        self.assertFalse(self.assertRaises(SourceGone, watch.check).unchanged)

    def test_the_source_is_synced_before_both_checks(self):
        """Otherwise a write through a mapping would not show."""
        self.begun().check()
        self.assertEqual([True, True], [c.wait for c in self.disk.calls if c.method == "version"])

    def test_a_source_in_use_is_compared_from_the_hold_on_without_a_sync(self):
        watch = self.begun(in_use=True)
        self.disk.written = self.disk.touched = 2
        watch.check()
        watch.is_quiescent()
        watch.check()
        self.disk.touched = 3
        watch.check()
        self.disk.written = 3
        self.assertIn("held", str(self.assertRaises(DiskChanged, watch.check)))
        self.assertNotIn(
            Call("version", wait=True), self.disk.calls, "an fsync takes too long in a hold"
        )

    def test_a_source_that_cannot_be_watched_always_passes(self):
        watch = SourceWatch(MemoryDisk(DATA), system=SYSTEM)
        watch.begin()
        watch.is_quiescent()
        watch.check()
        self.assertEqual(Presence.THERE, watch.presence)
        self.assertFalse(watch.watches)

    def test_an_error_of_the_medium_fails_the_check(self):
        watch = self.begun()
        self.disk.fail("version", OSError(errno.EIO, "broken"), times=None)
        self.assertRaises(OSError, watch.check)


class LastWriteTests(SynchronousTestCase):
    def test_who_watches_who_asks_and_who_only_looks_say_the_same(self):
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(DATA)
        with FileDisk(path) as disk:
            watch = SourceWatch(disk, system=SYSTEM)
            watch.begin()
            said = {watch.written, last_write(disk), version_at(disk.fileno(), SYSTEM)}
        status = os.stat(path)
        self.assertEqual({f"{status.st_size} {status.st_mtime_ns}"}, said)

    def test_only_a_device_is_synced(self):
        class Disk:
            def version(self, sync=True):
                return DiskVersion((1, int(sync)), (2,))

        class Device(Disk):
            pass

        self.patch(watch_module, "FileDisk", Disk)
        self.patch(watch_module, "BlockDisk", Device)
        self.assertEqual("1 0", last_write(Disk()))
        self.assertEqual("1 1", last_write(Device()))

    def test_of_no_disk_and_of_others_nothing_is_known(self):
        for disk in (None, MemoryDisk(DATA)):
            self.assertEqual("", last_write(disk))


class MigrationTests(SynchronousTestCase):
    """A sender and a receiver; something happens to the source at one of the checks."""

    delay = 1.0

    def setUp(self):
        self.clock = Clock()
        room = os.path.abspath(self.mktemp())
        for side in ("a", "b"):
            os.makedirs(f"{room}/{side}")
        self.source = WatchedDisk(DATA, f"{room}/a/disk")
        self.target = RecordedDisk(bytes(SIZE), f"{room}/b/disk")
        self.receiver = Receiver(
            self.target,
            overrides=Overrides(overwrite=True),
            runtime=Runtime(self.clock, synchronous, Story()),
        )
        self.arrived = self.receiver.complete()
        self.endpoint = MemoryEndpoint(
            self.clock, lambda: self.receiver.factory().buildProtocol(ADDRESS)
        )

    def send(self, unlink=True):
        self.sender = Sender(
            self.source,
            Destination(self.endpoint, uri="nbd://there/"),
            unlink=unlink,
            patience=Patience(retry_policy=lambda failures: self.delay),
            runtime=Runtime(self.clock, synchronous, Story()),
        )
        self.outcome = self.sender.run()
        for _ in range(20):
            self.endpoint.pump()
            self.clock.advance(0.1)

    def at(self, look, **changes):
        """From that look on: 0 is the scan's begin, 1 before *copied*, 2 before the retirement."""

        def before(number):
            if number == look:
                for name, value in changes.items():
                    setattr(self.source, name, value)

        self.source.before = before

    def phases(self):
        """The phases that are recorded at the source and at the destination."""
        here = Records(self.source.path).read(Kind.MIGRATING)
        there = Records(self.target.path).read(Kind.INCOMPLETE)
        return here and here.phase, there and there.phase

    def failed(self, kind):
        error = self.failureResultOf(self.outcome, kind).value
        self.assertNotIn("\n", str(error))
        self.assertNoResult(self.arrived)
        self.assertFalse(self.source.unlinked)
        self.assertIsNone(Records(self.source.path).read(Kind.MIGRATED))
        return str(error)

    def test_an_unchanged_source_is_migrated(self):
        self.send()
        self.successResultOf(self.outcome)
        self.assertTrue(self.source.unlinked)

    def test_a_source_changed_or_moved_at_either_check_stays(self):
        for unlink in (True, False):
            for look in (1, 2):
                for change in ({"written": 2}, {"displaced": "is another file now"}):
                    with self.subTest(unlink=unlink, look=look, change=change):
                        self.setUp()
                        self.at(look, **change)
                        self.send(unlink)
                        self.assertIn("still the canonical copy", self.failed(LocalFailure))
                        self.assertEqual(
                            (Phase.COPYING, Phase.COPYING), self.phases(), "taken back"
                        )
                        left = Records(self.source.path).read(Kind.MIGRATING)
                        self.assertFalse(left.whole)

    def test_a_source_touched_at_either_check_is_copied_again(self):
        for unlink in (True, False):
            for look in (1, 2):
                with self.subTest(unlink=unlink, look=look):
                    self.setUp()
                    self.at(look, touched=2)
                    self.send(unlink)
                    self.assertIn("copied anew", self.sender.last_error)
                    self.assertEqual(2, self.successResultOf(self.outcome).attempts)
                    self.successResultOf(self.arrived)
                    self.assertEqual(DATA, self.target.content)

    def test_a_source_deleted_while_it_is_copied_leaves_the_copy_unconfirmed(self):
        """The copy may be the only one: it is not taken back, and the same command finishes."""
        for look in (1, 2):
            with self.subTest(look=look):
                self.setUp()
                self.at(look, gone=True)
                self.send()
                self.assertIn("deleted by somebody else", self.failed(Unconfirmed))
                self.assertEqual((Phase.COPIED, Phase.COPIED), self.phases())

    def test_a_source_changed_and_deleted_leaves_the_copy_undeclared(self):
        """The copy is not taken back either, but nothing declares it canonical."""
        self.at(2, gone=True, written=2)
        self.send()
        self.failed(Unconfirmed)
        self.assertEqual((Phase.COPYING, Phase.COPIED), self.phases())

    def test_a_source_deleted_before_a_stop_leaves_the_copy_unconfirmed(self):
        """Nobody may call the source canonical, and the copy stays."""
        self.delay = 100.0
        self.at(1, touched=2)
        self.send()
        self.assertIn("copied anew", self.sender.last_error)
        self.source.gone = True
        self.sender.stop("enough")
        self.endpoint.pump()
        self.assertIn("deleted by somebody else", self.failed(Unconfirmed))

    def test_no_attempt_overwrites_the_copy_of_a_deleted_source(self):
        """The connection is lost when the destination may have recorded that the copy is whole."""
        seen = []

        def confirm():
            if not seen:
                seen.append(True)
                self.source.gone = True
                self.endpoint.connections[0].cut()

        self.receiver._migration.record._records._system = Story(
            lambda words: confirm() if words.endswith("copied") else None
        )
        self.send()
        for _ in range(5):
            self.clock.advance(1)
            self.endpoint.pump()
        self.failed(Unconfirmed)
        self.assertEqual(Phase.COPIED, self.phases()[1])
