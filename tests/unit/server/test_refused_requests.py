"""The log of requests that are refused (server/refused_requests.py)."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import Export, Request, TransmissionFlag
from blockmig.server.refused_requests import RefusedRequests

EXPORT = Export("", 100_000, TransmissionFlag.HAS_FLAGS, maximum_payload=1000)
READ = 0


class RefusedRequestsTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.refused = RefusedRequests(self.clock.seconds)
        self.lines = []

        def observe(event):
            if event.get("event") == "request-refused":
                self.assertEqual(LogLevel.warn, event["log_level"])
                self.lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def note(self, command=READ, offset=0, length=3000, peer="one"):
        self.refused.note(peer, Request(0, command, 0, offset, length), EXPORT)

    def test_each_kind_has_a_line_a_minute(self):
        for peer in ("one", "two", "three"):
            self.note(peer=peer)
            self.note(offset=200_000, peer=peer)
        first = [
            "one: refused a READ of 3000 bytes at 0: at most 2000 bytes are served at a time",
            "one: refused a READ of 3000 bytes at 200000: the disk has 100000 bytes",
        ]
        self.assertEqual(first, self.lines)
        self.clock.advance(59)
        self.note()
        self.assertEqual(2, len(self.lines))
        self.clock.advance(1)
        self.note(peer="four")
        self.assertEqual(3, len(self.lines))
        self.assertTrue(self.lines[2].startswith("four: refused a READ"))
        self.assertTrue(self.lines[2].endswith("(and 3 more since the line before)"))

    def test_a_client_cannot_make_up_kinds_without_end(self):
        for command in range(100, 100 + 1000):
            self.note(command=command, length=1)
        self.assertEqual(65, len(self.lines))
        self.assertIn("refused a command 100 of 1 bytes", self.lines[0])
