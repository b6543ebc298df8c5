"""Whole migrations in memory, with everything that blockmig.testing offers."""

from __future__ import annotations

import errno
import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import Destination
from blockmig.errors import AlreadyDone, GaveUp, LocalFailure, Refused, Unconfirmed
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.source.sender import Sender
from blockmig.testing import (
    ManualThreads,
    MemoryDisk,
    MemoryNetwork,
    RecordedMemoryDisk,
    UnlinkableMemoryDisk,
    synchronous,
)
from tests.support.made import made
from tests.unit.testing.test_disk import eio, full, pattern

MIB = 1 << 20


class MigrationCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.content = pattern(3 * MIB) + bytes(MIB) + pattern(MIB + 1)
        self.source = MemoryDisk(self.content, holes=[(3 * MIB, MIB)])
        self.target = MemoryDisk(len(self.content))

    def receive(self, **options):
        options = {"reactor": self.clock, "in_thread": synchronous, **options}
        self.receiver = made(Receiver, self.target, **options)
        self.port = self.network.listen("there", self.receiver.factory())
        return self.receiver.complete()

    def send(self, destination="", **options):
        options = {"reactor": self.clock, "in_thread": synchronous, **options}
        options.setdefault("retry_policy", lambda failures: 10.0)
        endpoint = self.network.client_endpoint("there")
        self.sender = made(Sender, self.source, Destination(endpoint, uri=destination), **options)
        return self.sender.run()


class MigrationTests(MigrationCase):
    def test_all_of_the_disk_arrives(self):
        received, sent = self.receive(), self.send()
        self.network.pump()
        summary = self.successResultOf(sent)
        self.assertEqual((len(self.content), 1), (summary.bytes, summary.attempts))
        self.assertEqual(MIB, summary.zeroes)
        self.assertEqual(summary.data, self.successResultOf(received).data)
        self.assertEqual(self.content, self.target.durable)
        self.assertEqual([3 * MIB], [e.offset for e in self.target.extents(0) if e.hole])
        self.assertEqual(0, self.clock.seconds())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_two_migrations_are_the_same_step_by_step(self):
        seen = []
        for _ in range(2):
            self.setUp()
            self.receive()
            self.network.result(self.send())
            counts = [(c.pieces, c.bytes) for c in self.network.connections]
            seen.append((counts, self.source.calls, self.target.calls))
        self.assertEqual(seen[0], seen[1])

    def test_the_source_is_deleted_when_asked_for(self):
        self.source = UnlinkableMemoryDisk(self.content)
        self.receive()
        self.network.result(self.send(unlink=True))
        self.assertTrue(self.source.unlinked)
        self.assertEqual(self.content, self.target.durable)

    def test_a_source_that_cannot_be_deleted_is_refused(self):
        self.receive()
        self.assertRaises(Refused, self.send, unlink=True)
        self.source = UnlinkableMemoryDisk(self.content)
        self.source.fail("unlink", OSError(errno.EACCES, "Permission denied"))
        self.assertRaises(LocalFailure, self.network.result, self.send(unlink=True))
        self.assertFalse(self.source.unlinked)

    def test_a_full_target_fails_the_receiver(self):
        received = self.receive()
        self.target.fail("write", full(), after=3, times=None)
        sent = self.send()
        self.network.pump()
        self.failureResultOf(received, LocalFailure)
        self.assertNoResult(sent)
        self.sender.stop()
        self.network.pump()
        self.failureResultOf(sent, GaveUp)
        self.assertNotEqual(self.content, self.target.content)

    def test_a_target_that_cannot_flush_fails_the_receiver(self):
        received = self.receive()
        self.target.fail("flush", eio())
        self.send().addErrback(lambda _: None)
        self.network.pump()
        self.failureResultOf(received, LocalFailure)
        self.assertEqual(bytes(len(self.content)), self.target.durable)
        self.sender.stop()
        self.network.pump()

    def test_a_source_with_a_bad_sector_fails_the_sender(self):
        received = self.receive()
        self.source.fail("read", eio(), times=None, within=range(2 * MIB, 2 * MIB + 512))
        error = self.assertRaises(LocalFailure, self.network.result, self.send())
        self.assertIn("memory", str(error))
        self.assertNoResult(received)
        self.receiver.stop()
        self.network.pump()
        self.failureResultOf(received, GaveUp)

    def test_a_cut_connection_costs_one_attempt(self):
        self.network.prepare(lambda connection: connection.cut_after(bytes=2 * MIB))
        received, sent = self.receive(), self.send()
        self.network.advance(9.9)
        self.assertEqual(1, self.receiver.attempts)
        self.assertNoResult(sent)
        self.network.advance(0.2)
        self.assertEqual(2, self.successResultOf(sent).attempts)
        self.assertEqual(2, self.successResultOf(received).attempts)
        self.assertEqual(self.content, self.target.durable)

    def test_a_connection_may_be_cut_anywhere(self):
        self.content = pattern(100_000)
        self.setUp = lambda: None
        pieces = None
        cut = 0
        while pieces is None or cut < pieces:
            self.source = MemoryDisk(self.content)
            self.target = MemoryDisk(len(self.content))
            self.network = MemoryNetwork(self.clock)
            if pieces is not None:
                at = cut
                self.network.prepare(lambda connection, at=at: connection.cut_after(pieces=at))
                cut += 1
            received, sent = self.receive(), self.send(retry=True)
            self.network.advance(30)
            self.successResultOf(sent)
            self.successResultOf(received)
            self.assertEqual(self.content, self.target.durable)
            if pieces is None:
                pieces = self.network.connections[0].pieces
        self.assertGreater(cut, 8)

    def test_a_stalled_connection_is_given_up_in_time(self):
        for _ in range(20):
            self.network.prepare(lambda connection: connection.stall())
        received, sent = self.receive(), self.send(retry=True, give_up_after=300)
        self.network.advance(299)
        self.assertNoResult(sent)
        self.network.advance(2)
        self.failureResultOf(sent, GaveUp)
        self.assertNoResult(received)

    def test_a_slow_thread_delays_the_migration(self):
        threads = ManualThreads()
        received = self.receive(in_thread=threads)
        sent = self.send()
        self.network.pump()
        self.assertNoResult(sent)
        self.assertEqual(["_write"], threads.names()[-1:], "which looks for data before")
        for last in ("write", "flush"):
            while threads.names()[-1:] != [last]:
                self.assertTrue(threads.run(1))
                self.network.pump()
            self.assertNoResult(sent)
        while threads.run():
            self.network.pump()
        self.successResultOf(sent)
        self.successResultOf(received)

    def test_a_receiver_may_start_late(self):
        sent = self.send(retry=True)
        self.network.pump()
        self.assertNoResult(sent)
        self.receive()
        self.network.advance(10)
        self.successResultOf(sent)


class RecordedTests(MigrationCase):
    def setUp(self):
        super().setUp()
        self.folder = self.mktemp()
        for host in ("source", "target"):
            os.makedirs(os.path.join(self.folder, host))
        self.source = RecordedMemoryDisk(self.content, self.path("source"))
        self.target = RecordedMemoryDisk(len(self.content), self.path("target"), blank=True)

    def path(self, host):
        return os.path.abspath(os.path.join(self.folder, host, "disk"))

    def records(self, host):
        return sorted(os.listdir(os.path.join(self.folder, host)))

    def test_a_disk_that_was_sent_is_not_sent_again(self):
        self.receive()
        self.network.result(self.send(destination="nbd://there/"))
        self.assertFalse(self.target.blank)
        self.assertEqual(["disk.MIGRATED"], self.records("source"))
        self.assertEqual([], [name for name in self.records("target") if "INCOMPLETE" in name])
        self.assertRaises(AlreadyDone, self.send, destination="nbd://there/")
        self.assertRaises(Refused, self.send, destination="nbd://elsewhere/")

    def test_a_receiver_that_crashed_can_be_restarted(self):
        received = self.receive()
        self.network.prepare(lambda connection: connection.cut_after(bytes=2 * MIB))
        sent = self.send(destination="nbd://there/")
        self.network.pump()
        self.assertIn("disk.INCOMPLETE", self.records("target"))
        self.receiver.stop()
        self.network.pump()
        self.failureResultOf(received, GaveUp)
        self.successResultOf(self.port.stopListening())
        received = self.receive()
        self.network.advance(10)
        self.successResultOf(sent)
        self.successResultOf(received)
        self.assertEqual(self.content, self.target.durable)
        self.assertEqual(["disk.MIGRATED"], self.records("source"))

    def test_a_missing_disconnect_ends_as_unconfirmed(self):
        received = self.receive()
        sent = self.send(destination="nbd://there/")
        connection = self.copied()
        self.assertIsNotNone(connection)
        connection.stall()
        self.receiver.stop()
        self.network.advance(1)
        self.failureResultOf(received, Unconfirmed)
        self.sender.stop()
        self.network.advance(60)
        self.failureResultOf(sent, Unconfirmed)
        self.assertEqual(self.content, self.target.durable)

    def copied(self):
        """Go on until all is durable over there, and no further."""
        for _ in range(100_000):
            for connection in self.network.connections:
                connection.turn()
            self.clock.advance(0)
            if self.receiver.status()["state"] == "copied":
                return self.network.connections[0]
        return None
