"""A mark on a file that has a record, which goes with the file when somebody renames or moves it.

Owns the extended attributes C{user.blockmig.migrated}, of a source that was retired and kept, and
C{user.blockmig.incomplete}, of a destination until its migration is complete. The record stays
behind when its file gets another name; the mark does not.

Rules (design, section 2: R1, R2, R10):

* the record decides, never the mark: a mark is set after its record, as far as the file system
  allows, and nothing fails without it;
* where there is a record beside the file, the mark does not count;
* a mark is gone, durably, before its record is removed because a migration is complete, or because
  a copy was accepted; and before a disk is received into a retired source.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Final

from ...interfaces import IDisk
from ...storage import held_descriptor, is_device_identity, same_disk
from .files import Kind, Location, Record, is_possible_text

ATTRIBUTES: Final = {
    Kind.MIGRATED: "user.blockmig.migrated",
    Kind.INCOMPLETE: "user.blockmig.incomplete",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """What a mark says.

    @ivar kind: of the record that the file had.
    @ivar migration: the migration's UUID.
    @ivar disk: the path that the file had then.
    @ivar identity: of that file.
    @ivar other: the other end of the migration.
    @ivar retired: when the source was retired (MIGRATED).
    """

    kind: Kind
    migration: str
    disk: str
    identity: str
    other: Location
    retired: str

    def is_on(self, identity: str) -> bool:
        """Whether it is still on the file that it was set on, and not on a copy of that."""
        return same_disk(self.identity, "", identity, "") is not False


def set_mark(disk: IDisk, kind: Kind, record: Record) -> None:
    """I{Slow.} Mark a disk that has a record of that kind now; only a file, and if possible."""
    if not record.identity or is_device_identity(record.identity):
        return
    own, other = record.source, record.destination
    if kind == Kind.INCOMPLETE:
        own, other = other, own
    mark = Mark(kind, record.migration, own.disk, record.identity, other, record.retired)
    with contextlib.suppress(OSError, AttributeError), held_descriptor(disk) as descriptor:
        os.setxattr(descriptor, ATTRIBUTES[kind], json.dumps(asdict(mark)).encode())


def remove_mark(disk: IDisk) -> None:
    """I{Slow.} Remove all marks, durably; only as far as possible."""
    with contextlib.suppress(OSError), held_descriptor(disk) as descriptor:
        _remove(descriptor)


def mark_at(path: str) -> Mark | None:
    """The mark on the file at C{path}; None also where that may not be opened.

    @raise OSError: the medium has failed.
    """
    try:
        with _opened(path) as descriptor:
            return read_mark(descriptor)
    except OSError as error:
        if error.errno == errno.EIO:
            raise
        return None


def remove_mark_at(path: str) -> None:
    """I{Slow.} Remove all marks of the file at C{path}, durably; only as far as possible."""
    with contextlib.suppress(OSError), _opened(path) as descriptor:
        _remove(descriptor)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove(descriptor: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        found = [name for name in ATTRIBUTES.values() if name in os.listxattr(descriptor)]
        for name in found:
            os.removexattr(descriptor, name)
        if found:
            os.fsync(descriptor)


def read_mark(descriptor: int) -> Mark | None:
    """The mark on an open file; None where there is none that can be understood, or there can be
    none.

    @raise OSError: the medium has failed (EIO), so that it is not known.
    """
    marks = (_read(descriptor, kind) for kind in (Kind.INCOMPLETE, Kind.MIGRATED))
    return next((mark for mark in marks if mark is not None), None)


def _read(descriptor: int, kind: Kind) -> Mark | None:
    try:
        found = json.loads(os.getxattr(descriptor, ATTRIBUTES[kind]))
        other = {field.name: found["other"][field.name] for field in fields(Location)}
        values = {field.name: found[field.name] for field in fields(Mark)}
        mark = Mark(**{**values, "kind": kind, "other": Location(**other)})
    except OSError as error:
        if error.errno == errno.EIO:
            raise
        return None
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = [*other.values(), mark.migration, mark.disk, mark.identity, mark.retired]
    return mark if all(isinstance(text, str) and is_possible_text(text) for text in texts) else None
