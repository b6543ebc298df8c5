"""Disks, endpoints and callers that do what they must not: nothing is lost, and nothing hangs."""

from __future__ import annotations

import asyncio
import errno
import os
import pathlib

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from blockmig import (
    Destination,
    GaveUp,
    LocalFailure,
    Mirror,
    Overrides,
    Patience,
    Receiver,
    Refused,
    Runtime,
    Sender,
    Server,
    Unconfirmed,
    resume,
)
from blockmig.claims import check_unclaimed, forget_all
from blockmig.client import ClientFailed
from blockmig.interfaces import IWatchedDisk
from blockmig.migration.records.files import Phase
from blockmig.migration.source import sender as sender_module
from blockmig.storage import DiskVersion
from blockmig.testing import (
    MemoryDisk,
    MemoryNetwork,
    RecordedMemoryDisk,
    UnlinkableMemoryDisk,
    connect_client,
    synchronous,
)

DATA = bytes(range(256)) * 800


class DeletesAndRaises(UnlinkableMemoryDisk):
    """The storage has deleted it; what it answered could not be understood."""

    error: BaseException = KeyError("no such answer")

    def unlink(self):
        super().unlink()
        raise self.error


@implementer(IWatchedDisk)
class WatchedMemoryDisk(UnlinkableMemoryDisk):
    """Nobody else has got at it."""

    def check_path(self): ...

    def is_gone(self):
        return False

    def version(self, sync=True):
        return DiskVersion((1,), (1,))

    def rescue(self, announce=None):
        return self.name


async def coroutine(*_): ...


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


class ResultTests(Case):
    """Methods that return nothing, but something else instead: a Deferred, a coroutine."""

    def check_lost(self, running, method):
        """Nothing was deleted for a copy that is not there."""
        self.network.advance(10)
        failure = self.failureResultOf(self.receiver.complete(), LocalFailure)
        self.assertIn(f"{method}: returned an object of type ", str(failure.value))
        self.assertFalse(self.source.unlinked)
        self.sender.stop()
        self.network.pump()
        self.failureResultOf(running, GaveUp)

    def test_a_flush_that_has_only_begun_makes_nothing_durable(self):
        for result in (Deferred, coroutine):
            self.setUp()
            disk = MemoryDisk(len(DATA))
            disk.flush = result
            self.receive(disk)
            running = self.send(UnlinkableMemoryDisk(DATA), unlink=True)
            self.check_lost(running, "flush")

    def test_a_zero_that_has_only_begun_zeroes_nothing(self):
        disk = MemoryDisk(b"x" * len(DATA))
        disk.zero = lambda *_: Deferred()
        self.copy = disk
        self.receiver = Receiver(disk, overrides=Overrides(overwrite=True), runtime=self.runtime)
        self.network.listen("there", self.receiver.factory())
        running = self.send(UnlinkableMemoryDisk(bytes(len(DATA))), unlink=True)
        self.check_lost(running, "zero")

    def test_a_clients_flush_that_has_only_begun_is_an_error(self):
        disk = MemoryDisk(DATA)
        disk.flush = Deferred
        server = Server(disk, runtime=self.runtime)
        self.network.listen("there", server.factory())
        client = self.network.result(connect_client(self.there.endpoint))
        error = self.assertRaises(OSError, self.network.result, client.flush())
        self.assertEqual(errno.EIO, error.errno)
        server.stop()
        self.network.pump()
        self.failureResultOf(server.complete(), OSError)

    def test_an_unlink_that_has_only_begun_may_have_deleted_the_source(self):
        for result in (Deferred, coroutine):
            self.setUp()
            self.receive()
            disk = UnlinkableMemoryDisk(DATA)
            disk.unlink = result
            running = self.send(disk, unlink=True)
            self.network.advance(6)
            failure = self.failureResultOf(running, Unconfirmed)
            self.assertIn("it may be deleted, or not", str(failure.value))
            self.assertEqual(Phase.COPIED, self.receiver._migration.record.phase)
            self.receiver.stop()
            self.failureResultOf(self.receiver.complete(), Unconfirmed)

    def test_whether_a_source_is_gone_is_not_taken_from_a_coroutine(self):
        """It is true, and nothing was removed."""
        for mirrored in (False, True):
            self.setUp()
            self.receive()
            disk = WatchedMemoryDisk(DATA)
            disk.is_gone = coroutine
            if mirrored:
                server = Server(disk, runtime=self.runtime)
                sending = Mirror(server, self.there, unlink=True, runtime=self.runtime)
                sending.start()
            else:
                sending = Sender(disk, self.there, unlink=True, runtime=self.runtime)
                sending.run().addErrback(lambda _: None)
            self.network.advance(6)
            failure = self.failureResultOf(sending.complete(), LocalFailure)
            self.assertIn("is_gone: returned an object of type coroutine", str(failure.value))
            self.assertIn("it cannot be found out whether it is still there", str(failure.value))
            self.assertFalse(disk.unlinked)


class PathTests(Case):
    """What a disk has beside the interfaces, by chance."""

    def test_a_path_that_is_no_text_is_written_down_as_text(self):
        for of_source in (True, False):
            self.setUp()
            source, copy = MemoryDisk(DATA), MemoryDisk(len(DATA))
            (source if of_source else copy).path = pathlib.Path("/backups/disk")
            self.receive(copy)
            self.successResultOf(self.send(source))
            self.successResultOf(self.receiver.complete())

    def test_a_path_of_the_records_that_is_none_is_refused(self):
        disk = RecordedMemoryDisk(DATA, os.path.abspath(self.mktemp()))
        disk.record_path = None
        for make in (
            lambda: Sender(disk, self.there, runtime=self.runtime),
            lambda: Receiver(disk, runtime=self.runtime),
            lambda: Server(disk, runtime=self.runtime),
            lambda: resume(disk, self.there, runtime=self.runtime),
        ):
            self.assertIn("record_path is None", str(self.assertRaises(Refused, make)))


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
