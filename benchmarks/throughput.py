"""How fast a disk moves, beside the programs that people would use instead.

Each competitor is a pair of processes: one that listens and writes a file, one that reads the disk
and sends it. The time is the whole time: from the start of the first process to the end of both.
The competitors run in turn, round after round, so that whatever else the machine does hits all of
them alike; the first round is thrown away, and is where the copies are compared with the source.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import platform
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
BLOCKMIG = str(Path(sys.executable).with_name("blockmig"))
BARE = [sys.executable, "-SE", str(HERE / "bare.py")]
OURS = "blockmig send → blockmig receive"
PATIENCE = 120.0


@dataclass
class TestBed:
    """Where one run happens."""

    source: Path
    destination: Path
    size: int
    transport: str
    address: str
    uri: str

    @property
    def endpoint(self) -> str:
        if self.transport == "unix":
            return f"unix:{self.address}"
        return f"tcp:{self.address}:interface=127.0.0.1"


@dataclass
class Competitor:
    """Two commands, and what they took."""

    name: str
    receive: list[str]
    send: list[str]
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    by_itself: bool = True


def competitors(place: TestBed, mixed: bool) -> list[Competitor]:
    """All of them, ours first."""
    source, destination, uri = str(place.source), str(place.destination), place.uri
    ours = [BLOCKMIG, "receive", "-q", "--file", destination, "--size", str(place.size)]
    ours += ["--listen", place.endpoint]
    sender = [BLOCKMIG, "send", "-q", "--progress", "none", source, uri]
    where = ["--ipaddr=127.0.0.1", f"--port={place.address}"]
    if place.transport == "unix":
        where = [f"--unix={place.address}"]
    nbdkit = ["nbdkit", "--foreground", *where, "file", destination]
    nbdcopy = ["nbdcopy", "--flush"]
    tuned = [*nbdcopy, "--request-size=2097152", source, uri]
    qemu = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri]
    bare = [place.address, destination, str(place.size)]
    bare_send = [*BARE, "send", place.address, source]
    every = [
        Competitor(OURS, ours, sender),
        Competitor("nbdcopy → nbdkit file", nbdkit, [*nbdcopy, source, uri], by_itself=False),
        Competitor("nbdcopy --request-size=2M → nbdkit file", nbdkit, tuned, by_itself=False),
        Competitor("qemu-img convert → nbdkit file", nbdkit, qemu, by_itself=False),
        Competitor("bare sendfile → recv_into, pwrite", [*BARE, "copy", *bare], bare_send),
        Competitor("bare sendfile → splice", [*BARE, "splice", *bare], bare_send),
    ]
    if mixed:
        every += [
            Competitor("blockmig send → nbdkit file", nbdkit, sender, by_itself=False),
            Competitor("nbdcopy --request-size=2M → blockmig receive", ours, tuned),
        ]
    return every


def listens(place: TestBed) -> bool:
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


def end_of(process: subprocess.Popen[bytes], status: int | None = 0) -> float:
    """Wait for it; the CPU seconds that it took."""
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if status is not None and process.returncode != status:
        raise SystemExit(f"{shlex.join(process.args)}: exit status {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def forget(place: TestBed) -> None:
    """What is finished is remembered, and would not be done again."""
    for path in (f"{place.source}.MIGRATED", f"{place.destination}.RECEIVED"):
        Path(path).unlink(missing_ok=True)
    if place.transport == "unix":
        Path(place.address).unlink(missing_ok=True)


def start(command: list[str]) -> subprocess.Popen[bytes]:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    return subprocess.Popen(command, **quiet)


def await_listener(place: TestBed, command: list[str]) -> None:
    until = time.monotonic() + PATIENCE
    while not listens(place):
        if time.monotonic() > until:
            raise SystemExit(f"{shlex.join(command)}: does not listen")
        time.sleep(0.001)


def run(competitor: Competitor, place: TestBed, *, keep: bool = False) -> None:
    """One migration.

    @param keep: write into the file that is there.
    """
    forget(place)
    if not keep:
        place.destination.unlink(missing_ok=True)
    if not competitor.by_itself and not keep:  # nbdkit wants its file to be there
        with place.destination.open("wb") as file:
            file.truncate(place.size)
    began = time.monotonic()
    receiver = start(competitor.receive)
    try:
        await_listener(place, competitor.receive)
        cpu = end_of(start(competitor.send))
        if not competitor.by_itself:
            receiver.send_signal(signal.SIGTERM)
        cpu += end_of(receiver)
    finally:
        if receiver.returncode is None:
            receiver.kill()
    competitor.seconds.append(time.monotonic() - began)
    competitor.cpu.append(cpu)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def make_source(path: Path, size: int) -> None:
    """Random data: nothing of it is a hole."""
    with path.open("wb") as file:
        for _ in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - file.tell())))


def show(title: str, size: int, every: list[Competitor]) -> None:
    """A table in Markdown; all are compared with the first."""
    ours = statistics.median(every[0].seconds)
    print(f"\n{title}:\n")
    print("| | GB/s, median | min - max | s, median | CPU s | beside blockmig |")
    print("| --- | --: | --: | --: | --: | --: |")
    for competitor in every:
        seconds = statistics.median(competitor.seconds)
        rates = sorted(size / s / 1e9 for s in competitor.seconds)
        print(
            f"| {competitor.name} | {size / seconds / 1e9:.2f} | {rates[0]:.2f} - {rates[-1]:.2f} "
            f"| {seconds:.2f} | {statistics.median(competitor.cpu):.2f} | {ours / seconds:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=2048, help="MiB (2048)")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="/dev/shm")
    parser.add_argument("--transport", choices=("tcp", "unix"), action="append")
    parser.add_argument("--mixed", action="store_true", help="our halves with others' as well")
    options = parser.parse_args()
    size = options.size << 20
    load = os.getloadavg()[0]
    print(
        f"{options.size} MiB of random data in {options.folder}, {options.rounds} rounds, "
        f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}, "
        f"load before: {load:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        source = Path(folder, "source")
        make_source(source, size)
        for transport in options.transport or ("tcp", "unix"):
            address = str(free_port()) if transport == "tcp" else f"{folder}/socket"
            uri = f"nbd://127.0.0.1:{address}/"
            if transport == "unix":
                uri = f"nbd+unix:///?socket={address}"
            place = TestBed(source, Path(folder, "copy"), size, transport, address, uri)
            every = competitors(place, options.mixed)
            for number in range(options.rounds + 1):
                for competitor in every:
                    run(competitor, place)
                    if number == 0 and not filecmp.cmp(source, place.destination, shallow=False):
                        raise SystemExit(f"{competitor.name}: the copy differs")
                    print(".", end="", file=sys.stderr, flush=True)
            for competitor in every:
                del competitor.seconds[0], competitor.cpu[0]
            print(file=sys.stderr)
            show(transport.upper(), size, every)


if __name__ == "__main__":
    main()
