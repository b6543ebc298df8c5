"""A connection that is refused before a word was said on it.

Twisted's factories may return None for that, but only where the transport is a socket: under TLS,
and in other wrappers, the connection would stay open and its client wait, with an AttributeError in
the reactor.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from ..transport import is_plain_socket


class RefusedConnection(Protocol):
    """Is closed as soon as it is made."""

    transport: Any

    def connectionMade(self) -> None:
        """Close a socket in this very turn of the reactor: where descriptors are short, others may
        be accepted before the next. Anything else without waiting for a TLS handshake."""
        if is_plain_socket(self.transport):
            self.transport.connectionLost(Failure(ConnectionDone()))
        else:
            self.transport.abortConnection()
