"""A client for tests of servers: one method for each request, one Deferred for each reply.

Owns one connection to one export. It asks whatever it is told to, also what a server must refuse.

Rules:

* requests go out at once, any number of them before the first reply;
* a reply that tells of an error fails its request with an L{OSError} of that number, and the
  connection lives;
* whatever ends the connection fails all requests that wait.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from ..nbd import (
    ClientHandshake,
    ClientTransmission,
    Command,
    CommandFlag,
    EndOfPayload,
    Export,
    HandshakeRefused,
    Negotiated,
    Payload,
    ProtocolError,
    Reply,
    Request,
)


class NBDClient(Protocol):
    """A client; made by L{connect_client}. Offsets and lengths are in bytes.

    What is returned by methods that ask for something fires when the reply is there. It fails with
    an L{OSError} where that tells of an error; otherwise with the reason for which the connection
    was lost, or the L{blockmig.nbd.ProtocolError} of the server's.

    @param export: the name of the export.
    @ivar export: what the server says of it.
    @ivar lost: whether the connection is gone.
    """

    transport: Any
    export: Export

    def __init__(self, export: str = "") -> None:
        self.lost = False
        self.negotiated: Deferred[NBDClient] = Deferred()
        self._handshake: ClientHandshake | None = ClientHandshake(export)
        self._wire = ClientTransmission()
        self._waiting: dict[int, Deferred[Any]] = {}
        self._payload = b""
        self._broken: Failure | None = None
        self._to_close: list[Deferred[None]] = []

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """That many bytes."""
        return self._ask(Command.READ, offset, length)

    def write(self, offset: int, data: bytes, *, fua: bool = False) -> Deferred[None]:
        """Put C{data} there.

        @param fua: durably.
        """
        flags = _flags(fua=fua)
        return self._ask(Command.WRITE, offset, len(data), flags, data)

    def zero(
        self,
        offset: int,
        length: int,
        *,
        allocate: bool = False,
        fast: bool = False,
        fua: bool = False,
    ) -> Deferred[None]:
        """Have a range read as zeroes.

        @param allocate: keep its space.
        @param fast: only if that is faster than writing.
        @param fua: durably.
        """
        flags = _flags(fua=fua, allocate=allocate, fast=fast)
        return self._ask(Command.WRITE_ZEROES, offset, length, flags)

    def trim(self, offset: int, length: int, *, fua: bool = False) -> Deferred[None]:
        """Say that the content of a range matters no more.

        @param fua: durably.
        """
        return self._ask(Command.TRIM, offset, length, _flags(fua=fua))

    def flush(self) -> Deferred[None]:
        """Have durable what was answered until now."""
        return self._ask(Command.FLUSH)

    def disconnect(self) -> Deferred[None]:
        """Say that nothing follows.

        @return: fires when the connection is gone, in whichever way.
        @raise blockmig.nbd.LocalProtocolError: requests wait for their replies.
        """
        if not self.lost:
            _, header = self._wire.request(Command.DISC)
            self.transport.write(header)
        return self.closed()

    def closed(self) -> Deferred[None]:
        """Fires when the connection is gone, in whichever way."""
        closed: Deferred[None] = Deferred()
        if self.lost:
            closed.callback(None)
        else:
            self._to_close.append(closed)
        return closed

    def abort(self) -> None:
        """Drop the connection."""
        self.transport.abortConnection()

    def _ask(
        self,
        command: Command,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        payload: bytes = b"",
    ) -> Deferred[Any]:
        if self._broken is not None:
            return fail(self._broken)
        request, header = self._wire.request(command, offset, length, flags)
        waiting: Deferred[Any] = Deferred()
        self._waiting[request.cookie] = waiting
        self.transport.write(header + payload)
        return waiting

    # IProtocol.

    def dataReceived(self, data: bytes) -> None:
        """Something from the server."""
        try:
            if self._handshake is not None:
                data = self._shake_hands(self._handshake, data)
            self._wire.receive_data(data)
            while (event := self._wire.next_event()) is not None:
                if isinstance(event, Payload):
                    self._payload += bytes(event.data)
                elif isinstance(event, EndOfPayload):
                    payload, self._payload = self._payload, b""
                    assert isinstance(event.message, Reply)
                    self._answer(event.message.request, payload)
                elif isinstance(event, Reply):
                    self._reply(event)
        except (ProtocolError, HandshakeRefused):
            self._fail_all(Failure())
            self.transport.abortConnection()

    def _shake_hands(self, handshake: ClientHandshake, data: bytes) -> bytes:
        handshake.receive_data(data)
        self.transport.write(handshake.data_to_send())
        event: Negotiated | None = handshake.next_event()
        if event is None:
            return b""
        self._handshake = None
        self.export = event.export
        self.negotiated.callback(self)
        return handshake.trailing_data()

    def _reply(self, reply: Reply) -> None:
        request, error = reply
        if error:
            name = errno.errorcode.get(error, str(error))
            why = f"{Command(request.command).name}: {name}: {os.strerror(error)}"
            self._answer(request, Failure(OSError(error, why)))
        elif request.command != Command.READ:
            self._answer(request, None)

    def _answer(self, request: Request, answer: object) -> None:
        self._waiting.pop(request.cookie).callback(answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self.lost = True
        self._fail_all(reason if reason.value is not None else Failure(ConnectionDone()))
        closed, self._to_close = self._to_close, []
        for deferred in closed:
            deferred.callback(None)

    def _fail_all(self, why: Failure) -> None:
        if self._broken is not None:
            return
        self._broken = why
        waiting = list(self._waiting.values())
        self._waiting.clear()
        if not self.negotiated.called:
            waiting.append(self.negotiated)
        for deferred in waiting:
            deferred.errback(Failure(why.value))


def _flags(fua: bool = False, allocate: bool = False, fast: bool = False) -> int:
    flags = CommandFlag.FUA if fua else CommandFlag(0)
    if allocate:
        flags |= CommandFlag.NO_HOLE
    if fast:
        flags |= CommandFlag.FAST_ZERO
    return int(flags)


def connect_client(endpoint: IStreamClientEndpoint, export: str = "") -> Deferred[NBDClient]:
    """Connect a client, and shake hands.

    @param endpoint: where the server is; any endpoint will do, not only one in memory.
    @param export: the name of the export.
    @return: fires with the client. Fails with what the endpoint fails with, with the reason for
        which the connection was lost, or with L{blockmig.nbd.HandshakeRefused} or
        L{blockmig.nbd.ProtocolError}.
    """
    client = NBDClient(export)
    factory = Factory.forProtocol(lambda: client)
    factory.noisy = False
    return endpoint.connect(factory).addCallback(lambda _: client.negotiated)
