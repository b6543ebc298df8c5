"""Who else has a file or a device open.

Owns nothing: it asks the kernel. A lease (fcntl(2), F_SETLEASE) shows whether anybody has it open,
proc(5) and sysfs show who.

Rules:

* the lease is dropped at once, whatever happens: while we hold it, whoever opens the file has to
  wait, or fails with O_NONBLOCK;
* a lease detects every user on this machine, including the kernel's own, such as loop devices; of
  other machines nothing is known;
* the names are for people: one may be missing for lack of permission, or because a program has
  closed the file and kept it mapped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from ..syscalls import SystemCalls
from .mounts import MOUNTINFO, backing_file, filesystem_of, read_line, read_mounts

# They grant a lease only if the server has granted one to us, and otherwise refuse it as if
# somebody had the file open.
_LEASES_UNRELIABLE: Final = frozenset({"cifs", "nfs", "nfs4", "smb3"})
_FLAGS: Final = re.compile(r"^flags:\s*([0-7]+)$", re.MULTILINE)


class User(NamedTuple):
    """A user of a file or device.

    @ivar what: its name and number: C{qemu-system-x86 (process 1234)}.
    @ivar writes: whether it has it open for writing; None if unknown.
    """

    what: str
    writes: bool | None

    def __str__(self) -> str:
        return self.what


def is_open_elsewhere(
    descriptor: int, readers: bool, system: SystemCalls, mountinfo: str = MOUNTINFO
) -> bool | None:
    """Whether the file open as C{descriptor} is open anywhere else, in this process too.

    Found out by a lease, which only the file's owner, or CAP_LEASE, may take.

    @param readers: count those too who only read. Otherwise C{descriptor} must be open read-only,
        or it would itself be found.
    @param mountinfo: the path of the kernel's list of mounts.
    @return: None if unknown, as with devices and on some file systems.
    """
    try:
        if not readers and system.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            return None
        # If somebody opens the file while we hold the lease, we get a signal. The default, SIGIO,
        # would kill a process without a handler; SIGURG is ignored by default.
        system.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        try:
            system.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK if readers else fcntl.F_RDLCK)
        finally:
            with contextlib.suppress(OSError):
                system.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
            return None
        kind = filesystem_of(f"/proc/self/fd/{descriptor}", mountinfo)
        return None if kind in _LEASES_UNRELIABLE else True
    except AttributeError:
        # This platform has no leases.
        return None
    return False


def users_of(descriptor: int, proc: str = "/proc", sys: str = "/sys") -> list[User]:
    """I{Slow.} Who else has the file or device open that is open as C{descriptor}, as far as known.

    @param proc: where proc(5) is.
    @param sys: where sysfs is.
    @return: processes, by number, then loop devices.
    @raise OSError: the descriptor is closed.
    """
    own = os.fstat(descriptor)
    return [*_processes(descriptor, own, proc), *_loops(own, proc, sys)]


def _processes(descriptor: int, own: os.stat_result, proc: str) -> Iterator[User]:
    for process in sorted(int(name) for name in _names(proc) if name.isdecimal()):
        directory = os.path.join(proc, str(process))
        writes = []
        for number in _names(os.path.join(directory, "fd")):
            if process == os.getpid() and number == str(descriptor):
                continue
            if _is_same(own, os.path.join(directory, "fd", number)):
                writes.append(_may_write(os.path.join(directory, "fdinfo", number)))
        if writes:
            program = read_line(os.path.join(directory, "comm")) or "a program"
            yield User(f"{program} (process {process})", _any(writes))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        # The process has ended meanwhile, or is another user's.
        return []


def _is_same(own: os.stat_result, path: str) -> bool:
    try:
        other = os.stat(path)
    except OSError:
        return False
    if stat.S_ISBLK(own.st_mode):
        # A device may have several nodes.
        return stat.S_ISBLK(other.st_mode) and own.st_rdev == other.st_rdev
    return os.path.samestat(own, other)


def _may_write(path: str) -> bool | None:
    flags = _FLAGS.search(read_line(path))
    return int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY if flags else None


def _any(answers: list[bool | None]) -> bool | None:
    return True if True in answers else None if None in answers else False


def _loops(own: os.stat_result, proc: str, sys: str) -> Iterator[User]:
    block = os.path.join(sys, "block")
    for name in sorted(name for name in _names(block) if name.startswith("loop")):
        entry = os.path.join(block, name)
        backing = backing_file(entry)
        if not backing or not _is_same(own, backing):
            continue
        # A file system on the device, or on one of its partitions.
        entries = [entry, *(os.path.join(entry, part) for part in _names(entry) if name in part)]
        numbers = {read_line(os.path.join(part, "dev")) for part in entries} - {""}
        mounts = read_mounts(os.path.join(proc, "self", "mountinfo"))
        mount_points = [mount.point for mount in mounts if mount.device in numbers]
        mounted = f", mounted at {' and '.join(mount_points)}" if mount_points else ""
        writes = {"0": True, "1": False}.get(read_line(os.path.join(entry, "ro")))
        yield User(name + mounted, writes)
