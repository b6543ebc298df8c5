"""Whether a file could be deleted, checked long before it is.

Owns the reasons why unlink(2) would fail, for root or for others, each with its remedy.

Rules:

* only checks: nothing is changed;
* what is unknown is no reason; the deletion itself can still fail, and then reports it.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import Final

from ..syscalls import SystemCalls
from .errors import DiskRefused
from .mounts import MOUNTINFO, is_mount_point

_FS_IOC_GETFLAGS: Final = 0x80086601
_IMMUTABLE: Final = 0x10
_APPEND_ONLY: Final = 0x20


def check_deletable(
    descriptor: int, name: str, path: str, system: SystemCalls, mountinfo: str = MOUNTINFO
) -> None:
    """Check that the file at C{path} could be deleted.

    @param descriptor: of the open file.
    @param name: its name in the message.
    @param path: its path, without symbolic links.
    @param mountinfo: the path of the kernel's list of mounts.
    @raise DiskRefused: it could not be deleted.
    """
    directory = os.path.dirname(path)
    reason = (
        _flag_reason("it", path, _flags(descriptor, system))
        or _flag_reason("its directory", directory, _flags_of(directory, system))
        or _permission_reason(descriptor, directory, system)
    )
    if not reason and is_mount_point(path, mountinfo):
        reason = f"it is a mount point: umount {path}"
    if reason:
        raise DiskRefused(f"{name}: cannot be deleted: {reason}, or send with unlink=False")


def why_names_stay(directory: str, system: SystemCalls) -> str:
    """Why nothing in a directory can be renamed or removed by anybody; "" if it can."""
    return _flag_reason("it", directory, _flags_of(directory, system))


def _flag_reason(what: str, path: str, flags: int) -> str:
    if flags & _IMMUTABLE:
        return f"{what} is immutable: chattr -i {path}"
    if flags & _APPEND_ONLY:
        return f"{what} is append-only: chattr -a {path}"
    return ""


def _flags(descriptor: int, system: SystemCalls) -> int:
    """Its attributes (ioctl_iflags(2)); 0 where the file system has none."""
    try:
        answer = system.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(8))
    except OSError:
        return 0
    (flags,) = struct.unpack_from("I", answer)
    return int(flags)


def _flags_of(directory: str, system: SystemCalls) -> int:
    try:
        descriptor = system.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        # A directory that may be written need not be readable.
        return 0
    try:
        return _flags(descriptor, system)
    finally:
        system.close(descriptor)


def _permission_reason(descriptor: int, directory: str, system: SystemCalls) -> str:
    """Why this user may not: deleting takes write permission on the directory."""
    if not system.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return f"there is no permission to write in {directory}"
    user = system.geteuid()
    status = system.stat(directory)
    owners = {0, status.st_uid, system.fstat(descriptor).st_uid}
    if status.st_mode & stat.S_ISVTX and user not in owners:
        return f"{directory} is sticky, and only the owner of a file may delete it there"
    return ""
