"""How a disk says no.

Owns the exceptions that are no `OSError`; each has a message of one line, for people. They are
apart from the kinds of disks, so that what judges a disk need not import one.
"""

from __future__ import annotations


class DiskRefused(Exception):
    """The disk cannot be used as it is, and nothing was touched; the message is one line."""


class DiskChanged(DiskRefused):
    """The disk is not what was opened any more; the message, of one line, says what was found."""


class NotDurable(Exception):
    """Something was done that a power failure may undo; the message is one line."""
