"""STARTTLS over real sockets: migrations, mirrors and relays, and who is not let in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from tests.support.disks import MIB, digest, random_image
from tests.support.embedding import CountingCalls, log_lines, pause, receiving, sending
from tests.support.relay import relay
from tests.support.tls import Authority, certificate, client_tls, server_tls, world
from twisted.internet import reactor as installed
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, serverFromString

from blockmig import ClientTLS, Destination, FileDisk, Mirror, Refused, Server, ServerTLS
from blockmig.client import ClientFailed, NBDClient
from blockmig.nbd import ClientHandshake
from blockmig.runtime import Runtime

reactor: Any = installed
SIZE = 6 * MIB + 5


def wait(working: Any, seconds: float = 60) -> Any:
    return working.addTimeout(seconds, reactor)


def destination(port: int | str, tls: Any) -> Destination:
    where = f"tcp:127.0.0.1:{port}" if isinstance(port, int) else port
    return Destination(clientFromString(reactor, where), tls=tls)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("unlink", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_disk_moves_over_TLS(tmp_path: Path, kind: str, unlink: bool) -> None:
    source = random_image(tmp_path / "source", SIZE)
    before = digest(source)
    copy = tmp_path / "copy"
    listen = "tcp:0:interface=127.0.0.1" if kind == "tcp" else f"unix:{tmp_path}/socket"
    async with receiving(copy, SIZE, tls=world().server, listen=listen) as (receiver, port):
        to = port.getHost().port if kind == "tcp" else listen
        there = destination(to, world().client)
        async with sending(source, there, unlink=unlink) as sender:
            assert (await wait(sender.run())).attempts == 1
        assert (await wait(receiver.complete())).bytes == SIZE
    assert digest(copy) == before
    assert source.exists() is not unlink


@pytest.mark.parametrize("tls", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_capture_does_not_hold_the_mark(tmp_path: Path, tls: bool) -> None:
    """What passes between both ends of a marked disk; without TLS the mark is seen, and the data
    bypasses the transports."""
    mark = os.urandom(64)
    source = tmp_path / "source"
    source.write_bytes(mark * (SIZE // 64))
    size = source.stat().st_size
    before = digest(source)
    sent, received = CountingCalls(), CountingCalls()
    policies = (world().server, world().client) if tls else (None, None)
    async with receiving(tmp_path / "copy", size, system=received, tls=policies[0]) as (
        receiver,
        port,
    ):
        with relay(port.getHost().port) as wire:
            there = destination(wire.port, policies[1])
            async with sending(source, there, system=sent, unlink=True) as sender:
                await wait(sender.run())
            await wait(receiver.complete())
            seen = bytes(wire.seen)
    assert digest(tmp_path / "copy") == before
    assert len(seen) > size
    assert any(mark[at : at + 8] in seen for at in range(57)) is not tls
    assert (b"retired" in seen) is not tls
    assert (sent.counts["sendfile"] > 0) is not tls
    assert (received.counts["splice"] > 0) is not tls


@pytest_twisted.ensureDeferred
async def test_a_connection_that_drops_is_made_again(tmp_path: Path) -> None:
    source = random_image(tmp_path / "source", SIZE)
    before = digest(source)
    async with receiving(tmp_path / "copy", SIZE, tls=world().server) as (receiver, port):
        with relay(port.getHost().port) as wire:
            there = destination(wire.port, world().client)
            async with sending(source, there, unlink=True, max_rate=20e6) as sender:
                running = sender.run()
                while sender.progress.data < MIB:
                    await pause(0.005)
                wire.cut()
                assert (await wait(running)).attempts == 2
            await wait(receiver.complete())
    assert digest(tmp_path / "copy") == before


class Clients:
    """Clients of a server that are closed at the end."""

    def __init__(self) -> None:
        self._all: list[NBDClient] = []

    async def connect(self, endpoint: Any, tls: Any) -> NBDClient:
        client = NBDClient(ClientHandshake(), Runtime.of(reactor), tls=tls)
        self._all.append(client)
        await wait(Deferred.fromCoroutine(client.connect(endpoint)))
        return client

    def close(self) -> None:
        for client in self._all:
            client.abort()


@contextlib.asynccontextmanager
async def serving(path: Path, listen: str, tls: Any) -> AsyncIterator[tuple[Server, Any]]:
    """A server, and an endpoint that reaches it."""
    disk = FileDisk(str(path))
    server = Server(disk, tls=tls)
    port = await serverFromString(reactor, listen).listen(server.factory())
    where = listen if listen.startswith("unix:") else f"tcp:127.0.0.1:{port.getHost().port}"
    try:
        yield server, clientFromString(reactor, where)
    finally:
        await port.stopListening()
        server.stop()
        await wait(server.complete())
        disk.close()


ANYWHERE = "tcp:0:interface=127.0.0.1"


@pytest_twisted.ensureDeferred
async def test_a_disk_that_is_served_over_TLS_is_mirrored_over_TLS(tmp_path: Path) -> None:
    disk = random_image(tmp_path / "disk", SIZE)
    content = bytearray(disk.read_bytes())
    content[5:11] = b"before"
    clients = Clients()
    async with serving(disk, ANYWHERE, world().server) as (server, to):
        client = await clients.connect(to, world().client)
        await client.write(5, b"before")
        async with receiving(tmp_path / "copy", SIZE, tls=world().server) as (receiver, port):
            there = destination(port.getHost().port, world().client)
            mirror = Mirror(server, there, unlink=True)
            await mirror.start()
            await wait(mirror.complete())
            await wait(receiver.complete())
        await wait(server.complete())
    clients.close()
    assert (tmp_path / "copy").read_bytes() == content
    assert not disk.exists()


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("far", [False, True])
@pytest_twisted.ensureDeferred
async def test_clients_are_relayed_with_TLS_on_either_side(
    tmp_path: Path, near: bool, far: bool
) -> None:
    """A client that was held, and one that comes later."""
    disk = random_image(tmp_path / "disk", SIZE)
    socket = f"unix:{tmp_path}/socket"
    clients = Clients()
    here, there = (world().server if near else None), (world().server if far else None)
    mine = world().client if near else None
    async with serving(disk, ANYWHERE, here) as (server, to):
        held = await clients.connect(to, mine)
        await held.write(0, b"before")
        async with receiving(tmp_path / "copy", SIZE, tls=world().server) as (receiver, port):
            mirror = Mirror(
                server,
                destination(port.getHost().port, world().client),
                successor=destination(socket, world().client if far else None),
            )
            await mirror.start()
            await wait(mirror.complete())
            await wait(receiver.complete())
        writing = held.write(MIB, b"after" * 1000)
        async with serving(tmp_path / "copy", socket, there) as (successor, _):
            await wait(writing)
            assert await wait(held.read(0, 6)) == b"before"
            later = await clients.connect(to, mine)
            assert await wait(later.read(MIB, 5000)) == b"after" * 1000
            length = 2 * MIB
            assert await wait(later.read(2 * MIB, length)) == disk.read_bytes()[2 * MIB :][:length]
            assert server.state == "relaying"
            assert len(successor.status()["clients"]) == 2
            clients.close()


@pytest_twisted.ensureDeferred
async def test_a_relaying_server_that_requires_TLS_forwards_nobody_without(
    tmp_path: Path,
) -> None:
    disk = random_image(tmp_path / "disk", SIZE)
    socket = f"unix:{tmp_path}/socket"
    clients = Clients()
    async with serving(disk, ANYWHERE, world().server) as (server, to):
        held = await clients.connect(to, world().client)
        async with receiving(tmp_path / "copy", SIZE) as (receiver, port):
            there = destination(port.getHost().port, None)
            mirror = Mirror(server, there, successor=destination(socket, None))
            await mirror.start()
            await wait(mirror.complete())
            await wait(receiver.complete())
        async with serving(tmp_path / "copy", socket, None):
            await wait(held.read(0, 6))
            with pytest.raises(ClientFailed, match="ERR_TLS_REQD"):
                await clients.connect(to, None)
            clients.close()


@pytest_twisted.ensureDeferred
async def test_policies_of_Twisteds_own_will_do(tmp_path: Path) -> None:
    """C{CertificateOptions}, and C{optionsForClientTLS}."""
    private, public = certificate()
    source = random_image(tmp_path / "source", SIZE)
    before = digest(source)
    server = ServerTLS(private.options)
    client = ClientTLS(lambda: ssl.optionsForClientTLS("localhost", trustRoot=public))
    async with receiving(tmp_path / "copy", SIZE, tls=server) as (receiver, port):
        async with sending(source, destination(port.getHost().port, client)) as sender:
            await wait(sender.run())
        await wait(receiver.complete())
    assert digest(tmp_path / "copy") == before


@pytest_twisted.ensureDeferred
async def test_Twisteds_own_policy_refuses_another_name(tmp_path: Path) -> None:
    private, public = certificate()
    source = random_image(tmp_path / "source", SIZE)
    client = ClientTLS(lambda: ssl.optionsForClientTLS("elsewhere", trustRoot=public))
    async with receiving(tmp_path / "copy", SIZE, tls=ServerTLS(private.options)) as (
        receiver,
        port,
    ):
        async with sending(source, destination(port.getHost().port, client)) as sender:
            with pytest.raises(Refused, match="TLS with the destination failed"):
                await wait(sender.run())
        assert not receiver.touched


@pytest_twisted.ensureDeferred
async def test_somebody_between_both_ends_cannot_strip_STARTTLS(tmp_path: Path) -> None:
    """Nothing is sent, and nothing is tried again."""
    source = random_image(tmp_path / "source", SIZE)
    async with receiving(tmp_path / "copy", SIZE) as (receiver, port):
        with relay(port.getHost().port) as wire:
            async with sending(source, destination(wire.port, world().client)) as sender:
                with pytest.raises(Refused, match="does not start TLS"):
                    await wait(sender.run())
            seen = bytes(wire.seen)
        assert not receiver.touched
    assert seen.count(b"IHAVEOPT") == 2  # the greeting's, and STARTTLS


@pytest_twisted.ensureDeferred
async def test_a_chain_of_more_than_32_KiB_moves_a_disk(tmp_path: Path) -> None:
    authority = Authority()
    source = random_image(tmp_path / "source", MIB)
    server = server_tls(authority.with_long_chain(), authority)
    client = client_tls(authority, authority.with_long_chain("the sender"))
    async with receiving(tmp_path / "copy", MIB, tls=server) as (receiver, port):
        async with sending(source, destination(port.getHost().port, client)) as sender:
            await wait(sender.run())
        await wait(receiver.complete())


@pytest_twisted.ensureDeferred
async def test_the_log_says_who_was_not_let_in(tmp_path: Path) -> None:
    source = random_image(tmp_path / "source", MIB)
    stranger = client_tls(world().authority, Authority("another").signed("a stranger"))
    with log_lines() as lines:
        async with receiving(tmp_path / "copy", MIB, tls=world().server) as (receiver, port):
            async with sending(source, destination(port.getHost().port, stranger)) as sender:
                with pytest.raises(Refused, match="does not know the CA"):
                    await wait(sender.run())
            assert not receiver.touched
    assert len([line for line in lines if "TLS failed: its certificate cannot" in line]) == 1
    assert not [line for line in lines if "Traceback" in line]
