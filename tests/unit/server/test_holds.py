"""Why nothing is read from a client: one reason or several, and what goes on in spite of them."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.server.holds import BLOCKING, CLIENT_WAITS, ENDING, IN_PROGRESS, Hold, Holds


class Incoming:
    """Writes down whether it is read."""

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

    def test_read_on_when_no_reason_is_left(self):
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

    def test_the_end_holds_nobody(self):
        """Or nobody would see that the client has gone."""
        for end in ENDING:
            self.setUp()
            self.holds.add(end)
            self.assertTrue(self.incoming.reading)
            self.holds.add(Hold.BACKLOG)
            self.holds.release(Hold.BACKLOG)
            self.assertTrue(self.incoming.reading)
            self.assertEqual({end}, self.holds.reasons)

    def test_until(self):
        for result in (7, Failure(ValueError("no"))):
            self.setUp()
            doing = Deferred()
            self.holds.until(Hold.WRITING, doing, self.told.append)
            self.assertEqual(({Hold.WRITING}, []), (self.holds.reasons, self.told))
            self.assertFalse(self.incoming.reading)
            doing.callback(result)
            self.assertEqual([result, "released"], self.told)
            self.assertTrue(self.incoming.reading)

    def test_until_what_is_done_already(self):
        doing = Deferred()
        doing.callback(7)
        self.holds.until(Hold.ADMITTING, doing, self.told.append)
        self.assertEqual(([7, "released"], set()), (self.told, self.holds.reasons))

    def test_cleared(self):
        """As it is when another server goes on: it reads on when that says so."""
        reasons = self.holds.reasons
        self.holds.add(Hold.HELD)
        self.holds.clear()
        self.assertEqual(set(), self.holds.reasons)
        self.assertIs(reasons, self.holds.reasons)
        self.assertFalse(self.incoming.reading)
        self.holds.release(Hold.BACKPRESSURE)
        self.assertTrue(self.incoming.reading)

    def test_kinds(self):
        """What came already goes on where a disk is behind, or new requests are refused."""
        self.assertEqual({Hold.BACKPRESSURE, Hold.DRAINING}, set(Hold) - BLOCKING)
        self.assertLess(IN_PROGRESS, BLOCKING)
        self.assertTrue(CLIENT_WAITS.isdisjoint(IN_PROGRESS | ENDING))
