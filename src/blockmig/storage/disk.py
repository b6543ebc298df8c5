"""What files and devices have in common: a descriptor that is read from and written to.

Owns the disk's descriptor and its lock from the constructor until `close`, and until the last call
that had begun by then has ended.

Rules:

* a disk is locked before anything is read from or written to it, and its size is determined then;
* sizes are exact bytes; a file that is created here stays empty until `prepare`, so that a receiver
  can first record that it is incomplete; it never grows after that. Which size that is may be left
  open until then;
* zeroing deallocates space unless told not to, and falls back to writing zeroes, in slices, where
  the medium cannot do better;
* once a call has reported an error of the medium, every later flush reports it too: the kernel
  reports it once for each descriptor, and the first to ask may not be the one that must know;
* the caller runs the slow calls in a thread; none is moved there by this module.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from ..interfaces import Extent, IDisk, Probe
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
from .descriptor import Descriptor
from .errors import DiskInUse, DiskRefused
from .lock import InUse, check_unlocked, lock_disk
from .watched import absolute_name

PROBE_SIZE: Final = 262144
"""Bytes that one `IDisk.probe` reads at most; shorter runs of zeroes are sent as data."""

_PROBE_TAIL: Final = 512
_READ_AHEAD: Final = 1 << 20
_ZEROES: Final = bytes(1 << 20)
_SYNC_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ESPIPE)
UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.ENODEV)
"""The errors of the kernel for what a medium does not support."""


class DescriptorDisk:
    """What files and devices have in common."""

    shortest_zeroes = PROBE_SIZE
    _open_flags = 0

    def __init__(
        self,
        path: str,
        *,
        writable: bool = True,
        size: int | None = None,
        sized_later: bool = False,
        exclusive: bool = True,
        system: SystemCalls = SYSTEM,
    ) -> None:
        self.exclusive = exclusive
        self.name = os.fspath(path)
        self.path = os.path.realpath(path)
        self._given_path = absolute_name(self.name)
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
        if size is not None and size <= 0:
            raise DiskRefused(f"{self.name}: a disk of {size} bytes cannot be created")
        if size is None and sized_later:
            size = 0  # of a new file: it gets its size later
        self._descriptor = Descriptor(self._open(size), self.name, system)
        self._may_hang = self._is_remote()
        try:
            self._find_size(size)
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

    @contextlib.contextmanager
    def _locking(self) -> Iterator[None]:
        try:
            yield
        except InUse as error:
            raise DiskInUse(f"{self.name}: in use by {error}") from None
        except OSError as error:
            raise DiskRefused(f"{self.name}: cannot be locked: {error.strerror}") from None

    def check_unlocked(self) -> None:
        """Check that a disk that was opened without a lock could be opened with one.

        @raise DiskRefused: it could not.
        @raise OSError: it was closed.
        """
        with self._descriptor as descriptor, self._locking():
            check_unlocked(descriptor, self._system)

    def _create(self, flags: int, size: int | None) -> int:
        raise DiskRefused(f"{self.name}: no such device")

    def _refused(self, error: OSError) -> DiskRefused:
        if error.errno == errno.EBUSY:
            return DiskRefused(
                f"{self.name}: in use (mounted, part of another device, or by another blockmig)"
            )
        return DiskRefused(f"{self.name}: {error.strerror}")

    def _find_size(self, size: int | None) -> None:
        """Lock the disk, and check that it is what the caller expects.

        @param size: bytes; 0 if a new file gets its size later; None if the disk must be there.
        """
        with self._descriptor as descriptor:
            mode = self._system.fstat(descriptor).st_mode
            self._check_kind(mode)
            if self.exclusive:
                with self._locking():
                    lock_disk(descriptor, self.writable, self._system)
            self.size = self._system.lseek(descriptor, 0, os.SEEK_END)
        if self.size == 0 and size is not None and self.writable and stat.S_ISREG(mode):
            # Created just now, or by a run that ended before it got its size.
            self.size = size
            self._unsized = self._new = True
            return
        if self.size == 0:
            raise DiskRefused(f"{self.name}: the disk is empty (0 bytes)")
        if size and self.size != size:
            raise DiskRefused(
                f"{self.name}: has {self.size} bytes, but {size} are needed; "
                "an existing disk must have exactly that size"
            )

    def _check_kind(self, mode: int) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """The descriptor, for a call in a thread: whoever closes the disk meanwhile, its number is
        nobody else's before that call has ended.

        @raise OSError: it was closed.
        """
        with self._descriptor as number:
            yield number

    def is_untouched(self, offset: int, length: int) -> bool:
        """Whether nothing was ever written there; False also where that is not known at once."""
        # In a file that was there before, what is preallocated counts as a hole. A server's answer
        # may be older than what was written. And where a subclass has no descriptor, its content
        # need not be what is in the file: a hole may not read as zeroes.
        if not self._new or self.fileno() is None:
            return False
        try:
            return self._seek(offset, "SEEK_DATA") >= offset + length
        except OSError:
            return False

    # IDisk, from here on.

    def fileno(self) -> int | None:
        """The descriptor; None once closed, before the file has its size, and if it shrank; and
        where a call may never return: that belongs in a thread."""
        if self._unsized or self._shrunk or self._may_hang:
            return None
        return self._descriptor.number

    def _is_remote(self) -> bool:
        """Whether it is on a network file system, or on FUSE, which may hang."""
        return False

    @property
    def has_descriptor(self) -> bool:
        """Whether it is open, and has its size."""
        return not self._unsized and self._descriptor.number is not None

    @property
    def blank(self) -> bool:
        """Whether nothing was ever written to it."""
        return self._unsized

    def determine_size(self, size: int) -> None:
        """See L{blockmig.interfaces.ISizedLater}."""
        assert self._unsized
        assert not self.size
        self.size = size

    def prepare(self) -> None:
        """I{Slow.} Give a new file its size."""
        if self._unsized:
            with self._descriptor as descriptor:
                self._system.ftruncate(descriptor, self.size)
            self._unsized = False

    def read(self, offset: int, length: int) -> bytes:
        """Exactly that many bytes; EIO where the file has shrunk."""
        with self._descriptor as descriptor:
            if self._unsized:
                return bytes(length)
            data = self._system.pread(descriptor, length, offset)
            while len(data) < length:
                more = self._system.pread(descriptor, length - len(data), offset + len(data))
                if not more:
                    # A write beyond the end would make what is lost read as zeroes.
                    self._shrunk = True
                    raise self._shrunk_error()
                data += more
            return data

    def write(self, offset: int, data: Any) -> None:
        """Write all of C{data}."""
        with self._descriptor as descriptor:
            if self._shrunk:
                raise self._shrunk_error()
            view = memoryview(data)
            while view:
                written = self._system.pwrite(descriptor, view, offset)
                view = view[written:]
                offset += written

    def _shrunk_error(self) -> OSError:
        return OSError(errno.EIO, f"{self.name} is shorter than it was")

    def zero(self, offset: int, length: int, allocate: bool, fast: bool = False) -> None:
        """Punch a hole, or zero in place; write zeroes where neither can be done."""
        try:
            self._fast_zero(offset, length, allocate, fast)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            if fast:
                raise OSError(errno.EOPNOTSUPP, "zeroes would have to be written") from None
            self._write_zeroes(offset, length)

    def _fast_zero(self, offset: int, length: int, allocate: bool, fast: bool) -> None:
        mode = FALLOC_FL_ZERO_RANGE if allocate else FALLOC_FL_PUNCH_HOLE
        with self._descriptor as descriptor:
            self._system.fallocate(descriptor, mode | FALLOC_FL_KEEP_SIZE, offset, length)

    def _write_zeroes(self, offset: int, length: int) -> None:
        zeroes = memoryview(_ZEROES)
        while length:
            count = min(length, len(zeroes))
            self.write(offset, zeroes[:count])
            offset += count
            length -= count

    def flush(self) -> None:
        """fdatasync(2), after every `write_back` that has begun."""
        self._sync(self._system.fdatasync)

    def _sync(self, call: Callable[..., None], *arguments: int) -> None:
        """Make a call that reports the medium's errors; an error is kept for every later one."""
        with self._sync_lock:
            if self._sync_error is not None:
                raise OSError(self._sync_error.errno, self._sync_error.strerror)
            try:
                with self._descriptor as descriptor:
                    call(descriptor, *arguments)
            except OSError as error:
                if error.errno not in _SYNC_UNSUPPORTED:
                    self._sync_error = error
                raise

    def extents(self, offset: int) -> Iterator[Extent]:
        """By SEEK_DATA and SEEK_HOLE; all data where those are not supported."""
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
        with self._descriptor as descriptor:
            try:
                return self._system.lseek(descriptor, offset, number)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                # A hole up to the end; or the file has shrunk, and what is missing must not be sent
                # as zeroes.
                if self._system.lseek(descriptor, 0, os.SEEK_END) < self.size:
                    raise OSError(errno.EIO, f"{self.name} is shorter than it was") from None
                return self.size

    def probe(self, offset: int, length: int) -> Probe:
        """Read the tail first: if it is not zero the rest need not be read.

        The tail is the last to arrive from the medium; once it is cached the rest is too.
        """
        tail = min(length, _PROBE_TAIL)
        found, cold = self._probe_tail(offset, length, tail)
        if found != _ZEROES[:tail]:
            return Probe(False, cold)
        return Probe(tail == length or self.read(offset, length) == _ZEROES[:length], cold)

    def _probe_tail(self, offset: int, length: int, tail: int) -> tuple[bytes, bool]:
        start = offset + length - tail
        cached = self._read_cached(start, tail)
        if cached is not None:
            return cached, False
        if self._no_wait is None:
            return self.read(start, tail), False
        self._will_need(offset, min(_READ_AHEAD, self.size - offset))
        return self.read(start, tail), True

    def _read_cached(self, offset: int, length: int) -> bytes | None:
        """Bytes from the page cache; None where they are missing, or that cannot be found out."""
        buffer = bytearray(length)
        # A cached page may seem to be missing for an instant while somebody else reads it, but not
        # twice in a row.
        for _ in range(2):
            if self._no_wait is None:
                return None
            try:
                with self._descriptor as descriptor:
                    found = self._system.preadv(descriptor, [buffer], offset, self._no_wait)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._no_wait = None
            else:
                return bytes(buffer) if found == length else self.read(offset, length)
        return None

    def _will_need(self, offset: int, length: int) -> None:
        number = getattr(os, "POSIX_FADV_WILLNEED", 0)
        with self._descriptor as descriptor:
            self._system.posix_fadvise(descriptor, offset, length, number)

    def read_ahead(self, offset: int, length: int) -> bool:
        """posix_fadvise(2), POSIX_FADV_WILLNEED."""
        if self._no_wait is None:  # a cached range would seem to be missing
            return False
        tail = min(length, _PROBE_TAIL)
        missing = self._read_cached(offset + length - tail, tail) is None
        # Also where its end is there: much of the rest may not be.
        self._will_need(offset, length)
        return missing and self._no_wait is not None

    def forget(self, offset: int, length: int) -> None:
        """posix_fadvise(2), POSIX_FADV_DONTNEED."""
        number = getattr(os, "POSIX_FADV_DONTNEED", 0)
        with self._descriptor as descriptor:
            self._system.posix_fadvise(descriptor, offset, length, number)

    def write_back(self, offset: int, length: int, wait: bool) -> None:
        """sync_file_range(2)."""
        flags = SYNC_FILE_RANGE_WRITE
        if wait:
            flags |= SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER
        try:
            self._sync(self._system.sync_file_range, offset, length, flags)
        except OSError as error:
            if error.errno not in _SYNC_UNSUPPORTED:
                raise
        if wait:
            self.forget(offset, length)

    def close(self) -> None:
        """Close the descriptor, which releases the lock.

        No call begins any more. Those that have begun end first: then it is closed by the last.
        """
        self._descriptor.close()

    def discard(self) -> None:
        """Close the disk; if this object created it, remove it again.

        What somebody else has written into it since is kept.
        """
        if self.created and self._descriptor.number is not None:
            with contextlib.suppress(OSError):
                self._check_name()
                if not (self._unsized and self._system.stat(self.path).st_size):
                    self._system.unlink(self.path)
        self.close()

    def _check_name(self) -> None:
        """Raise OSError if the disk's name is gone, or leads to another file."""
        with self._descriptor as descriptor:
            ours = self._system.fstat(descriptor)
        if not os.path.samestat(ours, self._system.stat(self.path)):
            raise OSError(errno.ESTALE, f"{self.path} is not the file that was opened")


def has_descriptor(disk: IDisk) -> bool:
    """Whether L{held_descriptor} has one, be it one by which no payload is moved."""
    if isinstance(disk, DescriptorDisk):
        return disk.has_descriptor
    return disk.fileno() is not None


def is_untouched(disk: IDisk, offset: int, length: int) -> bool:
    """Whether a range of a disk is a hole because nothing was ever written there.

    Most of what is zeroed in a new file is like that, and to find it out takes one call however
    long the range is. False also where that is not known at once.
    """
    return isinstance(disk, DescriptorDisk) and disk.is_untouched(offset, length)


@contextlib.contextmanager
def held_descriptor(disk: IDisk) -> Iterator[int]:
    """The descriptor of a disk, for calls in a thread.

    Whoever closes one of ours meanwhile, its number is nobody else's before they have ended; when
    that of somebody else's is closed is his affair.

    @raise OSError: it was closed, or has none.
    """
    if isinstance(disk, DescriptorDisk):
        with disk.held() as number:
            yield number
    elif (descriptor := disk.fileno()) is not None:
        yield descriptor
    else:
        raise OSError(errno.EBADF, f"{disk.name} has no descriptor")
