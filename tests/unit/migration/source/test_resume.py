"""One call that sends a disk whatever happened before: a first run, and one after any crash."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import weakref

from twisted.internet.defer import succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from blockmig import claims
from blockmig.client import Destination
from blockmig.errors import AlreadyDone, GaveUp, InUse, LocalFailure, Refused, Unconfirmed
from blockmig.interfaces import IWatchedDisk
from blockmig.migration.destination import receiver
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.identity import Identity
from blockmig.migration.policy import Overrides, Patience
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.permitted import destination_record
from blockmig.migration.records.verdict import examine, verdict_of, verdict_of_pair
from blockmig.migration.source import resume as module
from blockmig.migration.source.finisher import Finisher
from blockmig.migration.source.resume import resume
from blockmig.migration.source.sender import Sender
from blockmig.migration.source.watch import last_write
from blockmig.runtime import Runtime
from blockmig.storage import BlockDisk, FileDisk, record_paths
from blockmig.storage import open as opening
from blockmig.testing import MemoryDisk, MemoryNetwork, RecordedMemoryDisk, synchronous
from tests.unit.support import ONE, TWO, Story

DATA = b"x" * 5000 + bytes(300_000) + b"y" * 70_000
SIZE = len(DATA)
RECORD = Record(
    migration=ONE,
    phase=Phase.COPIED,
    attempt=3,
    size=SIZE,
    source=Location("here", "/disk"),
    destination=Location("there", "/copy"),
    began="then",
    unlink=True,
    side_export=True,
)


def descriptors():
    """The files that this process has open, by their names."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sorted(found)


class Case(SynchronousTestCase):
    unlink = True

    def setUp(self):
        base = os.path.realpath(os.path.abspath(self.mktemp()))
        self.directories = [f"{base}-{name}" for name in ("source", "destination")]
        for directory in self.directories:
            os.mkdir(directory)
        self.source_path, self.target_path = (f"{place}/disk" for place in self.directories)
        self.opened = []
        self.patch(module, "open_disk", self.open_disk)
        self.begin()

    def open_disk(self, *arguments, **keywords):
        disk = opening.open_disk(*arguments, **keywords)
        self.opened.append(disk)
        return disk

    def begin(self):
        """A new process on each side."""
        claims.forget_all()
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.runtime = Runtime(self.clock, synchronous, Story())
        self.there = Destination(self.network.client_endpoint("there"))

    def write_source(self):
        with open(self.source_path, "wb") as file:
            file.write(DATA)

    def resume(self, disk=None, **keywords):
        keywords = {"runtime": self.runtime, "unlink": self.unlink, **keywords}
        destination = keywords.pop("destination", self.there)
        return resume(disk if disk is not None else self.source_path, destination, **keywords)

    def refused(self, *words, **keywords):
        error = self.assertRaises(Refused, self.resume, **keywords)
        self.assertNotIn("\n", str(error))
        for word in words:
            self.assertIn(word, str(error))
        self.assertEqual([], [name for name in descriptors() if self.directories[0] in name])

    def receive(self, disk=None):
        self.target = disk or FileDisk(self.target_path, size=SIZE)
        self.receiver = Receiver(self.target, runtime=self.runtime)
        self.network.listen("there", self.receiver.factory())
        return self.receiver.complete()

    def is_open(self):
        return any(name.startswith(self.source_path) for name in descriptors())

    def retired(self, **changes):
        """The record of a source that an earlier run has deleted."""
        Records(self.source_path).write(Kind.MIGRATING, RECORD.but(**changes))


class FirstRunTests(Case):
    def test_a_disk_that_was_never_sent_is_sent_from_its_path(self):
        self.write_source()
        received = self.receive()
        sending = self.resume()
        self.assertIsInstance(sending, Sender)
        sent = self.network.result(sending.run())
        self.assertEqual((SIZE, 1), (sent.bytes, sent.attempts))
        self.assertEqual(SIZE, self.successResultOf(received).bytes)
        with open(self.target_path, "rb") as file:
            self.assertEqual(DATA, file.read())
        self.assertEqual(["disk.MIGRATED"], os.listdir(self.directories[0]))

    def test_a_disk_without_records_is_sent(self):
        self.receive()
        sending = self.resume(MemoryDisk(DATA), unlink=False)
        self.assertEqual(SIZE, self.network.result(sending.run()).bytes)

    def test_it_is_given_what_a_sender_is_given(self):
        """Each argument shows in what comes of it."""
        self.write_source()
        waits = Patience(retry=True, retry_policy=lambda failures: 7.0)
        sending = self.resume(
            destination=Destination(self.network.client_endpoint("nowhere")), patience=waits
        )
        outcome = sending.run()
        self.network.pump()
        self.assertEqual([7.0], [call.getTime() for call in self.clock.getDelayedCalls()])
        sending.stop("enough")
        self.network.pump()
        self.failureResultOf(outcome, GaveUp)
        with open(f"{self.source_path}.MIGRATED", "w") as file:
            file.write("torn")
        self.refused("is torn")
        self.refused("is torn", overrides=Overrides(overwrite=True))

    def test_what_somebody_elses_disk_raises_names_the_method(self):
        class Forgetful(RecordedMemoryDisk):
            def identity(self):
                raise KeyError("session expired")

        error = self.assertRaises(LocalFailure, self.resume, Forgetful(DATA, self.source_path))
        self.assertIn("identity: KeyError: 'session expired'", str(error))

    def test_a_disk_that_cannot_say_whether_it_is_gone_has_failed(self):
        @implementer(IWatchedDisk)
        class Unsure(RecordedMemoryDisk):
            def is_gone(self):
                raise OSError(errno.EIO, "broken")

        error = self.assertRaises(LocalFailure, self.resume, Unsure(DATA, self.source_path))
        self.assertIn("is_gone: broken", str(error))

    def test_a_file_that_fails_while_it_is_opened_has_failed(self):
        class Broken(Story):
            def fstat(self, descriptor):
                raise OSError(errno.EIO, "Input/output error")

        self.write_source()
        runtime = Runtime(self.clock, synchronous, Broken())
        error = self.assertRaises(LocalFailure, self.resume, runtime=runtime)
        self.assertIn("Input/output error", str(error))
        self.assertFalse(self.is_open())

    def test_a_rate_is_kept(self):
        with open(self.source_path, "wb") as file:
            file.write(b"x" * 4_000_000)
        self.receive(MemoryDisk(4_000_000))
        outcome = self.resume(max_rate=1_000_000).run()
        self.network.advance(1)
        self.assertNoResult(outcome)
        self.network.advance(5)
        self.successResultOf(outcome)


class GoneTests(Case):
    def test_what_was_deleted_is_finished_without_it(self):
        self.retired()
        sending = self.resume()
        self.assertIsInstance(sending, Finisher)
        self.assertEqual((SIZE, 0, 3), self.progress(sending))

    @staticmethod
    def progress(sending):
        return sending.progress.total, sending.progress.done, sending.progress.number

    def test_what_was_never_there_is_refused(self):
        self.refused(self.source_path, "no such file")

    def test_what_somebody_else_deleted_is_refused(self):
        for changes in ({"phase": Phase.COPYING}, {"unlink": False}):
            self.retired(**changes)
            self.refused("is gone, and blockmig did not delete it")

    def test_what_is_being_finished_is_not_finished_beside_that(self):
        self.retired()
        first = self.resume()
        self.refused("is used by a Finisher")
        first.stop()
        self.failureResultOf(first.complete(), Unconfirmed)
        self.assertIsInstance(self.resume(), Finisher)

    def test_one_that_nobody_has_any_more_finishes_nothing(self):
        self.retired()
        self.resume()
        self.assertIsInstance(self.resume(), Finisher)

    def test_another_file_is_not_sent_while_an_earlier_one_is_finished(self):
        """It has the name, and so the records, of the one that was deleted."""
        self.retired(identity="inode 1, born 1")
        finishing = self.resume()
        self.write_source()
        new = {"overrides": Overrides(overwrite=True), "identity": Identity("new")}
        self.refused("is not the file that was migrated", **new)
        finishing.stop()
        self.refused("is not the file that was migrated", **new)

    def test_a_path_that_cannot_be_looked_at_is_not_taken_for_a_deleted_disk(self):
        self.write_source()
        self.retired()

        stat, failures = os.stat, [self.source_path]

        def stale_once(path, *arguments, **keywords):
            if path in failures:
                failures.remove(path)
                raise OSError(errno.ESTALE, "Stale file handle")
            return stat(path, *arguments, **keywords)

        self.patch(os, "stat", stale_once)
        self.patch(Story, "stat", staticmethod(stale_once))
        self.refused("Stale file handle")

    def test_another_destination_is_refused(self):
        self.retired()
        other = Destination(self.network.client_endpoint("there"), uri="nbd://other/")
        self.refused("send to", "to finish it", destination=other)

    def test_what_was_moved_through_ssh_is_finished_so(self):
        self.retired(destination=Location("there", "/copy", "ssh://there/copy"))
        self.refused("`blockmig move` it to ssh://there/copy to finish it")

    def test_another_file_in_its_place_is_refused(self):
        self.retired(identity="inode 1, born 1")
        self.write_source()
        self.refused("is not the file that was migrated")

    def test_a_path_below_no_directory_is_refused(self):
        self.refused("records cannot be kept there", disk=f"{self.source_path}/more/disk")

    def test_the_time_limit_is_the_finishers(self):
        self.retired()
        sending = self.resume(patience=Patience(give_up_after=10))
        outcome = sending.run()
        self.network.advance(9)
        self.assertNoResult(outcome)
        self.assertIn("nobody listens", sending.last_error)
        self.network.advance(7)
        self.failureResultOf(outcome, Unconfirmed)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_disk_of_another_kind_is_found_by_its_record_path(self):
        self.retired()
        disk = RecordedMemoryDisk(DATA, self.source_path)
        self.assertEqual(self.source_path, disk.record_path)
        self.assertIsInstance(self.resume(disk.record_path), Finisher)

    def test_a_file_that_is_still_open_here_is_finished_once_it_was_deleted(self):
        """In the program that has deleted it, and could not tell the destination so."""
        self.write_source()
        disk = FileDisk(self.source_path, writable=False)
        received = self.receive()
        sending = self.resume(disk)
        outcome = sending.run()
        while os.path.exists(self.source_path):
            self.network.step() or self.clock.advance(0)
        for connection in self.network.connections:
            connection.cut()
        sending.stop()
        self.network.advance(10)
        self.failureResultOf(outcome, Unconfirmed)
        finishing = self.resume(disk)
        self.assertIsInstance(finishing, Finisher)
        self.assertEqual(0, self.network.result(finishing.run()).data)
        self.successResultOf(received)
        self.assertIsNotNone(disk.fileno())
        disk.close()


class KeptTests(Case):
    unlink = False

    def mark(self, records):
        for kind in (Kind.MIGRATING, Kind.MIGRATED):
            records.write(kind, RECORD.but(unlink=False, retired="then"))

    def test_a_kept_source_is_finished_and_stays_locked_until_then(self):
        self.write_source()
        self.mark(Records(self.source_path))
        sending = self.resume()
        self.assertIsInstance(sending, Finisher)
        self.assertTrue(self.is_open())
        sending.stop()
        self.failureResultOf(sending.complete(), Unconfirmed)
        self.assertFalse(self.is_open())

    def test_what_was_written_to_it_since_is_said_when_it_is_finished(self):
        """The destination waits for that."""
        self.write_source()
        with FileDisk(self.source_path, writable=False) as disk:
            retired = RECORD.but(
                unlink=False, retired="then", identity=disk.identity(), written=last_write(disk)
            )
        logged = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        for touch in (False, True):
            for kind in (Kind.MIGRATING, Kind.MIGRATED):
                Records(self.source_path).write(kind, retired)
            if touch:
                os.utime(self.source_path)
            sending = self.resume()
            self.assertIsInstance(sending, Finisher)
            sending.stop()
            self.failureResultOf(sending.complete(), Unconfirmed)
            said = [event for event in logged if event.get("event") == "written-since"]
            self.assertEqual(touch, bool(said))

    def test_what_is_retired_is_known_by_its_last_write(self):
        self.write_source()
        received = self.receive()
        self.network.result(self.resume().run())
        self.successResultOf(received)
        status = os.stat(self.source_path)
        migrated = Records(self.source_path).read(Kind.MIGRATED)
        self.assertEqual(f"{SIZE} {status.st_mtime_ns}", migrated.written)
        # Refused for another reason: what was sent in memory has no URI to be compared.
        self.assertNotIn("was written", str(self.assertRaises(Refused, self.resume)))
        os.utime(self.source_path)
        self.assertIn("was written", str(self.assertRaises(Refused, self.resume)))

    def test_a_disk_object_is_finished_as_well(self):
        disk = RecordedMemoryDisk(DATA, self.source_path)
        self.mark(Records(self.source_path))
        sending = self.resume(disk)
        self.assertIsInstance(sending, Finisher)
        sending.stop()
        self.assertFalse(disk.closed)

    def test_the_same_records_by_another_spelling_are_the_same(self):
        directory, name = os.path.split(self.source_path)
        link = os.path.abspath(self.mktemp())
        os.symlink(directory, link)
        first = Sender(RecordedMemoryDisk(DATA, self.source_path), self.there, runtime=self.runtime)
        for path in (f"{directory}/./{name}", f"{link}/{name}"):
            disk = RecordedMemoryDisk(DATA, path)
            self.assertRaises(InUse, Sender, disk, self.there, runtime=self.runtime)
        first.stop()

    def test_a_disk_that_is_being_finished_is_not_sent_anew_beside_that(self):
        """The end of the one would remove the record of the other."""
        disk = RecordedMemoryDisk(DATA, self.source_path)
        self.mark(Records(self.source_path))
        finishing = self.resume(disk)
        again = {"overrides": Overrides(overwrite=True), "runtime": self.runtime}
        self.assertRaises(InUse, Sender, disk, self.there, unlink=True, **again)
        other = RecordedMemoryDisk(DATA, self.source_path)
        self.assertRaises(Refused, Sender, other, self.there, unlink=True, **again)
        finishing.stop()
        self.assertRaises(Refused, Sender, disk, self.there, unlink=True, **again)

    def test_what_another_process_has_begun_meanwhile_is_left_alone(self):
        """Claims are this process's own."""
        self.write_source()
        records = Records(self.source_path)
        self.mark(records)
        finishing = self.resume()
        outcome = finishing.run()
        later = RECORD.but(migration=TWO, phase=Phase.COPYING, again=True)
        records.write(Kind.MIGRATING, later)
        found = records.read(Kind.MIGRATING), records.read(Kind.MIGRATED)

        self.patch(Finisher, "_try", lambda _: succeed(None))
        self.network.advance(1)
        self.successResultOf(outcome)
        self.assertEqual(found, (records.read(Kind.MIGRATING), records.read(Kind.MIGRATED)))

    def test_a_disk_object_that_is_used_is_not_finished_beside_that(self):
        """Its user may be about to finish it."""
        disk = RecordedMemoryDisk(DATA, self.source_path)
        sending = self.resume(disk)
        self.mark(Records(self.source_path))
        self.assertRaises(InUse, self.resume, disk)
        sending.stop()
        self.assertIsInstance(self.resume(disk), Finisher)

    def test_a_complete_migration_is_not_begun_again(self):
        self.write_source()
        Records(self.source_path).write(Kind.MIGRATED, RECORD.but(retired="then"))
        self.refused("was migrated to", "blockmig forget")


class DeviceTests(Case):
    """A file that passes for a device: its records are in the state directory."""

    unlink = False

    def setUp(self):
        super().setUp()
        self.state = f"{self.directories[0]}/state"
        os.mkdir(self.state)
        self.patch(BlockDisk, "_check_kind", lambda disk, mode: None)
        for place in (opening, record_paths):
            self.patch(place, "is_device", os.path.exists)
        name = self.source_path.strip("/").replace("-", "%2D").replace("/", "-")
        self.records = Records(f"{self.state}/{name}")

    def test_a_device_is_sent_with_its_records_in_the_state_directory(self):
        self.write_source()
        sending = self.resume(state_directory=self.state)
        self.assertIsInstance(sending, Sender)
        self.receive(RecordedMemoryDisk(SIZE, self.target_path, blank=True))
        self.assertEqual(SIZE, self.network.result(sending.run()).bytes)
        self.assertIsNotNone(self.records.read(Kind.MIGRATED))

    def test_a_retired_device_is_finished_whether_or_not_it_is_there(self):
        KeptTests.mark(self, self.records)
        for present in (False, True):
            if present:
                self.write_source()
            sending = self.resume(state_directory=self.state)
            self.assertIsInstance(sending, Finisher)
            sending.stop()
        self.assertEqual(1, len(self.opened))


class ClosingTests(Case):
    """What is opened is closed, however it ends."""

    def setUp(self):
        super().setUp()
        self.write_source()

    def test_the_file_is_closed_when_it_was_sent(self):
        self.receive()
        sending = self.resume()
        self.assertTrue(self.is_open())
        seen = []
        outcome = sending.run().addCallback(lambda _: seen.append(self.is_open()))
        self.network.pump()
        self.successResultOf(outcome)
        self.assertEqual([False], seen)

    def test_the_file_is_closed_when_sending_failed(self):
        outcome = self.resume().run()
        self.network.pump()
        self.failureResultOf(outcome, Refused)
        self.assertFalse(self.is_open())

    def test_the_file_is_closed_when_sending_was_cancelled(self):
        self.receive()
        outcome = self.resume().run()
        self.network.step()
        outcome.cancel()
        self.network.pump()
        self.failureResultOf(outcome, GaveUp)
        self.assertFalse(self.is_open())

    def test_the_file_is_closed_by_a_stop_before_the_run(self):
        sending = self.resume()
        sending.stop("enough")
        self.assertFalse(self.is_open())
        self.assertIn("enough", str(self.failureResultOf(sending.run(), GaveUp).value))

    def test_the_file_is_closed_when_nobody_has_the_sender_any_more(self):
        sending = weakref.ref(self.resume())
        self.opened.clear()
        gc.collect()
        self.assertIsNone(sending())
        self.assertFalse(self.is_open())
        self.assertIsInstance(self.resume(), Sender)

    def test_the_file_is_closed_when_it_is_refused(self):
        os.link(self.source_path, f"{self.source_path}-2")
        self.refused("hard links")

    def test_a_second_run_does_not_close_the_file_of_the_first(self):
        self.receive()
        sending = self.resume()
        outcome = sending.run()
        self.failureResultOf(sending.run(), InUse)
        self.assertTrue(self.is_open())
        self.network.pump()
        self.successResultOf(outcome)

    def test_a_second_sender_of_the_same_file_is_refused(self):
        sending = self.resume()
        error = self.assertRaises(Refused, self.resume)
        self.assertIn("in use by", str(error))
        self.assertTrue(self.is_open())
        sending.stop()

    def test_a_disk_object_stays_the_callers(self):
        disk = RecordedMemoryDisk(DATA, self.source_path)
        self.receive()
        self.network.result(self.resume(disk).run())
        self.assertFalse(disk.closed)

    def test_a_disk_object_that_is_being_sent_is_in_use(self):
        disk = RecordedMemoryDisk(DATA, self.source_path)
        sending = self.resume(disk)
        self.assertRaises(InUse, self.resume, disk)
        sending.stop()
        self.assertIsInstance(self.resume(disk), Sender)

    def test_what_prevents_the_deletion_is_reported_first(self):
        """It may have prevented the records as well."""
        os.link(self.source_path, f"{self.source_path}-2")
        with open(f"{self.source_path}.INCOMPLETE", "w") as file:
            file.write("torn")
        self.refused("hard links")
        self.refused("is torn", unlink=False)


class HomeTests(Case):
    """A disk goes to another place, comes home, and goes again."""

    def go(self, source, target, id=""):
        self.begin()
        self.patch(
            receiver,
            "destination_record",
            lambda disk, records, overwrite, _: destination_record(disk, records, overwrite, id),
        )
        disk = FileDisk(target, size=SIZE)
        try:
            receiving = Receiver(disk, overrides=Overrides(overwrite=True), runtime=self.runtime)
        except (AlreadyDone, Refused):
            disk.discard()
            raise
        self.network.listen("there", receiving.factory())
        received = receiving.complete()
        there = Destination(self.network.client_endpoint("there"), uri=f"nbd://there{target}")
        sent = self.network.result(self.resume(source, destination=there).run())
        self.assertEqual(SIZE, sent.bytes)
        self.successResultOf(received)
        disk.close()

    def check(self, source, target):
        self.assertFalse(os.path.exists(source))
        with open(target, "rb") as file:
            self.assertEqual(DATA, file.read())
        for path, state in ((target, "canonical"), (source, "not canonical")):
            self.assertEqual(state, verdict_of(examine(path)).state)
        for pair in ((source, target), (target, source)):
            self.assertEqual(target, verdict_of_pair(*map(examine, pair)).canonical)
        self.assertRaises(AlreadyDone, self.go, source, target)
        there = Destination(self.network.client_endpoint("there"), uri=f"nbd://there{target}")
        before = os.stat(os.path.dirname(source)).st_mtime_ns
        self.assertRaises(AlreadyDone, self.resume, source, destination=there)
        self.assertEqual(before, os.stat(os.path.dirname(source)).st_mtime_ns)

    def test_each_time_one_place_is_canonical_and_nothing_is_done_twice(self):
        self.write_source()
        one, other = self.source_path, self.target_path
        self.go(one, other)
        self.check(one, other)
        migrations = [Records(other).read(Kind.RECEIVED).migration]
        for number in range(4):
            one, other = other, one
            # The place that it left is not written to unasked.
            self.assertRaises(Refused, self.go, one, other)
            self.go(one, other, id=f"home{number}")
            self.check(one, other)
            received = Records(other).read(Kind.RECEIVED)
            sent = Records(one).read(Kind.MIGRATED)
            self.assertEqual(received.migration, sent.migration)
            # At both places the same went before.
            self.assertEqual([migrations[-1]] * 2, [received.follows, sent.follows])
            migrations.append(received.migration)


class CrashTests(Case):
    """Both programs die after any message, and are started again as they were."""

    def begin(self):
        super().begin()
        self.there = Destination(self.there.endpoint, uri="nbd://there/")

    def make_source(self):
        self.write_source()

    def source(self):
        return self.source_path

    def make_target(self):
        return FileDisk(self.target_path, size=SIZE)

    def retired_source(self):
        if not self.unlink:
            return os.path.exists(f"{self.source_path}.MIGRATED")
        return not os.path.exists(self.source_path)

    def content(self):
        with open(self.target_path, "rb") as file:
            return file.read()

    def crash(self):
        """The kernel closes what the processes had open."""
        for disk in (*self.opened, self.target):
            disk.close()
        self.opened.clear()

    def check(self, steps):
        """Whether the first run was over before it could crash."""
        self.setUp()
        self.make_source()
        self.receive(self.make_target())
        outcome = self.resume(self.source()).run()
        for _ in range(steps):
            for _ in range(50):
                if self.network.step():
                    break
                self.clock.advance(0)
            else:
                self.assertEqual(SIZE, self.successResultOf(outcome).bytes)
                return True
        self.crash()
        retired = self.retired_source()
        self.begin()
        writes, received = [], None
        try:
            received = self.receive(self.make_target())
        except AlreadyDone:
            self.assertTrue(os.path.exists(f"{self.target_path}.RECEIVED"))
        self.watch_writes(writes)
        try:
            sending = self.resume(self.source())
        except AlreadyDone:
            # It had ended, and recorded that.
            self.assertTrue(retired)
            self.assertIsNone(received)
            self.done += 1
        else:
            self.assertIsInstance(sending, Finisher if retired else Sender)
            outcome = sending.run()
            self.network.pump()
            if received is None:
                self.network.advance(40)
            self.assertEqual(SIZE, self.successResultOf(outcome).bytes)
            if received is not None:
                self.successResultOf(received)
            self.assertEqual(retired, not writes)
            self.finished += retired
        self.assertFalse(os.path.exists(f"{self.target_path}.INCOMPLETE"))
        self.assertEqual(["disk.MIGRATED"], self.records_there())
        self.assertEqual(DATA, self.content())
        self.crash()
        return False

    def records_there(self):
        return [name for name in os.listdir(self.directories[0]) if name != "disk"]

    def watch_writes(self, writes):
        for method in ("write", "zero"):
            original = getattr(self.target, method)
            self.patch(
                self.target,
                method,
                lambda *arguments, original=original: writes.append(1) or original(*arguments),
            )

    def test_the_same_two_programs_complete_it_after_a_crash_at_any_message(self):
        self.finished = self.done = 0
        for steps in itertools.count():
            if self.check(steps):
                break
        self.assertGreater(steps, 20)
        self.assertGreater(self.finished, 2)
        self.assertGreater(self.done, 0)


class KeptCrashTests(CrashTests):
    unlink = False


class MemoryCrashTests(CrashTests):
    """The same with an embedder's own kind of disk on both sides."""

    def make_source(self):
        self.disk = RecordedMemoryDisk(DATA, self.source_path)
        self.copy = RecordedMemoryDisk(SIZE, self.target_path, blank=True)

    def source(self):
        return self.source_path if self.disk.unlinked else self.disk

    def make_target(self):
        return self.copy

    def retired_source(self):
        return self.disk.unlinked

    def content(self):
        return self.copy.content

    def crash(self):
        """The disks are where they were."""


class CrashWithoutRecordsTests(Case):
    """Nothing says then that what is on the destination's disk is an unfinished copy."""

    def test_a_receiver_that_is_made_again_has_to_be_told_to_overwrite(self):
        disk = MemoryDisk(SIZE)
        source = MemoryDisk(DATA)
        self.receive(disk)
        self.network.prepare(lambda connection: connection.cut_after(bytes=70_000))
        self.resume(source, unlink=False).run()
        self.network.pump()
        self.assertNotEqual(bytes(SIZE), disk.content)
        for overwrite in (False, True):
            self.begin()
            overrides = Overrides(overwrite=overwrite)
            receiver = Receiver(disk, overrides=overrides, runtime=self.runtime)
            self.network.listen("there", receiver.factory())
            sending = self.resume(source, unlink=False)
            outcome = sending.run()
            self.network.advance(10)
            if overwrite:
                self.successResultOf(outcome)
                self.assertEqual(DATA, disk.content)
            else:
                error = self.failureResultOf(receiver.complete(), Refused).value
                self.assertIn("holds data", str(error))
                sending.stop()
                self.failureResultOf(outcome, GaveUp)
