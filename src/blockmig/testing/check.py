"""Checks that a disk keeps what `IDisk` says, for the tests of whoever has made one.

Owns the list of what is checked, in the order of the methods below.

Rules:

* what is broken is an AssertionError that names the disk, the call, and the rule;
* a disk of any size is checked in bounded time: at its ends, in its middle, and around what it
  reports as holes;
* it is the real thing that is checked: the calls block, and some are made from threads.
"""

from __future__ import annotations

import errno
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any, Final, NoReturn

from zope.interface import Invalid, providedBy
from zope.interface.verify import verifyObject

from ..interfaces import (
    Extent,
    IDisk,
    IReadAheadDisk,
    IRecordedDisk,
    IUnlinkableDisk,
    IWatchedDisk,
)
from ..storage import PROBE_SIZE, DiskRefused, DiskVersion, guard

_LONGEST: Final = (1 << 20) + 1
_AROUND: Final = 4096
_MOST_HOLES: Final = 64
_THREADS: Final = 4
_SLICES: Final = 16
_SLICE: Final = 5000
_SWITCHES: Final = 1e-6
_RETURN_NOTHING: Final = {
    *("trim", "flush", "forget", "write_back", "close", "prepare"),
    *("check_path", "check_unlink"),
}
_INTERFACES: Final = (IDisk, IReadAheadDisk, IRecordedDisk, IUnlinkableDisk, IWatchedDisk)


def check_disk(disk: Any, *, writable: bool = True) -> None:
    """Check that C{disk} keeps what its interfaces say; it is closed afterwards.

    I{What it holds is overwritten}, unless C{writable} is false: then it is only read.

    @param disk: anything that is to be given to a C{Sender}, C{Receiver} or C{Server}.
    @raise AssertionError: it does not; the message says what it breaks.
    """
    checks = _Checks(disk)
    checks.interfaces()
    checks.attributes()
    checks.records(writable)
    checks.reading()
    if writable:
        checks.writing()
        checks.reading()
        checks.zeroing()
        checks.trimming()
        checks.durability()
        checks.threads_that_write()
        checks.reading()
    checks.attributes_again()
    checks.closing()


class _Checks:
    """The checks of one disk."""

    def __init__(self, disk: Any) -> None:
        self._disk = disk
        self._name = str(getattr(disk, "name", type(disk).__name__))
        self._random = random.Random(0)

    def _broken(self, what: str, cause: BaseException | None = None) -> NoReturn:
        raise AssertionError(f"{self._name}: {what}") from cause

    def _call(self, method: str, *arguments: Any, allowed: tuple[type[Exception], ...] = ()) -> Any:
        try:
            result = getattr(self._disk, method)(*arguments)
        except allowed:
            return None
        except Exception as error:
            self._broken(f"{_words(method, arguments)} raised {error!r}", error)
        if method in _RETURN_NOTHING:
            self._check_nothing(_words(method, arguments), result)
        return result

    def _check_nothing(self, what: str, result: object) -> None:
        if inspect.iscoroutine(result):
            result.close()  # it never runs, and Python is not to complain of that as well
        if result is not None:
            self._broken(f"{what} returned {result!r}, and must do its work and return None")

    # What it is.

    def interfaces(self) -> None:
        """It says which interfaces it provides, and has their methods and attributes."""
        if not IDisk.providedBy(self._disk):
            self._broken("does not say that it provides IDisk")
        for interface in _INTERFACES:
            if interface in providedBy(self._disk).flattened():
                try:
                    verifyObject(interface, self._disk)
                except Invalid as error:
                    self._broken(" ".join(str(error).split()), error)

    def attributes(self) -> None:
        """Name, size and shortest run of zeroes are possible; a descriptor is one."""
        try:
            self._guarded = guard(self._disk)
        except DiskRefused as error:
            self._broken(str(error), error)
        self._size = self._guarded.size
        self._attributes = (self._disk.name, self._disk.size, self._disk.shortest_zeroes)
        if (descriptor := self._call("fileno")) is not None:
            try:
                os.fstat(descriptor)
            except (OSError, TypeError) as error:
                self._broken(f"fileno() is {descriptor!r}, which is no open file: {error}", error)

    def attributes_again(self) -> None:
        """They never change."""
        if (self._disk.name, self._disk.size, self._disk.shortest_zeroes) != self._attributes:
            self._broken("its name, size or shortest_zeroes has changed")

    def records(self, writable: bool) -> None:
        """Records and the watch rely on what stays the same; a new disk is prepared first."""
        if IRecordedDisk.providedBy(self._disk):
            if writable:
                self._call("prepare")
            identity = self._call("identity")
            if not isinstance(identity, str) or identity != self._call("identity"):
                self._broken(f"identity() is {identity!r}, and must be the same text each time")
        if IWatchedDisk.providedBy(self._disk):
            self._call("check_path")
            gone = self._call("is_gone")
            if not isinstance(gone, bool):
                self._broken(f"is_gone() is {gone!r}, and must be a bool")
            if gone:
                self._broken("is_gone() says that nothing leads to it any more")
            version = self._call("version")
            if not isinstance(version, DiskVersion):
                self._broken(f"version() is {version!r}, and must be a DiskVersion")
            if version != self._call("version"):
                self._broken("version() changes although nobody writes to it")
        if IUnlinkableDisk.providedBy(self._disk):
            # Whether it may be deleted is no matter of the rules.
            self._call("check_unlink", allowed=(DiskRefused,))

    # Reading.

    def reading(self) -> None:
        """What it holds is the same however it is looked at."""
        for offset, length in self._ranges():
            self._check_range(offset, length)
        self._check_descriptor_reads()
        self._check_extents()
        self._check_threads_that_read()

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Offsets and lengths: both ends, the middle, and some between, aligned and not."""
        size, middle = self._size, self._size // 2
        for offset, length in (
            (0, 1),
            (size - 1, 1),
            (0, _AROUND),
            (max(0, size - _AROUND), _AROUND),
            (max(0, size - _AROUND - 1), _AROUND),
            (middle, 1),
            (max(0, middle - 2500), 5000),
            (0, PROBE_SIZE),
            (0, _LONGEST),
            (max(0, size - _LONGEST), _LONGEST),
        ):
            yield offset, min(length, size - offset)

    def _read(self, offset: int, length: int) -> bytes:
        data = self._call("read", offset, length)
        if not isinstance(data, bytes):
            self._broken(f"read({offset}, {length}) returned {type(data).__name__}, not bytes")
        if len(data) != length:
            self._broken(f"read({offset}, {length}) returned {len(data)} bytes")
        return data

    def _check_range(self, offset: int, length: int) -> None:
        data = self._read(offset, length)
        middle = length // 2
        parts = self._read(offset, middle) if middle else b""
        if parts + self._read(offset + middle, length - middle) != data:
            self._broken(f"read({offset}, {length}) differs from the same in two parts")
        if length <= PROBE_SIZE:
            self._check_probe(offset, data)
        self._call("forget", offset, length)
        if IReadAheadDisk.providedBy(self._disk):
            self._check_read_ahead(offset, length)
        if self._read(offset, length) != data:
            self._broken(f"read({offset}, {length}) changes with forget()")

    def _check_read_ahead(self, offset: int, length: int) -> None:
        missing = self._call("read_ahead", offset, min(length, _LONGEST - 1))
        if not isinstance(missing, bool):
            kind = type(missing).__name__
            self._broken(f"read_ahead({offset}, {length}) returned {kind}, not a bool")

    def _check_probe(self, offset: int, data: bytes) -> None:
        try:
            zero = self._guarded.probe(offset, len(data)).zero
        except OSError as error:
            self._broken(f"probe({offset}, {len(data)}): {error.strerror}", error)
        if zero is not (not any(data)):
            kind = "are not all zeroes" if zero else "are all zeroes"
            self._broken(f"probe({offset}, {len(data)}) says zero={zero}, but the bytes {kind}")

    def _check_descriptor_reads(self) -> None:
        if (descriptor := self._call("fileno")) is None:
            return
        for offset, length in self._ranges():
            if os.pread(descriptor, length, offset) != self._read(offset, length):
                self._broken(f"its descriptor holds something else at {offset} than read() returns")

    def _extents(self, offset: int) -> list[Extent]:
        try:
            return list(self._guarded.extents(offset))
        except OSError as error:
            self._broken(f"extents({offset}): {error.strerror}", error)

    def _check_extents(self) -> None:
        """They add up from any offset, and what is a hole reads as zeroes."""
        extents = self._extents(0)
        offsets = {0, 1, self._size // 2, self._size - 1} - {self._size}
        for extent in extents[:_MOST_HOLES]:
            offsets |= {extent.offset, extent.offset + extent.length // 2}
        for offset in sorted(offsets):
            for extent in [found for found in self._extents(offset) if found.hole][:_MOST_HOLES]:
                self._check_hole(extent)
        next(iter(self._guarded.extents(0)))  # may be dropped after that

    def _check_hole(self, extent: Extent) -> None:
        end = extent.offset + extent.length
        for offset in {extent.offset, extent.offset + extent.length // 2, end - 1}:
            start = max(extent.offset, min(offset, end - _AROUND))
            if any(self._read(start, min(_AROUND, end - start))):
                self._broken(f"extents() reports a hole at {start}, where there are other bytes")

    # Writing.

    def writing(self) -> None:
        """What was written is there, all of it, and nothing else has changed."""
        for offset, length in self._ranges():
            for view in (bytes, memoryview, lambda buffer: buffer):
                self._check_write(offset, length, view)
        self._check_descriptor_writes()

    def _check_write(self, offset: int, length: int, view: Callable[[bytearray], Any]) -> None:
        what = f"write({offset}, {length} bytes)"
        content = self._random.randbytes(length)

        def write() -> None:
            buffer = bytearray(content)
            self._call("write", offset, view(buffer))
            buffer[:] = bytes(length)  # it is the caller's again

        self._changing(what, offset, length, write)
        self._holds(what, offset, content)

    def _changing(self, what: str, offset: int, length: int, change: Callable[[], None]) -> None:
        """Make a change that must leave the disk around the range as it is."""
        end = offset + length
        start, stop = max(0, offset - _AROUND), min(self._size, end + _AROUND)
        neighbours = [(start, offset - start), (end, stop - end)]
        before = [self._read(*where) if where[1] else b"" for where in neighbours]
        change()
        if before != [self._read(*where) if where[1] else b"" for where in neighbours]:
            self._broken(f"{what} has changed bytes beside that range")

    def _holds(self, what: str, offset: int, content: bytes) -> None:
        if self._read(offset, len(content)) != content:
            self._broken(f"after {what} it holds something else there")

    def _fill(self, offset: int, length: int) -> bytes:
        """Write what is not zero into a range and around it; return what the range holds then."""
        start, stop = max(0, offset - _AROUND), min(self._size, offset + length + _AROUND)
        content = self._random.randbytes(stop - start).replace(b"\0", b"\1")
        self._call("write", start, content)
        return content[offset - start :][:length]

    def _check_descriptor_writes(self) -> None:
        if (descriptor := self._call("fileno")) is None:
            return
        length = min(self._size, _AROUND)
        content = self._fill(0, length)
        if os.pread(descriptor, length, 0) != content:
            self._broken("its descriptor does not hold what write() has written")
        content = self._random.randbytes(length)
        os.pwrite(descriptor, content, 0)
        self._holds("a write to its descriptor", 0, content)

    def zeroing(self) -> None:
        """Zeroes are read afterwards, whichever way; a refusal to be fast changes nothing."""
        for offset, length in self._ranges():
            for allocate in (True, False):
                for fast in (True, False):
                    self._check_zero(offset, length, allocate, fast)

    def _check_zero(self, offset: int, length: int, allocate: bool, fast: bool) -> None:
        what = f"zero({offset}, {length}, allocate={allocate}, fast={fast})"
        content = self._fill(offset, length)
        expected = bytes(length)

        def zero() -> None:
            nonlocal expected
            try:
                result = self._disk.zero(offset, length, allocate, fast)
            except Exception as error:
                refused = isinstance(error, OSError) and error.errno == errno.EOPNOTSUPP
                if not (fast and refused):
                    self._broken(f"{what} raised {error!r}", error)
                expected = content
            else:
                self._check_nothing(what, result)

        self._changing(what, offset, length, zero)
        if expected is content:
            what += ", which raised EOPNOTSUPP,"
        self._holds(what, offset, expected)
        if not any(expected) and length <= PROBE_SIZE:
            self._check_probe(offset, expected)

    def trimming(self) -> None:
        """Only the trimmed range may change, to whatever."""
        for offset, length in self._ranges():
            self._fill(offset, length)

            trim = partial(self._call, "trim", offset, length)
            self._changing(f"trim({offset}, {length})", offset, length, trim)
            self._check_range(offset, length)

    def durability(self) -> None:
        """Flushing, and starting to write back, change nothing, and work again and again."""
        for offset, length in self._ranges():
            content = self._fill(offset, length)
            for wait in (False, True):
                self._call("write_back", offset, length, wait)
                self._holds(f"write_back({offset}, {length}, {wait})", offset, content)
            self._call("flush")
            self._holds("flush()", offset, content)

    # Threads.

    def _check_threads_that_read(self) -> None:
        slices = self._slices()
        expected = [self._read(*where) for where in slices]
        if self._together([partial(self._read, *where) for where in slices]) != expected:
            self._broken("reads from several threads at a time are mixed up")

    def threads_that_write(self) -> None:
        """Calls on ranges that do not overlap do not disturb each other."""
        slices = self._slices()
        contents = [self._random.randbytes(length) for _, length in slices]

        def work(number: int) -> bytes:
            offset, length = slices[number]
            self._call("write", offset, contents[number])
            if number % 4 == 1:
                self._call("zero", offset, length, True)
                contents[number] = bytes(length)
            if number % 4 == 2:
                self._call("flush")
            if number % 4 == 3:
                self._call("write_back", offset, length, True)
            return self._read(offset, length)

        for _ in range(4):
            found = self._together([partial(work, number) for number in range(len(slices))])
            if found != contents or [self._read(*where) for where in slices] != contents:
                self._broken("writes from several threads at a time are mixed up")

    def _slices(self) -> list[tuple[int, int]]:
        """Adjacent ranges."""
        length = max(1, min(_SLICE, self._size // _SLICES))
        return [(number * length, length) for number in range(min(_SLICES, self._size))]

    def _together(self, calls: list[Callable[[], bytes]]) -> list[bytes]:
        """Make the calls in threads, as many at a time as there are, and begun at once."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCHES)
        together = Barrier(min(_THREADS, len(calls)), timeout=60)

        def work(first: int) -> list[bytes]:
            together.wait()
            return [call() for call in calls[first::_THREADS]]

        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                results = list(threads.map(work, range(min(_THREADS, len(calls)))))
        finally:
            sys.setswitchinterval(interval)
        return [results[n % _THREADS][n // _THREADS] for n in range(len(calls))]

    def closing(self) -> None:
        """Closing it once more is harmless."""
        self._call("close")
        self._call("close")


def _words(method: str, arguments: tuple[Any, ...]) -> str:
    shown = [repr(a) if isinstance(a, int) else f"{len(a)} bytes" for a in arguments]
    return f"{method}({', '.join(shown)})"
