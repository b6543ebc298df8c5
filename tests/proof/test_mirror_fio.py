"""fio, with libnbd, at a disk that is moved again and again: all that it wrote is found again.

With `relay` one fio stays on the one connection of each of its jobs while its disk goes from server
to server. It hears of no error, what it reads back between its writes is right, and so is what is
found after the end, at the last server.

With `exit` there is a fio for each move. It is stopped during the passes, or cut off by the
hand-off in the middle of its writing, and reports how far it came: at the next server all of that
is found. Then the next fio goes on there.

fio 3.33 does not distinguish the blocks of one run from those of an earlier one at the same place
by XX its connection went away it does so only with one request at a
time: with more it takes those that failed for written, and complains for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blockmig.control import ControlError, ask
from tests.support.disks import MIB
from tests.support.processes import ANY_PORT, BLOCKMIG, FULL, Processes, Running, until
from tests.support.serving import KINDS

ROOM = 256 * MIB
"""For a job that writes each block once; more than it comes to."""

PART = (16 if FULL else 4) * MIB
TRIMMED, KEPT, CHECKED = 0, PART, PART + 4 * ROOM
"""Where a job trims, a piece in each run; where there is room for jobs whose blocks are written
once in a run; and for those that write over and over."""

END = CHECKED + 4 * PART
SIZE = END + 32 * MIB
"""What is at the end takes a while to be transferred, and nobody uses it."""

PIECE = MIB // 2
PATTERN = bytes(range(1, 129)) * 4
SLOW = "24M" if FULL else "32M"
CHECKSUMS = ("crc32c", "xxhash", "md5", "crc64")

SEQUENTIAL = ("--rw=write", "--bs=1M")
RANDOM = ("--rw=randwrite", "--bs=4k")
MIXED = ("--rw=randwrite", "--bsrange=512-1M", "--blockalign=512")
TRIMS = ("--rw=trimwrite", "--bssplit=512/30:4k/30:96k/20:1m/20", "--blockalign=512")


@dataclass(frozen=True)
class Workload:
    """What fio does.

    @ivar kept: the jobs that write each block once, and how fast: bytes per second.
    @ivar checked: the jobs that write over and over, and read meanwhile.
    """

    kept: tuple[tuple[tuple[str, ...], int], ...]
    checked: tuple[tuple[str, ...], ...]


FAST, LITTLE = 2 * MIB, MIB // 2
WORKLOADS = {
    "sequential": Workload(((SEQUENTIAL, FAST),), (SEQUENTIAL,)),
    "random": Workload(((RANDOM, LITTLE),), (RANDOM,)),
    "mixed": Workload(((MIXED, FAST),), (MIXED,)),
    "trims": Workload(((RANDOM, LITTLE),), (TRIMS,)),
    "four": Workload(
        ((SEQUENTIAL, FAST), (RANDOM, LITTLE), (MIXED, FAST), (RANDOM, LITTLE)),
        (RANDOM, MIXED, SEQUENTIAL, TRIMS),
    ),
}


class Fio:
    """One run of fio.

    @param number: that of the run, from 0.
    @param depth: requests at a time of a connection.
    @param checked: whether to read back meanwhile, too; what is written over is not known then
        where fio is cut off.
    """

    def __init__(
        self, processes: Processes, work: Workload, number: int, depth: int, checked: bool = True
    ) -> None:
        self._processes = processes
        self._number = number
        self._depth = depth
        self._work = work
        self._checked = work.checked if checked else ()
        self.trimmed = 0

    def _jobs(self, *, only_kept: bool) -> list[str]:
        command = []
        for index, (options, rate) in enumerate(self._work.kept):
            command += [
                *(f"--name=kept{index}", f"--offset={KEPT + index * ROOM}", f"--size={ROOM}"),
                *(f"--randseed={100 * self._number + index + 1}", *options),
                *("--do_verify=1" if only_kept else "--do_verify=0", "--verify_state_save=1"),
                *(() if only_kept else (f"--rate={rate}",)),
            ]
        if only_kept:
            return command
        start = TRIMMED + self._number % 32 * PIECE
        command += [
            *("--name=trims", "--rw=trim", "--bs=4k", f"--offset={start}", f"--size={PIECE}"),
            *("--rate=64k", "--verify_state_save=0"),
        ]
        for index, options in enumerate(self._checked):
            trims = options == TRIMS
            command += [
                *(f"--name=checked{index}", f"--offset={CHECKED + index * PART}"),
                *(f"--size={PART}", "--randrepeat=0", "--verify_state_save=0", *options),
                *("--time_based", "--runtime=3600", "--rate=6m"),
                f"--verify_backlog={8 if options == SEQUENTIAL else 1 if trims else 64}",
                *(("--iodepth=1",) if trims else ()),
            ]
        return command

    def _start(self, uri: str, depth: int, *options: str) -> Running:
        checksum = CHECKSUMS[self._number % len(CHECKSUMS)]
        return self._processes.start(
            *("fio", "--thread", "--ioengine=nbd", f"--uri={uri}", "--output-format=json"),
            *(f"--verify={checksum}", "--verify_fatal=1", "--serialize_overlap=1"),
            *(f"--iodepth={depth}", *options),
            # It may fill the disk with complaints.
            prefix=("prlimit", f"--fsize={64 * MIB}"),
        )

    def start(self, uri: str, control: str) -> None:
        """Begin, and be sure that all jobs work: the server has had a request of each.

        @param control: the control socket of the server at C{uri}.
        """
        self.running = self._start(uri, self._depth, *self._jobs(only_kept=False))
        jobs = len(self._work.kept) + 1 + len(self._checked)

        def working() -> bool:
            assert self.running.status is None, self.running.stderr
            clients = ask(control, "GET", "/status")["clients"]
            return sum(one["writes"] + one["other"] > 0 for one in clients) >= jobs

        until(working, 60)
        time.sleep(0.5)
        assert self.running.status is None, self.running.stderr

    def _read(self, fio: Running) -> tuple[str, dict[str, Any]]:
        said, brace, report = fio.stdout.partition("{\n")
        assert brace, (fio.status, fio.stderr[:2000], said[:2000])
        report, _, rest = (brace + report).rpartition("}\n")
        said += rest + fio.stderr
        return said, {job["jobname"]: job for job in json.loads(report + "}")["jobs"]}

    def stop(self) -> None:
        """It is stopped, and until then knew of no error."""
        fio = self.running
        assert fio.status is None, fio.stderr[:2000] + fio.stdout[:2000]
        fio.signal(signal.SIGINT)
        status = fio.wait(60)
        said, self.jobs = self._read(fio)
        assert status == 128, (status, said[:4000])
        assert "rror" not in said, said
        assert "verify" not in said, said[:4000]
        for name, job in self.jobs.items():
            assert job["error"] == 0, (name, job["error"], said)
            assert job["write" if name != "trims" else "trim"]["total_ios"] > 0, (name, job)
        self.trimmed = self.jobs["trims"]["trim"]["io_bytes"]

    def check_reads(self) -> None:
        """All of those that were to read meanwhile did."""
        for name, job in self.jobs.items():
            assert not name.startswith("checked") or job["read"]["total_ios"] > 5, (name, job)

    def was_cut_off(self) -> None:
        """It lost its connections, and nothing else."""
        status = self.running.wait(60)
        said, self.jobs = self._read(self.running)
        assert status > 0, (status, said[:4000])
        assert "verify" not in said, said[:4000]
        for name, job in self.jobs.items():
            assert job["error"] != 0 or name == "trims", (name, said)
        self.trimmed = self.jobs["trims"]["trim"]["io_bytes"]

    @property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """What each job has done: reads, writes and trims."""
        kinds = ("read", "write", "trim")
        return {
            name: tuple(job[kind]["total_ios"] for kind in kinds) for name, job in self.jobs.items()
        }

    def verify(self, uri: str, spare: int = 0) -> int:
        """All that was written to the parts that are kept is there; how many blocks that were.

        @param spare: how many blocks of each job may be missing.
        """
        options = ("--verify_only", "--verify_state_load=1")
        # With more than one at a time it goes on beyond what was written.
        fio = self._start(uri, 1, *options, *self._jobs(only_kept=True))
        status = fio.wait(60)
        said, jobs = self._read(fio)
        assert status == 0, said
        assert "verify" not in said, said[:4000]
        blocks = 0
        for name, job in jobs.items():
            assert job["error"] == 0, (name, said)
            written = self.jobs[name]["write"]["total_ios"]
            assert written - spare <= job["read"]["total_ios"] <= written, (name, written, said)
            blocks += job["read"]["total_ios"]
        assert len(jobs) == len(self._work.kept)
        assert blocks > 1
        return blocks

    @property
    def unsure(self) -> int:
        """How many of each job's last writes its state file may leave out, if it was stopped."""
        return 0 if self._depth == 1 else self._depth

    def check(self, path: Path, spare: int = 0) -> None:
        """What was trimmed is zero, and the rest of that part of C{path} as it was."""
        with path.open("rb") as file:
            file.seek(TRIMMED + self._number % 32 * PIECE)
            piece = file.read(PIECE)
        kept = PATTERN * (PIECE // len(PATTERN))
        assert self.trimmed > 0
        assert not any(piece[: self.trimmed])
        assert piece[self.trimmed + spare :] == kept[self.trimmed + spare :]


class Moves:
    """A disk, from server to server.

    @param command: what stands before `serve`.
    @ivar path: where it is.
    @ivar server: of the disk.
    @ivar uris: of the server, by kind of transport.
    @ivar relays: the servers that have handed it over, and stay.
    @ivar count: how many moves there were.
    """

    def __init__(
        self, processes: Processes, room: Path, command: tuple[str, ...] = (BLOCKMIG, "serve")
    ) -> None:
        self._processes = processes
        self._room = room
        self._command = command
        self.count = 0
        self.relays: list[Running] = []
        self.path = self._place("disk")
        with self.path.open("wb") as file:
            file.truncate(SIZE)
            for start, end in ((TRIMMED, KEPT), (END, SIZE)):
                file.seek(start)
                file.write(PATTERN * ((end - start) // len(PATTERN)))
        self._serve(ANY_PORT)

    def _place(self, name: str) -> Path:
        directory = self._room / f"host-{self.count}"
        directory.mkdir(exist_ok=True)
        return directory / name

    @property
    def _socket(self) -> Path:
        return self._place("socket")

    def _serve(self, port: str) -> None:
        self.control = str(self._place("control"))
        self.server = server = self._processes.start(
            *(*self._command, "--log-format", "json", "--file", self.path),
            *("--listen", port, "--listen", f"unix:{self._socket}", "--control", self.control),
        )
        server.wait_event("listening", count=2)
        uris = [str(event["uri"]) for event in server.events("listening")]
        self.uris = {"unix" if "socket=" in uri else "tcp": uri for uri in uris}
        assert len(self.uris) == 2

    def begin(self, kind: str, *options: str) -> None:
        """Begin to mirror, and wait until what is used has gone over, once."""
        self._old, self._source, self._source_control = self.path, self.server, self.control
        self.count += 1
        self.path = self._place("disk")
        self._port = ANY_PORT
        listen = ANY_PORT if kind == "tcp" else f"unix:{self._place('receiver')}"
        self._receiver = self._processes.receive(self.path, "--size", SIZE, listen=listen)
        if kind == "tcp":
            # The server will be where the receiver was.
            port = self._receiver.uri.rpartition(":")[2].strip("/")
            self._port = f"tcp:{port}:interface=127.0.0.1"
        elif "relay" in options:
            options += ("--relay-to", f"nbd+unix:///?socket={self._socket}")
        self._mirror = self._processes.start(
            *(BLOCKMIG, "mirror", "--control", self._source_control, self._receiver.uri),
            *("--wait", "--progress=none", "--max-rate", SLOW, *options),
        )

        def once() -> bool:
            assert self._mirror.status is None, self._mirror.stderr
            mirror = ask(self._source_control, "GET", "/status").get("mirror")
            return bool(mirror and mirror["sent"] + mirror["zeroes"] >= END)

        until(once, 60, "all that is used has gone over")
        assert ask(self._source_control, "GET", "/status")["mirror"]["pass"] == 1

    def finish(self, spoil: Callable[[Path], None] | None = None) -> None:
        """As fast as it goes, until there is a server of what was received.

        @param spoil: called with what was received, before that.
        """
        with contextlib.suppress(ControlError):  # it is over already
            ask(self._source_control, "POST", "/rate", {"max_rate": None})
        assert self._mirror.wait(60) == 0, self._mirror.stderr
        assert self._receiver.wait(20) == 0, self._receiver.stderr
        self.handed_over = self._source.events("handed-over")[0]
        if ask_then(self._mirror) == "relay":
            self.relays.append(self._source)
        else:
            ended(self._source)
        self._old.unlink()
        if spoil is not None:
            spoil(self.path)
        self._serve(self._port)

    def left(self) -> None:
        """All clients are gone, and with them those that served them once."""
        for relay in self.relays:
            ended(relay)
        self.relays.clear()
        assert self.server.status is None, self.server.stderr

    def stop(self) -> None:
        """The last server ends in good order."""
        self.server.signal(signal.SIGTERM)
        ended(self.server)


def ask_then(mirror: Running) -> str:
    """What its server does afterwards."""
    return "relay" if "relay" in mirror.arguments else "exit"


def ended(server: Running) -> None:
    """It ends in good order, and nothing went wrong before."""
    assert server.wait(20) == 0, server.stderr
    noticed = [event for event in server.events() if event["level"] not in ("info", "debug")]
    # It has to take its time where the machine is slow.
    bad = [event for event in noticed if event["event"] not in ("not-converging", "released")]
    assert not bad, bad


@dataclass(frozen=True)
class Run:
    """A run of fio.

    @ivar kind: how it is connected.
    @ivar moves: how often the disk is moved meanwhile, with `relay`.
    @ivar cut: whether the hand-off comes in the middle of its writing, with `exit`.
    """

    work: str
    kind: str
    depth: int
    moves: int = 0
    cut: bool = False


RELAYED = [
    Run("sequential", "tcp", 16, 4),
    Run("random", "unix", 16, 4),
    Run("trims", "tcp", 1, 4),
    Run("mixed", "unix", 16, 4),
    Run("four", "tcp", 16, 4),
]
ENDED = [
    Run(work, KINDS[(index + turn) % 2], 1 if cut else 16, cut=cut)
    for turn, cut in enumerate((False, True, False, True))
    for index, work in enumerate(WORKLOADS)
]


@pytest.mark.parametrize("runs", [RELAYED if FULL else [Run("four", "tcp", 16, 2)]], ids=["all"])
def test_fio_stays_on_one_connection_while_its_disk_is_relayed(
    processes: Processes, room: Path, runs: list[Run]
) -> None:
    moves = Moves(processes, room)
    for number, run in enumerate(runs):
        fio = Fio(processes, WORKLOADS[run.work], number, run.depth)
        fio.start(moves.uris[run.kind], moves.control)
        for _ in range(run.moves):
            moves.begin(KINDS[moves.count % 2], "--then", "relay", "--linger", "0")
            moves.finish()
            time.sleep(0.5)
        fio.stop()
        fio.check_reads()
        moves.left()
        blocks = fio.verify(moves.uris[run.kind], spare=fio.unsure)
        print(f"\n{run}: {blocks} blocks found at server {moves.count}; {fio.counts}")
        fio.check(moves.path)
    moves.stop()


@pytest.mark.parametrize(
    "runs",
    [ENDED if FULL else [Run("four", "unix", 16), Run("four", "tcp", 1, cut=True)]],
    ids=["all"],
)
def test_each_fio_finds_at_the_next_server_what_the_one_before_wrote(
    processes: Processes, room: Path, runs: list[Run]
) -> None:
    moves = Moves(processes, room)
    for number, run in enumerate(runs):
        fio = Fio(processes, WORKLOADS[run.work], number, run.depth)
        fio.start(moves.uris[run.kind], moves.control)
        moves.begin(KINDS[number // 2 % 2], "--then", "exit")
        if not run.cut:
            fio.stop()
        moves.finish()
        if run.cut:
            fio.was_cut_off()
        blocks = fio.verify(moves.uris[run.kind], spare=1 if run.cut else fio.unsure)
        print(f"\n{run}: {blocks} blocks found at server {moves.count}; {fio.counts}")
        fio.check(moves.path, spare=4096 * run.cut)
    moves.stop()


def flip_a_bit(path: Path) -> None:
    """In the middle of the first block of each job that writes each once."""
    with path.open("r+b") as file:
        for start in range(KEPT, CHECKED, ROOM):
            at = os.lseek(file.fileno(), start, os.SEEK_DATA)
            # What is data to the file system need not be written by fio.
            while at < start + ROOM and not any(os.pread(file.fileno(), 4096, at)):
                at += 4096
            if at < start + ROOM:
                byte = os.pread(file.fileno(), 1, at + 2000)[0]
                os.pwrite(file.fileno(), bytes([byte ^ 4]), at + 2000)


@pytest.mark.slow
@pytest.mark.parametrize("then", ["exit", "relay"])
@pytest.mark.parametrize("work", ["sequential", "random"])
def test_one_wrong_bit_is_noticed(processes: Processes, room: Path, work: str, then: str) -> None:
    """All this would be worth nothing if fio did not look."""
    moves = Moves(processes, room)
    fio = Fio(processes, WORKLOADS[work], 0, 16)
    fio.start(moves.uris["unix"], moves.control)
    moves.begin("unix", "--then", then)
    if then == "exit":
        fio.stop()
    moves.finish(flip_a_bit)
    if then == "relay":
        fio.stop()
    with pytest.raises(AssertionError, match="verify failed"):
        fio.verify(moves.uris["unix"], spare=fio.unsure)
