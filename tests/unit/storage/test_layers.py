"""What a device stands on, and which parts it has."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import Layer, Relation, device_size, layers_of
from blockmig.storage.layers import layers_of_device

from .sysfs import Sysfs, number

BELOW, WHOLE, PART = Relation.BELOW, Relation.WHOLE, Relation.PART


class LayersTests(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.sys = Sysfs(os.path.join(self.directory, "sys"))
        self.disk = self.sys.disk("sda", "8:0", "1", size="8")

    def layers(self, device):
        return layers_of_device(number(device), self.sys.root)

    def make(self, name):
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write("x")
        return path

    def test_a_disk_by_itself_stands_on_nothing(self):
        self.assertEqual([], self.layers("8:0"))
        self.assertEqual([], self.layers("9:9"))

    def test_a_file_has_no_layers(self):
        self.assertEqual([], layers_of(self.make("image")))
        self.assertEqual([], layers_of(os.path.join(self.directory, "none")))

    def test_a_partition_is_a_part_of_its_disk(self):
        self.sys.partition(self.disk, "sda1", "8:1", 1, 2048)
        self.sys.partition(self.disk, "sda2", "8:2", 2, 4096)
        self.assertEqual([Layer(WHOLE, "/dev/sda", number("8:0"))], self.layers("8:1"))
        self.assertEqual(
            [Layer(PART, "/dev/sda1", number("8:1")), Layer(PART, "/dev/sda2", number("8:2"))],
            self.layers("8:0"),
        )

    def test_a_loop_device_stands_on_its_file(self):
        path = self.make("image")
        self.sys.disk("loop0", "7:0", "2", loop__backing_file=path)
        self.assertEqual([Layer(BELOW, path)], self.layers("7:0"))

    def test_a_file_that_was_deleted_is_known_by_the_name_that_it_had(self):
        self.sys.disk("loop0", "7:0", "2", loop__backing_file="/gone/image (deleted)")
        self.assertEqual([Layer(BELOW, "/gone/image", None, True)], self.layers("7:0"))

    def test_a_file_may_be_called_deleted(self):
        path = self.make("image (deleted)")
        self.sys.disk("loop0", "7:0", "2", loop__backing_file=path)
        self.assertEqual([Layer(BELOW, path)], self.layers("7:0"))

    def test_device_mapper_stands_on_what_it_is_made_of_down_to_the_disks(self):
        part = self.sys.partition(self.disk, "sda1", "8:1", 1, 2048)
        other = self.sys.disk("sdb", "8:16", "2")
        crypt = self.sys.disk("dm-0", "253:0", "3", dm__name="crypt")
        self.sys.over(crypt, part)
        volume = self.sys.disk("dm-1", "253:1", "4", dm__name="vg0-web")
        self.sys.over(volume, crypt, other)
        self.assertEqual(
            [
                Layer(BELOW, "/dev/mapper/crypt", number("253:0")),
                Layer(BELOW, "/dev/sdb", number("8:16")),
                Layer(BELOW, "/dev/sda1", number("8:1")),
                Layer(WHOLE, "/dev/sda", number("8:0")),
            ],
            self.layers("253:1"),
        )

    def test_a_name_with_a_slash(self):
        disk = self.sys.disk("cciss!c0d0", "104:0", "1")
        self.sys.partition(disk, "cciss!c0d0p1", "104:1", 1, 2048)
        self.assertEqual([Layer(WHOLE, "/dev/cciss/c0d0", number("104:0"))], self.layers("104:1"))

    def test_a_circle_ends(self):
        one, other = self.sys.disk("dm-0", "253:0", "3"), self.sys.disk("dm-1", "253:1", "4")
        self.sys.over(one, other)
        self.sys.over(other, one)
        self.assertEqual({"/dev/dm-0", "/dev/dm-1"}, {at.path for at in self.layers("253:0")})

    def test_the_size_is_in_bytes(self):
        self.assertEqual(4096, device_size(number("8:0"), self.sys.root))
        self.assertIsNone(device_size(number("8:1"), self.sys.root))
