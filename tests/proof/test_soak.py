"""Real migrations whose processes are killed with -9, at random times and in the last phase.

Each migration is killed up to three times: the sender, the receiver, or both. A part of the kills
comes at a time drawn from a little more than a whole run, the others when the records (or the
disk) say that a certain step was just made. After each kill `inspect` is asked about each side by
itself and about the pair, and its verdicts are held against what is there, byte by byte; then
what died is started again, with the same command line, until both have ended with 0.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockmig.migration.records.files import Kind
from blockmig.migration.records.verdict import (
    CopyState,
    Verdict,
    examine,
    examine_until_stable,
    verdict_of,
    verdict_of_pair,
)
from tests.support.processes import BLOCKMIG, FULL

MIB = 1 << 20
SIZE = 64 * MIB
MIGRATIONS = 300 if FULL else 2
TOGETHER = 2
PATIENCE = 90.0
MOST_KILLS = 3

SENDER, RECEIVER = "sender", "receiver"
SHORT = ["copied there", "copied here", "retired", "retired there", "told"]
"""Aims of kills; what is between them is a record each."""


class Figures:
    """What came of it all."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.victims: Counter[str] = Counter()
        self.aims: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.began = time.monotonic()

    def add(self, counter: Counter[str], what: str, number: int = 1) -> None:
        with self.lock:
            counter[what] += number

    def report(self) -> None:
        """Print them."""
        print(
            f"\nsoak: {dict(self.counts)} in {time.monotonic() - self.began:.0f} s\n"
            f"  killed: {dict(self.victims)}\n"
            f"  when: {dict(self.aims)}\n"
            f"  right verdicts: {sum(self.verdicts.values())}: {dict(self.verdicts)}"
        )


class Process:
    """One run of a command."""

    def __init__(self, log: Path, *command: str) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", BLOCKMIG, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.killed = False

    @property
    def status(self) -> int | None:
        return self.process.poll()

    def kill(self) -> bool:
        """Whether it was alive still."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.killed = self.process.wait() == -signal.SIGKILL
        return self.killed


def same(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes."""
    with one.open("rb", buffering=0) as first, other.open("rb", buffering=0) as second:
        while True:
            here, there = first.read(MIB), second.read(MIB)
            if here != there:
                return False
            if not here:
                return True


def a_port() -> int:
    """One that is free now, of those that the kernel gives to nobody unasked."""
    generator = random.SystemRandom()
    while True:
        port = generator.randrange(20000, 30000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Migration:
    """One migration, in a directory of its own."""

    def __init__(self, arena: Path, number: int, seed: int, span: float, figures: Figures) -> None:
        self.random = random.Random(f"{seed} {number}")
        self.number = number
        self.unlink = self.random.random() < 0.5
        self.span = span
        self.figures = figures
        self.top = arena / f"migration-{number}"
        self.room = self.top / "disks"
        self.room.mkdir(parents=True)
        self.original = self.top / "original"
        self.source = self.room / "source"
        self.destination = self.room / "destination"
        self._image(arena / "template")
        if number % 2:
            port = a_port()
            self._listen = f"tcp:{port}:interface=127.0.0.1"
            self._uri = f"nbd://127.0.0.1:{port}/"
        else:
            self._listen = f"unix:{self.top}/socket"
            self._uri = f"nbd+unix:///?socket={self.top}/socket"
        self._running: dict[str, Process] = {}

    def _image(self, template: Path) -> None:
        """The same for all, but for a few places, and with other holes."""
        shutil.copyfile(template, self.original)
        with self.original.open("r+b") as file:
            for _ in range(50):
                file.seek(self.random.randrange(SIZE - 5000))
                file.write(self.random.randbytes(5000))
            file.seek(self.random.randrange(SIZE // MIB - 4) * MIB)
            file.write(bytes(4 * MIB))
        shutil.copyfile(self.original, self.source)

    # The processes.

    def start(self, side: str, *options: str) -> None:
        """Start a side, or start it again."""
        if side == RECEIVER:
            disk = ("--file", str(self.destination), "--size", str(SIZE))
            command = ("receive", *disk, "--listen", self._listen)
        else:
            retire = ("--unlink",) if self.unlink else ()
            command = ("send", "--retry", *retire, *options, str(self.source), self._uri)
        again = side in self._running
        self._running[side] = Process(self.top / f"{side}.log", *command)
        self.figures.add(self.figures.counts, "restarts" if again else "starts")

    def is_done(self, side: str) -> bool:
        """Whether a side has nothing left to do."""
        process = self._running[side]
        status = process.status
        if status is None:
            return False
        if not process.killed:
            assert status == 0, f"the {side} ended with {status}"
            return True
        if side == RECEIVER:
            return self._has_arrived()
        found = examine(str(self.source))
        migrated = found.record(Kind.MIGRATED)
        return (
            migrated is not None
            and bool(migrated.confirmed)
            and found.record(Kind.MIGRATING) is None
        )

    def _has_arrived(self) -> bool:
        """The destination's side says canonical, and has no record but RECEIVED."""
        found = examine(str(self.destination))
        return verdict_of(found).state == CopyState.CANONICAL and set(found.records) == {
            Kind.RECEIVED
        }

    def restart(self) -> None:
        """Start again what was killed and is not done."""
        for side in self.random.sample([RECEIVER, SENDER], 2):
            process = self._running[side]
            if process.status is not None and process.killed and not self.is_done(side):
                # Acknowledged, it looks half a minute for its receiver: not for one that is done.
                alone = side == SENDER and self.is_done(RECEIVER)
                self.start(side, *(("--give-up-after", "1") if alone else ()))
                self.figures.add(self.figures.counts, "finished alone", alone)

    def all_done(self) -> bool:
        return self.is_done(RECEIVER) and self.is_done(SENDER)

    # What is true, and what is said.

    def retired(self) -> bool:
        if self.unlink:
            return not self.source.exists()
        return Path(f"{self.source}.MIGRATED").exists()

    def check(self) -> None:
        """Hold the verdicts against the truth, which must not change meanwhile."""
        while True:
            before = self.retired()
            here, there = examine(str(self.source)), examine(str(self.destination))
            both = verdict_of_pair(
                *examine_until_stable([str(self.source), str(self.destination)])[0]
            )
            if before == self.retired():
                break
        canonical = self.destination if before else self.source
        truth = f"{canonical.name} is canonical ({sorted(os.listdir(self.room))}), but "
        if not there.empty or both.state != CopyState.UNKNOWN:  # nothing proves nothing
            assert both.state == CopyState.CANONICAL, f"{truth}{both}"
            assert both.canonical == str(canonical), f"{truth}{both}"
        assert same(canonical, self.original), f"{truth}it has lost something"
        self._check_source(verdict_of(here), before, truth)
        arriving = verdict_of(there)
        right = [CopyState.NOT_CANONICAL, CopyState.CONDITIONAL]
        if before:
            right = [CopyState.CANONICAL, CopyState.CONDITIONAL]
        elif there.size is None:
            right = [CopyState.UNKNOWN]
        assert arriving.state in right, f"{truth}{arriving}"
        self.figures.add(self.figures.verdicts, f"pair: {canonical.name}")
        self.figures.add(self.figures.verdicts, f"destination: {arriving.state}")
        if self.random.random() < 0.1 and None not in [
            process.status for process in self._running.values()
        ]:
            self._check_command(both)

    def _check_source(self, verdict: Verdict, retired: bool, truth: str) -> None:
        if not retired:
            assert verdict.state == CopyState.CANONICAL, f"{truth}{verdict}"
        else:
            assert verdict.state == CopyState.NOT_CANONICAL, f"{truth}{verdict}"
        self.figures.add(self.figures.verdicts, f"source: {verdict.state}")

    def _check_command(self, both: Verdict) -> None:
        command = [BLOCKMIG, "inspect", str(self.destination), str(self.source)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=30)
        line = f"canonical: {both.canonical}" if both.canonical else "unknown: "
        assert said.stdout.startswith(line), said
        assert said.returncode == (0 if both.canonical else 5), said
        self.figures.add(self.figures.verdicts, "by the command")

    # The kills.

    def aims(self) -> dict[str, Callable[[], bool]]:
        """What may be waited for, in the order in which it happens."""

        def says(kind: Kind, disk: Path, text: bytes) -> Callable[[], bool]:
            def look() -> bool:
                with contextlib.suppress(OSError):
                    return text in Path(f"{disk}.{kind.value}").read_bytes()
                return False

            return look

        def gone(kind: Kind, disk: Path) -> Callable[[], bool]:
            return lambda: self.retired() and not os.path.exists(f"{disk}.{kind.value}")

        def has_size() -> bool:
            return self.destination.exists() and self.destination.stat().st_size > 0

        incomplete = (Kind.INCOMPLETE, self.destination)
        migrating = (Kind.MIGRATING, self.source)
        return {
            "INCOMPLETE": says(*incomplete, b""),
            "its size": has_size,
            "MIGRATING": says(*migrating, b""),
            "copied there": says(*incomplete, b'"phase": "copied"'),
            "copied here": says(*migrating, b'"phase": "copied"'),
            "retired": self.retired,
            "retired there": says(*incomplete, b'"retired": "2'),
            "told": says(*migrating, b'"told": "2'),
            "INCOMPLETE gone": gone(*incomplete),
            "MIGRATING gone": gone(*migrating),
        }

    def kill_some(self) -> bool:
        """Kill somebody, some time; False where both had ended before."""
        when, condition, aims = "any time", None, self.aims()
        if self.random.random() < 0.6:
            # What lasts for a part of a millisecond only is aimed at twice as often.
            when = self.random.choice([*aims, *SHORT])
            condition = aims[when]
            if condition():  # long since
                when, condition = "any time", None
        if condition is None:
            end = time.monotonic() + self.random.uniform(0, self.span)
            while time.monotonic() < end and not self.all_done():
                time.sleep(0.005)
        else:
            end = time.monotonic() + PATIENCE
            while not condition():
                if self._nobody():
                    return False
                assert time.monotonic() < end, f"never {when!r}"
                time.sleep(0 if self._is_close(when) else 0.002)
            time.sleep(self.random.choice([0, 0, 0.001, 0.002, 0.005]))
        victims = self.random.choice([[SENDER], [RECEIVER], [SENDER, RECEIVER], [RECEIVER, SENDER]])
        killed = [side for side in victims if self._running[side].kill()]
        if killed:
            self.figures.add(self.figures.victims, " and ".join(sorted(killed)))
            self.figures.add(self.figures.aims, when)
            self.figures.add(self.figures.counts, "kills")
        return bool(killed)

    def _is_close(self, when: str) -> bool:
        """Whether what is waited for can come at any moment."""
        return when in SHORT and os.path.exists(f"{self.source}.MIGRATING")

    def _nobody(self) -> bool:
        return all(process.status is not None for process in self._running.values())

    # All of it.

    def run(self) -> None:
        """From the first start to the end."""
        try:
            self._run()
        except BaseException as error:
            logs = "\n".join(
                f"--- {log.name}\n{log.read_text()}" for log in sorted(self.top.glob("*.log"))
            )
            listing = sorted(os.listdir(self.room))
            raise AssertionError(f"{self}: {error}\n{listing}\n{logs}") from error
        finally:
            for process in self._running.values():
                process.kill()
            shutil.rmtree(self.top)

    def __str__(self) -> str:
        return f"migration {self.number} ({'unlink' if self.unlink else 'keep'})"

    def _run(self) -> None:
        for side in self.random.sample([RECEIVER, SENDER], 2):
            self.start(side)
        for _ in range(self.random.choice([1, 2, MOST_KILLS])):
            if self.kill_some():
                self.check()
            self.restart()
            if self.all_done():
                break
        self._await_end()
        self.check()
        assert same(self.destination, self.original)
        left = ["destination", "destination.RECEIVED", "source", "source.MIGRATED"]
        if self.unlink:
            left.remove("source")
        assert sorted(os.listdir(self.room)) == left
        for log in self.top.glob("*.log"):
            text = log.read_text()
            assert "Traceback" not in text, log.name
            assert "bug of blockmig" not in text, log.name
            assert "Unhandled" not in text, log.name
        self.figures.add(self.figures.counts, "complete")

    def _await_end(self) -> None:
        end = time.monotonic() + PATIENCE
        while not self.all_done():
            assert time.monotonic() < end, f"not done in {PATIENCE} s"
            if self.is_done(RECEIVER) and not self.is_done(SENDER):
                self._hurry()
            time.sleep(0.02)

    def _hurry(self) -> None:
        """The sender's receiver is done: it knows that, or looks for it for half a minute."""
        sender = self._running[SENDER]
        try:
            sender.process.wait(4)
            return
        except subprocess.TimeoutExpired:
            sender.process.send_signal(signal.SIGTERM)
        status = sender.process.wait(20)
        assert status in (0, 5), f"the sender, stopped, ended with {status}"
        if status == 5:
            self.check()
            self.start(SENDER, "--give-up-after", "1")
            self.figures.add(self.figures.counts, "stopped and finished alone")


@pytest.fixture
def arena() -> Iterator[Path]:
    """A directory in memory."""
    directory = Path(tempfile.mkdtemp(prefix="blockmig-soak-", dir="/dev/shm"))
    try:
        (directory / "template").write_bytes(random.Random(1).randbytes(SIZE))
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_migrations_killed_at_random_times_complete(arena: Path) -> None:
    seed = int(os.environ.get("BLOCKMIG_SEED", "0")) or random.randrange(1, 1 << 32)
    print(f"\nBLOCKMIG_SEED={seed}")
    figures = Figures()
    began = time.monotonic()
    quiet = Migration(arena, 0, seed, 0, figures)
    for side in (RECEIVER, SENDER):
        quiet.start(side)
    quiet._await_end()
    span = (time.monotonic() - began) * 1.15
    figures.counts.clear()
    failures: list[str] = []

    def one(number: int) -> None:
        try:
            Migration(arena, number, seed, span, figures).run()
        except AssertionError as error:
            failures.append(str(error))
            print(f"\nFAILED {error}", flush=True)

    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(one, range(1, MIGRATIONS + 1)))
    print(f"  a quiet run takes {span / 1.15:.2f} s")
    figures.report()
    assert not failures, f"{len(failures)} of {MIGRATIONS}\n" + "\n".join(failures[:5])
    assert figures.counts["complete"] == MIGRATIONS
