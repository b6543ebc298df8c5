"""The sender: sends a disk to an NBD server, attempt after attempt, until one completes.

Owns the migration as a whole: when another attempt is made, when it is given up, and what remains
to be done at the end. What one connection does is up to the `attempt`.

Rules (design, section 2):

* what goes wrong before a first handshake was accepted ends the migration, unless it is to be
  retried too; after that there is always another attempt, until somebody gives up;
* the disk object is the sender's from when it is made until it has ended;
* what gives it up is time without progress: none passes while an attempt gets further. One that
  has ended no further than the best before it was none, for as long as it took;
* a destination that is full, or must not be written, is tried a few times;
* it can be stopped until the source is being retired; after that it ends as quickly as it can, and
  never without reporting what became of the source. One that is stopped before it was run never
  begins;
* where the source was retired, but the destination could not be notified, the `finisher` goes on;
* it ends only once no thread is at work on the disk any more, and a source that was not retired is
  then as it was, but for the record of a copy that may be whole;
* what it says in the end is what the records say: no source is called canonical while its record
  says that we may have deleted it.
"""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...claims import Claims, check_unclaimed
from ...client import ClientFactory, ClientFailed, Destination, describe_failed_connect
from ...errors import GaveUp, MigrationError, Refused, Summary, Unconfirmed
from ...interfaces import IDisk
from ...lives import Life
from ...nbd import LocalProtocolError
from ...runtime import BoundedThreads, Runtime, wait_shielded
from ...syscalls import describe_error
from ...transport import RateLimiter
from ..disk import guarded
from ..handoff.channel import is_same_migration, open_handoff, sender_message
from ..handoff.message import HandoffPhase
from ..identity import ANYBODY, Identity
from ..policy import NO_OVERRIDES, USUAL_PATIENCE, Overrides, Patience
from .attempt import OpeningAttempt
from .context import AttemptContext, Completed, Dropped, Failed, Outcome, Unfinished
from .finisher import Finisher, record_complete
from .passes import CopyPasses, FullCopy
from .prepared import prepare_source
from .progress import Phase, Progress
from .refusals import Refusals
from .silence import Silence
from .unfinished import unconfirmed
from .watch import Presence

_log = Logger()

_FINAL_TIMEOUT: Final = 5.0
_RETRY_DELAY: Final = 0.1
_LOG_INTERVAL: Final = 60.0
# Seconds, and by how much the first ones grow.
_FIRST_DELAY: Final = 1.0
_LONGEST_DELAY: Final = 60.0
_DELAY_GROWS: Final = 1.5


def _usual_delay(failures: int) -> float:
    """Seconds to wait after so many attempts that failed: as Twisted's C{backoffPolicy}.

    Nothing is imported for it: that fails when it is needed, where descriptors have run out.
    """
    delay: float = min(_FIRST_DELAY * _DELAY_GROWS ** min(failures, 100), _LONGEST_DELAY)
    return delay + random.random()


class Sender:
    """Sends a disk to a destination, again and again until it has arrived.

    @param disk: what to send; stays the caller's to close.
    @param destination: where to.
    @param unlink: delete the disk's file just before the disconnect.
    @param overrides: checks to override.
    @param patience: how long the destination is tried.
    @param max_rate: bytes of data per second; None for no limit.
    @param passes: what an attempt sends, and how fast; by default all of the disk once, which
        nobody changes.
    @param identity: the id and the secret of the migration, the same as the receiver's; an id is
        made up where none is given.
    @param successor: URI of the server to which clients are relayed once the disk is there, for the
        records; "" where they are not.
    @param runtime: the reactor, threads and system calls to use; None for the real ones.
    @ivar progress: how far it is.
    @ivar last_error: why the last attempt ended early; "" if none did.
    @ivar cause: why an earlier one did, if that is what is to be mended: the last one is only what
        followed, and came less far.
    @ivar when_accepted: fires when a destination was accepted for the migration, and a first
        attempt is about to copy.
    @raise InUse: the disk object is in use.
    @raise LocalFailure: the disk has failed already.
    @raise AlreadyDone: this very migration was completed before.
    @raise Refused: C{unlink} cannot be done with this disk, or the records beside it forbid sending
        it, or its migration can only be finished (which a L{Finisher} does).
    """

    def __init__(
        self,
        disk: IDisk,
        destination: Destination,
        *,
        unlink: bool = False,
        overrides: Overrides = NO_OVERRIDES,
        patience: Patience = USUAL_PATIENCE,
        max_rate: float | None = None,
        passes: CopyPasses | None = None,
        identity: Identity = ANYBODY,
        successor: str = "",
        runtime: Runtime | None = None,
    ) -> None:
        runtime = runtime or Runtime.of()
        given, disk = disk, guarded(disk)
        # The disk that clients change is their server's; of that the mirror is the only one.
        served = passes is not None and passes.in_use
        if not served:
            check_unclaimed(given, disk.name)
        self._reactor = runtime.reactor
        self._threads = BoundedThreads(runtime.threads)
        self._patience = patience
        self._policy = patience.retry_policy or _usual_delay
        limiter = RateLimiter(self._reactor, max_rate) if max_rate else None
        self._passes: CopyPasses = passes if passes is not None else FullCopy(disk.size, limiter)
        prepared = prepare_source(
            disk,
            destination.uri,
            unlink=unlink,
            overrides=overrides,
            in_use=self._passes.in_use,
            id=identity.id,
            successor=successor,
            system=runtime.system,
        )
        self.source, self._retirement = prepared.record, prepared.retirement
        self.progress = Progress(
            disk.size,
            earlier=self.source.record.attempt,
            remaining=lambda: self._passes.data_left,
            seconds=self._reactor.seconds,
        )
        self.last_error = self._reason = ""
        self._reason_at = 0
        self._furthest = 0
        self._refusals = Refusals()
        self._logged_at = 0.0
        self.when_accepted: Deferred[None] = Deferred()
        self._context = AttemptContext(
            disk=disk,
            destination=destination,
            runtime=replace(runtime, threads=self._threads),
            passes=self._passes,
            record=self.source,
            retirement=self._retirement,
            progress=self.progress,
            reply_timeout=patience.reply_timeout,
            overwrite=overrides.overwrite,
            identity=identity,
            plain=overrides.plain,
            accepted=self._accepted,
            silence=Silence(self._reactor, destination.uri),
        )
        self._opening: OpeningAttempt | None = None
        self._finisher: Finisher | None = None
        self._stopped_too_late: str | None = None
        self._final_timeout: IDelayedCall | None = None
        self._stopped: GaveUp | None = None
        self._running: Deferred[None] | None = None
        self._life: Life[Summary] = Life(
            f"the sender of {disk.name}", begin=self._begin, call_off=self._call_off
        )
        used = self.source.used if served else (given, *self.source.used)
        self._claims = Claims(self, disk.name, *used)

    @property
    def cause(self) -> str:
        """See the class."""
        further = self.connected and self.progress.done > self._reason_at
        return "" if further or self._reason == self.last_error else self._reason

    def _note_reason(self, outcome: Dropped, done: int) -> None:
        """An attempt ended early, having transferred C{done} bytes."""
        if outcome.reached and (done >= self._reason_at or not self._reason):
            self._reason, self._reason_at = outcome.why, done

    @property
    def connected(self) -> bool:
        """Whether an attempt goes on, its handshake accepted."""
        return self._opening is not None and self._opening.is_active

    @property
    def retiring(self) -> bool:
        """Whether the source is retired, or about to be: then it is too late to stop."""
        return self._retirement.has_begun

    def _accepted(self) -> None:
        if not self.when_accepted.called:
            self.when_accepted.callback(None)

    def run(self) -> Deferred[Summary]:
        """Send the disk; to be called once.

        Cancelling what it returns is to stop it: that then fails once it has ended.

        @return: fires with a L{Summary}, or fails with a L{MigrationError}: L{Refused} where the
            first handshake was not accepted, L{LocalFailure} where the source failed, L{GaveUp}
            where it was stopped or gave up, L{Unconfirmed} where the source is retired and the
            destination may not know it, L{InUse} where it was run before.
        """
        return self._life.run()

    def complete(self) -> Deferred[Summary]:
        """The outcome, as L{run} reports it; may be asked for at any time, and repeatedly.

        Cancelling it only stops waiting.
        """
        return self._life.wait()

    def stop(self, why: str = "stopped") -> None:
        """End the migration as it stands; too late while the source is being retired."""
        self._life.stop(why)

    def _begin(self) -> None:
        self.progress.latest = self._reactor.seconds()
        self._running = Deferred.fromCoroutine(self._run()).addBoth(self._end)

    def _end(self, outcome: Summary | Failure) -> None:
        self._threads.end()
        self._claims.release()
        self._life.end(outcome)

    def _call_off(self, why: str) -> None:
        if self._running is None:
            self._end(Failure(self._given_up(why)))
            return
        if self._finisher is not None:
            self._finisher.stop(why)
        elif self.retiring:
            # Done in an instant, unless the destination is silent: then another run finishes it.
            self._stopped_too_late = why
            self._final_timeout = self._reactor.callLater(
                _FINAL_TIMEOUT, self._final_timeout_passed
            )
        else:
            self._stopped = self._given_up(why)
            self._running.cancel()

    def _given_up(self, why: str) -> GaveUp:
        claim = f"{self._context.disk.name} was not retired"
        if self._retirement.watch.presence == Presence.THERE:
            claim += f" and is {self._context.record.standing}"
        return GaveUp(f"{why}; {claim}")

    def _final_timeout_passed(self) -> None:
        self._final_timeout = None
        if self._opening is not None:
            self._opening.drop(self._stopped_too_late or "stopped")

    def _cancel_final_timeout(self) -> None:
        if self._final_timeout is not None:
            self._final_timeout.cancel()
            self._final_timeout = None

    # Attempt after attempt.

    async def _run(self) -> Summary:
        giving_up = self._watch_progress()
        outcome: Summary | Exception
        try:
            outcome = await self._try_until_it_ends()
        except CancelledError:
            outcome = self._called_off()
        except Exception as error:
            outcome = error
        # No `finally`: nothing may be awaited in a coroutine that is thrown away in the middle.
        if giving_up is not None:
            giving_up.stop()
        await self._threads_end()
        if not self.retiring:
            outcome = await self._settle(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _called_off(self) -> MigrationError:
        return self._stopped or self._given_up("cancelled")

    def _watch_progress(self) -> LoopingCall | None:
        limit = self._patience.give_up_after
        if limit is None:
            return None
        watching = LoopingCall(self._check_progress, limit)
        watching.clock = self._reactor
        watching.start(min(1.0, limit), now=False)
        return watching

    def _check_progress(self, limit: float) -> None:
        if self._reactor.seconds() - self.progress.latest >= limit:
            self.stop(f"gave up after {limit:g} seconds without progress")

    async def _try_until_it_ends(self) -> Summary:
        failures = 0
        while True:
            attempt, latest = self.progress.attempt, self.progress.latest
            outcome = await self._attempt()
            if isinstance(outcome, Completed):
                self.progress.phase = Phase.DONE
                summary = self._summary()
                await record_complete(self._threads, self.source)
                return summary
            if isinstance(outcome, Unfinished):
                return await self._finish(outcome.why)
            if isinstance(outcome, Failed):
                raise outcome.error
            self._cancel_final_timeout()
            if self._stopped_too_late is not None:  # a stop was requested meanwhile
                raise self._given_up(self._stopped_too_late)
            if not self.progress.attempt and not self._patience.retry:
                raise Refused(outcome.why)
            done = self.progress.done if self.progress.attempt != attempt else 0
            self._note_reason(outcome, done)
            if outcome.refusal is not None and self._refusals.add(outcome.refusal):
                raise self._given_up(f"{outcome.why}, for the third time at the same place")
            if done > self._furthest:
                self._furthest = done
            else:
                # All that was done before, whatever was sent.
                self.progress.latest = latest
            failures = 0 if done else failures + 1
            await self._pause(outcome, self._policy(failures))

    async def _attempt(self) -> Outcome:
        """One connection's try."""
        self._context.silence.begins("connecting")
        try:
            return await self._connect_and_send()
        finally:
            self._context.silence.over()

    async def _connect_and_send(self) -> Outcome:
        result: Deferred[Outcome] = Deferred()

        def ended(outcome: Outcome) -> None:
            if not result.called:
                result.callback(outcome)

        try:
            self._opening = opening = OpeningAttempt(self._context, ended)
        except LocalProtocolError as error:
            return Dropped(f"cannot connect to the destination: {error}", reached=False)
        try:
            await self._context.destination.endpoint.connect(ClientFactory(opening.connection))
        except (CancelledError, ConnectingCancelledError):
            opening.drop("cancelled")  # an endpoint that cannot be cancelled may connect yet
            if self._stopped is None:  # not by us: the endpoint has failed so by itself
                why = "cannot connect to the destination: it was cancelled"
                return Dropped(why, reached=False)
            raise CancelledError from None
        except Exception as error:  # each endpoint fails, and is cancelled, in its own ways
            opening.drop("it could not connect")
            if self._stopped is not None:
                raise self._stopped from None
            why = describe_failed_connect(error, self._context.destination.uri)
            return Dropped(f"cannot connect to the destination: {why}", reached=False)
        try:
            return await result
        except CancelledError:
            opening.drop("stopped")
            raise

    async def _pause(self, dropped: Dropped, delay: float) -> None:
        why, before = dropped.why, self.last_error
        self.last_error = why
        now = self._reactor.seconds()
        if not dropped.lasting or why != before or now - self._logged_at >= _LOG_INTERVAL:
            self._logged_at = now
            _log.warn(
                "{why}; trying again in {delay:.1f} s",
                event="restart",
                why=why,
                delay=delay,
                attempt=self.progress.attempt,
            )
        self.progress.phase = Phase.WAITING
        await deferLater(self._reactor, delay)
        self.progress.phase = Phase.CONNECTING

    def _summary(self) -> Summary:
        progress = self.progress
        assert progress.began is not None
        seconds = self._reactor.seconds() - progress.began
        return Summary(progress.total, progress.data, progress.zeroes, seconds, progress.attempt)

    # The end.

    async def _finish(self, why: str) -> Summary:
        """The source is retired; what remains is to notify the destination."""
        record = self.source.record
        if not record.side_export:
            raise Unconfirmed(
                f"all the data is at the destination, but it may not have been notified: {why}"
            )
        _log.warn(
            "{why}; the source is retired, and the destination must still be notified that it is "
            "complete",
            event="finishing",
            why=why,
        )
        if self._stopped_too_late is not None:
            raise unconfirmed(self._stopped_too_late, record)
        self._passes.finishing()
        self._finisher = Finisher(
            self.source,
            self._context.destination,
            give_up_after=self._patience.give_up_after,
            secret=self._context.secret,
            runtime=self._context.runtime,
        )
        await self._finisher.run()
        return self._summary()

    async def _threads_end(self) -> None:
        self._cancel_final_timeout()
        while self._threads.busy:
            # The canceller has to wait as well: the disk is closed after this.
            with contextlib.suppress(CancelledError):
                await self._threads.idle()

    async def _settle(self, outcome: Summary | Exception) -> Summary | Exception:
        """The source was not retired, and is as it was: that is recorded.

        @return: the outcome; another one where what was found by now contradicts it.
        """
        presence = self._retirement.watch.presence
        if self._retirement.is_lost(presence):
            # The copy at the destination may be the only one, and is taken for it if it can be.
            gone = self._retirement.gone
            if gone is not None and not gone.unchanged:
                await self._try_to_record(self.source.record_not_retired)
            return outcome if isinstance(outcome, Unconfirmed) else self._retirement.only_copy()
        # This first: somebody may move the source next, and must not be taken for us.
        await self._try_to_record(self.source.record_not_retired)
        if presence == Presence.THERE:
            await self._withdraw_copied()
        await self._try_to_record(self.source.abandon)
        if self.source.says_deleted and not isinstance(outcome, Unconfirmed):
            return Unconfirmed(
                f"{outcome}; but its record could not be changed, and says that we may have "
                "deleted it: run the same command again before it is moved or deleted"
            )
        return self._with_advice(outcome)

    def _with_advice(self, outcome: Summary | Exception) -> Summary | Exception:
        """The outcome; of a migration that was stopped, and can go on, with how."""
        if isinstance(outcome, GaveUp) and (how := self.source.goes_on):
            return GaveUp(f"{outcome}; {how}")
        return outcome

    async def _try_to_record(self, change: Callable[[], None]) -> None:
        try:
            await wait_shielded(self._threads(change))
        except OSError as error:
            _log.warn(
                "the record of the migration could not be changed or removed: {error}",
                event="record-failed",
                error=describe_error(error),
            )

    async def _withdraw_copied(self) -> None:
        """Where the destination may have its copy recorded as whole, have it record otherwise.

        Best effort: the copy is whole, though by then perhaps older than the source.
        """
        source = self.source
        if not source.asked or not source.record.side_export:
            return
        end = self._reactor.seconds() + _FINAL_TIMEOUT
        while (left := end - self._reactor.seconds()) > 0:
            try:
                handoff, message = await open_handoff(
                    self._context.destination, self._context.runtime, left, self._context.secret
                )
                try:
                    if not is_same_migration(message, source.record):
                        return  # the receiver there now does not have that copy
                    await handoff.send(
                        sender_message(HandoffPhase.COPYING, source.record, secrets.randbits(64))
                    )
                    source.copied_withdrawn()
                    return
                finally:
                    handoff.abort()
            except ClientFailed as error:
                if not error.error:
                    return
            except CancelledError:
                return
            # The receiver refuses until the last attempt's connection is gone there.
            try:
                await deferLater(self._reactor, _RETRY_DELAY)
            except CancelledError:
                return
