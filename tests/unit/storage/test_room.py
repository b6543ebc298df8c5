"""How much room there is for a disk, and what a file system can hold."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

from blockmig.storage.room import can_hold
from blockmig.syscalls import SystemCalls
from tests.unit.support import DiskCase


class Calls(SystemCalls):
    """A file system of 10 blocks of 4096 bytes, 7 free, 2 of them for root only; files have up to
    2^30 bytes."""

    def __init__(self, user=0, blocks=10):
        self.user = user
        self.blocks = blocks
        self.opened = []

    def geteuid(self):
        return self.user

    def fstatvfs(self, descriptor):
        return SimpleNamespace(f_frsize=4096, f_blocks=self.blocks, f_bfree=7, f_bavail=5)

    def open(self, path, flags, mode=0o777):
        self.opened.append(os.open(path, flags, mode))
        return self.opened[-1]

    def ftruncate(self, descriptor, size):
        if size > 1 << 30:
            raise OSError(errno.EFBIG, "File too large")
        os.ftruncate(descriptor, size)


class RoomTests(DiskCase):
    def room(self, content=b"x" * 5000, **calls):
        path = self.make(content)
        disk = self.open(path, system=Calls(**calls))
        return disk.room(), os.stat(path).st_blocks * 512

    def test_a_file_has_what_is_free_and_what_it_has_already(self):
        room, allocated = self.room(bytes(8192), user=1000)
        self.assertEqual((5 * 4096, allocated), room)

    def test_root_has_what_is_kept_for_root_as_well(self):
        room, _ = self.room()
        self.assertEqual(7 * 4096, room.free)

    def test_where_the_file_system_does_not_count_nobody_can_tell(self):
        self.assertIsNone(self.room(blocks=0)[0])

    def test_a_disk_that_was_closed_is_an_error(self):
        disk = self.open(self.make())
        disk.close()
        self.assertRaises(OSError, disk.room)


class HoldTests(DiskCase):
    def setUp(self):
        super().setUp()
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.calls = Calls()

    def test_it_is_tried_with_a_file_that_nobody_sees(self):
        for size, held in ((1, True), (1 << 30, True), ((1 << 30) + 1, False)):
            self.assertIs(held, can_hold(self.directory, size, self.calls))
            self.assertEqual([], os.listdir(self.directory))
        for descriptor in self.calls.opened:
            self.assertRaises(OSError, os.fstat, descriptor)

    def test_where_there_are_no_such_files_nothing_is_known(self):
        self.assertTrue(can_hold(self.directory + "/none", 1 << 40, self.calls))

    def test_another_error_is_raised(self):
        def broken(descriptor, size):
            raise OSError(errno.EIO, "Input/output error")

        self.calls.ftruncate = broken
        self.assertRaises(OSError, can_hold, self.directory, 1, self.calls)
        self.assertRaises(OSError, os.fstat, self.calls.opened[0])
