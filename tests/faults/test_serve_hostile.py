"""Hostile clients of `serve`: nobody else notices, and the memory of the server is bounded.


Beside each of them an honest client reads, writes and flushes, in a process of its own: its data
must be right, and none of its answers may take long. The disk is in memory, so that what is
measured is the server and not a medium.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support import wire
from tests.support.disks import MIB, random_image
from tests.support.processes import BLOCKMIG, FULL, REPOSITORY, Processes, Running, until
from tests.support.serving import serve

SIZE = 96 * MIB
MOST_GROWTH = 48.0
"""MiB, whatever a client does."""
MOST_LATENCY = 1.0
"""Seconds, on a machine that does other things too."""
AS_LONG_AS = 3.0 if FULL else 0.8
STATUS, CACHE = 7, 5
FUA, NO_HOLE, DF = 1, 2, 4
WHOLE = 0xFFFF_F000
LINGER = struct.pack("ii", 1, 0)

HONEST = """
import json, os, random, signal, sys, time
repository, uri, disk = sys.argv[1:]
sys.path.insert(0, repository)
from tests.support import wire
over = []
signal.signal(signal.SIGTERM, lambda *_: over.append(1))
client = wire.Client(uri, timeout=60)
worst = {"read": 0.0, "large": 0.0, "write": 0.0, "flush": 0.0, "connect": 0.0}
rounds = 0

def timed(kind, work):
    began = time.monotonic()
    result = work()
    worst[kind] = max(worst[kind], time.monotonic() - began)
    return result

def read(offset, length):
    assert client.ask(wire.READ, offset, length) == 0
    return wire.read_exactly(client.socket, length)

descriptor = os.open(disk, os.O_RDONLY)
# The first MiB is ours to write, nobody changes the second; the others have all the rest.
second = os.pread(descriptor, 1 << 20, 1 << 20)
generator = random.Random(1)
print("begun", flush=True)
while not over or rounds < 3:
    rounds += 1
    offset = generator.randrange(200) * 4096
    data = generator.randbytes(4096)
    assert timed("write", lambda: client.ask(wire.WRITE, offset, 4096, data)) == 0
    assert timed("read", lambda: read(offset, 4096)) == data
    assert os.pread(descriptor, 4096, offset) == data
    start = generator.randrange(100) * 4096
    got = timed("large", lambda: read((1 << 20) + start, 300000))
    assert got == second[start : start + 300000]
    if rounds % 5 == 0:
        assert timed("flush", lambda: client.ask(wire.FLUSH)) == 0
    if rounds % 7 == 0:
        timed("connect", lambda: wire.Client(uri, timeout=60)).close()
    time.sleep(0.004)
client.send(wire.request(wire.DISC))
assert client.closed()
print(json.dumps({"rounds": rounds, **worst}), flush=True)
"""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory."""
    directory = Path(tempfile.mkdtemp(prefix="blockmig-test-", dir="/dev/shm"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Scene:
    """A server of a disk, and what is done to it."""

    def __init__(
        self,
        processes: Processes,
        disk: Path,
        *options: str,
        command: tuple[str, ...] = (BLOCKMIG, "serve"),
    ) -> None:
        self.processes = processes
        self.disk = disk
        self.size = disk.stat().st_size
        self.served = serve(processes, disk, *options, command=command)
        self.uri = self.served.uris["unix"]
        self.kept = contextlib.ExitStack()

    @property
    def server(self) -> Running:
        return self.served.running

    def connect(self) -> socket.socket:
        """A connection; where the queue of the socket is full, with some patience."""
        connected: list[socket.socket] = []

        def try_it() -> bool:
            with contextlib.suppress(BlockingIOError):
                connected.append(wire.connect(self.uri))
            return bool(connected)

        until(try_it)
        return self.kept.enter_context(connected[0])

    def client(self, structured: bool = False) -> socket.socket:
        """Past the handshake, and then never again blocking for long."""
        connection = self.connect()
        wire.read_exactly(connection, 18)
        options = b""
        if structured:
            query = struct.pack("!II", 0, 1) + struct.pack("!I", 15) + b"base:allocation"
            options = wire.option(8) + wire.option(10, query)
        connection.sendall(wire.FLAGS + options + wire.go())
        acknowledged = struct.pack("!QIII", 0x3E889045565A9, 7, 1, 0)
        answers = b""
        while not answers.endswith(acknowledged):
            more = connection.recv(4096)
            assert more, answers
            answers += more
        return connection

    def push(self, connection: socket.socket, text: bytes, seconds: float = AS_LONG_AS) -> int:
        """Send C{text} over and over and read nothing, until C{seconds} have passed; the bytes."""
        end = time.monotonic() + seconds
        sent = 0
        rest = memoryview(b"")
        while (left := end - time.monotonic()) > 0:
            connection.settimeout(max(0.01, left))
            try:
                rest = rest or memoryview(text)
                count = connection.send(rest)
            except TimeoutError:
                break
            rest = rest[count:]
            sent += count
        return sent

    def drain(self, connection: socket.socket) -> int:
        """Read whatever comes until its end; how much it was."""
        count = 0
        with contextlib.suppress(OSError):
            while more := connection.recv(1 << 20):
                count += len(more)
        return count


@contextlib.contextmanager
def honest(scene: Scene) -> Iterator[dict[str, float]]:
    """An honest client at work meanwhile; how long it waited at most, and how much it did."""
    program = ("-c", HONEST, REPOSITORY, scene.uri, scene.disk)
    client = scene.processes.start(sys.executable, *program)
    until(lambda: client.stdout or client.status is not None)
    assert client.status is None, client.stderr
    told: dict[str, float] = {}
    yield told
    client.signal(signal.SIGTERM)
    assert client.wait(90) == 0, client.stderr + scene.server.stderr[-2000:]
    told.update(json.loads(client.stdout.splitlines()[-1]))


def survives(scene: Scene, hostile: Callable[[Scene], None]) -> None:
    """The honest client does not notice, the memory is bounded, and then all is as before."""
    before = scene.server.peak
    with honest(scene) as told:
        hostile(scene)
    grown = scene.server.peak - before
    rounds = told.pop("rounds")
    waits = ", ".join(f"{1000 * seconds:.0f} ms {kind}" for kind, seconds in told.items())
    print(f"\n{hostile.__name__}: {grown:.1f} MiB more; {rounds:.0f} rounds, {waits}", end=" ")
    assert grown < MOST_GROWTH
    assert max(told.values()) < MOST_LATENCY, told
    in_good_order(scene)


# What they do. Each gets a scene, and comes back after a short while.


def writes_and_never_reads(scene: Scene) -> None:
    text = wire.request(wire.WRITE, 8 * MIB, 4096) + bytes(4096)
    assert scene.push(scene.client(), text * 100) > 100 * 4124


def large_writes_and_never_reads(scene: Scene) -> None:
    scene.push(scene.client(), wire.request(wire.WRITE, 8 * MIB, 2 * MIB) + bytes(2 * MIB))


def large_reads_never_taken(scene: Scene) -> None:
    for structured in (False, True):
        scene.push(scene.client(structured), wire.request(wire.READ, 0, 32 * MIB) * 500, 0.5)


def small_reads_never_taken(scene: Scene) -> None:
    for length in (512, 65536):
        scene.push(scene.client(), wire.request(wire.READ, 2 * MIB, length) * 2000, 0.5)


def many_reads_never_taken(scene: Scene) -> None:
    """By forty clients."""
    for number in range(40):
        length = (4096, 65536, 100_000, 32 * MIB)[number % 4]
        text = wire.request(wire.READ, 2 * MIB, length) * 1000
        scene.push(scene.client(number % 8 > 3), text, 0.03)
    time.sleep(0.3)


def flush_flood(scene: Scene) -> None:
    text = wire.request(wire.FLUSH) * 1000
    connection = scene.client()
    thread = threading.Thread(target=scene.drain, args=(connection,))
    thread.start()
    scene.push(connection, text)
    connection.close()
    thread.join()


def flush_flood_never_taken(scene: Scene) -> None:
    scene.push(scene.client(), wire.request(wire.FLUSH) * 1000)


def fua_flood(scene: Scene) -> None:
    text = wire.request(wire.WRITE, 8 * MIB, 512, flags=FUA) + bytes(512)
    scene.push(scene.client(), text * 100)


def trims_of_everything_else(scene: Scene) -> None:
    """Whole-disk requests that take long, as many as may be under way."""
    rest = (2 * MIB, scene.size - 2 * MIB)
    texts = [
        wire.request(wire.TRIM, *rest),
        wire.request(wire.ZEROES, *rest),
        wire.request(wire.ZEROES, *rest, flags=NO_HOLE),
    ]
    for text in texts:
        scene.push(scene.client(), text * 64, AS_LONG_AS / 2)


def caches_of_everything(scene: Scene) -> None:
    scene.push(scene.client(), wire.request(CACHE, 0, scene.size) * 256)


def garbage_behind_a_write(scene: Scene) -> None:
    for _ in range(20):
        connection = scene.client()
        with contextlib.suppress(ConnectionError):
            connection.sendall(wire.request(wire.WRITE, 8 * MIB, 65536) + os.urandom(MIB))
        assert scene.drain(connection) <= 16


def bad_magic(scene: Scene) -> None:
    for _ in range(20):
        connection = scene.client()
        connection.sendall(bytes(28))
        assert scene.drain(connection) == 0
        connection = scene.connect()
        connection.sendall(wire.FLAGS + b"IHAVEOPS" + bytes(100))
        assert scene.drain(connection) == 18
        connection = scene.connect()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert scene.drain(connection) == 18


def vanishes(scene: Scene) -> None:
    """In the middle of every kind of request, in good order and by a reset."""
    tcp = scene.served.uris["tcp"]
    texts = [
        wire.request(wire.WRITE, 8 * MIB, MIB)[:9],
        wire.request(wire.WRITE, 8 * MIB, MIB),
        wire.request(wire.WRITE, 8 * MIB, MIB) + bytes(300_000),
        wire.request(wire.WRITE, 8 * MIB, 4096) + bytes(1000),
        wire.request(wire.READ, 0, 32 * MIB) * 8,
        wire.request(wire.READ, 0, 4096) * 800,
        wire.request(wire.TRIM, 8 * MIB, 64 * MIB) * 8 + wire.request(wire.FLUSH) * 8,
        wire.request(CACHE, 0, scene.size) * 3,
    ]
    for _ in range(3):
        for uri in (tcp, scene.uri):
            for text in texts:
                for reset in (False, True):
                    with wire.client(uri) as client:
                        client.send(text)
                        if b"\0" * 1000 not in text:
                            time.sleep(0.005)
                        if reset:
                            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    stray = wire.connect(tcp)
    stray.sendall(wire.FLAGS + wire.go()[:11])
    stray.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    stray.close()


def never_negotiates(scene: Scene) -> None:
    for number in range(60):
        connection = scene.connect()
        if number % 3:
            connection.sendall(wire.FLAGS[: number % 4])
    time.sleep(0.2)


def keep_asking(scene: Scene, text: bytes, seconds: float) -> None:
    """Push options; somebody who asks without an end is cut off, and comes again."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        connection = scene.connect()
        with contextlib.suppress(ConnectionError), connection:
            connection.sendall(wire.FLAGS + wire.option(8))
            scene.push(connection, text, left)


def option_flood(scene: Scene) -> None:
    for text in (wire.option(3) * 4000, wire.option(99) * 4000, wire.option(7) * 4000):
        keep_asking(scene, text, AS_LONG_AS / 3)
    with scene.connect() as connection:
        connection.sendall(wire.FLAGS + wire.option(99) * 256)
        answers = scene.drain(connection)
    assert 255 * 20 < answers < 256 * 100, "it is cut off by then"


def huge_options(scene: Scene) -> None:
    for number in (3, 7, 10, 99):
        connection = scene.connect()
        connection.sendall(wire.FLAGS + wire.option(number, length=0xFFFF_FFFF))
        with contextlib.suppress(ConnectionError):
            scene.push(connection, bytes(MIB), AS_LONG_AS / 4)
    connection = scene.connect()
    connection.sendall(wire.FLAGS + wire.option(1, length=0xFFFF_FFFF))
    scene.drain(connection)


def meta_context_flood(scene: Scene) -> None:
    long = struct.pack("!II", 0, 3000) + (struct.pack("!I", 15) + b"base:allocation") * 3000
    most = struct.pack("!II", 0, 16000) + bytes(4 * 16000)
    for data, count in ((struct.pack("!II", 0, 0), 3000), (long, 50), (most, 50)):
        for number in (9, 10):
            keep_asking(scene, wire.option(number, data) * count, AS_LONG_AS / 6)


def drips(scene: Scene) -> None:
    """A byte at a time, by thirty clients: through the handshake, a request and a payload."""
    text = wire.FLAGS + wire.option(3) + wire.go()
    text += wire.request(wire.WRITE, 8 * MIB, 100) + bytes(100)
    connections = [scene.connect() for _ in range(30)]
    for byte in text:
        for connection in connections:
            connection.send(bytes([byte]))
        time.sleep(0.002)
    for connection in connections:
        connection.settimeout(5)
        heard = b""
        while not heard.endswith(struct.pack("!IIQ", 0x67446698, 0, 7)):
            more = connection.recv(4096)
            assert more
            heard += more


def drip_feeds_on_replies(scene: Scene) -> None:
    """Takes its replies a little at a time."""
    connections = [scene.client(bool(number % 2)) for number in range(10)]
    for connection in connections:
        scene.push(connection, wire.request(wire.READ, 0, 32 * MIB) * 1000, 0.02)
    end = time.monotonic() + AS_LONG_AS
    while time.monotonic() < end:
        for connection in connections:
            connection.recv(1000)


def half_closes(scene: Scene) -> None:
    for text in (b"", wire.request(wire.FLUSH), wire.request(wire.WRITE, 8 * MIB, MIB)[:20]):
        for _ in range(10):
            connection = scene.client()
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            assert scene.drain(connection) in (0, 16)
    for _ in range(10):
        connection = scene.connect()
        connection.shutdown(socket.SHUT_WR)
        assert scene.drain(connection) in (0, 18)


ALL = (
    writes_and_never_reads,
    large_writes_and_never_reads,
    large_reads_never_taken,
    small_reads_never_taken,
    many_reads_never_taken,
    flush_flood,
    flush_flood_never_taken,
    fua_flood,
    trims_of_everything_else,
    caches_of_everything,
    garbage_behind_a_write,
    bad_magic,
    vanishes,
    never_negotiates,
    option_flood,
    huge_options,
    meta_context_flood,
    drips,
    drip_feeds_on_replies,
    half_closes,
)


@pytest.mark.parametrize("hostile", ALL, ids=lambda hostile: hostile.__name__)
def test_a_hostile_client_disturbs_nobody_and_costs_little_memory(
    processes: Processes, memory: Path, hostile: Callable[[Scene], None]
) -> None:
    survives(Scene(processes, random_image(memory / "disk", SIZE)), hostile)


def let_in(scene: Scene) -> socket.socket:
    """A client, as soon as the server has noticed that another one has left."""
    clients: list[socket.socket] = []

    def try_it() -> bool:
        with contextlib.suppress(ConnectionError):
            clients.append(scene.client())
        return bool(clients)

    until(try_it, 5)
    return clients[0]


def in_good_order(scene: Scene, within: float = 8.0) -> None:
    """They leave, and the server lives on and stops on a signal."""
    scene.kept.close()
    client = let_in(scene)
    client.sendall(wire.request(wire.FLUSH))
    assert wire.read_exactly(client, 16) == struct.pack("!IIQ", 0x67446698, 0, 7)
    client.close()
    scene.server.signal(signal.SIGTERM)
    began = time.monotonic()
    assert scene.server.wait(30) == 0, scene.server.stderr
    assert time.monotonic() - began < within


# A disk in very many pieces.

PIECES = 100_000


def fragmented_image(path: Path) -> Path:
    """2 MiB of data, and then data and hole by turns, each of 4096 bytes."""
    random_image(path, 2 * MIB)
    with path.open("r+b", buffering=0) as file:
        data = os.urandom(4096)
        for number in range(PIECES):
            os.pwrite(file.fileno(), data, 2 * MIB + 8192 * number)
        file.truncate(2 * MIB + 8192 * PIECES)
    return path


def status_taken(scene: Scene) -> None:
    """Asks for everything, takes the answers, and asks again."""
    connection = scene.client(structured=True)
    end = time.monotonic() + 2 * AS_LONG_AS
    asked = 0
    while time.monotonic() < end:
        asked += 1
        connection.sendall(wire.request(STATUS, 0, scene.size))
        magic, flags, kind, cookie, length = struct.unpack(
            "!IHHQI", wire.read_exactly(connection, 20)
        )
        assert (magic, flags, kind, cookie) == (0x668E33EF, 1, 5, 7)
        extents = wire.read_exactly(connection, length)
        assert len(extents) > 4 + 8 * 1000
        first = struct.unpack("!II", extents[4:12])
        assert first == (2 * MIB + 4096, 0)
        assert struct.unpack("!II", extents[12:20]) == (4096, 3)
    print(f"asked {asked} times", end=" ")


def status_never_taken(scene: Scene) -> None:
    scene.push(scene.client(structured=True), wire.request(STATUS, 0, scene.size) * 1000)


def reads_of_many_pieces_never_taken(scene: Scene) -> None:
    text = wire.request(wire.READ, 2 * MIB, 32 * MIB)
    scene.push(scene.client(structured=True), text * 1000)


def reads_of_many_pieces_by_many(scene: Scene) -> None:
    text = wire.request(wire.READ, 2 * MIB, 32 * MIB)
    for _ in range(8):
        scene.push(scene.client(structured=True), text * 1000, AS_LONG_AS / 8)


@pytest.mark.parametrize(
    "hostile",
    [
        status_taken,
        status_never_taken,
        reads_of_many_pieces_never_taken,
        reads_of_many_pieces_by_many,
    ],
    ids=lambda hostile: hostile.__name__,
)
def test_a_hostile_client_of_a_fragmented_disk_disturbs_nobody(
    processes: Processes, memory: Path, hostile: Callable[[Scene], None]
) -> None:
    survives(Scene(processes, fragmented_image(memory / "disk")), hostile)


# Patience, and its end.


@pytest.fixture
def small(processes: Processes, memory: Path) -> Callable[..., Scene]:
    """Makes a scene with a small disk."""
    return lambda *options: Scene(processes, random_image(memory / "disk", 8 * MIB), *options)


def ended(connection: socket.socket) -> bool:
    """Whether the server has closed the connection."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_client_that_stops_within_a_request_is_closed(small: Callable[..., Scene]) -> None:
    """A client that stops within a request is closed; one that is idle or slow is not."""
    scene = small("--request-timeout", "1.0", "--handshake-timeout", "0")
    begun = {
        "half a header": wire.request(wire.READ, 0, 512)[:13],
        "a header": wire.request(wire.WRITE, 0, 4096),
        "half a payload": wire.request(wire.WRITE, 0, 2 * MIB) + bytes(MIB),
        "half a small payload": wire.request(wire.WRITE, 0, 4096) + bytes(4095),
        "replies": wire.request(wire.READ, 0, 8 * MIB) * 4,
        "small replies": wire.request(wire.READ, 0, 65536) * 200,
    }
    wire_size = {"replies": 4 * (16 + 8 * MIB), "small replies": 200 * (16 + 65536)}
    connections = {what: scene.client() for what in begun}
    idle, satisfied, fresh = scene.client(), scene.client(), scene.connect()
    slow, taking = scene.client(), scene.client()
    satisfied.sendall(wire.request(wire.READ, 0, 4096))
    assert len(wire.read_exactly(satisfied, 4112)) == 4112
    began = time.monotonic()
    for what, connection in connections.items():
        connection.sendall(begun[what])
    slow.sendall(wire.request(wire.WRITE, 4096, 100))
    taking.sendall(wire.request(wire.READ, 0, 8 * MIB) * 4)
    wanted = {what for what in begun if "replies" not in what}
    sent = taken = 0
    gone: dict[str, float] = {}
    while (now := time.monotonic() - began) < 2.6:
        slow.sendall(b"x" * 2)
        sent += 2
        taken += len(taking.recv(MIB))
        time.sleep(0.1)
        for what in wanted - gone.keys():
            if ended(connections[what]):
                gone[what] = now
    assert gone.keys() == wanted
    assert all(0.9 <= when <= 2.0 for when in gone.values()), gone
    for what in begun.keys() - wanted:
        # What was sent before the server lost patience is there to be read still, and no more.
        assert scene.drain(connections[what]) < wire_size[what], what
    slow.sendall(b"x" * (100 - sent))
    assert wire.read_exactly(slow, 16) == struct.pack("!IIQ", 0x67446698, 0, 7)
    left = 4 * (16 + 8 * MIB) - taken
    assert len(wire.read_exactly(taking, left)) == left > 0
    for connection in (idle, satisfied):
        connection.setblocking(True)
        connection.sendall(wire.request(wire.FLUSH))
        assert wire.read_exactly(connection, 16) == struct.pack("!IIQ", 0x67446698, 0, 7)
    assert not ended(fresh), "--handshake-timeout 0"
    lines = [line for line in scene.server.stderr.splitlines() if "silent" in line]
    assert len(lines) == len(begun), lines
    in_good_order(scene)


def test_a_client_that_does_not_negotiate_is_closed(small: Callable[..., Scene]) -> None:
    scene = small("--handshake-timeout", "1")
    silent, talking, negotiated = scene.connect(), scene.connect(), scene.client()
    talking.sendall(wire.FLAGS)
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 5:
            talking.sendall(wire.option(3))
            assert wire.read_exactly(talking, 20)
            time.sleep(0.05)
    assert 0.8 < time.monotonic() - began < 2.5
    assert len(wire.read_exactly(silent, 100)) == 18
    assert not ended(negotiated)
    in_good_order(scene)


def test_connections_beyond_the_maximum_are_closed(small: Callable[..., Scene]) -> None:
    """Where all have asked for something, one more is closed before the greeting, and there is room
    again when somebody leaves."""
    scene = small("--max-connections", "5")
    kept = [asking(scene) for _ in range(4)]
    shaking = scene.connect()
    assert len(wire.read_exactly(shaking, 18)) == 18
    kept.append(asking(scene))
    assert wire.read_exactly(shaking, 1) == b"", "it has given way"
    for _ in range(200):
        assert scene.drain(scene.connect()) == 0
    assert len(scene.server.events("full")) == 1, "one line a minute"
    kept.pop().close()
    kept.append(let_in(scene))
    for connection in kept:
        connection.sendall(wire.request(wire.FLUSH))
        assert wire.read_exactly(connection, 16) == struct.pack("!IIQ", 0x67446698, 0, 7)
    for connection in kept:
        connection.close()
    in_good_order(scene)


def asking(scene: Scene) -> socket.socket:
    """A client that has asked for something."""
    client = scene.client()
    client.sendall(wire.request(wire.FLUSH))
    assert wire.read_exactly(client, 16) == struct.pack("!IIQ", 0x67446698, 0, 7)
    return client


def test_the_default_maximum_is_128_connections(small: Callable[..., Scene]) -> None:
    scene = small()
    for _ in range(128):
        asking(scene)
    assert scene.drain(scene.connect()) == 0
    scene.kept.close()
    let_in(scene)
    in_good_order(scene)


def test_a_server_out_of_descriptors_serves_those_who_are_connected(
    processes: Processes, memory: Path
) -> None:
    """The next client is served when there is room again."""
    disk = random_image(memory / "disk", 8 * MIB)
    limited = ("prlimit", "--nofile=60", sys.executable, "-m", "blockmig", "serve")
    scene = Scene(processes, disk, "--max-connections", "0", command=limited)
    first = asking(scene)
    many = [scene.connect() for _ in range(70)]
    for _ in range(3):
        first.sendall(wire.request(wire.WRITE, MIB, 2 * MIB) + bytes(2 * MIB))
        assert wire.read_exactly(first, 16) == struct.pack("!IIQ", 0x67446698, 0, 7)
        first.sendall(wire.request(wire.READ, 0, 4096))
        assert len(wire.read_exactly(first, 4112)) == 4112
        time.sleep(0.2)
    for connection in many:
        connection.close()
    in_good_order(scene)
