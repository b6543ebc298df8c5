"""From tmpfs to tmpfs, into a new file: into memory that was free, and is known to the host."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..pairs import OURS, PEERS, Pair, in_turn
from ..places import Place, make_hole, make_random, place_in, touch
from ..results import Comparison, Table, best_peer
from ..settings import MIB, Settings
from .tmpfs import TRANSPORTS, competitors


def into_fresh_memory(place: Place, pair: Pair) -> None:
    if pair.new:
        place.destination.unlink(missing_ok=True)
    else:
        make_hole(place.destination, place.size)
    touch(place.size + place.size // 8)


def run(settings: Settings) -> Iterator[Table]:
    found = []
    for transport, name in TRANSPORTS.items():
        if not settings.wants(name):
            continue
        with settings.in_memory() as folder:
            place = place_in(folder, settings.size, transport)
            make_random(place.source, place.size)
            prepare = partial(into_fresh_memory, place)
            spent = in_turn(competitors(place, settings), place, settings.rounds, prepare)
        seconds = {who: [one.seconds for one in runs] for who, runs in spent.items()}
        goals = (best_peer(OURS, PEERS, 0.85),)
        found.append(Comparison(name, "s", OURS, seconds, PEERS, goals))
    title = f"{settings.size // MIB:,} MiB of random data, tmpfs to tmpfs, fresh pages"
    note = "Seconds. Into a new file; right before each run another process has touched as much "
    note += "free memory."
    yield Table("fresh", title, note, found)
