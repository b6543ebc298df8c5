"""The states that each object of an embedder's goes through, and its outcome."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import InUse
from blockmig.lives import Life, LifeState, OneShot, wait_or_stop


class LifeTests(SynchronousTestCase):
    def setUp(self):
        self.done = []
        self.life = Life(
            "the thing", begin=lambda: self.done.append("begin"), call_off=self.done.append
        )

    def check(self, state, *done):
        self.assertEqual((state, list(done)), (self.life.state, self.done))

    def test_it_is_begun_once(self):
        self.check(LifeState.MADE)
        self.life.start()
        self.check(LifeState.RUNNING, "begin")
        error = self.assertRaises(InUse, self.life.start)
        self.assertEqual("the thing was started before: make another one", str(error))
        self.check(LifeState.RUNNING, "begin")

    def test_it_is_stopped_once_for_the_first_reason(self):
        self.life.start()
        self.life.stop("one")
        self.life.stop("two")
        self.check(LifeState.STOPPING, "begin", "one")
        self.assertRaises(InUse, self.life.start)

    def test_what_was_stopped_first_is_never_begun(self):
        self.life.stop("not wanted")
        self.life.start()
        self.life.stop("again")
        self.check(LifeState.STOPPING, "not wanted")
        self.life.end(5)
        self.life.start()
        self.check(LifeState.ENDED, "not wanted")
        self.assertEqual(5, self.successResultOf(self.life.wait()))

    def test_it_is_not_begun_again_from_within_its_end(self):
        again = []

        def start(outcome):
            again.append(self.life.run())
            return outcome

        first = self.life.run().addCallback(start)
        self.life.end(5)
        self.assertEqual(5, self.successResultOf(first))
        self.failureResultOf(again[0], InUse)
        self.check(LifeState.ENDED, "begin")

    def test_an_end_while_it_begins_is_heard_once_it_has_begun(self):
        self.life = Life("the thing", begin=lambda: self.life.end(5), call_off=self.done.append)
        self.assertEqual(5, self.successResultOf(self.life.run()))

    def test_it_ends_once_from_any_state(self):
        for prepare in (
            lambda: None,
            lambda: [self.life.start()],
            lambda: (self.life.start(), self.life.stop("")),
            lambda: self.life.stop(""),
        ):
            self.setUp()
            prepare()
            waiting = self.life.wait()
            self.assertNoResult(waiting)
            self.assertIsNone(self.life.outcome)
            self.life.end("first")
            self.life.end("second")
            self.assertEqual("first", self.successResultOf(waiting))
            self.assertEqual("first", self.life.outcome)
            self.assertEqual(LifeState.ENDED, self.life.state)

    def test_after_the_end_nothing_is_done(self):
        self.life.start()
        self.life.end(None)
        self.life.stop("late")
        self.assertRaises(InUse, self.life.start)
        self.check(LifeState.ENDED, "begin")

    def test_it_may_end_from_inside_what_it_does(self):
        for name in ("begin", "call_off"):
            lives = []
            keywords = {"begin": lambda: None, "call_off": lambda why: None}
            keywords[name] = lambda *_, lives=lives: lives[0].end("at once")
            lives.append(life := Life("it", **keywords))
            life.start()
            life.stop("why")
            self.assertEqual("at once", self.successResultOf(life.wait()), name)
            self.assertEqual(LifeState.ENDED, life.state)

    def test_whoever_hears_of_the_end_sees_that_it_has_ended(self):
        states = []
        self.life.wait().addCallback(lambda _: states.append(self.life.state))
        self.life.start()
        self.life.end(None)
        self.assertEqual([LifeState.ENDED], states)


class OneShotTests(SynchronousTestCase):
    def setUp(self):
        self.shot = OneShot()

    def test_all_who_wait_get_it_before_and_after(self):
        before = [self.shot.wait(), self.shot.wait()]
        self.shot.resolve(None)
        self.shot.resolve(7)
        for waiting in (*before, self.shot.wait()):
            self.assertIsNone(self.successResultOf(waiting))

    def test_each_gets_a_failure_of_its_own(self):
        before = self.shot.wait()
        error = ValueError("no")
        self.shot.resolve(Failure(error))
        failures = [self.failureResultOf(d, ValueError) for d in (before, self.shot.wait())]
        self.assertEqual([error, error], [failure.value for failure in failures])
        self.assertIsNot(*failures)

    def test_a_failure_that_nobody_waits_for_is_not_logged(self):
        self.shot.resolve(Failure(ValueError("no")))
        del self.shot
        self.assertEqual([], self.flushLoggedErrors())

    def test_cancelling_only_stops_waiting_and_leaves_nothing(self):
        one, other = self.shot.wait(), self.shot.wait()
        one.cancel()
        self.failureResultOf(one, CancelledError)
        self.assertEqual([other], self.shot._waiting)
        self.shot.resolve(1)
        self.assertEqual(1, self.successResultOf(other))
        other.cancel()

    def test_who_waits_may_ask_again_from_inside_the_answer(self):
        found = []
        self.shot.wait().addCallback(lambda _: self.shot.wait().addCallback(found.append))
        self.shot.resolve(3)
        self.assertEqual([3], found)


class WaitOrStopTests(SynchronousTestCase):
    def setUp(self):
        self.shot, self.stopped = OneShot(), []

    def wait(self):
        return Deferred.fromCoroutine(wait_or_stop(self.shot.wait, self.stopped.append))

    def test_cancelling_stops_and_waits_on(self):
        waiting = self.wait()
        waiting.cancel()
        waiting.cancel()
        self.assertEqual(["cancelled", "cancelled"], self.stopped)
        self.assertNoResult(waiting)
        self.shot.resolve("the end")
        self.assertEqual("the end", self.successResultOf(waiting))

    def test_what_ends_at_once_is_heard_of_at_once(self):
        waiting = Deferred.fromCoroutine(
            wait_or_stop(self.shot.wait, lambda why: self.shot.resolve(Failure(KeyError(why))))
        )
        waiting.cancel()
        self.assertEqual("cancelled", self.failureResultOf(waiting, KeyError).value.args[0])

    def test_thrown_away_it_says_nothing(self):
        del self.shot
        self.shot = OneShot()
        waiting = self.wait()
        del waiting
        self.shot._waiting.clear()
        self.assertEqual(([], []), (self.stopped, self.flushLoggedErrors()))


class CancelledOutcomeTests(SynchronousTestCase):
    def test_an_outcome_cannot_be_taken_for_a_cancelled_wait(self):
        shot, stopped = OneShot(), []
        waiting = Deferred.fromCoroutine(wait_or_stop(shot.wait, stopped.append))
        shot.resolve(Failure(CancelledError()))
        self.failureResultOf(waiting, RuntimeError)
        self.failureResultOf(shot.wait(), RuntimeError)
        self.assertEqual([], stopped)
