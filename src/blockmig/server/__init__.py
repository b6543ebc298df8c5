"""Serving a disk to clients: the server, and the server's side of NBD connections.

Owns connections, and the disk access that their clients share. What may be done on a connection is
decided by its handler, so that a migration's receiver uses the same connections as the server.
"""

from .access import DiskAccess
from .admission import Admission
from .allow_list import AllowList
from .changes import Changes, Throttle
from .clients import Clients
from .connection import ServerConnection
from .exports import Exports
from .handler import IBatchHandler, IExportHandler
from .handshake import ConnectionSettings
from .latency import LatencyMonitor
from .limited_log import LimitedLog
from .owner import IConnectionOwner, OwnedConnection
from .refused import RefusedConnection
from .relay import Relay
from .serving import Server
from .traffic import TrafficCounters

__all__ = [
    "Admission",
    "AllowList",
    "Changes",
    "Clients",
    "ConnectionSettings",
    "DiskAccess",
    "Exports",
    "IBatchHandler",
    "IConnectionOwner",
    "IExportHandler",
    "LatencyMonitor",
    "LimitedLog",
    "OwnedConnection",
    "RefusedConnection",
    "Relay",
    "Server",
    "ServerConnection",
    "Throttle",
    "TrafficCounters",
]
