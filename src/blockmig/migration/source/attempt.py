"""One attempt: one connection's try at the whole migration, from its handshake to one outcome.

Owns the life of that connection. `Opening` is an attempt until its handshake was accepted;
`Attempt` is what follows: the order of its steps is the hand-off `machine`'s, what is sent the
`copier`'s, what is told and asked beside the data the `channel`'s, and how the source is retired
the `retirement`'s.

Rules (design, sections 2 and 3):

* an attempt starts from the beginning of the disk; nothing of an earlier one is trusted;
* where the destination has the side export, it is told there which migration the attempt belongs
  to, before anything is sent; a destination without it gets plain NBD, in the same order;
* before the first byte of data the migration is on record at the source;
* the source that is retired is the one that was opened, as it was when the scan began;
* whatever happens, it ends with one outcome, told once. Unless the source is being retired by then,
  clients of ours are told first that the disk is theirs again.
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
from ...errors import GaveUp, LocalFailure, MigrationError, Unconfirmed
from ...nbd import (
    ClientHandshake,
    HandshakeRefused,
    Negotiated,
    NotNBD,
    OptionReply,
    ProtocolError,
    side_exports,
)
from ...storage import DiskChanged, NotDurable
from ...syscalls import describe_error
from ...transport import Pacer
from ..handoff.channel import Channel, HandoffChannel, NoChannel
from ..records.files import Location
from .admission import Admission, Fit, check_fit
from .context import (
    AttemptContext,
    AttemptFailed,
    Completed,
    Dropped,
    Failed,
    Outcome,
    Unfinished,
)
from .copier import Copier, NoFlush
from .machine import Handoff, make_handoff
from .passes import Ranges
from .watch import SourceTouched

_log = Logger()

_HANDSHAKE_TIMEOUT: Final = 30.0
_CLOSE_TIMEOUT: Final = 30.0


class Opening(ClientHandler):
    """An attempt whose handshake was not accepted yet.

    @param context: whose attempt it is.
    @param ended: called with the outcome, once.
    @ivar connection: to the destination; to be given to its endpoint.
    @ivar accepted: what it has become; None until then.
    """

    def __init__(self, context: AttemptContext, ended: Callable[[Outcome], None]) -> None:
        export = context.destination.export
        handshake = ClientHandshake(export, side_exports(export))
        limiter = context.passes.limiter
        pacer = Pacer(context.runtime.reactor, limiter) if limiter is not None else None
        self.connection = HalfClosingConnection(self, handshake, context.runtime, pacer)
        self.accepted: Attempt | None = None
        self._context = context
        self._ended = ended

    @property
    def goes_on(self) -> bool:
        """Whether the handshake was accepted, and the attempt has not ended."""
        return self.accepted is not None and not self.accepted.is_over

    def connection_made(self) -> None:
        """The server speaks first."""
        seconds = self._context.patience(_HANDSHAKE_TIMEOUT)
        self.connection.set_timeout(seconds, f"no NBD handshake in {seconds:g} s")

    def negotiated(self, negotiated: Negotiated) -> None:
        """Accept what is offered, or not."""
        context = self._context
        try:
            fit = check_fit(context, negotiated)
        except AttemptFailed as error:
            self.connection.fail(str(error))
            return
        context.progress.begin_attempt()
        _log.info(
            "attempt {number} began: {size} bytes of {disk}",
            event="attempt",
            number=context.progress.attempt,
            size=context.disk.size,
            disk=context.disk.name,
        )
        self.accepted = attempt = Attempt(context, self.connection, fit, self._ended)
        self.connection.handler = attempt
        attempt.begin()

    def connection_failed(self, why: str) -> None:
        """It came to nothing."""
        self._drop(why)

    def connection_lost(self, why: str, reason: Failure) -> None:
        """It came to nothing."""
        self._drop(why)

    def _drop(self, why: str) -> None:
        self._context.passes.dropped()
        self._ended(Dropped(why))

    def drop(self, why: str) -> None:
        """End the attempt, at whatever it is."""
        self.connection.fail(why)

    def explain(self, error: Exception) -> str:
        """Why the destination cannot be talked to."""
        return explain(error, self._context.destination.export)


class Attempt(ClientHandler):
    """An attempt whose handshake was accepted: the actions of its hand-off.

    @param context: whose attempt it is.
    @param connection: to the destination.
    @param fit: what it is.
    @param ended: called with the outcome, once.
    @ivar is_over: it has been.
    """

    def __init__(
        self,
        context: AttemptContext,
        connection: HalfClosingConnection,
        fit: Fit,
        ended: Callable[[Outcome], None],
    ) -> None:
        self.is_over = False
        self._context = context
        self._in_thread = context.runtime.threads
        self._connection = connection
        self._ended = ended
        self._handoff: Handoff = make_handoff(self)
        # By the cookie of the first request a receiver knows the connection from all others.
        cookie = secrets.randbits(64) if fit.receives and not fit.oldstyle else 0
        self._copier = Copier(context, connection, fit, cookie, self._source_failed)
        self._admission = Admission(context, self._copier.read, fit.longest)
        self._channel: Channel = NoChannel()
        if fit.receives:
            self._channel = HandoffChannel(
                context.destination,
                context.runtime,
                context.reply_timeout,
                lambda: context.record.record,
                cookie,
            )
        self._working: Deferred[None] | None = None

    # ClientHandler.

    def received(self, data: bytes) -> None:
        """Replies."""
        if not self.is_over:
            self._copier.received(data)

    def moved(self, count: int) -> None:
        """Some data was given to the wire."""
        self._context.progress.moved(count)

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
        if not self.is_over and not self._context.retirement.begun:
            self._context.passes.dropped()  # whatever else is to be waited for

    def explain(self, error: Exception) -> str:
        """Why the destination cannot be talked to."""
        return explain(error, self._context.destination.export)

    # The beginning.

    def begin(self) -> None:
        """Say and record which migration this is; then there is something to send."""
        self._step(self._begin(), self._send_all)

    async def _begin(self) -> None:
        self._channel = channel = await self._channel.open()
        place = await channel.claim(self._admission)
        if self.is_over:
            return
        self._context.agreed()
        await self._in_thread(self._record_begin, place, channel.exists)
        self._context.passes.begin()

    def _record_begin(self, place: Location, side_export: bool) -> None:
        """In a thread: what the source is now must be what it is when it is retired."""
        context = self._context
        context.retirement.watch.begin()
        context.record.copying(context.progress.number, place, side_export)

    def _send_all(self) -> None:
        self._step(self._context.passes.send(self), self._handoff.covered)

    def _step(self, coroutine: Coroutine[Any, Any, None], then: Callable[[], None]) -> None:
        """Do something that takes time, then go on; if it fails, this connection is of no use."""

        def done(_: None) -> None:
            if not self.is_over:
                then()

        self._working = working = Deferred.fromCoroutine(coroutine)
        working.addCallback(done).addErrback(self._step_broke).addErrback(_bug)

    def _step_broke(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, CancelledError):
            return  # it is of no use any more, or the attempt is not
        if isinstance(error, ClientFailed | AttemptFailed):
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

    def _source_failed(self, error: BaseException | None) -> None:
        if not self.is_over:
            self._fail(LocalFailure(f"{self._context.disk.name}: {describe_error(error)}"))

    def _fail(self, error: MigrationError) -> None:
        """There is no other attempt; the source is canonical."""
        self._end(Failed(error))

    # What passes are sent by.

    async def send_pass(self, take: Callable[[], Ranges]) -> None:
        """See L{blockmig.migration.source.passes.Attempt}."""
        await self._copier.send_pass(take)

    async def flush_now(self) -> None:
        """See L{blockmig.migration.source.passes.Attempt}."""
        await self._copier.flush_now()

    async def disk_is_still(self) -> None:
        """What the source is from now on must be what it is when it is retired."""
        watch = self._context.retirement.watch
        if watch.watches:
            await self._in_thread(watch.is_still)

    def release(self) -> None:
        """The disk is in use again: it was not everything yet."""
        self._handoff.released()

    # HandoffActions.

    def copy_on(self) -> None:
        """What was asked for and is not answered yet is of no importance."""
        self._forget_step()
        self._send_all()

    def copy_on_from_whole(self) -> None:
        """It is on record here that the copy is whole, which it is not any more."""
        self._forget_step()
        self._step(self._record_copying(), self._send_all)

    def _forget_step(self) -> None:
        self._copier.wait_for_no_flush()
        if self._working is not None:
            self._working.cancel()

    async def _record_copying(self) -> None:
        await self._in_thread(self._context.record.copying_on)

    def flush(self) -> None:
        """Where there is no FLUSH, unlinking was refused before."""
        if self._channel.whole_when_flushed:
            self._context.record.flushing()
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
                "without --unlink"
            )
        )

    def confirm(self) -> None:
        """The destination may take its copy for whole from now on."""
        self._context.passes.flushed()
        self._context.record.flushing()
        self._step(self._channel.confirm(), self._handoff.confirmed)

    def record(self) -> None:
        """In a thread, since it waits for the medium."""
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
        self._context.passes.retiring()
        working = self._context.retirement.retire(self._in_thread)
        working.addCallbacks(
            lambda _: self._handoff.retired(),
            lambda failure: self._handoff.step_failed(failure.value),
        ).addErrback(_bug)

    def announce(self) -> None:
        """By the channel."""
        self._step(
            self._channel.announce_retired(self._record_acknowledgement), self._handoff.acknowledged
        )

    async def _record_acknowledgement(self, token: str) -> None:
        with contextlib.suppress(OSError):  # then the finisher, if one is needed, tells it again
            await self._in_thread(self._context.record.acknowledged, token)

    def disconnect(self) -> None:
        """The last message; nothing is in flight and nothing is queued."""
        self._connection.disconnect(self._copier.disconnect_message())
        seconds = self._context.patience(_CLOSE_TIMEOUT)
        self._connection.set_timeout(
            seconds,
            f"the destination did not close the connection after the disconnect in {seconds:g} s",
        )

    def check(self, why: str) -> None:
        """By the channel."""
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
        """It is complete."""
        self._end(Completed())

    def restart(self, why: str) -> None:
        """The source is as it was."""
        self._end(Dropped(why))

    def restart_changed(self, error: BaseException | None) -> None:
        """Clients may write again as soon as the connection is lost; anybody else may not."""
        if self._context.passes.in_use:
            self.restart("the connection was lost before the source was retired")
        else:
            self.failed(error)

    def failed(self, error: BaseException | None) -> None:
        """What became of the source tells what it means."""
        retirement = self._context.retirement
        if isinstance(error, NotDurable):
            self._end(Failed(Unconfirmed(f"{error}; the destination was not told")))
            return
        retirement.undone(error)
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
        if not self._context.retirement.begun:
            self._context.passes.dropped()
        if not isinstance(outcome, Completed):
            self._connection.abort()  # before anybody else may want the destination
        self._ended(outcome)


def explain(error: Exception, export: str) -> str:
    """Why a destination cannot be talked to."""
    if isinstance(error, HandshakeRefused):
        if error.reply == OptionReply.ERR_UNKNOWN:
            return f"the destination has no export named {export!r}"
        if error.reply == OptionReply.ERR_TLS_REQD:
            return "the destination wants TLS, which is not supported"
        return f"the destination refused the handshake: {error}"
    if isinstance(error, ProtocolError) and not isinstance(error, NotNBD):
        return f"the destination broke the protocol: {error}"
    return str(error)


def _bug(failure: Failure) -> None:
    _log.failure("while sending", failure=failure)
