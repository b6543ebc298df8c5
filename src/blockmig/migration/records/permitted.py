"""What the records beside a disk permit a command to do with it.

Owns the refusals. Rules (design, section 2: R1, R6; docs/handoff.md):

* a disk that was migrated away, or received, is not sent or received again unasked (`finished`);
* a migration that is not finished can only be continued: no option passes over it;
* a copy that is not known to be canonical is not a source;
* data that no record mentions is not overwritten, unless the caller says so; the unfinished copy of
  a migration may be, as long as it is the file that its record is about;
* what cannot be understood is reported, and nothing is concluded from it;
* a source that was retired by a migration not known to be complete can only be finished, by the
  same command line;
* a migration that was begun since permits nothing but to go on with itself: of any other command
  what is finished (MIGRATED) says what may be done, whatever stands beside it;
* another file that now has the source's name is another disk: it continues nothing;
* a source whose copy is whole in one place must not be sent to another: if it were deleted then,
  two copies would look canonical.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

from ...errors import Refused
from ...interfaces import IRecordedDisk
from ...storage import is_device_identity
from ...syscalls import describe_error
from .advice import command_here
from .files import BadRecord, Kind, Phase, Record, Records, UntrustedRecord, is_about
from .finished import (
    NOTHING_FINISHED,
    Finished,
    Present,
    check_migrated,
    check_received,
    check_unused,
    is_complete,
    is_sent_again,
    is_superseded,
    read_finished,
)
from .mark import remove_mark_at


class SourceState(NamedTuple):
    """What the records say of a source, for a sender to act on.

    @ivar record: the migration to continue, or None for a new one.
    @ivar retired: the source is retired, so that its migration can only be finished.
    @ivar instead_of: a migration to another place, whose copy there may be whole.
    @ivar finished: what was finished here before.
    """

    record: Record | None = None
    retired: bool = False
    instead_of: str = ""
    finished: Finished = NOTHING_FINISHED


def _not_trusted(error: UntrustedRecord, records: Records) -> Refused:
    return Refused(
        f"{error}; see `{command_here('inspect', records)}`; once you know which copy is "
        "canonical, move that away"
    )


def _read(records: Records, kind: Kind) -> Record | None:
    try:
        return records.read(kind)
    except UntrustedRecord as error:
        raise _not_trusted(error, records) from None
    except BadRecord as error:
        raise Refused(
            f"{error}; see `{command_here('inspect', records)}`; once you know which copy is "
            "canonical, move that file away"
        ) from None
    except OSError as error:
        raise Refused(f"{records.name(kind)}: {describe_error(error)}") from None


def destination_record(
    disk: IRecordedDisk, records: Records, overwrite: bool = False, id: str = ""
) -> Record | None:
    """The record to continue from, if a migration may be received into C{disk}.

    @param overwrite: disregard what was finished here before; with a new C{id} only.
    @param id: the id of the migration to receive; "" for any.
    @raise AlreadyDone: it was received already, and is there.
    @raise Refused: it may not be received.
    """

    def look() -> Present:
        return Present(None if disk.blank else disk.size, disk.identity())

    _check_destination(records, look, overwrite=overwrite, id=id)
    check_writable(records, Kind.INCOMPLETE)
    incomplete = _read(records, Kind.INCOMPLETE)
    if incomplete is not None and not _may_be_disk_of(disk, incomplete):
        raise Refused(
            f"{records.disk}: all of {incomplete.source} was copied here and may be the canonical "
            "copy, but this is another disk: find the right one, or move the record "
            f"({records.name(Kind.INCOMPLETE)}) away"
        )
    return incomplete


def check_finished(
    records: Records, look: Callable[[], Present], *, overwrite: bool = False, id: str = ""
) -> None:
    """Check what is finished at a destination, before its disk is opened, made or locked.

    An INCOMPLETE beside the RECEIVED of the same migration is removed: that one is complete. Where
    a migration is under way nothing else is checked yet than whether this one was received: a
    migration onward that has retired nothing does not undo that.

    @param look: looks what is there now; called only if that matters.
    @raise AlreadyDone: see L{destination_record}.
    @raise Refused: the same.
    """
    if _settle(records) is not None:
        return
    migrating = _read(records, Kind.MIGRATING)
    if migrating is None:
        _check_received(records, look, overwrite, id)
    else:
        _check_arrived(records, migrating, look, overwrite, id)


def _check_destination(
    records: Records, look: Callable[[], Present], *, overwrite: bool = False, id: str = ""
) -> None:
    """Check what the records say of a destination; see L{destination_record}."""
    incomplete = _settle(records)
    if incomplete is not None:
        _check_continues(records, incomplete, overwrite, id)
        return
    migrating = _read(records, Kind.MIGRATING)
    if migrating is not None:
        _check_arrived(records, migrating, look, overwrite, id)
    if migrating is not None and not (
        overwrite and migrating.phase == Phase.COPYING and not migrating.whole
    ):
        raise Refused(
            f"{records.disk}: a migration of it to {migrating.destination} is not known to be "
            f"complete ({records.name(Kind.MIGRATING)}): see `{command_here('inspect', records)}`"
        )
    _check_received(records, look, overwrite, id)


def _check_received(
    records: Records, look: Callable[[], Present], overwrite: bool, id: str
) -> None:
    finished = _read_finished(records, overwrite and bool(id))
    present = look() if finished.latest is not None else Present()
    check_received(records, finished, present, overwrite=overwrite, id=id)


def _check_arrived(
    records: Records, migrating: Record, look: Callable[[], Present], overwrite: bool, id: str
) -> None:
    """Check whether the disk was received already, although it has begun to go on from here.

    @param migrating: the record of that.
    @raise AlreadyDone: it was, and is there, and was not retired.
    """
    if migrating.phase != Phase.COPYING:
        return
    finished = _read_finished(records, overwrite and bool(id))
    if finished.received is not None and finished.latest is finished.received:
        with contextlib.suppress(Refused):
            check_received(records, finished, look(), overwrite=overwrite, id=id)


def _check_continues(records: Records, incomplete: Record, overwrite: bool, id: str) -> None:
    """Check that a migration into the disk that was begun may be continued."""
    if (
        id
        and incomplete.id not in ("", id)
        and incomplete.identified
        and incomplete.phase == Phase.COPIED
    ):
        raise Refused(
            f"{records.disk}: is the copy of the migration {incomplete.id}, and may be the only "
            f"one: finish that with id={incomplete.id!r}"
        )
    finished = _read_finished(records, overwrite and bool(id))
    if id and id != incomplete.id:
        if id in incomplete.ids:
            finished = Finished(received=incomplete)
        check_unused(finished, id)
    last = finished.latest
    if last is None or last.migration == incomplete.follows or incomplete.again:
        return
    if finished.went is not None and not (overwrite and id):
        raise Refused(
            f"{records.disk}: was migrated to {last.destination} on {last.retired} "
            f"({records.name(Kind.MIGRATED)}), and a migration into it began "
            f"({records.name(Kind.INCOMPLETE)}), of which neither names the other: see "
            f"`{command_here('inspect', records)}`"
        )


def _read_received(records: Records, incomplete: Record) -> Record | None:
    """RECEIVED, beside an INCOMPLETE. One that is torn proves nothing of a copy that is whole,
    which yields to nobody but its own migration.

    @raise Refused: it cannot be read: what INCOMPLETE calls nobody's data may be complete.
    """
    try:
        return records.read(Kind.RECEIVED)
    except (BadRecord, OSError):
        if incomplete.phase == Phase.COPIED and incomplete.identified:
            return None
    return _read(records, Kind.RECEIVED)


def _settle(records: Records) -> Record | None:
    """INCOMPLETE; where a receiver has died between its last two acts, do the last: remove it."""
    incomplete = _read(records, Kind.INCOMPLETE)
    if incomplete is None or not is_complete(incomplete, _read_received(records, incomplete)):
        return incomplete
    try:
        records.sync()
        remove_mark_at(records.disk)
        records.remove(Kind.INCOMPLETE)
    except OSError as error:
        name = records.name(Kind.INCOMPLETE)
        raise Refused(f"{name}: cannot be removed: {describe_error(error)}") from None
    return None


def may_overwrite(disk: IRecordedDisk, record: Record | None) -> bool:
    """Whether the record alone permits overwriting what is on the disk.

    @param record: the one to continue from, if there is one.
    """
    if record is None:
        return False
    if not record.identity:
        return True
    same = is_about(record, disk.identity())
    if same is None and not is_device_identity(record.identity):
        # On a file system that reports no birth times the inode must do.
        return len({text.partition(",")[0] for text in (record.identity, disk.identity())}) == 1
    return same is True


def _may_be_disk_of(disk: IRecordedDisk, record: Record) -> bool:
    """Whether the disk may be the one that the record calls whole, if it does."""
    return record.phase != Phase.COPIED or (
        not disk.blank
        and disk.size == record.size
        and not (record.identity and is_about(record, disk.identity()) is False)
    )


def check_writable(records: Records, kind: Kind) -> None:
    """Check that a record of that kind can be kept.

    @raise Refused: it cannot.
    """
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
    size: int = 0,
    written: Callable[[], str] = lambda: "",
    unlink: bool = False,
    overwrite: bool = False,
    id: str = "",
) -> SourceState:
    """What a sender may do with this source.

    @param identity: the identity of the disk that is there; None where there is none.
    @param destination: the URI to send to.
    @param size: bytes of the disk that is there.
    @param written: finds out what is known of the last write to it; called only if that matters.
    @param unlink: the source is to be deleted.
    @param overwrite: disregard what was finished here before; with a new C{id} only.
    @param id: the id of the migration to send; "" for any.
    @raise AlreadyDone: it was sent already, and the destination was complete.
    @raise Refused: it may not be sent.
    """
    check_writable(records, Kind.MIGRATING)
    path, inspect = records.disk, command_here("inspect", records)
    _check_no_copy(records, identity)
    migrating = _read(records, Kind.MIGRATING)
    finished = _read_finished(records, overwrite and bool(id))
    command, went = (destination, id), finished.went
    if (
        went is not None
        and _is_another_migration(went, migrating)
        and not is_superseded(went, migrating)
    ):
        raise Refused(
            f"{path}: was migrated to {went.destination} on {went.retired} "
            f"({records.name(Kind.MIGRATED)}), and another migration of it began "
            f"({records.name(Kind.MIGRATING)}), of which neither names the other: see `{inspect}`"
        )
    retired = _retired(migrating, went, identity, records)
    if retired is not None:
        _check_finish(retired, identity, destination, unlink, path)
        if _has_another_id(retired, id):
            raise _must_be_finished(retired, path)
        return SourceState(retired, retired=True, finished=finished)
    if migrating is not None and identity is None:
        raise Refused(
            f"{path}: is gone, and blockmig did not delete it: its migration to "
            f"{migrating.destination} had not got that far; see `{inspect}`"
        )
    if (
        migrating is not None
        and identity is not None
        and _goes_on(migrating, identity, command)
        and not (went is not None and _is_of_the_first(went, migrating, identity, command))
    ):
        return SourceState(migrating, finished=finished)
    # It is about what was finished here, or about nothing that is known.
    if went is not None:
        there = _present(identity, size, went, written)
        unseen = check_migrated(
            records,
            finished,
            there,
            destination,
            unlink=unlink,
            overwrite=overwrite,
            id=id,
            begun=migrating is not None,
        )
        if unseen is not None:
            return SourceState(unseen, retired=True, finished=finished)
    elif migrating is None or id != migrating.id:
        check_unused(finished, id)
    if identity is None:
        raise Refused(f"{path}: no such file")
    if migrating is None:
        return SourceState(finished=finished)
    _check_may_be_given_up(migrating, identity, destination, records)
    return SourceState(instead_of=migrating.migration, finished=finished)


def _present(
    identity: str | None, size: int, migrated: Record, written: Callable[[], str]
) -> Present:
    """What is there, as far as it is compared with a MIGRATED."""
    if identity is None:
        return Present()
    return Present(size, identity, written() if migrated.written else "")


def _read_finished(records: Records, disregard: bool) -> Finished:
    """What is finished; C{disregard} passes over what cannot be understood.

    @raise Refused: it cannot be read.
    """
    try:
        return read_finished(records, disregard)
    except UntrustedRecord as error:
        raise _not_trusted(error, records) from None
    except BadRecord as error:
        raise Refused(
            f"{error}; see `{command_here('inspect', records)}`, or use overwrite=True with a new "
            "id=… to ignore it"
        ) from None
    except OSError as error:
        raise Refused(f"{error.filename or records.disk}: {describe_error(error)}") from None


def _check_no_copy(records: Records, identity: str | None) -> None:
    """Check that the source is no destination of an earlier migration.

    @param identity: of the disk that is there; None where there is none.
    """
    incomplete = _read(records, Kind.INCOMPLETE)
    if incomplete is None or is_complete(incomplete, _read_received(records, incomplete)):
        return
    another = identity is not None and is_about(incomplete, identity) is False
    what = "is another disk than the copy that" if another else "is a copy that"
    raise Refused(
        f"{records.disk}: {what} is not known to be complete "
        f"({records.name(Kind.INCOMPLETE)}): see `{command_here('inspect', records)}`"
    )


def _retired(
    migrating: Record | None, went: Record | None, identity: str | None, records: Records
) -> Record | None:
    """The migration that has retired the source, and is to be finished; None where there is none.

    @param went: MIGRATED, which may be of the one before C{migrating}.
    """
    if migrating is None:
        return None
    if went is not None and went.migration == migrating.migration:
        return migrating.but(retired=went.retired, confirmed=went.confirmed, written=went.written)
    return migrating if _deleted(migrating, identity, records) else None


def _goes_on(migrating: Record, identity: str, command: tuple[str, str]) -> bool:
    """Whether a migration that has not retired the source is the one that a command is about.

    @param command: the URI to send to, and the id; "" for any.
    """
    destination, id = command
    return (
        migrating.destination.address == destination
        and not _has_another_id(migrating, id)
        and not _is_of_another_file(migrating, identity)
    )


def _is_of_the_first(
    went: Record, migrating: Record, identity: str, command: tuple[str, str]
) -> bool:
    """Whether a command is the one that has retired the disk, run again, though the disk is sent
    again to the same place: that was begun with an id, and goes on with it."""
    destination, id = command
    return (
        not id
        and bool(migrating.id)
        and went.destination.address == destination
        and is_sent_again(went, migrating, identity)
    )


def _has_another_id(migrating: Record, id: str) -> bool:
    return bool(id) and migrating.id not in ("", id)


def _is_of_another_file(migrating: Record, identity: str) -> bool:
    return bool(migrating.identity) and is_about(migrating, identity) is False


def _must_be_finished(migrating: Record, path: str) -> Refused:
    return Refused(
        f"{path}: its migration {migrating.id} to {migrating.destination} must be finished "
        f"first: send it with id={migrating.id!r}"
    )


def _check_may_be_given_up(
    migrating: Record, identity: str, destination: str, records: Records
) -> None:
    """Check that another migration may begin instead: there must not be two whole copies."""
    if migrating.phase != Phase.COPIED and not migrating.whole:
        return
    path, there = records.disk, migrating.destination
    if _is_of_another_file(migrating, identity):
        raise Refused(
            f"{path}: is not the disk of which all was copied to {there}; "
            f"see `{command_here('inspect', records)}`; if that copy is not needed, move "
            f"{records.name(Kind.MIGRATING)} away to send this one"
        )
    if there.address != destination:
        raise Refused(
            f"{path}: all of it was copied to {there} and could be taken for the canonical copy "
            f"there: send it there, or delete that copy, and then {records.name(Kind.MIGRATING)}"
        )
    raise _must_be_finished(migrating, path)


def _is_another_migration(record: Record, other: Record | None) -> bool:
    return other is not None and record.migration != other.migration


def _deleted(migrating: Record, identity: str | None, records: Records) -> bool:
    """Whether the source was retired by deleting it."""
    if not (migrating.unlink and migrating.phase == Phase.COPIED):
        return False
    if identity is None:
        return True
    same = is_about(migrating, identity)
    if same is None:
        raise Refused(
            f"{records.disk}: may or may not be the file that was to be deleted after its "
            f"migration to {migrating.destination}, and that may be gone: see "
            f"`{command_here('inspect', records)}`"
        )
    return not same


def _check_finish(
    record: Record, identity: str | None, destination: str, unlink: bool, path: str
) -> None:
    if record.destination.address != destination:
        raise Refused(
            f"{path}: its migration to {record.destination} has retired it, and is not known to be "
            f"complete: {_way(record.destination.address)} to finish it"
        )
    if record.unlink and identity is not None:
        raise Refused(
            f"{path}: is not the file that was migrated to {record.destination} and deleted; move "
            "it away to finish that migration"
        )
    if unlink and not record.unlink:
        raise Refused(
            f"{path}: was migrated to {record.destination}, and is to be kept: "
            "finish that with unlink=False, then delete it"
        )


def _way(address: str) -> str:
    """What is to be done with a disk that is on its way to C{address}."""
    if address.startswith("ssh://"):
        return f"`blockmig move` it to {address}"
    return f"send to {address}"
