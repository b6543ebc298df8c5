"""The exceptions about disks that are not `OSError`.

Each has a message of one line, for people. They are separate from the kinds of disks, so that code
that checks a disk need not import one.
"""

from __future__ import annotations


class DiskRefused(Exception):
    """The disk cannot be used as it is; nothing was changed. The message is one line."""


class DiskInUse(DiskRefused):
    """Another program has locked the disk."""


class DiskChanged(DiskRefused):
    """The disk is no longer what was opened. The message, one line, says what was found."""


class NotDurable(Exception):
    """Something was done that a power failure may undo. The message is one line."""
