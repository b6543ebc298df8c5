"""Whether a disk is quick: what counts as slow, and for how long."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.server import LatencyMonitor


class LatencyMonitorTests(SynchronousTestCase):
    def setUp(self):
        self.now = 100.0
        self.slept = self.asked = 0
        self.latency = LatencyMonitor(lambda: self.now, self.sleeps)

    def sleeps(self):
        self.asked += 1
        return self.slept

    def call(self, seconds, calls=1, sleeps=1):
        began = self.latency.begin()
        self.now += seconds
        self.slept += sleeps
        self.latency.end(began, calls)

    def make_slow(self):
        self.call(0.1)
        self.call(0.1)
        self.assertFalse(self.latency.quick)

    def slow_for(self):
        """How long it is left alone."""
        began = self.now
        while not self.latency.quick:
            self.now += 0.25
        return self.now - began

    def test_quick_calls_need_no_system_call(self):
        for seconds, calls in ((0, 1), (0.0049, 1), (0.009, 2), (0.0199, 100)):
            self.call(seconds, calls)
            self.assertTrue(self.latency.quick)
        self.assertEqual(0, self.asked)

    def test_a_single_slow_call_does_not_make_the_disk_slow(self):
        self.call(0.1)
        self.assertTrue(self.latency.quick)
        self.call(0.0001)
        self.assertTrue(self.latency.quick)
        self.call(0.1)
        self.assertFalse(self.latency.quick)

    def test_one_slow_call_in_a_batch_counts(self):
        for calls in (1, 4, 1000):
            self.setUp()
            self.call(0.021, calls)
            self.call(0.021, calls)
            self.assertFalse(self.latency.quick, calls)

    def test_a_call_that_waited_for_the_CPU_is_not_slow(self):
        for _ in range(5):
            self.call(0.1, sleeps=0)
            self.assertTrue(self.latency.quick)

    def test_calls_beside_our_own_threads_have_a_higher_limit(self):
        self.latency.threads_busy = True
        for _ in range(5):
            self.call(0.049)
            self.assertTrue(self.latency.quick)
        self.call(0.051)
        self.assertTrue(self.latency.quick)
        self.call(0.051)
        self.assertFalse(self.latency.quick)

    def test_the_time_of_the_last_call_is_kept(self):
        self.call(0.001)
        self.assertEqual(self.now, self.latency.last_used)
        self.now += 1
        self.latency.touch()
        self.assertEqual(self.now, self.latency.last_used)

    def test_an_isolated_slow_call_is_forgotten_after_a_while(self):
        self.call(0.1)
        self.now += 12
        self.call(0.1)
        self.assertTrue(self.latency.quick)

    def test_a_slow_disk_is_used_in_threads_for_one_second(self):
        self.make_slow()
        self.assertEqual(1.0, self.slow_for())

    def test_a_slow_disk_is_used_in_threads_for_longer_each_time(self):
        self.make_slow()
        found = [self.slow_for()]
        for _ in range(7):
            self.call(0.1)
            found.append(self.slow_for())
        self.assertEqual([1, 2, 4, 8, 16, 32, 32, 32], found)

    def test_the_time_is_short_again_after_a_long_quiet_time(self):
        self.make_slow()
        self.slow_for()
        self.call(0.1)
        self.assertEqual(2.0, self.slow_for())
        self.now += 40
        self.make_slow()
        self.assertEqual(1.0, self.slow_for())

    def test_the_real_clocks_report_a_quick_disk(self):
        latency = LatencyMonitor()
        self.assertTrue(latency.quick)
        latency.end(latency.begin())
        self.assertTrue(latency.quick)
