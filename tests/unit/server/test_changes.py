"""Changes by clients are reported before and after they happen, and can be throttled."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.server import Changes, Throttle

MB = 1_000_000


class ChangesTests(SynchronousTestCase):
    def setUp(self):
        self.changes = Changes()
        self.told = []

    def watch(self):
        self.changes.mark = lambda *change: self.told.append(change)

    def test_without_a_listener_the_work_is_passed_through(self):
        working = Deferred()
        self.changes.notify(1, 2)
        self.assertIs(working, self.changes.around(1, 2, working))
        working.callback("done")
        self.assertEqual("done", self.successResultOf(working))

    def test_a_change_is_reported_to_the_listener(self):
        self.watch()
        self.changes.notify(1, 2)
        self.assertEqual([(1, 2, True)], self.told)
        self.changes.notify(1, 2, data=False)
        self.assertEqual([(1, 2, False)], self.told[1:])

    def test_a_change_in_a_thread_is_reported_before_and_after_the_work(self):
        """The second report comes before anybody else learns that the work is done."""
        self.watch()
        working = Deferred()
        around = self.changes.around(4096, 512, working)
        self.assertEqual([(4096, 512, True)], self.told)
        around.addCallback(self.told.append)
        working.callback("done")
        self.assertEqual([(4096, 512, True), (4096, 512, True), "done"], self.told)

    def test_zeroes_in_a_thread_are_reported_as_no_data(self):
        self.watch()
        working = Deferred()
        self.changes.around(4096, 512, working, data=False)
        working.callback(None)
        self.assertEqual([(4096, 512, False)] * 2, self.told)

    def test_work_that_fails_is_reported_as_a_change(self):
        """Some of the range may have been changed."""
        self.watch()
        working = Deferred()
        around = self.changes.around(4096, 512, working)
        working.errback(OSError(5, "broken"))
        self.assertEqual([(4096, 512, True)] * 2, self.told)
        self.failureResultOf(around, OSError)

    def test_work_that_is_cancelled_is_reported_as_a_change(self):
        self.watch()
        around = self.changes.around(4096, 512, Deferred())
        around.cancel()
        self.assertEqual([(4096, 512, True)] * 2, self.told)
        self.failureResultOf(around)

    def test_work_that_is_done_already_is_reported_twice(self):
        self.watch()
        working = Deferred()
        working.callback(None)
        self.changes.around(4096, 512, working)
        self.assertEqual([(4096, 512, True)] * 2, self.told)

    def test_a_listener_that_comes_during_the_work_hears_of_its_end(self):
        """A mirror may begin while a thread is at work."""
        working = Deferred()
        self.changes.around(4096, 512, working)
        self.watch()
        working.callback(None)
        self.assertEqual([(4096, 512, True)], self.told)

    def test_a_listener_that_leaves_during_the_work_hears_no_more(self):
        self.watch()
        working = Deferred()
        self.changes.around(4096, 512, working)
        self.changes.mark = None
        working.callback(None)
        self.assertEqual([(4096, 512, True)], self.told)

    def test_a_new_throttle_releases_those_who_waited_for_the_old_one(self):
        clock = Clock()
        dirtied = [0]
        first = Throttle(clock, MB, lambda: dirtied[0])
        self.changes.slow_down(first)
        self.assertIs(first, self.changes.throttle)
        dirtied[0] = MB
        turn = first.turn()
        second = Throttle(clock, 2 * MB, lambda: dirtied[0])
        self.changes.slow_down(second)
        self.successResultOf(turn)
        self.assertIs(second, self.changes.throttle)
        self.changes.slow_down(None)
        self.assertIsNone(self.changes.throttle)
        self.assertEqual([], clock.getDelayedCalls())


class ThrottleTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.dirtied = 7 * MB  # before it began

    def make(self, rate=10 * MB):
        self.throttle = Throttle(self.clock, rate, lambda: self.dirtied)
        return self.throttle

    def test_a_change_goes_ahead_at_once_at_first(self):
        throttle = self.make()
        self.assertIsNone(throttle.turn())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_bytes_that_were_dirty_before_do_not_count(self):
        throttle = self.make()
        self.assertIsNone(throttle.turn())
        self.dirtied += 1
        self.assertIsNotNone(throttle.turn())

    def test_a_change_waits_as_long_as_the_rate_demands(self):
        throttle = self.make()
        self.dirtied += 5 * MB
        turn = throttle.turn()
        self.clock.advance(0.49)
        self.assertNoResult(turn)
        self.clock.advance(0.02)
        self.successResultOf(turn)
        self.assertIsNone(throttle.turn(), "and then others may too")

    def test_no_change_waits_longer_than_ten_seconds(self):
        """A waiting client must not take the server for dead; the excess is forgiven."""
        throttle = self.make(MB)
        self.dirtied += 500 * MB
        turn = throttle.turn()
        self.clock.advance(9.9)
        self.assertNoResult(turn)
        self.clock.advance(0.2)
        self.successResultOf(turn)
        self.assertIsNone(throttle.turn())
        self.dirtied += MB
        self.assertIsNotNone(throttle.turn())

    def test_a_change_that_makes_nothing_dirty_is_not_delayed(self):
        """The same 64 KiB written again and again are sent once."""
        throttle = self.make(1)
        for _ in range(1000):
            self.assertIsNone(throttle.turn())

    def test_an_unused_share_is_not_saved_up(self):
        throttle = self.make()
        self.clock.advance(100)
        self.assertIsNone(throttle.turn())
        self.dirtied += MB  # a tenth of a second's worth
        self.assertIsNone(throttle.turn())
        self.dirtied += 1
        self.assertIsNotNone(throttle.turn())

    def test_a_short_pause_is_credited(self):
        throttle = self.make()
        self.clock.advance(0.05)
        self.dirtied += MB // 2
        self.assertIsNone(throttle.turn())
        self.dirtied += 1000
        self.assertIsNotNone(throttle.turn())

    def run_for(self, throttle, seconds, clients=1, write=65536):
        """Each of the clients writes, and waits for its turn; bytes that became dirty."""
        before, end = self.dirtied, self.clock.seconds() + seconds
        waiting = [None] * clients
        while self.clock.seconds() < end:
            for index, turn in enumerate(waiting):
                if turn is not None and not turn.called:
                    continue
                # It may be made: the next one is asked for behind it.
                self.dirtied += write
                waiting[index] = throttle.turn()
            if all(turn is not None and not turn.called for turn in waiting):
                self.clock.advance(0.001)
        throttle.lift()
        return self.dirtied - before

    def test_the_rate_is_kept_over_time(self):
        for rate in (MB, 10 * MB, 100 * MB):
            for clients in (1, 4):
                dirtied = self.run_for(self.make(rate), 10, clients)
                self.assertTrue(0.9 < dirtied / (10 * rate) < 1.1, (rate, clients, dirtied))

    def test_large_writes_are_slowed_too(self):
        dirtied = self.run_for(self.make(10 * MB), 20, write=4 << 20)
        self.assertTrue(0.85 < dirtied / (200 * MB) < 1.15, dirtied)

    def test_lifting_the_throttle_releases_changes_in_their_order(self):
        throttle = self.make()
        self.dirtied += 5 * MB
        turns = [throttle.turn(), throttle.turn()]
        order = []
        for number, turn in enumerate(turns):
            turn.addCallback(lambda _, number=number: order.append(number))
        throttle.lift()
        self.assertEqual([0, 1], order)
        self.assertEqual([], self.clock.getDelayedCalls())
        throttle.lift()

    def test_a_released_change_may_ask_for_its_next_turn_at_once(self):
        throttle = self.make()
        self.dirtied += 5 * MB
        later = []
        throttle.turn().addCallback(lambda _: later.append(throttle.turn()))
        throttle.lift()
        self.assertNoResult(later[0])
        throttle.lift()
        self.successResultOf(later[0])
        self.assertEqual([], self.clock.getDelayedCalls())
