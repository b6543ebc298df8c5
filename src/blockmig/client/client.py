"""A simple NBD client with a Deferred for each request: for a hand-off, a DISC, tests of servers.

Owns one connection, and the Deferreds of its requests. It is neither fast nor meant for large
transfers; the copier moves the data.

Rules:

* every Deferred fires: with the reply, with the error in it (the connection can still be used), or
  because the connection failed or was lost;
* with a timeout, every request is answered within it, or the connection fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from ..nbd import ClientHandshake, ClientTransmission, Command, Negotiated
from ..runtime import Runtime, wait_for_other
from .connecting import describe_failed_connect
from .connection import ClientConnection, ClientFactory, ClientHandler
from .requests import PendingRequests, RequestFailed

if TYPE_CHECKING:
    from ..transport import ClientTLS


class ClientFailed(Exception):
    """A request failed; the message is one line that says why.

    @ivar error: the NBD error that the server answered with; 0 if it did not answer.
    """

    def __init__(self, why: str, error: int = 0) -> None:
        super().__init__(why)
        self.error = error


class NBDClient(ClientHandler):
    """A client of one export; offsets and lengths are in bytes.

    @param handshake: negotiates the export.
    @param runtime: reactor, threads and system calls.
    @param timeout: seconds within which each answer must arrive; None for no limit.
    @param first_cookie: the cookie of the first request.
    @param tls: how it speaks TLS; None for not at all.
    """

    def __init__(
        self,
        handshake: ClientHandshake,
        runtime: Runtime,
        timeout: float | None = None,
        first_cookie: int = 0,
        tls: ClientTLS | None = None,
    ) -> None:
        self._connection = ClientConnection(self, handshake, runtime, tls=tls)
        self._timeout = timeout
        self._requests = PendingRequests(ClientTransmission(first_cookie=first_cookie))
        self._greeting: Deferred[Negotiated] = Deferred(self._cancelled)
        self._waiting: dict[Deferred[Any], None] = {self._greeting: None}
        self._close_waiters: list[Deferred[None]] = []
        self._failure: Failure | None = None

    async def connect(self, endpoint: IStreamClientEndpoint, uri: str = "") -> Negotiated:
        """Connect, and shake hands.

        @param uri: what people know the server by, if it is known.
        @raise ClientFailed: it could not connect, or the handshake failed.
        """
        try:
            await wait_for_other(endpoint.connect(ClientFactory(self._connection)))
        except CancelledError:
            self._connection.abort()  # an endpoint that cannot be cancelled may connect yet
            raise
        except Exception as error:  # each endpoint fails in its own ways
            self._connection.abort()
            self._greeting.addErrback(lambda _: None)  # it may have connected before that
            why = describe_failed_connect(error, uri)
            raise ClientFailed(f"cannot connect to the destination: {why}") from None
        return await self.greeted()

    def greeted(self) -> Deferred[Negotiated]:
        """Fires with what was negotiated; to be called once."""
        return self._greeting

    # Requests; they fail with L{ClientFailed}.

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        return self.ask(Command.READ, offset, length)

    def write(self, offset: int, data: bytes) -> Deferred[None]:
        return self.ask(Command.WRITE, offset, len(data), payload=data)

    def ask(
        self,
        command: Command,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        payload: bytes = b"",
    ) -> Deferred[Any]:
        """Send a request.

        @return: fires when its reply has arrived, with the data of a READ, else None.
        """
        if self._failure is not None:
            return fail(self._failure)
        header, answer = self._requests.ask(command, offset, length, flags)
        waiting: Deferred[Any] = Deferred(self._cancelled)
        self._waiting[waiting] = None
        self._start_timeout()
        self._connection.outgoing.send([header + payload])

        def answered(result: Any) -> None:
            if not self._requests.in_flight:
                self._connection.cancel_timeout()
            self._finish(waiting, self._outcome(result))

        answer.addBoth(answered)
        return waiting

    def _outcome(self, result: Any) -> Any:
        """What the request's Deferred fires with."""
        if not isinstance(result, Failure):
            return result or None
        assert isinstance(result.value, RequestFailed)
        return Failure(ClientFailed(str(result.value), result.value.error))

    def _finish(self, waiting: Deferred[Any], result: Any) -> None:
        self._waiting.pop(waiting, None)
        if not waiting.called:
            waiting.callback(result)

    def _cancelled(self, waiting: Deferred[Any]) -> None:
        self._waiting.pop(waiting, None)
        self.abort()

    def disconnect(self) -> Deferred[None]:
        """Send DISC.

        @return: fires when the connection is gone, in whichever way.
        """
        if not self._connection.is_gone:
            self._connection.outgoing.send([self._requests.disconnect()])
            self._start_timeout()
        return self.closed()

    def closed(self) -> Deferred[None]:
        """Fires when the connection is gone, in whichever way."""
        if self._connection.is_gone:
            return succeed(None)
        closed: Deferred[None] = Deferred()
        self._close_waiters.append(closed)
        return closed

    def abort(self) -> None:
        self._connection.abort()

    def _start_timeout(self) -> None:
        if self._timeout is not None:
            why = f"the destination said nothing for {self._timeout:g} s"
            self._connection.set_timeout(self._timeout, why)

    # ClientHandler.

    def connection_made(self) -> None:
        """The server speaks first."""
        self._start_timeout()

    def negotiated(self, negotiated: Negotiated) -> None:
        self._finish(self._greeting, negotiated)

    def received(self, data: bytes) -> None:
        self._requests.received(data)

    def connection_failed(self, why: str) -> None:
        """Fail every request; later ones only hear that the connection was lost."""
        self._fail(Failure(ClientFailed(why)))
        self._failure = Failure(ClientFailed("the connection was lost"))

    def connection_lost(self, why: str, reason: Failure) -> None:
        """Fail every request."""
        self._fail(Failure(ClientFailed("the connection was lost")))

    def _fail(self, why: Failure) -> None:
        self._failure = why
        for waiting in list(self._waiting):
            self._finish(waiting, Failure(why.value))

    def connection_gone(self, reason: Failure) -> None:
        """Fire what L{closed} returned."""
        closed, self._close_waiters = self._close_waiters, []
        for waiting in closed:
            waiting.callback(None)
