"""The two directories of a case, what is in them, and the two programs that work there."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import ClassVar

from blockmig.migration.records.files import BadRecord, Kind, Records
from blockmig.migration.records.verdict import CopyState, examine, verdict_of
from tests.proof.launcher.child import Child, wait
from tests.proof.matrix.plays import LONGEST, SIDES, SIZE, Play, Wrong
from tests.proof.volatile import Strike
from tests.support.disks import digest


@cache
def image() -> bytes:
    generator = random.Random(7)
    quarter = 256 << 10
    data = bytearray(generator.randbytes(SIZE))
    data[quarter : 2 * quarter] = bytes(quarter)
    data[3 * quarter : 4 * quarter] = bytes(quarter)
    return bytes(data)


def make_source(path: Path) -> None:
    """With a real hole, and zeroes that are really written."""
    quarter = 256 << 10
    with path.open("wb") as file:
        file.write(image()[:quarter])
        file.seek(2 * quarter)
        file.write(image()[2 * quarter :])


@cache
def right_digest() -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image"
        make_source(path)
        return digest(path)


@contextmanager
def directory_for_rooms() -> Iterator[str]:
    """A directory for all rooms, in memory where that is possible: nothing here waits for disks."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    parent = tempfile.mkdtemp(prefix="blockmig-matrix-", dir=base)
    try:
        yield parent
    finally:
        shutil.rmtree(parent, ignore_errors=True)


class Room:
    """The two directories of one case, and the two programs that work there."""

    parent: ClassVar[str | None] = None
    looks: ClassVar[bool] = False
    _numbers = itertools.count(1)

    def __init__(self, play: Play) -> None:
        self.play = play
        self.top = Path(tempfile.mkdtemp(dir=self.parent))
        for name in ("source", "destination", "aside"):
            (self.top / name).mkdir()
        self.source = self.top / "source" / "disk"
        self.destination = self.top / "destination" / "disk"
        make_source(self.source)
        address = ""
        if play.wire == "unix":
            where = self.top / "socket"
            listen, uri = f"unix:{where}", f"nbd+unix:///?socket={where}"
        else:
            # An address of our own, so that the port is free, also the next time.
            number = (os.getpid() << 8) + next(self._numbers)
            address = f"127.{number >> 16 & 0x7F | 0x40}.{number >> 8 & 255}.{number & 255}"
            listen, uri = f"tcp:10809:interface={address}", f"nbd://{address}:10809"
        self.commands = {
            "receiver": [
                "receive", "--file", str(self.destination), "--size", str(SIZE), "--listen", listen,
            ],
            "sender": ["stranger", str(self.source), address, "10809"]
            if play.scenario == "stranger"
            else [
                "send", *(["--unlink"] if play.unlink else []),
                str(self.source), uri,
            ],
        }  # fmt: skip
        self.running: dict[str, Child | None] = dict.fromkeys(SIDES)
        self.lines: list[str] = []

    def log(self, side: str) -> Path:
        return self.top / f"{side}.log"

    def note(self, line: str) -> None:
        self.lines.append(f"{time.strftime('%H:%M:%S')} {line}")

    def story(self) -> str:
        """What happened, the logs, and the files, for whoever has to understand a failure."""
        parts = list(self.lines)
        for side in SIDES:
            if self.log(side).exists():
                parts += [f"--- {side}:", self.log(side).read_text(errors="replace").rstrip()]
        for place in ("source", "destination"):
            for path in sorted((self.top / place).iterdir()):
                size = path.stat().st_size
                parts.append(f"--- {place}/{path.name}: {size} bytes")
                if path.suffix and size < 4096:
                    parts.append(" ".join(path.read_text(errors="replace").split()))
        return "\n".join(parts)

    def start(
        self,
        side: str,
        strike: Strike | None = None,
        record: Path | None = None,
        options: Sequence[str] = (),
    ) -> Child:
        with self.log(side).open("a") as file:
            file.write(f"# started; to be struck: {strike}\n")
        self.running[side] = child = Child(
            [*self.commands[side], *options],
            self.log(side),
            self.top / "aside",
            strike=strike,
            record=record,
            foreign=self.play.wire == "wrapped",
            looks=self.looks,
        )
        return child

    def children(self) -> list[Child]:
        return [child for child in self.running.values() if child is not None]

    def wait(self, until, seconds: float = LONGEST) -> bool:
        return wait(self.children(), until, seconds)

    def start_both(
        self, strikes: dict[str, Strike] | None = None, record: Path | None = None
    ) -> None:
        """The receiver first, and the sender once the receiver listens."""
        strikes = strikes or {}
        for side in ("receiver", "sender"):
            place = record / side if record is not None else None
            child = self.start(side, strikes.get(side), place)
            if side == "receiver" and not self.listening(child):
                return

    def listening(self, child: Child) -> bool:
        """Whether a receiver has come to listen."""
        self.wait(lambda: not child.alive or bool(child.reported))
        return child.alive and "listening" in child.reported

    def end(self) -> None:
        for child in self.children():
            child.kill()

    def clear(self) -> None:
        shutil.rmtree(self.top, ignore_errors=True)

    # What is so.

    def records(self, side: str) -> Records:
        return Records(str(self.source if side == "sender" else self.destination))

    def retired(self) -> bool:
        """Whether the source is retired, by the files alone."""
        if self.play.unlink:
            return not self.source.exists()
        try:
            return self.records("sender").read(Kind.MIGRATED) is not None
        except BadRecord:
            raise Wrong("the record that retires the source is torn") from None

    def whole(self) -> bool:
        """Whether the destination has every byte."""
        return self.destination.exists() and digest(self.destination) == right_digest()

    def nothing_left(self, side: str) -> bool:
        """Whether a side's own files show that its migration is complete."""
        if side == "receiver":
            found = examine(str(self.destination))
            return (
                set(found.records) == {Kind.RECEIVED}
                and verdict_of(found).state == CopyState.CANONICAL
            )
        if not self.retired() or os.path.lexists(self.records("sender").name(Kind.MIGRATING)):
            return False
        migrated = self.records("sender").read(Kind.MIGRATED)
        return migrated is not None and bool(migrated.confirmed)
