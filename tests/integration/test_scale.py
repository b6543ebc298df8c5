"""A large disk with little data: time and memory must follow the data, not the size."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.disks import MIB, allocated, digest, sparse_image
from tests.support.processes import Processes

TIB = 1 << 40


def test_a_disk_of_one_tebibyte_takes_little_time_and_memory(
    processes: Processes, room: Path
) -> None:
    pieces = {number * (TIB // 64) + 12345: os.urandom(MIB) for number in range(64)}
    source = sparse_image(room / "source", TIB, pieces)
    before = digest(source)
    receiver = processes.receive(room / "destination", "--size", "1T", "--no-space-check")
    sender = processes.send(source, receiver, "--unlink")
    assert sender.wait(120) == 0, sender.stderr
    assert receiver.wait(20) == 0
    assert digest(room / "destination") == before
    assert allocated(room / "destination") <= 64 * 2 * MIB
    (told,) = sender.events("complete")
    print(
        f"\n1 TiB with 64 MiB of data: {told['seconds']} s, "
        f"sender {sender.peak:.1f} MiB, receiver {receiver.peak:.1f} MiB"
    )
    assert told["data"] <= 64 * 2 * MIB
    assert 10 < sender.peak < 80
    assert 10 < receiver.peak < 80
