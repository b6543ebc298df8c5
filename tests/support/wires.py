"""A relay on the reactor that counts what passes between two ends, and breaks at a given byte.

All connections are one wire with one count, of the bytes of both directions: what an attempt says
on its connections, one after another, then has the same count in every run. At the moment of the
break nothing else runs on the reactor, so that the state of both sides can be looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from enum import StrEnum
from typing import Any

from twisted.internet import reactor
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer


class Break(StrEnum):
    """What happens behind the last byte that passes."""

    CLOSE = "close"
    """Both ends are closed in good order."""
    RESET = "reset"
    """Both ends are reset."""
    HALF = "half-close"
    """The direction of that byte is closed in good order; the other goes on."""
    STALL = "stall"
    """Nothing passes any more, for ever, not even the end of the connection."""


@implementer(IHalfCloseableProtocol)
class _End(Protocol):
    """One end of one connection; what it gets goes to the other one."""

    transport: Any

    def __init__(self, wires: Wires, number: int, near: bool) -> None:
        self.other: _End | None = None
        self.number = number
        self.near = near
        self.dead = False
        self.lost = False
        self._wires = wires

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        if self.near:
            self.transport.pauseProducing()  # until there is somebody to pass it on to
            self._wires.connect(self)

    def dataReceived(self, data: bytes) -> None:
        if not self.dead:
            self._wires.passes(self, data)

    def readConnectionLost(self) -> None:
        if not self.dead and self.other is not None:
            self.other.transport.loseWriteConnection()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self._wires.ends.discard(self)
        other = self.other
        if other is not None and not other.lost and not self._wires.is_stalled(self):
            if reason.check(ConnectionDone):
                other.transport.loseConnection()
            else:
                other.transport.abortConnection()

    def break_as(self, how: Break) -> None:
        """This end's part of a break."""
        if how == Break.STALL:
            self.dead = True
            self.transport.pauseProducing()
        elif how == Break.CLOSE:
            self.dead = True
            self.transport.loseConnection()
        elif how == Break.RESET:
            self.dead = True
            self._reset_when_sent()

    def _reset_when_sent(self) -> None:
        transport = self.transport
        if not self.lost and (transport.dataBuffer or transport._tempDataBuffer):
            reactor.callLater(0.001, self._reset_when_sent)
        else:
            transport.abortConnection()

    def close_direction(self) -> None:
        """Nothing more from here to the other end."""
        self.dead = True
        if self.other is not None:
            self.other.transport.loseWriteConnection()


class _Far(ClientFactory):
    noisy = False

    def __init__(self, near: _End, far: _End) -> None:
        self._near = near
        self._far = far

    def buildProtocol(self, addr: Any) -> _End:
        near, far = self._near, self._far
        far.other, near.other = near, far
        reactor.callLater(0, self._connected)
        return far

    def _connected(self) -> None:
        if self._near.lost:
            self._far.transport.loseConnection()
        elif not self._near.dead:
            self._near.transport.resumeProducing()

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._near.transport.abortConnection()


class Wires(Factory):
    """The wire.

    @param port: where to, on this host.
    @param cuts: numbers of bytes, each counted from the cut before; it is whole after the last.
    @param how: what a cut is.
    @param whole: all connections are cut, not only the one that the byte passed on.
    @param look: called at every cut, and if C{often} whenever something passes.
    @ivar passed: bytes.
    @ivar messages: [number of the connection, from the sender, bytes] of everything that passed;
        what follows one another in the same direction of the same connection is one.
    """

    noisy = False

    def __init__(
        self,
        port: int,
        cuts: Iterable[int] = (),
        how: Break = Break.CLOSE,
        whole: bool = True,
        look: Callable[[], None] | None = None,
        often: bool = False,
    ) -> None:
        self.passed = 0
        self.cut = 0
        self.connections = 0
        self.messages: list[list[Any]] = []
        self.ends: set[_End] = set()
        self._to = port
        self._cuts = list(cuts)
        self._since = 0
        self._how = how
        self._whole = whole
        self._look = look
        self._often = often
        self._stalled: set[int] = set()
        self._listening = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.port: int = self._listening.getHost().port

    def buildProtocol(self, addr: Any) -> _End:
        self.connections += 1
        return _End(self, self.connections, near=True)

    def connect(self, near: _End) -> None:
        """A connection came: it is one when the other end is there too."""
        far = _End(self, near.number, near=False)
        self.ends |= {near, far}
        reactor.connectTCP("127.0.0.1", self._to, _Far(near, far))

    def is_stalled(self, end: _End) -> bool:
        """Whether what becomes of one end must not be seen at the other."""
        return end.number in self._stalled

    def passes(self, end: _End, data: bytes) -> None:
        """Something comes from C{end}."""
        over = False
        if self._cuts:
            data = data[: self._cuts[0] - self._since]
            self._since += len(data)
            over = self._since == self._cuts[0]
        self.passed += len(data)
        last = self.messages[-1] if self.messages else None
        if last is not None and last[:2] == [end.number, end.near]:
            last[2] += len(data)
        else:
            self.messages.append([end.number, end.near, len(data)])
        assert end.other is not None
        end.other.transport.write(data)
        if over:
            self._cuts.pop(0)
            self._since = 0
            self.cut += 1
            self._break(end)
        if self._look is not None and (over or self._often):
            self._look()

    def _break(self, at: _End) -> None:
        ends = [end for end in self.ends if self._whole or end.number == at.number]
        if self._how == Break.STALL:
            self._stalled |= {end.number for end in ends}
        for end in ends:
            if self._how != Break.HALF:
                if end.transport is not None:
                    end.break_as(self._how)
                end.dead = True
            elif end.near == at.near and end.other is not None and not end.dead:
                end.close_direction()

    async def close(self) -> None:
        """Cut everything that is left."""
        self._stalled |= {end.number for end in self.ends}
        await self._listening.stopListening()
        for end in list(self.ends):
            if end.transport is not None and not end.lost:
                end.transport.abortConnection()


@contextlib.asynccontextmanager
async def wires(port: int, *arguments: Any, **named: Any) -> AsyncIterator[Wires]:
    """A wire for a while."""
    made = Wires(port, *arguments, **named)
    try:
        yield made
    finally:
        await made.close()
