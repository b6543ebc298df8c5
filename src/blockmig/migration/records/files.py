"""The hand-off's records: files beside a disk that say whether it is the canonical copy.

Owns the files DISK.INCOMPLETE, DISK.MIGRATING, DISK.MIGRATED, DISK.RECEIVED and DISK.ACCEPTED,
their form, and how they are written durably. Their meaning is explained in docs/handoff.md; when
they are written is up to the sender and the receiver.

Rules (design, section 2: R2, R7):

* a record appears, changes and disappears atomically, and durably by the time the call returns: a
  temporary file is written and synced, renamed, and the directory synced;
* the temporary file has a fixed name, so that a crash leaves at most that one behind; the next
  write uses it up, and a removal deletes it;
* a record of an earlier version lacks fields that came later, which then have their defaults;
* what cannot be read as a record of ours (torn, foreign, or of a later version) is reported as such
  and never taken for one;
* nor is what somebody else has put there: a symbolic link, a FIFO, a file of another user
  (`storage.trusted`). A record has mode 0600, since it has the migration's UUID, which is a secret;
* what root records belongs to the owner of the directory, or they would be kept from their own
  disks; it is believed whoever the disk belongs to later, and once it is deleted;
* the calls block, and may be made from threads: a lock admits one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Self

from ...interfaces import IRecordedDisk
from ...storage import (
    ROOTS_DIRECTORY,
    BlockDisk,
    Untrusted,
    boot_id,
    decides_by_owner,
    is_aside,
    is_device_identity,
    open_trusted,
    paths_aside,
    record_path,
    same_disk,
    why_names_stay,
)
from ...syscalls import SYSTEM, SystemCalls, describe_error

VERSION: Final = 1
"""Of the form of the records."""

_LONGEST: Final = 65536
_TEMPORARY: Final = ".tmp"
_TRIED: Final = ".try"
"""Of a file that is only made to see whether one can be; no longer than the other."""
_NAMELESS: Final = os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_TMPFILE", os.O_DIRECTORY)
_NO_NAMELESS: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS, errno.EINVAL, errno.ENOENT)


class Kind(StrEnum):
    """The kinds of records; a kind is also the suffix of the file's name."""

    INCOMPLETE = "INCOMPLETE"
    """At a destination: this copy is not whole, or not yet known to be the canonical one."""
    MIGRATING = "MIGRATING"
    """At a source: a migration of it has begun, and is not known to be complete."""
    MIGRATED = "MIGRATED"
    """At a source: it is not the canonical copy any more; the tombstone of one that was deleted."""
    RECEIVED = "RECEIVED"
    """At a destination: a migration into it was completed."""
    ACCEPTED = "ACCEPTED"
    """At a destination: somebody declared it the canonical copy."""


class Phase(StrEnum):
    COPYING = "copying"
    """It is certainly not canonical."""
    COPIED = "copied"
    """Every byte is there and durable: it is canonical if and only if the source was retired."""


class BadRecord(Exception):
    """A record exists that cannot be used; the message says what is wrong with it.

    @ivar path: the file.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.path = path


class UntrustedRecord(BadRecord):
    """Something has the name of a record that nobody may have put there who has a say in it, or no
    file: nothing follows from it, and no option passes over it."""


@dataclass(frozen=True, slots=True)
class Location:
    """One end of a migration, as far as it is known.

    @ivar host: the machine's host name.
    @ivar disk: the absolute path of its disk.
    @ivar address: where the other end reached it: an NBD URI, or the address of a connection.
    @ivar state_directory: where that end keeps the records of a device, if not in the default
        place.
    """

    host: str = ""
    disk: str = ""
    address: str = ""
    state_directory: str = ""

    def __str__(self) -> str:
        end = f"{self.host}:{self.disk}" if self.disk else self.host
        if end and "://" in self.address:  # the port of a client says nothing to people
            return f"{end} ({self.address})"
        return end or self.address or "(unknown)"

    @property
    def in_full(self) -> str:
        """All that is known of it."""
        end = str(self)
        return end if self.address in end else f"{end} ({self.address})"


@dataclass(frozen=True, slots=True)
class Record:
    """One record. Times are UTC in ISO 8601; "" where something has not happened.

    @ivar migration: the migration's UUID.
    @ivar phase: how far the copy is.
    @ivar attempt: the number of the attempt, counted from 1.
    @ivar size: bytes of the disk.
    @ivar source: where the disk comes from.
    @ivar destination: where it goes to.
    @ivar began: when the migration began.
    @ivar changed: when the record was last written.
    @ivar identified: the sender gave the UUID; otherwise the receiver made it up, and the source
        knows nothing of it.
    @ivar unlink: the source is retired by deleting it.
    @ivar identity: of the disk's file (L{blockmig.interfaces.IRecordedDisk.identity}), at a
        destination once it is whole.
    @ivar whole: the destination may have a whole copy, though the source was not retired and is in
        use again (MIGRATING).
    @ivar again: the migration was begun with C{--again}, and the same command continues it.
    @ivar token: identifies the destination's disk; the destination gave it when it acknowledged
        that the source is retired (MIGRATING).
    @ivar side_export: the destination has the side export, through which it can be notified.
    @ivar retired: when the source was retired (MIGRATED), or when the destination was notified of
        it (INCOMPLETE).
    @ivar told: when the destination acknowledged that the source is retired (MIGRATING, MIGRATED).
    @ivar confirmed: when the destination's end of the migration was seen (MIGRATED).
    @ivar instead_of: UUID of a migration that had copied all of this disk to another place before a
        human had this one begin.
    @ivar by: who accepted the copy (ACCEPTED).
    @ivar id: what people call the migration; "" where its sender gave none.
    @ivar place: a UUID of the destination's disk, made with its first record.
    @ivar boot: the boot (L{boot_id}) in which C{identity} was seen.
    @ivar follows: UUID of the migration whose finished record this one replaced.
    @ivar ids: the ids of migrations that were finished here before, the latest last
        (MIGRATED, RECEIVED).
    @ivar written: what was known of the last write to a disk that is kept, when it was retired: of
        a file its size and time (ns), of a device its counters in that boot (MIGRATED).
    @ivar sent_again: the source was retired by an earlier migration, and kept, and is sent once
        more: that it is not canonical says nothing of this copy.
    @ivar successor: URI of the server to which clients are relayed once the disk is gone; "" where
        they are not (MIGRATING, MIGRATED).
    """

    migration: str
    phase: Phase
    attempt: int
    size: int
    source: Location
    destination: Location
    began: str
    changed: str = ""
    identified: bool = True
    unlink: bool = False
    identity: str = ""
    side_export: bool = False
    retired: str = ""
    told: str = ""
    confirmed: str = ""
    instead_of: str = ""
    by: str = ""
    whole: bool = False
    again: bool = False
    token: str = ""
    id: str = ""
    place: str = ""
    boot: str = ""
    follows: str = ""
    ids: tuple[str, ...] = ()
    written: str = ""
    sent_again: bool = False
    successor: str = ""

    def but(self, **changes: Any) -> Self:
        """A copy of the record with some fields changed."""
        return replace(self, **changes)

    def encode(self, kind: Kind) -> bytes:
        """The text of the record, which people read too."""
        text = {"blockmig": VERSION, "record": kind.value, **asdict(self)}
        return json.dumps(text, indent=2).encode() + b"\n"


_TYPES: Final = {field.name: field.type for field in fields(Record)}
_DEFAULTED: Final = {
    "id",
    "place",
    "boot",
    "follows",
    "ids",
    "written",
    "sent_again",
    "successor",
}
"""Fields that records of version 0.1 do not have."""


def decode_record(text: bytes, kind: Kind, path: str) -> Record:
    """Decode C{text}.

    @raise BadRecord: it is torn, foreign, or of a later version.
    """
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRecord(path, "is torn: its JSON is incomplete") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("blockmig"), int):
        raise BadRecord(path, "is not a blockmig record")
    if parsed["blockmig"] > VERSION:
        raise BadRecord(path, f"was written by a later version (format {parsed['blockmig']})")
    if parsed.get("record") != kind.value:
        raise BadRecord(path, f"is a record of another kind ({parsed.get('record')})")
    try:
        return _record(parsed)
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(path, f"is not a blockmig record: {error}") from None


def _record(parsed: dict[str, Any]) -> Record:
    values: dict[str, Any] = {}
    for name, kind in _TYPES.items():
        if name not in parsed and name in _DEFAULTED:
            continue
        value = parsed[name]
        if kind == "Location":
            value = Location(**value)
            if not all(isinstance(part, str) for part in asdict(value).values()):
                raise ValueError(f"{name} is not made of strings")
            if not all(map(is_possible_text, asdict(value).values())):
                raise ValueError(f"{name} is {asdict(value)!r}")
        elif kind == "Phase":
            value = Phase(value)
        elif kind == "tuple[str, ...]":
            if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
                raise ValueError(f"{name} is {value!r}")
            value = tuple(value)
        elif type(value).__name__ != kind or (kind == "str" and not is_possible_text(value)):
            raise ValueError(f"{name} is {value!r}")
        values[name] = value
    return Record(**values)


def is_possible_text(text: str) -> bool:
    """Whether the system has such texts: all of ours are names that it gave us, or made of them.

    In JSON there can be others, with which its calls raise ValueError.
    """
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def timestamp() -> str:
    """The current time, to the second: C{2026-11-23T02:59:59Z}."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def this_host() -> str:
    return os.uname().nodename


def boot_of(identity: str) -> str:
    """The C{boot} of a record that has C{identity}, which was seen just now."""
    return boot_id() if identity else ""


def is_about(record: Record, identity: str) -> bool | None:
    """Whether a record is about the disk that is there now; None where that cannot be decided.

    @param identity: of the disk that is there.
    """
    boot = boot_id() if is_device_identity(identity) else ""
    return same_disk(record.identity, record.boot, identity, boot)


def records_of(disk: IRecordedDisk, system: SystemCalls = SYSTEM) -> Records:
    """The records of a disk that is open."""
    if not isinstance(disk, BlockDisk):
        return Records(disk.record_path, system)
    # Who only looks has made no directory for them.
    return Records(
        disk.record_path,
        system,
        disk.given_path,
        to_be_made=not disk.exclusive,
        by_directory=decides_by_owner(disk.record_path, disk.state_directory),
    )


def records_at(
    path: str, state_directory: str | None = None, system: SystemCalls = SYSTEM
) -> Records:
    """The records of the disk at C{path}, which may be gone.

    @param state_directory: where the records of devices are; None for the default.
    @raise blockmig.storage.DiskRefused: C{path} cannot be examined.
    """
    found = record_path(path, state_directory, system)
    beside = found == os.path.realpath(path)
    if beside:
        return Records(found, system)
    by_directory = decides_by_owner(found, state_directory)
    return Records(found, system, os.path.abspath(path), by_directory=by_directory)


def read_all(records: Records) -> tuple[dict[Kind, Record], dict[Kind, BadRecord | OSError]]:
    """Read all records of a disk.

    @return: those that can be understood, and why others cannot.
    """
    good: dict[Kind, Record] = {}
    bad: dict[Kind, BadRecord | OSError] = {}
    for kind in Kind:
        try:
            record = records.read(kind)
        except (BadRecord, OSError) as error:
            bad[kind] = error
        else:
            if record is not None:
                good[kind] = record
    return good, bad


def check_trusted(records: Records) -> None:
    """Check that nothing has the name of a record that is not believed.

    @raise UntrustedRecord: something has.
    """
    for error in read_all(records)[1].values():
        if isinstance(error, UntrustedRecord):
            raise error


class Records:
    """The records of one disk.

    @param path: their names without the kind and the dot before it.
    @param system: the system calls to use.
    @param device: the path of the disk, if it is a device; the records of a file are beside it.
    @param to_be_made: their directory is made when the disk is opened to be migrated.
    @param by_directory: records count that belong to the owner of their directory.
    @ivar disk: the path of the disk.
    """

    def __init__(
        self,
        path: str,
        system: SystemCalls = SYSTEM,
        device: str = "",
        *,
        to_be_made: bool = False,
        by_directory: bool = True,
    ) -> None:
        self.path = path
        self._by_directory = by_directory
        self._to_be_made = to_be_made
        self.disk = device or path
        self._system = system
        self._lock = threading.Lock()

    @property
    def state_directory(self) -> str:
        """Where the records are, for a L{Location}: only of a device, and unless they are where
        root's are by default."""
        directory = os.path.dirname(self.path)
        return "" if self.disk == self.path or directory == ROOTS_DIRECTORY else directory

    def name(self, kind: Kind) -> str:
        """The path of the record of that kind."""
        return f"{self.path}.{kind.value}"

    def read(self, kind: Kind) -> Record | None:
        """The record of that kind; None where there is none.

        @raise UntrustedRecord: what is there is not believed.
        @raise BadRecord: it cannot be understood.
        @raise OSError: it cannot be read.
        """
        path = self.name(kind)
        try:
            descriptor = open_trusted(
                path, self.disk, self._system, by_directory=self._by_directory
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Untrusted as error:
            raise UntrustedRecord(path, str(error)) from None
        try:
            text = self._system.pread(descriptor, _LONGEST + 1, 0)
        finally:
            self._system.close(descriptor)
        if len(text) > _LONGEST:
            raise BadRecord(path, "is not a blockmig record: it is too long")
        return decode_record(text, kind, path)

    def exists(self, kind: Kind) -> bool:
        """Whether there is a record of that kind, be it unreadable.

        @raise OSError: that cannot be found out.
        """
        return self._system.exists(self.name(kind))

    def sync(self) -> None:
        """I{Slow.} Make durable which records exist now, and which are gone.

        A process may have died between an act and its fsync: what it removed could come back after
        a power failure, when somebody already relies on its being gone.

        @raise OSError: that failed.
        """
        with contextlib.suppress(FileNotFoundError):
            self._sync()

    @property
    def unmade(self) -> str:
        """Their directory, if that is yet to be made; "" if not.

        @raise OSError: that cannot be found out.
        """
        return os.path.dirname(self.path) if self._made_in() else ""

    def _made_in(self) -> str:
        """The directory in which their own would be made, with those above it."""
        directory = os.path.dirname(self.path)
        if not self._to_be_made or self._system.exists(directory):
            return ""
        while not self._system.exists(directory):
            directory = os.path.dirname(directory)
        return directory

    def check_writable(self) -> None:
        """Check that records can be written here at all.

        @raise OSError: they cannot.
        """
        directory = self._made_in() or os.path.dirname(self.path)
        try:
            is_directory = stat.S_ISDIR(self._system.stat(directory).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            if not self._system.exists(directory):
                raise FileNotFoundError(
                    errno.ENOENT, "there is no such directory", directory
                ) from None
            is_directory = False  # a link that leads nowhere
        if not is_directory:
            raise NotADirectoryError(errno.ENOTDIR, f"{directory} is no directory", directory)
        if os.statvfs(directory).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), directory)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission to write there", directory)
        if why := why_names_stay(directory, self._system):
            # What is written would stay under its temporary name.
            raise PermissionError(errno.EPERM, why, directory)
        longest = len(os.fsencode(os.path.basename(self.name(Kind.INCOMPLETE) + _TEMPORARY)))
        if longest > os.pathconf(directory, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, "the name is too long to append .INCOMPLETE to it")
        self._make_and_remove(directory)

    def _make_and_remove(self, directory: str) -> None:
        """Make a file here: not every file system can, whatever access(2) says.

        Without a name where that is possible, since nothing is to be touched.
        """
        try:
            self._system.close(self._system.open(directory, _NAMELESS, 0o600))
        except OSError as error:
            if error.errno not in _NO_NAMELESS:
                raise
            # Not the name of a record that the process whose disk it is may be writing now.
            name = os.path.basename(self.name(Kind.INCOMPLETE)) + _TRIED
            path = os.path.join(directory, name)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with contextlib.suppress(FileExistsError):  # of another check, which may have died
                self._system.close(self._system.open(path, flags, 0o600))
            with contextlib.suppress(FileNotFoundError):
                self._system.unlink(path)

    def write(
        self, kind: Kind, record: Record, check: Callable[[], object] = lambda: None
    ) -> Record:
        """I{Slow.} Write a record durably, in place of the one of its kind.

        @param check: called last before the record appears; if it raises, the record does not
            appear.
        @return: the record as written.
        @raise OSError: the record may or may not have appeared, durably or not.
        """
        record = record.but(changed=timestamp())
        text = record.encode(kind)
        path = self.name(kind)
        with self._lock:
            try:
                self._write_temporary(path + _TEMPORARY, text)
                check()
                self._system.rename(path + _TEMPORARY, path)
                self._sync()
            except Exception as error:
                with contextlib.suppress(OSError):
                    self._system.unlink(path + _TEMPORARY)
                if not isinstance(error, OSError):
                    raise
                raise OSError(error.errno, f"{path}: {describe_error(error)}") from None
        return record

    def _write_temporary(self, path: str, text: bytes) -> None:
        """Follow no link and open no file that is already there."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = self._system.open(path, flags, 0o600)
        except FileExistsError:
            self._system.unlink(path)
            descriptor = self._system.open(path, flags, 0o600)
        try:
            self._hand_over(descriptor)
            view, offset = memoryview(text), 0
            while offset < len(text):
                offset += self._system.pwrite(descriptor, view[offset:], offset)
            self._system.fsync(descriptor)
        finally:
            self._system.close(descriptor)

    def _hand_over(self, descriptor: int) -> None:
        """Give a new record beside a disk to the owner of its directory, who may remove it anyway;
        a device's is root's.

        Not to the owner of the disk, whose record would not be believed any more once the disk is
        deleted, or is given to somebody else.
        """
        if self.disk != self.path or self._system.geteuid() != 0:
            return
        with contextlib.suppress(OSError):  # it stays root's, who made it
            if (owner := self._system.stat(os.path.dirname(self.disk)).st_uid) != 0:
                self._system.fchown(descriptor, owner, -1)

    def remove(self, *kinds: Kind) -> None:
        """I{Slow.} Remove records, durably; harmless where there are none.

        @raise OSError: they may still be there, or come back after a power failure.
        """
        with self._lock:
            for kind in kinds:
                for path in (self.name(kind), self.name(kind) + _TEMPORARY):
                    with contextlib.suppress(FileNotFoundError):
                        self._system.unlink(path)
            self._sync()

    def remove_existing(self, *kinds: Kind) -> None:
        """I{Slow.} As L{remove}, but costs nothing where there is nothing to remove.

        @raise OSError: they may still be there; also where that cannot be found out.
        """
        existing = [kind for kind in kinds if self.exists(kind)]
        if existing:
            self.remove(*existing)

    @property
    def set_aside(self) -> bool:
        """Whether they are a device's that had to give way to another one of its name."""
        return self.disk != self.path and is_aside(self.path)

    def aside(self) -> list[Records]:
        """Those of other devices, which were set aside from this name."""
        device = self.disk != self.path
        return [self.at(path) for path in paths_aside(self.path, self._system)] if device else []

    def at(self, path: str) -> Records:
        """The records of the same disk whose paths begin with C{path}."""
        return Records(path, self._system, self.disk, by_directory=self._by_directory)

    def move(self, kind: Kind, other: Records) -> None:
        """I{Slow.} Give a record another name in the same directory, durably.

        It may have it already: somebody else has done that meanwhile.

        @raise OSError: it may have either.
        """
        with self._lock:
            with contextlib.suppress(FileNotFoundError):
                self._system.rename(self.name(kind), other.name(kind))
            self._sync()

    def _sync(self) -> None:
        self._system.sync_directory(os.path.dirname(self.path))
