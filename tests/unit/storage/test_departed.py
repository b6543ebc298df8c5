"""What is left of a disk that has moved away (departed.py)."""

from __future__ import annotations

import errno

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from blockmig.interfaces import IDisk
from blockmig.storage import DepartedDisk


class DepartedTests(SynchronousTestCase):
    def test_it_is_a_disk_of_which_nothing_can_be_had(self):
        disk = DepartedDisk("/d", 5000)
        verifyObject(IDisk, disk)
        self.assertEqual(("/d", 5000, None), (disk.name, disk.size, disk.fileno()))
        for call in (
            lambda: disk.read(0, 1),
            lambda: disk.write(0, b"x"),
            lambda: disk.zero(0, 1, allocate=False),
            lambda: disk.trim(0, 1),
            disk.flush,
            lambda: disk.extents(0),
            lambda: disk.probe(0, 1),
            lambda: disk.forget(0, 1),
            lambda: disk.write_back(0, 1, wait=True),
        ):
            error = self.assertRaises(OSError, call)
            self.assertEqual(errno.ESTALE, error.errno)
            self.assertIn("/d has moved away", str(error))
        disk.close()
