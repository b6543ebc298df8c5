"""fio, with libnbd, at `serve`: all that it wrote it reads again, whatever happens meanwhile.

Its jobs have a connection and a part of the disk each, side by side: whatever one of them, or the
one that only trims, does outside of its own part is found by another, or by the look at the image
after the end. Within its part a job writes blocks of 512 bytes to 1 MiB anywhere, over and over,
sixteen at a time, and reads them back, each with its checksum.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.disks import MIB
from tests.support.processes import FULL, Processes, Running
from tests.support.serving import KINDS, Served, serve

SECONDS = 180.0 if FULL else 3.0
PART = 16 * MIB
PATTERN = bytes(range(1, 129)) * 4
"""What is where nobody has written."""

TRIMMED, EXTRA, PARTS = 4, 5, 7
SPLIT = "--bssplit=512/30:4k/30:96k/20:1m/20"
VERIFIED = {
    "mixed": (0, ["--rw=randrw"]),
    "written": (1, ["--rw=randrw", "--rwmixwrite=75"]),
    "synced": (2, ["--rw=randwrite", "--fsync=40", "--iodepth=4"]),
    # Trimmed, written and read, one block after the other: fio can do that in order only, and
    # forgets that what it trims is then not what it wrote there before.
    "trimmed": (3, ["--rw=trimwrite", SPLIT, "--iodepth=1", "--verify_backlog=1"]),
}

CORRUPTING = """
import os, sys
from dataclasses import replace
from twisted.internet import reactor
from blockmig.cli.commands import parse
from blockmig.cli.logs import begin_logging, line_writer
from blockmig.cli.operations import report, run_operation
from blockmig.cli.serve_operation import ServeOperation
from blockmig.runtime import Runtime
from blockmig.syscalls import SystemCalls

class Corrupting(SystemCalls):
    count = 0
    def pwrite(self, descriptor, data, offset):
        self.count += 1
        if self.count % 50 == 0 and len(data):
            data = bytearray(data)
            data[len(data) // 2] ^= 1
        return os.pwrite(descriptor, data, offset)

_, options = parse(sys.argv[1:])
begin_logging(options, line_writer(2))
operation = ServeOperation(options, replace(Runtime.of(reactor), system=Corrupting()))
raise SystemExit(run_operation(reactor, report(operation), operation.stop))
"""


def start(processes: Processes, uri: str, seconds: float, jobs: dict[str, Any]) -> Running:
    """Let fio do all the jobs at once, each on a connection of its own."""
    command = [
        *("fio", "--thread", "--ioengine=nbd", f"--uri={uri}", "--output-format=json"),
        *("--verify=crc32c", "--verify_fatal=1", "--serialize_overlap=1"),
        *("--blockalign=512", "--iodepth=16", f"--size={PART}", "--randrepeat=0"),
        *("--time_based", f"--runtime={round(1000 * seconds)}ms", "--verify_state_save=0"),
    ]
    for name, (number, options) in jobs.items():
        sizes = [] if SPLIT in options else ["--bsrange=512-1M", "--verify_backlog=100"]
        command += [f"--name={name}", f"--offset={number * PART}", *sizes, *options]
    return processes.start(*command)


def finished(fio: Running, seconds: float, patience: float = 60.0) -> dict[str, Any]:
    """Its jobs by name; all of them did their work, without an error and to the end."""
    status = fio.wait(seconds + patience)
    said = fio.stderr + fio.stdout.partition("{\n")[0]
    assert status == 0, said
    assert "verify:" not in said, said
    _, brace, report = fio.stdout.partition("{\n")
    assert "rror" not in said, said
    jobs = {job["jobname"]: job for job in json.loads(brace + report)["jobs"]}
    for name, job in jobs.items():
        # fio ends with 0 even where the server has hung up.
        assert job["error"] == 0, (name, job["error"], said[:2000])
        assert job["job_runtime"] >= 900 * seconds, (name, job["job_runtime"])
    return jobs


def enough(jobs: dict[str, Any]) -> bool:
    """Did each of them do of its work what a test of it needs?"""
    wanted = {"randtrim": ["trim"], "trimwrite": ["trim", "write", "read"]}
    return all(
        job[what]["total_ios"] > 20
        for job in jobs.values()
        for what in wanted.get(job["job options"]["rw"], ["write", "read"])
    )


def worked(run: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
    """Let them work for as many seconds as they need on this machine for L{enough}."""
    seconds = SECONDS
    while True:
        jobs = run(seconds)
        if enough(jobs):
            return jobs
        seconds *= 2
        assert seconds <= max(60, SECONDS), jobs


class Disk:
    """An image without a zero, and a server of it."""

    def __init__(self, processes: Processes, room: Path, **options: Any) -> None:
        self.path = room / "disk"
        self.path.write_bytes(PATTERN * (PARTS * PART // len(PATTERN)))
        self.served: Served = serve(processes, self.path, **options)

    def check(self, also: tuple[int, ...] = ()) -> None:
        """What only trims has left, or zeroed, whole blocks; what nobody used is as it was."""
        with self.path.open("rb") as file:
            for number in range(PARTS):
                if number < TRIMMED or number in also:
                    continue
                file.seek(number * PART)
                part = file.read(PART)
                blocks = {part[at : at + 512] for at in range(0, PART, 512)}
                wanted = {PATTERN, bytes(512)} if number == TRIMMED else {PATTERN}
                assert blocks <= wanted, f"part {number} has {len(blocks)} kinds of blocks"

    def stop(self) -> None:
        """Its end is in good order, and it has nothing to say."""
        server = self.served.running
        assert server.status is None, server.stderr
        server.signal(signal.SIGTERM)
        assert server.wait(20) == 0, server.stderr
        noticed = [event for event in server.events() if event["level"] not in ("info", "debug")]
        assert not noticed, noticed


JOBS = {**VERIFIED, "trims": (TRIMMED, ["--rw=randtrim"])}


@pytest.fixture
def disk(processes: Processes, room: Path) -> Disk:
    return Disk(processes, room)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_fio_wrote_it_reads_again(processes: Processes, disk: Disk, kind: str) -> None:
    uri = disk.served.uris[kind]
    jobs = worked(lambda seconds: finished(start(processes, uri, seconds, JOBS), seconds))
    counts = {
        name: tuple(job[what]["total_ios"] for what in ("read", "write", "trim"))
        for name, job in jobs.items()
    }
    print(f"\n{kind}: {counts}")
    disk.stop()
    disk.check()


@pytest.mark.parametrize("kind", KINDS if FULL else ["unix"])
def test_a_client_that_is_stopped_and_continued_loses_nothing(
    processes: Processes, disk: Disk, kind: str
) -> None:
    """The client stands still for a while, in the middle of anything, every 0.3 s."""

    def stopped_and_continued(seconds: float) -> dict[str, Any]:
        fio = start(processes, disk.served.uris[kind], seconds, JOBS)
        end = time.monotonic() + seconds
        stops = 0
        while time.monotonic() < end and fio.status is None:
            time.sleep(0.15)
            fio.signal(signal.SIGSTOP)
            time.sleep(0.15)
            fio.signal(signal.SIGCONT)
            stops += 1
        jobs = finished(fio, seconds)
        assert stops >= seconds, stops
        return jobs

    worked(stopped_and_continued)
    disk.stop()
    disk.check()


@pytest.mark.parametrize("kind", KINDS if FULL else ["tcp"])
def test_a_client_that_is_killed_harms_no_other(
    processes: Processes, disk: Disk, kind: str
) -> None:
    """Another client beside them dies, over and over; what they wrote is not touched by that."""
    uri = disk.served.uris[kind]
    doomed_job = {"doomed": (EXTRA, ["--rw=randrw", "--rwmixwrite=80"])}

    def beside_others(seconds: float) -> dict[str, Any]:
        fio = start(processes, uri, seconds, JOBS)
        end = time.monotonic() + seconds - 0.5
        kills = 0
        while time.monotonic() < end:
            doomed = start(processes, uri, 600, doomed_job)
            time.sleep(1.0 if FULL else 0.7)
            assert doomed.status is None, doomed.stderr
            doomed.kill()
            kills += 1
        assert kills >= seconds / 3, kills
        return finished(fio, seconds)

    worked(beside_others)
    apart = start(processes, uri, 1.0, {"apart": (EXTRA, VERIFIED["written"][1])})
    assert finished(apart, 1.0)["apart"]["write"]["total_ios"]
    disk.stop()
    disk.check(also=(EXTRA,))


def corrupted(processes: Processes, disk: Disk, jobs: dict[str, Any]) -> str:
    fio = start(processes, disk.served.uris["unix"], 2.0, jobs)
    assert fio.wait(60) != 0
    return fio.stderr + fio.stdout


@pytest.mark.parametrize("name", VERIFIED)
def test_one_wrong_bit_is_noticed(processes: Processes, room: Path, name: str) -> None:
    """All this would be worth nothing if fio did not look."""
    disk = Disk(processes, room, command=(sys.executable, "-c", CORRUPTING, "serve"))
    assert "verify" in corrupted(processes, disk, {name: VERIFIED[name]})


def test_what_was_written_in_another_part_is_noticed(processes: Processes, room: Path) -> None:
    """Nor would the look at the image, if it did not find what does not belong there."""
    disk = Disk(processes, room)
    finished(start(processes, disk.served.uris["unix"], 0.5, {"trims": JOBS["trims"]}), 0.5)
    disk.check()
    for at, what in ((TRIMMED, PATTERN[:511] + b"\0"), (EXTRA, bytes(512))):
        with disk.path.open("r+b") as file:
            file.seek(at * PART + 512)
            before = file.read(512)
            file.seek(at * PART + 512)
            file.write(what)
        with pytest.raises(AssertionError, match=f"part {at}"):
            disk.check()
        with disk.path.open("r+b") as file:
            file.seek(at * PART + 512)
            file.write(before)
    disk.check()
