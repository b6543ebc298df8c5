"""A server of a disk that is not ours: clients get an answer, and whoever runs it the count."""

from __future__ import annotations

import errno

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Refused, Runtime, Server
from blockmig.interfaces import Extent
from blockmig.server import DiskAccess, LatencyMonitor
from blockmig.storage import guard
from blockmig.syscalls import SYSTEM
from blockmig.testing import ManualThreads, MemoryDisk, MemoryNetwork, connect_client, synchronous

SIZE = 300_000
CONTENT = bytes(range(250)) * 1200


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.disk = MemoryDisk(CONTENT)
        self.threads = synchronous

    def serve(self):
        self.server = Server(self.disk, runtime=Runtime(self.clock, self.threads))
        self.network.listen("there", self.server.factory())
        there = self.network.client_endpoint("there")
        self.client = self.network.result(connect_client(there))


class ErrorTests(Case):
    def setUp(self):
        super().setUp()
        self.serve()

    def answered(self, call, *arguments, **keywords):
        return self.network.result(call(*arguments, **keywords))

    def check_fails(self, method, command, call, *arguments, **keywords):
        self.disk.fail(method, KeyError("session expired"))
        error = self.assertRaises(OSError, self.answered, call, *arguments, **keywords)
        self.assertEqual(errno.EIO, error.errno)
        status = self.server.status()
        self.assertEqual(1, status["errors"])
        self.assertRegex(
            status["last_error"], f"^{command}( at 5)?: {method}: KeyError: 'session expired'$"
        )
        # The connection is as good as before.
        self.answered(call, *arguments, **keywords)
        self.assertEqual(CONTENT[1000:1010], self.answered(self.client.read, 1000, 10))
        self.flushLoggedErrors()

    def test_a_read_that_raises_anything_is_answered_with_EIO_and_counted(self):
        self.check_fails("read", "READ", self.client.read, 5, 100)

    def test_a_large_read_too(self):
        self.check_fails("read", "READ", self.client.read, 5, 200_000)

    def test_a_write_too(self):
        self.check_fails("write", "WRITE", self.client.write, 5, b"data")

    def test_a_zero_too(self):
        self.check_fails("zero", "WRITE_ZEROES", self.client.zero, 5, 10)

    def test_a_trim_too(self):
        self.check_fails("trim", "TRIM", self.client.trim, 5, 10)

    def test_a_flush_too(self):
        self.check_fails("flush", "FLUSH", self.client.flush)

    def test_the_errno_of_the_disk_is_the_clients(self):
        self.disk.fail("write", OSError(errno.ENOSPC, "full"))
        error = self.assertRaises(OSError, self.answered, self.client.write, 0, b"x")
        self.assertEqual(errno.ENOSPC, error.errno)
        self.assertEqual("WRITE at 0: write: full", self.server.status()["last_error"])

    def test_a_read_of_the_wrong_length_is_answered_with_EIO(self):
        read = self.disk.read
        for more in (-1, 1, -100):
            self.disk.read = lambda offset, length, more=more: read(offset, length + more)
            error = self.assertRaises(OSError, self.answered, self.client.read, 7, 100)
            self.assertEqual(errno.EIO, error.errno)
            self.disk.read = read
            self.assertEqual(CONTENT[7:107], self.answered(self.client.read, 7, 100))
        self.assertEqual(3, self.server.status()["errors"])

    def test_the_last_flush_names_the_method(self):
        self.disk.fail("flush", KeyError("session expired"), times=None)
        done = self.server.complete()
        self.network.result(self.client.disconnect())
        self.server.stop()
        self.network.pump()
        error = self.failureResultOf(done, OSError).value
        self.assertEqual((errno.EIO, "flush: KeyError: 'session expired'"), error.args)


class ExtentTests(SynchronousTestCase):
    def test_extents_that_do_not_add_up_are_an_error_of_the_status(self):
        disk = MemoryDisk(CONTENT)
        disk.extents = lambda offset: iter([Extent(offset + 1, 5, True)])
        access = DiskAccess(guard(disk), synchronous, LatencyMonitor(), SYSTEM)
        error = self.failureResultOf(access.status(0, SIZE, one=False), OSError).value
        self.assertEqual("extents: one begins at 1, not at 0", error.strerror)


class ThreadTests(Case):
    def test_nothing_is_done_to_it_in_the_reactors_thread(self):
        self.threads = ManualThreads()
        self.serve()
        client = self.client
        for call, arguments in (
            (client.read, (0, 10)),
            (client.read, (0, 200_000)),
            (client.write, (0, b"x")),
            (client.zero, (0, 10)),
            (client.trim, (0, 10)),
            (client.flush, ()),
        ):
            waiting = call(*arguments)
            self.network.pump()
            self.assertEqual([], self.disk.calls)
            self.assertNoResult(waiting)
            self.threads.run()
            self.network.pump()
            self.successResultOf(waiting)
            self.assertNotEqual([], self.disk.calls)
            self.disk.calls.clear()


class GivenDiskTests(Case):
    def test_what_cannot_be_a_disk_is_refused(self):
        self.disk.size = 0
        error = self.assertRaises(Refused, self.serve)
        self.assertEqual("memory: its size is 0, and must be a number of bytes above 0", str(error))

    def test_the_disk_of_a_server_is_the_one_that_was_given(self):
        self.serve()
        self.assertIs(self.disk, self.server.disk)
