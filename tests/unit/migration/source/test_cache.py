"""What was read for the copy leaves the page cache again, and what was there before stays."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred

from blockmig.migration.source import forgetting
from blockmig.nbd import Command, Export
from blockmig.testing import synchronous

from .case import ALL, QuickUnlinkableDisk, SenderCase

MIB = 1 << 20
PIECES = 83
CACHED = 64 * MIB
CONTENT = b"".join(
    random.Random(number).randbytes(4096) * (MIB // 4096) + bytes(MIB) for number in range(PIECES)
)


class PartlyCached(QuickUnlinkableDisk):
    """What is before C{CACHED} is in the cache."""

    def probe(self, offset, length):
        return super().probe(offset, length)._replace(cold=offset >= CACHED)


class CacheTests(SenderCase):
    def setUp(self):
        super().setUp()
        self.export = Export("", len(CONTENT), ALL)

    def make_disk(self):
        return PartlyCached(CONTENT)

    def forgotten(self):
        return [
            (call.offset, call.offset + call.length)
            for call in self.disk.calls
            if call.method == "forget"
        ]

    def test_what_was_read_for_the_copy_is_forgotten_and_nothing_else(self):
        self.send()
        self.summary()
        position = CACHED
        for start, end in self.forgotten():
            self.assertEqual(position, start)
            position = end
        self.assertEqual(len(CONTENT), position)

    def test_it_is_forgotten_now_and_then_with_few_calls(self):
        self.send()
        self.summary()
        self.assertLessEqual(2, len(self.forgotten()))
        self.assertLessEqual(len(self.forgotten()), 4)

    def test_that_it_cannot_be_forgotten_does_no_harm(self):
        self.disk.fail("forget", OSError(5, "broken"), times=None)
        self.send()
        self.assertEqual(1, self.summary().attempts)
        self.assertEqual(CONTENT, bytes(self.servers[0].data))

    def test_a_disk_that_is_slow_to_forget_is_not_asked_again_meanwhile(self):
        """Its calls would take all threads, and whatever else needs one would wait."""
        self.patch(forgetting, "_WORTH_A_CALL", 2)
        waiting = []

        def thread(function, *arguments):
            if function.__name__ != "_forget":
                return synchronous(function, *arguments)
            done = Deferred()
            waiting.append((done, function, arguments))
            return done

        self.keywords = {"holds": True}
        self.send(thread=thread)
        (server,) = self.servers
        while server.held[0].command != Command.FLUSH:
            request = server.held.pop(0)
            server.transport.write(b"".join(server.wire.reply(request, 0)))
            self.endpoint.pump()
            self.assertLessEqual(len(waiting), 1)
        while waiting:
            done, function, arguments = waiting.pop(0)
            done.callback(function(*arguments))
        self.assertEqual((CACHED, len(CONTENT)), (self.forgotten()[0][0], self.forgotten()[-1][1]))
