"""The control socket of a running command: opens it, answers requests, closes it.

Owns the order of these. The socket's file and its locks are in `socket_file`; HTTP is in `web`,
which is imported when a socket is opened, since most commands have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater

from ..transport import stop_listening
from ..transport.adopting import adopt_unix
from .socket_file import Busy, ControlSocket, claim

Handler = Callable[[Any], Any]
"""Takes the body of a request, decoded (None if there is none), and returns the answer, which is
encoded as JSON, or a Deferred or coroutine of it; raises `ControlRefused` to refuse."""

Routes = Mapping[tuple[str, str], Handler]
"""Handlers by method and path, such as C{("POST", "/rate")}."""

# Seconds.
_CLAIM_TIMEOUT: Final = 2.0
_CLAIM_INTERVAL: Final = 0.05


class ControlPort:
    """A control socket that is open.

    @ivar path: its absolute path.
    """

    def __init__(
        self, control_socket: ControlSocket, port: IListeningPort, hang_up: Callable[[], None]
    ) -> None:
        self.path = control_socket.path
        self._socket: ControlSocket | None = control_socket
        self._port = port
        self._hang_up = hang_up

    async def close(self) -> None:
        """Remove the socket, close its connections, and return when the port is closed."""
        if self._socket is not None:
            control_socket, self._socket = self._socket, None
            control_socket.release()
            self._hang_up()
            await stop_listening(self._port)


async def open_control(
    reactor: Any,
    path: str,
    status: Callable[[], dict[str, Any]],
    routes: Routes | None = None,
    *,
    connections: int = 32,
    idle_timeout: float = 30.0,
) -> ControlPort:
    """Open a control socket at C{path} that only root and our own user can use.

    @param status: answers C{GET /status}.
    @param routes: further handlers.
    @param connections: the most at a time; further ones are closed immediately.
    @param idle_timeout: seconds of silence after which a connection is closed, unless an answer is
        pending.
    @raise ControlError: it cannot be opened, for instance because another process has it.
    """
    control_socket = await _claim(reactor, path)
    from .web import ControlFactory  # noqa: PLC0415

    known: Routes = {("GET", "/status"): lambda _: status(), **(routes or {})}
    factory = ControlFactory(known, reactor, connections, idle_timeout)
    try:
        port = adopt_unix(reactor, control_socket.handle, factory)
    except BaseException:
        control_socket.release()
        control_socket.handle.close()
        raise
    return ControlPort(control_socket, port, factory.hang_up)


async def _claim(reactor: Any, path: str) -> ControlSocket:
    """Claim C{path}, with retries while another process is claiming it."""
    end = reactor.seconds() + _CLAIM_TIMEOUT
    while True:
        patient = reactor.seconds() < end
        try:
            return claim(path, patient)
        except Busy:
            if not patient:
                raise
            await deferLater(reactor, _CLAIM_INTERVAL)
