"""The connections of a receiver, from the first until the last is closed.

Rules (design, section 2: R5): after the end, whichever it was, every connection is closed and no
other is accepted; but one to the side export may first read that the migration is complete.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
from zope.interface import implementer

from ...server import (
    Clients,
    ConnectionSettings,
    IConnectionOwner,
    OwnedConnection,
    RefusedConnection,
    ServerConnection,
)
from .handoff_export import HandoffExport

_CLOSE_GRACE: Final = 5.0


@implementer(IProtocolFactory, IConnectionOwner)
class ReceiverFactory:
    """Makes the connections of a receiver, and takes those that others have made.

    @param settings: what they have in common.
    @param clients: keeps track of them.
    """

    noisy = False

    def __init__(self, settings: ConnectionSettings, clients: Clients) -> None:
        self.settings = settings
        self._clients = clients
        self._closed = False

    def doStart(self) -> None: ...

    def doStop(self) -> None: ...

    def buildProtocol(self, addr: IAddress) -> IProtocol:
        """A connection; after the end one that is closed at once."""
        if self._closed:
            return RefusedConnection()
        connection = OwnedConnection(self.settings, addr, self)
        self.take(connection)
        return connection

    # IConnectionOwner.

    @property
    def accepts(self) -> bool:
        """Whether further connections are accepted; not after the end."""
        return not self._closed

    def refusal(self) -> str:
        """None is refused: there is no limit."""
        return ""

    def take(self, connection: ServerConnection) -> None:
        self._clients.add(connection)

    def session_began(self, connection: ServerConnection) -> None:
        """Nothing to do."""

    def lost(self, connection: ServerConnection) -> None:
        self._clients.remove(connection)

    def close(self, last: ServerConnection | None) -> Deferred[None]:
        """End every connection, and accept no other.

        @param last: where the migration is complete, the connection whose disconnect completed it.
            It is closed once all that is due to it was sent. Connections to the side export may ask
            whether the migration is complete, for some seconds; the others are aborted.
        @return: fires when none is left.
        """
        self._closed = True
        closed = self._clients.all_gone()
        remaining: list[ServerConnection] = []
        for connection in self._clients:
            if connection is last:
                connection.close()
            elif last is not None and isinstance(connection.handler, HandoffExport):
                remaining.append(connection)
            else:
                connection.abort()
        if remaining:
            timer = self.settings.runtime.reactor.callLater(_CLOSE_GRACE, _abort_all, remaining)

            def stop(_: None) -> None:
                if timer.active():
                    timer.cancel()

            closed.addCallback(stop)
        return closed


def _abort_all(connections: list[ServerConnection]) -> None:
    for connection in connections:
        connection.abort()
