"""Whether a mirror converges: each rule, with made-up numbers (mirror/convergence.py)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.mirror.convergence import Convergence, Next
from blockmig.storage import DirtyMap, TouchedMap
from tests.unit.migration.mirror.test_writing import BLOCK, anywhere, in_turn

MB = 1_000_000
MIB = 1 << 20


def measured(rate=100 * MB, dirty_rate=0.0, flush=0.0, longest_pause=0.5, seconds=20):
    """A Convergence that has seen data sent and dirtied at these rates for a while."""
    convergence = Convergence(longest_pause)
    for tenths in range(seconds * 10 + 1):
        now = tenths / 10
        convergence.sample(now, int(now * rate), int(now * dirty_rate))
    convergence.flush = flush
    return convergence


class Case(SynchronousTestCase):
    def near(self, expected, found, tolerance=0.05):
        self.assertTrue(abs(found - expected) <= tolerance * abs(expected), (expected, found))


class MeasuringTests(Case):
    def test_the_rates_are_measured(self):
        convergence = measured(100 * MB, 30 * MB)
        self.near(100 * MB, convergence.rate)
        self.near(30 * MB, convergence.dirty_rate)

    def test_slow_rates_are_measured_too(self):
        """On a slow line or with a limit, the estimate is needed most."""
        for rate in (5 * MB, MB, MB / 10):
            convergence = measured(rate, rate / 10)
            self.near(rate, convergence.rate, 0.1)
            self.near(rate / 10, convergence.dirty_rate)
            self.near(1.0, convergence.pause(int(rate)), 0.1)

    def test_the_rate_counts_only_while_there_is_something_to_send(self):
        """Half of the time there is nothing to send; the rate is that of the other half."""
        convergence = Convergence(0.5)
        sent = 0
        for number in range(4000):
            sending = number // 7 % 2 == 0
            sent += MB if sending else 0
            convergence.sample(number / 100, sent, 0, sending)
        self.near(100 * MB, convergence.rate)

    def test_nothing_is_known_at_first(self):
        convergence = Convergence(0.5)
        self.assertEqual(
            (0, 0, 0, 0),
            (convergence.rate, convergence.dirty_rate, convergence.flush, convergence.passes),
        )
        convergence.sample(0, 50 * MB, 50 * MB)
        self.assertEqual((0, 0), (convergence.rate, convergence.dirty_rate), "what was before")

    def test_a_changed_rate_is_known_after_some_seconds(self):
        convergence = measured(100 * MB, 0)
        for tenths in range(1, 81):
            now = tenths / 10
            convergence.sample(20 + now, int(2000 * MB + now * 20 * MB), int(now * 10 * MB))
        self.near(20 * MB, convergence.rate, 0.2)
        self.near(10 * MB, convergence.dirty_rate, 0.2)

    def test_a_short_stall_changes_the_rate_little(self):
        convergence = measured(100 * MB, 10 * MB)
        convergence.sample(20.1, 2000 * MB + 2 * MIB, 300 * MB)
        self.near(100 * MB, convergence.rate, 0.15)

    def test_frequent_samples_do_not_distort_the_rate(self):
        convergence = Convergence(0.5)
        for milliseconds in range(5000):
            convergence.sample(milliseconds / 1000, milliseconds * 100_000, 0)
        self.near(100 * MB, convergence.rate)

    def test_a_trickle_does_not_change_the_rate(self):
        """Between two passes little is sent because there is little to send."""
        convergence = measured(100 * MB, 10 * MB)
        for tenths in range(1, 51):
            convergence.sample(20 + tenths / 10, 2000 * MB + tenths * 4096, 200 * MB)
        self.near(100 * MB, convergence.rate)
        self.assertLess(convergence.dirty_rate, 0.1 * MB)

    def test_the_pause_is_the_rest_divided_by_the_rate_plus_the_flush(self):
        convergence = measured(100 * MB, flush=0.1)
        self.near(0.1, convergence.pause(0))
        self.near(1.1, convergence.pause(100 * MB))
        self.near(1.0, Convergence(0.5).pause(16 * MIB))


class DecidingTests(Case):
    def decide(self, convergence, *lefts, now=100.0):
        """What follows from each pass in turn."""
        return [convergence.pass_ended(now, left) for left in lefts]

    def test_clients_are_held_when_nothing_is_left(self):
        convergence = measured()
        self.assertEqual([Next.HOLD], self.decide(convergence, 0))
        self.assertEqual(1, convergence.passes)

    def test_clients_are_held_within_three_quarters_of_the_longest_pause(self):
        """A slightly wrong estimate must not cost a second hold."""
        for longest_pause in (0.5, 2.0, 10.0):
            most = int(0.75 * longest_pause * 100 * MB)
            # Clients as fast as that leave nothing to be gained by another pass.
            convergence = measured(dirty_rate=60 * MB, longest_pause=longest_pause)
            self.assertEqual([Next.HOLD], self.decide(convergence, int(0.99 * most)))
            convergence = measured(dirty_rate=60 * MB, longest_pause=longest_pause)
            self.assertEqual([Next.AGAIN], self.decide(convergence, int(1.01 * most)))

    def test_the_flush_counts_towards_the_pause(self):
        for flush, left, expected in (
            (0.36, 4096, Next.HOLD),
            (0.38, 4096, Next.AGAIN),
            (0.3, 7 * MB, Next.HOLD),
            (0.3, 8 * MB, Next.AGAIN),
        ):
            convergence = measured(dirty_rate=60 * MB, flush=flush)
            self.assertEqual([expected], self.decide(convergence, left), (flush, left))

    def test_clients_are_held_when_only_the_flush_is_slow(self):
        """Another pass would have nothing to send."""
        for flush in (0.4, 5.0):
            self.assertEqual([Next.HOLD], self.decide(measured(flush=flush), 0))

    def test_another_pass_is_made_where_it_halves_the_pause(self):
        """0.3 s now, and 0.03 s after another pass, since clients dirty a tenth of the rate."""
        convergence = measured(dirty_rate=10 * MB)
        self.assertEqual([Next.AGAIN, Next.HOLD], self.decide(convergence, 30 * MB, 3 * MB))

    def test_no_pass_is_made_where_it_does_not_halve_the_pause(self):
        convergence = measured(dirty_rate=51 * MB)
        self.assertEqual([Next.HOLD], self.decide(convergence, 30 * MB))
        convergence = measured(dirty_rate=49 * MB)
        self.assertEqual([Next.AGAIN], self.decide(convergence, 30 * MB))

    def test_no_pass_is_made_for_a_pause_under_50_ms(self):
        convergence = measured(dirty_rate=1 * MB)
        self.assertEqual([Next.HOLD], self.decide(convergence, int(4.9 * MB)))
        convergence = measured(dirty_rate=1 * MB)
        self.assertEqual([Next.AGAIN], self.decide(convergence, int(5.1 * MB)))

    def test_no_pass_is_made_to_shorten_the_flush(self):
        convergence = measured(dirty_rate=1 * MB, flush=0.3)
        self.assertEqual([Next.HOLD], self.decide(convergence, 4 * MB))
        convergence = measured(dirty_rate=0, flush=0.04)
        self.assertEqual([Next.HOLD], self.decide(convergence, int(4.9 * MB)))

    def test_no_pass_is_made_after_one_that_gained_nothing(self):
        convergence = measured(dirty_rate=1 * MB)
        self.assertEqual([Next.AGAIN, Next.HOLD], self.decide(convergence, 30 * MB, 31 * MB))

    def test_passes_continue_while_each_leaves_less(self):
        """Each pass leaves less than the one before, until little enough is left."""
        convergence = measured(dirty_rate=52 * MB)
        lefts = [3200 * MB // 2**number for number in range(8)]
        self.assertEqual([Next.AGAIN] * 7 + [Next.HOLD], self.decide(convergence, *lefts))

    def test_clients_that_write_nearly_as_fast_prevent_convergence(self):
        for dirty_rate, expected in ((79 * MB, Next.AGAIN), (81 * MB, Next.NOT_CONVERGING)):
            convergence = measured(dirty_rate=dirty_rate)
            decided = self.decide(convergence, 4000 * MB, 3000 * MB)
            self.assertEqual([Next.AGAIN, expected], decided, dirty_rate)

    def test_two_passes_that_leave_as_much_prevent_convergence(self):
        """Whatever the measured rates; twice in a row, since once may be chance."""
        for part, expected in ((0.79, Next.AGAIN), (0.81, Next.NOT_CONVERGING)):
            convergence = measured(dirty_rate=1 * MB)
            lefts = [int(1000 * MB * part**number) for number in range(3)]
            decided = [Next.AGAIN, Next.AGAIN, expected]
            self.assertEqual(decided, self.decide(convergence, *lefts), part)
        convergence = measured(dirty_rate=1 * MB)
        lefts = [1000 * MB, 900 * MB, 500 * MB, 450 * MB, 420 * MB]
        decided = [Next.AGAIN] * 4 + [Next.NOT_CONVERGING]
        self.assertEqual(decided, self.decide(convergence, *lefts))

    def test_the_first_pass_says_nothing_of_convergence(self):
        """The whole disk was dirty, which says nothing about the clients."""
        convergence = measured(dirty_rate=500 * MB)
        self.assertEqual([Next.AGAIN], self.decide(convergence, 10**12))

    def test_a_mirror_converges_once_clients_rest(self):
        convergence = measured(dirty_rate=200 * MB)
        decided = self.decide(convergence, 1000 * MB, 1000 * MB, 10 * MB, 0)
        self.assertEqual([Next.AGAIN, Next.NOT_CONVERGING, Next.HOLD, Next.HOLD], decided)

    @given(
        st.floats(0, 10_000 * MB),
        st.floats(0, 10_000 * MB),
        st.floats(0, 5),
        st.floats(0.001, 60),
        st.lists(st.integers(0, 1 << 40), min_size=1, max_size=20),
    )
    def test_clients_are_never_expected_to_wait_longer_than_allowed(
        self, rate, dirty_rate, flush, longest, lefts
    ):
        convergence = measured(rate, dirty_rate, flush, longest, seconds=1)
        for number, left in enumerate(lefts):
            if convergence.pass_ended(number, left) == Next.HOLD and left:
                # Where nothing is gained by waiting, the whole pause may be needed.
                share = 1.0 if convergence.converging is False else 0.75
                self.assertLessEqual(convergence.pause(left), share * longest)

    @given(
        st.floats(10 * MB, 10_000 * MB),
        st.floats(0, 0.6),
        st.floats(0, 0.1),
        st.integers(1 << 20, 1 << 44),
    )
    def test_a_mirror_whose_clients_are_slower_converges(self, rate, part, flush, size):
        """Clients dirty at most a part of what is sent in the same time."""
        convergence = measured(rate, part * rate, flush, seconds=5)
        left, now = size, 5.0
        for _ in range(100):
            now += left / rate + flush
            left = min(size, int(part * rate * (left / rate + flush)))
            if convergence.pass_ended(now, left) == Next.HOLD:
                return
        self.fail("never")


class HoldFailedTests(Case):
    def test_the_next_hold_comes_later_each_time(self):
        convergence = measured()
        for least in (1, 2, 4, 8, 16, 32, 60, 60, 60):
            convergence.hold_failed(1000, 0, 0.5)
            self.assertEqual(Next.AGAIN, convergence.pass_ended(1000 + least - 0.01, 0))
            self.assertEqual(Next.HOLD, convergence.pass_ended(1000 + least, 0))

    def test_the_rate_of_a_failed_hold_is_believed(self):
        """10 MB were sent in half a second, though 100 MB/s were expected."""
        convergence = measured(dirty_rate=60 * MB)
        self.assertEqual(Next.HOLD, convergence.pass_ended(100, 30 * MB))
        convergence.hold_failed(100, 10 * MB, 0.5)
        self.near(1.5, convergence.pause(30 * MB))
        self.assertNotEqual(Next.HOLD, convergence.pass_ended(200, 30 * MB))
        self.assertEqual(Next.HOLD, convergence.pass_ended(200, 7 * MB))

    def test_a_failed_hold_that_sent_little_does_not_change_the_rate(self):
        """The time may have been spent waiting for work under way, or for the flush."""
        convergence = measured()
        before = convergence.pause(30 * MB)
        for sent, seconds in ((0, 0.5), (0, 0.0), (1000, 0.0)):
            convergence.hold_failed(100, sent, seconds)
            self.assertEqual(before, convergence.pause(30 * MB))

    def test_the_rate_of_a_failed_hold_is_believed_less_with_each_pass(self):
        """It may have been chance: a mirror must not wait for ever because of one hold."""
        convergence = measured(dirty_rate=10 * MB)
        convergence.hold_failed(100, 1000, 0.5)
        decided = [convergence.pass_ended(200 + number, 30 * MB) for number in range(40)]
        self.assertNotEqual(Next.HOLD, decided[0])
        self.assertIn(Next.HOLD, decided)
        self.near(0.3, convergence.pause(30 * MB))

    def test_the_time_of_the_last_steps_counts_towards_the_pause(self):
        """They are part of each pause, like the flush; where nothing is left, clients are held
        anyway.
        """
        convergence = measured()
        before = convergence.pause(MB)
        convergence.hold_failed(100, 0, 0.0, 0.4)
        self.near(before + 0.4, convergence.pause(MB))
        self.assertNotEqual(Next.HOLD, convergence.pass_ended(200, MB))
        self.assertEqual(Next.HOLD, convergence.pass_ended(200, 0))

    def test_the_longest_time_of_the_last_steps_counts(self):
        """A hold that failed for another reason does not shorten the known time."""
        convergence = measured()
        for steps in (0.3, 0.4, 0.0, 0.2):
            convergence.hold_failed(100, 0, 0.0, steps)
        self.assertEqual(0.4, convergence.steps)

    def test_the_time_of_the_last_steps_is_believed_less_with_each_pass(self):
        convergence = measured()
        convergence.hold_failed(100, 0, 0.0, 0.4)
        # Not while the break lasts: no hold was thought of, and nothing was doubted.
        self.assertEqual(Next.AGAIN, convergence.pass_ended(100.5, MB))
        self.assertEqual(0.4, convergence.steps)
        self.assertEqual(Next.AGAIN, convergence.pass_ended(200, MB))
        self.assertEqual(0.2, convergence.steps)
        self.assertEqual(Next.HOLD, convergence.pass_ended(200, MB))

    def test_no_pass_is_made_to_shorten_the_last_steps(self):
        convergence = measured()
        convergence.hold_failed(100, 0, 0.0, 0.3)
        self.assertEqual(Next.HOLD, convergence.pass_ended(200, 100))


class Passes:
    """A mirror of a disk, and clients that write to it, in steps of 0.1 s."""

    def __init__(self, size, rate, next_block=None, longest_pause=0.5, **measured):
        self.dirty = DirtyMap(size)
        self.dirty.mark_all()
        self.touched = TouchedMap(size)
        self.next_block = next_block or anywhere(size // BLOCK)
        self.last = size // BLOCK
        self.convergence = Convergence(longest_pause, size)
        for name, value in measured.items():
            setattr(self.convergence, name, value)
        self.now, self.rate = 0.0, rate
        self.position = self.sent = self.allowed = 0
        self.decided = []
        self.sample()

    def sample(self):
        touched, left = self.touched, self.dirty.bytes
        self.convergence.sample(
            self.now, self.sent, touched.written, touched=touched.bytes, left=left
        )

    def run(self, seconds, a_second=0):
        """Clients write C{a_second} blocks a second; stops at a hold."""
        for _ in range(round(seconds * 10)):
            self.step(a_second)
            if self.decided and self.decided[-1][1] == Next.HOLD:
                break
        return self

    def step(self, a_second):
        self.now += 0.1
        self.allowed += self.rate // 10
        while self.sent < self.allowed and (run := self.dirty.take(self.position, BLOCK)):
            self.position = run[1]
            self.sent += BLOCK
        ended = self.sent < self.allowed
        for _ in range(a_second // 10):
            offset = self.next_block() % self.last * BLOCK
            self.dirty.mark(offset, 1)
            self.touched.touch(offset, 1)
        self.sample()
        if (decided := self.convergence.judge(self.now)) is not None:
            self.decide(decided)
            self.convergence.next_window(self.now)
            self.touched.restart()
        if ended:
            self.allowed, self.position = self.sent, 0
            self.decide(self.convergence.pass_ended(self.now, self.dirty.bytes))

    def decide(self, decided):
        self.decided.append((round(self.now, 1), decided))

    def when(self, wanted):
        """When that was decided."""
        return [time for time, decided in self.decided if decided == wanted]


class WithinAPassTests(Case):
    """A pass over 1 GB takes 100 s at 10 MB/s."""

    SIZE = 1_000 * MB

    def test_clients_that_write_everywhere_are_noticed_after_an_eighth_of_a_pass(self):
        """Though everything is dirty, so that little becomes so for the first time."""
        passes = Passes(self.SIZE, 10 * MB).run(13, 2000)
        self.assertEqual([], passes.when(Next.NOT_CONVERGING))
        self.assertIsNone(passes.convergence.converging, "nobody knows yet")
        self.assertIsNone(passes.convergence.forecast(passes.dirty.bytes))
        passes.run(3, 2000)
        self.assertEqual(1, len(passes.when(Next.NOT_CONVERGING)), passes.decided)
        self.assertIs(False, passes.convergence.converging)
        self.assertIsNone(passes.convergence.forecast(passes.dirty.bytes))
        self.assertGreaterEqual(passes.convergence.decisive_rate, 0.8 * passes.convergence.rate)
        self.assertGreaterEqual(passes.convergence.dirty_rate, 0.8 * passes.convergence.rate)
        passes.run(100, 2000)
        self.assertIs(False, passes.convergence.converging, "nor in later passes")

    def test_a_short_pass_is_given_three_seconds(self):
        passes = Passes(80 * MB, 10 * MB).run(8, 2000)
        (first, *_) = passes.when(Next.NOT_CONVERGING)
        self.assertTrue(3 <= first <= 3.3, passes.decided)

    def test_clients_that_write_in_few_places_do_not_prevent_convergence(self):
        """A hundred times as fast as it is sent, but in a hundredth of the disk."""
        passes = Passes(self.SIZE, 40 * MB, anywhere(self.SIZE // BLOCK // 100)).run(60, 20_000)
        self.assertEqual([], passes.when(Next.NOT_CONVERGING))
        self.assertEqual(1, len(passes.when(Next.HOLD)), passes.decided)

    def test_where_the_few_places_are_too_much_for_a_hold_they_do(self):
        """3 % of the disk take 3 s, each time."""
        passes = Passes(self.SIZE, 10 * MB, anywhere(self.SIZE // BLOCK * 3 // 100))
        passes.run(15, 20_000)
        self.assertEqual(1, len(passes.when(Next.NOT_CONVERGING)), passes.decided)

    def test_a_burst_is_no_reason(self):
        """All of the disk within a few seconds, at the start or later."""
        for quiet in (0, 20, 50):
            passes = Passes(self.SIZE, 10 * MB, in_turn()).run(quiet)
            passes.run(5, self.SIZE // BLOCK // 5).run(60, 10)
            self.assertEqual([], passes.when(Next.NOT_CONVERGING), quiet)
            self.assertIs(True, passes.convergence.converging, quiet)

    def test_a_mirror_converges_again_once_clients_rest(self):
        passes = Passes(self.SIZE, 10 * MB).run(15, 2000)
        self.assertIs(False, passes.convergence.converging)
        passes.run(5)
        self.assertIs(True, passes.convergence.converging)

    def test_slower_clients_are_no_reason(self):
        """In new places all the time, at 7 MB/s."""
        passes = Passes(self.SIZE, 10 * MB, in_turn()).run(400, 110)
        self.assertEqual([], passes.when(Next.NOT_CONVERGING))
        self.near(110 * BLOCK, passes.convergence.dirty_rate)

    def test_the_dirty_rate_is_that_of_the_pass_for_what_is_left(self):
        """A tenth of the disk is written to all the time: 100 MB in a pass of 100 s."""
        passes = Passes(self.SIZE, 10 * MB, anywhere(self.SIZE // BLOCK // 10), 20)
        passes.run(15, 2000)
        self.near(MB, passes.convergence.dirty_rate, 0.25)

    def test_clients_that_are_not_too_fast_are_never_said_to_be(self):
        """What is left is always little enough, whatever they write."""
        passes = Passes(self.SIZE, 100 * MB, anywhere(300)).run(60, 20_000)
        self.assertEqual([], passes.when(Next.NOT_CONVERGING))
        self.assertEqual(1, len(passes.when(Next.HOLD)))


class TriedHoldTests(Case):
    """What is sent beside clients is slow because they come first."""

    def test_a_hold_is_tried_where_waiting_gains_nothing(self):
        """250 MB left, that could be sent at 1 GB/s: before it is said not to converge."""
        passes = Passes(250 * MB, 20 * MB, unhindered_rate=1000 * MB).run(10, 5000)
        ((time, decided),) = passes.decided
        self.assertEqual(Next.HOLD, decided)
        self.assertTrue(3 <= time <= 3.3, time)

    def test_no_hold_is_tried_for_too_much(self):
        passes = Passes(2000 * MB, 20 * MB, unhindered_rate=1000 * MB).run(20, 10_000)
        self.assertEqual([Next.NOT_CONVERGING], [decided for _, decided in passes.decided])

    def test_no_hold_is_tried_against_the_users_limit(self):
        passes = Passes(250 * MB, 20 * MB, unhindered_rate=1000 * MB, max_rate=20 * MB)
        passes.run(10, 5000)
        self.assertEqual([], passes.when(Next.HOLD))

    def test_a_hold_is_tried_where_passes_leave_as_much_each_time(self):
        """20 MB at 14 MB/s, which would take 50 ms without clients."""
        convergence = measured(14 * MB, 2 * MB)
        convergence.unhindered_rate = 400 * MB
        decided = [convergence.pass_ended(100 + number, 20 * MB) for number in range(3)]
        self.assertEqual([Next.AGAIN, Next.AGAIN, Next.HOLD], decided)

    def test_a_failed_hold_shows_what_is_possible(self):
        """With luck twice as much; it is doubted more and more."""
        for sent, doubts in ((130, 0), (105, 1), (55, 2), (28, 3)):
            passes = Passes(250 * MB, 20 * MB, unhindered_rate=5000 * MB).run(10, 5000)
            passes.convergence.hold_failed(passes.now, sent * MB, 0.5)
            passes.decided.clear()
            passes.run(20, 5000)
            expected = [Next.NOT_CONVERGING] * doubts + [Next.HOLD]
            self.assertEqual(expected, [decided for _, decided in passes.decided], sent)

    def test_it_is_tried_again_later_each_time(self):
        passes = Passes(250 * MB, 20 * MB, unhindered_rate=5000 * MB).run(10, 5000)
        for least in (1, 2, 4, 8, 16):
            failed = passes.now
            passes.convergence.hold_failed(failed, 240 * MB, 0.5)
            passes.decided.clear()
            passes.run(30, 5000)
            (tried,) = passes.when(Next.HOLD)
            self.assertTrue(least - 0.1 < tried - failed < least + 0.3, (least, tried - failed))

    def test_the_users_limit_counts_in_every_estimate(self):
        convergence = measured(100 * MB)
        convergence.max_rate = 10 * MB
        self.near(2.0, convergence.pause(20 * MB))
        self.assertEqual(Next.AGAIN, convergence.pass_ended(100, 20 * MB))
        convergence.max_rate = None
        self.near(0.2, convergence.pause(20 * MB))


class ForecastTests(Case):
    def forecast(self, left, **keywords):
        return measured(**keywords).forecast(left)

    def test_nothing_is_forecast_before_anything_was_measured(self):
        self.assertIsNone(Convergence(0.5).forecast(MB))

    def test_the_end_of_an_idle_disk_is_what_is_left_by_the_rate(self):
        seconds, pause = self.forecast(5000 * MB, flush=0.1)
        self.near(50, seconds)
        self.near(0.1, pause)

    def test_later_passes_are_a_part_of_the_forecast(self):
        """1000 MB at 100 MB/s, then 500 MB, then 250 ...: 20 s."""
        seconds, pause = self.forecast(1000 * MB, dirty_rate=50 * MB)
        self.near(20, seconds, 0.1)
        self.assertTrue(0.03 < pause < 0.38, pause)

    def test_the_pause_is_between_what_was_seen_and_what_is_possible(self):
        convergence = measured(dirty_rate=60 * MB)
        _, usual = convergence.forecast(30 * MB)
        self.near(0.3, usual)
        convergence.unhindered_rate = 10_000 * MB
        _, pause = convergence.forecast(30 * MB)
        self.near(0.03, pause)

    def test_the_steps_after_the_last_flush_take_three_times_as_long_as_the_first(self):
        """Unless a hold has shown how long they take."""
        convergence = Convergence(0.5, took=0.04)
        for tenths in range(20):
            convergence.sample(tenths / 10, tenths * MB, 0)
        self.near(0.12, convergence.forecast(0)[1])
        convergence.hold_failed(2, 0, 0.0, 0.3)
        self.near(0.3, convergence.forecast(0)[1])

    def test_the_forecast_is_near_what_happens(self):
        """Once five seconds are over, within a factor of two."""
        size = 1_000 * MB
        for name, next_block, a_second in (
            ("idle", None, 0),
            ("in turn", in_turn(), 20 * MB // BLOCK),
            ("in few places", anywhere(150), 5000),
            ("everywhere, slowly", anywhere(size // BLOCK), 300),
        ):
            passes = Passes(size, 40 * MB, next_block).run(5, a_second)
            expected, pause = passes.convergence.forecast(passes.dirty.bytes)
            asked = passes.now
            passes.run(200, a_second)
            (end,) = passes.when(Next.HOLD)
            self.assertTrue(0.5 < expected / (end - asked) < 2, (name, expected, end - asked))
            self.assertLess(pause, 0.5)
