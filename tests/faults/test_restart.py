"""Either end dies, stops, runs out of space or loses its connection: nothing is ever lost."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from tests.support.disks import (
    MIB,
    allocated,
    digest,
    random_image,
    small_file_system,
    sparse_image,
)
from tests.support.embedding import log_lines, pause, receiving, sending
from tests.support.processes import BLOCKMIG, FULL, TWISTD, Processes, Running, until
from tests.support.wires import Break, wires
from twisted.internet import reactor

from blockmig.errors import LocalFailure
from blockmig.migration.source import finisher
from blockmig.syscalls import SystemCalls

LOOPS = range(10 if FULL else 3)
SIZE = 64 * MIB if FULL else 32 * MIB
RATE = str(SIZE // 4)  # so that it is far from its end after half a second, or two


def mixed_image(path: Path, seed: int) -> Path:
    """Mostly data, with a few holes."""
    random_image(path, SIZE, seed)
    with path.open("r+b") as file:
        for hole in range(1, 4):
            file.seek(hole * SIZE // 5)
            file.write(bytes(MIB))
    return path


def port_of(receiver: Running) -> str:
    return receiver.uri.split(":")[2].rstrip("/")


def under_way(receiver: Running) -> None:
    """Wait until an attempt is well under way."""
    receiver.wait_event("attempt", count=len(receiver.events("restart")) + 1)
    time.sleep(0.5)


def left_over(event: dict[str, Any]) -> float:
    """The part of the disk that was covered when an attempt ended."""
    covered = event["covered"] / event["size"]
    assert isinstance(covered, float)
    return covered


@pytest.mark.parametrize("loop", LOOPS)
def test_a_killed_sender_can_be_restarted(processes: Processes, room: Path, loop: int) -> None:
    source = mixed_image(room / "source", loop)
    before = digest(source)
    command = (BLOCKMIG, "receive")
    if loop == 1:
        command = (TWISTD, "-n", "--pidfile=", "blockmig", "receive")
    receiver = processes.receive(room / "destination", "--size", SIZE, command=command)
    first = processes.send(source, receiver, "--unlink", "--max-rate", RATE)
    under_way(receiver)
    until(lambda: allocated(room / "destination") > SIZE // 4)
    first.kill()
    restart = receiver.wait_event("restart", 5)
    assert 0.1 < left_over(restart) < 0.9, restart
    assert receiver.status is None
    assert source.exists()
    second = processes.send(source, receiver, "--unlink")
    assert second.wait() == 0, second.stderr
    assert receiver.wait(10) == 0
    assert digest(room / "destination") == before
    assert not source.exists()
    assert receiver.events("complete")[0]["attempts"] == 2


@pytest.mark.parametrize("loop", LOOPS)
def test_a_killed_receiver_can_be_restarted(processes: Processes, room: Path, loop: int) -> None:
    source = mixed_image(room / "source", loop)
    before = digest(source)
    first = processes.receive(room / "destination", "--size", SIZE)
    sender = processes.send(source, first, "--unlink", "--max-rate", RATE)
    under_way(first)
    first.kill()
    sender.wait_event("restart", 10)
    assert source.exists()
    listen = f"tcp:{port_of(first)}:interface=127.0.0.1"
    second = processes.receive(room / "destination", listen=listen)
    assert sender.wait() == 0, sender.stderr
    assert second.wait(10) == 0
    assert digest(room / "destination") == before
    assert not source.exists()
    assert sender.events("complete")[0]["attempts"] == 2
    assert second.events("complete")[0]["attempts"] == 1


def test_every_attempt_starts_from_nothing(processes: Processes, room: Path) -> None:
    """The first half sent twice is not the whole disk."""
    source = mixed_image(room / "source", 0)
    receiver = processes.receive(room / "destination", "--size", SIZE)
    for _ in range(3):
        sender = processes.send(source, receiver, "--max-rate", RATE)
        under_way(receiver)
        sender.kill()
        until(lambda: len(receiver.events("restart")) == len(receiver.events("attempt")))
    assert receiver.status is None
    assert processes.send(source, receiver).wait() == 0
    assert receiver.wait(10) == 0
    assert digest(room / "destination") == digest(source)


def test_another_disk_may_follow_an_unfinished_one(processes: Processes, room: Path) -> None:
    """What an earlier attempt wrote must not remain: zeroes have to arrive too."""
    receiver = processes.receive(room / "destination", "--size", SIZE)
    first = processes.send(random_image(room / "first", SIZE), receiver, "--max-rate", RATE)
    under_way(receiver)
    first.kill()
    receiver.wait_event("restart")
    second = sparse_image(room / "second", SIZE, {3 * MIB + 5: b"second"})
    assert processes.send(second, receiver).wait() == 0
    assert receiver.wait(10) == 0
    assert digest(room / "destination") == digest(second)


def test_a_stopped_sender_loses_its_attempt_to_another(processes: Processes, room: Path) -> None:
    source = mixed_image(room / "source", 1)
    twin = mixed_image(room / "twin", 2)
    receiver = processes.receive(room / "destination", "--size", SIZE, "--idle-timeout", 2)
    stopped = processes.send(source, receiver, "--unlink", "--max-rate", RATE)
    under_way(receiver)
    stopped.signal(signal.SIGSTOP)
    began = time.monotonic()
    other = processes.send(twin, receiver, "--unlink")
    assert other.wait(30) == 0, other.stderr
    assert receiver.wait(10) == 0
    assert 1 < time.monotonic() - began < 20
    expected = digest(mixed_image(room / "again", 2))
    assert digest(room / "destination") == expected
    stopped.signal(signal.SIGCONT)
    stopped.wait_event("restart", 10)
    assert stopped.status is None
    assert source.exists(), "it was not this one that arrived"
    assert digest(room / "destination") == expected


def test_a_slow_sender_keeps_its_attempt(processes: Processes, room: Path) -> None:
    """Silence counts, not slowness: 2 MiB take longer than the timeout."""
    source = random_image(room / "source", 3 * MIB)
    receiver = processes.receive(room / "destination", "--size", 3 * MIB, "--idle-timeout", 1)
    sender = processes.send(source, receiver, "--max-rate", "1M")
    assert sender.wait() == 0
    assert receiver.wait(10) == 0
    assert receiver.events("complete")[0]["attempts"] == 1


# Disks that fail.


def complete_with_another(
    processes: Processes, room: Path, sender: Running, port: str, before: str
) -> None:
    """A receiver with space, at the same address, gets it all."""
    listen = f"tcp:{port}:interface=127.0.0.1"
    second = processes.receive(room / "roomy", "--size", SIZE, listen=listen)
    assert sender.wait(60) == 0, sender.stderr
    assert second.wait(10) == 0
    assert digest(room / "roomy") == before
    assert not (room / "source").exists()


def test_a_full_destination_fails_the_receiver_and_the_source_stays(
    processes: Processes, room: Path
) -> None:
    source = mixed_image(room / "source", 3)
    before = digest(source)
    with small_file_system(room / "small", SIZE // 2) as small:
        receiver = processes.receive(small / "destination", "--size", SIZE, "--no-space-check")
        sender = processes.send(source, receiver, "--unlink")
        assert receiver.wait(20) == 3, receiver.stderr
        assert "No space left on device" in receiver.events("error")[0]["why"]
        assert not receiver.events("complete")
    restart = sender.wait_event("restart")
    assert "ENOSPC" in restart["why"]
    assert sender.status is None, "it keeps trying"
    assert digest(source) == before
    complete_with_another(processes, room, sender, port_of(receiver), before)


def test_a_file_size_limit_at_the_destination_fails_as_no_space(
    processes: Processes, room: Path
) -> None:
    """The receiver answers EFBIG as ENOSPC."""
    source = mixed_image(room / "source", 3)
    before = digest(source)
    destination = sparse_image(room / "destination", SIZE, {})
    limit = ("prlimit", f"--fsize={SIZE // 2}")
    receiver = processes.receive(destination, prefix=("--", *limit))
    sender = processes.send(source, receiver, "--unlink")
    assert receiver.wait(20) == 3, receiver.stderr
    assert "File too large" in receiver.events("error")[0]["why"]
    assert "ENOSPC" in sender.wait_event("restart")["why"]
    complete_with_another(processes, room, sender, port_of(receiver), before)


class FailingCalls(SystemCalls):
    """One call fails from its C{good}th use on."""

    def __init__(self, name: str, number: int, good: int) -> None:
        real = getattr(SystemCalls(), name)
        self.failed = 0

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal good
            # Of splice only the half that writes is the disk's.
            if name != "splice" or "offset_dst" in named:
                good -= 1
                if good < 0:
                    self.failed += 1
                    raise OSError(number, os.strerror(number))
            return real(*arguments, **named)

        if name != "splice":
            self.splice = None  # so that payloads pass where the test looks
        setattr(self, name, call)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("splice", 0),
        ("splice", 7),
        ("pwrite", 0),
        ("pwrite", 7),
        ("fallocate", 0),
        ("fdatasync", 0),
        ("sync_file_range", 0),
        ("sync_file_range", 1),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_failing_disk_at_the_destination_fails_the_receiver(
    room: Path, name: str, good: int, number: int
) -> None:
    """The sender gets the error, the receiver fails, the source stays, and a good receiver
    completes.
    """
    size = 80 * MIB if name == "sync_file_range" else 32 * MIB
    source = sparse_image(room / "source", size, {MIB: os.urandom(size - 2 * MIB)})
    before = digest(source)
    calls = FailingCalls(name, number, good)
    listen = f"unix:{room}/socket"
    if name == "fallocate":  # in a new file a hole is one already
        (room / "first").touch()
        os.truncate(room / "first", size)
    with log_lines() as lines:
        async with sending(source, f"unix:{room}/socket", unlink=True, retry=True) as sender:
            async with receiving(room / "first", size, system=calls, listen=listen) as (bad, _):
                sent = sender.run()
                with pytest.raises(LocalFailure, match=re.escape(os.strerror(number))):
                    await bad.complete()
            assert calls.failed
            assert not sent.called
            assert digest(source) == before
            told = [line for line in lines if "trying again" in line]
            wire = "EIO" if number == errno.EIO else "ENOSPC"
            assert any(f"with {wire}" in line for line in told), told
            async with receiving(room / "second", size, listen=listen) as (good_one, _):
                await sent
                await good_one.complete()
    assert digest(room / "second") == before
    assert not source.exists()


@pytest.mark.parametrize("slow", [False, True], ids=["at once", "late"])
@pytest_twisted.ensureDeferred
async def test_a_write_back_error_that_no_flush_repeats_still_fails_the_receiver(
    room: Path, slow: bool
) -> None:
    """The kernel reports a lost page once: if that was consumed, a FLUSH must still fail."""
    size = 32 * MIB  # a window: it is written back when the last WRITE is done
    source = random_image(room / "source", size)
    before = digest(source)

    class Lost(SystemCalls):
        """The first caller gets the error, as from the kernel; later ones do not."""

        def __init__(self) -> None:
            self.told = 0
            self.lock = threading.Lock()

        def tell(self) -> None:
            with self.lock:
                self.told += 1
                if self.told == 1:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

        def sync_file_range(self, *arguments: Any) -> None:
            try:
                self.tell()
            finally:
                time.sleep(0.5 if slow else 0)

        def fdatasync(self, descriptor: int) -> None:
            self.tell()

    calls = Lost()
    async with (
        receiving(room / "destination", size, system=calls) as (receiver, port),
        sending(source, port.getHost().port, unlink=True) as sender,
    ):
        sent = sender.run()
        sent.addErrback(lambda _: None)
        with pytest.raises(LocalFailure, match="Input/output error"):
            await receiver.complete()
        await pause(0.1)
        assert calls.told
        assert source.exists(), "the only good copy was deleted"
        assert not sent.called
    assert digest(source) == before


def test_a_source_that_shrinks_fails_the_sender(processes: Processes, room: Path) -> None:
    source = random_image(room / "source", SIZE)
    receiver = processes.receive(room / "destination", "--size", SIZE)
    sender = processes.send(source, receiver, "--unlink", "--max-rate", RATE)
    under_way(receiver)
    os.truncate(source, MIB)
    assert sender.wait(20) == 3, sender.stderr
    assert source.exists()
    receiver.wait_event("restart", 10)
    assert receiver.status is None
    assert not receiver.events("complete")


@pytest_twisted.ensureDeferred
async def test_a_source_that_cannot_be_read_fails_the_sender(room: Path) -> None:
    calls = FailingCalls("sendfile", errno.EIO, 2)
    source = random_image(room / "source", 8 * MIB)
    async with receiving(room / "destination", 8 * MIB) as (receiver, port):
        async with sending(source, port.getHost().port, system=calls, unlink=True) as sender:
            with pytest.raises(LocalFailure, match="Input/output error"):
                await sender.run()
        assert source.exists()
        done = receiver.complete()
        await pause(0.1)
        assert not done.called
        receiver.stop()
        with pytest.raises(Exception, match="not canonical"):
            await done


@pytest_twisted.ensureDeferred
async def test_a_source_that_cannot_be_unlinked_stays_canonical(room: Path) -> None:
    """The destination must not learn that it is canonical."""
    calls = FailingCalls("unlink", errno.EIO, 0)
    source = random_image(room / "source", 8 * MIB)
    async with receiving(room / "destination", 8 * MIB) as (receiver, port):
        done = receiver.complete()
        done.addErrback(lambda _: None)
        async with sending(source, port.getHost().port, system=calls, unlink=True) as sender:
            with pytest.raises(LocalFailure, match="could not be retired"):
                await sender.run()
        await pause(0.1)
        assert not done.called
    assert source.exists()


# Connections that break.


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that was acknowledged looks for a vanished receiver for a moment only."""
    monkeypatch.setattr(finisher, "_SEARCH_TIME", 0.3)


def left_in(room: Path) -> list[str]:
    return sorted(os.listdir(room))


@pytest.mark.parametrize("unlink", [False, True], ids=["keep", "unlink"])
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.usefixtures("short_patience")
@pytest_twisted.ensureDeferred
async def test_a_connection_cut_at_random_places_is_recovered(
    room: Path, reset: bool, unlink: bool
) -> None:
    """Thirty places (or two hundred), with up to three cuts in one migration."""
    size = 6 * MIB + 777
    content = {0: os.urandom(4 * MIB), 5 * MIB: b"x" * MIB}
    source = sparse_image(room / "source", size, content)
    before = digest(source)
    seed = random.randrange(1 << 32)
    generator = random.Random(seed)
    how = Break.RESET if reset else Break.CLOSE
    async with receiving(room / "destination", size) as (receiver, port):
        async with wires(port.getHost().port) as wire, sending(source, wire.port) as sender:
            await sender.run()
            await receiver.complete()
        most = wire.passed
    cuts_left = 50 if FULL else 8
    migrations = 0
    while cuts_left > 0:
        for name in left_in(room):
            (room / name).unlink()
        sparse_image(source, size, content)
        wanted = min(cuts_left, generator.choice([1, 1, 2, 3]))
        cuts = [
            generator.choice([generator.randrange(1, 400), generator.randrange(1, most - 20000)])
            for _ in range(wanted)
        ]
        if generator.random() < 0.4:
            # Only the last cut may come so late that nothing is sent again.
            cuts[-1] = generator.randrange(most - 20000, most)
        cuts_left -= wanted
        migrations += 1
        told = f"seed {seed}, migration {migrations}, cuts {cuts}"
        async with (
            receiving(room / "destination", size) as (receiver, port),
            wires(port.getHost().port, cuts, how) as wire,
            sending(source, wire.port, retry=True, unlink=unlink) as sender,
        ):
            sent = sender.run().addTimeout(30, reactor)
            done = receiver.complete().addTimeout(30, reactor)
            try:
                summary = await sent
                outcome = await done
            except Exception as error:
                raise AssertionError(f"{told}: {error!r}") from error
            assert wire.cut == len(cuts), told
            assert outcome.attempts <= summary.attempts <= wire.cut + 1, told
        assert summary.bytes == outcome.bytes == size
        assert digest(room / "destination") == before, told
        left = ["destination", "destination.RECEIVED", "source", "source.MIGRATED"]
        if unlink:
            left.remove("source")
        assert left_in(room) == left, told


@pytest.mark.parametrize("whole", [False, True], ids=["one", "all"])
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("unlink", [False, True], ids=["keep", "unlink"])
@pytest.mark.usefixtures("short_patience")
@pytest_twisted.ensureDeferred
async def test_a_connection_cut_anywhere_in_the_hand_off_is_recovered(
    room: Path, unlink: bool, reset: bool, whole: bool
) -> None:
    """The connection is cut at each of the last bytes, and both ends finish, whichever message was
    lost.


    The disconnect has no reply, but the side export tells what became of it.
    """
    size = 256 * 1024
    data = os.urandom(size)
    source = room / "source"
    how = Break.RESET if reset else Break.CLOSE

    async def run(*cut: int) -> int:
        for name in left_in(room):
            (room / name).unlink()
        source.write_bytes(data)
        async with receiving(room / "destination", size) as (receiver, port):
            done = receiver.complete()
            done.addErrback(lambda failure: failure.value)
            async with (
                wires(port.getHost().port, cut, how, whole) as wire,
                sending(source, wire.port, unlink=unlink, retry=True) as sender,
            ):
                sent = await sender.run().addTimeout(20, reactor)
                received = await done.addTimeout(20, reactor)
        assert wire.cut == len(cut)
        assert sent.bytes == received.bytes == size
        assert (room / "destination").read_bytes() == data
        left = ["destination", "destination.RECEIVED", "source", "source.MIGRATED"]
        if unlink:
            left.remove("source")
        assert left_in(room) == left
        return wire.passed

    passed = await run()
    last_message, page = 28, 28 + 16 + 4096
    # The end of it, the disconnect and what is before it, and the two messages before that.
    places = [
        *range(0, last_message + 2),
        *range(page + last_message - 2, page + 2 * last_message + 20),
        *range(page + 2 * last_message + 20, 3 * 4200 + 80, 100 if FULL else 400),
    ]
    for back in places if FULL else places[::5]:
        await run(passed - back)
