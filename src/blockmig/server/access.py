"""A disk as the clients of a server share it: what can be done at once, and what has to wait.

Owns what is known of one disk's speed and layout, and its flushes. Nothing of a connection.

Rules:

* what may take long runs in a thread. A read is done at once only if the kernel says that it need
  not wait for the medium (RWF_NOWAIT); a write, or a read where the kernel cannot say, only while
  such calls have proved to be quick (`latency`);
* a flush covers all that was written before it was asked for: whoever asks while one is under way
  waits for the next, together with all the others who do;
* data may always be taken for data, a hole only if it was looked up after the request came;
* once a part of the disk could not be read, nothing is promised before it has been read.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..interfaces import Extent, IDisk
from ..nbd import STATE_HOLE, STATE_ZERO
from ..runtime import InThread
from ..storage import PROBE_SIZE
from ..syscalls import NO_WAIT, SystemCalls
from .changes import Changes
from .jobs import JobOwner, JobQueue
from .latency import LatencyMonitor

_log = Logger()

SMALL: Final = 64 << 10
"""Bytes of the longest request that is carried out in memory."""

SHORTEST_HOLE: Final = 64 << 10
"""Bytes of the shortest hole that a read tells of, so that its reply has not too many chunks."""

_MOST_EXTENTS: Final = 1 << 13
LONGEST_STATUS: Final = 8 * _MOST_EXTENTS
"""Bytes that an answer to BLOCK_STATUS may have, or nearly so."""

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class DiskAccess:
    """One disk, for all connections of a server.

    @param disk: the disk.
    @param in_thread: runs a function in a thread.
    @ivar latency: whether it is quick enough to be called in the reactor's thread.
    @ivar changes: who is told of what clients change.
    @ivar no_wait: the flag for C{preadv} that has it fail rather than wait; 0 where none is known.
    """

    def __init__(
        self,
        disk: IDisk,
        in_thread: InThread,
        latency: LatencyMonitor,
        system: SystemCalls,
    ) -> None:
        self.disk = disk
        self.latency = latency
        self.reads_first = False
        self.changes = Changes()
        self.jobs = JobQueue(in_thread)
        self._in_thread = in_thread
        self._anonymous = JobOwner()
        self.preadv = system.preadv
        self.pwrite = system.pwrite
        self.no_wait = NO_WAIT
        self._known_data = (0, 0)
        self._flushing = False
        self._flush_waiters: list[Deferred[None]] = []

    # Small requests.

    @property
    def quick(self) -> bool:
        """Whether small requests may be tried in the reactor's thread now."""
        return self.latency.quick and self.disk.fileno() is not None

    def read_nowait(self, view: memoryview, offset: int) -> bool:
        """Fill C{view} from C{offset} if that needs no waiting; whether it was done."""
        descriptor = self.disk.fileno()
        assert descriptor is not None
        try:
            return bool(self.preadv(descriptor, (view,), offset, self.no_wait) == len(view))
        except OSError as error:
            return self.nowait_failed(error) and self.read_nowait(view, offset)

    def nowait_failed(self, error: OSError) -> bool:
        """Something could not be done at once; whether it may be tried again."""
        if self.no_wait and error.errno in _UNSUPPORTED:
            self.no_wait = 0
            return True
        return False

    def read(self, offset: int, length: int, owner: JobOwner | None = None) -> Deferred[bytes]:
        """I{In a thread.} That many bytes.

        @param owner: here and below, whose work it is.
        """
        return self.jobs.run(owner or self._anonymous, self.disk.read, offset, length)

    def write(self, offset: int, data: bytes, owner: JobOwner | None = None) -> Deferred[None]:
        """I{In a thread.} Write C{data}."""
        return self.jobs.run(owner or self._anonymous, self.disk.write, offset, data, changing=True)

    # Large reads, and what the disk looks like.

    def is_ready(self, offset: int, length: int, with_holes: bool) -> bool:
        """Whether a large read can be sent as it is, without L{prepare}.

        @param with_holes: holes are to be told from data.
        """
        if self.reads_first or self.disk.fileno() is None:
            return False
        if (
            with_holes
            and not self._known_data[0] <= offset <= offset + length <= self._known_data[1]
        ):
            return False
        return self._is_cached(offset, length) if self.no_wait else self.latency.quick

    def _is_cached(self, offset: int, length: int) -> bool:
        """Whether it seems to be in the page cache: one byte of every so many is looked at."""
        byte = memoryview(bytearray(1))
        end = offset + length
        ends = range(min(offset + PROBE_SIZE, end), end, PROBE_SIZE)
        return all(self.read_nowait(byte, position - 1) for position in (*ends, end))

    def prepare(
        self, offset: int, length: int, with_holes: bool, owner: JobOwner | None = None
    ) -> Deferred[list[Extent]]:
        """I{In a thread.} Have a range ready to be sent, and tell its holes from its data.

        Holes too short to be worth their chunk are data.

        @param with_holes: if not, all of it is one run of data.
        @return: fires with the runs, which adjoin and make up the range.
        """
        preparing = self.jobs.run(
            owner or self._anonymous, self._prepare, offset, length, with_holes, scanning=with_holes
        )
        return preparing.addCallback(self._remember_data)

    def _prepare(
        self, offset: int, length: int, with_holes: bool
    ) -> tuple[list[Extent], tuple[int, int]]:
        end = offset + length
        runs: list[Extent] = []
        known = (0, 0)
        if not with_holes:
            self._fetch(offset, end, [])
            return [Extent(offset, length, hole=False)], known
        for start, count, hole in self.disk.extents(offset):
            if start >= end:
                break
            stop = min(start + count, end)
            if hole:
                _append(runs, start, stop, hole=stop - start >= SHORTEST_HOLE)
            elif self._fetch(start, stop, runs):
                known = (start, start + count)
        return runs, known

    def _fetch(self, offset: int, end: int, runs: list[Extent]) -> bool:
        """Have the range in the page cache; add its runs to C{runs}; whether all of it is data."""
        zeroes = False
        while offset < end:
            count = min(PROBE_SIZE, end - offset)
            zero = self.disk.probe(offset, count).zero
            zeroes = zeroes or zero
            _append(runs, offset, offset + count, hole=zero)
            offset += count
        return not zeroes

    def _remember_data(self, found: tuple[list[Extent], tuple[int, int]]) -> list[Extent]:
        runs, (start, end) = found
        if end:
            first, last = self._known_data
            touching = start <= last and first <= end
            self._known_data = (min(first, start), max(last, end)) if touching else (start, end)
        return runs

    def forget_layout(self) -> None:
        """Space was given back: there may be holes where there was data."""
        self._known_data = (0, 0)

    def status(
        self, offset: int, length: int, one: bool, owner: JobOwner | None = None
    ) -> Deferred[list[tuple[int, int]]]:
        """I{In a thread.} What C{base:allocation} says of a range, or of its beginning.

        @param one: of its first extent only.
        @return: fires with the length and state of each extent.
        """
        return self.jobs.run(
            owner or self._anonymous, self._status, offset, offset + length, one, scanning=True
        )

    def _status(self, offset: int, end: int, one: bool) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for start, count, hole in self.disk.extents(offset):
            if start >= end or len(found) == (1 if one else _MOST_EXTENTS):
                break
            found.append((min(count, end - start), STATE_HOLE | STATE_ZERO if hole else 0))
        return found

    def read_failed(self, error: OSError) -> None:
        """A part of the disk could not be sent."""
        if not self.reads_first:
            _log.warn(
                "{disk}: cannot be read everywhere ({error}); reading before promising from now on",
                disk=self.disk.name,
                error=str(error),
            )
        self.reads_first = True

    # Flushes.

    def flush(self) -> Deferred[None]:
        """Make durable what was written until now.

        @return: fires when it is; fails with the disk's error.
        """
        asked: Deferred[None] = Deferred()
        self._flush_waiters.append(asked)
        if not self._flushing:
            self._flush()
        return asked

    def _flush(self) -> None:
        asked, self._flush_waiters = self._flush_waiters, []
        self._flushing = True

        def flushed(result: Any) -> None:
            self._flushing = False
            if self._flush_waiters:
                self._flush()
            for waiting in asked:
                if isinstance(result, Failure):
                    waiting.errback(Failure(result.value))
                else:
                    waiting.callback(None)

        self._in_thread(self.disk.flush).addBoth(flushed)


def _append(runs: list[Extent], start: int, end: int, hole: bool) -> None:
    """Add a run, or lengthen the last."""
    if runs and runs[-1].hole == hole:
        start = runs.pop().offset
    runs.append(Extent(start, end - start, hole))
