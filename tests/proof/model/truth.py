"""What is true, whatever any process believes, and what `inspect` says of it."""

from __future__ import annotations

from tests.proof.model.cells import (
    ABSENT,
    ANOTHER,
    AWAY,
    CONFIRMED,
    COPIED,
    COPYING,
    DELETED,
    DESTROYED,
    FOREIGN,
    FOREIGN2,
    FORGOTTEN,
    GONE,
    MARKED,
    MOVED,
    NONE,
    NOTHING,
    OURS_THERE,
    REPLACED,
    RETIRED,
    SAVED,
    SIZED,
    THERE,
    TORN,
    ident_of,
    phase_of,
)
from tests.proof.model.protocol import Protocol
from tests.proof.model.state import Source, Target


def retired_now(protocol: Protocol, source: Source) -> bool:
    """Whether we have retired the source, as far as its directory shows it."""
    return source.file[0] == GONE if protocol.unlink else source.migrated[0] >= MARKED


def may_be_retired(protocol: Protocol, source: Source) -> bool:
    """Whether it is, or is after some power loss."""
    return bool(source.file[1] & 1 << GONE if protocol.unlink else source.migrated[1] & ~1)


def surely_retired(protocol: Protocol, source: Source) -> bool:
    """Whether it is and stays so, whatever power loss comes: no name leads to it, or it is marked.

    What somebody else has deleted, or replaced, needs no retiring any more.
    """
    elsewhere = 1 << MOVED | 1 << AWAY
    if protocol.unlink:
        return not source.file[1] & (1 << THERE | elsewhere)
    marked = not source.migrated[1] & (1 << NONE | 1 << TORN)
    return marked and not source.file[1] & elsewhere


def holds(target: Target, version: int) -> bool:
    """Whether the destination durably has every byte of that version."""
    return (
        target.file[1] == 1 << SIZED
        and target.first[1] == 1 << version
        and target.second[1] == 1 << version
    )


def preserved(target: Target, version: int) -> bool:
    """Whether that version is there, or would be, had nobody else destroyed a whole copy of it."""
    return bool(target.saved & SAVED) or target.harm == DESTROYED or holds(target, version)


def holds_foreign(target: Target) -> bool:
    theirs = 1 << FOREIGN | 1 << FOREIGN2
    return target.file[1] == 1 << SIZED and all(
        not mask & ~theirs and mask & (mask - 1) == 0
        for mask in (target.first[1], target.second[1])
    )


def confirmed(source: Source) -> bool:
    """Whether MIGRATED says that the destination was seen to be complete."""
    return phase_of(source.migrated[0]) == CONFIRMED


def acknowledged(source: Source) -> bool:
    """Whether the records say that the destination knows that the source is retired."""
    if source.migrating[0] == NONE:
        return source.migrated[0] >= MARKED
    return phase_of(source.migrating[0]) == RETIRED


def said_done(source: Source) -> bool:
    """Whether a sender that is run again says at once that this is done."""
    return source.migrating[0] == NONE and confirmed(source)


def received(target: Target) -> bool:
    """Whether RECEIVED is there."""
    return target.received[0] >= MARKED and target.received[0] != FORGOTTEN


def complete(target: Target) -> bool:
    """Whether the records say so: RECEIVED alone, or with the INCOMPLETE of its migration."""
    copy = target.incomplete[0]
    return received(target) and (copy == NONE or ident_of(copy) == ident_of(target.received[0]))


# The verdicts of `inspect`, from what is visible in the directories.


def verdict_of_source(protocol: Protocol, source: Source) -> str:
    migrating, file = source.migrating[0], source.file[0]
    if TORN in (migrating, source.migrated[0]):
        return "unknown"
    if source.migrated[0] >= MARKED:
        # A tombstone beside a file is about another one.
        return "unknown" if protocol.unlink and file not in NOTHING else "not canonical"
    if file in ANOTHER and migrating != NONE:
        # A record, and a file that is not the one that it is about.
        distinguished = "inspect: another file than the record's is recognised" in protocol.rules
        return "unknown" if distinguished else "canonical"
    if file not in NOTHING:
        return "canonical"
    if migrating == NONE:
        return "nothing here"
    # A source that is kept is never missing by our doing.
    copied = protocol.unlink and phase_of(migrating) >= COPIED
    return "not canonical" if copied else "unknown"


def verdict_of_target(protocol: Protocol, target: Target) -> str:
    value = target.incomplete[0]
    if value == TORN:
        return "unknown"
    if value != NONE and complete(target) and target.name == OURS_THERE:
        return "canonical"
    if value == NONE and target.name == OURS_THERE:
        file = target.file[0]
        return {ABSENT: "nothing here", SIZED: "canonical"}.get(file, "not canonical")
    if value == NONE:  # another file is what it looks like
        return "nothing here" if target.name == DELETED else "canonical"
    distinguished = "inspect: another file than the record's is recognised" in protocol.rules
    if distinguished and target.name == REPLACED:
        return "unknown"
    if phase_of(value) == COPYING:
        return "not canonical"
    if distinguished and (target.name == DELETED or target.file[0] != SIZED):
        return "unknown"
    return "only if retired" if phase_of(value) == COPIED else "canonical"


def verdict_of_pair(protocol: Protocol, source: Source, target: Target) -> str:
    """Which copy is canonical, from what stands in the two directories."""
    ours, theirs = verdict_of_source(protocol, source), verdict_of_target(protocol, target)
    if theirs == "only if retired":
        same = ident_of(target.incomplete[0]) == ident_of(source.migrating[0])
        if ours == "canonical":
            return "source"
        return "target" if ours == "not canonical" and same else "unknown"
    if ours == "canonical":
        # While a source is not retired, it does not matter what the destination looks like.
        nothing = target.incomplete[0] in (NONE, TORN) and source.migrating[0] != NONE
        yields = theirs in ("not canonical", "nothing here") or nothing
        return "source" if yields else "unknown"
    if theirs == "canonical":
        return "target" if ours in ("not canonical", "nothing here") else "unknown"
    return "unknown"
