"""How fast a disk moves under TLS, beside nbdcopy and nbdkit.

Whole processes on loopback, with mutual authentication by certificates that `blockmig certificates`
makes. As in `throughput.py` the competitors run in turn, round after round, and the first round is
thrown away and is where copies are compared. Everybody writes into the same file, whose pages are
there already, since on a guest the first write to a page measures its host.

CPU seconds say more than seconds on a machine that has something else to do: where both ends have
two processors to themselves, the busier of them is the bound.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from throughput import (
    BLOCKMIG,
    OURS,
    Competitor,
    TestBed,
    await_listener,
    end_of,
    forget,
    free_port,
    make_source,
    run,
    show,
    start,
)

HOST = "127.0.0.1"
HALVES = "two blockmig send → blockmig receive, half of it each"


def receive(place: TestBed, *options: str, blockmig: str = BLOCKMIG) -> list[str]:
    command = [blockmig, "receive", "-q", "--overwrite", "--file", str(place.destination)]
    return [*command, "--size", str(place.size), "--listen", place.endpoint, *options]


def send(place: TestBed, *options: str, blockmig: str = BLOCKMIG) -> list[str]:
    command = [blockmig, "send", "-q", "--overwrite", "--progress", "none", *options]
    return [*command, str(place.source), place.uri]


def secured(place: TestBed) -> TestBed:
    uri = place.uri.replace("nbd:", "nbds:")
    return TestBed(place.source, place.destination, place.size, "tcp", place.address, uri)


def competitors(place: TestBed, certificates: Path, others: list[str]) -> list[Competitor]:
    """All of them, ours first.

    @param others: other blockmigs, such as one of an older commit.
    """
    own = ["--tls-certificates", str(certificates)]
    over_tls = secured(place)
    ours, sender = receive(place, *own, "--tls-verify-peer"), send(over_tls, *own)
    nbdkit = ["nbdkit", "--foreground", f"--ipaddr={HOST}", f"--port={place.address}"]
    nbdkit += ["--tls=require", f"--tls-certificates={certificates}", "--tls-verify-peer"]
    nbdkit += ["file", str(place.destination)]
    uri = f"{over_tls.uri}?tls-certificates={certificates}"
    single, four = (
        ["nbdcopy", "--flush", f"--connections={number}", str(place.source), uri]
        for number in (1, 4)
    )
    every = [Competitor(f"{OURS}", ours, sender)]
    for other in others:
        ours_too = receive(place, *own, "--tls-verify-peer", blockmig=other)
        every.append(Competitor(other, ours_too, send(over_tls, *own, blockmig=other)))
    return [
        *every,
        Competitor("nbdcopy, 1 connection → nbdkit file", nbdkit, single, by_itself=False),
        Competitor("nbdcopy, 4 connections → nbdkit file", nbdkit, four, by_itself=False),
        Competitor("blockmig send → nbdkit file", nbdkit, sender, by_itself=False),
        Competitor("nbdcopy, 1 connection → blockmig receive", ours, single),
        Competitor(f"{OURS}, without TLS", receive(place, "--insecure"), send(place)),
    ]


def run_halves(competitor: Competitor, places: list[TestBed], certificates: Path) -> None:
    """Two migrations at a time: what two connections would give."""
    own = ["--tls-certificates", str(certificates)]
    for place in places:
        forget(place)
    started: list[subprocess.Popen[bytes]] = []
    began = time.monotonic()
    try:
        for place in places:
            started.append(start(receive(place, *own, "--tls-verify-peer")))
        for place in places:
            await_listener(place, receive(place))
            started.append(start(send(secured(place), *own)))
        competitor.cpu.append(sum(map(end_of, started)))
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
    competitor.seconds.append(time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024, help="MiB (1024)")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="/dev/shm")
    parser.add_argument(
        *("--beside", "-b"), action="append", default=[], help="another blockmig to run as well"
    )
    parser.add_argument("--only-ours", action="store_true", help="blockmig alone, over TLS")
    options = parser.parse_args()
    size = options.size << 20
    print(
        f"{options.size} MiB of random data in {options.folder}, {options.rounds} rounds, "
        f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}, "
        f"load before: {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        subprocess.run(
            [BLOCKMIG, "certificates", f"{folder}/pki", HOST],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        certificates = Path(folder, "pki", HOST)
        place = place_in(Path(folder), "", size)
        halves = [place_in(Path(folder), f"-{number}", size // 2) for number in (1, 2)]
        make_source(place.destination, size)  # the copy's pages, with other data
        every = competitors(place, certificates, options.beside)
        two = Competitor(HALVES, [], [])
        if options.only_ours:
            every = every[: 1 + len(options.beside)]
        else:
            for half in halves:
                make_source(half.destination, half.size)
        for number in range(options.rounds + 1):
            for competitor in every:
                run(competitor, place, keep=True)
                if number == 0:
                    compare(competitor, place)
                    spoil(place)
                print(".", end="", file=sys.stderr, flush=True)
            if not options.only_ours:
                run_halves(two, halves, certificates)
                if number == 0:
                    for half in halves:
                        compare(two, half)
                print(".", end="", file=sys.stderr, flush=True)
        if not options.only_ours:
            every.insert(-1, two)
        for competitor in every:
            del competitor.seconds[0], competitor.cpu[0]
        print(file=sys.stderr)
        show("TCP, TLS", size, every)
        cpu = statistics.median(every[0].cpu)
        print(f"\nCPU seconds for a GB: {cpu / size * 1e9:.2f}")


def place_in(folder: Path, suffix: str, size: int) -> TestBed:
    """A source of that size, where it comes to, and how."""
    source = folder / f"source{suffix}"
    make_source(source, size)
    port = str(free_port())
    uri = f"nbd://{HOST}:{port}/"
    return TestBed(source, folder / f"copy{suffix}", size, "tcp", port, uri)


def compare(competitor: Competitor, place: TestBed) -> None:
    if not filecmp.cmp(place.source, place.destination, shallow=False):
        raise SystemExit(f"{competitor.name}: the copy differs")


def spoil(place: TestBed) -> None:
    """Have the next copy differ in each MiB until it is made."""
    with place.destination.open("r+b") as file:
        for offset in range(0, place.size, 1 << 20):
            file.seek(offset)
            file.write(os.urandom(16))


if __name__ == "__main__":
    main()
