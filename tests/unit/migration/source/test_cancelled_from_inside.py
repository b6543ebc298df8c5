"""What cancels itself has failed: a sender tries again, and does not take it for its own stop."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Destination, GaveUp, Patience, Receiver, Runtime, Sender, Summary
from blockmig.testing import MemoryDisk, MemoryNetwork, synchronous

SIZE = 100_000


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.receiver = Receiver(MemoryDisk(SIZE), runtime=Runtime(self.clock, synchronous))
        self.network.listen("there", self.receiver.factory())
        self.endpoint = self.network.client_endpoint("there")
        self.calls = []

    def send(self, threads=synchronous):
        self.sender = sender = Sender(
            MemoryDisk(b"x" * SIZE),
            Destination(self),
            patience=Patience(retry=True, retry_policy=lambda failures: 1.0),
            runtime=Runtime(self.clock, threads),
        )
        outcome = sender.run()
        self.network.pump()
        self.network.advance(60)
        return outcome

    def connect(self, factory):
        """As an endpoint; one with a time limit of its own cancels itself."""
        self.calls.append("connect")
        if len(self.calls) == self.cancelled:
            return fail(CancelledError())
        return self.endpoint.connect(factory)

    cancelled = 0


class EndpointTests(Case):
    def test_another_attempt_follows_where_the_side_exports_connection_was_cancelled(self):
        self.cancelled = 2
        self.assertIsInstance(self.successResultOf(self.send()), Summary)
        self.assertGreater(len(self.calls), 2)
        self.successResultOf(self.receiver.complete())


class LateEndpointTests(Case):
    """An endpoint that cannot be cancelled connects when nobody waits for it any more."""

    late = 0

    def connect(self, factory):
        self.calls.append("connect")
        if len(self.calls) != self.late:
            return self.endpoint.connect(factory)
        self.connecting = Deferred()
        self.factory = factory
        return self.connecting

    def connects(self):
        self.endpoint.connect(self.factory).addBoth(self.connecting.callback)
        self.network.advance(10)

    def test_nothing_is_sent_after_a_stop(self):
        for self.late in (1, 2):
            self.setUp()
            outcome = self.send()
            self.assertNoResult(outcome)
            self.sender.stop()
            self.network.advance(10)
            self.failureResultOf(outcome, GaveUp)
            self.connects()
            self.assertEqual((0, []), (self.receiver.attempts, self.receiver.status()["clients"]))
            self.flushLoggedErrors()

    def test_a_connection_that_comes_after_its_attempt_has_failed_is_closed(self):
        self.late = 1
        outcome = self.send()
        self.connecting.errback(ConnectError("it took too long"))
        self.connecting = Deferred()
        self.endpoint.connect(self.factory).addBoth(self.connecting.callback)
        self.network.advance(10)
        self.assertIsInstance(self.successResultOf(outcome), Summary)
        self.assertEqual(1, self.receiver.attempts)


class ThreadTests(Case):
    def test_another_attempt_follows_a_step_that_was_cancelled_in_its_thread(self):
        """As by a pool of threads that is being closed."""
        failing = [True]

        def in_thread(function, *arguments):
            if "record" in function.__name__ and failing:
                failing.clear()
                return fail(CancelledError())
            return synchronous(function, *arguments)

        summary = self.successResultOf(self.send(in_thread))
        self.assertEqual((2, []), (summary.attempts, failing))
