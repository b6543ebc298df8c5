"""A live mirror's changes: 100,000 grains of its map that lie scattered, beside many bytes in one
piece.

A grain is what one bit of the map of dirty parts stands for: a client's write of 4 KiB into it
makes it dirty, and the whole of it is sent. The mirror of an idle disk is slowed down until all
grains are dirty, and then let loose: the rate is that at which what is left becomes less.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockmig.control import ask
from blockmig.storage import GRANULARITY

from ..pairs import BLOCKMIG
from ..results import Comparison, Goal, Table
from ..settings import MIB, Settings, step
from ..web import wait_for
from .mirror import Writer

GRAINS = 100_000
SCATTERED, SEQUENTIAL = "scattered", "in one piece"
SLOW = 1 << 16
"""Bytes a second while the grains are made dirty."""
PATIENCE = 120.0
AT_ONCE = 64


class Client(Writer):
    """Writes 4 KiB to each of many places, many at a time."""

    def write_all(self, offsets: list[int]) -> None:
        payload = os.urandom(4096)
        for first in range(0, len(offsets), AT_ONCE):
            some = offsets[first : first + AT_ONCE]
            heads = [struct.pack("!IHHQQI", 0x25609513, 0, 1, 0, at, 4096) for at in some]
            self._socket.sendall(b"".join(head + payload for head in heads))
            for _ in some:
                if struct.unpack("!IIQ", self._take(16))[1]:
                    raise SystemExit("a write failed")


class Mirror:
    """One that goes on and on, since its longest pause is too short to end."""

    def __init__(self, folder: Path) -> None:
        self._control = str(folder / "control")
        wanted = {"uri": f"nbd+unix:///?socket={folder}/receive", "max_pause": 0.0001}
        ask(self._control, "POST", "/mirror", wanted, timeout=30)

    def left(self) -> int:
        """Bytes that are dirty, or taken to be sent."""
        status: dict[str, Any] = ask(self._control, "GET", "/status", timeout=30)["mirror"]
        if status["state"] in ("failed", "broken", "complete"):
            raise SystemExit(f"the mirror is {status['state']}: {status['last_error']}")
        return int(status["left"])

    def limit(self, rate: int | None) -> None:
        ask(self._control, "POST", "/rate", {"max_rate": rate}, timeout=30)

    def until(self, most: int) -> list[tuple[float, int]]:
        """Until no more than that is left: what was, and when."""
        found = [(time.monotonic(), self.left())]
        while found[-1][1] > most:
            if found[-1][0] > found[0][0] + PATIENCE:
                raise SystemExit("the mirror does not get on")
            time.sleep(0.01)
            found.append((time.monotonic(), self.left()))
        return found


def rate(mirror: Mirror, client: Client, offsets: list[int]) -> float:
    """MB a second of these grains, between a tenth and nine tenths of them."""
    mirror.until(0)
    mirror.limit(SLOW)
    client.write_all(offsets)
    time.sleep(0.2)  # nobody uses the disk any more
    whole = mirror.left()
    mirror.limit(None)
    found = [one for one in mirror.until(whole // 10) if one[1] <= 0.9 * whole]
    (began, most), (ended, least) = found[0], found[-1]
    return (most - least) / (ended - began) / 1e6


def make_disk(path: Path, count: int, piece: int) -> tuple[list[int], list[int]]:
    """Every other grain has data; then come C{piece} bytes of it. Where the grains are."""
    block = os.urandom(GRANULARITY)
    scattered = [2 * number * GRANULARITY for number in range(count)]
    begin = 2 * count * GRANULARITY
    sequential = list(range(begin, begin + piece, GRANULARITY))
    with path.open("wb") as file:
        for offset in [*scattered, *sequential]:
            file.seek(offset)
            file.write(struct.pack("!Q", offset) + block[8:])
    return scattered, sequential


def run(settings: Settings) -> Iterator[Table]:
    piece = settings.size * 3 // 4
    room = shutil.disk_usage(settings.memory).free * 9 // 20 - piece  # of each of the two disks
    count = min(GRAINS * settings.size // (2048 * MIB), room // GRANULARITY)
    found: dict[str, list[float]] = {SCATTERED: [], SEQUENTIAL: []}
    with settings.in_memory() as folder:
        source = folder / "source"
        scattered, sequential = make_disk(source, count, piece)
        size = source.stat().st_size
        serve = [BLOCKMIG, "serve", "-q", "--file", str(source), "--listen"]
        serve += [f"unix:{folder}/serve", "--control", f"{folder}/control"]
        receive = [BLOCKMIG, "receive", "-q", "--file", f"{folder}/copy", "--size", str(size)]
        receive += ["--no-space-check", "--listen", f"unix:{folder}/receive"]
        quiet = subprocess.DEVNULL  # of what goes wrong the control socket tells, too
        with (
            subprocess.Popen(serve, stderr=quiet) as server,
            subprocess.Popen(receive, stderr=quiet) as receiver,
        ):
            try:
                wait_for(folder / "serve")
                wait_for(folder / "receive")
                mirror = Mirror(folder)
                client = Client(f"{folder}/serve", size, size)
                for number in range(settings.rounds + 1):
                    for name, offsets in ((SCATTERED, scattered), (SEQUENTIAL, sequential)):
                        measured = rate(mirror, client, offsets)
                        if number:  # the first round only warms up
                            found[name].append(measured)
                        step()
            finally:
                server.kill()
                receiver.kill()
    goal = Goal("≥ 0.50 × in one piece", SCATTERED, (SEQUENTIAL,), 0.5)
    row = Comparison("UNIX", "MB/s", SCATTERED, found, (), (goal,), more=True)
    note = f"MB/s of a mirror on tmpfs: {count:,} grains of {GRANULARITY >> 10} KiB, each dirty by "
    note += f"a write of 4 KiB, every other one of the disk; and {piece // MIB:,} MiB in one piece."
    yield Table("grains", f"{count:,} scattered dirty grains", note, [row])
