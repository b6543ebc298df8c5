"""What identifies a disk, and whether two identities are of the same one."""

from __future__ import annotations

import functools
import os

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.storage import boot_id, device_identity, identities, is_provable, same_disk
from blockmig.storage.identities import (
    DeviceIdentity,
    backing_identity,
    is_device_identity,
    is_inside,
)
from blockmig.syscalls import SystemCalls

from .sysfs import Sysfs, number

FILE = "inode 5, born 1, generation 2"


class Case(SynchronousTestCase):
    def setUp(self):
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.sys = Sysfs(os.path.join(self.directory, "sys"))

    def make(self, name, text="x"):
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def identity(self, device):
        return device_identity(number(device), SystemCalls(), self.sys.root)

    def same(self, one, other, boots="aa"):
        """Whether two identities are of the same disk; must not depend on their order."""
        answer = same_disk(one, boots[0], other, boots[1])
        self.assertIs(answer, same_disk(other, boots[1], one, boots[0]), (one, other))
        return answer


class TextTests(Case):
    """What is found in /sys, as it is recorded."""

    def test_a_disk_has_its_number_its_sequence_and_its_lasting_names(self):
        self.sys.disk("sda", "8:0", "9", device__wwid="naa.5000c500a1b2c3d4")
        self.assertEqual("device 8:0; diskseq 9; wwid naa.5000c500a1b2c3d4", self.identity("8:0"))
        self.sys.disk("vda", "254:0", "1", serial="web-disk")
        self.assertEqual("device 254:0; diskseq 1; serial web-disk", self.identity("254:0"))
        self.sys.disk("dm-3", "253:3", "12", dm__uuid="LVM-abc", dm__name="vg0-web")
        self.assertEqual("device 253:3; diskseq 12; dm LVM-abc", self.identity("253:3"))

    def test_the_namespaces_of_a_controller_have_different_identities(self):
        for index in (1, 2):
            self.sys.disk(
                f"nvme0n{index}", f"259:{index}", str(index), device__serial="S1", nsid=str(index)
            )
        self.assertIn("serial S1 namespace 2", self.identity("259:2"))
        self.assertIs(False, self.same(self.identity("259:1"), self.identity("259:2"), "ab"))

    def test_a_partition_has_its_place_and_the_names_of_its_disk(self):
        disk = self.sys.disk("sda", "8:0", "9", device__wwid="naa.5")
        self.sys.partition(disk, "sda1", "8:1", 1, 2048, uevent="DEVNAME=sda1\nPARTUUID=1234-01")
        self.assertEqual(
            "device 8:1; diskseq 9; partition 1 at 2048; wwid naa.5; partuuid 1234-01",
            self.identity("8:1"),
        )

    def test_a_partition_UUID_that_another_partition_has_too_is_marked_as_such(self):
        """A disk that was cloned, or made of an image."""
        uevent = "PARTUUID=1234-01"
        disk = self.sys.disk("vda", "254:0", "9")
        self.sys.partition(disk, "vda1", "254:1", 1, 2048, uevent=uevent)
        self.sys.partition(disk, "vda2", "254:2", 2, 4096, uevent="PARTUUID=1234-02")
        alone = "device 254:1; diskseq 9; partition 1 at 2048; partuuid 1234-01"
        self.assertEqual(alone, self.identity("254:1"))
        clone = self.sys.disk("vdb", "254:16", "10")
        self.sys.partition(clone, "vdb1", "254:17", 1, 2048, uevent=uevent)
        self.assertEqual(
            "device 254:1; diskseq 9; partition 1 at 2048; partuuid-of-several 1234-01",
            self.identity("254:1"),
        )
        self.assertIn("; partuuid 1234-02", self.identity("254:2"))
        # Where the disk has a name of its own, as the paths of a multipath have, that tells.
        for name, index in (("sda", 0), ("sdb", 16)):
            path = self.sys.disk(name, f"8:{index}", str(20 + index), device__wwid="naa.5")
            self.sys.partition(path, f"{name}1", f"8:{index + 1}", 1, 2048, uevent=uevent)
        paths = [self.identity("8:1"), self.identity("8:17")]
        self.assertIn("; wwid naa.5; partuuid 1234-01", paths[0])
        for boots in ("aa", "ab"):
            self.assertIs(True, self.same(*paths, boots))

    def test_a_loop_device_has_the_identity_of_its_file(self):
        path = self.make("image")
        self.sys.disk("loop0", "7:0", "5", loop__backing_file=path, loop__offset="512")
        below = backing_identity(self.identity("7:0"))
        self.assertRegex(below, rf"^inode {os.stat(path).st_ino}, (born|written) \d+")
        self.assertTrue(self.identity("7:0").startswith("device 7:0; diskseq 5; loop 512 0 inode"))
        self.assertNotIn("filesystem", self.identity("7:0"), "the made-up sysfs knows no such disk")

    def test_a_loop_device_has_the_device_of_its_files_file_system(self):
        path = self.make("image")
        device = os.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        self.sys.disk("loop0", "7:0", "5", loop__backing_file=path)
        for sequence, own in (("8", f"device {number}; diskseq 8"), ("", "")):
            self.sys.disk(f"sda{sequence}", number, sequence)
            found = DeviceIdentity.parse(self.identity("7:0"))
            self.assertEqual(own, dict(found.names).get("filesystem", ""))
            self.sys.remove(number)

    def test_a_loop_device_over_a_deleted_file_has_no_lasting_name(self):
        self.sys.disk("loop0", "7:0", "5", loop__backing_file="/nowhere/image (deleted)")
        self.assertEqual("device 7:0; diskseq 5", self.identity("7:0"))

    def test_what_stands_for_a_missing_name_is_none(self):
        self.sys.disk("sda", "8:0", "9", serial="0000-0000", device__wwid=" ")
        self.assertEqual("device 8:0; diskseq 9", self.identity("8:0"))

    def test_a_serial_number_that_another_disk_has_too_proves_nothing(self):
        """Such as one that a hypervisor gives to all of its disks."""
        self.sys.disk("vda", "254:0", "1", serial="disk")
        self.assertIn("serial disk", self.identity("254:0"))
        self.sys.disk("vdb", "254:16", "2", serial="disk")
        self.assertEqual("device 254:0; diskseq 1", self.identity("254:0"))

    def test_without_sysfs_there_is_only_the_number(self):
        self.assertEqual("device 8:0", self.identity("8:0"))

    @given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
    def test_any_name_can_be_read_back(self, one, other):
        identity = DeviceIdentity("8:0", "9", "1 at 5", (("wwid", one), ("serial", other)))
        self.assertEqual(identity, DeviceIdentity.parse(str(identity)))
        self.assertTrue(str(identity).isprintable())

    def test_an_identity_that_is_not_quoted_can_be_read(self):
        self.assertEqual(
            (("serial", "\udcff"),), DeviceIdentity.parse("device 8:0; serial \udcff").names
        )

    def test_the_text_says_whether_it_is_a_devices(self):
        self.assertTrue(is_device_identity("device 8:0"))
        self.assertFalse(is_device_identity(FILE))
        self.assertIsNone(DeviceIdentity.parse(FILE))
        self.assertEqual("", backing_identity(FILE))

    def test_the_running_boot_has_an_id(self):
        self.assertEqual(boot_id(), boot_id())


class FileTests(Case):
    def test_identities_are_compared_as_the_table_says(self):
        for one, other, same in (
            ("inode 5, born 1", "inode 5, born 1", True),
            ("inode 5, born 1", "inode 5, born 2", False),
            ("inode 5, born 1", "inode 6, born 2", False),
            ("inode 5, born 1", "inode 6, born 1", None),
            ("inode 5, written 1", "inode 5, written 1", True),
            ("inode 5, written 1", "inode 5, written 2", None),
            ("inode 5, written 1", "inode 6, written 1", None),
            ("inode 5, written 1", "inode 5, born 1", None),
            ("inode 15, written 1", "inode 5, born 2", None),
            ("inode 5, born 1", "", None),
            ("", "inode 5, written 1", None),
            ("", "", True),
        ):
            self.assertIs(same, self.same(one, other), (one, other))

    def test_an_inode_survives_a_boot(self):
        self.assertIs(True, self.same(FILE, FILE, "ab"))
        self.assertIs(False, self.same(FILE, "inode 5, born 7", "ab"))

    def test_a_file_is_no_device(self):
        self.assertIs(False, self.same(FILE, "device 8:0; diskseq 9"))
        self.assertIs(None, self.same("", "device 8:0; diskseq 9"))


class DeviceTests(Case):
    NAMED = "device 8:0; diskseq 9; wwid naa.5; serial S1"

    def test_within_one_boot_the_sequence_decides(self):
        self.assertIs(True, self.same("device 8:0; diskseq 9", "device 8:0; diskseq 9"))
        self.assertIs(False, self.same("device 8:0; diskseq 9", "device 8:0; diskseq 10"))
        self.assertIs(False, self.same("device 8:0; diskseq 9", "device 8:16; diskseq 10"))

    def test_a_disk_that_came_back_within_one_boot_is_known_by_its_name(self):
        again = "device 8:16; diskseq 10; wwid naa.5; serial S1"
        self.assertIs(True, self.same(self.NAMED, again))
        self.assertIs(False, self.same(self.NAMED, again.replace("naa.5", "naa.6")))

    def test_over_boots_the_number_and_the_sequence_prove_nothing(self):
        for boots in ("ab", ("", "a"), ("a", ""), ("", "")):
            self.assertIs(None, self.same("device 8:0; diskseq 9", "device 8:0; diskseq 9", boots))
            self.assertIs(None, self.same("device 8:0; diskseq 9", "device 8:0; diskseq 10", boots))

    def test_over_boots_lasting_names_decide(self):
        other = "device 8:16; diskseq 3; wwid naa.5; serial S1"
        self.assertIs(True, self.same(self.NAMED, other, "ab"))
        self.assertIs(True, self.same(self.NAMED, other.replace("; serial S1", ""), "ab"))
        self.assertIs(False, self.same(self.NAMED, other.replace("S1", "S2"), "ab"))
        self.assertIs(None, self.same(self.NAMED, "device 8:0; diskseq 9; dm LVM-x", "ab"))

    def test_a_partition_is_not_its_disk_nor_another_partition(self):
        one = "device 8:1; diskseq 9; partition 1 at 2048; wwid naa.5"
        for other in (
            "device 8:0; diskseq 9; wwid naa.5",
            "device 8:2; diskseq 9; partition 2 at 4096; wwid naa.5",
            "device 8:1; diskseq 9; partition 1 at 4096; wwid naa.5",
        ):
            for boots in ("aa", "ab"):
                self.assertIs(False, self.same(one, other, boots), other)
        self.assertIs(True, self.same(one, one))
        self.assertIs(True, self.same(one, one, "ab"))

    def test_a_partition_is_known_by_its_UUID_only_if_nothing_speaks_against_it(self):
        def part(*names, device="8:1; diskseq 9"):
            return "; ".join((f"device {device}", "partition 1 at 2048", *names))

        several = "partuuid-of-several 7"
        for one, other, answer in (
            # Disks without names of their own: as in old records.
            (part("partuuid 7"), part("partuuid 7"), True),
            (part("partuuid 7"), part("partuuid 8"), False),
            (part("partuuid 7"), part(several), None),
            (part(several), part(several), None),
            (part("partuuid 8"), part(several), False),
            (part("partuuid 7"), part(), None),
            # Disks with names.
            (part("wwid a", "partuuid 7"), part("wwid a", "partuuid 7"), True),
            (part("wwid a", "partuuid 7"), part("wwid b", "partuuid 7"), False),
            (part("wwid a", "partuuid 7"), part("wwid a", "partuuid 8"), False),
            (part("wwid a", "partuuid 7"), part("wwid a"), True),
            (part("wwid a", "partuuid 7"), part("partuuid 7"), None),
            (part("wwid a", "partuuid 7"), part("serial b", "partuuid 7"), None),
            (part("wwid a", "partuuid 7"), part("wwid a", several), True),
        ):
            self.assertIs(answer, self.same(one, other, "ab"), (one, other))
            # Attached anew within one boot.
            again = other.replace("8:1; diskseq 9", "8:17; diskseq 12")
            detached = False if answer is None and "partuuid" not in other else answer
            self.assertIs(detached, self.same(one, again), (one, again))
            self.assertIs(True, self.same(one, one.replace("partuuid 7", several)))

    def test_a_loop_device_is_known_by_its_file_and_the_range_of_that(self):
        one = f"device 7:0; diskseq 5; loop 0 0 {FILE}"
        for boots in ("aa", "ab"):
            self.assertIs(True, self.same(one, f"device 7:3; diskseq 8; loop 0 0 {FILE}", boots))
            for other in (f"loop 512 0 {FILE}", "loop 0 0 inode 5, born 2, generation 2"):
                self.assertIs(
                    False, self.same(one, f"device 7:0; diskseq 8; {other}", boots), other
                )

    def test_without_sequence_numbers_the_same_number_decides_nothing(self):
        """Linux before 5.15."""
        self.assertIs(None, self.same("device 8:0", "device 8:0"))
        self.assertIs(False, self.same("device 8:0", "device 8:16"))
        self.assertIs(None, self.same("device 8:0", "device 8:16", "ab"))

    def test_a_loop_device_over_a_device_is_known_by_that(self):
        self.sys.disk("sda", "8:0", "9", device__wwid="naa.5")

        class Calls(SystemCalls):
            def stat(self, path):
                found = os.stat("/")
                fields = list(found[:10])
                fields[0] = 0o60600
                return os.stat_result(fields, {"st_rdev": number("8:0")})

        self.sys.disk("loop0", "7:0", "5", loop__backing_file="/dev/sda")
        one = device_identity(number("7:0"), Calls(), self.sys.root)
        self.assertEqual("device 8:0; diskseq 9; wwid naa.5", backing_identity(one))
        self.assertTrue(is_provable(one))
        other = one.replace("naa.5", "naa.6")
        self.assertIs(False, self.same(one, other, "ab"))
        self.assertIs(True, self.same(one, one, "ab"))


class CopiedFileSystemTests(Case):
    """Loop devices over files of which each is the copy of the other, with its inode and times; or
    which are one, after its file system was mounted anew."""

    def setUp(self):
        super().setUp()
        self.mountinfo = os.path.join(self.directory, "mountinfo")
        is_mounted = functools.partial(
            identities._is_mounted, sys=self.sys.root, mountinfo=self.mountinfo
        )
        self.patch(identities, "_is_mounted", is_mounted)

    def mount(self, *devices):
        with open(self.mountinfo, "w") as file:
            for device in devices:
                file.write(f"20 1 {device} / /{device} rw - ext4 /dev/{device} rw\n")

    def loop(self, name, filesystem, below=FILE):
        on = f"; filesystem {filesystem.replace(';', '%3B')}" if filesystem else ""
        return f"device {name}; loop 0 0 {below}{on}"

    def test_only_two_disks_that_are_both_mounted_now_are_certainly_two(self):
        disk = self.sys.disk("sda", "8:0", "3")
        self.sys.partition(disk, "sda1", "8:1", 1, 2048)
        self.sys.partition(disk, "sda2", "8:2", 2, 4096)
        self.sys.disk("loop0", "7:0", "8")
        self.sys.disk("loop1", "7:1", "9")
        self.sys.disk("old", "7:2")
        first, second = "device 7:0; diskseq 8", "device 7:1; diskseq 9"
        part, other_part = (
            f"device 8:{index}; diskseq 3; partition {index} at {index * 2048}" for index in (1, 2)
        )
        everything = ("7:0", "7:1", "7:2", "8:0", "8:1", "8:2", "0:40", "0:41")
        for one, other, mounted, same in (
            (first, second, everything, False),
            (part, other_part, everything, False),
            (first, part, everything, False),
            (first, first, everything, True),
            # One is not mounted now.
            (first, second, ("7:0",), True),
            (first, second, ("7:1",), True),
            (first, second, (), True),
            # It was detached, and another disk has its number.
            ("device 7:0; diskseq 5", second, everything, True),
            ("device 7:0; diskseq 5", first, everything, True),
            ("device 8:1; diskseq 2; partition 1 at 2048", part, everything, True),
            # Its disk was divided anew, and another part has its number.
            ("device 8:1; diskseq 3; partition 1 at 9999", other_part, everything, True),
            ("device 8:1; diskseq 3", other_part, everything, True),
            # There is nothing that is not given again.
            ("device 7:2", second, everything, True),
            ("device 0:40", "device 0:41", everything, True),
            ("8:1", "8:17", ("8:1", "8:17"), True),
            ("", second, everything, True),
            ("", "", everything, True),
        ):
            self.mount(*mounted)
            found = (
                self.loop("7:5; diskseq 20", one),
                self.loop("7:6; diskseq 21", other),
            )
            self.assertIs(same, self.same(*found), found)
            # Over boots nothing of it counts.
            self.assertIs(True, self.same(*found, "ab"), found)
            # Nor does it make the same of what is not.
            another = self.loop("7:6; diskseq 21", other, "inode 5, born 2, generation 2")
            self.assertIs(False, self.same(found[0], another))
            # A partition of the one, and the other.
            inside = found[0].replace("; loop", "; partition 1 at 2048; loop")
            self.assertIs(same, is_inside(inside, "a", found[1], "a"), found)


class ProvableTests(Case):
    def test_only_what_has_a_lasting_name_can_be_proved_in_another_boot(self):
        for identity, provable in (
            (FILE, True),
            ("inode 5, written 1", True),
            ("", False),
            ("device 8:0; diskseq 9", False),
            ("device 8:0; diskseq 9; serial S1", True),
            ("device 8:1; partition 1 at 5; partuuid 7", True),
            ("device 8:1; partition 1 at 5; partuuid-of-several 7", False),
            ("device 7:0; filesystem device 8:1%3B diskseq 9", False),
            (f"device 7:0; diskseq 9; loop 0 0 {FILE}", True),
            ("device 7:0; diskseq 9; loop 0 0 device 1:0%3B diskseq 2", False),
        ):
            self.assertIs(provable, is_provable(identity), identity)
