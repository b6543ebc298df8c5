"""Clients that write to a disk while it is mirrored, and what they may expect of it afterwards.

A L{Writer} is a process of its own with several connections. It logs each request that was
answered, and at the end those that were not, and it survives its server. It never has two requests
under way that overlap, so that the order of the answers is the order of what was done.

A L{History} plays the logs over the disk as it was: each byte of the canonical copy must be that of
the last answered request, or of one behind it that was never answered.

The functions that run in the writer's process, and those that read its log, need nothing but
Python.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from .processes import Processes, Running

REPOSITORY = str(Path(__file__).parents[2])

READ, WRITE, DISC, FLUSH, TRIM, ZEROES = 0, 1, 2, 3, 4, 6
FUA = 1
ANSWERED, UNANSWERED, REFUSED = range(3)

_POOL = random.Random(0xB10C).randbytes(5 << 20)
_LONGEST = 1 << 20
_SEEDS = len(_POOL) - _LONGEST
_RECORD = struct.Struct("<HBBIQIIIdd")
_REQUEST = struct.Struct("!IHHQQI")
_REPLY = struct.Struct("!IIQ")

SIZES = ((512, 4), (4096, 8), (16384, 4), (98304, 2), (_LONGEST, 1))
"""Bytes of a request, and how often."""

MIX = ((WRITE, 20), (ZEROES, 3), (TRIM, 3), (FLUSH, 2))


def content(seed: int, length: int) -> bytes:
    """What is written; never twice the same, and hardly a zero in it."""
    return _POOL[seed : seed + length]


class Logged(NamedTuple):
    """A request, as its client saw it.

    @ivar answered: C{ANSWERED}, C{UNANSWERED}, or C{REFUSED}: answered with an error.
    @ivar error: of the answer.
    @ivar issued: when, by the monotonic clock; likewise its end.
    """

    command: int
    flags: int
    answered: int
    error: int
    offset: int
    length: int
    seed: int
    connection: int
    issued: float
    ended: float

    @property
    def payload(self) -> bytes:
        """What stands there if it was done."""
        return content(self.seed, self.length) if self.command == WRITE else bytes(self.length)

    @property
    def took(self) -> float:
        """Seconds."""
        return self.ended - self.issued


def read_log(path: Path) -> list[Logged]:
    """All that was logged so far."""
    data = path.read_bytes()
    whole = len(data) // _RECORD.size * _RECORD.size
    return [Logged(*fields) for fields in _RECORD.iter_unpack(data[:whole])]


# The writer's own process.


class _Lost(Exception):
    """The server is gone."""


class _Connection:
    """One of its connections."""

    def __init__(self, number: int, uri: str) -> None:
        self.number = number
        parts = urlsplit(uri)
        if parts.scheme == "nbd+unix":
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(10)
            self.socket.connect(parse_qs(parts.query)["socket"][0])
        else:
            self.socket = socket.create_connection((parts.hostname, parts.port), 10)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.size = 0
        self.under_way: dict[int, Logged] = {}
        self._out: list[memoryview] = []
        self._in = b""
        self._shake_hands(parts.path.lstrip("/"))
        self.socket.setblocking(False)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise _Lost("closed during the handshake")
            data += more
        return data

    def _shake_hands(self, export: str) -> None:
        assert self._exactly(18)[:16] == b"NBDMAGICIHAVEOPT"
        name = export.encode()
        go = struct.pack("!I", len(name)) + name + struct.pack("!H", 0)
        self.socket.sendall(
            struct.pack("!I", 3) + b"IHAVEOPT" + struct.pack("!II", 7, len(go)) + go
        )
        reply = 0
        while reply != 1:
            _, _, reply, length = struct.unpack("!QIII", self._exactly(20))
            data = self._exactly(length)
            assert reply in (1, 3), (reply, data)
            if reply == 3 and data[:2] == b"\0\0":
                (self.size,) = struct.unpack("!Q", data[2:10])

    @property
    def waits(self) -> bool:
        return bool(self._out)

    def ask(self, cookie: int, request: Logged) -> None:
        self.under_way[cookie] = request
        header = _REQUEST.pack(
            0x25609513, request.flags, request.command, cookie, request.offset, request.length
        )
        data = header + request.payload if request.command == WRITE else header
        self._out.append(memoryview(data))
        self.send()

    def send(self) -> None:
        try:
            while self._out:
                count = self.socket.send(self._out[0])
                self._out[0] = self._out[0][count:]
                if not self._out[0]:
                    self._out.pop(0)
        except BlockingIOError:
            pass
        except OSError as error:
            raise _Lost(str(error)) from None

    def answers(self) -> Iterator[tuple[int, int]]:
        """The error and the cookie of each that has come."""
        try:
            more = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            raise _Lost(str(error)) from None
        if not more:
            raise _Lost("closed")
        self._in += more
        while len(self._in) >= _REPLY.size:
            magic, error, cookie = _REPLY.unpack_from(self._in)
            assert magic == 0x67446698, hex(magic)
            self._in = self._in[_REPLY.size :]
            yield error, cookie


class _Writing:
    """What a writer does."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._random = random.Random(config["seed"])
        self._log = open(config["log"], "ab", buffering=0)  # noqa: SIM115
        self._lines: list[bytes] = []
        self._selector = selectors.DefaultSelector()
        self._connections = [_Connection(n, uri) for n, uri in enumerate(config["uris"])]
        for connection in self._connections:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._forbidden: list[tuple[int, int]] = []
        self._end = config["end"] or self._connections[0].size
        self._cookie = config["seed"] << 32
        self._next = 0.0
        self._stopping = False
        self._patience = float("inf")

    def stop(self, *_: Any) -> None:
        """Nothing new; end once all was answered."""
        self._stopping = True
        self._patience = time.monotonic() + self._config["patience"]

    def run(self) -> None:
        try:
            while self._connections and time.monotonic() < self._patience:
                if self._stopping and not any(c.under_way for c in self._connections):
                    break
                self._turn()
        finally:
            for connection in list(self._connections):
                if not connection.under_way:
                    with contextlib.suppress(OSError):
                        connection.socket.send(_REQUEST.pack(0x25609513, 0, DISC, 1, 0, 0))
                self._lose(connection)
            self._write_log()

    def _turn(self) -> None:
        wait = 0.05
        if not self._stopping:
            wait = min(wait, max(0.0, self._next - time.monotonic()))
            idle = [c for c in self._connections if len(c.under_way) < self._config["depth"]]
            if not idle:
                wait = 0.05
            while idle and time.monotonic() >= self._next:
                connection = self._random.choice(idle)
                self._guarded(connection, self._begin, connection)
                idle = [c for c in self._connections if len(c.under_way) < self._config["depth"]]
                if self._config["rate"] == 0 and self._config["count"] == 0:
                    break
        for connection in self._connections:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.waits else 0)
            self._selector.modify(connection.socket, events, connection)
        for key, events in self._selector.select(wait):
            if events & selectors.EVENT_WRITE:
                self._guarded(key.data, key.data.send)
            if events & selectors.EVENT_READ and key.data in self._connections:
                self._guarded(key.data, self._take, key.data)
        self._write_log()

    def _guarded(self, connection: _Connection, act: Any, *arguments: Any) -> None:
        try:
            act(*arguments)
        except _Lost:
            self._lose(connection)

    def _lose(self, connection: _Connection) -> None:
        """It may or may not be done, and must not be overtaken: nobody else writes there."""
        now = time.monotonic()
        for request in connection.under_way.values():
            self._note(request, UNANSWERED, 0, now)
            self._forbidden.append((request.offset, request.offset + request.length))
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._connections.remove(connection)

    def _take(self, connection: _Connection) -> None:
        for error, cookie in connection.answers():
            request = connection.under_way.pop(cookie)
            self._note(request, REFUSED if error else ANSWERED, error, time.monotonic())

    def _note(self, request: Logged, answered: int, error: int, now: float) -> None:
        done = request._replace(answered=answered, error=error, ended=now)
        self._lines.append(_RECORD.pack(*done))

    def _write_log(self) -> None:
        if self._lines:
            self._log.write(b"".join(self._lines))
            self._lines.clear()

    def _begin(self, connection: _Connection) -> None:
        config, choose = self._config, self._random
        (command,) = choose.choices([c for c, _ in config["mix"]], [w for _, w in config["mix"]])
        length = offset = 0
        if command != FLUSH:
            place = self._free_place()
            if place is None:
                self._next = time.monotonic() + 0.001
                return
            offset, length = place
        fua = command != FLUSH and choose.random() < config["fua"]
        now = time.monotonic()
        request = Logged(
            command=command,
            flags=FUA if fua else 0,
            answered=UNANSWERED,
            error=0,
            offset=offset,
            length=length,
            seed=choose.randrange(_SEEDS),
            connection=connection.number,
            issued=now,
            ended=0.0,
        )
        pause = length / config["rate"] if config["rate"] else 0.0
        pause = max(pause, 1 / config["count"] if config["count"] else 0.0)
        self._next = max(self._next, now - 0.05) + pause
        self._cookie += 1
        connection.ask(self._cookie, request)

    def _free_place(self) -> tuple[int, int] | None:
        config, choose = self._config, self._random
        block, start = config["block"], config["start"]
        busy = [
            (request.offset, request.offset + request.length)
            for connection in self._connections
            for request in connection.under_way.values()
        ] + self._forbidden
        sizes = [(min(size, self._end - start), weight) for size, weight in config["sizes"]]
        for _ in range(20):
            (length,) = choose.choices([s for s, _ in sizes], [w for _, w in sizes])
            if block == 1:
                length = choose.randrange(1, length + 1)
            offset = choose.randrange(start, self._end - length + 1)
            offset -= offset % block
            if all(end <= offset or offset + length <= begin for begin, end in busy):
                return offset, length
        return None


def main() -> None:
    """The writer's process."""
    writing = _Writing(json.loads(sys.argv[1]))
    signal.signal(signal.SIGTERM, writing.stop)
    print("connected", flush=True)
    writing.run()


_PROGRAM = f"""
import sys
sys.path.insert(0, {REPOSITORY!r})
from tests.support.mirroring import main
main()
"""


# At the side of the tests.


class Writer:
    """A process that writes.

    @param uris: of its connections, one each.
    @param log: where it logs, behind what is there.
    @param start: where the part of the disk begins that it writes to.
    @param end: where that ends; 0 for the disk's end.
    @param rate: bytes per second; 0 for as many as it can.
    @param count: requests per second; 0 for no limit.
    @param depth: requests under way at most, for each connection.
    @param block: of which offsets are multiples; with 1 lengths are anything too.
    @param patience: seconds for which it waits for answers when it is stopped.
    """

    _seeds = 0

    def __init__(
        self,
        uris: list[str],
        log: Path,
        *,
        start: int = 0,
        end: int = 0,
        rate: float = 6e6,
        count: float = 0,
        depth: int = 4,
        block: int = 512,
        fua: float = 0.1,
        sizes: tuple[tuple[int, int], ...] = SIZES,
        mix: tuple[tuple[int, int], ...] = MIX,
        patience: float = 10.0,
    ) -> None:
        Writer._seeds += 1
        self.log = log
        self._read = 0
        config = {
            "uris": uris, "log": str(log), "start": start, "end": end, "rate": rate, "count": count,
            "depth": depth, "block": block, "fua": fua, "sizes": sizes, "mix": mix,
            "patience": patience, "seed": (os.getpid() << 16 & 0x7FFFFFFF) + Writer._seeds,
        }  # fmt: skip
        log.touch()
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-S", "-E", "-c", _PROGRAM,
             json.dumps(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "connected\n", self.process.communicate()[1]

    @property
    def running(self) -> bool:
        """Whether it has not ended: it has a server, and was not stopped."""
        return self.process.poll() is None

    @property
    def requests(self) -> list[Logged]:
        """All that it has logged so far."""
        return read_log(self.log)

    @property
    def done(self) -> int:
        """How many requests that is."""
        return self.log.stat().st_size // _RECORD.size

    def go_on(self, count: int = 20, timeout: float = 20.0) -> None:
        """Wait until so many more requests were answered."""
        wanted, end = self.done + count, time.monotonic() + timeout
        while self.done < wanted:
            assert self.running, "the writer has lost its server"
            assert time.monotonic() < end, f"no {count} answers within {timeout} s"
            time.sleep(0.005)

    def stop(self) -> list[Logged]:
        """Have it end in good order, if it has not ended, and give what it logged."""
        if self.running:
            self.process.terminate()
        return self.wait()

    def wait(self, timeout: float = 30.0) -> list[Logged]:
        """Its end, which comes with that of its server."""
        try:
            _, errors = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError("the writer has not ended: its server is still there") from None
        assert self.process.returncode == 0, errors
        return self.requests

    def kill(self) -> None:
        """Whatever it does."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def writing(uris: list[str], log: Path, **options: Any) -> Iterator[Writer]:
    """A writer for a while; whoever wants its log stops it, or waits for it."""
    writer = Writer(uris, log, **options)
    try:
        yield writer
    finally:
        writer.kill()


def longest(requests: list[Logged], since: float = 0.0, until: float = float("inf")) -> float:
    """The longest time, in seconds, that an answered request took that was under way then."""
    there = (r for r in requests if r.answered != UNANSWERED and since < r.ended)
    return max((r.took for r in there if r.issued < until), default=0.0)


@dataclass
class _Either:
    """What may stand at a place as well."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    def without(self, start: int, end: int) -> list[_Either]:
        """What is left of it where something else was written."""
        if end <= self.offset or start >= self.end:
            return [self]
        left = []
        if self.offset < start:
            left.append(_Either(self.offset, self.data[: start - self.offset]))
        if end < self.end:
            left.append(_Either(end, self.data[end - self.offset :]))
        return left


class Lost(AssertionError):
    """A copy has not got what its clients were told is written."""


def _is_hole(descriptor: int, start: int, end: int) -> bool:
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA) >= end
    except OSError:
        return True


class History:
    """What a disk must hold.

    @param disk: as it is now, before anybody writes to it.
    @param expected: where to keep what is known of it.
    """

    _CHUNK = 1 << 20

    def __init__(self, disk: Path, expected: Path) -> None:
        subprocess.run(["cp", "--sparse=always", disk, expected], check=True)
        self._file = expected.open("r+b")
        self._known = mmap.mmap(self._file.fileno(), 0)
        self._either: list[_Either] = []
        self.writes = 0

    def add(self, requests: list[Logged]) -> None:
        """What one writer logged; nobody else wrote to the same part of the disk meanwhile."""
        for request in requests:
            if not request.length:
                continue
            if request.answered == ANSWERED:
                self.writes += 1
                start, end = request.offset, request.offset + request.length
                self._known[start:end] = request.payload
                self._either = [left for one in self._either for left in one.without(start, end)]
            else:
                self._either.append(_Either(request.offset, request.payload))

    def known(self, offset: int, length: int) -> bytes:
        """What stands there, as far as that is known."""
        return self._known[offset : offset + length]

    def adopt(self, copy: Path, start: int) -> None:
        """From C{start} on C{copy} is right, whatever stands there."""
        with copy.open("rb") as file:
            file.seek(start)
            self._known[start:] = file.read()

    def check(self, copy: Path) -> None:
        """Whether C{copy} has what it must have; nobody may be writing to it.

        What may have been written, or not, is known from now on.

        @raise Lost: it has not.
        """
        size = copy.stat().st_size
        if size != len(self._known):
            raise Lost(f"{copy} has {size} bytes instead of {len(self._known)}")
        with copy.open("rb", buffering=0) as file:
            for start in range(0, size, self._CHUNK):
                end = min(start + self._CHUNK, size)
                if _is_hole(file.fileno(), start, end) and _is_hole(
                    self._file.fileno(), start, end
                ):
                    continue
                file.seek(start)
                found = file.read(end - start)
                known = self._known[start:end]
                if found != known:
                    self._compare(copy, start, known, found)
                    self._known[start:end] = found
        self._either.clear()

    def _compare(self, copy: Path, start: int, known: bytes, found: bytes) -> None:
        wrong = {at for at, (a, b) in enumerate(zip(known, found, strict=True)) if a != b}
        for one in self._either:
            first, last = max(one.offset, start), min(one.end, start + len(found))
            wrong -= {
                at
                for at in range(first - start, last - start)
                if at in wrong and one.data[start + at - one.offset] == found[at]
            }
        if wrong:
            first = min(wrong)
            raise Lost(
                f"{copy}: {len(wrong)} bytes from {start + first} on are not what was written: "
                f"{found[first : first + 16].hex()} instead of {known[first : first + 16].hex()}"
            )


# The server whose disk is mirrored.


class Mirrored:
    """A server with a control socket, whose disk may be mirrored.

    @param options: of the server.
    @param quick: with short pauses between attempts (L{PAUSE}).
    @param hook: Python that it runs first, such as L{SLOW}.
    """

    def __init__(
        self,
        processes: Processes,
        room: Path,
        disk: Path,
        *options: str,
        quick: bool = False,
        hook: str = "",
    ) -> None:
        from tests.support.processes import BLOCKMIG
        from tests.support.serving import serve

        self.processes = processes
        self.room = room
        self.disk = disk
        self.control = str(room / "control")
        program = (_QUICK if quick else "") + hook
        command = hooked(program) if program else (BLOCKMIG,)
        self.history = History(disk, room / "expected")
        served = serve(
            processes, disk, "--control", self.control, *options, command=(*command, "serve")
        )
        self.running = served.running
        self.uris = served.uris
        self._waiting = ThreadPoolExecutor(1)
        self._writers = 0

    def ask(self, method: str, resource: str, body: Any = None, timeout: float = 20.0) -> Any:
        """By the control socket."""
        from blockmig.control import ask

        return ask(self.control, method, resource, body, timeout)

    def mirror(self, uri: str | Running, **body: Any) -> Future[Any]:
        """Begin one; its outcome, as the server tells it to who waits."""
        self.ask("POST", "/mirror", {"uri": uri if isinstance(uri, str) else uri.uri, **body})
        return self._waiting.submit(self.ask, "POST", "/mirror/wait", {}, 60.0)

    def refused(self, uri: str, **body: Any) -> str:
        """Why none begins."""
        from blockmig.control import ControlRefused

        try:
            self.mirror(uri, **body)
        except ControlRefused as error:
            return str(error)
        raise AssertionError("it was not refused")

    @property
    def status(self) -> dict[str, Any]:
        """That of the mirror."""
        mirror = self.ask("GET", "/status")["mirror"]
        assert isinstance(mirror, dict)
        return mirror

    def until(self, **wanted: Any) -> dict[str, Any]:
        """The mirror's status, once it is like that."""
        from tests.support.processes import until

        def look() -> dict[str, Any] | None:
            status = self.status
            return status if all(status[name] == what for name, what in wanted.items()) else None

        return cast("dict[str, Any]", until(look, what=f"{wanted} in {self.running.stderr}"))

    def writer(self, kinds: str = "tcp unix tcp", **options: Any) -> AbstractContextManager[Writer]:
        """One with a connection of each of these kinds."""
        self._writers += 1
        uris = [self.uris[kind] for kind in kinds.split()]
        return writing(uris, self.room / f"writer-{self._writers}.log", **options)

    def ended(self, status: int = 0) -> None:
        """It ends by itself, and has no bug to tell of."""
        assert self.running.wait(20) == status, self.running.stderr
        self.sound()

    def sound(self) -> None:
        """It has no bug to tell of."""
        for sign in ("Traceback", "bug of blockmig", "Unhandled"):
            assert sign not in self.running.stderr, self.running.stderr

    def stop(self) -> None:
        """It is stopped in good order, as a server with nothing else to do."""
        assert self.running.status is None, self.running.stderr
        self.running.signal(signal.SIGTERM)
        self.ended()


PAUSE = 0.1
_QUICK = f"""
from blockmig.migration.source import sender
sender._usual_delay = lambda failures: {PAUSE}
"""
_THREADS = """
import os, random, threading, time
from blockmig.server.latency import LatencyMonitor
from blockmig.syscalls import SystemCalls

LatencyMonitor.slow_until = property(lambda latency: float("inf"), lambda latency, value: None)
"""
SLOW = (
    _THREADS
    + """
def slowly(call):
    def called(*arguments):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(random.random() * 0.15)
        return call(*arguments)
    return staticmethod(called)

SystemCalls.pwrite = slowly(SystemCalls.pwrite)
SystemCalls.fallocate = slowly(SystemCalls.fallocate)
"""
)
"""Whatever clients change is changed by threads, which take their time for it."""


def gated(offset: int, begun: Path, gate: Path) -> str:
    """Zeroing from C{offset} on is begun, by a thread, and waits until C{gate} is there."""
    return (
        _THREADS
        + f"""
fallocate = SystemCalls.fallocate

def waiting(descriptor, mode, start, length):
    if start == {offset}:
        assert threading.current_thread() is not threading.main_thread()
        open({str(begun)!r}, "w").close()
        while not os.path.exists({str(gate)!r}):
            time.sleep(0.01)
    return fallocate(descriptor, mode, start, length)

SystemCalls.fallocate = staticmethod(waiting)
"""
    )


def hooked(program: str) -> tuple[str, ...]:
    """The `blockmig` command, behind a program of its own."""
    return sys.executable, "-c", f"{program}\nfrom blockmig.cli.main import main\nmain()\n"


# A destination that does as it is told.


class Asked(NamedTuple):
    """A request that came to a L{Destination}."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: bytes

    def reply(self, error: int = 0) -> bytes:
        """The answer."""
        return _REPLY.pack(0x67446698, error, self.cookie)


class Peer:
    """A connection to a L{Destination}.

    @ivar number: from 1.
    @ivar alike: for the script to count with.
    """

    def __init__(self, destination: Destination, number: int, connection: socket.socket) -> None:
        self.destination = destination
        self.number = number
        self.alike = 0
        self.socket = connection

    def exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            more = self.socket.recv(min(count - len(data), 1 << 20))
            if not more:
                raise ConnectionError
            data += more
        return bytes(data)

    def hang(self) -> None:
        """Say and hear nothing more, and stay."""
        self.destination.over.wait()
        raise ConnectionError

    def close(self, last_words: bytes = b"") -> None:
        """Hang up."""
        self.socket.sendall(last_words)
        raise ConnectionError

    def reset(self) -> None:
        """Be gone as a machine is that has died."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionError


Script = Callable[[Peer, "Asked | str"], bytes | None]
"""Is given C{connect}, C{GO}, or a request; gives what is to be answered, None for the usual; or
ends the connection."""


class Destination:
    """An NBD server in memory, with plain NBD and no more, in threads of this process.

    @param size: of its export.
    @param script: what it does otherwise than usual.
    @ivar connections: how many there were.
    @ivar disconnected: whether there was a disconnect.
    @ivar state: asks how the mirror stands, for the script.
    """

    def __init__(self, size: int, script: Script | None = None) -> None:
        self.size = size
        self.script: Script = script or (lambda peer, asked: None)
        self.connections = 0
        self.disconnected = False
        self.state: Callable[[], str] = str
        self.over = threading.Event()
        self.data = bytearray(size)
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.port: int = self._listener.getsockname()[1]
        self.uri = f"nbd://127.0.0.1:{self.port}"
        self.listen = f"tcp:{self.port}:interface=127.0.0.1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            self.connections += 1
            peer = Peer(self, self.connections, connection)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: Peer) -> None:
        with contextlib.suppress(OSError), peer.socket:
            if self.script(peer, "connect") is None:
                self._shake_hands(peer)
                while self._answer(peer):
                    pass

    def _shake_hands(self, peer: Peer) -> None:
        peer.socket.sendall(b"NBDMAGICIHAVEOPT" + struct.pack("!H", 3))
        peer.exactly(4)
        option = 0
        while option != 7:
            _, option, length = struct.unpack("!QII", peer.exactly(16))
            peer.exactly(length)
            answers = [(0x80000001, b"")]
            if option == 3:
                answers = [(2, bytes(4)), (1, b"")]
            if option == 7:
                words = self.script(peer, "GO")
                if words is not None:
                    peer.close(words)
                flags = 1 | 4 | 8 | 32 | 64 | 256
                answers = [(3, struct.pack("!HQH", 0, self.size, flags)), (1, b"")]
            for kind, data in answers:
                header = struct.pack("!QIII", 0x3E889045565A9, option, kind, len(data))
                peer.socket.sendall(header + data)

    def _answer(self, peer: Peer) -> bool:
        _, flags, command, cookie, offset, length = _REQUEST.unpack(peer.exactly(_REQUEST.size))
        payload = peer.exactly(length) if command == WRITE else b""
        asked = Asked(command, flags, cookie, offset, length, payload)
        answer = self.script(peer, asked)
        if command == DISC:
            self.disconnected = True
            return False
        if answer is None:
            if command == WRITE:
                self.data[offset : offset + length] = payload
            elif command in (ZEROES, TRIM):
                self.data[offset : offset + length] = bytes(length)
            answer = asked.reply()
            if command == READ:
                answer += self.data[offset : offset + length]
        peer.socket.sendall(answer)
        return True

    def deafen(self) -> None:
        """Accept nobody any more: the address is free."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close(self) -> None:
        """Hang up on everybody."""
        self.deafen()
        self.over.set()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def destination(size: int, script: Script | None = None) -> Iterator[Destination]:
    """One for a while."""
    made = Destination(size, script)
    try:
        yield made
    finally:
        made.close()
