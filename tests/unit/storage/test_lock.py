"""Locks on a disk, ours and QEMU's."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage.lock import InUse, check_unlocked, lock_disk
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

    def test_a_locked_disk_cannot_be_locked_again(self):
        for first in (True, False):
            for second in (True, False):
                one = os.open(self.path, os.O_RDWR)
                lock_disk(one, first, SYSTEM)
                self.assertRaises(InUse, lock_disk, self.open(), second, SYSTEM)
                os.close(one)
                two = os.open(self.path, os.O_RDWR)
                lock_disk(two, second, SYSTEM)
                os.close(two)

    def test_a_disk_that_QEMU_has_locked_is_in_use(self):
        for offset in (100, 101, 103, 201, 203):
            self.setUp()
            self.hold(fcntl.F_RDLCK, offset)
            error = self.assertRaises(InUse, lock_disk, self.open(), True, SYSTEM)
            self.assertIn("QEMU", str(error))

    def test_QEMU_and_we_may_both_read_a_disk(self):
        self.hold(fcntl.F_RDLCK, 100)
        self.assertIsNone(lock_disk(self.open(os.O_RDONLY), False, SYSTEM))

    def test_a_disk_that_QEMU_writes_is_refused_to_a_reader(self):
        self.hold(fcntl.F_RDLCK, 101)
        self.assertRaises(InUse, lock_disk, self.open(os.O_RDONLY), False, SYSTEM)

    def test_our_lock_keeps_QEMU_from_writing(self):
        for flags, writable in ((os.O_RDWR, True), (os.O_RDONLY, False)):
            descriptor = os.open(self.path, flags)
            lock_disk(descriptor, writable, SYSTEM)
            # QEMU asks for shared locks, and then whether anybody else has the others' bytes.
            for offset in (101, 201):
                question = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
                answer = fcntl.fcntl(self.open(), fcntl.F_OFD_GETLK, question)
                self.assertNotEqual(fcntl.F_UNLCK, FLOCK.unpack(answer)[0])
            os.close(descriptor)

    def test_a_check_takes_no_lock(self):
        one = self.open(os.O_RDONLY)
        check_unlocked(one, SYSTEM)
        lock_disk(self.open(), True, SYSTEM)
        self.assertRaises(InUse, check_unlocked, one, SYSTEM)

    def test_a_check_finds_what_a_reader_is_refused_for(self):
        self.hold(fcntl.F_RDLCK, 100)
        check_unlocked(self.open(os.O_RDONLY), SYSTEM)
        self.hold(fcntl.F_RDLCK, 101)
        error = self.assertRaises(InUse, check_unlocked, self.open(os.O_RDONLY), SYSTEM)
        self.assertIn("QEMU", str(error))
        self.setUp()
        self.hold(fcntl.F_WRLCK, 250)
        self.assertRaises(InUse, check_unlocked, self.open(os.O_RDONLY), SYSTEM)

    def test_a_file_system_without_locks_is_accepted(self):
        class Without(SystemCalls):
            def flock(self, *_):
                raise OSError(errno.ENOLCK, "no locks")

            def fcntl(self, *_):
                raise OSError(errno.EINVAL, "what?")

        self.assertIsNone(lock_disk(self.open(), True, Without()))
        self.assertIsNone(check_unlocked(self.open(), Without()))

    def test_other_errors_of_locking_are_raised(self):
        class Broken(SystemCalls):
            def flock(self, *_):
                raise OSError(errno.EIO, "broken")

        self.assertRaises(OSError, lock_disk, self.open(), True, Broken())
