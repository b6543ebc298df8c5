"""What is sent of a disk that clients go on using: pass after pass, and the rest while they are
held.

Owns the dirty map, the passes over it, and the hold. It decides nothing of the hand-off, whose
order is the attempt's.

Rules (design, section 2: R8, R9):

* what clients have changed since the mirror began is known for the places that are checked before
  each attempt at a foreign destination (`foreign`);
* an attempt begins with everything dirty. A range is taken off the map before it is read: what
  changes after that is dirty again, and is sent in a later pass;
* each pass that sent something ends with a flush, so that the last one, with clients waiting, is
  short;
* when the rest is likely to be transferred in time (`convergence`), clients are held: once none of
  their requests is under way the disk is quiescent, what is dirty is sent, and nothing is left;
* where nothing is gained by waiting, clients may be held in the middle of a pass: what was not
  requested of the destination yet is dirty again, and the last pass follows;
* they are held for no longer than the longest pause: then they are released, whatever is under way
  short of retiring, and the passes go on;
* they are released whenever the attempt ends before the source is being retired; after that never;
* where clients make the disk dirty as fast as it is transferred, that is logged, and they are
  slowed down, or the mirror ends, or it goes on, as configured: at once, in the middle of a pass.
  They are never slowed below a minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from ...server import Server, Throttle
from ...storage import GRANULARITY, DirtyMap, Segment, Survey, TouchedMap, sample_ranges
from ...transport import Limiter, YieldingLimiter
from ..source.passes import PassSender, Ranges
from .convergence import Convergence, Next

_log = Logger()

_MOST_RANGES: Final = 256
_MOST_BYTES: Final = 64 << 20
_SAMPLE: Final = 0.1
_REPORT: Final = 60.0
_LOWEST_THROTTLE: Final = 1 << 20
"""Bytes per second that clients may always make dirty."""
_IDLE_DELAY: Final = 0.05
"""Seconds between passes that are only made because a hold has to wait."""


class Converge(StrEnum):
    """What to do where clients write too fast for the mirror to converge."""

    WAIT = "wait"
    THROTTLE = "throttle"
    ABORT = "abort"


class MirrorPhase(StrEnum):
    COPYING = "copying"
    HOLDING = "holding"
    HANDING_OVER = "handing over"


class PreCopy:
    """The passes of one mirror.

    @param server: whose clients use the disk.
    @param longest_pause: seconds for which they may be held.
    @param converge: what to do where they write too fast.
    @param reactor: the clock.
    @param give_up: called with the reason where they write too fast, and that is to end the mirror.
    @param finishing: called when the source is retired, and the destination cannot be notified yet.
    @param limiter: limits the rate of the data.
    @ivar dirty: what is to be sent.
    @ivar survey: where the disk has data.
    @ivar convergence: what was measured in the present attempt.
    @ivar phase: what is going on.
    @ivar hold_count: how often clients were held.
    @ivar pause: seconds for which they were held the last time, or have been by now.
    @ivar sent_while_held: bytes of data that were transferred meanwhile.
    """

    in_use = True

    def __init__(
        self,
        server: Server,
        *,
        longest_pause: float,
        converge: Converge,
        reactor: Any,
        give_up: Callable[[str], None],
        finishing: Callable[[], None],
        limiter: YieldingLimiter | None = None,
    ) -> None:
        size = server.disk.size
        self.limiter: Limiter | None = limiter
        self._yielding = limiter
        self.dirty = DirtyMap(size)
        self.survey = Survey(size)
        self.convergence = Convergence(longest_pause, size)
        self.phase = MirrorPhase.COPYING
        self.hold_count = 0
        self._longest_pause = longest_pause
        self._server = server
        self._converge = converge
        self._reactor = reactor
        self._give_up = give_up
        self._finishing = finishing
        self._touched = TouchedMap(size)
        self._position = 0
        self._in_pass = False
        self._in_flight = 0
        self._first_sent = self._first_sent_before = 0
        self._sent = 0
        self._sent_before_hold = 0
        self._attempt: PassSender | None = None
        self._deadline: IDelayedCall | None = None
        self._flushed = False
        self._sending_since: float | None = None
        self._flushed_at: float | None = None
        self._until_quiescent: Deferred[None] | None = None
        self._held_at: float | None = None
        self._pause: float | None = None
        self._sent_in_last_hold = 0
        self._reported = float("-inf")
        self._unchanged = {
            block for offset, length in sample_ranges(size) for block in _blocks(offset, length)
        }
        self._sampling = LoopingCall(self._sample)
        self._sampling.clock = reactor

    @property
    def left(self) -> int:
        """Bytes that are dirty or in flight."""
        return min(self.dirty.bytes + self._in_flight, self.dirty.size)

    @property
    def data_left(self) -> int:
        """About how many of these bytes are data; what clients have written is."""
        size, first, in_flight = self.dirty.size, self._first_sent, self._in_flight
        # Beyond what was sent for the first time, everything is dirty.
        again = max(0, self.dirty.bytes - (size - first))
        if self._position > self._first_sent_before:
            first, in_flight = max(0, first - in_flight), 0
        return min(self.survey.data(first, size) + again + in_flight, self.left)

    @property
    def converging(self) -> bool | None:
        """Whether it is likely to converge; None as long as that is not known."""
        return self.convergence.converging

    @property
    def pause(self) -> float | None:
        """See the class."""
        if self._held_at is not None:
            return float(self._reactor.seconds() - self._held_at)
        return self._pause

    @property
    def sent_while_held(self) -> int:
        """See the class."""
        return (
            self._sent - self._sent_before_hold
            if self._held_at is not None
            else self._sent_in_last_hold
        )

    @property
    def number(self) -> int:
        """The number of the present pass, from 1."""
        return self.convergence.passes + 1

    def start(self) -> None:
        """Watch what clients change from now on."""
        self.dirty.mark_all()
        self._server.changes.mark = self._mark
        self._server.latency.threads_busy = True
        self._sampling.start(_SAMPLE, now=True)

    def stop(self) -> None:
        """Stop watching; clients that are held stay held."""
        self._server.changes.mark = None
        self._server.latency.threads_busy = False
        self._server.changes.slow_down(None)
        if self._sampling.running:
            self._sampling.stop()
        self._stop_deadline()
        self._end_pause()

    def _mark(self, offset: int, length: int, data: bool = True) -> None:
        """A client is about to change something, or has just done so."""
        self.dirty.mark(offset, length, data)
        if data:
            self._touched.touch(offset, length)
        blocks = _blocks(offset, length)
        if len(blocks) < len(self._unchanged):
            self._unchanged.difference_update(blocks)
        else:
            self._unchanged = {block for block in self._unchanged if block not in blocks}

    def changed(self, offset: int, length: int) -> bool:
        """Whether clients have changed anything there, a sampled place, since the mirror began."""
        return not self._unchanged.issuperset(_blocks(offset, length))

    def _sample(self) -> None:
        if self._held_at is not None:
            return
        now, convergence, touched = self._reactor.seconds(), self.convergence, self._touched
        if self._yielding is not None:
            convergence.unhindered_rate = self._yielding.unhindered_rate
            convergence.max_rate = self._yielding.rate
        convergence.sample(
            now,
            self._sent,
            touched.written,
            self._in_flight > 0,
            touched=touched.bytes,
            left=self.data_left,
        )
        if self._in_pass and (decided := convergence.judge(now)) is not None:
            self._next_window(now)
            if decided == Next.NOT_CONVERGING:
                self._not_converging(now)
            elif decided == Next.HOLD:
                self._begin_hold()

    def _next_window(self, now: float) -> None:
        """What clients touch is counted anew."""
        self.convergence.next_window(now)
        self._touched.restart()

    # CopyPasses.

    def begin(self, took: float = 0.0) -> None:
        """All of the disk is dirty."""
        self.convergence = Convergence(self._longest_pause, self.dirty.size, took)
        self.survey = Survey(self.dirty.size)
        self.dirty.mark_all()
        self._touched.restart()
        self._position = self._in_flight = self._first_sent = 0
        self._flushed = False
        self._sample()

    async def send(self, attempt: PassSender) -> None:
        """Returns once clients are held, and nothing is left."""
        self._attempt = attempt
        while True:
            hold = await self._quiescent_hold(attempt)
            await self._send_pass(attempt)
            if self.phase == MirrorPhase.HOLDING:
                if hold == self.hold_count:
                    return
                continue  # it began in the middle of that pass
            if not self._flushed:
                began = self._reactor.seconds()
                await attempt.flush_now()
                self.convergence.flush = self._reactor.seconds() - began
                self._flushed = True
            if self._may_hold():
                self._begin_hold()
            elif self.dirty.bytes < GRANULARITY * _MOST_RANGES:
                await deferLater(self._reactor, _IDLE_DELAY)

    async def _send_pass(self, attempt: PassSender) -> None:
        self._position = 0
        self._first_sent_before = self._first_sent
        self._in_pass = True
        try:
            await attempt.send_pass(self._next_ranges)
        finally:
            self._in_pass = False
        self._in_flight = 0

    def _next_ranges(self) -> Ranges:
        """The next ranges of the pass; they are not dirty any more."""
        ranges: Ranges = []
        room = _MOST_BYTES
        while room > 0 and len(ranges) < _MOST_RANGES:
            taken = self.dirty.take(self._position, room)
            if taken is None:
                self._position = self.dirty.size
                break
            start, end = taken
            ranges.append(taken)
            self._position = end
            room -= end - start
            self._in_flight += end - start
        self._first_sent = max(self._first_sent, self._position)
        return ranges

    def _give_back(self, start: int, end: int) -> None:
        """A range that was taken is not sent now."""
        self.dirty.mark(start, end - start, data=False)
        self._in_flight -= end - start
        # What is requested is so in order: nothing beyond this range was.
        if start < self._first_sent:
            self._first_sent = self._position = max(start, self._first_sent_before)

    def acknowledged(self, segment: Segment) -> None:
        """It was transferred."""
        self._in_flight -= segment.length
        self._flushed = False
        if not segment.zero:
            self._sent += segment.length

    def _may_hold(self) -> bool:
        now, convergence = self._reactor.seconds(), self.convergence
        decided = convergence.pass_ended(now, self.dirty.bytes)
        if decided == Next.NOT_CONVERGING:
            self._next_window(now)
            self._not_converging(now)
        return decided == Next.HOLD

    def _not_converging(self, now: float) -> None:
        convergence, changes = self.convergence, self._server.changes
        dirty_rate = convergence.decisive_rate
        why = (
            f"clients dirty {dirty_rate / 1e6:.1f} MB/s, and "
            f"{convergence.rate / 1e6:.1f} MB/s are transferred"
        )
        if convergence.leaves_as_much:
            why += f"; pass after pass leaves as much as before, now {self.left / 1e6:.1f} MB"
        if now - self._reported >= _REPORT:
            self._reported = now
            _log.warn(
                "{disk}: not converging: {rates}",
                event="not-converging",
                disk=self._server.disk.name,
                rates=why,
                rate=round(convergence.rate),
                dirty_rate=round(dirty_rate),
            )
        if self._converge == Converge.ABORT:
            self._give_up(f"not converging: {why}")
        elif self._converge == Converge.THROTTLE:
            limit = max(convergence.rate / 2, _LOWEST_THROTTLE)
            if changes.throttle is not None:
                limit = max(min(limit, changes.throttle.rate / 2), _LOWEST_THROTTLE)
            changes.slow_down(Throttle(self._reactor, limit, lambda: self.dirty.marked))

    # The hold.

    def _begin_hold(self) -> None:
        self.phase = MirrorPhase.HOLDING
        self.hold_count += 1
        self._held_at = self._reactor.seconds()
        self._sent_before_hold = self._sent
        # In the middle of a pass there is something to send from the first moment.
        self._sending_since = self._held_at if self._in_pass else None
        self._flushed_at = None
        self._deadline = self._reactor.callLater(self._longest_pause, self._hold_timed_out)
        # Throttled requests are let through, so that nothing remains under way.
        self._server.changes.slow_down(None)
        self._until_quiescent = until_quiescent = Deferred[None]()
        self._server.hold().addCallback(lambda _: self._quiescent(until_quiescent))
        if self._in_pass and self._attempt is not None:
            self._attempt.cut_pass(self._give_back)

    async def _quiescent_hold(self, attempt: PassSender) -> int:
        """Where clients are held, wait until the disk is quiescent.

        @return: the number of that hold; 0 if there is none, or it has ended meanwhile.
        """
        if self.phase != MirrorPhase.HOLDING or self._until_quiescent is None:
            return 0
        hold = self.hold_count
        await self._until_quiescent
        if self.phase == MirrorPhase.HOLDING:
            await attempt.disk_is_quiescent()
        return hold if self.phase == MirrorPhase.HOLDING else 0

    def _quiescent(self, until_quiescent: Deferred[None]) -> None:
        """The server is quiescent; or it is not waited for any more."""
        if not until_quiescent.called:
            if self._sending_since is None:
                self._sending_since = self._reactor.seconds()
            until_quiescent.callback(None)

    def _hold_timed_out(self) -> None:
        """Clients have waited for long enough."""
        self._deadline = None
        assert self._held_at is not None
        assert self._attempt is not None
        now = self._reactor.seconds()
        self._measure_failed_hold(now)
        _log.warn(
            "{disk}: the rest was not transferred within {seconds:.3f} s; clients are released, "
            "and the mirror goes on",
            event="released",
            disk=self._server.disk.name,
            seconds=now - self._held_at,
        )
        try:
            self._release()
        finally:
            # Whatever went wrong, the steps under way must not lead to retiring now.
            self._attempt.release()
        if self._until_quiescent is not None:
            self._quiescent(self._until_quiescent)

    def _measure_failed_hold(self, now: float) -> None:
        """Pass on what the hold spent its time on."""
        sent, sending, steps = self._sent - self._sent_before_hold, 0.0, 0.0
        if self._flushed_at is not None:
            steps = now - self._flushed_at
        elif self._sending_since is not None:
            sending = now - self._sending_since
        self.convergence.hold_failed(now, sent, sending, steps)

    def _release(self) -> None:
        self._stop_deadline()
        if self._held_at is None:
            return
        self._end_pause()
        self.phase = MirrorPhase.COPYING
        self._server.release()

    def _end_pause(self) -> None:
        if self._held_at is not None:
            self._pause, self._sent_in_last_hold = self.pause, self.sent_while_held
            self._held_at = None

    def flushed(self) -> None:
        """A few small steps remain."""
        self.phase = MirrorPhase.HANDING_OVER
        self._flushed_at = self._reactor.seconds()

    def retiring(self) -> None:
        """Clients stay held, whatever happens."""
        self._stop_deadline()

    def finishing(self) -> None:
        """It may take long until the end."""
        self._finishing()

    def dropped(self) -> None:
        """The source is as it was."""
        self._attempt = None
        self._server.changes.slow_down(None)
        self._release()

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _blocks(offset: int, length: int) -> range:
    """The blocks of 64 KiB that a range touches."""
    return range(offset // GRANULARITY, (offset + length - 1) // GRANULARITY + 1)
