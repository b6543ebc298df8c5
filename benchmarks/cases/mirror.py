"""What clients notice of a disk that is moved while they use it.

Two tables. First, the longest time that a client waited for an answer over so many hand-offs, at so
many writes a second: a client writes 4 KiB at random, each write when it is due, and takes the time
from the moment it was due until its answer. It is passed on to the new server (`--then relay`).
That is a `blockmig serve --standby` that was started before; or, with `--new-server`, one that is
started behind `receive`, or a program that receives the disk and then serves it itself. Beside it
what the rest needed that went over while clients were held, at the rate of the whole.

Then how much of its throughput a client keeps while the passes go on: fio with libnbd as fast as it
can, without a mirror, with one that has no limit, and with one at half of what the wire carries.
The pairs in turn, medians of all rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shlex
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from latency import BLOCKMIG, wait_for
from throughput import make_source

from blockmig.control import ask

LOADS = {
    "4 KiB random writes, 1 in flight": ["--rw=randwrite", "--bs=4k", "--iodepth=1"],
    "4 KiB random writes, 32 in flight": ["--rw=randwrite", "--bs=4k", "--iodepth=32"],
    "4 KiB random reads, 1 in flight": ["--rw=randread", "--bs=4k", "--iodepth=1"],
    "4 KiB random reads, 32 in flight": ["--rw=randread", "--bs=4k", "--iodepth=32"],
    "256 KiB random reads, 8 in flight": ["--rw=randread", "--bs=256k", "--iodepth=8"],
}


def receive_and_serve(folder: str, size: int) -> None:
    """The program at the destination: it receives, and then serves, in one process."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.endpoints import UNIXServerEndpoint

    from blockmig.migration.destination.receiver import Receiver
    from blockmig.server import Server
    from blockmig.storage import open_disk

    async def run() -> None:
        disk = open_disk(f"{folder}/destination", size=size)
        receiver = Receiver(disk)
        port = await UNIXServerEndpoint(reactor, f"{folder}/receive").listen(receiver.factory())
        await receiver.complete()
        server = Server(disk)
        await UNIXServerEndpoint(reactor, f"{folder}/serve").listen(server.factory())
        await port.stopListening()

    Deferred.fromCoroutine(run()).addErrback(lambda failure: failure.printTraceback())
    reactor.run()


class Writer:
    """A client that writes so often, one write at a time."""

    def __init__(self, path: str, size: int, span: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._span = min(span, size) // 4096
        self._random = random.Random(1)
        self._take(18)
        self._socket.sendall(struct.pack("!I", 3) + struct.pack("!8sII", b"IHAVEOPT", 1, 0))
        self._take(10)

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self._socket.recv(count - len(data)) or sys.exit("the server is gone")
        return data

    def write(self) -> None:
        self.write_at(self._random.randrange(self._span) * 4096)

    def write_at(self, offset: int) -> None:
        head = struct.pack("!IHHQQI", 0x25609513, 0, 1, 0, offset, 4096)
        self._socket.sendall(head + self._random.randbytes(4096))
        if struct.unpack("!IIQ", self._take(16))[1]:
            sys.exit("a write failed")

    def close(self) -> None:
        self._socket.sendall(struct.pack("!IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
        self._socket.close()


def forget(path: str) -> None:
    """Have a source that was migrated serve once more: its marks are gone."""
    for name in os.listxattr(path):
        if name.startswith("user.blockmig."):
            os.removexattr(path, name)


def destination(folder: str, size: int, new_server: str) -> list[list[str]]:
    """The commands at the destination; the new server has the socket C{serve}."""
    if new_server == "same-process":
        return [[sys.executable, __file__, "--receive", folder, "--bytes", str(size)]]
    disk = ["-q", "--file", f"{folder}/destination"]
    receive = [*BLOCKMIG, "receive", *disk, "--size", str(size)]
    receive += ["--listen", f"unix:{folder}/receive"]
    serve = [*BLOCKMIG, "serve", *disk, "--listen", f"unix:{folder}/serve"]
    if new_server == "standby":
        return [[*serve, "--standby"], receive]
    return [["sh", "-c", f"{shlex.join(receive)} && exec {shlex.join(serve)}"]]


def hand_off(folder: str, size: int, rate: int, span: int, new_server: str) -> dict[str, float]:
    """One migration; how long the client waited at most, and what the mirror says of it."""
    for name in os.listdir(folder):
        if name != "source":
            Path(folder, name).unlink(missing_ok=True)
    forget(f"{folder}/source")
    control = f"{folder}/control"
    serve = [*BLOCKMIG, "serve", "-q", "--file", f"{folder}/source", "--control", control]
    serve += ["--listen", f"unix:{folder}/source.socket"]
    with contextlib.ExitStack() as running:
        source = running.enter_context(subprocess.Popen(serve, stdin=subprocess.DEVNULL))
        there = [
            running.enter_context(subprocess.Popen(command, start_new_session=True))
            for command in destination(folder, size, new_server)
        ]
        try:
            time.sleep(1.5 if new_server == "standby" else 0)  # it must have begun to wait
            wait_for(f"{folder}/source.socket")
            wait_for(f"{folder}/receive")
            writer = Writer(f"{folder}/source.socket", size, span)
            longest, began = 0.0, time.perf_counter()
            wanted = {"uri": f"nbd+unix:///?socket={folder}/receive", "then": "relay", "linger": 0}
            wanted["relay_to"] = f"nbd+unix:///?socket={folder}/serve"
            mirror = subprocess.Popen(
                [sys.executable, __file__, "--mirror", control, "--wanted", json.dumps(wanted)],
                stdout=subprocess.PIPE,
                text=True,
            )
            due, end = began, None
            while end is None or time.perf_counter() < end:
                if time.perf_counter() - began > 60:
                    raise SystemExit("the mirror does not come to its end")
                if end is None and mirror.poll() is not None:
                    end = time.perf_counter() + 0.2
                # At no writes a second it reads a byte now and then, so that it can notice.
                due += 1 / rate if rate else 0.001
                time.sleep(max(0.0, due - time.perf_counter()))
                due = max(due, time.perf_counter() - 0.001)  # it does not make up for a pause
                if rate:
                    writer.write()
                else:
                    read_one(writer)
                longest = max(longest, time.perf_counter() - due)
            assert mirror.stdout is not None
            status = json.loads(mirror.stdout.read())
            writer.close()
            source.wait(10)
        finally:
            source.kill()
            for each in there:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(each.pid, signal.SIGKILL)
    return {"longest": longest, **status}


def read_one(writer: Writer) -> None:
    writer._socket.sendall(struct.pack("!IHHQQI", 0x25609513, 0, 0, 0, 0, 512))
    writer._take(16 + 512)


def mirror(control: str, wanted: dict[str, Any]) -> None:
    """Begin one, and tell how it was when it is over (in a process of its own)."""
    ask(control, "POST", "/mirror", wanted, timeout=60)
    ask(control, "POST", "/mirror/wait", {}, timeout=120)
    found = ask(control, "GET", "/status")["mirror"]
    print(json.dumps({name: found[name] for name in ("pause", "rest", "sent", "seconds", "pass")}))


def pauses(folder: str, options: argparse.Namespace) -> None:
    size = options.size << 20
    make_source(Path(folder, "source"), size)
    rows = []
    for rate in options.rates:
        found = []
        for _ in range(options.hand_offs):
            span = options.span << 20
            found.append(hand_off(folder, size, rate, span, options.new_server))
            print(".", end="", file=sys.stderr, flush=True)
        wire = statistics.median(one["sent"] / one["seconds"] for one in found)
        beyond = [1000 * (one["longest"] - one["rest"] / wire) for one in found]
        longest = [1000 * one["longest"] for one in found]
        held = [1000 * one["pause"] for one in found]
        rows.append(
            f"| {rate} | {len(found)} | {statistics.median(longest):.0f} | {max(longest):.0f} | "
            f"{max(one['rest'] for one in found) / 1e6:.1f} | {wire / 1e6:.0f} | "
            f"{statistics.median(beyond):.0f} | {max(beyond):.0f} | {max(held):.0f} | "
            f"{max(one['pass'] for one in found):.0f} |"
        )
    print(
        "\n\n| writes a second | hand-offs | longest wait, median, ms | longest, ms "
        "| most left, MB | wire, MB/s | beyond the rest, median, ms | longest, ms "
        "| held, longest, ms | passes |"
    )
    print("| --: " * 10 + "|")
    print("\n".join(rows), flush=True)


def fio(uri: str, load: list[str], seconds: float, size: int) -> float:
    """Requests a second."""
    command = [
        *("fio", "--name=load", "--thread", "--ioengine=nbd", f"--uri={uri}", *load),
        *("--time_based", f"--runtime={round(1000 * seconds)}ms", "--norandommap"),
        *(f"--size={size}", "--gtod_reduce=1", "--output-format=json"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    job = json.loads(said[said.index("{") :])["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])


def shares(folder: str, options: argparse.Namespace) -> None:
    """The throughput of a client beside the passes."""
    size = options.large << 20
    make_source(Path(folder, "source"), size)
    Path(folder, "source.MIGRATED").unlink(missing_ok=True)
    forget(f"{folder}/source")
    control, uri = f"{folder}/control", f"nbd+unix:///?socket={folder}/source.socket"
    serve = [*BLOCKMIG, "serve", "-q", "--file", f"{folder}/source", "--control", control]
    serve += ["--listen", f"unix:{folder}/source.socket"]
    for name in ("destination", "destination.RECEIVED"):
        Path(folder, name).unlink(missing_ok=True)
    receive = [*BLOCKMIG, "receive", "-q", "--file", f"{folder}/destination", "--size", str(size)]
    receive += ["--listen", f"unix:{folder}/receive"]
    wanted = {"uri": f"nbd+unix:///?socket={folder}/receive", "max_pause": 0.0001}
    with subprocess.Popen(serve) as source, subprocess.Popen(receive) as destination:
        try:
            wait_for(f"{folder}/source.socket")
            wait_for(f"{folder}/receive")

            def beside(rate: float | None, load: list[str] | None) -> tuple[float, float]:
                """Requests a second, and bytes of the mirror a second, while it goes on."""
                ask(control, "POST", "/mirror", {**wanted, "max_rate": rate}, timeout=30)
                time.sleep(0.1)
                began = time.monotonic()
                before = ask(control, "GET", "/status")["mirror"]["sent"]
                if load is None:
                    time.sleep(1)
                    found = 0.0
                else:
                    found = fio(uri, load, options.seconds, size)
                sent = ask(control, "GET", "/status")["mirror"]["sent"] - before
                seconds = time.monotonic() - began
                ask(control, "POST", "/break", {}, timeout=30)
                time.sleep(0.3)
                return found, sent / seconds

            wire = statistics.median(beside(None, None)[1] for _ in range(3))
            print(f"\n\nThe wire carries {wire / 1e6:.0f} MB/s of an idle disk.\n")
            print(
                "| load | alone, 1/s | no limit, 1/s | share | mirrored, MB/s "
                "| half the wire, 1/s | share | mirrored, MB/s |"
            )
            print("| --- | --: | --: | --: | --: | --: | --: | --: |", flush=True)
            for name, load in LOADS.items():
                alone, free, half, sent_free, sent_half = [], [], [], [], []
                for _ in range(options.rounds):
                    alone.append(fio(uri, load, options.seconds, size))
                    found, sent = beside(None, load)
                    free.append(found)
                    sent_free.append(sent)
                    found, sent = beside(wire / 2, load)
                    half.append(found)
                    sent_half.append(sent)
                    print(".", end="", file=sys.stderr, flush=True)
                a, f, h = map(statistics.median, (alone, free, half))
                print(
                    f"| {name} | {a:.0f} | {f:.0f} | {100 * f / a:.0f} % | "
                    f"{statistics.median(sent_free) / 1e6:.0f} | {h:.0f} | {100 * h / a:.0f} % | "
                    f"{statistics.median(sent_half) / 1e6:.0f} |",
                    flush=True,
                )
        finally:
            source.kill()
            destination.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["pauses", "shares"])
    parser.add_argument(
        "--new-server",
        choices=["standby", "started", "same-process"],
        default="standby",
        help="which server the client is relayed to (standby)",
    )
    parser.add_argument(
        "--rates",
        type=lambda text: [int(rate) for rate in text.split(",")],
        default=[0, 1000, 10000],
        help="writes a second, with commas between them (0,1000,10000)",
    )
    parser.add_argument("--hand-offs", type=int, default=20, help="at each rate (20)")
    parser.add_argument("--size", type=int, default=512, help="MiB of the disk handed over (512)")
    parser.add_argument("--span", type=int, default=512, help="MiB of it written to (512)")
    parser.add_argument("--large", type=int, default=4096, help="MiB of the disk of the shares")
    parser.add_argument("--rounds", type=int, default=5, help="of the shares (5)")
    parser.add_argument("--seconds", type=float, default=2, help="of each load (2)")
    parser.add_argument("--receive", help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--mirror", help=argparse.SUPPRESS)
    parser.add_argument("--wanted", help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends as well
    if options.receive:
        receive_and_serve(options.receive, options.bytes)
        return
    if options.mirror:
        mirror(options.mirror, json.loads(options.wanted))
        return
    print(
        f"Random data in /dev/shm over UNIX sockets, {os.cpu_count()} CPUs for all processes, "
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"load before: {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as folder:
        if options.only != "shares":
            pauses(folder, options)
        if options.only != "pauses":
            shares(folder, options)


if __name__ == "__main__":
    main()
