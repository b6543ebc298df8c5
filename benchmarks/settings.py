"""What a run is to be like: given to every case."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """The options.

    @ivar rounds: that count; one before them does not.
    @ivar size: bytes of the disk, for the cases of bulk data.
    @ivar memory: a folder on tmpfs.
    @ivar folder: a folder on a real disk.
    @ivar beside: other blockmigs (paths of programs), to be measured as well.
    @ivar seconds: for which a server is asked, each time.
    @ivar rows: only what has this in its name; all if it is empty.
    """

    rounds: int = 5
    size: int = 2048 * MIB
    memory: Path = Path("/dev/shm")
    folder: Path = Path("/var/tmp")
    beside: tuple[str, ...] = ()
    rows: str = ""
    seconds: float = 0.3

    def wants(self, name: str) -> bool:
        """Whether that row of a table is to be measured."""
        return self.rows in name

    @contextlib.contextmanager
    def in_memory(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=self.memory) as folder:
            yield Path(folder)

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=self.folder) as folder:
            yield Path(folder)


def step() -> None:
    """Show that it goes on."""
    print(".", end="", file=sys.stderr, flush=True)
