"""A process that was told to stop, and whose disk never answers, is left in the end."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.operations import LONGEST_STOP, Leaving
from blockmig.errors import ExitStatus


class LeavingTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.left = []
        self.uncertain = False
        self.leaving = Leaving(self.clock, lambda: self.uncertain, self.left.append)

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
