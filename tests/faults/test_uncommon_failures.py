"""Uncommon failures: errors that another request consumed, peers that die at the last moment, and
output that nobody reads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from tests.support import wire
from tests.support.disks import MIB, allocated, digest, random_image
from tests.support.embedding import pause, receiving, sending
from tests.support.processes import BLOCKMIG, Processes, until
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from blockmig.errors import GaveUp, LocalFailure, Unconfirmed
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.records.verdict import examine_until_stable, verdict_of_pair
from blockmig.syscalls import SystemCalls

SIZE = 3 * MIB


def uri_of(port: Any) -> str:
    return f"nbd://127.0.0.1:{port.getHost().port}/"


# The medium's error, which the kernel tells a descriptor once, taken by somebody else.


class ToldOnce(SystemCalls):
    """C{call} fails the first time, not before another flush had a chance to overtake it."""

    def __init__(self, call: str) -> None:
        self.failed = False
        self._first = True
        self._flushed = threading.Event()

        def fail_once(*_: Any) -> None:
            if self._first:
                self._first = False
                self._flushed.wait(1.0)
                time.sleep(0.1)
                self.failed = True
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if call == "fdatasync":
                self._flushed.set()

        def flush(*_: Any) -> None:
            self._flushed.set()

        self.fdatasync: Any = flush  # type: ignore[misc]
        setattr(self, call, fail_once)


async def is_told(room: Path, receiver: Receiver, port: Any, calls: ToldOnce) -> None:
    """A sender that connects now must get the error, and must not delete its source."""
    before = digest(room / "source")
    done = receiver.complete()
    done.addErrback(lambda failure: failure.value)
    async with sending(room / "source", port.getHost().port, unlink=True) as sender:
        sent = sender.run()
        sent.addErrback(lambda failure: failure.value)
        outcome = await done
        assert isinstance(outcome, LocalFailure), outcome
        assert "Input/output error" in str(outcome)
        await pause(0.2)
        assert calls.failed
        assert (room / "source").exists(), "the only good copy was deleted"
        assert not sent.called, "the sender holds the migration for done"
        sender.stop()
        assert isinstance(await sent, GaveUp)
    assert digest(room / "source") == before


@pytest_twisted.ensureDeferred
async def test_the_flush_of_a_stray_cannot_take_an_error_of_the_disk(room: Path) -> None:
    """A stray has written nothing, so its FLUSH does not reach the medium."""
    random_image(room / "source", SIZE)
    calls = ToldOnce("fdatasync")
    async with receiving(room / "destination", SIZE, system=calls) as (receiver, port):

        def stray() -> int:
            with wire.client(uri_of(port)) as client:
                return client.ask(wire.FLUSH)

        assert await deferToThread(stray) == 0
        await is_told(room, receiver, port, calls)


@pytest_twisted.ensureDeferred
async def test_an_error_that_an_earlier_write_behind_took_still_fails_the_receiver(
    room: Path,
) -> None:
    size = 32 * MIB  # a window: it is written back when the last WRITE is done
    random_image(room / "source", size)
    calls = ToldOnce("sync_file_range")
    async with receiving(room / "destination", size, system=calls) as (receiver, port):

        def first() -> None:
            with wire.client(uri_of(port)) as client:
                for offset in range(0, size, 2 * MIB):
                    assert client.ask(wire.WRITE, offset, 2 * MIB, b"x" * 2 * MIB) == 0

        await deferToThread(first)
        await is_told(room, receiver, port, calls)


@pytest_twisted.ensureDeferred
async def test_a_sender_that_is_held_back_hears_of_an_error_at_once(room: Path) -> None:
    """It gets an NBD error."""
    size = 192 * MIB

    class Slow(SystemCalls):
        def sync_file_range(self, descriptor: int, offset: int, length: int, flags: int) -> None:
            if flags & 4:
                time.sleep(0.7)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def client(uri: str) -> tuple[int, float]:
        with wire.client(uri) as sender:
            for number in range(size // MIB):
                began = time.monotonic()
                error = sender.ask(wire.WRITE, number * MIB, MIB, bytes(MIB))
                if error:
                    return error, time.monotonic() - began
            began = time.monotonic()
            return sender.ask(wire.FLUSH), time.monotonic() - began

    async with receiving(room / "destination", size, system=Slow()) as (receiver, port):
        done = receiver.complete()
        done.addErrback(lambda failure: failure.value)
        error, waited = await deferToThread(client, uri_of(port))
        assert error in (errno.EIO, wire.ESHUTDOWN)
        assert waited < 3
        assert isinstance(await done, LocalFailure)


# Destinations that die at the last moment.


class LastMoment:
    """An oldstyle server that accepts everything, and ends the connection as C{end} says.


    C{end} is given the socket, and the reply to the FLUSH, which it has to send itself.
    """

    def __init__(
        self, listener: socket.socket, size: int, end: Callable[[socket.socket, bytes], None]
    ) -> None:
        self.listener = listener
        self._thread = threading.Thread(target=self._serve, args=(size, end), daemon=True)
        self._thread.start()

    def _serve(self, size: int, end: Callable[[socket.socket, bytes], None]) -> None:
        connection, _ = self.listener.accept()
        with connection:
            magic = 0x4E42444D41474943, 0x00420281861253
            connection.sendall(struct.pack("!QQQI124x", *magic, size, 1 | 4))
            while True:
                header = wire.read_exactly(connection, 28)
                _, _, command, cookie, _, length = struct.unpack("!IHHQQI", header)
                if command == wire.WRITE:
                    wire.read_exactly(connection, length)
                reply = struct.pack("!IIQ", 0x67446698, 0, cookie)
                if command == wire.READ:
                    reply += bytes(length)
                if command == wire.FLUSH:
                    end(connection, reply)
                    return
                connection.sendall(reply)

    def close(self) -> None:
        self.listener.close()
        self._thread.join(10)


@contextlib.contextmanager
def last_moment(
    room: Path, family: str, end: Callable[[socket.socket, bytes], None]
) -> Iterator[str]:
    """Such a server, and its URI."""
    if family == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
        uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}/"
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(room / "socket"))
        listener.listen()
        uri = f"nbd+unix:///?socket={room}/socket"
    server = LastMoment(listener, SIZE, end)
    try:
        yield uri
    finally:
        server.close()


def dies_with_its_reply(connection: socket.socket, reply: bytes) -> None:
    if connection.family == socket.AF_INET:
        connection.send(reply, socket.MSG_MORE)  # so that the end travels with it
        connection.close()
        return
    # Two calls, between which the sender must not go on.
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    sender, _, _ = struct.unpack("iII", credentials)
    os.kill(sender, signal.SIGSTOP)
    until(lambda: ") T " in Path(f"/proc/{sender}/stat").read_text())
    connection.send(reply)
    connection.close()
    os.kill(sender, signal.SIGCONT)


def dies_before_it_reads(connection: socket.socket, reply: bytes) -> None:
    """Its kernel may have the disconnect, but discards with a reset what was not read."""
    connection.send(reply)
    time.sleep(0.3)
    connection.close()


def closes_behind_the_disconnect(connection: socket.socket, reply: bytes) -> None:
    connection.send(reply)
    header = wire.read_exactly(connection, 28)
    assert struct.unpack("!IHH", header[:8])[2] == wire.DISC
    connection.close()


def closes_behind_the_end(connection: socket.socket, reply: bytes) -> None:
    connection.send(reply)
    assert len(wire.read_exactly(connection, 29)) == 28
    connection.close()


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("unlink", [False, True], ids=["keep", "unlink"])
@pytest.mark.parametrize(
    ("end", "status"),
    [
        (dies_before_it_reads, 5),
        (closes_behind_the_disconnect, 0),
        (closes_behind_the_end, 0),
    ],
)
def test_an_end_at_the_last_moment_is_complete_or_unconfirmed(
    processes: Processes,
    room: Path,
    end: Callable[[socket.socket, bytes], None],
    status: int,
    unlink: bool,
    family: str,
) -> None:
    source = random_image(room / "source", SIZE)
    with last_moment(room, family, end) as uri:
        sender = processes.send(source, uri, *(["--unlink"] if unlink else []))
        assert sender.wait(30) == status, sender.stderr
    assert source.exists() is not unlink
    if status:
        assert "it may not have been notified" in sender.events("error")[0]["why"]


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("unlink", [False, True], ids=["keep", "unlink"])
def test_an_end_before_the_source_is_retired_retires_nothing(
    processes: Processes, room: Path, unlink: bool, family: str
) -> None:
    """The end of the connection is known before the source is retired."""
    source = random_image(room / "source", SIZE)
    before = digest(source)
    with last_moment(room, family, dies_with_its_reply) as uri:
        options = ["--give-up-after", "2", *(["--unlink"] if unlink else [])]
        sender = processes.send(source, uri, *options)
        assert sender.wait(30) == 4, sender.stderr
    assert "lost before the source was retired" in sender.events("restart")[0]["why"]
    assert "was not retired and is the canonical copy" in sender.events("error")[0]["why"]
    assert digest(source) == before
    assert not (room / "source.MIGRATED").exists()
    verdict = processes.run(BLOCKMIG, "inspect", source)
    assert verdict.stdout.splitlines()[0] == "canonical"


# Retiring that goes wrong.


def test_a_hard_link_made_during_the_copy_prevents_the_unlink(
    processes: Processes, room: Path
) -> None:
    source = random_image(room / "source", SIZE)
    receiver = processes.receive(room / "destination", "--size", SIZE)
    sender = processes.send(source, receiver, "--unlink", "--max-rate", SIZE)
    receiver.wait_event("attempt")
    os.link(source, room / "other")
    assert sender.wait(20) == 3, sender.stderr
    assert "2 hard links" in sender.events("error")[0]["why"]
    assert source.exists()
    assert receiver.status is None
    receiver.signal(signal.SIGTERM)
    # It was told that its copy, whole as it is, is not to be the disk.
    assert receiver.wait(10) == 4, receiver.stderr


@pytest_twisted.ensureDeferred
async def test_a_directory_that_cannot_be_synced_after_the_unlink_is_unconfirmed(
    room: Path,
) -> None:
    """The sync after the unlink fails: the source is gone, but perhaps not durably."""

    class NoSync(SystemCalls):
        def fsync(self, descriptor: int) -> None:  # type: ignore[override]
            if not source.exists():
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            os.fsync(descriptor)

    source = random_image(room / "source", SIZE)
    before = digest(source)
    async with receiving(room / "destination", SIZE) as (receiver, port):
        done = receiver.complete()
        done.addErrback(lambda failure: failure.value)
        async with sending(source, port.getHost().port, system=NoSync(), unlink=True) as sender:
            with pytest.raises(Unconfirmed, match="is deleted, but its directory could not be"):
                await sender.run()
        await pause(0.1)
        assert not done.called, "the destination was told that it is canonical"
        assert not source.exists()
        receiver.stop()
        assert isinstance(await done, Unconfirmed)
    assert digest(room / "destination") == before


@pytest.mark.parametrize("which", [0, 1, 2, 3])
@pytest.mark.parametrize("unlink", [False, True], ids=["keep", "unlink"])
@pytest_twisted.ensureDeferred
async def test_a_record_that_cannot_be_synced_before_retiring_fails_the_sender(
    room: Path, unlink: bool, which: int
) -> None:
    """Each record has two syncs before the source is retired: the file's and the directory's."""

    class NoSync(SystemCalls):
        calls = 0
        begun = False

        def open(self, path: str, *arguments: Any) -> int:  # type: ignore[override]
            self.begun = self.begun or path.endswith(".MIGRATING.tmp")
            return os.open(path, *arguments)

        def fsync(self, descriptor: int) -> None:  # type: ignore[override]
            self.calls += self.begun
            if self.calls > which:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            os.fsync(descriptor)

    source = random_image(room / "source", SIZE)
    before = digest(source)
    calls = NoSync()
    async with receiving(room / "destination", SIZE) as (receiver, port):
        done = receiver.complete()
        done.addErrback(lambda failure: failure.value)
        async with sending(source, port.getHost().port, system=calls, unlink=unlink) as sender:
            with pytest.raises(LocalFailure, match="Input/output error") as failed:
                await sender.run()
            assert failed.value.status == 3
        await pause(0.1)
        assert calls.calls > which
        assert not done.called, "the destination was told that it is canonical"
        assert digest(source) == before
        assert not (room / "source.MIGRATED").exists()
        verdict = verdict_of_pair(
            *examine_until_stable([str(source), str(room / "destination")])[0]
        )
        assert verdict.canonical == str(source), verdict
        receiver.stop()
        # Also where it had put its copy on record as whole: it was told that it is not to be.
        assert isinstance(await done, GaveUp)


class Slow(SystemCalls):
    """One call takes its time."""

    def __init__(self, name: str, seconds: float) -> None:
        real = getattr(SystemCalls(), name)

        def call(*arguments: Any) -> Any:
            time.sleep(seconds)
            return real(*arguments)

        setattr(self, name, call)


@pytest_twisted.ensureDeferred
async def test_an_unlink_may_take_longer_than_the_idle_timeout(room: Path) -> None:
    source = random_image(room / "source", SIZE)
    async with receiving(room / "destination", SIZE, idle_timeout=0.5) as (receiver, port):
        done = receiver.complete()
        slow = Slow("unlink", 1.5)
        async with sending(source, port.getHost().port, system=slow, unlink=True) as sender:
            assert (await sender.run().addTimeout(20, reactor)).attempts == 1
        assert (await done).attempts == 1
    assert not source.exists()


@pytest_twisted.ensureDeferred
async def test_a_flush_may_take_longer_than_every_timeout(room: Path) -> None:
    source = random_image(room / "source", SIZE)
    async with receiving(
        room / "destination", SIZE, system=Slow("fdatasync", 1.5), idle_timeout=0.5, give_up_after=1
    ) as (receiver, port):
        done = receiver.complete()
        async with sending(source, port.getHost().port, unlink=True) as sender:
            assert (await sender.run().addTimeout(20, reactor)).attempts == 1
        assert (await done).attempts == 1


# Whoever does not listen to what is said costs nothing but the words.


def test_a_closed_stderr_does_not_stop_a_migration(processes: Processes, room: Path) -> None:
    source = random_image(room / "source", SIZE)
    receiver = processes.receive(room / "destination", "--size", SIZE)
    sender = processes.start(
        *("sh", "-c", 'exec "$@" 2>/dev/full', "sh", BLOCKMIG, "send", "--progress", "bar"),
        *("--max-rate", str(SIZE), source, receiver.uri),
    )
    assert sender.wait(20) == 0
    assert receiver.wait(10) == 0
    assert digest(room / "destination") == digest(source)


def test_a_removed_socket_file_does_not_stop_a_migration(processes: Processes, room: Path) -> None:
    source = random_image(room / "source", SIZE)
    receiver = processes.receive(
        room / "destination", "--size", SIZE, listen=f"unix:{room}/a+socket"
    )
    sender = processes.send(source, receiver, "--max-rate", SIZE)
    receiver.wait_event("attempt")
    (room / "a+socket").unlink()
    assert sender.wait(20) == 0, sender.stderr
    assert receiver.wait(10) == 0, receiver.stderr


@contextlib.contextmanager
def deaf_reader(path: Path) -> Iterator[Path]:
    """A full named pipe that nobody reads."""
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, bytes(1024))
        yield path
    finally:
        os.close(pipe)


@pytest.mark.parametrize("progress", ["json", "bar"])
@pytest.mark.parametrize("stopped", [False, True], ids=["ends", "stopped"])
def test_output_that_nobody_reads_does_not_stop_a_migration(
    processes: Processes, room: Path, progress: str, stopped: bool
) -> None:
    source = random_image(room / "source", SIZE)
    listen = room / "socket"
    with deaf_reader(room / "pipe") as pipe:
        quietly = ("sh", "-c", 'pipe=$1; shift; exec "$@" >$pipe 2>$pipe', "sh", pipe, BLOCKMIG)
        receive = ("receive", "-v", "--file", room / "destination", "--size", str(SIZE))
        receiver = processes.start(*quietly, *receive, "--listen", f"unix:{listen}")
        until(listen.exists)
        send = ("send", "-v", "--progress", progress, "--max-rate", str(SIZE // 2))
        sender = processes.start(*quietly, *send, source, f"nbd+unix:///?socket={listen}")
        if stopped:
            until(lambda: allocated(room / "destination"))
            sender.signal(signal.SIGTERM)
            assert sender.wait(10) == 4
            receiver.signal(signal.SIGTERM)
            assert receiver.wait(10) == 4
        else:
            assert sender.wait(20) == 0
            assert receiver.wait(10) == 0


# Signals that come late, often, or to somebody else.

SLOW_FLUSH = """
import os, sys, time
from blockmig.syscalls import SystemCalls
def slow(descriptor):
    open({flag!r}, "a").close()
    time.sleep(1.5)
    os.fdatasync(descriptor)
SystemCalls.fdatasync = staticmethod(slow)
"""

AS_COMMAND = "from blockmig.cli.main import main\nmain()\n"

AS_TWISTD = """
from twisted.internet import reactor
from twisted.scripts.twistd import run
{extra}
sys.argv[0] = "twistd"
run()
"""

STOPPED_BY_OTHERS = """
def look():
    if os.path.exists({flag!r}):
        reactor.stop()
    else:
        reactor.callLater(0.02, look)
reactor.callWhenRunning(look)
"""


def slow_receiver(room: Path, body: str) -> tuple[str, ...]:
    """The start of a command line whose first flush leaves a sign and takes time."""
    script = room / "slow.py"
    script.write_text((SLOW_FLUSH + body).replace("{flag!r}", repr(str(room / "flag"))))
    return (sys.executable, str(script))


def last_flush(processes: Processes, room: Path, command: tuple[str, ...]) -> Any:
    """A receiver whose last flush is under way: the disconnect was accepted."""
    receiver = processes.receive(room / "destination", "--size", SIZE, command=command)
    with wire.client(receiver.uri) as client:
        assert client.ask(wire.WRITE, 0, SIZE, os.urandom(SIZE)) == 0
        client.send(wire.request(wire.DISC))
        until((room / "flag").exists)
    return receiver


@pytest.mark.parametrize("kind", ["blockmig", "twistd"])
def test_signals_during_the_last_flush_are_too_late(
    processes: Processes, room: Path, kind: str
) -> None:
    if kind == "blockmig":
        command = (*slow_receiver(room, AS_COMMAND), "receive")
    else:
        body = AS_TWISTD.replace("{extra}", "")
        command = (*slow_receiver(room, body), "-n", "--pidfile=", "blockmig", "receive")
    receiver = last_flush(processes, room, command)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        receiver.signal(number)
        time.sleep(0.1)
    assert receiver.wait(10) == 0, receiver.stderr
    assert "Traceback" not in receiver.stderr + receiver.stdout


def test_a_reactor_stopped_during_the_last_flush_waits_for_it(
    processes: Processes, room: Path
) -> None:
    body = AS_TWISTD.replace("{extra}", STOPPED_BY_OTHERS)
    command = (*slow_receiver(room, body), "-n", "--pidfile=", "blockmig", "receive")
    receiver = last_flush(processes, room, command)
    assert receiver.wait(10) == 0, receiver.stderr
    assert receiver.events("complete"), receiver.stderr
    assert "Traceback" not in receiver.stderr + receiver.stdout


# Bad input is refused in one line.


@pytest.mark.parametrize(
    "options",
    [
        ("--listen", "stdio:"),
        ("--listen", "tcp:99999"),
        ("--export", "\udcff"),
        ("--export", "x" * 4097),
    ],
    ids=["stdio", "port", "not UTF-8", "too long"],
)
def test_bad_input_is_refused_with_one_line(
    processes: Processes, room: Path, options: tuple[str, str]
) -> None:
    disk = room / "new"
    running = processes.start(BLOCKMIG, "receive", "--file", disk, "--size", "1M", *options)
    assert running.wait(10) == 1, running.stderr
    assert running.stderr.count("\n") == 1, running.stderr
    assert not running.stdout
    assert not disk.exists()
