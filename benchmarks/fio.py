"""fio as the client of an NBD server, with libnbd: a kind of load, and how many requests a second
were answered.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from .pairs import PATIENCE


@dataclass(frozen=True)
class Load:
    """One kind of load.

    @ivar direction: C{read} or C{write}.
    @ivar size: bytes of a request.
    @ivar depth: how many are in flight.
    """

    direction: str
    random: bool
    size: int
    depth: int

    def __str__(self) -> str:
        size = f"{self.size >> 10} KiB" if self.size < 1 << 20 else f"{self.size >> 20} MiB"
        order = "random" if self.random else "sequential"
        return f"{size} {order} {self.direction}s, {self.depth} in flight"

    @property
    def pattern(self) -> str:
        return f"{'rand' if self.random else ''}{self.direction}"


def command(uri: str, load: Load, seconds: float) -> list[str]:
    return [
        *("fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", "--output-format=json"),
        *(f"--rw={load.pattern}", f"--bs={load.size}", f"--iodepth={load.depth}"),
        *("--time_based", f"--runtime={round(seconds * 1000)}ms"),
        # The client shares the machine with the server: let it do little beside the requests.
        *("--thread", "--norandommap", "--gtod_reduce=1"),
    ]


def answered(load: Load, seconds: float, status: int, said: str) -> tuple[int, float]:
    """How many requests were answered, and how many a second, by what fio said."""
    # What it says besides (that it is connected) stands before the JSON.
    remarks, brace, report = said.partition("{\n")
    if status:
        raise SystemExit(f"fio, {load}: exit status {status}\n{said}")
    job = json.loads(brace + report)["jobs"][0]
    result = job[load.direction]
    # It exits with 0 even when the server has hung up.
    if job["error"] or not result["total_ios"] or result["runtime"] < seconds * 900:
        raise SystemExit(f"fio, {load}: not all requests were answered\n{remarks}")
    return result["total_ios"], result["iops"]


def ask(uri: str, load: Load, seconds: float) -> tuple[int, float]:
    """Let fio ask the server for that long; see L{answered}."""
    done = subprocess.run(
        command(uri, load, seconds),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + PATIENCE,
    )
    said = done.stdout + done.stderr * bool(done.returncode)
    return answered(load, seconds, done.returncode, said)
