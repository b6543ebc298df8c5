"""Measures the rate at which a disk can be sent to a receiver, by sending a part of it for two
seconds to where it is thrown away.

Owns that connection. Rules:

* the disk goes the way that it will go: the scan, the copier and the connection are those of an
  attempt, only that the export is the receiver's NAME.scratch;
* nothing is written but to what cannot be a disk, whoever has the address by then;
* requests are short until the wire has shown that it is no slow one;
* it takes two seconds, and no more bytes than the receiver would take;
* the page cache is left alone;
* how the connection ends says nothing, unless nothing was measured before that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ...client import ClientConnection, ClientFactory, ClientFailed, ClientHandler
from ...errors import LocalFailure
from ...nbd import SCRATCH_EXPORT, SCRATCH_SIZE, ClientHandshake, Export, Negotiated
from ...runtime import wait_for_other
from ...syscalls import describe_error
from ...transport import Pacer
from ..source.admission import REQUEST, PeerCapabilities
from ..source.context import AttemptContext
from ..source.copier import Copier
from ..source.passes import FullCopy, Ranges
from ..source.progress import Progress
from .steps import within

SECONDS: Final = 2.0

MOST: Final = 4 << 30
"""Bytes."""

SHORT: Final = 64 << 10
"""Bytes of a request as long as nobody knows whether the wire is slow: of one that takes seconds
nothing would be known in time."""

_BRISK: Final = 4 << 20
"""Bytes of data after which longer requests are made, if they went in a moment."""

_MOST_PASSES: Final = 16
_PATIENCE: Final = 10.0


class Rehearsed(NamedTuple):
    """What was sent.

    @ivar data: bytes of data.
    @ivar zeroes: bytes of zeroes, which are not sent as such.
    @ivar seconds: what that took.
    @ivar met: bytes of data without those that were sent more than once.
    """

    data: int
    zeroes: int
    seconds: float
    met: int


class Rehearsal(ClientHandler):
    """Sends a part of a disk to a scratch export.

    @param context: of an attempt that would send it.
    @param cookie: of the first request, which a check has named.
    """

    def __init__(self, context: AttemptContext, cookie: int) -> None:
        runtime, limiter = context.runtime, context.passes.limiter
        self._context = context = replace(
            context,
            passes=FullCopy(context.disk.size, limiter),
            progress=Progress(context.disk.size, seconds=runtime.reactor.seconds),
        )
        self._cookie = cookie
        self._patience = context.timeout(_PATIENCE)
        self._reactor = runtime.reactor
        pacer = Pacer(runtime.reactor, limiter) if limiter is not None else None
        handshake = ClientHandshake(context.destination.export + SCRATCH_EXPORT)
        self._connection = ClientConnection(
            self, handshake, runtime, pacer, context.destination.tls
        )
        self._result: Deferred[Rehearsed] = Deferred(lambda _: self._stop())
        self._copier: Copier | None = None
        self._left: Ranges = []
        self._first = 0
        self._is_trying = False
        self._began = 0.0
        self._timer: IDelayedCall | None = None

    async def run(self) -> Rehearsed:
        """Send for a while.

        @raise ClientFailed: nothing can be sent there.
        @raise LocalFailure: the disk cannot be read.
        """
        try:
            await within(self._patience, self._reactor, self._connect(), "connection")
            return await self._result
        except (CancelledError, ClientFailed, LocalFailure):
            raise
        except Exception as error:  # each endpoint fails in its own ways
            raise ClientFailed(describe_error(error)) from None
        finally:
            self._stop()

    async def _connect(self) -> None:
        endpoint = self._context.destination.endpoint
        await wait_for_other(endpoint.connect(ClientFactory(self._connection)))

    def _stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._copier is not None:
            self._copier.stop()
        self._connection.abort()

    def _end(self, outcome: Rehearsed | Failure) -> None:
        if not self._result.called:
            self._result.callback(outcome)

    # ClientHandler.

    def connection_made(self) -> None:
        """The server speaks first."""
        seconds = self._patience
        self._connection.set_timeout(seconds, f"no NBD handshake within {seconds:g} s")

    def negotiated(self, negotiated: Negotiated) -> None:
        """Begin to send."""
        export = negotiated.export
        if export.size != SCRATCH_SIZE:
            self._connection.fail("what is called so there is no export that stores nothing")
            return
        self._began = self._reactor.seconds()
        self._timer = self._reactor.callLater(SECONDS, self._enough)
        Deferred.fromCoroutine(self._send(export)).addErrback(self._end)

    def _take_over(self, export: Export, longest: int) -> Copier:
        """Go on with requests of at most that length; nothing is in flight."""
        if self._copier is not None:
            self._copier.stop()
        self._copier = copier = Copier(
            self._context,
            self._connection,
            PeerCapabilities(export, False, True, min(longest, export.maximum_payload)),
            self._cookie,
            source_failed=self._source_failed,
            is_working=self._is_working,
            keep_cached=True,
        )
        return copier

    async def _send(self, export: Export) -> None:
        """Send the disk; a small one several times."""
        copier, self._is_trying = self._take_over(export, SHORT), True
        for _ in range(_MOST_PASSES):
            self._left = [(0, self._context.disk.size)]
            await copier.send_pass(self._take)
            if self._is_trying and self._context.progress.data >= _BRISK:
                self._is_trying = False
                copier = self._take_over(export, REQUEST)
                if self._left:  # the pass was cut
                    await copier.send_pass(self._take)
            self._first = self._first or self._context.progress.data
            soon = self._reactor.seconds() < self._began + SECONDS / 2
            if not self._context.progress.data or not soon:
                break
        self._enough()

    def _take(self) -> Ranges:
        left, self._left = self._left, []
        return left

    def _give_back(self, start: int, end: int) -> None:
        self._left.append((start, end))

    def _enough(self) -> None:
        progress = self._context.progress
        seconds = self._reactor.seconds() - self._began
        met = self._first or progress.data
        self._end(Rehearsed(progress.data, progress.zeroes, seconds, met))

    def received(self, data: bytes) -> None:
        """Replies."""
        assert self._copier is not None
        self._copier.received(data)
        if self._context.progress.data >= MOST:
            self._enough()
        elif (
            self._is_trying
            and self._context.progress.data >= _BRISK
            and self._reactor.seconds() < self._began + SECONDS / 4
        ):
            self._copier.cut_pass(self._give_back)

    def moved(self, count: int) -> None:
        """Some data was written to the connection."""
        if self._copier is not None:
            self._copier.moved(count)

    def sending_failed(self, error: OSError) -> None:
        """The source cannot be read."""
        self._source_failed(error)

    def _source_failed(self, error: BaseException | None) -> None:
        why = f"{self._context.disk.name}: cannot be read: {describe_error(error)}"
        self._end(Failure(LocalFailure(why)))

    def connection_failed(self, why: str) -> None:
        self._lost(why)

    def connection_lost(self, why: str, reason: Failure) -> None:
        self._lost(why)

    def _lost(self, why: str) -> None:
        if self._context.progress.data:
            self._enough()
        else:
            self._end(Failure(ClientFailed(why)))

    async def _is_working(self) -> Any:
        """Nothing there takes long."""
        return False
