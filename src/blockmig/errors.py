"""How a migration ends: a summary, or one of five errors, each with its exit status.

Source: the design, section 2, "Exit statuses". The messages are single lines for the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit statuses of every command."""

    DONE = 0
    REFUSED = 1
    FAILED = 3
    GAVE_UP = 4
    UNCONFIRMED = 5


class MigrationError(Exception):
    """A migration that did not complete.

    @cvar status: the exit status for it.
    """

    status: ExitStatus


class Refused(MigrationError):
    """Bad usage, or refused at the start; nothing was touched."""

    status = ExitStatus.REFUSED


class InUse(Refused):
    """The disk object, or the server, is in use by another object; or this one was used before."""


class AlreadyDone(MigrationError):
    """There is nothing to do: an earlier run has completed this very migration; nothing was
    touched."""

    status = ExitStatus.DONE


class LocalFailure(MigrationError):
    """Failed for a local reason: a disk error, no space, no permission."""

    status = ExitStatus.FAILED


class GaveUp(MigrationError):
    """Stopped, or gave up before completion; the destination is not canonical."""

    status = ExitStatus.GAVE_UP


class Unconfirmed(MigrationError):
    """All the data is there and durable, but it is not known whether the disconnect arrived."""

    status = ExitStatus.UNCONFIRMED


@dataclass(frozen=True, slots=True)
class Summary:
    """A migration that completed.

    @ivar bytes: the size of the disk.
    @ivar data: bytes that were sent as data, in the last attempt.
    @ivar zeroes: bytes that were zeroed or trimmed, in the last attempt.
    @ivar seconds: from the start of the first attempt to the end of the last.
    @ivar attempts: the number of attempts.
    """

    bytes: int
    data: int
    zeroes: int
    seconds: float
    attempts: int

    @property
    def rate(self) -> float:
        """Bytes of data per second."""
        return self.data / self.seconds if self.seconds > 0 else 0.0
