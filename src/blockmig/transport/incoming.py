"""Receiving: payloads go from the socket straight into a disk.

Owns the reading side of one plain socket, from its first large payload on, or from when it is told
to take over at once. While its `IPayloadReceiver` names a region for the next bytes on the wire,
they are moved there by splice(2) through a pipe (or by readv into a buffer and pwrite, where splice
cannot be used); all other bytes are passed to `bufferReceived`. On any other transport nothing is
taken over, and the transport's own protocol receives everything.

Rules:

* no transport class of our own is needed, so any Twisted endpoint can be used: the socket's
  descriptor is duplicated and watched beside the paused transport, which still does the writing;
* at any time either this reader or the transport reads, never both;
* after a payload's last byte exactly one header is read, since another payload may follow it, whose
  first bytes would otherwise pass through memory;
* in the middle of a payload the reader is woken up for many bytes, not for each segment
  (`low_water`);
* the end of the connection is left to the transport, which notifies the protocol as usual;
* it works without descriptors of its own, more slowly: it takes none where few are left, which the
  process needs for its files;
* a turn of the reactor ends with the step in which half a millisecond is over, and a step moves a
  bounded number of bytes: where the memory is slow that is the only one;
* a disk error is reported with `payload_failed` before the bytes that were lost are reported with
  `payload_moved`, or their request would seem to have succeeded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from ..syscalls import SystemCalls
from .busy_poll import BusyPoll
from .low_water import LowWater
from .plain import is_plain_socket
from .regions import FileRegion

_KEPT_FREE: Final = 16
"""Descriptors that are not taken for speed."""

SHORTEST_MOVE: Final = 64 << 10
"""Bytes that must be left of a payload for it to be moved past the transport."""

_LONGEST_TURN: Final = 0.0005
LONGEST_MOVE: Final = 512 << 10
_PIPE_SIZE: Final = 1 << 20
_READ_SIZE: Final = 256 << 10
_receive_buffer: Final = memoryview(bytearray(512 << 10))
_F_SETPIPE_SZ: Final = 1031
_NO_SPLICE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


FastTurn = Callable[[Callable[[Sequence[memoryview]], int], memoryview, Callable[[], bool]], bool]
"""What reads and answers messages in one turn of the reactor, while nothing else runs.

It is called with a function that reads from the socket, as readv(2) does; with the buffer to read
into; and with a function to call when everything was answered, which returns whether to read on. It
returns whether the other end has closed the connection. What it cannot answer it has passed to
C{bufferReceived}, last of all.
"""


class IPayloadReceiver(Interface):
    """A receiver whose payloads are moved from the socket straight into a disk."""

    def dataReceived(data: bytes) -> None:
        """Bytes that were not moved into a region, in order."""

    def bufferReceived(view: memoryview) -> None:
        """As C{dataReceived}, with bytes that are valid only until this returns.

        Called once the reading was taken over.
        """

    def fast_turn() -> Any:
        """A L{FastTurn} for the next messages; None where there is none now.

        Called only where reading was taken over at once.
        """

    def payload_region() -> Any:
        """The L{FileRegion} into which the next bytes on the wire belong.

        None where they should be passed to C{bufferReceived}.
        """

    def payload_moved(count: int) -> None:
        """The first C{count} bytes of that region are off the wire: in the disk, or lost.

        They are lost if L{payload_failed} was called just before.
        """

    def payload_failed(error: OSError) -> None:
        """The disk did not take what L{payload_moved} is about to report.

        The request has failed, and the rest of its payload must be passed to C{bufferReceived}.
        """


@implementer(IReadDescriptor)
class PayloadReader:
    """Moves payloads from one connection into a disk.

    @param reactor: watches the socket; without IReactorFDSet the transport reads everything.
    @param transport: the connection's transport.
    @param protocol: receives what is read; may be None until L{take_over}.
    @param header: bytes of the header that is expected after a payload.
    @param seconds: a clock that is fine enough for a turn.
    @ivar protocol: the same, an L{IPayloadReceiver}; may be replaced.
    """

    def __init__(
        self,
        reactor: Any,
        transport: Any,
        protocol: Any,
        header: int,
        system: SystemCalls,
        *,
        seconds: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._reactor = reactor
        self._transport = transport
        self.protocol = protocol
        self._header = header
        self._system = system
        self._seconds = seconds
        self._descriptor = -1
        self._pipe: tuple[int, int] | None = None
        self._can_splice = system.splice is not None
        self._buffer: memoryview | None = None
        self._read_next = _READ_SIZE
        self._busy_poll: BusyPoll | None = None
        self._low_water: LowWater | None = None
        self._left = 0
        self._paused = False
        self._stopped = False

    def take_over(self, at_once: bool = False, *, poll: bool = True) -> None:
        """Take over the reading, if the next bytes are a payload that is large enough.

        @param at_once: take over in any case. Small messages are then read past the transport too,
            as many in a turn as were received, and passed to C{bufferReceived}.
        @param poll: with C{at_once}, poll for the next ones.
        """
        if self._descriptor >= 0 or self._stopped or not is_plain_socket(self._transport):
            return
        region = self.protocol.payload_region()
        if not at_once and (region is None or region.length < SHORTEST_MOVE):
            return
        reactor = self._reactor
        if not IReactorFDSet.providedBy(reactor):
            return
        try:
            self._check_descriptors()
            self._descriptor = os.dup(self._transport.fileno())
        except OSError:  # out of descriptors: the transport reads on, more slowly
            return
        os.set_inheritable(self._descriptor, False)
        if at_once and poll:
            self._busy_poll = BusyPoll(self._descriptor)
        self._low_water = LowWater(self._transport.getHandle(), self._reactor)
        self._transport.pauseProducing()
        if not self._paused:
            self._reactor.addReader(self)

    def pause(self) -> None:
        """Read nothing until L{resume}: back-pressure reaches the peer through its socket."""
        if self._paused or self._stopped:
            return
        self._paused = True
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
        else:
            self._transport.pauseProducing()

    def resume(self) -> None:
        if not self._paused or self._stopped:
            return
        self._paused = False
        if self._descriptor >= 0:
            self._reactor.addReader(self)
        else:
            self._transport.resumeProducing()

    def stop(self) -> None:
        """Close the descriptors; to be called when the connection is lost."""
        self._stopped = True
        if self._low_water is not None:
            self._low_water.stop()
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1
        self._close_pipe()
        self._buffer = None

    # IReadDescriptor, for the reactor.

    def logPrefix(self) -> str:
        return "PayloadReader"

    def fileno(self) -> int:
        """The duplicate of the transport's descriptor; -1 before and after."""
        return self._descriptor

    def connectionLost(self, reason: Failure) -> None:
        """The reactor noticed the end of the connection; or L{doRead} has raised something.

        Then nobody knows what of the received bytes was processed, and they may be overwritten:
        whoever read on would go on with something else.
        """
        if reason.check(ConnectionDone, ConnectionLost):
            self._hand_back()
        else:
            self.stop()
            self._transport.abortConnection()

    def doRead(self) -> None:
        """The socket is readable."""
        seconds = self._seconds
        end = seconds() + _LONGEST_TURN
        busy_poll = self._busy_poll
        if busy_poll is not None:
            busy_poll.begin()
        try:
            while self._descriptor >= 0 and not self._paused:
                region = self.protocol.payload_region()
                if region is None or (region.length < SHORTEST_MOVE and not self._left):
                    self._left = 0
                    if self._read() if busy_poll is None else self._answer_fast(busy_poll):
                        break
                else:
                    self._move(region, min(region.length, LONGEST_MOVE))
                if seconds() >= end:
                    break
        except BlockingIOError:
            pass
        except OSError:  # of the socket; the disk's are reported further in
            # The kernel reports it once: the transport would now see a half-close.
            self.stop()
            self._transport.abortConnection()
            return
        if self._low_water is not None:
            self._low_water.expect(self._left)

    def _hand_back(self) -> None:
        """Let the transport find out how the connection ended, and report it as usual."""
        self.stop()
        self._transport.resumeProducing()

    def _read(self) -> bool:
        """Read bytes that are no payload, or a payload too short to be moved.

        @return: whether the turn ends, since that was all.
        """
        wanted = _receive_buffer[: self._read_next]
        count = self._system.readv(self._descriptor, (wanted,))
        if not count:
            self._hand_back()
            return True
        self._read_next = _READ_SIZE
        self.protocol.bufferReceived(wanted[:count])
        return count < len(wanted)

    def _answer_fast(self, busy_poll: BusyPoll) -> bool:
        """Have messages answered, on the fast path if possible; return whether the turn ends."""
        expects_payload = self._read_next != _READ_SIZE
        serve = None if expects_payload else self.protocol.fast_turn()
        if serve is None:
            self._read_at_once()
        elif serve(partial(self._system.readv, self._descriptor), _receive_buffer, busy_poll.more):
            self._hand_back()
        return self._paused or not busy_poll.more()

    def _read_at_once(self) -> None:
        """Read whatever was received into the shared buffer."""
        wanted = (
            _receive_buffer if self._read_next == _READ_SIZE else _receive_buffer[: self._read_next]
        )
        count = self._system.readv(self._descriptor, (wanted,))
        if not count:
            self._hand_back()
            return
        self._read_next = _READ_SIZE
        self.protocol.bufferReceived(_receive_buffer[:count])

    def _move(self, region: FileRegion, count: int) -> None:
        """Move up to C{count} bytes into the region."""
        move = self._splice if self._can_splice and region.disk.fileno() is not None else self._copy
        moved = move(region, count)
        self._left = region.length - moved
        if moved == 0:
            self._hand_back()
        elif not self._left:
            self._read_next = self._header

    def _splice(self, region: FileRegion, count: int) -> int:
        try:
            from_pipe, to_pipe = self._open_pipe()
            taken: int = self._system.splice(self._descriptor, to_pipe, count)
        except OSError as error:
            if error.errno not in (*_NO_SPLICE, errno.EMFILE, errno.ENFILE):
                raise
            self._can_splice = False
            return self._copy(region, count)
        try:
            self._drain_pipe(from_pipe, region, taken)
        except OSError as error:
            self._close_pipe()
            self.protocol.payload_failed(error)
        if taken:
            self.protocol.payload_moved(taken)
        return taken

    def _drain_pipe(self, pipe: int, region: FileRegion, left: int) -> None:
        """Move C{left} bytes from the pipe into the disk, through memory where it cannot splice."""
        offset = region.offset
        while left:
            # Each time anew: a thread may have found just now that the disk has none any more.
            descriptor = region.disk.fileno()
            if self._can_splice and descriptor is not None:
                try:
                    moved = self._system.splice(pipe, descriptor, left, offset_dst=offset)
                except OSError as error:
                    if error.errno not in _NO_SPLICE:
                        raise
                    self._can_splice = False
                    continue
            else:
                data = self._system.read(pipe, left)
                region.disk.write(offset, data)
                moved = len(data)
            left -= moved
            offset += moved

    def _copy(self, region: FileRegion, count: int) -> int:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(LONGEST_MOVE))
        taken = self._system.readv(self._descriptor, [self._buffer[:count]])
        if not taken:
            return 0
        try:
            region.disk.write(region.offset, self._buffer[:taken])
        except OSError as error:
            self.protocol.payload_failed(error)
        self.protocol.payload_moved(taken)
        return taken

    def _open_pipe(self) -> tuple[int, int]:
        if self._pipe is None:
            self._check_descriptors()
            self._pipe = self._system.pipe()
            with contextlib.suppress(OSError):  # beyond the user's limit: a small pipe works too
                fcntl.fcntl(self._pipe[1], _F_SETPIPE_SZ, _PIPE_SIZE)
        return self._pipe

    def _check_descriptors(self) -> None:
        """Fail as if there were no descriptors, while few are left."""
        free, limit = self._system.descriptors()
        if free < min(_KEPT_FREE, limit // 8):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None
