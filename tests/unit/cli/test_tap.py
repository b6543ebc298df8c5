"""An operation under twistd: it ends before the reactor, and sets the exit status."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import tap
from blockmig.errors import Summary, Unconfirmed


class ServiceTests(SynchronousTestCase):
    """Under twistd, whoever stops the reactor: the operation ends first, and sets the status."""

    def setUp(self):
        case = self

        class Operation:
            hung_up = None

            def __init__(self, options, reactor):
                case.operation = self
                self.ending = Deferred()
                self.stopped = []

            async def run(self):
                return await self.ending

            def stop(self, why):
                self.stopped.append(why)

        class Reactor(Clock):
            stops = 0

            def callWhenRunning(self, function):
                function()

            def stop(self):
                self.stops += 1

        self.exits = []
        self.reactor = Reactor()
        self.patch(tap, "ReceiveOperation", Operation)
        self.patch(tap, "on_signals", lambda *_, **__: None)
        self.patch(tap, "hold_signals", lambda: None)
        self.patch(tap.atexit, "register", lambda function, status: self.exits.append(status))
        self.service = tap.OperationService({"log-format": "text"}, self.reactor)
        self.service.startService()

    def test_an_operation_that_ends_stops_the_reactor(self):
        self.operation.ending.callback(Summary(5, 5, 0, 1.0, 1))
        self.assertEqual(([0], 1), (self.exits, self.reactor.stops))
        self.successResultOf(self.service.stopService())

    def test_a_reactor_that_others_stop_waits_for_the_operation(self):
        stopping = self.service.stopService()
        self.assertEqual(1, len(self.operation.stopped))
        self.assertNoResult(stopping)
        self.assertEqual([], self.exits)
        self.operation.ending.errback(Unconfirmed("stopped with its process"))
        self.successResultOf(stopping)
        self.assertEqual(([5], 0), (self.exits, self.reactor.stops))

    def test_an_operation_that_completes_while_stopping_exits_with_0(self):
        stopping = self.service.stopService()
        self.operation.ending.callback(Summary(5, 5, 0, 1.0, 1))
        self.successResultOf(stopping)
        self.assertEqual([0], self.exits)
