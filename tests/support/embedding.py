"""Both ends in this process, on the global reactor, as an embedder has them."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher

from blockmig.client import Destination
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.source.sender import Sender
from blockmig.storage import FileDisk
from blockmig.syscalls import SystemCalls
from tests.support.made import made


class CountingCalls(SystemCalls):
    """The real calls, counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def sendfile(self, *arguments: Any) -> int:
        self.counts["sendfile"] += 1
        return os.sendfile(*arguments)

    def splice(self, *arguments: Any, **named: Any) -> int:
        self.counts["splice"] += 1
        return os.splice(*arguments, **named)


def pause(seconds: float) -> Deferred[None]:
    """Let the reactor turn for a while."""
    return deferLater(reactor, seconds)


@contextlib.contextmanager
def log_lines() -> Iterator[list[str]]:
    """What blockmig logs in this process."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        if str(event.get("log_namespace", "")).startswith("blockmig"):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)


@contextlib.asynccontextmanager
async def receiving(
    path: Path,
    size: int | None = None,
    *,
    system: SystemCalls | None = None,
    listen: Any = "tcp:0:interface=127.0.0.1",
    **options: Any,
) -> AsyncIterator[tuple[Receiver, Any]]:
    """A receiver, and the port that it listens at."""
    calls = system or SystemCalls()
    disk = FileDisk(str(path), size=size, system=calls)
    receiver = made(Receiver, disk=disk, migrations=1, system=calls, **options)
    endpoint = serverFromString(reactor, listen) if isinstance(listen, str) else listen
    port = await endpoint.listen(receiver.factory())
    try:
        yield receiver, port
    finally:
        receiver.stop()
        with contextlib.suppress(Exception):
            await receiver.complete()
        await port.stopListening()
        disk.close()


@contextlib.asynccontextmanager
async def sending(
    path: Path,
    to: Any,
    *,
    system: SystemCalls | None = None,
    **options: Any,
) -> AsyncIterator[Sender]:
    """A sender, not yet started; C{to} is an endpoint, its description, a TCP port's number,
    or a destination."""
    calls = system or SystemCalls()
    if isinstance(to, int):
        to = f"tcp:127.0.0.1:{to}"
    endpoint = clientFromString(reactor, to) if isinstance(to, str) else to
    options.setdefault("retry_policy", lambda failures: 0.01)
    disk = FileDisk(str(path), writable=False, system=calls)
    there = to if isinstance(to, Destination) else Destination(endpoint)
    sender = made(Sender, disk, there, system=calls, **options)
    try:
        yield sender
    finally:
        sender.stop()
        disk.close()
