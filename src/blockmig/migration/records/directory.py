"""The disks of which there are records in a directory: beside them, or in the state directory.

It only looks. What is no record of ours by its name is passed over.
"""

from __future__ import annotations

import os

from ...errors import LocalFailure
from ...syscalls import SYSTEM, SystemCalls, describe_error
from .files import BadRecord, Kind, Location, Record, Records, this_host
from .finished import is_at


def recorded_disks(directory: str, system: SystemCalls = SYSTEM) -> list[str]:
    """The paths of the disks that have records in C{directory}, sorted; a disk may be gone.

    @raise LocalFailure: it cannot be read.
    """
    try:
        names = system.listdir(directory)
    except OSError as error:
        raise LocalFailure(f"{directory}: {describe_error(error)}") from None
    stems = {
        stem
        for name in names
        for stem, _, suffix in [name.rpartition(".")]
        if stem and suffix in set(Kind)
    }
    base = os.path.realpath(directory)
    return sorted(disk_of(Records(os.path.join(base, stem), system)) for stem in stems)


def disk_of(records: Records) -> str:
    """The path of the disk that records are of: a record says it, or they are beside the disk."""
    for kind in Kind:
        try:
            record = records.read(kind)
        except (BadRecord, OSError):
            continue
        if record is not None and is_at(records, own_end(kind, record)):
            return own_end(kind, record).disk
    return records.path


def own_end(kind: Kind, record: Record) -> Location:
    """The end of a migration that a record is beside, if that is this host; else nowhere."""
    leaves = kind in (Kind.MIGRATING, Kind.MIGRATED)
    location = record.source if leaves else record.destination
    return location if location.host == this_host() else Location()
