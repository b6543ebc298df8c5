"""A number that was closed is another file's: no call may still have it (descriptor.py)."""

from __future__ import annotations

import errno
import os
import threading

from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import DiskRefused, FileDisk
from blockmig.storage.descriptor import Descriptor
from blockmig.syscalls import SystemCalls
from tests.unit.support import DiskCase

PRECIOUS = b"precious" * 1024


class _Closes(SystemCalls):
    """Remembers what was closed, instead of closing it."""

    def __init__(self):
        self.closed = []

    def close(self, number):
        self.closed.append(number)


class DescriptorTests(SynchronousTestCase):
    def setUp(self):
        self.calls = _Closes()
        self.descriptor = Descriptor(5, "disk", self.calls)

    def test_it_is_its_number_as_long_as_it_is_open(self):
        with self.descriptor as number:
            self.assertEqual((5, 5), (number, self.descriptor.number))
        self.assertEqual([], self.calls.closed)

    def test_one_that_nobody_uses_is_closed_at_once(self):
        self.descriptor.close()
        self.assertEqual([5], self.calls.closed)
        self.assertIsNone(self.descriptor.number)

    def test_it_is_closed_once(self):
        for _ in range(3):
            self.descriptor.close()
        self.assertEqual([5], self.calls.closed)

    def test_the_last_to_leave_closes_it(self):
        with self.descriptor:
            with self.descriptor:
                self.descriptor.close()
            self.assertEqual([], self.calls.closed)
        self.assertEqual([5], self.calls.closed)

    def test_a_call_that_fails_has_left_too(self):
        with self.assertRaises(ZeroDivisionError), self.descriptor:
            self.descriptor.close()
            raise ZeroDivisionError
        self.assertEqual([5], self.calls.closed)

    def test_nobody_enters_once_it_is_to_be_closed(self):
        with self.descriptor:
            self.descriptor.close()
            with self.assertRaises(OSError) as raised, self.descriptor:
                self.fail("entered")
            self.assertEqual(errno.EBADF, raised.exception.errno)
            self.assertEqual([], self.calls.closed)
        self.assertEqual([5], self.calls.closed)

    def test_threads_that_enter_and_leave_never_have_a_closed_number(self):
        late = []

        def use():
            while True:
                try:
                    with self.descriptor as number:
                        late.extend([number] if self.calls.closed else [])
                except OSError:
                    return

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        self.descriptor.close()
        for thread in threads:
            thread.join()
        self.assertEqual(([5], []), (self.calls.closed, late))


class CloseDuringACallTests(DiskCase):
    """The disk is closed when a thread has its descriptor's number, and is about to use it."""

    def close_in(self, method, use, size=8192):
        """Close the disk in the middle of a call; returns what another file holds after that."""
        path, other = self.make(bytes(size)), self.make(PRECIOUS)
        opened = []

        class Racing(SystemCalls):
            pass

        def racing(_, *arguments):
            if not opened:
                disk.close()
                opened.append(os.open(other, os.O_RDWR))
            return getattr(SystemCalls, method)(*arguments)

        setattr(Racing, method, racing)
        disk = FileDisk(path, system=Racing())
        try:
            use(disk)
        except OSError as error:
            self.assertEqual(errno.EBADF, error.errno)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        self.assertEqual(1, len(opened), f"{method} was not called")
        self.open(path)  # the lock is free again
        return self.content(other)

    def test_a_write_does_not_reach_another_file(self):
        found = self.close_in("pwrite", lambda disk: disk.write(0, b"x" * 4096))
        self.assertEqual(PRECIOUS, found)

    def test_zeroing_does_not_reach_another_file(self):
        found = self.close_in("fallocate", lambda disk: disk.zero(0, 4096, allocate=False))
        self.assertEqual(PRECIOUS, found)

    def test_trimming_does_not_reach_another_file(self):
        found = self.close_in("fallocate", lambda disk: disk.trim(0, 4096))
        self.assertEqual(PRECIOUS, found)

    def test_a_read_returns_nothing_of_another_file(self):
        self.close_in("pread", lambda disk: self.assertEqual(bytes(100), disk.read(0, 100)))

    def test_a_flush_that_returns_has_flushed_this_file(self):
        flushed = []

        class Racing(SystemCalls):
            def fdatasync(self, descriptor):
                disk.close()
                flushed.append(os.fstat(descriptor).st_ino)
                os.fdatasync(descriptor)

        path = self.make()
        disk = FileDisk(path, system=Racing())
        disk.flush()
        self.assertEqual([os.stat(path).st_ino], flushed)

    def test_the_disk_stays_locked_until_the_call_has_ended(self):
        path = self.make()

        class Racing(SystemCalls):
            def pwrite(self, descriptor, data, offset):
                disk.close()
                case.refused(path)
                return os.pwrite(descriptor, data, offset)

        case, disk = self, FileDisk(path, system=Racing())
        disk.write(0, b"whole")
        self.assertEqual(b"whole", self.open(path).read(0, 5))


class CloseTests(SynchronousTestCase):
    def test_an_error_of_the_closing_itself_is_nobodys(self):
        """The file system is gone: what was done with the file has failed before."""

        class Gone(SystemCalls):
            def close(self, descriptor):
                os.close(descriptor)
                raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

        path = os.path.abspath(self.mktemp())
        with open(path, "wb") as file:
            file.write(b"12345")
        disk = FileDisk(path, system=Gone())
        disk.close()
        disk.close()
        self.assertRaises(OSError, disk.read, 0, 1)


class UnlinkTests(SynchronousTestCase):
    def test_the_lock_is_kept_until_the_file_is_deleted(self):
        """Whoever gets the lock before that has a disk that is about to go."""
        path, test = os.path.abspath(self.mktemp()), self

        class Closing(SystemCalls):
            def unlink(self, path):
                disk.close()
                test.assertRaises(DiskRefused, FileDisk, path)
                os.unlink(path)

        with open(path, "wb") as file:
            file.write(b"12345")
        disk = FileDisk(path, system=Closing())
        disk.unlink()
        self.assertFalse(os.path.exists(path))
        with open(path, "wb") as file:
            file.write(b"12345")
        FileDisk(path).close()
