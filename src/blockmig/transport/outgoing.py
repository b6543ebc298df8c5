"""What a connection sends: bytes and file regions, in one queue.

Owns the order of everything that goes out on one connection. On a plain socket a region goes from
the page cache to the wire by sendfile(2); on any other transport it is read and written.

Rules:

* the queue is the only writer: nothing of it may be overtaken, and another write would land inside
  a payload, so the protocol sends everything through here;
* sendfile only when the transport has nothing buffered, and only on a transport that is a plain
  socket at that moment (`plain`);
* the transport is given no more than it has room for, so that what a slow peer does not take stays
  in the queue, whose length its owner sees;
* a turn of the reactor sends a bounded number of bytes;
* a region that cannot be sent in full (the disk shrank, a read failed) breaks the promise of the
  header before it: `failed` is called, once, and nothing more is sent;
* a peer that goes away costs its connection and nothing else; `stopProducing` never raises.

Guards against: a FileDescriptor never resumes a streaming producer that did not `write`, so that
one which moves bytes behind the transport's back must be a pull producer towards it, resumed each
time the socket is writable with nothing buffered. The first such resume comes from inside
`registerProducer`, perhaps with a header still buffered: then the socket is only watched. A
producer is registered only while something is queued, since a TLS transport would poll an idle
pull producer for ever, and no transport closes while it has one.
"""

from __future__ import annotations

import errno
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.internet.interfaces import (
    IDelayedCall,
    IPullProducer,
    IPushProducer,
    IReactorTime,
)
from zope.interface import implementer

from ..storage import SYSTEM, SystemCalls
from .plain import is_plain_socket
from .rate import RateLimiter
from .regions import FileRegion

_TURN: Final = 4 << 20
_CHUNK: Final = 256 << 10
_SMALL: Final = 64 << 10
_WRITE_AHEAD: Final = 64 << 10
# Seconds, so that a limit that was changed meanwhile is soon kept.
_LONGEST_WAIT: Final = 0.25
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EOVERFLOW)
_PEER_GONE = (
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EBADF,
)


class _PeerGone(Exception):
    """The socket, not the disk, is why nothing can be sent."""


@implementer(IPushProducer)
class RegionProducer:
    """Sends bytes and file regions on one transport, in order.

    Somebody who wants to hold it back uses it as an IPushProducer.

    @param transport: where to; any ITransport that is an IConsumer.
    @param failed: called with the OSError when a region could not be sent in full. The connection
        is then out of step and must be dropped.
    @param sent: called with the number of region bytes each time some were given to the transport.
    @param drained: called whenever everything queued has been given to the transport.
    @param clock: needed with C{limiter}.
    @param limiter: the limit that region bytes are sent under; may be set and changed at any time.
    """

    def __init__(
        self,
        transport: Any,
        failed: Callable[[OSError], None],
        *,
        sent: Callable[[int], None] = lambda count: None,
        drained: Callable[[], None] = lambda: None,
        clock: IReactorTime | None = None,
        limiter: RateLimiter | None = None,
        system: SystemCalls = SYSTEM,
    ) -> None:
        self.limiter = limiter
        self._transport = transport
        self._failed = failed
        self._sent = sent
        self._drained = drained
        self._clock = clock
        self._system = system
        self._queue: deque[bytes | FileRegion] = deque()
        self._buffered = 0
        self._paused = False
        self._stopped = False
        self._can_sendfile = True
        self._feed: _PullFeed | _PushFeed | None = None
        self._waiting: IDelayedCall | None = None

    @property
    def pending(self) -> int:
        """How many items are queued and not wholly sent."""
        return len(self._queue)

    def send(self, items: Iterable[bytes | FileRegion]) -> None:
        """Queue C{items}; they are sent behind everything queued before."""
        if self._stopped:
            return
        self._queue.extend(items)
        if self._feed is None and not self._paused:
            self._write_ahead()
            if self._queue:
                self._register()

    def _write_ahead(self) -> None:
        """A few bytes with nothing before them need no turn."""
        pieces: list[bytes] = []
        while self._queue and isinstance(head := self._queue[0], bytes):
            if self._buffered >= _WRITE_AHEAD:
                break
            pieces.append(head)
            self._buffered += len(head)
            self._queue.popleft()
        if pieces:
            self._transport.write(b"".join(pieces))

    def pauseProducing(self) -> None:
        """Send nothing more until L{resumeProducing}."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Go on."""
        self._paused = False
        if self._feed is not None:
            self._feed.wake()
        else:
            self.send(())

    def stopProducing(self) -> None:
        """Forget what is queued, and send nothing ever again."""
        self._stopped = True
        self._queue.clear()
        self._stop_waiting()
        if self._feed is not None:
            self._unregister()

    # From here on: the registration with the transport, and turns.

    def _register(self) -> None:
        plain = is_plain_socket(self._transport)
        feed = _PullFeed(self) if plain else _PushFeed(self)
        self._feed = feed
        self._transport.registerProducer(feed, feed.streaming)
        if self._feed is feed:
            feed.begin()

    def _unregister(self) -> None:
        self._feed = None
        self._transport.unregisterProducer()

    def _turn(self, feed: _PullFeed | _PushFeed) -> None:
        """Send what may be sent now; the feed is woken again when there is room for more."""
        budget = feed.turn
        while self._queue and budget > 0 and not self._paused and feed.has_room():
            if (count := self._allowed(budget)) == 0:
                return
            try:
                moved = self._step(feed, count)
            except BlockingIOError:
                break
            except _PeerGone:
                self.stopProducing()
                self._transport.abortConnection()
                return
            except OSError as error:
                self.stopProducing()
                self._failed(error)
                return
            budget -= moved
        if self._queue:
            if not self._paused:
                feed.again()
        elif self._feed is feed and feed.has_room():
            self._unregister()
            self._drained()

    def _allowed(self, budget: int) -> int:
        """How many region bytes this step may send; 0 while the limit wants us to wait."""
        limiter = self.limiter
        head = self._queue[0]
        if limiter is None or isinstance(head, bytes):
            return budget
        wanted = min(head.length, budget)
        allowed = limiter.allowed(wanted)
        if not allowed and self._waiting is None:
            assert self._clock is not None
            self._waiting = self._clock.callLater(
                min(limiter.delay(wanted), _LONGEST_WAIT), self._waited
            )
        return allowed

    def _waited(self) -> None:
        self._waiting = None
        if self._feed is not None and not self._paused:
            self._feed.wake()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _step(self, feed: _PullFeed | _PushFeed, count: int) -> int:
        """Send some of the queue's head, at most C{count} region bytes; how many were sent."""
        head = self._queue[0]
        if isinstance(head, bytes) or head.length <= _SMALL or not feed.plain:
            return self._write(feed, count)
        if not self._can_sendfile or head.disk.fileno() is None:
            return self._write(feed, count)
        wanted = min(head.length, count)
        try:
            moved: int = self._system.sendfile(
                self._transport.fileno(), head.disk.fileno(), head.offset, wanted
            )
        except OSError as error:
            if error.errno in _NO_SENDFILE:
                self._can_sendfile = False
                return self._write(feed, count)
            if error.errno in _PEER_GONE:
                # A disk behind a network fails with the same errors: it raises its own here.
                head.disk.read(head.offset, 1)
                raise _PeerGone from None
            raise
        if moved == 0:
            raise OSError(errno.EIO, f"{head.disk.name} is shorter than it was")
        self._advance(moved)
        return moved

    def _write(self, feed: _PullFeed | _PushFeed, count: int) -> int:
        """Write the head and what is small behind it as one piece of bytes."""
        pieces: list[bytes] = []
        size = moved = 0
        while self._queue and size < _CHUNK:
            head = self._queue[0]
            if isinstance(head, bytes):
                pieces.append(head)
                size += len(head)
                self._queue.popleft()
                continue
            length = min(head.length, count - moved, _CHUNK - size)
            if length <= 0 or (pieces and head.length > _SMALL):
                break
            pieces.append(head.disk.read(head.offset, length))
            size += length
            moved += length
            self._advance(length)
        feed.wrote()
        self._buffered = size
        self._transport.write(b"".join(pieces))
        return moved

    def _advance(self, moved: int) -> None:
        head = self._queue.popleft()
        assert isinstance(head, FileRegion)
        if moved < head.length:
            self._queue.appendleft(head.after(moved))
        if self.limiter is not None:
            self.limiter.spend(moved)
        self._sent(moved)


@implementer(IPullProducer)
class _PullFeed:
    """Towards a plain socket: resumed each time it is writable with nothing buffered."""

    plain = True
    streaming = False
    turn = _TURN

    def __init__(self, producer: RegionProducer) -> None:
        self._producer = producer
        self._registered = False
        self._writable = False

    def begin(self) -> None:
        self._registered = True
        self.again()

    def has_room(self) -> bool:
        return self._writable

    def wrote(self) -> None:
        self._writable = False

    def again(self) -> None:
        self._producer._transport.startWriting()

    wake = again

    def resumeProducing(self) -> None:
        """The socket is writable, or this is the call from inside registerProducer."""
        if self._registered:
            self._writable = True
            self._producer._buffered = 0
            self._producer._turn(self)

    def stopProducing(self) -> None:
        """The connection is lost."""
        self._producer._feed = None
        self._producer.stopProducing()


@implementer(IPushProducer)
class _PushFeed:
    """Towards any other transport: writes until told to pause."""

    plain = False
    streaming = True
    # Nobody resumes a push producer that was not paused.
    turn = sys.maxsize

    def __init__(self, producer: RegionProducer) -> None:
        self._producer = producer
        self._full = False

    def begin(self) -> None:
        self.wake()

    def has_room(self) -> bool:
        return not self._full

    def wrote(self) -> None:
        """The transport says by itself when it has had enough."""

    def again(self) -> None:
        """Nothing to do: the transport resumes us when it wants more."""

    def wake(self) -> None:
        self._producer._turn(self)

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        self._full = False
        self._producer._buffered = 0
        self._producer._turn(self)

    def stopProducing(self) -> None:
        self._producer._feed = None
        self._producer.stopProducing()
