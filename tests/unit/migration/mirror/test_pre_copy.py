"""The passes over a disk in use, with a fake attempt and a fake server (R8, R9)."""

from __future__ import annotations

import itertools

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.interfaces import Extent
from blockmig.migration.mirror.pre_copy import Converge, MirrorPhase, PreCopy
from blockmig.server import Changes, LatencyMonitor
from blockmig.storage import GRANULARITY, Segment, Survey

MB = 1 << 20
SIZE = 64 * MB
PAUSE = 0.5


class FakeDisk:
    name = "disk"
    size = SIZE


class FakeServer:
    """A server whose clients are done when the test says so."""

    def __init__(self, story):
        self.disk = FakeDisk()
        self.changes = Changes()
        self.latency = LatencyMonitor()
        self.story = story
        self.holding = []
        self.prompt = True

    def hold(self):
        self.story.append("hold")
        still = Deferred()
        self.holding.append(still)
        if self.prompt:
            still.callback(None)
        return still

    def release(self):
        self.story.append("release")


class FakeAttempt:
    """Requests of the passes wait for the test; what is taken is remembered."""

    def __init__(self, story):
        self.story = story
        self.take = None
        self.waiting = None

    def send_pass(self, take):
        self.story.append("pass")
        self.take, self.sending = take, True
        self.waiting = Deferred()
        return self.waiting

    def cut_pass(self, give_back):
        self.story.append("cut")
        self.give_back = give_back

    def flush_now(self):
        self.story.append("flush")
        self.sending = False
        self.waiting = Deferred()
        return self.waiting

    async def disk_is_quiescent(self):
        pass

    def done(self):
        waiting, self.waiting = self.waiting, None
        waiting.callback(None)

    def release(self):
        self.story.append("copy on")


class FakeLimiter:
    """What clients leave of the reactor's time is little; it could be a gigabyte a second."""

    unhindered_rate = 0.0
    rate = None


class Case(SynchronousTestCase):
    converge = Converge.WAIT

    def setUp(self):
        self.clock = Clock()
        self.story = []
        self.server = FakeServer(self.story)
        self.attempt = FakeAttempt(self.story)
        self.passes = PreCopy(
            self.server,
            longest_pause=PAUSE,
            converge=self.converge,
            reactor=self.clock,
            give_up=lambda why: self.story.append(f"give up: {why}"),
            finishing=lambda: self.story.append("finishing"),
            limiter=FakeLimiter(),
        )
        self.passes.start()
        self.sending = Deferred()
        self.addCleanup(self.stop)

    def stop(self):
        self.sending.cancel()
        self.sending.addErrback(lambda failure: failure.trap(CancelledError))
        self.passes.stop()
        self.assertEqual([], self.clock.getDelayedCalls())

    def events(self):
        """What happened since the last look."""
        story = list(self.story)
        self.story.clear()
        return story

    def begin(self):
        self.passes.begin()
        self.sending = Deferred.fromCoroutine(self.passes.send(self.attempt))

    def take_all(self):
        taken = []
        while ranges := self.attempt.take():
            taken += ranges
        return taken

    def acknowledge(self, taken, zero=False):
        for start, end in taken:
            self.passes.acknowledged(Segment(start, end - start, zero))

    def send_pass(self, seconds=1.0, dirty=()):
        """One pass, during which clients write to the blocks in C{dirty} again and again."""
        taken = self.take_all()
        steps = 40
        for step in range(steps):
            for grain in dirty[step::steps]:
                self.server.changes.notify(grain * GRANULARITY, 4096)
            for start, end in taken:
                length = (end - start) // steps
                begin = start + step * length
                self.passes.acknowledged(
                    Segment(begin, length if step < steps - 1 else end - begin, False)
                )
            self.clock.advance(seconds / steps)
        self.attempt.done()
        return taken

    def flush(self, seconds=0.0):
        self.clock.advance(seconds)
        self.attempt.done()

    def hold(self, **keywords):
        """Up to the hold, with nothing left but what C{dirty} says."""
        self.begin()
        self.send_pass(**keywords)
        self.flush()
        self.assertEqual(["pass", "flush", "hold", "pass"], self.events())

    def send_rest(self):
        taken = self.take_all()
        self.acknowledge(taken)
        self.attempt.done()
        return taken


class PassTests(Case):
    def test_an_idle_disk_takes_one_pass_one_flush_and_one_hold(self):
        """The whole disk, a flush, then a hold that finds nothing left and needs no flush."""
        self.begin()
        self.assertEqual((SIZE, SIZE), (self.passes.left, self.passes.dirty.bytes))
        self.assertEqual([(0, SIZE)], self.send_pass())
        self.assertEqual(["pass", "flush"], self.events())
        self.assertEqual((0, MirrorPhase.COPYING), (self.passes.left, self.passes.phase))
        self.flush()
        self.assertEqual(["hold", "pass"], self.events())
        self.assertEqual((1, MirrorPhase.HOLDING), (self.passes.hold_count, self.passes.phase))
        self.assertNoResult(self.sending)
        self.assertEqual([], self.send_rest())
        self.successResultOf(self.sending)
        self.assertEqual([], self.events())

    def test_writes_during_the_first_pass_are_sent_in_the_last(self):
        self.hold(dirty=(3, 700))
        expected = [(3 * GRANULARITY, 4 * GRANULARITY), (700 * GRANULARITY, 701 * GRANULARITY)]
        self.assertEqual(expected, self.send_rest())
        self.successResultOf(self.sending)
        self.assertEqual(0, self.passes.left)

    def test_writes_until_all_work_is_done_are_sent_in_the_last_pass(self):
        """Changes are marked while work is under way, and belong to the last pass."""
        self.server.prompt = False
        self.begin()
        self.send_pass()
        self.flush()
        self.assertEqual(["pass", "flush", "hold"], self.events())
        self.server.changes.notify(5 * GRANULARITY, 1)
        self.server.holding[0].callback(None)
        self.assertEqual(["pass"], self.events())
        self.assertEqual([(5 * GRANULARITY, 6 * GRANULARITY)], self.send_rest())
        self.successResultOf(self.sending)

    def test_a_range_is_unmarked_before_it_is_read(self):
        """A later change makes the range dirty again, for the next pass."""
        self.begin()
        taken = self.attempt.take()
        self.server.changes.notify(0, 1)
        self.server.changes.notify(SIZE - 1, 1)
        self.assertEqual([(0, SIZE)], taken)
        self.assertEqual([], self.attempt.take())
        self.assertEqual(2 * GRANULARITY, self.passes.dirty.bytes)
        self.assertEqual(SIZE, self.passes.left)

    def test_a_bounded_number_of_ranges_is_taken_at_a_time(self):
        self.begin()
        self.passes.dirty.take(0, SIZE)
        for grain in range(0, 800, 2):
            self.server.changes.notify(grain * GRANULARITY, 1)
        ranges = self.attempt.take()
        self.assertEqual(256, len(ranges))
        more = self.attempt.take()
        self.assertEqual((144, ranges[-1][1] + GRANULARITY), (len(more), more[0][0]))
        self.assertEqual([], self.attempt.take())

    def test_a_pass_never_returns_to_an_earlier_range(self):
        """Otherwise what clients write all the time would be sent all the time."""
        self.begin()
        self.attempt.take()
        self.server.changes.notify(0, 1)
        self.assertEqual([], self.attempt.take())

    def test_dirty_and_unacknowledged_bytes_are_left_to_send(self):
        """Unacknowledged zeroes count too."""
        self.begin()
        (run,) = self.attempt.take()
        self.assertEqual((0, SIZE), (self.passes.dirty.bytes, self.passes.left))
        self.passes.acknowledged(Segment(0, 4 * MB, True))
        self.passes.acknowledged(Segment(4 * MB, 4 * MB, False))
        self.assertEqual(SIZE - 8 * MB, self.passes.left)
        self.assertEqual((0, SIZE), run)

    def test_another_pass_is_made_where_much_is_left(self):
        """Each pass is followed by a flush."""
        self.begin()
        self.send_pass(seconds=4, dirty=range(512))
        self.flush()
        self.assertEqual(["pass", "flush", "pass"], self.events())
        self.assertEqual((2, True), (self.passes.number, self.passes.converging))
        self.assertEqual(
            512 * GRANULARITY, sum(end - start for start, end in self.send_pass(seconds=2))
        )
        self.flush()
        self.assertEqual(["flush", "hold", "pass"], self.events())

    def test_the_time_of_the_flush_is_measured(self):
        self.begin()
        self.send_pass()
        self.flush(0.3)
        self.assertAlmostEqual(0.3, self.passes.convergence.flush)

    def test_a_slow_flush_delays_the_hold(self):
        """Little is left, but the last flush would take too long: the hold waits."""
        self.begin()
        self.send_pass(dirty=(3,))
        self.flush(0.45)
        self.assertEqual(["pass", "flush"], self.events())
        self.clock.advance(0.06)
        self.assertEqual(["pass"], self.events())
        self.send_pass()
        self.flush(0.1)
        self.assertEqual(["flush", "hold", "pass"], self.events())

    def test_clients_are_held_when_only_the_flush_is_slow(self):
        """The flush of the hold may be quicker, since there is less to flush."""
        self.begin()
        self.send_pass()
        self.flush(0.45)
        self.assertEqual(["pass", "flush", "hold", "pass"], self.events())

    def test_a_pass_that_sent_nothing_is_not_flushed(self):
        """Passes that only wait for the next hold cause no flush at the destination."""
        self.hold(dirty=range(20))
        self.clock.advance(0.51)
        self.send_rest()
        self.flush()
        self.events()
        for _ in range(5):
            self.clock.advance(0.06)
            self.assertEqual(["pass"], self.events())
            self.assertEqual([], self.send_rest())
        self.clock.advance(0.06)
        self.server.changes.notify(0, 1)
        self.events()
        self.assertEqual([(0, GRANULARITY)], self.send_rest())
        self.assertEqual(["flush"], self.events())

    def test_a_new_attempt_begins_with_the_whole_disk(self):
        self.hold()
        self.passes.dropped()
        self.attempt = FakeAttempt(self.story)
        self.events()
        self.begin()
        self.assertEqual(
            (SIZE, 1, None), (self.passes.left, self.passes.number, self.passes.converging)
        )
        self.assertEqual([(0, SIZE)], self.take_all())

    def test_changes_are_watched_only_while_the_mirror_runs(self):
        self.assertIsNotNone(self.server.changes.mark)
        self.passes.stop()
        self.assertIsNone(self.server.changes.mark)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.passes.stop()


class HoldTests(Case):
    def test_a_hold_that_ends_in_time_is_not_released(self):
        """The deadline covers sending, flushing and the last steps."""
        self.hold()
        self.clock.advance(0.2)
        self.send_rest()
        self.successResultOf(self.sending)
        self.clock.advance(0.2)
        self.passes.flushed()
        self.assertEqual(MirrorPhase.HANDING_OVER, self.passes.phase)
        self.clock.advance(0.09)
        self.assertEqual([], self.events())
        self.passes.retiring()
        self.clock.advance(1000)
        self.assertEqual([], self.events(), "and then there is no way back")
        self.assertEqual(MirrorPhase.HANDING_OVER, self.passes.phase)

    def test_the_deadline_of_a_hold_is_the_same_for_every_step(self):
        """Whatever the step, clients are released at the same instant."""
        for reached in range(4):
            self.setUp()
            self.server.prompt = reached > 0
            self.begin()
            self.send_pass()
            self.flush()
            began = self.clock.seconds()
            self.clock.advance(0.1)
            if reached > 1:
                self.send_rest()
            self.clock.advance(0.1)
            if reached > 2:
                self.passes.flushed()
            self.events()
            self.clock.advance(PAUSE - 0.2 - 0.001)
            self.assertEqual([], self.events(), reached)
            self.clock.advance(0.002)
            self.assertEqual(["release", "copy on"], self.events()[:2], reached)
            self.assertEqual(MirrorPhase.COPYING, self.passes.phase)
            self.assertAlmostEqual(PAUSE, self.passes.pause, places=2)
            self.assertLess(self.clock.seconds() - began, PAUSE + 0.01)
            self.stop()

    def test_clients_are_released_when_work_under_way_takes_too_long(self):
        """The passes continue without waiting any longer."""
        self.server.prompt = False
        self.begin()
        self.send_pass()
        self.flush()
        self.events()
        self.clock.advance(0.49)
        self.assertEqual([], self.events())
        self.clock.advance(0.02)
        self.assertEqual(["release", "copy on"], self.events()[:2])
        self.assertEqual(MirrorPhase.COPYING, self.passes.phase)

    def test_the_passes_continue_once_work_under_way_is_done(self):
        self.server.prompt = False
        self.begin()
        self.send_pass()
        self.flush()
        self.clock.advance(0.51)
        self.events()
        if not self.server.holding[0].called:
            self.server.holding[0].callback(None)
        self.assertNoResult(self.sending)
        self.server.changes.notify(0, 1)
        self.clock.advance(1)
        self.assertIsNotNone(self.attempt.waiting)
        self.assertEqual(1, self.passes.hold_count)

    def test_the_passes_continue_although_work_never_ends(self):
        """Clients with several requests in flight are never idle once they are released."""
        self.server.prompt = False
        self.begin()
        self.send_pass()
        self.flush()
        self.events()
        self.clock.advance(0.51)
        self.assertEqual(["release", "copy on", "pass"], self.events())
        self.assertNoResult(self.sending)

    def test_clients_are_released_when_sending_takes_too_long(self):
        self.hold(dirty=range(20))
        self.clock.advance(0.51)
        self.assertEqual(["release", "copy on"], self.events())
        self.assertEqual(MirrorPhase.COPYING, self.passes.phase)
        # The pass comes to its end, and is like any other: a flush, a decision.
        self.server.changes.notify(0, 1)
        self.send_rest()
        self.assertEqual(["flush"], self.events())
        self.assertNoResult(self.sending)
        self.flush()
        self.assertNotIn("hold", self.events(), "not at once")

    def test_clients_are_released_when_the_flush_takes_too_long(self):
        """The attempt learns that its flush does not count, and asks for more to send."""
        self.hold()
        self.send_rest()
        self.successResultOf(self.sending)
        self.clock.advance(0.51)
        self.assertEqual(["release", "copy on"], self.events())
        self.server.changes.notify(7 * GRANULARITY, 1)
        self.sending = Deferred.fromCoroutine(self.passes.send(self.attempt))
        self.assertEqual(["pass"], self.events())
        self.assertEqual([(7 * GRANULARITY, 8 * GRANULARITY)], self.send_rest())
        self.assertEqual(["flush"], self.events())

    def until_held(self, seconds):
        """The passes continue; the seconds until the next hold."""
        began = self.clock.seconds()
        while self.clock.seconds() - began < seconds:
            if "hold" in self.events():
                return self.clock.seconds() - began
            if self.attempt.waiting is not None:
                if self.attempt.sending:
                    self.acknowledge(self.take_all())
                self.attempt.done()
            self.clock.advance(0.01)
        return None

    def test_the_next_hold_comes_later_each_time(self):
        self.hold(dirty=range(20))
        for least in (1, 2, 4, 8):
            self.clock.advance(0.51)
            self.assertEqual(["release", "copy on"], self.events()[:2])
            after = self.until_held(least + 2)
            self.assertIsNotNone(after, least)
            self.assertTrue(least - 0.1 < after < least + 0.5, (least, after))
        self.assertEqual(5, self.passes.hold_count)

    def test_the_duration_of_the_last_hold_is_kept(self):
        self.assertIsNone(self.passes.pause)
        self.hold()
        self.clock.advance(0.2)
        self.assertAlmostEqual(0.2, self.passes.pause)
        self.clock.advance(0.31)
        self.clock.advance(5)
        self.assertAlmostEqual(0.51, self.passes.pause)

    def overdue_in_small_steps(self, before=0.0):
        """The rest was sent and flushed; what follows takes too long."""
        self.send_rest()
        self.successResultOf(self.sending)
        self.clock.advance(before)
        self.passes.flushed()
        self.clock.advance(PAUSE - before - 0.01)
        self.assertEqual([], self.events())
        self.clock.advance(0.02)
        self.assertEqual(["release", "copy on"], self.events())
        self.assertEqual(MirrorPhase.COPYING, self.passes.phase)

    def test_clients_are_released_when_the_last_steps_take_too_long(self):
        """A destination that does not confirm must not keep clients waiting."""
        self.hold()
        self.overdue_in_small_steps()
        self.clock.advance(100)
        self.assertEqual([], self.events(), "no deadline is left")
        # It goes on where it was, with what is dirty since.
        self.server.changes.notify(7 * GRANULARITY, 1)
        self.sending = Deferred.fromCoroutine(self.passes.send(self.attempt))
        self.assertEqual(["pass"], self.events())
        self.assertEqual([(7 * GRANULARITY, 8 * GRANULARITY)], self.send_rest())
        self.assertEqual(["flush"], self.events())

    def test_the_time_of_the_last_steps_is_learned(self):
        """Counted from the reply to the flush; sending has no part in it."""
        self.hold()
        self.overdue_in_small_steps(0.2)
        convergence = self.passes.convergence
        self.assertAlmostEqual(PAUSE - 0.2 + 0.01, convergence.steps)
        self.assertEqual(0.0, convergence._held_rate, "sending was not what took so long")

    def test_the_rate_during_a_hold_is_learned(self):
        """The last steps were not reached, so their time stays unknown."""
        self.hold(dirty=range(20))
        (first, *_) = self.take_all()
        self.passes.acknowledged(Segment(first[0], GRANULARITY, False))
        self.clock.advance(0.51)
        self.assertEqual(["release", "copy on"], self.events())
        convergence = self.passes.convergence
        self.assertEqual(0.0, convergence.steps)
        self.assertAlmostEqual(GRANULARITY / 0.51, convergence._held_rate, places=0)

    def test_times_of_one_hold_do_not_count_for_the_next(self):
        """The instant of the flush is that of this hold, not of the one before."""
        self.hold()
        self.overdue_in_small_steps()
        self.passes.convergence.steps = 0.0
        self.sending = Deferred.fromCoroutine(self.passes.send(self.attempt))
        self.events()
        self.assertIsNotNone(self.until_held(3))
        self.events()
        self.clock.advance(0.51)
        self.assertEqual(["release", "copy on"], self.events()[:2])
        self.assertEqual(0.0, self.passes.convergence.steps)

    def test_clients_are_released_if_the_attempt_ends_at_any_point(self):
        """The attempt ends at each point before the source is retired."""
        for point in range(4):
            self.setUp()
            self.server.prompt = point > 0
            self.begin()
            self.send_pass()
            self.flush()
            if point > 1:
                self.send_rest()
            if point > 2:
                self.passes.flushed()
            self.events()
            if point < 2:
                self.sending.cancel()
                self.failureResultOf(self.sending, CancelledError)
            self.passes.dropped()
            self.assertEqual(
                (["release"], MirrorPhase.COPYING), (self.events(), self.passes.phase), point
            )
            self.clock.advance(100)
            self.assertEqual([], self.events(), "no deadline is left")
            self.stop()

    def test_an_attempt_that_ends_while_copying_releases_nobody(self):
        self.begin()
        self.sending.cancel()
        self.failureResultOf(self.sending, CancelledError)
        self.passes.dropped()
        self.assertEqual(["pass"], self.events())

    def test_nobody_is_released_after_retiring(self):
        self.hold()
        self.send_rest()
        self.passes.flushed()
        self.passes.retiring()
        self.clock.advance(100)
        self.passes.finishing()
        self.passes.stop()
        self.assertEqual(["finishing"], self.events())

    def test_the_duration_of_the_hold_ends_with_the_mirror(self):
        """How long clients waited, not how long ago."""
        self.hold()
        self.send_rest()
        self.passes.flushed()
        self.passes.retiring()
        self.clock.advance(0.2)
        self.passes.stop()
        self.clock.advance(100)
        self.assertAlmostEqual(0.2, self.passes.pause)

    def test_the_throttle_is_lifted_before_the_hold(self):
        """Throttled changes would otherwise keep work under way for ever."""

        class Slow:
            rate = 1.0

            def lift(slow):
                self.story.append("lift")

        self.begin()
        self.server.changes.throttle = Slow()
        self.send_pass()
        self.flush()
        self.assertEqual(["pass", "flush", "lift", "hold", "pass"], self.events())
        self.assertIsNone(self.server.changes.throttle)
        self.passes.stop()


class NotConvergingTests(Case):
    def not_converging(self, passes=3):
        """Clients write as fast as data is sent."""
        self.begin()
        for _ in range(passes):
            self.send_pass(seconds=4, dirty=range(1024))
            self.flush()
        return self.events()

    def test_a_mirror_that_does_not_converge_does_what_was_asked_for(self):
        """By default this is only reported, and the passes continue."""
        story = self.not_converging(10)
        self.assertEqual(["pass", "flush"] * 10 + ["pass"], story)
        self.assertIs(False, self.passes.converging)
        self.assertIsNone(self.server.changes.throttle)
        self.assertEqual(0, self.passes.hold_count)

    def test_a_mirror_converges_once_clients_rest(self):
        self.not_converging()
        self.send_pass()
        self.flush()
        self.assertIn("hold", self.events())
        self.assertIs(True, self.passes.converging)


class WithinAPassTests(Case):
    """Clients write to all of the disk again and again; a pass takes 16 s."""

    def write_and_send(self, seconds):
        """Until then, or until clients are held."""
        self.taken = getattr(self, "taken", None) or self.attempt.take()
        for _ in range(round(seconds * 10)):
            if self.passes.phase != MirrorPhase.COPYING:
                break
            for grain in range(1024):
                self.server.changes.notify(grain * GRANULARITY, 4096)
            self.passes.acknowledged(Segment(0, SIZE // 160, False))
            self.clock.advance(0.1)

    def begin_hold(self):
        self.passes.limiter.unhindered_rate = 1e9
        self.begin()
        self.write_and_send(4)
        self.assertEqual(["pass", "hold", "cut"], self.events())
        self.assertEqual((1, MirrorPhase.HOLDING), (self.passes.hold_count, self.passes.phase))

    def test_it_is_decided_within_the_first_pass(self):
        self.begin()
        self.write_and_send(2)
        self.assertIsNone(self.passes.converging)
        self.write_and_send(2)
        self.assertIs(False, self.passes.converging)
        self.assertEqual((1, ["pass"]), (self.passes.number, self.events()))

    def test_a_hold_begins_in_the_middle_of_a_pass(self):
        """What was not requested yet is dirty again; the last pass follows what was."""
        self.begin_hold()
        for block in range(512, 1024):
            self.attempt.give_back(block * GRANULARITY, (block + 1) * GRANULARITY)
        self.assertEqual(SIZE, self.passes.dirty.bytes)
        self.attempt.done()
        self.assertEqual(["pass"], self.events(), "without a flush")
        self.assertNoResult(self.sending)
        self.assertEqual([(0, SIZE)], self.send_rest())
        self.successResultOf(self.sending)
        self.assertEqual(0, self.passes.left)
        self.clock.advance(0.3)
        self.assertEqual([], self.events())

    def test_the_last_pass_waits_until_the_disk_is_quiescent(self):
        self.server.prompt = False
        self.begin_hold()
        self.attempt.done()
        self.assertEqual([], self.events())
        self.server.holding[0].callback(None)
        self.assertEqual(["pass"], self.events())
        self.send_rest()
        self.successResultOf(self.sending)

    def test_a_hold_that_fails_before_its_pass_was_sent_lets_the_passes_continue(self):
        """The pass is like any other then."""
        self.begin_hold()
        self.clock.advance(0.51)
        self.assertEqual(["release", "copy on"], self.events())
        self.server.changes.notify(0, 1)
        self.attempt.done()
        self.assertEqual(["flush"], self.events())
        self.assertNoResult(self.sending)

    def test_a_hold_that_fails_in_its_last_pass_lets_the_passes_continue(self):
        self.begin_hold()
        self.attempt.done()
        self.clock.advance(0.51)
        self.server.changes.notify(0, 1)
        self.send_rest()
        self.assertEqual(["pass", "release", "copy on", "flush"], self.events())
        self.assertNoResult(self.sending)

    def test_a_second_hold_within_one_pass_is_not_the_first_ones_end(self):
        """Its last pass is still to come."""
        self.begin_hold()
        self.attempt.done()
        self.clock.advance(0.51)
        self.assertEqual(["pass", "release", "copy on"], self.events())
        self.taken = None
        self.write_and_send(6)
        self.assertEqual(["hold", "cut"], self.events())
        self.assertEqual(2, self.passes.hold_count)
        self.attempt.done()
        self.assertEqual(["pass"], self.events())
        self.assertNoResult(self.sending)
        self.send_rest()
        self.successResultOf(self.sending)

    def test_the_rate_of_such_a_hold_is_learned(self):
        """What is requested already is sent from its beginning."""
        self.server.prompt = False
        self.begin_hold()
        self.passes.acknowledged(Segment(0, 10 * MB, False))
        self.clock.advance(0.5)
        self.assertAlmostEqual(20 * MB, self.passes.convergence._last_held_rate, places=-4)

    def test_the_attempts_end_releases_clients_held_within_a_pass(self):
        self.begin_hold()
        self.sending.cancel()
        self.failureResultOf(self.sending, CancelledError)
        self.passes.dropped()
        self.assertEqual((["release"], MirrorPhase.COPYING), (self.events(), self.passes.phase))
        self.clock.advance(100)
        self.assertEqual([], self.events())


class DataLeftTests(Case):
    """A quarter of the disk is data, at its start."""

    def setUp(self):
        super().setUp()
        self.begin()
        self.passes.survey = Survey(SIZE)
        self.passes.survey.advance(self)

    def extents(self, offset):
        return iter([Extent(0, 16 * MB, False), Extent(16 * MB, 48 * MB, True)])

    def test_holes_are_not_data(self):
        self.assertEqual(16 * MB, self.passes.data_left)
        self.attempt.take()
        self.assertEqual(16 * MB, self.passes.data_left)
        self.passes.acknowledged(Segment(0, 6 * MB, False))
        self.assertEqual((10 * MB, 58 * MB), (self.passes.data_left, self.passes.left))
        self.passes.acknowledged(Segment(6 * MB, 10 * MB, False))
        self.assertEqual((0, 48 * MB), (self.passes.data_left, self.passes.left))

    def test_what_clients_have_written_is_data(self):
        self.attempt.take()
        self.passes.acknowledged(Segment(0, 16 * MB, False))
        for grain in range(100):
            self.server.changes.notify(grain * GRANULARITY, 1)
        self.assertEqual(100 * GRANULARITY, self.passes.data_left)
        self.acknowledge([(16 * MB, SIZE)], zero=True)
        self.take_all()
        self.attempt.done()
        self.flush()
        self.assertEqual(100 * GRANULARITY, self.passes.data_left, "in the next pass, too")

    def test_what_is_given_back_is_as_it_was(self):
        self.attempt.take()
        self.passes.acknowledged(Segment(0, 4 * MB, False))
        self.passes._give_back(8 * MB, 20 * MB)
        self.passes._give_back(20 * MB, SIZE)
        self.assertEqual(60 * MB, self.passes.left)
        self.assertEqual(12 * MB, self.passes.data_left)
        self.passes.acknowledged(Segment(4 * MB, 4 * MB, False))
        self.assertEqual((56 * MB, 8 * MB), (self.passes.left, self.passes.data_left))


class ThrottleTests(NotConvergingTests):
    converge = Converge.THROTTLE

    def test_a_mirror_that_does_not_converge_does_what_was_asked_for(self):
        """Not applicable; the tests below replace it."""

    def test_the_throttle_is_halved_each_time_down_to_a_minimum(self):
        """Once in three seconds: each throttle is given some time to show what it does."""
        rates, slow_down = [], self.server.changes.slow_down

        def note(throttle):
            slow_down(throttle)
            rates.append((self.clock.seconds(), throttle.rate))

        self.patch(self.server.changes, "slow_down", note)
        self.not_converging(12)
        self.assertLess(abs(self.passes.convergence.rate / 2 - rates[0][1]), MB / 10)
        for (time, before), (later, after) in itertools.pairwise(rates):
            self.assertAlmostEqual(max(before / 2, MB), after)
            self.assertGreaterEqual(later - time, 2.99)
        self.assertEqual(MB, rates[-1][1])

    def test_the_first_throttle_is_not_below_the_minimum(self):
        """Where little can be sent, clients may still write."""
        self.begin()
        for _ in range(2):
            self.send_pass(seconds=400, dirty=range(1024))
            self.flush()
        self.assertLess(self.passes.convergence.rate, MB)
        self.assertEqual(MB, self.server.changes.throttle.rate)

    def test_the_throttle_counts_what_becomes_dirty(self):
        self.not_converging(2)
        throttle = self.server.changes.throttle
        throttle.turn()
        self.clock.advance(20)
        self.assertIsNone(throttle.turn())
        for grain in range(1024):
            self.server.changes.notify(grain * GRANULARITY, 1)
        self.assertIsNone(throttle.turn(), "it was dirty already")
        self.take_all()
        for grain in range(1024):
            self.server.changes.notify(grain * GRANULARITY, 1)
        self.assertIsNotNone(throttle.turn())

    def test_the_throttle_is_lifted_between_attempts(self):
        """The source continues as if nothing had happened while there is no attempt."""
        self.not_converging(2)
        self.sending.cancel()
        self.failureResultOf(self.sending, CancelledError)
        self.passes.dropped()
        self.assertIsNone(self.server.changes.throttle)

    def test_the_throttle_is_lifted_at_the_end(self):
        self.not_converging(2)
        self.passes.stop()
        self.assertIsNone(self.server.changes.throttle)


class AbortTests(NotConvergingTests):
    converge = Converge.ABORT

    def test_a_mirror_that_does_not_converge_does_what_was_asked_for(self):
        story = self.not_converging(1)
        (why,) = [words for words in story if words.startswith("give up")]
        self.assertIn("not converging: clients dirty 16.", why)
        self.assertIn("MB/s are transferred", why)

    def test_a_mirror_converges_once_clients_rest(self):
        """Not applicable: the mirror has ended."""
