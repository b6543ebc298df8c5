"""One attempt: one connection's try at the whole migration, from its handshake to one outcome.

Owns the life of that connection. `OpeningAttempt` is an attempt until its handshake was accepted;
`Attempt` is what follows. The order of its steps is the hand-off `machine`'s, what is sent the
`copier`'s, what is exchanged outside the data the `channel`'s, and how the source is retired the
`retirement`'s.

Rules (design, sections 2 and 3):

* an attempt starts from the beginning of the disk; nothing of an earlier one is trusted;
* where the destination has the side export, the attempt announces there which migration it belongs
  to before anything is sent; a destination without it gets plain NBD, in the same order;
* before the first byte of data the migration is recorded at the source;
* the source that is retired is the one that was opened, as it was when the scan began;
* whatever happens, the attempt ends with one outcome, reported once. Unless the source is being
  retired by then, our own server's clients are released first.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...client import ClientFailed, ClientHandler, HalfClosingConnection
from ...errors import GaveUp, LocalFailure, MigrationError, Refused, Unconfirmed
from ...nbd import (
    HandshakeRefused,
    Negotiated,
    NotNBD,
    OptionReply,
    ProtocolError,
    TLSRefused,
)
from ...storage import DiskChanged, NotDurable
from ...syscalls import describe_error
from ...transport import Pacer
from ..handoff.channel import AnotherMigration, Channel, DoesNotFit, HandoffChannel, NoChannel
from ..handoff.handshake import handshake_for
from ..records.files import Location
from .admission import Admission, PeerCapabilities, check_peer
from .context import (
    AttemptContext,
    AttemptFailed,
    Completed,
    Dropped,
    Failed,
    Outcome,
    Unfinished,
    Unfit,
)
from .copier import Copier, NoFlush
from .machine import Handoff, make_handoff
from .passes import Ranges
from .progress import Phase
from .watch import SourceTouched

_log = Logger()

_HANDSHAKE_TIMEOUT: Final = 30.0
_CLOSE_TIMEOUT: Final = 30.0


class OpeningAttempt(ClientHandler):
    """An attempt whose handshake was not accepted yet.

    @param context: of the attempt.
    @param ended: called with the outcome, once.
    @ivar connection: to the destination; to be given to its endpoint.
    @ivar accepted: the attempt that follows the handshake; None until then.
    """

    def __init__(self, context: AttemptContext, ended: Callable[[Outcome], None]) -> None:
        export = context.destination.export
        handshake = handshake_for(export, context.disk.size)
        limiter = context.passes.limiter
        pacer = Pacer(context.runtime.reactor, limiter) if limiter is not None else None
        self.connection = HalfClosingConnection(
            self, handshake, context.runtime, pacer, context.destination.tls
        )
        self.accepted: Attempt | None = None
        self._context = context
        self._ended = ended

    @property
    def is_active(self) -> bool:
        """Whether the handshake was accepted, and the attempt has not ended."""
        return self.accepted is not None and not self.accepted.is_over

    def connection_made(self) -> None:
        """The server speaks first."""
        self._context.silence.broken()
        seconds = self._context.timeout(_HANDSHAKE_TIMEOUT)
        self.connection.set_timeout(seconds, f"no NBD handshake in {seconds:g} s")

    def negotiated(self, negotiated: Negotiated) -> None:
        """Accept what is offered, or not."""
        context = self._context
        try:
            peer = check_peer(context, negotiated)
        except AttemptFailed as error:
            if isinstance(error, Unfit) and not (
                context.progress.attempt or context.is_acknowledged
            ):
                self._ended(Failed(Refused(str(error))))
            self.connection.fail(str(error))
            return
        context.silence.broken()
        context.progress.begin_attempt()
        _log.info(
            "attempt {number} began: {size} bytes of {disk}, as migration {id}",
            event="attempt",
            id=context.record.record.id,
            number=context.progress.attempt,
            size=context.disk.size,
            disk=context.disk.name,
        )
        self.accepted = attempt = Attempt(context, self.connection, peer, self._ended)
        self.connection.handler = attempt
        attempt.begin()

    def connection_failed(self, why: str) -> None:
        context, lasting = self._context, self.connection.is_unwelcome
        if lasting and not (context.progress.attempt or context.is_acknowledged):
            self._ended(Failed(Refused(f"{why}; nothing was touched")))
        self._drop(why, lasting)

    def connection_lost(self, why: str, reason: Failure) -> None:
        self._drop(why)

    def _drop(self, why: str, lasting: bool = False) -> None:
        self._context.passes.dropped()
        self._ended(Dropped(why, lasting))

    def drop(self, why: str) -> None:
        """End the attempt, however far it is."""
        self.connection.fail(why)

    def explain(self, error: Exception) -> str:
        """Why the destination cannot be used."""
        return explain(error, self._context.destination.export)


class Attempt(ClientHandler):
    """An attempt whose handshake was accepted: the actions of its hand-off.

    @param context: of the attempt.
    @param connection: to the destination.
    @param peer: what the destination offers.
    @param ended: called with the outcome, once.
    @ivar is_over: it has ended.
    """

    def __init__(
        self,
        context: AttemptContext,
        connection: HalfClosingConnection,
        peer: PeerCapabilities,
        ended: Callable[[Outcome], None],
    ) -> None:
        self.is_over = False
        self._is_lasting = False
        self._context = context
        self._in_thread = context.runtime.threads
        self._connection = connection
        self._ended = ended
        self._handoff: Handoff = make_handoff(self)
        # The cookie of the first request tells this connection from all others at a receiver.
        cookie = secrets.randbits(64) if peer.is_receiver and not peer.oldstyle else 0
        self._copier = Copier(
            context,
            connection,
            peer,
            cookie,
            source_failed=self._source_failed,
            is_working=self._is_working,
        )
        self._admission = Admission(context, self._copier.read, peer.longest)
        self._channel: Channel = NoChannel()
        self._introduces_itself = peer.is_receiver and not peer.oldstyle
        if peer.is_receiver:
            self._channel = HandoffChannel(
                context.destination,
                context.runtime,
                context.reply_timeout,
                lambda: context.record.record,
                cookie=cookie,
                secret=context.secret,
            )
        self._working: Deferred[None] | None = None

    # ClientHandler.

    def received(self, data: bytes) -> None:
        """Replies."""
        if not self.is_over:
            self._copier.received(data)

    def moved(self, count: int) -> None:
        """Some data was written to the connection."""
        self._context.progress.moved(count)
        self._copier.moved(count)

    def sending_failed(self, error: OSError) -> None:
        """The source is shorter than it was, or cannot be read."""
        self._source_failed(error)

    def connection_closed(self) -> None:
        """By the destination, in good order, after the disconnect."""
        self._handoff.closed()

    def connection_failed(self, why: str) -> None:
        """By itself that is never the end of a hand-off."""
        self._drop(why)

    def connection_lost(self, why: str, reason: Failure) -> None:
        """By itself that is never the end of a hand-off."""
        self._drop(why)

    def _drop(self, why: str) -> None:
        self._handoff.dropped(why)
        if not self.is_over and not self._context.retirement.has_begun:
            self._context.passes.dropped()  # without waiting for anything else

    def explain(self, error: Exception) -> str:
        """Why the destination cannot be used."""
        return explain(error, self._context.destination.export)

    # The beginning.

    def begin(self) -> None:
        """Announce and record which migration this is; then send."""
        if self._introduces_itself:
            self._copier.introduce()
        self._step(self._begin(), self._send_all)

    async def _begin(self) -> None:
        seconds = self._context.runtime.reactor.seconds
        began = seconds()
        self._channel = channel = await self._channel.open()
        location = await channel.claim(self._admission)
        if self.is_over:
            return
        self._context.accepted()
        await self._in_thread(self._record_begin, location, channel.exists)
        self._context.passes.begin(seconds() - began)

    def _record_begin(self, location: Location, side_export: bool) -> None:
        """In a thread: what the source is now must be what it is when it is retired."""
        context = self._context
        context.retirement.watch.begin()
        context.record.copying(context.progress.number, location, side_export)

    def _send_all(self) -> None:
        """What is waited for meanwhile is the copier's."""
        self._context.silence.ends("connecting")
        self._context.silence.ends("confirming")
        self._context.progress.phase = Phase.COPYING
        self._step(self._context.passes.send(self), self._handoff.covered)

    def _step(self, coroutine: Coroutine[Any, Any, None], then: Callable[[], None]) -> None:
        """Do something that takes time, then continue; if it fails, this connection is of no
        use."""

        def done(_: None) -> None:
            if not self.is_over:
                then()

        self._working = working = Deferred.fromCoroutine(coroutine)
        working.addCallback(done).addErrback(self._step_failed, working).addErrback(_bug)

    def _step_failed(self, failure: Failure, step: Deferred[None]) -> None:
        error = failure.value
        if isinstance(error, CancelledError):
            if self.is_over or self._working is not step:
                return  # we have cancelled it
            # Something that it has called has cancelled itself.
            self._connection.fail("a step of the attempt was cancelled")
        elif isinstance(error, AnotherMigration):
            self._refused(f"{error}: compare id=… and secret=… at both ends")
        elif isinstance(error, DoesNotFit):
            self._refused(str(error))
        elif isinstance(error, ClientFailed | AttemptFailed):
            self._connection.fail(failure.getErrorMessage())
        elif isinstance(error, MigrationError):
            self._fail(error)
        elif isinstance(error, DiskChanged):
            self._fail(LocalFailure(f"{error}; it was not retired"))
        elif isinstance(error, OSError):
            self._source_failed(error)
        else:
            _bug(failure)
            self._connection.fail(f"a bug: {failure.getErrorMessage()}")

    def _refused(self, why: str) -> None:
        """The end of a migration that no receiver has acknowledged; another has begun, and the one
        that knows it may have its address again later."""
        if self._context.is_acknowledged:
            self._is_lasting = True
            self._connection.fail(why)
        else:
            self._fail(Refused(f"{why}; nothing was touched"))

    async def _is_working(self) -> bool:
        return await self._channel.is_working()

    def _source_failed(self, error: BaseException | None) -> None:
        if not self.is_over:
            self._fail(LocalFailure(f"{self._context.disk.name}: {describe_error(error)}"))

    def _fail(self, error: MigrationError) -> None:
        """No other attempt follows; the source is canonical."""
        self._end(Failed(error))

    # PassSender.

    async def send_pass(self, take: Callable[[], Ranges]) -> None:
        """See L{blockmig.migration.source.passes.PassSender}."""
        await self._copier.send_pass(take)

    def cut_pass(self, give_back: Callable[[int, int], None]) -> None:
        """See L{blockmig.migration.source.passes.PassSender}."""
        self._copier.cut_pass(give_back)

    async def flush_now(self) -> None:
        """See L{blockmig.migration.source.passes.PassSender}."""
        await self._copier.flush_now()

    async def disk_is_quiescent(self) -> None:
        """What the source is from now on must be what it is when it is retired."""
        watch = self._context.retirement.watch
        if watch.watches:
            await self._in_thread(watch.is_quiescent)

    def release(self) -> None:
        """The disk is in use again: there is more to send."""
        self._handoff.released()

    # HandoffActions.

    def resume_copying(self) -> None:
        """Requests that are not answered yet no longer matter."""
        self._cancel_step()
        self._send_all()

    def unrecord_and_resume(self) -> None:
        """The record here says that the copy is whole, which it no longer is."""
        self._cancel_step()
        self._step(self._record_copying(), self._send_all)

    def _cancel_step(self) -> None:
        self._copier.ignore_flush()
        step, self._working = self._working, None
        if step is not None:
            step.cancel()

    async def _record_copying(self) -> None:
        await self._in_thread(self._context.record.copying_again)

    def flush(self) -> None:
        """Where there is no FLUSH, unlinking was refused before."""
        self._context.progress.phase = Phase.FLUSHING
        if self._channel.copied_when_flushed:
            self._context.record.asking_copied()
        self._copier.flush().addCallbacks(
            lambda _: self._handoff.flushed(), self._flush_failed
        ).addErrback(_bug)

    def _flush_failed(self, failure: Failure) -> None:
        failure.trap(NoFlush)
        if not self._context.retirement.deletes:
            self._handoff.flushed()
            return
        self._fail(
            GaveUp(
                "the destination has all the data, but does not know FLUSH, so it cannot be known "
                f"when it is durable; {self._context.disk.name} is untouched and canonical: send "
                "with unlink=False"
            )
        )

    def confirm(self) -> None:
        """The destination may consider its copy whole from now on."""
        self._context.silence.begins("confirming")
        self._context.progress.phase = Phase.CONFIRMING
        self._context.passes.flushed()
        self._context.record.asking_copied()
        self._step(self._channel.confirm(), self._handoff.confirmed)

    def record(self) -> None:
        """In a thread, since it waits for the medium."""
        self._context.silence.ends("confirming")
        working = self._in_thread(self._context.retirement.record_copied)
        working.addCallbacks(self._recorded, self._record_failed)
        working.addErrback(_bug)

    def _recorded(self, _: object) -> None:
        """A destination that has left meanwhile may not have done so in good order."""
        if self._connection.is_hung_up:
            self._drop("the destination closed the connection")
        self._handoff.recorded()

    def _record_failed(self, failure: Failure) -> None:
        if failure.check(DiskChanged):
            self._handoff.changed(failure.value)
        else:
            self._handoff.step_failed(failure.value)

    def retire(self) -> None:
        """In a thread, since it waits for the medium."""
        if self.is_over:
            return  # its disk may be in use again
        self._context.progress.phase = Phase.RETIRING
        self._context.passes.retiring()
        working = self._context.retirement.retire(self._in_thread)
        working.addCallbacks(
            lambda _: self._handoff.retired(),
            lambda failure: self._handoff.step_failed(failure.value),
        ).addErrback(_bug)

    def announce(self) -> None:
        """Through the channel."""
        self._context.silence.begins("announcing")
        self._context.progress.phase = Phase.ENDING
        self._step(
            self._channel.announce_retired(self._record_acknowledgement), self._handoff.acknowledged
        )

    async def _record_acknowledgement(self, token: str) -> None:
        with contextlib.suppress(OSError):  # then the finisher, if needed, announces it again
            await self._in_thread(self._context.record.acknowledged, token)

    def disconnect(self) -> None:
        """The last message; nothing is in flight and nothing is queued."""
        self._context.silence.begins("disconnecting")
        self._context.progress.phase = Phase.ENDING
        self._connection.disconnect(self._copier.disconnect_message())
        seconds = self._context.timeout(_CLOSE_TIMEOUT)
        self._connection.set_timeout(
            seconds,
            f"the destination did not close the connection after the disconnect in {seconds:g} s",
        )

    def check(self, why: str) -> None:
        """Through the channel."""
        self._connection.cancel_timeout()
        checking = Deferred.fromCoroutine(self._channel.why_incomplete(why))
        checking.addErrback(lambda failure: failure.getErrorMessage())
        checking.addCallback(self._checked).addErrback(_bug)

    def _checked(self, why: str) -> None:
        if why:
            self._handoff.incomplete(why)
        else:
            self._handoff.complete()

    def done(self) -> None:
        self._end(Completed())

    def restart(self, why: str) -> None:
        """The source is as it was."""
        self._end(Dropped(why, self._is_lasting, refusal=self._copier.refusal))

    def restart_changed(self, error: BaseException | None) -> None:
        """Clients may write again as soon as the connection is lost; anybody else may not."""
        if self._context.passes.in_use:
            self.restart("the connection was lost before the source was retired")
        else:
            self.failed(error)

    def failed(self, error: BaseException | None) -> None:
        """What became of the source decides what the error means."""
        retirement = self._context.retirement
        if isinstance(error, NotDurable):
            self._end(Failed(Unconfirmed(f"{error}; the destination was not notified")))
            return
        retirement.step_failed(error)
        if isinstance(error, SourceTouched):
            self._end(Dropped(str(error)))
        else:
            self._end(Failed(retirement.explain(error)))

    def finish(self, why: str) -> None:
        """The destination is canonical, and may not know it."""
        self._end(Unfinished(why))

    def _end(self, outcome: Outcome) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._copier.stop()
        if self._working is not None:
            self._working.cancel()
        self._channel.abort()
        self._connection.cancel_timeout()
        if not self._context.retirement.has_begun:
            self._context.passes.dropped()
        if not isinstance(outcome, Completed):
            self._connection.abort()  # before another connection may need the destination
        self._ended(outcome)


def explain(error: Exception, export: str) -> str:
    """Why a destination cannot be used."""
    if isinstance(error, TLSRefused):
        return (
            f"the destination does not start TLS ({error.explanation}), and nothing is sent "
            "without: start it with certificates"
        )
    if isinstance(error, HandshakeRefused):
        if error.reply == OptionReply.ERR_UNKNOWN:
            return f"the destination has no export named {export!r}"
        if error.reply == OptionReply.ERR_TLS_REQD:
            return "the destination requires TLS: say nbds:// instead of nbd://"
        return f"the destination refused the handshake: {error}"
    if isinstance(error, ProtocolError) and not isinstance(error, NotNBD):
        return f"the destination broke the protocol: {error}"
    return str(error)


def _bug(failure: Failure) -> None:
    _log.failure("while sending", failure=failure)
