"""A network in memory: endpoints by name, and connections that break and stall when told to.

Owns who listens, the connections, and the order in which things happen.

Rules:

* nothing arrives but from inside L{MemoryNetwork.pump}, one piece in each direction of each
  connection in a turn; what is due by the clock happens between turns;
* a piece is what was written in one call; it arrives whole, unless it is cut;
* what a protocol raises comes out of the pump: in a test nobody else would hear of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import (
    CannotListenError,
    ConnectingCancelledError,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    NoProtocol,
)
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from .transport import Direction, MemoryAddress, MemoryTransport

T = TypeVar("T")

_MOST_TURNS: Final = 1_000_000
_ADDRESS_IN_USE: Final = "somebody listens there"


class MemoryConnection:
    """A connection, from its making to its end.

    @ivar name: the name that was listened at.
    @ivar client: the end of whoever connected.
    @ivar server: the end of whoever listens.
    @ivar pieces: how many have arrived, in both directions.
    @ivar bytes: how many have arrived, in both directions.
    """

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        here, there = MemoryAddress(f"client-{number}"), MemoryAddress(name)
        self.client = MemoryTransport(here, there)
        self.server = MemoryTransport(there, here)
        self.pieces = 0
        self.bytes = 0
        self._stalled: set[Direction] = set()
        self._pieces_left: int | None = None
        self._bytes_left: int | None = None
        self._counted = frozenset(Direction)

    @property
    def is_open(self) -> bool:
        """Whether either end has not yet heard of its end."""
        return not (self.client.gone and self.server.gone)

    def cut(self) -> None:
        """Break it: both ends lose it at once, and what is on its way."""
        self.server.lose(ConnectionLost())
        self.client.lose(ConnectionLost())

    def cut_after(
        self,
        pieces: int | None = None,
        bytes: int | None = None,
        direction: Direction | None = None,
    ) -> None:
        """Break it when so much has arrived from now on, and there is more to come.

        @param pieces: what is written in one call is one; that which is one too many is lost.
        @param bytes: of what is one too many, the first ones still arrive.
        @param direction: count only what goes that way.
        """
        self._pieces_left, self._bytes_left = pieces, bytes
        self._counted = frozenset(Direction) if direction is None else frozenset({direction})

    def stall(self, *directions: Direction) -> None:
        """Let nothing pass, not even an end, until L{resume}; nothing is lost.

        @param directions: which; both where none is given.
        """
        self._stalled |= set(directions or Direction)

    def resume(self, *directions: Direction) -> None:
        """Let pass what was stalled.

        @param directions: which; both where none is given.
        """
        self._stalled -= set(directions or Direction)

    # For the network.

    def connect(self, client: IProtocol, server: IProtocol | None) -> None:
        """Both ends are there."""
        self.server.connect(server)
        self.client.connect(client)

    def turn(self) -> bool:
        """Let one thing happen in each direction; whether anything did."""
        moved = self._move(Direction.TO_SERVER, self.client, self.server)
        return self._move(Direction.TO_CLIENT, self.server, self.client) or moved

    def step(self) -> bool:
        """Let one thing happen in one direction; whether anything did."""
        return self._move(Direction.TO_SERVER, self.client, self.server) or self._move(
            Direction.TO_CLIENT, self.server, self.client
        )

    def _move(self, way: Direction, source: MemoryTransport, target: MemoryTransport) -> bool:
        if source.is_over:
            assert source.reason is not None
            source.lose(source.reason)
            return True
        if way in self._stalled:
            return False
        if source.gone:
            return self._tell_end(source, target)
        if not source.has_more or (target.listens and not target.receives):
            return False
        piece = source.take()
        # Whoever has closed takes what still comes, as a kernel does, and looks at none of it.
        if target.listens:
            self._arrive(way, target, piece)
        source.go_on()
        return True

    @staticmethod
    def _tell_end(source: MemoryTransport, target: MemoryTransport) -> bool:
        if target.gone:
            return False
        clean = isinstance(source.reason, ConnectionDone)
        target.lose(ConnectionDone() if clean else ConnectionLost())
        return True

    def _arrive(self, way: Direction, target: MemoryTransport, piece: bytes) -> None:
        whole = len(piece)
        if way in self._counted:
            piece = self._count(piece)
        if piece:
            self.pieces += 1
            self.bytes += len(piece)
            target.receive(piece)
        if len(piece) < whole:
            self.cut()

    def _count(self, piece: bytes) -> bytes:
        """What of C{piece} still arrives."""
        if self._pieces_left is not None:
            if not self._pieces_left:
                return b""
            self._pieces_left -= 1
        if self._bytes_left is not None:
            piece = piece[: self._bytes_left]
            self._bytes_left -= len(piece)
        return piece


@implementer(IListeningPort)
class _Port:
    """Somebody listens at a name."""

    def __init__(self, network: MemoryNetwork, name: str, factory: IProtocolFactory) -> None:
        self.factory = factory
        self._network = network
        self._name = name

    def startListening(self) -> None:
        """Let clients in.

        @raise CannotListenError: somebody listens there.
        """
        self._network._listen(self._name, self)
        self.factory.doStart()

    def stopListening(self) -> Deferred[None]:
        """Let in no more; those that are there stay."""
        if self._network._stop_listening(self._name, self):
            self.factory.doStop()
        return succeed(None)

    def getHost(self) -> MemoryAddress:
        """The address that clients know."""
        return MemoryAddress(self._name)


@implementer(IStreamServerEndpoint)
class _ServerEndpoint:
    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen; fails with CannotListenError where somebody does."""
        try:
            return succeed(self._network.listen(self._name, protocolFactory))
        except CannotListenError:
            return fail(Failure())


@implementer(IStreamClientEndpoint)
class _ClientEndpoint:
    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect, by the next pump; fails with ConnectionRefusedError where nobody listens."""

        def cancel(connecting: Deferred[IProtocol]) -> None:
            call.cancel()
            connecting.errback(ConnectingCancelledError(MemoryAddress(self._name)))

        connected: Deferred[IProtocol] = Deferred(cancel)
        call = self._network.clock.callLater(
            0, self._network._connect, self._name, protocolFactory, connected
        )
        return connected


class MemoryNetwork:
    """Endpoints that reach each other within one test.

    @param clock: the time; what is given this network's endpoints is given it as its reactor.
    @ivar connections: all that were ever made, in order.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.connections: list[MemoryConnection] = []
        self._ports: dict[str, _Port] = {}
        self._preparing: deque[Callable[[MemoryConnection], object]] = deque()
        self._pumping = False

    def server_endpoint(self, name: str) -> IStreamServerEndpoint:
        """Where to listen."""
        return _ServerEndpoint(self, name)

    def client_endpoint(self, name: str) -> IStreamClientEndpoint:
        """Where to connect to; whether somebody listens there is seen when that is done."""
        return _ClientEndpoint(self, name)

    def listen(self, name: str, factory: IProtocolFactory) -> IListeningPort:
        """Listen at once, as the server endpoint does.

        @raise CannotListenError: somebody listens there.
        """
        port = _Port(self, name, factory)
        port.startListening()
        return port

    def prepare(self, function: Callable[[MemoryConnection], object]) -> None:
        """Have C{function} called with the next connection, before anything is sent over it.

        Called several times, it is one function for each of the next connections.
        """
        self._preparing.append(function)

    def step(self) -> bool:
        """Let one piece arrive, or one end be heard of; whether there was any.

        Other than L{pump} this does not call what is due by the clock. For tests that stop in the
        middle of a conversation.
        """
        return any(connection.step() for connection in self.connections)

    def pump(self) -> None:
        """Let everything happen that happens without time passing.

        @raise AssertionError: it has no end, or this was called from inside itself.
        """
        if self._pumping:
            raise AssertionError("the network is being pumped already")
        self._pumping = True
        try:
            for _ in range(_MOST_TURNS):
                moved = [connection.turn() for connection in self.connections]
                due = self._next_call() <= self.clock.seconds()
                if due:
                    self.clock.advance(0)
                elif not any(moved):
                    return
        finally:
            self._pumping = False
        raise AssertionError("what happens has no end")

    def advance(self, seconds: float) -> None:
        """Let time pass, and happen whatever then does, in its order.

        Other than when the clock is advanced alone, what is sent at one instant arrives before the
        next timer fires.

        @raise AssertionError: see L{pump}.
        """
        end = self.clock.seconds() + seconds
        self.pump()
        while (due := self._next_call()) <= end:
            self.clock.advance(max(0.0, due - self.clock.seconds()))
            self.pump()
        self.clock.advance(max(0.0, end - self.clock.seconds()))
        self.pump()

    def result(self, doing: Deferred[T] | Coroutine[Deferred[Any], Any, T]) -> T:
        """Pump, and give what C{doing} came to, without letting time pass.

        @raise AssertionError: it has no result yet; or see L{pump}.
        @raise Exception: what it failed with.
        """
        deferred = doing if isinstance(doing, Deferred) else Deferred.fromCoroutine(doing)
        results: list[Any] = []
        deferred.addBoth(results.append)
        self.pump()
        if not results:
            raise AssertionError("nothing came of it yet: time must pass, or a thread be run")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        answer: T = results[0]
        return answer

    def _next_call(self) -> float:
        """When the next timer fires."""
        return min((c.getTime() for c in self.clock.getDelayedCalls()), default=float("inf"))

    def _listen(self, name: str, port: _Port) -> None:
        if name in self._ports:
            raise CannotListenError("memory", name, OSError(_ADDRESS_IN_USE))
        self._ports[name] = port

    def _stop_listening(self, name: str, port: _Port) -> bool:
        if self._ports.get(name) is not port:
            return False
        del self._ports[name]
        return True

    def _connect(
        self, name: str, factory: IProtocolFactory, connected: Deferred[IProtocol]
    ) -> None:
        port = self._ports.get(name)
        if port is None:
            connected.errback(ConnectionRefusedError(f"nobody listens at {name!r}"))
            return
        client = factory.buildProtocol(MemoryAddress(name))
        if client is None:
            connected.errback(NoProtocol())
            return
        connection = MemoryConnection(name, len(self.connections) + 1)
        server = port.factory.buildProtocol(connection.server.getPeer())
        self.connections.append(connection)
        if self._preparing:
            self._preparing.popleft()(connection)
        connection.connect(client, server)
        connected.callback(client)
