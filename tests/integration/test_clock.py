"""The wall clock is set, again and again, by an hour and by a day, forwards and back: that changes
nothing in any phase of any command.

Each process has a clock of its own that is set so whenever somebody looks at it. A pause, a time
limit or a rate that went by it would last an hour, or be over at once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import wire
from tests.support.disks import MIB, digest, random_image
from tests.support.processes import (
    ANY_PORT,
    BLOCKMIG,
    ITS_OWN,
    TWIST,
    TWISTD,
    Processes,
    Running,
    until,
)

CLOCK = """
import itertools, runpy, sys, time
real, steps = time.time, itertools.cycle((0, 3600, -3600, 86400, -86400))
time.time = lambda: real() + next(steps)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SET_AGAIN_AND_AGAIN = (*ITS_OWN, CLOCK)


@pytest.fixture
def disk(room: Path) -> Path:
    return random_image(room / "disk", 6 * MIB)


def receive(processes: Processes, room: Path, listen: str = ANY_PORT) -> Running:
    return processes.receive(
        room / "copy",
        "--size",
        6 * MIB,
        "--idle-timeout",
        300,
        "--give-up-after",
        300,
        listen=listen,
        command=(*SET_AGAIN_AND_AGAIN, BLOCKMIG, "receive"),
    )


def ended_well(running: Running) -> None:
    """It ended by itself at the first attempt, and has measured how long that took."""
    assert running.wait(60) == 0, running.stderr
    (complete,) = running.events("complete")
    assert complete["attempts"] == 1
    assert 0 < complete["seconds"] < 60


def test_a_sender_tries_again_copies_and_hands_over(
    processes: Processes, room: Path, disk: Path
) -> None:
    before, path = digest(disk), room / "socket"
    sender = processes.start(
        *SET_AGAIN_AND_AGAIN, BLOCKMIG, "send", "--log-format", "json", "--retry",
        "--give-up-after", "300", "--max-rate", "4M", "--progress", "json",
        disk, f"nbd+unix:///?socket={path}",
    )  # fmt: skip
    sender.wait_event("restart", count=2)
    receiver = receive(processes, room, f"unix:{path}")
    ended_well(sender)
    ended_well(receiver)
    assert digest(room / "copy") == before


def test_clients_are_held_and_relayed(processes: Processes, room: Path, disk: Path) -> None:
    receiver = receive(processes, room, f"unix:{room / 'there'}")
    control, here = room / "control", room / "here"
    server = processes.start(
        *SET_AGAIN_AND_AGAIN, BLOCKMIG, "serve", "--log-format", "json", "--control", control,
        "--listen", f"unix:{here}", "--file", disk, "--linger", "1",
    )  # fmt: skip
    server.wait_event("listening")
    with wire.client(f"nbd+unix:///?socket={here}") as client:
        assert client.ask(wire.WRITE, 4096, 512, b"a" * 512) == 0
        mirror = processes.start(
            *SET_AGAIN_AND_AGAIN, BLOCKMIG, "mirror", "--log-format", "json", "--control", control,
            "--wait", "--then", "relay", "--max-rate", "4M", receiver.uri,
        )  # fmt: skip
        ended_well(receiver)
        processes.start(
            *SET_AGAIN_AND_AGAIN, BLOCKMIG, "serve", "--log-format", "json",
            "--listen", f"unix:{room / 'there'}", "--file", room / "copy",
        )  # fmt: skip
        assert client.ask(wire.READ, 4096, 512) == 0
        assert wire.read_exactly(client.socket, 512) == b"a" * 512
        ended_well(mirror)
    assert server.wait(60) == 0, server.stderr


@pytest.mark.parametrize(
    "runner", [(TWISTD, "-n", "--pidfile="), (TWIST,)], ids=["twistd", "twist"]
)
def test_a_receiver_under_twistd(
    processes: Processes, room: Path, disk: Path, runner: tuple[str, ...]
) -> None:
    path = room / "socket"
    receiver = processes.start(
        *SET_AGAIN_AND_AGAIN, *runner, "blockmig", "--log-format", "json", "--file", room / "copy",
        "--size", str(6 * MIB), "--listen", f"unix:{path}",
    )  # fmt: skip
    until(path.exists)
    sender = processes.send(disk, f"nbd+unix:///?socket={path}", "--max-rate", "4M")
    ended_well(sender)
    assert receiver.wait(60) == 0, receiver.stdout + receiver.stderr


@pytest.mark.slow
@pytest.mark.parametrize("hours", [1, -1, 24, -24])
def test_the_clock_of_libfaketime(processes: Processes, room: Path, disk: Path, hours: int) -> None:
    """Python and Twisted are as they are; the clock of the whole process is set once in a phase."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    clock, path, before = room / "clock", room / "socket", digest(disk)
    clock.write_text("+0")
    environment = (
        "env", f"LD_PRELOAD={library}", f"FAKETIME_TIMESTAMP_FILE={clock}", "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1", BLOCKMIG,
    )  # fmt: skip

    def step(count: int) -> None:
        new = room / "new"
        new.write_text(f"{count * hours * 3600:+d}")
        new.rename(clock)

    sender = processes.start(
        *environment, "send", "--log-format", "json", "--retry", "--give-up-after", "300",
        "--max-rate", "2M", disk, f"nbd+unix:///?socket={path}",
    )  # fmt: skip
    sender.wait_event("restart", count=2)
    step(1)
    sender.wait_event("restart", count=3)
    receiver = processes.receive(
        room / "copy", "--size", 6 * MIB, "--idle-timeout", 300, "--give-up-after", 300,
        listen=f"unix:{path}", command=(*environment, "receive"),
    )  # fmt: skip
    step(2)
    sender.wait_event("attempt")
    step(3)
    ended_well(sender)
    ended_well(receiver)
    assert sender.events("complete")[0]["time"] - receiver.events("listening")[0]["time"] == (
        pytest.approx(2 * hours * 3600, abs=120)
    ), "the clock was not set"
    assert digest(room / "copy") == before
