"""The competitors for bulk data, each a pair of processes, and what one run of a pair takes.

One process listens and writes a file, the other reads the disk and sends it. Where the copy is to
be durable, it is so when both have ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .places import Place, differ, spoil
from .settings import step

BLOCKMIG = str(Path(sys.executable).with_name("blockmig"))
BARE = [sys.executable, "-ISE", str(Path(__file__).with_name("bare.py"))]
PATIENCE = 120.0

OURS = "blockmig"
NBDCOPY, TUNED, QEMU = "nbdcopy", "nbdcopy, 2 MiB", "qemu-img"
PEERS = (NBDCOPY, TUNED, QEMU)
SPLICE, DD = "bare splice", "dd"

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """Two commands.

    @ivar receive: the one that is started first; none for a program that does it all.
    @ivar by_itself: whether that one ends when the other does.
    @ivar new: whether it makes the destination itself.
    """

    name: str
    receive: tuple[str, ...]
    send: tuple[str, ...]
    by_itself: bool = True
    new: bool = False


@dataclass(frozen=True)
class Spent:
    """What a run took: seconds, processor seconds of all processes, and the larger peak, in KiB."""

    seconds: float
    cpu: float
    peak: int = 0


def receive(place: Place, *options: str, program: str = BLOCKMIG) -> tuple[str, ...]:
    files = ("--file", str(place.destination), "--size", str(place.size))
    return (program, "receive", "-q", "--overwrite", *files, "--listen", place.endpoint, *options)


def send(place: Place, *options: str, program: str = BLOCKMIG) -> tuple[str, ...]:
    files = (str(place.source), place.uri)
    return (program, "send", "-q", "--progress", "none", *options, *files)


def ours_and_beside(place: Place, beside: Iterable[str], own: tuple[str, ...] = ()) -> list[Pair]:
    """The blockmig of this environment, and others.

    @param own: options of both commands.
    """
    return [
        Pair(
            OURS if program == BLOCKMIG else program,
            receive(place, *own, program=program),
            send(place, *own, program=program),
            new=True,
        )
        for program in (BLOCKMIG, *beside)
    ]


def peers(place: Place, durable: bool = False) -> list[Pair]:
    """Those that people would use, each to nbdkit."""
    where = [f"--unix={place.address}"]
    if place.transport == "tcp":
        where = ["--ipaddr=127.0.0.1", f"--port={place.address}"]
    nbdkit = ("nbdkit", "--foreground", *where, "file", str(place.destination))
    files = (str(place.source), place.uri)
    nbdcopy = ("nbdcopy", *["--flush"] * durable)
    # It flushes at its end, whatever its cache mode.
    qemu = ("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw")
    return [
        Pair(NBDCOPY, nbdkit, (*nbdcopy, *files), by_itself=False),
        Pair(TUNED, nbdkit, (*nbdcopy, "--request-size=2097152", *files), by_itself=False),
        Pair(QEMU, nbdkit, (*qemu, *files), by_itself=False),
    ]


def bare(place: Place, how: str = "splice") -> Pair:
    """Two processes that do nothing but move the bytes."""
    listening = (*BARE, how, place.address, str(place.destination), str(place.size))
    return Pair(f"bare {how}", listening, (*BARE, "send", place.address, str(place.source)))


def dd(place: Place, durable: bool = False) -> Pair:
    """One process, from file to file: what the disks can do."""
    how = "fsync,notrunc" if durable else "notrunc"
    files = (f"if={place.source}", f"of={place.destination}")
    return Pair(DD, (), ("dd", *files, "bs=1M", f"conv={how}", "status=none"))


def listens(place: Place) -> bool:
    """Whether somebody listens there; looked up, since connecting would be taken for a client."""
    if place.transport == "unix":
        lines = Path("/proc/net/unix").read_text().splitlines()
        return any(
            line.endswith(f" {place.address}") and int(line.split()[3], 16) & 0x10000
            for line in lines[1:]
        )
    wanted = f":{int(place.address):04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    return any(f[1].endswith(wanted) and f[3] == "0A" for f in map(str.split, lines[1:]))


def start(command: Iterable[str]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*command], stdin=quiet, stdout=quiet, stderr=subprocess.PIPE)


def failed(process: subprocess.Popen[bytes], how: str) -> SystemExit:
    """It did, with what it said."""
    assert process.stderr is not None
    process.kill()
    return SystemExit(f"{process.args!r}: {how}\n{process.stderr.read().decode()}")


def await_listener(place: Place, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while not listens(place):
        if process.poll() is not None or time.monotonic() > until:
            raise failed(process, "does not listen")
        time.sleep(0.001)


def end_of(process: subprocess.Popen[bytes]) -> float:
    """Wait for it; the CPU seconds that it and its children took."""
    limit = threading.Timer(PATIENCE, process.kill)
    limit.start()
    try:
        _, code, usage = os.wait4(process.pid, 0)
    finally:
        limit.cancel()
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise failed(process, f"exit status {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def run(pair: Pair, place: Place, *, watch: bool = False) -> Spent:
    """One migration: from the start of the sender's process, where the other listens, to the end of
    both.

    @param watch: find out how much memory it takes, too, which disturbs it a little.
    """
    place.forget()
    with contextlib.ExitStack() as stack:
        if pair.receive:
            receiver = start(pair.receive)
            stack.callback(end_at_once, receiver)
            await_listener(place, receiver)
        began = time.monotonic()
        sender = start(pair.send)
        stack.callback(end_at_once, sender)
        peaks = []
        if watch:
            peaks = [Peak(process.pid) for process in (sender, receiver)]
        cpu = end_of(sender)
        if pair.receive:
            if not pair.by_itself:
                receiver.send_signal(signal.SIGTERM)
            cpu += end_of(receiver)
        seconds = time.monotonic() - began
    return Spent(seconds, cpu, max((peak.result() for peak in peaks), default=0))


def end_at_once(process: subprocess.Popen[bytes]) -> None:
    """If it still runs, something has gone wrong."""
    with process:
        if process.returncode is None:
            process.kill()


def in_turn(
    pairs: list[Pair],
    place: Place,
    rounds: int,
    prepare: Callable[[Pair], None] = lambda pair: None,
    *,
    watch: bool = False,
) -> dict[str, list[Spent]]:
    """Rounds of all pairs, after one in which the copies are compared.

    @param prepare: called before each run.
    """
    found: dict[str, list[Spent]] = {pair.name: [] for pair in pairs}
    for number, pair in turns(pairs, rounds):
        if not number and place.destination.exists():
            spoil(place.destination)
        prepare(pair)
        spent = run(pair, place, watch=watch)
        if number:
            found[pair.name].append(spent)
        elif differ(place.source, place.destination):
            raise SystemExit(f"{pair.name}: the copy differs")
        step()
    return found


def turns(competitors: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Who comes when: a round to warm up, number 0, and the others; each begins with another."""
    for number in range(rounds + 1):
        first = number % len(competitors)
        for competitor in [*competitors[first:], *competitors[:first]]:
            yield number, competitor


class Peak:
    """The most memory that a process has, and its children with it: VmHWM, looked at until it ends.

    (What wait4(2) says of a program includes the process that started it.)
    """

    def __init__(self, process: int) -> None:
        self._process, self._most = process, peak(process)
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while found := peak(self._process):
            self._most = max(self._most, found)
            time.sleep(0.005)

    def result(self) -> int:
        """In KiB, once the process has ended."""
        self._thread.join(PATIENCE)
        return self._most


def peak(process: int) -> int:
    """KiB, of the process and its children; 0 when it is gone."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1])
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(map(peak, map(int, (task / "children").read_text().split())))
    return total
