"""How much is asked for at a time (in_flight.py)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import PendingRequests
from blockmig.migration.source.in_flight import InFlight
from blockmig.nbd import ClientTransmission, Command
from blockmig.storage import Segment

MIB = 1 << 20
GIB = 1 << 30


class InFlightTests(SynchronousTestCase):
    def setUp(self):
        self.requests = PendingRequests(ClientTransmission())

    def fill(self, length, *, zero, one_at_a_time=False):
        """Request segments until there is no room; what was requested."""
        self.in_flight = InFlight(self.requests, one_at_a_time=one_at_a_time)
        found = []
        while self.in_flight.has_room:
            segment = Segment(len(found) * length, length, zero)
            self.requests.make(Command.WRITE, segment.offset, length, lambda *_: None)
            self.in_flight.requested(segment)
            found.append(segment)
        return found

    def test_so_many_requests(self):
        self.assertEqual(256, len(self.fill(4096, zero=False)))

    def test_so_many_bytes_of_data(self):
        self.assertEqual(32, len(self.fill(MIB, zero=False)))

    def test_zeroes_take_no_room_of_data_but_must_be_written_out(self):
        self.assertEqual(32, len(self.fill(2 * GIB, zero=True)))

    def test_an_oldstyle_server_gets_one_request_at_a_time(self):
        self.assertEqual(1, len(self.fill(4096, zero=False, one_at_a_time=True)))

    def test_what_is_acknowledged_makes_room_for_its_kind(self):
        (*_, data) = self.fill(MIB, zero=False)
        self.in_flight.acknowledged(data._replace(zero=True))
        self.assertFalse(self.in_flight.has_room)
        self.in_flight.acknowledged(data)
        self.assertTrue(self.in_flight.has_room)
