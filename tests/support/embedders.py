"""Disks as embedders make them: behind HTTP, in a gzip file, in a dict that fails; and a measure of
how late the reactor is beside them."""

from __future__ import annotations

import contextlib
import errno
import gzip
import http.client
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from blockmig.interfaces import Extent, IDisk, Probe

BLOCK = 4096
STEP = 0.005


class Content(Resource):
    """The content of a disk: GET and PUT of a range, each after a while.

    @ivar asked: the requests: method, offset and length.
    """

    isLeaf = True

    def __init__(self, content: bytes, delay: float) -> None:
        super().__init__()
        self.content = bytearray(content)
        self.delay = delay
        self.asked: list[tuple[str, int, int]] = []

    def render_GET(self, request: Any) -> Any:
        offset, length = self._range(request)
        reactor.callLater(self.delay, self._answer, request, offset, length)
        return NOT_DONE_YET

    def _answer(self, request: Any, offset: int, length: int) -> None:
        if not request._disconnected:
            request.write(bytes(self.content[offset : offset + length]))
            request.finish()

    def render_PUT(self, request: Any) -> Any:
        offset, length = self._range(request)
        self.content[offset : offset + length] = request.content.read()
        reactor.callLater(self.delay, self._answer, request, 0, 0)
        return NOT_DONE_YET

    def _range(self, request: Any) -> tuple[int, int]:
        offset, length = (int(request.args[name][0]) for name in (b"offset", b"length"))
        self.asked.append((request.method.decode(), offset, length))
        return offset, length


@contextlib.asynccontextmanager
async def over_http(content: bytes, delay: float = 0.05) -> Any:
    """A disk over HTTP, and the server's side of it."""
    remote = Content(content, delay)
    port = reactor.listenTCP(0, Site(remote, timeout=None), interface="127.0.0.1")
    disk = HTTPDisk(port.getHost().port, len(content))
    try:
        yield disk, remote
    finally:
        disk.close()
        await port.stopListening()


class SimpleDisk:
    """What all of them have in common: no holes, no page cache, nothing to be made durable."""

    shortest_zeroes = 65536
    size: int
    name: str

    def fileno(self) -> None: ...

    def read(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def write(self, offset: int, data: Any) -> None:
        raise NotImplementedError

    def zero(self, offset: int, length: int, allocate: bool, fast: bool = False) -> None:
        if fast:
            raise OSError(errno.EOPNOTSUPP, "not faster")
        while length:
            count = min(length, 1 << 20)
            self.write(offset, bytes(count))
            offset, length = offset + count, length - count

    def trim(self, offset: int, length: int) -> None: ...

    def flush(self) -> None: ...

    def extents(self, offset: int) -> Iterator[Extent]:
        yield Extent(offset, self.size - offset, hole=False)

    def probe(self, offset: int, length: int) -> Probe:
        data = self.read(offset, length)
        if len(data) < length:
            raise EOFError("a short read")
        return Probe(not any(data), cold=False)

    def forget(self, offset: int, length: int) -> None: ...

    def write_back(self, offset: int, length: int, wait: bool) -> None: ...

    def close(self) -> None: ...


@implementer(IDisk)
class HTTPDisk(SimpleDisk):
    """A disk on an HTTP server; each thread has its own connection."""

    def __init__(self, port: int, size: int) -> None:
        self.name = f"http://127.0.0.1:{port}/"
        self.size = size
        self._port = port
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def _ask(self, method: str, offset: int, length: int, body: bytes | None = None) -> bytes:
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port)
            self._connections.append(self._local.connection)
        connection = self._local.connection
        connection.request(method, f"/?offset={offset}&length={length}", body)
        return bytes(connection.getresponse().read())

    def read(self, offset: int, length: int) -> bytes:
        return self._ask("GET", offset, length)

    def write(self, offset: int, data: Any) -> None:
        self._ask("PUT", offset, len(memoryview(data)), bytes(data))

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


@implementer(IDisk)
class GzipDisk(SimpleDisk):
    """A compressed image, to be read only: going back in it is decompressing from its start."""

    def __init__(self, path: Path, size: int) -> None:
        self.name = str(path)
        self.size = size
        self._path = path
        self._local = threading.local()
        self._files: list[gzip.GzipFile] = []

    def read(self, offset: int, length: int) -> bytes:
        if not hasattr(self._local, "file"):
            self._local.file = gzip.GzipFile(self._path)
            self._files.append(self._local.file)
        self._local.file.seek(offset)
        return bytes(self._local.file.read(length))

    def close(self) -> None:
        for file in self._files:
            file.close()


@implementer(IDisk)
class FailingDisk(SimpleDisk):
    """A dict of blocks, that fails at random: a bug, an error of the medium, a short read.

    @param chance: that a call fails.
    @ivar failures: how often they did.
    """

    def __init__(self, content: bytes, chance: float, seed: int) -> None:
        self.name = "a dict"
        self.size = len(content)
        self.chance = chance
        self.failures = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._blocks: dict[int, bytes] = {}
        self._put(0, content)

    @property
    def content(self) -> bytes:
        return self._get(0, self.size)

    def _get(self, offset: int, length: int) -> bytes:
        first, last = offset // BLOCK, -(-(offset + length) // BLOCK)
        whole = b"".join(self._blocks.get(n, bytes(BLOCK)) for n in range(first, last))
        return whole[offset - first * BLOCK :][:length]

    def _put(self, offset: int, data: bytes) -> None:
        with self._lock:
            first, end = offset // BLOCK, offset + len(data)
            last = -(-end // BLOCK)
            whole = bytearray(self._get(first * BLOCK, (last - first) * BLOCK))
            whole[offset - first * BLOCK : end - first * BLOCK] = data
            for number in range(first, last):
                self._blocks[number] = bytes(whole[(number - first) * BLOCK :][:BLOCK])

    def _fails(self) -> int:
        """0, or the number of a kind of failure."""
        with self._lock:
            if self._random.random() >= self.chance:
                return 0
            self.failures += 1
            return self._random.randrange(1, 4)

    def read(self, offset: int, length: int) -> bytes:
        kind = self._fails()
        if kind == 1:
            raise KeyError(f"block {offset // BLOCK}")
        if kind == 2:
            raise OSError(errno.EIO, "bad sector")
        data = self._get(offset, length)
        return data[: length // 2] if kind == 3 else data

    def write(self, offset: int, data: Any) -> None:
        kind = self._fails()
        if kind == 1:
            raise KeyError(f"block {offset // BLOCK}")
        if kind:
            raise OSError(errno.ENOSPC, "no room for more blocks")
        self._put(offset, bytes(data))


class Lateness:
    """How late the reactor was, in seconds, each time that it was to do something.

    @ivar all: in the order of their size.
    """

    def __init__(self) -> None:
        self.all: list[float] = []
        self._calling = LoopingCall.withCount(self._called)
        self._expected = 0.0

    def start(self) -> None:
        self._expected = reactor.seconds()
        self._calling.start(STEP, now=False)
        self._expected += STEP

    def _called(self, _: int) -> None:
        now = reactor.seconds()
        self.all.append(max(0.0, now - self._expected))
        self._expected = now + STEP

    def stop(self) -> None:
        self._calling.stop()
        self.all.sort()

    def __getitem__(self, percent: int) -> float:
        return self.all[min(len(self.all) - 1, len(self.all) * percent // 100)]

    def __str__(self) -> str:
        found = {"median": self[50], "90 %": self[90], "99 %": self[99], "most": self.all[-1]}
        words = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in found.items())
        return f"the reactor was late: {words} ({len(self.all)} times)"


@contextlib.contextmanager
def lateness(what: str) -> Iterator[Lateness]:
    """Measure it meanwhile, and print it."""
    measured = Lateness()
    measured.start()
    try:
        yield measured
    finally:
        measured.stop()
        print(f"{what}: {measured}")
