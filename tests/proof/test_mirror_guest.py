"""A real machine whose disk moves three times while it uses it, and which must not know.

Its disk is ours, from host A to B to C to D (all of them this one), each time with `--then relay`:
what the machine says reaches D by way of A, B and C, on the one connection that it ever makes. That
connection has no second chance: QEMU turns its loss into I/O errors of the machine's.

Each move is another one: with the server at the address of the receiver or at another, over UNIX
sockets or TCP, at once or after a while.
"""

from __future__ import annotations

import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blockmig.control import ask
from tests.support.guest import SIZE, Disk, Guest, check_disk
from tests.support.processes import BLOCKMIG, Processes, Running

pytestmark = pytest.mark.slow  # starts QEMU

RATE = "10M"
"""So that the machine does everything that it does while its disk is transferred."""


class Host:
    """A host that receives the disk, or has it to begin with, and serves it."""

    def __init__(self, processes: Processes, room: Path, name: str) -> None:
        self.directory = room / name
        self.directory.mkdir()
        self.path = self.directory / "disk"
        self.control = self.directory / "control"
        self._processes = processes
        self.server: Running | None = None

    def receive(self, listen: str) -> Running:
        return self._processes.receive(self.path, "--size", SIZE, listen=listen)

    def serve(self, listen: str) -> str:
        """Begin to serve the disk; its URI."""
        self.server = self._processes.start(
            *(BLOCKMIG, "serve", "--log-format", "json", "--listen", listen),
            *("--file", self.path, "--control", self.control),
        )
        return str(self.server.wait_event("listening")["uri"])

    def mirror(self, uri: str, *options: str) -> Running:
        """Have the disk mirrored to there."""
        command = (BLOCKMIG, "mirror", "--control", self.control, uri, "--wait", "--progress=none")
        return self._processes.start(*command, "--max-rate", RATE, *options)

    def status(self) -> dict[str, Any]:
        status = ask(str(self.control), "GET", "/status")
        assert isinstance(status, dict)
        return status


def tcp() -> str:
    """Where to listen: a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"tcp:{listener.getsockname()[1]}:interface=127.0.0.1"


def uri_of(listen: str) -> str:
    """The URI of an endpoint."""
    kind, place, *_ = listen.split(":")
    return f"nbd://127.0.0.1:{place}/" if kind == "tcp" else f"nbd+unix:///?socket={place}"


@dataclass
class Move:
    """Where the disk goes.

    @ivar receiver: where its receiver listens.
    @ivar server: where its server does.
    @ivar late: seconds for which that one lets the machine wait.
    """

    receiver: str
    server: str
    late: float


class Machine:
    """A guest on a disk of host A's."""

    def __init__(self, processes: Processes, room: Path) -> None:
        self.processes = processes
        self.room = room
        self.disk = Disk(room)
        first = self._host()
        self.disk.path.rename(first.path)
        self.hosts = [first]
        self.guest = Guest(processes, room, self.disk, first.serve(f"unix:{room}/A/socket"))
        self.guest.wait_rounds(2)

    def _host(self) -> Host:
        made = len(list(self.room.glob("[A-D]")))
        return Host(self.processes, self.room, "ABCD"[made])

    @property
    def last(self) -> Host:
        """The one that has the disk."""
        return self.hosts[-1]

    def received(self, listen: str, *options: str) -> tuple[Host, Running]:
        """Move the disk, but do not serve it yet: its new host, and the command that did it."""
        there = self._host()
        receiver = there.receive(listen)
        moving = self.last.mirror(receiver.uri, *options)
        assert receiver.wait(180) == 0, receiver.stderr + moving.stderr
        return there, moving

    def move(self, move: Move) -> str:
        """Move the disk; how that went."""
        here, began = self.last, self.guest.now
        rounds, pulses = len(self.guest.found("round")), len(self.guest.found("pulse"))
        options = ["--then", "relay", "--linger", "0"]
        if move.server != move.receiver:
            options += ["--relay-to", uri_of(move.server)]
        there, moving = self.received(move.receiver, *options)
        assert moving.wait(20) == 0, moving.stderr
        time.sleep(move.late)
        there.serve(move.server)
        self.hosts.append(there)
        rounds = len(self.guest.found("round")) - rounds
        pulses = len(self.guest.found("pulse")) - pulses
        # All that it was sent before this is over, and more.
        self.guest.wait_pulses(20)
        stalls = self.guest.stalls(began)
        self.guest.wait_rounds(2)
        status = here.status()
        mirror = status["mirror"]
        assert mirror["state"] == "relaying", status
        assert here.path.with_name("disk.MIGRATED").exists()
        assert pulses >= 20, "the disk went over too fast for much to happen meanwhile"
        assert mirror["pass"] >= 2
        assert max(stalls) >= move.late
        return (
            f"{here.directory.name} to {there.directory.name}: {mirror['pass']} passes in "
            f"{mirror['seconds']:.1f} s, {mirror['dirty_rate'] / 1e6:.1f} MB/s made dirty, "
            f"{rounds} rounds of the guest's; {mirror['holds']} hold(s), the last one "
            f"{1000 * (mirror['pause'] or 0):.0f} ms; it waited {max(stalls):.2f} s for its disk, "
            f"of which {move.late:.2f} s were the server's coming late"
        )


@pytest.fixture
def machine(processes: Processes, room: Path) -> Machine:
    return Machine(processes, room)


def test_a_machine_does_not_notice_three_moves_of_its_disk(machine: Machine, room: Path) -> None:
    guest = machine.guest
    quiet = max(guest.stalls())
    same = tcp()
    moves = [
        Move(f"unix:{room}/receiver", f"unix:{room}/server", 0),
        Move(same, same, 3),
        Move(f"unix:{room}/third", tcp(), 0),
    ]
    print()
    for move in moves:
        print(machine.move(move), flush=True)
    report = guest.finish()
    print(
        f"{report.rounds} rounds, {report.checked} files compared, {report.writes} writes within "
        f"one, {report.pulses + 1} beside them; it waited up to {quiet:.2f} s while nothing moved"
    )
    for host in machine.hosts[:-1]:
        assert host.server is not None
        assert host.server.wait(20) == 0, host.server.stderr
        assert not host.server.events("not-passed-on"), host.server.stderr
    server = machine.last.server
    assert server is not None
    assert server.status is None, server.stderr
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.stderr
    check_disk(machine.disk, machine.last.path, report, room)


def flip(path: Path, data: bytes) -> None:
    """Make one byte wrong where the disk has this."""
    with path.open("r+b") as file:
        at = file.read().find(data) + 1000
        assert at >= 1000
        file.seek(at)
        file.write(bytes([data[1000] ^ 1]))


def test_one_wrong_byte_is_noticed(machine: Machine, room: Path) -> None:
    """All this would be worth nothing if nobody looked."""
    where = f"unix:{room}/both"
    there, _ = machine.received(where, "--then", "relay")
    old = sorted((room / "files" / "old").iterdir(), key=lambda path: path.stat().st_size)[-1]
    flip(there.path, old.read_bytes()[: 1 << 16])
    there.serve(where)
    with pytest.raises(AssertionError, match="FAILED an old file is not as it was"):
        machine.guest.wait_rounds(3)


def test_a_lost_connection_is_noticed(machine: Machine, room: Path) -> None:
    """The same move, but with the machine's connection closed after it."""
    where = f"unix:{room}/both"
    there, _ = machine.received(where)
    there.serve(where)
    with pytest.raises(AssertionError, match="I/O error"):
        machine.guest.wait_rounds(3)
