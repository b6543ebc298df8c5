"""Which copy is canonical, judged from what is on disk and nothing else.

Owns the verdicts: a table in code, the same as the one in docs/handoff.md. It only reads (and makes
durable what it has read); it takes no lock, so that a migration under way is not disturbed.

Rules (design, section 2: R1, R7):

* a source is canonical until it is retired, and a destination from then on: where one end's own
  records cannot decide, the verdict names the place to look at;
* whatever cannot be read, or contradicts itself, gives C{unknown}, with the reason: never a guess;
* where there is neither a disk nor a record, nothing is concluded from that (R11).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from ...errors import Refused
from ...interfaces import IRecordedDisk
from ...storage import (
    BlockDisk,
    DiskRefused,
    FileDisk,
    Relation,
    device_identity,
    file_identity,
    has_descriptor,
    held_descriptor,
    is_device_identity,
    is_locked,
    path_of,
    version_at,
)
from ...syscalls import SYSTEM, SystemCalls, describe_error
from .advice import command, command_there, where
from .files import (
    BadRecord,
    Kind,
    Location,
    Phase,
    Record,
    Records,
    is_about,
    read_all,
    records_at,
    records_of,
    this_host,
)
from .finished import (
    Finished,
    Present,
    is_complete,
    is_sent_again,
    is_superseded,
    was_written,
)
from .layers import LayerState, layers_at
from .mark import ATTRIBUTES, Mark, read_mark

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

    @property
    def certain(self) -> bool:
        """Whether it says of the copy that it is canonical, or that it is not."""
        return self.state in (CopyState.CANONICAL, CopyState.NOT_CANONICAL)


@dataclass(frozen=True, slots=True)
class DiskState:
    """What was found at one path.

    @ivar path: the disk's path, as it was given.
    @ivar size: bytes of the disk; None where there is none.
    @ivar identity: of the disk's file; "" where there is nothing to identify it by.
    @ivar written: what is known of the last write to it, as in records.
    @ivar in_use: another program has it open, so that what was found may be about to change.
    @ivar records_where: where its records would be.
    @ivar records: the records that could be read.
    @ivar bad: those that could not, with the reason.
    @ivar mark: on its file.
    @ivar layers: what it has data in common with, as far as there are records or marks of that.
    @ivar state_directory: where its records are, as in a L{Location}.
    @ivar set_aside: its records had to give way to those of another device of its name.
    """

    path: str
    size: int | None = None
    identity: str = ""
    in_use: bool = False
    records_where: str = "beside it"
    records: dict[Kind, Record] = field(default_factory=dict)
    bad: dict[Kind, str] = field(default_factory=dict)
    mark: Mark | None = None
    layers: tuple[tuple[Relation, DiskState], ...] = ()
    state_directory: str = ""
    set_aside: bool = False
    written: str = ""

    def record(self, kind: Kind) -> Record | None:
        """The record of that kind, if there is one."""
        return self.records.get(kind)

    @property
    def incomplete(self) -> Record | None:
        """INCOMPLETE, unless RECEIVED says that the same migration is complete."""
        incomplete = self.record(Kind.INCOMPLETE)
        return None if is_complete(incomplete, self.record(Kind.RECEIVED)) else incomplete

    @property
    def migrated(self) -> Record | None:
        """MIGRATED, unless a later migration of another disk began, or this one has come home
        since."""
        migrated = Finished(
            self.record(Kind.MIGRATED), self.record(Kind.RECEIVED), self.record(Kind.ACCEPTED)
        ).went
        migrating = self.record(Kind.MIGRATING)
        if migrated is None or not is_superseded(migrated, migrating):
            return migrated
        there = self.identity if self.size is not None else None
        return migrated if is_sent_again(migrated, migrating, there) else None

    @property
    def sent_again(self) -> Record | None:
        """MIGRATING, where this disk was retired before, and is not retired by that migration."""
        migrated, migrating = self.migrated, self.record(Kind.MIGRATING)
        return migrating if migrated is not None and is_superseded(migrated, migrating) else None

    @property
    def leaving(self) -> Record | None:
        """The record of its migration to elsewhere: of the last one."""
        return self.migrated or self.record(Kind.MIGRATING)

    @property
    def empty(self) -> bool:
        """Whether there is neither a disk nor a record."""
        return self.size is None and not self.records and not self.bad


def examine(
    path: str, state_directory: str | None = None, system: SystemCalls = SYSTEM
) -> DiskState:
    """Read the state of the disk at C{path} and of its records.

    @param state_directory: where the records of block devices are; None for the default.
    @raise DiskRefused: it cannot be examined.
    """
    # Records first: if the disk goes meanwhile, it looks as it did while they were true.
    records = records_at(path, state_directory, system)
    good, bad = _read(records)
    found = replace(
        _examine_disk(path, system),
        records_where=_where(records, path),
        records=good,
        bad=bad,
        state_directory=records.state_directory,
        set_aside=records.set_aside,
    )
    try:
        layers = _examine_layers(path, found.identity, state_directory, system)
    except OSError as error:
        raise DiskRefused(f"{path}: {describe_error(error)}") from None
    return replace(found, layers=layers)


def _examine_layers(
    path: str, identity: str, state_directory: str | None, system: SystemCalls
) -> tuple[tuple[Relation, DiskState], ...]:
    found = []
    for layer in layers_at(path, identity, state_directory, system):
        good, bad = _read(layer.records)
        if is_device_identity(layer.identity):
            # What only has its name is about another device.
            good = {kind: good[kind] for kind in good if _is_about_layer(good[kind], layer)}
        if good or bad or layer.mark is not None:
            state = DiskState(
                layer.path,
                layer.size,
                layer.identity,
                records_where=_where(layer.records, layer.path),
                records=good,
                bad=bad,
                mark=layer.mark,
                state_directory=layer.records.state_directory,
            )
            found.append((layer.relation, state))
    return tuple(found)


def _read(records: Records) -> tuple[dict[Kind, Record], dict[Kind, str]]:
    """The records that can be read, and why others cannot."""
    with contextlib.suppress(OSError):  # then what can be read must do
        records.sync()
    good, errors = read_all(records)
    bad = {
        kind: str(error)
        if isinstance(error, BadRecord)
        else f"{records.name(kind)} cannot be read: {describe_error(error)}"
        for kind, error in errors.items()
    }
    return good, bad


def _where(records: Records, path: str) -> str:
    directory = os.path.dirname(records.path)
    beside = directory == os.path.dirname(os.path.realpath(path))
    return "beside it" if beside else f"in {directory}"


def _is_about_layer(record: Record, layer: LayerState) -> bool:
    return is_about(record, layer.identity) is not False


def look_at(path: str, system: SystemCalls = SYSTEM) -> Present:
    """What is at C{path}; its records are not looked at.

    @raise DiskRefused: it cannot be examined.
    """
    found = _examine_disk(path, system)
    return Present(found.size, found.identity, found.written)


def _examine_disk(path: str, system: SystemCalls) -> DiskState:
    """What is at C{path}, without its records."""
    try:
        mode = system.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise DiskRefused(f"{path}: is a directory, not a disk")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DiskRefused(f"{path}: is neither a regular file nor a block device")
        descriptor = system.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return DiskState(path)
    except OSError as error:
        raise DiskRefused(f"{path}: {describe_error(error)}") from None
    try:
        size = system.lseek(descriptor, 0, os.SEEK_END)
        identity = (
            file_identity(descriptor, system)
            if stat.S_ISREG(mode)
            else device_identity(system.fstat(descriptor).st_rdev, system)
        )
        in_use = is_locked(descriptor, system)
        written = version_at(descriptor, system)
        return DiskState(path, size, identity, in_use, mark=read_mark(descriptor), written=written)
    except OSError as error:
        raise DiskRefused(f"{path}: {describe_error(error)}") from None
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
    verdict = _own_verdict(disk)
    if verdict.state == CopyState.CANONICAL:
        for relation, layer in disk.layers:
            below = _own_verdict(layer)
            if below.state != CopyState.CANONICAL and not _is_copy_into_itself(disk, layer):
                return _verdict_by_layer(disk, relation, layer, below)
    return verdict


def _is_copy_into_itself(disk: DiskState, layer: DiskState) -> bool:
    """Whether the copy in C{layer} is one of the disk itself: nothing but its own data was written
    to it."""
    incomplete = layer.record(Kind.INCOMPLETE)
    if incomplete is None or incomplete.source.host != this_host():
        return False
    return os.path.realpath(incomplete.source.disk) == os.path.realpath(disk.path)


def _verdict_by_layer(
    disk: DiskState, relation: Relation, layer: DiskState, verdict: Verdict
) -> Verdict:
    """The verdict on a disk that has data in common with one that is not the canonical copy."""
    why = f"{disk.path} {relation} {layer.path}: {verdict.why}"
    kinds = (Kind.INCOMPLETE, Kind.RECEIVED, Kind.ACCEPTED)
    received = any(kind in disk.records for kind in kinds)
    if relation == Relation.PART or received or verdict.state == CopyState.UNKNOWN:
        # Only a part of it is not canonical; or it was received over what had been retired.
        path = os.path.abspath(layer.path)
        see = command("inspect", path, state_directory=layer.state_directory)
        return _unknown(
            why,
            f"find out which of the two is to be used: see `{see}`; if it is this one, let "
            f"blockmig forget the other: {_forget(layer, '--i-have-checked-the-destination')}",
        )
    return Verdict(verdict.state, verdict.line, why, verdict.advice)


def _own_verdict(disk: DiskState) -> Verdict:
    """The verdict by the disk's own records, and the mark on it."""
    verdict = _verdict_by_records(disk)
    proved = any(is_about(record, disk.identity) for record in disk.records.values())
    if not disk.set_aside or proved or verdict.state == CopyState.CANONICAL or disk.size is None:
        return verdict
    return _unknown(
        f"two disks or more had the name of {disk.path}, and nothing proves that this is not the "
        f"one of which a record says: {verdict.why}",
        f"find out which disk this is; if it is another one, let blockmig forget that one: "
        f"{_forget(disk, '--i-have-checked-the-destination')}",
    )


def _verdict_by_records(disk: DiskState) -> Verdict:
    if (unread := _verdict_by_unread(disk)) is not None:
        return unread
    incomplete, accepted = disk.incomplete, disk.record(Kind.ACCEPTED)
    received = disk.record(Kind.RECEIVED)
    if incomplete is not None:
        if (
            accepted is not None
            and incomplete.phase == Phase.COPIED
            and accepted.migration == incomplete.migration
            and not _is_another(accepted, disk)
        ):
            return _accepted(disk, accepted)
        return _destination_verdict(disk, incomplete)
    if disk.leaving is not None:
        return _source_verdict(disk)
    if received is not None and (disk.size is None or not _is_another(received, disk)):
        return _received(disk, received)
    if disk.size is None and accepted is None:
        return _unknown(
            f"neither {disk.path} nor a record of it is there",
            "look for it elsewhere: nothing can be concluded from that",
        )
    if disk.size == 0:
        return Verdict(
            CopyState.NOT_CANONICAL,
            CopyState.NOT_CANONICAL,
            f"{disk.path} is empty: a receiver created it, and nothing was received yet",
            "receive into it again and send the disk; or delete it",
        )
    if accepted is not None and not _is_another(accepted, disk):
        return _accepted(disk, accepted)
    if disk.mark is not None:
        return _marked(disk, disk.mark)
    if accepted is not None:
        return _canonical(
            disk.path,
            f"there is no record of a migration of it {disk.records_where} ({Kind.ACCEPTED} is "
            f"about another {_noun(disk)})",
            "use it",
        )
    if received is not None:
        return _canonical(
            disk.path,
            f"there is no record of a migration of it {disk.records_where}; the {Kind.RECEIVED} "
            f"there is about another {_noun(disk)}, received from {received.source} on "
            f"{received.confirmed}, and counts for nothing",
            "use it",
        )
    return _canonical(
        disk.path,
        f"there is no record of a migration {disk.records_where}: none was begun here, or it was "
        "forgotten",
        "use it",
    )


def _verdict_by_unread(disk: DiskState) -> Verdict | None:
    """The verdict where a record that decides it cannot be read; None where there is none."""
    for kind in (Kind.INCOMPLETE, Kind.MIGRATED, Kind.MIGRATING):
        if kind in disk.bad:
            return _unknown(
                disk.bad[kind],
                "do not use this copy until you know where that file comes from; "
                "the other side's records say as much: inspect its disk there",
            )
    if (arrival := _unread_arrival(disk)) is not None:
        return _unknown(
            disk.bad[arrival],
            "make that file readable, and inspect it again; if it is lost, inspect the other "
            "side's disk there: unless that is canonical, this is; then move that file away",
        )
    return None


def _unread_arrival(disk: DiskState) -> Kind | None:
    """The record that cannot be read and might say that the disk has arrived here, where that
    decides whether it is canonical; None where there is none."""
    unread = [kind for kind in (Kind.RECEIVED, Kind.ACCEPTED) if kind in disk.bad]
    incomplete = disk.incomplete
    if not unread:
        return None
    if incomplete is not None:
        # Of a copy that is whole it is said where to look for the answer. One that is not is
        # complete all the same where its receiver died before it removed the record.
        decides = incomplete.phase == Phase.COPYING and unread[0] == Kind.RECEIVED
    elif disk.record(Kind.MIGRATED) is not None:
        decides = True  # it may have come home since
    else:
        # Until its migration onward retires it, it is canonical however it came here.
        known = {Kind.MIGRATING, Kind.RECEIVED, Kind.ACCEPTED} & set(disk.records)
        decides = not known
    return unread[0] if decides else None


def check_canonical(disk: IRecordedDisk, system: SystemCalls = SYSTEM) -> None:
    """Check that a disk that is open may be served to clients.

    @raise Refused: it is not the canonical copy, or that cannot be decided from here.
    """
    records = records_of(disk, system)
    good, bad = _read(records)
    state = DiskState(
        disk.name,
        disk.size,
        disk.identity(),
        records_where=_where(records, path_of(disk)),
        records=good,
        bad=bad,
        state_directory=records.state_directory,
        set_aside=records.set_aside,
    )
    _check(disk, replace(state, **_beside_records(disk, records, system)), "")


_SOME_SIZE: Final = 1


def check_data(disk: IRecordedDisk, override: str, system: SystemCalls = SYSTEM) -> None:
    """Check what neither the disk's own records nor its name say: that it is not a retired source
    under another name, and that it has no data in common with a disk that is not the canonical
    copy.

    @param override: the option that has it used all the same.
    @raise Refused: that is not so.
    """
    # One that gets its size later is a new one, whatever that will be.
    state = DiskState(disk.name, disk.size or _SOME_SIZE, disk.identity())
    found = _beside_records(disk, records_of(disk, system), system)
    _check(disk, replace(state, **found), f"; to use it anyway: {override}")


def check_layers(disk: IRecordedDisk, system: SystemCalls = SYSTEM) -> None:
    """Check that a disk has no data in common with one that is not the canonical copy.

    @raise Refused: it has.
    """
    state = DiskState(disk.name, disk.size, disk.identity())
    layers = _beside_records(disk, records_of(disk, system), system).get("layers", ())
    _check(disk, replace(state, layers=layers), "")


def _beside_records(disk: IRecordedDisk, records: Records, system: SystemCalls) -> dict[str, Any]:
    """The mark and the layers of an open disk."""
    if not isinstance(disk, BlockDisk | FileDisk):
        return {}
    kept_in, mark = records.state_directory or None, None
    if has_descriptor(disk):
        with held_descriptor(disk) as descriptor:
            mark = read_mark(descriptor)
    with contextlib.suppress(BadRecord, OSError):
        received = records.read(Kind.RECEIVED)
        if mark is not None and received is not None and mark.migration == received.migration:
            mark = None  # its receiver died before it removed it
    return {
        "mark": mark,
        "layers": _examine_layers(disk.path, disk.identity(), kept_in, system),
    }


def _check(disk: IRecordedDisk, state: DiskState, override: str) -> None:
    verdict = verdict_of(state)
    if verdict.state != CopyState.CANONICAL:
        why = "" if verdict.why in verdict.line else f": {verdict.why}"
        raise Refused(f"{disk.name}: {verdict.line}{why}; {verdict.advice}{override}")


def _marked(disk: DiskState, mark: Mark) -> Verdict:
    """The verdict on a file that has lost its record, or is a copy of one that had one."""
    name = mark.disk if mark.is_on(disk.identity) else f"a copy of {mark.disk}"
    if mark.kind == Kind.INCOMPLETE:
        return _unknown(
            f"{disk.path} was {name}, which a migration from {mark.other} began to write, and is "
            f"not known to be complete; its record ({Kind.INCOMPLETE}) was left there",
            f"move it back to {mark.disk}, and inspect it there",
        )
    why = f"was migrated to {mark.other} on {mark.retired}"
    if not mark.is_on(disk.identity):
        return _unknown(f"{disk.path} is {name}, which {why}", f"use the copy at {mark.other}")
    renamed = f" as {mark.disk}" if mark.disk != os.path.realpath(disk.path) else ""
    return Verdict(
        CopyState.NOT_CANONICAL,
        CopyState.NOT_CANONICAL,
        f"it {why}{renamed}, and is marked so ({ATTRIBUTES[mark.kind]}), though its record is gone",
        f"use the copy at {mark.other}; delete this one when you like",
    )


def _noun(disk: DiskState) -> str:
    return "disk" if is_device_identity(disk.identity) else "file"


def _another(disk: DiskState) -> str:
    """What a disk is that is not the one that its record is about."""
    return "another disk now" if is_device_identity(disk.identity) else "another file"


def _forget(disk: DiskState, *options: str) -> str:
    """The command that forgets what was finished with a disk."""
    return command("forget", disk.path, *options, state_directory=disk.state_directory)


def _received(disk: DiskState, received: Record) -> Verdict:
    """What was received, and nothing was begun with since."""
    what = f"it was received from {received.source}, and complete on {received.confirmed}"
    if disk.size is None:
        return _unknown(f"{disk.path} is gone; {what}", "look for it")
    if disk.size == 0:
        return _unknown(f"{disk.path} is empty; {what}", "find out who truncated it")
    return _canonical(disk.path, what, "use it")


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
            f"is {_another(disk)}, of which nothing is known",
            f"find out who put this {_noun(disk)} here; if it is a new disk, move the record "
            f"{_away(disk)}{_if_shared(disk, record.destination)}",
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
            f"find the disk; if the source is still at {record.source}, that is the canonical copy"
            f"{_if_shared(disk, record.destination)}",
        )
    if record.retired:
        return _canonical(
            disk.path,
            f"all of it is here and durable, and the source {record.source} was retired before "
            f"{record.retired}; only the disconnect is missing",
            _how_to_finish(record, disk),
        )
    anew = " anew" if record.sent_again else ""
    return Verdict(
        CopyState.CONDITIONAL,
        f"{CopyState.CONDITIONAL}{anew}: look at {record.source}",
        f"all of it has been here and durable since {record.changed}, but the sender never "
        f"reported whether the source was retired{anew}",
        _where_to_look(record, disk),
    )


def _away(disk: DiskState) -> str:
    """Where a record that is about another disk is to be moved from."""
    return "away" if disk.records_where == "beside it" else f"({disk.records_where}) away"


def _if_shared(disk: DiskState, end: Location) -> str:
    """What to add where another host may have written the record that is about another device.

    @param end: this disk's end of the migration, by the record.
    """
    if not is_device_identity(disk.identity) or end.host in ("", this_host()):
        return ""
    return (
        f"; the record was written on {end.host}: hosts that share a directory each need a "
        "--state-dir of their own there"
    )


def _accept(disk: DiskState) -> str:
    """The command that declares a disk canonical."""
    option = "--i-have-checked-the-source"
    path = os.path.abspath(disk.path)
    return command("accept", path, option, state_directory=disk.state_directory)


def _inspect(end: Location) -> str:
    """How the other end of a migration is to be inspected."""
    if not end.disk:
        return f"find out what became of {end}"
    return f"{where(end)} run `{command_there('inspect', end)}`"


def _accept_there(end: Location) -> str:
    """How the other end of a migration is to be declared canonical."""
    if not end.disk:
        return ""
    option = "--i-have-checked-the-source"
    return f": {where(end)} run `{command_there('accept', end, option)}`"


def _how_to_finish(record: Record, disk: DiskState) -> str:
    if not _may_be_path(disk.path, record.destination):
        return f"it had another name when it was received; declare it canonical: {_accept(disk)}"
    return f"run both commands again to finish; or declare it canonical: {_accept(disk)}"


def _where_to_look(record: Record, disk: DiskState) -> str:
    if not record.identified:
        return (
            "the sender did not identify itself: if its disk is still in use, or its MIGRATING "
            f"says that it was not deleted, delete this copy; if not, {_accept(disk)}"
        )
    if record.sent_again:
        return (
            f"{_inspect(record.source)}: that disk was retired before, and sent once more, so that "
            "it is not canonical in any case; only if it says that it was migrated to "
            f"{record.destination}, or deleted for that, is this the canonical copy: run both "
            "commands again to finish"
        )
    return (
        f"{_inspect(record.source)}: if that is canonical, this is not; if it no longer is, run "
        f"both commands again to finish, or run here: {_accept(disk)}"
    )


def _source_verdict(disk: DiskState) -> Verdict:
    migrating, migrated = disk.record(Kind.MIGRATING), disk.migrated
    if migrated is not None:
        if disk.size is not None and (
            migrated.unlink or is_about(migrated, disk.identity) is False
        ):
            return _unknown(
                f"another {_noun(disk)} has the name of the disk that went to "
                f"{migrated.destination} on {migrated.retired}",
                "if it is a new disk, let blockmig forget the old one: "
                f"{_forget(disk, '--i-have-checked-the-destination')}"
                f"{_if_shared(disk, migrated.source)}",
            )
        if (again := disk.sent_again) is not None:
            return _sent_again(disk, migrated, again)
        done = "" if disk.size is None else "; delete this one when you like"
        finish = (
            f"use the copy at {migrated.destination}{done}"
            if migrating is None
            else "run the same send command again to finish; then use the copy at "
            f"{migrated.destination}"
        )
        since = ", and deleted here" if migrated.unlink else ""
        if was_written(migrated, Present(disk.size, disk.identity, disk.written)):
            since = "; it was written after that, and is not the copy that went there"
            finish += (
                "; if what was written here is what you want, send it once more with --overwrite "
                "and a new --id"
            )
        return Verdict(
            CopyState.NOT_CANONICAL,
            CopyState.NOT_CANONICAL,
            f"it was migrated to {migrated.destination} on {migrated.retired}{since}",
            finish,
        )
    assert migrating is not None
    if _is_another(migrating, disk) and not _may_be_deleted(migrating):
        return _unknown(
            f"a migration of the disk that was here to {migrating.destination} began; {disk.path} "
            f"is {_another(disk)}, of which nothing is known",
            f"find out who put this {_noun(disk)} here; if it is the disk to use, move the record "
            f"({Kind.MIGRATING}) {_away(disk)}{_if_shared(disk, migrating.source)}",
        )
    retired = _retired(migrating, disk)
    if retired is None:
        return _unknown(
            f"{disk.path} may not be the file that was sent to {migrating.destination}, to be "
            "deleted afterwards: another file may have taken its place",
            f"{_inspect(migrating.destination)}; and find out who put this file here",
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
            f"canonical{_accept_there(migrating.destination)}",
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
        f"its migration to {migrating.destination} has begun, and goes on or was stopped; the copy "
        f"there {so_far}",
        "use it; to migrate it, run both commands again",
    )


def _sent_again(disk: DiskState, migrated: Record, migrating: Record) -> Verdict:
    """A disk that was retired and kept, of which a human has another migration made."""
    where_to = migrating.destination
    gone = "; it is gone" if disk.size is None else ""
    return Verdict(
        CopyState.NOT_CANONICAL,
        CopyState.NOT_CANONICAL,
        f"it was migrated to {migrated.destination} on {migrated.retired}; it is being sent again "
        f"to {where_to}, with --overwrite, and was not retired anew{gone}",
        f"use the copy at {migrated.destination}; or run the same send command again to finish; "
        f"until then the copy at {where_to} is not the one to use",
    )


def _retired(migrating: Record, disk: DiskState) -> bool | None:
    """Whether the source was retired by deleting it; None where that cannot be decided."""
    if not _may_be_deleted(migrating):
        return False
    if disk.size is None:
        return True
    return False if is_about(migrating, disk.identity) else None


def _may_be_deleted(migrating: Record) -> bool:
    """Whether the record announces that we are about to delete the source."""
    return migrating.unlink and migrating.phase != Phase.COPYING


def _is_another(record: Record, disk: DiskState) -> bool:
    """Whether the file is certainly not the one that the record is about."""
    there = disk.size is not None and bool(record.identity)
    return there and is_about(record, disk.identity) is False


def verdict_of_pair(one: DiskState, other: DiskState) -> Verdict:
    """Which of two disks is the canonical copy, in whichever order they are given."""
    first, second = verdict_of(one), verdict_of(other)
    for here, there, verdict, opposite in (
        (one, other, first, second),
        (other, one, second, first),
    ):
        incomplete = here.incomplete
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
    received = to.record(Kind.RECEIVED)
    if received is not None and _is_another(received, to):
        received = None
    if verdict.state == CopyState.NOT_CANONICAL:
        record = disk.leaving
        if record is None:
            return True
        if received is not None and received.identified:
            return received.migration == record.migration
        incomplete = to.record(Kind.INCOMPLETE)
        same = incomplete is not None and incomplete.migration == record.migration
        return record.size == to.size and (same or _may_be_location(to, record.destination))
    nothing = not disk.records and not disk.bad
    # Where a record says that it arrived no other copy matters any more; and while a source is not
    # retired, it does not matter what the destination looks like.
    if disk.empty and (received is not None or to.record(Kind.ACCEPTED) is not None):
        return True
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
    record = there.leaving
    if record is None:
        return there.size == incomplete.size and _may_be_location(there, incomplete.source)
    if record.place and incomplete.place and record.place != incomplete.place:
        return False  # another disk of that name
    ends = [(at.host, at.disk) for at in (record.destination, incomplete.destination)]
    return record.migration == incomplete.migration and (not ends[0][1] or ends[0] == ends[1])


def _was_migrated_to(there: DiskState, here: DiskState, incomplete: Record) -> bool:
    """Whether what was retired at C{there} is what C{incomplete}, the record of C{here}, is
    about."""
    record = there.leaving
    if record is None or there.incomplete is not None:
        return False  # it is not canonical because it is not a whole copy itself
    if incomplete.identified:
        return _is_source_of(there, incomplete)
    # Its sender could not identify the migration: it had no side export to do so.
    return record.size == incomplete.size and _may_be_location(here, record.destination)


def _verdict_by_source(
    here: DiskState, incomplete: Record, verdict: Verdict, there: DiskState, source: Verdict
) -> Verdict:
    """The verdict on a copy that is canonical if and only if its source was retired."""
    again = there.sent_again
    if again is not None and again.migration == incomplete.migration:
        return _unknown(
            f"neither {here.path} nor {there.path} is canonical: {source.why}", source.advice
        )
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
            "run both commands again to finish"
            + ("" if incomplete.sent_again else f", or: {_accept(here)}"),
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
