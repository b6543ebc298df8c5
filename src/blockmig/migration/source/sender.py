"""The sender: sends a disk to an NBD server, then retires it, then disconnects.

`Sender` owns the migration: attempt after attempt until one comes to its end. `SenderProtocol` is
one attempt on one connection: what is in flight, and what was acknowledged. The order of its end is
the `handoff` machine's; what is on record the `source_record`'s; and where the source was retired,
but the destination could not be told, the `finisher` goes on.

Rules (design, sections 2 and 3):

* an attempt starts from the beginning of the disk; nothing of an earlier one is trusted. What it
  sends, and when that is all, is up to the `passes`: one, or as many as a disk in use needs;
* where the destination lists the side export, it is told there which migration the attempt belongs
  to, before anything is sent; a destination without it gets plain NBD, in the same order, and only
  if nobody's data is there (`foreign`);
* a server that says that it serves its disk to clients is no destination;
* the source that is retired is the one that was opened, as it was when the scan began
  (`source_watch`);
* before the first byte of data the migration is on record at the source;
* no two requests in flight overlap, since the pieces of a pass do not, and the next begins when
  all of the last was acknowledged; a FLUSH and a disconnect are sent with nothing in flight;
* what the destination does not offer is not used: without WRITE_ZEROES zeroes go as data; without
  FLUSH there is no telling when its copy is durable, so that such a destination is no place to
  unlink a source for;
* any error in a reply ends the attempt, not the migration;
* what goes wrong before a first handshake was accepted ends the migration, unless told to retry;
  after that there is always another attempt, until somebody gives up;
* a destination that leaves requests unanswered for longer than it may is dropped;
* an oldstyle server gets one request at a time, with a constant cookie; its flags are not to be
  relied on: one that refuses WRITE_ZEROES gets zeroes as data in the next attempt, and one that
  refuses FLUSH counts as having none.
"""

from __future__ import annotations

import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ...client import Destination
from ...client.small import ClientFailed
from ...errors import (
    GaveUp,
    LocalFailure,
    MigrationError,
    Refused,
    Summary,
    Unconfirmed,
)
from ...interfaces import IDisk, IRecordedDisk, IUnlinkableDisk
from ...nbd import (
    ClientHandshake,
    ClientTransmission,
    Command,
    Errno,
    Export,
    HandshakeRefused,
    Negotiated,
    NotNBD,
    OptionReply,
    Payload,
    ProtocolError,
    Reply,
    TransmissionFlag,
    describe_errno,
    side_exports,
    side_name,
)
from ...runtime import Runtime, ThreadWork, to_the_end
from ...storage import DiskChanged, DiskRefused, NotDurable, Piece, Scan
from ...syscalls import SystemCalls, describe_error
from ...transport import (
    FileRegion,
    Limiter,
    RegionProducer,
    is_plain_socket,
    tune,
    unacknowledged,
)
from ..handoff.channel import (
    NoSideExport,
    SideConversation,
    describe,
    is_about,
    message,
    open_side,
)
from ..handoff.message import Page, Stage
from ..policy import NO_OVERRIDES, USUAL_PATIENCE, Overrides, Patience
from ..records.files import Records, Side
from ..records.permitted import SourceFound, source_found
from .finisher import Finisher, put_complete_on_record, unconfirmed
from .foreign import NotBlank, Read, check_blank
from .machine import Handoff, make_handoff
from .passes import OnePass, Passes, Ranges
from .record import SourceRecord
from .watch import SourceGone, SourceTouched, SourceWatch

_log = Logger()

REQUEST: Final = 2 << 20
"""Bytes of the longest WRITE."""

_WINDOW_BYTES: Final = 32 << 20
_WINDOW_REQUESTS: Final = 256
_LOOK_AHEAD: Final = 64
_UNKNOWN = (Errno.EINVAL, Errno.ENOTSUP)
_HANDSHAKE_TIMEOUT: Final = 30.0
_CLOSE_TIMEOUT: Final = 30.0
_LAST_WORDS: Final = 5.0
_SOON: Final = 0.1
# So many times as long as for anything else.
_FLUSH_TAKES: Final = 10


class AttemptFailed(Exception):
    """An attempt did not come to its end; the message is one line that says why."""


class Unfinished(Exception):
    """The source is retired, and the destination may not know it; the message says why."""


@dataclass(slots=True)
class Progress:
    """How far a migration is.

    @ivar total: bytes of the disk.
    @ivar data: bytes acknowledged as data in the present attempt.
    @ivar zeroes: bytes acknowledged as zeroes in it.
    @ivar attempt: its number, counted from 1; 0 before the first.
    """

    total: int
    data: int = 0
    zeroes: int = 0
    attempt: int = 0

    @property
    def done(self) -> int:
        """Bytes acknowledged in the present attempt."""
        return self.data + self.zeroes


@implementer(IHalfCloseableProtocol)
class SenderProtocol(Protocol):
    """One attempt.

    @param sender: the migration that it is an attempt of.
    """

    transport: Any
    factory: Any

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._reactor = sender.reactor
        self._handoff: Handoff = make_handoff(self)
        self._handshake: ClientHandshake | None = ClientHandshake(
            sender.destination.export, side_exports(sender.destination.export)
        )
        self._wire = ClientTransmission()
        self._export: Export | None = None
        self._scan: Scan | None = None
        self._request = 0
        self._take: Callable[[], Ranges] = list
        self._pieces: deque[Piece] = deque()
        self._scanning = False
        self._scanned = False
        self._passed: Deferred[None] | None = None
        self._read: Deferred[bytes] | None = None
        self._payload = b""
        self._flushed: Deferred[None] | None = None
        self._flushing = False
        self._in_flight: dict[int, Piece] = {}
        self._bytes_in_flight = 0
        self._window_requests = _WINDOW_REQUESTS
        self._used: list[Piece] = []
        self._oldstyle = False
        self._told = False
        self._half_closes = False
        self._listed = False
        self._recorded = False
        self._released = False
        self._cookie = secrets.randbits(64)
        self._side: SideConversation | None = None
        self._working: Deferred[None] | None = None
        self._ended = False
        self._lost = False
        self._timeout: IDelayedCall | None = None
        self._silence: IDelayedCall | None = None
        self._answered_at = 0.0

    # IProtocol.

    def connectionMade(self) -> None:
        """Connected; the server speaks first."""
        tune(self.transport)
        self._outgoing = RegionProducer(
            self.transport,
            self._source_failed,
            sent=self._sender.moved,
            clock=self._reactor,
            limiter=self._sender.limiter,
            system=self._sender.runtime.system,
        )
        self._start_timeout(self._sender.patience(_HANDSHAKE_TIMEOUT), "no NBD handshake")

    def dataReceived(self, data: bytes) -> None:
        """Something from the server."""
        if self._ended:
            return
        try:
            if self._handshake is not None:
                self._shake_hands(data)
            else:
                self._wire.receive_data(data)
                self._replies()
        except NotNBD as error:
            self.drop(str(error))
        except ProtocolError as error:
            self.drop(f"the destination broke the protocol: {error}")

    def writeConnectionLost(self) -> None:
        """The disconnect, and that nothing follows it, was given to the kernel."""
        self._told = True

    def readConnectionLost(self) -> None:
        """The server closed its side: in good order, if it had the disconnect by then.

        Its end of the stream confirms what came to it before: were more than our own end still
        unconfirmed now, the server closed without the disconnect.
        """
        if self._handshake is not None:
            self.drop("the connection was closed during the handshake")
        elif self._told and unacknowledged(self.transport) <= 1:
            self._handoff.closed()
            self.transport.loseConnection()
        else:
            self.drop("the destination closed the connection")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone; by itself that is never the end of a hand-off."""
        self._lost = True
        self._outgoing.stopProducing()
        self._stop_timeout()
        if self._told and not self._half_closes and reason.check(ConnectionDone):
            self._handoff.closed()
        elif self._handshake is not None:
            self.drop("the connection was closed during the handshake")
        else:
            # Aborted by us is what the other side has closed while we were sending.
            closed = reason.check(ConnectionAborted, ConnectionDone)
            why = "closed by the destination" if closed else f"lost: {reason.getErrorMessage()}"
            self.drop(f"the connection was {why}")

    def drop(self, why: str) -> None:
        """This connection is of no more use."""
        if self._export is None:
            self.restart(why)
        else:
            self._released = self._released or self._sender.passes.in_use
            self._handoff.dropped(why)
            if not self._ended and not self._sender.retiring:
                self._sender.passes.dropped()  # whatever else is to be waited for
        self._abort()

    def _abort(self) -> None:
        self._outgoing.stopProducing()
        if not self._lost:
            self.transport.abortConnection()

    def _can_half_close(self) -> bool:
        """Whether the transport can say that nothing follows, hear on, and tell us of both.

        It tells the protocol that it knows of, which may be an endpoint's own, around ours.
        """
        transport = self.transport
        return (
            is_plain_socket(transport)
            and IHalfCloseableDescriptor.providedBy(transport)
            and IHalfCloseableProtocol.providedBy(transport.protocol)
        )

    # The handshake.

    def _shake_hands(self, data: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        try:
            handshake.receive_data(data)
        except HandshakeRefused as error:
            self.drop(_explain(error, self._sender.destination.export))
            return
        answer = handshake.data_to_send()
        if answer:
            self._outgoing.send([answer])
        event = handshake.next_event()
        if event is not None:
            self._negotiated(event, handshake.trailing_data())

    def _negotiated(self, event: Negotiated, trailing: bytes) -> None:
        self._stop_timeout()
        listed = side_name(self._sender.destination.export) in event.listed
        try:
            if event.listed and not listed:
                raise AttemptFailed(
                    "the destination is a `blockmig serve`, which gives its disk to clients: it "
                    "is in use, and no place to send another disk to"
                )
            request = self._sender.check_export(event.export)
        except AttemptFailed as error:
            self.drop(str(error))
            return
        self._handshake = None
        self._export = event.export
        self._oldstyle = event.oldstyle
        self._listed = listed
        if event.oldstyle:
            self._window_requests = 1
            self._wire = ClientTransmission(constant_cookie=True)
        elif listed:
            self._wire = ClientTransmission(first_cookie=self._cookie)
        self._sender.accepted()
        self._wire.receive_data(trailing)
        self._step(self._begin(request), self._send_all)

    def _step(self, coroutine: Coroutine[Any, Any, None], then: Callable[[], None]) -> None:
        """Do something that takes time, then go on; if it fails, this connection is of no use."""

        def done(_: None) -> None:
            if not self._ended:
                then()

        self._working = working = Deferred.fromCoroutine(coroutine)
        working.addCallback(done).addErrback(self._step_broke).addErrback(_bug)

    def _step_broke(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return  # it is of no use any more, or the attempt is not
        if failure.check(ClientFailed, AttemptFailed):
            self.drop(failure.getErrorMessage())
        elif isinstance(failure.value, MigrationError):
            self._end_migration(failure.value)
        elif isinstance(failure.value, DiskChanged):
            self._end_migration(LocalFailure(f"{failure.value}; it was not retired"))
        elif failure.check(OSError):
            self._source_failed(failure.value)
        else:
            _bug(failure)
            self.drop(f"a bug: {failure.getErrorMessage()}")

    def _end_migration(self, error: MigrationError) -> None:
        """There is no other attempt; the source is canonical."""
        self._end()
        self._sender.passes.dropped()
        self._sender.failed(error)
        self._abort()

    async def _open_side(self) -> Page:
        sender = self._sender
        self._side, page = await open_side(sender.destination, self._reactor, sender.reply_timeout)
        if self._ended:
            self._side.abort()
            raise ClientFailed("the attempt has ended")
        return page

    async def _tell(self, stage: Stage) -> None:
        assert self._side is not None
        await self._side.tell(message(stage, self._sender.source.record, self._cookie))

    async def _begin(self, request: int) -> None:
        """Say and put down which migration this is; then there is something to send."""
        sender = self._sender
        place = Side(address=sender.destination.uri)
        if self._listed:
            try:
                page = await self._open_side()
            except NoSideExport:
                self._listed = False  # something else has that name
            else:
                sender.check_page(page)
                place = Side(page.host, page.disk, sender.destination.uri)
                # Last before what gives an earlier copy up.
                whole = page.phase == Stage.COPIED and is_about(page, sender.source.record)
                sender.check_still_there(whole)
                await self._tell(Stage.COPYING)
        if not self._listed:
            await sender.check_foreign(self._read_destination, request)
            sender.check_still_there()
        if self._ended:
            return
        sender.agreed()
        await sender.in_thread(sender.begin_copying, place, self._listed)
        self._request = request
        sender.passes.begin()

    def _read_destination(self, offset: int, length: int) -> Deferred[bytes]:
        """What is there; one at a time, and only before there is anything else to be answered."""
        self._read = reading = Deferred[bytes]()
        self._payload = b""
        _, header = self._wire.request(Command.READ, offset, length)
        self._outgoing.send([header])
        self._expect_reply()
        return reading

    # Copying.

    @property
    def goes_on(self) -> bool:
        """Whether the handshake was accepted, and the attempt has not ended."""
        return self._export is not None and not self._ended

    def _send_all(self) -> None:
        self._step(self._copy(), self._handoff.covered)

    async def _copy(self) -> None:
        await self._sender.passes.send(self)

    async def send_pass(self, take: Callable[[], Ranges]) -> None:
        """Send ranges of the disk.

        @param take: gives the next ranges, each the start and the end; none when that was all.
        @return: when everything was acknowledged.
        """
        self._take = take
        self._scanned = False
        self._passed = passed = Deferred[None]()
        self._fill()
        await passed

    async def disk_is_still(self) -> None:
        """What the source is from now on must be what it is when it is retired."""
        if self._sender.watch.watches:
            await self._sender.in_thread(self._sender.watch.is_still)

    async def flush_now(self) -> None:
        """Have the destination make durable what it has; that says nothing of the whole copy."""
        assert self._export is not None
        if self._export.offers(TransmissionFlag.SEND_FLUSH) and not self._oldstyle:
            await self._send_flush()

    def _send_flush(self) -> Deferred[None]:
        flushed: Deferred[None] = Deferred()
        self._flushed = flushed
        self._flushing = True
        _, header = self._wire.request(Command.FLUSH)
        self._outgoing.send([header])
        self._expect_reply()
        return flushed

    def release(self) -> None:
        """The disk is in use again: it was not everything yet."""
        self._released = True
        self._handoff.released()

    def _fill(self) -> None:
        """Send what the window has room for, look at more of the disk, and see the end of it."""
        if self._ended or self._passed is None:
            return
        items: list[bytes | FileRegion] = []
        while (
            self._pieces
            and self._wire.in_flight < self._window_requests
            and self._bytes_in_flight < _WINDOW_BYTES
        ):
            piece = self._pieces.popleft()
            command = Command.WRITE_ZEROES if piece.zero else Command.WRITE
            _, header = self._wire.request(command, piece.offset, piece.length)
            self._in_flight[piece.offset] = piece
            items.append(header)
            if not piece.zero:
                self._bytes_in_flight += piece.length
                items.append(FileRegion(self._sender.disk, piece.offset, piece.length))
        if items:
            self._outgoing.send(items)
            self._expect_reply()
        if len(self._pieces) < _LOOK_AHEAD and not self._scanned:
            self._look_further()
        if self._scanned and not self._pieces and not self._wire.in_flight:
            passed, self._passed = self._passed, None
            passed.callback(None)

    def _look_further(self) -> None:
        if self._scanning:
            return
        if self._scan is None:
            ranges = self._take()
            if not ranges:
                self._scanned = True
                return
            assert self._export is not None
            sender = self._sender
            self._scan = Scan(
                sender.disk,
                self._request,
                self._export.minimum_block,
                find_zeroes=self._export.offers(TransmissionFlag.SEND_WRITE_ZEROES)
                and not sender.zeroes_as_data,
                ranges=ranges,
            )
        self._scanning = True
        used, self._used = self._used, []
        looking = self._sender.in_thread(self._look, self._scan, used)
        looking.addCallbacks(self._found, self._look_failed)

    def _look(self, scan: Scan, used: list[Piece]) -> list[Piece]:
        """In a thread: the next pieces; what was fetched for the last ones is not needed again."""
        self._forget(used)
        return scan.advance()

    def _forget(self, used: list[Piece]) -> None:
        for piece in used:
            self._sender.disk.forget(piece.offset, piece.length)

    def _found(self, pieces: list[Piece]) -> None:
        self._scanning = False
        if self._ended:
            return
        self._pieces.extend(pieces)
        if not pieces:
            self._scan = None
        self._fill()

    def _look_failed(self, failure: Failure) -> None:
        self._scanning = False
        self._source_failed(failure.value)

    def _source_failed(self, error: BaseException | None) -> None:
        if not self._ended:
            why = f"{self._sender.disk.name}: {describe_error(error)}"
            self._end_migration(LocalFailure(why))

    def _replies(self) -> None:
        while not self._ended and (event := self._wire.next_event()) is not None:
            if isinstance(event, Reply):
                self._reply(event)
            elif isinstance(event, Payload):
                self._payload += bytes(event.data)
            else:
                self._end_read(self._payload)
        self._answered_at = self._reactor.seconds()
        self._fill()

    def _expect_reply(self) -> None:
        """Something was asked: from now on something must be answered in time."""
        limit = self._sender.reply_timeout
        if limit is not None and self._silence is None:
            self._answered_at = self._reactor.seconds()
            self._silence = self._reactor.callLater(limit, self._check_silence, limit)

    def _check_silence(self, limit: float) -> None:
        self._silence = None
        if not self._wire.in_flight:
            return
        if self._flushing:
            limit *= _FLUSH_TAKES
        left = self._answered_at + limit - self._reactor.seconds()
        if left > 0:
            self._silence = self._reactor.callLater(
                left, self._check_silence, self._sender.reply_timeout
            )
        else:
            self.drop(f"the destination answered nothing for {limit:g} s")

    def _reply(self, reply: Reply) -> None:
        request, error = reply
        if request.command == Command.READ:
            if error:
                self._end_read(Failure(ClientFailed(describe_errno(error), error)))
        elif error and request.command == Command.FLUSH and error in _UNKNOWN and self._oldstyle:
            self._no_flush()
        elif error:
            if self._oldstyle and request.command == Command.WRITE_ZEROES:
                self._sender.zeroes_as_data = True
            name = describe_errno(error)
            what = Command(request.command).name
            where = f" at {request.offset}" if request.length else ""
            self.drop(f"the destination answered {what}{where} with {name}")
        elif request.command == Command.FLUSH:
            self._flush_answered()
        else:
            piece = self._in_flight.pop(request.offset)
            if not piece.zero:
                self._bytes_in_flight -= piece.length
            if piece.cold:
                self._used.append(piece)
            self._sender.acknowledged(piece)

    def _end_read(self, result: bytes | Failure) -> None:
        reading, self._read = self._read, None
        if reading is not None:
            reading.callback(result)

    def _no_flush(self) -> None:
        """An old server that offers FLUSH and does not know it (nbdkit 1.32 does so)."""
        if self._sender.unlinks:
            self._end_migration(
                GaveUp(
                    "the destination has all the data, but does not know FLUSH, so it cannot be "
                    f"known when it is durable; {self._sender.disk.name} is untouched and "
                    "canonical: send without --unlink"
                )
            )
        else:
            self._flush_answered()

    def _flush_answered(self) -> None:
        """Nobody waits for one that was asked for before the disk came into use again."""
        self._flushing = False
        flushed, self._flushed = self._flushed, None
        if flushed is not None:
            flushed.callback(None)

    # HandoffActions.

    def copy_on(self) -> None:
        """What was asked for and is not answered yet is of no importance."""
        self._flushed = None
        if self._working is not None:
            self._working.cancel()
        if self._recorded:
            self._step(self._record_copying(), self._send_all)
        else:
            self._send_all()

    async def _record_copying(self) -> None:
        """It is on record here that the copy is whole, which it is not any more."""
        self._recorded = False
        await self._sender.in_thread(self._sender.source.copying_on)

    def flush(self) -> None:
        """Where there is no FLUSH, unlinking was refused before."""
        assert self._export is not None
        if not self._listed:  # it may then take its copy for whole by itself
            self._sender.source.flushing()
        self._sender.in_thread(self._forget, self._used).addErrback(_bug)
        self._used = []
        if self._export.offers(TransmissionFlag.SEND_FLUSH):
            self._send_flush().addCallback(lambda _: self._handoff.flushed())
        else:
            self._handoff.flushed()

    def confirm(self) -> None:
        """By the side export, if there is one."""
        self._sender.passes.flushed()
        if self._listed:
            self._sender.source.flushing()
        if self._listed:
            self._step(self._ask(), self._handoff.confirmed)
        else:
            self._handoff.confirmed()

    async def _ask(self) -> None:
        """By the connection that is there since the attempt began, unless silence has cost it."""
        assert self._side is not None
        try:
            await self._tell(Stage.COPIED)
        except ClientFailed as error:
            if error.error:
                raise
            self._side.abort()
            await self._open_side()
            await self._tell(Stage.COPIED)

    def record(self) -> None:
        """In a thread, since it waits for the medium."""
        self._recorded = True
        self._released = False
        working = self._sender.in_thread(self._sender.record_copied)
        working.addCallbacks(lambda _: self._handoff.recorded(), self._record_failed)

    def _record_failed(self, failure: Failure) -> None:
        """Clients that were released meanwhile may have written to it: there is more to copy."""
        if self._released and failure.check(DiskChanged):
            self._handoff.recorded()
        else:
            self._step_failed(failure)

    def retire(self) -> None:
        """In a thread, since it waits for the medium."""
        if self._ended:
            return  # its disk may be in use again
        self._sender.passes.retiring()
        self._sender.retire().addCallbacks(lambda _: self._handoff.retired(), self._step_failed)

    def _step_failed(self, failure: Failure) -> None:
        self._handoff.step_failed(failure.value)
        self._abort()

    def tell(self) -> None:
        """By the side export, if there is one."""
        if self._listed:
            self._step(self._tell_retired(), self._handoff.told)
        else:
            self._handoff.told()

    async def _tell_retired(self) -> None:
        await self._tell(Stage.RETIRED)
        assert self._side is not None
        page = await self._side.read()
        with contextlib.suppress(OSError):  # then the finisher, if one is needed, tells it again
            await self._sender.in_thread(self._sender.source.told, page.token)

    def disconnect(self) -> None:
        """The last message; nothing is in flight and nothing is queued."""
        _, header = self._wire.request(Command.DISC)
        # By the transport, which sends it and closes its side in one go: a server that is quicker
        # could otherwise close before we know that the disconnect has left.
        self.transport.write(header)
        self._half_closes = self._can_half_close()
        if self._half_closes:
            self.transport.loseWriteConnection()
        else:
            self._told = True
        self._start_timeout(
            self._sender.patience(_CLOSE_TIMEOUT),
            "the destination did not close the connection after the disconnect",
        )

    def check(self, why: str) -> None:
        """By the side export; without one the way in which the connection ended must do."""
        self._stop_timeout()
        if self._listed:
            checking = Deferred.fromCoroutine(self._read_end(why))
            checking.addErrback(lambda failure: failure.getErrorMessage())
            checking.addCallback(self._checked).addErrback(_bug)
        else:
            self._checked(why)

    async def _read_end(self, why: str) -> str:
        """Why the destination is not complete; "" if it is."""
        side, record = self._side, self._sender.source.record
        assert side is not None
        page = await side.read()
        if page.phase == Stage.COMPLETE and is_about(page, record):
            await side.close()
            return ""
        return why or f"the destination is not complete ({describe(page)})"

    def _checked(self, why: str) -> None:
        if why:
            self._handoff.incomplete(why)
        else:
            self._handoff.complete()

    def done(self) -> None:
        """Tell the migration."""
        self._end()
        self._sender.done()

    def restart(self, why: str) -> None:
        """Tell the migration."""
        if not self._ended:
            self._end()
            self._sender.passes.dropped()
            self._sender.failed(AttemptFailed(why))

    def failed(self, error: BaseException | None) -> None:
        """Tell the migration."""
        self._end()
        if isinstance(error, NotDurable):
            self._sender.failed(Unconfirmed(f"{error}; the destination was not told"))
            return
        self._sender.not_retired()
        self._sender.passes.dropped()
        self._sender.failed(self._sender.why_not_retired(error))

    def finish(self, why: str) -> None:
        """Tell the migration."""
        self._end()
        self._sender.failed(Unfinished(why))

    def _end(self) -> None:
        self._ended = True
        if self._scan is not None:
            self._scan.stop()
        if self._working is not None:
            self._working.cancel()
        if self._side is not None:
            self._side.abort()
        self._stop_timeout()
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        self._pieces.clear()

    def _start_timeout(self, seconds: float, why: str) -> None:
        self._stop_timeout()
        self._timeout = self._reactor.callLater(seconds, self._timed_out, f"{why} in {seconds:g} s")

    def _timed_out(self, why: str) -> None:
        self._timeout = None
        self.drop(why)

    def _stop_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None


def _bug(failure: Failure) -> None:
    _log.failure("while sending", failure=failure)


def _explain(error: HandshakeRefused, export: str) -> str:
    if error.reply == OptionReply.ERR_UNKNOWN:
        return f"the destination has no export named {export!r}"
    if error.reply == OptionReply.ERR_TLS_REQD:
        return "the destination wants TLS, which is not supported"
    return f"the destination refused the handshake: {error}"


@implementer(IProtocolFactory)
class _AttemptFactory:
    """Makes the protocol of one attempt."""

    noisy = False

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._attempt: SenderProtocol | None = None

    def doStart(self) -> None:
        """Nothing to prepare."""

    def doStop(self) -> None:
        """Nothing to clean up."""

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        """The attempt."""
        self._attempt = attempt = SenderProtocol(self._sender)
        attempt.factory = self
        return attempt

    @property
    def goes_on(self) -> bool:
        """Whether there is an attempt that was accepted, and has not ended."""
        return self._attempt is not None and self._attempt.goes_on

    def drop(self, why: str) -> None:
        """End the attempt, whatever the endpoint has wrapped it in."""
        if self._attempt is not None:
            self._attempt.drop(why)


class Sender:
    """Sends a disk to a destination, again and again until it has arrived.

    @param disk: what to send; stays the caller's to close.
    @param destination: where to.
    @param unlink: delete the disk's file just before the disconnect.
    @param overrides: what is done all the same.
    @param patience: how long the destination is tried.
    @param passes: what an attempt sends; None for all of the disk, which nobody changes, once.
    @param limiter: holds the data back; None for no limit.
    @param runtime: what the outside world is; None for the real one.
    @ivar progress: how far it is.
    @ivar last_error: why the last attempt ended early; "" if none did.
    @ivar when_accepted: fires when a destination was found fit for the migration, and a first
        attempt is about to copy.
    @raise Refused: C{unlink} cannot be done with this disk, or the records beside it forbid to send
        it, or its migration is only to be finished (which a L{Finisher} does).
    """

    def __init__(
        self,
        disk: IDisk,
        destination: Destination,
        *,
        unlink: bool = False,
        overrides: Overrides = NO_OVERRIDES,
        patience: Patience = USUAL_PATIENCE,
        passes: Passes | None = None,
        limiter: Limiter | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        runtime = runtime or Runtime.of()
        system = runtime.system
        self.disk = disk
        self.passes: Passes = passes if passes is not None else OnePass(disk.size)
        self.reply_timeout = patience.reply_timeout
        self.reactor = runtime.reactor
        self.in_thread = ThreadWork(runtime.threads)
        self.runtime = replace(runtime, threads=self.in_thread)
        self.limiter = limiter
        self.progress = Progress(disk.size)
        self.zeroes_as_data = False
        self.destination = destination
        self._to_unlink = _unlinkable(disk) if unlink else None
        self.source = _source_record(
            disk, destination.uri, unlink=unlink, again=overrides.again, system=system
        )
        self.watch = SourceWatch(
            disk, in_use=self.passes.in_use, anyway=overrides.in_use_anyway, system=system
        )
        self._overwrite = overrides.overwrite
        self._attempts_before = self.source.record.attempt
        self._patience = patience
        self._policy = patience.retry_policy or backoffPolicy()
        self._last_progress = 0.0
        self._began: float | None = None
        self.last_error = ""
        self.when_accepted: Deferred[None] = Deferred()
        self._accepted = False
        self._retiring = False
        self._not_to_be_used = False
        self._finisher: Finisher | None = None
        self._factory: _AttemptFactory | None = None
        self._to_finish: str | None = None
        self._last_words: IDelayedCall | None = None
        self._stopped: GaveUp | None = None
        self._running: Deferred[Summary] | None = None
        self._result: Deferred[Summary] = Deferred()

    def run(self) -> Deferred[Summary]:
        """Send the disk; to be called once.

        @return: fires with a L{Summary}, or fails with a L{MigrationError}: L{Refused} where the
            first handshake was not accepted, L{LocalFailure} where the source failed, L{GaveUp}
            where it was stopped or gave up, L{Unconfirmed} where the source is retired and the
            destination may not know it.
        """
        self._last_progress = self.reactor.seconds()
        self._running = Deferred.fromCoroutine(self._run())
        return self._running

    def stop(self, why: str = "stopped") -> None:
        """End the migration as it stands; too late while the source is being retired."""
        if self._finisher is not None:
            self._finisher.stop(why)
        elif self._retiring and self._to_finish is None:
            # Done in an instant, unless the destination is silent: then it is left to another run.
            self._to_finish = why
            self._last_words = self.reactor.callLater(_LAST_WORDS, self._drop_last)
        if self._retiring or self._stopped is not None or self._running is None:
            return
        self._stopped = GaveUp(f"{why}; {self.disk.name} was not retired and is canonical")
        self._running.cancel()

    def _drop_last(self) -> None:
        self._last_words = None
        if self._factory is not None:
            self._factory.drop(self._to_finish or "stopped")

    async def _run(self) -> Summary:
        patience = None
        limit = self._patience.give_up_after
        if limit is not None:
            patience = LoopingCall(self._check_progress, limit)
            patience.clock = self.reactor
            patience.start(min(1.0, limit), now=False)
        failures = 0
        try:
            while True:
                attempt, progressed = self.progress.attempt, self._last_progress
                try:
                    summary = await self._attempt()
                    await put_complete_on_record(self.in_thread, self.source)
                    return summary
                except Unfinished as error:
                    return await self._finish(str(error))
                except AttemptFailed as error:
                    if not self._accepted and not self._patience.retry:
                        raise Refused(str(error)) from None
                    if self.progress.attempt != attempt and self.progress.done:
                        failures = 0
                    else:
                        # A destination that took nothing was no progress, whatever it was given.
                        self._last_progress = progressed
                        failures += 1
                    await self._pause(str(error), self._policy(failures))
        except CancelledError:
            self.check_still_there()  # or this copy is not the canonical one
            raise self._stopped or GaveUp("cancelled") from None
        finally:
            if patience is not None:
                patience.stop()
            await self._clean_up()

    async def _clean_up(self) -> None:
        """Wait for the threads; a source that was not retired is as it was."""
        if self._last_words is not None:
            self._last_words.cancel()
        while self.in_thread.busy:
            # Whoever cancels has to wait as well: the disk is closed behind this.
            with contextlib.suppress(CancelledError):
                await self.in_thread.idle()
        if self._retiring:
            return
        try:
            if self.source.may_be_copied and self.watch.is_gone:
                # The copy at the destination may be the only one.
                if self._not_to_be_used:
                    await to_the_end(self.in_thread(self.source.not_to_be_retired))
                return
            # First this, so that whoever moves the source then is not taken for us.
            await to_the_end(self.in_thread(self.source.not_to_be_retired))
        except OSError as error:
            _record_failed(error)
        await self._take_back()
        try:
            await to_the_end(self.in_thread(self.source.abandon))
        except OSError as error:
            _record_failed(error)

    async def _take_back(self) -> None:
        """Where the destination may have on record that its copy is whole, have it think again.

        Best effort: it is whole, if older than the source by then.
        """
        source = self.source
        if not source.asked or not source.record.side_export:
            return
        end = self.reactor.seconds() + _LAST_WORDS
        while (left := end - self.reactor.seconds()) > 0:
            try:
                side, page = await open_side(self.destination, self.reactor, left)
                try:
                    if not is_about(page, source.record):
                        return  # whoever is there now does not have that copy
                    await side.tell(message(Stage.COPYING, source.record, secrets.randbits(64)))
                    source.taken_back()
                    return
                finally:
                    side.abort()
            except ClientFailed as error:
                if not error.error:
                    return
                # Until the last attempt's connection is gone over there the answer is no.
                await deferLater(self.reactor, _SOON)
            except CancelledError:
                return

    async def _finish(self, why: str) -> Summary:
        """The source is retired; what is left is to have the destination know it."""
        record = self.source.record
        if not record.side_export:
            raise Unconfirmed(
                f"all the data is at the destination, but perhaps it was not told: {why}"
            )
        _log.warn(
            "{why}; the source is retired, and the destination is to be told that it is complete",
            event="finishing",
            why=why,
        )
        if self._to_finish is not None:
            raise unconfirmed(self._to_finish, record)
        self.passes.finishing()
        self._finisher = Finisher(
            self.source,
            self.destination,
            give_up_after=self._patience.give_up_after,
            runtime=self.runtime,
        )
        await self._finisher.run()
        return self._summary()

    async def _attempt(self) -> Summary:
        """One connection's try; also fails with L{AttemptFailed}."""
        self._result = Deferred()
        self._factory = factory = _AttemptFactory(self)
        try:
            await self.destination.endpoint.connect(factory)
        except (CancelledError, ConnectingCancelledError):
            raise CancelledError from None
        except Exception as error:  # each endpoint fails, and is cancelled, in its own ways
            if self._stopped is not None:
                raise self._stopped from None
            raise AttemptFailed(f"cannot connect to the destination: {error}") from None
        while True:
            try:
                return await self._result
            except CancelledError:
                if not self._retiring:
                    factory.drop("stopped")
                    raise
                # Too late: the outcome must say what becomes of the source.
                self._result = Deferred()

    async def _pause(self, why: str, delay: float) -> None:
        self.last_error = why
        _log.warn(
            "{why}; trying again in {delay:.1f} s",
            event="restart",
            why=why,
            delay=delay,
            attempt=self.progress.attempt,
        )
        await deferLater(self.reactor, delay)

    def _check_progress(self, limit: float) -> None:
        if self.reactor.seconds() - self._last_progress >= limit:
            self.stop(f"gave up after {limit:g} seconds without progress")

    # For the attempts.

    def patience(self, usual: float) -> float:
        """Seconds within which something small must be answered, which usually has C{usual}."""
        return min(usual, self.reply_timeout) if self.reply_timeout is not None else usual

    @property
    def connected(self) -> bool:
        """Whether an attempt goes on, its handshake accepted."""
        return self._factory is not None and self._factory.goes_on

    @property
    def retiring(self) -> bool:
        """Whether the source is retired, or about to be: then it is too late to stop."""
        return self._retiring

    @property
    def unlinks(self) -> bool:
        """Whether the source is deleted in the end."""
        return self._to_unlink is not None

    def check_export(self, export: Export) -> int:
        """Whether the migration can go to C{export}.

        @return: the bytes of the longest WRITE to send there.
        @raise AttemptFailed: it cannot.
        """
        size, block = self.disk.size, export.minimum_block
        if export.size != size:
            raise AttemptFailed(
                f"size mismatch: {self.disk.name} has {size} bytes, the destination {export.size}"
            )
        if export.read_only:
            raise AttemptFailed("the destination is read-only")
        if self._to_unlink is not None and not export.offers(TransmissionFlag.SEND_FLUSH):
            raise AttemptFailed(
                "the destination offers no FLUSH, so it cannot be known when its copy is durable: "
                "send without --unlink"
            )
        if size % block:
            raise AttemptFailed(
                f"the destination only takes multiples of {block} bytes, and {size} is none"
            )
        longest = min(REQUEST, export.maximum_payload) // block * block
        if not longest:
            raise AttemptFailed("the destination takes no payload as long as its own blocks")
        return longest

    def check_page(self, page: Page) -> None:
        """Whether the migration may begin where the side export says C{page}.

        @raise AttemptFailed: not now.
        @raise Refused: not before a human has looked, and this was the first time of asking.
        """
        refusal = Refused if self.progress.attempt == 1 else AttemptFailed
        try:
            self.source.check_place(page.host, page.disk)
        except Refused as error:
            raise refusal(str(error)) from None
        ours = is_about(page, self.source.record)
        if page.phase == Stage.RETIRED or (page.phase == Stage.COPIED and not ours):
            why = (
                "the destination has a whole copy of another migration, which may be the only one"
                if not ours
                else "the destination says that the source of this very migration was retired"
            )
            if page.migration or page.phase == Stage.RETIRED:
                raise refusal(f"{why}: see `blockmig inspect {page.disk}` on {page.host}")

    def accepted(self) -> None:
        """The handshake was accepted; an attempt begins."""
        if self._began is None:
            self._began = self.reactor.seconds()
        progress = self.progress
        progress.attempt += 1
        progress.data = progress.zeroes = 0
        _log.info(
            "attempt {number} began: {size} bytes of {disk}",
            event="attempt",
            number=progress.attempt,
            size=self.disk.size,
            disk=self.disk.name,
        )
        self._accepted = True

    def begin_copying(self, place: Side, side_export: bool) -> None:
        """In a thread: what the source is now must be what it is when it is retired."""
        self.watch.begin()
        self.source.copying(self.attempt, place, side_export)

    def agreed(self) -> None:
        """Nothing speaks against the destination: the attempt is about to copy."""
        if not self.when_accepted.called:
            self.when_accepted.callback(None)

    async def check_foreign(self, read: Read, longest: int) -> None:
        """Whether a destination without the side export may be written to.

        @param read: reads from there.
        @param longest: bytes of the longest READ.
        @raise AttemptFailed: not now.
        @raise Refused: it may not, and this was the first time of asking.
        """
        if self._overwrite:
            return
        read_own: Read | None = None
        if self.source.was_copying_to(self.destination.uri):

            def read_own(offset: int, length: int) -> Deferred[bytes]:
                return self.in_thread(self.disk.read, offset, length)

        refusal = Refused if self.progress.attempt == 1 else AttemptFailed
        where = self.destination.uri or "the destination"

        async def read_there(offset: int, length: int) -> bytes:
            data = await read(offset, length)
            self.moved(length)
            return data

        try:
            await check_blank(self.disk.size, longest, read_there, read_own, self.passes.changed)
        except NotBlank as error:
            raise refusal(
                f"{where}: holds {error}, and is no receiver of blockmig's: to overwrite it, say "
                "--overwrite"
            ) from None
        except ClientFailed as error:
            raise refusal(
                f"{where}: cannot be read ({error}), so that it cannot be known whether somebody's "
                "data is there: to write there all the same, say --overwrite"
            ) from None

    def _gone(self, why: str) -> Unconfirmed:
        return Unconfirmed(
            f"{why} while it was being sent; the copy at {self.source.record.destination} may have "
            "all of it, and be the only one: see `blockmig inspect` there"
        )

    def check_still_there(self, whole: bool = False) -> None:
        """Whether another attempt may write over what the last one has left.

        @param whole: the destination says that this is a whole copy.
        @raise Unconfirmed: the source was deleted by somebody else, when all of it may have been
            copied.
        """
        whole = whole or self.source.may_be_copied
        if whole and self.watch.is_gone and not self.passes.in_use:
            raise self._gone(f"{self.disk.name} was deleted by somebody else")

    def moved(self, count: int) -> None:
        """Bytes were given to the wire."""
        self._last_progress = self.reactor.seconds()

    def acknowledged(self, piece: Piece) -> None:
        """The destination has C{piece}."""
        self._last_progress = self.reactor.seconds()
        self.passes.acknowledged(piece)
        if piece.zero:
            self.progress.zeroes += piece.length
        else:
            self.progress.data += piece.length

    @property
    def attempt(self) -> int:
        """The number of the attempt, those of earlier processes counted too."""
        return self._attempts_before + self.progress.attempt

    def retire(self) -> Deferred[Any]:
        """Retire the source: from now on there is no other attempt.

        @return: fires once that is durable.
        """
        self._retiring = True
        return self.in_thread(self._retire)

    def record_copied(self) -> None:
        """In a thread. Of a source that was moved away it must not stand that we may delete it."""
        try:
            self._look()
        except SourceGone as error:
            if not error.unchanged:
                raise
        self.source.copied()

    def _retire(self) -> None:
        """In a thread: nothing comes between the last look and the act."""
        if self._to_unlink is None:
            self.source.retire_kept(self._check_last)
        elif self._check_last():
            self._to_unlink.unlink()
        else:
            self.source.settle()

    def _check_last(self) -> bool:
        """Whether the source has a name to be taken away.

        One that clients of ours use need not have: they are held, and nothing else was left of it.
        """
        try:
            self._look()
        except SourceGone as error:
            spares = self._to_unlink is not None or not error.replaced
            if not (self.passes.in_use and error.unchanged and spares):
                raise
            return False
        return True

    def _look(self) -> None:
        """In a thread."""
        try:
            self.watch.check()
        except SourceTouched:
            # By a hard link, perhaps: it need not be copied once more to learn that.
            if self._to_unlink is not None:
                self._to_unlink.check_unlink()
            raise

    def not_retired(self) -> None:
        """Retiring failed: the source is still the canonical copy."""
        self._retiring = False
        if self._last_words is not None:
            self._last_words.cancel()
            self._last_words = None

    def why_not_retired(self, error: BaseException | None) -> AttemptFailed | MigrationError:
        """What it means that a step of the retirement failed."""
        name = self.disk.name
        if isinstance(error, SourceTouched):
            if self._to_finish is not None:  # somebody wanted it to end meanwhile
                return GaveUp(f"{self._to_finish}; {name} was not retired and is canonical")
            return AttemptFailed(str(error))
        if isinstance(error, SourceGone):
            self._not_to_be_used = not error.unchanged
            return self._gone(str(error))
        if isinstance(error, DiskChanged):
            return LocalFailure(
                f"{error}; the disk that was sent was not retired, and is still the canonical copy"
            )
        return LocalFailure(
            f"{name}: could not be retired: {describe_error(error)}; it is still the canonical "
            "copy, though the destination has all of it"
        )

    def done(self) -> None:
        """The attempt came to its end, and so did the migration."""
        self._result.callback(self._summary())

    def _summary(self) -> Summary:
        assert self._began is not None
        seconds = self.reactor.seconds() - self._began
        progress = self.progress
        return Summary(self.disk.size, progress.data, progress.zeroes, seconds, progress.attempt)

    def failed(self, error: AttemptFailed | Unfinished | MigrationError) -> None:
        """The attempt ended otherwise; with a L{MigrationError} the migration did too."""
        if not self._result.called:
            self._result.errback(error)


def _record_failed(error: OSError) -> None:
    _log.warn(
        "the record of the migration could not be removed: {error}",
        event="record-failed",
        error=describe_error(error),
    )


def _source_record(
    disk: IDisk, destination: str, *, unlink: bool, again: bool, system: SystemCalls
) -> SourceRecord:
    """What is on record about the source, if it may be sent."""
    if not IRecordedDisk.providedBy(disk):
        records, found, identity = None, SourceFound(), ""
    else:
        records, identity = Records(disk.record_path, system), disk.identity()
        found = source_found(records, identity, destination, unlink=unlink, again=again)
        if found.retired:
            raise Refused(f"{disk.name}: is retired, and its migration only to be finished")
    return SourceRecord(
        records,
        found,
        disk=getattr(disk, "path", disk.name),
        destination=destination,
        size=disk.size,
        unlink=unlink,
        identity=identity,
        again=again,
    )


def _unlinkable(disk: IDisk) -> IUnlinkableDisk:
    """The disk, if deleting it would retire it."""
    if not IUnlinkableDisk.providedBy(disk):
        raise Refused(
            f"{disk.name}: is not a regular file, so it cannot be deleted: send without --unlink"
        )
    try:
        disk.check_unlink()
    except DiskRefused as error:
        raise Refused(str(error)) from None
    return disk
