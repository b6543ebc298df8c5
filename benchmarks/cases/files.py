"""A real image: an ext4 file system of 100,000 small files, fragmented, on tmpfs.

Half as many again are made, and every third is deleted, so that what is left lies scattered, with
holes between (the file system discards what it frees).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from ..loops import device, missing, mounted
from ..pairs import OURS, PEERS, in_turn, ours_and_beside, peers
from ..places import data_of, make_hole, place_in
from ..results import Comparison, Table, best_peer
from ..settings import MIB, Settings

FILES = 100_000
LONGEST = 24 << 10
"""Bytes; all lengths up to it are as likely."""


def fill(folder: Path, count: int) -> None:
    """Make half as many files more, with every third deleted later, in many folders."""
    data = random.Random(18)
    content = data.randbytes(2 * LONGEST)
    doomed = []
    for number in range(count + count // 2):
        inside = folder / f"{number // 1000}"
        if number % 1000 == 0:
            inside.mkdir()
        begin = data.randrange(LONGEST)
        path = inside / f"{number}"
        path.write_bytes(content[begin : begin + data.randrange(1, LONGEST)])
        if number % 3 == 2:
            doomed.append(path)
    for path in doomed:
        path.unlink()


def run(settings: Settings) -> Iterator[Table]:
    name = "UNIX, into the same file"
    count, size = FILES * settings.size // (2048 * MIB), settings.size + settings.size // 2
    title = f"An ext4 image of {count:,} small files"
    if why := missing():
        row = Comparison(name, "s", OURS, {OURS: []}, remark=f"not measured: {why}")
        yield Table("files", title, "", [row])
        return
    with settings.in_memory() as folder:
        place = place_in(folder, size, "unix")
        image = folder / "image"
        with (
            settings.on_disk() as elsewhere,
            device(image, size, direct=False) as path,
            mounted(path, "ext4", elsewhere / "mounted", "-o", "discard") as there,
        ):
            fill(there, count)
            image.rename(place.source)
        make_hole(place.destination, size)
        with place.source.open("rb") as file:
            extents = list(data_of(file.fileno()))
        every = [*ours_and_beside(place, settings.beside), *peers(place)]
        spent = in_turn(every, place, settings.rounds)
    seconds = {who: [one.seconds for one in runs] for who, runs in spent.items()}
    data = sum(end - start for start, end in extents)
    note = f"Seconds; {data // MIB:,} MiB of data in {len(extents):,} extents, of {size // MIB:,} "
    note += "MiB; tmpfs, pages there already."
    goals = (best_peer(OURS, PEERS, 0.80),)
    yield Table("files", title, note, [Comparison(name, "s", OURS, seconds, PEERS, goals)])
