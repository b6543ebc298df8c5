"""What clients notice of a disk that is moved while they use it.

Two tables. First, the longest time that a client waited for an answer over so many hand-offs, at so
many writes a second: a client writes 4 KiB at random, each write when it is due, and takes the time
from the moment it was due until its answer. It is passed on to the new server (`--then relay`).
That is a `blockmig serve --standby` that was started before; or one that is started behind
`receive`; or a program that receives the disk and then serves it itself.

Then how much of its throughput a client keeps while the passes go on: fio with libnbd as fast as it
can, without a mirror, with one that has no limit, and with one at half of what the wire carries.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blockmig.control import ask

from ..fio import Load
from ..fio import ask as ask_by_fio
from ..machine import ROOT
from ..pairs import BLOCKMIG
from ..places import make_random, unmark
from ..results import Comparison, Table
from ..settings import MIB, Settings, step
from ..web import role, wait_for

LOADS = [
    Load("write", True, 4 << 10, 1),
    Load("write", True, 4 << 10, 32),
    Load("read", True, 4 << 10, 1),
    Load("read", True, 4 << 10, 32),
    Load("read", True, 256 << 10, 8),
]
SECONDS = 1.0
"""Of each load."""
HAND_OFFS = (
    ("standby", 0),
    ("standby", 1000),
    ("standby", 10_000),
    ("started", 1000),
    ("same process", 1000),
)
"""The new server, and how often a client writes, in a second."""
NEW_SERVERS = {
    "standby": "`serve --standby`",
    "started": "`receive && serve`",
    "same process": "one process",
}
ALONE, FREE, HALF = "alone", "beside a mirror", "at half the wire"


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

    def read(self) -> None:
        self._socket.sendall(struct.pack("!IHHQQI", 0x25609513, 0, 0, 0, 0, 512))
        self._take(16 + 512)

    def close(self) -> None:
        self._socket.sendall(struct.pack("!IHHQQI", 0x25609513, 0, 2, 0, 0, 0))
        self._socket.close()


def destination(folder: str, size: int, new_server: str) -> list[list[str]]:
    """The commands at the destination; the new server has the socket C{serve}."""
    if new_server == "same process":
        return [role(__name__, "receive", folder, str(size))]
    disk = ["-q", "--file", f"{folder}/destination"]
    receive = [BLOCKMIG, "receive", *disk, "--size", str(size)]
    receive += ["--listen", f"unix:{folder}/receive"]
    serve = [BLOCKMIG, "serve", *disk, "--listen", f"unix:{folder}/serve"]
    if new_server == "standby":
        return [[*serve, "--standby"], receive]
    return [["sh", "-c", f"{shlex.join(receive)} && exec {shlex.join(serve)}"]]


def hand_off(folder: str, size: int, rate: int, span: int, new_server: str) -> dict[str, float]:
    """One migration; how long the client waited at most, and what the mirror says of it."""
    for name in os.listdir(folder):
        if name != "source":
            Path(folder, name).unlink(missing_ok=True)
    unmark(Path(folder, "source"))
    control = f"{folder}/control"
    serve = [BLOCKMIG, "serve", "-q", "--file", f"{folder}/source", "--control", control]
    serve += ["--listen", f"unix:{folder}/source.socket"]
    with contextlib.ExitStack() as running:
        quiet = subprocess.DEVNULL
        source = running.enter_context(subprocess.Popen(serve, stdin=quiet, stderr=quiet))
        there = [
            running.enter_context(
                subprocess.Popen(command, cwd=ROOT, stderr=quiet, start_new_session=True)
            )
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
                role(__name__, "mirror", control, json.dumps(wanted)),
                cwd=ROOT,
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
                    writer.read()
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


def mirror(control: str, wanted: dict[str, Any]) -> None:
    """Begin one, and tell how it was when it is over (in a process of its own)."""
    ask(control, "POST", "/mirror", wanted, timeout=60)
    ask(control, "POST", "/mirror/wait", {}, timeout=120)
    found = ask(control, "GET", "/status")["mirror"]
    print(json.dumps({name: found[name] for name in ("pause", "rest", "sent", "seconds", "pass")}))


def pauses(folder: str, settings: Settings, size: int) -> Iterator[Comparison]:
    """The longest waits, for each of L{HAND_OFFS}."""
    for new_server, rate in HAND_OFFS:
        name = f"{NEW_SERVERS[new_server]}, {rate:,} writes a second"
        if not settings.wants(name):
            continue
        found = []
        for _ in range(min(settings.rounds, 3)):
            found.append(hand_off(folder, size, rate, size, new_server))
            step()
        samples = {
            "longest wait": [1000 * one["longest"] for one in found],
            "clients held": [1000 * one["pause"] for one in found],
            "the rest, MB": [one["rest"] / 1e6 for one in found],
        }
        yield Comparison(name, "ms", "longest wait", samples)


def shares(folder: str, settings: Settings, size: int) -> Iterator[Comparison]:
    """The throughput of a client beside the passes."""
    unmark(Path(folder, "source"))
    for name in os.listdir(folder):
        if name != "source":
            Path(folder, name).unlink()
    control, uri = f"{folder}/control", f"nbd+unix:///?socket={folder}/source.socket"
    serve = [BLOCKMIG, "serve", "-q", "--file", f"{folder}/source", "--control", control]
    serve += ["--listen", f"unix:{folder}/source.socket"]
    receive = destination(folder, size, "standby")[1]
    wanted = {"uri": f"nbd+unix:///?socket={folder}/receive", "max_pause": 0.0001}
    quiet = subprocess.DEVNULL  # of what goes wrong the control socket tells, too
    with (
        subprocess.Popen(serve, stderr=quiet) as source,
        subprocess.Popen(receive, stderr=quiet) as receiver,
    ):
        try:
            wait_for(f"{folder}/source.socket")
            wait_for(f"{folder}/receive")

            def beside(rate: float | None, client: Callable[[], float]) -> tuple[float, float]:
                """What a client gets, and bytes of the mirror a second, while it goes on."""
                ask(control, "POST", "/mirror", {**wanted, "max_rate": rate}, timeout=30)
                time.sleep(0.1)
                began = time.monotonic()
                before = ask(control, "GET", "/status")["mirror"]["sent"]
                found = client()
                sent = ask(control, "GET", "/status")["mirror"]["sent"] - before
                seconds = time.monotonic() - began
                ask(control, "POST", "/break", {}, timeout=30)
                time.sleep(0.3)
                return found, sent / seconds

            def nobody() -> float:
                time.sleep(0.5)
                return 0.0

            wire = statistics.median(beside(None, nobody)[1] for _ in range(3))
            for load in LOADS:
                if not settings.wants(str(load)):
                    continue

                def client(load: Load = load) -> float:
                    return ask_by_fio(uri, load, SECONDS)[1]

                found: dict[str, list[float]] = {ALONE: [], FREE: [], HALF: []}
                mirrored, limited = "mirrored, MB/s", "at half, MB/s"
                for _ in range(min(settings.rounds, 3)):
                    found[ALONE].append(client())
                    for kind, sent, rate in ((FREE, mirrored, None), (HALF, limited, wire / 2)):
                        got, mirror_rate = beside(rate, client)
                        found[kind].append(got)
                        found.setdefault(sent, []).append(mirror_rate / 1e6)
                    step()
                yield Comparison(str(load), "1/s", FREE, found, (ALONE,), more=True)
        finally:
            source.kill()
            receiver.kill()


def run(settings: Settings) -> Iterator[Table]:
    small, large = settings.size // 4, settings.size
    rounds = min(settings.rounds, 3)
    with settings.in_memory() as folder:
        make_random(folder / "source", small)
        note = f"Milliseconds; a client's longest wait, over hand-offs of {small // MIB:,} MiB "
        note += "(UNIX, tmpfs). Least and most in brackets."
        found = list(pauses(str(folder), settings, small))
        few = {"rounds": str(rounds)}
        yield Table("mirror", "A hand-off under a client", note, found, spread=True, facts=few)
        make_random(folder / "source", large)
        note = f"Requests a second that a client keeps while {large // MIB:,} MiB are mirrored "
        note += f"(UNIX, tmpfs), {SECONDS:g} s of fio each."
        yield Table(
            "mirror",
            "A client's share beside a mirror",
            note,
            list(shares(str(folder), settings, large)),
            pictured=False,
            beside="alone",
            facts={"rounds": str(rounds)},
        )


def main(kind: str, *arguments: str) -> None:
    """One of the other processes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends as well
    if kind == "receive":
        receive_and_serve(arguments[0], int(arguments[1]))
    else:
        mirror(arguments[0], json.loads(arguments[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
