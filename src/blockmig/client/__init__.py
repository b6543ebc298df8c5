"""Our side of connections to NBD servers: of which everything that we ask of one is made.

Owns a connection (`connection`), the requests in flight on it (`requests`), and a client that waits
for what it asks (`client`). The copier of a migration, the channel of its hand-off, a relay's far
side and the tests' client are built on these.
"""

from .client import ClientFailed, NBDClient
from .connection import ClientConnection, ClientFactory, ClientHandler, HalfClosingConnection
from .destination import Destination
from .requests import PendingRequests, RequestFailed

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
]
