"""A receiver's way to its disk: what is done at once, and what in a thread."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import Command, CommandFlag, Request, ServerTransmission
from blockmig.server.backend import PlainBackend
from blockmig.storage import FileDisk
from blockmig.testing import ManualThreads
from tests.unit.support import DiskCase, RecordedCalls

MIB = 1 << 20
SIZE = 1 << 40


class ZeroTests(DiskCase):
    def setUp(self):
        self.calls = RecordedCalls()
        self.disk = self.open(self.mktemp(), size=SIZE, system=self.calls)
        self.disk.prepare()
        self.threads = ManualThreads()
        self.backend = PlainBackend(self.disk, ServerTransmission(), self.threads)
        del self.calls.made[:]

    def zero(self, offset, length, flags=0, command=Command.WRITE_ZEROES):
        return self.backend.change(Request(CommandFlag(flags), command, 0, offset, length))

    def test_a_long_hole_of_a_new_file_is_zero_at_once_and_nothing_is_done(self):
        self.assertIsNone(self.zero(0, 2 << 30))
        self.assertEqual({"lseek"}, {call[0] for call in self.calls.made})

    def test_what_was_written_is_zeroed_in_a_thread(self):
        self.disk.write(SIZE // 2, b"x")
        self.assertNoResult(self.zero(SIZE // 2 - MIB, 2 * MIB))
        self.threads.run()
        self.assertEqual(bytes(1), self.disk.read(SIZE // 2, 1))

    def test_a_hole_is_allocated_where_that_is_asked_for(self):
        self.assertNoResult(self.zero(0, 2 * MIB, CommandFlag.NO_HOLE))
        self.threads.run()
        self.assertIn("fallocate", self.calls.names())

    def test_zeroes_that_are_to_be_durable_are_made_so(self):
        self.assertNoResult(self.zero(0, 2 * MIB, CommandFlag.FUA))

    def test_a_hole_is_trimmed_as_anything_else(self):
        self.assertNoResult(self.zero(0, 2 * MIB, command=Command.TRIM))


class _Sealed(FileDisk):
    """An embedder's disk: its content is not what is in the file, so it gives no descriptor."""

    def fileno(self):
        return None

    def read(self, offset, length):
        return bytes(255 - byte for byte in super().read(offset, length))

    def write(self, offset, data):
        super().write(offset, bytes(255 - byte for byte in bytes(data)))

    def zero(self, offset, length, allocate, fast=False):
        self.write(offset, bytes(length))


class SealedTests(SynchronousTestCase):
    def test_a_hole_of_a_file_that_is_not_the_content_is_zeroed(self):
        disk = _Sealed(self.mktemp(), size=4096)
        self.addCleanup(disk.close)
        disk.prepare()
        threads = ManualThreads()
        backend = PlainBackend(disk, ServerTransmission(), threads)
        backend.change(Request(0, Command.WRITE_ZEROES, 0, 0, 4096))
        threads.run()
        self.assertEqual(bytes(4096), disk.read(0, 4096))
