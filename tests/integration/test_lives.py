"""A sample of the table of lives (`tests/unit/test_life_table.py`) on the real reactor.

Real files, sockets and threads; after each, no descriptor, timer, reader or thread is left.
"""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from tests.support.disks import MIB, digest, random_image
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from blockmig import (
    Destination,
    FileDisk,
    GaveUp,
    InUse,
    LocalFailure,
    Mirror,
    Receiver,
    Refused,
    Sender,
    Server,
    Summary,
    examine,
    verdict_of,
)
from blockmig.testing import connect_client

SIZE = 24 * MIB
RATE = 12 * MIB


def left() -> tuple[set[str], int, int]:
    """Descriptors, timers, and what the reactor watches."""
    gc.collect()
    links = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    watched = len(reactor.getReaders()) + len(reactor.getWriters())
    return links, len(reactor.getDelayedCalls()), watched


async def outcome(waiting: Deferred[Any]) -> type:
    """What it comes to, within some seconds."""
    try:
        return type(await waiting.addTimeout(20, reactor))
    except Exception as error:
        return type(error)


class Place:
    """A source, a destination, and a port."""

    def __init__(self, room: Path) -> None:
        self.source = random_image(room / "source", SIZE)
        self.copy = room / "copy"
        self.content = digest(self.source)
        self.ports: list[Any] = []

    async def listen(self, factory: Any) -> Destination:
        endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
        port = await endpoint.listen(factory)
        self.ports.append(port)
        return Destination(
            clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}"), "", "nbd://there"
        )

    def state(self, path: Path) -> str:
        return str(verdict_of(examine(str(path))).state)


@asynccontextmanager
async def place(room: Path) -> AsyncIterator[Place]:
    made = Place(room)
    await made.listen(Factory())  # the reactor keeps a descriptor in reserve from its first port on
    await made.ports.pop().stopListening()
    before = left()
    yield made
    for port in made.ports:
        await port.stopListening()
    for _ in range(100):
        if left() == before:
            break
        await deferLater(reactor, 0.02)
    assert left() == before


async def receive(here: Place) -> tuple[FileDisk, Receiver, Destination]:
    disk = FileDisk(str(here.copy), size=SIZE)
    receiver = Receiver(disk)
    return disk, receiver, await here.listen(receiver.factory())


@pytest_twisted.ensureDeferred
async def test_a_sender_that_is_cancelled_ends_and_gives_its_disk_back(room: Path) -> None:
    async with place(room) as here:
        copy, receiver, there = await receive(here)
        with FileDisk(str(here.source), writable=False) as disk:
            sender = Sender(disk, there, unlink=True, max_rate=RATE)
            running = sender.run()
            await deferLater(reactor, 0.3)
            with pytest.raises(InUse):
                Sender(disk, there)
            assert await outcome(sender.run()) is InUse
            running.cancel()
            assert await outcome(running) is GaveUp
            again = Sender(disk, there, unlink=True)
            assert await outcome(again.run()) is Summary
            sender.stop()
            again.stop()
        assert await outcome(receiver.complete()) is Summary
        copy.close()
        assert not here.source.exists()
        assert digest(here.copy) == here.content


@pytest_twisted.ensureDeferred
async def test_a_sender_that_nobody_has_goes_on(room: Path) -> None:
    async with place(room) as here:
        copy, receiver, there = await receive(here)
        with FileDisk(str(here.source), writable=False) as disk:
            Sender(disk, there, max_rate=2 * RATE).run()
            gc.collect()
            assert await outcome(receiver.complete()) is Summary
            await deferLater(reactor, 0.2)
        copy.close()
        assert (here.state(here.source), here.state(here.copy)) == ("not canonical", "canonical")


@pytest_twisted.ensureDeferred
async def test_a_disk_that_is_closed_under_its_sender_is_a_local_failure(room: Path) -> None:
    async with place(room) as here:
        copy, receiver, there = await receive(here)
        disk = FileDisk(str(here.source), writable=False)
        running = Sender(disk, there, unlink=True, max_rate=RATE).run()
        await deferLater(reactor, 0.3)
        disk.close()
        assert await outcome(running) is LocalFailure
        assert here.state(here.source) == "canonical"
        receiver.stop()
        assert await outcome(receiver.complete()) is GaveUp
        copy.close()


@pytest_twisted.ensureDeferred
async def test_a_receiver_is_stopped_and_another_has_its_disk(room: Path) -> None:
    async with place(room) as here:
        copy, receiver, there = await receive(here)
        with FileDisk(str(here.source), writable=False) as disk:
            sender = Sender(disk, there, max_rate=RATE)
            running = sender.run()
            await deferLater(reactor, 0.3)
            with pytest.raises(InUse):
                Receiver(copy)
            with pytest.raises(InUse):
                Server(copy)
            receiver.stop()
            receiver.stop()
            assert await outcome(receiver.complete()) is GaveUp
            assert await outcome(receiver.complete()) is GaveUp
            with pytest.raises(Refused, match="not canonical"):
                Server(copy)
            await here.ports.pop().stopListening()
            sender.stop()
            assert await outcome(running) is GaveUp
            another = Receiver(copy)
            assert await outcome(Sender(disk, await here.listen(another.factory())).run()) is (
                Summary
            )
            assert await outcome(another.complete()) is Summary
        server = Server(copy)
        server.stop()
        assert await outcome(server.complete()) is type(None)
        copy.close()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("how", ["stop", "cancel", "stop the server"])
async def test_a_mirror_is_called_off_and_its_server_goes_on_or_ends(room: Path, how: str) -> None:
    async with place(room) as here:
        copy, receiver, there = await receive(here)
        disk = FileDisk(str(here.source))
        server = Server(disk)
        client = await connect_client((await here.listen(server.factory())).endpoint)
        mirror = Mirror(server, there, unlink=True, max_rate=RATE)
        with pytest.raises(InUse):
            Mirror(server, there)
        starting = mirror.start()
        if how == "cancel":
            starting.cancel()
            assert await outcome(starting) is GaveUp
        else:
            assert await outcome(starting) is int
            await client.write(0, b"written meanwhile")
            {"stop": mirror.stop, "stop the server": server.stop}[how]()
        assert await outcome(mirror.complete()) is GaveUp
        if how != "stop the server":
            await client.write(0, b"written meanwhile")
            server.stop()
        assert await outcome(server.complete()) is type(None)
        with pytest.raises(Refused):
            Mirror(server, there)
        disk.close()
        assert here.source.read_bytes()[:17] == b"written meanwhile"
        assert here.state(here.source) == "canonical"
        receiver.stop()
        assert await outcome(receiver.complete()) is GaveUp
        copy.close()


@pytest_twisted.ensureDeferred
async def test_what_is_stopped_before_it_begins_touches_nothing(room: Path) -> None:
    async with place(room) as here:
        copy, receiver, there = await receive(here)
        disk = FileDisk(str(here.source))
        sender = Sender(disk, there, unlink=True)
        sender.stop("not wanted")
        assert await outcome(sender.run()) is GaveUp
        server = Server(disk)
        mirror = Mirror(server, there, unlink=True)
        mirror.stop("not wanted")
        assert await outcome(mirror.start()) is GaveUp
        server.stop()
        assert await outcome(server.complete()) is type(None)
        receiver.stop()
        assert await outcome(receiver.complete()) is GaveUp
        assert not receiver.touched
        disk.close()
        copy.close()
        assert here.state(here.source) == "canonical"
