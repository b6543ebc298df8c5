"""A process that was told to stop, and whose disk never answers, is left in the end."""

from __future__ import annotations

import math

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.operations import LONGEST_FLUSH, LONGEST_STOP, Leaving
from blockmig.errors import ExitStatus


class LeavingTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.left = []
        self.uncertain = False
        self.longest = LONGEST_STOP
        self.leaving = Leaving(
            self.clock, lambda: self.uncertain, lambda: self.longest, leave=self.left.append
        )

    def test_nothing_happens_before_it_is_told_to_stop(self):
        self.clock.advance(10 * LONGEST_STOP)
        self.assertEqual([], self.left)

    def test_the_disk_is_waited_for_from_the_first_signal_on(self):
        self.leaving.begin("stopped by SIGTERM")
        self.clock.advance(LONGEST_STOP - 1)
        self.leaving.begin("stopped by SIGTERM")
        self.assertEqual([], self.left)
        self.clock.advance(1)
        self.assertEqual([ExitStatus.FAILED], self.left)
        self.clock.advance(10 * LONGEST_STOP)
        self.assertEqual(1, len(self.left))

    def test_what_may_be_retired_is_left_unconfirmed(self):
        self.leaving.begin("stopped by SIGTERM")
        self.uncertain = True
        self.clock.advance(LONGEST_STOP)
        self.assertEqual([ExitStatus.UNCONFIRMED], self.left)

    def test_the_last_flush_has_longer(self):
        self.longest = LONGEST_FLUSH
        self.leaving.begin("stopped by SIGTERM")
        self.clock.pump([LONGEST_STOP / 2] * int(2 * LONGEST_FLUSH / LONGEST_STOP - 1))
        self.assertEqual([], self.left)
        self.clock.advance(LONGEST_STOP / 2)
        self.assertEqual(1, len(self.left))

    def test_a_process_with_which_a_disk_would_be_lost_is_never_left(self):
        self.leaving.begin("stopped by SIGTERM")
        self.clock.advance(LONGEST_STOP - 1)
        self.longest = math.inf
        self.clock.pump([LONGEST_STOP] * 100)
        self.assertEqual([], self.left)
        self.longest = LONGEST_STOP  # it has been saved
        self.clock.advance(LONGEST_STOP)
        self.assertEqual(1, len(self.left))
