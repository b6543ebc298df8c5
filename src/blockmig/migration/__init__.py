"""Migrations: the two ends of one, and the hand-off between them.

Owns attempts, restarts, coverage and the order of the hand-off. Knows the wire through `nbd`, disks
through `storage`, sockets through `transport`, and connections of clients through `server`.
"""

from .outcome import (
    ExitStatus,
    GaveUp,
    LocalFailure,
    MigrationError,
    Refused,
    Summary,
    Unconfirmed,
)
from .receiver import Receiver
from .sender import Progress, Sender

__all__ = [
    "ExitStatus",
    "GaveUp",
    "LocalFailure",
    "MigrationError",
    "Progress",
    "Receiver",
    "Refused",
    "Sender",
    "Summary",
    "Unconfirmed",
]
