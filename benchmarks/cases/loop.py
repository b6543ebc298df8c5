"""From disk to disk on other file systems, and from device to device, each on a loop device."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..loops import device, missing, mounted
from ..pairs import OURS, Pair
from ..places import Place, make_random, place_in
from ..results import Comparison, Table
from ..settings import MIB, Settings
from .disk import measure, sparse

KINDS = ("ext4", "xfs", "btrfs")


def on_file_system(kind: str, folder: Path, settings: Settings) -> Comparison:
    size = settings.size
    with (
        device(folder / "image", 2 * size + size // 2 + 512 * MIB) as path,
        mounted(path, kind, folder / "mounted") as here,
    ):
        place = replace(place_in(here, size, "unix"), address=f"{folder}/socket")
        make_random(place.source, size)
        return measure(f"{kind}, into a sparse file", place, settings, sparse)


def between_devices(name: str, folder: Path, settings: Settings) -> Comparison:
    size = settings.size
    with device(folder / "one", size) as one, device(folder / "other", size) as other:
        place = Place(one, other, size, "unix", f"{folder}/socket")
        make_random(one, size)
        make_random(other, size)
        state = folder / "state"
        prepare = partial(without_records, state)
        own = ("--state-dir", str(state))
        return measure(name, place, settings, prepare, own=own)


def without_records(state: Path, place: Place, pair: Pair) -> None:
    """What was done with the devices before is not known."""
    shutil.rmtree(state, ignore_errors=True)


def run(settings: Settings) -> Iterator[Table]:
    few = replace(settings, rounds=min(settings.rounds, 3), size=settings.size // 4)
    found = []
    with settings.on_disk() as folder:
        for kind in KINDS:
            name = f"{kind}, into a sparse file"
            if not settings.wants(name):
                continue
            if why := missing(kind):
                found.append(Comparison(name, "s", OURS, {OURS: []}, remark=f"not measured: {why}"))
            else:
                found.append(on_file_system(kind, folder, few))
        name = "device to device"
        if settings.wants(name) and not missing():
            found.append(between_devices(name, folder, few))
    title = f"{few.size // MIB:,} MiB of random data on loop devices, durable"
    note = "Seconds; UNIX; the source is cold."
    yield Table("loop", title, note, found, facts={"rounds": str(few.rounds)})
