"""From tmpfs to tmpfs, into a file whose pages are there already: whole processes, the transfer
alone, and processor time.

The transfer alone is what is left when a migration of 1 MiB in the same round is subtracted: the
start of the sender, the records of both, and their end.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..pairs import (
    NBDCOPY,
    OURS,
    PEERS,
    SPLICE,
    Pair,
    bare,
    in_turn,
    ours_and_beside,
    peers,
)
from ..pairs import (
    run as migrate,
)
from ..places import Place, make_random, place_in
from ..results import Comparison, Goal, Table, best_peer
from ..settings import MIB, Settings

TINY = MIB
TRANSPORTS = {"tcp": "TCP", "unix": "UNIX"}
GIB = 1 << 30


def competitors(place: Place, settings: Settings) -> list[Pair]:
    return [*ours_and_beside(place, settings.beside), *peers(place), bare(place)]


def migrate_tiny(
    small: Place, beside: dict[str, Pair], tiny: dict[str, list[float]], pair: Pair
) -> None:
    """What a migration of hardly anything takes the same competitor."""
    tiny[pair.name].append(migrate(beside[pair.name], small).seconds)


def run(settings: Settings) -> Iterator[Table]:
    size = settings.size
    whole, alone, cpu = [], [], []
    for transport, name in TRANSPORTS.items():
        if not settings.wants(name):
            continue
        with settings.in_memory() as folder:
            large = place_in(folder, size, transport)
            small = place_in(folder, TINY, transport, "-small")
            for place in (large, small):
                make_random(place.source, place.size)
                make_random(place.destination, place.size)
            beside = {pair.name: pair for pair in competitors(small, settings)}
            tiny: dict[str, list[float]] = {name: [] for name in beside}
            prepare = partial(migrate_tiny, small, beside, tiny)
            spent = in_turn(competitors(large, settings), large, settings.rounds, prepare)
        seconds = {who: [one.seconds for one in runs] for who, runs in spent.items()}
        whole.append(
            Comparison(name, "s", OURS, seconds, PEERS, (best_peer(OURS, PEERS, 0.70),)),
        )
        left = {
            who: [one - other for one, other in zip(seconds[who], tiny[who][1:], strict=True)]
            for who in seconds
        }
        goal = Goal("≤ 1.15 × bare splice", OURS, (SPLICE,), 1.15)
        alone.append(Comparison(f"{name}, transfer alone", "s", OURS, left, PEERS, (goal,)))
        cost = {who: [one.cpu / size * GIB for one in runs] for who, runs in spent.items()}
        goal = Goal("≤ 0.60 × nbdcopy", OURS, (NBDCOPY,), 0.60)
        cpu.append(Comparison(f"{name}, both ends", "CPU s for a GiB", OURS, cost, PEERS, (goal,)))
    title = f"{size // MIB:,} MiB of random data, tmpfs to tmpfs, pages there already"
    note = "Seconds. The transfer alone: what is left when as many processes that move 1 MiB are "
    note += "subtracted, in each round."
    yield Table("tmpfs", title, note, [*whole, *alone])
    yield Table("tmpfs", "Processor seconds for a GiB of it", "Of both ends together.", cpu)
