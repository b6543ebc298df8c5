"""What a disk holds: which places are sampled, and how the content is named."""

from __future__ import annotations

import itertools
import os

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.interfaces import Probe
from blockmig.storage import (
    PROBE_SIZE,
    FileDisk,
    describe_contents,
    find_data,
    image_format,
    sample_ranges,
)
from blockmig.testing import MemoryDisk

KIB, MIB = 1 << 10, 1 << 20
GRANULARITY = 64 * KIB


def head(*parts, size=MIB):
    """The start of a disk with (offset, bytes) parts."""
    data = bytearray(size)
    for offset, content in parts:
        data[offset : offset + len(content)] = content
    return bytes(data)


class SampledPlacesTests(SynchronousTestCase):
    @given(st.integers(1, 1 << 44) | st.integers(1, 16 * MIB))
    def test_sampled_places_ascend_without_overlap_are_aligned_and_reach_the_end(self, size):
        self.check(size)

    def test_sampled_places_stay_valid_around_the_size_where_sampling_begins(self):
        for grains in range(50, 140):
            for more in (0, 1, GRANULARITY - 1):
                self.check(2 * MIB + grains * GRANULARITY + more)

    def check(self, size):
        places = sample_ranges(size)
        position = 0
        for offset, length in places:
            self.assertGreaterEqual(offset, position)
            self.assertEqual(0, offset % GRANULARITY)
            self.assertTrue(0 < length < MIB + GRANULARITY)
            position = offset + length
        self.assertEqual((0, min(size, MIB)), places[0])
        self.assertEqual(size, position)
        self.assertGreaterEqual(sum(length for _, length in places), min(size, 5 * MIB))

    def test_a_small_disk_is_examined_as_a_whole(self):
        for size in (1, 5000, MIB, MIB + 1, 5 * MIB, 2 * MIB + 63 * GRANULARITY - 1):
            self.assertEqual(size, sum(length for _, length in sample_ranges(size)))

    def test_a_large_disk_is_sampled_at_its_ends_and_at_62_places_between(self):
        size = (1 << 40) + 512
        places = sample_ranges(size)
        self.assertEqual(64, len(places))
        self.assertEqual({GRANULARITY}, {length for _, length in places[1:-1]})
        self.assertEqual((size - 512 - MIB, MIB + 512), places[-1])
        starts = [offset for offset, _ in places[1:]]
        gaps = [after - before for before, after in itertools.pairwise(starts)]
        self.assertLess(max(gaps) - min(gaps), 2 * GRANULARITY)


def unmapped(content):
    """A disk whose extents show no holes, like a device."""
    return MemoryDisk(content, shortest_zeroes=4096)


class Mapped(MemoryDisk):
    """A disk that knows its holes, like a file."""

    def __init__(self, content, holes=()):
        super().__init__(content, holes=holes, shortest_zeroes=PROBE_SIZE)


class FindDataTests(SynchronousTestCase):
    def test_a_disk_of_zeroes_holds_no_data(self):
        for kind in (Mapped, unmapped):
            self.assertEqual("", find_data(kind(bytes(3 * MIB + 5))))

    def test_a_single_byte_anywhere_in_a_file_is_found(self):
        for offset in (0, 511, MIB, 5 * MIB + 1234, 12 * MIB + 4):
            disk = Mapped(head((offset, b"\1"), size=12 * MIB + 5))
            self.assertEqual("data", find_data(disk))

    def test_holes_are_not_probed(self):
        disk = Mapped(bytes(8 * MIB), holes=[(0, 4 * MIB), (5 * MIB, 3 * MIB)])
        self.assertEqual("", find_data(disk))
        looked = [call[1:3] for call in disk.calls if call.method == "probe"]
        self.assertEqual(list(range(4 * MIB, 5 * MIB, PROBE_SIZE)), [start for start, _ in looked])

    def test_a_device_is_probed_only_at_the_sampled_places(self):
        size = 64 * MIB
        places = sample_ranges(size)
        for offset, length in (places[0], places[1], places[40], places[-1]):
            disk = unmapped(head((offset + length - 1, b"\1"), size=size))
            self.assertEqual("data", find_data(disk))
            self.assertNotIn("extents", disk.names())
        between = places[1][0] + places[1][1]
        self.assertEqual("", find_data(unmapped(head((between, b"\1"), size=size))))

    def test_the_search_ends_at_the_first_data_found(self):
        disk = Mapped(head((2 * MIB, b"\1"), size=8 * MIB))
        find_data(disk)
        self.assertEqual(2 * MIB, max(call[1] for call in disk.calls if call[0] == "probe"))

    def test_a_disk_that_was_just_created_is_not_examined(self):
        disk = Mapped(b"x" * 5000)
        disk.blank = True
        self.assertEqual("", find_data(disk))
        self.assertEqual([], disk.calls)

    def test_contents_are_named_by_the_start_of_the_disk(self):
        for kind in (Mapped, unmapped):
            disk = kind(head((0, b"XFSB"), (9 * MIB, b"x"), size=10 * MIB))
            self.assertEqual("an xfs file system", find_data(disk))

    def test_contents_are_named_by_the_end_of_the_disk(self):
        for kind in (Mapped, unmapped):
            disk = kind(head((10 * MIB - 512, b"EFI PART"), size=10 * MIB))
            self.assertEqual("a GPT partition table", find_data(disk))

    def test_pages_that_the_search_fetched_are_dropped_from_the_cache(self):
        class Cold(Mapped):
            def probe(self, offset, length):
                found = super().probe(offset, length)
                return Probe(found.zero, MIB <= offset < 2 * MIB or offset >= 3 * MIB)

        disk = Cold(head((4 * MIB - 1, b"\1"), size=6 * MIB))
        self.assertEqual("data", find_data(disk))
        forgotten = [call[1:3] for call in disk.calls if call.method == "forget"]
        self.assertEqual([(MIB, MIB), (3 * MIB, MIB)], forgotten)

    def test_errors_of_the_disk_are_raised(self):
        for method in ("probe", "extents"):
            disk = Mapped(bytes(MIB))
            disk.fail(method, OSError(5, "medium error"), times=None)
            self.assertRaises(OSError, find_data, disk)

    def test_data_in_a_real_sparse_file_is_found(self):
        path = self.mktemp()
        with open(path, "wb") as file:
            file.truncate(64 * MIB)
        with FileDisk(path) as disk:
            self.assertEqual("", find_data(disk))
            disk.write(40 * MIB, b"x")
            self.assertEqual("data", find_data(disk))
        self.assertEqual(64 * MIB, os.stat(path).st_size)

    def test_a_real_file_that_is_not_prepared_holds_no_data(self):
        with FileDisk(self.mktemp(), size=5000) as disk:
            self.assertEqual("", find_data(disk))


EXT = {  # compatible, incompatible, read-only compatible features
    "an ext2 file system": (0x38, 0x2, 0x3),
    "an ext3 file system": (0x3C, 0x2, 0x3),
    "an ext4 file system": (0x3C, 0x2C2, 0x46B),
}


def ext(features):
    fields = b"".join(number.to_bytes(4, "little") for number in features)
    return head((1024 + 56, b"\x53\xef"), (1024 + 92, fields))


def dos(*types, active=0):
    entries = [bytes([active, 0, 1, 0, kind, 0, 0, 0]) + bytes(8) for kind in types]
    return head((446, b"".join(entries)), (510, b"\x55\xaa"))


class NameContentsTests(SynchronousTestCase):
    def named(self, expected, *parts):
        self.assertEqual(expected, describe_contents(head(*parts)))

    def test_contents_with_one_signature_are_named_by_it(self):
        zfs = 0x00BAB10C
        for expected, offset, magic in (
            ("a LUKS volume", 0, b"LUKS\xba\xbe\0\2"),
            ("an LVM physical volume", 512, b"LABELONE"),
            ("an LVM physical volume", 1536, b"LABELONE"),
            ("an ISO 9660 image", 32769, b"CD001"),
            ("a GPT partition table", 512, b"EFI PART"),
            ("a GPT partition table", 4096, b"EFI PART"),
            ("part of an MD RAID", 0, b"\xfc\x4e\x2b\xa9"),
            ("part of an MD RAID", 4096, b"\xfc\x4e\x2b\xa9"),
            ("an xfs file system", 0, b"XFSB"),
            ("a btrfs file system", 0x10040, b"_BHRfS_M"),
            ("part of a ZFS pool", (128 << 10) + 7 * 1024, zfs.to_bytes(8, "little")),
            ("part of a ZFS pool", 128 << 10, zfs.to_bytes(8, "big")),
            ("a swap area", 4086, b"SWAPSPACE2"),
            ("a swap area", 65526, b"SWAPSPACE2"),
            ("an NTFS file system", 3, b"NTFS    "),
            ("an exFAT file system", 3, b"EXFAT   "),
            ("a FAT file system", 54, b"FAT12   "),
            ("a FAT file system", 54, b"FAT16   "),
            ("a FAT file system", 82, b"FAT32   "),
            ("an f2fs file system", 1024, b"\x10\x20\xf5\xf2"),
            ("an erofs file system", 1024, b"\xe2\xe1\xf5\xe0"),
            ("a squashfs file system", 0, b"hsqs"),
            ("a jfs file system", 32768, b"JFS1"),
            ("a reiserfs file system", 65536 + 52, b"ReIsEr2Fs"),
            ("a Ceph device", 0, b"bluestore block device\n"),
        ):
            self.named(expected, (offset, magic))
            # A mark elsewhere is none.
            self.named("data", (offset + 1, magic))

    def test_file_systems_with_a_boot_sector_are_no_partition_tables(self):
        for expected, offset, magic in (
            ("an NTFS file system", 3, b"NTFS    "),
            ("a FAT file system", 82, b"FAT32   "),
            ("a GPT partition table", 512, b"EFI PART"),
        ):
            self.named(expected, (offset, magic), (510, b"\x55\xaa"))

    def test_a_hybrid_image_of_a_bootable_CD_is_named_as_a_CD_image(self):
        self.named("an ISO 9660 image", (32769, b"CD001"), (512, b"EFI PART"))

    def test_ext_file_systems_are_distinguished_by_their_features(self):
        for expected, features in EXT.items():
            self.assertEqual(expected, describe_contents(ext(features)))
        for features in ((0x3C, 0x42, 0x3), (0x38, 0x2, 0x400)):
            self.assertEqual("an ext4 file system", describe_contents(ext(features)))

    def test_a_DOS_partition_table_is_distinguished_from_a_boot_sector(self):
        self.assertEqual("a DOS partition table", describe_contents(dos(0x83, 0, 0, 0)))
        self.assertEqual(
            "a DOS partition table", describe_contents(dos(0x83, 5, 0, 0, active=0x80))
        )
        # None is in use, or what is there is code.
        self.assertEqual("a boot sector", describe_contents(dos(0, 0, 0, 0)))
        self.assertEqual("a boot sector", describe_contents(dos(0x83, 0, 0, 0, active=0x17)))

    def test_image_formats_are_recognized_by_their_signatures(self):
        for expected, offset, magic in (
            ("qcow2", 0, b"QFI\xfb\0\0\0\3"),
            ("VMDK", 0, b"KDMV"),
            ("VMDK", 0, b"COWD"),
            ("VMDK", 0, b"# Disk DescriptorFile\n"),
            ("VHDX", 0, b"vhdxfile"),
            ("VDI", 0x40, b"\x7f\x10\xda\xbe"),
            ("QED", 0, b"QED\0"),
            ("VHD", 0, b"conectix"),
        ):
            self.assertEqual(expected, image_format(head((offset, magic))))
            self.named(f"a {expected} image", (offset, magic))

    def test_raw_data_is_not_taken_for_another_image_format(self):
        for data in (b"", b"QFI", bytes(512), ext(EXT["an ext4 file system"]), b"QED images"):
            self.assertEqual("", image_format(data))

    def test_contents_are_named_by_signatures_at_the_end_of_the_disk(self):
        for expected, distance, magic in (
            ("a GPT partition table", 512, b"EFI PART"),
            ("a GPT partition table", 4096, b"EFI PART"),
            ("a VHD image", 512, b"conectix"),
            ("part of an MD RAID", 8192, b"\xfc\x4e\x2b\xa9"),
            ("part of an MD RAID", 12288, b"\xfc\x4e\x2b\xa9"),
            ("part of an MD RAID", 65536, b"\xfc\x4e\x2b\xa9"),
        ):
            tail = head((MIB - distance, magic))
            self.assertEqual(expected, describe_contents(bytes(MIB), tail))
            # What stands at the start says more.
            self.assertEqual("an xfs file system", describe_contents(head((0, b"XFSB")), tail))

    def test_signatures_at_the_end_are_found_at_any_alignment(self):
        """The length of the last place need not be a round number."""
        tail = head((MIB - 12288 - 512, b""), size=MIB + 512 * 5)
        self.assertEqual("data", describe_contents(b"", tail))
        marked = tail[: MIB - 8192] + b"\xfc\x4e\x2b\xa9" + tail[MIB - 8188 :]
        self.assertEqual("part of an MD RAID", describe_contents(b"", marked))

    def test_anything_else_is_named_data(self):
        for data in (b"", b"x", b"x" * 5000, b"\x55\xaa", bytes(100)):
            self.assertEqual("data", describe_contents(data, data))

    @given(st.binary(max_size=3000), st.binary(max_size=3000))
    def test_any_bytes_are_given_a_name(self, first, last):
        self.assertTrue(describe_contents(first, last))
