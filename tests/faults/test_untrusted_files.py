"""What others put at the names of records: no command follows it, believes it, or waits for it.

Every command meets everything that may be there, in the place of each kind of record.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.processes import BLOCKMIG, FULL, Processes, Running

from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.storage import FileDisk

STRANGER = 54321
SIZE = 1 << 20


def record(path: Path, **changes: object) -> Record:
    """One that would be believed: of the disk at C{path}, which came here and went on."""
    here = Location(socket.gethostname(), str(path), "nbd://127.0.0.1:1/")
    with FileDisk(str(path)) as disk:
        identity = disk.identity()
    done = "2026-11-01T00:00:00Z"
    made = Record(
        migration="0b0e1a5c-7f2a-4d0e-9a55-6f2f7c1f0d11",
        phase=Phase.COPIED,
        attempt=1,
        size=SIZE,
        source=here,
        destination=here,
        began=done,
        identity=identity,
        retired=done,
        told=done,
        confirmed=done,
        id="web-7",
    )
    return made.but(**changes)


def link(path: Path, disk: Path, kind: Kind) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.mkdir()
    made = Records(str(elsewhere / "disk"))
    made.write(kind, record(disk))
    path.symlink_to(made.name(kind))


def of_a_stranger(path: Path, disk: Path, kind: Kind) -> None:
    Records(str(disk)).write(kind, record(disk))
    os.chown(path, STRANGER, STRANGER)


def huge(path: Path, *_: object) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


SHAPES: dict[str, tuple[Callable[[Path, Path, Kind], object], str]] = {
    "link": (link, "symbolic link"),
    "dangling link": (lambda path, *_: path.symlink_to("nowhere"), "symbolic link"),
    "FIFO": (lambda path, *_: os.mkfifo(path), "FIFO"),
    "directory": (lambda path, *_: path.mkdir(), "directory"),
    "device": (lambda path, *_: os.mknod(path, 0o20666, os.makedev(1, 5)), "device"),
    "file of a stranger": (of_a_stranger, f"belongs to the user {STRANGER}"),
    "unreadable file": (of_a_stranger, "Permission denied"),
    "huge file": (huge, "too long"),
}

UNFINISHED = (Kind.INCOMPLETE, Kind.MIGRATING)
FINISHED = (Kind.MIGRATED, Kind.RECEIVED, Kind.ACCEPTED)
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
NOWHERE = "nbd+unix:///?socket=/nowhere/at/all"
COMMANDS: dict[str, tuple[str, ...]] = {
    "receive": ("receive", "--overwrite", "--id", "new", "DISK", "--listen", "unix:listening"),
    "send": ("send", "DISK", NOWHERE, "--give-up-after", "5"),
    "send anew": ("send", "--overwrite", "--id", "new", "DISK", NOWHERE, "--give-up-after", "5"),
    "serve": ("serve", "DISK", "--listen", "unix:listening"),
    "inspect": ("inspect", "DISK"),
    "forget": ("forget", "DISK", "--i-have-checked-the-destination"),
    "accept": ("accept", "DISK", "--i-have-checked-the-source"),
    "check": ("check", "DISK", NOWHERE),
}


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    """All that is there, but for what reading changes."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.name.startswith("process-"):
            continue
        status = path.lstat()
        text = path.read_bytes() if path.is_file() and status.st_size < SIZE * 2 else b""
        where = os.readlink(path) if path.is_symlink() else ""
        facts = (status.st_ino, status.st_mode, status.st_uid, status.st_mtime_ns, where, text)
        found[str(path)] = facts
    return found


def prepare(room: Path, command: str, kind: Kind, shape: str) -> Path:
    """A directory with a disk, and what is to be met."""
    place = room / command.replace(" ", "-")
    beside = place / "beside"
    beside.mkdir(parents=True)
    disk = beside / "disk"
    disk.write_bytes(os.urandom(SIZE))
    if command == "accept" and kind != Kind.INCOMPLETE:
        Records(str(disk)).write(Kind.INCOMPLETE, record(disk, retired="", confirmed=""))
    SHAPES[shape][0](beside / f"disk.{kind}", disk, kind)
    return disk


def expected(command: str, kind: Kind, shape: str) -> int | None:
    """The exit status; None where the command goes on, since it does not go by that record."""
    proves_nothing = kind in (Kind.RECEIVED, Kind.ACCEPTED)
    if command == "inspect":
        return 5  # of the disk, alone with that record, nothing is certain
    if command == "serve" and proves_nothing:
        return None
    if shape == "huge file" and kind in FINISHED and command in ("receive", "send anew", "forget"):
        return None  # it is ours, and may be passed over, or removed
    if shape in ("huge file", "unreadable file") and command == "accept":
        return 1 if kind == Kind.INCOMPLETE else None  # the others do not speak against it
    return 1


BOTH = (("link", Kind.MIGRATED), ("link", Kind.RECEIVED))
CELLS = [
    (shape, kind)
    for shape in SHAPES
    for kind in Kind
    if FULL or kind == list(Kind)[len(shape) % len(Kind)] or (shape, kind) in BOTH
]


@pytest.mark.parametrize(("shape", "kind"), CELLS, ids=[f"{s}-{k}" for s, k in CELLS])
def test_what_is_no_record_of_ours_is_neither_followed_nor_believed(
    processes: Processes, room: Path, shape: str, kind: Kind
) -> None:
    started: dict[str, tuple[Running, Path, dict[str, tuple[object, ...]]]] = {}
    for command, words in COMMANDS.items():
        if expected(command, kind, shape) is None:
            continue
        disk = prepare(room, command, kind, shape)
        before = snapshot(disk.parent.parent)
        arguments = [str(disk) if word == "DISK" else word for word in words]
        prefix = WITHOUT_PRIVILEGES if shape == "unreadable file" else ()
        running = processes.start(BLOCKMIG, *arguments, prefix=prefix)
        started[command] = (running, disk, before)
    for command, (running, disk, before) in started.items():
        status = running.wait(60)
        said = running.stdout + running.stderr
        assert status == expected(command, kind, shape), f"{command}: {said}"
        assert snapshot(disk.parent.parent) == before, f"{command}: {said}"
        if command != "forget" or kind not in UNFINISHED:
            assert SHAPES[shape][1] in said, f"{command}: {said}"
