"""Finishes a migration whose source is retired, but whose destination may not know that it is
complete.

Needs nothing of the disk, which may be gone: the record says everything.

Rules (design, section 2: R6; docs/handoff.md):

* the receiver must have this very migration's copy, whole and recorded: it is notified that the
  source is retired, acknowledges that durably, and then gets the disconnect;
* it is tried again and again, as after every early drop, for ever unless there is a time limit;
* once the receiver has acknowledged that the source is retired, both sides have recorded which copy
  is canonical. A receiver that then cannot be found any more, or knows of no migration, is complete
  as far as anybody can tell: it ended and removed its record, as in good order;
* a receiver that was not notified, and has something else recorded, is a matter for a human;
* who has seen the destination's end in another way, from that host itself, may say so;
* it can be stopped at any time, and leaves the source retired; one that was stopped before it was
  run never begins. It ends only once no thread is at work on the records any more;
* the records are its own until then: it claims them, and changes none of another migration.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...claims import Claims
from ...client import ClientFailed, Destination, NBDClient
from ...errors import Summary
from ...lives import Life
from ...nbd import Command, Negotiated, TransmissionFlag
from ...runtime import BoundedThreads, InThread, Runtime, wait_shielded
from ...syscalls import describe_error
from ..handoff.channel import (
    ANSWER_TIMEOUT,
    HandoffConversation,
    describe_message,
    open_handoff,
    sender_message,
)
from ..handoff.handshake import handshake_for, is_receiver
from ..handoff.message import HandoffMessage, HandoffPhase
from .progress import Progress
from .record import SourceRecord
from .unfinished import (
    Standing,
    conclude_unknown,
    is_about,
    is_to_be_told,
    standing_of,
    unconfirmed,
)

_log = Logger()

_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 5.0
_SEARCH_TIME: Final = 30.0
"""Seconds for which a receiver that has acknowledged everything is looked for."""
_SAME_REASON: Final = 60.0
"""Seconds after which a reason is logged once more."""


async def record_complete(in_thread: InThread, source: SourceRecord, seen: bool = True) -> None:
    """Record that the destination is complete; if that fails, the next run asks it again.

    @param seen: it was seen to be.
    """
    try:
        await wait_shielded(in_thread(source.complete, seen))
    except Exception as error:  # nothing that remains to be done depends on it
        _log.warn(
            "the migration is complete, but that could not be recorded: {error}",
            event="record-failed",
            error=describe_error(error),
        )


class Finisher:
    """Finishes one migration. Used like a L{Sender}, and made by L{resume}.

    @param source: its record.
    @param destination: where its receiver is.
    @param give_up_after: seconds after which to give up; None to go on for ever.
    @param secret: what both ends know; empty where there is none.
    @param used: what nobody else may use meanwhile: the disk object, and the path of the records.
    @param runtime: the reactor, threads and system calls to use; None for the real ones.
    @raise InUse: somebody uses it.
    @ivar progress: that of a sender that has sent nothing yet: nothing is copied.
    @ivar last_error: why the destination could not be notified the last time; "" if that has not
        failed.
    """

    def __init__(
        self,
        source: SourceRecord,
        destination: Destination,
        *,
        give_up_after: float | None = None,
        secret: bytes = b"",
        used: Sequence[Any] = (),
        runtime: Runtime | None = None,
    ) -> None:
        runtime = runtime or Runtime.of()
        self._source = source
        self._destination = destination
        self._give_up_after = give_up_after
        self._secret = secret
        self._in_thread = BoundedThreads(runtime.threads)
        self._runtime = replace(runtime, threads=self._in_thread)
        self._reactor = runtime.reactor
        record = source.record
        self.progress = Progress(record.size, earlier=record.attempt, seconds=self._reactor.seconds)
        self.last_error = ""
        self._said = "", 0.0
        self._assumed = False
        self._running: Deferred[None] | None = None
        self._why = ""
        self._life: Life[Summary] = Life(
            f"the migration of {record.source.disk}", begin=self._begin, call_off=self._call_off
        )
        self._claims = Claims(self, record.source.disk, *used)

    def run(self) -> Deferred[Summary]:
        """Finish the migration; to be called once.

        Cancelling what it returns is to stop it: that then fails once it has ended.

        @return: fires with a L{Summary} once the destination is complete, or fails with
            L{Unconfirmed}; with L{InUse} where it was run before.
        """
        return self._life.run()

    def complete(self) -> Deferred[Summary]:
        """The outcome, as L{run} reports it; may be asked for at any time, and repeatedly.

        Cancelling it only stops waiting.
        """
        return self._life.wait()

    def assume_complete(self) -> None:
        """Ask nobody: that the destination is complete was seen in another way.

        To be called before L{run}, which then only records it.
        """
        self._assumed = True

    def stop(self, why: str = "stopped") -> None:
        """Leave it unfinished; another run may finish it."""
        self._life.stop(why)

    def _begin(self) -> None:
        self._running = Deferred.fromCoroutine(self._run()).addBoth(self._end)

    def _end(self, outcome: Summary | Failure) -> None:
        self._in_thread.end()
        self._claims.release()
        self._life.end(outcome)

    def _call_off(self, why: str) -> None:
        if self._running is None:
            self._end(Failure(unconfirmed(why, self._source.record)))
            return
        self._why = why
        self._running.cancel()

    async def _run(self) -> Summary:
        began = self._reactor.seconds()
        record = self._source.record
        outcome: Summary | Exception
        try:
            seen = await self._finish(began)
            await record_complete(self._in_thread, self._source, seen)
            seconds = self._reactor.seconds() - began
            outcome = Summary(record.size, 0, 0, seconds, record.attempt)
        except OSError as error:
            outcome = unconfirmed(f"{describe_error(error)}", record)
        except CancelledError:
            outcome = unconfirmed(self._why or "cancelled", record)
        except Exception as error:
            outcome = error
        # No `finally`: nothing may be awaited in a coroutine that is thrown away in the middle.
        await self._in_thread.idle()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _finish(self, began: float) -> bool:
        """Try until the destination is complete, or need not be notified.

        @return: whether it was seen to be complete.
        """
        delay = _FIRST_DELAY
        record = self._source.record
        if self._assumed:
            await self._in_thread(self._source.sync)
            return True
        if not record.side_export and not record.confirmed:
            _log.info(
                "the copy at {destination} is whole and durable, and the source is retired; the "
                "destination need not be notified",
                event="finishing",
                destination=str(record.destination),
            )
        await self._in_thread(self._source.sync)
        while is_to_be_told(record):
            try:
                return await self._try()
            except ClientFailed as error:
                self.last_error = str(error)
                if self._may_stop_trying(self._reactor.seconds() - began, error):
                    return False
                tell = _log.debug if self._has_just_said(self.last_error) else _log.warn
                tell(
                    "the source is retired, but the destination could not be notified that it "
                    "is complete: {why}; trying again in {delay:.1f} s",
                    event="restart",
                    why=str(error),
                    delay=delay,
                    attempt=record.attempt,
                )
            await deferLater(self._reactor, delay)
            delay = min(2 * delay, _LONGEST_DELAY)
        return bool(record.confirmed)

    def _has_just_said(self, why: str) -> bool:
        """Whether that reason was logged within the last minute; if not, it is now."""
        said, at = self._said
        now = self._reactor.seconds()
        if said == why and now < at + _SAME_REASON:
            return True
        self._said = why, now
        return False

    def _may_stop_trying(self, waited: float, error: ClientFailed) -> bool:
        """Whether no further try is needed; raises L{Unconfirmed} where the time to try is over."""
        limit = self._give_up_after
        if self._source.record.told:
            if waited < min(_SEARCH_TIME, limit if limit is not None else _SEARCH_TIME):
                return False
            _log.warn(
                "{why}; the destination has acknowledged that its copy is the canonical one: if a "
                "receiver still waits there, it may be stopped",
                event="finished-alone",
                why=str(error),
            )
            return True
        if limit is not None and waited >= limit:
            raise unconfirmed(f"gave up after {limit:g} seconds ({error})", self._source.record)
        return False

    async def _try(self) -> bool:
        """One try.

        @return: whether the receiver was seen to be complete; if not, it knows of no migration any
            more.
        @raise ClientFailed: the receiver could not be reached.
        @raise Unconfirmed: it has something else.
        """
        cookie = secrets.randbits(64)
        export = self._destination.export
        handshake = handshake_for(export, self._source.record.size)
        client = NBDClient(
            handshake,
            self._runtime,
            ANSWER_TIMEOUT,
            first_cookie=cookie,
            tls=self._destination.tls,
        )
        try:
            negotiated = await client.connect(self._destination.endpoint, self._destination.uri)
            if not is_receiver(negotiated, export):
                self._conclude_unknown(None)
                return False
            await _introduce(client, negotiated)
            handoff, message = await open_handoff(
                self._destination, self._runtime, secret=self._secret
            )
            try:
                seen = True
                standing = standing_of(message, self._source.record)
                if standing == Standing.WAITING:
                    await self._announce(handoff, client, cookie)
                elif standing == Standing.RESTARTED:
                    seen = await self._announce_to_restarted(handoff, client, cookie, message)
                elif standing == Standing.UNKNOWN:
                    self._conclude_unknown(message)
                    seen = False
                elif self._secret:
                    # Anybody can repeat what a page has said: it answers no message of ours.
                    if not self._source.record.told:
                        raise ClientFailed("the receiver there does not prove that it is complete")
                    seen = False
                await handoff.close()
                return seen
            finally:
                handoff.abort()
        finally:
            client.abort()

    async def _announce(self, handoff: HandoffConversation, client: NBDClient, cookie: int) -> None:
        await handoff.send(sender_message(HandoffPhase.RETIRED, self._source.record, cookie))
        if not self._source.record.told:
            token = (await handoff.read()).token
            with contextlib.suppress(OSError):  # another try, if needed, announces it again
                await self._in_thread(self._source.acknowledged, token)
        await client.disconnect()
        message = await handoff.read()
        if not is_about(message, self._source.record, HandoffPhase.COMPLETE):
            raise ClientFailed(f"the destination is not complete ({describe_message(message)})")

    async def _announce_to_restarted(
        self, handoff: HandoffConversation, client: NBDClient, cookie: int, message: HandoffMessage
    ) -> bool:
        """Announce it to the restarted receiver; one with another disk refuses it.

        @return: whether it was accepted.
        """
        try:
            await self._announce(handoff, client, cookie)
        except ClientFailed as error:
            if not error.error:
                raise
            self._conclude_unknown(message)
            return False
        return True

    def _conclude_unknown(self, message: HandoffMessage | None) -> None:
        """The destination does not know this migration (any more)."""
        if other := conclude_unknown(message, self._source.record):
            _log.warn(
                "another migration is under way at the destination: {found}",
                event="finished-alone",
                found=other,
            )


async def _introduce(client: NBDClient, negotiated: Negotiated) -> None:
    """Send the first request, by whose cookie a receiver knows the connection: until it does, it
    may close the connection for others. A FLUSH of who has written nothing costs nothing there."""
    if negotiated.export.offers(TransmissionFlag.SEND_FLUSH):
        await client.ask(Command.FLUSH)
