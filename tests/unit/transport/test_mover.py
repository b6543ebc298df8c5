"""Moving bytes from a socket into a disk (mover.py); the rest of it is in test_incoming.py."""

from __future__ import annotations

import errno
import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import FileDisk
from blockmig.transport import FileRegion
from blockmig.transport.mover import Mover
from tests.unit.support import SpliceCalls

SIZE = 100_000


class MoverTests(SynchronousTestCase):
    def setUp(self):
        self.disk = FileDisk(self.mktemp(), size=SIZE)
        self.addCleanup(self.disk.close)
        self.disk.prepare()
        self.ours, self.theirs = socket.socketpair()
        self.addCleanup(self.ours.close)
        self.addCleanup(self.theirs.close)
        self.calls = SpliceCalls()
        self.mover = Mover(self.calls)
        self.addCleanup(self.mover.close)
        self.errors = []

    def move(self, data, offset):
        self.theirs.send(data)
        region = FileRegion(self.disk, offset, len(data))
        return self.mover.move(self.ours.fileno(), region, self.errors.append)

    def test_what_a_disk_did_not_take_is_not_given_to_the_next_region(self):
        """It lay in the pipe."""
        self.calls.file_error = errno.ENOSPC
        self.assertEqual(1000, self.move(b"lost" * 250, 0))
        self.assertEqual([errno.ENOSPC], [error.errno for error in self.errors])
        self.calls.file_error = None
        self.assertEqual(1000, self.move(b"next" * 250, 5000))
        self.assertEqual(b"next" * 250, self.disk.read(5000, 1000))
        self.assertEqual(bytes(1000), self.disk.read(0, 1000))
        self.assertEqual(1, len(self.errors))

    def test_where_few_descriptors_are_left_there_is_no_pipe(self):
        self.calls.descriptors = lambda: (3, 1024)
        before = len(os.listdir("/proc/self/fd"))
        self.assertEqual(1000, self.move(b"data" * 250, 0))
        self.assertEqual(before, len(os.listdir("/proc/self/fd")))
        self.assertEqual(b"data" * 250, self.disk.read(0, 1000))

    def test_a_pipe_is_kept_until_it_is_closed(self):
        before = len(os.listdir("/proc/self/fd"))
        self.move(b"data", 0)
        self.move(b"more", 4)
        self.assertEqual(before + 2, len(os.listdir("/proc/self/fd")))
        self.mover.close()
        self.assertEqual(before, len(os.listdir("/proc/self/fd")))
        self.assertEqual(b"datamore", self.disk.read(0, 8))
