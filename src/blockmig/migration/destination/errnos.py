"""The errors that requests and messages are answered with."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from ...errors import Refused
from ...nbd import Errno, errno_to_wire

EventualErrno = Errno | Deferred[Errno]
"""Known now, or once something is done."""


def errno_for(error: BaseException | None) -> Errno:
    """The NBD error that reports C{error}, which ends the migration, to a sender."""
    if isinstance(error, Refused):
        return Errno.EPERM
    return errno_to_wire(getattr(error, "errno", None))
