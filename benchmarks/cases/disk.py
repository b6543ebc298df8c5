"""From disk to disk over a UNIX socket: the source is not in the page cache, and the copy is
durable at the end, whoever makes it. dd, one process from file to file, is the limit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..pairs import DD, NBDCOPY, OURS, PEERS, TUNED, Pair, dd, in_turn, ours_and_beside, peers
from ..places import Place, drop, make_hole, make_random, place_in, warm
from ..results import Comparison, Goal, Table
from ..settings import MIB, Settings

GOALS = (
    Goal("≤ 1.10 × dd", OURS, (DD,), 1.10),
    Goal("≤ 1.00 × nbdcopy --flush", OURS, (NBDCOPY, TUNED), 1.00),
)


def same(place: Place, pair: Pair) -> None:
    """The destination is a file that is there, with all its pages."""
    if not place.destination.exists():
        make_random(place.destination, place.size)
    warm(place.destination)


def sparse(place: Place, pair: Pair) -> None:
    """The destination is a file without data."""
    make_hole(place.destination, place.size)


def new(place: Place, pair: Pair) -> None:
    """There is no destination yet, for those that make it; for the others, a file without data."""
    if pair.new or not pair.receive:
        place.destination.unlink(missing_ok=True)
    else:
        make_hole(place.destination, place.size)


def measure(
    name: str,
    place: Place,
    settings: Settings,
    prepare: Callable[[Place, Pair], None],
    *,
    own: tuple[str, ...] = (),
    cold: bool = True,
    durable: bool = True,
    goals: tuple[Goal, ...] = GOALS,
) -> Comparison:
    """All competitors at one thing.

    What a run needs of free memory was used right before, for the same files: it is there (L{touch}
    takes a second for a GiB, and there are many runs).

    @param own: options of our two commands.
    @param cold: the source is on its medium only; otherwise in memory, too.
    @param durable: the copy is to be.
    """

    def before(pair: Pair) -> None:
        warm(place.source)
        if place.destination.exists():
            warm(place.destination)
        prepare(place, pair)
        os.sync()
        if cold:
            drop(place.source)

    ours = ours_and_beside(place, settings.beside, own)
    every = [*ours, *peers(place, durable), dd(place, durable)]
    spent = in_turn(every, place, settings.rounds, before)
    seconds = {who: [one.seconds for one in runs] for who, runs in spent.items()}
    return Comparison(name, "s", OURS, seconds, PEERS, goals)


def run(settings: Settings) -> Iterator[Table]:
    found: list[Comparison] = []
    few = replace(settings, rounds=min(settings.rounds, 3))
    with settings.on_disk() as on_disk, settings.in_memory() as memory:
        place = place_in(on_disk, settings.size, "unix")
        there = replace(place, destination=memory / "copy")
        make_random(place.source, place.size)
        scenes = {
            "cold, into the same file": partial(measure, prepare=same),
            "cold, into a sparse file": partial(measure, prepare=sparse),
            "cold, into a new file": partial(measure, prepare=new),
            "warm, into the same file": partial(measure, prepare=same, cold=False, goals=()),
        }
        for name, scene in scenes.items():
            if settings.wants(name):
                found.append(scene(name, place, few if found else settings))
        place.destination.unlink(missing_ok=True)
        name = "cold, into tmpfs, pages there"
        if settings.wants(name):
            found.append(measure(name, there, few, same, durable=False, goals=()))
    title = f"{settings.size // MIB:,} MiB of random data, disk to disk, durable"
    note = f"Seconds; UNIX; {settings.folder} is {file_system(settings.folder)}. Cold: no page of "
    note += "the source is in the cache. The same file: its pages are. Three rounds at most of all "
    note += "but the first row."
    yield Table("disk", title, note, found)


def file_system(folder: Path) -> str:
    """The kind of file system that it is on."""
    best = ("", "an unknown file system")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if folder.resolve().is_relative_to(where) and len(where) >= len(best[0]):
            best = (where, kind)
    return best[1]
