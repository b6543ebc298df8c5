"""Which copy is the canonical one, told from what stands on disk and from nothing else.

Owns the verdicts: a table in code, the same as the one in docs/handoff.md. Reading is all it does
(and making durable what it has read); no lock is taken, so that a migration under way is not
disturbed.

Rules (design, section 2: R1, R7):

* a source is canonical until it is retired, and a destination from then on: where a side's own
  records cannot tell, the verdict names the place where to look;
* whatever cannot be read, or contradicts itself, gives C{unknown}, with the reason: never a guess.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ..storage import (
    SYSTEM,
    DiskRefused,
    SystemCalls,
    describe_error,
    identify,
    is_locked,
    record_path,
)
from .records import BadRecord, Kind, Phase, Record, Records, same_file

_MOST_LOOKS: Final = 10


class Standing(StrEnum):
    """What a copy is."""

    CANONICAL = "canonical"
    NOT_CANONICAL = "not canonical"
    CONDITIONAL = "canonical only if the source was retired"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said of a copy, or of two.

    @ivar standing: in one word.
    @ivar line: the first line: the verdict as it is told.
    @ivar why: the reason, one line.
    @ivar advice: what to do, one line.
    @ivar canonical: the path of the canonical copy, where it is one of those that were asked for.
    """

    standing: Standing
    line: str
    why: str
    advice: str
    canonical: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What stands at one place.

    @ivar path: the disk's path, as it was given.
    @ivar size: bytes of the disk; None where there is none.
    @ivar identity: of the disk's file; "" where nothing tells.
    @ivar in_use: another program has it open, so that what stands here may be about to change.
    @ivar records: the records that could be read.
    @ivar bad: those that could not, with the reason.
    """

    path: str
    size: int | None = None
    identity: str = ""
    in_use: bool = False
    records: dict[Kind, Record] = field(default_factory=dict)
    bad: dict[Kind, str] = field(default_factory=dict)

    def of(self, kind: Kind) -> Record | None:
        """The record of that kind, if there is one."""
        return self.records.get(kind)


def look(path: str, state_directory: str | None = None, system: SystemCalls = SYSTEM) -> Found:
    """See what stands at C{path}.

    @param state_directory: where the records of block devices are; None for the default.
    @raise DiskRefused: it cannot be looked at.
    """
    # The records first: a disk that goes meanwhile then looks as it did while they were true.
    records = Records(record_path(path, state_directory, system), system)
    with contextlib.suppress(OSError):  # where that cannot be done, what is to be seen must do
        records.settle()
    good: dict[Kind, Record] = {}
    bad: dict[Kind, str] = {}
    for kind in Kind:
        try:
            record = records.read(kind)
        except BadRecord as error:
            bad[kind] = str(error)
        except OSError as error:
            bad[kind] = f"{records.name(kind)} cannot be read: {describe_error(error)}"
        else:
            if record is not None:
                good[kind] = record
    size, identity, in_use = _look_at_disk(path, system)
    return Found(path, size, identity, in_use, good, bad)


def _look_at_disk(path: str, system: SystemCalls) -> tuple[int | None, str, bool]:
    try:
        mode = system.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise DiskRefused(f"{path}: is a directory, not a disk")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DiskRefused(f"{path}: is neither a regular file nor a block device")
        descriptor = system.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None, "", False
    except OSError as error:
        raise DiskRefused(f"{path}: {describe_error(error)}") from None
    try:
        size = system.lseek(descriptor, 0, os.SEEK_END)
        identity = identify(descriptor, system) if stat.S_ISREG(mode) else ""
        return size, identity, is_locked(descriptor, system)
    finally:
        system.close(descriptor)


def look_at_both(
    one: str, other: str, state_directory: str | None = None, system: SystemCalls = SYSTEM
) -> tuple[Found, Found]:
    """See what stands at two places, at one time: they may be the ends of a migration under way.

    @raise DiskRefused: one of them cannot be looked at.
    """
    for _ in range(_MOST_LOOKS):
        found = tuple(look(path, state_directory, system) for path in (one, other))
        if found == tuple(look(path, state_directory, system) for path in (one, other)):
            break
    return found[0], found[1]


def judge(found: Found) -> Verdict:
    """What can be said of one place by itself."""
    for kind in (Kind.INCOMPLETE, Kind.MIGRATED, Kind.MIGRATING):
        if kind in found.bad:
            return _unknown(
                found.bad[kind],
                "do not use this copy before you know where that file comes from; "
                "the other side's records tell as much: run `blockmig inspect` there",
            )
    incomplete, accepted = found.of(Kind.INCOMPLETE), found.of(Kind.ACCEPTED)
    if incomplete is not None:
        if (
            accepted is not None
            and incomplete.phase == Phase.COPIED
            and accepted.migration == incomplete.migration
        ):
            return _accepted(found, accepted)
        return _judge_destination(found, incomplete)
    if found.of(Kind.MIGRATED) is not None or found.of(Kind.MIGRATING) is not None:
        return _judge_source(found)
    if found.size is None and accepted is None:
        return _unknown(
            f"neither {found.path} nor a record of it is there",
            "look on the other host; a source that was migrated with --unlink leaves nothing here",
        )
    if found.size == 0:
        return Verdict(
            Standing.NOT_CANONICAL,
            Standing.NOT_CANONICAL,
            f"{found.path} is empty: a receiver made it, and nothing was received yet",
            "receive into it again and send the disk; or delete it",
        )
    if accepted is not None:
        return _accepted(found, accepted)
    return _canonical(
        found.path,
        "no record of a migration stands beside it: none was begun here, or it is complete",
        "use it",
    )


def _accepted(found: Found, accepted: Record) -> Verdict:
    if found.size is None:
        return _unknown(f"{found.path} was accepted as canonical, and is gone", "look for it")
    return _canonical(
        found.path,
        f"{accepted.by} declared it so on {accepted.changed}, the source being {accepted.source}",
        "use it",
    )


def _judge_destination(found: Found, record: Record) -> Verdict:
    if record.phase == Phase.COPYING:
        return Verdict(
            Standing.NOT_CANONICAL,
            Standing.NOT_CANONICAL,
            f"attempt {record.attempt} of a migration from {record.source} began to write it and "
            "did not come to its end",
            "run both commands again, receive here and send there; or delete it with its record",
        )
    another = record.identity and same_file(record.identity, found.identity) is False
    if found.size != record.size or another:
        is_there = "is gone" if found.size is None else "is another disk now"
        return _unknown(
            f"all {record.size} bytes of {record.source} were copied here, but {found.path} "
            f"{is_there}",
            f"find the disk; if the source is still at {record.source}, that is the canonical copy",
        )
    if record.retired:
        return _canonical(
            found.path,
            f"all of it is here and durable, and the source {record.source} was retired before "
            f"{record.retired}; only the disconnect never came",
            "run both commands again to finish; or declare it: "
            f"blockmig accept {found.path} --i-have-checked-the-source",
        )
    return Verdict(
        Standing.CONDITIONAL,
        f"{Standing.CONDITIONAL}: look at {record.source}",
        f"all of it is here and durable since {record.changed}, but whether the source was retired "
        "was never told",
        _where_to_look(record, found.path),
    )


def _where_to_look(record: Record, path: str) -> str:
    if not record.identified:
        return (
            "the sender was not blockmig: if its disk is still in use, delete this copy; if not, "
            f"blockmig accept {path} --i-have-checked-the-source"
        )
    return (
        f"on {record.source.host} run `blockmig inspect {record.source.disk}`: if that is "
        "canonical, this is not; if it is not canonical any more, run both commands again to "
        f"finish, or here: blockmig accept {path} --i-have-checked-the-source"
    )


def _judge_source(found: Found) -> Verdict:
    migrating, migrated = found.of(Kind.MIGRATING), found.of(Kind.MIGRATED)
    if migrated is not None:
        finish = (
            f"use the copy at {migrated.destination}; delete this one when you like"
            if migrating is None
            else "run the same send command again to finish; then use the copy at "
            f"{migrated.destination}"
        )
        return Verdict(
            Standing.NOT_CANONICAL,
            Standing.NOT_CANONICAL,
            f"it was migrated to {migrated.destination} on {migrated.retired}",
            finish,
        )
    assert migrating is not None
    retired = _retired(migrating, found)
    if retired is None:
        return _unknown(
            f"{found.path} may be the file whose migration to {migrating.destination} was to "
            "delete it, or another one with its name",
            f"look at {migrating.destination}: blockmig inspect there",
        )
    if retired:
        now = "is gone" if found.size is None else "is another file"
        return Verdict(
            Standing.NOT_CANONICAL,
            Standing.NOT_CANONICAL,
            f"it was deleted once all of it was durable at {migrating.destination}; what has its "
            f"name now {now}",
            f"run the same send command again to finish; use the copy at {migrating.destination}",
        )
    if found.size is None:
        return _unknown(
            f"{found.path} is gone, and blockmig did not delete it: its migration to "
            f"{migrating.destination} was not so far",
            "find out who moved or deleted it; the copy at the destination is not whole",
        )
    so_far = "has all of it, but this one was not retired"
    if migrating.phase == Phase.COPYING:
        so_far = "is not whole"
    return _canonical(
        found.path,
        f"its migration began, and the copy at {migrating.destination} {so_far}",
        "use it; to migrate it, run both commands again",
    )


def _retired(migrating: Record, found: Found) -> bool | None:
    """Whether the source was retired by deleting it; None where that cannot be told."""
    if not migrating.unlink or migrating.phase == Phase.COPYING:
        return False
    if found.size is None:
        return True
    same = same_file(migrating.identity, found.identity)
    return None if same is None else not same


def judge_pair(one: Found, other: Found) -> Verdict:
    """Which of two places has the canonical copy, in whichever order they are given."""
    first, second = judge(one), judge(other)
    for here, there, verdict, opposite in (
        (one, other, first, second),
        (other, one, second, first),
    ):
        incomplete = here.of(Kind.INCOMPLETE)
        if verdict.standing == Standing.CONDITIONAL and incomplete is not None:
            return _judge_by_source(here, incomplete, verdict, there, opposite)
    for here, there, verdict, opposite in (
        (one, other, first, second),
        (other, one, second, first),
    ):
        if verdict.standing == Standing.CANONICAL and _yields(there, opposite, here):
            return Verdict(
                Standing.CANONICAL,
                f"canonical: {here.path}",
                f"{here.path}: {verdict.why}",
                verdict.advice,
                here.path,
            )
    return _unknown(
        f"{one.path}: {first.line} ({first.why}); {other.path}: {second.line} ({second.why})",
        "these two do not tell it together: follow what each says by itself",
    )


def _yields(found: Found, verdict: Verdict, to: Found) -> bool:
    """Whether what stands at C{found} leaves it to C{to} to be canonical."""
    if verdict.standing == Standing.NOT_CANONICAL:
        return True
    nothing = not found.records and not found.bad
    if found.size is None and nothing:
        return True
    # While a source is not retired, it does not matter what the destination looks like.
    migrating = to.of(Kind.MIGRATING)
    return migrating is not None and (nothing or Kind.INCOMPLETE in found.bad)


def _judge_by_source(
    here: Found, incomplete: Record, verdict: Verdict, there: Found, source: Verdict
) -> Verdict:
    """The verdict on a copy that is canonical if and only if its source was retired."""
    record = there.of(Kind.MIGRATED) or there.of(Kind.MIGRATING)
    if source.standing == Standing.CANONICAL:
        return Verdict(
            Standing.CANONICAL,
            f"canonical: {there.path}",
            f"{there.path} is there and was not retired: {source.why}",
            source.advice,
            there.path,
        )
    if (
        source.standing == Standing.NOT_CANONICAL
        and record is not None
        and incomplete.migration == record.migration
    ):
        return Verdict(
            Standing.CANONICAL,
            f"canonical: {here.path}",
            f"{here.path} has all of it, durable, and {there.path} was retired: {source.why}",
            verdict.advice
            if not incomplete.identified
            else "run both commands again to finish, "
            f"or: blockmig accept {here.path} --i-have-checked-the-source",
            here.path,
        )
    return _unknown(
        f"{here.path}: {verdict.line}; {there.path} does not tell that: {source.why}",
        verdict.advice,
    )


def _canonical(path: str, why: str, advice: str) -> Verdict:
    return Verdict(Standing.CANONICAL, Standing.CANONICAL, why, advice, path)


def _unknown(why: str, advice: str) -> Verdict:
    return Verdict(Standing.UNKNOWN, f"unknown: {why}", why, advice)
