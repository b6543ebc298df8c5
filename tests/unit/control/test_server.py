"""Opening the control socket of a running command."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.control import ControlError, server
from blockmig.control.server import open_control
from blockmig.control.socket_file import Busy


class OpenTests(SynchronousTestCase):
    def open(self, claim):
        self.clock = Clock()
        self.patch(server, "claim", claim)
        return Deferred.fromCoroutine(open_control(self.clock, "/c", dict))

    def test_a_busy_socket_is_retried_for_a_few_seconds(self):
        seen = []

        def claim(path, patient):
            seen.append(patient)
            raise Busy("somebody is at it")

        opening = self.open(claim)
        self.assertNoResult(opening)
        self.clock.pump([0.05] * 100)
        self.assertIn("somebody is at it", str(self.failureResultOf(opening, Busy).value))
        self.assertEqual((1, False), (seen.count(False), seen[-1]))
        self.assertGreater(len(seen), 30)

    def test_a_certain_refusal_is_reported_at_once(self):
        def claim(path, patient):
            raise ControlError("in use")

        self.failureResultOf(self.open(claim), ControlError)
