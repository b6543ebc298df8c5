"""How much room there is for a disk."""

from __future__ import annotations

import os
from types import SimpleNamespace

from blockmig.storage import room_of
from blockmig.syscalls import SystemCalls
from blockmig.testing import MemoryDisk
from tests.unit.support import DiskCase


class Calls(SystemCalls):
    """A file system of 10 blocks of 4096 bytes, 7 free, 2 of them for root only."""

    def __init__(self, user):
        self.user = user

    def geteuid(self):
        return self.user

    def fstatvfs(self, descriptor):
        return SimpleNamespace(f_frsize=4096, f_bfree=7, f_bavail=5)


class RoomTests(DiskCase):
    def test_a_file_has_what_is_free_and_what_it_has_already(self):
        path = self.make(bytes(8192))
        disk = self.open(path)
        room = room_of(disk, Calls(1000))
        self.assertEqual((5 * 4096, os.stat(path).st_blocks * 512), room)

    def test_root_has_what_is_kept_for_root_as_well(self):
        self.assertEqual(7 * 4096, room_of(self.open(self.make()), Calls(0)).free)

    def test_of_any_other_disk_nobody_can_tell(self):
        self.assertIsNone(room_of(MemoryDisk(5000)))

    def test_a_disk_that_was_closed_is_an_error(self):
        disk = self.open(self.make())
        disk.close()
        self.assertRaises(OSError, room_of, disk)
