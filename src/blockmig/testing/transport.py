"""One end of a connection in memory, as the protocol there sees it.

Owns what was written and has not arrived, and the producer that is held back meanwhile. What is
delivered when, and who is notified of an end, is the connection's affair (`network`).

Rules, which are those of Twisted's sockets:

* no call made on a transport calls its protocol from inside: an end is reported by the next pump;
* after C{loseConnection} nothing is received, and what was written arrives; the connection ends
  when all of it has, and its producer is done;
* after C{abortConnection} nothing is received, and nothing more arrives;
* a push producer is paused while 64 KiB or more wait, and resumed when nothing does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IAddress, IConsumer, IProtocol, IPushProducer, ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

_FULL: Final = 64 << 10


class Direction(Enum):
    """A way over a connection."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


@implementer(IAddress)
@dataclass(frozen=True)
class MemoryAddress:
    """Where somebody is in a L{MemoryNetwork}.

    @ivar name: the name that is listened at; or what the network calls a client.
    """

    name: str

    def __str__(self) -> str:
        return f"memory:{self.name}"


@implementer(ITransport, IConsumer, IPushProducer)
class MemoryTransport:
    """One end of a connection.

    @param host: where this end is.
    @param peer: where the other end is.
    @ivar disconnecting: C{loseConnection} was called.
    @ivar gone: the protocol was told that the connection is lost.
    @ivar protocol: the protocol, once the connection is made.
    """

    def __init__(self, host: IAddress, peer: IAddress) -> None:
        self.disconnecting = False
        self.gone = False
        self.reason: Exception | None = None
        self._host = host
        self._peer = peer
        self.protocol: IProtocol | None = None
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._paused = False
        self._producer: Any = None
        self._streaming = True
        self._holds_back = False

    # For the protocol.

    def write(self, data: bytes) -> None:
        """Send C{data}, which arrives as one piece."""
        if not data or self.gone:
            return
        self._pieces.append(bytes(data))
        self._waiting += len(data)
        if self._producer is not None and self._streaming and self._waiting >= _FULL:
            self._hold_back()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send them as one piece."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """End the connection when all that was written has arrived."""
        if self.reason is None:
            self.disconnecting = True
            self.reason = ConnectionDone()

    def abortConnection(self) -> None:
        """End the connection; what has not arrived never will."""
        if not self.gone:
            self.disconnecting = True
            self.reason = ConnectionAborted()

    def getPeer(self) -> IAddress:
        """Where the other end is."""
        return self._peer

    def getHost(self) -> IAddress:
        """Where this end is."""
        return self._host

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See L{IConsumer.registerProducer}.

        @raise RuntimeError: there is one.
        """
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        if self.gone:
            producer.stopProducing()
            return
        self._producer, self._streaming, self._holds_back = producer, streaming, False
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """See L{IConsumer.unregisterProducer}."""
        self._producer = None

    def pauseProducing(self) -> None:
        """Let nothing arrive until L{resumeProducing}."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Let arrive what comes."""
        self._paused = False

    def stopProducing(self) -> None:
        """Let nothing arrive ever again."""
        self.loseConnection()

    # For tests, and for the connection.

    def discard(self) -> None:
        """Lose what was written and has not arrived."""
        self._pieces.clear()
        self._waiting = 0

    @property
    def connected(self) -> bool:
        """Whether the connection is there still, as Twisted's transports say it."""
        return not self.gone

    @property
    def _aborted(self) -> bool:
        return isinstance(self.reason, ConnectionAborted)

    @property
    def listens(self) -> bool:
        """Whether it will ever again receive something."""
        return not self.gone and self.reason is None

    @property
    def receives(self) -> bool:
        """Whether it receives something now."""
        return self.listens and not self._paused

    @property
    def has_more(self) -> bool:
        """Whether there is a piece to be sent."""
        if not self._pieces and self._producer is not None and not self._streaming:
            self._producer.resumeProducing()
        return bool(self._pieces)

    @property
    def is_over(self) -> bool:
        """Whether it has nothing more to send, and is to be told that it is gone."""
        if self.gone or self.reason is None:
            return False
        return self._aborted or (not self.has_more and self._producer is None)

    def connect(self, protocol: IProtocol | None) -> None:
        """The connection is made; without a protocol it is closed again."""
        self.protocol = protocol
        if protocol is None:
            self.loseConnection()
        else:
            protocol.makeConnection(self)

    def take(self) -> bytes:
        """The next piece is on its way."""
        piece = self._pieces.popleft()
        self._waiting -= len(piece)
        return piece

    def receive(self, piece: bytes) -> None:
        """A piece arrives."""
        assert self.protocol is not None
        self.protocol.dataReceived(piece)

    def go_on(self) -> None:
        """Resume the producer if there is nothing left to be sent."""
        if self._holds_back and not self._pieces and self._producer is not None:
            self._holds_back = False
            self._producer.resumeProducing()

    def lose(self, reason: Exception) -> None:
        """The connection is gone."""
        if self.gone:
            return
        self.gone = True
        self.reason = reason
        self._pieces.clear()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        if self.protocol is not None:
            self.protocol.connectionLost(Failure(reason))

    def _hold_back(self) -> None:
        if not self._holds_back:
            self._holds_back = True
            self._producer.pauseProducing()
