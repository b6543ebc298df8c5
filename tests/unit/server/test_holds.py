"""Why a client is not read: one or several reasons, and what continues nevertheless."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.server.holds import BLOCKING, CLIENT_WAITS, ENDING, IN_PROGRESS, Hold, Holds


class Incoming:
    """Records whether it is read."""

    reading = True

    def pause(self):
        self.reading = False

    def resume(self):
        self.reading = True


class HoldsTests(SynchronousTestCase):
    def setUp(self):
        self.incoming = Incoming()
        self.told = []
        self.holds = Holds(self.incoming, lambda: self.told.append("released"))

    def test_reading_resumes_when_no_reason_is_left(self):
        holding = set(Hold) - ENDING
        for first in holding:
            for second in holding - {first}:
                self.setUp()
                self.holds.add(first)
                self.holds.add(second)
                self.holds.release(first)
                self.assertFalse(self.incoming.reading)
                self.holds.release(second)
                self.assertTrue(self.incoming.reading)
                self.assertEqual(["released"] * 2, self.told)

    def test_a_connection_at_its_end_is_still_read(self):
        """Otherwise nobody would notice that the client has gone."""
        for end in ENDING:
            self.setUp()
            self.holds.add(end)
            self.assertTrue(self.incoming.reading)
            self.holds.add(Hold.BACKLOG)
            self.holds.release(Hold.BACKLOG)
            self.assertTrue(self.incoming.reading)
            self.assertEqual({end}, self.holds.reasons)

    def test_a_hold_lasts_until_its_Deferred_fires(self):
        for result in (7, Failure(ValueError("no"))):
            self.setUp()
            doing = Deferred()
            self.holds.until(Hold.WRITING, doing, self.told.append)
            self.assertEqual(({Hold.WRITING}, []), (self.holds.reasons, self.told))
            self.assertFalse(self.incoming.reading)
            doing.callback(result)
            self.assertEqual([result, "released"], self.told)
            self.assertTrue(self.incoming.reading)

    def test_a_hold_on_a_fired_Deferred_ends_at_once(self):
        doing = Deferred()
        doing.callback(7)
        self.holds.until(Hold.ADMITTING, doing, self.told.append)
        self.assertEqual(([7, "released"], set()), (self.told, self.holds.reasons))

    def test_cleared_holds_leave_reading_paused(self):
        """As for a relay, which resumes reading itself."""
        reasons = self.holds.reasons
        self.holds.add(Hold.HELD)
        self.holds.clear()
        self.assertEqual(set(), self.holds.reasons)
        self.assertIs(reasons, self.holds.reasons)
        self.assertFalse(self.incoming.reading)
        self.holds.release(Hold.BACKPRESSURE)
        self.assertTrue(self.incoming.reading)

    def test_the_kinds_of_holds_form_the_expected_sets(self):
        self.assertEqual({Hold.BACKPRESSURE, Hold.DRAINING}, set(Hold) - BLOCKING)
        self.assertLess(IN_PROGRESS, BLOCKING)
        self.assertTrue(CLIENT_WAITS.isdisjoint(IN_PROGRESS | ENDING))
