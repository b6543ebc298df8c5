"""Somebody else at the files, and how things stood when they did something."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from blockmig.migration.records.files import BadRecord, Kind, Phase, Record
from tests.proof.exchanged.acts import CUTS, DESTROYS, NAMES, Case
from tests.proof.matrix.plays import SIZE, Wrong
from tests.proof.matrix.room import Room, right_digest
from tests.support.disks import digest


@cache
def another_disk() -> bytes:
    return random.Random(11).randbytes(SIZE)


@cache
def foreign_digest() -> str:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        path = Path(directory) / "disk"
        path.write_bytes(another_disk())
        return digest(path)


def _replace(path: Path) -> None:
    new = path.parent.parent / "another"
    new.write_bytes(another_disk())
    new.rename(path)


def _write(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    byte = os.pread(descriptor, 1, 100)
    os.pwrite(descriptor, bytes([byte[0] ^ 0xFF]) if byte else b"\x01", 100)
    os.close(descriptor)


def _touch(path: Path) -> None:
    status = path.stat()
    os.chown(path, status.st_uid, status.st_gid)


_DOING: Final[dict[str, Callable[[Path], None]]] = {
    "delete": Path.unlink,
    "rename": lambda path: os.rename(path, f"{path}-moved"),
    "replace": _replace,
    "cut": lambda path: os.truncate(path, 0),
    "halve": lambda path: os.truncate(path, SIZE // 2),
    "grow": lambda path: os.truncate(path, SIZE + 4096),
    "write": _write,
    "touch": _touch,
}


def digest_of(path: Path) -> str:
    return digest(path) if path.is_file() else ""


def record_of(room: Room, side: str, kind: Kind) -> Record | None:
    try:
        return room.records(side).read(kind)
    except BadRecord:
        raise Wrong(f"{room.records(side).name(kind)} is torn") from None


class ThirdParty:
    """What somebody else has done, and how things stood in that instant.

    @ivar did: there was something to do it to.
    @ivar retired: the source was retired before.
    @ivar copied: the destination's record said that its copy is whole.
    @ivar complete: its record said that it is complete, and it had a whole copy.
    @ivar may_delete: the sender's record said that it may delete the source.
    @ivar recorded: which places had records.
    @ivar needed: the digest of the disk, as it was last.
    """

    def __init__(self, room: Room, case: Case) -> None:
        self.case = case
        path = room.source if case.place == "source" else room.destination
        incomplete = record_of(room, "receiver", Kind.INCOMPLETE)
        whole = digest_of(room.destination) == right_digest()
        migrating = record_of(room, "sender", Kind.MIGRATING)
        self.may_delete = migrating is not None and migrating.phase == Phase.COPIED
        self.retired = room.retired()
        self.copied = whole and incomplete is not None and incomplete.phase == Phase.COPIED
        received = record_of(room, "receiver", Kind.RECEIVED)
        self.complete = whole and received is not None
        self.recorded = {
            "source": any(
                record_of(room, "sender", kind) is not None
                for kind in (Kind.MIGRATING, Kind.MIGRATED)
            ),
            "destination": incomplete is not None or received is not None,
        }
        self.did = path.exists() or case.act == "replace"
        before = path.stat() if path.exists() else None
        if self.did:
            _DOING[case.act](path)
        after = path.stat() if path.exists() else None
        if case.act == "write" and before and after and before.st_mtime_ns == after.st_mtime_ns:
            raise Wrong("the clock of the file system stands still")
        self.needed = right_digest()
        if case.place == "source" and case.act in ("write", "grow") and not self.retired:
            self.needed = digest_of(path)

    @property
    def took_the_name(self) -> bool:
        """Whether the source has lost its name by this."""
        return self.case.place == "source" and self.case.act in NAMES and not self.retired

    def destroyed_it(self) -> bool:
        """Whether the third party may itself have destroyed the only copy that there was.

        Either the source, when the destination's copy was not whole; or the destination's copy,
        when the source was retired, or could be at any moment. There what only lost its name is
        lost only if the receiver, which could have saved it, is killed, or has ended.
        """
        case = self.case
        if case.act not in DESTROYS:
            return False
        if case.place == "source":
            return not (self.copied or self.complete)
        if not (self.retired or self.copied or self.complete):
            return False
        receiver_dies = case.side == "receiver" and case.dies is not None
        return case.act in CUTS or receiver_dies or self.complete
