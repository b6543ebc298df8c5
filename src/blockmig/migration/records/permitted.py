"""What the records beside a disk permit a command to do with it.

Owns the refusals. Rules (design, section 2: R1, R6; docs/handoff.md):

* a disk that was migrated away is neither source nor destination, unless C{again} says so;
* a copy that is not known to be canonical is not a source;
* data that no record mentions is not overwritten, unless the caller says so; the unfinished copy of
  a migration may be, as long as it is the file that its record is about;
* what cannot be understood is reported, and nothing is concluded from it;
* a source that was retired by a migration not known to be complete can only be finished, by the
  same command line;
* another file that now has the source's name is another disk: it continues nothing;
* a source whose copy is whole in one place must not be sent to another: if it were deleted then,
  two copies would look canonical.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ...errors import Refused
from ...interfaces import IRecordedDisk
from ...storage import is_device_identity
from ...syscalls import describe_error
from .advice import command_here
from .files import BadRecord, Kind, Phase, Record, Records, is_about


@dataclass(frozen=True, slots=True)
class SourceState:
    """What the records say of a source, for a sender to act on.

    @ivar record: the migration to continue, or None for a new one.
    @ivar retired: the source is retired, so that its migration can only be finished.
    @ivar instead_of: a migration to another place, whose copy there may be whole.
    @ivar unreadable: the records that cannot be read, and that the user has said to disregard.
    """

    record: Record | None = None
    retired: bool = False
    instead_of: str = ""
    unreadable: tuple[Kind, ...] = ()


def _read(records: Records, kind: Kind, again: bool, may_disregard: bool = True) -> Record | None:
    try:
        return records.read(kind)
    except BadRecord as error:
        if again:
            return None
        raise Refused(
            f"{error}; see `{command_here('inspect', records)}`"
            + (
                ""
                if kind == Kind.INCOMPLETE and not may_disregard
                else ", or use --again to ignore it"
            )
        ) from None
    except OSError as error:
        raise Refused(f"{records.name(kind)}: {describe_error(error)}") from None


def destination_record(disk: IRecordedDisk, records: Records, again: bool) -> Record | None:
    """The record to continue from, if a migration may be received into C{disk}.

    @param again: disregard what the records say.
    @raise Refused: it may not.
    """
    _check_writable(records, Kind.INCOMPLETE)
    migrated = _read(records, Kind.MIGRATED, again)
    migrating = _read(records, Kind.MIGRATING, again)
    incomplete = _read(records, Kind.INCOMPLETE, again)
    accepted = _read(records, Kind.ACCEPTED, again)
    if again:
        # The same command, run again, continues what it began, on the same disk.
        continues = (
            incomplete is not None and incomplete.again and _may_be_disk_of(disk, incomplete)
        )
        return incomplete if continues else None
    if accepted is not None and incomplete is None and not disk.blank:
        raise Refused(
            f"{records.disk}: was declared canonical on {accepted.changed} "
            f"({records.name(Kind.ACCEPTED)}); to receive into it anyway, use --again"
        )
    if migrated is not None:
        raise Refused(
            f"{records.disk}: was migrated to {migrated.destination} on {migrated.retired} "
            f"({records.name(Kind.MIGRATED)}); to receive into it anyway, use --again"
        )
    if migrating is not None:
        raise Refused(
            f"{records.disk}: a migration of it to {migrating.destination} is not known to be "
            f"complete ({records.name(Kind.MIGRATING)}): see `{command_here('inspect', records)}`; "
            "to receive into it anyway, use --again"
        )
    if incomplete is not None and not _may_be_disk_of(disk, incomplete):
        raise Refused(
            f"{records.disk}: all of {incomplete.source} was copied here and may be the canonical "
            "copy, but this is another disk: find the right one "
            f"({records.name(Kind.INCOMPLETE)}), or use --again to receive anew"
        )
    return incomplete


def may_overwrite(
    disk: IRecordedDisk, records: Records, record: Record | None, again: bool
) -> bool:
    """Whether the records alone permit overwriting what is on the disk.

    @param record: the record to continue from, if there is one.
    @param again: the user has said to disregard the records of this disk.
    """
    if record is not None:
        if not record.identity:
            return True
        same = is_about(record, disk.identity())
        if same is None and not is_device_identity(record.identity):
            # On a file system that reports no birth times the inode must do.
            return len({text.partition(",")[0] for text in (record.identity, disk.identity())}) == 1
        return same is True
    return again and any(os.path.lexists(records.name(kind)) for kind in Kind)


def _may_be_disk_of(disk: IRecordedDisk, record: Record) -> bool:
    """Whether the disk may be the one that the record calls whole, if it does."""
    return record.phase != Phase.COPIED or (
        not disk.blank
        and disk.size == record.size
        and not (record.identity and is_about(record, disk.identity()) is False)
    )


def _check_writable(records: Records, kind: Kind) -> None:
    try:
        records.check_writable()
    except OSError as error:
        raise Refused(
            f"{records.name(kind)}: records cannot be kept there: {describe_error(error)}"
        ) from None


def source_state(
    records: Records,
    identity: str | None,
    destination: str,
    *,
    unlink: bool = False,
    again: bool = False,
) -> SourceState:
    """What a sender may do with this source.

    @param identity: the identity of the disk that is there; None where there is none.
    @param destination: the URI to send to.
    @param unlink: the source is to be deleted.
    @param again: disregard what the records say of earlier migrations.
    @raise Refused: it may not be sent.
    """
    _check_writable(records, Kind.MIGRATING)
    path, inspect = records.disk, command_here("inspect", records)
    _check_no_copy(records, identity)
    migrating = _read(records, Kind.MIGRATING, again)
    migrated = _read(records, Kind.MIGRATED, again)
    if again and not (migrating and _continues(migrating, identity, destination)):
        if identity is None:
            raise Refused(f"{path}: no such file")
        unreadable = tuple(
            kind for kind in (Kind.MIGRATED, Kind.MIGRATING) if _is_unreadable(records, kind)
        )
        return SourceState(
            instead_of=migrating.migration if migrating is not None else "", unreadable=unreadable
        )
    if migrating is not None and migrating.again and _is_another_migration(migrated, migrating):
        migrated = None  # --again disregarded it
    if migrated is not None and (migrating is None or _is_another_migration(migrated, migrating)):
        raise _was_migrated(records, migrated, identity)
    if migrating is None:
        if identity is None:
            raise Refused(f"{path}: no such file")
        return SourceState()
    if migrated is not None:
        migrating = migrating.but(retired=migrated.retired, confirmed=migrated.confirmed)
    if migrated is not None or _deleted(migrating, identity, path):
        _check_finish(migrating, identity, destination, unlink, path)
        return SourceState(migrating, retired=True)
    if identity is None:
        raise Refused(
            f"{path}: is gone, and blockmig did not delete it: its migration to "
            f"{migrating.destination} had not got that far; see `{inspect}`"
        )
    if migrating.identity and is_about(migrating, identity) is False:
        return _start_over(migrating, records)
    return _continue(migrating, destination, path)


def _check_no_copy(records: Records, identity: str | None) -> None:
    """Check that the source is no destination of an earlier migration.

    @param identity: of the disk that is there; None where there is none.
    """
    incomplete = _read(records, Kind.INCOMPLETE, False, may_disregard=False)
    if incomplete is None:
        return
    another = identity is not None and is_about(incomplete, identity) is False
    what = "is another disk than the copy that" if another else "is a copy that"
    raise Refused(
        f"{records.disk}: {what} is not known to be complete "
        f"({records.name(Kind.INCOMPLETE)}): see `{command_here('inspect', records)}`"
    )


def _was_migrated(records: Records, migrated: Record, identity: str | None) -> Refused:
    """The refusal of a source that has, or whose name has, C{migrated}."""
    to = f"migrated to {migrated.destination} on {migrated.retired}"
    name = records.name(Kind.MIGRATED)
    if identity is not None and is_about(migrated, identity) is False:
        return Refused(
            f"{records.disk}: is another disk than the one that was {to} ({name}); to send this "
            "one, use --again"
        )
    return Refused(
        f"{records.disk}: was {to} and is not the canonical copy any more ({name}); to send it "
        "anyway, use --again"
    )


def _start_over(migrating: Record, records: Records) -> SourceState:
    """Another file has the name now; it must not go where a copy of the earlier one may be
    whole."""
    if migrating.phase == Phase.COPIED or migrating.whole:
        raise Refused(
            f"{records.disk}: is not the disk of which all was copied to {migrating.destination}; "
            f"see `{command_here('inspect', records)}`; to send this one anyway, use --again"
        )
    return SourceState(instead_of=migrating.migration)


def _continues(migrating: Record, identity: str | None, destination: str) -> bool:
    """Whether C{--again} was given to continue this migration, not to disregard it too."""
    if identity is None:
        return True
    if not migrating.again or migrating.destination.address != destination:
        return False
    if migrating.identity and is_about(migrating, identity) is False:
        return False
    may_be_deleted = migrating.unlink and migrating.phase == Phase.COPIED
    return not may_be_deleted or bool(is_about(migrating, identity))


def _is_another_migration(record: Record | None, other: Record) -> bool:
    return record is not None and record.migration != other.migration


def _is_unreadable(records: Records, kind: Kind) -> bool:
    try:
        records.read(kind)
    except (BadRecord, OSError):
        return True
    return False


def _deleted(migrating: Record, identity: str | None, path: str) -> bool:
    """Whether the source was retired by deleting it."""
    if not (migrating.unlink and migrating.phase == Phase.COPIED):
        return False
    if identity is None:
        return True
    same = is_about(migrating, identity)
    if same is None:
        raise Refused(
            f"{path}: may or may not be the file that was to be deleted after its migration to "
            f"{migrating.destination}, and that may be gone; to send it anyway, use --again"
        )
    return not same


def _check_finish(
    record: Record, identity: str | None, destination: str, unlink: bool, path: str
) -> None:
    if record.destination.address != destination:
        raise Refused(
            f"{path}: its migration to {record.destination} has retired it, and is not known to be "
            f"complete: send to {record.destination.address} to finish it"
        )
    if record.unlink and identity is not None:
        raise Refused(
            f"{path}: is not the file that was migrated to {record.destination} and deleted; move "
            "it away to finish that migration, or use --again to send this file"
        )
    if unlink and not record.unlink:
        raise Refused(
            f"{path}: was migrated to {record.destination}, and is to be kept: "
            "finish that without --unlink, then delete it"
        )


def _continue(migrating: Record, destination: str, path: str) -> SourceState:
    if migrating.destination.address == destination:
        return SourceState(migrating)
    if migrating.phase == Phase.COPIED or migrating.whole:
        raise Refused(
            f"{path}: all of it was copied to {migrating.destination} and could be taken for the "
            "canonical copy there: send it there, or delete that copy and use --again"
        )
    return SourceState(instead_of=migrating.migration)
