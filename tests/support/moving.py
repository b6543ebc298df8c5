"""Moves through a real sshd: what tests of either way of the data share."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

from .disks import MIB, digest, loop_device, random_image, sparse_image
from .processes import BLOCKMIG, FULL, Processes, Running
from .sshd import SSHServer

KILLS = 20 if FULL else 6


def message(running: Running) -> str:
    """Its last word, which is one line."""
    *_, last = [event for event in running.events() if event["event"] != "log"]  # Twisted's
    text: str = last["message"]
    assert "\n" not in text
    return text


def inspected(processes: Processes, path: Path, *options: str) -> str:
    """The verdict on a disk."""
    return processes.run(BLOCKMIG, "inspect", path, *options).stdout.splitlines()[0]


def processes_with(text: str) -> list[int]:
    """Those with such a word on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if text.encode() in words and state != "Z":
                found.append(int(folder.name))
    return found


def is_ssh(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "ssh"
    return False


def receivers(copy: Path) -> list[int]:
    """The receivers of that disk; their shells are none."""
    return processes_with(f"\0--file={copy}\0")


def sshds_of(pid: int) -> list[int]:
    """The sshd processes between a process and the sshd that listens."""
    found = []
    while pid > 1:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        if words.startswith(b"sshd") and b"listener" not in words:
            found.append(pid)
        pid = int(fields["PPid"])
    return found


def kill_something(generator: random.Random, move: Running, copy: Path) -> str:
    """Kill the move with all that it has started here, or itself alone, or the receiver, or ssh."""
    what = generator.choice(["all here", "move", "receiver", "ssh"])
    victims = {
        "all here": lambda: [],
        "move": lambda: [move.pid],
        "receiver": lambda: receivers(copy),
        "ssh": lambda: [pid for pid in processes_with(str(copy)) if is_ssh(pid)],
    }[what]()
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if what == "all here":
        move.kill()
    elif what == "move":
        move.wait()
    return what


class Round:
    """One disk that is moved, and killed at, until it is there."""

    def __init__(
        self, processes: Processes, server: SSHServer, place: Path, kind: str, seed: str
    ) -> None:
        place.mkdir()
        self.processes, self.server, self.place, self.kind = processes, server, place, kind
        self.generator = random.Random(seed)
        self.image, self.target = random_image(place / "source", 8 * MIB), place / "copy"
        self.before = digest(self.image)
        self.near, self.far = self.image, self.target
        self.state = ("--state-dir", str(place / "near-state"))
        self.unlink = ["--unlink"] if kind == "deleted" else []
        self.devices = contextlib.ExitStack()
        server.keep_records_in(place / "far-state")
        if kind == "device":
            sparse_image(self.target, 8 * MIB, {})
            self.near = self.devices.enter_context(loop_device(self.image))
            self.far = self.devices.enter_context(loop_device(self.target))

    def move(self, *options: str) -> Running:
        return self.server.move(self.near, self.far, *self.state, *self.unlink, *options)

    def run(self, kills: int) -> int:
        """Move it, and kill something so often at most; how often something was killed."""
        with self.devices:
            for kill in range(kills):
                if self.complete_though_killed():
                    self.check_the_end()
                    return kill + 1
            move = self.move()
            assert move.wait() == 0, move.stderr
            self.check_the_end()
            return kills

    def complete_though_killed(self) -> bool:
        """Run it once, and kill something; whether it has come to its end nevertheless."""
        move = self.move("--max-rate", self.generator.choice(["2M", "6M", "40M"]))
        time.sleep(self.generator.uniform(0.1, 2.0))
        what = kill_something(self.generator, move, self.far)
        status = None
        if what in ("receiver", "ssh"):
            if self.generator.random() < 0.6:
                time.sleep(self.generator.uniform(0, 1.5))
                move.kill()
            else:
                status = move.wait()
                # A first connection that fails is not tried again.
                expected = {0} if move.events("attempt") else {0, 1}
                assert status in expected, f"{what}: {move.stderr}"
        self.check_the_verdicts(what)
        return status == 0

    def verdicts(self) -> tuple[str, str]:
        far_state = ("--state-dir", str(self.server.state))
        here = inspected(self.processes, self.near, *self.state)
        return here, inspected(self.processes, self.far, *far_state)

    def check_the_verdicts(self, what: str) -> None:
        here, there = self.verdicts()
        # Never both, and of those that are certain never none. (A device that nothing was received
        # into is like any other one.)
        kinds = ("INCOMPLETE", "RECEIVED")
        known = any(list(self.place.rglob(f"*.{kind}")) for kind in kinds)
        assert (here, there) != ("not canonical", "not canonical"), what
        if known:
            assert (here, there) != ("canonical", "canonical"), what
        if known and there == "canonical":
            assert digest(self.far) == self.before
        elif here == "canonical":
            assert digest(self.near) == self.before

    def check_the_end(self) -> None:
        assert digest(self.far) == self.before
        assert self.verdicts() == ("not canonical", "canonical")
        assert self.image.exists() == (self.kind != "deleted")


def move_live(processes: Processes, server: SSHServer, room: Path, *options: object) -> Running:
    command = server.command(room / "control", room / "copy", *options)
    return processes.start(*command[:2], "--control", *command[2:])
