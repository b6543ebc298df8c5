"""What a sender of ours says by the side export, and what comes of it before that is acknowledged.

Rules (design, section 2: R2, R6, R12):

* a claim is put on record before anything may be sent; it never takes the place of another
  migration's whole copy, nor of one whose source is retired;
* that the copy is whole is said only of one that is durable and on record as such;
* that the source is retired is believed only of such a copy, or by the token of its disk, which was
  told to nobody before all of it was here.
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
    @param record: what is on record of it.
    @param durability: how much of it is durable.
    @param failures: told of what goes wrong meanwhile.
    @param progress: told that the migration gets on.
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
        """A message came; the answer says whether it is acknowledged.

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

        Its connection may be half-open, and is ended; until it is gone the answer is no.
        """
        if self._record.matches(message) and self._record.claimed(attempt.connection):
            attempt.connection.abort()
        return Errno.EPERM

    def _confirm_copied(
        self, message: HandoffMessage, attempt: IncomingAttempt | None
    ) -> EventualErrno:
        """Whether the copy of that migration is whole, durable, and on record as such."""
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

        It died between taking its record away and its exit, and the sender, to which it has
        acknowledged everything, has not seen that end: but it has been told what only this file is
        known by, and that never before all of it was here.
        """
        return (
            bool(message.token)
            and message.token == self._disk.identity()
            and self._record.phase is None
            and message.size == self._disk.size
        )
