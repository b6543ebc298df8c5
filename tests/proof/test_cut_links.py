"""The link between two hosts is cut for seconds and for minutes, and comes back.

Two network namespaces are the hosts, a veth pair is the link between them; the far end of it goes
down, so that nobody is told anything. It is cut in each phase of a migration, by the sender itself,
so that nothing comes between: while it copies; when the clients of a live disk are held; when the
source is retired and the destination does not know it yet; and behind the disconnect. Nothing is
patched but that: timeouts are those of the commands.

While the link is down, and until both ends have ended, `inspect` is asked about the pair, and must
name the one that is canonical by what is on disk. C{python -m tests.proof.test_cut_links} prints
what each side said, when, and when it went on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from blockmig.migration.records.verdict import examine_until_stable, verdict_of_pair
from tests.support.disks import MIB, digest, random_image
from tests.support.processes import BLOCKMIG, FULL, Processes, Running, until

SIZE: Final = 12 * MIB
PORT: Final = 10809
PHASES: Final = ("copy", "hold", "retired", "behind")
SECONDS: Final = (5, 40, 180) if FULL else (1,)
PATIENCE: Final = 300.0
"""Seconds after which an end that has not ended is stuck."""

_CUTTER: Final = """
import os, subprocess, sys
from blockmig.client import connection
from blockmig.migration.mirror import pre_copy
from blockmig.migration.source import progress, retirement

phase, command, mark = sys.argv[1:4]

def cut():
    if not os.path.exists(mark):
        subprocess.run(command.split(), check=True)
        open(mark, "x").close()

def patch(cls, name, times=1):
    method, left = getattr(cls, name), [times]
    def patched(self, *arguments):
        result = method(self, *arguments)
        left[0] -= 1
        if left[0] <= 0:
            cut()
        return result
    setattr(cls, name, patched)

if phase == "copy":
    patch(progress.Progress, "moved", 4)
elif phase == "hold":
    patch(pre_copy.PreCopy, "_begin_hold")
elif phase == "retired":
    for cls in (retirement.Retirement, *retirement.Retirement.__subclasses__()):
        if "_retire" in vars(cls):
            patch(cls, "_retire")
else:
    patch(connection.HalfClosingConnection, "writeConnectionLost")

from blockmig.cli.main import main
main(sys.argv[4:])
"""


class Hosts:
    """Two network namespaces, with a link between them."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        number = next(self._numbers)
        self._ends = f"near{os.getpid() % 10000}x{number}", f"far{os.getpid() % 10000}x{number}"
        self._keepers = [subprocess.Popen(["unshare", "--net", "sleep", "3600"]) for _ in range(2)]
        own = os.readlink("/proc/self/ns/net")
        for keeper in self._keepers:
            until(lambda pid=keeper.pid: os.readlink(f"/proc/{pid}/ns/net") != own)
        near, far = (str(keeper.pid) for keeper in self._keepers)
        ip = ["ip", "link", "add", self._ends[0], "netns", near]
        subprocess.run(
            [*ip, "type", "veth", "peer", "name", self._ends[1], "netns", far], check=True
        )
        for side, address in enumerate(("10.9.0.1/24", "10.9.0.2/24")):
            self._run(side, "ip", "address", "add", address, "dev", self._ends[side])
            self._run(side, "ip", "link", "set", "lo", "up")
            self._run(side, "ip", "link", "set", self._ends[side], "up")

    def inside(self, side: int) -> tuple[str, ...]:
        """What to put before a command that is to run there."""
        return ("nsenter", f"--net=/proc/{self._keepers[side].pid}/ns/net")

    def _run(self, side: int, *command: str) -> None:
        subprocess.run([*self.inside(side), "--", *command], check=True)

    @property
    def cut(self) -> str:
        """The command that cuts the link."""
        return " ".join((*self.inside(1), "ip", "link", "set", self._ends[1], "down"))

    def mend(self) -> None:
        self._run(1, "ip", "link", "set", self._ends[1], "up")

    def close(self) -> None:
        for keeper in self._keepers:
            keeper.kill()
            keeper.wait()


class Said(NamedTuple):
    """What one side said.

    @ivar seconds: after the link was cut.
    """

    seconds: float
    text: str


@dataclass
class Row:
    """What happened in one case.

    @ivar went_on: seconds after the link was there again until both had ended.
    """

    phase: str
    seconds: int
    sender: list[Said] = field(default_factory=list)
    receiver: list[Said] = field(default_factory=list)
    went_on: float = 0.0
    statuses: tuple[int | None, int | None] = (None, None)
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield (
            f"{self.phase}, {self.seconds} s: over {self.went_on:.1f} s after the link came back, "
            f"statuses {self.statuses[0]} and {self.statuses[1]}"
        )
        for who, words in (("sender", self.sender), ("receiver", self.receiver)):
            yield from (f"  {said.seconds:6.1f} s {who}: {said.text}" for said in words)
        yield from (f"  WRONG: {what}" for what in self.wrong)


class Case:
    """One migration over a link that is cut."""

    def __init__(self, room: Path, phase: str, seconds: int) -> None:
        room.mkdir(parents=True)
        self.processes, self.room = Processes(room), room
        self.row = Row(phase, seconds)
        self.source, self.copy = random_image(room / "source", SIZE), room / "copy"
        self.before = digest(self.source)
        self.hosts = Hosts()

    def play(self) -> Row:
        with contextlib.closing(self.hosts):
            try:
                self._play()
            finally:
                self.processes.finish()
        return self.row

    def _play(self) -> None:
        row, mark = self.row, self.room / "cut"
        receiver = self.processes.start(
            *(BLOCKMIG, "receive", "--file", self.copy, "--size", SIZE, "--id", "night"),
            *("--listen", f"tcp:{PORT}:interface=10.9.0.2", "--allow", "10.9.0.0/24"),
            *("--log-format", "json"),
            prefix=("--", *self.hosts.inside(1)),
        )
        receiver.wait_event("listening")
        sender = self._send(mark)
        until(mark.exists, 60, f"no {row.phase} in {sender.stderr}")
        began = time.time()
        end = time.monotonic() + row.seconds
        while time.monotonic() < end:
            self._check_verdict()
            time.sleep(0.5)
        self.hosts.mend()
        mended = time.monotonic()
        while None in (sender.status, receiver.status):
            if time.monotonic() > mended + PATIENCE:
                row.wrong.append("it does not end")
                break
            self._check_verdict()
            time.sleep(0.5)
        row.went_on = time.monotonic() - mended
        row.statuses = sender.status, receiver.status
        row.sender, row.receiver = (words(one, began) for one in (sender, receiver))
        sender.kill()
        receiver.kill()
        self._check_end()

    def _send(self, mark: Path) -> Running:
        """Start what sends the disk, and cuts the link."""
        uri = f"nbd://10.9.0.2:{PORT}/"
        cutter = (sys.executable, "-c", _CUTTER, self.row.phase, self.hosts.cut, mark)
        here = ("--", *self.hosts.inside(0))
        if self.row.phase != "hold":
            send = ("send", self.source, uri, "--id", "night", "--unlink", "--log-format", "json")
            return self.processes.start(*cutter, *send, prefix=here)
        control = self.room / "control"
        server = self.processes.start(
            *(*cutter, "serve", "--file", self.source, "--listen", f"unix:{self.room}/clients"),
            *("--control", control, "--log-format", "json"),
            prefix=here,
        )
        server.wait_event("listening")
        self.processes.checked(
            *(BLOCKMIG, "mirror", "--control", control, "--id", "night", "--unlink", uri)
        )
        return server

    def _check_verdict(self) -> None:
        """The one that is canonical is the source as long as it is there."""
        while True:
            there = self.source.exists()
            verdict = verdict_of_pair(*examine_until_stable([str(self.source), str(self.copy)])[0])
            if there == self.source.exists():
                break
        expected = str(self.source if there else self.copy)
        if (verdict.canonical, verdict.state) != (expected, "canonical"):
            self.row.wrong.append(f"{expected} is canonical, but: {verdict.line}")

    def _check_end(self) -> None:
        if self.row.statuses != (0, 0):
            self.row.wrong.append(f"they ended with {self.row.statuses}")
        if self.source.exists() or digest(self.copy) != self.before:
            self.row.wrong.append("the disk is not there")


_QUIET: Final = ("progress", "log", "listening", "allowed", "migrating", "pass", "id")


def words(running: Running, began: float) -> list[Said]:
    """What it said after that, as a person would read it."""
    said: list[dict[str, Any]] = [
        event
        for event in running.events()
        if event["time"] >= began - 0.5 and event["event"] not in _QUIET
    ]
    return [Said(event["time"] - began, event["message"]) for event in said]


def play_all(room: Path) -> list[Row]:
    cases = [
        Case(room / f"{phase}-{seconds}", phase, seconds) for phase in PHASES for seconds in SECONDS
    ]
    with ThreadPoolExecutor(len(cases)) as pool:
        return list(pool.map(Case.play, cases))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make network namespaces")
def test_a_link_that_was_cut_costs_time_and_nothing_else(room: Path) -> None:
    rows = play_all(room)
    for row in rows:
        print("\n".join(row.lines()))
    assert len(rows) == len(PHASES) * len(SECONDS)
    assert not [(row.phase, row.seconds, row.wrong) for row in rows if row.wrong]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for one in play_all(Path(directory)):
            print("\n".join(one.lines()))
