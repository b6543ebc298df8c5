"""The exclusive lock on a disk, so that no two programs write (or migrate) the same one.

Two locks are taken on the disk's own descriptor; both end when it is closed, whatever happens:

* an exclusive `flock`, which other blockmig processes take too, and udev respects;
* an "open file description" lock over the bytes on which QEMU keeps its own image locks (QEMU docs,
  "Image locking": permissions from 100 and from 200 on). QEMU and its tools then refuse the disk
  while we have it, and we refuse a disk that a QEMU has open.

On a file system without locks (ENOLCK, EOPNOTSUPP) the disk is used without one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from ..syscalls import SystemCalls

_FLOCK = struct.Struct("hhqqi4x")
_QEMU_FIRST: Final = 100
_QEMU_LENGTH: Final = 200
_IN_USE = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)
_ANOTHER: Final = "another blockmig (or a program that takes the same lock)"
_QEMU: Final = "QEMU (or a program that locks images as QEMU does)"
_LOCKS_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


class InUse(Exception):
    """Another program uses the disk; the message says which kind of program."""


def lock_disk(descriptor: int, writable: bool, system: SystemCalls) -> None:
    """Lock the disk open as C{descriptor} until that is closed; never waits.

    @param writable: the descriptor is open for writing. A read-only one keeps QEMU from starting to
        write, but does not detect a QEMU that only reads.
    @raise InUse: another program has locked it.
    @raise OSError: locking failed for another reason.
    """
    try:
        system.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _IN_USE:
            raise InUse(_ANOTHER) from None
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise
    command = getattr(fcntl, "F_OFD_SETLK", None)
    if command is None:
        return
    kind = fcntl.F_WRLCK if writable else fcntl.F_RDLCK
    request = _FLOCK.pack(kind, os.SEEK_SET, _QEMU_FIRST, _QEMU_LENGTH, 0)
    try:
        system.fcntl(descriptor, command, request)
        if not writable:
            _refuse_qemu_writers(descriptor, system)
    except OSError as error:
        if error.errno in _IN_USE:
            raise InUse(_QEMU) from None
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise


def check_unlocked(descriptor: int, system: SystemCalls) -> None:
    """Check that a disk that is open for reading as C{descriptor} could be locked (L{lock_disk}).

    QEMU's locks are only queried. Ours is taken, and given back at once, since it cannot be.

    @raise InUse: another program has locked it.
    @raise OSError: that cannot be found out.
    """
    try:
        system.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        system.flock(descriptor, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno in _IN_USE:
            raise InUse(_ANOTHER) from None
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise
    try:
        _refuse_qemu_writers(descriptor, system)
        _refuse_locks(descriptor, fcntl.F_RDLCK, _QEMU_FIRST, _QEMU_LENGTH, system)
    except OSError as error:
        if error.errno in _IN_USE:
            raise InUse(_QEMU) from None
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise


def is_locked(descriptor: int, system: SystemCalls) -> bool:
    """Whether another program has locked the disk that is open as C{descriptor}.

    Only queries: takes no lock that could interfere with another program.
    """
    get = getattr(fcntl, "F_OFD_GETLK", None)
    if get is None:
        return False
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _QEMU_FIRST, _QEMU_LENGTH, 0)
    try:
        answer = system.fcntl(descriptor, get, question)
    except OSError:
        return False
    return isinstance(answer, bytes) and _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK


def _refuse_qemu_writers(descriptor: int, system: SystemCalls) -> None:
    """QEMU only takes shared locks, with which ours does not conflict: query them instead."""
    _refuse_locks(descriptor, fcntl.F_WRLCK, _QEMU_FIRST + 1, 1, system)


def _refuse_locks(descriptor: int, kind: int, start: int, length: int, system: SystemCalls) -> None:
    """Refuse locks of others with which one of that kind would conflict.

    @raise OSError: EAGAIN where there are any.
    """
    get = getattr(fcntl, "F_OFD_GETLK", None)
    if get is None:
        return
    question = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    answer = system.fcntl(descriptor, get, question)
    if isinstance(answer, bytes) and _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
        raise OSError(errno.EAGAIN, "locked")
