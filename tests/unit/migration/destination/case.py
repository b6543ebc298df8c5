"""A receiver that is driven by hand."""

from __future__ import annotations

import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.nbd import Command
from blockmig.testing import ManualThreads, synchronous
from tests.support.made import made
from tests.unit.support import (
    ADDRESS,
    ONE,
    Client,
    HandoffClient,
    QuickRecordedDisk,
    Story,
)

WRITE, READ, FLUSH, DISC = Command.WRITE, Command.READ, Command.FLUSH, Command.DISC
SIZE = 5000
DATA = bytes(range(250)) * 20


class ReceiverCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.directory = directory
        self.disk = QuickRecordedDisk(b"o" * SIZE, directory + "/disk")
        self.records = Records(self.disk.path)
        self.system = Story()
        self.make()

    def make(self, thread=synchronous, **keywords):
        keywords = {"system": self.system, **keywords}
        keywords.setdefault("overwrite", True)
        self.receiver = made(Receiver, self.disk, reactor=self.clock, in_thread=thread, **keywords)
        self.outcome = self.receiver.complete()

    def threads(self):
        threads = ManualThreads()
        self.make(threads)
        return threads

    def client(self, cookie=100):
        connection = self.receiver.factory().buildProtocol(ADDRESS)
        client = Client(self.clock, connection, cookie=cookie)
        client.drain = self.drain
        return client

    def handoff(self):
        client = HandoffClient(self.clock, self.receiver.factory().buildProtocol(ADDRESS))
        client.drain = self.drain
        return client

    def drain(self):
        """Nothing, where threads are done at once or when the test says so."""

    def record(self):
        return self.records.read(Kind.INCOMPLETE)

    def names(self):
        return sorted(os.listdir(self.directory))

    def changes(self):
        """What was done to the disk's content."""
        return [name for name in self.disk.names() if name in ("write", "zero", "trim")]

    def waits(self):
        self.clock.advance(0)
        self.assertNoResult(self.outcome)

    def ends_with(self, kind, status, *words):
        self.clock.advance(0)
        error = self.failureResultOf(self.outcome, kind).value
        self.assertEqual(status, error.status)
        for word in words:
            self.assertIn(word, str(error))
        self.assertNotIn("\n", str(error))

    def claimed(self, migration=ONE, cookie=7):
        """A sender of ours that said so, and its handoff export."""
        handoff = self.handoff()
        self.assertEqual(0, handoff.notify("copying", migration, cookie))
        return self.client(cookie), handoff

    def begun(self, migration=ONE, cookie=7):
        """A sender of ours whose attempt has begun."""
        client, handoff = self.claimed(migration, cookie)
        client.write(0, DATA[:1])
        self.assertEqual([0], client.errors())
        return client, handoff

    def copied(self, migration=ONE, cookie=7):
        client, handoff = self.claimed(migration, cookie)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        self.assertEqual(0, handoff.notify("copied", migration, cookie))
        self.assertEqual(Phase.COPIED, self.record().phase)
        return client, handoff

    def retired(self):
        client, handoff = self.copied()
        self.assertEqual(0, handoff.notify("retired"))
        return client, handoff

    def foreign(self):
        """A whole copy by a sender that says nothing of itself."""
        client = self.client()
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        return client

    def stand(self, phase, **changes):
        """A record that an earlier receiver left."""
        source = Location("there", "/source")
        fields = {"identified": True, **changes}
        record = Record(ONE, Phase(phase), 2, SIZE, source, Location(), "then", **fields)
        self.records.write(Kind.INCOMPLETE, record)
        self.make()
