"""Disks in real files (disk.py, file.py and deletable.py)."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from blockmig import syscalls as kernel
from blockmig.storage import (
    BlockDisk,
    DiskRefused,
    FileDisk,
    NotDurable,
    deletable,
    has_descriptor,
    held_descriptor,
    is_untouched,
    record_paths,
)
from blockmig.storage import file as file_module
from blockmig.syscalls import SystemCalls
from blockmig.testing import MemoryDisk
from tests.unit.support import DiskCase, RecordedCalls

MIB = 1 << 20


class OpenTests(DiskCase):
    def test_a_disk_has_the_exact_size_of_its_file(self):
        for size in (1, 511, 5000, 65537):
            disk = self.open(self.make(b"y" * size))
            self.assertEqual((size, False), (disk.size, disk.created))
            self.assertIsInstance(disk, FileDisk)

    def test_no_payload_is_moved_by_the_descriptor_of_a_file_on_what_may_hang(self):
        """sendfile(2) and splice(2) are called in the reactor's thread."""
        for kind, moved in (("ext4", True), ("nfs4", False), ("fuse.sshfs", False)):
            self.patch(file_module, "filesystem_of", lambda _, kind=kind: kind)
            disk = self.open(self.make(b"12345"))
            self.assertEqual(moved, disk.fileno() is not None, kind)
            self.assertTrue(has_descriptor(disk))
            with held_descriptor(disk) as descriptor:
                self.assertEqual(b"12345", os.pread(descriptor, 9, 0))
            disk.close()
            self.assertFalse(has_descriptor(disk))

    def test_a_missing_file_is_created_and_gets_its_size_when_prepared(self):
        path = self.mktemp()
        disk = self.open(path, size=10 * MIB + 1)
        self.assertEqual((True, 10 * MIB + 1), (disk.created, disk.size))
        self.assertEqual(0, os.stat(path).st_size)
        for _ in range(2):
            disk.prepare()
            status = os.stat(path)
            self.assertEqual((10 * MIB + 1, 0), (status.st_size, status.st_blocks))
            self.assertEqual(0o600, status.st_mode & 0o777)

    def test_a_new_file_stays_empty_until_it_is_prepared(self):
        """A crash before the record is written must leave nothing that looks like a disk."""
        path = self.mktemp()
        disk = self.open(path, size=5000)
        self.assertIsNone(disk.fileno())
        self.assertEqual(bytes(100), disk.read(4900, 100))
        disk.close()
        self.assertRaises(OSError, disk.read, 0, 1)
        self.assertEqual(0, os.stat(path).st_size)
        again = self.open(path, size=6000)
        self.assertEqual((False, 6000), (again.created, again.size))
        again.prepare()
        self.assertIsNotNone(again.fileno())
        self.assertEqual(6000, os.stat(path).st_size)
        self.assertEqual(b"", again.read(0, 0))

    def test_an_empty_file_is_refused_as_a_source(self):
        self.assertIn("empty", self.refused(self.make(b""), writable=False, size=5000))

    def test_preparing_a_file_that_has_its_size_does_nothing(self):
        path = self.make()
        calls = RecordedCalls()
        disk = self.open(path, size=5000, system=calls)
        self.assertIsNotNone(disk.fileno())
        disk.prepare()
        self.assertNotIn("ftruncate", calls.names())

    def test_an_existing_file_of_the_right_size_is_opened_unchanged(self):
        path = self.make()
        self.assertFalse(self.open(path, size=5000).created)
        self.assertEqual(b"x" * 5000, self.content(path))

    def test_an_existing_file_of_another_size_is_refused_unchanged(self):
        path = self.make()
        for size in (4999, 5001):
            words = self.refused(path, size=size)
            self.assertIn("5000", words)
            self.assertIn(str(size), words)
        self.assertEqual(b"x" * 5000, self.content(path))

    def test_a_missing_file_without_a_size_is_refused(self):
        path = self.mktemp()
        self.assertIn("no such file", self.refused(path))
        self.assertIn("no such file", self.refused(path, writable=False))
        self.assertFalse(os.path.exists(path))

    def test_a_file_in_a_missing_directory_is_refused(self):
        self.refused(self.mktemp() + "/no/where", size=5)

    def test_creating_a_file_of_no_size_is_refused(self):
        path = self.mktemp()
        for size in (0, -5):
            self.refused(path, size=size)
        self.assertFalse(os.path.exists(path))

    def test_a_new_file_that_cannot_get_its_size_stays_empty(self):
        path = self.mktemp()
        disk = self.open(path, size=5000, system=RecordedCalls(ftruncate=errno.EFBIG))
        for _ in range(2):
            self.assertEqual(errno.EFBIG, self.assertRaises(OSError, disk.prepare).errno)
            self.assertIsNone(disk.fileno())
        self.assertEqual(0, os.stat(path).st_size)
        disk.discard()
        self.assertFalse(os.path.exists(path))

    def test_a_directory_is_refused(self):
        path = self.mktemp()
        os.mkdir(path)
        for writable in (True, False):
            self.assertIn("directory", self.refused(path, writable=writable).lower())

    def test_an_empty_file_without_a_size_is_refused(self):
        self.assertIn("empty", self.refused(self.make(b"")))

    def test_a_FIFO_is_refused(self):
        path = self.mktemp()
        os.mkfifo(path)
        for writable in (True, False):
            self.refused(path, writable=writable)

    def test_a_block_disk_refuses_what_is_not_a_device(self):
        path = self.make()
        self.assertRaises(DiskRefused, BlockDisk, path)
        self.assertRaises(DiskRefused, BlockDisk, self.mktemp())

    def test_a_disk_that_is_open_cannot_be_opened_again(self):
        path = self.make()
        disk = self.open(path)
        for writable in (True, False):
            self.assertIn("in use", self.refused(path, writable=writable))
        disk.close()
        self.open(path)

    def test_a_refusal_closes_the_descriptor(self):
        path = self.make(b"")
        calls = RecordedCalls()
        self.refused(path, system=calls)
        self.assertEqual(1, calls.names().count("open"))
        self.assertEqual(1, calls.names().count("close"))

    def test_the_disk_is_locked_before_its_size_is_read(self):
        path = self.make()
        calls = RecordedCalls()
        self.open(path, system=calls)
        names = calls.names()
        self.assertLess(names.index("flock"), names.index("lseek"))

    def test_a_new_file_is_locked_before_it_is_truncated(self):
        calls = RecordedCalls()
        self.open(self.mktemp(), size=5, system=calls).prepare()
        self.assertLess(calls.names().index("flock"), calls.names().index("ftruncate"))

    def test_a_file_system_without_locks_is_accepted(self):
        self.open(self.make(), system=RecordedCalls(flock=errno.ENOLCK, fcntl=errno.EINVAL))

    def test_closing_a_disk_twice_is_harmless(self):
        disk = self.open(self.make())
        self.assertIsInstance(disk.fileno(), int)
        disk.close()
        disk.close()
        self.assertIsNone(disk.fileno())
        error = self.assertRaises(OSError, disk.read, 0, 1)
        self.assertEqual(errno.EBADF, error.errno)

    def test_a_disk_closes_at_the_end_of_a_with_block(self):
        with FileDisk(self.make()) as disk:
            self.assertEqual(5000, disk.size)
        self.assertIsNone(disk.fileno())


class ReadWriteTests(DiskCase):
    def test_reads_return_what_was_written(self):
        path = self.make()
        disk = self.open(path)
        disk.write(10, b"abc")
        disk.write(4999, memoryview(b"z"))
        self.assertEqual(b"xabcx", disk.read(9, 5))
        self.assertEqual(b"x" * 10 + b"abc" + b"x" * 4986 + b"z", self.content(path))

    def test_short_reads_and_writes_are_continued(self):
        class Short(SystemCalls):
            def pread(self, descriptor, length, offset):
                return os.pread(descriptor, min(length, 7), offset)

            def pwrite(self, descriptor, data, offset):
                return os.pwrite(descriptor, data[:7], offset)

        content = random.Random(0).randbytes(5000)
        path = self.make()
        disk = self.open(path, system=Short())
        disk.write(0, content)
        self.assertEqual(content, disk.read(0, 5000))
        self.assertEqual(content, self.content(path))

    def test_reading_past_the_end_of_a_file_that_shrank_fails(self):
        path = self.make()
        disk = self.open(path)
        os.truncate(path, 100)
        self.assertEqual(b"x" * 100, disk.read(0, 100))
        error = self.assertRaises(OSError, disk.read, 50, 100)
        self.assertEqual(errno.EIO, error.errno)

    def test_a_write_without_space_fails_with_ENOSPC(self):
        disk = self.open(self.make(), system=RecordedCalls(pwrite=errno.ENOSPC))
        error = self.assertRaises(OSError, disk.write, 0, b"x")
        self.assertEqual(errno.ENOSPC, error.errno)

    def test_a_flush_calls_fdatasync_only(self):
        calls = RecordedCalls()
        self.open(self.make(), system=calls).flush()
        self.assertIn("fdatasync", calls.names())
        self.assertNotIn("fsync", calls.names())

    def test_a_flush_of_a_new_file_syncs_its_directory_too(self):
        calls = RecordedCalls()
        disk = self.open(self.mktemp(), size=5, system=calls)
        del calls.made[:]
        disk.flush()
        names = calls.names()
        self.assertIn("fsync", names)
        self.assertLess(names.index("fdatasync"), names.index("fsync"))
        opened = next(call for call in calls.made if call[0] == "open")
        self.assertEqual(os.path.dirname(disk.path), opened[1])

    def test_a_flush_raises_errors_of_the_system(self):
        for name in ("fdatasync", "fsync"):
            calls = RecordedCalls()
            disk = self.open(self.mktemp(), size=5, system=calls)
            calls.fail[name] = errno.EIO
            self.assertRaises(OSError, disk.flush)


class UntouchedTests(DiskCase):
    def setUp(self):
        """A new file of 4 MiB, of which the second is written."""
        self.calls = RecordedCalls()
        self.disk = self.open(self.mktemp(), size=4 * MIB, system=self.calls)
        self.disk.prepare()
        self.disk.write(MIB, b"x" * MIB)

    def check(self, expected, *ranges):
        for offset, length in ranges:
            found = is_untouched(self.disk, offset, length)
            self.assertIs(expected, found, (offset, length))

    def test_a_hole_of_a_new_file_is_untouched(self):
        self.check(True, (0, MIB), (5, 7), (2 * MIB, 2 * MIB), (4 * MIB - 1, 1))

    def test_what_was_written_is_not(self):
        self.check(False, (0, 4 * MIB), (MIB, 10), (2 * MIB - 1, 10), (0, MIB + 1))

    def test_nor_is_a_hole_of_a_file_that_was_there(self):
        """What is preallocated counts as a hole."""
        path = self.make(b"")
        os.truncate(path, 4 * MIB)
        self.disk = self.open(path)
        self.check(False, (0, MIB))

    def test_nor_is_one_on_a_server(self):
        self.disk._may_hang = True
        self.check(False, (0, MIB))

    def test_nor_is_one_that_is_not_known(self):
        self.calls.fail["lseek"] = errno.EINVAL
        self.check(False, (0, MIB))

    def test_nor_is_what_is_missing_of_a_file_that_has_shrunk(self):
        os.truncate(self.disk.path, MIB)
        self.check(False, (2 * MIB, MIB))

    def test_nor_is_anything_of_a_disk_that_is_no_file(self):
        self.assertFalse(is_untouched(MemoryDisk(5), 0, 5))


class ZeroTests(DiskCase):
    def blocks(self, path):
        return os.stat(path).st_blocks * 512

    def test_zeroing_punches_a_hole(self):
        path = self.make(b"x" * (4 * MIB))
        disk = self.open(path)
        before = self.blocks(path)
        self.assertGreaterEqual(before, 4 * MIB)
        disk.zero(MIB, 2 * MIB, False)
        self.assertLessEqual(self.blocks(path), before - 2 * MIB)
        self.assertEqual(b"x" * MIB + bytes(2 * MIB) + b"x" * MIB, self.content(path))

    def test_zeroing_with_allocation_keeps_the_blocks(self):
        path = self.make(b"x" * (4 * MIB))
        before = self.blocks(path)
        self.open(path).zero(MIB, 2 * MIB, True)
        self.assertGreaterEqual(self.blocks(path), before)
        self.assertEqual(b"x" * MIB + bytes(2 * MIB) + b"x" * MIB, self.content(path))

    def test_unaligned_ranges_are_zeroed_exactly(self):
        path = self.make()
        disk = self.open(path)
        disk.zero(1, 3, False)
        disk.zero(4998, 2, True)
        self.assertEqual(b"x\0\0\0" + b"x" * 4994 + b"\0\0", self.content(path))

    def test_zeroes_are_written_where_fallocate_is_unsupported(self):
        for number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
            for allocate in (True, False):
                calls = RecordedCalls(fallocate=number)
                path = self.make(b"x" * (3 * MIB))
                self.open(path, system=calls).zero(100, 2 * MIB + 5, allocate)
                self.assertEqual(
                    b"x" * 100 + bytes(2 * MIB + 5) + b"x" * (MIB - 105), self.content(path)
                )
                writes = [len(call[2]) for call in calls.made if call[0] == "pwrite"]
                self.assertLessEqual(max(writes), MIB)

    def test_fallocate_is_called_with_the_mode_that_was_asked_for(self):
        for allocate, wanted in (
            (False, kernel.FALLOC_FL_PUNCH_HOLE),
            (True, kernel.FALLOC_FL_ZERO_RANGE),
        ):
            calls = RecordedCalls()
            disk = self.open(self.make(), system=calls)
            calls.fail["fallocate"] = errno.EOPNOTSUPP
            disk.zero(0, 10, allocate)
            (call,) = [call for call in calls.made if call[0] == "fallocate"]
            self.assertEqual((wanted | kernel.FALLOC_FL_KEEP_SIZE, 0, 10), call[2:])

    def test_other_errors_of_fallocate_are_raised(self):
        for number in (errno.ENOSPC, errno.EIO):
            disk = self.open(self.make(), system=RecordedCalls(fallocate=number))
            for call in (lambda d=disk: d.zero(0, 5, False), lambda d=disk: d.trim(0, 5)):
                self.assertEqual(number, self.assertRaises(OSError, call).errno)
        self.assertNotIn("pwrite", disk._system.names())

    def test_a_trim_punches_a_hole(self):
        path = self.make(b"x" * (4 * MIB))
        before = self.blocks(path)
        self.open(path).trim(MIB, 2 * MIB)
        self.assertLessEqual(self.blocks(path), before - 2 * MIB)

    def test_a_trim_does_nothing_where_holes_are_unsupported(self):
        path = self.make()
        self.open(path, system=RecordedCalls(fallocate=errno.EOPNOTSUPP)).trim(0, 5000)
        self.assertEqual(b"x" * 5000, self.content(path))


class ExtentsAndProbeTests(DiskCase):
    def test_extents_report_holes_and_data(self):
        path = self.mktemp()
        disk = self.open(path, size=8 * MIB)
        disk.prepare()
        disk.write(2 * MIB, b"x" * MIB)
        found = list(disk.extents(0))
        self.assertEqual(
            [(0, 2 * MIB, True), (2 * MIB, MIB, False), (3 * MIB, 5 * MIB, True)],
            [tuple(extent) for extent in found],
        )
        self.assertEqual([(5 * MIB, 3 * MIB, True)], [tuple(e) for e in disk.extents(5 * MIB)])

    def test_a_file_without_holes_is_one_data_extent(self):
        disk = self.open(self.make())
        self.assertEqual([(0, 5000, False)], [tuple(e) for e in disk.extents(0)])

    def test_a_system_that_cannot_find_holes_reports_one_data_extent(self):
        class Old(SystemCalls):
            def lseek(self, descriptor, offset, whence):
                if whence in (os.SEEK_DATA, os.SEEK_HOLE):
                    raise OSError(errno.EINVAL, "what?")
                return os.lseek(descriptor, offset, whence)

        disk = self.open(self.make(), system=Old())
        self.assertEqual([(0, 5000, False)], [tuple(e) for e in disk.extents(0)])

    def test_extents_of_a_shrunk_file_fail(self):
        """A truncated source must fail, not be sent as zeroes (and then be unlinked)."""
        path = self.make(b"x" * MIB)
        disk = self.open(path)
        os.truncate(path, 65536)
        with self.assertRaises(OSError):
            list(disk.extents(0))

    def test_a_probe_finds_a_single_nonzero_byte(self):
        content = bytearray(3 * 65536)
        content[65536] = content[131072 + 65535] = 1
        disk = self.open(self.make(content))
        self.assertTrue(disk.probe(0, 65536).zero)
        self.assertFalse(disk.probe(65536, 65536).zero)
        self.assertFalse(disk.probe(131072, 65536).zero)
        self.assertFalse(disk.probe(65536, 1).zero)
        self.assertTrue(disk.probe(65537, 5).zero)

    def test_a_probe_works_where_preadv_flags_are_unsupported(self):
        for number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            disk = self.open(self.make(bytes(4999) + b"x"), system=RecordedCalls(preadv=number))
            self.assertEqual((False, False), tuple(disk.probe(0, 5000)))
            self.assertEqual((True, False), tuple(disk.probe(0, 4999)))

    def test_a_probe_of_uncached_data_is_cold_and_fetches_it(self):
        calls = RecordedCalls(preadv=errno.EAGAIN)
        disk = self.open(self.make(bytes(4999) + b"x"), system=calls)
        self.assertEqual((False, True), tuple(disk.probe(0, 5000)))
        self.assertEqual((True, True), tuple(disk.probe(0, 4999)))
        self.assertIn("posix_fadvise", calls.names())

    def test_reading_ahead_says_what_was_missing(self):
        for number, missing in ((errno.EAGAIN, True), (None, False)):
            calls = RecordedCalls(**({} if number is None else {"preadv": number}))
            disk = self.open(self.make(bytes(5000)), system=calls)
            self.assertIs(missing, disk.read_ahead(1000, 3000))
            advice = [call for call in calls.made if call[0] == "posix_fadvise"]
            self.assertEqual([(1000, 3000, os.POSIX_FADV_WILLNEED)], [a[2:5] for a in advice])
            self.assertNotIn("pread", calls.names())

    def test_nothing_is_read_ahead_where_it_cannot_be_seen_what_is_missing(self):
        disk = self.open(self.make(bytes(5000)), system=RecordedCalls(preadv=errno.EOPNOTSUPP))
        self.assertEqual([False, False], [disk.read_ahead(0, 5000) for _ in range(2)])

    def test_a_probe_raises_errors_of_the_medium(self):
        disk = self.open(self.make(), system=RecordedCalls(preadv=errno.EIO))
        self.assertRaises(OSError, disk.probe, 0, 5000)

    def test_write_back_syncs_the_range_and_may_drop_it_from_the_cache(self):
        calls = RecordedCalls()
        disk = self.open(self.make(), system=calls)
        disk.write_back(0, 5000, False)
        self.assertNotIn("posix_fadvise", calls.names())
        disk.write_back(0, 5000, True)
        flags = [call[4] for call in calls.made if call[0] == "sync_file_range"]
        self.assertEqual([2, 7], flags)
        self.assertIn("posix_fadvise", calls.names())

    def test_write_back_never_swallows_an_error_of_the_medium(self):
        for number in (errno.EIO, errno.ENOSPC):
            disk = self.open(self.make(), system=RecordedCalls(sync_file_range=number))
            error = self.assertRaises(OSError, disk.write_back, 0, 5000, True)
            self.assertEqual(number, error.errno)

    def test_write_back_ignores_a_system_that_does_not_offer_it(self):
        disk = self.open(self.make(), system=RecordedCalls(sync_file_range=errno.ENOSYS))
        self.assertIsNone(disk.write_back(0, 5000, True))


class StateDirectoryTests(DiskCase):
    """Opening a device makes it; a file stands in for the device."""

    def setUp(self):
        self.patch(BlockDisk, "_check_kind", lambda self, mode: None)
        self.patch(record_paths, "is_device", lambda path: True)
        self.base = os.path.realpath(self.mktemp())

    def open(self, **keywords):
        disk = BlockDisk(self.make(), state_directory=self.base + "/a/b", **keywords)
        self.addCleanup(disk.close)
        return disk

    def test_a_new_state_directory_is_synced_with_its_parents(self):
        calls = RecordedCalls()
        disk = self.open(system=calls)
        self.assertEqual(self.base + "/a/b", os.path.dirname(disk.record_path))
        self.assertTrue(os.path.isdir(self.base + "/a/b"))
        synced = [call[1] for call in calls.made if call[0] == "sync_directory"]
        parents = [self.base + "/a", self.base, os.path.dirname(self.base)]
        self.assertEqual(parents, synced[:3])

    def test_an_existing_state_directory_is_not_synced(self):
        os.makedirs(self.base + "/a/b")
        calls = RecordedCalls()
        self.open(system=calls)
        self.assertNotIn("sync_directory", calls.names())

    def test_what_is_not_on_a_device_yet_is_written_back_before_it_is_zeroed_quickly(self):
        """Linux drops it before it finds out that the device cannot do that."""
        for fast in (True, False):
            calls = RecordedCalls()
            disk = BlockDisk(self.make(bytes(8192)), state_directory=self.base, system=calls)
            self.addCleanup(disk.close)
            del calls.made[:]
            with contextlib.suppress(OSError):  # of a file system that cannot
                disk.zero(0, 8192, allocate=False, fast=fast)
            names = [name for name in calls.names() if name in ("sync_file_range", "fallocate")]
            self.assertEqual(["sync_file_range", "fallocate"][not fast :], names)

    def test_a_state_directory_that_cannot_be_made_is_no_error_yet(self):
        """The first record will fail; where none is written, none is needed."""
        with open(self.base, "wb"):
            pass
        self.assertEqual(5000, self.open().size)


class UnlinkTests(DiskCase):
    def test_the_directory_is_synced_after_the_unlink(self):
        path = self.make()
        calls = RecordedCalls()
        disk = self.open(path, writable=False, system=calls)
        disk.check_unlink()
        del calls.made[:]
        disk.unlink()
        self.assertFalse(os.path.exists(path))
        names = calls.names()
        self.assertLess(names.index("unlink"), names.index("fsync"))
        opened = next(call for call in calls.made if call[0] == "open")
        self.assertEqual(os.path.dirname(os.path.abspath(path)), opened[1])
        # Still open, and still there for whoever has it open.
        self.assertEqual(b"x", disk.read(0, 1))

    def test_unlinking_through_a_symbolic_link_removes_the_file(self):
        path = self.make()
        link = self.mktemp()
        os.symlink(os.path.abspath(path), link)
        self.open(link).unlink()
        self.assertFalse(os.path.exists(path))
        self.assertTrue(os.path.islink(link))

    def test_unlinking_works_after_the_working_directory_changed(self):
        path = self.make()
        disk = self.open(path)
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir("/")
        disk.unlink()
        os.chdir(here)
        self.assertFalse(os.path.exists(path))

    def test_a_file_that_replaced_the_disk_is_not_unlinked(self):
        path = self.make()
        disk = self.open(path)
        os.rename(self.make(b"another"), path)
        error = self.assertRaises(OSError, disk.unlink)
        self.assertEqual(errno.ESTALE, error.errno)
        self.assertEqual(b"another", self.content(path))

    def test_unlinking_a_file_that_is_gone_fails(self):
        path = self.make()
        disk = self.open(path)
        os.unlink(path)
        self.assertRaises(OSError, disk.unlink)
        self.assertRaises(DiskRefused, disk.check_unlink)

    def test_a_file_with_a_second_hard_link_is_refused(self):
        path = self.make()
        other = self.mktemp()
        os.link(path, other)
        disk = self.open(path)
        self.assertIn("2 hard links", str(self.assertRaises(DiskRefused, disk.check_unlink)))

    def test_errors_of_unlink_and_of_the_sync_are_raised(self):
        for name, error in (("unlink", OSError), ("fsync", NotDurable)):
            calls = RecordedCalls()
            path = self.make()
            disk = self.open(path, system=calls)
            calls.fail[name] = errno.EIO
            self.assertRaises(error, disk.unlink)
            self.assertEqual(error is OSError, os.path.exists(path))

    def test_an_unlink_whose_answer_was_lost_counts_as_done(self):
        """A network file system whose answer was lost repeats the request."""
        for number, by in (
            (errno.ENOENT, None),
            (errno.EIO, None),
            (errno.ESTALE, self.make(b"another")),
        ):

            class Lossy(SystemCalls):
                def unlink(self, path, number=number, by=by):
                    os.unlink(path)
                    if by is not None:
                        os.rename(by, path)
                    raise OSError(number, os.strerror(number))

            path = self.make()
            disk = self.open(path, system=Lossy())
            error = self.assertRaises(NotDurable, disk.unlink)
            self.assertIn(
                f"is deleted, but that was reported as an error: {os.strerror(number)}", str(error)
            )
            self.assertEqual(by is not None, os.path.exists(path))

    def test_a_disk_that_cannot_be_looked_at_after_the_unlink_failed_may_be_deleted(self):
        for failing in ("stat", "fstat"):

            class Lost(SystemCalls):
                def unlink(self, path, failing=failing):
                    os.unlink(path)
                    setattr(self, failing, self.fail)
                    self.fail()

                def fail(self, *_):
                    raise OSError(errno.EIO, "Input/output error")

            disk = self.open(self.make(), system=Lost())
            error = self.assertRaises(NotDurable, disk.unlink)
            self.assertIn("may be deleted, or not: Input/output error", str(error))

    def test_a_disk_that_was_moved_just_before_the_unlink_counts_as_not_deleted(self):
        """Nobody may say that it was deleted."""

        class Late(SystemCalls):
            def unlink(self, path):
                os.rename(path, path + ".moved")
                os.unlink(path)

        path = self.make()
        disk = self.open(path, system=Late())
        self.assertRaises(FileNotFoundError, disk.unlink)
        self.assertTrue(os.path.exists(path + ".moved"))

    def undeletable(self, system, path=None):
        disk = self.open(path or self.make(), system=system)
        error = self.assertRaises(DiskRefused, disk.check_unlink)
        self.assertIn(disk.name, str(error))
        self.assertNotIn("\n", str(error))
        self.assertIn("or send with unlink=False", str(error))
        self.assertTrue(os.path.exists(disk.path))
        return str(error)

    def test_immutable_and_append_only_attributes_are_refused(self):
        for flags, words in ((0x10, "immutable: chattr -i "), (0x20, "append-only: chattr -a ")):
            for directory in (True, False):
                path = self.make()

                class Flagged(RecordedCalls):
                    def ioctl(self, descriptor, request, *_, flags=flags, directory=directory):
                        assert request == 0x80086601
                        found = stat.S_ISDIR(os.fstat(descriptor).st_mode) == directory
                        return struct.pack("Q", flags if found else 0)

                what = os.path.realpath(path)
                what = (
                    f"its directory is {words}{os.path.dirname(what)},"
                    if directory
                    else (f"it is {words}{what},")
                )
                self.assertIn(what, self.undeletable(Flagged(), path))

    def test_other_attributes_do_not_prevent_the_unlink(self):
        class Flagged(RecordedCalls):
            def ioctl(self, *_):
                # Extents, no atime, and compressed.
                return struct.pack("Q", 0x80000 | 0x80 | 0x4)

        self.open(self.make(), system=Flagged()).check_unlink()

    def test_a_file_system_without_attributes_is_accepted(self):
        for number in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM):
            self.open(self.make(), system=RecordedCalls(ioctl=number)).check_unlink()

    def test_a_disk_in_a_directory_without_write_permission_is_refused(self):
        asked = []

        class Denied(RecordedCalls):
            def access(self, path, mode, *, effective_ids):
                asked.append((path, mode, effective_ids))
                return False

        path = self.make()
        words = self.undeletable(Denied(), path)
        directory = os.path.dirname(os.path.realpath(path))
        self.assertIn(f"no permission to write in {directory},", words)
        self.assertEqual([(directory, os.W_OK | os.X_OK, True)], asked)

    def test_a_disk_in_a_sticky_directory_is_refused_to_others_than_its_owner(self):
        for user, mode, refused in (
            (4711, 0o1777, True),
            (4711, 0o777, False),
            (0, 0o1777, False),
            (1, 0o1777, False),
            (2, 0o1777, False),
        ):

            class Shared(RecordedCalls):
                def access(self, *_, **__):
                    return True

                def geteuid(self, user=user):
                    return user

                def stat(self, path, mode=mode):
                    if os.path.isdir(path):
                        return SimpleNamespace(st_mode=stat.S_IFDIR | mode, st_uid=1)
                    return os.stat(path)

                def fstat(self, descriptor):
                    found = os.fstat(descriptor)
                    return SimpleNamespace(
                        st_mode=found.st_mode, st_nlink=1, st_uid=2, st_ino=found.st_ino
                    )

            if refused:
                self.assertIn("is sticky", self.undeletable(Shared()))
            else:
                self.open(self.make(), system=Shared()).check_unlink()

    def test_a_disk_that_is_a_mount_point_is_refused(self):
        path = self.make()
        mountinfo = self.make(f"1 0 8:1 /x {os.path.realpath(path)} rw - xfs x rw\n".encode())
        disk = self.open(path)
        error = self.assertRaises(
            DiskRefused,
            deletable.check_deletable,
            disk.fileno(),
            disk.name,
            disk.path,
            SystemCalls(),
            mountinfo,
        )
        self.assertIn("it is a mount point: umount ", str(error))

    def test_checking_changes_nothing_and_leaves_no_descriptor(self):
        calls = RecordedCalls()
        disk = self.open(self.make(), system=calls)
        disk.check_unlink()
        self.assertTrue(os.path.exists(disk.path))
        self.assertNotIn("unlink", calls.names())
        opened, closed = (calls.names().count(name) for name in ("open", "close"))
        self.assertEqual(opened - 1, closed)

    def test_a_hard_link_made_since_the_check_prevents_the_unlink(self):
        path = self.make()
        disk = self.open(path)
        disk.check_unlink()
        os.link(path, self.mktemp())
        self.assertRaises(DiskRefused, disk.unlink)
        self.assertTrue(os.path.exists(path))


class SyncErrorTests(DiskCase):
    """The kernel reports an error to a descriptor once; everybody concerned must get it."""

    def setUp(self):
        self.calls = RecordedCalls()
        self.disk = self.open(self.make(), system=self.calls)

    def test_every_later_flush_reports_the_error(self):
        for first in ("fdatasync", "sync_file_range"):
            self.setUp()
            self.calls.fail[first] = errno.EIO
            ask = self.disk.flush if first == "fdatasync" else self.disk.write_back
            arguments = () if first == "fdatasync" else (0, 4096, True)
            self.assertRaises(OSError, ask, *arguments)
            self.calls.fail.clear()
            for _ in range(3):
                error = self.assertRaises(OSError, self.disk.flush)
                self.assertEqual(errno.EIO, error.errno)

    def test_a_file_system_without_sync_file_range_is_no_error(self):
        self.calls.fail["sync_file_range"] = errno.EOPNOTSUPP
        self.disk.write_back(0, 4096, True)
        self.disk.flush()

    def test_a_flush_beside_a_write_back_gets_its_error(self):
        begun, go_on = threading.Event(), threading.Event()

        def slow(*_):
            begun.set()
            self.assertTrue(go_on.wait(10))
            raise OSError(errno.EIO, "medium error")

        self.calls.sync_file_range = slow
        with ThreadPoolExecutor(2) as pool:
            writing = pool.submit(self.disk.write_back, 0, 4096, True)
            self.assertTrue(begun.wait(10))
            flushing = pool.submit(self.disk.flush)
            self.assertRaises(TimeoutError, flushing.result, 0.1)
            go_on.set()
            self.assertRaises(OSError, writing.result, 10)
            self.assertRaises(OSError, flushing.result, 10)


class DiscardTests(DiskCase):
    def test_discarding_removes_a_file_that_was_created(self):
        path = self.mktemp()
        disk = self.open(path, size=5)
        disk.discard()
        self.assertFalse(os.path.exists(path))
        self.assertIsNone(disk.fileno())

    def test_discarding_keeps_a_file_that_existed(self):
        path = self.make()
        disk = self.open(path)
        disk.discard()
        self.assertEqual(b"x" * 5000, self.content(path))
        self.assertIsNone(disk.fileno())

    def test_discarding_after_closing_removes_nothing(self):
        path = self.mktemp()
        disk = self.open(path, size=5)
        disk.close()
        disk.discard()
        self.assertTrue(os.path.exists(path))

    def test_discarding_keeps_what_somebody_else_has_written_into_a_new_file(self):
        """Such as who restores a backup to that path after all; our lock keeps only some out."""
        for size in ({"size": 5000}, {"sized_later": True}):
            path = self.mktemp()
            disk = self.open(path, **size)
            with open(path, "wb") as file:
                file.write(b"a backup")
            disk.discard()
            self.assertEqual(b"a backup", self.content(path))
            self.assertIsNone(disk.fileno())

    def test_discarding_keeps_a_file_that_took_the_name(self):
        """The file there now is not the one that we created."""
        path = self.mktemp()
        disk = self.open(path, size=5)
        os.rename(self.make(b"another"), path)
        disk.discard()
        self.assertTrue(os.path.exists(path), "somebody else's file was removed")
