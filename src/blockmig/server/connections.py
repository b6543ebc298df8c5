"""The connections of a server, from when they are made to when they are gone.

Rules:

* the number of connections is limited: when there are as many as there may be, a client that has
  never asked anything of the disk is closed for the new one (`admission`); where all have, the new
  one is closed without a greeting;
* one address cannot take all places, where its number is limited;
* none is accepted once the server is stopping;
* while clients are relayed, one that connects is forwarded from its first byte, or from its first
  request: where it has negotiated before it belonged to this server (`exports`), and where either
  side of the relay speaks TLS, which is not the other's.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
from zope.interface import implementer

from .access import DiskAccess
from .admission import Admission
from .clients import Clients
from .connection import ServerConnection
from .handshake import ConnectionSettings, HandshakePhase
from .owner import IConnectionOwner, OwnedConnection
from .refused import RefusedConnection
from .relay import Relay


@implementer(IProtocolFactory, IConnectionOwner)
class ServerFactory:
    """Makes the connections of a server, and takes those that others have made.

    @param settings: what they have in common.
    @param clients: keeps track of them.
    @param access: to the disk; a side export's handler has another one.
    @param most: how many there may be at a time; 0 for no limit.
    @param most_of_one: how many of them may come from one address; 0 for no limit.
    @param is_open: whether the server accepts connections.
    @param relay: returns the relay once clients are forwarded; None until then.
    """

    noisy = False

    def __init__(
        self,
        settings: ConnectionSettings,
        clients: Clients,
        access: DiskAccess,
        *,
        most: int,
        most_of_one: int,
        is_open: Callable[[], bool],
        relay: Callable[[], Relay | None],
    ) -> None:
        self.settings = settings
        self._clients = clients
        self._access = access
        self._is_open = is_open
        self._relay = relay
        self._admission = Admission(
            settings.runtime, lambda: clients, self.is_proved, most, most_of_one=most_of_one
        )

    def doStart(self) -> None:
        """Nothing to do."""

    def doStop(self) -> None:
        """Nothing to do."""

    def buildProtocol(self, addr: IAddress) -> IProtocol:
        """A connection; one that is refused is closed at once."""
        if not self.accepts or self._admission.admit(addr):
            return RefusedConnection()
        relay = self._relay()
        greets = relay is not None and relay.can_greet and self.settings.tls is None
        made = _RelayedConnection if greets else OwnedConnection
        connection = made(self.settings, addr, self)
        self._clients.add(connection)
        return connection

    # IConnectionOwner.

    @property
    def accepts(self) -> bool:
        """Whether further connections are accepted; not once the server is stopping."""
        return self._is_open()

    def refusal(self) -> str:
        """Why one more connection is refused now, for the log as well; "" if it is not."""
        return self._admission.refusal()

    def is_proved(self, connection: ServerConnection) -> bool:
        """Whether it has asked anything of the disk."""
        handler = connection.handler
        # None where another server has greeted it.
        return connection.has_asked and (handler is None or handler.access is self._access)

    def take(self, connection: ServerConnection) -> None:
        self._admission.make_room(connection.peer)
        self._clients.add(connection)

    def session_began(self, connection: ServerConnection) -> None:
        """Forward this client too, if the others are being forwarded."""
        if (relay := self._relay()) is not None:
            relay.forward(connection)

    def lost(self, connection: ServerConnection) -> None:
        self._clients.remove(connection)


class _RelayedConnection(OwnedConnection):
    """The connection of a client that another server greets."""

    greets = False

    def begin(self, handshake: HandshakePhase) -> None:
        """Forward the client from its first byte."""
        self.session_began()
