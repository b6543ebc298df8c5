"""Acts on the messages that blockmig senders write to the side export, before they are
acknowledged.

Rules (design, section 2: R2, R6, R10, R12):

* only the migration that the receiver was started for is listened to, if it was started for one;
* a claim is kept in memory, and takes nobody's place: that of a whole copy of an identified
  migration, of an attempt that was claimed, and of one whose source is retired is refused. The
  claim of the very migration whose copy is recorded as whole withdraws that: this is recorded;
* a copy is confirmed as whole only if it is durable and recorded as such;
* that the source is retired is believed only of such a copy, or with the token of its disk, which
  was given to nobody before all of it was here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ...nbd import Errno
from ...server import LimitedLog, ServerConnection
from ..handoff.message import HandoffMessage, HandoffPhase
from ..records.files import Phase
from .attempt import IncomingAttempt
from .claims import StandingClaims
from .disk import DestinationDisk
from .disk_failures import DiskFailures
from .durability import Durability
from .errnos import EventualErrno, errno_for
from .progress_timer import ProgressTimer
from .record import DestinationRecord

_log = Logger()


class SentMessage(NamedTuple):
    """A message as it came.

    @ivar connection: to the side export, from where it came.
    @ivar nonce: what its proof must contain.
    """

    message: HandoffMessage
    connection: ServerConnection
    nonce: str


class MessageHandler:
    """Answers the messages of one migration's senders.

    @param disk: the disk that they are about.
    @param record: the record of it.
    @param claims: those that stand.
    @param durability: how much of it is durable.
    @param failures: handles what goes wrong meanwhile.
    @param progress: notified of progress.
    @param refusals: bounds the lines about refused messages.
    @param take_message: takes a message once more, when something that was in its way is over.
    """

    def __init__(
        self,
        disk: DestinationDisk,
        record: DestinationRecord,
        claims: StandingClaims,
        durability: Durability,
        failures: DiskFailures,
        *,
        progress: ProgressTimer,
        take_message: Callable[[SentMessage], EventualErrno],
        refusals: LimitedLog,
    ) -> None:
        self._disk = disk
        self._record = record
        self._claims = claims
        self._durability = durability
        self._failures = failures
        self._progress = progress
        self._take_message = take_message
        self._refusals = refusals
        self._refused: WeakKeyDictionary[ServerConnection, str] = WeakKeyDictionary()

    def handle(self, sent: SentMessage, attempt: IncomingAttempt | None) -> EventualErrno:
        """Act on a message; the result says whether it is acknowledged.

        @param attempt: the one that goes on, if any does.
        """
        message = sent.message
        if why := self._claims.why_not(message, sent.nonce):
            return self.refuse(sent, why)
        if message.phase == HandoffPhase.COPYING:
            return self._claim(sent, attempt)
        if message.phase == HandoffPhase.COPIED:
            return self._confirm_copied(sent, attempt)
        if message.phase == HandoffPhase.RETIRED:
            return self._accept_retirement(sent)
        return Errno.EINVAL

    def refuse(self, sent: SentMessage, why: str, answer: Errno = Errno.EPERM) -> Errno:
        """Log why a message is refused, once for each connection and reason.

        @return: C{answer}.
        """
        if self._refused.get(sent.connection) == why or not self._refusals.has_room():
            return answer
        self._refused[sent.connection] = why
        _log.warn(
            "{peer}: {phase} of the migration of {source} is refused: {why}{others}",
            event="refused",
            peer=sent.connection.peer,
            source=f"{sent.message.host}:{sent.message.disk}",
            id=sent.message.id,
            phase=repr(sent.message.phase.value),
            why=why,
            others=self._refusals.others(),
        )
        return answer

    def _claim(self, sent: SentMessage, attempt: IncomingAttempt | None) -> EventualErrno:
        """An attempt of the migration that a message names is about to begin."""
        message, record = sent.message, self._record
        ours = record.matches(message)
        if record.retired:
            return self.refuse(sent, "the source of the copy here was retired")
        if record.is_protected and not ours:
            return self.refuse(sent, f"here is a whole copy of {record.describe_source()}")
        if self._disk.size and message.size != self._disk.size:
            why = f"its disk has {message.size} bytes, this one {self._disk.size}"
            return self.refuse(sent, why, Errno.EINVAL)
        if attempt is not None and record.claimed(attempt.connection):
            if not ours:
                return self.refuse(sent, f"{record.describe_source()} is being received")
            return self._abort_lost_attempt(sent, attempt)
        if not self._claims.add(sent.connection, message):
            return self.refuse(sent, "its connection has made too many claims")
        if ours and record.phase == Phase.COPIED:
            self._durability.content_changes()
            return self._failures.reply_when_done(record.record_phase(Phase.COPYING))
        return Errno.OK

    def _abort_lost_attempt(self, sent: SentMessage, attempt: IncomingAttempt) -> EventualErrno:
        """The sender of the attempt that goes on wants to begin another: it has lost this one.

        Its connection may be half-open, and is ended; the claim is answered once that is gone.
        """
        attempt.connection.abort()
        return attempt.over().addCallback(lambda _: self._take_message(sent))

    def _confirm_copied(self, sent: SentMessage, attempt: IncomingAttempt | None) -> EventualErrno:
        """Whether the copy of that migration is whole, durable, and recorded as such."""
        message = sent.message
        if self._is_copied(message):
            return Errno.OK
        if (
            not self._record.matches(message)
            or not self._durability.durable
            or attempt is None
            or not self._record.claimed(attempt.connection)
            or attempt.connection.first_cookie != int(message.cookie, 16)  # of an earlier attempt
        ):
            return self.refuse(sent, "no whole, durable copy of it is here")
        return self._record_copied(message)

    def _record_copied(self, message: HandoffMessage) -> Deferred[Errno]:
        return self._durability.record_copied().addCallbacks(
            lambda _: Errno.OK if self._is_copied(message) else Errno.EPERM,
            lambda failure: errno_for(failure.value),
        )

    def _is_copied(self, message: HandoffMessage) -> bool:
        return self._durability.copied and self._record.matches(message)

    def _accept_retirement(self, sent: SentMessage) -> EventualErrno:
        """The source is retired: from now on this is the canonical copy."""
        message = sent.message
        if self._was_complete(message):
            self._record.assume_retired(message)
            self._durability.assume_copied()
        if not self._is_copied(message):
            return self.refuse(sent, "its source is said to be retired, and its copy is not here")
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
