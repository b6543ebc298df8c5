"""How much of the content is durable, and how much of that is recorded.

The content has versions: it is another one when a change begins, and once more when the change is
done, since in between nobody can say how much of it a flush has included. Owns which version is
current, which one was last durable as a whole, and which one is recorded as copied.

Rules (design, section 2: R2, R3):

* a flush makes durable only what was written before it began: the copy is durable if it was whole
  then, and its version is still the same;
* an error that a write-back has consumed from such a flush is waited for;
* the record says C{copied} before the flush that found the whole copy is answered; a sender that
  uses the side export is believed only when it announces there that this was all: a disk in use is
  flushed more often.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...nbd import Request
from ..records.files import Phase
from .attempt import IncomingAttempt
from .record import DestinationRecord

_NONE = -1


class Durability:
    """The versions of one disk's content.

    @param record: records that the copy is whole.
    @param failed_to_record: called with the error if that fails.
    """

    def __init__(
        self, record: DestinationRecord, failed_to_record: Callable[[BaseException | None], None]
    ) -> None:
        self._record = record
        self._failed = failed_to_record
        self._version = 0
        self._durable = _NONE
        self._recorded = 0 if record.phase == Phase.COPIED else _NONE
        self._flushes: dict[int, int] = {}

    @property
    def durable(self) -> bool:
        """Whether every byte is here and durable."""
        return self._durable == self._version

    @property
    def copied(self) -> bool:
        """Whether every byte is here, durable, and recorded as such."""
        return self._recorded == self._version

    def content_changes(self) -> None:
        """The content is about to change, or has changed; or it no longer counts."""
        self._version += 1

    def assume_copied(self) -> None:
        """The current version is whole and durable: the sender has proved it."""
        self._recorded = self._version

    def flush_begins(self, request: Request) -> None:
        """A flush begins, with every byte here."""
        self._flushes[id(request)] = self._version

    def flush_ended(self, request: Request) -> int | None:
        """A flush, whichever it was, has ended.

        @return: the version that is durable now; None where that changes nothing: not every byte
            was here, some have changed since, or it is recorded already.
        """
        version = self._flushes.pop(id(request), None)
        return version if version == self._version and not self.copied else None

    def record_if_unchanged(self, version: int, attempt: IncomingAttempt) -> Deferred[None] | None:
        """That version is durable: record it, if it is still the current one.

        @param attempt: whose content it is.
        @return: fires once it is recorded; None where there is nothing to wait for.
        """
        if version != self._version:
            return None
        self._durable = version
        return None if self._record.claimed(attempt.connection) else self.record_copied()

    def record_copied(self) -> Deferred[None]:
        """Record that every byte is here and durable.

        @return: fires once it is recorded; fails if it could not be.
        """
        version = self._version

        def recorded(_: None) -> None:
            if version == self._version:
                self._recorded = version

        def failed(failure: Failure) -> Failure:
            self._failed(failure.value)
            return failure

        return self._record.record_phase(Phase.COPIED).addCallbacks(recorded, failed)
