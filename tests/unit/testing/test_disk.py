"""Disks in memory."""

from __future__ import annotations

import errno

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from blockmig.interfaces import (
    Extent,
    IDisk,
    IRecordedDisk,
    IUnlinkableDisk,
    Probe,
)
from blockmig.storage import Scan
from blockmig.testing import (
    Call,
    MemoryDisk,
    RecordedMemoryDisk,
    UnlinkableMemoryDisk,
)

MIB = 1 << 20


def eio():
    return OSError(errno.EIO, "Input/output error")


def full():
    return OSError(errno.ENOSPC, "No space left on device")


def pattern(length):
    block = bytes(range(1, 252))
    return (block * (length // len(block) + 1))[:length]


class MemoryDiskTests(SynchronousTestCase):
    def test_memory_disks_provide_their_interfaces(self):
        recorded = RecordedMemoryDisk(10, "/nowhere/disk")
        self.assertTrue(verifyObject(IDisk, MemoryDisk(10)))
        self.assertFalse(IUnlinkableDisk.providedBy(MemoryDisk(10)))
        self.assertTrue(verifyObject(IUnlinkableDisk, UnlinkableMemoryDisk(10)))
        self.assertFalse(IRecordedDisk.providedBy(UnlinkableMemoryDisk(10)))
        self.assertTrue(verifyObject(IUnlinkableDisk, recorded))
        self.assertTrue(verifyObject(IRecordedDisk, recorded))

    def test_a_memory_disk_is_made_from_content_or_size(self):
        self.assertEqual(b"abc", MemoryDisk(b"abc").content)
        self.assertEqual(bytes(5), MemoryDisk(5).content)
        self.assertEqual(5, MemoryDisk(5).size)
        for empty in (0, b""):
            self.assertRaises(ValueError, MemoryDisk, empty)

    def test_reads_return_what_was_written(self):
        disk = MemoryDisk(10)
        disk.write(2, memoryview(b"abc"))
        disk.write(9, bytearray(b"z"))
        self.assertEqual(b"\0abc\0", disk.read(1, 5))
        self.assertEqual(b"\0\0abc\0\0\0\0z", disk.content)

    def test_extents_follow_writes_zeroes_and_trims(self):
        disk = MemoryDisk(100)
        self.assertEqual([Extent(0, 100, True)], list(disk.extents(0)))
        disk.write(10, bytes(20))
        expected = [Extent(0, 10, True), Extent(10, 20, False), Extent(30, 70, True)]
        self.assertEqual(expected, list(disk.extents(0)))
        self.assertEqual([Extent(15, 15, False), Extent(30, 70, True)], list(disk.extents(15)))
        disk.zero(15, 5, False)
        disk.zero(50, 50, True)
        runs = [(e.offset, e.length) for e in disk.extents(0) if not e.hole]
        self.assertEqual([(10, 5), (20, 10), (50, 50)], runs)

    def test_holes_of_the_content_are_extents(self):
        disk = MemoryDisk(b"ab" + bytes(6), holes=[(2, 3)])
        expected = [Extent(0, 2, False), Extent(2, 3, True), Extent(5, 3, False)]
        self.assertEqual(expected, list(disk.extents(0)))
        self.assertRaises(ValueError, MemoryDisk, b"ab" + bytes(6), holes=[(1, 3)])

    def test_zeroed_and_trimmed_ranges_read_as_zeroes(self):
        disk = MemoryDisk(b"x" * 100)
        disk.zero(10, 10, False, True)
        disk.zero(20, 10, True)
        disk.trim(90, 10)
        self.assertEqual(b"x" * 10 + bytes(20) + b"x" * 60 + bytes(10), disk.content)
        runs = [(e.offset, e.length) for e in disk.extents(0) if e.hole]
        self.assertEqual([(10, 10), (90, 10)], runs)
        self.assertEqual(Probe(True, False), disk.probe(10, 20))
        self.assertEqual(Probe(False, False), disk.probe(9, 20))
        self.assertRaises(ValueError, MemoryDisk(MIB).probe, 0, 262145)

    def test_only_a_flush_makes_content_durable(self):
        disk = MemoryDisk(b"abc")
        disk.write(0, b"xy")
        self.assertEqual(b"abc", disk.durable)
        disk.fail("flush", eio())
        self.assertRaises(OSError, disk.flush)
        self.assertEqual(b"abc", disk.durable)
        disk.flush()
        disk.write(2, b"z")
        self.assertEqual(b"xyc", disk.durable)

    def test_a_scan_finds_data_and_holes(self):
        disk = MemoryDisk(pattern(MIB) + bytes(MIB), holes=[(MIB, MIB)])
        pieces = Scan(disk, 2 * MIB).advance()
        self.assertEqual([(0, MIB, False), (MIB, MIB, True)], [piece[:3] for piece in pieces])

    def test_calls_are_recorded(self):
        disk = MemoryDisk(100)
        disk.write(5, b"abc")
        disk.zero(0, 2, True, True)
        disk.write_back(0, 8, True)
        disk.fail("read", eio())
        self.assertRaises(OSError, disk.read, 1, 2)
        self.assertEqual(
            [
                Call("write", 5, 3),
                Call("zero", 0, 2, allocate=True, fast=True),
                Call("write_back", 0, 8, wait=True),
                Call("read", 1, 2),
            ],
            disk.calls,
        )
        self.assertEqual(["write", "zero", "write_back", "read"], disk.names())

    def outcomes(self, disk, count, method="write", *arguments):
        found = ""
        for _ in range(count):
            try:
                getattr(disk, method)(*arguments or (0, b"x"))
            except OSError as error:
                found += {errno.EIO: "E", errno.ENOSPC: "S"}[error.errno]
            else:
                found += "."
        return found

    def test_failures_happen_after_and_as_often_as_asked(self):
        disk = MemoryDisk(10)
        disk.fail("write", eio())
        self.assertEqual("E...", self.outcomes(disk, 4))
        disk.fail("write", eio(), after=2, times=2)
        self.assertEqual("..EE..", self.outcomes(disk, 6))
        disk.fail("write", eio(), after=1, times=None)
        self.assertEqual(".EEE", self.outcomes(disk, 4))
        disk.heal()
        self.assertEqual("..", self.outcomes(disk, 2))

    def test_failures_of_one_method_take_turns(self):
        disk = MemoryDisk(10)
        disk.fail("write", eio(), after=1)
        disk.fail("write", full(), after=1, times=2)
        self.assertEqual(".ESS.", self.outcomes(disk, 5))

    def test_a_failure_may_be_limited_to_a_range(self):
        disk = MemoryDisk(100)
        disk.fail("read", eio(), times=None, within=range(10, 20))
        for offset, length, bad in ((0, 10, 0), (0, 11, 1), (19, 1, 1), (20, 5, 0), (5, 50, 1)):
            expected = "E" if bad else "."
            self.assertEqual(expected, self.outcomes(disk, 1, "read", offset, length))
        disk.heal()
        disk.fail("read", eio(), after=1, within=range(10, 20))
        self.assertEqual("..", self.outcomes(disk, 2, "read", 0, 5))
        self.assertEqual(".E.", self.outcomes(disk, 3, "read", 0, 15))

    def test_a_call_that_fails_has_no_effect(self):
        for method, arguments in (
            ("write", (0, b"zz")),
            ("zero", (0, 2, False)),
            ("trim", (0, 2)),
        ):
            disk = MemoryDisk(b"abc")
            disk.fail(method, full())
            error = self.assertRaises(OSError, getattr(disk, method), *arguments)
            self.assertEqual(errno.ENOSPC, error.errno)
            self.assertEqual(b"abc", disk.content)
            self.assertEqual([Extent(0, 3, False)], list(disk.extents(0)))

    def test_every_method_can_fail(self):
        for method, arguments in {
            "read": (0, 1),
            "write": (0, b"x"),
            "zero": (0, 1, False),
            "trim": (0, 1),
            "flush": (),
            "probe": (0, 1),
            "forget": (0, 1),
            "write_back": (0, 1, False),
            "check_unlink": (),
            "unlink": (),
            "identity": (),
            "prepare": (),
        }.items():
            disk = RecordedMemoryDisk(10, "/nowhere/disk", blank=True)
            disk.fail(method, eio())
            self.assertRaises(OSError, getattr(disk, method), *arguments)
            self.assertFalse(disk.unlinked)
            self.assertTrue(disk.blank)
        disk.fail("extents", eio())
        extents = disk.extents(0)
        self.assertRaises(OSError, next, extents)

    def test_a_failure_of_an_unknown_method_is_refused(self):
        self.assertRaises(ValueError, MemoryDisk(1).fail, "wriet", eio())

    def test_every_flush_after_a_failed_write_back_fails(self):
        disk = MemoryDisk(10)
        disk.fail("write_back", eio())
        self.assertRaises(OSError, disk.write_back, 0, 1, False)
        disk.heal()
        disk.write_back(0, 1, True)
        for _ in range(2):
            self.assertRaises(OSError, disk.flush)

    def test_ranges_beyond_the_end_are_refused(self):
        disk = MemoryDisk(10)
        self.assertRaises(ValueError, disk.read, 8, 3)
        self.assertRaises(ValueError, disk.write, 10, b"x")
        self.assertRaises(ValueError, disk.zero, -1, 3, False)
        self.assertEqual(10, len(disk.content))

    def test_a_closed_disk_fails(self):
        disk = MemoryDisk(10)
        disk.close()
        disk.close()
        self.assertTrue(disk.closed)
        error = self.assertRaises(OSError, disk.write, 0, b"x")
        self.assertEqual(errno.EBADF, error.errno)
        self.assertEqual(["close", "close", "write"], disk.names())

    def test_unlinking_is_remembered(self):
        disk = UnlinkableMemoryDisk(b"abc")
        disk.check_unlink()
        self.assertFalse(disk.unlinked)
        disk.unlink()
        self.assertTrue(disk.unlinked)

    def test_what_is_poked_is_data_and_no_call(self):
        disk = MemoryDisk(10)
        disk.poke(4, b"ab")
        self.assertEqual((b"\0ab\0", []), (disk.peek(3, 4), disk.calls))
        self.assertEqual([(0, 4, True), (4, 2, False), (6, 4, True)], list(disk.extents(0)))
        for offset, data in ((9, b"ab"), (-1, b"a")):
            self.assertRaises(ValueError, disk.poke, offset, data)

    def test_observers_hear_of_each_call_before_it_fails_or_has_an_effect(self):
        disk = MemoryDisk(b"old")
        seen = []
        disk.observe(lambda call: seen.append((call, disk.content)))
        disk.write(0, b"new")
        disk.fail("flush", eio())
        self.assertRaises(OSError, disk.flush)
        self.assertEqual([(Call("write", 0, 3), b"old"), (Call("flush"), b"new")], seen)
