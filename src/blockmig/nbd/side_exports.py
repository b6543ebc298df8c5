"""Side exports: what our own two ends add to plain NBD, by additional export names only.

For an export NAME a receiver also lists NAME.handoff, and a server NAME.served. Any client can read
them; with a peer that does not know them plain NBD is spoken. A receiver's NAME.scratch is listed
nowhere: whoever may have it knows of it from NAME.handoff, and for others it would only be one that
they cannot open.

A receiver that does not know yet how large the disk will be offers it as NAME.sized-N to a client
that says the size, N bytes, so; it does not list that.
"""

from __future__ import annotations

import re
from typing import Final

from .constants import MAXIMUM_NAME

HANDOFF_EXPORT: Final = ".handoff"
"""The suffix of a receiver's side export."""

SERVED_EXPORT: Final = ".served"
"""The suffix of a server's side export."""

SCRATCH_EXPORT: Final = ".scratch"
"""The suffix of a receiver's export that stores nothing."""

SCRATCH_SIZE: Final = 1 << 62
"""Bytes that it is said to have: any offset of a disk is within that, and no disk is so large, so
that none can be taken for it."""

_SIZED: Final = ".sized-"
_LARGEST: Final = (1 << 63) - 1

LONGEST_SUFFIX: Final = len(f"{_SIZED}{_LARGEST}")
"""Bytes of the longest of all suffixes."""


def _side_export_name(export: str, ending: str) -> str | None:
    name = export + ending
    return name if len(name.encode()) <= MAXIMUM_NAME else None


def handoff_export_name(export: str) -> str | None:
    """A receiver's side export of C{export}; None if that would be too long for a name."""
    return _side_export_name(export, HANDOFF_EXPORT)


def served_export_name(export: str) -> str | None:
    """A server's side export of C{export}; None if that would be too long for a name."""
    return _side_export_name(export, SERVED_EXPORT)


def sized_export_name(export: str, size: int) -> str | None:
    """What a receiver calls C{export} if it has C{size} bytes; None if that would be too long."""
    return _side_export_name(export, f"{_SIZED}{size}")


def size_in_name(name: str, export: str) -> int:
    """The size that the name of an export says of C{export}, in bytes; 0 if it says none."""
    start, size = export + _SIZED, name[len(export) + len(_SIZED) :]
    if not name.startswith(start) or not re.fullmatch("[1-9][0-9]{0,18}", size):
        return 0
    return int(size) if int(size) <= _LARGEST else 0


def side_exports(export: str) -> tuple[str, ...]:
    """The names that show whether a server of C{export} is a receiver, or serves its disk."""
    names = (handoff_export_name(export), served_export_name(export))
    return tuple(name for name in names if name is not None)
