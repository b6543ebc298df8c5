"""What a migration needs of its source before it begins: its record, and how it will be retired.

Owns the checks of a source that is there: all that refuses it before a destination is looked for.
Nothing is changed, so that whoever only wants to know can ask as well.
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import Refused
from ...interfaces import IDisk, IRecordedDisk
from ...storage import path_of
from ...syscalls import SystemCalls
from ..disk import failing_locally
from ..policy import Overrides
from ..records.files import records_of
from ..records.permitted import SourceState, source_state
from ..records.verdict import check_data, check_layers
from .record import SourceRecord
from .retirement import DeletingRetirement, Retirement, unlinkable
from .watch import SourceWatch, last_write


class PreparedSource(NamedTuple):
    """A source that may be sent.

    @ivar record: what is recorded of its migration, or would be.
    @ivar retirement: how it will be retired.
    """

    record: SourceRecord
    retirement: Retirement


def prepare_source(
    disk: IDisk,
    destination: str,
    *,
    unlink: bool,
    overrides: Overrides,
    in_use: bool = False,
    id: str = "",
    successor: str = "",
    system: SystemCalls,
) -> PreparedSource:
    """Prepare to send C{disk}.

    @param destination: the URI that it goes to.
    @param unlink: it will be deleted.
    @param in_use: clients of our own server use it.
    @param id: what people call the migration; "" where one is to be made up.
    @param successor: URI of the server to which clients are relayed; "" where they are not.
    @raise blockmig.errors.AlreadyDone: this very migration was completed before.
    @raise Refused: it cannot be deleted, or the records forbid to send it.
    @raise blockmig.errors.LocalFailure: it failed.
    """
    to_delete = unlinkable(disk) if unlink else None
    with failing_locally(disk):
        record = _permitted_record(
            disk,
            destination,
            unlink=unlink,
            overwrite=overrides.overwrite,
            id=id,
            successor=successor,
            system=system,
        )
    watch = SourceWatch(
        disk,
        identity=record.record.identity,
        in_use=in_use,
        ignore_writers=overrides.in_use_anyway,
        system=system,
    )
    if to_delete is not None:
        return PreparedSource(record, DeletingRetirement(to_delete, record, watch, in_use=in_use))
    return PreparedSource(record, Retirement(disk, record, watch, in_use=in_use))


def _permitted_record(
    disk: IDisk,
    destination: str,
    *,
    unlink: bool,
    overwrite: bool,
    id: str,
    successor: str,
    system: SystemCalls,
) -> SourceRecord:
    """The record of the source, if it may be sent."""
    if not IRecordedDisk.providedBy(disk):
        records, state, identity = None, SourceState(), ""
    else:
        records, identity = records_of(disk, system), disk.identity()
        state = source_state(
            records,
            identity,
            destination,
            size=disk.size,
            written=lambda: last_write(disk),
            unlink=unlink,
            overwrite=overwrite,
            id=id,
        )
        if not overwrite:
            if state.record is None:
                check_data(disk, "overwrite=True", system)
            else:
                check_layers(disk, system)
        if state.retired:
            raise Refused(f"{disk.name}: is retired, and its migration can only be finished")
    return SourceRecord(
        records,
        state,
        disk=path_of(disk),
        destination=destination,
        size=disk.size,
        unlink=unlink,
        identity=identity,
        id=id,
        successor=successor,
    )
