"""Opens the disk at a path, whatever its kind."""

from __future__ import annotations

from ..syscalls import (
    SYSTEM,
    SystemCalls,
)
from .device import BlockDisk
from .file import FileDisk
from .record_paths import is_device


def open_disk(
    path: str,
    *,
    writable: bool = True,
    size: int | None = None,
    sized_later: bool = False,
    exclusive: bool = True,
    state_directory: str | None = None,
    system: SystemCalls = SYSTEM,
) -> FileDisk | BlockDisk:
    """Open the file or block device at C{path}.

    @param size: bytes; a missing file is created (sparse) with it, anything else must have it.
    @param sized_later: without C{size}: a missing or empty file gets it later (L{FileDisk}).
    @param exclusive: False only to look at it: nobody is kept from using it, and nothing is made.
    @param state_directory: where the records of a block device are; None for the default.
    @raise DiskRefused: missing, a directory, no permission, empty, in use, another size.
    """
    if is_device(path):
        return BlockDisk(
            path,
            writable=writable,
            size=size,
            exclusive=exclusive,
            state_directory=state_directory,
            system=system,
        )
    return FileDisk(
        path,
        writable=writable,
        size=size,
        sized_later=sized_later,
        exclusive=exclusive,
        system=system,
    )
