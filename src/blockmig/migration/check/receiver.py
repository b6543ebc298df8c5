"""What a migration needs of a blockmig receiver: what that says to everybody, and to who checks.

Owns the conversation. Rules (design, section 2: R10):

* the message that checks has a UUID of its own: that of the migration is told only to who gets it;
* what a receiver does not tell, or does not know how to tell, is said, and is no failure.
"""

from __future__ import annotations

import secrets
import uuid
from datetime import datetime
from typing import Final

from ... import __version__
from ...client import ClientFailed, NBDClient
from ...errors import LocalFailure, MigrationError
from ...nbd import Errno
from ...storage import Survey
from ...units import format_bytes, format_duration
from ..handoff.channel import AnotherMigration, HandoffConversation, is_same_migration
from ..handoff.findings import Findings
from ..handoff.message import HandoffMessage, HandoffPhase
from ..records.files import this_host, timestamp
from ..source.admission import REQUEST, Admission, PeerCapabilities
from ..source.context import AttemptContext, AttemptFailed
from .plan import Plan
from .rehearsal import SHORT, Rehearsal, Rehearsed
from .report import Notes

_MOST_APART: Final = 5
"""Seconds that two clocks may differ before that is worth a word; they are read to the second."""


class ReceiverChecks:
    """The checks of one receiver.

    @param plan: the migration.
    @param context: of an attempt to send the disk; None if there is no disk to be sent.
    @param survey: where it has data.
    @param notes: takes what is found.
    @param handoff: its side export.
    """

    def __init__(
        self,
        plan: Plan,
        context: AttemptContext | None,
        survey: Survey | None,
        notes: Notes,
        handoff: HandoffConversation,
    ) -> None:
        self._plan = plan
        self._context = context
        self._survey = survey if survey is not None else Survey(0)
        self._data = self._survey.data(0, context.disk.size) if context is not None else 0
        self._notes = notes
        self._handoff = handoff
        self._cookie = secrets.randbits(64)

    async def run(
        self,
        message: HandoffMessage,
        peer: PeerCapabilities | None,
        client: NBDClient,
    ) -> None:
        """Look at everything.

        @param message: what it says to everybody.
        @param peer: what it offers; None if the disk cannot be sent there.
        @param client: of the export that the disk would go to.
        """
        try:
            self._admit(message, peer, client)
            findings = await self._ask()
        except AnotherMigration as error:
            self._notes.fail("receiver", f"{error}: compare id=… and secret=… at both ends")
        except ClientFailed as error:
            if error.error == Errno.EINVAL:
                self._is_older(message)
            else:
                self._notes.fail("receiver", error)
        else:
            await self._judge(message, findings)

    def _admit(
        self,
        message: HandoffMessage,
        peer: PeerCapabilities | None,
        client: NBDClient,
    ) -> None:
        """Whether what it has may be replaced, as far as that is told to everybody."""
        if self._context is None:
            return
        longest = peer.longest if peer is not None else REQUEST
        try:
            there = Admission(self._context, client.read, longest).check_receiver(message)
        except (MigrationError, AttemptFailed) as error:
            self._notes.fail("admission", error)
        else:
            self._notes.ok("admission", f"{there}: holds no copy that may be needed")

    async def _ask(self) -> Findings | None:
        """What it has found.

        @raise ClientFailed: it does not tell.
        """
        context, plan = self._context, self._plan
        record = context.record.record if context is not None else None
        await self._handoff.send(
            HandoffMessage(
                HandoffPhase.CHECKING,
                str(uuid.uuid4()),
                size=context.disk.size if context is not None else 0,
                host=this_host(),
                disk=record.source.disk if record is not None else "",
                unlink=plan.unlink,
                cookie=f"{self._cookie:016x}",
                id=record.id if record is not None else plan.identity.id,
            )
        )
        return (await self._handoff.read()).findings

    def _is_older(self, message: HandoffMessage) -> None:
        self._notes.warn(
            "receiver",
            f"a blockmig receiver, of {message.host}:{message.disk}, whose version answers no "
            "check: whether it has the same id=… and secret=…, what room there is, whether records "
            "can be written, what it does, its clock, and the rate are not known",
        )

    async def _judge(self, message: HandoffMessage, findings: Findings | None) -> None:
        notes = self._notes
        if findings is None:
            self._is_older(message)
            return
        notes.ok(
            "receiver",
            f"blockmig {findings.version}, of {message.host}:{message.disk} (here {__version__})",
            version=findings.version,
            own_version=__version__,
        )
        if not findings.told:
            notes.warn(
                "not-told",
                "what room there is, whether records can be written, what it does, its clock, and "
                "the rate are told only to who has the receiver's id=… or secret=…, and it was "
                "given neither",
            )
            return
        self._judge_state(message, findings)
        self._judge_records(findings)
        self._judge_clock(findings)
        if self._context is None:
            return
        met = 0 if findings.receiving else await self._rehearse(self._context)
        self._judge_room(self._context, findings, met)

    def _judge_state(self, message: HandoffMessage, findings: Findings) -> None:
        context, notes = self._context, self._notes
        if findings.state == "failed":
            notes.fail("state", "the disk there has failed: the receiver is about to end")
        elif findings.receiving:
            ours = context is not None and is_same_migration(message, context.record.record)
            say = notes.warn if ours else notes.fail
            say("state", f"the receiver is busy: it has an attempt of {findings.receiving}")
        else:
            notes.ok("state", f"the receiver is not busy (its state: {findings.state})")

    def _judge_records(self, findings: Findings) -> None:
        if findings.unrecorded:
            self._notes.fail(
                "records-there", f"no records can be written there: {findings.unrecorded}"
            )
        else:
            self._notes.ok("records-there", "records can be written there")

    def _judge_room(self, context: AttemptContext, findings: Findings, met: int) -> None:
        """Of what the disk there has already nothing more is needed.

        What is no hole here may be zeroes, which need no room there; and where the survey is not
        complete, or the source is a device, it is an estimate.

        @param met: bytes that are data: they were sent.
        """
        if findings.room < 0:
            self._notes.ok("room", "nothing is counted: the disk there is no file, and has its own")
            return
        room, size = findings.room + findings.allocated, context.disk.size
        figures = {"free": findings.room, "allocated": findings.allocated, "needed": size}
        there = f"{format_bytes(findings.room)} are free there"
        if findings.allocated:
            there += f", and {format_bytes(findings.allocated)} are the disk's already"
        if room < size and findings.whole:
            what = f"not all of the {format_bytes(size)} fits, and nothing else is taken there"
            self._notes.fail("room", f"{what} without no_space_check=True: {there}", **figures)
        elif room < met:
            what = f"{format_bytes(max(met, self._data))} of data do not fit"
            self._notes.fail("room", f"{what}: {there}", **figures)
        elif room < self._data:
            what = (
                f"perhaps not all of the data fits: {format_bytes(self._data)} here are no holes, "
                "and may be zeroes, which need no room"
            )
            self._notes.warn("room", f"{what}; {there}", **figures)
        elif room < size:
            what = f"the data fits, but not all of the {format_bytes(size)}, should they be written"
            self._notes.warn("room", f"{what}: {there}", **figures)
        else:
            self._notes.ok("room", f"all of the disk fits: {there}", **figures)

    def _judge_clock(self, findings: Findings) -> None:
        try:
            there, here = (datetime.fromisoformat(text) for text in (findings.time, timestamp()))
            apart = (there - here).total_seconds()
        except (ValueError, TypeError):
            self._notes.warn("clock", f"the time there is not understood: {findings.time!r}")
            return
        if abs(apart) <= _MOST_APART:
            self._notes.ok("clock", "the clocks agree", seconds=apart)
            return
        way = "ahead of" if apart > 0 else "behind"
        self._notes.warn(
            "clock",
            f"the clock there is {format_duration(abs(apart))} {way} the one here: only the times "
            "in logs and records depend on it",
            seconds=apart,
        )

    async def _rehearse(self, context: AttemptContext) -> int:
        """How fast it goes.

        @return: bytes of the disk that were found to be data.
        """
        try:
            sent = await Rehearsal(context, self._cookie).run()
        except ClientFailed as error:
            self._notes.warn("rate", f"the rate was not measured: {error}")
            return 0
        except LocalFailure as error:
            self._notes.fail("rate", error)
            return 0
        self._judge_rate(context, sent)
        return sent.met

    def _judge_rate(self, context: AttemptContext, sent: Rehearsed) -> None:
        if not sent.data:
            why = f"not even {format_bytes(SHORT)} of data got there"
            if sent.zeroes >= context.disk.size:
                why = "no data was met"
            self._notes.warn("rate", f"the rate was not measured: in {sent.seconds:.1f} s {why}")
            return
        if not sent.seconds:
            self._notes.ok("rate", "all of the disk was sent in an instant", sent=sent.data)
            return
        rate = sent.data / sent.seconds
        left = self._data / self._covered(context.disk.size, sent) * sent.seconds
        self._notes.ok(
            "rate",
            f"{_rate(rate)} ({format_bytes(sent.data)} in {sent.seconds:.1f} s): the "
            f"{format_bytes(self._data)} of data would take {format_duration(left)}",
            rate=round(rate),
            seconds=round(left, 1),
        )

    def _covered(self, size: int, sent: Rehearsed) -> int:
        """How much of the disk's data, as its extents have it, was done with: what reads as zeroes
        there was not sent, but took its time, while a hole takes none."""
        passes, rest = divmod(sent.data + sent.zeroes, size)
        return max(passes * self._data + self._survey.data(0, rest), sent.data)


def _rate(rate: float) -> str:
    return f"{rate / 1e6:.1f} MB/s" if rate >= 1e6 else f"{rate / 1e3:.0f} kB/s"
