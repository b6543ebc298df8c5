"""Whole migrations, between real processes and between two ends in this one."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from tests.support.disks import (
    MIB,
    allocated,
    digest,
    loop_device,
    random_image,
    size_of,
    sparse_image,
)
from tests.support.embedding import CountingCalls, receiving, sending
from tests.support.processes import ANY_PORT, FULL, TWIST, TWISTD, Processes, Running
from tests.support.relay import relay
from tests.support.tls import certificate
from twisted.internet import reactor, ssl
from twisted.internet.endpoints import (
    HostnameEndpoint,
    SSL4ServerEndpoint,
    clientFromString,
    serverFromString,
    wrapClientTLS,
)

from blockmig.client import Destination
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.source.sender import Sender
from blockmig.storage import FileDisk


def migrate(
    processes: Processes,
    source: Path,
    destination: Path,
    *options: str,
    listen: str = ANY_PORT,
    state: Path | None = None,
) -> tuple[Running, Running]:
    """Receiver and sender, both at their good end; C{state} has the records of devices."""
    size = ("--overwrite",) if destination.exists() else ("--size", size_of(source))
    records = ("--state-dir", str(state)) if state is not None else ()
    receiver = processes.receive(destination, *size, *records, listen=listen)
    sender = processes.send(source, receiver, *options, *records)
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait(10) == 0, receiver.stderr
    return receiver, sender


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "unix"])
def test_a_disk_arrives_over_every_kind_of_socket(
    processes: Processes, room: Path, kind: str
) -> None:
    source = random_image(room / "source", 9 * MIB + 5)
    listen = {
        "tcp": ANY_PORT,
        "tcp6": "tcp6:0:interface=\\:\\:1",
        "unix": f"unix:{room}/socket",
    }[kind]
    receiver, sender = migrate(processes, source, room / "destination", listen=listen)
    assert digest(room / "destination") == digest(source)
    assert receiver.uri.startswith(
        {"tcp6": "nbd://[::1]:", "unix": "nbd+unix:///?socket="}.get(kind, "nbd://127.")
    )
    for end in (receiver, sender):
        (summary,) = end.events("complete")
        assert summary["bytes"] == summary["data"] == 9 * MIB + 5
        assert summary["zeroes"] == 0
        assert summary["attempts"] == 1
        assert summary["seconds"] > 0
        assert summary["rate"] > 0
    assert not (room / "socket").exists()


@pytest.mark.parametrize("size", [1, 511, 512, 5000, 4294967297])
def test_sizes_are_exact_to_the_byte(processes: Processes, room: Path, size: int) -> None:
    if size <= 5000:
        source = random_image(room / "source", size, seed=size)
    else:
        last = {0: b"first", size - 70000: random.Random(1).randbytes(70000)}
        source = sparse_image(room / "source", size, last)
    before = digest(source)
    migrate(processes, source, room / "destination", "--unlink")
    assert os.path.getsize(room / "destination") == size
    assert digest(room / "destination") == before
    assert not source.exists()


def real_files(wanted: int) -> Iterator[bytes]:
    """The content of so many bytes of this machine's own files."""
    left = wanted
    for top in (sys.prefix, sys.base_prefix, "/usr/lib", "/usr/share", "/usr/bin", "/usr"):
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                if os.path.islink(path) or not os.path.isfile(path):
                    continue
                try:
                    with open(path, "rb") as file:
                        data = file.read(left)
                except OSError:
                    continue
                yield data
                left -= len(data)
                if left <= 0:
                    return


def image_of_real_files(path: Path, size: int, content: int) -> Path:
    """A sparse image with the machine's own files here and there, holes and zeroes between."""
    generator = random.Random(7)
    gap = (size - content) * 3 // 4
    with path.open("wb") as file:
        file.truncate(size)
        position = 1 * MIB
        for data in real_files(content):
            file.seek(position)
            file.write(data)
            position += len(data) + 4095
            position -= position % 4096
            if generator.random() < 0.01 and gap > 0:
                hole = min(gap, generator.randrange(16 * MIB))
                gap -= hole
                position += hole // 4096 * 4096
            assert position < size
        file.flush()
        os.fsync(file.fileno())
    return path


SPARSE = (4 << 30, 700 * MIB) if FULL else (512 * MIB, 48 * MIB)


def test_a_sparse_image_arrives_sparse_with_little_memory(processes: Processes, room: Path) -> None:
    source = image_of_real_files(room / "source", *SPARSE)
    before, blocks = digest(source), allocated(source)
    assert blocks >= SPARSE[1]
    receiver, sender = migrate(processes, source, room / "destination", "--unlink")
    assert not source.exists()
    assert digest(room / "destination") == before
    assert size_of(room / "destination") == SPARSE[0]
    assert allocated(room / "destination") <= blocks + MIB
    (told,) = sender.events("complete")
    assert told["data"] + told["zeroes"] == told["bytes"] == SPARSE[0]
    print(
        f"\n{SPARSE[0] >> 20} MiB sparse, {SPARSE[1] >> 20} MiB of files: {told['seconds']} s, "
        f"{told['rate'] / 1e6:.0f} MB/s, {told['data']} bytes of data; "
        f"blocks {blocks} -> {allocated(room / 'destination')}; "
        f"sender {sender.peak:.1f} MiB, receiver {receiver.peak:.1f} MiB"
    )


def test_an_allocated_destination_becomes_sparse(processes: Processes, room: Path) -> None:
    """The old content must neither remain nor stay allocated."""
    source = sparse_image(room / "source", 64 * MIB, {20 * MIB: os.urandom(3 * MIB)})
    destination = random_image(room / "destination", 64 * MIB)
    migrate(processes, source, destination)
    assert digest(destination) == digest(source)
    assert allocated(destination) <= allocated(source) + MIB


def test_written_zeroes_are_sent_as_zeroes(processes: Processes, room: Path) -> None:
    source = room / "source"
    source.write_bytes(bytes(32 * MIB) + os.urandom(MIB) + bytes(31 * MIB))
    _, sender = migrate(processes, source, room / "destination")
    assert digest(room / "destination") == digest(source)
    assert allocated(room / "destination") <= 2 * MIB
    assert sender.events("complete")[0]["data"] == MIB


@pytest.mark.parametrize("ends", ["source", "destination", "both"])
def test_loop_devices_can_be_sent_and_received(processes: Processes, room: Path, ends: str) -> None:
    size = SPARSE[0] if FULL else 160 * MIB
    content = SPARSE[1] if FULL else 24 * MIB
    image = image_of_real_files(room / "source", size, content)
    before, blocks = digest(image), allocated(image)
    with ExitStack() as devices:
        source, destination = image, room / "destination"
        if ends != "destination":
            source = devices.enter_context(loop_device(image))
        if ends != "source":
            # Not empty: what the source has zeroes for must become zeroes here.
            sparse_image(destination, size, {0: os.urandom(MIB), size - 5 * MIB: b"x" * 5 * MIB})
            destination = devices.enter_context(loop_device(destination))
        state = room / "state"
        _, sender = migrate(processes, source, destination, state=state)
        kept = ["dev-" + source.name + ".MIGRATED"] if source.is_block_device() else []
        if destination.is_block_device():
            kept = sorted([*kept, "dev-" + destination.name + ".RECEIVED"])
        assert (sorted(os.listdir(state)) if state.exists() else []) == kept
        assert digest(destination) == digest(image) == before
        (told,) = sender.events("complete")
        print(f"\nloop {ends}: {told['seconds']} s, {told['rate'] / 1e6:.0f} MB/s")
    assert digest(room / "destination") == before
    # A device gives no extents, so only what reads as 64 KiB of zeroes can be left out.
    assert allocated(room / "destination") <= blocks + MIB


def test_a_device_is_not_unlinked(processes: Processes, room: Path) -> None:
    image = random_image(room / "source", 2 * MIB)
    with loop_device(image) as device:
        receiver = processes.receive(room / "destination", "--size", 2 * MIB)
        sender = processes.send(device, receiver, "--unlink", "--state-dir", room / "state")
        assert sender.wait() == 1
        assert "cannot be deleted" in sender.stderr
        assert device.exists()
        assert not receiver.events("attempt")
        assert not (room / "state").exists() or not os.listdir(room / "state")


def test_the_source_stays_without_unlink(processes: Processes, room: Path) -> None:
    source = random_image(room / "source", 3 * MIB)
    before = digest(source)
    migrate(processes, source, room / "destination")
    assert digest(source) == before
    assert digest(room / "destination") == before


TWISTD_BLOCKMIG = (TWISTD, "-n", "--pidfile=", "blockmig")
TWIST_BLOCKMIG = (TWIST, "blockmig")


@pytest.mark.parametrize(
    "command", [(*TWISTD_BLOCKMIG, "receive"), TWISTD_BLOCKMIG, TWIST_BLOCKMIG]
)
def test_twistd_and_twist_exit_with_status_0_when_complete(
    processes: Processes, room: Path, command: tuple[str, ...]
) -> None:
    source = random_image(room / "source", 5 * MIB)
    receiver = processes.receive(room / "destination", "--size", 5 * MIB, command=command)
    sender = processes.send(source, receiver, "--unlink")
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait(10) == 0
    assert not source.exists()
    assert digest(room / "destination") == digest(random_image(room / "again", 5 * MIB))
    assert len(receiver.events("complete")) == 1  # and every line was whole JSON


@pytest.mark.parametrize(
    ("when", "command"),
    [("waiting", TWISTD_BLOCKMIG), ("copying", TWISTD_BLOCKMIG), ("copying", TWIST_BLOCKMIG)],
)
def test_twistd_and_twist_exit_with_status_4_on_a_signal(
    processes: Processes, room: Path, when: str, command: tuple[str, ...]
) -> None:
    source = random_image(room / "source", 30 * MIB)
    receiver = processes.receive(room / "destination", "--size", 30 * MIB, command=command)
    if when == "copying":
        processes.send(source, receiver, "--max-rate", "5M")
        receiver.wait_event("attempt")
    receiver.signal(signal.SIGTERM)
    assert receiver.wait(10) == 4
    assert not receiver.events("complete")
    assert source.exists()


def test_log_lines_as_JSON_are_complete(processes: Processes, room: Path) -> None:
    """Each line is one object with time, level, event and message, on both sides."""
    source = random_image(room / "source", 2 * MIB)
    for end in migrate(processes, source, room / "destination", "-v"):
        assert end.stdout == ""
        assert end.stderr.endswith("\n")
        events = end.events()
        assert len(end.events("complete")) == 1
        for event in events:
            assert {"time", "level", "event", "message"} <= event.keys()


def test_log_lines_as_text_show_the_summary(processes: Processes, room: Path) -> None:
    """People see where to send to, the attempt, and one summary line."""
    source = random_image(room / "source", 2 * MIB)
    receiver = processes.receive(room / "destination", "--size", 2 * MIB)
    sender = processes.run(*blockmig_send(source, receiver.uri))
    assert sender.status == 0
    (last,) = [line for line in sender.stderr.splitlines() if "complete" in line]
    assert "2097152 bytes (2097152 of data, 0 of zeroes)" in last
    assert "1 attempt" in last


def blockmig_send(*arguments: object) -> list[str]:
    """The command, without the JSON that the helper asks for."""
    from tests.support.processes import BLOCKMIG

    return [BLOCKMIG, "send", *map(str, arguments)]


# In this process.


@pytest_twisted.ensureDeferred
async def test_three_lines_embed_a_receiver(room: Path) -> None:
    """The example of the design, with the global reactor."""
    source = random_image(room / "source", 9 * MIB + 3)
    path = str(room / "destination")
    endpoint = serverFromString(reactor, ANY_PORT)
    with FileDisk(path, size=9 * MIB + 3) as disk, FileDisk(str(source), writable=False) as mine:
        receiver = Receiver(disk=disk, migrations=1)
        port = await endpoint.listen(receiver.factory())
        client = clientFromString(reactor, f"tcp:127.0.0.1:{port.getHost().port}")
        sent = Sender(mine, Destination(client), unlink=True).run()
        outcome = await receiver.complete()
        assert (await sent).bytes == outcome.bytes == outcome.data == 9 * MIB + 3
        await port.stopListening()
    assert not source.exists()
    assert digest(path) == digest(random_image(room / "again", 9 * MIB + 3))


class StartsTLS:
    """An endpoint whose connections are plain sockets that start TLS as soon as they are made."""

    def __init__(self, endpoint: Any, options: Any) -> None:
        self._endpoint = endpoint
        self._options = options

    def _wrap(self, factory: Any) -> Any:
        build, options = factory.buildProtocol, self._options

        def build_protocol(address: Any) -> Any:
            protocol = build(address)
            make = protocol.makeConnection

            def make_connection(transport: Any) -> None:
                transport.startTLS(options)
                make(transport)

            protocol.makeConnection = make_connection
            return protocol

        factory.buildProtocol = build_protocol
        return factory

    def listen(self, factory: Any) -> Any:
        return self._endpoint.listen(self._wrap(factory))

    def connect(self, factory: Any) -> Any:
        return self._endpoint.connect(self._wrap(factory))


@pytest.mark.parametrize("kind", ["plain", "tls", "starttls"])
@pytest_twisted.ensureDeferred
async def test_sendfile_and_splice_are_used_on_plain_sockets_only(room: Path, kind: str) -> None:
    """Under TLS no data may bypass it; the plain run shows that the test would notice."""
    marker = os.urandom(64)
    source = room / "source"
    source.write_bytes(marker * (6 * MIB // 64))
    before = digest(source)
    tls = kind != "plain"
    private, public = certificate()
    listen: Any = ANY_PORT
    if kind == "tls":
        listen = SSL4ServerEndpoint(reactor, 0, private.options(), interface="127.0.0.1")
    elif kind == "starttls":
        listen = StartsTLS(serverFromString(reactor, ANY_PORT), private.options())
    sender_calls, receiver_calls = CountingCalls(), CountingCalls()
    async with receiving(
        room / "destination",
        6 * MIB,
        system=receiver_calls,
        listen=listen,
    ) as (receiver, port):
        with relay(port.getHost().port) as wire:
            to: Any = HostnameEndpoint(reactor, b"127.0.0.1", wire.port)
            options = ssl.optionsForClientTLS("localhost", trustRoot=public)
            if kind == "tls":
                to = wrapClientTLS(options, to)
            elif kind == "starttls":
                to = StartsTLS(to, options)
            async with sending(source, to, system=sender_calls, unlink=True) as sender:
                summary = await sender.run().addTimeout(20, reactor)
            assert (await receiver.complete()).bytes == summary.bytes == 6 * MIB
            seen = bytes(wire.seen)
    assert digest(room / "destination") == before
    assert len(seen) > 6 * MIB
    leaked = any(marker[at : at + 8] in seen for at in range(0, 57))
    assert leaked is not tls
    assert (b"IHAVEOPT" in seen) is not tls
    assert (sender_calls.counts["sendfile"] > 0) is not tls
    assert (receiver_calls.counts["splice"] > 0) is not tls
