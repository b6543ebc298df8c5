"""A connection that is refused before a word was said on it.

Twisted's factories may return None for that, but only where the transport is a socket: under TLS,
and in other wrappers, the connection would stay open and its client wait, with an AttributeError in
the reactor.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Protocol

from ..transport import is_plain_socket


class RefusedConnection(Protocol):
    """Is closed as soon as it is made."""

    transport: Any

    def connectionMade(self) -> None:
        """Close it as the kernel does; or at once, without waiting for a TLS handshake."""
        if is_plain_socket(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.abortConnection()
