"""A disk in memory, which can be told to fail.

Owns its content, which of it is a hole, what of it is durable, and what was called.

Rules:

* every call is recorded before it has an effect, whether or not it then fails;
* a call that fails has no effect;
* what is written is data, whatever it is; what is zeroed or trimmed is a hole, and reads as zeroes,
  unless its space was to be kept;
* an error of L{MemoryDisk.write_back} is raised by every flush after it, as L{IDisk} says;
* a range beyond the disk's end is a bug of whoever asks, and ValueError; a disk that was closed
  answers EBADF.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from zope.interface import implementer

from ..interfaces import Extent, IDisk, IRecordedDisk, IUnlinkableDisk, Probe
from ..storage import PROBE_SIZE

_HOLE, _DATA = b"\0", b"\1"


class Call(NamedTuple):
    """One call of a disk's method.

    @ivar method: its name.
    @ivar offset: bytes from the start of the disk, where the method has an offset.
    @ivar length: bytes, where it has a length (or data).
    """

    method: str
    offset: int = 0
    length: int = 0
    allocate: bool = False
    fast: bool = False
    wait: bool = False


class _Failure:
    """Calls that are to fail."""

    def __init__(
        self, method: str, error: Exception, after: int, times: int | None, within: range | None
    ) -> None:
        self.method = method
        self.error = error
        self._after = after
        self._times = times
        self._within = within

    def hits(self, call: Call) -> bool:
        """Whether C{call} is one of them."""
        if call.method != self.method or not self._concerns(call) or self._times == 0:
            return False
        if self._after:
            self._after -= 1
            return False
        if self._times is not None:
            self._times -= 1
        return True

    def _concerns(self, call: Call) -> bool:
        within = self._within
        if within is None:
            return True
        return call.offset < within.stop and within.start < call.offset + call.length


@implementer(IDisk)
class MemoryDisk:
    """A disk in memory, without a descriptor: bytes are read and written, never spliced.

    @param content: what it holds, all of it data; or its size in bytes, all of it a hole.
    @param holes: (offset, length), in bytes, of the runs of C{content} that are holes.
    @param name: what messages call it.
    @param shortest_zeroes: see L{IDisk}.
    @ivar calls: what was called, in order; may be cleared.
    @ivar durable: what it would hold after a power failure: its content as of the last flush.
    @ivar closed: whether L{close} was called.
    @raise ValueError: it would be empty, or C{content} is not zero where there is to be a hole.
    """

    can_fail: Final = frozenset(
        {"read", "write", "zero", "trim", "flush", "extents", "probe", "forget", "write_back"}
        | {"check_unlink", "unlink", "identity", "prepare"}
    )
    """The methods that can be told to fail, those of other kinds of disks too."""

    def __init__(
        self,
        content: bytes | int,
        *,
        holes: Iterable[tuple[int, int]] = (),
        name: str = "memory",
        shortest_zeroes: int = 65536,
    ) -> None:
        self.name = name
        self.shortest_zeroes = shortest_zeroes
        self._data = bytearray(content)
        self.size = len(self._data)
        if not self.size:
            raise ValueError("a disk has at least one byte")
        # One byte for each of the disk's: its extents can be any, and tests' disks are small.
        sparse = isinstance(content, int)
        self._map = bytearray((_HOLE if sparse else _DATA) * self.size)
        for offset, length in holes:
            if any(self._data[offset : offset + length]):
                raise ValueError(f"what is at {offset} is not zero, so it is no hole")
            self._map[offset : offset + length] = _HOLE * length
        self.durable = bytes(self._data)
        self.calls: list[Call] = []
        self.closed = False
        self._failures: list[_Failure] = []
        self._observers: list[Callable[[Call], object]] = []
        self._lost: Exception | None = None

    # For tests.

    @property
    def content(self) -> bytes:
        """What it holds."""
        return bytes(self._data)

    def peek(self, offset: int, length: int) -> bytes:
        """What it holds there; this is no call, and does not fail."""
        return bytes(self._data[offset : offset + length])

    def poke(self, offset: int, data: bytes) -> None:
        """Change what it holds there, as another program would: no call, no failure.

        @raise ValueError: that is beyond its end.
        """
        if not 0 <= offset <= offset + len(data) <= self.size:
            raise ValueError(f"{self.name} has {self.size} bytes")
        self._put(offset, data, _DATA)

    def names(self) -> list[str]:
        """The methods that were called, in order."""
        return [call.method for call in self.calls]

    def observe(self, function: Callable[[Call], object]) -> None:
        """Have C{function} called with each call, before that fails or has an effect."""
        self._observers.append(function)

    def fail(
        self,
        method: str,
        error: Exception,
        *,
        after: int = 0,
        times: int | None = 1,
        within: range | None = None,
    ) -> None:
        """Have calls of a method fail.

        Of several failures of one method each counts the calls by itself, but for those that an
        earlier one has taken; a call fails with the first that is due.

        @param method: its name, one of L{can_fail}.
        @param error: what it raises, an L{OSError} if it is to be a disk's.
        @param after: how many calls succeed before.
        @param times: how many then fail; None for all.
        @param within: the bytes of the disk that it is about: other calls neither fail nor count.
        @raise ValueError: there is no such method.
        """
        if method not in self.can_fail:
            raise ValueError(f"a disk has no method {method!r} that can be told to fail")
        self._failures.append(_Failure(method, error, after, times, within))

    def heal(self) -> None:
        """Forget all failures; what was lost by write-back stays lost."""
        self._failures.clear()

    def _called(self, call: Call) -> None:
        self.calls.append(call)
        for function in self._observers:
            function(call)
        if self.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if call.offset < 0 or call.length < 0 or call.offset + call.length > self.size:
            raise ValueError(f"{call}: {self.name} has {self.size} bytes")
        for failure in self._failures:
            if failure.hits(call):
                raise failure.error.with_traceback(None)

    # IDisk.

    def fileno(self) -> None:
        """There is no descriptor."""

    def read(self, offset: int, length: int) -> bytes:
        """See L{IDisk.read}."""
        self._called(Call("read", offset, length))
        return bytes(self._data[offset : offset + length])

    def write(self, offset: int, data: Any) -> None:
        """See L{IDisk.write}."""
        length = len(memoryview(data).cast("B"))
        self._called(Call("write", offset, length))
        self._put(offset, bytes(data), _DATA)

    def zero(self, offset: int, length: int, allocate: bool, fast: bool = False) -> None:
        """See L{IDisk.zero}; always fast."""
        self._called(Call("zero", offset, length, allocate=allocate, fast=fast))
        self._put(offset, bytes(length), _DATA if allocate else _HOLE)

    def trim(self, offset: int, length: int) -> None:
        """See L{IDisk.trim}; what was trimmed is a hole."""
        self._called(Call("trim", offset, length))
        self._put(offset, bytes(length), _HOLE)

    def _put(self, offset: int, data: bytes, kind: bytes) -> None:
        end = offset + len(data)
        self._data[offset:end] = data
        self._map[offset:end] = kind * len(data)

    def flush(self) -> None:
        """See L{IDisk.flush}."""
        self._called(Call("flush"))
        if self._lost is not None:
            raise self._lost.with_traceback(None)
        self.durable = bytes(self._data)

    def extents(self, offset: int) -> Iterator[Extent]:
        """See L{IDisk.extents}; a failure comes when the first one is asked for."""
        self._called(Call("extents", offset))
        while offset < self.size:
            hole = self._map[offset : offset + 1] == _HOLE
            end = self._map.find(_DATA if hole else _HOLE, offset)
            length = (end if end >= 0 else self.size) - offset
            yield Extent(offset, length, hole)
            offset += length

    def probe(self, offset: int, length: int) -> Probe:
        """See L{IDisk.probe}; nothing has to be fetched.

        @raise ValueError: C{length} is more than 256 KiB.
        """
        self._called(Call("probe", offset, length))
        if length > PROBE_SIZE:
            raise ValueError(f"a probe of {length} bytes is longer than {PROBE_SIZE}")
        return Probe(not any(self._data[offset : offset + length]), cold=False)

    def forget(self, offset: int, length: int) -> None:
        """See L{IDisk.forget}; there is no page cache."""
        self._called(Call("forget", offset, length))

    def write_back(self, offset: int, length: int, wait: bool) -> None:
        """See L{IDisk.write_back}; nothing is durable by it."""
        try:
            self._called(Call("write_back", offset, length, wait=wait))
        except OSError as error:
            self._lost = self._lost or error
            raise

    def close(self) -> None:
        """See L{IDisk.close}."""
        self.calls.append(Call("close"))
        self.closed = True


@implementer(IUnlinkableDisk)
class UnlinkableMemoryDisk(MemoryDisk):
    """A disk in memory that can be deleted, so that it can be sent with C{unlink}.

    @ivar unlinked: whether it was.
    """

    unlinked = False

    def check_unlink(self) -> None:
        """See L{IUnlinkableDisk.check_unlink}."""
        self._called(Call("check_unlink"))

    def unlink(self) -> None:
        """See L{IUnlinkableDisk.unlink}."""
        self._called(Call("unlink"))
        self.unlinked = True


@implementer(IRecordedDisk)
class RecordedMemoryDisk(UnlinkableMemoryDisk):
    """A disk in memory whose records are kept beside a file that need not be there.

    The records are real files: whatever is told to crash and comes back finds them again.

    @param record_path: the disk's path as records name it, in a directory of the test's.
    @param blank: whether it was only just made.
    """

    def __init__(
        self,
        content: bytes | int,
        record_path: str,
        *,
        blank: bool = False,
        holes: Iterable[tuple[int, int]] = (),
        shortest_zeroes: int = 65536,
    ) -> None:
        super().__init__(content, holes=holes, name=record_path, shortest_zeroes=shortest_zeroes)
        self.path = self.record_path = record_path
        self.blank = blank

    def identity(self) -> str:
        """See L{IRecordedDisk.identity}; the same for every disk."""
        self._called(Call("identity"))
        return "in memory"

    def prepare(self) -> None:
        """See L{IRecordedDisk.prepare}."""
        self._called(Call("prepare"))
        self.blank = False
