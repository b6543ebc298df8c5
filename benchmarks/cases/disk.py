"""From disk to disk over a UNIX socket: the source is not in the page cache, and the copy is durable
at the end, whoever makes it. dd, one process from file to file, is the limit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ..pairs import DD, NBDCOPY, OURS, PEERS, TUNED, Pair, dd, in_turn, ours_and_beside, peers
from ..places import Place, drop, make_hole, make_random, place_in, touch, warm
from ..results import Comparison, Goal, Table
from ..settings import MIB, Settings

GOALS = (
    Goal("≤ 1.10 × dd", OURS, (DD,), 1.10),
    Goal("≤ 1.00 × nbdcopy --flush", OURS, (NBDCOPY, TUNED), 1.00),
)


def into_the_same(place: Place) -> Callable[[Pair], None]:
    """A file that is there; its pages, too."""
    make_random(place.destination, place.size)

    def prepare(pair: Pair) -> None:
        warm(place.destination)

    return prepare


def into_a_hole(place: Place) -> Callable[[Pair], None]:
    """A file of that size without data."""

    def prepare(pair: Pair) -> None:
        make_hole(place.destination, place.size)

    return prepare


def into_a_new_one(place: Place) -> Callable[[Pair], None]:
    """No file, for those that make it; a file without data for the others."""

    def prepare(pair: Pair) -> None:
        place.destination.unlink(missing_ok=True)
        if not pair.new and pair.receive:
            make_hole(place.destination, place.size)

    return prepare


def measure(
    name: str,
    place: Place,
    settings: Settings,
    prepare: Callable[[Pair], None],
    *,
    cold: bool = True,
    durable: bool = True,
    goals: tuple[Goal, ...] = GOALS,
) -> Comparison:
    """All competitors at one thing.

    @param cold: the source is on its medium only; otherwise in memory, too.
    @param durable: the copy is to be.
    """

    def before(pair: Pair) -> None:
        prepare(pair)
        os.sync()
        if cold:
            drop(place.source)
        else:
            warm(place.source)
        touch(2 * place.size)

    every = [*ours_and_beside(place, settings.beside), *peers(place, durable), dd(place, durable)]
    spent = in_turn(every, place, settings.rounds, before)
    seconds = {who: [one.seconds for one in runs] for who, runs in spent.items()}
    return Comparison(name, "s", OURS, seconds, PEERS, goals)


def run(settings: Settings) -> Iterator[Table]:
    found = []
    with ExitStack() as stack:
        on_disk = stack.enter_context(settings.on_disk())
        place = place_in(on_disk, settings.size, "unix")
        make_random(place.source, place.size)
        scenes: dict[str, Callable[[str], Comparison]] = {
            "cold, into the same file": lambda name: measure(
                name, place, settings, into_the_same(place)
            ),
            "cold, into a sparse file": lambda name: measure(
                name, place, settings, into_a_hole(place)
            ),
            "cold, into a new file": lambda name: measure(
                name, place, settings, into_a_new_one(place)
            ),
            "warm, into the same file": lambda name: measure(
                name, place, settings, into_the_same(place), cold=False, goals=()
            ),
            "cold, into tmpfs, pages there": lambda name: into_memory(name, place, settings),
        }
        for name, scene in scenes.items():
            if settings.wants(name):
                found.append(scene(name))
    title = f"{settings.size // MIB:,} MiB of random data, disk to disk, durable"
    note = f"Seconds; {settings.folder}, {file_system(settings.folder)}. Cold: the source is in no "
    note += "page cache. Free memory is touched before each run."
    yield Table("disk", title, note, found)


def into_memory(name: str, place: Place, settings: Settings) -> Comparison:
    with settings.in_memory() as folder:
        there = replace(place, destination=Path(folder, "copy"))
        prepare = into_the_same(there)
        return measure(name, there, settings, prepare, durable=False, goals=())


def file_system(folder: Path) -> str:
    """The kind of file system that it is on."""
    best = ("", "an unknown file system")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if folder.resolve().is_relative_to(where) and len(where) >= len(best[0]):
            best = (where, kind)
    return best[1]
