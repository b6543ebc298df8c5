"""What `status` forecasts of a mirror, beside what then happened.

Each load writes while the disk is mirrored at a limited rate, so that there is time for a forecast.
Five seconds after the beginning (and again every five) `expected_end` and `expected_pause` are
taken; when all is over they are compared with how long it took from then on, and for how long
clients were held. A factor of 1 is right, 2 means twice as long as forecast, 0.5 half as long.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blockmig.control import ask

from ..pairs import BLOCKMIG
from ..places import make_random
from ..results import Comparison, Table
from ..settings import MIB, Settings, step
from ..web import wait_for
from .mirror import Writer, destination

BLOCK = 65536
"""Bytes of a write: what it touches is sent again as a whole."""
FIRST = 5.0
RATE = 40 * MIB
"""Bytes a second of the mirror."""


class Writes(NamedTuple):
    """What a client does meanwhile.

    @ivar rate: bytes a second that it writes.
    @ivar span: bytes of the disk that it writes to; 0 for all.
    @ivar sequential: one after the other; otherwise at random.
    @ivar data: the part of the disk that is data; the rest is holes.
    """

    rate: int = 0
    span: int = 0
    sequential: bool = False
    data: float = 1.0


LOADS = {
    "idle": Writes(),
    "1 MB/s, random": Writes(MIB),
    "4 MB/s, random": Writes(4 * MIB),
    "12 MB/s, random": Writes(12 * MIB),
    "12 MB/s in 8 MiB": Writes(12 * MIB, span=8 * MIB),
    "12 MB/s, sequential": Writes(12 * MIB, sequential=True),
    "4 MB/s, sparse": Writes(4 * MIB, data=0.7),
}


class Sample(NamedTuple):
    """A forecast, and when it was made."""

    at: float
    end: float | None
    pause: float | None


class Client(Writer):
    """Writes as much as its load says, each block when it is due."""

    def __init__(self, path: str, size: int, load: Writes) -> None:
        super().__init__(path, size, load.span or size)
        self._load, self._blocks, self._written = load, (load.span or size) // BLOCK, 0
        self._began = time.monotonic()
        self._at_random = random.Random(2)

    def catch_up(self) -> None:
        """Write what is due by now; what a pause has cost is not made up for."""
        due = int((time.monotonic() - self._began) * self._load.rate / BLOCK)
        self._written = max(self._written, due - self._load.rate // BLOCK // 10)
        while self._written < due:
            block = self._written if self._load.sequential else self._at_random.getrandbits(40)
            self.write_block(block % self._blocks * BLOCK)
            self._written += 1

    def write_block(self, offset: int) -> None:
        head = struct.pack("!IHHQQI", 0x25609513, 0, 1, 0, offset, BLOCK)
        self._socket.sendall(head + self._random.randbytes(BLOCK))
        if struct.unpack("!IIQ", self._take(16))[1]:
            sys.exit("a write failed")


def make_disk(path: Path, size: int, data: float) -> None:
    make_random(path, int(size * data))
    os.truncate(path, size)


def hand_off(folder: str, size: int, load: Writes, rate: int) -> tuple[list[Sample], float, float]:
    """One migration: what was forecast; when it ended; for how long clients were held."""
    for name in os.listdir(folder):
        Path(folder, name).unlink(missing_ok=True)
    make_disk(Path(folder, "source"), size, load.data)
    control = f"{folder}/control"
    serve = [BLOCKMIG, "serve", "-q", "--file", f"{folder}/source", "--control", control]
    serve += ["--listen", f"unix:{folder}/clients"]
    with contextlib.ExitStack() as running:
        for command in (serve, *destination(folder, size, "standby")):
            quiet = subprocess.DEVNULL
            process = running.enter_context(subprocess.Popen(command, stdin=quiet, stderr=quiet))
            running.callback(process.kill)
        time.sleep(1.5)  # the standby server must have begun to wait
        wait_for(f"{folder}/clients")
        wait_for(f"{folder}/receive")
        client = Client(f"{folder}/clients", size, load)
        wanted = {"uri": f"nbd+unix:///?socket={folder}/receive", "max_rate": rate}
        wanted |= {"then": "relay", "relay_to": f"nbd+unix:///?socket={folder}/serve"}
        ask(control, "POST", "/mirror", wanted, timeout=60)
        threading.Thread(target=write_on, args=(client,), daemon=True).start()
        return watch(control)


def write_on(client: Client) -> None:
    """Write until nobody answers any more."""
    with contextlib.suppress(OSError, SystemExit):
        while True:
            client.catch_up()
            time.sleep(0.002)


def watch(control: str) -> tuple[list[Sample], float, float]:
    """Look at the forecasts until the disk is handed over."""
    began = time.monotonic()
    samples: list[Sample] = []
    over = threading.Thread(target=ask, args=(control, "POST", "/mirror/wait", {}, 300))
    over.start()
    while over.is_alive():
        over.join(max(0.0, began + FIRST * (len(samples) + 1) - time.monotonic()))
        if over.is_alive():
            status = ask(control, "GET", "/status", timeout=5)["mirror"]
            now = time.monotonic() - began
            samples.append(Sample(now, status["expected_end"], status["expected_pause"]))
    ended = time.monotonic() - began
    return samples, ended, ask(control, "GET", "/status", timeout=5)["mirror"]["pause"]


def run(settings: Settings) -> Iterator[Table]:
    size = settings.size // 4
    rows = []
    times = 1 + settings.rounds // 10
    for name, load in LOADS.items():
        if not settings.wants(name):
            continue
        found: dict[str, list[float]] = {"end": [], "pause": [], "clients held, ms": []}
        for _ in range(times):
            with settings.in_memory() as folder:
                samples, end, pause = hand_off(str(folder), size, load, RATE)
            found["clients held, ms"].append(1000 * pause)
            for one in samples[:1]:
                found["end"] += [(end - one.at) / one.end] if one.end else []
                found["pause"] += [pause / one.pause] if one.pause else []
            step()
        rows.append(Comparison(name, "×", "end", found))
    note = "By how much what happened is longer than what `status` forecast after five seconds: "
    note += f"until the end, and for how long clients are held. {size // MIB} MiB at "
    note += f"{RATE // MIB} MiB/s, writes of 64 KiB. Least and most in brackets."
    title = "What a mirror forecasts"
    yield Table("forecasts", title, note, rows, spread=True, facts={"rounds": str(times)})
