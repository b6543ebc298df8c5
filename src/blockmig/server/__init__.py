"""Serving a disk to clients: the server, and the server's side of NBD connections.

Owns connections, and the disk access that their clients share. What may be done on a connection is
decided by its handler, so that a migration's receiver uses the same connections as the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
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
else:
    __getattr__ = lazily(
        __name__,
        {
            "Admission": "admission",
            "AllowList": "allow_list",
            "Changes": "changes",
            "Clients": "clients",
            "ConnectionSettings": "handshake",
            "DiskAccess": "access",
            "Exports": "exports",
            "IBatchHandler": "handler",
            "IConnectionOwner": "owner",
            "IExportHandler": "handler",
            "LatencyMonitor": "latency",
            "LimitedLog": "limited_log",
            "OwnedConnection": "owner",
            "RefusedConnection": "refused",
            "Relay": "relay",
            "Server": "serving",
            "ServerConnection": "connection",
            "Throttle": "changes",
            "TrafficCounters": "traffic",
        },
    )

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
