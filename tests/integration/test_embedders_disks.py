"""Disks that embedders have made: sent, received and served beside a reactor that goes on.

`-s` shows how late it was.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from tests.support.disks import MIB
from tests.support.embedders import FailingDisk, GzipDisk, Lateness, lateness, over_http
from tests.support.embedding import pause
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.error import ConnectionDone

from blockmig import (
    Destination,
    FileDisk,
    GaveUp,
    LocalFailure,
    MigrationError,
    Mirror,
    Overrides,
    Patience,
    Receiver,
    Sender,
    Server,
)
from blockmig.testing import check_disk, connect_client

SIZE = 8 * MIB + 777
DELAY = 0.05
LATE = 0.025
"""Seconds: a reactor whose thread waits for such a disk is late by more, nearly each time."""


def image(size: int = SIZE, seed: int = 1) -> bytes:
    """Data, with zeroes in it."""
    content = bytearray(random.Random(seed).randbytes(size))
    content[2 * MIB : 3 * MIB] = bytes(MIB)
    return bytes(content)


def assert_punctual(measured: Lateness) -> None:
    """Mostly in time, however busy this machine is, although each call of the disk takes longer.

    A reactor that waited for the disk was asked seldom, and was late then; a fast machine is soon
    done, and was asked seldom, too.
    """
    assert measured.all
    assert measured[50] < LATE, str(measured)


@contextlib.asynccontextmanager
async def listening(factory: Any) -> AsyncIterator[TCP4ClientEndpoint]:
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
    try:
        yield TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    finally:
        await port.stopListening()


async def migrate(source: Any, destination: Any) -> tuple[Any, Any]:
    """How both ends end: a Summary, or a MigrationError."""
    receiver = Receiver(destination, overrides=Overrides(overwrite=True))
    received = receiver.complete()
    async with listening(receiver.factory()) as there:
        patience = Patience(retry_policy=lambda failures: 0.01)
        sender = Sender(source, Destination(there), patience=patience)
        sent = sender.run()
        # Whichever end fails first, the other would go on for ever.
        sent.addErrback(lambda failure: receiver.stop() or failure.value)
        received.addErrback(lambda failure: sender.stop() or failure.value)
        return await sent, await received


@contextlib.asynccontextmanager
async def serving(disk: Any, **options: Any) -> AsyncIterator[tuple[Server, Any]]:
    """A server, and a client of it."""
    server = Server(disk, **options)
    async with listening(server.factory()) as there:
        client = await connect_client(there)
        try:
            yield server, client
        finally:
            await client.disconnect()
            server.stop()
            with contextlib.suppress(OSError):
                await server.complete()


@pytest_twisted.ensureDeferred
async def test_the_measure_sees_a_reactor_that_waits_for_a_disk() -> None:
    with lateness("a reactor that waits") as late:
        for _ in range(30):
            time.sleep(DELAY)
            await pause(0)
    with pytest.raises(AssertionError, match="late: median"):
        assert_punctual(late)


# Over HTTP, each call of which takes 50 ms.


@pytest_twisted.ensureDeferred
async def test_a_disk_over_HTTP_is_sent(room: Path) -> None:
    content = image()
    with FileDisk(str(room / "disk"), size=SIZE) as destination:
        async with over_http(content, DELAY) as (source, _):
            with lateness("sent over HTTP") as late:
                began = reactor.seconds()
                sent, received = await migrate(source, destination)
                seconds = reactor.seconds() - began
    print(f"{SIZE / seconds / 1e6:.0f} MB/s")
    assert (sent.attempts, received.attempts) == (1, 1)
    assert (room / "disk").read_bytes() == content
    assert_punctual(late)


@pytest_twisted.ensureDeferred
async def test_a_disk_over_HTTP_is_received(room: Path) -> None:
    content = image()
    (room / "disk").write_bytes(content)
    with FileDisk(str(room / "disk"), writable=False) as source:
        async with over_http(bytes(SIZE), DELAY) as (destination, remote):
            with lateness("received over HTTP") as late:
                began = reactor.seconds()
                sent, received = await migrate(source, destination)
                seconds = reactor.seconds() - began
    print(f"{SIZE / seconds / 1e6:.0f} MB/s")
    assert (sent.attempts, received.attempts) == (1, 1)
    assert bytes(remote.content) == content
    assert_punctual(late)


@pytest_twisted.ensureDeferred
async def test_a_disk_over_HTTP_is_served() -> None:
    content = image()
    async with over_http(content, DELAY) as (disk, remote), serving(disk) as (server, client):
        with lateness("served over HTTP") as late:
            for number in range(10):
                offset = number * 500_009
                await client.write(offset, b"%9d" % number)
                assert await client.read(offset - offset % 100, 300_000) == bytes(
                    remote.content[offset - offset % 100 :][:300_000]
                )
            await client.zero(7, MIB)
            await client.flush()
        assert remote.content[7 : MIB + 7] == bytes(MIB)
        assert server.status()["errors"] == 0
    assert_punctual(late)


@pytest_twisted.ensureDeferred
async def test_a_disk_over_HTTP_is_mirrored_while_a_client_writes(room: Path) -> None:
    with FileDisk(str(room / "disk"), size=SIZE) as destination:
        receiver = Receiver(destination)
        async with (
            over_http(image(), DELAY) as (disk, remote),
            serving(disk) as (server, client),
            listening(receiver.factory()) as there,
        ):
            with lateness("mirrored over HTTP") as late:
                mirror = Mirror(server, Destination(there), longest_pause=5)
                moved = mirror.complete()
                await mirror.start()
                writes = 0
                while not client.lost:
                    try:
                        await client.write(writes * 300_007 % (SIZE - 9), b"%9d" % writes)
                    except ConnectionDone:
                        break  # by the server, whose disk is handed over
                    writes += 1
                    await pause(DELAY)
                await moved
            await receiver.complete()
            await server.complete()
    assert writes
    assert (room / "disk").read_bytes() == bytes(remote.content)
    assert_punctual(late)


@pytest_twisted.ensureDeferred
async def test_a_disk_over_HTTP_keeps_what_IDisk_says() -> None:
    from twisted.internet.threads import deferToThread

    async with over_http(image(300_001), 0) as (disk, _):
        await deferToThread(check_disk, disk)


@pytest_twisted.ensureDeferred
async def test_an_HTTP_server_that_goes_away_ends_the_migration(room: Path) -> None:
    with FileDisk(str(room / "disk"), size=SIZE) as destination:
        async with over_http(image(), DELAY) as (source, remote):
            answer = remote._answer

            def hang_up(request: Any, offset: int, length: int) -> None:
                if offset < 4 * MIB:
                    answer(request, offset, length)
                else:
                    request.transport.abortConnection()

            remote._answer = hang_up
            sent, received = await migrate(source, destination)
    assert isinstance(sent, LocalFailure)
    assert str(sent).startswith(f"{source.name}: ")
    assert isinstance(received, GaveUp)


@pytest_twisted.ensureDeferred
async def test_a_stop_in_the_middle_leaves_nothing_of_it() -> None:
    async with over_http(image(), DELAY) as (source, remote):
        receiver = Receiver(FailingDisk(bytes(SIZE), 0, 0), overrides=Overrides(overwrite=True))
        received = receiver.complete()
        async with listening(receiver.factory()) as there:
            sender = Sender(source, Destination(there))
            sent = sender.run()
            while sender.progress.done < 2 * MIB:
                await pause(0.01)
            sender.stop()
            with pytest.raises(GaveUp):
                await sent
            asked = len(remote.asked)
            await pause(4 * DELAY)
            assert len(remote.asked) == asked
            receiver.stop()
            with pytest.raises(GaveUp):
                await received


# In a gzip file.


def gzip_disk(room: Path, content: bytes) -> GzipDisk:
    path = room / "disk.gz"
    path.write_bytes(gzip.compress(content, 1))
    return GzipDisk(path, len(content))


@pytest_twisted.ensureDeferred
async def test_a_disk_in_a_gzip_file_is_sent(room: Path) -> None:
    content = image()
    source = gzip_disk(room, content)
    with FileDisk(str(room / "disk"), size=SIZE) as destination, lateness("sent from gzip") as late:
        sent, received = await migrate(source, destination)
    assert (sent.attempts, received.attempts) == (1, 1)
    assert (room / "disk").read_bytes() == content
    assert_punctual(late)
    source.close()


@pytest_twisted.ensureDeferred
async def test_a_disk_in_a_gzip_file_is_served(room: Path) -> None:
    content = image()
    disk = gzip_disk(room, content)
    with lateness("served from gzip") as late:
        async with serving(disk, read_only=True) as (server, client):
            for offset in (5 * MIB, 0, 7 * MIB + 5, 2 * MIB - 1, SIZE - 9) * 5:
                length = min(MIB, SIZE - offset)
                assert await client.read(offset, length) == content[offset : offset + length]
            with pytest.raises(PermissionError):
                await client.write(0, b"x")
            assert server.status()["errors"] == 0
    assert_punctual(late)


def test_a_disk_in_a_gzip_file_keeps_what_IDisk_says(room: Path) -> None:
    check_disk(gzip_disk(room, image(300_001)), writable=False)


# In a dict, that fails at random.

SEEDS = range(12)


def check_failure(error: MigrationError) -> None:
    """It says which disk, and which of its methods."""
    words = str(error)
    assert "\n" not in words
    disk, _, rest = words.partition(": ")
    method, _, what = rest.partition(": ")
    assert (disk, method in ("read", "probe", "write", "zero")) == ("a dict", True), words
    kinds = ("KeyError: 'block", "bad sector", "returned ", "no room", "EOFError: ")
    assert what.startswith(kinds), words


@pytest.mark.parametrize("seed", SEEDS)
@pytest_twisted.ensureDeferred
async def test_a_disk_that_fails_is_sent_whole_or_its_failure_is_told(seed: int) -> None:
    content = image(3 * MIB + 5)
    source, destination = FailingDisk(content, 0.03, seed), FailingDisk(bytes(len(content)), 0, 0)
    sent, received = await migrate(source, destination)
    if source.failures:
        assert isinstance(sent, LocalFailure)
        check_failure(sent)
        assert isinstance(received, GaveUp)
    else:
        assert (sent.attempts, received.attempts) == (1, 1)
        assert destination.content == content


@pytest.mark.parametrize("seed", SEEDS)
@pytest_twisted.ensureDeferred
async def test_a_disk_that_fails_receives_the_whole_or_its_failure_is_told(seed: int) -> None:
    content = image(3 * MIB + 5)
    source, destination = FailingDisk(content, 0, 0), FailingDisk(bytes(len(content)), 0.2, seed)
    sent, received = await migrate(source, destination)
    if destination.failures:
        assert isinstance(received, LocalFailure)
        check_failure(received)
        assert isinstance(sent, GaveUp)
    else:
        assert (sent.attempts, received.attempts) == (1, 1)
        assert destination.content == content


@pytest.mark.parametrize("seed", SEEDS)
@pytest_twisted.ensureDeferred
async def test_a_disk_that_fails_is_served_without_a_wrong_byte(seed: int) -> None:
    """Each request gets its own answer, and the requests after it theirs."""
    content = bytearray(image(3 * MIB + 5))
    disk = FailingDisk(bytes(content), 0.2, seed)
    choose = random.Random(seed)
    failed: list[int | None] = []
    async with serving(disk) as (server, client):
        for number in range(60):
            length = choose.choice((1, 5000, 70_000, 300_000, MIB + 1))
            offset = choose.randrange(len(content) - length)
            try:
                if number % 3:
                    expected = bytes(content[offset : offset + length])
                    assert await client.read(offset, length) == expected
                else:
                    data = choose.randbytes(length)
                    await client.write(offset, data)
                    content[offset : offset + length] = data
            except OSError as error:
                failed.append(error.errno)
                if not number % 3:  # a part of it may have been written
                    content[offset : offset + length] = disk._get(offset, length)
        assert server.status()["errors"] == len(failed) <= disk.failures
    assert {errno.EIO} <= set(failed) <= {errno.EIO, errno.ENOSPC}


def test_that_disk_keeps_what_IDisk_says_when_it_does_not_fail() -> None:
    check_disk(FailingDisk(image(300_001), 0, 0))


@pytest.mark.parametrize("seed", range(3))
def test_that_disk_does_not_when_it_fails(seed: int) -> None:
    with pytest.raises(AssertionError, match=r"^a dict: "):
        check_disk(FailingDisk(image(300_001), 0.05, seed))
