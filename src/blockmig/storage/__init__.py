"""Disks, and what is known of them: their extents, zeroes, coverage and locks.

Owns descriptors of disks and nothing above them. Its calls block; the layers above put the slow
ones in threads. Imports no reactor.
"""

from .coverage import Coverage
from .dirty import GRAIN, DirtyMap
from .disk import (
    PROBE_SIZE,
    BlockDisk,
    DiskRefused,
    FileDisk,
    NotDurable,
    default_state_directory,
    identify,
    open_disk,
    record_path,
)
from .lock import is_locked
from .scan import Piece, Scan
from .system import NO_WAIT, SYSTEM, SystemCalls, describe_error

__all__ = [
    "GRAIN",
    "NO_WAIT",
    "PROBE_SIZE",
    "SYSTEM",
    "BlockDisk",
    "Coverage",
    "DirtyMap",
    "DiskRefused",
    "FileDisk",
    "NotDurable",
    "Piece",
    "Scan",
    "SystemCalls",
    "default_state_directory",
    "describe_error",
    "identify",
    "is_locked",
    "open_disk",
    "record_path",
]
