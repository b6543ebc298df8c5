"""Whether a disk holds data, and what that seems to be.

Owns the ranges to examine, and the signatures of known formats: nearly all are within the first
MiB, a few near the end.

Rules:

* what reads as zeroes is not data, and a hole is not even read;
* a regular file is read until data is found. With a device, or another machine's disk, that would
  take too long, so that only samples are read: small data may be missed there if none of it is
  where file systems, partition tables and the like begin;
* the names of formats are only for people: what has no known signature is just data.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from ..interfaces import IDisk
from .disk import PROBE_SIZE

_MIB: Final = 1 << 20
_ALIGNMENT: Final = 64 << 10
_SAMPLES: Final = 62


def sample_ranges(size: int) -> list[tuple[int, int]]:
    """Which ranges to examine on a disk that is too large to be read.

    The first MiB, the last, and 62 ranges of 64 KiB between them; all of a small disk.

    @param size: bytes of the disk, more than 0.
    @return: offsets and lengths in bytes, ascending and disjoint. The offsets are multiples of
        64 KiB, the lengths less than 64 KiB above 1 MiB; the last range ends at C{size}.
    """
    last = (size - _MIB) // _ALIGNMENT * _ALIGNMENT
    between = last - _MIB
    if between < (_SAMPLES + 1) * _ALIGNMENT:
        return [(offset, min(_MIB, size - offset)) for offset in range(0, size, _MIB)]
    samples = [
        (_MIB + between * number // (_SAMPLES + 1) // _ALIGNMENT * _ALIGNMENT, _ALIGNMENT)
        for number in range(1, _SAMPLES + 1)
    ]
    return [(0, _MIB), *samples, (last, size - last)]


def find_data(disk: IDisk, wanted: Callable[[], bool] = lambda: True) -> str:
    """I{Slow.} What a disk holds.

    A disk that knows its holes is read completely, any other only at L{sample_ranges}.

    @param wanted: called now and then: whether the answer is still wanted.
    @return: "" if everything that was examined reads as zeroes; otherwise what the disk seems to
        hold, in words, with an article: C{an ext4 file system}, or C{data}.
    @raise OSError: it could not be read; ECANCELED if the answer was no longer wanted.
    """
    if getattr(disk, "blank", False) or all(
        _is_zero(disk, *run, wanted) for run in _ranges_to_probe(disk)
    ):
        return ""
    first, last = sample_ranges(disk.size)[0], sample_ranges(disk.size)[-1]
    return describe_contents(disk.read(*first), disk.read(*last))


def _ranges_to_probe(disk: IDisk) -> Iterator[tuple[int, int]]:
    """Offsets and lengths, of at most 1 MiB or a little more."""
    if disk.shortest_zeroes < PROBE_SIZE:
        yield from sample_ranges(disk.size)
        return
    for extent in disk.extents(0):
        if not extent.hole:
            end = extent.offset + extent.length
            for offset in range(extent.offset, end, _MIB):
                yield offset, min(_MIB, end - offset)


def _is_zero(disk: IDisk, offset: int, length: int, wanted: Callable[[], bool]) -> bool:
    """Whether a range is all zeroes; it stays in the page cache only if it was there before."""
    if not wanted():
        raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
    end = offset + length
    cold = False
    try:
        for position in range(offset, end, PROBE_SIZE):
            probe = disk.probe(position, min(PROBE_SIZE, end - position))
            cold = cold or probe.cold
            if not probe.zero:
                return False
    finally:
        if cold:
            disk.forget(offset, length)
    return True


class _Signature(NamedTuple):
    """A format's magic bytes, and the possible offsets of them from the start of the disk."""

    name: str
    magic: bytes
    offsets: tuple[int, ...] | range = (0,)

    def is_in(self, data: bytes) -> bool:
        return any(data.startswith(self.magic, offset) for offset in self.offsets)


_IMAGES: Final = (
    _Signature("qcow2", b"QFI\xfb"),
    _Signature("VMDK", b"KDMV"),
    _Signature("VMDK", b"COWD"),
    _Signature("VMDK", b"# Disk DescriptorFile"),
    _Signature("VHDX", b"vhdxfile"),
    _Signature("VDI", b"\x7f\x10\xda\xbe", (0x40,)),
    _Signature("QED", b"QED\0"),
    _Signature("VHD", b"conectix"),
)

_SECTORS: Final = (512, 4096)
_PAGES: Final = (4096, 8192, 16384, 32768, 65536)
_SWAP_OFFSETS: Final = tuple(page - 10 for page in _PAGES)
# The magic numbers are in the byte order of the machine that wrote them.
_UBERBLOCKS: Final = range(128 << 10, 256 << 10, 1024)
_ZFS: Final = 0x00BAB10C.to_bytes(8, "little")
_MD: Final = 0xA92B4EFC.to_bytes(4, "little")

# Those before the partition tables are practically certain, and may contain one; a DOS partition
# table is only a guess, since any file system's boot sector looks much like one.
_SIGNATURES: Final = (
    _Signature("a LUKS volume", b"LUKS\xba\xbe"),
    _Signature("an LVM physical volume", b"LABELONE", (0, 512, 1024, 1536)),
    _Signature("an ISO 9660 image", b"CD001", (32769,)),
    _Signature("a GPT partition table", b"EFI PART", _SECTORS),
    _Signature("part of an MD RAID", _MD, (0, 4096)),
    _Signature("an xfs file system", b"XFSB"),
    _Signature("a btrfs file system", b"_BHRfS_M", (65536 + 64,)),
    _Signature("part of a ZFS pool", _ZFS, _UBERBLOCKS),
    _Signature("part of a ZFS pool", _ZFS[::-1], _UBERBLOCKS),
    _Signature("a swap area", b"SWAPSPACE2", _SWAP_OFFSETS),
    _Signature("a swap area", b"SWAP-SPACE", _SWAP_OFFSETS),
    _Signature("an NTFS file system", b"NTFS    ", (3,)),
    _Signature("an exFAT file system", b"EXFAT   ", (3,)),
    _Signature("a FAT file system", b"FAT12   ", (54,)),
    _Signature("a FAT file system", b"FAT16   ", (54,)),
    _Signature("a FAT file system", b"FAT32   ", (82,)),
    _Signature("an f2fs file system", 0xF2F52010.to_bytes(4, "little"), (1024,)),
    _Signature("an erofs file system", 0xE0F5E1E2.to_bytes(4, "little"), (1024,)),
    _Signature("a squashfs file system", b"hsqs"),
    _Signature("a jfs file system", b"JFS1", (32768,)),
    _Signature("a reiserfs file system", b"ReIsEr", (65536 + 52,)),
    _Signature("a bcache device", bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"), (4096 + 24,)),
    _Signature("a Ceph device", b"bluestore block device"),
)


def image_format(head: bytes) -> str:
    """Which image format, other than raw, begins with C{head}.

    @return: C{qcow2}, C{VMDK}, C{VHDX}, C{VDI}, C{QED} or C{VHD}; "" for none of them.
    """
    return next((signature.name for signature in _IMAGES if signature.is_in(head)), "")


def describe_contents(head: bytes, tail: bytes = b"") -> str:
    """What a disk that is not all zeroes seems to hold, in words, with an article.

    @param head: its first MiB, or all of a smaller disk.
    @param tail: its last bytes, from a multiple of 4096 to the end.
    @return: such as C{an ext4 file system}; C{data} if no signature is known.
    """
    if image := image_format(head):
        return f"a {image} image"
    for signature in _SIGNATURES:
        if signature.is_in(head):
            return signature.name
    return _extended(head) or _dos_table(head) or _at_the_end(tail) or "data"


_SUPERBLOCK: Final = 1024
_HAS_JOURNAL: Final = 0x4
_NEEDS_EXT4: Final = ~0x16
_NEEDS_EXT4_TO_WRITE: Final = ~0x7


def _extended(head: bytes) -> str:
    """Which of ext2, ext3 and ext4 it is, by the features in use."""
    block = head[_SUPERBLOCK : 2 * _SUPERBLOCK]
    if block[56:58] != b"\x53\xef":
        return ""
    compatible, incompatible, read_only = (
        int.from_bytes(block[offset : offset + 4], "little") for offset in (92, 96, 100)
    )
    if incompatible & _NEEDS_EXT4 or read_only & _NEEDS_EXT4_TO_WRITE:
        return "an ext4 file system"
    return f"an ext{3 if compatible & _HAS_JOURNAL else 2} file system"


def _dos_table(head: bytes) -> str:
    """A DOS partition table: four entries of 16 bytes (active flag, CHS, type, CHS and LBA)."""
    if head[510:512] != b"\x55\xaa":
        return ""
    entries = [head[offset : offset + 16] for offset in range(446, 510, 16)]
    plausible = all(entry[0] in (0, 0x80) for entry in entries)
    if plausible and any(entry[4] for entry in entries):
        return "a DOS partition table"
    return "a boot sector"


def _at_the_end(tail: bytes) -> str:
    if any(tail[-sector:].startswith(b"EFI PART") for sector in _SECTORS):
        return "a GPT partition table"
    if tail[-512:].startswith(b"conectix"):
        return "a VHD image"
    # MD versions 0.90 and 1.0, whose distance from the end varies.
    near = range(max(0, len(tail) - (128 << 10)) // 4096 * 4096, len(tail), 4096)
    return "part of an MD RAID" if any(tail.startswith(_MD, offset) for offset in near) else ""
