"""Disks: a regular file or a block device behind one interface, `IDisk`.

Owns the disk's descriptor and its lock from the constructor until `close`.

Rules:

* a disk is locked before anything is read from or written to it, and its size is settled then;
* sizes are exact bytes; a file that is made here stays empty until `prepare`, so that whoever
  receives into it can first put down that it is no whole disk; it never grows after that;
* zeroing gives space back unless told not to, and falls back to writing zeroes where the medium
  cannot do better, in slices;
* an error of the medium that one call was told of is told to every flush after it: the kernel tells
  it once for each descriptor, to whoever asks first, which may not be who must know;
* nothing here waits in the reactor's thread: the slow calls are the caller's to put in a thread.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import stat
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from zope.interface import implementer

from ..interfaces import (
    Extent,
    IRecordedDisk,
    IUnlinkableDisk,
    IWatchedDisk,
    Probe,
)
from ..syscalls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    SYNC_FILE_RANGE_WAIT_AFTER,
    SYNC_FILE_RANGE_WAIT_BEFORE,
    SYNC_FILE_RANGE_WRITE,
    SYSTEM,
    SystemCalls,
)
from .deletable import check_deletable
from .errors import DiskRefused, NotDurable
from .lock import InUse, lock_disk
from .mounts import filesystem_of, is_among_devices, is_remote
from .watched import WatchedDevice, WatchedFile, lasting_name

PROBE_SIZE: Final = 262144
"""Bytes that one `IDisk.probe` looks at, at most; zero runs shorter than this travel as data."""

_PROBE_TAIL: Final = 512
_READ_AHEAD: Final = 1 << 20
_ZEROES: Final = bytes(1 << 20)
_BLOCK: Final = 4096
_BLKDISCARD: Final = 0x1277
_BLKZEROOUT: Final = 0x127F
_NO_SYNC = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ESPIPE)
_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.ENODEV)


def default_state_directory() -> str:
    """Where the records of block devices are kept: C{/var/lib/blockmig} for root.

    For others C{$XDG_STATE_HOME/blockmig}, which is C{~/.local/state/blockmig} by default.
    """
    if os.geteuid() == 0:
        return "/var/lib/blockmig"
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "blockmig")


def open_disk(
    path: str,
    *,
    writable: bool = True,
    size: int | None = None,
    state_directory: str | None = None,
    system: SystemCalls = SYSTEM,
) -> FileDisk | BlockDisk:
    """Open whatever stands at C{path}, file or block device.

    @param size: bytes; a missing file is created (sparse) with it, anything else must have it.
    @param state_directory: where the records of a block device are; None for the default.
    @raise DiskRefused: missing, a directory, no permission, empty, in use, another size.
    """
    if _is_device(path):
        return BlockDisk(
            path, writable=writable, size=size, state_directory=state_directory, system=system
        )
    return FileDisk(path, writable=writable, size=size, system=system)


def record_path(path: str, state_directory: str | None = None, system: SystemCalls = SYSTEM) -> str:
    """What the names of the records of the disk at C{path} begin with.

    Beside a file, whether or not it is still there, and beside the file itself where C{path} is a
    symbolic link. In the state directory for a device: by its name, with C{-} for C{/}; by another
    of the device's names, where records stand under that.

    @raise DiskRefused: C{path} cannot be looked at.
    """
    directory = os.path.abspath(state_directory or default_state_directory())
    own = os.path.join(directory, _escape(os.path.abspath(path)))
    beside = os.path.realpath(path)
    try:
        known = sorted(system.listdir(directory))
    except OSError:
        known = []
    if _is_device(path):
        stems = {name.rpartition(".")[0] for name in known if name.rpartition(".")[2].isupper()}
        same = sorted(stem for stem in stems if os.path.realpath(_unescape(stem)) == beside)
        if os.path.basename(own) in stems or not same:
            return own
        if len(same) > 1:
            names = ", ".join(_unescape(stem) for stem in same)
            raise DiskRefused(f"{path}: has records in {directory} by several names: {names}")
        return os.path.join(directory, same[0])
    # A device that is gone is only known by its records.
    stem = os.path.basename(own) + "."
    gone = not os.path.lexists(path) and any(name.startswith(stem) for name in known)
    return own if gone else beside


def _escape(path: str) -> str:
    """A path as a file name: C{/dev/vg0/web} is C{dev-vg0-web}."""
    return (
        urllib.parse.quote(os.fsencode(path.strip("/")), safe="/")
        .replace("-", "%2D")
        .replace("/", "-")
    )


def _unescape(name: str) -> str:
    return "/" + os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(name.replace("-", "/"))))


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DiskRefused(f"{path}: {error.strerror}") from None


class _DescriptorDisk:
    """What files and devices share: a descriptor that bytes are read from and written to."""

    shortest_zeroes = PROBE_SIZE
    _open_flags = 0

    def __init__(
        self,
        path: str,
        *,
        writable: bool = True,
        size: int | None = None,
        system: SystemCalls = SYSTEM,
    ) -> None:
        self.name = os.fspath(path)
        self.path = os.path.realpath(path)
        self._place = lasting_name(self.name)
        self.size = 0
        self.writable = writable
        self.created = False
        self._new = False
        self._unsized = False
        self._system = system
        self._no_wait: int | None = getattr(os, "RWF_NOWAIT", None)
        self._sync_lock = threading.Lock()
        self._sync_error: OSError | None = None
        self._shrunk = False
        self._descriptor: int | None = self._open(size)
        try:
            self._settle(size)
        except BaseException:
            self.discard() if self.created else self.close()
            raise

    def _open(self, size: int | None) -> int:
        flags = (os.O_RDWR if self.writable else os.O_RDONLY) | os.O_CLOEXEC | self._open_flags
        try:
            return self._system.open(self.name, flags)
        except FileNotFoundError:
            return self._create(flags, size)
        except OSError as error:
            raise self._refused(error) from None

    def _create(self, flags: int, size: int | None) -> int:
        raise DiskRefused(f"{self.name}: no such device")

    def _refused(self, error: OSError) -> DiskRefused:
        if error.errno == errno.EBUSY:
            return DiskRefused(
                f"{self.name}: in use (mounted, part of another device, or another blockmig's)"
            )
        return DiskRefused(f"{self.name}: {error.strerror}")

    def _settle(self, size: int | None) -> None:
        """Lock the disk, and check that it is what the caller expects."""
        descriptor = self._open_descriptor()
        self._check_kind(self._system.fstat(descriptor).st_mode)
        try:
            lock_disk(descriptor, self.writable, self._system)
        except InUse as error:
            raise DiskRefused(f"{self.name}: in use by {error}") from None
        except OSError as error:
            raise DiskRefused(f"{self.name}: cannot be locked: {error.strerror}") from None
        self.size = self._system.lseek(descriptor, 0, os.SEEK_END)
        if self.size == 0 and size is not None and self.writable:
            # Made just now, or by somebody who came no further than that.
            self.size = size
            self._unsized = self._new = True
        if self.size == 0:
            raise DiskRefused(f"{self.name}: the disk is empty (0 bytes)")
        if size is not None and self.size != size:
            raise DiskRefused(
                f"{self.name}: has {self.size} bytes, but {size} were asked for; "
                "an existing disk must have exactly the size"
            )

    def _check_kind(self, mode: int) -> None:
        raise NotImplementedError

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise OSError(errno.EBADF, f"{self.name} was closed")
        return self._descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # IDisk, from here on.

    def fileno(self) -> int | None:
        """The descriptor; None once closed, before the file has its size, and if it lost it."""
        return None if self._unsized or self._shrunk else self._descriptor

    @property
    def blank(self) -> bool:
        """Whether nothing was ever written to it."""
        return self._unsized

    def prepare(self) -> None:
        """I{Slow.} Give a new file its size."""
        if self._unsized:
            self._system.ftruncate(self._open_descriptor(), self.size)
            self._unsized = False

    def read(self, offset: int, length: int) -> bytes:
        """Exactly that many bytes; EIO where the file has shrunk."""
        descriptor = self._open_descriptor()
        if self._unsized:
            return bytes(length)
        data = self._system.pread(descriptor, length, offset)
        while len(data) < length:
            more = self._system.pread(descriptor, length - len(data), offset + len(data))
            if not more:
                # Writing behind the end would have what is lost read as zeroes.
                self._shrunk = True
                raise self._is_shorter()
            data += more
        return data

    def write(self, offset: int, data: Any) -> None:
        """Write all of C{data}."""
        descriptor = self._open_descriptor()
        if self._shrunk:
            raise self._is_shorter()
        view = memoryview(data)
        while view:
            written = self._system.pwrite(descriptor, view, offset)
            view = view[written:]
            offset += written

    def _is_shorter(self) -> OSError:
        return OSError(errno.EIO, f"{self.name} is shorter than it was")

    def zero(self, offset: int, length: int, allocate: bool, fast: bool = False) -> None:
        """Punch a hole, or zero in place; write zeroes where neither can be done."""
        try:
            self._fast_zero(offset, length, allocate, fast)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            if fast:
                raise OSError(errno.EOPNOTSUPP, "zeroes would have to be written") from None
            self._write_zeroes(offset, length)

    def _fast_zero(self, offset: int, length: int, allocate: bool, fast: bool) -> None:
        mode = FALLOC_FL_ZERO_RANGE if allocate else FALLOC_FL_PUNCH_HOLE
        descriptor = self._open_descriptor()
        self._system.fallocate(descriptor, mode | FALLOC_FL_KEEP_SIZE, offset, length)

    def _write_zeroes(self, offset: int, length: int) -> None:
        zeroes = memoryview(_ZEROES)
        while length:
            count = min(length, len(zeroes))
            self.write(offset, zeroes[:count])
            offset += count
            length -= count

    def flush(self) -> None:
        """fdatasync(2), behind every `write_back` that has begun."""
        self._sync(self._system.fdatasync)

    def _sync(self, call: Callable[..., None], *arguments: int) -> None:
        """Call one of the calls that are told of the medium's errors."""
        with self._sync_lock:
            if self._sync_error is not None:
                raise OSError(self._sync_error.errno, self._sync_error.strerror)
            try:
                call(self._open_descriptor(), *arguments)
            except OSError as error:
                if error.errno not in _NO_SYNC:
                    self._sync_error = error
                raise

    def extents(self, offset: int) -> Iterator[Extent]:
        """By SEEK_DATA and SEEK_HOLE; all data where those are not understood."""
        while offset < self.size:
            try:
                data = min(self._seek(offset, "SEEK_DATA"), self.size)
                if data > offset:
                    yield Extent(offset, data - offset, hole=True)
                if data == self.size:
                    return
                hole = min(self._seek(data, "SEEK_HOLE"), self.size)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                yield Extent(offset, self.size - offset, hole=False)
                return
            yield Extent(data, hole - data, hole=False)
            offset = hole

    def _seek(self, offset: int, whence: str) -> int:
        number = getattr(os, whence, None)
        if number is None:
            raise OSError(errno.EINVAL, f"no {whence} on this platform")
        try:
            return self._system.lseek(self._open_descriptor(), offset, number)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            # Nothing but a hole from here on; or nothing at all, and what is missing must not
            # travel as zeroes.
            if self._system.lseek(self._open_descriptor(), 0, os.SEEK_END) < self.size:
                raise OSError(errno.EIO, f"{self.name} is shorter than it was") from None
            return self.size

    def probe(self, offset: int, length: int) -> Probe:
        """Look at the tail first: where it is not zero, the rest need not be copied to be known.

        The tail is the last to come from the medium, so that once it is here the rest is too.
        """
        tail = min(length, _PROBE_TAIL)
        found, cold = self._probe_tail(offset, length, tail)
        if found != _ZEROES[:tail]:
            return Probe(False, cold)
        return Probe(tail == length or self.read(offset, length) == _ZEROES[:length], cold)

    def _probe_tail(self, offset: int, length: int, tail: int) -> tuple[bytes, bool]:
        start = offset + length - tail
        buffer = bytearray(tail)
        if self._no_wait is None:
            return self.read(start, tail), False
        # A page that is there may seem not to be, for an instant, while somebody else reads it;
        # twice in a row it does not.
        for _ in range(2):
            try:
                found = self._system.preadv(self._open_descriptor(), [buffer], start, self._no_wait)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                self._no_wait = None
                return self.read(start, tail), False
            else:
                return (bytes(buffer) if found == tail else self.read(start, tail)), False
        wanted = min(_READ_AHEAD, self.size - offset)
        will_need = getattr(os, "POSIX_FADV_WILLNEED", 0)
        self._system.posix_fadvise(self._open_descriptor(), offset, wanted, will_need)
        return self.read(start, tail), True

    def forget(self, offset: int, length: int) -> None:
        """posix_fadvise(2), POSIX_FADV_DONTNEED."""
        number = getattr(os, "POSIX_FADV_DONTNEED", 0)
        self._system.posix_fadvise(self._open_descriptor(), offset, length, number)

    def write_back(self, offset: int, length: int, wait: bool) -> None:
        """sync_file_range(2)."""
        flags = SYNC_FILE_RANGE_WRITE
        if wait:
            flags |= SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER
        try:
            self._sync(self._system.sync_file_range, offset, length, flags)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
        if wait:
            self.forget(offset, length)

    def close(self) -> None:
        """Close the descriptor, which gives up the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._system.close(descriptor)

    def discard(self) -> None:
        """Close the disk; if it was created by this object, remove it again."""
        if self.created and self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._check_name()
                self._system.unlink(self.path)
        self.close()

    def _check_name(self) -> None:
        """Fail if the disk is gone, or another file has taken its name."""
        ours = self._system.fstat(self._open_descriptor())
        if not os.path.samestat(ours, self._system.stat(self.path)):
            raise OSError(errno.ESTALE, f"{self.path} is not the file that was opened")


@implementer(IUnlinkableDisk, IRecordedDisk, IWatchedDisk)
class FileDisk(_DescriptorDisk, WatchedFile):
    """A raw image in a regular file.

    @param path: where it is.
    @param writable: open it for writing; a source is only read.
    @param size: bytes; a missing file is created, empty until L{prepare}d; an existing one must
        have that size (or be empty).
    @param system: the calls into the kernel.
    @ivar created: the file did not exist before.
    @raise DiskRefused: the file cannot be used; nothing was touched.
    """

    # So that a FIFO is refused, not waited for.
    _open_flags = os.O_NONBLOCK

    @property
    def record_path(self) -> str:
        """What the names of its records begin with: they are beside it."""
        return self.path

    def identity(self) -> str:
        """What tells this file from another that later has its name."""
        return identify(self._open_descriptor(), self._system)

    def _create(self, flags: int, size: int | None) -> int:
        if is_among_devices(self.path):
            raise DiskRefused(
                f"{self.name}: there is no such device, and a file in /dev would be in memory: "
                "the device must exist"
            )
        if size is None:
            raise DiskRefused(f"{self.name}: no such file")
        if size <= 0:
            raise DiskRefused(f"{self.name}: a disk of {size} bytes cannot be created")
        try:
            descriptor = self._system.open(self.name, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise DiskRefused(f"{self.name}: cannot be created: {error.strerror}") from None
        self.created = True
        return descriptor

    def _check_kind(self, mode: int) -> None:
        if stat.S_ISDIR(mode):
            raise DiskRefused(f"{self.name}: is a directory, not a disk")
        if not stat.S_ISREG(mode):
            raise DiskRefused(f"{self.name}: is neither a regular file nor a block device")
        if self.writable and is_among_devices(self.path):
            raise DiskRefused(
                f"{self.name}: is a regular file in /dev, which is memory: the device must exist"
            )

    def trim(self, offset: int, length: int) -> None:
        """Punch a hole where that is possible."""
        try:
            self._fast_zero(offset, length, allocate=False, fast=True)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise

    def flush(self) -> None:
        """fdatasync(2), and for a new file fsync its directory, or the file itself may be lost."""
        super().flush()
        if self._new:
            self._system.sync_directory(os.path.dirname(self.path))

    def links(self) -> int:
        """How many names the file has."""
        return self._system.fstat(self._open_descriptor()).st_nlink

    def check_unlink(self) -> None:
        """Whether `unlink` would retire this disk.

        @raise DiskRefused: it has other names, by which it would go on as if nothing had happened;
            or it cannot be deleted.
        """
        self._check_links()
        check_deletable(self._open_descriptor(), self.name, self.path, self._system)

    def _check_links(self) -> None:
        links = self.links()
        if links == 0:
            raise DiskRefused(f"{self.name}: was deleted by somebody else: send without --unlink")
        if links != 1:
            raise DiskRefused(
                f"{self.name}: has {links} hard links; deleting one would not retire the disk"
            )

    def unlink(self) -> None:
        """I{Slow.} Delete the file and make that survive a power failure; the disk stays open.

        A symbolic link to it stays: it is the data that goes.

        @raise OSError: it is still there; ESTALE where another file has taken its name.
        @raise DiskRefused: it is still there, since it got another name meanwhile.
        @raise NotDurable: it is gone, but may come back after a power failure.
        """
        self._check_name()
        self._check_links()
        try:
            self._system.unlink(self.path)
        except OSError as error:
            # A network file system may have done it, and report that it found nothing to do.
            if self._is_there():
                raise
            raise NotDurable(
                f"{self.name} is deleted, but that was reported as an error: {error.strerror}"
            ) from None
        try:
            self._system.sync_directory(os.path.dirname(self.path))
        except OSError as error:
            raise NotDurable(
                f"{self.name} is deleted, but its directory could not be synced: {error.strerror}"
            ) from None

    def _is_there(self) -> bool:
        try:
            self._check_name()
        except FileNotFoundError:
            # Moved away, in the last instant? What a network file system says of that may be old.
            directory = os.path.dirname(self.path)
            return not is_remote(filesystem_of(directory)) and not self.is_gone()
        except OSError as error:
            return error.errno != errno.ESTALE
        return True


@implementer(IRecordedDisk, IWatchedDisk)
class BlockDisk(_DescriptorDisk, WatchedDevice):
    """A block device, held exclusively: one that is mounted or part of another is refused.

    The parameters are those of L{FileDisk}, but a device is never created.

    @param state_directory: where its records are; None for the default.
    @ivar record_path: what their names begin with.
    """

    def __init__(
        self,
        path: str,
        *,
        writable: bool = True,
        size: int | None = None,
        state_directory: str | None = None,
        system: SystemCalls = SYSTEM,
    ) -> None:
        super().__init__(path, writable=writable, size=size, system=system)
        self.record_path = record_path(path, state_directory, system)
        _make_directory(os.path.dirname(self.record_path), system)

    def identity(self) -> str:
        """A device is known by its name."""
        return ""

    # It knows no extents, so that they have to be found out.
    shortest_zeroes = _BLOCK
    # On a device O_EXCL (without O_CREAT) asks for the exclusive claim that mounting also takes.
    _open_flags = getattr(os, "O_EXCL", 0)

    def _check_kind(self, mode: int) -> None:
        if not stat.S_ISBLK(mode):
            raise DiskRefused(f"{self.name}: is not a block device")

    def _fast_zero(self, offset: int, length: int, allocate: bool, fast: bool) -> None:
        """Zero whole blocks by the device, their neighbours by writing.

        fallocate(2) on a device gives its space back (and says EOPNOTSUPP where that would not
        leave zeroes, unlike BLKDISCARD); BLKZEROOUT keeps it, and may write zeroes, as fallocate
        may where it is to keep the space.
        """
        if fast and allocate:
            raise OSError(errno.EOPNOTSUPP, "a device does not tell whether it can")
        start, end = _whole_blocks(offset, length)
        if start >= end:
            self._write_zeroes(offset, length)
            return
        try:
            super()._fast_zero(start, end - start, allocate, fast)
        except OSError as error:
            if fast or error.errno not in _CANNOT:
                raise
            self._ioctl(_BLKZEROOUT, start, end - start)
        self._write_zeroes(offset, start - offset)
        self._write_zeroes(end, offset + length - end)

    def _ioctl(self, request: int, offset: int, length: int) -> None:
        self._system.ioctl(self._open_descriptor(), request, array.array("Q", [offset, length]))

    def trim(self, offset: int, length: int) -> None:
        """BLKDISCARD, for the whole blocks of the range."""
        start, end = _whole_blocks(offset, length)
        if start < end:
            try:
                self._ioctl(_BLKDISCARD, start, end - start)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise


def _make_directory(path: str, system: SystemCalls) -> None:
    """The state directory, durably; where it cannot be made, its first record will say so."""
    if os.path.isdir(path):
        return
    with contextlib.suppress(OSError):
        os.makedirs(path, 0o755)
        parent = os.path.dirname(path)
        while parent != os.path.dirname(parent):
            system.sync_directory(parent)
            parent = os.path.dirname(parent)


def identify(descriptor: int, system: SystemCalls) -> str:
    """The file open as C{descriptor}: its inode, and when that was made (or last written to).

    Clocks of file systems are coarse: two files that are made one after the other in the same inode
    may be born in the same instant, and are told apart by the inode's generation where it has one.
    """
    status = system.fstat(descriptor)
    born = system.birth(descriptor)
    if born is None:
        return f"inode {status.st_ino}, written {status.st_mtime_ns}"
    generation = system.generation(descriptor)
    which = f", generation {generation}" if generation is not None else ""
    return f"inode {status.st_ino}, born {born}{which}"


def _whole_blocks(offset: int, length: int) -> tuple[int, int]:
    """Where the first whole block of a range starts and the last one ends."""
    return -(-offset // _BLOCK) * _BLOCK, (offset + length) // _BLOCK * _BLOCK
