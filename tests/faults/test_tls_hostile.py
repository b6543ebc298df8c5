"""Somebody on the way between two ends that speak TLS, and strangers at the port of one."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from OpenSSL import SSL
from tests.support.disks import MIB, digest, random_image
from tests.support.embedding import log_lines, pause, receiving, sending
from tests.support.processes import FULL
from tests.support.relay import Change, relay
from tests.support.tls import world
from twisted.internet import reactor as installed
from twisted.internet.endpoints import clientFromString

from blockmig import Destination, Refused
from blockmig.migration.records.verdict import examine, verdict_of_pair

reactor: Any = installed
SIZE = MIB + 77
STARTTLS = b"IHAVEOPT" + struct.pack("!II", 5, 0)
ACK = struct.pack("!QIII", 0x3E889045565A9, 5, 1, 0)
REFUSED = struct.pack("!QIII", 0x3E889045565A9, 5, 2**31 + 1, 0)
GO = b"IHAVEOPT" + struct.pack("!III", 7, 6, 0) + b"\0\0"


def wait(working: Any) -> Any:
    return working.addTimeout(60, reactor)


def destination(port: int) -> Destination:
    return Destination(clientFromString(reactor, f"tcp:127.0.0.1:{port}"), tls=world().client)


def replacing(old: bytes, new: bytes) -> Change:
    return lambda _, data: data.replace(old, new)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (replacing(ACK, REFUSED), "does not start TLS"),
        (replacing(ACK, ACK + ACK), "in plain behind the answer to STARTTLS"),
        (replacing(ACK, ACK + b"\x16\x03\x03"), "in plain behind the answer to STARTTLS"),
        (replacing(STARTTLS, STARTTLS + GO), "closed"),
        (replacing(STARTTLS, GO), "which was not sent"),
        (replacing(b"IHAVEOPT\0\3", b"IHAVEOPT\0\2"), "does not start TLS"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_who_changes_what_is_said_before_TLS_gets_nothing(
    tmp_path: Path, change: Change, why: str
) -> None:
    source = random_image(tmp_path / "source", SIZE)
    before = digest(source)
    async with receiving(tmp_path / "copy", SIZE, tls=world().server) as (receiver, port):
        with relay(port.getHost().port, change=change) as wire:
            async with sending(source, destination(wire.port), unlink=True) as sender:
                with pytest.raises(Refused, match=why):
                    await wait(sender.run())
            seen = bytes(wire.seen)
        assert not receiver.touched
    assert digest(source) == before
    assert len(seen) < 200


@pytest_twisted.ensureDeferred
async def test_data_that_is_changed_on_its_way_is_not_taken(tmp_path: Path) -> None:
    """The connection is dropped, and the next one brings what was sent."""
    changed: list[int] = []
    passed = [0]

    def change(to_server: bool, data: bytes) -> bytes:
        passed[0] += len(data)
        if to_server and passed[0] > SIZE // 2 and not changed:
            changed.append(passed[0])
            middle = len(data) // 2
            return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return data

    source = random_image(tmp_path / "source", SIZE)
    before = digest(source)
    with log_lines() as lines:
        async with receiving(tmp_path / "copy", SIZE, tls=world().server) as (receiver, port):
            with relay(port.getHost().port, change=change) as wire:
                async with sending(source, destination(wire.port), unlink=True) as sender:
                    assert (await wait(sender.run())).attempts == 2
                await wait(receiver.complete())
    assert changed
    assert digest(tmp_path / "copy") == before
    assert any("was changed on its way" in line for line in lines)


async def migrate(room: Path, end_after: int | None, unlink: bool) -> tuple[int, int]:
    """A migration whose streams end after so many bytes; how many passed, and how often it was."""
    room.mkdir()
    source = random_image(room / "source", SIZE)
    before = digest(source)
    async with receiving(room / "copy", SIZE, tls=world().server) as (receiver, port):
        with relay(port.getHost().port, end_after=end_after) as wire:
            async with sending(source, destination(wire.port), unlink=unlink, retry=True) as sender:
                await wait(sender.run())
            await wait(receiver.complete())
            seen, ended = len(wire.seen), wire.ended
    assert digest(room / "copy") == before
    assert source.exists() is not unlink
    ends = [examine(str(room / name)) for name in ("source", "copy")]
    assert verdict_of_pair(*ends).canonical == str(room / "copy")
    return seen, ended


@pytest_twisted.ensureDeferred
async def test_a_stream_that_ends_without_close_notify_costs_no_disk(tmp_path: Path) -> None:
    """In the handshakes, in the data, and in the hand-off; as far as the DISC, since for a receiver
    that is gone behind that a sender looks for half a minute. Every message is cut behind in
    `tests.unit.migration.test_over_tls`."""
    whole, _ = await migrate(tmp_path / "whole", None, True)
    early = (10, 150, 1500, 3500, 9000)
    late = range(whole - 22_000, whole - 5_000, 100 if FULL else 3_000)
    for at in (*early, whole // 2, *late):
        _, ended = await migrate(tmp_path / str(at), at, True)
        assert ended == 1, at


@pytest_twisted.ensureDeferred
async def test_strangers_that_stop_in_their_TLS_handshake_keep_nobody_out(tmp_path: Path) -> None:
    """More of them than there may be connections that have proved nothing."""
    source = random_image(tmp_path / "source", SIZE)
    before = digest(source)
    hello = world().client.creator().clientConnectionForTLS(None)
    hello.set_connect_state()
    with contextlib.suppress(SSL.WantReadError):
        hello.do_handshake()
    half = hello.bio_read(1 << 16)[:100]
    async with receiving(tmp_path / "copy", SIZE, tls=world().server) as (receiver, port):
        with contextlib.ExitStack() as stack:
            for _ in range(150):
                where = "127.0.0.1", port.getHost().port
                stranger = stack.enter_context(socket.create_connection(where))
                stranger.setblocking(False)
                stranger.sendall(b"\0\0\0\3" + STARTTLS)
                answer = b""
                while not answer.endswith(ACK):
                    await pause(0.001)
                    with contextlib.suppress(BlockingIOError):
                        answer += stranger.recv(100)
                stranger.sendall(half)
            async with sending(source, destination(port.getHost().port), unlink=True) as sender:
                await wait(sender.run())
            await wait(receiver.complete())
    assert digest(tmp_path / "copy") == before
