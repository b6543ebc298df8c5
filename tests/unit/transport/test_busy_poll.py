"""Waiting a moment for the next message: when, for how long, and when not any more."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.transport.busy_poll import SPIN, BusyPoll

POLL = SPIN / 10
"""Seconds that one poll takes here."""


class BusyPollTests(SynchronousTestCase):
    def setUp(self):
        self.now = 0.0
        self.arrives = float("inf")
        self.polls = 0
        self.busy_poll = self.connection()
        self.busy_poll.begin()  # from now on it is alone

    def connection(self):
        return BusyPoll(-1, lambda: self.now, self.poll)

    def poll(self, timeout):
        self.assertEqual(0, timeout)
        self.polls += 1
        self.now += POLL
        return [1] if self.now >= self.arrives else []

    def turn(self, arrives=float("inf")):
        """A turn in which the next message comes so late; how long it was waited for, and whether
        the turn goes on."""
        self.busy_poll.begin()
        self.arrives, start = self.now + arrives, self.now
        more = self.busy_poll.more()
        return self.now - start, more

    def waits(self):
        return self.turn()[0] > 2 * POLL

    def test_a_message_that_is_there_is_not_waited_for(self):
        waited, more = self.turn(arrives=0)
        self.assertTrue(more)
        self.assertAlmostEqual(POLL, waited)

    def test_a_message_is_waited_for(self):
        waited, more = self.turn(arrives=SPIN / 2)
        self.assertTrue(more)
        self.assertLess(waited, SPIN)

    def test_nothing_is_waited_for_longer_than_a_moment(self):
        waited, more = self.turn()
        self.assertFalse(more)
        self.assertLess(waited, SPIN + 3 * POLL)

    def test_one_wait_in_vain_is_forgiven(self):
        self.assertEqual([True, True], [self.waits(), self.waits()])

    def test_after_waits_in_vain_it_waits_less_and_less_often(self):
        waited = [self.waits() for _ in range(2 + 3 + 7 + 15)]
        self.assertEqual(
            [True] * 2 + [False] * 2 + [True] + [False] * 6 + [True] + [False] * 14 + [True],
            waited,
        )

    def test_it_never_gives_up(self):
        waited = [self.waits() for _ in range(1000)]
        self.assertGreater(waited[500:].count(True), 5)

    def test_it_waits_again_once_that_was_worth_it(self):
        while self.waits():
            pass
        while not self.turn(arrives=SPIN / 2)[1]:
            pass
        self.assertEqual([True, True], [self.waits(), self.waits()])

    def test_two_connections_do_not_wait(self):
        other = self.connection()
        for _ in range(3):
            other.begin()
            self.assertFalse(self.waits())

    def test_a_turn_ends_although_more_is_there(self):
        self.busy_poll.begin()
        self.arrives = 0
        turn = [self.busy_poll.more() for _ in range(100)]
        self.assertFalse(turn[-1])
        self.assertLess(turn.count(True) * POLL, 0.0004)

    def test_at_the_end_of_a_turn_the_next_message_is_still_waited_for(self):
        self.busy_poll.begin()
        self.now += 0.001
        self.arrives = self.now + SPIN / 2
        self.assertFalse(self.busy_poll.more())
        self.assertGreaterEqual(self.now, self.arrives)
        # That was no wait in vain.
        self.assertEqual([True, True], [self.waits(), self.waits()])
