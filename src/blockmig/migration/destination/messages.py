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
from ..handoff.message import Page, Stage
from .answers import Answer
from .attempt import IncomingAttempt
from .disk import DestinationDisk
from .durability import Durability
from .progress import Progress
from .record import DestinationRecord
from .trouble import DiskTrouble

_log = Logger()


class Messages:
    """Answers the messages of one migration's senders.

    @param disk: the disk that they are about.
    @param record: what is on record of it.
    @param durability: how much of it is durable.
    @param trouble: told of what goes wrong meanwhile.
    @param progress: told that the migration gets on.
    """

    def __init__(
        self,
        disk: DestinationDisk,
        record: DestinationRecord,
        durability: Durability,
        trouble: DiskTrouble,
        progress: Progress,
    ) -> None:
        self._disk = disk
        self._record = record
        self._durability = durability
        self._trouble = trouble
        self._progress = progress

    def take(self, page: Page, attempt: IncomingAttempt | None) -> Answer:
        """A message came; the answer says whether it is acknowledged.

        @param attempt: the one that goes on, if any does.
        """
        if page.phase == Stage.COPYING:
            return self.claim(page) if attempt is None else self.replace(page, attempt)
        if page.phase == Stage.COPIED:
            return self.confirm(page, attempt)
        return self.retire(page) if page.phase == Stage.RETIRED else Errno.EINVAL

    def claim(self, page: Page) -> Answer:
        """An attempt of the migration that C{page} names is about to begin."""
        record = self._record
        if record.retired or (record.is_kept and not record.is_about(page)):
            return Errno.EPERM
        if page.size != self._disk.size or not page.is_message:
            return Errno.EINVAL
        record.claim(page)
        self._durability.changes()
        return self._trouble.answer(record.put_attempt(page))

    def replace(self, page: Page, attempt: IncomingAttempt) -> Errno:
        """The sender of the attempt that goes on wants to begin another: it has lost this one.

        Its connection may be half-open, and is ended; until it is gone the answer is no.
        """
        if self._record.is_about(page) and self._record.claimed(attempt.connection):
            attempt.connection.abort()
        return Errno.EPERM

    def confirm(self, page: Page, attempt: IncomingAttempt | None) -> Answer:
        """Whether the copy of that migration is whole, durable, and on record as such."""
        if self._is_copied(page):
            return Errno.OK
        if (
            not self._record.is_about(page)
            or not self._durability.durable
            or attempt is None
            or not self._record.claimed(attempt.connection)
        ):
            return Errno.EPERM
        return self._put_copied(page)

    def _put_copied(self, page: Page) -> Deferred[Errno]:
        return self._durability.put_copied().addCallbacks(
            lambda _: Errno.OK if self._is_copied(page) else Errno.EPERM,
            lambda _: self._trouble.told,
        )

    def _is_copied(self, page: Page) -> bool:
        return self._durability.copied and self._record.is_about(page)

    def retire(self, page: Page) -> Answer:
        """The source is retired: from now on this is the canonical copy."""
        if self._was_complete(page):
            self._record.take_for_whole(page)
            self._durability.take_for_copied()
        if not self._is_copied(page):
            return Errno.EPERM
        self._record.claim(page)
        self._progress.made()
        self._progress.begin()
        if self._record.retired:
            return self._trouble.answer(self._record.settled())
        _log.info(
            "{disk}: the source is retired; this copy is the canonical one",
            event="retired",
            disk=self._disk.name,
        )
        return self._trouble.answer(self._record.put_retired())

    def _was_complete(self, page: Page) -> bool:
        """Whether an earlier receiver of this very disk had completed that migration.

        It died between taking its record away and its exit, and the sender, to which it has
        acknowledged everything, has not seen that end: but it has been told what only this file is
        known by, and that never before all of it was here.
        """
        return (
            bool(page.token)
            and page.token == self._disk.identity()
            and self._record.phase is None
            and page.size == self._disk.size
        )
