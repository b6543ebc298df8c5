"""What `serve --standby` waits for before it opens the disk (standby.py)."""

from __future__ import annotations

import os

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.standby import Standby
from blockmig.errors import GaveUp, Refused
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.runtime import Runtime
from blockmig.storage import DiskInUse, DiskRefused
from blockmig.testing import synchronous

DISK = object()


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.folder = os.path.abspath(self.mktemp())
        os.mkdir(self.folder)
        self.path = os.path.join(self.folder, "disk")
        self.records = Records(self.path)
        self.opened = []
        self.errors = []
        self.logged = []
        globalLogPublisher.addObserver(self._log)
        self.addCleanup(globalLogPublisher.removeObserver, self._log)

    def _log(self, event):
        if event.get("log_namespace", "").endswith("standby"):
            self.logged.append(event["log_format"].format(**event))

    def receive(self, migration="m", id="web", confirmed="now"):
        record = Record(
            migration, Phase.COPIED, 1, 5000, Location(), Location(), "", id=id, confirmed=confirmed
        )
        self.records.write(Kind.RECEIVED, record)

    def opener(self):
        self.opened.append(self.clock.seconds())
        if self.errors:
            raise self.errors.pop(0)
        return DISK

    def begin(self, path="", **keywords):
        standby = Standby(path or self.path, Runtime(self.clock, synchronous), **keywords)
        self.waiting = Deferred.fromCoroutine(standby.open(self.opener))
        return standby

    def advance(self, seconds):
        for _ in range(round(seconds * 1000)):
            self.clock.advance(0.001)

    def check_open(self):
        self.assertIs(DISK, self.successResultOf(self.waiting))
        self.assertEqual([], self.clock.getDelayedCalls())

    def check_waits(self):
        self.advance(3)
        self.assertNoResult(self.waiting)
        self.assertEqual([], self.opened, "the disk is not touched")


class WithoutIdTests(Case):
    def test_the_first_migration_is_waited_for(self):
        self.begin()
        self.check_waits()
        self.receive()
        self.advance(0.01)
        self.check_open()

    def test_what_was_received_before_does_not_count(self):
        self.receive()
        self.begin()
        self.check_waits()
        self.assertIn("the migration web was received already", self.logged[0])
        self.receive("m")  # written once more
        self.check_waits()
        self.receive("n", "other")
        self.advance(0.01)
        self.check_open()

    def test_a_new_record_after_the_old_one_was_removed_counts(self):
        self.receive()
        self.begin()
        self.records.remove(Kind.RECEIVED)
        self.check_waits()
        self.receive("n")
        self.advance(0.01)
        self.check_open()

    def test_a_record_that_cannot_be_understood_is_no_record(self):
        self.begin()
        with open(self.records.name(Kind.RECEIVED), "w") as file:
            file.write("{")
        self.check_waits()
        self.receive()
        self.advance(0.01)
        self.check_open()

    def test_an_end_that_was_not_seen_is_none(self):
        self.begin()
        self.receive(confirmed="")
        self.check_waits()

    def test_the_directory_may_be_missing_at_the_start(self):
        os.rmdir(self.folder)
        self.begin()
        self.check_waits()
        os.mkdir(self.folder)
        self.receive()
        self.advance(0.01)
        self.check_open()

    def test_a_link_to_the_disk_may_be_made_later(self):
        link = os.path.join(self.folder, "link")
        self.begin(link)
        self.check_waits()
        os.symlink("disk", link)
        self.receive()
        self.advance(1.1)
        self.check_open()


class WithIdTests(Case):
    def test_only_that_migration_is_waited_for(self):
        self.begin(id="web")
        self.receive("m", "other")
        self.check_waits()
        self.receive("n", "web")
        self.advance(0.01)
        self.check_open()

    def test_it_may_have_been_received_already(self):
        self.receive()
        self.begin(id="web")
        self.check_open()


class LockTests(Case):
    def test_the_receiver_s_lock_is_waited_for(self):
        self.begin()
        self.receive()
        self.errors = [DiskInUse("in use")] * 5
        self.advance(0.1)
        self.assertEqual(6, len(self.opened))
        self.assertLess(self.opened[-1], 0.062)
        self.check_open()

    def test_another_refusal_is_one(self):
        self.begin()
        self.receive()
        self.errors = [DiskRefused("a directory")]
        self.advance(0.01)
        self.failureResultOf(self.waiting, DiskRefused)


class EndTests(Case):
    def test_it_may_give_up(self):
        self.begin(give_up_after=5)
        self.advance(4.9)
        self.assertNoResult(self.waiting)
        self.advance(0.2)
        error = self.failureResultOf(self.waiting, GaveUp).value
        self.assertIn("gave up after 5 seconds", str(error))
        self.assertIn("not received", str(error))

    def test_it_may_give_up_on_a_lock(self):
        self.receive()
        self.errors = [DiskInUse("in use by QEMU")] * 1000
        self.begin(id="web", give_up_after=2)
        self.advance(2.1)
        self.assertIn("QEMU", str(self.failureResultOf(self.waiting, GaveUp).value))

    def test_it_can_be_cancelled(self):
        for seconds in (0, 1.5):
            self.begin()
            self.advance(seconds)
            self.waiting.cancel()
            self.failureResultOf(self.waiting, CancelledError)
            self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_disk_that_cannot_be_examined_is_refused(self):
        loop = os.path.join(self.folder, "loop")
        os.symlink("loop", loop)
        self.assertRaises(Refused, Standby, loop, Runtime(self.clock, synchronous))

    def test_it_says_what_it_waits_for(self):
        self.assertEqual(
            f"waiting until a migration into {self.path} is complete", self.begin().what
        )
        self.assertIn("the migration web into", self.begin(id="web").what)
        self.assertEqual(self.logged[1], self.begin(id="web").what)
