"""How fast an NBD server answers small and large requests, beside the servers that others use.

The client is always fio, with libnbd; the disk is one file of random data. A row is one kind of
load: the servers take their turns at it, round after round. Every turn has a fresh server, since
not all of them would share the file, and a short warm-up that does not count. A server that fails a
request, or dies, ends the run.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..fio import Load, ask
from ..pairs import BLOCKMIG, PATIENCE, listens
from ..places import Place, free_port, make_random, place_in
from ..results import Comparison, Table, best_peer
from ..settings import MIB, Settings, step
from .tmpfs import TRANSPORTS

OURS = "blockmig"
PEERS = ("nbdkit", "qemu-nbd", "nbd-server")
WARM_UP = 0.1
TICKS = os.sysconf("SC_CLK_TCK")

LOADS = [
    *(Load(way, True, 4 << 10, depth) for way in ("read", "write") for depth in (1, 8, 32)),
    *(Load(way, True, 256 << 10, 8) for way in ("read", "write")),
    *(Load(way, False, 2 << 20, 4) for way in ("read", "write")),
]


class Turn(NamedTuple):
    """What one server did with one load, once: requests a second, CPU seconds for a request."""

    rate: float
    cpu: float


def command(server: str, place: Place) -> list[str]:
    """What starts it: as it comes, but for what it is told to be faster by."""
    path, unix = str(place.source), place.transport == "unix"
    if server == "nbdkit":
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
    if server == "nbd-server":
        # Without its splice option: that is better for large writes, but halves the small ones.
        where = [f"unixsock = {place.address}"]
        if not unix:
            where = ["listenaddr = 127.0.0.1", f"port = {place.address}"]
        lines = ["[generic]", *where, "[disk]", f"exportname = {path}", "flush = true"]
        config = place.source.with_name("config")
        config.write_text("\n".join([*lines, "fua = true"]) + "\n")
        return ["nbd-server", "-C", str(config), "-p", str(config.with_name("pid"))]
    program = BLOCKMIG if server == OURS else server
    return [program, "serve", "-q", "--file", path, "--listen", place.endpoint]


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
def running(server: str, place: Place, *, reliable: bool = True) -> Iterator[int]:
    """The server's process, listening, until the end of the block.

    @param reliable: it must live that long. Otherwise nor does anybody hear what it complains of.
    """
    place.forget()
    pid_file = place.source.with_name("pid")
    pid_file.unlink(missing_ok=True)
    arguments = command(server, place)
    text = shlex.join(arguments)
    quiet = subprocess.DEVNULL
    errors = None if reliable else quiet
    process = subprocess.Popen(arguments, stdin=quiet, stdout=quiet, stderr=errors)
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
        if reliable and not alive(identifier):
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


def take_turn(server: str, load: Load, place: Place, seconds: float) -> Turn:
    uri = place.uri
    if server == "nbd-server":  # the only one that insists on a name
        uri = uri.replace("/?", "/disk?") if "?" in uri else f"{uri}disk"
    with running(server, place) as identifier:
        ask(uri, load, WARM_UP)
        before = settled_cpu_of(identifier)
        requests, rate = ask(uri, load, seconds)
        cpu = settled_cpu_of(identifier) - before
    return Turn(rate, cpu / requests)


def rows(
    transport: str, settings: Settings, place: Place
) -> tuple[list[Comparison], list[Comparison]]:
    """Requests a second, and processor seconds, for each load."""
    servers = [OURS, *settings.beside, *PEERS]
    loads = [load for load in LOADS if settings.wants(f"{TRANSPORTS[transport]}, {load}")]
    turns: defaultdict[tuple[Load, str], list[Turn]] = defaultdict(list)
    for number in range(settings.rounds):
        first = number % len(servers)  # nobody has the same predecessor every time
        for load in loads:
            for server in servers[first:] + servers[:first]:
                # A fresh port: some do not reuse one in TIME_WAIT.
                here = place if transport == "unix" else replace(place, address=str(free_port()))
                turns[load, server].append(take_turn(server, load, here, settings.seconds))
                step()
    rates, costs = [], []
    for load in loads:
        name = str(load)
        rate = {server: [one.rate for one in turns[load, server]] for server in servers}
        goal = best_peer(OURS, PEERS, 1.25 if load.size == 4096 else 1.10, more=True)
        rates.append(Comparison(name, "1/s", OURS, rate, PEERS, (goal,), more=True))
        cost = {server: [1e6 * one.cpu for one in turns[load, server]] for server in servers}
        costs.append(Comparison(name, "s", OURS, cost, PEERS))
    return rates, costs


def run(settings: Settings) -> Iterator[Table]:
    with settings.in_memory() as folder:
        size = settings.size // 2
        make_random(folder / "source", size)
        for transport, name in TRANSPORTS.items():
            rates, costs = rows(transport, settings, place_in(folder, size, transport))
            note = f"{size // MIB:,} MiB of random data on tmpfs; fio with libnbd on one "
            note += f"connection, {settings.seconds:g} s for a turn of a fresh server."
            yield Table("serving", f"Requests a second, {name}", note, rates)
            title = f"The server's processor seconds for a million requests, {name}"
            yield Table("serving", title, "Of the same turns.", costs, pictured=False)
