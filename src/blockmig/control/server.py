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

_PATIENCE: Final = 2.0
_RETRY: Final = 0.05


class ControlPort:
    """A control socket that is open.

    @ivar path: its absolute path.
    """

    def __init__(
        self, place: ControlSocket, port: IListeningPort, hang_up: Callable[[], None]
    ) -> None:
        self.path = place.path
        self._place: ControlSocket | None = place
        self._port = port
        self._hang_up = hang_up

    async def close(self) -> None:
        """Remove the socket, end its connections, and return when nobody can ask any more."""
        if self._place is not None:
            place, self._place = self._place, None
            place.release()
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
    place = await _claim(reactor, path)
    from .web import ControlFactory  # noqa: PLC0415

    known: Routes = {("GET", "/status"): lambda _: status(), **(routes or {})}
    factory = ControlFactory(known, reactor, connections, idle_timeout)
    try:
        port = adopt_unix(reactor, place.handle, factory)
    except BaseException:
        place.release()
        place.handle.close()
        raise
    return ControlPort(place, port, factory.hang_up)


async def _claim(reactor: Any, path: str) -> ControlSocket:
    """The place, after some patience with whoever is at it now."""
    end = reactor.seconds() + _PATIENCE
    while True:
        patient = reactor.seconds() < end
        try:
            return claim(path, patient)
        except Busy:
            if not patient:
                raise
            await deferLater(reactor, _RETRY)
