"""Connections whose messages are points, and the endpoints that make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blockmig.server import ServerConnection
from blockmig.transport import client_endpoint, server_endpoint
from tests.proof.launcher.messages import Dialogue
from tests.proof.volatile import Points


class _Foreign:
    """A transport that blockmig does not know, around one that it would."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class WatchedConnection:
    """Makes each message of one connection a point.

    @param is_server: this end is the server's.
    """

    def __init__(self, points: Points, protocol: Any, is_server: bool, foreign: bool) -> None:
        self._points = points
        self._dialogue = dialogue = Dialogue()
        streams = (dialogue.from_client, dialogue.from_server)
        self._incoming, self._outgoing = streams if is_server else reversed(streams)
        self._foreign = foreign
        self._written = self._sent = 0
        self._due: list[tuple[int, str, int]] = []
        self.descriptor = -1
        self._lose, protocol.connectionLost = protocol.connectionLost, self._lost
        self._connect, protocol.makeConnection = protocol.makeConnection, self._connected
        if isinstance(protocol, ServerConnection):
            self._enter, protocol._enter = protocol._enter, self._entered
        else:
            self._receive, protocol.dataReceived = protocol.dataReceived, self._received

    def _entered(self, phase: Any) -> None:
        """Of a server's connection: what comes goes to its phase, by the transport or past it."""
        self._receive, phase.dataReceived = phase.dataReceived, self._received
        # What comes past the transport, in a buffer: the messages of it one by one, too.
        phase.bufferReceived = lambda view: self._received(bytes(view))
        self._move, phase.payload_moved = phase.payload_moved, self._moved
        self._enter(phase)

    def _connected(self, transport: Any) -> None:
        self._write, transport.write = transport.write, self._writing
        self._to_kernel, transport.writeSomeData = transport.writeSomeData, self._to_kernel_some
        self.descriptor = transport.fileno()
        self._connect(_Foreign(transport) if self._foreign else transport)

    def _lost(self, *reason: Any) -> None:
        self.descriptor = -1
        self._lose(*reason)

    def _received(self, data: bytes) -> None:
        for piece, name in self._incoming.cut(data):
            if name is None:
                self._receive(piece)
            else:
                with self._points.around(f"{self._dialogue.export} in: {name}"):
                    self._receive(piece)

    def _moved(self, count: int) -> None:
        name = self._incoming.moved(count)
        if name is None:
            self._move(count)
        else:
            with self._points.around(f"{self._dialogue.export} in: {name}"):
                self._move(count)

    def _writing(self, data: bytes) -> None:
        for piece, name in self._outgoing.cut(data):
            if name is not None:
                label = f"{self._dialogue.export} out: {name}"
                number = self._points.before(label)
                self._due.append((self._written + len(piece), label, number))
            self._written += len(piece)
            self._write(piece)

    def _to_kernel_some(self, data: bytes) -> Any:
        count = self._to_kernel(data)
        if isinstance(count, int) and count > 0:
            self._sent += count
            while self._due and self._due[0][0] <= self._sent:
                _, label, number = self._due.pop(0)
                self._points.after(label, number)
        return count

    def send(self, handle: Any, data: bytes, flags: int) -> None:
        """Give bytes to the kernel past the transport, message by message."""
        for piece, name in self._outgoing.cut(data):
            if name is None:
                _send_all(handle, piece, flags)
            else:
                with self._points.around(f"{self._dialogue.export} out: {name}"):
                    _send_all(handle, piece, flags)

    def went_past(self, count: int) -> None:
        """So many bytes were given to the kernel without the transport."""
        name = self._outgoing.moved(count)
        if name is not None:
            with self._points.around(f"{self._dialogue.export} out: {name}"):
                pass


def _send_all(handle: Any, data: bytes, flags: int) -> None:
    """Send all of it: half a message would not be a point."""
    handle.settimeout(10)
    try:
        handle.sendall(data, flags)
    finally:
        handle.setblocking(False)


class _Factory:
    """Watches every connection of another factory."""

    def __init__(self, watch: Watch, factory: Any, is_server: bool) -> None:
        self._watch = watch
        self._factory = factory
        self._is_server = is_server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._factory, name)

    def buildProtocol(self, address: Any) -> Any:
        protocol = self._factory.buildProtocol(address)
        if protocol is not None:
            self._watch.add(protocol, self._is_server)
        return protocol


class _Endpoint:
    """Watches every connection of another endpoint."""

    def __init__(self, watch: Watch, endpoint: Any, watched: bool = True) -> None:
        self._watch = watch
        self._endpoint = endpoint
        self._watched = watched

    def connect(self, factory: Any) -> Any:
        return self._endpoint.connect(_Factory(self._watch, factory, False))

    def listen(self, factory: Any) -> Any:
        def listening(port: Any) -> Any:
            self._watch.notify("listening")
            return port

        if self._watched:
            factory = _Factory(self._watch, factory, True)
        return self._endpoint.listen(factory).addCallback(listening)


class Watch:
    """All connections of one process."""

    def __init__(self, points: Points, foreign: bool, notify: Callable[[str], None]) -> None:
        self._points = points
        self._foreign = foreign
        self._all: list[WatchedConnection] = []
        self.notify = notify

    def add(self, protocol: Any, is_server: bool) -> None:
        self._all.append(WatchedConnection(self._points, protocol, is_server, self._foreign))

    def _watched(self, descriptor: int) -> WatchedConnection | None:
        # The newest, since descriptors are used again; none for a server's client.
        found = (one for one in reversed(self._all) if one.descriptor == descriptor)
        return next(found, None)

    def sent(self, descriptor: int, count: int) -> None:
        """By sendfile(2)."""
        watched = self._watched(descriptor)
        if watched is not None:
            watched.went_past(count)

    def send(self, handle: Any, data: bytes, flags: int) -> None:
        """By send(2)."""
        watched = self._watched(handle.fileno())
        if watched is not None:
            watched.send(handle, data, flags)
        else:
            _send_all(handle, data, flags)

    def server_endpoint(self, reactor: Any, text: str) -> Any:
        return _Endpoint(self, server_endpoint(reactor, text))

    def clients_endpoint(self, reactor: Any, text: str) -> Any:
        """That of a server whose clients are not watched."""
        return _Endpoint(self, server_endpoint(reactor, text), watched=False)

    def client_endpoint(self, reactor: Any, uri: Any) -> Any:
        return _Endpoint(self, client_endpoint(reactor, uri))
