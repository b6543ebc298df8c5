"""One migration at its destination: what its states share, and what is done between them.

Owns the parts of a migration (its disk, its record, how much is durable, its progress) and joins
them; when something is done is up to the `machine`, whose actions are the methods here, and what a
sender's message causes up to `message_handler`. Counts the attempts, and says how far they are: the
C{migration} of `blockmig status`. The connections and the listening are the receiver's.

Rules (design, section 2: R2 to R5, R13):

* during an attempt, requests of anybody else that change the disk are answered EPERM;
* coverage belongs to the attempt and is forgotten with it; an attempt that covers nothing new for
  the idle timeout is ended, unless its sender has said who it is and the copy is whole;
* the record says C{copying} before a byte is written; a change to a whole copy has it say so first;
* a disconnect completes the migration only if it comes from the attempt's connection and the whole
  disk is covered; or if the source was retired, and it comes from a connection that the migration
  claimed. The disk is then flushed, whether or not the sender asked for that, and the record
  removed, before the migration is reported complete to anybody;
* what is found once the source may be retired must not cost the only copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...errors import MigrationError, Summary
from ...nbd import Errno, Request
from ...runtime import Runtime
from ...server import LimitedLog, ServerConnection
from ..records.files import Phase
from .attempt import IncomingAttempt
from .claims import StandingClaims
from .completion import Completion
from .disk import DestinationDisk
from .disk_failures import DiskFailure, DiskFailures
from .durability import Durability
from .errnos import EventualErrno
from .machine import MigrationInputs, make_machine
from .message_handler import MessageHandler, SentMessage
from .outcome import Outcome
from .progress_timer import ProgressTimer
from .record import DestinationRecord
from .replacement import Replacement
from .report import MigrationReport
from .rescue import Rescue
from .sizing import Sizing

_log = Logger()

_REPORT_TIMEOUT: Final = 5.0
_IDLE_REPORT_TIMEOUT: Final = 0.5
_MOST_LINES: Final = 100
"""About refused messages, a minute."""


class IncomingMigration:
    """A migration into a disk.

    @param disk: where to.
    @param record: the record of it.
    @param claims: those of its senders.
    @param progress: notified of progress.
    @param outcome: given the result.
    @param runtime: the reactor, threads and system calls to use.
    @ivar claims: those of its senders.
    @ivar machine: takes the inputs.
    @ivar durability: how much of the disk is durable.
    @ivar failures: handles what goes wrong with the disk.
    @ivar report: how the migration stands.
    @ivar sizing: checks the sizes that are claimed, where the disk has none yet.
    @ivar refusals: bounds the lines about what is refused.
    @ivar is_taken: a sender that has said who it is has begun, or wants to: nobody comes between
        its attempts who has not.
    @ivar attempts: how many have begun.
    @ivar attempt: the one that goes on, or went on when the end began.
    @ivar attempt_begins: called when one does.
    """

    def __init__(
        self,
        disk: DestinationDisk,
        record: DestinationRecord,
        claims: StandingClaims,
        *,
        progress: ProgressTimer,
        outcome: Outcome,
        runtime: Runtime,
    ) -> None:
        self.disk = disk
        self.record = record
        self.claims = claims
        self.attempts = 0
        self.attempt: IncomingAttempt | None = None
        self.attempt_begins: Callable[[], None] = lambda: None
        self.machine: MigrationInputs = make_machine(self)
        self.failures = DiskFailures(
            disk,
            may_be_the_only_copy=self.may_be_the_only_copy,
            failed=self.machine.disk_failed,
            displaced=self.machine.displaced,
        )
        self.durability = Durability(record, self.failures.handle)
        self.report = MigrationReport(
            disk,
            record,
            self.durability,
            outcome,
            is_working=lambda: self.is_working,
            secret=claims.identity.secret,
        )
        self.refusals = LimitedLog(runtime.reactor.seconds, _MOST_LINES)
        self._message_handler = MessageHandler(
            disk,
            record,
            claims,
            self.durability,
            self.failures,
            progress=progress,
            take_message=self.machine.take_message,
            refusals=self.refusals,
        )
        self.sizing = Sizing(disk, runtime)
        self._progress = progress
        self._outcome = outcome
        self._runtime = runtime
        self._attempt_began = 0.0
        self._completion: Completion | None = None
        self._replacement: Replacement | None = None
        self._rescue: Rescue | None = None
        self.is_taken = False

    # Queries.

    def owns_attempt(self, connection: ServerConnection) -> bool:
        """Whether the attempt is C{connection}'s."""
        return self.attempt is not None and self.attempt.connection is connection

    def is_named(self, connection: ServerConnection) -> bool:
        """Whether a message that was accepted is about C{connection}."""
        return self.claims.of(connection) is not None or self.record.claimed(connection)

    def is_replaced_by(self, connection: ServerConnection) -> Deferred[None] | None:
        """Whether the attempt that goes on must make way for C{connection}, which wants to change
        the disk.

        @return: None if not; or a Deferred that fires when the attempt is over.
        """
        attempt, replacement = self.attempt, self._replacement
        if attempt is None or attempt.connection is connection or self._is_ending:
            return None
        if self.record.claimed(attempt.connection) or self.claims.of(connection) is None:
            return None
        self.is_taken = True
        if replacement is None:
            self._replacement = Replacement(attempt, connection.peer, self._runtime.reactor)
        return attempt.over()

    @property
    def _is_ending(self) -> bool:
        ending = self._completion is not None or self.failures.failure is not None
        return ending or self._outcome.result is not None

    def completes(self, connection: ServerConnection) -> bool:
        """Whether a disconnect of C{connection} completes the migration."""
        if self.record.retired and self.record.claimed(connection):
            return True
        attempt = self.attempt
        return attempt is not None and self.owns_attempt(connection) and attempt.coverage.complete

    def may_be_silent(self, connection: ServerConnection) -> bool:
        """Whether C{connection} is silent because it waits for us, or for the source's
        retirement.

        Whoever has not said who it is retires nothing, as far as we know, and keeps others out.
        """
        if not self.owns_attempt(connection):
            return False
        copied = self.durability.copied and self.record.claimed(connection)
        return copied or self._completion is not None

    @property
    def is_working(self) -> bool:
        """Whether the sender that has the attempt waits for us."""
        return self.attempt is not None and self.attempt.connection.waits_for_us

    def progress_of(self, connection: ServerConnection) -> int | None:
        """How far the attempt of C{connection} is; None if it has none, or has nothing to do."""
        attempt = self.attempt
        if (
            attempt is None
            or attempt.connection is not connection
            or self.may_be_silent(connection)
        ):
            return None
        return attempt.progress()

    def may_be_the_only_copy(self) -> bool:
        """Whether the source may be retired, as far as is known here."""
        return self.durability.copied or self._completion is not None

    @property
    def is_completing(self) -> bool:
        """Whether the disconnect was accepted, and the outcome is not known yet."""
        return self._completion is not None and self._outcome.result is None

    @property
    def is_rescuing(self) -> bool:
        """Whether the disk is being given another name."""
        return self._rescue is not None and self._outcome.result is None

    def status(self) -> dict[str, Any]:
        """How far it is, for humans and scripts; bytes."""
        current, covered, rate = self.record.current, 0, None
        if self.attempt is not None:
            covered = self.attempt.coverage.covered
            seconds = self._runtime.reactor.seconds() - self._attempt_began
            rate = covered / seconds if seconds > 0 else None
        rest = self.disk.size - covered
        return {
            "attempts": self.attempts,
            "covered": covered,
            "rate": None if rate is None else round(rate),
            "expected_end": round(rest / rate, 1) if rate else None,
            "source": str(current.source) if current is not None else "",
        }

    def wait_for_end(self) -> EventualErrno:
        """OK; during the last flush, only after it has ended."""
        completion = self._completion
        if completion is None or self._outcome.complete or self.failures.failure is not None:
            return Errno.OK
        return completion.wait()

    @property
    def ending_errno(self) -> Errno | None:
        """What changes and messages are answered once the migration ends or fails; None before.

        Who is released by that may ask at once, in the middle of the transition, when the machine
        cannot be asked.
        """
        if (failure := self.failures.failure) is not None:
            return failure.errno
        is_ending = self._rescue is not None or self._outcome.result is not None
        return Errno.ESHUTDOWN if is_ending else None

    def may_go_on(self, connection: ServerConnection) -> bool:
        """Whether C{connection} may change the disk as it did before, with nothing to wait for.

        It is what L{change} and the machine would answer; but that costs more than all else that a
        request needs.
        """
        attempt, record = self.attempt, self.record
        if attempt is None or not attempt.goes_on or attempt.connection is not connection:
            return False
        return record.phase == Phase.COPYING and not record.retired and self.ending_errno is None

    def batch_covered(self, requests: Sequence[Request]) -> None:
        """Changes of one batch were made.

        While the machine is copying this does what it would; to ask it costs a tenth of a
        millisecond, since it compares each of its transitions.
        """
        attempt = self.attempt
        if attempt is not None and attempt.goes_on:
            self.cover(attempt, requests)
        else:
            self.machine.covered(requests)

    # Changes and flushes.

    def change_begins(self) -> None:
        """The disk is about to change: what was durable no longer is."""
        self.durability.content_changes()
        if self.attempt is not None:
            self.attempt.changing += 1

    def change_ended(self, connection: ServerConnection) -> None:
        """The disk was changed, or that failed."""
        self.durability.content_changes()
        if self.attempt is not None and self.owns_attempt(connection):
            self.attempt.changing -= 1

    def flush_begins(self, connection: ServerConnection, request: Request) -> None:
        """Only a flush of the attempt's own connection can make its copy a durable one."""
        if self.attempt is not None and self.owns_attempt(connection) and self.attempt.whole:
            self.durability.flush_begins(request)

    def flush_ended(self, request: Request, succeeded: bool) -> Deferred[None] | None:
        """A flush was done, or failed.

        @return: None; or a Deferred that fires once what the flush means for the copy is recorded.
        """
        version, attempt = self.durability.flush_ended(request), self.attempt
        if version is None or attempt is None or not succeeded:
            return None

        def durable(_: None) -> Deferred[None] | None:
            if (failure := self.failures.failure) is not None:
                raise OSError(int(failure.errno), str(failure.outcome))
            return self.durability.record_if_unchanged(version, attempt)

        return attempt.flushed().addCallback(durable)

    # MigrationActions.

    def begin(self, connection: ServerConnection) -> IncomingAttempt:
        """An attempt of C{connection} begins."""
        self.attempts += 1
        self._progress.attempt_begins()
        claim = self.claims.of(connection)
        self.is_taken = self.is_taken or claim is not None
        if not self.disk.size:
            assert claim is not None
            self.disk.determine_size(claim.size)
        named = claim is not None and claim.id
        _log.info(
            "attempt {number} began, from {peer}" + (", as migration {id}" if named else ""),
            event="attempt",
            id=claim.id if claim is not None else "",
            number=self.attempts,
            peer=connection.peer,
        )
        self._attempt_began = self._runtime.reactor.seconds()
        self.attempt_begins()
        self.attempt = IncomingAttempt(
            connection, self.disk.disk, self._runtime.threads, self.machine.disk_failed
        )
        return self.attempt

    def record_attempt(self, connection: ServerConnection) -> EventualErrno:
        """Record that it does; OK once it is recorded."""
        claim = self.claims.of(connection)
        if claim is not None:
            return self.failures.reply_when_done(self.record.record_attempt(claim, connection.peer))
        return self.failures.reply_when_done(self.record.record_anonymous_attempt(connection.peer))

    def change(self, attempt: IncomingAttempt, connection: ServerConnection) -> EventualErrno:
        """Whether C{connection} may change the disk during an attempt."""
        if attempt.connection is not connection or self.record.retired:
            return Errno.EPERM
        if self.record.phase == Phase.COPIED:
            return self.failures.reply_when_done(self.record.record_phase(Phase.COPYING))
        return Errno.OK

    def refuse(self, sent: SentMessage, why: str, answer: Errno = Errno.EPERM) -> Errno:
        """Refuse a message, whatever state this is in."""
        return self._message_handler.refuse(sent, why, answer)

    def take_message(self, message: SentMessage, attempt: IncomingAttempt | None) -> EventualErrno:
        """Act on a message during that attempt, if there is one."""
        return self._message_handler.handle(message, attempt)

    def cover(self, attempt: IncomingAttempt, requests: Sequence[Request]) -> None:
        """The attempt has changed what C{requests} say."""
        if attempt.cover(requests):
            self._progress.attempt_advances()

    def restart(self, attempt: IncomingAttempt, why: str) -> None:
        """The attempt is over, and its coverage forgotten."""
        self.attempt = None
        self._attempt_is_over(attempt)
        self._progress.attempt_ended(attempt.coverage.covered)
        _log.warn(
            "attempt {number}, from {peer}, ended early ({why}), {covered} of {size} bytes "
            "covered; waiting for the sender to {next}",
            event="restart",
            number=self.attempts,
            peer=attempt.connection.peer,
            why=why,
            covered=attempt.coverage.covered,
            size=self.disk.size,
            next="finish" if self.record.retired else "start again",
        )

    def flush(self, connection: ServerConnection) -> Completion:
        """The disconnect was accepted: make everything durable, and remove the record."""
        self._completion = Completion(connection)
        self._attempt_is_over(self.attempt)

        def finished(result: object) -> None:
            if isinstance(result, Failure):
                self.failures.handle(result.value)
            else:
                self.machine.durable()

        self.record.remove().addBoth(finished).addErrback(_bug)
        return self._completion

    def complete(self, completion: Completion) -> None:
        attempt = self.attempt
        data, zeroes = (attempt.data, attempt.zeroes) if attempt is not None else (0, 0)
        summary = Summary(self.disk.size, data, zeroes, self._progress.seconds, self.attempts)
        self._outcome.resolve(summary, completion.connection)
        completion.release_readers()

    def fail(self, error: BaseException | None) -> DiskFailure:
        """Keep the error; the sender has a short time to receive it before the end."""
        failure = self.failures.fail(error)
        self._attempt_is_over(self.attempt)
        outcome = failure.outcome
        _log.error("the disk failed: {error}", event="disk-failed", error=str(outcome))
        delay = _REPORT_TIMEOUT if self.attempt is not None else _IDLE_REPORT_TIMEOUT
        failure.deadline = self._runtime.reactor.callLater(delay, self.machine.give_up, outcome)
        self._release_readers()
        return failure

    def failed(self, failure: DiskFailure) -> None:
        """The sender has received the error, or had time to."""
        failure.cancel_deadline()
        self._outcome.resolve(failure.outcome)

    def rescue(self, error: BaseException | None) -> Rescue:
        """Give the disk a name again, with a record, for as long as that takes."""
        self._rescue = rescue = Rescue(
            self.disk,
            self.record,
            error,
            self._runtime,
            begins=self._release_readers,
            ended=self.machine.rescued,
        )
        rescue.begin()
        self._attempt_is_over(self.attempt)
        return rescue

    def end(self, error: MigrationError) -> None:
        """The migration ends with that error."""
        self._outcome.resolve(error)
        self._attempt_is_over(self.attempt)

    def _attempt_is_over(self, attempt: IncomingAttempt | None) -> None:
        """Whoever waits for the end of an attempt goes on in a moment: the machine is in the middle
        of something."""
        replacement, self._replacement = self._replacement, None
        if replacement is not None:
            replacement.over()
        if attempt is None:
            return
        attempt.goes_on = False
        if attempt.is_waited_for:
            self._runtime.reactor.callLater(0, attempt.release_waiting)

    def _release_readers(self) -> None:
        if self._completion is not None:
            self._completion.release_readers()

    # Stopping.

    def stop(self, why: str) -> None:
        """End it as it stands, unless its disconnect was accepted already."""
        if not self.failures.check_displaced():
            self.machine.give_up(self.report.unfinished(why))


def _bug(failure: Failure) -> None:
    _log.failure("while ending a migration", failure=failure)
