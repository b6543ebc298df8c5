"""The copying of one attempt: from the scan of the disk to the last acknowledgement.

Owns the scan, the queue of segments to send, and how long nothing was answered; how much is in
flight at a time is counted elsewhere (`in_flight`), and how far the scan may be ahead is known
elsewhere (`look_ahead`).
What is sent, and when that is all, is up to the `passes`; what follows is the hand-off's.

Rules (design, sections 2 and 3):

* no two requests in flight overlap, since the segments of a pass do not, and the next pass begins
  when all of the last was acknowledged; a FLUSH is sent with nothing else in flight, but for the
  one by which the connection is known to a receiver;
* what the destination does not offer is not used: without WRITE_ZEROES, zeroes are sent as data;
* any error in a reply ends the connection;
* a destination that leaves requests unanswered, and takes no more of them, for longer than the time
  limit is dropped; a FLUSH may take longer than anything else. Where it is asked to flush or to
  write zeroes, and says elsewhere that it is at work for us, that may take as long as it likes;
* what a disk without a descriptor holds is read before it is requested to be written
  (`segment_reader`), so that the destination never waits for that disk in the middle of a request;
  little of it is kept in memory until it is sent;
* an oldstyle server gets one request at a time, with a constant cookie; its flags cannot be relied
  on: one that refuses WRITE_ZEROES gets zeroes as data in the next attempt, and one that refuses
  FLUSH counts as having none;
* what was read from the medium for the copy is not kept in the page cache once it was sent
  (`forgetting`).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, NoReturn

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...client import ClientConnection, ClientFailed, PendingRequests, RequestFailed
from ...nbd import (
    ClientTransmission,
    Command,
    Errno,
    TransmissionFlag,
    describe_errno,
)
from ...storage import LONGEST_ZEROES, Scan, Segment, Survey
from ...transport import FileRegion
from .admission import PeerCapabilities
from .context import AttemptContext
from .forgetting import Forgetting
from .in_flight import InFlight
from .look_ahead import look_ahead_for
from .passes import Ranges
from .refusals import Refusal
from .segment_reader import SegmentReader

_log = Logger()

# Bytes that were read and not sent yet, from which on no more are taken from the reader.
_UNSENT_BYTES: Final = 2 << 20
# Bytes that a receiver is asked to zero at a time: it can say that it is still at work.
_RECEIVERS_ZEROES: Final = 2 << 30
_UNKNOWN_COMMAND: Final = (Errno.EINVAL, Errno.ENOTSUP)
_MAY_TAKE_LONG: Final = (Command.FLUSH, Command.WRITE_ZEROES)
# How many times the reply timeout a FLUSH may take.
_FLUSH_FACTOR: Final = 10
# A member of an Enum is looked up slowly, and these are needed for every request.
_WRITE: Final = Command.WRITE
_WRITE_ZEROES: Final = Command.WRITE_ZEROES


class NoFlush(Exception):
    """An old server has offered FLUSH, and does not know it (nbdkit 1.32 does so)."""


class _Pass:
    """The state of one pass.

    @param take: returns the next ranges.
    @ivar segments: are to be sent; with their data, if that had to be read.
    @ivar scan: the one that goes on.
    @ivar ranges: what it scans.
    @ivar position: how far it has come.
    @ivar scanning: a thread is at work on it.
    @ivar scanned: nothing is left to scan.
    @ivar give_back: takes what is not to be sent, once the pass is cut; None before.
    """

    def __init__(self, take: Callable[[], Ranges]) -> None:
        self.take = take
        self.acknowledged: Deferred[None] = Deferred()
        self.segments: deque[Segment] = deque()
        self.scan: Scan | None = None
        self.ranges: Ranges = []
        self.position = 0
        self.scanning = False
        self.scanned = False
        self.give_back: Callable[[int, int], None] | None = None

    def cut(self) -> None:
        """Give back what was not requested, unless a thread is still at work on it."""
        if self.give_back is None or self.scanning:
            return
        for segment in self.segments:
            self.give_back(segment.offset, segment.end)
        for start, end in self.ranges:
            if end > self.position:
                self.give_back(max(start, self.position), end)
        self.segments.clear()
        self.ranges, self.scan, self.scanned = [], None, True


class Copier:
    """The copying of one attempt.

    @param context: of the attempt.
    @param connection: to the destination.
    @param peer: what the destination offers.
    @param cookie: of the first request.
    @param source_failed: called with the error where the disk cannot be read.
    @param is_working: asks the destination whether it is at work for this attempt.
    @param keep_cached: what is read stays in the page cache: the disk is not about to go.
    @ivar refusal: what the destination has answered with an error; None if nothing.
    """

    def __init__(
        self,
        context: AttemptContext,
        connection: ClientConnection,
        peer: PeerCapabilities,
        cookie: int,
        *,
        source_failed: Callable[[BaseException | None], None],
        is_working: Callable[[], Coroutine[Any, Any, bool]],
        keep_cached: bool = False,
    ) -> None:
        self._forgetting = (
            None if keep_cached else Forgetting(context.disk, context.runtime.threads)
        )
        self.refusal: Refusal | None = None
        self._is_working = is_working
        self._asking: Deferred[None] | None = None
        self._context = context
        self._reactor = context.runtime.reactor
        self._connection = connection
        self._export = peer.export
        self._oldstyle = peer.oldstyle
        self._longest = peer.longest
        self._longest_zeroes = _RECEIVERS_ZEROES if peer.is_receiver else LONGEST_ZEROES
        self._source_failed = source_failed
        wire = ClientTransmission(constant_cookie=peer.oldstyle, first_cookie=cookie)
        self._requests = PendingRequests(wire)
        self._look_ahead = look_ahead_for(
            context.disk,
            connection.transport,
            context.runtime.system,
            in_use=context.passes.in_use,
        )
        self._in_flight = InFlight(self._requests, one_at_a_time=peer.oldstyle)
        self._pass: _Pass | None = None
        self._bytes_unsent = 0
        self._reader = self._make_reader() if context.disk.fileno() is None else None
        self._flushed: Deferred[None] | None = None
        self._flushing = False
        self._reply_timer: IDelayedCall | None = None
        self._answered_at = 0.0
        self._stopped = False

    def _make_reader(self) -> SegmentReader:
        """What reads a disk without a descriptor."""
        context = self._context
        return SegmentReader(
            context.disk,
            context.runtime.threads,
            step=max(context.disk.shortest_zeroes, self._export.minimum_block)
            if self._finds_zeroes
            else None,
            # Nobody else needs what is in its cache, if it has one, unless it is in use.
            cold=not context.passes.in_use,
            ready=self._data_ready,
        )

    @property
    def _finds_zeroes(self) -> bool:
        """Whether zeroes can be sent as such."""
        offered = self._export.offers(TransmissionFlag.SEND_WRITE_ZEROES)
        return offered and not self._context.quirks.zeroes_as_data

    def stop(self) -> None:
        """The attempt is over."""
        self._stopped = True
        if self._reader is not None:
            self._reader.stop()
        if self._pass is not None:
            self._pass.segments.clear()
            if self._pass.scan is not None:
                self._pass.scan.stop()
        if self._reply_timer is not None:
            self._reply_timer.cancel()
            self._reply_timer = None
        if self._asking is not None:
            self._asking.cancel()
        self._context.silence.ends("requests")

    # What the attempt calls.

    async def send_pass(self, take: Callable[[], Ranges]) -> None:
        """Send ranges of the disk.

        @param take: returns the next ranges, each the start and the end; an empty list when that
            was all.
        @return: when everything was acknowledged.
        """
        self._pass = sending = _Pass(take)
        self._fill(sending)
        await sending.acknowledged

    def cut_pass(self, give_back: Callable[[int, int], None]) -> None:
        """End the pass with what was requested, or is being read in order to be."""
        sending = self._pass
        if sending is not None and sending.give_back is None:
            sending.give_back = give_back
            sending.cut()
            self._fill(sending)

    def introduce(self) -> None:
        """Send the first request, by whose cookie a receiver knows the connection, before there is
        anything to send: until it knows that, it may close the connection for others.

        A FLUSH costs nothing there as long as nothing was written, and nobody needs its reply.
        """
        if self._offers_flush:
            _, header = self._requests.make(Command.FLUSH, 0, 0, lambda error, _: None)
            self._send([header])

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """Read from the destination, before any other request is sent there.

        @return: fails with L{ClientFailed} where it cannot be read.
        """
        header, reading = self._requests.ask(Command.READ, offset, length)
        self._send([header])
        return reading.addErrback(_cannot_be_read)

    async def flush_now(self) -> None:
        """Make durable what the destination has so far; that says nothing of the whole copy."""
        if self._offers_flush and not self._oldstyle:
            await self._flush()

    def flush(self) -> Deferred[None]:
        """Make the whole copy durable at the destination, if it offers that.

        @return: fails with L{NoFlush}.
        """
        if self._forgetting is not None:
            self._forgetting.finish()
        return self._flush() if self._offers_flush else succeed(None)

    @property
    def _offers_flush(self) -> bool:
        return self._export.offers(TransmissionFlag.SEND_FLUSH)

    def _flush(self) -> Deferred[None]:
        self._flushed = flushed = Deferred[None]()
        _, header = self._requests.make(Command.FLUSH, 0, 0, self._flush_answered)
        self._flushing = True
        self._send([header])
        return flushed

    def ignore_flush(self) -> None:
        """A flush that was requested before the disk came into use again no longer matters."""
        self._flushed = None

    def disconnect_message(self) -> bytes:
        """The last message; nothing may be in flight."""
        return self._requests.disconnect()

    # The window, and the scan ahead of it.

    def _fill(self, sending: _Pass) -> None:
        """Send what the window has room for, scan further, and notice the end of the pass."""
        if self._stopped:
            return
        items: list[bytes | FileRegion] = []
        disk, make = self._context.disk, self._requests.make
        while self._has_room and (segment := self._next(sending)) is not None:
            offset, length, zero, _, data = segment
            if data is not None:
                segment = segment._replace(data=None)
            answered = partial(self._segment_answered, segment)
            _, header = make(_WRITE_ZEROES if zero else _WRITE, offset, length, answered)
            items.append(header)
            self._in_flight.requested(segment)
            if not zero:
                self._bytes_unsent += length
                items.append(FileRegion(disk, offset, length, None, data))
        if self._stopped:  # the disk could not be read
            return
        if items:
            self._send(items)
        being_read = self._reader.waiting if self._reader is not None else 0
        if not sending.scanned and not self._look_ahead.is_enough(sending.segments, being_read):
            self._scan_further(sending)
        left = sending.segments or being_read
        if sending.scanned and not left and not self._requests.in_flight:
            self._pass = None
            sending.acknowledged.callback(None)

    @property
    def _has_room(self) -> bool:
        """Whether one segment more may be requested."""
        return self._in_flight.has_room and self._bytes_unsent < self._look_ahead.most_unsent

    def _next(self, sending: _Pass) -> Segment | None:
        """What is to be sent next; None if that is not known yet, or would be too much."""
        reader = self._reader
        if reader is not None and not sending.segments and self._bytes_unsent < _UNSENT_BYTES:
            try:
                sending.segments.extend(reader.take())
            except OSError as error:
                self._source_failed(error)
        if sending.give_back is not None and reader is None:
            return None
        return sending.segments.popleft() if sending.segments else None

    def _data_ready(self) -> None:
        """The reader has something to give out."""
        if self._pass is not None:
            self._fill(self._pass)

    def moved(self, count: int) -> None:
        """Some data was given to the connection, which the destination has room for."""
        self._heard()
        was_full = self._bytes_unsent >= self._look_ahead.most_unsent
        self._bytes_unsent -= count
        if self._reader is not None or (was_full and self._has_room):
            self._data_ready()

    def _scan_further(self, sending: _Pass) -> None:
        if sending.scanning:
            return
        if sending.scan is None:
            sending.ranges = ranges = sending.take()
            if not ranges:
                sending.scanned = True
                return
            sending.position = 0
            sending.scan = Scan(
                self._context.disk,
                self._longest,
                self._export.minimum_block,
                find_zeroes=self._finds_zeroes,
                ranges=ranges,
                probe=self._reader is None,
                longest_zeroes=self._longest_zeroes,
            )
        sending.scanning = True
        # Without a way to send zeroes as such, everything is sent as data.
        survey = self._context.passes.survey if self._finds_zeroes else None
        scanning = self._context.runtime.threads(self._advance_scan, sending.scan, survey)
        scanning.addCallbacks(
            self._scan_advanced, self._scan_failed, callbackArgs=(sending,), errbackArgs=(sending,)
        )

    def _advance_scan(self, scan: Scan, survey: Survey | None) -> list[Segment]:
        """In a thread: the next segments."""
        if survey is not None:
            with contextlib.suppress(OSError):  # the scan meets what matters of it
                survey.advance(self._context.disk)
        return self._look_ahead.advance(scan)

    def _scan_advanced(self, segments: list[Segment], sending: _Pass) -> None:
        sending.scanning = False
        if self._stopped:
            return
        if self._reader is not None:
            self._reader.add(segments)
        else:
            sending.segments.extend(segments)
        if segments:
            sending.position = segments[-1].end
        else:
            sending.scan, sending.ranges = None, []
        sending.cut()
        self._fill(sending)

    def _scan_failed(self, failure: Failure, sending: _Pass) -> None:
        sending.scanning = False
        self._source_failed(failure.value)

    # Requests and replies.

    def _send(self, items: list[bytes | FileRegion]) -> None:
        """From now on something must be answered in time."""
        self._context.silence.begins("requests")
        self._connection.outgoing.send(items)
        limit = self._context.reply_timeout
        if limit is not None and self._reply_timer is None and self._asking is None:
            self._answered_at = self._reactor.seconds()
            self._check_reply_in(limit, limit)

    def _check_reply_in(self, delay: float, limit: float) -> None:
        self._reply_timer = self._reactor.callLater(delay, self._check_reply_timeout, limit)

    def _check_reply_timeout(self, limit: float) -> None:
        self._reply_timer = None
        if not self._requests.in_flight:
            return
        allowed = limit
        if self._flushing:
            allowed *= _FLUSH_FACTOR
        left = self._answered_at + allowed - self._reactor.seconds()
        if left > 0:
            self._check_reply_in(left, limit)
            return
        why = f"the destination answered nothing for {allowed:g} s"
        if any(self._requests.is_in_flight(command) for command in _MAY_TAKE_LONG):
            asking = Deferred.fromCoroutine(self._ask(limit, why))
            if not asking.called:
                self._asking = asking
            asking.addErrback(_cancelled).addErrback(_bug)
        else:
            self._connection.fail(why)

    async def _ask(self, limit: float, why: str) -> None:
        """Ask the destination whether it is at work, and go on waiting only then."""
        asked_at = self._answered_at
        try:
            working = await self._is_working()
        except ClientFailed:
            working = False
        self._asking = None
        if working:  # 2 GiB of zeroes may take longer to write out than anybody waits
            self._context.progress.moved(0)
        if working or self._answered_at != asked_at:
            self._check_reply_in(limit, limit)
        else:
            self._connection.fail(why)

    def received(self, data: bytes) -> None:
        """Data from the destination.

        @raise blockmig.nbd.RemoteProtocolError: it breaks the protocol.
        """
        self._requests.received(data)
        self._heard()
        if self._pass is not None:
            self._fill(self._pass)

    def _heard(self) -> None:
        self._answered_at = self._reactor.seconds()
        self._context.silence.broken()
        if not self._requests.in_flight:
            self._context.silence.ends("requests")

    def _segment_answered(self, segment: Segment, error: int, _: bytes) -> None:
        if self._stopped:
            return
        if error:
            command = Command.WRITE_ZEROES if segment.zero else Command.WRITE
            if self._oldstyle and segment.zero:
                self._context.quirks.zeroes_as_data = True
            self._refused(Refusal(command.name, segment.offset, error))
            return
        self._in_flight.acknowledged(segment)
        if self._forgetting is not None:
            self._forgetting.acknowledged(segment)
        self._context.passes.acknowledged(segment)
        self._context.progress.acknowledged(segment)

    def _flush_answered(self, error: int, _: bytes) -> None:
        """Nobody waits for a flush that was requested before the disk came into use again."""
        if self._stopped:
            return
        flushed, self._flushed = self._flushed, None
        self._flushing = False
        if error and not (error in _UNKNOWN_COMMAND and self._oldstyle):
            self._refused(Refusal("FLUSH", None, error))
        elif flushed is not None and not flushed.called:
            flushed.callback(Failure(NoFlush()) if error else None)

    def _refused(self, refusal: Refusal) -> None:
        self.refusal = self.refusal or refusal
        self._connection.fail(str(refusal))


def _cannot_be_read(failure: Failure) -> NoReturn:
    """Reword the error for the check of a foreign destination."""
    error = failure.value
    if isinstance(error, RequestFailed):
        raise ClientFailed(describe_errno(error.error), error.error) from None
    failure.raiseException()


def _cancelled(failure: Failure) -> None:
    failure.trap(CancelledError)


def _bug(failure: Failure) -> None:
    _log.failure("while sending", failure=failure)
