"""The client's side of NBD connections.

Owns a connection (`connection`), the requests in flight on it (`requests`), and a simple client
with a Deferred for each request (`client`). A migration's copier, its hand-off channel, a relay's
upstream side and the tests' client are built on these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .client import ClientFailed, NBDClient
    from .connecting import describe_failed_connect
    from .connection import ClientConnection, ClientFactory, ClientHandler, HalfClosingConnection
    from .destination import Destination
    from .requests import PendingRequests, RequestFailed
else:
    __getattr__ = lazily(
        __name__,
        {
            "ClientConnection": "connection",
            "ClientFactory": "connection",
            "ClientFailed": "client",
            "ClientHandler": "connection",
            "Destination": "destination",
            "HalfClosingConnection": "connection",
            "NBDClient": "client",
            "PendingRequests": "requests",
            "RequestFailed": "requests",
            "describe_failed_connect": "connecting",
        },
    )

__all__ = [
    "ClientConnection",
    "ClientFactory",
    "ClientFailed",
    "ClientHandler",
    "Destination",
    "HalfClosingConnection",
    "NBDClient",
    "PendingRequests",
    "RequestFailed",
    "describe_failed_connect",
]
