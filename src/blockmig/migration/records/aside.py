"""Sets records aside that are about another device than the one that has their name now.

Owns when a record gives way, and in which order. A name in /dev goes to another disk at any time;
the first one may come back, under whichever name, and is to be known then as what it is: retired,
or half a copy.

Rules (design, section 2: R7, R10, R11):

* only what is certainly about another device is set aside, and nothing is lost by it: the records
  are renamed, and found by their device (`storage.record_paths`);
* what counts least goes first, so that what is left under the name is right at each moment;
* all records of one device go to one name. Where that was interrupted, whoever looks for records
  next finishes it (`storage.record_paths`), so that they are read together or not at all;
* the ids that were used under a name stay used there (`finished`).

Files need none of this: their records are beside their name, and a file that was renamed is known
by its mark.
"""

from __future__ import annotations

from ...storage import aside_path, is_device_identity, same_disk
from .files import Kind, Record, Records, is_about, read_all
from .finished import FINISHED, finished_of


def is_about_another(record: Record, identity: str) -> bool:
    """Whether a record is certainly about another device than the one with that identity."""
    devices = is_device_identity(record.identity) and is_device_identity(identity)
    return devices and is_about(record, identity) is False


def records_of_another(records: Records, identity: str) -> dict[Kind, Record]:
    """The records under a device's name that are certainly about another device.

    @param identity: of the device.
    @raise OSError: they cannot be read.
    """
    if not is_device_identity(identity):
        return {}
    found = _understood(records)
    return {kind: found[kind] for kind in found if is_about_another(found[kind], identity)}


def set_aside(records: Records, identity: str) -> Records | None:
    """I{Slow.} Set aside, durably, what is about another device than the one that is there now.

    @param identity: of the device that is there.
    @return: the records where they are now; None if there was nothing to set aside.
    @raise OSError: some may not be set aside.
    """
    found = records_of_another(records, identity)
    if not found:
        return None
    kinds = _least_first(found)
    last = found[kinds[-1]]
    there = _earlier(records, last) or records.at(aside_path(records.path, last.migration))
    for kind in kinds:
        records.move(kind, there)
    return there


def _least_first(found: dict[Kind, Record]) -> list[Kind]:
    """The kinds, in the order in which they can go: the one that decides goes last."""
    finished = finished_of(found)
    last = [kind for kind in FINISHED if found.get(kind) is finished.latest]
    order = [
        *(kind for kind in FINISHED if kind not in last),
        # Of a disk that is gone MIGRATED decides, otherwise what has begun since it came.
        *((Kind.MIGRATING, *last) if finished.went is not None else (*last, Kind.MIGRATING)),
        Kind.INCOMPLETE,
    ]
    return [kind for kind in order if kind in found]


def _earlier(records: Records, record: Record) -> Records | None:
    """Where other records of the same device were set aside before, under the same name."""
    for other in records.aside():
        for found in _understood(other).values():
            if same_disk(found.identity, found.boot, record.identity, record.boot):
                return other
    return None


def _understood(records: Records) -> dict[Kind, Record]:
    """The records that can be understood; of others nothing is known.

    @raise OSError: one cannot be read.
    """
    good, bad = read_all(records)
    for error in bad.values():
        if isinstance(error, OSError):
            raise error
    return good
