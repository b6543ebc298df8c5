"""Whether a mirror comes to its end: each rule, with numbers made up for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.mirror.convergence import Convergence, Next

MB = 1_000_000
MIB = 1 << 20


def measured(rate=100 * MB, dirty_rate=0.0, flush=0.0, longest_pause=0.5, seconds=20):
    """One that has seen so much go over, and become dirty, for a while."""
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
    def test_the_rates(self):
        convergence = measured(100 * MB, 30 * MB)
        self.near(100 * MB, convergence.rate)
        self.near(30 * MB, convergence.dirty_rate)

    def test_slow_ones(self):
        """A line of a few megabits, or a limit: an estimate is needed there most of all."""
        for rate in (5 * MB, MB, MB / 10):
            convergence = measured(rate, rate / 10)
            self.near(rate, convergence.rate, 0.1)
            self.near(rate / 10, convergence.dirty_rate)
            self.near(1.0, convergence.pause(int(rate)), 0.1)

    def test_only_while_there_is_some_to_send(self):
        """Half of the time there is nothing: what goes over in the other half counts."""
        convergence = Convergence(0.5)
        sent = 0
        for number in range(4000):
            sending = number // 7 % 2 == 0
            sent += MB if sending else 0
            convergence.sample(number / 100, sent, 0, sending)
        self.near(100 * MB, convergence.rate)

    def test_nothing_at_first(self):
        convergence = Convergence(0.5)
        self.assertEqual(
            (0, 0, 0, 0),
            (convergence.rate, convergence.dirty_rate, convergence.flush, convergence.passes),
        )
        convergence.sample(0, 50 * MB, 50 * MB)
        self.assertEqual((0, 0), (convergence.rate, convergence.dirty_rate), "what was before")

    def test_what_was_lately(self):
        """A rate that has changed is known some seconds later."""
        convergence = measured(100 * MB, 0)
        for tenths in range(1, 81):
            now = tenths / 10
            convergence.sample(20 + now, int(2000 * MB + now * 20 * MB), int(now * 10 * MB))
        self.near(20 * MB, convergence.rate, 0.2)
        self.near(10 * MB, convergence.dirty_rate, 0.2)

    def test_a_hitch_does_not_count_for_much(self):
        convergence = measured(100 * MB, 10 * MB)
        convergence.sample(20.1, 2000 * MB + 2 * MIB, 300 * MB)
        self.near(100 * MB, convergence.rate, 0.15)

    def test_asked_more_often_than_there_is_something_to_measure(self):
        convergence = Convergence(0.5)
        for milliseconds in range(5000):
            convergence.sample(milliseconds / 1000, milliseconds * 100_000, 0)
        self.near(100 * MB, convergence.rate)

    def test_a_trickle_says_nothing_of_the_rate(self):
        """Between two passes nothing goes over because there is nothing to send."""
        convergence = measured(100 * MB, 10 * MB)
        for tenths in range(1, 51):
            convergence.sample(20 + tenths / 10, 2000 * MB + tenths * 4096, 200 * MB)
        self.near(100 * MB, convergence.rate)
        self.assertLess(convergence.dirty_rate, 0.1 * MB)

    def test_the_pause(self):
        convergence = measured(100 * MB, flush=0.1)
        self.near(0.1, convergence.pause(0))
        self.near(1.1, convergence.pause(100 * MB))
        self.near(1.0, Convergence(0.5).pause(16 * MIB))


class DecidingTests(Case):
    def decide(self, convergence, *lefts, now=100.0):
        """What follows from each pass in turn."""
        return [convergence.pass_ended(now, left) for left in lefts]

    def test_nothing_left(self):
        convergence = measured()
        self.assertEqual([Next.HOLD], self.decide(convergence, 0))
        self.assertEqual(1, convergence.passes)

    def test_within_three_quarters_of_the_longest_pause(self):
        """So that an estimate that is a little wrong costs no second hold."""
        for longest_pause in (0.5, 2.0, 10.0):
            most = int(0.75 * longest_pause * 100 * MB)
            # Clients as fast as that leave nothing to be gained by another pass.
            convergence = measured(dirty_rate=60 * MB, longest_pause=longest_pause)
            self.assertEqual([Next.HOLD], self.decide(convergence, int(0.99 * most)))
            convergence = measured(dirty_rate=60 * MB, longest_pause=longest_pause)
            self.assertEqual([Next.AGAIN], self.decide(convergence, int(1.01 * most)))

    def test_the_flush_counts(self):
        for flush, left, expected in (
            (0.36, 4096, Next.HOLD),
            (0.38, 4096, Next.AGAIN),
            (0.3, 7 * MB, Next.HOLD),
            (0.3, 8 * MB, Next.AGAIN),
        ):
            convergence = measured(dirty_rate=60 * MB, flush=flush)
            self.assertEqual([expected], self.decide(convergence, left), (flush, left))

    def test_nothing_left_and_a_slow_flush(self):
        """It cannot get any better: another pass would have nothing to send."""
        for flush in (0.4, 5.0):
            self.assertEqual([Next.HOLD], self.decide(measured(flush=flush), 0))

    def test_another_pass_where_it_halves_the_pause(self):
        """0.3 s now; with a tenth of the rate becoming dirty, 0.03 s after one more."""
        convergence = measured(dirty_rate=10 * MB)
        self.assertEqual([Next.AGAIN, Next.HOLD], self.decide(convergence, 30 * MB, 3 * MB))

    def test_not_where_it_does_not(self):
        convergence = measured(dirty_rate=51 * MB)
        self.assertEqual([Next.HOLD], self.decide(convergence, 30 * MB))
        convergence = measured(dirty_rate=49 * MB)
        self.assertEqual([Next.AGAIN], self.decide(convergence, 30 * MB))

    def test_not_for_a_pause_that_is_short_already(self):
        convergence = measured(dirty_rate=1 * MB)
        self.assertEqual([Next.HOLD], self.decide(convergence, int(4.9 * MB)))
        convergence = measured(dirty_rate=1 * MB)
        self.assertEqual([Next.AGAIN], self.decide(convergence, int(5.1 * MB)))

    def test_nor_where_only_the_flush_is_long(self):
        """Another pass would not shorten that."""
        convergence = measured(dirty_rate=1 * MB, flush=0.3)
        self.assertEqual([Next.HOLD], self.decide(convergence, 4 * MB))
        convergence = measured(dirty_rate=0, flush=0.04)
        self.assertEqual([Next.HOLD], self.decide(convergence, int(4.9 * MB)))

    def test_nor_where_the_last_one_gained_nothing(self):
        convergence = measured(dirty_rate=1 * MB)
        self.assertEqual([Next.AGAIN, Next.HOLD], self.decide(convergence, 30 * MB, 31 * MB))

    def test_converging(self):
        """Each pass leaves less than the one before, until it is little enough."""
        convergence = measured(dirty_rate=52 * MB)
        lefts = [3200 * MB // 2**number for number in range(8)]
        self.assertEqual([Next.AGAIN] * 7 + [Next.HOLD], self.decide(convergence, *lefts))

    def test_not_converging_where_clients_are_as_fast(self):
        for dirty_rate, expected in ((79 * MB, Next.AGAIN), (81 * MB, Next.NOT_CONVERGING)):
            convergence = measured(dirty_rate=dirty_rate)
            decided = self.decide(convergence, 4000 * MB, 3000 * MB)
            self.assertEqual([Next.AGAIN, expected], decided, dirty_rate)

    def test_not_converging_where_a_pass_leaves_as_much(self):
        """Whatever the rates are said to be; twice in a row, since once may be bad luck."""
        for part, expected in ((0.79, Next.AGAIN), (0.81, Next.NOT_CONVERGING)):
            convergence = measured(dirty_rate=1 * MB)
            lefts = [int(1000 * MB * part**number) for number in range(3)]
            decided = [Next.AGAIN, Next.AGAIN, expected]
            self.assertEqual(decided, self.decide(convergence, *lefts), part)
        convergence = measured(dirty_rate=1 * MB)
        lefts = [1000 * MB, 900 * MB, 500 * MB, 450 * MB, 420 * MB]
        decided = [Next.AGAIN] * 4 + [Next.NOT_CONVERGING]
        self.assertEqual(decided, self.decide(convergence, *lefts))

    def test_never_after_the_first_pass(self):
        """All of the disk was dirty: that says nothing of the clients."""
        convergence = measured(dirty_rate=500 * MB)
        self.assertEqual([Next.AGAIN], self.decide(convergence, 10**12))

    def test_and_when_clients_have_come_to_rest(self):
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
    def test_never_held_for_longer_than_wanted(self, rate, dirty_rate, flush, longest, lefts):
        """As far as anybody can tell."""
        convergence = measured(rate, dirty_rate, flush, longest, seconds=1)
        for number, left in enumerate(lefts):
            if convergence.pass_ended(number, left) == Next.HOLD and left:
                self.assertLessEqual(convergence.pause(left), 0.75 * longest)

    @given(
        st.floats(10 * MB, 10_000 * MB),
        st.floats(0, 0.6),
        st.floats(0, 0.1),
        st.integers(1 << 20, 1 << 44),
    )
    def test_it_comes_to_its_end(self, rate, part, flush, size):
        """Where clients make dirty no more than a part of what goes over in the same time."""
        convergence = measured(rate, part * rate, flush, seconds=5)
        left, now = size, 5.0
        for _ in range(100):
            now += left / rate + flush
            left = min(size, int(part * rate * (left / rate + flush)))
            if convergence.pass_ended(now, left) == Next.HOLD:
                return
        self.fail("never")


class HoldFailedTests(Case):
    def test_not_at_once_and_later_each_time(self):
        convergence = measured()
        for least in (1, 2, 4, 8, 16, 32, 60, 60, 60):
            convergence.hold_failed(1000, 0, 0.5)
            self.assertEqual(Next.AGAIN, convergence.pass_ended(1000 + least - 0.01, 0))
            self.assertEqual(Next.HOLD, convergence.pass_ended(1000 + least, 0))

    def test_how_fast_it_really_went(self):
        """10 MB in half a second, though 100 MB/s were thought to be right."""
        convergence = measured(dirty_rate=60 * MB)
        self.assertEqual(Next.HOLD, convergence.pass_ended(100, 30 * MB))
        convergence.hold_failed(100, 10 * MB, 0.5)
        self.near(1.5, convergence.pause(30 * MB))
        self.assertNotEqual(Next.HOLD, convergence.pass_ended(200, 30 * MB))
        self.assertEqual(Next.HOLD, convergence.pass_ended(200, 7 * MB))

    def test_too_little_to_tell(self):
        """The time may have gone by waiting for the disk to be still, or for the flush."""
        convergence = measured()
        before = convergence.pause(30 * MB)
        for sent, seconds in ((0, 0.5), (0, 0.0), (1000, 0.0)):
            convergence.hold_failed(100, sent, seconds)
            self.assertEqual(before, convergence.pause(30 * MB))

    def test_believed_less_with_each_pass(self):
        """It may have been bad luck: a mirror must not wait for ever for what it once saw."""
        convergence = measured(dirty_rate=10 * MB)
        convergence.hold_failed(100, 1000, 0.5)
        decided = [convergence.pass_ended(200 + number, 30 * MB) for number in range(40)]
        self.assertNotEqual(Next.HOLD, decided[0])
        self.assertIn(Next.HOLD, decided)
        self.near(0.3, convergence.pause(30 * MB))

    def test_what_the_small_steps_took(self):
        """They are part of each pause, like the flush; where nothing is left it must do."""
        convergence = measured()
        before = convergence.pause(MB)
        convergence.hold_failed(100, 0, 0.0, 0.4)
        self.near(before + 0.4, convergence.pause(MB))
        self.assertNotEqual(Next.HOLD, convergence.pass_ended(200, MB))
        self.assertEqual(Next.HOLD, convergence.pass_ended(200, 0))

    def test_the_longest_steps_count(self):
        """Until they are doubted a hold that failed for something else takes nothing back."""
        convergence = measured()
        for steps in (0.3, 0.4, 0.0, 0.2):
            convergence.hold_failed(100, 0, 0.0, steps)
        self.assertEqual(0.4, convergence.steps)

    def test_steps_are_believed_less_with_each_pass(self):
        convergence = measured()
        convergence.hold_failed(100, 0, 0.0, 0.4)
        # Not while the break lasts: no hold was thought of, and nothing was doubted.
        self.assertEqual(Next.AGAIN, convergence.pass_ended(100.5, MB))
        self.assertEqual(0.4, convergence.steps)
        self.assertEqual(Next.AGAIN, convergence.pass_ended(200, MB))
        self.assertEqual(0.2, convergence.steps)
        self.assertEqual(Next.HOLD, convergence.pass_ended(200, MB))

    def test_no_other_pass_because_of_the_steps(self):
        """More passes make them no shorter."""
        convergence = measured()
        convergence.hold_failed(100, 0, 0.0, 0.3)
        self.assertEqual(Next.HOLD, convergence.pass_ended(200, 100))
