"""Failures of the disk, and what they lead to.

Rules (design, section 2: R1, R13):

* a disk error ends the migration: the sender gets it as an NBD error first;
* a disk that has lost its name when it may be the only copy is no such error: it is saved
  (`rescue`), and no migration becomes complete with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ...errors import LocalFailure, MigrationError, Refused
from ...nbd import Errno, Request
from ...storage import DiskChanged
from ...syscalls import describe_error
from .disk import DestinationDisk
from .errnos import errno_for


class DiskFailure:
    """How the migration ends, since the disk failed.

    @param name: what to call the disk.
    @param error: what it failed with.
    @ivar outcome: the error to end with.
    @ivar errno: what requests are answered with until then.
    @ivar deadline: ends the time in which the sender may still receive the error.
    """

    def __init__(self, name: str, error: BaseException | None) -> None:
        self.errno = errno_for(error)
        self.deadline: IDelayedCall | None = None
        self.outcome: MigrationError
        if isinstance(error, Refused):
            self.outcome = error
        elif isinstance(error, DiskChanged):
            self.outcome = LocalFailure(f"{error}; what was received is not the disk")
        else:
            self.outcome = LocalFailure(f"{name}: {describe_error(error)}")

    def cancel_deadline(self) -> None:
        """The sender has received it, or the time is over."""
        if self.deadline is not None and self.deadline.active():
            self.deadline.cancel()


class DiskFailures:
    """Tells a real failure of the disk from the loss of its name.

    @param disk: the disk.
    @param may_be_the_only_copy: whether it must be saved if it loses its name now.
    @param failed: called with a failure.
    @param displaced: called with the error that reports the loss of its name.
    @ivar failure: the one that the migration ends with, once there is one.
    """

    def __init__(
        self,
        disk: DestinationDisk,
        *,
        may_be_the_only_copy: Callable[[], bool],
        failed: Callable[[BaseException | None], None],
        displaced: Callable[[BaseException | None], None],
    ) -> None:
        self.failure: DiskFailure | None = None
        self._disk = disk
        self._may_be_the_only_copy = may_be_the_only_copy
        self._failed = failed
        self._displaced = displaced

    def fail(self, error: BaseException | None) -> DiskFailure:
        """End the migration with that error."""
        self.failure = DiskFailure(self._disk.name, error)
        return self.failure

    def handle(self, error: BaseException | None) -> None:
        """Something about the disk failed; perhaps because it has lost its name."""
        if not self.check_displaced():
            self._failed(error)

    def check_displaced(self) -> bool:
        """Whether the disk lost its name when it may be the only copy; if so its rescue begins."""
        if not self._may_be_the_only_copy():
            return False
        try:
            self._disk.check_path()
        except DiskChanged as error:
            self._displaced(error)
            return True
        except OSError:
            pass  # then it cannot be decided
        return False

    def check_last_byte(self, request: Request) -> Errno:
        """Whether a change may be made: one that touches the last byte would give a truncated file
        its size back, and hide that a part of it is missing."""
        if request.offset + request.length < self._disk.size:
            return Errno.OK
        try:
            self._disk.check_path()
        except (DiskChanged, OSError) as error:
            self.handle(error)
            return errno_for(error)
        return Errno.OK

    def reply_when_done(self, working: Deferred[Any]) -> Deferred[Errno]:
        """OK once C{working} is done; an error, which ends the migration, if it fails."""

        def failed(failure: Failure) -> Errno:
            self.handle(failure.value)
            return errno_for(failure.value)

        return working.addCallbacks(lambda _: Errno.OK, failed)
