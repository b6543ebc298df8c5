"""Which file system a path is on, and whether that is in memory, or on another machine.

Owns the reading of C{/proc/self/mountinfo} (proc(5)).

Rules:

* a path is on the file system with the longest mount point above it; of several with the same
  mount point it is on the last, which hides the others;
* what is unknown is "" or False, never an error: callers only warn, or refuse what is known to be
  wrong.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Final, NamedTuple

MOUNTINFO: Final = "/proc/self/mountinfo"

_DEVICES = "/dev"
_SHARED_MEMORY: Final = "shm"
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
_REMOTE: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse", "gfs2", "glusterfs", "gpfs", "lustre"}
    | {"nfs", "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "vboxsf", "virtiofs"}
)
_MEMORY_DEVICE: Final = re.compile(r"(ram|zram)\d+")


class Mount(NamedTuple):
    """A mounted file system.

    @ivar device: its device, C{MAJOR:MINOR}.
    @ivar point: the path where it is mounted.
    @ivar kind: its type, as in C{mount -t}.
    """

    device: str
    point: str
    kind: str


def read_mounts(mountinfo: str = MOUNTINFO) -> list[Mount]:
    """All mounts, in mount order; none where that is unknown.

    @param mountinfo: the path of the kernel's list.
    """
    try:
        with open(mountinfo, "rb") as file:
            lines = [os.fsdecode(line).split(" ") for line in file.read().splitlines()]
    except OSError:
        return []
    mounts = []
    for fields in lines:
        # There may be any number of optional fields, up to a single hyphen.
        if "-" in fields[6:-1]:
            kind = fields[fields.index("-", 6) + 1]
            mounts.append(Mount(fields[2], _unescape(fields[4]), kind))
    return mounts


def _unescape(path: str) -> str:
    """Decode octal escapes, which stand for blanks and the like."""
    found = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), os.fsencode(path))
    return os.fsdecode(found)


def filesystem_of(path: str, mountinfo: str = MOUNTINFO) -> str:
    """The type of the file system that C{path} is on, or would be on if it were made.

    @param path: any path; symbolic links are followed.
    @param mountinfo: the path of the kernel's list of mounts.
    @return: as in C{mount -t}, such as C{ext4}, C{nfs4} or C{fuse.sshfs}; "" if unknown.
    """
    real_path = os.path.realpath(path)
    above = [mount for mount in read_mounts(mountinfo) if _is_below(real_path, mount.point)]
    # The last of the longest: max() takes the first of several.
    return max(reversed(above), key=lambda mount: len(mount.point)).kind if above else ""


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def is_mount_point(path: str, mountinfo: str = MOUNTINFO) -> bool:
    """Whether a file system is mounted at C{path} itself, which has no symbolic links."""
    return any(mount.point == path for mount in read_mounts(mountinfo))


def is_mounted(device: str, mountinfo: str = MOUNTINFO) -> bool:
    """Whether a file system with that device, C{MAJOR:MINOR}, is mounted."""
    return any(mount.device == device for mount in read_mounts(mountinfo))


def is_in_memory(kind: str) -> bool:
    """Whether a file system of type C{kind} (see L{filesystem_of}) is lost at a restart."""
    return kind in _IN_MEMORY


def is_remote(kind: str) -> bool:
    """Whether other machines may use the files of a file system of type C{kind}.

    So it is assumed of FUSE, except C{fuseblk}, which is on a device.
    """
    return kind in _REMOTE or kind.startswith("fuse.")


def is_below_dev(path: str) -> bool:
    """Whether C{path}, which has no symbolic links, is below C{/dev}.

    A regular file there is nearly always a mistake (a misspelt device name, or a device that did
    not exist yet), and is in memory. C{/dev/shm} is for files, and does not count.
    """
    return _is_below(path, _DEVICES) and not _is_below(path, os.path.join(_DEVICES, _SHARED_MEMORY))


def device_in_memory(path: str, sys: str = "/sys", mountinfo: str = MOUNTINFO) -> bool:
    """Whether C{path} is a block device whose content is lost at a restart.

    That is a RAM disk (brd), zram, or a loop device over a file in memory.

    @param sys: where sysfs is.
    @param mountinfo: the path of the kernel's list of mounts.
    """
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISBLK(status.st_mode) and number_in_memory(status.st_rdev, sys, mountinfo)


def number_in_memory(number: int, sys: str = "/sys", mountinfo: str = MOUNTINFO) -> bool:
    """As L{device_in_memory}, for the block device with that number (C{st_rdev})."""
    entry = os.path.realpath(device_entry(number, sys))
    if os.path.exists(os.path.join(entry, "partition")):
        entry = os.path.dirname(entry)
    if _MEMORY_DEVICE.fullmatch(os.path.basename(entry)):
        return True
    backing = backing_file(entry)
    return bool(backing) and is_in_memory(filesystem_of(backing, mountinfo))


def device_entry(number: int, sys: str = "/sys") -> str:
    """The sysfs directory of the block device with that number (C{st_rdev})."""
    return os.path.join(sys, "dev", "block", f"{os.major(number)}:{os.minor(number)}")


def backing_file(entry: str) -> str:
    """The backing file of a loop device; "" if it is no loop device, or has none.

    A deleted file has C{ (deleted)} after its name.

    @param entry: the device's sysfs directory.
    """
    return read_line(os.path.join(entry, "loop", "backing_file"))


def read_line(path: str) -> str:
    """The content of a kernel file, without the last newline; "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read()).removesuffix("\n")
    except OSError:
        return ""
