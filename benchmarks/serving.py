"""How fast an NBD server answers small and large requests, beside the servers that others use.

The client is always fio, with libnbd; the disk is one file of random data. A cell is one kind of
load: the servers take their turns at it, round after round, so that whatever else the machine does
hits all of them alike. Every turn has a fresh server, since not all of them would share the file,
and a short warm-up that does not count. A server that fails a request, or dies, ends the run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from throughput import BLOCKMIG, PATIENCE, TestBed, free_port, listens, make_source

OURS = "blockmig serve"
WARM_UP = 0.3
TICKS = os.sysconf("SC_CLK_TCK")
VERSIONS = {
    OURS: [BLOCKMIG, "--version"],
    "nbdkit file": ["nbdkit", "--version"],
    "qemu-nbd": ["qemu-nbd", "--version"],
    "nbd-server": ["nbd-server", "-V"],
}
SERVERS = tuple(VERSIONS)


@dataclass(frozen=True)
class Cell:
    """One kind of load."""

    direction: str
    random: bool
    size: int
    depth: int

    def __str__(self) -> str:
        size = f"{self.size >> 10} KiB" if self.size < 1 << 20 else f"{self.size >> 20} MiB"
        return f"{size} {'random' if self.random else 'sequential'} {self.direction}, {self.depth}"

    @property
    def pattern(self) -> str:
        return f"{'rand' if self.random else ''}{self.direction}"


CELLS = [
    *(Cell(way, True, 4 << 10, depth) for way in ("read", "write") for depth in (1, 8, 32)),
    *(Cell(way, True, 256 << 10, 8) for way in ("read", "write")),
    *(Cell(way, False, 2 << 20, 4) for way in ("read", "write")),
]


@dataclass(frozen=True)
class Turn:
    """What one server did in one cell, once."""

    rate: float
    cpu: float


def command(server: str, place: TestBed) -> list[str]:
    """What starts it: as it comes, but for what it is told to be faster by."""
    path, unix = str(place.source), place.transport == "unix"
    if server == OURS:
        return [BLOCKMIG, "serve", "--file", path, "--listen", place.endpoint]
    if server == "nbdkit file":
        where = [f"--unix={place.address}"]
        if not unix:
            where = ["--ipaddr=127.0.0.1", f"--port={place.address}"]
        return ["nbdkit", "--foreground", *where, "file", path]
    if server == "qemu-nbd":
        where = [f"--socket={place.address}"]
        if not unix:
            where = ["--bind=127.0.0.1", f"--port={place.address}"]
        # io_uring is faster than the default, threads, for small requests, and not slower for large
        # ones. (native wants O_DIRECT, which would leave the page cache to the others alone.)
        options = ["--format=raw", "--persistent", "--shared=0", "--aio=io_uring"]
        return ["qemu-nbd", *options, *where, path]
    # Without its splice option: that is better for large writes, but halves the small ones.
    where = [f"unixsock = {place.address}"]
    if not unix:
        where = ["listenaddr = 127.0.0.1", f"port = {place.address}"]
    lines = ["[generic]", *where, "[disk]", f"exportname = {path}", "flush = true", "fua = true"]
    config = place.source.with_name("config")
    config.write_text("\n".join(lines) + "\n")
    return ["nbd-server", "-C", str(config), "-p", str(config.with_name("pid"))]


def alive(identifier: int) -> bool:
    """Whether the process runs; a zombie does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{identifier}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def cpu_of(identifier: int) -> float:
    """The CPU seconds of a process, of all its threads, and of its children, dead or alive."""
    while True:
        try:
            fields = Path(f"/proc/{identifier}/stat").read_text().rpartition(")")[2].split()
            children = [
                int(child)
                for task in Path(f"/proc/{identifier}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
            return sum(map(int, fields[11:15])) / TICKS + sum(map(cpu_of, children))
        except (FileNotFoundError, ProcessLookupError):  # of a child: now it is its parent's
            if not alive(identifier):
                raise ProcessLookupError(identifier) from None


def settled_cpu_of(identifier: int) -> float:
    """The same, when what ends with a client (a child, a thread) is through with that."""
    seconds = cpu_of(identifier)
    for _ in range(50):  # a server that is never idle is not waited for
        time.sleep(2 / TICKS)
        if seconds == (seconds := cpu_of(identifier)):
            break
    return seconds


def wait_for(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: timed out")
        time.sleep(0.001)


@contextlib.contextmanager
def running(server: str, place: TestBed) -> Iterator[int]:
    """The server's process, listening, until the end of the block; it must live that long."""
    if place.transport == "unix":
        Path(place.address).unlink(missing_ok=True)
    pid_file = place.source.with_name("pid")
    pid_file.unlink(missing_ok=True)
    arguments = command(server, place)
    text = shlex.join(arguments)
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    identifier = process.pid
    try:
        if server == "nbd-server":
            # In the foreground it would serve one client only, so it is a daemon.
            if process.wait() != 0:
                raise SystemExit(f"{text}: exit status {process.returncode}")
            wait_for(text, lambda: pid_file.exists() and pid_file.read_text().strip())
            identifier = int(pid_file.read_text())
        wait_for(text, lambda: listens(place) or not alive(identifier))
        if not listens(place):
            raise SystemExit(f"{text}: does not listen")
        yield identifier
        if not alive(identifier):
            raise ProcessLookupError(identifier)
    except (ProcessLookupError, SystemExit) as error:
        if alive(identifier):
            raise
        raise SystemExit(f"{error}\n{text}: died") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(identifier, signal.SIGTERM)
        if server == "nbd-server":
            wait_for(text, lambda: not alive(identifier))
        else:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def load(server: str, cell: Cell, uri: str, seconds: float) -> tuple[int, float]:
    """Let fio ask the server for that long: how many answers there were, and how many a second."""
    arguments = [
        *("fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", "--output-format=json"),
        *(f"--rw={cell.pattern}", f"--bs={cell.size}", f"--iodepth={cell.depth}"),
        *("--time_based", f"--runtime={round(seconds * 1000)}ms"),
        # The client shares the machine with the server: let it do little beside the requests.
        *("--thread", "--norandommap", "--gtod_reduce=1"),
    ]
    done = subprocess.run(
        arguments,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + PATIENCE,
    )
    failed = f"{server}: {shlex.join(arguments)}"
    # What it says besides (that it is connected) stands before the JSON.
    remarks, brace, report = done.stdout.partition("{\n")
    remarks += done.stderr
    if done.returncode:
        raise SystemExit(f"{failed}: exit status {done.returncode}\n{remarks}")
    job = json.loads(brace + report)["jobs"][0]
    result = job[cell.direction]
    # It exits with 0 even when the server has hung up.
    if job["error"] or not result["total_ios"] or result["runtime"] < seconds * 900:
        raise SystemExit(f"{failed}: not all requests were answered\n{remarks}")
    return result["total_ios"], result["iops"]


def take_turn(server: str, cell: Cell, place: TestBed, seconds: float) -> Turn:
    uri = place.uri
    if server == "nbd-server":  # the only one that insists on a name
        uri = uri.replace("/?", "/disk?") if "?" in uri else f"{uri}disk"
    with running(server, place) as identifier:
        load(server, cell, uri, WARM_UP)
        before = settled_cpu_of(identifier)
        requests, rate = load(server, cell, uri, seconds)
        cpu = settled_cpu_of(identifier) - before
    return Turn(rate, cpu / requests)


def row(name: object, cells: list[str]) -> None:
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def show(
    transport: str, servers: list[str], turns: defaultdict[tuple[str, Cell], list[Turn]]
) -> None:
    """Two tables in Markdown."""
    peers = [server for server in servers if server != OURS]
    compare = OURS in servers and peers
    print(f"\n{transport.upper()}, requests per second (median):\n")
    row("requests, how many at once", servers + ["beside the best peer"] * bool(compare))
    row("---", ["--:"] * (len(servers) + bool(compare)))
    for cell in CELLS:
        rates = {s: statistics.median(turn.rate for turn in turns[s, cell]) for s in servers}
        columns = [f"{rates[server]:,.0f}" for server in servers]
        if compare:
            columns.append(f"{rates[OURS] / max(rates[peer] for peer in peers):.2f}")
        row(cell, columns)
    print(f"\n{transport.upper()}, the server's CPU seconds per million requests (median):\n")
    row("requests, how many at once", servers)
    row("---", ["--:"] * len(servers))
    for cell in CELLS:
        costs = (statistics.median(turn.cpu for turn in turns[s, cell]) for s in servers)
        row(cell, [f"{cost * 1e6:,.1f}" for cost in costs])


def version(arguments: list[str]) -> str:
    """What it says in its first line; nbd-server fails, for want of a configuration, but says."""
    done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return (done.stdout or done.stderr).partition("\n")[0].removeprefix("This is ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of each turn (2)")
    parser.add_argument("--size", type=int, default=1024, help="MiB (1024)")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="/dev/shm")
    parser.add_argument("--transport", choices=("unix", "tcp"), action="append")
    parser.add_argument("--server", choices=SERVERS, action="append", help="all")
    options = parser.parse_args()
    servers = [server for server in SERVERS if server in (options.server or SERVERS)]
    print(
        f"{options.size} MiB of random data in {options.folder}, {options.rounds} rounds of "
        f"{options.seconds:g} s, {os.cpu_count()} CPUs, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {version(['fio', '--version'])}, "
        f"{', '.join(version(VERSIONS[server]) for server in servers)}, "
        f"load before: {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    # Whoever ends this run ends the servers too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        disk = Path(folder, "disk")
        make_source(disk, options.size << 20)
        for transport in options.transport or ("unix", "tcp"):
            turns: defaultdict[tuple[str, Cell], list[Turn]] = defaultdict(list)
            for number in range(options.rounds):
                for cell in CELLS:
                    # Nobody has the same predecessor every time.
                    for server in (
                        servers[number % len(servers) :] + servers[: number % len(servers)]
                    ):
                        address, uri = f"{folder}/socket", f"nbd+unix:///?socket={folder}/socket"
                        if transport == "tcp":  # a fresh port: some do not reuse one in TIME_WAIT
                            address = str(free_port())
                            uri = f"nbd://127.0.0.1:{address}/"
                        size = options.size << 20
                        place = TestBed(disk, disk, size, transport, address, uri)
                        turn = take_turn(server, cell, place, options.seconds)
                        turns[server, cell].append(turn)
                        print(".", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
            show(transport, servers, turns)


if __name__ == "__main__":
    main()
