"""Work in threads cannot be cancelled, and is waited for (runtime.py)."""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import replace

from twisted.internet.base import ReactorBase
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.runtime import (
    BoundedThreads,
    CancelledFromInside,
    Runtime,
    go_by_monotonic_clock,
    wait_for_other,
    wait_shielded,
)
from blockmig.testing import ManualThreads, synchronous


class BoundedThreadsTests(SynchronousTestCase):
    def setUp(self):
        self.threads = ManualThreads()
        self.work = BoundedThreads(self.threads)
        self.done = []

    def test_results_and_errors_are_delivered(self):
        good, bad = self.work(int, "5"), self.work(int, "x")
        self.threads.run()
        self.assertEqual(5, self.successResultOf(good))
        self.failureResultOf(bad, ValueError)
        self.assertFalse(self.work.busy)

    def test_cancelled_work_still_counts_until_its_thread_ends(self):
        """Nobody waits for it, but the thread goes on."""
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

    def test_cancelled_work_that_was_queued_is_still_done(self):
        """Later work may rely on it."""
        working = [self.work(self.done.append, number) for number in range(6)]
        self.assertEqual(4, len(self.threads.waiting))
        working[5].cancel()
        self.failureResultOf(working[5], CancelledError)
        self.threads.run()
        self.assertEqual([0, 1, 2, 3, 4, 5], sorted(self.done))
        self.assertFalse(self.work.busy)

    def test_cancelled_work_that_fails_logs_nothing(self):
        working = self.work(int, "x")
        working.cancel()
        self.failureResultOf(working, CancelledError)
        self.threads.run()
        self.assertFalse(self.work.busy)
        self.assertEqual([], self.flushLoggedErrors())

    def test_each_wait_for_idle_fires_once(self):
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


class ResultsFirstTests(SynchronousTestCase):
    """Nobody is told that nothing is running as long as a result may still begin something."""

    def setUp(self):
        self.threads = ManualThreads()
        self.work = BoundedThreads(self.threads)
        self.done = []

    def test_what_follows_from_a_result_is_waited_for_too(self):
        working = self.work(self.done.append, 1)
        working.addCallback(lambda _: self.work(self.done.append, 2))
        idle = self.work.idle()
        self.threads.run(1)
        self.assertNoResult(idle)
        self.threads.run(1)
        self.successResultOf(idle)
        self.assertEqual([1, 2], self.done)

    def test_who_asks_while_a_result_is_delivered_waits_for_its_other_callbacks(self):
        order = []
        working = self.work(self.done.append, 1)
        working.addCallback(lambda _: self.work.idle().addCallback(lambda _: order.append("idle")))
        working.addBoth(lambda _: None)
        other = self.work(self.done.append, 2)
        other.addCallback(lambda _: order.append("the other's result"))
        self.threads.run()
        self.assertEqual(["the other's result", "idle"], order)

    def test_one_who_waits_may_begin_something_that_the_next_one_waits_for(self):
        self.work(self.done.append, 1)
        first, second = self.work.idle(), self.work.idle()
        first.addCallback(lambda _: self.work(self.done.append, 2))
        self.threads.run(1)
        self.assertNoResult(second)
        self.threads.run(1)
        self.successResultOf(second)

    def test_nothing_is_run_after_the_end(self):
        self.work.end()
        self.failureResultOf(self.work(self.done.append, 1), CancelledError)
        self.assertFalse(self.threads.names())
        self.successResultOf(self.work.idle())


class WaitForOtherTests(SynchronousTestCase):
    """Whether we have cancelled it, or it has cancelled itself."""

    def setUp(self):
        self.working = Deferred()
        self.waiting = wait_for_other(self.working)

    def test_the_result_and_the_failure_are_passed_on(self):
        self.working.callback(5)
        self.assertEqual(5, self.successResultOf(self.waiting))
        self.setUp()
        self.working.errback(OSError("broken"))
        self.failureResultOf(self.waiting, OSError)

    def test_what_cancels_itself_has_failed(self):
        for error in (CancelledError(), ConnectingCancelledError(None)):
            self.setUp()
            self.working.errback(error)
            self.failureResultOf(self.waiting, CancelledFromInside)

    def test_to_cancel_the_waiting_cancels_what_is_waited_for(self):
        self.waiting.cancel()
        self.failureResultOf(self.waiting, CancelledError)
        self.assertTrue(self.working.called)

    def test_it_was_us_however_an_endpoint_puts_it(self):
        self.working = Deferred(lambda it: it.errback(ConnectingCancelledError(None)))
        self.waiting = wait_for_other(self.working)
        self.waiting.cancel()
        self.failureResultOf(self.waiting, CancelledError)

    def test_a_result_that_comes_in_spite_of_that_is_passed_on(self):
        self.working = Deferred(lambda it: it.callback(5))
        self.waiting = wait_for_other(self.working)
        self.waiting.cancel()
        self.assertEqual(5, self.successResultOf(self.waiting))


class ToTheEndTests(SynchronousTestCase):
    def run_with(self):
        self.working = Deferred()
        return Deferred.fromCoroutine(wait_shielded(self.working))

    def test_the_result_of_the_work_is_returned(self):
        waiting = self.run_with()
        self.working.callback(5)
        self.assertEqual(5, self.successResultOf(waiting))
        waiting = self.run_with()
        self.working.errback(OSError("broken"))
        self.failureResultOf(waiting, OSError)

    def test_a_result_that_is_there_already_is_returned(self):
        working = Deferred()
        working.callback(5)
        self.assertEqual(5, self.successResultOf(Deferred.fromCoroutine(wait_shielded(working))))

    def test_a_cancelled_caller_waits_for_the_work(self):
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


class Reactor(ReactorBase):
    """Twisted's own scheduling, without anything that it could watch."""

    def installWaker(self):
        pass


class MonotonicClockTests(SynchronousTestCase):
    """A reactor that is told to goes by the monotonic clock, whatever becomes of the other."""

    def setUp(self):
        self.wall, self.monotonic = 1_000_000.0, 50.0
        self.patch(Reactor, "seconds", lambda _: self.wall)
        self.patch(time, "monotonic", lambda: self.monotonic)
        self.reactor = Reactor()
        self.called = []

    def schedule(self, delay):
        self.reactor.callLater(delay, self.called.append, delay)

    def passes(self, seconds):
        """Time goes on, and the reactor does what is due."""
        self.wall += seconds
        self.monotonic += seconds
        self.reactor.runUntilCurrent()

    def test_setting_the_wall_clock_changes_nothing(self):
        for step in (-3600.0, 3600.0, -86400.0, 86400.0):
            go_by_monotonic_clock(self.reactor)
            self.schedule(3)
            self.passes(2)
            self.wall += step
            self.passes(0)
            self.assertEqual(([], 1), (self.called, self.reactor.timeout()))
            self.passes(1)
            self.assertEqual([3], self.called)
            self.called.clear()

    def test_what_was_scheduled_before_keeps_the_time_that_it_has_left(self):
        for monotonic in (50.0, 5_000_000.0):  # behind the wall clock, and ahead of it
            self.monotonic = monotonic
            self.reactor = Reactor()
            self.schedule(20)
            self.schedule(3)
            self.passes(1)  # those two have been taken over, the next has not
            self.schedule(10)
            go_by_monotonic_clock(self.reactor)
            self.schedule(5)
            self.wall -= 3600
            for seconds, due in ((1.5, []), (0.5, [3]), (3, [3, 5]), (5, [3, 5, 10])):
                self.passes(seconds)
                self.assertEqual(due, self.called)
            self.passes(9)
            self.assertEqual([3, 5, 10, 20], self.called)
            self.called.clear()

    def test_a_call_that_was_scheduled_before_can_be_put_off(self):
        call = self.reactor.callLater(3, self.called.append, 3)
        go_by_monotonic_clock(self.reactor)
        self.passes(2)
        call.reset(3)
        self.passes(2)
        self.assertEqual([], self.called)
        self.passes(1)
        self.assertEqual([3], self.called)

    def test_twice_is_as_good_as_once(self):
        self.schedule(3)
        go_by_monotonic_clock(self.reactor)
        go_by_monotonic_clock(self.reactor)
        self.passes(3)
        self.assertEqual([3], self.called)


class ApartTests(SynchronousTestCase):
    """Threads for which nobody waits."""

    def setUp(self):
        self.clock = Clock()
        self.delivered = threading.Event()
        self.results = []
        self.clock.getThreadPool = lambda: None
        self.clock.callFromThread = self.deliver
        self.apart = Runtime.of(self.clock).apart

    def deliver(self, function, *arguments):
        self.results.append((function, arguments))
        self.delivered.set()

    def test_the_process_ends_although_one_runs(self):
        threads = []
        result = self.apart(lambda: threads.append(threading.current_thread()))
        self.delivered.wait()
        self.assertTrue(threads[0].daemon)
        self.assertNoResult(result)  # in the reactor's thread, not there
        ((function, arguments),) = self.results
        function(*arguments)
        self.assertIsNone(self.successResultOf(result))

    def test_it_fails_as_the_function_does(self):
        result = self.apart(int, "x")
        self.delivered.wait()
        ((function, arguments),) = self.results
        function(*arguments)
        self.failureResultOf(result, ValueError)

    def test_that_there_is_no_thread_is_a_failure_as_well(self):
        def no_thread(thread):
            raise RuntimeError("can't start new thread")

        self.patch(threading.Thread, "start", no_thread)
        error = self.failureResultOf(self.apart(int), OSError).value
        self.assertEqual(errno.EAGAIN, error.errno)

    def test_who_bounds_the_others_does_not_bound_these(self):
        runtime = Runtime(self.clock, synchronous)
        self.assertIs(synchronous, replace(runtime, threads=BoundedThreads(synchronous)).apart)
