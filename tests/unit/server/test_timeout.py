"""When a silent client is given up."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from blockmig.server import timeout as module
from blockmig.server.timeout import ConnectionTimeout


class SilenceTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.given_up = []
        self.late = []
        self.waiting = self.excused = False
        self.silence = ConnectionTimeout(
            self.clock, StringTransport(), lambda: self.waiting, self.given_up.append
        )

    def watch(self, seconds=10):
        self.silence.watch(seconds, lambda: self.excused)

    def test_a_silent_client_is_given_up(self):
        self.watch()
        self.clock.advance(9.9)
        self.assertEqual([], self.given_up)
        self.clock.advance(0.2)
        self.assertEqual([10], self.given_up)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_silence_counts_from_when_the_client_is_watched(self):
        self.clock.advance(8)
        self.watch()
        self.clock.advance(9.9)
        self.assertEqual([], self.given_up)

    def test_activity_restarts_the_timeout(self):
        self.watch()
        for _ in range(10):
            self.clock.advance(6)
            self.silence.reset()
        self.assertEqual([], self.given_up)
        self.clock.pump([6, 6])
        self.assertEqual([10], self.given_up)

    def test_an_excused_client_is_not_given_up(self):
        self.excused = True
        self.watch()
        self.clock.pump([5] * 20)
        self.assertEqual([], self.given_up)
        self.excused = False
        self.clock.pump([5] * 3)
        self.assertEqual([10], self.given_up)

    def test_a_client_that_reads_what_waits_is_not_given_up(self):
        untaken = iter(range(1000, 0, -1))
        self.patch(module, "unacknowledged", lambda transport: next(untaken))
        self.waiting = True
        self.watch()
        self.clock.pump([5] * 20)
        self.assertEqual([], self.given_up)
        self.patch(module, "unacknowledged", lambda transport: 7)
        self.clock.pump([5] * 5)
        self.assertEqual([10], self.given_up)

    def test_a_client_that_never_reads_what_waits_is_given_up_as_early(self):
        """What it had not taken before is no sign that it takes anything."""
        self.patch(module, "unacknowledged", lambda transport: 7)
        self.waiting = True
        self.watch()
        self.clock.advance(9.9)
        self.assertEqual([], self.given_up)
        self.clock.advance(0.2)
        self.assertEqual([10], self.given_up)

    def test_a_timeout_of_zero_means_never(self):
        self.watch(0)
        self.silence.limit(0, self.late.append)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_limit_expires_whatever_happens(self):
        self.silence.limit(10, self.late.append)
        for _ in range(2):
            self.clock.advance(4)
            self.silence.reset()
        self.assertEqual([], self.late)
        self.clock.advance(4)
        self.assertEqual(([10], []), (self.late, self.given_up))

    def test_watching_replaces_the_limit(self):
        self.silence.limit(10, self.late.append)
        self.watch(20)
        self.clock.advance(15)
        self.assertEqual(([], []), (self.late, self.given_up))
        self.silence.stop()
        self.silence.stop()
        self.assertEqual([], self.clock.getDelayedCalls())


class ProgressTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.reached = 0
        self.given_up, self.silent = [], []
        self.excused = False
        self.timeout = ConnectionTimeout(
            self.clock, StringTransport(), lambda: False, self.silent.append
        )
        self.timeout.watch_progress(
            10, lambda: self.excused, lambda: self.reached, self.given_up.append
        )

    def talk(self, seconds):
        """The client says something each second."""
        for _ in range(seconds):
            self.timeout.reset()
            self.clock.advance(1)

    def test_to_talk_is_not_enough(self):
        self.talk(9)
        self.assertEqual([], self.given_up)
        self.talk(5)
        self.assertEqual(([10], []), (self.given_up, self.silent))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_who_gets_further_is_kept(self):
        for self.reached in range(10):
            self.talk(8)
        self.assertEqual([], self.given_up)

    def test_a_silent_one_is_given_up_all_the_same(self):
        self.clock.pump([1] * 12)
        self.assertEqual([], self.given_up)
        self.assertEqual([10], self.silent)

    def test_of_the_time_in_which_it_waits_for_us_a_tenth_counts(self):
        self.excused = True
        self.talk(90)
        self.assertEqual([], self.given_up)
        self.talk(20)
        self.assertEqual([10], self.given_up)

    def test_the_time_in_which_we_do_one_thing_for_it_counts_nothing(self):
        self.excused = True
        self.clock.pump([1] * 1000)
        self.assertEqual(([], []), (self.given_up, self.silent))

    def test_to_have_one_thing_done_after_another_is_no_progress(self):
        self.excused = True
        for _ in range(200):
            self.timeout.reset()  # it was done, and the next has begun
            self.clock.pump([1] * 3)
        self.assertEqual([10], self.given_up)

    def test_nothing_is_expected_of_who_has_nothing_to_reach(self):
        self.reached = None
        self.talk(100)
        self.assertEqual([], self.given_up)
        self.reached = 1
        self.talk(14)
        self.assertEqual([10], self.given_up)
