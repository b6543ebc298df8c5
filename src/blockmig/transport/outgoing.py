"""Sending: bytes and file regions in one queue.

Owns the order of everything that is sent on one connection. On a plain socket everything bypasses
the transport: bytes by send(2), regions from the page cache by sendfile(2). On any other transport
regions are read, and everything is written to the transport. Regions of a disk that has no
descriptor are read in threads (`read_ahead`), if there are any.

Rules:

* the queue is the only writer: nothing may overtake it, and another write would land inside a
  payload, so the protocol sends everything through here;
* what the socket takes at once is sent from inside `send`, which saves a turn of the reactor; but
  not before the transport was once seen with an empty buffer, into which others may have written;
* the transport is bypassed only while it is a plain socket (`plain`), which is checked each time;
* the transport is given no more than it has room for, so that what a slow peer does not take stays
  in the queue, where the owner sees its length;
* a turn of the reactor sends a bounded number of bytes;
* a region that cannot be sent in full (the disk shrank, a read failed) breaks the promise of the
  header before it: `failed` is called, once, and nothing more is sent;
* while a thread is reading the next bytes nothing is sent, but the producer stays registered, so
  that the transport does not close before they are;
* a peer that goes away costs its connection and nothing else; `stopProducing` never raises.

Guards against: a FileDescriptor never resumes a streaming producer that did not `write`. A producer
that bypasses the transport must therefore be a pull producer, which is resumed each time the socket
is writable with an empty buffer. The first resume comes from inside `registerProducer`: it only
starts watching the socket. A producer is registered only while something is queued, since a TLS
transport would poll an idle pull producer for ever, and no transport closes while it has a
producer.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer, IPushProducer
from zope.interface import implementer

from ..syscalls import SystemCalls
from .plain import LayeredTransport, is_plain_socket
from .rate import Pacer
from .read_ahead import ReadAhead
from .regions import FileRegion

_TURN_BUDGET: Final = 4 << 20
_IMMEDIATE_BUDGET: Final = 1 << 20
_WRITE_SIZE: Final = 256 << 10
_SMALL: Final = 64 << 10
_MORE: Final = getattr(socket, "MSG_MORE", 0)
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW)
_TRANSIENT = (errno.ENOBUFS, errno.ENOMEM)
_PEER_GONE = (
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EBADF,
)


class _PeerGone(Exception):
    """Sending failed because of the socket, not of the disk."""


class _ThreadedRegion(FileRegion):
    """A region that is read in threads."""

    __slots__ = ()


@implementer(IPushProducer)
class RegionProducer:
    """Sends bytes and file regions on one transport, in order.

    To hold it back, use it as an IPushProducer. Where it has a pacer, only the pacer may do so.

    @param transport: any ITransport that is an IConsumer.
    @param failed: called with the OSError when a region could not be sent in full. The connection
        cannot be used any more and must be dropped.
    @param sent: called with the number of region bytes each time some were given to the transport.
    @param drained: called when everything queued has been given to the transport; not if a plain
        socket took all of it inside L{send}.
    @param progressed: called when a slow peer has taken some of what was queued.
    @param pacer: pauses this producer while region bytes have to wait; may be set at any time.
    @param in_thread: reads regions of disks without a descriptor in threads; None to read them
        here, for disks that are in memory.
    @param system: the system calls.
    @param seen_empty: everything that others have written to the transport was sent.
    """

    def __init__(
        self,
        transport: Any,
        failed: Callable[[OSError], None],
        *,
        sent: Callable[[int], None] = lambda count: None,
        drained: Callable[[], None] = lambda: None,
        progressed: Callable[[], None] = lambda: None,
        pacer: Pacer | None = None,
        in_thread: Callable[..., Deferred[Any]] | None = None,
        system: SystemCalls,
        seen_empty: bool = False,
    ) -> None:
        self.pacer = pacer
        self._transport = transport
        self._failed = failed
        self._sent = sent
        self._drained = drained
        self._progressed = progressed
        self._system = system
        self._queue: deque[bytes | memoryview | FileRegion] = deque()
        self._in_memory = 0
        self._seen_empty = seen_empty
        self._paused = False
        self._stopped = False
        self._can_sendfile = True
        self._sink: _SocketSink | _TransportSink | None = None
        self._read_ahead = ReadAhead(in_thread, self._was_read) if in_thread is not None else None

    @property
    def seen_empty(self) -> bool:
        """Whether everything that others have written to the transport was sent."""
        return self._seen_empty

    @property
    def pending(self) -> int:
        """How many items are queued and not completely sent."""
        return len(self._queue)

    @property
    def waiting(self) -> bool:
        """Whether the peer, or the transport, has not yet taken everything that was sent."""
        return self._sink is not None

    @property
    def pending_bytes(self) -> int:
        """How many bytes the queue holds in memory; regions do not count, read or not."""
        return self._in_memory

    def send(self, items: Sequence[bytes | FileRegion]) -> None:
        """Queue C{items}; they are sent after everything queued before."""
        if self._stopped:
            return
        if len(items) == 1 and isinstance(items[0], bytes):
            self.send_view(items[0])
            return
        for item in items:
            if isinstance(item, bytes):
                self._in_memory += len(item)
            elif self._must_be_read_ahead(item):
                item = _ThreadedRegion(*item)  # noqa: PLW2901
                assert self._read_ahead is not None
                self._read_ahead.add(item)
            self._queue.append(item)
        self._start()

    def send_view(self, view: bytes | memoryview) -> None:
        """Send the bytes of C{view}, copying only what has to wait."""
        if self._stopped:
            return
        try_send = self.direct_send()
        if try_send is None:
            self._queue_copy(view)
        else:
            try_send(view)

    def direct_send(self) -> Callable[[bytes | memoryview], bool] | None:
        """A fast L{send_view}, if the next bytes may go to the socket at once; else None.

        @return: a function that sends bytes, and returns whether all of them were taken. It may be
            called again until it returns False, or anything else is called here.
        """
        idle = not self._queue and self._sink is None and not self._paused and not self._stopped
        if not idle or not self._seen_empty or not is_plain_socket(self._transport):
            return None
        send, handle = self._system.send, self._transport.getHandle()

        def try_send(view: bytes | memoryview) -> bool:
            try:
                taken: int = send(handle, view, 0)
            except OSError as error:
                if not isinstance(error, BlockingIOError) and error.errno not in _TRANSIENT:
                    self._lose_peer()
                    return False
                taken = 0
            if taken == len(view):
                return True
            self._queue_copy(view[taken:])
            return False

        return try_send

    def _queue_copy(self, view: bytes | memoryview) -> None:
        """Queue a copy."""
        self._queue.append(bytes(view))
        self._in_memory += len(view)
        self._start()

    def pauseProducing(self) -> None:
        """Send nothing more until L{resumeProducing}."""
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        if self._sink is not None:
            self._sink.wake()
        else:
            self._start()

    def stopProducing(self) -> None:
        """Drop what is queued, and never send anything again."""
        self._stopped = True
        self._queue.clear()
        self._in_memory = 0
        if self.pacer is not None:
            self.pacer.stop()
        if self._read_ahead is not None:
            self._read_ahead.stop()
        if self._sink is not None:
            self._release()

    # From here on: the registration with the transport, and turns.

    def _start(self) -> None:
        """Begin to send what is queued, unless that has begun, or is not allowed now."""
        if self._sink is not None or self._paused or not self._queue:
            return
        sink: _SocketSink | _TransportSink
        if is_plain_socket(self._transport):
            self._sink = sink = _SocketSink(self)
            if self._seen_empty:
                self._turn(sink, _IMMEDIATE_BUDGET)
                return
        else:
            self._sink = sink = _TransportSink(self)
        sink.register()

    def _release(self) -> None:
        sink, self._sink = self._sink, None
        assert sink is not None
        if sink.registered:
            self._transport.unregisterProducer()

    def _turn(self, sink: _SocketSink | _TransportSink, budget: int) -> None:
        """Send what may be sent now; the sink continues when there is room for more."""
        while self._queue and budget > 0 and not self._paused and sink.has_room():
            if (reading := self._reading(self._queue[0])) is not None:
                reading.wait()
                if not sink.registered:
                    sink.register()
                return
            if (count := self._allowed(budget)) == 0:
                return
            try:
                budget -= self._step(sink, count)
            except BlockingIOError:
                break
            except _PeerGone:
                self._lose_peer()
                return
            except OSError as error:
                self.stopProducing()
                self._failed(error)
                return
        if self._queue:
            if not self._paused:
                sink.schedule()
        elif self._sink is sink and sink.has_room():
            was_registered = sink.registered
            self._release()
            if was_registered:
                self._drained()

    def _must_be_read_ahead(self, region: FileRegion) -> bool:
        return self._read_ahead is not None and region.data is None and region.disk.fileno() is None

    def _reading(self, item: bytes | memoryview | FileRegion) -> ReadAhead | None:
        """What is still reading the first bytes of C{item}, if it must be waited for."""
        if not isinstance(item, _ThreadedRegion):
            return None
        assert self._read_ahead is not None
        return None if self._read_ahead.is_ready else self._read_ahead

    def _was_read(self) -> None:
        """What was waited for is there."""
        if self._sink is not None and not self._paused:
            self._sink.wake()

    def _lose_peer(self) -> None:
        self.stopProducing()
        self._transport.abortConnection()

    def _allowed(self, budget: int) -> int:
        """How many region bytes this step may send; 0 if the pacer has paused us."""
        if self.pacer is None:
            return budget
        # A header is sent together with its region.
        head = next((item for item in islice(self._queue, 2) if isinstance(item, FileRegion)), None)
        if head is None:
            return budget
        return self.pacer.allowed(min(head.length, budget), self)

    def _step(self, sink: _SocketSink | _TransportSink, count: int) -> int:
        """Send some of the queue's head, at most C{count} region bytes; return how many bytes."""
        head = self._queue[0]
        if not self._by_sendfile(sink, head):
            return self._write(sink, count)
        assert isinstance(head, FileRegion)
        try:
            return self._send_file(sink, head, count)
        except BlockingIOError:
            raise
        except OSError as error:
            self._replace_head(head, error)
            return 0

    def _replace_head(self, head: FileRegion, error: OSError) -> None:
        """Replace a region that cannot be read."""
        if head.on_read_error is None:
            raise error
        self._queue.popleft()
        if isinstance(head, _ThreadedRegion):
            assert self._read_ahead is not None
            self._read_ahead.drop(head.length)
        for item in reversed(head.on_read_error(error, head)):
            self._put_back(item)

    def _send_file(self, sink: _SocketSink | _TransportSink, head: FileRegion, count: int) -> int:
        wanted = min(head.length, count)
        descriptor = head.disk.fileno()
        if descriptor is None:  # a thread has found just now that there is none any more
            return self._write(sink, count)
        try:
            moved: int = self._system.sendfile(
                self._transport.fileno(), descriptor, head.offset, wanted
            )
        except OSError as error:
            if error.errno in _NO_SENDFILE:
                self._can_sendfile = False
                return self._write(sink, count)
            if error.errno in _PEER_GONE:
                # A disk on a network can fail with the same errors: its read raises them here.
                head.disk.read(head.offset, 1)
                raise _PeerGone from None
            raise
        if moved == 0:
            raise OSError(errno.EIO, f"{head.disk.name} is shorter than it was")
        self._region_sent(moved)
        return moved

    def _by_sendfile(
        self, sink: _SocketSink | _TransportSink, item: bytes | memoryview | FileRegion
    ) -> bool:
        return (
            sink.plain
            and self._can_sendfile
            and isinstance(item, FileRegion)
            and item.data is None
            and not isinstance(item, _ThreadedRegion)
            and item.length > _SMALL
            and item.disk.fileno() is not None
        )

    def _write(self, sink: _SocketSink | _TransportSink, count: int) -> int:
        """Write the head and small items after it in one piece; return how many bytes."""
        pieces: list[bytes | memoryview] = []
        size = moved = 0
        while self._queue and size < _WRITE_SIZE:
            head = self._queue[0]
            if not isinstance(head, FileRegion):
                pieces.append(head)
                size += len(head)
                self._in_memory -= len(head)
                self._queue.popleft()
                continue
            length = min(head.length, count - moved, _WRITE_SIZE - size)
            if length <= 0 or (pieces and (head.length > _SMALL or self._reading(head))):
                break
            try:
                piece = self._read(head, length)
            except OSError as error:
                self._replace_head(head, error)
                continue
            pieces.append(piece)
            length = len(piece)
            size += length
            moved += length
            self._shorten_head(length)
        if pieces:
            sink.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if moved:
            self._count_sent(moved)
        return size

    def _read(self, head: FileRegion, length: int) -> bytes | memoryview:
        """The next bytes of a region, at least one and at most C{length}."""
        if head.data is not None:
            return head.data[:length]
        if isinstance(head, _ThreadedRegion):
            assert self._read_ahead is not None
            return self._read_ahead.take(length)
        return head.disk.read(head.offset, length)

    def _send_to_socket(self, data: bytes | memoryview, flags: int) -> int:
        """Give bytes to the socket; return how many it took."""
        try:
            taken: int = self._system.send(self._transport.getHandle(), data, flags)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in _TRANSIENT:
                raise BlockingIOError(errno.EAGAIN, error.strerror) from None
            raise _PeerGone from None
        return taken

    def _put_back(self, rest: bytes | memoryview) -> None:
        """Put C{rest}, which could not be sent yet, back at the queue's head."""
        self._queue.appendleft(rest)
        self._in_memory += len(rest)

    def _region_sent(self, moved: int) -> None:
        self._shorten_head(moved)
        self._count_sent(moved)

    def _shorten_head(self, moved: int) -> None:
        head = self._queue.popleft()
        assert isinstance(head, FileRegion)
        if moved < head.length:
            self._queue.appendleft(head.after(moved))

    def _count_sent(self, moved: int) -> None:
        if self.pacer is not None:
            self.pacer.spend(moved)
        self._sent(moved)


@implementer(IPullProducer)
class _SocketSink:
    """Sends on a plain socket past its transport, which only reports when the socket is writable.

    It is registered once the socket takes no more, and resumed each time that it can take more.
    """

    plain = True

    def __init__(self, producer: RegionProducer) -> None:
        self.registered = False
        self._producer = producer
        self._full = False
        self._registering = False

    def register(self) -> None:
        self.registered = self._registering = True
        transport = self._producer._transport
        transport.registerProducer(self, False)
        self._registering = False
        if self._producer._sink is self:
            transport.startWriting()

    def has_room(self) -> bool:
        return not self._full

    def write(self, data: bytes | memoryview) -> None:
        producer = self._producer
        queue = producer._queue
        # What follows is to leave in the same TCP segment.
        more = _MORE if queue and producer._by_sendfile(self, queue[0]) else 0
        try:
            taken = producer._send_to_socket(data, more)
        except BlockingIOError:
            taken = 0
        if taken < len(data):
            self._full = True
            producer._put_back(memoryview(data)[taken:])

    def schedule(self) -> None:
        if not self.registered:
            self.register()
        else:
            self._producer._transport.startWriting()

    wake = schedule

    def resumeProducing(self) -> None:
        """The socket is writable, or this is the call from inside registerProducer."""
        if not self._registering:
            self._producer._seen_empty = True
            self._full = False
            self._producer._progressed()
            self._producer._turn(self, _TURN_BUDGET)

    def stopProducing(self) -> None:
        """The connection is lost."""
        self._producer._sink = None
        self._producer.stopProducing()


@implementer(IPushProducer)
class _TransportSink:
    """Writes to any other transport until that pauses it."""

    plain = False

    def __init__(self, producer: RegionProducer) -> None:
        self.registered = False
        self._producer = producer
        self._full = False

    def register(self) -> None:
        self.registered = True
        self._producer._transport.registerProducer(self, True)
        if self._producer._sink is self:
            self.wake()

    def has_room(self) -> bool:
        return not self._full

    def write(self, data: bytes | memoryview) -> None:
        transport = self._producer._transport
        # Our own TLS takes the bytes before it returns; others may keep what they are given.
        transport.write(data if isinstance(transport, LayeredTransport) else bytes(data))

    def schedule(self) -> None:
        """Nothing to do: the transport resumes us when it has room."""

    def wake(self) -> None:
        # A transport does not resume a push producer that it did not pause.
        self._producer._turn(self, sys.maxsize)

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        self._full = False
        self._producer._progressed()
        self._producer._turn(self, sys.maxsize)

    def stopProducing(self) -> None:
        self._producer._sink = None
        self._producer.stopProducing()
