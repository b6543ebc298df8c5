"""Opens the files beside a disk by whose content a command goes, such as its records.

Owns which of them count: others may write in the same directory (C{/tmp}), and what they put at the
name of a record must neither be believed, nor be followed or waited for.

Rules (design, section 2: R7, R11):

* only a regular file is read: no symbolic link is followed, no FIFO waited for;
* it must belong to root, to the user of this process, to the owner of the disk, or, where that
  says who may decide there, to the owner of the directory;
* what is there and may not be believed is an error (L{Untrusted}), and never absence;
* a file system may show other owners than there are: C{nobody} stands for root on one that a server
  exports with C{root_squash}, and for every user that a user namespace does not know. There it is
  not held against a file, so that nobody is kept from their own disk.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from typing import Final

from ..syscalls import SystemCalls
from .mounts import filesystem_of, is_remote

_ROOT: Final = 0
_NOBODY: Final = 65534
"""The overflow id (user_namespaces(7)), and whom NFS takes for root."""
_ALL_USERS: Final = ["0", "0", "4294967295"]

_KINDS: Final = (
    (stat.S_ISLNK, "a symbolic link, which is not followed"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)


class Untrusted(Exception):
    """Something is there that is not believed; the message says what, to be put after its path."""


def open_trusted(path: str, disk: str, system: SystemCalls, *, by_directory: bool = True) -> int:
    """Open a file for reading.

    @param disk: the path of the disk that it is about, which may be gone.
    @param by_directory: the owner of the directory may say what is true of the disk.
    @return: the descriptor.
    @raise FileNotFoundError: nothing is there.
    @raise Untrusted: it is no regular file, or somebody else's.
    @raise OSError: it cannot be opened.
    """
    descriptor = open_regular(path, system)
    try:
        _check_owner(path, system.fstat(descriptor), disk, system, by_directory)
    except BaseException:
        system.close(descriptor)
        raise
    return descriptor


def open_regular(path: str, system: SystemCalls) -> int:
    """As L{open_trusted}, whoever it belongs to."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY
    try:
        descriptor = system.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError:
        with contextlib.suppress(OSError):  # then it cannot be looked at either
            _check_kind(os.lstat(path).st_mode)
        raise
    try:
        _check_kind(system.fstat(descriptor).st_mode)
    except BaseException:
        system.close(descriptor)
        raise
    return descriptor


def _check_kind(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((words for matches, words in _KINDS if matches(mode)), "a device")
        raise Untrusted(f"is {kind}")


def _check_owner(
    path: str, status: os.stat_result, disk: str, system: SystemCalls, by_directory: bool
) -> None:
    owner, directory = status.st_uid, os.path.dirname(path)
    if owner in (_ROOT, system.geteuid()) or owner == _owner_of(disk, system):
        return
    if by_directory and owner == _owner_of(directory, system):
        return
    if owner == _NOBODY and (not _knows_all_users() or is_remote(filesystem_of(directory))):
        return
    raise Untrusted(
        f"belongs to {_name_of(owner)}, who has neither the disk nor "
        f"{'its directory' if by_directory else 'a say in this'}"
    )


def _owner_of(path: str, system: SystemCalls) -> int | None:
    try:
        return system.stat(path).st_uid
    except (OSError, ValueError):
        return None


def _knows_all_users(uid_map: str = "/proc/self/uid_map") -> bool:
    """Whether this process is in no user namespace that lacks some of the host's users."""
    try:
        with open(uid_map, "rb") as file:
            return file.read(4096).decode().split() == _ALL_USERS
    except OSError:
        return True


def _name_of(user: int) -> str:
    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user {user}"
