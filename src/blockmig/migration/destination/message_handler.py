"""Acts on the messages that blockmig senders write to the side export, before they are
acknowledged.

Rules (design, section 2: R2, R6, R12):

* a claim is recorded before anything may be sent; it never displaces another migration's whole
  copy, nor one whose source is retired;
* a copy is confirmed as whole only if it is durable and recorded as such;
* that the source is retired is believed only of such a copy, or with the token of its disk, which
  was given to nobody before all of it was here.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ...nbd import Errno
from ..handoff.message import HandoffMessage, HandoffPhase
from .attempt import IncomingAttempt
from .disk import DestinationDisk
from .disk_failures import DiskFailures
from .durability import Durability
from .errnos import EventualErrno
from .progress_timer import ProgressTimer
from .record import DestinationRecord

_log = Logger()


class MessageHandler:
    """Answers the messages of one migration's senders.

    @param disk: the disk that they are about.
    @param record: the record of it.
    @param durability: how much of it is durable.
    @param failures: handles what goes wrong meanwhile.
    @param progress: notified of progress.
    """

    def __init__(
        self,
        disk: DestinationDisk,
        record: DestinationRecord,
        durability: Durability,
        failures: DiskFailures,
        progress: ProgressTimer,
    ) -> None:
        self._disk = disk
        self._record = record
        self._durability = durability
        self._failures = failures
        self._progress = progress

    def handle(self, message: HandoffMessage, attempt: IncomingAttempt | None) -> EventualErrno:
        """Act on a message; the result says whether it is acknowledged.

        @param attempt: the one that goes on, if any does.
        """
        if message.phase == HandoffPhase.COPYING:
            if attempt is not None:
                return self._abort_lost_attempt(message, attempt)
            return self._claim(message)
        if message.phase == HandoffPhase.COPIED:
            return self._confirm_copied(message, attempt)
        if message.phase == HandoffPhase.RETIRED:
            return self._accept_retirement(message)
        return Errno.EINVAL

    def _claim(self, message: HandoffMessage) -> EventualErrno:
        """An attempt of the migration that C{message} names is about to begin."""
        record = self._record
        if record.retired or (record.is_protected and not record.matches(message)):
            return Errno.EPERM
        if message.size != self._disk.size or not message.is_from_sender:
            return Errno.EINVAL
        record.claim(message)
        self._durability.content_changes()
        return self._failures.reply_when_done(record.record_attempt(message))

    def _abort_lost_attempt(self, message: HandoffMessage, attempt: IncomingAttempt) -> Errno:
        """The sender of the attempt that goes on wants to begin another: it has lost this one.

        Its connection may be half-open, and is ended; until it is gone the claim is refused.
        """
        if self._record.matches(message) and self._record.claimed(attempt.connection):
            attempt.connection.abort()
        return Errno.EPERM

    def _confirm_copied(
        self, message: HandoffMessage, attempt: IncomingAttempt | None
    ) -> EventualErrno:
        """Whether the copy of that migration is whole, durable, and recorded as such."""
        if self._is_copied(message):
            return Errno.OK
        if (
            not self._record.matches(message)
            or not self._durability.durable
            or attempt is None
            or not self._record.claimed(attempt.connection)
        ):
            return Errno.EPERM
        return self._record_copied(message)

    def _record_copied(self, message: HandoffMessage) -> Deferred[Errno]:
        return self._durability.record_copied().addCallbacks(
            lambda _: Errno.OK if self._is_copied(message) else Errno.EPERM,
            lambda _: self._failures.errno,
        )

    def _is_copied(self, message: HandoffMessage) -> bool:
        return self._durability.copied and self._record.matches(message)

    def _accept_retirement(self, message: HandoffMessage) -> EventualErrno:
        """The source is retired: from now on this is the canonical copy."""
        if self._was_complete(message):
            self._record.assume_retired(message)
            self._durability.assume_copied()
        if not self._is_copied(message):
            return Errno.EPERM
        self._record.claim(message)
        self._progress.made()
        self._progress.begin()
        if self._record.retired:
            return self._failures.reply_when_done(self._record.wait_for_writes())
        _log.info(
            "{disk}: the source is retired; this copy is the canonical one",
            event="retired",
            disk=self._disk.name,
        )
        return self._failures.reply_when_done(self._record.record_retired())

    def _was_complete(self, message: HandoffMessage) -> bool:
        """Whether an earlier receiver of this very disk had completed that migration.

        It died between removing its record and exiting, and the sender, all of whose messages it
        had acknowledged, has not seen the end: but the sender has the token that identifies only
        this file, and that is never given before all of it is here.
        """
        return (
            bool(message.token)
            and message.token == self._disk.token()
            and self._record.phase is None
            and message.size == self._disk.size
        )
