"""Records that a human has declared a copy the canonical one.

Owns DISK.ACCEPTED. Rules:

* only a copy that is whole and durable can be accepted, and the declaration is recorded before the
  mark of incompleteness is removed;
* that its source is not canonical proves nothing of a copy whose source was retired before and sent
  once more: of that, what is recorded there must name this very migration.
"""

from __future__ import annotations

import contextlib

from ...errors import LocalFailure, Refused
from ...storage import DiskRefused, open_disk
from ...syscalls import SYSTEM, SystemCalls, describe_error
from .files import BadRecord, Kind, Phase, Record, check_trusted, is_about, records_of
from .finished import is_complete
from .mark import remove_mark
from .verdict import check_layers


def accept(
    path: str,
    by: str,
    state_directory: str | None = None,
    system: SystemCalls = SYSTEM,
    retired_by: str = "",
) -> Record:
    """Declare the disk at C{path} the canonical copy.

    @param by: who declares it.
    @param state_directory: where the records of block devices are; None for the default.
    @param retired_by: the migration that has retired the source, as the record there says; needed
        only where another one had retired it before.
    @return: the record of it.
    @raise Refused: it cannot be accepted, and nothing was changed.
    @raise LocalFailure: the record could not be written.
    """
    try:
        if not system.exists(path):
            raise Refused(f"{path}: no such file")
    except OSError as error:
        raise Refused(f"{path}: {describe_error(error)}") from None
    try:
        disk = open_disk(path, state_directory=state_directory, system=system)
    except DiskRefused as error:
        raise Refused(str(error)) from None
    with disk:
        records = records_of(disk, system)
        received = None
        try:
            check_trusted(records)
            incomplete = records.read(Kind.INCOMPLETE)
            with contextlib.suppress(BadRecord):  # then it proves nothing
                received = records.read(Kind.RECEIVED)
        except BadRecord as error:
            raise Refused(str(error)) from None
        except OSError as error:
            name = records.name(Kind.INCOMPLETE)
            raise Refused(f"{name}: {describe_error(error)}") from None
        if is_complete(incomplete, received) or (incomplete is None and received is not None):
            raise Refused(
                f"{path}: its migration is complete ({records.name(Kind.RECEIVED)}): there is "
                "nothing to accept"
            )
        if incomplete is None:
            raise Refused(
                f"{path}: is not the destination of a migration: there is no "
                f"{records.name(Kind.INCOMPLETE)}"
            )
        if incomplete.phase != Phase.COPIED:
            raise Refused(
                f"{path}: is certainly not canonical: not all of it was received from "
                f"{incomplete.source}"
            )
        if incomplete.size != disk.size:
            raise Refused(f"{path}: has {disk.size} bytes, but {incomplete.size} were received")
        if incomplete.identity and is_about(incomplete, disk.identity()) is False:
            raise Refused(f"{path}: is not the disk that was received")
        _check_retired_by(incomplete, retired_by, path)
        check_layers(disk, system)
        try:
            accepted = records.write(Kind.ACCEPTED, incomplete.but(by=by))
            remove_mark(disk)
            records.remove(Kind.INCOMPLETE)
        except OSError as error:
            raise LocalFailure(
                f"{path}: could not be recorded as accepted: {describe_error(error)}"
            ) from None
    return accepted


def _check_retired_by(incomplete: Record, retired_by: str, path: str) -> None:
    """Check that it was this migration that has retired the source, where that was said, or where
    another one had."""
    source = incomplete.source
    if retired_by and retired_by != incomplete.migration:
        raise Refused(
            f"{path}: was not received by the migration {retired_by}: if that is the one that has "
            f"retired {source}, the canonical copy is where that went to"
        )
    if not retired_by and incomplete.sent_again and not incomplete.retired:
        raise Refused(
            f"{path}: its source, {source}, was retired before, and sent once more: that it is not "
            "canonical does not mean that this copy is. Look at its records there: if MIGRATED "
            f"says that it went to {incomplete.destination} (or if the disk is gone, and MIGRATING "
            "says that), give the migration that it names, retired_by=…. If not, the "
            "canonical copy is where MIGRATED says"
        )
