"""Whether a disk is still what was opened, and how to save one whose name was lost (design, R13).

Owns the comparison of a disk's path, size and times with what its descriptor reports, and the
rescue of a file whose name somebody removed or took.

Rules:

* the descriptor is the disk, whatever happens to its name;
* a file has kept its name if both the path that the user gave and what that resolved to at the
  start lead to it: the first is what will be opened next, the second is what is deleted;
* nothing is replaced: a rescued file gets a name that does not exist;
* a medium's error that is found here is also reported by every later flush.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from ..interfaces import Extent
from ..syscalls import SystemCalls
from .descriptor import Descriptor
from .errors import DiskChanged
from .mounts import backing_file, device_entry, read_line

_FICLONE: Final = 0x40049409
_COPY: Final = 1 << 20
# There is nothing to make durable, which is no failure.
_NO_FSYNC: Final = (errno.EROFS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ESPIPE)
_NO_SUCH_PATH: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# The names that NFS and FUSE give to a deleted file that is still open (NFS: "silly rename"). It
# disappears once we close it.
_SILLY_RENAMES: Final = (".nfs", ".fuse_hidden")
# In sysfs's "stat" (Documentation/block/stat): sectors written, and sectors discarded. The numbers
# of requests cannot be used: our own flush counts as a write on some devices (device mapper).
_WRITTEN: Final = (6, 13)


class DiskVersion(NamedTuple):
    """A disk's version at one moment; if two are equal nobody changed the disk between them.

    @ivar written: differs if the content was changed.
    @ivar touched: differs also if owner, mode, names or times were changed; () for a device.
    """

    written: tuple[int, ...]
    touched: tuple[int, ...]


def absolute_name(name: str) -> str:
    """C{name} as an absolute path, which stays valid when the working directory changes."""
    # Not abspath(): what ".." leads to depends on the symbolic links before it.
    return name if os.path.isabs(name) else os.path.join(os.getcwd(), name)


class _Watched:
    """What files and devices share; `disk` defines what is only declared here."""

    name: str
    path: str
    size: int
    _given_path: str
    _unsized: bool
    _system: SystemCalls
    _descriptor: Descriptor

    def _fstat(self) -> os.stat_result:
        with self._descriptor as descriptor:
            return self._system.fstat(descriptor)

    def _sync(self, call: Callable[..., None], *arguments: int) -> None:
        raise NotImplementedError

    def extents(self, offset: int) -> Iterator[Extent]:
        raise NotImplementedError

    def read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def check_path(self) -> None:
        """I{Slow.} Check that the disk's path still leads to what was opened, of the same size.

        @raise DiskChanged: it does not.
        """
        own = self._fstat()
        for path in dict.fromkeys(self._paths_to_check()):
            shown = self.name if path == self._given_path else path
            try:
                found = self._system.stat(path)
            except OSError as error:
                if error.errno not in _NO_SUCH_PATH:
                    raise
                raise DiskChanged(f"{shown}: {self._why_missing()}") from None
            if not self._is_same(own, found):
                raise DiskChanged(f"{shown}: is {self._replacement} now")
        size = self._size()
        if size != self._given_size:
            raise DiskChanged(f"{self.name}: has {size} bytes now, not {self._given_size}")

    @property
    def _given_size(self) -> int:
        return 0 if self._unsized else self.size

    def _fsync(self) -> None:
        """fsync(2) if there is anything to sync: writes through mappings show only after that."""

        def fsync(descriptor: int) -> None:
            try:
                self._system.fsync(descriptor)
            except OSError as error:
                if error.errno not in _NO_FSYNC:
                    raise

        self._sync(fsync)

    # What differs between the two kinds.

    _replacement: str

    def _paths_to_check(self) -> tuple[str, ...]:
        raise NotImplementedError

    def _why_missing(self) -> str:
        raise NotImplementedError

    def _is_same(self, own: os.stat_result, found: os.stat_result) -> bool:
        raise NotImplementedError

    def _size(self) -> int:
        raise NotImplementedError


class WatchedFile(_Watched):
    """A regular file that is watched: see L{blockmig.interfaces.IWatchedDisk}."""

    _replacement = "another file"

    def _paths_to_check(self) -> tuple[str, ...]:
        return self.path, self._given_path

    def _is_same(self, own: os.stat_result, found: os.stat_result) -> bool:
        return os.path.samestat(own, found)

    def _size(self) -> int:
        return self._fstat().st_size

    def _why_missing(self) -> str:
        if self.is_gone():
            return "was deleted by somebody else"
        path = self._current_path()
        moved = f" to {path}" if path and path != self.path else ""
        return f"was moved away{moved} by somebody else"

    def is_gone(self) -> bool:
        """Whether the last name of the file was removed, so that it cannot be opened."""
        try:
            links = self._fstat().st_nlink
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return True  # deleted by another client of a network file system
        return links == 0 or (links == 1 and self._is_silly_rename(self._kernel_path()))

    def version(self, sync: bool = True) -> DiskVersion:
        """I{Slow.} Size and times.

        @param sync: fsync(2) first; otherwise writes through a mapping do not show.
        @raise OSError: the medium failed.
        """
        if sync:
            self._fsync()
        return _file_version(self._fstat())

    def rescue(self, announce: Callable[[str], None] | None = None) -> str:
        """I{Slow.} Make sure that the file has a lasting name: where it was moved to, or a new one.

        The new name is the old one with C{.rescued} appended, in the nearest directory that still
        exists. A file that has no name at all is copied, since Linux cannot give it one again.

        @param announce: called with the path before the file has it, or before it is returned.
        @return: the path, which is durable.
        @raise DiskChanged: the file was truncated.
        @raise OSError: it could not get a name; nothing was left behind.
        """
        size = self._size()
        if size < self._given_size:
            # What is missing must not become zeroes.
            raise DiskChanged(f"{self.name}: has {size} bytes now, not {self._given_size}")
        announce = announce or (lambda path: None)
        path = self._current_path()
        if path:
            announce(path)
            self._system.sync_directory(os.path.dirname(path))
            return path
        for new in self._new_names():
            if self._system.exists(new):
                continue
            announce(new)
            # Somebody may have created it just now.
            with contextlib.suppress(FileExistsError):
                self._save(new)
                return new
        raise AssertionError("there is no end to names")

    def _new_names(self) -> Iterator[str]:
        directory, base = os.path.split(self.path)
        while not os.path.isdir(directory):
            directory = os.path.dirname(directory)
        yield os.path.join(directory, f"{base}.rescued")
        for number in itertools.count(2):
            yield os.path.join(directory, f"{base}.rescued-{number}")

    def _kernel_path(self) -> str:
        """The kernel's path of the open file; it need not lead to the file."""
        try:
            with self._descriptor as descriptor:
                return os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            return ""

    def _current_path(self) -> str:
        """A path that leads to the file, also after it is closed; "" if none is known."""
        own = self._fstat()
        for path in (self._kernel_path(), self.path):
            with contextlib.suppress(OSError):
                if not self._is_silly_rename(path) and os.path.samestat(
                    own, self._system.stat(path)
                ):
                    return path
        return ""

    def _is_silly_rename(self, path: str) -> bool:
        return os.path.basename(path).startswith(_SILLY_RENAMES) and path != self.path

    def _save(self, new: str) -> None:
        """Give the file the name C{new}, which must not exist, or make a copy with that name."""
        try:
            # This suffices if the file still has a name that we do not know.
            with self._descriptor as descriptor:
                self._system.link(descriptor, new)
        except FileExistsError:
            raise
        except OSError:
            self._save_copy(new)
        self._system.sync_directory(os.path.dirname(new))

    def _save_copy(self, new: str) -> None:
        """Copy the file to C{new}, which appears only when the copy is complete."""
        temporary = new + ".tmp"
        with contextlib.suppress(FileNotFoundError):
            self._system.unlink(temporary)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = self._system.open(temporary, flags, 0o600)
        try:
            self._copy(descriptor)
            self._rename(descriptor, temporary, new)
        finally:
            self._system.close(descriptor)
            with contextlib.suppress(OSError):
                self._system.unlink(temporary)

    def _rename(self, descriptor: int, temporary: str, new: str) -> None:
        """As rename(2), but without replacing an existing file."""
        try:
            self._system.link(descriptor, new)
        except FileExistsError:
            raise
        except OSError:  # no hard links on this file system
            if self._system.exists(new):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
            self._system.rename(temporary, new)

    def _copy(self, descriptor: int) -> None:
        """Copy the whole file with its holes, durably; as a clone where that is supported."""
        try:
            with self._descriptor as ours:
                self._system.ioctl(descriptor, _FICLONE, ours)
        except OSError:
            for extent in [] if self._unsized else self.extents(0):
                if not extent.hole:
                    self._copy_data(descriptor, extent.offset, extent.offset + extent.length)
        self._system.ftruncate(descriptor, self._given_size)
        self._system.fsync(descriptor)

    def _copy_data(self, descriptor: int, offset: int, end: int) -> None:
        while offset < end:
            data = self.read(offset, min(_COPY, end - offset))
            offset += self._system.pwrite(descriptor, data, offset)


class WatchedDevice(_Watched):
    """A block device that is watched: see L{blockmig.interfaces.IWatchedDisk}."""

    _replacement = "another device"

    def _paths_to_check(self) -> tuple[str, ...]:
        # Names such as /dev/vg0/web are links to names with a meaningless number: check only ours.
        return (self._given_path,)

    def _is_same(self, own: os.stat_result, found: os.stat_result) -> bool:
        kind = stat.S_IFMT
        return (kind(own.st_mode), own.st_rdev) == (kind(found.st_mode), found.st_rdev)

    def _size(self) -> int:
        with self._descriptor as descriptor:
            return self._system.lseek(descriptor, 0, os.SEEK_END)

    def _why_missing(self) -> str:
        return "is no device's name any more"

    def is_gone(self) -> bool:
        """Never: a device can always be opened by its number."""
        return False

    def version(self, sync: bool = True) -> DiskVersion:
        """I{Slow.} How much was written to it since it exists.

        @param sync: fsync(2) first. Without it the version is empty: writes are counted when they
            reach the device, and those still on their way may be our own.
        @raise OSError: the medium failed.
        """
        if not sync:
            return DiskVersion((), ())
        self._fsync()
        return device_version(self._fstat().st_rdev, self._system)

    def rescue(self, announce: Callable[[str], None] | None = None) -> str:
        """Fail: there is nothing to rescue.

        @param announce: not called.
        @raise OSError: always (ENODEV); the message says where the data is.
        """
        number = self._fstat().st_rdev
        raise OSError(
            errno.ENODEV,
            f"{self.name} was a device's name, and the data is on that device: "
            f"number {os.major(number)}:{os.minor(number)}",
        )


def describe_version(version: DiskVersion) -> str:
    """What of a version is changed by writes, as it is recorded; "" where that is not known."""
    return " ".join(map(str, version.written))


def version_at(descriptor: int, system: SystemCalls) -> str:
    """What L{describe_version} says of the disk that is open as C{descriptor}, to those who only
    look: nothing is synced, and what has not reached a device does not count yet."""
    status = system.fstat(descriptor)
    is_device = stat.S_ISBLK(status.st_mode)
    return describe_version(
        device_version(status.st_rdev, system) if is_device else _file_version(status)
    )


def _file_version(status: os.stat_result) -> DiskVersion:
    return DiskVersion((status.st_size, status.st_mtime_ns), (status.st_ctime_ns,))


def device_version(number: int, system: SystemCalls, sys: str = "/sys") -> DiskVersion:
    """The version of the block device with that number (C{st_rdev}), which was synced before.

    For a loop device it includes its file's size and time, which show writes past the device.

    @param sys: where sysfs is.
    """
    entry = device_entry(number, sys)
    counters = read_line(os.path.join(entry, "stat")).split()
    written = [int(counters[index]) for index in _WRITTEN if index < len(counters)]
    backing = backing_file(entry)
    if backing:
        with contextlib.suppress(OSError):
            status = system.stat(backing)
            written += [status.st_size, status.st_mtime_ns]
    return DiskVersion(tuple(written), ())
