"""Servers of a disk, for clients of all kinds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conversation import Expected
from .disks import MIB, random_image, size_of, sparse_image
from .processes import ANY_PORT, BLOCKMIG, Processes, Running, until
from .recorder import Recorder, recorder

KINDS = ("tcp", "unix")
ODD = 5000
HUGE = (1 << 30) + 511
DISKS = ("data", "sparse", "odd", "huge")


def make_disk(path: Path, kind: str) -> Path:
    """A disk: all data; holes, data and written zeroes; one of 5000 bytes; one of 1 GiB and 511."""
    if kind == "data":
        return random_image(path, 6 * MIB, seed=3)
    if kind == "odd":
        return random_image(path, ODD, seed=4)
    size = 24 * MIB if kind == "sparse" else HUGE
    tail = os.urandom(size % 4096 or 4096)
    pieces = {
        0: os.urandom(MIB + 4096),
        3 * MIB: bytes(MIB),
        9 * MIB + 4096: os.urandom(2 * MIB),
        size - len(tail): tail,
    }
    return sparse_image(path, size, pieces)


@dataclass
class Served:
    """A server that listens.

    @ivar uris: by kind of transport.
    """

    running: Running
    uris: dict[str, str]


def serve(
    processes: Processes,
    path: Path,
    *options: str,
    command: tuple[str, ...] = (BLOCKMIG, "serve"),
) -> Served:
    """Serve the disk over TCP and over a UNIX socket at once."""
    socket = path.with_suffix(".socket")
    listen = ["--listen", ANY_PORT, "--listen", f"unix:{socket}"]
    running = processes.start(*command, "--log-format", "json", *listen, "--file", path, *options)
    until(
        lambda: len(running.events("listening")) == 2 or running.status is not None,
        what="the server listens twice",
    )
    uris = [str(event["uri"]) for event in running.events("listening")]
    assert len(uris) == 2, running.stderr
    return Served(running, {"unix" if "socket=" in uri else "tcp": uri for uri in uris})


class Bench:
    """A disk that is served, and recorders in front of the server."""

    def __init__(
        self, processes: Processes, room: Path, disk: Path, served: Served, expected: Expected
    ) -> None:
        self.processes = processes
        self.room = room
        self.disk = disk
        self.served = served
        self.expected = expected
        self.size = expected.size

    @contextmanager
    def recorded(self, kind: str, counts: Counter[str] | None = None) -> Iterator[Recorder]:
        """Count into C{counts} what was said."""
        directory = self.room / f"recorder-{len(os.listdir(self.room))}"
        directory.mkdir()
        with recorder(self.served.uris[kind], directory, self.disk, self.expected) as made:
            yield made
            counted = made.verdict_of()
            if counts is not None:
                counts.update(counted)

    def failing(self, *arguments: str | Path) -> str:
        """Run a command that must fail; what it complains of."""
        running = self.processes.run(*arguments)
        assert running.status not in (0, None), (arguments, running.stdout)
        return running.stderr


def has(counts: Counter[str], *names: str) -> bool:
    """Whether there was at least one of each."""
    missing = [name for name in names if not counts[name]]
    assert not missing, (missing, counts)
    return True


Make = Callable[..., Bench]


@pytest.fixture
def make(processes: Processes, room: Path) -> Make:
    """Makes a bench: the kind of its disk, and what Expected says beside the size."""

    def made(kind: str = "sparse", **expected: Any) -> Bench:
        disk = make_disk(room / "disk", kind)
        options = ["--read-only"] if expected.get("read_only") else []
        options += ["--oldstyle"] if expected.get("oldstyle") else []
        options += ["--export", expected["name"]] if expected.get("name") else []
        served = serve(processes, disk, *options)
        return Bench(processes, room, disk, served, Expected(size_of(disk), **expected))

    return made
