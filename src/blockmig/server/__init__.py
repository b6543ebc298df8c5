"""A disk to clients: the server, and the server's side of NBD connections.

Owns connections, and what their clients share of a disk. A connection asks its handler who may do
what on it, so that the receiver's are of the same kind as the server's.
"""

from .access import DiskAccess
from .changes import Changes, Throttle
from .clients import Clients
from .connection import ServerConnection
from .handler import IExportHandler
from .handshake import ConnectionSettings
from .latency import LatencyMonitor
from .relay import Relay
from .serving import Server
from .traffic import TrafficCounters

__all__ = [
    "Changes",
    "Clients",
    "ConnectionSettings",
    "DiskAccess",
    "IExportHandler",
    "LatencyMonitor",
    "Relay",
    "Server",
    "ServerConnection",
    "Throttle",
    "TrafficCounters",
]
