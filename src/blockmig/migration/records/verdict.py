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
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ...errors import Refused
from ...storage import DiskRefused, file_identity, is_locked, record_path
from ...syscalls import SYSTEM, SystemCalls, describe_error
from .files import (
    BadRecord,
    Kind,
    Location,
    Phase,
    Record,
    Records,
    same_file,
    this_host,
)

_MOST_LOOKS: Final = 10


class CopyState(StrEnum):
    """What a copy is."""

    CANONICAL = "canonical"
    NOT_CANONICAL = "not canonical"
    CONDITIONAL = "canonical only if the source was retired"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said of a copy, or of two.

    @ivar state: in one word.
    @ivar line: the first line: the verdict as it is told.
    @ivar why: the reason, one line.
    @ivar advice: what to do, one line.
    @ivar canonical: the path of the canonical copy, where it is one of those that were asked for.
    """

    state: CopyState
    line: str
    why: str
    advice: str
    canonical: str = ""


@dataclass(frozen=True, slots=True)
class DiskState:
    """What stands at one place.

    @ivar path: the disk's path, as it was given.
    @ivar size: bytes of the disk; None where there is none.
    @ivar identity: of the disk's file; "" where nothing tells.
    @ivar in_use: another program has it open, so that what stands here may be about to change.
    @ivar where: where its records would be.
    @ivar records: the records that could be read.
    @ivar bad: those that could not, with the reason.
    """

    path: str
    size: int | None = None
    identity: str = ""
    in_use: bool = False
    where: str = "beside it"
    records: dict[Kind, Record] = field(default_factory=dict)
    bad: dict[Kind, str] = field(default_factory=dict)

    def of(self, kind: Kind) -> Record | None:
        """The record of that kind, if there is one."""
        return self.records.get(kind)


def examine(
    path: str, state_directory: str | None = None, system: SystemCalls = SYSTEM
) -> DiskState:
    """See what stands at C{path}.

    @param state_directory: where the records of block devices are; None for the default.
    @raise DiskRefused: it cannot be looked at.
    """
    # The records first: a disk that goes meanwhile then looks as it did while they were true.
    records = Records(record_path(path, state_directory, system), system)
    with contextlib.suppress(OSError):  # where that cannot be done, what is to be seen must do
        records.sync()
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
    directory = os.path.dirname(records.path)
    beside = directory == os.path.dirname(os.path.realpath(path))
    where = "beside it" if beside else f"in {directory}"
    return DiskState(path, size, identity, in_use, where, good, bad)


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
        identity = file_identity(descriptor, system) if stat.S_ISREG(mode) else ""
        return size, identity, is_locked(descriptor, system)
    finally:
        system.close(descriptor)


def look_steadily(
    paths: Sequence[str], state_directory: str | None = None, system: SystemCalls = SYSTEM
) -> tuple[list[DiskState], bool]:
    """See what stands at places that may be changing: the ends of a migration under way.

    @return: what stands there, and whether that is what stood there at one time.
    @raise DiskRefused: one of them cannot be looked at.
    """
    before: list[DiskState] = []
    for _ in range(_MOST_LOOKS):
        found = [examine(path, state_directory, system) for path in paths]
        if before and all(map(_are_alike, before, found)):
            return found, True
        before = found
    return before, False


def _are_alike(one: DiskState, other: DiskState) -> bool:
    """Whether nothing has changed but what is in the disk."""
    inodes = [found.identity.partition(",")[0] for found in (one, other)]
    return (one.size, one.records, one.bad, inodes[0]) == (
        other.size,
        other.records,
        other.bad,
        inodes[1],
    )


def changing(paths: Sequence[str]) -> Verdict:
    """What is said of places that do not hold still."""
    return _unknown(
        f"{' and '.join(paths)} changed while being looked at", "ask again: a migration goes on"
    )


def verdict_of(found: DiskState) -> Verdict:
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
            CopyState.NOT_CANONICAL,
            CopyState.NOT_CANONICAL,
            f"{found.path} is empty: a receiver made it, and nothing was received yet",
            "receive into it again and send the disk; or delete it",
        )
    if accepted is not None:
        return _accepted(found, accepted)
    return _canonical(
        found.path,
        f"no record of a migration stands {found.where}: none was begun here, or it is complete",
        "use it",
    )


def check_canonical(
    path: str, state_directory: str | None = None, system: SystemCalls = SYSTEM
) -> None:
    """Whether the disk at C{path} may be given to clients.

    @raise Refused: it is not the canonical copy, or nobody can tell from here.
    @raise DiskRefused: it cannot be looked at.
    """
    verdict = verdict_of(examine(path, state_directory, system))
    if verdict.state != CopyState.CANONICAL:
        why = "" if verdict.why in verdict.line else f": {verdict.why}"
        raise Refused(f"{path}: {verdict.line}{why}; {verdict.advice}")


def _accepted(found: DiskState, accepted: Record) -> Verdict:
    if found.size is None:
        return _unknown(f"{found.path} was accepted as canonical, and is gone", "look for it")
    return _canonical(
        found.path,
        f"{accepted.by} declared it so on {accepted.changed}, the source being {accepted.source}",
        "use it",
    )


def _judge_destination(found: DiskState, record: Record) -> Verdict:
    another = _is_another(record, found)
    if record.phase == Phase.COPYING and found.size and another:
        return _unknown(
            f"a migration from {record.source} began to write the disk that was here; {found.path} "
            "is another file, of which nothing is known",
            "find out who put this file here; if it is a new disk, move the record out of its way",
        )
    if record.phase == Phase.COPYING:
        return Verdict(
            CopyState.NOT_CANONICAL,
            CopyState.NOT_CANONICAL,
            f"attempt {record.attempt} of a migration from {record.source} began to write it and "
            "did not come to its end",
            "run both commands again, receive here and send there; or delete it with its record",
        )
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
            _how_to_finish(record, found.path),
        )
    return Verdict(
        CopyState.CONDITIONAL,
        f"{CopyState.CONDITIONAL}: look at {record.source}",
        f"all of it is here and durable since {record.changed}, but whether the source was retired "
        "was never told",
        _where_to_look(record, found.path),
    )


def _how_to_finish(record: Record, path: str) -> str:
    accept = f"blockmig accept {path} --i-have-checked-the-source"
    if not _may_be_at(path, record.destination):
        return f"its name was another when it was received: declare it: {accept}"
    return f"run both commands again to finish; or declare it: {accept}"


def _where_to_look(record: Record, path: str) -> str:
    if not record.identified:
        return (
            "the sender said nothing of itself: if its disk is still in use, or its MIGRATING says "
            "that it was not deleted, delete this copy; if not, "
            f"blockmig accept {path} --i-have-checked-the-source"
        )
    return (
        f"on {record.source.host} run `blockmig inspect {record.source.disk}`: if that is "
        "canonical, this is not; if it is not canonical any more, run both commands again to "
        f"finish, or here: blockmig accept {path} --i-have-checked-the-source"
    )


def _judge_source(found: DiskState) -> Verdict:
    migrating, migrated = found.of(Kind.MIGRATING), found.of(Kind.MIGRATED)
    if (
        migrated is not None
        and migrating is not None
        and migrating.again
        and migrating.migration != migrated.migration
    ):
        migrated = None  # a human has said that it does not count
    if migrated is not None:
        if found.size is not None and same_file(migrated.identity, found.identity) is False:
            return _unknown(
                f"the disk that was here was migrated to {migrated.destination} on "
                f"{migrated.retired}; {found.path} is another file, of which nothing is known",
                "if it is a new disk, move the record out of its way",
            )
        finish = (
            f"use the copy at {migrated.destination}; delete this one when you like"
            if migrating is None
            else "run the same send command again to finish; then use the copy at "
            f"{migrated.destination}"
        )
        return Verdict(
            CopyState.NOT_CANONICAL,
            CopyState.NOT_CANONICAL,
            f"it was migrated to {migrated.destination} on {migrated.retired}",
            finish,
        )
    assert migrating is not None
    if _is_another(migrating, found) and not _may_be_deleted(migrating):
        return _unknown(
            f"a migration to {migrating.destination} began of the disk that was here; {found.path} "
            "is another file, of which nothing is known",
            "find out who put this file here; if it is the disk to use, move the record "
            f"({Kind.MIGRATING}) out of its way",
        )
    retired = _retired(migrating, found)
    if retired is None:
        return _unknown(
            f"{found.path} is perhaps not the file that was sent to {migrating.destination}, to be "
            "deleted then: it has taken its place, or that of its successor",
            f"run `blockmig inspect` for {migrating.destination}; and find out who put this file "
            "here",
        )
    if retired:
        return Verdict(
            CopyState.NOT_CANONICAL,
            CopyState.NOT_CANONICAL,
            f"it was deleted once all of it was durable at {migrating.destination}",
            f"run the same send command again to finish; use the copy at {migrating.destination}",
        )
    if found.size is None and (migrating.phase == Phase.COPIED or migrating.whole):
        return _unknown(
            f"{found.path} is gone, and blockmig did not delete it; all of it was copied to "
            f"{migrating.destination}",
            "find out who moved or deleted it; if it is gone for good, declare that copy: "
            "run `blockmig accept` there",
        )
    if found.size is None:
        return _unknown(
            f"{found.path} is gone, and blockmig did not delete it: its migration to "
            f"{migrating.destination} was not so far",
            "find out who moved or deleted it",
        )
    so_far = "may have all of it, but this one was not retired"
    if migrating.phase == Phase.COPYING and not migrating.whole:
        so_far = "is not known to be whole"
    return _canonical(
        found.path,
        f"its migration began, and the copy at {migrating.destination} {so_far}",
        "use it; to migrate it, run both commands again",
    )


def _retired(migrating: Record, found: DiskState) -> bool | None:
    """Whether the source was retired by deleting it; None where that cannot be told."""
    if not _may_be_deleted(migrating):
        return False
    if found.size is None:
        return True
    return False if same_file(migrating.identity, found.identity) else None


def _may_be_deleted(migrating: Record) -> bool:
    """Whether it is the source's deletion by us that the record waits for."""
    return migrating.unlink and migrating.phase != Phase.COPYING


def _is_another(record: Record, found: DiskState) -> bool:
    """Whether what stands there is certainly not the file that the record is about."""
    there = found.size is not None and bool(record.identity)
    return there and same_file(record.identity, found.identity) is False


def verdict_of_pair(one: DiskState, other: DiskState) -> Verdict:
    """Which of two places has the canonical copy, in whichever order they are given."""
    first, second = verdict_of(one), verdict_of(other)
    for here, there, verdict, opposite in (
        (one, other, first, second),
        (other, one, second, first),
    ):
        incomplete = here.of(Kind.INCOMPLETE)
        if verdict.state == CopyState.CONDITIONAL and incomplete is not None:
            return _judge_by_source(here, incomplete, verdict, there, opposite)
    for here, there, verdict, opposite in (
        (one, other, first, second),
        (other, one, second, first),
    ):
        if verdict.state == CopyState.CANONICAL and _yields(there, opposite, here):
            return Verdict(
                CopyState.CANONICAL,
                f"canonical: {here.path}",
                f"{here.path}: {verdict.why}",
                verdict.advice,
                here.path,
            )
    return _unknown(
        f"{one.path}: {first.line} ({first.why}); {other.path}: {second.line} ({second.why})",
        "these two do not tell it together: follow what each says by itself",
    )


def _yields(found: DiskState, verdict: Verdict, to: DiskState) -> bool:
    """Whether what stands at C{found} leaves it to C{to} to be canonical."""
    if verdict.state == CopyState.NOT_CANONICAL:
        record = found.of(Kind.MIGRATED) or found.of(Kind.MIGRATING)
        if record is None:
            return True
        incomplete = to.of(Kind.INCOMPLETE)
        same = incomplete is not None and incomplete.migration == record.migration
        return record.size == to.size and (same or _may_be(to, record.destination))
    nothing = not found.records and not found.bad
    if found.size is None and nothing:
        return True
    # While a source is not retired, it does not matter what the destination looks like.
    migrating = to.of(Kind.MIGRATING)
    return migrating is not None and (nothing or Kind.INCOMPLETE in found.bad)


def _may_be(found: DiskState, location: Location) -> bool:
    """Whether a place may be the one that a record names; sure only on the same machine."""
    return _may_be_at(found.path, location)


def _may_be_at(path: str, location: Location) -> bool:
    if location.host != this_host() or not location.disk:
        return True
    return os.path.realpath(path) == os.path.realpath(location.disk)


def _belongs(there: DiskState, incomplete: Record) -> bool:
    """Whether what stands there is the source of the copy that C{incomplete} is about."""
    record = there.of(Kind.MIGRATED) or there.of(Kind.MIGRATING)
    if record is None:
        return there.size == incomplete.size and _may_be(there, incomplete.source)
    ends = [(at.host, at.disk) for at in (record.destination, incomplete.destination)]
    return record.migration == incomplete.migration and (not ends[0][1] or ends[0] == ends[1])


def _went_to(there: DiskState, here: DiskState, incomplete: Record) -> bool:
    """Whether what was retired there is what C{incomplete} is about, the record of C{here}."""
    record = there.of(Kind.MIGRATED) or there.of(Kind.MIGRATING)
    if record is None or there.of(Kind.INCOMPLETE) is not None:
        return False  # it is not canonical because it is no whole copy itself
    if incomplete.identified:
        return _belongs(there, incomplete)
    # Its sender could not say which migration it was: the side export was not to be had.
    return record.size == incomplete.size and _may_be(here, record.destination)


def _judge_by_source(
    here: DiskState, incomplete: Record, verdict: Verdict, there: DiskState, source: Verdict
) -> Verdict:
    """The verdict on a copy that is canonical if and only if its source was retired."""
    belongs = _belongs(there, incomplete) or (
        not incomplete.identified and there.size == incomplete.size
    )
    if source.state == CopyState.CANONICAL and belongs:
        return Verdict(
            CopyState.CANONICAL,
            f"canonical: {there.path}",
            f"{there.path} is there and was not retired: {source.why}",
            source.advice,
            there.path,
        )
    if source.state == CopyState.NOT_CANONICAL and _went_to(there, here, incomplete):
        return Verdict(
            CopyState.CANONICAL,
            f"canonical: {here.path}",
            f"{here.path} has all of it, durable, and {there.path} was retired: {source.why}",
            "run both commands again to finish, or: "
            f"blockmig accept {here.path} --i-have-checked-the-source",
            here.path,
        )
    return _unknown(
        f"{here.path}: {verdict.line}; {there.path} does not tell that: {source.why}",
        verdict.advice,
    )


def _canonical(path: str, why: str, advice: str) -> Verdict:
    return Verdict(CopyState.CANONICAL, CopyState.CANONICAL, why, advice, path)


def _unknown(why: str, advice: str) -> Verdict:
    return Verdict(CopyState.UNKNOWN, f"unknown: {why}", why, advice)
