"""A web server of twisted.web in another process, whose answers are waited for: its process does
something else as well.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .machine import ROOT
from .results import Comparison, Goal

ANSWER = b"ok\n"
RATE = 200.0
"""Questions a second."""


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
            if not connection.recv(4096).endswith(b"\r\n\r\n" + ANSWER):
                raise SystemExit("the web server gave another answer")
            due = self.waiting.pop(connection)
            found.append((due, time.monotonic() - due))
            self.free.append(connection)
        return found

    def until(self, over: Callable[[], bool]) -> list[tuple[float, float]]:
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


def wait_for(path: str | Path) -> None:
    """Wait until that file is there: a socket."""
    deadline = time.monotonic() + 60
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"{path}: does not come")
        time.sleep(0.005)


def role(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of these in a process of its own, in L{ROOT}."""
    return [sys.executable, "-m", module, *arguments]


@contextlib.contextmanager
def program(module: str, *arguments: str) -> Iterator[int]:
    """A program that prints the port of its web server; until the end of the block."""
    command = role(module, *arguments)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def give_pages(reactor: Any, render: Callable[[Any], Any]) -> None:
    """Be the web server of such a program, and print the port."""
    from twisted.web.resource import Resource
    from twisted.web.server import Site

    class Page(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> Any:
            return render(request)

    page: Any = Page
    # A connection that was needed once, while many waited, is kept until it is needed again.
    port = reactor.listenTCP(0, Site(page(), timeout=None), interface="127.0.0.1")
    print(port.getHost().port, flush=True)


def percentile(waits: list[float], part: float) -> float:
    ordered = sorted(waits)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def comparisons(
    found: dict[str, list[list[float]]], ours: str, goals: tuple[Goal, ...] = (), name: str = ""
) -> list[Comparison]:
    """The usual wait, the 99th percentile and the longest, of each round.

    @param found: how long each answer took, in seconds, for each round, by what went on.
    @param goals: of the 99th percentile.
    """
    kinds = {"median": 0.5, "99th percentile": 0.99, "longest": 1.0}
    return [
        Comparison(
            f"{name}{kind}",
            "ms",
            ours,
            {
                who: [1000 * percentile(waits, part) for waits in all_]
                for who, all_ in found.items()
            },
            goals=goals if part == 0.99 else (),
        )
        for kind, part in kinds.items()
    ]
