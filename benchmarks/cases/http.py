"""What a Twisted program that does something else as well notices of a migration inside it.

A process answers HTTP on loopback (twisted.web), and one end of a migration runs in the same
reactor; the other end is a process of its own. Meanwhile this process asks for a page so many times
a second, and measures each answer from the moment at which the question was due.
Beside that: the same server idle, and idle while two other processes migrate on the same machine.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..pairs import PATIENCE, await_listener, end_at_once, failed, receive, send, start
from ..places import make_random, place_in
from ..results import Goal, Table
from ..settings import MIB, Settings, step
from ..web import ANSWER, RATE, Client, comparisons, give_pages, program, wait_for

IDLE, ELSEWHERE = "idle", "elsewhere"
RECEIVER, SENDER = "`Receiver` inside", "`Sender` inside"


def serve(folder: str, size: int) -> None:
    """The program: a web server that can begin a migration."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint
    from twisted.web.server import NOT_DONE_YET

    from blockmig import Overrides
    from blockmig.client import Destination
    from blockmig.migration.destination.receiver import Receiver
    from blockmig.migration.source.sender import Sender
    from blockmig.storage import FileDisk

    path = f"{folder}/inside"

    def tell(request: Any, summary: Any) -> None:
        now = time.monotonic()
        request.write(json.dumps([now - summary.seconds, now]).encode())
        request.finish()

    async def be_receiver(request: Any) -> None:
        disk = FileDisk(f"{folder}/copy", size=size)
        receiver = Receiver(disk, overrides=Overrides(overwrite=True))
        port = await UNIXServerEndpoint(reactor, path).listen(receiver.factory())
        summary = await receiver.complete()
        await port.stopListening()
        disk.close()
        tell(request, summary)

    async def be_sender(request: Any) -> None:
        disk = FileDisk(f"{folder}/source", writable=False)
        endpoint = UNIXClientEndpoint(reactor, f"{folder}/socket")
        summary = await Sender(disk, Destination(endpoint)).run()
        disk.close()
        tell(request, summary)

    def render(request: Any) -> Any:
        begin = {b"/receive": be_receiver, b"/send": be_sender}.get(request.path)
        if begin is None:
            return ANSWER
        Deferred.fromCoroutine(begin(request)).addErrback(fail)
        return NOT_DONE_YET

    def fail(failure: Any) -> None:
        failure.printTraceback(sys.stderr)
        reactor.stop()

    give_pages(reactor, render)
    reactor.run()


def ask(port: int, path: str) -> socket.socket:
    """Send a question on a connection of its own."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    return connection


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
    """The server, the client, and what else runs.

    @ivar inside: where the server's own receiver listens; C{outside}: where another process does.
    """

    def __init__(self, folder: Path, size: int, port: int) -> None:
        self.port = port
        self.outside = place_in(folder, size, "unix")
        self.inside = replace(self.outside, address=f"{folder}/inside")
        self.client = Client(port, RATE)

    def idle(self) -> list[float]:
        end = time.monotonic() + 2
        return [seconds for _, seconds in self.client.until(lambda: time.monotonic() > end)]

    def elsewhere(self) -> list[float]:
        self.outside.forget()
        with running(receive(self.outside)) as receiver:
            await_listener(self.outside, receiver)
            with running(send(self.outside)) as sender:
                samples = self.client.until(lambda: sender.poll() is not None)
        return [seconds for _, seconds in samples]

    def receiver_inside(self) -> list[float]:
        self.inside.forget()
        outcome = ask(self.port, "/receive")
        wait_for(self.inside.address)
        with running(send(self.inside)):
            samples = self.client.until(lambda: readable(outcome))
        return during(samples, outcome)

    def sender_inside(self) -> list[float]:
        self.outside.forget()
        with running(receive(self.outside)) as receiver:
            await_listener(self.outside, receiver)
            outcome = ask(self.port, "/send")
            samples = self.client.until(lambda: readable(outcome))
        return during(samples, outcome)


@contextlib.contextmanager
def running(command: tuple[str, ...]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with status 0 at the end of the block."""
    process = start(command)
    try:
        yield process
        if process.wait(PATIENCE):
            raise failed(process, f"exit status {process.returncode}")
    finally:
        end_at_once(process)


def during(samples: list[tuple[float, float]], outcome: socket.socket) -> list[float]:
    """How long those took that were due during the migration."""
    first, last = span(outcome)
    return [seconds for due, seconds in samples if first <= due <= last]


def run(settings: Settings) -> Iterator[Table]:
    found: dict[str, list[list[float]]] = {}
    with settings.in_memory() as folder:
        for name in ("source", "copy"):
            make_random(folder / name, settings.size)
        with program(__name__, str(folder), str(settings.size)) as port:
            scene = Scene(folder, settings.size, port)
            scenes = {
                IDLE: scene.idle,
                ELSEWHERE: scene.elsewhere,
                RECEIVER: scene.receiver_inside,
                SENDER: scene.sender_inside,
            }
            for number in range(settings.rounds + 1):
                for name, measure in scenes.items():
                    waits = measure()
                    if number:  # the first round only warms up
                        found.setdefault(name, []).append(waits)
                    step()
    goals = tuple(Goal("≤ idle + 5 ms", who, (IDLE,), plus=5.0) for who in (RECEIVER, SENDER))
    note = f"Milliseconds until a page came, of {RATE:g} questions a second, while "
    note += f"{settings.size // MIB:,} MiB pass through the process of the web server (UNIX, "
    note += "tmpfs), or through two others. Least and most of the rounds in brackets."
    title = "A web server beside a migration"
    yield Table("http", title, note, comparisons(found, RECEIVER, goals), spread=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
