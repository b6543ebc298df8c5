"""How the destination of a retired source stands, and what follows from that.

Owns the decision, for who finishes the migration (`finisher`), and for who only checks whether it
can be finished. Rules (design, section 2: R6):

* a destination that cannot be told, or has acknowledged its end, is not asked;
* the receiver must have this very migration's copy, on the disk to which that went;
* once it has acknowledged that the source is retired, one that cannot be found any more, or knows
  of no migration, is complete as far as anybody can tell;
* one that was not told, and has something else, is a matter for a human.
"""

from __future__ import annotations

from enum import Enum

from ...errors import Unconfirmed
from ..handoff.channel import describe_message, is_same_migration
from ..handoff.message import HandoffMessage, HandoffPhase
from ..records.files import Record


class Standing(Enum):
    """How a receiver stands."""

    WAITING = "it has the whole copy, and waits to be told that the source is retired"
    RESTARTED = "it was restarted on the disk that has acknowledged everything"
    COMPLETE = "it is complete"
    UNKNOWN = "it does not know this migration"


def unconfirmed(why: str, record: Record) -> Unconfirmed:
    """The source is retired, and the destination may not know that it is complete."""
    return Unconfirmed(
        f"{why}; the source is retired and the copy at {record.destination} is the canonical one, "
        "but its receiver may not know that it is complete: run the same command again"
    )


def is_to_be_told(record: Record) -> bool:
    """Whether there is anybody who could be told, and does not know it already."""
    return record.side_export and not record.confirmed


def standing_of(message: HandoffMessage, record: Record) -> Standing:
    """How the receiver stands whose message is C{message}."""
    if is_about(message, record, HandoffPhase.COPIED, HandoffPhase.RETIRED):
        return Standing.WAITING
    if _was_restarted(message, record):
        return Standing.RESTARTED
    if is_about(message, record, HandoffPhase.COMPLETE):
        return Standing.COMPLETE
    return Standing.UNKNOWN


def is_about(message: HandoffMessage, record: Record, *phases: HandoffPhase) -> bool:
    """Whether it is the migration's, so far, and of the disk that the migration went to, not of
    another at the same address."""
    return (
        message.phase in phases
        and is_same_migration(message, record)
        and _is_our_destination(message, record)
    )


def _is_our_destination(message: HandoffMessage, record: Record) -> bool:
    location = record.destination
    if message.place and record.place:
        return message.place == record.place
    return not location.disk or (location.host, location.disk) == (message.host, message.disk)


def _was_restarted(message: HandoffMessage, record: Record) -> bool:
    """It has made another UUID for the disk; the token proves to it which one it is."""
    location = record.destination
    namesake = (location.host, location.disk) == (message.host, message.disk)
    return message.phase == HandoffPhase.NONE and bool(record.token) and namesake


def conclude_unknown(message: HandoffMessage | None, record: Record) -> str:
    """What follows where the destination does not know this migration (any more): nothing is left
    to do.

    @param message: what it says; None where it is no blockmig receiver.
    @return: which other migration it has, unrelated to ours; "" where it has none.
    @raise Unconfirmed: it was not told, so that nobody knows.
    """
    if record.told and (message is None or message.phase == HandoffPhase.NONE):
        return ""
    answer = "there is no blockmig receiver"
    if message is not None:
        answer = describe_message(message)
    if record.told:
        return answer
    raise unconfirmed(f"the destination does not know this migration: {answer}", record)
