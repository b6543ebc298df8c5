"""Disks, endpoints and callers that do what they must not: nothing is lost, and nothing hangs."""

from __future__ import annotations

import asyncio
import errno

from twisted.internet.defer import CancelledError, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import (
    Destination,
    GaveUp,
    LocalFailure,
    Mirror,
    Patience,
    Receiver,
    Refused,
    Runtime,
    Sender,
    Server,
    Unconfirmed,
)
from blockmig.claims import check_unclaimed, forget_all
from blockmig.client import ClientFailed
from blockmig.migration.records.files import Phase
from blockmig.migration.source import sender as sender_module
from blockmig.testing import MemoryDisk, MemoryNetwork, UnlinkableMemoryDisk, synchronous

DATA = bytes(range(256)) * 800


class DeletesAndRaises(UnlinkableMemoryDisk):
    """The storage has deleted it; what it answered could not be understood."""

    error: BaseException = KeyError("no such answer")

    def unlink(self):
        super().unlink()
        raise self.error


class WritesShort(MemoryDisk):
    """It writes what fits, and says how much, as os.pwrite does."""

    def write(self, offset, data):
        count = min(len(data), 4096)
        super().write(offset, bytes(data)[:count])
        return count


class Case(SynchronousTestCase):
    def setUp(self):
        forget_all()
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.runtime = Runtime(self.clock, synchronous)
        self.there = Destination(self.network.client_endpoint("there"))

    def receive(self, disk=None):
        self.copy = disk or MemoryDisk(len(DATA))
        self.receiver = Receiver(self.copy, runtime=self.runtime)
        self.network.listen("there", self.receiver.factory())

    def send(self, disk, **options):
        self.source = disk
        self.sender = Sender(disk, self.there, runtime=self.runtime, **options)
        running = self.sender.run()
        self.network.pump()
        return running


class UnlinkTests(Case):
    def test_a_source_that_may_be_deleted_is_never_called_canonical(self):
        for error in (KeyError("no such answer"), SystemExit(1), asyncio.CancelledError()):
            self.setUp()
            self.receive()
            disk = DeletesAndRaises(DATA)
            disk.error = error
            running = self.send(disk, unlink=True)
            self.network.advance(6)
            failure = self.failureResultOf(running, Unconfirmed)
            self.assertIn("it may be deleted, or not", str(failure.value))
            # What may be the only copy is left alone: it does not say that it is worthless.
            self.assertEqual(Phase.COPIED, self.receiver._migration.record.phase)
            self.assertEqual(DATA, self.copy.durable)
            self.receiver.stop()
            self.failureResultOf(self.receiver.complete(), Unconfirmed)

    def test_a_server_acknowledges_nothing_on_a_disk_that_may_be_deleted(self):
        self.receive()
        disk = DeletesAndRaises(DATA)
        server = Server(disk, runtime=self.runtime)
        mirror = Mirror(server, self.there, unlink=True, runtime=self.runtime)
        mirror.start()
        self.network.advance(10)
        self.failureResultOf(mirror.complete(), Unconfirmed)
        self.assertEqual("stopped", server.state)
        self.assertEqual(Phase.COPIED, self.receiver._migration.record.phase)

    def test_an_error_that_the_interface_lists_leaves_the_source_canonical(self):
        self.receive()
        disk = UnlinkableMemoryDisk(DATA)
        disk.fail("unlink", OSError(errno.EIO, "broken"))
        running = self.send(disk, unlink=True)
        self.network.advance(6)
        self.failureResultOf(running, LocalFailure)
        self.assertFalse(disk.unlinked)
        self.assertEqual(Phase.COPYING, self.receiver._migration.record.phase)


class WriteTests(Case):
    def test_a_short_write_is_an_error_and_completes_nothing(self):
        self.receive(WritesShort(len(DATA)))
        running = self.send(UnlinkableMemoryDisk(DATA), unlink=True)
        self.network.advance(10)
        failure = self.failureResultOf(self.receiver.complete(), LocalFailure)
        self.assertIn("memory: write: wrote 4096 of ", str(failure.value))
        self.assertNoResult(running)
        self.assertFalse(self.source.unlinked)
        self.sender.stop()
        self.network.pump()
        self.failureResultOf(running, GaveUp)

    def test_a_write_that_returns_its_length_is_right(self):
        class Counts(MemoryDisk):
            def write(self, offset, data):
                super().write(offset, data)
                return len(data)

        self.receive(Counts(len(DATA)))
        self.successResultOf(self.send(MemoryDisk(DATA)))
        self.assertEqual(DATA, self.copy.durable)


class CancelTests(Case):
    def test_a_stop_while_the_copy_is_withdrawn_ends_as_it_was_ending(self):
        self.receive()
        disk = UnlinkableMemoryDisk(DATA)
        disk.fail("unlink", OSError(errno.EIO, "broken"))

        async def refuse(*_):
            raise ClientFailed("another connection is there", 1)

        self.patch(sender_module, "open_handoff", refuse)
        running = self.send(disk, unlink=True)
        self.assertNoResult(running)
        running.cancel()
        self.sender.stop()
        self.network.advance(6)
        self.failureResultOf(running, LocalFailure)

    def test_an_endpoint_that_is_cancelled_by_itself_is_a_failure_to_connect(self):
        for retry in (False, True):
            self.setUp()
            self.patch(self.there.endpoint, "connect", lambda _: fail(CancelledError()))
            disk = UnlinkableMemoryDisk(DATA)
            running = self.send(disk, unlink=True, patience=Patience(retry=retry))
            if retry:
                self.assertNoResult(running)
                self.sender.stop()
                self.network.pump()
            self.failureResultOf(running, GaveUp if retry else Refused)
            self.assertFalse(disk.unlinked)


class BaseExceptionTests(Case):
    """Asyncio's CancelledError is none of Exception's; a disk over such a library raises it."""

    ERRORS = (asyncio.CancelledError(), SystemExit(1))

    def test_whatever_a_source_raises_ends_its_migration(self):
        for method in ("read", "extents"):
            for error in self.ERRORS:
                self.setUp()
                self.receive()
                disk = MemoryDisk(DATA)
                disk.fail(method, error, times=None)
                running = self.send(disk)
                self.network.advance(10)
                failure = self.failureResultOf(running, LocalFailure)
                self.assertIn(f"memory: {method}: {type(error).__name__}", str(failure.value))
                check_unclaimed(disk, "it")

    def test_whatever_the_last_flush_raises_ends_its_server(self):
        for error in self.ERRORS:
            self.setUp()
            disk = MemoryDisk(DATA)
            disk.fail("flush", error, times=None)
            server = Server(disk, runtime=self.runtime)
            server.stop()
            self.network.pump()
            self.failureResultOf(server.complete(), OSError)
            self.assertEqual("stopped", server.state)
            check_unclaimed(disk, "it")
