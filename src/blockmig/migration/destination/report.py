"""How a migration stands, in words, for a sender, for an operator, and for whoever stops it.

A sender gets the message of the side export, an operator the C{state} in `blockmig status`, and
whoever stops it an error. The numbers (attempts, coverage) are in `migration`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...errors import GaveUp, MigrationError, Unconfirmed
from ..handoff.message import HandoffMessage, HandoffPhase, Writer, fingerprint, signed
from ..records.files import this_host
from .disk import DestinationDisk
from .durability import Durability
from .outcome import Outcome
from .record import DestinationRecord


class MigrationReport:
    """What can be said of one migration at any time.

    @param disk: where to.
    @param record: the record of it.
    @param durability: how much of it is durable.
    @param outcome: how it ended, if it has.
    @param is_working: whether we are at work on the disk for the attempt that goes on.
    @param secret: what both ends know; empty where there is none.
    """

    def __init__(
        self,
        disk: DestinationDisk,
        record: DestinationRecord,
        durability: Durability,
        outcome: Outcome,
        *,
        is_working: Callable[[], bool],
        secret: bytes = b"",
    ) -> None:
        self._is_working = is_working
        self._secret = secret
        self._disk = disk
        self._record = record
        self._durability = durability
        self._outcome = outcome

    @property
    def phase(self) -> HandoffPhase:
        """How far it is, according to its record."""
        current = self._record.current
        if self._outcome.complete:
            return HandoffPhase.COMPLETE
        if current is None:
            return HandoffPhase.NONE
        return HandoffPhase.RETIRED if current.retired else HandoffPhase(current.phase)

    def message(self, nonce: str = "", accepted: HandoffMessage | None = None) -> HandoffMessage:
        """The message of the side export.

        @param nonce: what a proof on this connection must contain.
        @param accepted: the reader's message that was accepted, if one was. To one that has
            announced that its source is retired the token is given; and to one that has proved to
            know the secret it is proved that we do.
        """
        current, location = self._record.current, self._disk.location()
        retired = accepted is not None and accepted.phase == HandoffPhase.RETIRED
        message = HandoffMessage(
            self.phase,
            fingerprint(current.migration) if current is not None and current.identified else "",
            current.attempt if current is not None else 0,
            self._disk.size,
            this_host(),
            location.disk,
            token=self._disk.token() if retired else "",
            place=self._record.place,
            holder=f"{current.source.in_full}, since {current.began}"
            if current is not None
            else "",
            state_directory=location.state_directory,
            working=self._is_working(),
        )
        if not self._secret:
            return message
        message = replace(message, nonce=nonce)
        if accepted is None:
            return message
        return signed(
            replace(message, cookie=accepted.cookie), self._secret, nonce, Writer.RECEIVER
        )

    def state(self, in_attempt: bool) -> str:
        """A word for people.

        @param in_attempt: an attempt goes on, or went on when the end began.
        """
        if self.phase in (HandoffPhase.COPIED, HandoffPhase.RETIRED, HandoffPhase.COMPLETE):
            return self.phase.value
        return "copying" if in_attempt and not self._durability.copied else "waiting"

    def unfinished(self, why: str) -> MigrationError:
        """The error that describes it, if it is left as it is.

        @param why: the reason for that.
        """
        name, current, copied = self._disk.name, self._record.current, self._durability.copied
        if copied and self._record.retired:
            return Unconfirmed(
                f"{why}; {name} is the canonical copy: its source was retired, and only the "
                "sender's disconnect is missing"
            )
        if copied and current is not None:
            anew = " anew" if current.sent_again else ""
            return Unconfirmed(
                f"{why}; all of {name} is here and durable, but the disconnect never came: it is "
                f"canonical only if the source was retired{anew}: look at {current.source}"
            )
        if self._record.phase is not None:
            return GaveUp(f"{why}; {name} is not canonical")
        return GaveUp(f"{why}; nothing was received into {name}")
