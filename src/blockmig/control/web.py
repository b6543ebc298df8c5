"""The HTTP/1.1 with JSON of the control socket.

The rules: only root and the user who runs this process may ask for anything, whatever the mode of
the socket's file is by now; who is neither is closed without an answer. A request has its time to
come in whole, however it dribbles; its headers have at most 16 KiB (Twisted's limit), its body is
JSON of at most 1 MiB; an answer is JSON, that of an error C{{"error": "one line"}}. The memory that
a client can occupy is bounded, and so is the number of clients. No access log. Source: RFC 9110
(the statuses), RFC 8259.

This module imports twisted.web, so only `server` imports it, and late.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.http import HTTPFactory, Request

from ..transport import AwaitsUser
from .errors import ControlRefused
from .server import Routes

_log = Logger()

_REPORT_INTERVAL: Final = 60.0

_LONGEST_PATH: Final = 100
"""Of which one is shown to who has asked for it."""

MAXIMUM_BODY: Final = 1 << 20
"""Bytes: an allow-list of ten thousand networks has a third of it."""


def _encoded(answer: Any) -> bytes:
    return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _error(message: str) -> bytes:
    return _encoded({"error": message})


def _too_large() -> bytes:
    body = _error(f"the body of a request can have at most {MAXIMUM_BODY} bytes")
    return (
        b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


class _Request(Request):
    """One request.

    Twisted would read all of a body before it answers. A body that is too large is refused at once,
    past Twisted, and the connection is closed.
    """

    content: BytesIO
    _refused = False

    def gotLength(self, length: int | None) -> None:
        """The headers are complete; C{length} is that of the body, None if it comes in chunks."""
        # Not Twisted's own gotLength, which uses a temporary file for large bodies.
        self.content = BytesIO()
        if length is not None and length > MAXIMUM_BODY:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        if self.content.tell() + len(data) > MAXIMUM_BODY:
            self._refuse()
        elif not self._refused:
            self.content.write(data)

    def _refuse(self) -> None:
        if not self._refused:
            self._refused = True
            channel: Any = self.channel
            channel.transport.write(_too_large())
            channel.loseConnection()

    def process(self) -> None:
        if self._refused:
            return
        self._connection.request_came()
        maybeDeferred(self._call).addCallbacks(self._answer, self._fail).addErrback(self._bug)

    @property
    def _connection(self) -> _Connection:
        channel: Any = self.channel
        connection: _Connection = channel.transport
        return connection

    def _call(self) -> Any:
        factory: _HTTPFactory = self.channel.factory
        method = self.method.decode("latin-1")
        path = self.path.decode("latin-1")
        handler = factory.routes.get((method, path))
        if handler is None:
            allowed = sorted(known for known, where in factory.routes if where == path)
            if not allowed:
                raise ControlRefused(f"there is no {path[:_LONGEST_PATH]!r}", 404)
            self.responseHeaders.setRawHeaders(b"allow", [", ".join(allowed).encode()])
            raise ControlRefused(f"{path} takes {' or '.join(allowed)} only", 405)
        text = self.content.read()
        try:
            body = json.loads(text) if text else None
        except (ValueError, RecursionError):
            raise ControlRefused("the request's body is not JSON", 400) from None
        return handler(body)

    def _answer(self, answer: Any) -> None:
        self._send(200, _encoded(answer))

    def _fail(self, failure: Failure) -> None:
        failure.trap(ControlRefused)
        refused = failure.value
        assert isinstance(refused, ControlRefused)
        self._send(refused.http_status, _error(str(refused)))

    def _bug(self, failure: Failure) -> None:
        _log.failure(
            "this is a bug of blockmig: {method} {path} on the control socket",
            failure,
            event="bug",
            method=self.method.decode("latin-1"),
            path=self.path.decode("latin-1"),
        )
        self._send(500, _error("this is a bug of blockmig; its log says more"))

    def _send(self, status: int, body: bytes) -> None:
        # The client may have gone meanwhile; its request was carried out nevertheless.
        if self.channel is None:
            return
        self._connection.request_expected()
        self.setResponseCode(status)
        self.responseHeaders.setRawHeaders(b"content-type", [b"application/json"])
        self.responseHeaders.setRawHeaders(b"content-length", [b"%d" % len(body)])
        Request.write(self, body)
        Request.finish(self)


class _HTTPFactory(HTTPFactory):
    """Makes the protocol of a connection."""

    noisy = False

    def __init__(self, routes: Routes, reactor: Any, idle_timeout: float) -> None:
        super().__init__(timeout=idle_timeout, reactor=reactor)
        self.routes: Mapping[tuple[str, str], Any] = routes

    def buildProtocol(self, addr: IAddress | None) -> Any:
        protocol: Any = super().buildProtocol(addr)
        protocol.requestFactory = _Request
        return protocol

    def startFactory(self) -> None:
        """Override Twisted's, which starts an access log and a timer that fires every second."""


class _Connection(ProtocolWrapper):
    """A connection, with the time that its next request has to come in whole.

    Twisted's own timeout begins anew with every byte.
    """

    factory: ControlFactory
    _timer: IDelayedCall | None = None

    def makeConnection(self, transport: Any) -> None:
        self.request_expected()
        make: Any = super().makeConnection
        make(transport)

    def request_expected(self) -> None:
        """A request, or the next one, may come."""
        self.request_came()
        self._timer = self.factory.reactor.callLater(self.factory.idle_timeout, self._expired)

    def request_came(self) -> None:
        """It is there; the answer may take long."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        self._timer = None
        close: Any = self.loseConnection
        close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.request_came()
        lost: Any = super().connectionLost
        lost(reason)


class ControlFactory(WrappingFactory):
    """Makes the connections of one control socket, and limits their number.

    @param reactor: an C{IReactorTime}.
    @param connections: the most at a time.
    @param idle_timeout: seconds of silence after which a connection is closed, unless an answer is
        pending; and in which a request has to come in whole.
    """

    noisy = False
    protocol = _Connection

    def __init__(self, routes: Routes, reactor: Any, connections: int, idle_timeout: float) -> None:
        start: Any = super().__init__
        start(_HTTPFactory(routes, reactor, idle_timeout))
        self._max_connections = connections
        self.reactor = reactor
        self.idle_timeout = idle_timeout
        self._users = {0, os.geteuid()}
        self._reported_at = float("-inf")

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A protocol; None, which closes the connection, if there are too many."""
        if len(self.protocols) >= self._max_connections:
            return None
        make: Any = super().buildProtocol
        return AwaitsUser(lambda user: make(addr) if self._admits(user) else None)

    def _admits(self, user: int | None) -> bool:
        """Whether a user may ask; who may not is logged once a minute at most."""
        if user in self._users:
            return True
        now = self.reactor.seconds()
        if now - self._reported_at >= _REPORT_INTERVAL:
            self._reported_at = now
            _log.warn(
                "the control socket: refused the user {user}: only root and the user who runs "
                "this process may use it",
                event="control-refused",
                user="?" if user is None else user,
            )
        return False

    def hang_up(self) -> None:
        """Close all connections, once their answers have been sent."""
        for protocol in list(self.protocols):
            protocol.loseConnection()
