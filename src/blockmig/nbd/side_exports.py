"""Side exports: what our own two ends add to plain NBD, by additional export names only.

For an export NAME a receiver also lists NAME.handoff, and a server NAME.served. Any client can read
them; with a peer that does not know them plain NBD is spoken. A receiver's NAME.scratch is listed
nowhere: whoever may have it knows of it from NAME.handoff, and for others it would only be one that
they cannot open.
"""

from __future__ import annotations

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


def _side_export_name(export: str, ending: str) -> str | None:
    name = export + ending
    return name if len(name.encode()) <= MAXIMUM_NAME else None


def handoff_export_name(export: str) -> str | None:
    """A receiver's side export of C{export}; None if that would be too long for a name."""
    return _side_export_name(export, HANDOFF_EXPORT)


def served_export_name(export: str) -> str | None:
    """A server's side export of C{export}; None if that would be too long for a name."""
    return _side_export_name(export, SERVED_EXPORT)


def side_exports(export: str) -> tuple[str, ...]:
    """The names that show whether a server of C{export} is a receiver, or serves its disk."""
    names = (handoff_export_name(export), served_export_name(export))
    return tuple(name for name in names if name is not None)
