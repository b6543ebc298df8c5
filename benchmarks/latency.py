"""What a Twisted program that does something else as well notices of a migration inside it.

A process answers HTTP on loopback (twisted.web), and one end of a migration runs in the same
reactor; the other end is a process of its own. Meanwhile this process asks for a page so many times
a second, and measures each answer from the moment at which the question was due.
Beside that: the same server idle, and idle while two other processes migrate on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from blockmig.client import Destination

BLOCKMIG = [sys.executable, "-m", "blockmig"]
ANSWER = b"ok\n"


def serve(folder: str, size: int) -> None:
    """The program: a web server that can begin a migration."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint
    from twisted.web.resource import Resource
    from twisted.web.server import NOT_DONE_YET, Site

    from blockmig.migration.destination.receiver import Receiver
    from blockmig.migration.source.sender import Sender
    from blockmig.storage import FileDisk

    path = f"{folder}/inside"

    def tell(request: Any, summary: Any) -> None:
        now = time.monotonic()
        request.write(json.dumps([now - summary.seconds, now]).encode())
        request.finish()

    async def receive(request: Any) -> None:
        disk = FileDisk(f"{folder}/copy", size=size)
        receiver = Receiver(disk)
        port = await UNIXServerEndpoint(reactor, path).listen(receiver.factory())
        summary = await receiver.complete()
        await port.stopListening()
        disk.close()
        tell(request, summary)

    async def send(request: Any) -> None:
        Path(f"{folder}/source.MIGRATED").unlink(missing_ok=True)
        disk = FileDisk(f"{folder}/source", writable=False)
        endpoint = UNIXClientEndpoint(reactor, f"{folder}/outside")
        summary = await Sender(disk, Destination(endpoint)).run()
        disk.close()
        tell(request, summary)

    class StatusResource(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> Any:
            begin = {b"/receive": receive, b"/send": send}.get(request.path)
            if begin is None:
                return ANSWER
            Deferred.fromCoroutine(begin(request)).addErrback(fail)
            return NOT_DONE_YET

    def fail(failure: Any) -> None:
        failure.printTraceback()
        reactor.stop()

    port = reactor.listenTCP(0, Site(StatusResource()), interface="127.0.0.1")
    print(port.getHost().port, flush=True)
    reactor.run()


def ask(port: int, path: str) -> socket.socket:
    """Send a question on a connection of its own."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    return connection


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


class Client:
    """Asks so many times a second, whether or not the answers before have come.

    A question goes out on any connection that waits for no answer, so that none queues behind
    another in the client.
    """

    def __init__(self, port: int, rate: float) -> None:
        self.port = port
        self.interval = 1 / rate
        self.free: list[socket.socket] = []
        self.waiting: dict[socket.socket, float] = {}

    def ask(self, due: float) -> None:
        if not self.free:
            connection = socket.create_connection(("127.0.0.1", self.port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.free.append(connection)
        connection = self.free.pop()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.waiting[connection] = due

    def answers(self, timeout: float) -> list[tuple[float, float]]:
        """Wait for the next; an answer is so short that it comes in one piece."""
        found = []
        for connection in select.select(list(self.waiting), [], [], max(0.0, timeout))[0]:
            assert connection.recv(4096).endswith(b"\r\n\r\n" + ANSWER)
            due = self.waiting.pop(connection)
            found.append((due, time.monotonic() - due))
            self.free.append(connection)
        return found

    def until(self, over: Any) -> list[tuple[float, float]]:
        """When each question was due, and how long after that its answer came."""
        samples = []
        due = time.monotonic() + self.interval
        while not over():
            if due <= time.monotonic():
                self.ask(due)
                due += self.interval
            samples += self.answers(due - time.monotonic())
        while self.waiting:
            samples += self.answers(1.0)
        return samples


def readable(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


def span(connection: socket.socket) -> tuple[float, float]:
    """When the migration began and ended, from the server's answer."""
    answer = b""
    while chunk := connection.recv(4096):
        answer += chunk
    first, last = json.loads(answer.partition(b"\r\n\r\n")[2])
    return first, last


class Scene:
    """The server, the client, and what else runs."""

    def __init__(self, folder: str, size: int, port: int, rate: float) -> None:
        self.folder = folder
        self.size = size
        self.port = port
        self.client = Client(port, rate)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*BLOCKMIG, *arguments], stdin=subprocess.DEVNULL)

    def start_receiver(self) -> subprocess.Popen[bytes]:
        copy = f"{self.folder}/copy"
        for path in (copy, f"{copy}.RECEIVED"):  # what is finished would not be done again
            Path(path).unlink(missing_ok=True)
        arguments = ["receive", "-q", "--file", copy, "--size", str(self.size)]
        receiver = self.start(*arguments, "--listen", f"unix:{self.folder}/outside")
        wait_for(f"{self.folder}/outside")
        return receiver

    def start_sender(self, socket_name: str) -> subprocess.Popen[bytes]:
        uri = f"nbd+unix:///?socket={self.folder}/{socket_name}"
        source = f"{self.folder}/source"
        Path(f"{source}.MIGRATED").unlink(missing_ok=True)
        return self.start("send", "-q", "--progress", "none", source, uri)

    def idle(self) -> list[float]:
        end = time.monotonic() + 2
        return [seconds for _, seconds in self.client.until(lambda: time.monotonic() > end)]

    def elsewhere(self) -> list[float]:
        receiver = self.start_receiver()
        sender = self.start_sender("outside")
        samples = self.client.until(lambda: sender.poll() is not None)
        assert (sender.wait(), receiver.wait()) == (0, 0)
        return [seconds for _, seconds in samples]

    def receiver_inside(self) -> list[float]:
        for name in ("copy", "copy.RECEIVED"):
            Path(self.folder, name).unlink(missing_ok=True)
        outcome = ask(self.port, "/receive")
        wait_for(f"{self.folder}/inside")
        sender = self.start_sender("inside")
        samples = self.client.until(lambda: readable(outcome))
        assert sender.wait() == 0
        first, last = span(outcome)
        return [seconds for due, seconds in samples if first <= due <= last]

    def sender_inside(self) -> list[float]:
        receiver = self.start_receiver()
        outcome = ask(self.port, "/send")
        samples = self.client.until(lambda: readable(outcome))
        assert receiver.wait() == 0
        first, last = span(outcome)
        return [seconds for due, seconds in samples if first <= due <= last]


def percentile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=2048, help="MiB (2048)")
    parser.add_argument("--rate", type=float, default=200, help="questions a second (200)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.size << 20
    if options.serve:
        serve(options.serve, size)
        return
    print(
        f"{options.size} MiB of random data in /dev/shm over a UNIX socket, {options.rounds} "
        f"rounds, {options.rate:g} questions a second, {os.cpu_count()} CPUs, "
        f"Linux {platform.release()}, Python {platform.python_version()}, "
        f"load before: {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as folder:
        with open(f"{folder}/source", "wb") as file:
            for _ in range(options.size):
                file.write(os.urandom(1 << 20))
        command = [sys.executable, __file__, "--size", str(options.size), "--serve", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                scene = Scene(folder, size, int(server.stdout.readline()), options.rate)
                scenes = {
                    "idle": scene.idle,
                    "two other processes migrate": scene.elsewhere,
                    "`Receiver` inside": scene.receiver_inside,
                    "`Sender` inside": scene.sender_inside,
                }
                samples: dict[str, list[float]] = {name: [] for name in scenes}
                for number in range(options.rounds + 1):
                    for name, run in scenes.items():
                        found = run()
                        if number:  # the first round only warms up
                            samples[name] += found
                        print(".", end="", file=sys.stderr, flush=True)
            finally:
                server.kill()
    print("\n\n| | answers | median, ms | 99th percentile, ms | longest, ms |")
    print("| --- | --: | --: | --: | --: |")
    for name, found in samples.items():
        ordered = [1000 * seconds for seconds in sorted(found)]
        half, most = percentile(ordered, 0.5), percentile(ordered, 0.99)
        print(f"| {name} | {len(ordered)} | {half:.2f} | {most:.2f} | {ordered[-1]:.2f} |")


if __name__ == "__main__":
    main()
