"""How much longer a migration takes beside strangers, who do to the receiver what they can.

Each storm is run twice in a round: against the receiver itself, and against a listener that has
nothing else to do (a dummy) beside the receiver, since the strangers and the listener want
processor time too. The ratio of the two is what the strangers cost the migration beyond that. Also
the peak of the receiver's memory (VmHWM).

Everything happens in a network namespace of its own, so it needs root, and unshare and ip.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..machine import ROOT
from ..pairs import BLOCKMIG, PATIENCE, Peak, listens
from ..places import Place, make_random
from ..results import Comparison, Table, from_json, to_json
from ..settings import MIB, Settings, step
from ..web import role

MODULE = "benchmarks.cases.strangers"
OURS, DUMMY, PEAK = "at the receiver", "at a dummy", "receiver's peak, MiB"
PORT, DUMMY_PORT = 10809, 10810
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME_WAIT, so that ports do not run out

FLAGS = struct.pack("!I", 3)
OPTION = b"IHAVEOPT"
GO = OPTION + struct.pack("!II", 7, 6) + bytes(6)
READ = struct.pack("!IHHQQI", 0x25609513, 0, 0, 7, 0, 32 * MIB)
WRITE = struct.pack("!IHHQQI", 0x25609513, 0, 1, 7, 0, MIB)

# What a slow client sends at once, and then byte by byte.
LORISES = {
    "greeting": (b"", FLAGS),
    "half an option": (FLAGS, OPTION + struct.pack("!II", 7, 4000) + bytes(4000)),
    "half a request header": (FLAGS + GO, READ),
    "half a payload": (FLAGS + GO + WRITE, bytes(MIB)),
    "replies not read": (FLAGS + GO + READ * 20, b""),
}
SLOW_CLIENTS = 200

# The storms: which strangers, and how many of them (a second, where they come and go).
STORMS: dict[str, tuple[str, int]] = {
    "nobody": ("idle", 0),
    "1,000 idle": ("idle", 1000),
    "5,000 idle": ("idle", 5000),
    "20,000 at once": ("burst", 20_000),
    "2,000 a second": ("rate", 2000),
    **{f"slow: {phase}": (phase, SLOW_CLIENTS) for phase in LORISES},
}


# The strangers, in a process of their own.


def connect(port: int) -> socket.socket:
    """A connection, or one that is about to be made."""
    stranger = socket.socket()
    stranger.setblocking(False)
    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with contextlib.suppress(BlockingIOError):
        stranger.connect(("127.0.0.1", port))
    return stranger


def settle(connections: list[socket.socket]) -> None:
    """Wait until each of them was accepted, or refused."""
    end = time.monotonic() + PATIENCE
    for stranger in connections:
        poll = select.poll()
        poll.register(stranger, select.POLLOUT)
        poll.poll(max(0.0, end - time.monotonic()) * 1000)


def come_and_go(port: int, count: int, rate: float) -> None:
    """C{count} connections, of which the last hundred are open; C{rate} a second, 0 for no end."""
    open_ones: collections.deque[socket.socket] = collections.deque()
    began = time.monotonic()
    made = 0
    while made < count:
        due = int((time.monotonic() - began) * rate) - made if rate else 1
        for _ in range(due):
            with contextlib.suppress(OSError):
                open_ones.append(connect(port))
            made += 1
            if len(open_ones) > 100:
                leaving = open_ones.popleft()
                if not rate:  # as fast as they are accepted
                    select.select([], [leaving], [], 1.0)
                leaving.close()
        if rate:
            time.sleep(0.002)


def be_slow(port: int, count: int, phase: str) -> None:
    """C{count} connections that are stuck in C{phase}, and come back when they are closed."""
    first, rest = LORISES[phase]
    position: dict[socket.socket, int] = {}
    while True:
        while len(position) < count:
            with contextlib.suppress(OSError):
                position[connect(port)] = -1
        time.sleep(0.1)
        for stranger, at in list(position.items()):
            try:
                if at < 0:
                    stranger.send(first or rest[:1])
                    position[stranger] = 0
                elif rest:
                    stranger.send(rest[at : at + 1])
                    position[stranger] = (at + 1) % len(rest)
                elif stranger.recv(1) == b"":
                    raise ConnectionResetError
            except BlockingIOError:
                pass
            except OSError:
                stranger.close()
                del position[stranger]


def storm(name: str, port: int) -> None:
    """Be the strangers, until killed."""
    kind, count = STORMS[name]
    if kind == "idle":
        idle = []
        for number in range(count):
            idle.append(connect(port))
            if number % 50 == 49:
                time.sleep(0.005)
        settle(idle)
        print("ready", flush=True)
    elif kind == "burst":
        print("ready", flush=True)
        come_and_go(port, count, 0)
    elif kind == "rate":
        print("ready", flush=True)
        come_and_go(port, sys.maxsize, count)
    else:
        print("ready", flush=True)
        be_slow(port, count, kind)
    time.sleep(PATIENCE)


def dummy(port: int) -> None:
    """A listener of Twisted's that greets, holds the latest 128, and closes the oldest."""
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory, Protocol, connectionDone

    connections: dict[Protocol, None] = {}
    greeting = b"NBDMAGICIHAVEOPT\0\3"

    class Listener(Protocol):
        def connectionMade(self) -> None:
            if len(connections) >= 128:
                oldest: Any = next(iter(connections)).transport
                oldest.abortConnection()
            connections[self] = None
            transport: Any = self.transport
            transport.write(greeting)

        def dataReceived(self, data: bytes) -> None:
            """Nothing is done with it."""

        def connectionLost(self, reason: object = connectionDone) -> None:
            connections.pop(self, None)

    factory: Any = Factory.forProtocol(Listener)
    reactor.listenTCP(port, factory, interface="127.0.0.1")
    print("ready", flush=True)
    reactor.run()


# The migration.


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[None]:
    """This program in another role, until the end of the context."""
    process = subprocess.Popen(role(MODULE, *arguments), cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit(f"{arguments}: did not start")
        yield
    finally:
        process.kill()
        process.wait()


def migrate(folder: Path, size: int, name: str, port: int) -> tuple[float, int]:
    """One migration beside a storm on C{port}: its seconds, and the receiver's peak in KiB."""
    disk, copy = folder / "disk", folder / "copy"
    again = ["-q", "--overwrite", "--id", uuid.uuid4().hex]
    command = [BLOCKMIG, "receive", str(copy), *again]
    receiver = subprocess.Popen([*command, "--listen", str(PORT)], stderr=subprocess.DEVNULL)
    try:
        highest = Peak(receiver.pid)
        end = time.monotonic() + PATIENCE
        while not listens(Place(disk, copy, size, "tcp", str(PORT))):
            if receiver.poll() is not None or time.monotonic() > end:
                raise SystemExit("the receiver does not listen")
            time.sleep(0.01)
        with running("storm", name, str(port)):
            began = time.monotonic()
            sender = [BLOCKMIG, "send", str(disk), f"nbd://127.0.0.1:{PORT}"]
            # One that is closed for a stranger in its handshake comes again.
            sender += ["--progress", "none", "--retry", *again]
            subprocess.run(sender, check=True)  # a time limit would be looked at every 50 ms
            seconds = time.monotonic() - began
        if receiver.wait(PATIENCE):
            raise SystemExit("the receiver failed")
    finally:
        receiver.kill()
    return seconds, highest.result()


def measure(size: int, rounds: int, folder: Path, wanted: str) -> Iterator[Comparison]:
    disk, copy = folder / "disk", folder / "copy"
    for path in (disk, copy):  # the copy's pages are there already, for every run
        make_random(path, size)
    for name in STORMS:
        if wanted not in name:
            continue
        found: dict[str, list[float]] = {OURS: [], DUMMY: [], PEAK: []}
        for _ in range(rounds):
            with running("dummy", str(DUMMY_PORT)):
                found[DUMMY].append(migrate(folder, size, name, DUMMY_PORT)[0])
            took, highest = migrate(folder, size, name, PORT)
            found[OURS].append(took)
            found[PEAK].append(highest / 1024)
            step()
        yield Comparison(name, "s", OURS, found, (DUMMY,))


def run(settings: Settings) -> Iterator[Table]:
    """In a network namespace of its own."""
    size, rounds = settings.size // 2, min(settings.rounds, 3)
    if os.geteuid():
        print("strangers: skipped, since it needs root, for a network of its own", file=sys.stderr)
        return
    with settings.in_memory() as folder:
        arguments = ("measure", str(size), str(rounds), str(folder), settings.rows)
        command = ["unshare", "--net", "--", *role(MODULE, *arguments)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    (table,) = from_json(json.loads(done.stdout))
    note = f"Seconds of the sender for {size // MIB:,} MiB (TCP, tmpfs) while strangers are at its "
    note += "receiver, and while they are at a listener of Twisted's beside it."
    table.note, table.facts = note, {"rounds": str(rounds)}
    yield table


def main(kind: str, *arguments: str) -> None:
    """One of the other processes."""
    if kind == "storm":
        storm(arguments[0], int(arguments[1]))
    elif kind == "dummy":
        dummy(int(arguments[0]))
    else:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        size, rounds, folder, wanted = arguments
        rows = list(measure(int(size), int(rounds), Path(folder), wanted))
        title = "A migration beside strangers"
        table = Table("strangers", title, "", rows, pictured=False, beside="at a dummy")
        print(json.dumps(to_json([table])))


if __name__ == "__main__":
    main(*sys.argv[1:])
