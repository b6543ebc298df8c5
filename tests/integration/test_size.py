"""A receiver without --size gets it from the sender; what does not fit is refused at the start."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.disks import MIB, digest, random_image, small_file_system, sparse_image
from tests.support.processes import BLOCKMIG, TWISTD, Processes, Running, until

SIZE = 3 * MIB + 5000
ROOM = 16 * MIB


@pytest.fixture
def source(room: Path) -> Path:
    return random_image(room / "source", SIZE)


@pytest.fixture
def small(room: Path) -> Iterator[Path]:
    with small_file_system(room / "small", ROOM) as directory:
        yield directory


class Pair:
    """A receiver without a size, and what is sent to it."""

    def __init__(self, processes: Processes, room: Path) -> None:
        self.processes, self.room = processes, room
        self.socket = room / "socket"

    def receive(self, copy: Path, *options: object, command: tuple[str, ...] = ()) -> Running:
        receiver = self.processes.start(
            *(command or (BLOCKMIG, "receive")),
            *(copy, "--listen", f"unix:{self.socket}", "--log-format", "json", *options),
        )
        receiver.wait_event("listening")
        return receiver

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def send(self, source: Path, *options: object) -> Running:
        return self.processes.start(
            BLOCKMIG, "send", source, self.uri, "--log-format", "json", *options
        )


@pytest.fixture
def pair(processes: Processes, room: Path) -> Pair:
    return Pair(processes, room)


def message(running: Running) -> str:
    (event,) = running.events("error")
    return str(event["message"])


@pytest.mark.parametrize(
    "command", [(), (TWISTD, "--nodaemon", "--pidfile=", "blockmig", "receive")]
)
def test_the_file_gets_the_size_of_what_is_sent(
    pair: Pair, room: Path, source: Path, command: tuple[str, ...]
) -> None:
    copy = room / "copy"
    receiver = pair.receive(copy, command=command)
    (listening,) = receiver.events("listening")
    assert listening["size"] is None
    assert listening["message"].endswith(f"for {copy}, which gets the sender's size")
    sender = pair.send(source)
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait() == 0, receiver.stderr
    assert digest(copy) == digest(source)
    again = pair.processes.start(BLOCKMIG, "receive", copy, "--log-format", "json")
    assert again.wait() == 0, again.stderr


def test_an_existing_file_has_its_own_size(pair: Pair, room: Path, source: Path) -> None:
    copy = sparse_image(room / "copy", MIB, {})
    receiver = pair.receive(copy)
    (listening,) = receiver.events("listening")
    assert (listening["size"], listening["message"].rpartition(", ")[2]) == (MIB, "1 MiB")
    sender = pair.send(source)
    assert sender.wait() == 1
    assert f"has {SIZE} bytes, the destination {MIB}" in message(sender)


def what_the_receiver_says(pair: Pair) -> str:
    """Its whole answer to another program."""
    command = ["nbdinfo", "--size", pair.uri]
    environment = {**os.environ, "LIBNBD_DEBUG": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    return done.stderr


def test_other_programs_are_told_what_to_do(pair: Pair, room: Path, source: Path) -> None:
    receiver = pair.receive(room / "copy")
    assert "no size yet: say --size" in what_the_receiver_says(pair)
    for command in (
        ["nbdinfo", "--size", pair.uri],
        ["nbdcopy", str(source), pair.uri],
        ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(source), pair.uri],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        # libnbd has words of its own for it.
        assert "no size yet: say --size" in done.stderr or "policy" in done.stderr, done.stderr
    listed = subprocess.run(
        ["nbdinfo", "--list", "--no-content", pair.uri],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert '".handoff"' in listed.stdout + listed.stderr
    sender = pair.send(source)
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait() == 0, receiver.stderr
    assert digest(room / "copy") == digest(source)


def test_a_mirror_brings_the_size_too(
    pair: Pair, processes: Processes, room: Path, source: Path
) -> None:
    before = digest(source)
    receiver = pair.receive(room / "copy")
    server = processes.start(
        *(BLOCKMIG, "serve", source, "--listen", f"unix:{room}/clients"),
        *("--control", room / "control", "--log-format", "json"),
    )
    (listening,) = [server.wait_event("listening")]
    assert listening["size"] == SIZE
    mirror = processes.start(BLOCKMIG, "mirror", "--control", room / "control", "--wait", pair.uri)
    assert mirror.wait() == 0, mirror.stderr
    assert server.wait() == 0, server.stderr
    assert receiver.wait() == 0, receiver.stderr
    assert digest(room / "copy") == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_receiver_that_is_started_again_goes_on(
    pair: Pair, room: Path, source: Path, number: int
) -> None:
    receiver = pair.receive(room / "copy")
    sender = pair.send(source, "--max-rate", "1M", "--retry")
    until(lambda: os.path.getsize(room / "copy") == SIZE)
    time.sleep(0.3)
    receiver.signal(number)
    receiver.wait()
    pair.socket.unlink(missing_ok=True)
    receiver = pair.receive(room / "copy")
    assert receiver.events("listening")[0]["size"] == SIZE
    sender.signal(signal.SIGTERM)
    sender.wait()
    sender = pair.send(source)
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait() == 0, receiver.stderr
    assert digest(room / "copy") == digest(source)


def test_a_receiver_that_is_stopped_leaves_nothing(pair: Pair, room: Path) -> None:
    receiver = pair.receive(room / "copy")
    assert (room / "copy").stat().st_size == 0
    receiver.signal(signal.SIGTERM)
    assert receiver.wait() == 4
    assert not (room / "copy").exists()


# What does not fit.


def test_a_disk_for_which_there_is_no_room_is_refused_at_both_ends(
    pair: Pair, room: Path, small: Path, source: Path
) -> None:
    large = sparse_image(room / "large", 2 * ROOM, {0: b"x"})
    receiver = pair.receive(small / "copy")
    sender = pair.send(large)
    assert sender.wait() == 1
    assert "its file system has no room for it" in message(sender)
    assert f"{2 * ROOM} are needed" in message(sender)
    (event,) = receiver.events("refused")
    assert "its file system has no room for it" in event["message"]
    assert (small / "copy").stat().st_size == 0
    assert not list(room.glob("large.*"))
    # It is no reason to go: the right disk may come yet.
    sender = pair.send(source)
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait() == 0, receiver.stderr


def test_a_sparse_disk_may_be_received_all_the_same(pair: Pair, room: Path, small: Path) -> None:
    large = sparse_image(room / "large", 2 * ROOM, {MIB: b"x"})
    receiver = pair.receive(small / "copy", "--no-space-check")
    sender = pair.send(large)
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait() == 0, receiver.stderr
    assert digest(small / "copy") == digest(large)


def test_a_size_for_which_there_is_no_room_is_refused_before_it_listens(
    processes: Processes, small: Path
) -> None:
    receiver = processes.start(
        *(BLOCKMIG, "receive", small / "copy", "--size", 2 * ROOM, "--log-format", "json")
    )
    assert receiver.wait() == 1
    assert f"bytes are free, and {2 * ROOM} are needed" in message(receiver)
    assert "--no-space-check" in message(receiver)
    assert not (small / "copy").exists()


def test_a_size_that_no_file_can_have(processes: Processes, room: Path) -> None:
    receiver = processes.start(
        *(BLOCKMIG, "receive", room / "copy", "--size", "8191P", "--log-format", "json")
    )
    assert receiver.wait() == 1
    assert "its file system " in message(receiver)
    assert not (room / "copy").exists()


def test_the_old_handshake_needs_a_size(processes: Processes, room: Path) -> None:
    receiver = processes.start(
        *(BLOCKMIG, "receive", room / "copy", "--oldstyle", "--log-format", "json")
    )
    assert receiver.wait() == 1
    assert "--oldstyle needs --size" in message(receiver)
    assert not (room / "copy").exists()
