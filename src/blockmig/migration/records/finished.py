"""What is remembered of migrations that are finished: MIGRATED, RECEIVED and ACCEPTED.

Owns what these records have in common: which of them is the latest, which ids are used up, and
whether a command that is run again has been carried out already.

Rules (design, section 2: R11):

* a finished record may always stop a command; it makes one succeed only if everything that the
  command says, and the file that is there, are what it names, and the end was seen;
* a retired disk that was kept stays retired while it is sent once more, until it is retired anew:
  MIGRATED is replaced then, and not before;
* a retired disk that was kept, and written to since, is not what the record names;
* of two records the later one names the earlier one (C{follows}); a clock says nothing;
* an id is used once at a place: the last ones are remembered, whatever became of the disk;
* nothing here writes anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from ...errors import AlreadyDone, Refused
from ...storage import (
    DiskRefused,
    boot_id,
    is_device_identity,
    is_still_attached,
    record_path,
    same_disk,
)
from .advice import command_here, command_there, where
from .files import (
    BadRecord,
    Kind,
    Location,
    Phase,
    Record,
    Records,
    UntrustedRecord,
    is_about,
    this_host,
)

MOST_IDS: Final = 32
"""How many ids are remembered."""

FINISHED: Final = (Kind.MIGRATED, Kind.RECEIVED, Kind.ACCEPTED)


class Finished(NamedTuple):
    """The finished records of one disk.

    @ivar migrated: that it was migrated away.
    @ivar received: that it was received.
    @ivar accepted: that a received copy was declared canonical.
    @ivar ids_aside: ids that were used under its name, for devices whose records were set aside.
    """

    migrated: Record | None = None
    received: Record | None = None
    accepted: Record | None = None
    ids_aside: tuple[str, ...] = ()

    @property
    def arrived(self) -> Record | None:
        """How the disk came here."""
        return self.received or self.accepted

    @property
    def latest(self) -> Record | None:
        """The last of them; where none names the other, the one that says that the disk is gone."""
        migrated, arrived = self.migrated, self.arrived
        if migrated is None or (arrived is not None and arrived.follows == migrated.migration):
            return arrived
        return migrated

    @property
    def went(self) -> Record | None:
        """MIGRATED, unless the disk has come home since."""
        return self.migrated if self.latest is self.migrated else None

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids that are used up, the latest last."""
        last = self.latest
        records = [
            record for record in (self.accepted, self.received, self.migrated) if record is not None
        ]
        records.sort(key=lambda record: record is last)
        known = [*self.ids_aside]
        known += [one for record in records for one in (*record.ids, record.id) if one]
        # Each at the place where it comes last.
        return tuple(reversed(dict.fromkeys(reversed(known))))[-MOST_IDS:]

    def precede(self, record: Record) -> Record:
        """A new migration's record, with what was finished before it."""
        last = self.latest
        if last is None:
            return record.but(ids=self.ids) if self.ids else record
        if record.migration == last.migration:
            return record
        return record.but(follows=last.migration, ids=self.ids)


NOTHING_FINISHED: Final = Finished()


def read_finished(records: Records, disregard: bool = False) -> Finished:
    """Read what is finished.

    @param disregard: pass over what cannot be understood.
    @raise UntrustedRecord: what is there is not believed.
    @raise BadRecord: a record cannot be understood.
    @raise OSError: one cannot be read.
    """
    found: dict[Kind, Record | None] = {}
    for kind in FINISHED:
        try:
            found[kind] = records.read(kind)
        except BadRecord as error:
            if not disregard or isinstance(error, UntrustedRecord):
                raise
    aside = [one for other in records.aside() for one in _ids_of(other)]
    return finished_of(found)._replace(ids_aside=tuple(aside))


def _ids_of(records: Records) -> tuple[str, ...]:
    """The ids in records that were set aside, as far as they can be understood."""
    try:
        return read_finished(records, disregard=True).ids
    except UntrustedRecord:
        return ()


def finished_of(found: Mapping[Kind, Record | None]) -> Finished:
    """What is finished, by the records that were found."""
    migrated, received, accepted = (found.get(kind) for kind in FINISHED)
    return Finished(migrated, received, accepted)


def is_complete(incomplete: Record | None, received: Record | None) -> bool:
    """Whether a destination's records say together that its migration is complete."""
    return (
        incomplete is not None
        and received is not None
        and incomplete.migration == received.migration
    )


def is_superseded(migrated: Record, migrating: Record | None) -> bool:
    """Whether a MIGRATED does not count beside a MIGRATING, that of a later migration."""
    return (
        migrating is not None
        and migrating.migration != migrated.migration
        and (migrating.again or migrating.follows == migrated.migration)
    )


def is_sent_again(migrated: Record, migrating: Record | None, identity: str | None) -> bool:
    """Whether a MIGRATED still counts beside the MIGRATING of a later migration: it says of that
    very disk that it was retired, and kept; a human has it sent once more.

    It does until the disk is retired anew: also once the disk is gone, unless the later migration
    may have deleted it, or its copy is whole.

    @param identity: of the disk that is there; None where there is none.
    """
    if migrating is None or migrated.unlink or not is_superseded(migrated, migrating):
        return False
    if identity is not None:
        return is_about(migrated, identity) is not False
    same = same_disk(migrated.identity, migrated.boot, migrating.identity, migrating.boot)
    return same is not False and migrating.phase == Phase.COPYING


class Present(NamedTuple):
    """What is there now under the name of a disk.

    @ivar size: bytes; None where nothing is there.
    @ivar identity: of the file or device.
    @ivar written: what is known of the last write to it, as in records; "" where nothing is.
    """

    size: int | None = None
    identity: str = ""
    written: str = ""


def was_written(migrated: Record, present: Present) -> bool:
    """Whether a disk is certainly the one that was retired, and has been written to since.

    A device's counters say so only within one boot, as long as it is attached.
    """
    if migrated.unlink or not (migrated.written and present.written):
        return False
    if not is_about(migrated, present.identity):
        return False
    if is_device_identity(migrated.identity) and not is_still_attached(
        migrated.identity, migrated.boot, present.identity, boot_id()
    ):
        return False
    return migrated.written != present.written


def is_at(records: Records, location: Location) -> bool:
    """Whether these are the records of the disk at C{location}, seen from its host."""
    path = location.disk
    try:
        return path == records.path or (
            bool(path) and record_path(path, os.path.dirname(records.path)) == records.path
        )
    except DiskRefused:  # it cannot be examined
        return False


def check_received(
    records: Records,
    finished: Finished,
    present: Present,
    *,
    overwrite: bool = False,
    id: str = "",
) -> None:
    """Check, before anything else, whether a disk was received already that is to be received.

    To be called only where no migration is under way.

    @param finished: as read.
    @param overwrite: a human says that what was finished does not matter; with a new C{id} only.
    @param id: the id of the migration to receive; "" for any.
    @raise AlreadyDone: this very migration was received, into this very disk.
    @raise Refused: something else was finished here, and nothing says that it may be forgotten.
    """
    last = finished.latest
    if last is None:
        check_unused(finished, id)
        return
    is_new = bool(id) and id not in finished.ids
    if last is finished.received:
        what = f"was received from {last.source} on {last.confirmed}"
        kind, objection = Kind.RECEIVED, _why_not_here(records, last, last.destination, present)
        if not objection and id in ("", last.id):
            raise AlreadyDone(f"{records.disk}: {what}{_called(last)}: there is nothing to do")
    elif last is finished.migrated:
        what = f"was migrated to {last.destination} on {last.retired}"
        kind, objection = Kind.MIGRATED, ""
    elif present.size is None:
        check_unused(finished, id)
        return
    else:
        what = f"was declared canonical on {last.changed}"
        kind, objection = Kind.ACCEPTED, ""
    if is_new and overwrite:
        return
    if id != last.id:
        check_unused(finished, id)
    about = f", but {objection}" if objection else ""
    confirm = ["--i-have-checked-the-destination"] if kind == Kind.MIGRATED and present.size else []
    forget = command_here("forget", records, *confirm)
    raise Refused(
        f"{records.disk}: {what}{_called(last)}{about} ({records.name(kind)}); to receive into it "
        f"anyway, use overwrite=True with a new id=…; or, if that record is not needed: {forget}"
    )


def check_migrated(
    records: Records,
    finished: Finished,
    present: Present,
    destination: str,
    *,
    unlink: bool = False,
    overwrite: bool = False,
    id: str = "",
    begun: bool = False,
) -> Record | None:
    """Check whether a disk was migrated already that is to be sent.

    @param finished: as read; its MIGRATED counts.
    @param destination: the URI to send to.
    @param unlink: the disk is to be deleted.
    @param id: the id of the migration to send; "" for any.
    @param begun: the record of a later migration (MIGRATING) stands beside it.
    @return: the record of a migration of which the end was not seen, to be finished once more; None
        for a new migration.
    @raise AlreadyDone: this very migration of this very disk was finished.
    @raise Refused: another one was, and nothing says that it may be forgotten.
    """
    migrated = finished.migrated
    assert migrated is not None
    path = records.disk
    is_new = bool(id) and id not in finished.ids
    what = f"was migrated to {migrated.destination} on {migrated.retired}{_called(migrated)}"
    there = present.size is not None
    if was_written(migrated, present) and not (is_new and overwrite):
        if not is_new and id not in ("", migrated.id):
            check_unused(finished, id)
        raise Refused(_written_since(records, migrated, begun))
    if not is_new and id in ("", migrated.id):
        objection = _why_not_sent(records, migrated, present, destination, unlink)
        if not objection and migrated.confirmed:
            raise AlreadyDone(
                f"{path}: {what}, and was complete there on {migrated.confirmed}: there is nothing "
                "to do"
            )
        if not objection and (migrated.told or not migrated.side_export):
            return migrated
        objection = objection or "it was not seen to be complete there"
    else:
        check_unused(finished, id)
        is_another = migrated.unlink or is_about(migrated, present.identity) is False
        if there and (is_another or overwrite):
            return None
        objection = (
            "it is still that disk: to send it again all the same, use overwrite=True"
            if there
            else "nothing is there now"
        )
    new = "another disk can be sent with a new id=…; or" if there else "and"
    raise Refused(
        f"{path}: {what}, but {objection} ({records.name(Kind.MIGRATED)}); {new}, if that record "
        f"is not needed: {_how_to_forget(records, confirm=there, begun=begun)}"
    )


def _how_to_forget(records: Records, *, confirm: bool, begun: bool, quote: str = "") -> str:
    """The command that forgets what was finished; it is refused beside what has begun."""
    options = ["--i-have-checked-the-destination"] if confirm else []
    first = f"move {records.name(Kind.MIGRATING)} away, then " if begun else ""
    return f"{first}{quote}{command_here('forget', records, *options)}{quote}"


def _written_since(records: Records, migrated: Record, begun: bool) -> str:
    """What is said of a retired disk that was written to, whatever is asked for."""
    end, address = migrated.destination, ""
    if end.disk:
        address = f" ({where(end)} `{command_there('inspect', end)}`)"
    forget = _how_to_forget(records, confirm=True, begun=begun, quote="`")
    return (
        f"{records.disk}: was written after it went to {end} on {migrated.retired}: it is not the "
        f"copy that is there, nor the one that went there ({records.name(Kind.MIGRATED)}); to go "
        f"on with that copy{address}, delete this one; to send this one as it is now, use "
        f"overwrite=True with a new id=…; if it is a new disk, let blockmig forget the old one: "
        f"{forget}"
    )


def check_unused(finished: Finished, id: str) -> None:
    """Check that an id can be the one of a new migration here.

    @raise Refused: it was used.
    """
    if id and id in finished.ids:
        last = finished.latest
        own = last is not None and last.id == id
        when = f" on {last.confirmed or last.changed}" if own and last is not None else ""
        raise Refused(
            f"the migration {id} was finished here{when}, and an id is never used twice at a "
            "place: choose another id=…"
        )


def _called(record: Record) -> str:
    return f" (migration {record.id})" if record.id else ""


def _why_not_sent(
    records: Records, migrated: Record, present: Present, destination: str, unlink: bool
) -> str:
    """Why a command is not the one that MIGRATED is about; "" if it is."""
    if migrated.destination.address != destination:
        return f"this is to {destination or 'an address without a URI'}"
    if not destination and migrated.confirmed:
        return "the destination of neither has a URI to compare"
    if unlink and not migrated.unlink:
        return "it was kept: delete it yourself"
    if (elsewhere := _why_elsewhere(records, migrated.source)) or (
        migrated.unlink and present.size is None
    ):
        return elsewhere
    if migrated.unlink:
        return "another file has its name now"
    return _why_another(migrated, present)


def _why_not_here(records: Records, record: Record, location: Location, present: Present) -> str:
    """Why a record is not about the disk that is there; "" if it is."""
    if not record.confirmed:
        return "its end was not seen"
    return _why_elsewhere(records, location) or _why_another(record, present)


def _why_elsewhere(records: Records, location: Location) -> str:
    if location.host != this_host():
        return f"that was on {location.host}"
    if not is_at(records, location):
        return f"that was {location.disk}"
    return ""


def _why_another(record: Record, present: Present) -> str:
    if present.size is None:
        return "nothing is there now"
    if present.size != record.size:
        return f"it had {record.size} bytes then, and has {present.size} now"
    same = is_about(record, present.identity) if record.identity else None
    if same is None:
        return "nothing proves that it is still the same disk"
    return "" if same else "another disk has its name now"
