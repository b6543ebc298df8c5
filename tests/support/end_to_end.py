"""Ten end-to-end tests, on whichever reactor is installed (see `reactors`).

Each is given a room, and system calls that count.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet import reactor as installed
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    SSL4ServerEndpoint,
    clientFromString,
    serverFromString,
    wrapClientTLS,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from blockmig import (
    Destination,
    Exports,
    FileDisk,
    GaveUp,
    Mirror,
    Receiver,
    Runtime,
    Sender,
    Server,
)
from blockmig.service import ReceiverService, SenderService
from blockmig.testing import connect_client

from .disks import MIB, digest, random_image, sparse_image
from .embedding import CountingCalls, pause, receiving, sending
from .tls import certificate

reactor: Any = installed

SIZE = 5 * MIB + 777
ANYWHERE = "tcp:0:interface=127.0.0.1"


class Calls(CountingCalls):
    """Counts every call of the fast path."""

    def send(self, *arguments: Any) -> int:
        self.counts["send"] += 1
        return int(super().send(*arguments))


class World:
    """What a test works with."""

    def __init__(self, room: Path) -> None:
        self.room = room
        self.calls = Calls()
        self.runtime = Runtime(reactor, Runtime.of(reactor).threads, self.calls)

    def source(self) -> Path:
        pieces = {0: os.urandom(2 * MIB + 5), 4 * MIB: os.urandom(MIB + 700)}
        return sparse_image(self.room / "source", SIZE, pieces)

    @contextlib.asynccontextmanager
    async def serving(
        self, path: Path, listen: str = ANYWHERE
    ) -> AsyncIterator[tuple[Server, IStreamClientEndpoint]]:
        """A server of the disk at C{path}, and how to reach it."""
        disk = FileDisk(str(path), system=self.calls)
        server = Server(disk, runtime=self.runtime)
        port = await serverFromString(reactor, listen).listen(server.factory())
        where = listen if listen.startswith("unix:") else f"tcp:127.0.0.1:{port.getHost().port}"
        try:
            yield server, clientFromString(reactor, where)
        finally:
            await port.stopListening()
            server.stop()
            await server.complete()
            disk.close()


async def migrate(world: World, **options: Any) -> int:
    """Send a disk, and compare; returns the number of attempts."""
    source = world.source()
    before = digest(source)
    copy = world.room / "copy"
    async with receiving(copy, SIZE, system=world.calls) as (receiver, port):
        async with sending(source, port.getHost().port, system=world.calls, **options) as sender:
            sent = await sender.run()
        got = await receiver.complete()
    assert sent.bytes == got.bytes == SIZE
    assert digest(copy) == before
    assert source.exists() is not options.get("unlink", False)
    return sent.attempts


async def a_plain_migration(world: World) -> None:
    assert await migrate(world) == 1


async def a_source_that_is_deleted(world: World) -> None:
    assert await migrate(world, unlink=True) == 1


async def services_and_a_UNIX_socket(world: World) -> None:
    source = world.source()
    before = digest(source)
    copy = world.room / "copy"
    services = MultiService()
    receiver = ReceiverService(
        partial(FileDisk, str(copy), size=SIZE, system=world.calls),
        f"unix:{world.room}/socket",
        make=partial(Receiver, runtime=world.runtime),
    )
    sender = SenderService(
        partial(FileDisk, str(source), writable=False, system=world.calls),
        f"nbd+unix:///?socket={world.room}/socket",
        make=partial(Sender, unlink=True, runtime=world.runtime),
    )
    for service in (receiver, sender):
        service.setServiceParent(services)
    services.privilegedStartService()
    services.startService()
    assert (await sender.complete()).bytes == SIZE
    await receiver.complete()
    assert not (world.room / "socket").exists()
    await services.stopService()
    assert digest(copy) == before
    assert not source.exists()


@implementer(IStreamClientEndpoint)
class Remembering:
    """An endpoint that remembers its connections."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self.endpoint = endpoint
        self.made: list[Any] = []

    def connect(self, factory: Any) -> Any:
        def note(protocol: Any) -> Any:
            self.made.append(protocol)
            return protocol

        return self.endpoint.connect(factory).addCallback(note)


async def until(condition: Callable[[], Any]) -> None:
    end = reactor.seconds() + 10
    while not condition():
        assert reactor.seconds() < end, "it takes too long"
        await pause(0.005)


async def a_cut_and_a_second_attempt(world: World) -> None:
    source = world.source()
    before = digest(source)
    copy = world.room / "copy"
    async with receiving(copy, SIZE, system=world.calls) as (receiver, port):
        where = f"tcp:127.0.0.1:{port.getHost().port}"
        to = Remembering(clientFromString(reactor, where))
        async with sending(source, to, system=world.calls, unlink=True, max_rate=20e6) as sender:
            running = sender.run()
            await until(lambda: sender.progress.data > MIB)
            for protocol in to.made:
                protocol.transport.abortConnection()
            assert (await running).attempts == 2
        assert (await receiver.complete()).attempts == 2
    assert digest(copy) == before
    assert not source.exists()


async def two_clients_of_a_server(world: World) -> None:
    disk = random_image(world.room / "disk", SIZE)
    data = os.urandom(MIB)
    async with world.serving(disk) as (server, to):
        one, two = await connect_client(to), await connect_client(to)
        await one.write(5, b"small")
        await one.write(2 * MIB, data)
        await two.zero(4 * MIB, 100)
        await two.flush()
        assert await two.read(0, 10) == disk.read_bytes()[:5] + b"small"
        assert await two.read(2 * MIB, MIB) == data
        assert await one.read(4 * MIB, 100) == bytes(100)
        assert len(server.status()["clients"]) == 2
    assert disk.read_bytes()[2 * MIB : 3 * MIB] == data


async def a_mirror_with_a_writer(world: World) -> None:
    disk = random_image(world.room / "disk", SIZE)
    copy = world.room / "copy"
    answered: dict[int, bytes] = {}

    async def write(client: Any) -> None:
        number = 0
        with contextlib.suppress(Exception):  # until the server closes the connection
            while True:
                offset, data = number % 64 * 65536, os.urandom(4096)
                await client.write(offset, data)
                answered[offset] = data
                number += 1

    async with (
        receiving(copy, SIZE, system=world.calls) as (receiver, port),
        world.serving(disk) as (server, to),
    ):
        writing = Deferred.fromCoroutine(write(await connect_client(to)))
        there = clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}")
        mirror = Mirror(server, Destination(there), unlink=True, runtime=world.runtime)
        await mirror.start()
        assert (await mirror.complete()).bytes == SIZE
        await receiver.complete()
        await server.complete()
        await writing
    content = copy.read_bytes()
    assert answered
    # One write may have been cut off, but not one that was answered.
    for offset, data in answered.items():
        assert content[offset : offset + 4096] == data
    assert not disk.exists()


async def a_mirror_that_relays_its_clients(world: World) -> None:
    disk = random_image(world.room / "disk", SIZE)
    copy = world.room / "copy"
    socket = f"unix:{world.room}/socket"
    async with world.serving(disk) as (server, to):
        client = await connect_client(to)
        await client.write(0, b"before")
        async with receiving(copy, SIZE, system=world.calls) as (receiver, port):
            there = clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}")
            mirror = Mirror(
                server,
                Destination(there),
                successor=Destination(clientFromString(reactor, socket)),
                runtime=world.runtime,
            )
            await mirror.start()
            await mirror.complete()
            await receiver.complete()
        writing = client.write(MIB, b"after" * 1000)
        async with world.serving(copy, socket) as (_, direct):
            await writing
            assert await client.read(0, 6) == b"before"
            assert await client.read(2 * MIB, MIB) == copy.read_bytes()[2 * MIB : 3 * MIB]
            assert await (await connect_client(direct)).read(MIB, 5000) == b"after" * 1000
            assert server.state == "relaying"


async def a_stop_in_the_middle(world: World) -> None:
    source = world.source()
    before = digest(source)
    async with receiving(world.room / "copy", SIZE, system=world.calls) as (receiver, port):
        outcome = receiver.complete()
        to = port.getHost().port
        async with sending(source, to, system=world.calls, unlink=True, max_rate=5e6) as sender:
            running = sender.run()
            await until(lambda: sender.progress.data)
            sender.stop()
            with contextlib.suppress(GaveUp):
                raise AssertionError(f"it was not stopped: {await running}")
        receiver.stop()
        with contextlib.suppress(GaveUp):
            raise AssertionError(f"it was not stopped: {await outcome}")
    assert digest(source) == before


async def large_zeroes(world: World) -> None:
    size = 16 << 30
    source = sparse_image(world.room / "source", size, {7 << 30: os.urandom(MIB)})
    before = digest(source)
    copy = world.room / "copy"
    async with (
        receiving(copy, size, system=world.calls) as (receiver, port),
        sending(source, port.getHost().port, system=world.calls) as sender,
    ):
        assert (await sender.run()).data == MIB
        await receiver.complete()
    assert digest(copy) == before


async def TLS_and_several_exports(world: World) -> None:
    private, public = certificate()
    source = world.source()
    before = digest(source)
    exports = Exports(runtime=world.runtime)
    disks = [
        FileDisk(str(random_image(world.room / "disk", SIZE)), system=world.calls),
        FileDisk(str(world.room / "copy"), size=SIZE, system=world.calls),
        FileDisk(str(source), writable=False, system=world.calls),
    ]
    server = Server(disks[0], "disk", runtime=world.runtime)
    receiver = Receiver(disks[1], export="copy", runtime=world.runtime)
    exports.add(server)
    exports.add(receiver)
    listen = SSL4ServerEndpoint(reactor, 0, private.options(), interface="127.0.0.1")
    port = await listen.listen(exports.factory())
    there = HostnameEndpoint(reactor, b"127.0.0.1", port.getHost().port)
    to = wrapClientTLS(ssl.optionsForClientTLS("localhost", trustRoot=public), there)
    client = await connect_client(to, "disk")
    sender = Sender(disks[2], Destination(to, "copy"), unlink=True, runtime=world.runtime)
    outcome = receiver.complete()
    sending = sender.run()
    await client.write(MIB, b"meanwhile")
    await sending
    await outcome
    assert await client.read(MIB, 9) == b"meanwhile"
    assert exports.names() == ["disk", "disk.served"]
    await port.stopListening()
    await exports.stop()
    server.stop()
    await server.complete()
    for disk in disks:
        disk.close()
    assert digest(world.room / "copy") == before
    assert not source.exists()


TESTS: tuple[Callable[[World], Awaitable[None]], ...] = (
    a_plain_migration,
    a_source_that_is_deleted,
    a_cut_and_a_second_attempt,
    two_clients_of_a_server,
    a_mirror_with_a_writer,
    a_mirror_that_relays_its_clients,
    a_stop_in_the_middle,
    services_and_a_UNIX_socket,
    large_zeroes,
    TLS_and_several_exports,
)


async def _run_all(room: Path, report: dict[str, Any]) -> None:
    for number, test in enumerate(TESTS):
        name = test.__name__.replace("_", " ")
        folder = room / str(number)
        folder.mkdir()
        world = World(folder)
        began = time.monotonic()
        try:
            await Deferred.fromCoroutine(test(world)).addTimeout(20, reactor)
        except Exception:
            report["failures"][name] = traceback.format_exc()
        report["seconds"][name] = round(time.monotonic() - began, 2)
        report["calls"][name] = dict(world.calls.counts)


async def _look_for_what_is_left(readers: set[Any], report: dict[str, Any]) -> None:
    await pause(0.05)  # connections that were closed last are gone
    gc.collect()
    left = report["left"]
    left += [str(call) for call in reactor.getDelayedCalls()]
    left += [str(one) for one in {*reactor.getReaders(), *reactor.getWriters()} - readers]
    left += [f"a thread: {thread}" for thread in reactor.getThreadPool().working]


def _class_of(instance: Any) -> str:
    kind = type(instance)
    return f"{kind.__module__}.{kind.__name__}"


def run_all(room: Path) -> dict[str, Any]:
    """Run all tests, and the reactor for it; what came of them."""
    loop = getattr(reactor, "_asyncioEventloop", None)
    report: dict[str, Any] = {
        "reactor": _class_of(reactor),
        "loop": "" if loop is None else _class_of(loop),
        "failures": {},
        "calls": {},
        "seconds": {},
        "left": [],
    }

    def observe(event: Any) -> None:
        if event["log_level"] >= LogLevel.error:
            report["left"].append(f"an error in the log: {formatEvent(event)}")

    async def everything() -> None:
        readers = {*reactor.getReaders(), *reactor.getWriters()}
        try:
            await _run_all(room, report)
            await _look_for_what_is_left(readers, report)
        except Exception:
            report["failures"]["the tests themselves"] = traceback.format_exc()
        finally:
            reactor.stop()

    globalLogPublisher.addObserver(observe)
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(everything()))
    reactor.run()
    return report
