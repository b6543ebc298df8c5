"""How much memory an NBD server takes at most, with a hundred clients that ask for much.

The peak (VmHWM, of all its processes) of a fresh server for each kind of client, beside the servers
that others use. Clients read and take what they read, all of their requests in flight at once; or
they send requests for some seconds, and never read a reply.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

from ..pairs import PATIENCE, peak
from ..places import Place, make_random, place_in
from ..results import Comparison, Table
from ..settings import MIB, Settings, step
from .serving import OURS, running

READ, WRITE = 0, 1
PEERS = ("nbdkit", "qemu-nbd")
CLIENTS = 100
SECONDS = 2.0
"""Of each measurement."""
SIZE = 256 * MIB

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
        self.left: dict[int, tuple[memoryview, int]] = {}
        self.by_number = {client.fileno(): client for client in clients}
        text = request(self.kind, self.length) if self.length else b""
        # Reads, in one piece; writes, each anew: they are long.
        self.piece = memoryview(text if self.kind == WRITE else text * self.count)
        self.taken = dict.fromkeys(self.by_number, 0)
        for number, client in self.by_number.items():
            client.setblocking(False)
            self.left[number] = (self.piece, self.count if self.kind == WRITE else 1)

    def send(self, number: int) -> bool:
        """Send what can be sent; whether there is more."""
        rest, pieces = self.left[number]
        with contextlib.suppress(BlockingIOError):
            while pieces:
                rest = rest[self.by_number[number].send(rest) :]
                if not rest:
                    rest, pieces = self.piece, pieces - 1
                self.left[number] = rest, pieces
        return bool(pieces)

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


def measure(server: str, place: Place, load: str) -> float:
    """The peak in MiB."""
    # nbdkit dies, now and then, of clients that leave while it writes to them.
    with running(server, place, reliable=False) as process:
        connections = [connect(place.address) for _ in range(CLIENTS)]
        try:
            asking = Asking(connections, load)
            thread = threading.Thread(target=asking.run, args=(SECONDS,), daemon=True)
            thread.start()
            thread.join(SECONDS + PATIENCE)
            return peak(process) / 1024
        finally:
            for connection in connections:
                connection.close()


def run(settings: Settings) -> Iterator[Table]:
    found = []
    with settings.in_memory() as folder:
        place = place_in(folder, SIZE, "unix")
        make_random(place.source, place.size)
        for load in filter(settings.wants, LOADS):
            peaks: dict[str, list[float]] = {}
            for server in (OURS, *settings.beside, *PEERS):
                peaks[server] = [measure(server, place, load)]
                step()
            found.append(Comparison(load, "MiB", OURS, peaks, PEERS))
    title = f"A server's memory with {CLIENTS} clients"
    note = f"Its peak (VmHWM) in MiB; UNIX, {SIZE // MIB} MiB of random data on tmpfs; once each, "
    note += f"for {SECONDS:g} s. In the rows, what each client has."
    yield Table("memory", title, note, found, facts={"rounds": "1"})
