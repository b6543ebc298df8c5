"""Receiving: payloads go from the socket straight into a disk.

Owns the reading side of one plain socket, from its first large payload on, or from when it is told
to take over at once. While its `IPayloadReceiver` names a region for the next bytes on the wire,
they are moved there (`mover`); all other bytes are passed to `bufferReceived`. On any other
transport nothing is taken over, and the transport's own protocol receives everything.

Rules:

* no transport class of our own is needed, so any Twisted endpoint can be used: the socket's
  descriptor is duplicated and watched beside the paused transport, which still does the writing;
* at any time either this reader or the transport reads, never both;
* after a payload's last byte exactly one header is read, since another payload may follow it, whose
  first bytes would otherwise pass through memory;
* in the middle of a payload the reader is woken up for many bytes, not for each segment
  (`low_water`);
* the end of the connection is left to the transport, which notifies the protocol as usual;
* where few descriptors are left none is taken, and the transport reads on, more slowly;
* a turn of the reactor ends with the step in which half a millisecond is over, and a step moves a
  bounded number of bytes: where the memory is slow that is the only one;
* a disk error is reported with `payload_failed` before the bytes that were lost are reported with
  `payload_moved`, or their request would seem to have succeeded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from ..syscalls import SystemCalls
from .busy_poll import BusyPoll
from .low_water import LowWater
from .mover import Mover, check_descriptors
from .plain import is_plain_socket
from .regions import FileRegion

SHORTEST_MOVE: Final = 64 << 10
"""Bytes that must be left of a payload for it to be moved past the transport."""

_LONGEST_TURN: Final = 0.0005
_READ_SIZE: Final = 256 << 10
_receive_buffer: Final = memoryview(bytearray(512 << 10))


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


class _OwnReading(NamedTuple):
    """What there is while the reader reads, and not the transport.

    @ivar descriptor: the duplicate of the socket's.
    @ivar busy_poll: polls for the next messages; None where they are not polled for.
    @ivar low_water: says for how many bytes the reader is woken up.
    """

    descriptor: int
    busy_poll: BusyPoll | None
    low_water: LowWater


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
        self._mover = Mover(system)
        self._own: _OwnReading | None = None
        self._read_next = _READ_SIZE
        self._left = 0
        self._paused = False
        self._stopped = False

    def take_over(self, at_once: bool = False, *, poll: bool = True) -> None:
        """Take over the reading, if the next bytes are a payload that is large enough.

        @param at_once: take over in any case. Small messages are then read past the transport too,
            as many in a turn as were received, and passed to C{bufferReceived}.
        @param poll: with C{at_once}, poll for the next ones.
        """
        if self._own is not None or self._stopped or not is_plain_socket(self._transport):
            return
        region = self.protocol.payload_region()
        if not at_once and (region is None or region.length < SHORTEST_MOVE):
            return
        reactor = self._reactor
        if not IReactorFDSet.providedBy(reactor):
            return
        low_water = LowWater(self._transport.getHandle(), reactor)
        try:
            check_descriptors(self._system)
            descriptor = os.dup(self._transport.fileno())
        except OSError:  # out of descriptors
            return
        busy_poll = BusyPoll(descriptor) if at_once and poll else None
        self._own = _OwnReading(descriptor, busy_poll, low_water)
        self._transport.pauseProducing()
        if not self._paused:
            self._reactor.addReader(self)

    def pause(self) -> None:
        """Read nothing until L{resume}: back-pressure reaches the peer through its socket."""
        if self._paused or self._stopped:
            return
        self._paused = True
        if self._own is not None:
            self._reactor.removeReader(self)
        else:
            self._transport.pauseProducing()

    def resume(self) -> None:
        if not self._paused or self._stopped:
            return
        self._paused = False
        if self._own is not None:
            self._reactor.addReader(self)
        else:
            self._transport.resumeProducing()

    def stop(self) -> None:
        """Close the descriptors; to be called when the connection is lost."""
        self._stopped = True
        own = self._own
        if own is not None:
            own.low_water.stop()
            self._reactor.removeReader(self)
            self._own = None
            os.close(own.descriptor)
        self._mover.close()

    # IReadDescriptor, for the reactor.

    def logPrefix(self) -> str:
        return "PayloadReader"

    def fileno(self) -> int:
        """The duplicate of the transport's descriptor; -1 before and after."""
        return -1 if self._own is None else self._own.descriptor

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
        own = self._own
        assert own is not None
        seconds = self._seconds
        end = seconds() + _LONGEST_TURN
        if own.busy_poll is not None:
            own.busy_poll.begin()
        try:
            while self._own is own and not self._paused:
                region = self.protocol.payload_region()
                if region is None or (region.length < SHORTEST_MOVE and not self._left):
                    self._left = 0
                    if self._read_on(own):
                        break
                else:
                    self._move(own, region)
                if seconds() >= end:
                    break
        except BlockingIOError:
            pass
        except OSError:  # of the socket; the disk's are reported further in
            # The kernel reports it once: the transport would now see a half-close.
            self.stop()
            self._transport.abortConnection()
            return
        if self._own is own:
            own.low_water.expect(self._left)

    def _hand_back(self) -> None:
        """Let the transport find out how the connection ended, and report it as usual."""
        self.stop()
        self._transport.resumeProducing()

    def _read_on(self, own: _OwnReading) -> bool:
        """Read what is no payload, or one too short to be moved; return whether the turn ends."""
        if own.busy_poll is None:
            wanted = self._read_next
            return self._read(own.descriptor, wanted) < wanted
        return self._answer_fast(own.descriptor, own.busy_poll)

    def _answer_fast(self, descriptor: int, busy_poll: BusyPoll) -> bool:
        """Have messages answered, on the fast path if possible; return whether the turn ends."""
        expects_payload = self._read_next != _READ_SIZE
        serve = None if expects_payload else self.protocol.fast_turn()
        if serve is None:
            self._read(descriptor, self._read_next if expects_payload else len(_receive_buffer))
        elif serve(partial(self._system.readv, descriptor), _receive_buffer, busy_poll.more):
            self._hand_back()
        return self._own is None or self._paused or not busy_poll.more()

    def _read(self, descriptor: int, wanted: int) -> int:
        """Read up to C{wanted} bytes, and pass them on; return how many."""
        count = self._system.readv(descriptor, (_receive_buffer[:wanted],))
        if not count:
            self._hand_back()
            return 0
        self._read_next = _READ_SIZE
        self.protocol.bufferReceived(_receive_buffer[:count])
        return count

    def _move(self, own: _OwnReading, region: FileRegion) -> None:
        """Move some of a payload into its region."""
        moved = self._mover.move(own.descriptor, region, self.protocol.payload_failed)
        self._left = region.length - moved
        if moved == 0:
            self._hand_back()
            return
        if not self._left:
            self._read_next = self._header
        self.protocol.payload_moved(moved)
