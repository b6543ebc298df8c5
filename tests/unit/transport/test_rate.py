"""Limits to the rate of sending (transport/rate.py)."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from blockmig.transport import Pacer, RateLimiter, YieldingLimiter

MB = 1_000_000


def run(clock, limiter, seconds, wanted=1 << 20, tick=None):
    """Send as fast as allowed, waiting as told; (time, count) of each sending."""
    sent = []
    end = clock.seconds() + seconds
    while clock.seconds() < end:
        count = limiter.allowed(wanted)
        if count:
            limiter.spend(count)
            sent.append((clock.seconds(), count))
        else:
            clock.advance(tick or limiter.delay(wanted))
    return sent


def total(sent, start=0.0, end=1e9):
    return sum(count for when, count in sent if start <= when < end)


class RateLimiterTests(SynchronousTestCase):
    def near(self, ratio, tolerance):
        self.assertTrue(abs(ratio - 1) <= tolerance, f"{ratio} is not within {tolerance} of 1")

    def test_the_mean_rate_is_kept(self):
        for rate in (100_000, MB, 10 * MB, 100 * MB, 1000 * MB):
            for wanted in (rate // 1000, rate // 50, 1 << 20, 4 << 20):
                clock = Clock()
                sent = run(clock, RateLimiter(clock, rate), 10, wanted)
                self.near(total(sent, 0, 10) / (10 * rate), 0.05)

    def test_a_busy_reactor_keeps_the_rate(self):
        """Even if the limit is asked only every 100 ms."""
        clock = Clock()
        sent = run(clock, RateLimiter(clock, 50 * MB), 10, 8 << 20, tick=0.1)
        self.near(total(sent) / (500 * MB), 0.05)

    def test_a_pause_gives_no_burst(self):
        clock = Clock()
        rate = 10 * MB
        limiter = RateLimiter(clock, rate)
        sent = run(clock, limiter, 5)
        clock.advance(100)  # idle: that must not be saved up
        sent += run(clock, limiter, 5)
        for start, _ in sent:
            self.assertLessEqual(total(sent, start, start + 1), 1.3 * rate)
            self.assertLessEqual(total(sent, start, start + 0.1), 0.4 * rate)

    def test_nothing_is_allowed_at_first(self):
        clock = Clock()
        self.assertEqual(0, RateLimiter(clock, MB).allowed(1 << 20))

    def test_a_changed_rate_counts_at_once(self):
        clock = Clock()
        limiter = RateLimiter(clock, 10 * MB)
        self.assertEqual(10 * MB, limiter.rate)
        sent = run(clock, limiter, 5)
        limiter.set_rate(2 * MB)
        self.assertEqual(2 * MB, limiter.rate)
        sent += run(clock, limiter, 5)
        limiter.set_rate(50 * MB)
        sent += run(clock, limiter, 5)
        self.near(total(sent, 0, 5) / (50 * MB), 0.06)
        self.near(total(sent, 5, 10) / (10 * MB), 0.06)
        self.near(total(sent, 10, 15) / (250 * MB), 0.06)

    def test_a_new_rate_does_not_count_for_the_past(self):
        clock = Clock()
        limiter = RateLimiter(clock, MB)
        clock.advance(0.2)
        limiter.set_rate(1000 * MB)
        self.assertEqual(0, limiter.allowed(10 * MB))
        self.assertEqual(200_000, limiter.allowed(200_000))

    def test_something_is_allowed_after_the_delay(self):
        clock = Clock()
        limiter = RateLimiter(clock, 12345)
        for _ in range(100):
            limiter.spend(1000)
            clock.advance(limiter.delay(3000))
            self.assertGreater(limiter.allowed(3000), 0)

    def test_an_overspent_amount_is_paid_back(self):
        clock = Clock()
        limiter = RateLimiter(clock, MB)
        limiter.spend(2 * MB)
        clock.advance(1.9)
        self.assertEqual(0, limiter.allowed(1 << 20))
        clock.advance(0.3)
        self.assertGreater(limiter.allowed(1 << 20), 0)

    @given(st.floats(1, 1e10), st.integers(1, 1 << 26), st.floats(0, 100))
    def test_no_more_is_allowed_than_was_asked_for(self, rate, wanted, seconds):
        clock = Clock()
        limiter = RateLimiter(clock, rate)
        clock.advance(seconds)
        allowed = limiter.allowed(wanted)
        self.assertIsInstance(allowed, int)
        self.assertTrue(0 <= allowed <= wanted)


TURN = 128 << 10
SPEED = 1 << 30
"""Bytes per second that the double of a socket takes."""


class YieldingLimiterTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.others = True

    def make(self, rate=None):
        self.courtesy = YieldingLimiter(self.clock, self.latest, rate, self.clock.seconds)
        return self.courtesy

    def latest(self):
        return self.clock.seconds() - (0.001 if self.others else 1)

    def run_for(self, seconds, wanted=1 << 20, speed=SPEED):
        """Send as much as allowed; when each sending began and ended, and how much it was."""
        sent = []
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            if count := self.courtesy.allowed(wanted):
                began = self.clock.seconds()
                self.clock.advance(count / speed)
                self.courtesy.spend(count)
                sent.append((began, self.clock.seconds(), count))
            else:
                self.clock.advance(max(min(self.courtesy.delay(wanted), 0.25), 1e-5))
        return sent

    def bytes(self, sent):
        return sum(count for _, _, count in sent)

    def test_nothing_is_limited_while_others_are_idle(self):
        self.others = False
        self.make()
        self.assertEqual(0, self.courtesy.delay(1 << 20))
        for wanted in (1, TURN, 4 << 20, 1 << 40):
            self.assertEqual(wanted, self.courtesy.allowed(wanted))
            self.courtesy.spend(wanted)
        self.assertIsNone(self.courtesy.rate)

    def test_sending_takes_a_seventh_of_the_time_while_others_are_busy(self):
        for speed in (SPEED, SPEED // 10):
            for wanted in (65536, TURN, 4 << 20):
                self.make()
                sent = self.run_for(2, wanted, speed)
                share = sum(end - began for began, end, _ in sent) / 2
                self.assertTrue(0.133 < share < 0.15, (speed, wanted, share))

    def test_how_fast_turns_are_says_what_is_possible(self):
        """Not the time between them; and a turn that was interrupted says nothing."""
        self.others = False
        self.make()
        self.assertEqual(0, self.courtesy.unhindered_rate)
        self.run_for(0.1)
        self.assertEqual(0, self.courtesy.unhindered_rate, "nobody was in the way")
        self.others = True
        sent = self.run_for(1)
        self.assertLess(self.bytes(sent), 0.2 * SPEED)
        self.assertTrue(0.99 < self.courtesy.unhindered_rate / SPEED < 1.01)
        self.run_for(0.01, speed=SPEED // 100)
        self.assertGreater(self.courtesy.unhindered_rate, 0.9 * SPEED)
        self.run_for(60, speed=SPEED // 10)
        self.assertLess(self.courtesy.unhindered_rate, 0.11 * SPEED)

    def test_sending_takes_short_turns(self):
        """Others wait for at most 128 KiB, and then have six times as long."""
        self.make()
        sent = self.run_for(0.1, 1 << 20)
        self.assertGreater(len(sent), 20)
        for (_, end, count), (began, _, _) in itertools.pairwise(sent):
            self.assertEqual(TURN, count)
            self.assertGreaterEqual(began - end, 5.98 * TURN / SPEED)

    def test_a_turn_may_consist_of_many_pieces(self):
        self.make()
        for _ in range(4):
            self.assertEqual(32768, self.courtesy.allowed(32768))
            self.clock.advance(0.001)
            self.courtesy.spend(32768)
        self.assertEqual(0, self.courtesy.allowed(32768))
        self.assertTrue(0.023 < self.courtesy.delay(32768) <= 0.0241)

    def test_time_between_two_sends_is_not_charged(self):
        """The socket may have been full between two sends."""
        self.make()
        self.courtesy.allowed(65536)
        self.courtesy.spend(65536)
        self.clock.advance(10)
        self.courtesy.allowed(TURN)
        self.clock.advance(0.001)
        self.courtesy.spend(TURN)
        self.assertEqual(0, self.courtesy.allowed(TURN))
        self.assertLess(self.courtesy.delay(TURN), 0.0062)

    def test_the_limit_ends_when_others_become_idle(self):
        """After three milliseconds there is no limit, not even for this turn."""
        self.make()
        self.courtesy.allowed(TURN)
        self.clock.advance(1)
        self.courtesy.spend(TURN)
        self.assertEqual(0, self.courtesy.allowed(TURN))
        self.others = False
        self.assertEqual(4 << 20, self.courtesy.allowed(4 << 20))

    def test_sends_while_others_were_idle_are_not_charged(self):
        """A minute of copying gives others no claim to the next minutes."""
        self.others = False
        self.make()
        self.assertGreater(self.bytes(self.run_for(60, 4 << 20)), 55 * SPEED)
        self.others = True
        share = sum(end - began for began, end, _ in self.run_for(1)) / 1
        self.assertTrue(0.133 < share < 0.16, share)

    def test_bytes_sent_without_asking_are_charged(self):
        self.make()
        self.courtesy.spend(2 * TURN)
        self.assertEqual(0, self.courtesy.allowed(1))
        self.assertLessEqual(self.courtesy.delay(1), 0.1)

    def test_bytes_sent_without_asking_are_charged_to_the_rate(self):
        self.others = False
        self.make(MB)
        self.courtesy.spend(2 * MB)
        self.clock.advance(1.9)
        self.assertEqual(0, self.courtesy.allowed(1 << 20))
        self.clock.advance(0.3)
        self.assertGreater(self.courtesy.allowed(1 << 20), 0)

    def near(self, expected, sent):
        self.assertTrue(0.94 < self.bytes(sent) / expected < 1.06, self.bytes(sent) / expected)

    def test_a_rate_is_kept_whether_others_are_busy_or_not(self):
        for self.others in (True, False):
            self.make(10 * MB)
            self.assertEqual(10 * MB, self.courtesy.rate)
            self.near(50 * MB, self.run_for(5))

    def test_the_rate_is_set_changed_and_removed(self):
        for self.others in (True, False):
            free = SPEED / (7 if self.others else 1)
            self.make()
            self.near(2 * free, self.run_for(2))
            self.courtesy.set_rate(10 * MB)
            self.near(50 * MB, self.run_for(5))
            self.courtesy.set_rate(2 * MB)
            self.assertEqual(2 * MB, self.courtesy.rate)
            self.near(10 * MB, self.run_for(5))
            self.courtesy.set_rate(50 * MB)
            self.near(250 * MB, self.run_for(5))
            self.courtesy.set_rate(None)
            self.assertIsNone(self.courtesy.rate)
            self.near(2 * free, self.run_for(2))

    def test_a_new_rate_allows_nothing_at_first(self):
        self.others = False
        self.make()
        self.clock.advance(100)
        self.courtesy.set_rate(MB)
        self.assertEqual(0, self.courtesy.allowed(1 << 20))
        self.assertTrue(0.04 < self.courtesy.delay(1 << 20) < 0.06)

    def test_several_sends_may_follow_one_question(self):
        """Each send counts from the end of the one before."""
        self.make()
        self.courtesy.allowed(TURN)
        for _ in range(4):
            self.clock.advance(0.001)
            self.courtesy.spend(TURN // 4)
        self.assertEqual(0, self.courtesy.allowed(TURN))
        self.assertTrue(0.0239 < self.courtesy.delay(TURN) < 0.0241)

    def test_the_turn_of_others_comes_before_the_rate(self):
        """The delay is that of the current limit; asked again, it may be the other."""
        self.make(100 * MB)
        self.clock.advance(10)
        self.assertEqual(TURN, self.courtesy.allowed(4 << 20))
        self.clock.advance(0.5)
        self.courtesy.spend(TURN)
        self.assertEqual(0, self.courtesy.allowed(1000))
        self.assertTrue(2.99 < self.courtesy.delay(1000) < 3.01)


@implementer(IPushProducer)
class Paused:
    def __init__(self):
        self.calls = []

    def pauseProducing(self):
        self.calls.append("pause")

    def resumeProducing(self):
        self.calls.append("resume")

    def stopProducing(self):
        self.calls.append("stop")


class PacerTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.limiter = RateLimiter(self.clock, MB)
        self.pacer = Pacer(self.clock, self.limiter)
        self.producer = Paused()

    def test_the_producer_is_paused_as_long_as_the_limit_demands(self):
        self.clock.advance(1)
        allowed = self.pacer.allowed(10 * MB, self.producer)
        self.assertGreater(allowed, 0)
        self.assertEqual([], self.producer.calls)
        self.pacer.spend(allowed)
        self.assertEqual(0, self.pacer.allowed(10 * MB, self.producer))
        self.assertEqual(["pause"], self.producer.calls)
        delay = self.limiter.delay(10 * MB)
        self.clock.advance(delay - 0.002)
        self.assertEqual(["pause"], self.producer.calls)
        self.clock.advance(0.003)
        self.assertEqual(["pause", "resume"], self.producer.calls)
        self.assertGreater(self.pacer.allowed(10 * MB, self.producer), 0)

    def test_a_raised_limit_is_applied_soon(self):
        self.limiter.set_rate(1)
        self.assertEqual(0, self.pacer.allowed(10 * MB, self.producer))
        self.limiter.set_rate(100 * MB)
        self.clock.advance(0.25)
        self.assertEqual(["pause", "resume"], self.producer.calls)

    def test_asking_again_while_waiting_adds_no_timer(self):
        for _ in range(3):
            self.assertEqual(0, self.pacer.allowed(10 * MB, self.producer))
        self.assertEqual(1, len(self.clock.getDelayedCalls()))
        self.pacer.stop()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_stopped_pacer_resumes_nothing(self):
        self.assertEqual(0, self.pacer.allowed(10 * MB, self.producer))
        self.pacer.stop()
        self.pacer.stop()
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual(["pause"], self.producer.calls)
