"""The control socket of a running command: opened, answering, closed.

Owns the order in which that happens. The socket's file and its locks are `socket_file`'s, HTTP is
`web`'s and is imported with the first socket that is opened, since most commands have none.
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
"""Takes a request's body, decoded (None if there was none); gives what JSON can say, or a Deferred
or coroutine of it; raises `ControlRefused` for what is not to be done."""

Routes = Mapping[tuple[str, str], Handler]
"""Handlers by method and path, such as C{("POST", "/rate")}."""

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
        """Remove the socket, end its connections, and return when nobody can ask any more."""
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
    """Open a control socket at C{path}, which only its owner (and root) can use.

    @param status: answers C{GET /status}.
    @param routes: what else is answered.
    @param connections: how many there may be at once; those beyond are closed at once.
    @param idle_timeout: seconds that a connection may say nothing while it is not being answered.
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
    """The control socket, after some patience with whoever is at it now."""
    end = reactor.seconds() + _CLAIM_TIMEOUT
    while True:
        patient = reactor.seconds() < end
        try:
            return claim(path, patient)
        except Busy:
            if not patient:
                raise
            await deferLater(reactor, _CLAIM_INTERVAL)
