"""What file system a path is on, with made-up lists of mounts and a made-up sysfs."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import (
    device_in_memory,
    filesystem_of,
    is_in_memory,
    is_remote,
    mounts,
)


class Case(SynchronousTestCase):
    def setUp(self):
        self.root = os.path.realpath(self.mktemp())
        os.mkdir(self.root)

    def put(self, name, text):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path

    def mounted(self, *mounted):
        """The path of a list with (mount point, type) lines."""
        lines = [
            f"{20 + number} 1 8:{number} / {point} rw,relatime{optional} - {kind} /dev/sda rw\n"
            for number, (point, kind, optional) in enumerate(
                (*mount, "", "")[:3] for mount in mounted
            )
        ]
        return self.put("mountinfo", "".join(lines))


class FilesystemTests(Case):
    def test_the_longest_mount_point_above_the_path_counts(self):
        mountinfo = self.mounted(("/", "ext4"), ("/srv", "xfs"), ("/srv/images", "nfs4"))
        for path, expected in {
            "/": "ext4",
            "/else/where": "ext4",
            "/srv": "xfs",
            "/srv/other": "xfs",
            "/srv/images": "nfs4",
            "/srv/images/web.img": "nfs4",
            # A longer name is no path below.
            "/srv/images2/web.img": "xfs",
            "/srv2": "ext4",
        }.items():
            self.assertEqual(expected, filesystem_of(path, mountinfo), path)

    def test_the_longest_mount_point_counts_in_any_order(self):
        mountinfo = self.mounted(("/srv/images", "nfs4"), ("/srv", "xfs"), ("/", "ext4"))
        self.assertEqual("nfs4", filesystem_of("/srv/images/a", mountinfo))

    def test_the_last_of_several_mounts_at_one_place_counts(self):
        mountinfo = self.mounted(("/srv", "xfs"), ("/srv", "tmpfs"), ("/", "ext4"))
        self.assertEqual("tmpfs", filesystem_of("/srv/a", mountinfo))

    def test_optional_fields_of_a_mount_are_skipped(self):
        mountinfo = self.mounted(("/", "ext4", " shared:1"), ("/a", "xfs", " shared:2 master:1"))
        self.assertEqual("ext4", filesystem_of("/b", mountinfo))
        self.assertEqual("xfs", filesystem_of("/a/b", mountinfo))

    def test_a_mount_point_may_be_called_like_the_separator(self):
        mountinfo = self.mounted(("/", "ext4"), ("/-", "xfs", " - "))
        self.assertEqual("ext4", filesystem_of("/a", mountinfo))

    def test_blanks_and_backslashes_are_decoded(self):
        mountinfo = self.mounted(
            ("/", "ext4"), ("/my\\040disks", "xfs"), ("/a\\134b", "btrfs"), ("/t\\011t", "jfs")
        )
        self.assertEqual("xfs", filesystem_of("/my disks/a", mountinfo))
        self.assertEqual("btrfs", filesystem_of("/a\\b/c", mountinfo))
        self.assertEqual("jfs", filesystem_of("/t\tt/c", mountinfo))

    def test_symbolic_links_are_followed(self):
        target = os.path.join(self.root, "target")
        os.mkdir(target)
        link = os.path.join(self.root, "link")
        os.symlink(target, link)
        mountinfo = self.mounted(("/", "ext4"), (target, "tmpfs"))
        for path in (link, os.path.join(link, "to", "be", "made")):
            self.assertEqual("tmpfs", filesystem_of(path, mountinfo))

    def test_an_unknown_file_system_is_an_empty_string(self):
        self.assertEqual("", filesystem_of("/a", os.path.join(self.root, "none")))
        self.assertEqual("", filesystem_of("/a", self.put("empty", "")))
        self.assertEqual("", filesystem_of("/a", self.put("odd", "what\nis this\n\n1 2 3 - -\n")))
        self.assertEqual("", filesystem_of("/a", self.mounted(("/srv", "xfs"))))

    def test_the_real_list_of_mounts_is_understood(self):
        self.assertEqual("proc", filesystem_of("/proc/self/mountinfo"))

    def test_a_mount_point_is_recognized(self):
        mountinfo = self.mounted(("/", "ext4"), ("/srv/my\\040disk", "xfs"))
        self.assertTrue(mounts.is_mount_point("/srv/my disk", mountinfo))
        self.assertFalse(mounts.is_mount_point("/srv", mountinfo))

    def test_what_is_mounted_is_known_by_its_device(self):
        mountinfo = self.mounted(("/", "ext4"), ("/srv", "xfs"))
        for device, mounted in (("8:0", True), ("8:1", True), ("8:2", False), ("8", False)):
            self.assertIs(mounted, mounts.is_mounted(device, mountinfo))


class KindTests(SynchronousTestCase):
    def test_file_systems_in_memory_are_recognized(self):
        for kind in ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs"):
            self.assertTrue(is_in_memory(kind), kind)
        for kind in ("", "ext4", "xfs", "nfs4", "overlay"):
            self.assertFalse(is_in_memory(kind), kind)

    def test_remote_file_systems_are_recognized(self):
        for kind in ("nfs", "nfs4", "cifs", "ceph", "9p", "virtiofs", "fuse", "fuse.sshfs"):
            self.assertTrue(is_remote(kind), kind)
        for kind in ("", "ext4", "xfs", "tmpfs", "fuseblk", "fusectl", "nfsd"):
            self.assertFalse(is_remote(kind), kind)


class DeviceTests(Case):
    def device(self, name, number, backing=None, partition=None):
        """A device in the sysfs that is made up; C{partition} is of that name."""
        entry = f"devices/block/{name}"
        self.put(f"{entry}/dev", "")
        if backing is not None:
            self.put(f"{entry}/loop/backing_file", backing + "\n")
        if partition is not None:
            entry += f"/{partition}"
            self.put(f"{entry}/partition", "1\n")
        link = os.path.join(self.root, "dev/block", number)
        os.makedirs(os.path.dirname(link), exist_ok=True)
        os.symlink(os.path.join(self.root, entry), link)

    def in_memory(self, major, minor):
        mountinfo = self.mounted(("/", "ext4"), ("/run", "tmpfs"))
        return mounts.number_in_memory(os.makedev(major, minor), self.root, mountinfo)

    def test_RAM_disks_and_zram_are_in_memory(self):
        self.device("ram0", "1:0")
        self.device("zram12", "253:12")
        self.device("sda", "8:0")
        self.device("rambler0", "8:16")
        self.assertTrue(self.in_memory(1, 0))
        self.assertTrue(self.in_memory(253, 12))
        self.assertFalse(self.in_memory(8, 0))
        self.assertFalse(self.in_memory(8, 16))

    def test_a_loop_device_is_in_memory_if_its_file_is(self):
        self.device("loop0", "7:0", "/run/disk.img")
        self.device("loop1", "7:1", "/srv/disk.img")
        self.device("loop2", "7:2", "/run/disk.img (deleted)")
        self.device("loop3", "7:3")
        found = [self.in_memory(7, minor) for minor in range(4)]
        self.assertEqual([True, False, True, False], found)

    def test_a_partition_is_in_memory_if_its_device_is(self):
        self.device("loop0", "259:0", "/run/disk.img", "loop0p1")
        self.device("ram0", "259:1", None, "ram0p1")
        self.device("sda", "8:1", None, "sda1")
        self.assertTrue(self.in_memory(259, 0))
        self.assertTrue(self.in_memory(259, 1))
        self.assertFalse(self.in_memory(8, 1))

    def test_a_device_unknown_to_sysfs_is_not_in_memory(self):
        self.assertFalse(self.in_memory(8, 99))

    def test_what_is_no_device_is_not_in_memory(self):
        self.assertFalse(device_in_memory(self.put("file", "x"), self.root))
        self.assertFalse(device_in_memory(os.path.join(self.root, "none"), self.root))
        self.assertFalse(device_in_memory("/dev/null"))


class AmongDevicesTests(SynchronousTestCase):
    def test_paths_below_dev_except_shared_memory_are_among_devices(self):
        for path in ("/dev/vg0", "/dev/vg0/web", "/dev/mapper/web", "/dev/shmem"):
            self.assertTrue(mounts.is_below_dev(path), path)
        for path in ("/dev/shm", "/dev/shm/a/b", "/srv/dev/web", "/device", "/"):
            self.assertFalse(mounts.is_below_dev(path), path)
