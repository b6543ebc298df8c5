"""Connections that say nothing, little, or the same again, and descriptors: nobody else is hurt."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support import wire
from tests.support.disks import MIB, digest, random_image
from tests.support.processes import Processes, Running, until
from tests.support.serving import serve

SIZE = 20 * MIB
MANY = 1000
MOST = 128


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """This process needs many itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def limit(running: Running, most: int) -> None:
    """How many descriptors a process may have."""
    _, hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (most, hard))


def used(running: Running) -> int:
    return len(os.listdir(f"/proc/{running.pid}/fd"))


def silent(uri: str) -> socket.socket:
    return wire.connect(uri)


def half_a_handshake(uri: str) -> socket.socket:
    connection = wire.connect(uri)
    connection.sendall(wire.FLAGS + wire.go()[:-3])
    return connection


def idle(uri: str) -> socket.socket:
    """Past the handshake, with nothing to say; or closed before it could be."""
    connection = wire.connect(uri)
    with contextlib.suppress(OSError):
        connection.sendall(wire.FLAGS + wire.go())
    return connection


@contextlib.contextmanager
def crowd(
    uri: str, how: Callable[[str], socket.socket], count: int = MANY
) -> Iterator[list[socket.socket]]:
    """So many strangers, who stay until the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(how(uri)) for _ in range(count)]


@pytest.mark.parametrize("how", [silent, half_a_handshake, idle], ids=lambda how: how.__name__)
def test_a_thousand_strangers_do_not_delay_a_migration(
    processes: Processes, room: Path, how: Callable[[str], socket.socket]
) -> None:
    source = random_image(room / "source", SIZE)
    before = digest(source)
    receiver = processes.receive(room / "destination", "--size", SIZE)
    limit(receiver, 1024)
    at_first = used(receiver)
    with crowd(receiver.uri, how, MANY // 2):
        sender = processes.send(source, receiver, "--unlink", "--max-rate", "4M")
        receiver.wait_event("attempt")
        with crowd(receiver.uri, how, MANY // 2):
            until(lambda: used(receiver) <= at_first + MOST + 8)
            assert sender.wait() == 0, sender.stderr
            assert receiver.wait(10) == 0, receiver.stderr
    assert digest(room / "destination") == before
    assert len(receiver.events("attempt")) == 1
    replaced = receiver.events("replaced")
    assert 1 <= len(replaced) <= 200, "a flood is in few lines"
    assert all(event["peer"].startswith("127.0.0.1:") for event in replaced)


def test_strangers_leave_descriptors_for_records(processes: Processes, room: Path) -> None:
    """With fewer descriptors than strangers; and those that were there before the sender."""
    source = random_image(room / "source", SIZE)
    before = digest(source)
    receiver = processes.receive(room / "destination", "--size", SIZE)
    most = used(receiver) + 100
    limit(receiver, most)
    with crowd(receiver.uri, silent, 200):
        sender = processes.send(source, receiver, "--unlink", "--max-rate", "4M")
        receiver.wait_event("attempt")
        with crowd(receiver.uri, idle, 200):
            until(lambda: used(receiver) <= most - most // 4 + 4)
            assert sender.wait() == 0, sender.stderr
            assert receiver.wait(10) == 0, receiver.stderr
    assert digest(room / "destination") == before


def test_bursts_leave_descriptors_for_records_where_there_are_few(
    processes: Processes, room: Path
) -> None:
    """More come in one turn of the reactor than are kept: whoever is closed for them goes only
    after it."""
    most, burst = 96, 300
    source = random_image(room / "source", SIZE)
    before = digest(source)
    receiver = processes.receive(room / "destination", "--size", SIZE)
    limit(receiver, most)
    stop, seen = threading.Event(), [0]

    def watch() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):  # it has ended
                seen.append(used(receiver))
            time.sleep(0.0005)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        sender = processes.send(source, receiver, "--unlink", "--retry", "--max-rate", "4M")
        receiver.wait_event("attempt")
        while sender.status is None:
            # The receiver may have ended; its sender is about to.
            with contextlib.ExitStack() as stack, contextlib.suppress(ProcessLookupError):
                os.kill(receiver.pid, signal.SIGSTOP)
                for _ in range(burst):
                    stack.enter_context(comes(receiver))
                os.kill(receiver.pid, signal.SIGCONT)
                time.sleep(0.2)
    finally:
        stop.set()
        watching.join()
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait(10) == 0, receiver.stderr
    assert digest(room / "destination") == before
    assert "oo many open" not in receiver.stderr
    assert most // 2 < max(seen) <= most - most // 8 + 2


def comes(running: Running) -> socket.socket:
    """Somebody who does not wait to be accepted."""
    address = running.uri.removeprefix("nbd://").rstrip("/").rsplit(":", 1)
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex((address[0], int(address[1])))
    return connection


def test_a_receiver_without_descriptors_neither_spins_nor_ends(
    processes: Processes, room: Path
) -> None:
    """accept(2) fails; when there are descriptors again, everything goes on."""
    source = random_image(room / "source", SIZE)
    receiver = processes.receive(room / "destination", "--size", SIZE)
    limit(receiver, used(receiver))
    with crowd(receiver.uri, silent, 50):
        before = cpu(receiver)
        time.sleep(2)
        assert cpu(receiver) - before < 0.5
        limit(receiver, 1024)
        assert processes.send(source, receiver, "--retry").wait() == 0
        assert receiver.wait(10) == 0, receiver.stderr


def cpu(running: Running) -> float:
    """Seconds of CPU time."""
    fields = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("how", [silent, half_a_handshake, idle], ids=lambda how: how.__name__)
def test_a_thousand_strangers_do_not_hurt_a_client_of_a_server(
    processes: Processes, room: Path, how: Callable[[str], socket.socket]
) -> None:
    """One that has asked for something stays, and others may come."""
    disk = random_image(room / "disk", SIZE)
    content = disk.read_bytes()
    served = serve(processes, disk)
    limit(served.running, 1024)
    at_first = used(served.running)
    uri = served.uris["tcp"]
    first = wire.Client(uri)

    def works(client: wire.Client) -> None:
        assert client.ask(wire.READ, 4096, MIB) == 0
        assert wire.read_exactly(client.socket, MIB) == content[4096 : 4096 + MIB]
        assert client.ask(wire.WRITE, 4096, MIB, content[4096 : 4096 + MIB]) == 0

    works(first)
    with crowd(uri, how):
        until(lambda: used(served.running) <= at_first + 2 * MOST + 16)
        works(first)
        for _ in range(5):
            with wire.client(uri) as other:
                works(other)
    first.close()
    served.running.signal(15)
    assert served.running.wait(20) == 0, served.running.stderr
    assert served.running.events("replaced")


def test_a_server_of_busy_clients_keeps_descriptors_and_refuses_the_next(
    processes: Processes, room: Path
) -> None:
    disk = random_image(room / "disk", SIZE)
    served = serve(processes, disk, "--max-connections", "0")
    most = used(served.running) + 60
    limit(served.running, most)
    uri = served.uris["tcp"]
    with contextlib.ExitStack() as stack:
        busy = []
        for _ in range(100):
            try:
                client = wire.Client(uri)
                stack.callback(client.close)
                assert client.ask(wire.WRITE, 0, 2 * MIB, bytes(2 * MIB)) == 0
            except (AssertionError, OSError, struct.error):
                break
            busy.append(client)
        assert 5 <= len(busy) < 40
        assert used(served.running) <= most - 12
        assert "descriptors" in served.running.wait_event("full")["why"]
        for client in busy:
            assert client.ask(wire.WRITE, 0, MIB, bytes(MIB)) == 0
            assert client.ask(wire.FLUSH) == 0
        busy[0].close()

        def comes() -> bool:
            with (
                contextlib.suppress(AssertionError, OSError, struct.error),
                wire.client(uri) as one,
            ):
                return one.ask(wire.FLUSH) == 0
            return False

        until(comes)


# Progress.


def dribble(connection: socket.socket, text: bytes) -> float:
    """Send a byte every half second until it is closed; how long that took."""
    began = time.monotonic()
    connection.settimeout(0.5)
    for byte in text:
        try:
            connection.sendall(bytes([byte]))
            if connection.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began


@pytest.mark.parametrize("where", ["payload", "header"])
def test_a_dribbling_attempt_is_ended_for_a_sender(
    processes: Processes, room: Path, where: str
) -> None:
    source = random_image(room / "source", SIZE)
    before = digest(source)
    receiver = processes.receive(room / "destination", "--size", SIZE, "--idle-timeout", 3)
    stranger = wire.Client(receiver.uri)
    assert stranger.ask(wire.WRITE, 0, 1, b"x") == 0
    if where == "payload":
        stranger.send(wire.request(wire.WRITE, 1, MIB))
    text = b"y" * 60 if where == "payload" else wire.request(wire.WRITE, 1, MIB)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(dribble(stranger.socket, text)))
    thread.start()
    stalled = receiver.wait_event("stalled")
    sender = processes.send(source, receiver, "--unlink", "--retry")
    assert sender.wait() == 0, sender.stderr
    thread.join()
    assert taken[0] < 6
    assert receiver.wait(10) == 0, receiver.stderr
    assert digest(room / "destination") == before
    assert stalled["peer"].startswith("127.0.0.1:")


def test_an_attempt_that_repeats_itself_is_ended_for_a_sender(
    processes: Processes, room: Path
) -> None:
    source = random_image(room / "source", SIZE)
    receiver = processes.receive(room / "destination", "--size", SIZE, "--idle-timeout", 2)
    stranger = wire.Client(receiver.uri)

    def repeat() -> None:
        with contextlib.suppress(OSError, struct.error):
            while stranger.ask(wire.WRITE, 0, MIB, bytes(MIB)) == 0:
                time.sleep(0.05)

    thread = threading.Thread(target=repeat)
    thread.start()
    receiver.wait_event("stalled")
    sender = processes.send(source, receiver, "--retry")
    assert sender.wait() == 0, sender.stderr
    thread.join()
    assert receiver.wait(10) == 0, receiver.stderr


def test_an_attempt_of_flush_after_flush_is_ended_for_a_sender(
    processes: Processes, room: Path
) -> None:
    """It always waits for us, which counts a tenth."""
    source = random_image(room / "source", SIZE)
    receiver = processes.receive(room / "destination", "--size", SIZE, "--idle-timeout", 1)
    stranger = wire.Client(receiver.uri)
    assert stranger.ask(wire.WRITE, 0, 1, b"x") == 0

    def flush() -> None:
        with contextlib.suppress(OSError, struct.error):
            stranger.send(wire.request(wire.FLUSH) * 100)
            while stranger.reply()[0] == 0:
                stranger.send(wire.request(wire.FLUSH))

    thread = threading.Thread(target=flush)
    thread.start()
    receiver.wait_event("stalled", timeout=30)
    sender = processes.send(source, receiver, "--retry")
    assert sender.wait() == 0, sender.stderr
    thread.join()
    assert receiver.wait(10) == 0, receiver.stderr


def test_a_whole_copy_of_somebody_silent_is_ended_for_a_sender(
    processes: Processes, room: Path
) -> None:
    """Two requests, 56 bytes."""
    source = random_image(room / "source", SIZE)
    receiver = processes.receive(room / "destination", "--size", SIZE, "--idle-timeout", 2)
    stranger = wire.Client(receiver.uri)
    assert stranger.ask(wire.ZEROES, 0, SIZE) == 0
    assert stranger.ask(wire.FLUSH) == 0
    receiver.wait_event("restart")
    sender = processes.send(source, receiver, "--retry", "--give-up-after", 20)
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait(10) == 0, receiver.stderr


@pytest.mark.parametrize("idle_timeout", [1, 3])
def test_a_slow_sender_is_not_ended_within_its_long_requests(
    processes: Processes, room: Path, idle_timeout: int
) -> None:
    """A request of 1 MiB takes longer than the timeout by far."""
    source = random_image(room / "source", MIB)
    receiver = processes.receive(
        room / "destination", "--size", MIB, "--idle-timeout", idle_timeout
    )
    sender = processes.send(source, receiver, "--unlink", "--max-rate", "100K")
    assert sender.wait(60) == 0, sender.stderr
    assert receiver.wait(10) == 0, receiver.stderr
    assert len(receiver.events("attempt")) == 1


def test_a_slow_foreign_sender_is_not_ended_within_its_long_requests(
    processes: Processes, room: Path
) -> None:
    receiver = processes.receive(room / "destination", "--size", MIB, "--idle-timeout", 1)
    with wire.client(receiver.uri) as client:
        client.send(wire.request(wire.WRITE, 0, MIB))
        for _ in range(16):
            client.send(bytes(MIB // 16))
            time.sleep(0.3)
        assert client.reply()[0] == 0
        assert client.ask(wire.FLUSH) == 0
        client.send(wire.request(wire.DISC))
        assert client.closed()
    assert receiver.wait(10) == 0, receiver.stderr


def test_idle_side_connections_do_not_delay_the_end(processes: Processes, room: Path) -> None:
    source = random_image(room / "source", SIZE)
    receiver = processes.receive(room / "destination", "--size", SIZE)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(wire.client(receiver.uri, ".handoff"))
        sender = processes.send(source, receiver, "--unlink", "--max-rate", "16M")
        assert sender.wait() == 0, sender.stderr
        began = time.monotonic()
        assert receiver.wait(10) == 0, receiver.stderr
        assert time.monotonic() - began < 2
