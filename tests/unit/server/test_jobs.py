"""Calls to a disk in threads: turns, limits, and jobs whose owner is gone."""

from __future__ import annotations

import errno

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import Command
from blockmig.server.jobs import MOST_JOBS, JobOwner, JobQueue
from blockmig.testing import ManualThreads
from tests.unit.served import ServedDisk, ServerFixture, pattern

SIZE = 4 << 20
WRITE, READ, ZEROES, TRIM = Command.WRITE, Command.READ, Command.WRITE_ZEROES, Command.TRIM


class JobQueueTests(SynchronousTestCase):
    def setUp(self):
        self.threads = ManualThreads()
        self.work = JobQueue(self.threads)
        self.done = []

    def run_for(self, owner, name, **keywords):
        return self.work.run(owner, self.done.append, name, **keywords)

    def test_results_and_errors_are_delivered(self):
        owner = JobOwner()
        good = self.work.run(owner, lambda a, b: a + b, 1, 2)
        bad = self.work.run(owner, lambda: 1 / 0)
        self.threads.run()
        self.assertEqual(3, self.successResultOf(good))
        self.failureResultOf(bad, ZeroDivisionError)

    def test_a_greedy_owner_leaves_room_for_others(self):
        greedy, other = JobOwner(), JobOwner()
        for number in range(100):
            self.run_for(greedy, number)
        self.assertLess(len(self.threads.waiting), MOST_JOBS)
        self.run_for(other, "other")
        self.assertIn("other", [arguments[0] for _, arguments in self.threads.waiting])
        self.threads.run()
        self.assertEqual(101, len(self.done))

    def test_what_an_orphan_has_done_is_known_before_anybody_hears_that_it_has_ended(self):
        """The changes are marked by then, for a mirror that has waited for the end of them."""
        owner, order = JobOwner(), []
        self.run_for(owner, "zeroes", changing=True).addCallback(lambda _: order.append("result"))
        self.work.abandon(owner)
        self.work.orphans_finished().addCallback(lambda _: order.append("no orphans"))
        self.threads.run()
        self.assertEqual(["result", "no orphans"], order)

    def test_nothing_is_done_any_more_for_one_who_is_gone(self):
        owner = JobOwner()
        self.work.abandon(owner)
        self.failureResultOf(self.run_for(owner, "late", changing=True), CancelledError)
        self.threads.run()
        self.assertEqual(([], False), (self.done, self.work.has_orphans))

    def test_the_number_of_jobs_at_a_time_is_bounded(self):
        for _ in range(20):
            self.run_for(JobOwner(), "x")
        self.assertEqual(MOST_JOBS, len(self.threads.waiting))
        self.threads.run()
        self.assertEqual(20, len(self.done))

    def test_owners_take_turns(self):
        owners = [JobOwner() for _ in range(3)]
        for owner, name in zip(owners, "abc", strict=True):
            for _ in range(10):
                self.run_for(owner, name)
        self.threads.run()
        for start in range(4, 20):
            self.assertEqual({"a", "b", "c"}, set(self.done[start : start + 6]), self.done)

    def test_the_jobs_of_an_owner_keep_their_order(self):
        owner = JobOwner()
        for number in range(50):
            self.run_for(owner, number)
        self.threads.run()
        self.assertEqual(list(range(50)), self.done)

    def test_at_most_two_lookups_run_at_a_time(self):
        for _ in range(5):
            self.run_for(JobOwner(), "looks", scanning=True)
        self.run_for(JobOwner(), "reads")
        begun = [arguments[0] for _, arguments in self.threads.waiting]
        self.assertEqual(["looks", "looks", "reads"], begun)
        self.threads.run()
        self.assertEqual(6, len(self.done))

    def test_jobs_of_an_abandoned_owner_are_dropped_unless_begun(self):
        owner, other = JobOwner(), JobOwner()
        results = [self.run_for(owner, number) for number in range(10)]
        kept = self.run_for(other, "other")
        begun = len(self.threads.waiting) - 1
        self.work.abandon(owner)
        self.work.abandon(owner)
        self.threads.run()
        self.assertEqual([*range(begun), "other"], self.done)
        for result in results[:begun]:
            self.successResultOf(result)
        for result in results[begun:]:
            self.failureResultOf(result, CancelledError)
        self.successResultOf(kept)

    def test_changes_of_an_abandoned_owner_are_waited_for(self):
        owner = JobOwner()
        self.run_for(owner, "change", changing=True)
        self.run_for(owner, "read")
        self.assertFalse(self.work.has_orphans)
        self.successResultOf(self.work.orphans_finished())
        self.work.abandon(owner)
        self.assertTrue(self.work.has_orphans)
        drained = self.work.orphans_finished()
        self.assertNoResult(drained)
        self.threads.run(1)
        self.assertFalse(self.work.has_orphans)
        self.successResultOf(drained)

    def test_reads_of_an_abandoned_owner_are_not_waited_for(self):
        owner = JobOwner()
        self.run_for(owner, "read")
        self.work.abandon(owner)
        self.assertFalse(self.work.has_orphans)


class LateChangeTests(SynchronousTestCase):
    """A client that reconnects must not be overtaken by its earlier requests."""

    def setUp(self):
        self.disk = ServedDisk(pattern(SIZE))
        self.place = ServerFixture(self.disk, threads=True)

    def names(self):
        return self.place.threads.names()

    def lose_one_that_zeroes(self, command=ZEROES):
        one = self.place.peer()
        one.send(command, 0, 2 << 20)
        self.assertEqual(["_change"], self.names())
        one.transport.lose()

    def test_a_write_waits_for_the_late_change(self):
        for command in (ZEROES, TRIM):
            self.setUp()
            self.lose_one_that_zeroes(command)
            two = self.place.peer()
            cookie = two.write(0, b"written again")
            self.assertIsNone(two.outcome(cookie), "answered before it can be kept")
            while self.names():
                self.place.threads.run()
            self.assertEqual(0, two.outcome(cookie).error)
            self.assertEqual(b"written again", self.disk.content[:13])

    def test_reads_do_not_wait_for_the_late_change(self):
        self.lose_one_that_zeroes()
        two = self.place.peer()
        self.assertEqual(0, two.ask(READ, 0, 10).error)

    def test_long_work_of_a_lost_client_ends_early(self):
        """It ends between two slices, since nobody wants the rest."""
        self.disk = ServedDisk(bytes(SIZE))
        self.disk.size = 1 << 40
        zeroed = []
        self.place = ServerFixture(self.disk, threads=True)
        one = self.place.peer()

        def zero(offset, length, allocate, fast=False):
            zeroed.append(length)
            one.transport.lose()

        self.disk.zero = zero
        one.send(ZEROES, 0, 0xFFFF_0000)
        self.place.threads.run()
        self.assertEqual(1, len(zeroed))
        self.assertFalse(self.place.server._access.jobs.has_orphans)

    def test_work_that_was_not_begun_is_not_done(self):
        one = self.place.peer()
        for _ in range(20):
            one.send(ZEROES, 0, 2 << 20)
        self.place.threads.run(1)
        one.transport.lose()
        while self.names():
            self.place.threads.run()
        self.assertEqual(1, self.disk.names().count("zero"))

    def test_the_server_stops_after_the_late_change(self):
        self.lose_one_that_zeroes()
        two = self.place.peer()
        cookie = two.write(0, b"x")
        done = self.place.server.complete()
        self.place.server.stop()
        for _ in range(3):
            self.place.threads.run()
            two.run()
        self.assertIsNotNone(two.outcome(cookie))
        self.successResultOf(done)

    def test_errors_are_counted_in_the_status(self):
        self.disk.fail("flush", OSError(errno.EIO, "worn out"), times=None)
        one = self.place.peer()
        for _ in range(3):
            one.send(Command.FLUSH)
            self.place.threads.run()
        status = self.place.server.status()
        self.assertEqual((3, "FLUSH: flush: worn out"), (status["errors"], status["last_error"]))
