"""The connections of a receiver, from the first until the last is closed.

Rules (design, section 2: R5, R10): nobody is turned away: of 128 connections that are not proved
the one that has got no further for longest is closed for the next (`admission`). Proved is the one
that has the attempt; those to the side export from which a message was accepted; and those that an
accepted message names, from then on or from their first request on, whichever it is. After the end,
whatever it was, every connection is closed and no other is accepted; but the sender's to the side
export may first read that the migration is complete. For others that say nothing there, nobody
waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
from zope.interface import implementer

from ...server import (
    Admission,
    Clients,
    ConnectionSettings,
    IConnectionOwner,
    OwnedConnection,
    RefusedConnection,
    ServerConnection,
)
from .handoff_export import HandoffExport

_CLOSE_GRACE: Final = 5.0
_SHORT_GRACE: Final = 0.5
"""For one that nobody knows, and that may be about to ask: seconds since it last said anything."""


@implementer(IProtocolFactory, IConnectionOwner)
class ReceiverFactory:
    """Makes the connections of a receiver, and takes those that others have made.

    @param settings: what they have in common.
    @param clients: keeps track of them.
    @param owns_attempt: whether a connection has the attempt.
    """

    noisy = False

    def __init__(
        self,
        settings: ConnectionSettings,
        clients: Clients,
        owns_attempt: Callable[[ServerConnection], bool],
    ) -> None:
        self.settings = settings
        self._clients = clients
        self._owns_attempt = owns_attempt
        self._admission = Admission(settings.runtime, lambda: clients, self.is_proved)
        self._closed = False

    def doStart(self) -> None: ...

    def doStop(self) -> None: ...

    def buildProtocol(self, addr: IAddress) -> IProtocol:
        """A connection; after the end one that is closed at once."""
        if self._closed or self._admission.admit(addr):
            return RefusedConnection()
        connection = OwnedConnection(self.settings, addr, self)
        self._clients.add(connection)
        return connection

    # IConnectionOwner.

    @property
    def accepts(self) -> bool:
        """Whether further connections are accepted; not after the end."""
        return not self._closed

    def refusal(self) -> str:
        """Never: only one that is yet to be accepted needs descriptors."""
        return self._admission.refusal()

    def is_proved(self, connection: ServerConnection) -> bool:
        """Whether it has the attempt, has had a message accepted, or is named by one."""
        return self._owns_attempt(connection) or self._clients.is_proved(connection)

    def take(self, connection: ServerConnection) -> None:
        self._admission.make_room(connection.peer)
        self._clients.add(connection)

    def session_began(self, connection: ServerConnection) -> None:
        """Nothing to do."""

    def lost(self, connection: ServerConnection) -> None:
        self._clients.remove(connection)
        if isinstance(connection.handler, HandoffExport):
            connection.handler.lost(connection)

    def close(self, last: ServerConnection | None) -> Deferred[None]:
        """End every connection, and accept no other.

        @param last: where the migration is complete, the connection whose disconnect completed it.
            It is closed once all that is due to it was sent. Connections to the side export may ask
            whether the migration is complete, for some seconds, if they are the sender's or have
            just said something; the others are aborted.
        @return: fires when none is left.
        """
        self._closed = True
        closed = self._clients.all_gone()
        for connection in self._clients:
            if connection is last:
                connection.close()
            elif last is not None and (grace := self._grace(connection)):
                closed.addCallback(self._abort_after(grace, connection))
            else:
                connection.abort()
        return closed

    def _grace(self, connection: ServerConnection) -> float:
        """For how many seconds C{connection} may still ask whether the migration is complete."""
        handler, now = connection.handler, self.settings.runtime.reactor.seconds()
        if not isinstance(handler, HandoffExport):
            return 0.0
        if handler.may_be_silent(connection) or connection.waits_for_us:
            return _CLOSE_GRACE
        return max(0.0, connection.heard_at + _SHORT_GRACE - now)

    def _abort_after(self, seconds: float, connection: ServerConnection) -> Callable[[None], None]:
        """Abort C{connection} after C{seconds}; returns what is to be called if it goes before."""
        timer = self.settings.runtime.reactor.callLater(seconds, connection.abort)

        def stop(_: None) -> None:
            if timer.active():
                timer.cancel()

        return stop
