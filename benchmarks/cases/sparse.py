"""Very large files with little data, on tmpfs: how long, beyond what a migration of hardly anything
takes, and how much memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..pairs import NBDCOPY, OURS, Pair, in_turn, ours_and_beside, peers
from ..pairs import run as migrate
from ..places import Place, make_hole, make_random, place_in
from ..results import Comparison, Goal, Table
from ..settings import Settings
from .tmpfs import TINY, migrate_tiny

TIB = 1 << 40
SIZES = {TIB: 1.0, 16 * TIB: 2.0}
"""Bytes of the disk; the seconds beyond start-up that it may take."""
PIECES, PIECE = 1000, 68 << 10


def make_sparse(path: Path, size: int) -> None:
    """Some 64 MiB of random data, scattered, and the same each time."""
    data = random.Random(18)
    make_hole(path, size)
    with path.open("r+b") as file:
        for _ in range(PIECES):
            file.seek(data.randrange((size - PIECE) // 4096) * 4096)
            file.write(data.randbytes(PIECE))


def competitors(place: Place, settings: Settings) -> list[Pair]:
    """Ours, which is told that the disk is mostly holes where it matters, and nbdcopy."""
    ours, *others = ours_and_beside(place, settings.beside)
    every = [ours, *others, peers(place)[0]]
    return [
        Pair(
            pair.name,
            (*pair.receive, *["--no-space-check"] * pair.new),
            pair.send,
            pair.by_itself,
            pair.new,
        )
        for pair in every
    ]


def prepare(
    place: Place, small: Place, beside: dict[str, Pair], tiny: dict[str, list[float]], pair: Pair
) -> None:
    """The same small migration, and then a new destination."""
    migrate_tiny(small, beside, tiny, pair)
    if pair.new:
        place.destination.unlink(missing_ok=True)
    else:
        make_hole(place.destination, place.size)


def measure(settings: Settings, size: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds beyond start-up, and MiB at most."""
    with settings.in_memory() as folder:
        place = place_in(folder, size, "unix")
        small = place_in(folder, TINY, "unix", "-small")
        make_sparse(place.source, size)
        make_random(small.source, TINY)
        make_random(small.destination, TINY)
        beside = {pair.name: pair for pair in competitors(small, settings)}
        tiny: dict[str, list[float]] = {name: [] for name in beside}
        before = partial(prepare, place, small, beside, tiny)
        every = competitors(place, settings)
        patient = [pair for pair in every if size > TIB and pair.name == NBDCOPY]
        rest = [pair for pair in every if pair not in patient]
        rounds = min(settings.rounds, 3) if patient else settings.rounds
        spent = in_turn(rest, place, rounds, before, watch=True)
        for pair in patient:
            before(pair)
            tiny[pair.name] *= 2
            spent[pair.name] = [migrate(pair, place, watch=True)]
    seconds = {
        who: [one.seconds - less for one, less in zip(runs, tiny[who][1:], strict=True)]
        for who, runs in spent.items()
    }
    return seconds, {who: [one.peak / 1024 for one in runs] for who, runs in spent.items()}


def run(settings: Settings) -> Iterator[Table]:
    found = []
    for size, most in SIZES.items():
        name = f"{size // TIB} TiB"
        if not settings.wants(name):
            continue
        seconds, peaks = measure(settings, size)
        goals = (
            Goal(f"≤ {most:g} s", OURS, plus=most),
            Goal("≤ 1.00 × nbdcopy", OURS, (NBDCOPY,), 1.0),
        )
        found.append(Comparison(name, "s beyond start-up", OURS, seconds, (NBDCOPY,), goals))
        bound = (Goal("≤ 80 MiB", OURS, plus=80.0),)
        found.append(Comparison(f"{name}, peak", "MiB", OURS, peaks, (NBDCOPY,), bound))
    title = f"64 MiB of data in {PIECES:,} pieces"
    note = "Seconds beyond those of a migration of 1 MiB in the same round (UNIX, tmpfs, a new "
    note += "file), and the peak memory of the larger of both processes. Three rounds of 16 TiB, "
    note += "and one of nbdcopy, which takes a minute for it."
    yield Table("sparse", title, note, found)
