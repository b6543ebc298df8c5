"""Forgets what is finished: removes MIGRATED, RECEIVED and ACCEPTED.

Owns when that may be done. Rules (design, section 2: R7, R11):

* a migration that is not finished is never forgotten: its records say which copy is canonical. One
  is finished if both INCOMPLETE and RECEIVED are of it: INCOMPLETE goes first;
* a disk that was migrated away, or what has its name now, looks like any other without its
  MIGRATED: somebody must have checked the destination first;
* what is about another device that had the name before is not forgotten by that name, but gives
  way (`aside`);
* the record that was superseded goes first, so that it never counts again in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ...errors import LocalFailure, MigrationError, Refused
from ...storage import DiskRefused, is_device_identity
from ...syscalls import SYSTEM, SystemCalls, describe_error
from .advice import command_here
from .aside import records_of_another, set_aside
from .directory import recorded_disks
from .files import BadRecord, Kind, Records, UntrustedRecord, records_at
from .finished import FINISHED, Finished, is_complete, read_finished
from .mark import mark_at, remove_mark_at
from .verdict import look_at

CONFIRMATION: Final = "--i-have-checked-the-destination"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What has become of the records of a disk.

    @ivar removed: the kinds that were removed.
    @ivar aside: what the paths of records begin with that were about another device of its name,
        and were set aside; "" if there were none.
    """

    removed: tuple[Kind, ...]
    aside: str = ""


def forget(
    path: str,
    *,
    checked_destination: bool = False,
    state_directory: str | None = None,
    system: SystemCalls = SYSTEM,
) -> Forgotten:
    """Remove the records of finished migrations of the disk at C{path}, which may be gone.

    What is under its name and about another device is not forgotten, but gives way.

    @param checked_destination: somebody has checked that the copy that it was migrated to is the
        canonical one.
    @param state_directory: where the records of block devices are; None for the default.
    @raise Refused: they must stay, or there is none; nothing was removed.
    @raise LocalFailure: they could not be removed.
    """
    records = _records(path, state_directory, system)
    try:
        aside = set_aside(records, _identity(path, system))
    except OSError as error:
        raise LocalFailure(
            f"{path}: the records of another disk that had its name could not be set aside: "
            f"{describe_error(error)}"
        ) from None
    finished = _check(path, records, checked_destination, system)
    # An INCOMPLETE that is there is of a complete migration: it goes while RECEIVED says so.
    kinds = (Kind.INCOMPLETE, *FINISHED)
    found = [kind for kind in kinds if _exists(records.name(kind), system)]
    try:
        marked = mark_at(path)
    except OSError as error:
        raise Refused(f"{path}: {describe_error(error)}") from None
    if marked is not None and marked.kind == Kind.MIGRATED:
        # Without the mark it would look like any other disk, wherever it is moved.
        if not checked_destination:
            raise Refused(
                f"{path}: is marked as migrated to {marked.other}: check that destination, then "
                f"give {CONFIRMATION}"
            )
        found = found or [Kind.MIGRATED]
    elif marked is not None:
        found = found or [Kind.RECEIVED]  # of a receiver that died before it removed the mark
    if not found and aside is not None:
        return Forgotten((), aside.path)
    if not found:
        raise Refused(f"{path}: there is no record of a finished migration of it")
    last = {
        kind
        for kind, record in zip(
            FINISHED, (finished.migrated, finished.received, finished.accepted), strict=True
        )
        if record is not None and record is finished.latest
    }
    if marked is not None:
        remove_mark_at(path)
    try:
        for kind in (*(kind for kind in found if kind not in last), *last):
            records.remove(kind)
    except OSError as error:
        raise LocalFailure(
            f"{path}: its records could not be removed: {describe_error(error)}"
        ) from None
    return Forgotten(tuple(found), aside.path if aside is not None else "")


def forget_old(
    directory: str,
    age: float,
    *,
    checked_destination: bool = False,
    now: datetime | None = None,
    system: SystemCalls = SYSTEM,
) -> Iterator[tuple[str, MigrationError | None]]:
    """Forget what was finished long ago with the disks that have records in a directory.

    @param age: seconds since the latest of its records was written.
    @param now: the current time; None to ask the clock.
    @return: the disks with a finished record of that age, each with the reason why it was not
        forgotten, or None if it was.
    @raise LocalFailure: the directory cannot be read.
    """
    now = now or datetime.now(UTC)
    for path in recorded_disks(directory, system):
        try:
            records = _records(path, directory, system)
            last = _read_disregarding(records).latest
            if last is None or (now - _time(last.changed)).total_seconds() < age:
                continue
            another = records_of_another(records, _identity(path, system))
            forget(
                records.path if another else path,  # whatever has their name now
                checked_destination=checked_destination,
                state_directory=directory,
                system=system,
            )
        except (MigrationError, OSError) as error:
            yield (
                path,
                error
                if isinstance(error, MigrationError)
                else LocalFailure(f"{path}: {describe_error(error)}"),
            )
        else:
            yield path, None


def _identity(path: str, system: SystemCalls) -> str:
    """The identity of the disk at C{path}; "" where nothing is there, or it is out of reach."""
    try:
        return look_at(path, system).identity
    except DiskRefused:
        return ""


def _time(text: str) -> datetime:
    """A time of a record; one that cannot be read is now, so that nothing is taken for old."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC)


def _records(path: str, state_directory: str | None, system: SystemCalls) -> Records:
    try:
        return records_at(path, state_directory, system)
    except DiskRefused as error:
        raise Refused(str(error)) from None


def _is_complete(records: Records) -> bool:
    """Whether INCOMPLETE is of a migration that RECEIVED says is complete."""
    try:
        return is_complete(records.read(Kind.INCOMPLETE), records.read(Kind.RECEIVED))
    except (BadRecord, OSError):
        return False


def _read_disregarding(records: Records) -> Finished:
    """What is finished, as far as it can be understood.

    @raise Refused: something is there that is not believed.
    """
    try:
        return read_finished(records, disregard=True)
    except UntrustedRecord as error:
        raise _not_trusted(error) from None


def _not_trusted(error: UntrustedRecord) -> Refused:
    return Refused(f"{error}: find out whose it is, and remove it yourself")


def _exists(path: str, system: SystemCalls) -> bool:
    """Whether there is anything at C{path}.

    @raise Refused: that cannot be found out: it may be what must not be forgotten.
    """
    try:
        return system.exists(path)
    except OSError as error:
        raise Refused(f"{path}: {describe_error(error)}") from None


def _check(path: str, records: Records, checked_destination: bool, system: SystemCalls) -> Finished:
    """Check that what is finished may be forgotten."""
    for kind, why in (
        (Kind.INCOMPLETE, "a migration into it is not known to be complete"),
        (Kind.MIGRATING, "a migration of it is not known to be complete"),
    ):
        if _exists(records.name(kind), system) and not (
            kind == Kind.INCOMPLETE and _is_complete(records)
        ):
            raise Refused(
                f"{path}: {why} ({records.name(kind)}), and that is not to be forgotten: see "
                f"`{command_here('inspect', records)}`"
            )
    torn = False
    try:
        finished = read_finished(records)
    except UntrustedRecord as error:
        raise _not_trusted(error) from None
    except BadRecord as error:
        torn = error.path == records.name(Kind.MIGRATED)
        finished = _read_disregarding(records)
    except OSError as error:
        raise Refused(f"{path}: {describe_error(error)}") from None
    went = finished.went
    # A kept device that is not there now (a volume that is not active) comes back.
    is_device = records.disk != records.path or (
        went is not None and is_device_identity(went.identity)
    )
    there = _exists(path, system) or (is_device and went is not None and not went.unlink)
    if (went is not None or torn) and there and not checked_destination:
        where = f" to {went.destination}" if went is not None else ""
        raise Refused(
            f"{path}: is there, and was migrated{where}: without that record it looks like the "
            f"canonical copy; check the destination, then give {CONFIRMATION}"
        )
    return finished
