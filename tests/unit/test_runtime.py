"""Work in threads: it cannot be taken back, and is waited for."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from blockmig.runtime import BoundedThreads, wait_shielded
from blockmig.testing import ManualThreads


class BoundedThreadsTests(SynchronousTestCase):
    def setUp(self):
        self.threads = ManualThreads()
        self.work = BoundedThreads(self.threads)
        self.done = []

    def test_results(self):
        good, bad = self.work(int, "5"), self.work(int, "x")
        self.threads.run()
        self.assertEqual(5, self.successResultOf(good))
        self.failureResultOf(bad, ValueError)
        self.assertFalse(self.work.busy)

    def test_cancelled(self):
        """Nobody waits any more, but the thread goes on, and counts until it is done."""
        working = self.work(self.done.append, 1)
        working.cancel()
        self.failureResultOf(working, CancelledError)
        idle = self.work.idle()
        self.assertTrue(self.work.busy)
        self.assertNoResult(idle)
        self.threads.run()
        self.assertEqual([1], self.done)
        self.assertFalse(self.work.busy)
        self.successResultOf(idle)

    def test_cancelled_before_it_had_a_thread(self):
        """It is done all the same: whoever comes behind it may rely on it."""
        working = [self.work(self.done.append, number) for number in range(6)]
        self.assertEqual(4, len(self.threads.waiting))
        working[5].cancel()
        self.failureResultOf(working[5], CancelledError)
        self.threads.run()
        self.assertEqual([0, 1, 2, 3, 4, 5], sorted(self.done))
        self.assertFalse(self.work.busy)

    def test_cancelled_and_failed(self):
        working = self.work(int, "x")
        working.cancel()
        self.failureResultOf(working, CancelledError)
        self.threads.run()
        self.assertFalse(self.work.busy)
        self.assertEqual([], self.flushLoggedErrors())

    def test_no_one_idle_is_told_twice(self):
        working = self.work(self.done.append, 1)
        working.cancel()
        self.failureResultOf(working, CancelledError)
        first = self.work.idle()
        again = self.work(self.done.append, 2)
        self.threads.run(1)
        self.assertNoResult(first)
        self.threads.run()
        self.successResultOf(first)
        self.successResultOf(again)


class ToTheEndTests(SynchronousTestCase):
    def run_with(self):
        self.working = Deferred()
        return Deferred.fromCoroutine(wait_shielded(self.working))

    def test_result(self):
        waiting = self.run_with()
        self.working.callback(5)
        self.assertEqual(5, self.successResultOf(waiting))
        waiting = self.run_with()
        self.working.errback(OSError("broken"))
        self.failureResultOf(waiting, OSError)

    def test_there_already(self):
        working = Deferred()
        working.callback(5)
        self.assertEqual(5, self.successResultOf(Deferred.fromCoroutine(wait_shielded(working))))

    def test_whoever_cancels_waits(self):
        for end, value in (("callback", 5), ("errback", OSError("broken"))):
            waiting = self.run_with()
            for _ in range(3):
                waiting.cancel()
                self.assertNoResult(waiting)
            self.assertFalse(self.working.called)
            getattr(self.working, end)(value)
            if end == "callback":
                self.assertEqual(5, self.successResultOf(waiting))
            else:
                self.failureResultOf(waiting, OSError)
