"""Threads that run at once, or when the test says so."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.testing import (
    ManualThreads,
    synchronous,
)


class ThreadsTests(SynchronousTestCase):
    def test_synchronous_threads_return_at_once(self):
        self.assertEqual(7, self.successResultOf(synchronous(int, "7")))
        self.failureResultOf(synchronous(int, "x"), ValueError)

    def test_manual_threads_run_when_the_test_says_so(self):
        threads = ManualThreads()
        first, second, third = threads(int, "1"), threads(len, ""), threads(int, "x")
        self.assertEqual(["int", "len", "int"], threads.names())
        self.assertNoResult(first)
        self.assertEqual(1, threads.run(1))
        self.assertEqual(1, self.successResultOf(first))
        self.assertNoResult(second)
        second.addCallback(lambda _: threads(int, "4")).addCallback(self.assertEqual, 4)
        self.assertEqual(3, threads.run())
        self.successResultOf(second)
        self.failureResultOf(third, ValueError)
        self.assertEqual(0, threads.run())

    def test_work_that_waits_can_be_seen_and_turned_round(self):
        threads = ManualThreads()
        one, two = threads(int, "1"), threads(len, "")
        self.assertEqual([(int, ("1",)), (len, ("",))], threads.waiting)
        threads.rotate()
        threads.run(1)
        self.assertEqual(0, self.successResultOf(two))
        self.assertNoResult(one)
