"""A connection to a UNIX socket until it is known whose it is.

Owns the moment between a connection's acceptance and its protocol: a factory is told the address
only, and the user who has connected is known by the socket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol

from .plain import peer_user


class AwaitsUser(Protocol):
    """Gives way to the connection's protocol, before anything is sent or read.

    @param decide: called with the number of the user, or None where the kernel does not tell it;
        returns the protocol, or None to close the connection at once.
    """

    def __init__(self, decide: Callable[[int | None], IProtocol | None]) -> None:
        self._decide = decide

    def makeConnection(self, transport: Any) -> None:
        protocol = self._decide(peer_user(transport))
        if protocol is None:
            transport.abortConnection()
            return
        transport.protocol = protocol
        protocol.makeConnection(transport)
