"""The lock on a disk."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage.lock import InUse, lock_disk
from blockmig.syscalls import SystemCalls

SYSTEM = SystemCalls()
FLOCK = struct.Struct("hhqqi4x")


class LockTests(SynchronousTestCase):
    def setUp(self):
        self.path = self.mktemp()
        with open(self.path, "wb") as file:
            file.write(b"x" * 1000)

    def open(self, flags=os.O_RDWR):
        descriptor = os.open(self.path, flags)
        self.addCleanup(os.close, descriptor)
        return descriptor

    def hold(self, kind, offset):
        """Lock a byte as QEMU does."""
        descriptor = self.open()
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))

    def test_twice(self):
        for first in (True, False):
            for second in (True, False):
                one = os.open(self.path, os.O_RDWR)
                lock_disk(one, first, SYSTEM)
                self.assertRaises(InUse, lock_disk, self.open(), second, SYSTEM)
                os.close(one)
                two = os.open(self.path, os.O_RDWR)
                lock_disk(two, second, SYSTEM)
                os.close(two)

    def test_qemu_has_it(self):
        for offset in (100, 101, 103, 201, 203):
            self.setUp()
            self.hold(fcntl.F_RDLCK, offset)
            error = self.assertRaises(InUse, lock_disk, self.open(), True, SYSTEM)
            self.assertIn("QEMU", str(error))

    def test_qemu_reads_what_we_only_read(self):
        self.hold(fcntl.F_RDLCK, 100)
        self.assertIsNone(lock_disk(self.open(os.O_RDONLY), False, SYSTEM))

    def test_qemu_writes_what_we_read(self):
        self.hold(fcntl.F_RDLCK, 101)
        self.assertRaises(InUse, lock_disk, self.open(os.O_RDONLY), False, SYSTEM)

    def test_qemu_is_kept_out(self):
        for flags, writable in ((os.O_RDWR, True), (os.O_RDONLY, False)):
            descriptor = os.open(self.path, flags)
            lock_disk(descriptor, writable, SYSTEM)
            # QEMU asks for shared locks, and then whether anybody else has the others' bytes.
            for offset in (101, 201):
                question = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
                answer = fcntl.fcntl(self.open(), fcntl.F_OFD_GETLK, question)
                self.assertNotEqual(fcntl.F_UNLCK, FLOCK.unpack(answer)[0])
            os.close(descriptor)

    def test_no_locks(self):
        class Without(SystemCalls):
            def flock(self, *_):
                raise OSError(errno.ENOLCK, "no locks")

            def fcntl(self, *_):
                raise OSError(errno.EINVAL, "what?")

        self.assertIsNone(lock_disk(self.open(), True, Without()))

    def test_other_errors(self):
        class Broken(SystemCalls):
            def flock(self, *_):
                raise OSError(errno.EIO, "broken")

        self.assertRaises(OSError, lock_disk, self.open(), True, Broken())
