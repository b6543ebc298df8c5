"""The system calls that can fail, as one object that is passed around.

Whatever touches a disk takes a `SystemCalls` as an argument, so that a test can pass one that
fails, dies, or keeps back what was not synced. The functions of Python's `os` are used as they are.
Python lacks `fallocate` and `sync_file_range`: they are taken from the C library; where that lacks
them too they fail with EOPNOTSUPP, for which every caller has a fallback.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

NO_WAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)
"""preadv(2): fail rather than wait for the medium; 0 where there is no such flag."""

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

SYNC_FILE_RANGE_WAIT_BEFORE: Final = 1
SYNC_FILE_RANGE_WRITE: Final = 2
SYNC_FILE_RANGE_WAIT_AFTER: Final = 4


def _from_c_library(name: str, *arguments: Any) -> Callable[..., None]:
    """A function of the C library, wrapped to raise OSError instead of setting errno."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:

        def unsupported(*_: Any) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        return unsupported
    function.argtypes = arguments

    def call(*values: Any) -> None:
        while function(*values) != 0:
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))

    return call


_FS_IOC_GETVERSION: Final = 0x80087601
_AT_EMPTY_PATH: Final = 0x1000
_STATX_BTIME: Final = 0x800
_STATX_BTIME_OFFSET: Final = 80
_STATX_SIZE: Final = 256
_statx = _from_c_library(
    "statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p
)


def describe_error(error: object) -> str:
    """An error in words, to be continued: C{No space left on device}, without a full stop."""
    return getattr(error, "strerror", None) or str(error).removesuffix(".")


_DESCRIPTORS: Final = "/proc/self/fd"


def _free_descriptors_above(limit: int) -> int:
    """How many are free above the lowest free one, which is what open(2) returns."""
    try:
        descriptor = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    os.close(descriptor)
    return max(limit - descriptor, 0)


class SystemCalls:
    """The real calls, with the names and arguments of L{os} and L{fcntl} (and of their man pages).

    Subclass or imitate it to make calls fail.
    """

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    stat = staticmethod(os.stat)
    lstat = staticmethod(os.lstat)
    fstat = staticmethod(os.fstat)
    fstatvfs = staticmethod(os.fstatvfs)
    lseek = staticmethod(os.lseek)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    ftruncate = staticmethod(os.ftruncate)
    fsync = staticmethod(os.fsync)
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    listdir = staticmethod(os.listdir)
    access = staticmethod(os.access)
    geteuid = staticmethod(os.geteuid)
    sendfile: Any = staticmethod(os.sendfile)
    send = staticmethod(socket.socket.send)
    flock = staticmethod(fcntl.flock)
    ioctl: Any = staticmethod(fcntl.ioctl)
    fcntl: Any = staticmethod(fcntl.fcntl)

    # Not every platform has these; callers look for None, or for OSError.
    fdatasync = staticmethod(getattr(os, "fdatasync", os.fsync))
    preadv: Any = staticmethod(getattr(os, "preadv", None) or (lambda *_: None))
    splice: Any = staticmethod(os.splice) if hasattr(os, "splice") else None
    pipe: Any = staticmethod(os.pipe)
    read = staticmethod(os.read)
    readv = staticmethod(os.readv)
    posix_fadvise: Any = staticmethod(getattr(os, "posix_fadvise", lambda *_: None))

    fallocate = staticmethod(
        _from_c_library(
            "fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong
        )
    )
    sync_file_range = staticmethod(
        _from_c_library(
            "sync_file_range", ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint
        )
    )

    def descriptors(self) -> tuple[int, int]:
        """How many more descriptors this process may open now, and how many in all."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY:
            return sys.maxsize, sys.maxsize
        try:
            # Since Linux 6.2 the size is the count; before that it is 0.
            used = os.stat(_DESCRIPTORS).st_size or len(os.listdir(_DESCRIPTORS))
        except OSError:  # no /proc; or not one is left, and the directory cannot be opened
            return _free_descriptors_above(limit), limit
        return max(limit - used, 0), limit

    def birth(self, descriptor: int) -> int | None:
        """When the file open as C{descriptor} was created (statx(2)): nanoseconds since 1970.

        None where the file system does not record it.
        """
        buffer = ctypes.create_string_buffer(_STATX_SIZE)
        try:
            _statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer)
        except OSError:
            return None
        (mask,) = struct.unpack_from("I", buffer)
        if not mask & _STATX_BTIME:
            return None
        seconds, nanoseconds = struct.unpack_from("qI", buffer, _STATX_BTIME_OFFSET)
        return int(seconds) * 1_000_000_000 + int(nanoseconds)

    def generation(self, descriptor: int) -> int | None:
        """The inode's generation: distinguishes the open file from earlier ones with its inode.

        FS_IOC_GETVERSION of ioctl_iflags(2); None where the file system has no generations.
        """
        try:
            answer = self.ioctl(descriptor, _FS_IOC_GETVERSION, bytes(8))
        except OSError:
            return None
        (number,) = struct.unpack_from("i", answer)
        return int(number)

    def link(self, descriptor: int, path: str) -> None:
        """Give the file open as C{descriptor}, which has a name, the name C{path} too (linkat(2)).

        @raise FileExistsError: C{path} exists.
        """
        # Python follows the link in /proc only if it is given a directory's descriptor; which one
        # does not matter to an absolute path.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)

    def exists(self, path: str) -> bool:
        """Whether there is anything at C{path}, if only a link that leads nowhere.

        Unlike L{os.path.lexists}, which takes whatever fails for absent.

        @raise OSError: that cannot be found out.
        """
        try:
            self.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def sync_directory(self, path: str) -> None:
        """Make the entries of the directory C{path} survive a power failure."""
        descriptor = self.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            self.fsync(descriptor)
        finally:
            self.close(descriptor)


SYSTEM: Final = SystemCalls()
"""The real calls, the default everywhere."""
