"""How much longer a migration takes beside strangers, who do to the receiver what they can.

Each storm is run twice in a round: against the receiver itself, and against a listener that has
nothing else to do (a dummy) beside the receiver, since the strangers and the listener want
processor time too. The ratio of the two is what the strangers cost the migration beyond that. Also
the peak of the receiver's memory (VmHWM).

Everything happens in a network namespace of its own, so it needs root, and unshare and ip.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCKMIG = str(Path(sys.executable).with_name("blockmig"))
MIB = 1 << 20
PORT, DUMMY_PORT = 10809, 10810
PATIENCE = 120.0
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
                next(iter(connections)).transport.abortConnection()
            connections[self] = None
            self.transport.write(greeting)

        def dataReceived(self, data: bytes) -> None:
            """Nothing is done with it."""

        def connectionLost(self, reason: object = connectionDone) -> None:
            connections.pop(self, None)

    reactor.listenTCP(port, Factory.forProtocol(Listener), interface="127.0.0.1")
    print("ready", flush=True)
    reactor.run()


# The migration.


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[None]:
    """This program in another role, until the end of the context."""
    command = [sys.executable, __file__, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit(f"{arguments}: did not start")
        yield
    finally:
        process.kill()
        process.wait()


def peak_of(process: subprocess.Popen[bytes]) -> Callable[[], int]:
    """Looks at a process's VmHWM until it ends; returns a function that says it, in KiB."""
    highest = 0

    def look() -> None:
        nonlocal highest
        with contextlib.suppress(OSError):
            while process.poll() is None:
                text = Path(f"/proc/{process.pid}/status").read_text()
                for line in text.splitlines():
                    if line.startswith("VmHWM:"):
                        highest = max(highest, int(line.split()[1]))
                time.sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()

    def result() -> int:
        thread.join()
        return highest

    return result


def listens(port: int) -> bool:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(f[1].endswith(f":{port:04X}") and f[3] == "0A" for f in map(str.split, lines))


def migrate(folder: Path, size: int, name: str, port: int) -> tuple[float, int]:
    """One migration beside a storm on C{port}: its seconds, and the receiver's peak in KiB."""
    copy, again = folder / "copy", ["-q", "--overwrite", "--id", uuid.uuid4().hex]
    command = [BLOCKMIG, "receive", str(copy), *again]
    receiver = subprocess.Popen([*command, "--listen", str(PORT)], stderr=subprocess.DEVNULL)
    try:
        highest = peak_of(receiver)
        end = time.monotonic() + PATIENCE
        while not listens(PORT):
            if receiver.poll() is not None or time.monotonic() > end:
                raise SystemExit("the receiver does not listen")
            time.sleep(0.01)
        with running("--storm", name, "--port", str(port)):
            began = time.monotonic()
            sender = [BLOCKMIG, "send", str(folder / "disk"), f"nbd://127.0.0.1:{PORT}"]
            # One that is closed for a stranger in its handshake comes again.
            sender += ["--progress", "none", "--retry", *again]
            subprocess.run(sender, check=True)  # a time limit would be looked at every 50 ms
            seconds = time.monotonic() - began
        if receiver.wait(PATIENCE):
            raise SystemExit("the receiver failed")
    finally:
        receiver.kill()
    return seconds, highest()


def measure(names: list[str], rounds: int, size: int, folder: Path) -> None:
    disk, copy = folder / "disk", folder / "copy"
    with disk.open("wb") as file, copy.open("wb") as other:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
            other.write(bytes(MIB))  # its pages are there already, for every run
    print(f"{size // MIB} MiB, medians of {rounds}; seconds of the sender\n")
    print("| strangers | at a dummy | at the receiver | ratio | receiver's peak, MiB |")
    print("| --- | --: | --: | --: | --: |", flush=True)
    for name in names:
        seconds: dict[int, list[float]] = {DUMMY_PORT: [], PORT: []}
        peaks = []
        for _ in range(rounds):
            with running("--dummy", "--port", str(DUMMY_PORT)):
                seconds[DUMMY_PORT].append(migrate(folder, size, name, DUMMY_PORT)[0])
            took, peak = migrate(folder, size, name, PORT)
            seconds[PORT].append(took)
            peaks.append(peak)
        beside, at = statistics.median(seconds[DUMMY_PORT]), statistics.median(seconds[PORT])
        highest = max(peaks) / 1024
        print(
            f"| {name} | {beside:.2f} | {at:.2f} | {at / beside:.2f} | {highest:.0f} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024, help="of the disk, in MiB")
    parser.add_argument("--folder", default="/dev/shm", help="where the disks are made")
    parser.add_argument("--only", default="", help="storms whose name has this in it")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--storm", help=argparse.SUPPRESS)
    parser.add_argument("--dummy", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.storm:
        storm(options.storm, options.port)
    elif options.dummy:
        dummy(options.port)
    elif not options.inside:
        again = [sys.executable, __file__, "--inside", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--net", "--", *again])
    else:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        names = [name for name in STORMS if options.only in name]
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(names, options.rounds, options.size * MIB, Path(folder))


if __name__ == "__main__":
    main()
