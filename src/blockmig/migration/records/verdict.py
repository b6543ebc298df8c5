"""Which copy is canonical, judged from what is on disk and nothing else.

Owns the verdicts: a table in code, the same as the one in docs/handoff.md. It only reads (and makes
durable what it has read); it takes no lock, so that a migration under way is not disturbed.

Rules (design, section 2: R1, R7):

* a source is canonical until it is retired, and a destination from then on: where one end's own
  records cannot decide, the verdict names the place to look at;
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
from ...interfaces import IRecordedDisk
from ...storage import DiskRefused, file_identity, is_locked, path_of, record_path
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

_MOST_TRIES: Final = 10


class CopyState(StrEnum):
    CANONICAL = "canonical"
    NOT_CANONICAL = "not canonical"
    CONDITIONAL = "canonical only if the source was retired"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one copy, or on two.

    @ivar state: in one word.
    @ivar line: the first line: the verdict as it is printed.
    @ivar why: the reason, one line.
    @ivar advice: what to do, one line.
    @ivar canonical: the path of the canonical copy, where it is one of those that were asked about.
    """

    state: CopyState
    line: str
    why: str
    advice: str
    canonical: str = ""


@dataclass(frozen=True, slots=True)
class DiskState:
    """What was found at one path.

    @ivar path: the disk's path, as it was given.
    @ivar size: bytes of the disk; None where there is none.
    @ivar identity: of the disk's file; "" where there is nothing to identify it by.
    @ivar in_use: another program has it open, so that what was found may be about to change.
    @ivar records_where: where its records would be.
    @ivar records: the records that could be read.
    @ivar bad: those that could not, with the reason.
    """

    path: str
    size: int | None = None
    identity: str = ""
    in_use: bool = False
    records_where: str = "beside it"
    records: dict[Kind, Record] = field(default_factory=dict)
    bad: dict[Kind, str] = field(default_factory=dict)

    def record(self, kind: Kind) -> Record | None:
        """The record of that kind, if there is one."""
        return self.records.get(kind)


def examine(
    path: str, state_directory: str | None = None, system: SystemCalls = SYSTEM
) -> DiskState:
    """Read the state of the disk at C{path} and of its records.

    @param state_directory: where the records of block devices are; None for the default.
    @raise DiskRefused: it cannot be examined.
    """
    # Records first: if the disk goes meanwhile, it looks as it did while they were true.
    records = Records(record_path(path, state_directory, system), system)
    good, bad = _read(records)
    size, identity, in_use = _examine_disk(path, system)
    return DiskState(path, size, identity, in_use, _where(records, path), good, bad)


def _read(records: Records) -> tuple[dict[Kind, Record], dict[Kind, str]]:
    """The records that can be read, and why others cannot."""
    with contextlib.suppress(OSError):  # then what can be read must do
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
    return good, bad


def _where(records: Records, path: str) -> str:
    directory = os.path.dirname(records.path)
    beside = directory == os.path.dirname(os.path.realpath(path))
    return "beside it" if beside else f"in {directory}"


def _examine_disk(path: str, system: SystemCalls) -> tuple[int | None, str, bool]:
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


def examine_until_stable(
    paths: Sequence[str], state_directory: str | None = None, system: SystemCalls = SYSTEM
) -> tuple[list[DiskState], bool]:
    """Examine paths that may be changing: the ends of a migration under way.

    @return: their states, and whether all of them were so at one time.
    @raise DiskRefused: one of them cannot be examined.
    """
    before: list[DiskState] = []
    for _ in range(_MOST_TRIES):
        states = [examine(path, state_directory, system) for path in paths]
        if before and all(map(_are_alike, before, states)):
            return states, True
        before = states
    return before, False


def _are_alike(one: DiskState, other: DiskState) -> bool:
    """Whether nothing has changed but the disk's content."""
    inodes = [disk.identity.partition(",")[0] for disk in (one, other)]
    return (one.size, one.records, one.bad, inodes[0]) == (
        other.size,
        other.records,
        other.bad,
        inodes[1],
    )


def unstable_verdict(paths: Sequence[str]) -> Verdict:
    """The verdict on paths that change while they are examined."""
    return _unknown(
        f"{' and '.join(paths)} changed while they were examined",
        "try again: a migration is under way",
    )


def verdict_of(disk: DiskState) -> Verdict:
    """The verdict on one disk by itself."""
    for kind in (Kind.INCOMPLETE, Kind.MIGRATED, Kind.MIGRATING):
        if kind in disk.bad:
            return _unknown(
                disk.bad[kind],
                "do not use this copy until you know where that file comes from; "
                "the other side's records say as much: run `blockmig inspect` there",
            )
    incomplete, accepted = disk.record(Kind.INCOMPLETE), disk.record(Kind.ACCEPTED)
    if incomplete is not None:
        if (
            accepted is not None
            and incomplete.phase == Phase.COPIED
            and accepted.migration == incomplete.migration
        ):
            return _accepted(disk, accepted)
        return _destination_verdict(disk, incomplete)
    if disk.record(Kind.MIGRATED) is not None or disk.record(Kind.MIGRATING) is not None:
        return _source_verdict(disk)
    if disk.size is None and accepted is None:
        return _unknown(
            f"neither {disk.path} nor a record of it is there",
            "look on the other host; a source that was migrated with --unlink leaves nothing here",
        )
    if disk.size == 0:
        return Verdict(
            CopyState.NOT_CANONICAL,
            CopyState.NOT_CANONICAL,
            f"{disk.path} is empty: a receiver created it, and nothing was received yet",
            "receive into it again and send the disk; or delete it",
        )
    if accepted is not None:
        return _accepted(disk, accepted)
    return _canonical(
        disk.path,
        f"there is no record of a migration {disk.records_where}: none was begun here, or it is "
        "complete",
        "use it",
    )


def check_canonical(disk: IRecordedDisk, system: SystemCalls = SYSTEM) -> None:
    """Check that a disk that is open may be served to clients.

    @raise Refused: it is not the canonical copy, or that cannot be decided from here.
    """
    records = Records(disk.record_path, system)
    good, bad = _read(records)
    verdict = verdict_of(
        DiskState(
            disk.name,
            disk.size,
            disk.identity(),
            records_where=_where(records, path_of(disk)),
            records=good,
            bad=bad,
        )
    )
    if verdict.state != CopyState.CANONICAL:
        why = "" if verdict.why in verdict.line else f": {verdict.why}"
        raise Refused(f"{disk.name}: {verdict.line}{why}; {verdict.advice}")


def _accepted(disk: DiskState, accepted: Record) -> Verdict:
    if disk.size is None:
        return _unknown(f"{disk.path} was accepted as canonical, and is gone", "look for it")
    return _canonical(
        disk.path,
        f"{accepted.by} declared it canonical on {accepted.changed}; its source was "
        f"{accepted.source}",
        "use it",
    )


def _destination_verdict(disk: DiskState, record: Record) -> Verdict:
    another = _is_another(record, disk)
    if record.phase == Phase.COPYING and disk.size and another:
        return _unknown(
            f"a migration from {record.source} began to write the disk that was here; {disk.path} "
            "is another file, of which nothing is known",
            "find out who put this file here; if it is a new disk, move the record away",
        )
    if record.phase == Phase.COPYING:
        return Verdict(
            CopyState.NOT_CANONICAL,
            CopyState.NOT_CANONICAL,
            f"attempt {record.attempt} of a migration from {record.source} began to write it and "
            "did not finish",
            "run both commands again, receive here and send there; or delete it with its record",
        )
    if disk.size != record.size or another:
        is_there = "is gone" if disk.size is None else "is another disk now"
        return _unknown(
            f"all {record.size} bytes of {record.source} were copied here, but {disk.path} "
            f"{is_there}",
            f"find the disk; if the source is still at {record.source}, that is the canonical copy",
        )
    if record.retired:
        return _canonical(
            disk.path,
            f"all of it is here and durable, and the source {record.source} was retired before "
            f"{record.retired}; only the disconnect is missing",
            _how_to_finish(record, disk.path),
        )
    return Verdict(
        CopyState.CONDITIONAL,
        f"{CopyState.CONDITIONAL}: look at {record.source}",
        f"all of it has been here and durable since {record.changed}, but the sender never "
        "reported whether the source was retired",
        _where_to_look(record, disk.path),
    )


def _how_to_finish(record: Record, path: str) -> str:
    accept = f"blockmig accept {path} --i-have-checked-the-source"
    if not _may_be_path(path, record.destination):
        return f"it had another name when it was received; declare it canonical: {accept}"
    return f"run both commands again to finish; or declare it canonical: {accept}"


def _where_to_look(record: Record, path: str) -> str:
    if not record.identified:
        return (
            "the sender did not identify itself: if its disk is still in use, or its MIGRATING "
            "says that it was not deleted, delete this copy; if not, "
            f"blockmig accept {path} --i-have-checked-the-source"
        )
    return (
        f"on {record.source.host} run `blockmig inspect {record.source.disk}`: if that is "
        "canonical, this is not; if it no longer is, run both commands again to finish, or run "
        f"here: blockmig accept {path} --i-have-checked-the-source"
    )


def _source_verdict(disk: DiskState) -> Verdict:
    migrating, migrated = disk.record(Kind.MIGRATING), disk.record(Kind.MIGRATED)
    if (
        migrated is not None
        and migrating is not None
        and migrating.again
        and migrating.migration != migrated.migration
    ):
        migrated = None  # --again disregarded it
    if migrated is not None:
        if disk.size is not None and same_file(migrated.identity, disk.identity) is False:
            return _unknown(
                f"the disk that was here was migrated to {migrated.destination} on "
                f"{migrated.retired}; {disk.path} is another file, of which nothing is known",
                "if it is a new disk, move the record away",
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
    if _is_another(migrating, disk) and not _may_be_deleted(migrating):
        return _unknown(
            f"a migration of the disk that was here to {migrating.destination} began; {disk.path} "
            "is another file, of which nothing is known",
            "find out who put this file here; if it is the disk to use, move the record "
            f"({Kind.MIGRATING}) away",
        )
    retired = _retired(migrating, disk)
    if retired is None:
        return _unknown(
            f"{disk.path} may not be the file that was sent to {migrating.destination}, to be "
            "deleted afterwards: another file may have taken its place",
            f"run `blockmig inspect` for {migrating.destination}, and find out who put this file "
            "here",
        )
    if retired:
        return Verdict(
            CopyState.NOT_CANONICAL,
            CopyState.NOT_CANONICAL,
            f"it was deleted once all of it was durable at {migrating.destination}",
            f"run the same send command again to finish; use the copy at {migrating.destination}",
        )
    if disk.size is None and (migrating.phase == Phase.COPIED or migrating.whole):
        return _unknown(
            f"{disk.path} is gone, and blockmig did not delete it; all of it was copied to "
            f"{migrating.destination}",
            "find out who moved or deleted it; if it is gone for good, declare that copy "
            "canonical: run `blockmig accept` there",
        )
    if disk.size is None:
        return _unknown(
            f"{disk.path} is gone, and blockmig did not delete it: its migration to "
            f"{migrating.destination} had not got that far",
            "find out who moved or deleted it",
        )
    so_far = "may have all of it, but this one was not retired"
    if migrating.phase == Phase.COPYING and not migrating.whole:
        so_far = "is not known to be whole"
    return _canonical(
        disk.path,
        f"its migration began, and the copy at {migrating.destination} {so_far}",
        "use it; to migrate it, run both commands again",
    )


def _retired(migrating: Record, disk: DiskState) -> bool | None:
    """Whether the source was retired by deleting it; None where that cannot be decided."""
    if not _may_be_deleted(migrating):
        return False
    if disk.size is None:
        return True
    return False if same_file(migrating.identity, disk.identity) else None


def _may_be_deleted(migrating: Record) -> bool:
    """Whether the record announces that we are about to delete the source."""
    return migrating.unlink and migrating.phase != Phase.COPYING


def _is_another(record: Record, disk: DiskState) -> bool:
    """Whether the file is certainly not the one that the record is about."""
    there = disk.size is not None and bool(record.identity)
    return there and same_file(record.identity, disk.identity) is False


def verdict_of_pair(one: DiskState, other: DiskState) -> Verdict:
    """Which of two disks is the canonical copy, in whichever order they are given."""
    first, second = verdict_of(one), verdict_of(other)
    for here, there, verdict, opposite in (
        (one, other, first, second),
        (other, one, second, first),
    ):
        incomplete = here.record(Kind.INCOMPLETE)
        if verdict.state == CopyState.CONDITIONAL and incomplete is not None:
            return _verdict_by_source(here, incomplete, verdict, there, opposite)
    for here, there, verdict, opposite in (
        (one, other, first, second),
        (other, one, second, first),
    ):
        if verdict.state == CopyState.CANONICAL and _defers_to(there, opposite, here):
            return Verdict(
                CopyState.CANONICAL,
                f"canonical: {here.path}",
                f"{here.path}: {verdict.why}",
                verdict.advice,
                here.path,
            )
    return _unknown(
        f"{one.path}: {first.line} ({first.why}); {other.path}: {second.line} ({second.why})",
        "the two together do not decide it: follow the advice for each by itself",
    )


def _defers_to(disk: DiskState, verdict: Verdict, to: DiskState) -> bool:
    """Whether what was found at C{disk} leaves it to C{to} to be canonical."""
    if verdict.state == CopyState.NOT_CANONICAL:
        record = disk.record(Kind.MIGRATED) or disk.record(Kind.MIGRATING)
        if record is None:
            return True
        incomplete = to.record(Kind.INCOMPLETE)
        same = incomplete is not None and incomplete.migration == record.migration
        return record.size == to.size and (same or _may_be_location(to, record.destination))
    nothing = not disk.records and not disk.bad
    if disk.size is None and nothing:
        return True
    # While a source is not retired, it does not matter what the destination looks like.
    migrating = to.record(Kind.MIGRATING)
    return migrating is not None and (nothing or Kind.INCOMPLETE in disk.bad)


def _may_be_location(disk: DiskState, location: Location) -> bool:
    """Whether the disk may be the one that a record names; certain only on the same machine."""
    return _may_be_path(disk.path, location)


def _may_be_path(path: str, location: Location) -> bool:
    if location.host != this_host() or not location.disk:
        return True
    return os.path.realpath(path) == os.path.realpath(location.disk)


def _is_source_of(there: DiskState, incomplete: Record) -> bool:
    """Whether C{there} is the source of the copy that C{incomplete} is about."""
    record = there.record(Kind.MIGRATED) or there.record(Kind.MIGRATING)
    if record is None:
        return there.size == incomplete.size and _may_be_location(there, incomplete.source)
    ends = [(at.host, at.disk) for at in (record.destination, incomplete.destination)]
    return record.migration == incomplete.migration and (not ends[0][1] or ends[0] == ends[1])


def _was_migrated_to(there: DiskState, here: DiskState, incomplete: Record) -> bool:
    """Whether what was retired at C{there} is what C{incomplete}, the record of C{here}, is
    about."""
    record = there.record(Kind.MIGRATED) or there.record(Kind.MIGRATING)
    if record is None or there.record(Kind.INCOMPLETE) is not None:
        return False  # it is not canonical because it is not a whole copy itself
    if incomplete.identified:
        return _is_source_of(there, incomplete)
    # Its sender could not identify the migration: it had no side export to do so.
    return record.size == incomplete.size and _may_be_location(here, record.destination)


def _verdict_by_source(
    here: DiskState, incomplete: Record, verdict: Verdict, there: DiskState, source: Verdict
) -> Verdict:
    """The verdict on a copy that is canonical if and only if its source was retired."""
    is_source = _is_source_of(there, incomplete) or (
        not incomplete.identified and there.size == incomplete.size
    )
    if source.state == CopyState.CANONICAL and is_source:
        return Verdict(
            CopyState.CANONICAL,
            f"canonical: {there.path}",
            f"{there.path} is there and was not retired: {source.why}",
            source.advice,
            there.path,
        )
    if source.state == CopyState.NOT_CANONICAL and _was_migrated_to(there, here, incomplete):
        return Verdict(
            CopyState.CANONICAL,
            f"canonical: {here.path}",
            f"{here.path} has all of it, durable, and {there.path} was retired: {source.why}",
            "run both commands again to finish, or: "
            f"blockmig accept {here.path} --i-have-checked-the-source",
            here.path,
        )
    return _unknown(
        f"{here.path}: {verdict.line}; {there.path} does not decide that: {source.why}",
        verdict.advice,
    )


def _canonical(path: str, why: str, advice: str) -> Verdict:
    return Verdict(CopyState.CANONICAL, CopyState.CANONICAL, why, advice, path)


def _unknown(why: str, advice: str) -> Verdict:
    return Verdict(CopyState.UNKNOWN, f"unknown: {why}", why, advice)
