"""Whether a disk that has no size yet can have the one that a sender's claim says.

Rules (design, section 2: R12):

* that is found out before the claim is taken, and changes nothing: the size is decided by the first
  change of a claimed connection (`export`);
* it is tried with the file itself, which is empty: so never beside a write of the record, which
  checks that.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...storage import DiskRefused
from ...syscalls import describe_error
from .disk import DestinationDisk
from .record import DestinationRecord


class Sizing:
    """Checks the sizes that are claimed.

    @param disk: the disk.
    @param record: the record of it.
    """

    def __init__(self, disk: DestinationDisk, record: DestinationRecord) -> None:
        self._disk = disk
        self._record = record

    @property
    def is_open(self) -> bool:
        """Whether the disk has no size yet."""
        return not self._disk.size

    def check(self, size: int) -> Deferred[str]:
        """Find out whether the disk can have that size.

        @param size: bytes, more than 0.
        @return: fires with why it cannot, in words; "" if it can.
        """

        def unfit(failure: Failure) -> str:
            failure.trap(DiskRefused, OSError)
            if failure.check(OSError):
                return f"{self._disk.name}: {describe_error(failure.value)}"
            return failure.getErrorMessage()

        checking = self._record.run(lambda: self._disk.check_size(size))
        return checking.addCallbacks(lambda _: "", unfit)
