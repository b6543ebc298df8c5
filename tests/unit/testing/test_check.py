"""The checks of disks: right ones pass, and each broken one is caught by what it breaks."""

from __future__ import annotations

import errno
import itertools
import os
import time

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from blockmig.interfaces import Extent, IDisk, IReadAheadDisk, IWatchedDisk, Probe
from blockmig.storage import DiskRefused, DiskVersion
from blockmig.testing import MemoryDisk, RecordedMemoryDisk, UnlinkableMemoryDisk, check_disk

SIZE = 300_001
CHANGES = {"write", "zero", "trim", "flush", "write_back", "prepare"}


class RightTests(SynchronousTestCase):
    def test_disks_in_memory_pass(self):
        for size in (1, 2, 5, 4096, 4097, SIZE, 3 << 20):
            check_disk(MemoryDisk(size))
            check_disk(UnlinkableMemoryDisk(b"x" * size))

    def test_disks_in_memory_with_holes_and_records_pass(self):
        holes = [(5, 100), (100_000, 70_000)]
        content = bytearray(b"x" * SIZE)
        for offset, length in holes:
            content[offset : offset + length] = bytes(length)
        check_disk(MemoryDisk(bytes(content), holes=holes))
        check_disk(RecordedMemoryDisk(bytes(content), "/some/where", holes=holes))

    def test_a_disk_that_is_to_be_read_is_only_read(self):
        disk = RecordedMemoryDisk(os.urandom(SIZE), "/some/where")
        before = disk.content
        check_disk(disk, writable=False)
        self.assertEqual((before, set()), (disk.content, CHANGES & set(disk.names())))

    def test_a_disk_that_cannot_zero_fast_passes(self):
        class Slow(MemoryDisk):
            def zero(self, offset, length, allocate, fast=False):
                if fast:
                    raise OSError(errno.EOPNOTSUPP, "slow")
                super().zero(offset, length, allocate)

        check_disk(Slow(SIZE))

    def test_it_is_closed_afterwards(self):
        disk = MemoryDisk(5)
        check_disk(disk)
        self.assertTrue(disk.closed)

    def test_the_interpreters_own_settings_are_as_before(self):
        import sys

        before = sys.getswitchinterval()
        check_disk(MemoryDisk(5))
        self.assertEqual(before, sys.getswitchinterval())


class Case(SynchronousTestCase):
    """Disks that are broken in one way each, made by replacing one method."""

    def caught(self, disk, *words, writable=True):
        error = self.assertRaises(AssertionError, check_disk, disk, writable=writable)
        for word in words:
            self.assertIn(word, str(error))
        self.assertNotIn("\n", str(error))
        return error

    def broken(self, *words, content=SIZE, writable=True, **methods):
        disk = type("Broken", (MemoryDisk,), methods)(content, name="theirs")
        return self.caught(disk, "theirs: ", *words, writable=writable)


class AttributeTests(Case):
    def test_a_disk_that_does_not_say_so(self):
        class Disk:
            name = "theirs"

        self.caught(Disk(), "theirs: does not say that it provides IDisk")

    def test_a_disk_that_lacks_a_method(self):
        self.broken("write_back", write_back=None)

    def test_a_disk_that_says_that_it_is_watched_and_is_not(self):
        watched = implementer(IWatchedDisk)(type("Watched", (MemoryDisk,), {}))
        self.caught(watched(5), "check_path")

    def test_an_impossible_size(self):
        disk = MemoryDisk(5)
        disk.size = 0
        self.caught(disk, "its size is 0")

    def test_an_impossible_step(self):
        self.caught(MemoryDisk(5, shortest_zeroes=5000), "its shortest_zeroes is 5000")

    def test_a_name_that_changes(self):
        def flush(self):
            self.name = "other"

        self.broken("has changed", flush=flush)

    def test_a_descriptor_of_nothing(self):
        self.broken("fileno() is 1000099", fileno=lambda self: 1_000_099)
        self.broken("fileno() is 'seven'", fileno=lambda self: "seven")

    def test_a_descriptor_that_cannot_be_had(self):
        def fileno(self):
            raise KeyError("none")

        self.broken("fileno() raised KeyError('none')", fileno=fileno)


class ReadTests(Case):
    def test_an_exception(self):
        def read(self, offset, length):
            raise KeyError("session expired")

        error = self.broken("read(0, 1) raised KeyError('session expired')", read=read)
        self.assertIsInstance(error.__cause__, KeyError)

    def test_a_short_read_at_the_end(self):
        def read(self, offset, length):
            return bytes(self._data[offset : min(offset + length, self.size - 1)])

        self.broken(f"read({SIZE - 1}, 1) returned 0 bytes", read=read, writable=False)

    def test_a_long_read_that_ends_early(self):
        def read(self, offset, length):
            return bytes(self._data[offset : offset + min(length, 65536)])

        self.broken("read(0, 262144) returned 65536 bytes", read=read, writable=False)

    def test_another_type(self):
        def read(self, offset, length):
            return self._data[offset : offset + length]

        self.broken("read(0, 1) returned bytearray, not bytes", read=read)

    def test_bytes_that_depend_on_where_the_read_begins(self):
        def read(self, offset, length):
            start = offset // 512 * 512
            return bytes(self._data[start : start + length].ljust(length, b"\0"))

        content = bytes(range(1, 252)) * 1200
        self.broken("in two parts", read=read, content=content, writable=False)

    def test_a_descriptor_of_something_else(self):
        other = os.memfd_create("other")
        self.addCleanup(os.close, other)
        self.broken(
            "its descriptor holds something else",
            fileno=lambda self: other,
            content=b"x" * SIZE,
            writable=False,
        )

    def test_forgetting_that_loses_data(self):
        def forget(self, offset, length):
            self._put(offset, bytes(length), b"\1")

        self.broken("changes with forget()", forget=forget, content=b"x" * SIZE, writable=False)

    def test_threads_that_share_a_position(self):
        def read(self, offset, length):
            self.position = offset
            time.sleep(0.0001)
            return bytes(self._data[self.position : self.position + length].ljust(length, b"\0"))

        content = bytes(range(251)) * 1200
        self.broken("from several threads", read=read, content=content, writable=False)


class ProbeTests(Case):
    def test_zeroes_that_are_none(self):
        self.broken(
            "says zero=True, but the bytes are not all zeroes",
            probe=lambda self, offset, length: Probe(True, False),
            content=b"x" * SIZE,
            writable=False,
        )

    def test_zeroes_that_are_not_found(self):
        self.broken(
            "says zero=False, but the bytes are all zeroes",
            probe=lambda self, offset, length: Probe(False, False),
            writable=False,
        )

    def test_only_the_beginning_is_looked_at(self):
        self.broken(
            "are not all zeroes",
            probe=lambda self, offset, length: Probe(not any(self._data[offset:][:512]), False),
            content=bytes(4000) + b"x" * (SIZE - 4000),
            writable=False,
        )

    def test_what_is_no_probe(self):
        self.broken("not a Probe", probe=lambda self, offset, length: True)


class ExtentTests(Case):
    def extents(self, words, function, **keywords):
        self.broken("extents(", words, extents=function, writable=False, **keywords)

    def test_none(self):
        self.extents("they end at 0", lambda self, offset: iter([]))

    def test_always_from_the_start(self):
        whole = Extent(0, SIZE, False)
        self.extents("one begins at 0, not at 1", lambda self, offset: iter([whole]))

    def test_an_overlap(self):
        def extents(self, offset):
            yield Extent(offset, SIZE - offset, False)
            yield Extent(SIZE - 1, 1, False)

        self.extents("one begins at", extents)

    def test_a_hole_in_the_list(self):
        content = b"x" * 1000 + bytes(SIZE - 1000)

        def extents(self, offset):
            for extent in MemoryDisk.extents(self, offset):
                if not extent.hole:
                    yield extent

        disk = type("Broken", (MemoryDisk,), {"extents": extents})
        self.caught(disk(content, holes=[(1000, 5000)]), "one begins at 6000, not at 1000")

    def test_holes_that_hold_data(self):
        self.extents(
            "reports a hole at 0, where there are other bytes",
            lambda self, offset: iter([Extent(offset, SIZE - offset, True)]),
            content=b"x" * SIZE,
        )

    def test_holes_that_hold_data_once_it_was_written(self):
        self.broken(
            "reports a hole at",
            extents=lambda self, offset: iter([Extent(offset, SIZE - offset, True)]),
        )


class WriteTests(Case):
    def test_only_the_beginning_is_written(self):
        def write(self, offset, data):
            MemoryDisk.write(self, offset, memoryview(data)[:65536])

        self.broken("after write(0, 262144 bytes) it holds something else", write=write)

    def test_a_buffer_that_is_kept(self):
        def write(self, offset, data):
            self.kept = (offset, data)

        def read(self, offset, length):
            if (kept := self.__dict__.pop("kept", None)) is not None:
                MemoryDisk.write(self, *kept)
            return MemoryDisk.read(self, offset, length)

        self.broken("it holds something else there", write=write, read=read)

    def test_only_bytes_can_be_written(self):
        def write(self, offset, data):
            MemoryDisk.write(self, offset, b"" + data.ljust(0))

        self.broken("raised AttributeError", write=write)

    def test_whole_sectors_are_written(self):
        def write(self, offset, data):
            data = bytes(data).ljust(512, b"\0")[: self.size - offset]
            MemoryDisk.write(self, offset, data)

        self.broken("write(0, 1 bytes) has changed bytes beside", write=write, content=b"x" * SIZE)

    def test_a_descriptor_that_does_not_see_what_is_written(self):
        descriptor = os.memfd_create("other")
        self.addCleanup(os.close, descriptor)
        os.truncate(descriptor, SIZE)
        self.broken("its descriptor does not hold", fileno=lambda self: descriptor)

    def test_a_write_that_is_not_seen_through_a_cache(self):
        descriptor = os.memfd_create("other")
        self.addCleanup(os.close, descriptor)
        os.truncate(descriptor, SIZE)

        def write(self, offset, data):
            MemoryDisk.write(self, offset, data)
            os.pwrite(descriptor, bytes(data), offset)

        self.broken("after a write to its descriptor", fileno=lambda self: descriptor, write=write)

    def test_threads_that_rewrite_whole_blocks(self):
        def write(self, offset, data):
            data = bytes(data)
            start, stop = offset // 4096 * 4096, -(-(offset + len(data)) // 4096) * 4096
            block = bytearray(self._data[start:stop])
            time.sleep(0.0001)
            block[offset - start : offset - start + len(data)] = data
            MemoryDisk.write(self, start, bytes(block)[: self.size - start])

        self.broken("writes from several threads", write=write)


class ZeroTests(Case):
    def zero(self, words, function):
        self.broken("zero(", words, zero=function)

    def test_zeroes_that_are_not_written(self):
        self.zero("it holds something else", lambda self, *_: None)

    def test_only_where_space_is_kept(self):
        def zero(self, offset, length, allocate, fast=False):
            if allocate:
                MemoryDisk.zero(self, offset, length, allocate)

        self.zero("allocate=False, fast=True) it holds", zero)

    def test_whole_sectors_are_zeroed(self):
        def zero(self, offset, length, allocate, fast=False):
            start, stop = offset // 512 * 512, min(self.size, -(-(offset + length) // 512) * 512)
            MemoryDisk.zero(self, start, stop - start, allocate)

        self.zero("has changed bytes beside", zero)

    def test_a_refusal_to_be_fast_that_has_changed_something(self):
        def zero(self, offset, length, allocate, fast=False):
            MemoryDisk.zero(self, offset, length, allocate)
            if fast:
                raise OSError(errno.EOPNOTSUPP, "slow")

        self.zero("which raised EOPNOTSUPP, it holds", zero)

    def test_a_refusal_with_another_errno(self):
        def zero(self, offset, length, allocate, fast=False):
            if fast:
                raise OSError(errno.EINVAL, "slow")
            MemoryDisk.zero(self, offset, length, allocate)

        self.zero("fast=True) raised OSError(22, 'slow')", zero)

    def test_a_refusal_although_it_need_not_be_fast(self):
        def zero(self, offset, length, allocate, fast=False):
            raise OSError(errno.EOPNOTSUPP, "no")

        self.zero("fast=False) raised OSError", zero)


class OtherTests(Case):
    def test_trimming_that_is_rounded_outwards(self):
        def trim(self, offset, length):
            start, stop = offset // 512 * 512, min(self.size, -(-(offset + length) // 512) * 512)
            MemoryDisk.trim(self, start, stop - start)

        self.broken("trim(", "has changed bytes beside", trim=trim)

    def test_trimming_that_is_not_supported(self):
        def trim(self, offset, length):
            raise OSError(errno.EOPNOTSUPP, "no")

        self.broken("trim(0, 1) raised", trim=trim)

    def test_a_flush_that_loses_what_was_written(self):
        def flush(self):
            self._put(0, bytes(self.size), b"\1")

        self.broken("flush() it holds something else", flush=flush)

    def test_a_flush_that_works_once(self):
        def flush(self):
            if self.names().count("flush") > 1:
                raise ValueError("twice")
            MemoryDisk.flush(self)

        self.broken("flush() raised ValueError('twice')", flush=flush)

    def test_a_write_back_that_is_not_supported(self):
        def write_back(self, offset, length, wait):
            raise OSError(errno.EOPNOTSUPP, "no")

        self.broken("write_back(0, 1, False) raised", write_back=write_back)

    def test_closing_that_works_once(self):
        def close(self):
            if self.closed:
                raise ValueError("twice")
            MemoryDisk.close(self)

        self.broken("close() raised ValueError('twice')", close=close)

    def test_an_identity_that_is_another_each_time(self):
        numbers = itertools.count()

        class Broken(RecordedMemoryDisk):
            def identity(self):
                return str(next(numbers))

        self.caught(Broken(5, "/x"), "identity() is '0', and must be the same text each time")

    def test_a_reading_ahead_that_does_not_say_what_was_missing(self):
        @implementer(IReadAheadDisk)
        class Broken(MemoryDisk):
            def read_ahead(self, offset, length): ...

        self.caught(Broken(5), "read_ahead(0, 1) returned NoneType, not a bool")

    def test_a_watch_that_sees_changes_where_there_are_none(self):
        numbers = itertools.count()

        @implementer(IDisk, IWatchedDisk)
        class Broken(MemoryDisk):
            gone = False

            def check_path(self): ...

            def is_gone(self):
                return self.gone

            def version(self, sync=True):
                return DiskVersion((next(numbers),), ())

            def rescue(self, announce=None): ...

        self.caught(Broken(5), "version() changes although nobody writes to it")
        disk = Broken(5)
        disk.gone = True
        self.caught(disk, "is_gone() says that nothing leads to it any more")
        disk.gone = 0
        self.caught(disk, "is_gone() is 0, and must be a bool")
        disk.gone = False
        disk.version = lambda sync=True: (1,)
        self.caught(disk, "version() is (1,), and must be a DiskVersion")

    def test_a_method_that_only_promises_to_do_its_work(self):
        for method in ("zero", "trim", "flush", "write_back", "close"):
            disk = MemoryDisk(SIZE)
            setattr(disk, method, lambda *_: Deferred())
            self.caught(disk, f"{method}(", "and must do its work and return None")
        disk = UnlinkableMemoryDisk(SIZE)
        disk.check_unlink = Deferred
        self.caught(disk, "check_unlink() returned <Deferred")

    def test_a_disk_that_may_not_be_deleted_is_right(self):
        disk = UnlinkableMemoryDisk(SIZE)
        disk.fail("check_unlink", DiskRefused("has 2 hard links"))
        check_disk(disk)
