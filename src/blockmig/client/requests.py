"""The requests in flight on one connection, and the callbacks for their replies.

Owns the matching of replies to requests. It sends nothing itself, so that many requests can be sent
in one piece. The data of a READ is kept in memory until it is complete: reads here are small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..nbd import ClientTransmission, Command, EndOfPayload, Payload, Reply, Request, describe_errno

_READ: Final = int(Command.READ)


class RequestFailed(Exception):
    """The server answered with an error; the message is one line that says which.

    @ivar request: the request.
    @ivar error: the NBD error.
    """

    def __init__(self, request: Request, error: int) -> None:
        name = Command(request.command).name
        super().__init__(f"the destination answered {name} with {describe_errno(error)}")
        self.request = request
        self.error = error


OnReply = Callable[[int, bytes], None]
"""Called with the error in a reply, 0 for none, and the data of a READ."""


class PendingRequests:
    """The requests in flight on one connection.

    @param wire: makes the requests, and parses the replies.
    """

    def __init__(self, wire: ClientTransmission) -> None:
        self._wire = wire
        self._waiting: dict[int, tuple[Request, OnReply]] = {}
        self._payload = b""

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def is_in_flight(self, command: Command) -> bool:
        """Whether a request of that type is in flight."""
        return any(request.command == command for request, _ in self._waiting.values())

    def make(
        self, command: Command, offset: int, length: int, answered: OnReply, flags: int = 0
    ) -> tuple[Request, bytes]:
        """Make a request; a WRITE's payload of C{length} bytes must follow it on the wire.

        @param answered: called when its reply has arrived.
        @return: the request, and its header for the wire.
        """
        request, header = self._wire.request(command, offset, length, flags)
        self._waiting[request.cookie] = (request, answered)
        return request, header

    def ask(
        self, command: Command, offset: int = 0, length: int = 0, flags: int = 0
    ) -> tuple[bytes, Deferred[Any]]:
        """L{make} a request with a Deferred for its reply.

        @return: its header for the wire, and a Deferred that fires with the data of a READ (empty
            for others). It fails with L{RequestFailed}.
        """
        waiting: Deferred[Any] = Deferred()

        def answered(error: int, data: bytes) -> None:
            if not waiting.called:
                waiting.callback(Failure(RequestFailed(request, error)) if error else data)

        request, header = self.make(command, offset, length, answered, flags)
        return header, waiting

    def disconnect(self) -> bytes:
        """The DISC, which is the last message.

        @raise blockmig.nbd.LocalProtocolError: there are requests in flight.
        """
        _, header = self._wire.request(Command.DISC)
        return header

    def received(self, data: bytes) -> None:
        """The server sent C{data}: fire the replies' callbacks.

        @raise blockmig.nbd.RemoteProtocolError: it breaks the protocol.
        """
        self._wire.receive_data(data)
        while (event := self._wire.next_event()) is not None:
            if isinstance(event, Reply):
                if event.error or event.request.command != _READ:
                    self._answer(event, event.error, b"")
            elif isinstance(event, Payload):
                self._payload += bytes(event.data)
            elif isinstance(event, EndOfPayload):
                payload, self._payload = self._payload, b""
                assert isinstance(event.message, Reply)
                self._answer(event.message, 0, payload)

    def _answer(self, reply: Reply, error: int, data: bytes) -> None:
        _, answered = self._waiting.pop(reply.request.cookie)
        answered(error, data)
