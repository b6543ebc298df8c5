"""A mark on the file of a source that was retired and kept, which goes with it wherever it goes.

Owns the extended attribute C{user.blockmig.migrated}. The record DISK.MIGRATED stays behind when
somebody renames or moves the file; the mark does not.

Rules (design, section 2: R1, R10):

* the record retires a source, never the mark: that is set after it, as far as the file system
  allows, and nothing fails without it;
* a record beside a file says more than a mark on it;
* what is received into a file, or accepted, takes the mark away.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, fields
from typing import Final

from ...interfaces import IDisk
from ...storage import is_device_identity, same_disk
from .files import Location, Record

ATTRIBUTE: Final = "user.blockmig.migrated"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a mark says: which migration has retired the file that it was set on.

    @ivar migration: the migration's UUID.
    @ivar disk: the path that the file had then.
    @ivar identity: of that file.
    @ivar destination: where it went.
    @ivar retired: when.
    """

    migration: str
    disk: str
    identity: str
    destination: Location
    retired: str

    def is_on(self, identity: str) -> bool:
        """Whether it is still on the file that it was set on, and not on a copy of that."""
        return same_disk(self.identity, "", identity, "") is not False


def set_mark(disk: IDisk, record: Record) -> None:
    """I{Slow.} Mark a source that was retired; only if it is a file, and as far as possible.

    @param record: its MIGRATED.
    """
    if not record.identity or is_device_identity(record.identity):
        return
    mark = Mark(
        record.migration, record.source.disk, record.identity, record.destination, record.retired
    )
    with contextlib.suppress(OSError, AttributeError):
        if (descriptor := disk.fileno()) is not None:
            os.setxattr(descriptor, ATTRIBUTE, json.dumps(asdict(mark)).encode())


def remove_mark(disk: IDisk) -> None:
    """I{Slow.} Remove the mark, if there is one."""
    with contextlib.suppress(OSError, AttributeError):
        if (descriptor := disk.fileno()) is not None and read_mark(descriptor) is not None:
            os.removexattr(descriptor, ATTRIBUTE)
            os.fsync(descriptor)


def read_mark(descriptor: int) -> Mark | None:
    """The mark on an open file; None where there is none that can be understood."""
    try:
        found = json.loads(os.getxattr(descriptor, ATTRIBUTE))
        values = {field.name: found[field.name] for field in fields(Mark)}
        values["destination"] = Location(
            **{field.name: values["destination"][field.name] for field in fields(Location)}
        )
        mark = Mark(**values)
    except (OSError, AttributeError, ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = [*asdict(mark.destination).values(), mark.migration, mark.disk, mark.identity]
    return mark if all(isinstance(text, str) for text in (*texts, mark.retired)) else None
