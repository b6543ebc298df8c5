"""Disks, and what is known of them: extents, contents, coverage, locks, place and users.

Owns descriptors of disks and nothing above them. Its calls block; the layers above put the slow
ones in threads. Imports no reactor.
"""

from .contents import find_data, image_format, name_contents, sampled_places
from .coverage import Coverage
from .device import BlockDisk
from .dirty import GRANULARITY, DirtyMap
from .disk import PROBE_SIZE
from .errors import DiskChanged, DiskRefused, NotDurable
from .file import FileDisk, identify
from .lock import is_locked
from .mounts import device_in_memory, filesystem_of, is_in_memory, is_remote
from .open import open_disk
from .record_paths import default_state_directory, record_path
from .scan import Piece, Scan
from .users import User, is_open_elsewhere, users_of
from .watched import DiskVersion

__all__ = [
    "GRANULARITY",
    "PROBE_SIZE",
    "BlockDisk",
    "Coverage",
    "DirtyMap",
    "DiskChanged",
    "DiskRefused",
    "DiskVersion",
    "FileDisk",
    "NotDurable",
    "Piece",
    "Scan",
    "User",
    "default_state_directory",
    "device_in_memory",
    "filesystem_of",
    "find_data",
    "identify",
    "image_format",
    "is_in_memory",
    "is_locked",
    "is_open_elsewhere",
    "is_remote",
    "name_contents",
    "open_disk",
    "record_path",
    "sampled_places",
    "users_of",
]
