"""The sender says that its destination does not answer, whatever it waits for."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import GaveUp
from blockmig.migration.source.silence import Silence
from blockmig.nbd import Export

from .case import ALL, FLUSH, QuickUnlinkableDisk, SenderCase

URI = "nbd://there/"


class Case(SynchronousTestCase):
    def setUp(self):
        super().setUp()
        self.events = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def said(self):
        """What was said since this was last asked."""
        lines = [formatEvent(event) for event in self.events if event.get("event") == "no-answer"]
        self.events.clear()
        return lines


class SilenceTests(Case):
    def setUp(self):
        super().setUp()
        self.clock = Clock()
        self.silence = Silence(self.clock, URI)

    def test_it_is_said_after_ten_seconds_and_again_each_minute(self):
        self.silence.begins("it")
        self.clock.pump([1] * 9)
        self.assertEqual([], self.said())
        self.clock.pump([3])
        self.assertEqual([f"no answer from {URI} for 12 s"], self.said())
        self.clock.pump([1] * 59)
        self.assertEqual([], self.said())
        self.clock.pump([1])
        self.assertEqual([f"no answer from {URI} for 72 s"], self.said())
        self.clock.pump([1] * 60)
        self.assertEqual([f"no answer from {URI} for 132 s"], self.said())

    def test_what_is_heard_breaks_it(self):
        self.silence.begins("it")
        self.clock.pump([1] * 9)
        self.silence.broken()
        self.clock.pump([1] * 9)
        self.assertEqual([], self.said())
        self.clock.pump([1])
        self.assertEqual([f"no answer from {URI} for 10 s"], self.said())
        self.silence.broken()
        self.clock.pump([1] * 60)
        self.assertEqual(1, len(self.said()))

    def test_nothing_is_said_where_nothing_is_waited_for(self):
        self.silence.begins("one")
        self.silence.begins("the other")
        self.silence.ends("one")
        self.assertEqual(1, len(self.clock.getDelayedCalls()))
        self.silence.ends("the other")
        self.assertEqual([], self.clock.getDelayedCalls())
        self.clock.pump([100])
        self.silence.begins("it")
        self.clock.pump([1] * 9)
        self.assertEqual([], self.said())
        self.silence.over()
        self.assertEqual([], self.clock.getDelayedCalls())


class SenderTests(Case, SenderCase):
    def begin(self, **keywords):
        self.send(destination=URI, **keywords)

    def check_silent(self):
        self.assertEqual([], self.said())
        self.pass_time(12)
        self.assertEqual([f"no answer from {URI} for 12 s"], self.said())

    def check_ends(self):
        self.sender.stop()
        self.endpoint.pump()
        self.failure(GaveUp)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_while_it_connects(self):
        self.endpoint.connect = lambda factory: Deferred()
        self.begin()
        self.check_silent()
        self.check_ends()

    def test_while_it_shakes_hands(self):
        self.endpoint.build = Protocol
        self.begin()
        self.check_silent()
        self.check_ends()

    def test_while_it_copies(self):
        self.keywords = {"holds": True}
        self.begin()
        self.check_silent()
        self.servers[0].holds = False
        self.servers[0].release()
        self.endpoint.pump()
        self.assertEqual([], self.said())
        self.assertEqual(1, self.summary().attempts)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_while_it_waits_for_a_flush(self):
        self.keywords = {"answer": lambda request: None if request.command == FLUSH else 0}
        self.begin()
        self.check_silent()
        self.check_ends()

    def test_not_while_the_destination_takes_a_request(self):
        """Nor is that one dropped: a slow line, or a rate limit, may need longer for it."""
        self.disk = QuickUnlinkableDisk(b"x" * (2 << 20))
        self.export = Export("", self.disk.size, ALL)
        self.begin(max_rate=64 << 10, reply_timeout=5)
        while not self.outcome.called and self.clock.seconds() < 100:
            self.pass_time(0.25)
        self.assertEqual(1, self.summary().attempts)
        self.assertEqual([], self.said())
