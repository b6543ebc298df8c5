"""Clients that are relayed to another server while they work: they see a pause, no disconnect."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support import REPOSITORY, wire
from tests.support.disks import MIB, digest, random_image
from tests.support.processes import BLOCKMIG, FULL, Processes, Running, until
from tests.support.serving import KINDS

from blockmig.control import ask

SIZE = 16 * MIB
MIXED = [("tcp", "unix"), ("unix", "tcp")]
WAYS = [(a, b) for a in KINDS for b in KINDS] if FULL else MIXED


class Takeover:
    """A disk that is served here, and will be served by another server.


    @ivar uri: for a test of one kind of connection.
    """

    uri = ""

    def __init__(self, processes: Processes, room: Path, there: str, *options: str) -> None:
        self.processes = processes
        self.disk = random_image(room / "disk", SIZE)
        self.copy = room / "copy"
        if there == "tcp":
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            self.listen, self.target = f"tcp:{port}:interface=127.0.0.1", f"nbd://127.0.0.1:{port}"
        else:
            path = room / "there.socket"
            self.listen, self.target = f"unix:{path}", f"nbd+unix:///?socket={path}"
        script = str(Path(REPOSITORY) / "tests" / "support" / "relaying.py")
        here = str(room / "here.socket")
        environment = ("env", f"PYTHONPATH={Path(REPOSITORY) / 'src'}")
        self.here = processes.start(
            *environment, sys.executable, script, self.disk, here, self.target, *options
        )
        self.here.wait_event("listening", count=2)
        uris = [str(event["uri"]) for event in self.here.events("listening")]
        self.uris = {"unix" if "socket=" in uri else "tcp": uri for uri in uris}
        self.there: Running | None = None

    def pid(self) -> int:
        """Of the Python process: `env` and `setpriv` have become it."""
        return self.here.pid

    def hold(self) -> None:
        """Hold the clients; the copy is made as a migration would make it."""
        os.kill(self.pid(), signal.SIGUSR1)
        self.here.wait_event("held")
        shutil.copyfile(self.disk, self.copy)

    def relay(self) -> None:
        os.kill(self.pid(), signal.SIGUSR2)
        self.here.wait_event("relaying")

    def start(self, *options: str) -> Running:
        """The server that takes over."""
        self.there = self.processes.start(
            BLOCKMIG, "serve", "--log-format", "json", "--listen", self.listen, "--file", self.copy,
            *options,
        )  # fmt: skip
        return self.there

    def start_qemu(self, *options: str) -> Running:
        port = self.target.rpartition(":")[2] if "socket=" not in self.target else ""
        where = ("-p", port, "-b", "127.0.0.1") if port else ("-k", self.target.split("=")[1])
        self.there = self.processes.start(
            "qemu-nbd", "-f", "raw", "-t", "-e", "16", *where, *options, self.copy
        )
        return self.there

    def over(self, timeout: float = 20.0) -> dict[str, object]:
        """The relay ends by itself; its last log line."""
        assert self.here.wait(timeout) == 0, self.here.stderr
        assert "Traceback" not in self.here.stderr
        return self.here.events("complete")[0]


@pytest.fixture(params=WAYS, ids="-to-".join)
def takeover(request: pytest.FixtureRequest, processes: Processes, room: Path) -> Takeover:
    kind, there = request.param
    made = Takeover(processes, room, there)
    made.uri = made.uris[kind]
    return made


def answers(client: wire.Client, requests: dict[int, int]) -> dict[int, bytes]:
    """The replies to so many requests: cookie and bytes that are read."""
    found: dict[int, bytes] = {}
    while len(found) < len(requests):
        error, cookie = client.reply()
        assert error == 0
        assert cookie not in found
        found[cookie] = wire.read_exactly(client.socket, requests[cookie])
    return found


def test_clients_see_a_pause_and_no_disconnect(takeover: Takeover) -> None:
    """Half a WRITE and queued READs are passed on, and the same connections continue."""
    content = takeover.disk.read_bytes()
    payload = random.Random(5).randbytes(3 * MIB)
    with (
        wire.client(takeover.uri) as writer,
        wire.client(takeover.uri) as reader,
        wire.client(takeover.uri) as idle,
    ):
        assert idle.ask(wire.WRITE, 9 * MIB, 5, b"early") == 0
        whole = wire.request(wire.WRITE, 2 * MIB + 5, len(payload), 77) + payload
        writer.send(whole[: MIB + 77])
        until(
            lambda: takeover.disk.read_bytes()[2 * MIB + 5 :][: MIB // 2] == payload[: MIB // 2],
            what="a part of it is written here",
        )
        takeover.hold()
        asked = {n: 1000 * n + 1 for n in range(100)}
        reader.send(b"".join(wire.request(wire.READ, 3000 * n, asked[n], n) for n in asked))
        writer.send(whole[MIB + 77 : MIB + 50_000])
        takeover.relay()
        newcomer = wire.connect(takeover.uri)
        time.sleep(0.3)
        reader.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            reader.socket.recv(1)
        reader.socket.settimeout(10)
        takeover.start()
        writer.send(whole[MIB + 50_000 :])
        assert writer.reply() == (0, 77)
        for n, data in answers(reader, asked).items():
            assert data == content[3000 * n : 3000 * n + asked[n]]
        assert idle.ask(wire.READ, 9 * MIB, 5) == 0
        assert wire.read_exactly(idle.socket, 5) == b"early"
        assert idle.ask(wire.FLUSH) == 0
        assert wire.read_exactly(newcomer, 16) == b"NBDMAGICIHAVEOPT"
        newcomer.close()
        # A large one the other way, too.
        assert reader.ask(wire.READ, MIB, 8 * MIB) == 0
        expected = bytearray(content)
        expected[2 * MIB + 5 : 2 * MIB + 5 + len(payload)] = payload
        expected[9 * MIB : 9 * MIB + 5] = b"early"
        assert wire.read_exactly(reader.socket, 8 * MIB) == expected[MIB : 9 * MIB]
        assert takeover.here.status is None
        writer.send(wire.request(wire.DISC))
        assert writer.closed()
    takeover.over()
    assert takeover.copy.read_bytes() == expected


COUNT = 20 if FULL else 8


def test_a_stream_byte_by_byte_is_relayed(processes: Processes, room: Path) -> None:
    takeover = Takeover(processes, room, "unix")
    payload = random.Random(5).randbytes(100 * COUNT + 300)
    stream = b"".join(
        wire.request(wire.WRITE, 100 * n, 300, 2 * n) + payload[100 * n :][:300]
        + wire.request(wire.READ, 100 * n, 300, 2 * n + 1)
        for n in range(COUNT)
    )  # fmt: skip
    with wire.client(takeover.uris["tcp"]) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send() -> None:
            for at in range(len(stream)):
                client.send(stream[at : at + 1])
                time.sleep(0.0003)

        sending = threading.Thread(target=send)
        sending.start()
        time.sleep(0.3)
        takeover.hold()
        takeover.relay()
        time.sleep(0.2)
        takeover.start()
        for n in range(COUNT):
            assert client.reply() == (0, 2 * n)
            assert client.reply() == (0, 2 * n + 1)
            assert wire.read_exactly(client.socket, 300) == payload[100 * n :][:300]
        sending.join()
    takeover.over()


WORK = """
import os, random, sys, time
generator = random.Random(int(os.environ["SEED"]))
base, size = int(os.environ["BASE"]), 2 << 20
model = bytearray(h.pread(size, base))
print("begun", flush=True)
end, count, longest = None, 0, 0.0
while count <= 20 or not os.path.exists(os.environ["STOP"]):
    at = generator.randrange(size - 70000)
    length = generator.choice((1, 512, 4096, 65536, 70000))
    began = time.monotonic()
    kind = generator.randrange(6)
    if kind < 2:
        data = generator.randbytes(length)
        h.pwrite(data, base + at)
        model[at : at + length] = data
    elif kind == 2:
        h.zero(length, base + at)
        model[at : at + length] = bytes(length)
    elif kind == 3 and h.get_structured_replies_negotiated() and os.environ.get("STATUS"):
        h.block_status(length, base + at, lambda *_: 0)
    else:
        assert h.pread(length, base + at) == model[at : at + length], (at, length)
    longest = max(longest, time.monotonic() - began)
    count += 1
assert h.pread(size, base) == model
h.flush()
print(f"{count} {longest}", flush=True)
h.shutdown()
"""


def start_work(processes: Processes, uri: str, room: Path, number: int, **named: str) -> Running:
    """A client of libnbd that reads and writes a part of the disk, and knows what it must find."""
    clean = [
        "env", "PATH=/usr/bin:/bin", f"SEED={number}", f"BASE={number * (2 << 20)}",
        f"STOP={room / 'stop'}",
    ]  # fmt: skip
    simple = named.pop("simple", "")
    clean += [f"{key}={value}" for key, value in named.items()]
    connect = f"h.connect_uri({uri!r})"
    if simple:
        connect = "h.set_request_structured_replies(False)\n" + connect
    elif named.get("STATUS"):
        connect = 'h.add_meta_context("base:allocation")\n' + connect
    running = processes.start(*clean, "nbdsh", "-c", f"{connect}\n{WORK}")
    until(lambda: "begun" in running.stdout or running.status is not None, what=uri)
    assert running.status is None, running.stderr
    return running


def worked(running: Running) -> float:
    """It found what it must; the longest pause."""
    assert running.wait() == 0, running.stderr
    count, longest = running.stdout.split()[1:]
    assert int(count) > 20
    return float(longest)


@pytest.mark.parametrize("there", KINDS if FULL else ["tcp"])
def test_working_clients_are_relayed(processes: Processes, room: Path, there: str) -> None:
    """Clients with structured replies, with and without metadata, and with simple replies."""
    takeover = Takeover(processes, room, there, "receiver=.handoff")
    uris = takeover.uris
    clients = [
        start_work(processes, uris["tcp"], room, 0),
        start_work(processes, uris["unix"], room, 1, STATUS="1"),
        start_work(processes, uris["tcp"], room, 2, STATUS="1"),
        start_work(processes, uris["unix"], room, 3, simple="1"),
    ]
    time.sleep(0.2)
    takeover.hold()
    takeover.relay()
    time.sleep(0.2)
    takeover.start()
    takeover.here.wait_event("passing-on")
    before = digest(takeover.disk)
    time.sleep(0.4)
    clients.append(start_work(processes, uris["unix"], room, 4, STATUS="1"))
    time.sleep(0.3)
    (room / "stop").touch()
    pauses = [worked(client) for client in clients]
    assert max(pauses) < 5
    takeover.over()
    assert digest(takeover.disk) == before, "the disk that was left is left alone"
    assert digest(takeover.copy) != before


@pytest.mark.parametrize("there", KINDS if FULL else ["unix"])
def test_qemu_nbd_can_take_over(processes: Processes, room: Path, there: str) -> None:
    """It numbers the metadata context differently: clients that use it must reconnect."""
    takeover = Takeover(processes, room, there)
    uris = takeover.uris
    clients = [
        start_work(processes, uris["unix"], room, 0),
        start_work(processes, uris["tcp"], room, 1, simple="1"),
    ]
    told = start_work(processes, uris["unix"], room, 2, STATUS="1")
    time.sleep(0.3)
    takeover.hold()
    takeover.relay()
    takeover.start_qemu()
    assert told.wait() != 0
    assert "base:allocation" in takeover.here.wait_event("not-passed-on")["message"]
    clients.append(start_work(processes, uris["unix"], room, 3, STATUS="1"))
    time.sleep(0.4)
    (room / "stop").touch()
    for client in clients:
        worked(client)
    takeover.over()


def test_a_killed_client_disturbs_nobody(processes: Processes, room: Path) -> None:
    """The other server drops the connection too."""
    takeover, control = Takeover(processes, room, "tcp"), str(room / "control")
    victim = start_work(processes, takeover.uris["tcp"], room, 0)
    other = start_work(processes, takeover.uris["tcp"], room, 1)
    takeover.hold()
    takeover.relay()
    there = takeover.start("--control", control)
    takeover.here.wait_event("passing-on")
    time.sleep(0.3)

    def clients() -> int:
        return len(ask(control, "GET", "/status", None, 10.0)["clients"])

    until(lambda: clients() == 2, what="two clients there")
    victim.kill()
    until(lambda: clients() == 1, what="one client there")
    (room / "stop").touch()
    worked(other)
    takeover.over()
    assert there.status is None


def test_newcomers_wait_after_the_other_server_was_killed(processes: Processes, room: Path) -> None:
    """Its clients are disconnected; newcomers wait until it is back."""
    takeover = Takeover(processes, room, "unix")
    client = start_work(processes, takeover.uris["tcp"], room, 0)
    takeover.hold()
    takeover.relay()
    keep = wire.connect(takeover.uris["unix"])
    takeover.start().wait_event("listening")
    takeover.here.wait_event("passing-on")
    assert wire.read_exactly(keep, 8) == b"NBDMAGIC"
    late = wire.Client(takeover.uris["tcp"])
    time.sleep(0.3)
    assert takeover.there is not None
    takeover.there.kill()
    assert client.wait() != 0
    assert late.closed()
    keep.recv(100)
    assert keep.recv(100) == b""
    keep.close()
    late.close()
    takeover.over()


def test_a_server_that_comes_back_is_found(processes: Processes, room: Path) -> None:
    takeover = Takeover(processes, room, "unix")
    with wire.client(takeover.uris["unix"]) as held:
        takeover.hold()
        takeover.relay()
        takeover.start().wait_event("listening")
        assert held.ask(wire.FLUSH) == 0
        assert takeover.there is not None
        takeover.there.kill()
        assert held.closed()
        # Nobody is left: it was the last.
    takeover.over()


def test_who_comes_back_to_a_relay_that_lingers_is_served(processes: Processes, room: Path) -> None:
    """The new server is killed, and started again: for who reconnects that is a pause."""
    takeover = Takeover(processes, room, "tcp", "linger=600")
    with wire.client(takeover.uris["unix"]) as held:
        takeover.hold()
        takeover.relay()
        takeover.start().wait_event("listening")
        assert held.ask(wire.FLUSH) == 0
        assert takeover.there is not None
        takeover.there.kill()
        assert held.closed()
    back = wire.connect(takeover.uris["unix"])
    time.sleep(0.2)
    takeover.start()
    assert wire.read_exactly(back, 8) == b"NBDMAGIC"
    back.close()
    with wire.client(takeover.uris["tcp"]) as other:
        assert other.ask(wire.WRITE, 0, 4, b"good") == 0
    assert takeover.here.status is None
    takeover.here.signal(signal.SIGTERM)
    takeover.over()
    assert takeover.copy.read_bytes()[:4] == b"good"


def test_one_reset_behind_the_relay_does_not_end_it(processes: Processes, room: Path) -> None:
    """The client loses its connection, and is served when it connects again."""
    takeover = Takeover(processes, room, "tcp", "linger=600")
    with wire.client(takeover.uris["tcp"]) as held:
        takeover.hold()
        takeover.relay()
        control = str(room / "control")
        there = takeover.start("--control", control, "--request-timeout", "0.2")
        assert held.ask(wire.FLUSH) == 0
        held.send(wire.request(wire.READ, 0, 10)[:5])  # it is given up there as silent
        assert held.closed()
        assert there.status is None
    with wire.client(takeover.uris["tcp"]) as again:
        assert again.ask(wire.FLUSH) == 0
    takeover.here.signal(signal.SIGTERM)
    takeover.over()


def test_a_relay_that_lingers_ends_when_nobody_comes(processes: Processes, room: Path) -> None:
    takeover = Takeover(processes, room, "unix", "linger=0.3")
    with wire.client(takeover.uris["unix"]) as held:
        takeover.hold()
        takeover.relay()
        takeover.start()
        assert held.ask(wire.FLUSH) == 0
        time.sleep(0.5)
        assert held.ask(wire.FLUSH) == 0
    takeover.over()


def test_clients_that_stop_waiting_are_forgotten(processes: Processes, room: Path) -> None:
    takeover = Takeover(processes, room, "tcp")
    with wire.client(takeover.uris["unix"]) as held:
        takeover.hold()
        takeover.relay()
        for kind in KINDS:
            wire.connect(takeover.uris[kind]).close()
        time.sleep(0.3)
        takeover.start()
        assert held.ask(wire.FLUSH) == 0
    takeover.over()


def test_a_relay_can_be_stopped_while_it_waits(processes: Processes, room: Path) -> None:
    takeover = Takeover(processes, room, "tcp")
    with wire.client(takeover.uris["unix"]) as held, wire.client(takeover.uris["tcp"]) as other:
        takeover.hold()
        takeover.relay()
        newcomer = wire.connect(takeover.uris["tcp"])
        time.sleep(0.2)
        takeover.here.signal(signal.SIGTERM)
        assert held.closed()
        assert other.closed()
        assert newcomer.recv(1) == b""
        newcomer.close()
    takeover.over()


def test_a_relay_takes_bounded_memory(processes: Processes, room: Path) -> None:
    """One client requests much and reads nothing; the server of another reads nothing."""
    takeover = Takeover(processes, room, "tcp")
    with wire.client(takeover.uris["tcp"]) as greedy, wire.client(takeover.uris["unix"]) as busy:
        takeover.hold()
        takeover.relay()
        takeover.start()
        assert greedy.ask(wire.FLUSH) == 0
        assert busy.ask(wire.FLUSH) == 0
        for n in range(32):
            greedy.send(wire.request(wire.READ, 0, 16 * MIB, n))
        time.sleep(0.4)
        assert takeover.there is not None
        os.kill(takeover.there.pid, signal.SIGSTOP)
        busy.socket.setblocking(False)
        block = wire.request(wire.WRITE, 0, 16 * MIB) + bytes(16 * MIB)
        sent = 0
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            try:
                sent += busy.socket.send(block[sent : sent + MIB])
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < 15 * MIB
        os.kill(takeover.there.pid, signal.SIGCONT)
        busy.socket.settimeout(10)
        busy.send(block[sent:])
        assert busy.reply() == (0, 7)
        total = 0
        while total < 32 * (16 * MIB + 16):
            piece = greedy.socket.recv(MIB)
            assert piece
            total += len(piece)
    takeover.over()
    # Not what it says of itself: that begins with what the process had that started it.
    assert takeover.here.peak_kib < 150 * 1024


def test_a_half_closed_client_gets_its_replies(processes: Processes, room: Path) -> None:
    """Everything is closed after its replies."""
    takeover = Takeover(processes, room, "tcp")
    content = takeover.disk.read_bytes()
    for_both = wire.request(wire.READ, 0, 4 * MIB, 1) + wire.request(wire.READ, MIB, 4 * MIB, 2)
    with wire.client(takeover.uris["unix"]) as first, wire.client(takeover.uris["tcp"]) as second:
        takeover.hold()
        first.send(for_both)
        first.socket.shutdown(socket.SHUT_WR)
        takeover.relay()
        takeover.start()
        assert second.ask(wire.FLUSH) == 0
        second.send(for_both)
        second.socket.shutdown(socket.SHUT_WR)
        for client in (first, second):
            for _ in range(2):
                _, cookie = client.reply()
                start = (cookie - 1) * MIB
                data = wire.read_exactly(client.socket, 4 * MIB)
                assert data == content[start : start + 4 * MIB]
            assert client.socket.recv(1) == b""
    takeover.over()


@pytest.mark.parametrize("kind", KINDS)
def test_requests_of_a_client_that_hung_up_are_dropped(
    processes: Processes, room: Path, kind: str
) -> None:
    """It may have repeated its requests on another connection."""
    takeover = Takeover(processes, room, "tcp")
    with wire.client(takeover.uris[kind]) as other:
        gone = wire.Client(takeover.uris[kind])
        takeover.hold()
        gone.send(wire.request(wire.WRITE, 0, 4) + b"evil")
        gone.close()
        other.send(wire.request(wire.WRITE, 4, 4) + b"good")
        takeover.relay()
        takeover.start()
        assert other.reply() == (0, 7)
        assert "hung up" in takeover.here.wait_event("not-passed-on")["message"]
        time.sleep(0.3)
    takeover.over()
    assert takeover.copy.read_bytes()[:8] == takeover.disk.read_bytes()[:4] + b"good"


def test_tools_that_connect_later_are_relayed_from_the_first_byte(
    processes: Processes, room: Path
) -> None:
    """Whatever they negotiate, they negotiate with the other server."""
    takeover = Takeover(processes, room, "tcp")
    with wire.client(takeover.uris["unix"]):
        takeover.hold()
        takeover.relay()
        takeover.start_qemu()
        out = room / "out"
        processes.checked("nbdcopy", takeover.uris["tcp"], out)
        assert digest(out) == digest(takeover.copy)
        said = processes.checked("qemu-img", "info", takeover.uris["unix"])
        assert "16 MiB" in said
        random_image(out, SIZE, seed=9)
        processes.checked(
            "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", out, takeover.uris["unix"]
        )
        assert digest(out) == digest(takeover.copy)
    takeover.over()


def test_a_header_cut_at_any_byte_is_relayed(processes: Processes, room: Path) -> None:
    takeover = Takeover(processes, room, "unix")
    clients = [wire.Client(takeover.uris["unix"]) for _ in range(29)]
    for cut, client in enumerate(clients):
        client.send(wire.request(wire.READ, cut, 10, cut)[:cut])
    time.sleep(0.1)
    takeover.hold()
    takeover.relay()
    takeover.start()
    content = takeover.copy.read_bytes()
    for cut, client in enumerate(clients):
        client.send(wire.request(wire.READ, cut, 10, cut)[cut:])
        assert client.reply() == (0, cut)
        assert wire.read_exactly(client.socket, 10) == content[cut : cut + 10]
        client.send(struct.pack("!IHHQQI", 0x25609513, 0, wire.DISC, 0, 0, 0))
        client.close()
    takeover.over()


def opened(running: Running) -> set[str]:
    """The files that a process has open."""
    found = set()
    for number in os.listdir(f"/proc/{running.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{running.pid}/fd/{number}"))
    return found


class Standby:
    """A disk that is served, a receiver for it, and a server that waits until that is done.

    The two of them have one address.
    """

    def __init__(self, processes: Processes, room: Path, *options: str, there: str = "tcp") -> None:
        self.processes, self.room = processes, room
        self.disk, self.copy = random_image(room / "disk", SIZE), room / "copy"
        self.control, self.uri = room / "control", f"nbd+unix:///?socket={room / 'here'}"
        if there == "tcp":
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            self.listen, self.target = f"tcp:{port}:interface=127.0.0.1", f"nbd://127.0.0.1:{port}"
        else:
            path = room / "there"
            self.listen, self.target = f"unix:{path}", f"nbd+unix:///?socket={path}"
        self.old = processes.start(
            *(BLOCKMIG, "serve", "--log-format", "json", "--file", self.disk),
            *("--listen", f"unix:{room / 'here'}", "--control", self.control),
        )
        self.new = self.serve("--standby", *options)
        self.new.wait_event("standby")
        self.old.wait_event("listening")

    def serve(self, *options: str) -> Running:
        return self.processes.start(
            *(BLOCKMIG, "serve", "--log-format", "json", "--file", self.copy),
            *("--listen", self.listen, *options),
        )

    def receive(self, *options: str) -> Running:
        return self.processes.receive(self.copy, "--size", SIZE, *options, listen=self.listen)

    def move(self, *options: str) -> None:
        self.processes.checked(
            *(BLOCKMIG, "mirror", "--control", self.control, "--then", "relay", "--wait"),
            *("--progress", "none", *options, self.target),
        )

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(str(self.control), "GET", "/status", None, 10.0)
        return found

    def over(self) -> None:
        assert self.old.wait(20) == 0, self.old.stderr
        self.new.signal(signal.SIGTERM)
        assert self.new.wait(20) == 0, self.new.stderr
        for running in (self.old, self.new):
            assert "Traceback" not in running.stderr


@pytest.mark.parametrize("there", KINDS)
def test_a_server_on_standby_takes_over(processes: Processes, room: Path, there: str) -> None:
    """Clients see no disconnect; the space of the deleted source is given back."""
    scene = Standby(processes, room, "--id", "web", there=there)
    receiver = scene.receive("--id", "web")
    assert not {name for name in opened(scene.new) if name.startswith(str(room / "copy"))}
    client = start_work(processes, scene.uri, room, 0)
    with wire.client(scene.uri) as idle:
        assert str(scene.disk) in opened(scene.old)
        scene.move("--unlink", "--id", "web", "--linger", "0")
        assert receiver.wait(20) == 0
        scene.new.wait_event("listening")
        scene.old.wait_event("client-pause")
        assert idle.ask(wire.FLUSH) == 0
        relay = scene.status()["relay"]
        assert relay["pause"] == scene.status()["mirror"]["client_pause"] > 0
        assert (relay["available"], relay["clients"]) == (True, 2)
        scene.old.wait_event("closed")
        assert not {name for name in opened(scene.old) if name.startswith(str(scene.disk))}
    (room / "stop").touch()
    worked(client)
    scene.over()


def test_a_server_on_standby_has_imported_everything(processes: Processes, room: Path) -> None:
    """Also what a control socket and a first client need."""
    running = processes.start(
        *("env", f"PYTHONPATH={Path(REPOSITORY) / 'src'}", sys.executable, "-X", "importtime"),
        *("-m", "blockmig", "serve", "--standby"),
        *("--file", room / "copy", "--listen", f"unix:{room / 'there'}"),
        *("--control", room / "control"),
    )
    until(lambda: "waiting until" in running.stderr, what="it waits")
    receiver = processes.receive(room / "copy", "--size", SIZE)
    assert processes.send(random_image(room / "disk", SIZE), receiver).wait() == 0
    until(lambda: "listening on" in running.stderr, what="it listens")
    with wire.client(f"nbd+unix:///?socket={room / 'there'}") as client:
        assert client.ask(wire.WRITE, 0, 4, b"good") == 0
        assert client.ask(wire.FLUSH) == 0
    late = running.stderr.partition("waiting until")[2]
    assert "import time:" not in late, late
    running.signal(signal.SIGTERM)
    assert running.wait(20) == 0


def test_a_source_that_is_kept_stays_locked_while_it_is_relayed(
    processes: Processes, room: Path
) -> None:
    scene = Standby(processes, room)
    scene.receive()
    with wire.client(scene.uri) as client:
        scene.move("--linger", "0")
        assert client.ask(wire.FLUSH) == 0
        assert str(scene.disk) in opened(scene.old)
    scene.over()


@pytest.mark.parametrize("unlink", [True, False])
def test_a_server_relays_again_after_a_restart(
    processes: Processes, room: Path, unlink: bool
) -> None:
    """It knows from the record where the disk is, and who comes is relayed to it."""
    scene = Standby(processes, room)
    scene.receive()
    scene.move("--linger", "forever", *(["--unlink"] if unlink else []))
    scene.new.wait_event("listening")
    scene.old.kill()
    (room / "here").unlink()
    assert scene.disk.exists() is not unlink
    refused = processes.run(*scene.old.arguments, "--read-only")
    assert refused.status == 1
    assert "leave out --read-only" in refused.stderr
    scene.old = processes.start(*scene.old.arguments, "--linger", "0")
    assert scene.target in str(scene.old.wait_event("relaying-again")["message"])
    scene.old.wait_event("listening")
    assert scene.status()["state"] == "relaying"
    with wire.client(scene.uri) as client:
        assert client.ask(wire.WRITE, 0, 4, b"good") == 0
    scene.over()
    assert scene.copy.read_bytes()[:4] == b"good"


def test_a_disk_that_went_without_a_relay_is_refused_after_a_restart(
    processes: Processes, room: Path
) -> None:
    scene = Standby(processes, room)
    scene.receive()
    processes.checked(
        *(BLOCKMIG, "mirror", "--control", scene.control, "--wait", "--progress", "none"),
        scene.target,
    )
    assert scene.old.wait(20) == 0
    again = processes.run(*scene.old.arguments)
    assert again.status == 1
    assert "not canonical" in again.stderr
    scene.over()


def test_what_was_received_before_is_not_what_is_waited_for(
    processes: Processes, room: Path
) -> None:
    """Without an id; with one it is served at once."""
    scene = Standby(processes, room)
    scene.receive()
    scene.move("--linger", "0")
    scene.new.wait_event("listening")
    scene.over()
    again = scene.serve("--standby")
    assert "was received already" in str(again.wait_event("standby")["message"])
    time.sleep(0.3)
    assert not again.events("listening")
    again.signal(signal.SIGTERM)
    assert again.wait(20) == 4
    received = json.loads((room / "copy.RECEIVED").read_text())
    named = scene.serve("--standby", "--id", received["id"])
    named.wait_event("listening")
    named.signal(signal.SIGTERM)
    assert named.wait(20) == 0
