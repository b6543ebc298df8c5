"""Who a connection belongs to: the server or the receiver whose export it chose.

A server's or a receiver's own port makes connections that belong to it from the start. A port that
offers the exports of several (`exports`) makes connections that belong to nobody until they have
negotiated, and then change owner, before their first request is looked at.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import Attribute, Interface

from .connection import ServerConnection
from .handshake import ConnectionSettings


class IConnectionOwner(Interface):
    """Has connections, and rules for them; the factories of servers and receivers provide it."""

    settings = Attribute("The L{ConnectionSettings} of its connections.")
    accepts = Attribute("Whether it accepts further connections; not any more once it is ending.")

    def refusal() -> str:
        """Why one more connection would be refused now; "" where it would not."""

    def is_proved(connection: Any) -> bool:
        """Whether C{connection} has done what only somebody who belongs here does."""

    def take(connection: Any) -> None:
        """C{connection} is this owner's from now on, and another one may have to go for it."""

    def session_began(connection: Any) -> None:
        """The handshake is over, and what came after it was processed as far as allowed."""

    def lost(connection: Any) -> None:
        """C{connection} is gone."""


class OwnedConnection(ServerConnection):
    """A connection that notifies its owner.

    @param owner: an L{IConnectionOwner}.
    @ivar owner: the present one.
    """

    def __init__(self, settings: ConnectionSettings, address: IAddress, owner: Any) -> None:
        super().__init__(settings, address)
        self.owner = owner

    def session_began(self) -> None:
        self.owner.session_began(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.owner.lost(self)
