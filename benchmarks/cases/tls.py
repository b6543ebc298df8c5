"""How fast a disk moves under TLS, beside nbdcopy and nbdkit.

Whole processes on loopback, with mutual authentication by certificates that `blockmig certificates`
makes. Everybody writes into the same file, whose pages are there.

CPU seconds say more than seconds on a machine that has something else to do: where both ends have
two processors to themselves, the busier of them is the bound.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from ..pairs import (
    BLOCKMIG,
    OURS,
    Pair,
    Spent,
    await_listener,
    end_at_once,
    end_of,
    receive,
    send,
    start,
    turns,
)
from ..pairs import (
    run as migrate,
)
from ..places import Place, differ, make_random, place_in, spoil
from ..results import Comparison, Table
from ..settings import MIB, Settings, step

GIB = 1 << 30
HOST = "127.0.0.1"
PEERS = ("nbdcopy, 1 connection", "nbdcopy, 4 connections")
HALVES = "two at a time, half each"


def ours(place: Place, pki: Path, program: str, name: str) -> Pair:
    own = ("--tls-certificates", str(pki))
    receiver = receive(place, *own, "--tls-verify-peer", program=program)
    return Pair(name, receiver, send(place, "--tls", "require", *own, program=program))


def competitors(place: Place, pki: Path, beside: tuple[str, ...]) -> list[Pair]:
    """All of them, ours first; those of C{beside} are other blockmigs."""
    first = ours(place, pki, BLOCKMIG, OURS)
    where = ("--foreground", f"--ipaddr={HOST}", f"--port={place.address}")
    secured = ("--tls=require", f"--tls-certificates={pki}", "--tls-verify-peer")
    nbdkit = ("nbdkit", *where, *secured, "file", str(place.destination))
    uri = f"{place.uri.replace('nbd:', 'nbds:')}?tls-certificates={pki}"
    single, four = (
        ("nbdcopy", "--flush", f"--connections={number}", str(place.source), uri)
        for number in (1, 4)
    )
    return [
        first,
        *(ours(place, pki, path, path) for path in beside),
        Pair(PEERS[0], nbdkit, single, by_itself=False),
        Pair(PEERS[1], nbdkit, four, by_itself=False),
        Pair("blockmig → nbdkit", nbdkit, (*first.send, "--overwrite"), by_itself=False),
        Pair("nbdcopy, 1 → blockmig", first.receive, single),
        Pair("blockmig, no TLS", receive(place, "--insecure"), send(place)),
    ]


def run_halves(places: list[Place], pki: Path) -> Spent:
    """Two migrations at a time: what two connections would give."""
    for place in places:
        place.forget()
    every = [ours(place, pki, BLOCKMIG, HALVES) for place in places]
    started: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        began = time.monotonic()
        for pair in every:
            started.append(start(pair.receive))
            stack.callback(end_at_once, started[-1])
        for place, pair in zip(places, every, strict=True):
            await_listener(place, started[0])
            started.append(start(pair.send))
            stack.callback(end_at_once, started[-1])
        cpu = sum(map(end_of, started))
        return Spent(time.monotonic() - began, cpu)


def run(settings: Settings) -> Iterator[Table]:
    size, rounds = settings.size // 2, min(settings.rounds, 3)
    with settings.in_memory() as folder:
        command = [BLOCKMIG, "certificates", f"{folder}/pki", HOST]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        pki = folder / "pki" / HOST
        place = place_in(folder, size, "tcp")
        halves = [place_in(folder, size // 2, "tcp", f"-{number}") for number in (1, 2)]
        for each in (place, *halves):
            make_random(each.source, each.size)
            make_random(each.destination, each.size)
        every = competitors(place, pki, settings.beside)
        every.append(Pair(HALVES, (), ()))
        found: dict[str, list[Spent]] = {pair.name: [] for pair in every}
        for number, pair in turns(every, rounds):
            here = halves if pair.name == HALVES else [place]
            if not number:
                for one in here:
                    spoil(one.destination)
            spent = run_halves(halves, pki) if pair.name == HALVES else migrate(pair, place)
            if number:
                found[pair.name].append(spent)
            elif any(differ(one.source, one.destination) for one in here):
                raise SystemExit(f"{pair.name}: the copy differs")
            step()
    seconds = {who: [one.seconds for one in runs] for who, runs in found.items()}
    cpu = {who: [one.cpu / size * GIB for one in runs] for who, runs in found.items()}
    note = "TCP, certificates at both ends, tmpfs, pages there already; nbdcopy to nbdkit."
    yield Table(
        "tls",
        f"{size // MIB:,} MiB of random data under TLS",
        note,
        [
            Comparison("whole processes", "s", OURS, seconds, PEERS),
            Comparison("both ends", "CPU s for a GiB", OURS, cpu, PEERS),
        ],
        facts={"rounds": str(rounds)},
    )
