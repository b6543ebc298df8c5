"""Access to a disk that the clients of a server share.

Owns what is known of one disk's latency and layout, and its flushes. Nothing of a connection.

Rules:

* what may take long runs in a thread. A read is done in the reactor's thread only if the kernel
  confirms that it need not wait for the medium (RWF_NOWAIT); a write, or a read where the kernel
  cannot say, only while such calls have proved to be quick (`latency`);
* a flush covers everything written before it was requested: a flush that is requested while one is
  running waits for the next, which serves all that wait;
* a range known to be data may be sent as data; a hole only if it was looked up after the request
  arrived;
* once a part of the disk could not be read, no reply begins before its data has been read.
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
"""Bytes of the shortest hole that a READ reports, so that its reply has not too many chunks."""

_MOST_EXTENTS: Final = 1 << 13
LONGEST_STATUS: Final = 8 * _MOST_EXTENTS
"""About the bytes of the longest reply to BLOCK_STATUS."""

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class DiskAccess:
    """One disk, for all connections of a server.

    @ivar latency: whether the disk is quick enough to be called in the reactor's thread.
    @ivar reads_first: a read failed once, so that data is read before its reply begins.
    @ivar changes: who is notified of what clients change.
    @ivar no_wait: the flag that makes C{preadv} fail rather than wait; 0 where there is none.
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
        """Fill C{view} from C{offset} if that need not wait; return whether it was filled."""
        descriptor = self.disk.fileno()
        if descriptor is None:  # a thread has found just now that there is none any more
            return False
        try:
            return bool(self.preadv(descriptor, (view,), offset, self.no_wait) == len(view))
        except OSError as error:
            return self.nowait_failed(error) and self.read_nowait(view, offset)

    def nowait_failed(self, error: OSError) -> bool:
        """A read without waiting failed; return whether it may be tried again."""
        if self.no_wait and error.errno in _UNSUPPORTED:
            self.no_wait = 0
            return True
        return False

    def read(self, offset: int, length: int, owner: JobOwner | None = None) -> Deferred[bytes]:
        """I{In a thread.} Read C{length} bytes.

        @param owner: here and below, the connection that the work is for.
        """
        return self.jobs.run(owner or self._anonymous, self.disk.read, offset, length)

    def write(self, offset: int, data: bytes, owner: JobOwner | None = None) -> Deferred[None]:
        return self.jobs.run(owner or self._anonymous, self.disk.write, offset, data, changing=True)

    # Large reads, and the disk's layout.

    def is_ready(self, offset: int, length: int, with_holes: bool) -> bool:
        """Whether a large read can be sent directly, without L{prepare}.

        @param with_holes: holes are to be sent as holes.
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
        """Whether it seems to be in the page cache: one byte in every 256 KiB is read."""
        byte = memoryview(bytearray(1))
        end = offset + length
        ends = range(min(offset + PROBE_SIZE, end), end, PROBE_SIZE)
        return all(self.read_nowait(byte, position - 1) for position in (*ends, end))

    def prepare(
        self, offset: int, length: int, with_holes: bool, owner: JobOwner | None = None
    ) -> Deferred[list[Extent]]:
        """I{In a thread.} Fetch a range into the page cache, and find its holes.

        Holes that are too short for a chunk of their own count as data.

        @param with_holes: if not, all of it is one run of data.
        @return: fires with the runs, which are adjacent and make up the range.
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
        """Fetch a range, add its runs to C{runs}, and return whether all of it is data."""
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
        """Space was deallocated: there may be holes where there was data."""
        self._known_data = (0, 0)

    def status(
        self, offset: int, length: int, one: bool, owner: JobOwner | None = None
    ) -> Deferred[list[tuple[int, int]]]:
        """I{In a thread.} The C{base:allocation} status of a range, or of its beginning.

        @param one: return the first extent only.
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
        """A part of the disk could not be read after its reply had begun."""
        if not self.reads_first:
            _log.warn(
                "{disk}: a read failed ({error}); from now on data is read before its reply begins",
                disk=self.disk.name,
                error=str(error),
            )
        self.reads_first = True

    # Flushes.

    def flush(self) -> Deferred[None]:
        """Make everything written until now durable.

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
    """Add a run, or extend the last one."""
    if runs and runs[-1].hole == hole:
        start = runs.pop().offset
    runs.append(Extent(start, end - start, hole))
