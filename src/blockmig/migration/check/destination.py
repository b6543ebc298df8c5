"""What a migration needs of its destination.

Owns the connection to the export that the disk would go to. Rules (design, section 2: R10, R12):

* nothing is written to it, and an attempt is not begun: it only negotiates, and reads;
* each step ends within its time, whoever does not answer;
* a blockmig receiver is asked further by way of its side export (`receiver`); of any other server
  what a migration would look at is looked at (`foreign`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from statistics import median
from typing import Any, Final, TypeVar

from ...client import ClientFailed, NBDClient
from ...interfaces import IDisk
from ...nbd import LocalProtocolError, Negotiated, TransmissionFlag
from ...runtime import Runtime
from ...storage import Survey
from ...transport import RateLimiter
from ...units import format_bytes
from ..handoff.channel import NoHandoffExport, open_handoff
from ..handoff.handshake import handshake_for, is_in_use, is_receiver
from ..source.admission import PeerCapabilities, check_peer
from ..source.attempt import explain
from ..source.context import AttemptContext, AttemptFailed
from ..source.passes import FullCopy
from ..source.prepared import PreparedSource
from ..source.progress import Progress
from ..source.silence import Silence
from .foreign import check_foreign
from .plan import Plan
from .receiver import ReceiverChecks
from .report import Notes
from .steps import within

T = TypeVar("T")

_ROUND_TRIPS: Final = 5
_ANY_SIZE: Final = 1 << 20


class _Client(NBDClient):
    """Explains why a destination cannot be used as an attempt does."""

    export = ""

    def explain(self, error: Exception) -> str:
        return explain(error, self.export)


def attempt_context(
    disk: IDisk, prepared: PreparedSource, plan: Plan, runtime: Runtime
) -> AttemptContext:
    """What an attempt of the migration would be given."""
    limiter = RateLimiter(runtime.reactor, plan.max_rate) if plan.max_rate else None
    return AttemptContext(
        disk=disk,
        destination=plan.destination,
        runtime=runtime,
        passes=FullCopy(disk.size, limiter),
        record=prepared.record,
        retirement=prepared.retirement,
        progress=Progress(disk.size, attempt=1, seconds=runtime.reactor.seconds),
        reply_timeout=plan.timeout,
        overwrite=plan.overrides.overwrite,
        identity=plan.identity,
        plain=plan.overrides.plain,
        accepted=lambda: None,
        silence=Silence(runtime.reactor, plan.destination.uri),
    )


class DestinationChecks:
    """The checks of one destination.

    @param plan: the migration.
    @param context: of an attempt to send the disk; None if there is no disk to be sent.
    @param survey: where it has data.
    @param notes: takes what is found.
    @param runtime: the reactor, threads and system calls to use.
    @param size: bytes of the disk; 0 where that is not known.
    """

    def __init__(
        self,
        plan: Plan,
        context: AttemptContext | None,
        survey: Survey | None,
        notes: Notes,
        runtime: Runtime,
        *,
        size: int,
    ) -> None:
        self._size = size
        self._plan = plan
        self._context = context
        self._survey = survey
        self._notes = notes
        self._runtime = runtime

    async def run(self) -> None:
        """Look at everything."""
        destination = self._plan.destination
        try:
            # A receiver that has no size yet takes any.
            handshake = handshake_for(destination.export, self._size or _ANY_SIZE)
        except LocalProtocolError as error:
            self._notes.fail("destination", error)
            return
        client = _Client(handshake, self._runtime, self._plan.timeout, tls=destination.tls)
        client.export = destination.export
        try:
            negotiated = await self._reach(client)
            if negotiated is not None:
                await self._look_at(client, negotiated)
        finally:
            client.abort()

    async def _reach(self, client: NBDClient) -> Negotiated | None:
        destination = self._plan.destination
        connecting = client.connect(destination.endpoint, destination.uri)
        try:
            negotiated = await self._within(connecting, "connection")
        except ClientFailed as error:
            self._notes.fail("destination", f"{self._plan.where}: {error}")
            return None
        self._notes.ok("destination", f"{self._plan.where}: an NBD server answers there")
        return negotiated

    async def _look_at(self, client: NBDClient, negotiated: Negotiated) -> None:
        peer = self._check_export(negotiated)
        export = self._plan.destination.export
        if is_receiver(negotiated, export):
            if await self._ask_receiver(client, peer):
                return
        elif is_in_use(negotiated, export):
            return  # a server of a disk in use, as was said
        await self._measure(lambda: client.read(0, negotiated.export.minimum_block))
        await check_foreign(self._plan, self._context, peer, client, self._notes)

    def _check_export(self, negotiated: Negotiated) -> PeerCapabilities | None:
        """What is offered, and whether the disk fits."""
        export, notes = negotiated.export, self._notes
        flush = export.offers(TransmissionFlag.SEND_FLUSH)
        figures = {
            "size": export.size,
            "read_only": export.read_only,
            "flush": flush,
            "minimum_block": export.minimum_block,
            "maximum_payload": export.maximum_payload,
        }
        peer = None
        if self._context is None:
            if export.name != self._plan.destination.export:
                notes.ok("export", "the export has no size yet: it gets that of the disk")
            else:
                notes.ok("export", f"the export has {format_bytes(export.size)}", **figures)
            return None
        try:
            peer = check_peer(self._context, negotiated)
        except AttemptFailed as error:
            notes.fail("export", error, **figures)
        else:
            notes.ok(
                "export",
                f"the export has {format_bytes(export.size)}, as the disk, and can be written, in "
                f"requests of at most {format_bytes(peer.longest)}",
                **figures,
            )
        if flush:
            notes.ok("flush", "FLUSH is offered: the copy is durable before the source is retired")
        elif peer is not None:
            notes.warn(
                "flush", "FLUSH is not offered: when the copy is durable, only its server knows"
            )
        return peer

    async def _ask_receiver(self, client: NBDClient, peer: PeerCapabilities | None) -> bool:
        """Whether it is a receiver; an export of that name may be something else."""
        plan, notes = self._plan, self._notes
        try:
            handoff, message = await self._within(
                open_handoff(plan.destination, self._runtime, plan.timeout, plan.identity.secret),
                "answer",
            )
        except NoHandoffExport:
            return False
        except ClientFailed as error:
            notes.fail("receiver", f"{plan.where}: its side export cannot be read: {error}")
            return True
        try:
            await self._measure(handoff.read)
            checks = ReceiverChecks(plan, self._context, self._survey, notes, handoff)
            await checks.run(message, peer, client)
        finally:
            handoff.abort()
        return True

    async def _within(self, doing: Coroutine[Any, Any, T], what: str) -> T:
        return await within(self._plan.timeout, self._runtime.reactor, doing, what)

    async def _measure(self, ask: Callable[[], Awaitable[Any]]) -> None:
        """How long an answer takes."""
        seconds, took = self._runtime.reactor.seconds, []
        try:
            for _ in range(_ROUND_TRIPS):
                began = seconds()
                await ask()
                took.append(seconds() - began)
        except ClientFailed as error:
            # A figure only: what a migration reads there is read, and judged, elsewhere.
            self._notes.warn("round-trip", f"{self._plan.where}: was not measured: {error}")
            return
        usual = median(took)
        self._notes.ok(
            "round-trip", f"an answer takes {usual * 1000:.1f} ms", seconds=round(usual, 6)
        )
