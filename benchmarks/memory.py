"""How much memory an NBD server takes at most, with a hundred clients that ask for much.

The peak (VmHWM, of all its processes) of a fresh server for each kind of client, beside the servers
that others use. Clients read and take what they read, all of their requests in flight at once; or
they send requests for some seconds, and never read a reply.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from serving import OURS, VERSIONS, command, version
from throughput import PATIENCE, TestBed, listens, make_source

READ, WRITE = 0, 1
SERVERS = (OURS, "nbdkit file", "qemu-nbd")
MIB = 1 << 20

# Kinds of clients: the requests in flight, the command, its length, and whether replies are taken.
LOADS = {
    "connected": (0, READ, 0, True),
    "64 reads of 64 KiB in flight": (64, READ, 64 << 10, True),
    "16 reads of 1 MiB in flight": (16, READ, MIB, True),
    "reads of 4 KiB, replies never read": (20_000, READ, 4 << 10, False),
    "reads of 64 KiB, replies never read": (20_000, READ, 64 << 10, False),
    "reads of 1 MiB, replies never read": (2_000, READ, MIB, False),
    "reads of 32 MiB, replies never read": (2_000, READ, 32 * MIB, False),
    "writes of 4 KiB, replies never read": (2_000, WRITE, 4 << 10, False),
    "writes of 1 MiB, replies never read": (40, WRITE, MIB, False),
}


def request(kind: int, length: int) -> bytes:
    header = struct.pack("!IHHQQI", 0x25609513, 0, kind, 7, 0, length)
    return header + bytes(length if kind == WRITE else 0)


def connect(path: str) -> socket.socket:
    """A client past its handshake."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    while True:
        try:
            connection.connect(path)
            break
        except BlockingIOError:  # many come at once
            time.sleep(0.01)
    connection.recv(18, socket.MSG_WAITALL)
    go = struct.pack("!IH", 0, 0)
    connection.sendall(struct.pack("!I", 3) + b"IHAVEOPT" + struct.pack("!II", 7, len(go)) + go)
    answers = b""
    while not answers.endswith(struct.pack("!QIII", 0x3E889045565A9, 7, 1, 0)):
        more = connection.recv(4096)
        if not more:
            raise SystemExit("the handshake was refused")
        answers += more
    return connection


class Asking:
    """Clients at work, in this thread."""

    def __init__(self, clients: list[socket.socket], load: str) -> None:
        self.count, self.kind, self.length, self.take = LOADS[load]
        self.left = {}
        self.by_number = {client.fileno(): client for client in clients}
        text = request(self.kind, self.length) if self.length else b""
        # Reads, in one piece; writes, each anew: they are long.
        self.piece = memoryview(text if self.kind == WRITE else text * self.count)
        self.taken = dict.fromkeys(self.by_number, 0)
        for number, client in self.by_number.items():
            client.setblocking(False)
            self.left[number] = [self.piece, self.count if self.kind == WRITE else 1]

    def send(self, number: int) -> bool:
        """Send what can be sent; whether there is more."""
        state = self.left[number]
        with contextlib.suppress(BlockingIOError):
            while state[1]:
                count = self.by_number[number].send(state[0])
                state[0] = state[0][count:]
                if not state[0]:
                    state[0] = self.piece
                    state[1] -= 1
        return bool(state[1])

    def receive(self, number: int) -> None:
        """Take what there is, and ask for as much again."""
        whole = self.length + 16
        with contextlib.suppress(BlockingIOError):
            data = self.by_number[number].recv(MIB)
            if not data:
                raise SystemExit("the server hung up")
            before, self.taken[number] = self.taken[number], self.taken[number] + len(data)
            answered = self.taken[number] // whole - before // whole
            if answered:
                self.by_number[number].send(request(self.kind, self.length) * answered)

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        if not self.count:
            time.sleep(seconds)
            return
        poll = select.epoll()
        for number in self.by_number:
            poll.register(number, select.EPOLLOUT | (select.EPOLLIN if self.take else 0))
        while (now := time.monotonic()) < end:
            for number, events in poll.poll(end - now):
                if events & select.EPOLLIN:
                    self.receive(number)
                if events & select.EPOLLOUT and not self.send(number):
                    poll.modify(number, select.EPOLLIN if self.take else 0)
        poll.close()


def peak(process: int) -> int:
    """KiB, of the process and its children."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1])
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(map(peak, map(int, (task / "children").read_text().split())))
    return total


@contextlib.contextmanager
def server(name: str, place: TestBed) -> Iterator[int]:
    Path(place.address).unlink(missing_ok=True)
    arguments = command(name, place)
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(arguments, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        deadline = time.monotonic() + PATIENCE
        while not listens(place):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{arguments}: does not listen")
            time.sleep(0.01)
        yield process.pid
        if process.poll() is not None:
            raise SystemExit(f"{arguments}: died with {process.returncode}")
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure(
    name: str, place: TestBed, load: str, clients: int, seconds: float
) -> tuple[float, int]:
    """The peak in MiB, and how many bytes were taken in all."""
    with server(name, place) as process:
        connections = [connect(place.address) for _ in range(clients)]
        try:
            asking = Asking(connections, load)
            thread = threading.Thread(target=asking.run, args=(seconds,), daemon=True)
            thread.start()
            thread.join(seconds + PATIENCE)
            return peak(process) / 1024, sum(asking.taken.values())
        finally:
            for connection in connections:
                connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement (4)")
    parser.add_argument("--size", type=int, default=256, help="MiB (256)")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="/dev/shm")
    parser.add_argument("--server", choices=SERVERS, action="append", help="all")
    options = parser.parse_args()
    servers = [name for name in SERVERS if name in (options.server or SERVERS)]
    print(
        f"{options.clients} clients, {options.size} MiB of random data in {options.folder}, over a "
        f"UNIX socket, {options.seconds:g} s each, {os.cpu_count()} CPUs, "
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"{', '.join(version(VERSIONS[name]) for name in servers)}",
        flush=True,
    )
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
        disk = Path(folder, "disk")
        make_source(disk, options.size << 20)
        address = f"{folder}/socket"
        uri = f"nbd+unix:///?socket={address}"
        place = TestBed(disk, disk, options.size << 20, "unix", address, uri)
        print("\nPeak memory of the server, MiB (VmHWM):\n")
        print(f"| {options.clients} clients, each with | {' | '.join(servers)} |")
        print("| --- |" + " --: |" * len(servers), flush=True)
        for load in LOADS:
            cells = []
            for name in servers:
                most, _ = measure(name, place, load, options.clients, options.seconds)
                cells.append(f"{most:,.0f}")
            print(f"| {load} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
