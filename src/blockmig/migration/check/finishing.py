"""Whether a migration that has retired its source can be finished.

Owns the conversation with its destination. Rules (design, section 2: R6, R10):

* what decides is what decides when it is finished (`source.unfinished`): a destination that need
  not be told is not asked, and one that has acknowledged everything may be gone;
* nothing is announced: only a message that checks is sent.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

from ...client import ClientFailed, NBDClient
from ...errors import Unconfirmed
from ...nbd import Errno, LocalProtocolError
from ...runtime import Runtime
from ..handoff.channel import HandoffConversation, open_handoff
from ..handoff.handshake import handshake_for, is_receiver
from ..handoff.message import HandoffMessage, HandoffPhase
from ..records.files import Record
from ..source.unfinished import Standing, conclude_unknown, is_to_be_told, standing_of
from .plan import Plan
from .report import Notes
from .steps import within

T = TypeVar("T")


class FinishingChecks:
    """The checks of one destination that is to be told that the source is retired.

    @param plan: the migration.
    @param record: of the source.
    @param notes: takes what is found.
    @param runtime: the reactor, threads and system calls to use.
    """

    def __init__(self, plan: Plan, record: Record, notes: Notes, runtime: Runtime) -> None:
        self._plan = plan
        self._record = record
        self._notes = notes
        self._runtime = runtime

    async def run(self) -> None:
        """Look at everything."""
        plan, record = self._plan, self._record
        if not is_to_be_told(record):
            self._notes.ok("destination", f"{plan.where}: need not be told, and is not asked")
            return
        try:
            handshake = handshake_for(plan.destination.export, record.size)
        except LocalProtocolError as error:
            self._notes.fail("destination", error)
            return
        client = NBDClient(handshake, self._runtime, plan.timeout, tls=plan.destination.tls)
        try:
            await self._look(client)
        finally:
            client.abort()

    async def _look(self, client: NBDClient) -> None:
        plan = self._plan
        try:
            negotiated = await self._within(
                client.connect(plan.destination.endpoint, plan.destination.uri), "connection"
            )
        except ClientFailed as error:
            self._cannot_be_told("destination", error)
            return
        self._notes.ok("destination", f"{plan.where}: an NBD server answers there")
        if not is_receiver(negotiated, plan.destination.export):
            self._conclude_unknown(None)
            return
        try:
            handoff, message = await self._within(
                open_handoff(plan.destination, self._runtime, plan.timeout, plan.identity.secret),
                "answer",
            )
        except ClientFailed as error:
            self._cannot_be_told("receiver", error)
            return
        try:
            await self._judge(handoff, message)
        finally:
            handoff.abort()

    async def _judge(self, handoff: HandoffConversation, message: HandoffMessage) -> None:
        notes = self._notes
        standing = standing_of(message, self._record)
        if standing == Standing.UNKNOWN:
            self._conclude_unknown(message)
        elif standing != Standing.COMPLETE:
            await self._ask(handoff, message, standing)
        elif self._plan.identity.secret and not self._record.told:
            notes.fail("receiver", "the receiver there does not prove that it is complete")
        else:
            notes.ok("receiver", f"the receiver of {_disk(message)}: {standing.value}")

    async def _ask(
        self, handoff: HandoffConversation, message: HandoffMessage, standing: Standing
    ) -> None:
        """Whether it is told by us: it has the same id and secret."""
        record, receiver = self._record, f"the receiver of {_disk(message)}"
        try:
            await handoff.send(
                HandoffMessage(
                    HandoffPhase.CHECKING,
                    str(uuid.uuid4()),
                    size=record.size,
                    host=record.source.host,
                    disk=record.source.disk,
                    cookie=f"{secrets.randbits(64):016x}",
                    id=record.id,
                )
            )
            await handoff.read()
        except ClientFailed as error:
            if error.error != Errno.EINVAL:
                self._cannot_be_told("receiver", error)
                return
            self._notes.warn(
                "receiver",
                f"{receiver}: {standing.value}; its version answers no check: whether it has the "
                "same id=… and secret=… is not known",
            )
        else:
            self._notes.ok("receiver", f"{receiver}: {standing.value}")

    def _conclude_unknown(self, message: HandoffMessage | None) -> None:
        where, told = self._plan.where, "it has acknowledged that its copy is the canonical one"
        try:
            other = conclude_unknown(message, self._record)
        except Unconfirmed as error:
            self._notes.fail("receiver", error)
            return
        if other:
            self._notes.warn("receiver", f"{where}: {told}, and has another migration now: {other}")
        else:
            self._notes.ok("receiver", f"{where}: {told}, and knows of no migration any more")

    def _cannot_be_told(self, name: str, error: ClientFailed) -> None:
        why = f"{self._plan.where}: {error}"
        if self._record.told:
            self._notes.warn(
                name,
                f"{why}; it has acknowledged that its copy is the canonical one, so that it is "
                "looked for for a while only",
            )
        else:
            self._notes.fail(name, why)

    async def _within(self, doing: Coroutine[Any, Any, T], what: str) -> T:
        return await within(self._plan.timeout, self._runtime.reactor, doing, what)


def _disk(message: HandoffMessage) -> str:
    return f"{message.host}:{message.disk}"
