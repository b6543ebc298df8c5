"""What goes wrong with the disk, and what comes of that.

Rules (design, section 2: R1, R13):

* a disk error ends the migration: the sender gets it as an NBD error first;
* a disk that has lost its name when it may be the only copy is no such error: it is saved
  (`rescue`), and nobody's migration becomes complete with it.
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
from .answers import error_number
from .disk import DestinationDisk


class DiskFailure:
    """How the migration ends, since the disk failed.

    @param name: what to call the disk.
    @param error: what it failed with.
    @ivar outcome: the error to end with.
    @ivar answer: what requests are answered with until then.
    @ivar deadline: until when the sender may take it from us.
    """

    def __init__(self, name: str, error: BaseException | None) -> None:
        self.answer = error_number(error)
        self.deadline: IDelayedCall | None = None
        self.outcome: MigrationError
        if isinstance(error, Refused):
            self.outcome = error
        elif isinstance(error, DiskChanged):
            self.outcome = LocalFailure(f"{error}; what was received is not the disk")
        else:
            self.outcome = LocalFailure(f"{name}: {describe_error(error)}")

    def cancel_deadline(self) -> None:
        """It has, or the time is over."""
        if self.deadline is not None and self.deadline.active():
            self.deadline.cancel()


class DiskFailures:
    """Tells a real failure of the disk from the loss of its name.

    @param disk: the disk.
    @param may_be_the_only_copy: whether it must be saved if it loses its name now.
    @param failed: told of a failure.
    @param displaced: told of the loss of its name.
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

    @property
    def reported(self) -> Errno:
        """What requests are answered with that came to nothing by it."""
        return self.failure.answer if self.failure is not None else Errno.EIO

    def fail(self, error: BaseException | None) -> DiskFailure:
        """The migration ends with that."""
        self.failure = DiskFailure(self._disk.name, error)
        return self.failure

    def broke(self, error: BaseException | None) -> None:
        """Something about the disk failed; perhaps since it has lost its name."""
        if not self.is_displaced():
            self._failed(error)

    def is_displaced(self) -> bool:
        """Whether the disk lost its name when it may be the only copy; it is rescued then."""
        if not self._may_be_the_only_copy():
            return False
        try:
            self._disk.check_path()
        except DiskChanged as error:
            self._displaced(error)
            return True
        except OSError:
            pass  # nobody can tell
        return False

    def check_end(self, request: Request) -> Errno:
        """Whether a change may be made: one that touches the last byte gives a file that was cut
        its size again, so that nobody could tell any more that a part of it is missing."""
        if request.offset + request.length < self._disk.size:
            return Errno.OK
        try:
            self._disk.check_path()
        except (DiskChanged, OSError) as error:
            self.broke(error)
            return error_number(error)
        return Errno.OK

    def answer(self, working: Deferred[Any]) -> Deferred[Errno]:
        """OK once that is done; an error, which ends the migration, if it fails."""

        def failed(failure: Failure) -> Errno:
            self.broke(failure.value)
            return error_number(failure.value)

        return working.addCallbacks(lambda _: Errno.OK, failed)
