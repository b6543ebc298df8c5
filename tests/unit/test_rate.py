"""The limit to the rate."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.transport import RateLimiter

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


class RateTests(SynchronousTestCase):
    def near(self, ratio, tolerance):
        self.assertTrue(abs(ratio - 1) <= tolerance, f"{ratio} is not within {tolerance} of 1")

    def test_mean(self):
        for rate in (100_000, MB, 10 * MB, 100 * MB, 1000 * MB):
            for wanted in (rate // 1000, rate // 50, 1 << 20, 4 << 20):
                clock = Clock()
                sent = run(clock, RateLimiter(clock, rate), 10, wanted)
                self.near(total(sent, 0, 10) / (10 * rate), 0.05)

    def test_busy_reactor(self):
        """Looked at only every 100 ms, the rate is still reached, and not passed."""
        clock = Clock()
        sent = run(clock, RateLimiter(clock, 50 * MB), 10, 8 << 20, tick=0.1)
        self.near(total(sent) / (500 * MB), 0.05)

    def test_no_bursts(self):
        clock = Clock()
        rate = 10 * MB
        limiter = RateLimiter(clock, rate)
        sent = run(clock, limiter, 5)
        clock.advance(100)  # idle: that must not be saved up
        sent += run(clock, limiter, 5)
        for start, _ in sent:
            self.assertLessEqual(total(sent, start, start + 1), 1.3 * rate)
            self.assertLessEqual(total(sent, start, start + 0.1), 0.4 * rate)

    def test_nothing_at_first(self):
        clock = Clock()
        self.assertEqual(0, RateLimiter(clock, MB).allowed(1 << 20))

    def test_changed_live(self):
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

    def test_another_rate_counts_from_now_only(self):
        clock = Clock()
        limiter = RateLimiter(clock, MB)
        clock.advance(0.2)
        limiter.set_rate(1000 * MB)
        self.assertEqual(0, limiter.allowed(10 * MB))
        self.assertEqual(200_000, limiter.allowed(200_000))

    def test_delay_is_enough(self):
        clock = Clock()
        limiter = RateLimiter(clock, 12345)
        for _ in range(100):
            limiter.spend(1000)
            clock.advance(limiter.delay(3000))
            self.assertGreater(limiter.allowed(3000), 0)

    def test_what_was_overspent_is_paid_back(self):
        clock = Clock()
        limiter = RateLimiter(clock, MB)
        limiter.spend(2 * MB)
        clock.advance(1.9)
        self.assertEqual(0, limiter.allowed(1 << 20))
        clock.advance(0.3)
        self.assertGreater(limiter.allowed(1 << 20), 0)

    @given(st.floats(1, 1e10), st.integers(1, 1 << 26), st.floats(0, 100))
    def test_never_more_than_wanted(self, rate, wanted, seconds):
        clock = Clock()
        limiter = RateLimiter(clock, rate)
        clock.advance(seconds)
        allowed = limiter.allowed(wanted)
        self.assertIsInstance(allowed, int)
        self.assertTrue(0 <= allowed <= wanted)
