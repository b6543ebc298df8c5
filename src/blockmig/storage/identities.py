"""What identifies a disk in a record, and whether two are of the same disk (design, R10).

Owns the text of an identity, and the comparison. A file's says which inode it is and when that was
created. A device's has its number and the kernel's sequence number of the disk, which are never
given twice within one boot; and the names by which hardware, device mapper and loop devices are
known over boots, as far as /sys has them. It is meant to be read by people too::

    device 8:17; diskseq 9; partition 1 at 2048; wwid naa.5000c500a1b2c3d4; serial S1

Rules:

* a name in /dev proves nothing: it may go to another disk at any time;
* within one boot the sequence number decides; where it differs, the disk was detached, and only a
  lasting name proves that it is the same one again;
* over boots only a lasting name proves anything: one that both have, and that is equal; a single
  one that differs proves the contrary;
* a partition's UUID is copied with its disk. It proves something only together with a name of that,
  or, where that has none, as long as no other device that is there has the same;
* a file system can be copied too, with the inodes of its files: a loop device over a file of the
  copy is another one, but that is certain only while both are mounted, each from the disk that it
  was seen on: numbers of devices are given again within a boot, sequence numbers are not;
* what neither proves is None: the caller decides what is safe.
"""

from __future__ import annotations

import glob
import os
import stat
import urllib.parse
from typing import Final, NamedTuple

from ..syscalls import SYSTEM, SystemCalls
from .mounts import MOUNTINFO, backing_file, device_entry, is_mounted, read_line

_DEVICE: Final = "device "
_BIRTH: Final = ", born "
# All that can be printed, but for what separates the parts.
_SAFE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ";%")
_MOST_LAYERS: Final = 8
# Kinds of names beside those that a whole disk has of its own.
_LOOP: Final = "loop"
_FILESYSTEM: Final = "filesystem"
_PARTITION: Final = "partuuid"
_PARTITION_OF_SEVERAL: Final = "partuuid-of-several"
_OF_PARTITIONS: Final = frozenset({_PARTITION, _PARTITION_OF_SEVERAL})
# What manufacturers write where there should be a name.
_NO_NAME: Final = frozenset("0-. :")
# Where the directory of a whole disk has its lasting names.
_NAMES: Final = {
    "dm": ("dm/uuid",),
    "md": ("md/uuid",),
    "wwid": ("wwid", "device/wwid"),
    "cid": ("device/cid",),
    "serial": ("serial", "device/serial"),
}


def boot_id(system: SystemCalls = SYSTEM) -> str:
    """Identifies the running boot of this machine; "" where the system has no such id.

    @see: random(4), C{boot_id}.
    """
    try:
        descriptor = system.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return system.pread(descriptor, 64, 0).decode().strip()
    except OSError:
        return ""
    finally:
        system.close(descriptor)


# Files.


def file_identity(descriptor: int, system: SystemCalls) -> str:
    """Identify the file open as C{descriptor}: its inode, and when it was created (or written).

    File system clocks are coarse: two files that are created one after the other in the same inode
    may have the same time, and are distinguished by the inode's generation where there is one.
    """
    status = system.fstat(descriptor)
    born = system.birth(descriptor)
    if born is None:
        return f"inode {status.st_ino}, written {status.st_mtime_ns}"
    generation = system.generation(descriptor)
    which = f", generation {generation}" if generation is not None else ""
    return f"inode {status.st_ino}{_BIRTH}{born}{which}"


def _same_file(one: str, other: str) -> bool | None:
    if one == other:
        return True
    births = [text.partition(_BIRTH)[2] for text in (one, other)]
    if all(births) and births[0] != births[1]:
        return False
    # Written since, or no birth time is reported now, or this file system does not keep inodes.
    return None


# Devices.


class DeviceIdentity(NamedTuple):
    """What identifies a block device.

    @ivar number: C{MAJOR:MINOR}.
    @ivar sequence: the kernel's sequence number of the disk that it is or is a part of; "" where
        there is none (before Linux 5.15).
    @ivar partition: which part of the disk it is, and where that begins; "" for a whole disk.
    @ivar names: the lasting names, by their kind.
    """

    number: str
    sequence: str = ""
    partition: str = ""
    names: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        parts = [("device", self.number)]
        if self.sequence:
            parts.append(("diskseq", self.sequence))
        if self.partition:
            parts.append(("partition", self.partition))
        return "; ".join(
            f"{kind} {urllib.parse.quote(os.fsencode(value), safe=_SAFE)}"
            for kind, value in (*parts, *self.names)
        )

    @classmethod
    def parse(cls, text: str) -> DeviceIdentity | None:
        """The identity that C{text} is; None if it is not a device's."""
        if not text.startswith(_DEVICE):
            return None
        found = {}
        for part in text.split("; "):
            kind, _, value = part.partition(" ")
            found[kind] = os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(value)))
        number, sequence = found.pop("device"), found.pop("diskseq", "")
        return cls(number, sequence, found.pop("partition", ""), tuple(found.items()))


def device_identity(number: int, system: SystemCalls = SYSTEM, sys: str = "/sys") -> str:
    """Identify the block device with that number (C{st_rdev}).

    @param sys: where sysfs is.
    """
    return str(_device(number, system, sys, _MOST_LAYERS))


def _device(number: int, system: SystemCalls, sys: str, layers: int) -> DeviceIdentity:
    entry = os.path.realpath(device_entry(number, sys))
    whole, attached = _attached(number, sys)
    names = [(kind, value) for kind in _NAMES if (value := _name(whole, kind, sys))]
    backing = _backing(whole, system, sys, layers)
    if uuid := _uevent(entry, "PARTUUID"):
        shared = not (names or backing) and _has_partition_elsewhere(entry, uuid, sys)
        names.append((_PARTITION_OF_SEVERAL if shared else _PARTITION, uuid))
    return attached._replace(names=(*names, *backing))


def _attached(number: int, sys: str) -> tuple[str, DeviceIdentity]:
    """The directory of the whole disk that the device with that number is, or is a part of; and
    what identifies the device as long as it is attached, without its lasting names."""
    entry = os.path.realpath(device_entry(number, sys))
    whole, partition = entry, ""
    if index := read_line(os.path.join(entry, "partition")):
        whole = os.path.dirname(entry)
        partition = f"{index} at {read_line(os.path.join(entry, 'start'))}"
    sequence = read_line(os.path.join(whole, "diskseq"))
    return whole, DeviceIdentity(_number_of(number), sequence, partition)


def _number_of(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _name(entry: str, kind: str, sys: str) -> str:
    for place in _NAMES[kind]:
        value = " ".join(read_line(os.path.join(entry, place)).split())
        if not _NO_NAME.issuperset(value):
            if kind == "serial" and _is_shared(entry, place, sys):
                return ""
            if kind == "serial" and (part := read_line(os.path.join(entry, "nsid"))):
                return f"{value} namespace {part}"  # the serial number is its controller's
            return value
    return ""


def _is_shared(entry: str, place: str, sys: str) -> bool:
    """Whether another disk has the same name: virtual disks often have none of their own."""
    try:
        others = os.listdir(os.path.join(sys, "block"))
    except OSError:
        return False
    own = [read_line(os.path.join(entry, name)) for name in (place, "nsid", "wwid")]
    return any(
        own == [read_line(os.path.join(other, name)) for name in (place, "nsid", "wwid")]
        for name in others
        if (other := os.path.realpath(os.path.join(sys, "block", name))) != entry
    )


def _has_partition_elsewhere(entry: str, uuid: str, sys: str) -> bool:
    """Whether another partition has the same UUID: the disk, or another one, is a clone."""
    for whole in glob.glob(os.path.join(glob.escape(sys), "block", "*")):
        for place in glob.glob(
            os.path.join(glob.escape(os.path.realpath(whole)), "*", "partition")
        ):
            other = os.path.dirname(place)
            if other != entry and _uevent(other, "PARTUUID") == uuid:
                return True
    return False


def _uevent(entry: str, key: str) -> str:
    for line in read_line(os.path.join(entry, "uevent")).splitlines():
        name, _, value = line.partition("=")
        if name == key:
            return value
    return ""


def _backing(entry: str, system: SystemCalls, sys: str, layers: int) -> tuple[tuple[str, str], ...]:
    """What a loop device is over: the identity of that file, or device, and where it begins; and
    the device that the file's file system is on, where that has a sequence number."""
    path = backing_file(entry)
    if not path or not layers:
        return ()
    filesystem = []
    try:
        status = system.stat(path)
        if stat.S_ISBLK(status.st_mode):
            below = str(_device(status.st_rdev, system, sys, layers - 1))
        else:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = system.open(path, flags)
            try:
                below = file_identity(descriptor, system)
            finally:
                system.close(descriptor)
            _, device = _attached(status.st_dev, sys)
            if device.sequence:
                filesystem.append((_FILESYSTEM, str(device)))
    except OSError:
        return ()  # it was deleted, or is out of reach
    offset = read_line(os.path.join(entry, "loop", "offset")) or "0"
    limit = read_line(os.path.join(entry, "loop", "sizelimit")) or "0"
    return (_LOOP, f"{offset} {limit} {below}"), *filesystem


# The comparison.


def same_disk(recorded: str, recorded_boot: str, now: str, boot_now: str) -> bool | None:
    """Whether an identity that was recorded is that of the disk that is there now.

    @param recorded: the recorded identity; "" in records of devices of version 0.1.
    @param recorded_boot: the boot (L{boot_id}) in which it was seen; "" where unknown.
    @param now: the identity of the disk that is there.
    @param boot_now: the running boot.
    @return: None where that cannot be decided.
    """
    one, other = DeviceIdentity.parse(recorded), DeviceIdentity.parse(now)
    if one is None and other is None:
        return _same_file(recorded, now)
    if one is None or other is None:
        return False if recorded and now else None
    same_boot = bool(recorded_boot) and recorded_boot == boot_now
    if one.partition != other.partition:
        return False
    if same_boot and one.sequence and one.sequence == other.sequence:
        return True
    ones, others = dict(one.names), dict(other.names)
    same = _same_names(ones, others, recorded_boot, boot_now)
    if same is None and same_boot and not _may_be_clones(ones, others):
        # It was detached. Without sequence numbers nothing shows that.
        detached = bool(one.sequence and other.sequence) or one.number != other.number
        return False if detached else None
    return same


def _same_names(
    ones: dict[str, str], others: dict[str, str], recorded_boot: str, boot_now: str
) -> bool | None:
    answers: list[bool | None]
    answers = [ones[kind] == others[kind] for kind in _own(ones) & _own(others) - {_LOOP}]
    if _LOOP in ones and _LOOP in others:
        answers.append(_same_backing(ones[_LOOP], others[_LOOP], recorded_boot, boot_now))
        if recorded_boot == boot_now and _are_copies(ones, others):
            return False
    parts = [_partition_uuid(names) for names in (ones, others)]
    if False in answers or (all(parts) and parts[0] != parts[1]):
        return False
    if True in answers:
        return True
    nameless = not (_own(ones) or _own(others))
    alone = _PARTITION in ones and _PARTITION in others
    return True if nameless and alone else None


def _own(names: dict[str, str]) -> set[str]:
    """The kinds of names that are a whole disk's own."""
    return names.keys() - _OF_PARTITIONS - {_FILESYSTEM}


def _partition_uuid(names: dict[str, str]) -> str:
    return names.get(_PARTITION) or names.get(_PARTITION_OF_SEVERAL, "")


def _may_be_clones(ones: dict[str, str], others: dict[str, str]) -> bool:
    """Whether it cannot be told if one is the clone of the other: the partition's UUID is the same,
    and nothing else is known of both disks."""
    uuid = _partition_uuid(ones)
    return bool(uuid) and uuid == _partition_uuid(others)


def _are_copies(ones: dict[str, str], others: dict[str, str]) -> bool:
    """Whether two files that loop devices are over are certainly on two file systems: on two disks
    that are there, and mounted, at once.

    Otherwise one may be the other, which was detached or moved meanwhile.
    """
    one, other = ones.get(_FILESYSTEM, ""), others.get(_FILESYSTEM, "")
    return one != other and _is_mounted(one) and _is_mounted(other)


def _is_mounted(filesystem: str, sys: str = "/sys", mountinfo: str = MOUNTINFO) -> bool:
    """Whether the device on which a file system was seen in this boot is still attached, and a file
    system on it is mounted."""
    device = DeviceIdentity.parse(filesystem)
    if device is None or not device.sequence or not is_mounted(device.number, mountinfo):
        return False
    _, now = _attached(os.makedev(*map(int, device.number.split(":"))), sys)
    return now == device


def _same_backing(one: str, other: str, recorded_boot: str, boot_now: str) -> bool | None:
    (*range_one, below_one), (*range_other, below_other) = one.split(" ", 2), other.split(" ", 2)
    if range_one != range_other:
        return False
    return same_disk(below_one, recorded_boot, below_other, boot_now)


def is_still_attached(recorded: str, recorded_boot: str, now: str, boot_now: str) -> bool:
    """Whether a device has certainly been attached since its identity was recorded.

    The parameters are those of L{same_disk}.
    """
    one, other = DeviceIdentity.parse(recorded), DeviceIdentity.parse(now)
    if one is None or other is None or not one.sequence or one.partition != other.partition:
        return False
    return bool(recorded_boot) and recorded_boot == boot_now and one.sequence == other.sequence


def is_provable(identity: str) -> bool:
    """Whether it can be proved of a disk with that identity, in a later boot, that it is the same.

    Of a file it always can, unless it is written to where files have no birth time: then it cannot
    be proved any more. Of a device only if it has a lasting name.
    """
    device = DeviceIdentity.parse(identity)
    if device is None:
        return bool(identity)
    names = dict(device.names)
    if _PARTITION in names or _own(names) - {_LOOP}:
        return True
    return is_provable(backing_identity(identity))


def is_device_identity(identity: str) -> bool:
    """Whether it identifies a device; it can be guessed then, unlike that of a file."""
    return identity.startswith(_DEVICE)


def backing_identity(identity: str) -> str:
    """The identity of the file that a loop device is over; "" where it is no such device."""
    device = DeviceIdentity.parse(identity)
    loop = dict(device.names).get(_LOOP, "") if device is not None else ""
    return loop.split(" ", 2)[2] if loop else ""


def is_inside(recorded: str, recorded_boot: str, now: str, boot_now: str) -> bool:
    """Whether a recorded identity is that of a device that certainly has data of the disk that is
    there now: of a loop device over the file, or of a partition.

    The parameters are those of L{same_disk}.
    """
    device = DeviceIdentity.parse(recorded)
    if device is None or not now:
        return False
    if not is_device_identity(now):
        below = backing_identity(recorded)
        return bool(below) and same_disk(below, recorded_boot, now, boot_now) is True
    names = tuple((kind, name) for kind, name in device.names if kind not in _OF_PARTITIONS)
    whole = str(device._replace(partition="", names=names))
    return bool(device.partition) and same_disk(whole, recorded_boot, now, boot_now) is True


def is_whole(identity: str) -> bool:
    """Whether it is of a whole disk, which is a loop device over all of its file if it is one."""
    device = DeviceIdentity.parse(identity)
    if device is None:
        return True
    return not device.partition and dict(device.names).get(_LOOP, "0 0 ").startswith("0 0 ")
