"""Waking up for many bytes in the middle of a payload (transport/low_water.py)."""

from __future__ import annotations

import socket

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.transport.low_water import MARK, PATIENCE, LowWater


class Handle:
    """A socket that notes its marks."""

    def __init__(self, family=socket.AF_INET, error=None):
        self.family = family
        self.error = error
        self.marks = []

    def setsockopt(self, level, option, value):
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        self.marks.append(value)
        if self.error is not None:
            raise self.error


class LowWaterTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.handle = Handle()
        self.low_water = LowWater(self.handle, self.clock)

    def wait(self):
        """Let as much time pass as a mark may be waited for."""
        self.clock.advance(PATIENCE)

    def test_in_a_large_payload_the_mark_is_high(self):
        self.low_water.expect(2 << 20)
        self.assertEqual([MARK], self.handle.marks)

    def test_the_mark_is_never_beyond_the_end_of_the_payload(self):
        for left in (2 << 20, MARK, MARK - 1, 17, 1):
            self.low_water.expect(left)
        self.assertEqual([MARK, MARK - 1, 17, 1], self.handle.marks)

    def test_where_no_payload_is_expected_every_byte_counts(self):
        self.low_water.expect(2 << 20)
        self.low_water.expect(0)
        self.assertEqual([MARK, 1], self.handle.marks)

    def test_nothing_is_called_while_the_mark_stays_as_it_is(self):
        for left in (4 << 20, 3 << 20, 2 << 20):
            self.low_water.expect(left)
        self.assertEqual([MARK], self.handle.marks)

    def test_every_byte_of_a_slow_line_counts(self):
        self.low_water.expect(2 << 20)
        self.wait()
        self.assertEqual([MARK, 1], self.handle.marks)

    def test_a_line_stays_slow_for_the_rest_of_that_payload(self):
        self.low_water.expect(2 << 20)
        self.wait()
        self.low_water.expect((2 << 20) - 100)
        self.assertEqual([MARK, 1], self.handle.marks)

    def test_with_the_next_payload_the_line_may_be_fast_again(self):
        self.low_water.expect(2 << 20)
        self.wait()
        self.low_water.expect(100)
        self.low_water.expect(2 << 20)
        self.assertEqual([MARK, 1, MARK], self.handle.marks)

    def test_a_line_that_becomes_slow_later_is_noticed(self):
        self.low_water.expect(2 << 20)
        self.clock.advance(PATIENCE / 2)
        self.low_water.expect(1 << 20)
        self.clock.advance(PATIENCE / 2)
        self.assertEqual([MARK], self.handle.marks)
        self.wait()
        self.assertEqual([MARK, 1], self.handle.marks)

    def test_no_timer_runs_between_payloads(self):
        self.low_water.expect(2 << 20)
        self.low_water.expect(0)
        self.wait()
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_who_reads_next_is_woken_up_by_every_byte(self):
        self.low_water.expect(2 << 20)
        self.low_water.stop()
        self.assertEqual([MARK, 1], self.handle.marks)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_once_stopped_it_does_nothing(self):
        self.low_water.stop()
        self.low_water.expect(2 << 20)
        self.low_water.stop()
        self.assertEqual([], self.handle.marks)

    def test_a_UNIX_socket_is_left_alone(self):
        self.handle = Handle(socket.AF_UNIX)
        LowWater(self.handle, self.clock).expect(2 << 20)
        self.assertEqual(([], []), (self.handle.marks, self.clock.getDelayedCalls()))

    def test_an_error_of_the_option_is_ignored(self):
        self.handle.error = OSError(92, "no such option")
        self.low_water.expect(2 << 20)
        self.low_water.stop()
