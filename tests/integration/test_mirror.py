"""Mirrors of a disk that clients write to, between real processes."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support import wire
from tests.support.disks import MIB, allocated, digest, random_image, sparse_image
from tests.support.mirroring import (
    FLUSH,
    SLOW,
    TRIM,
    WRITE,
    ZEROES,
    Asked,
    Mirrored,
    Peer,
    destination,
    gated,
    hooked,
    longest,
)
from tests.support.processes import ANY_PORT, BLOCKMIG, FULL, Processes, Running, until

from blockmig.control import ControlRefused, ask
from blockmig.migration.records.files import Kind, Phase
from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from blockmig.nbd import parse_uri

SIZE = 12 * MIB
ZEROED, APART = 8 * MIB, 11 * MIB

NOTHING = ((ZEROES, 1), (TRIM, 1))
SHORT = ((512, 2), (4096, 2), (20000, 1))


def verdict_on(disk: Path) -> CopyState:
    """What is known of it."""
    return verdict_of(examine(str(disk))).state


def inspected(processes: Processes, *disks: Path) -> dict[str, Any]:
    """What `inspect` reports."""
    told = processes.run(BLOCKMIG, "inspect", "--json", *disks)
    assert told.status in (0, 5), told.stderr
    verdict = json.loads(told.stdout)
    assert isinstance(verdict, dict)
    return verdict


def names(disk: Path) -> list[str]:
    """The disk, if it exists, and its records, by what follows the name of the disk."""
    sockets = (".socket", ".socket.lock")
    found = [path.name for path in disk.parent.iterdir() if path.name.startswith(disk.name)]
    return sorted({name.removeprefix(disk.name) for name in found} - {*sockets})


def check_not_written_since(disk: Path) -> None:
    """The last write of a disk that was in use was seen when its clients were held."""
    found, status = examine(str(disk)), disk.stat()
    assert found.records[Kind.MIGRATED].written == f"{status.st_size} {status.st_mtime_ns}"
    assert "written" not in verdict_of(found).why


def check_handed_over(
    mirrored: Mirrored, receiver: Running, copy: Path, unlink: bool, size: int
) -> None:
    """Both have succeeded, and everybody who asks learns which copy is canonical."""
    disk = mirrored.disk
    assert receiver.wait(10) == 0, receiver.stderr
    mirrored.ended()
    (event,) = mirrored.running.events("handed-over")
    assert event["milliseconds"] < 3000
    assert copy.stat().st_size == size
    mirrored.history.check(copy)
    assert names(copy) == ["", ".RECEIVED"]
    assert verdict_on(copy) == CopyState.CANONICAL
    if unlink:
        assert names(disk) == [".MIGRATED"]
        assert verdict_on(disk) == CopyState.NOT_CANONICAL
    else:
        assert names(disk) == ["", ".MIGRATED"]
        assert digest(disk) == digest(copy)
        assert verdict_on(disk) == CopyState.NOT_CANONICAL
        check_not_written_since(disk)
    assert verdict_of_pair(examine(str(disk)), examine(str(copy))).canonical == str(copy)


WAYS = [("unix", True), *([("tcp", True), ("tcp", False), ("unix", False)] if FULL else [])]


@pytest.mark.parametrize(("kind", "unlink"), WAYS)
def test_a_disk_is_mirrored_while_clients_write(
    processes: Processes, room: Path, kind: str, unlink: bool
) -> None:
    disk, copy = random_image(room / "disk", SIZE), room / "copy"
    mirrored = Mirrored(processes, room, disk)
    listen = ANY_PORT if kind == "tcp" else f"unix:{room}/receiver"
    receiver = processes.receive(copy, "--size", SIZE, listen=listen)
    with (
        mirrored.writer(end=ZEROED) as writer,
        # Here nobody else makes dirty what a zero or a trim has changed.
        mirrored.writer("unix", start=ZEROED, end=APART, mix=NOTHING, sizes=SHORT) as emptying,
        mirrored.writer("unix tcp", start=APART, rate=0, count=200) as other,
    ):
        for one in (writer, emptying, other):
            one.go_on()
        outcome = mirrored.mirror(receiver, unlink=unlink, max_rate=40 * MIB)
        other.kill()  # with requests under way
        told = outcome.result()
        requests = writer.wait() + emptying.wait()
    assert told["status"] == 0, told
    assert told["summary"]["bytes"] == SIZE
    assert told["summary"]["attempts"] == 1
    mirrored.history.add(requests)
    mirrored.history.adopt(copy, APART)  # nobody knows what it was answered
    assert len(requests) > 20
    assert longest(requests) < 2
    check_handed_over(mirrored, receiver, copy, unlink, SIZE)


def test_changes_made_by_slow_threads_are_mirrored(processes: Processes, room: Path) -> None:
    """A slow disk is written by threads, which are not done when the mirror looks."""
    disk, copy = random_image(room / "disk", SIZE), room / "copy"
    mirrored = Mirrored(processes, room, disk, hook=SLOW)
    receiver = processes.receive(copy, "--size", SIZE)
    sizes = ((4096, 8), (70000, 2), (MIB, 1))
    with (
        mirrored.writer(end=ZEROED, depth=8, sizes=sizes) as writer,
        mirrored.writer(start=ZEROED, depth=8, mix=NOTHING, sizes=SHORT, count=300) as emptying,
    ):
        writer.go_on()
        emptying.go_on()
        outcome = mirrored.mirror(receiver, max_rate=40 * MIB, max_pause=3)
        assert outcome.result()["status"] == 0
        requests = writer.wait() + emptying.wait()
    mirrored.history.add(requests)
    assert longest(requests) < 4
    check_handed_over(mirrored, receiver, copy, False, SIZE)


def test_a_read_only_disk_is_mirrored(processes: Processes, room: Path) -> None:
    """Its clients cannot write, but must be disconnected at the end."""
    disk, copy = random_image(room / "disk", 4 * MIB), room / "copy"
    mirrored = Mirrored(processes, room, disk, "--read-only")
    receiver = processes.receive(copy, "--size", 4 * MIB)
    with wire.client(mirrored.uris["tcp"]) as client:
        assert client.ask(WRITE, 0, 512, bytes(512)) == wire.EPERM
        assert mirrored.mirror(receiver).result()["status"] == 0
        assert client.closed()
    check_handed_over(mirrored, receiver, copy, False, 4 * MIB)


def test_a_large_sparse_disk_is_mirrored(processes: Processes, room: Path) -> None:
    """A gigabyte with hardly any data."""
    size = 1 << 30
    generator = random.Random(1)
    pieces = {at: generator.randbytes(MIB) for at in (0, 77 * MIB, 500 * MIB + 4096, size - MIB)}
    disk, copy = sparse_image(room / "disk", size, pieces), room / "copy"
    mirrored = Mirrored(processes, room, disk)
    receiver = processes.receive(copy, "--size", size)
    with mirrored.writer("unix tcp", start=490 * MIB, end=510 * MIB) as writer:
        writer.go_on()
        outcome = mirrored.mirror(receiver, unlink=True).result()
        mirrored.history.add(writer.wait())
    assert outcome["status"] == 0
    assert outcome["summary"]["data"] < 200 * MIB
    assert allocated(copy) < 60 * MIB
    check_handed_over(mirrored, receiver, copy, True, size)


@pytest.mark.parametrize("size", [3 * MIB + 12345, *([65537] if FULL else []), 700])
def test_disks_of_odd_sizes_are_mirrored(processes: Processes, room: Path, size: int) -> None:
    """Writes have any length, up to the very last byte."""
    disk, copy = random_image(room / "disk", size), room / "copy"
    mirrored = Mirrored(processes, room, disk)
    receiver = processes.receive(copy, "--size", size)
    sizes = ((700, 4), (5000, 4), (200000, 1))
    with (
        mirrored.writer(end=size // 2, block=1, sizes=sizes, count=200) as writer,
        mirrored.writer(start=size - 100, block=1, sizes=((100, 1),), count=100) as at_the_end,
    ):
        writer.go_on()
        at_the_end.go_on()
        outcome = mirrored.mirror(receiver).result()
        for one in (writer, at_the_end):
            mirrored.history.add(one.wait())
    assert outcome["status"] == 0
    check_handed_over(mirrored, receiver, copy, False, size)


def test_the_commands_begin_slow_break_and_wait_for_a_mirror(
    processes: Processes, room: Path
) -> None:
    """A mirror is begun, slowed and broken; then one is begun again and waited for."""
    disk, copy = random_image(room / "disk", SIZE), room / "copy"
    mirrored = Mirrored(processes, room, disk)
    receiver = processes.receive(copy, "--size", SIZE)
    control = ("--control", mirrored.control)
    with mirrored.writer() as writer:
        checked = processes.checked
        checked(BLOCKMIG, "mirror", *control, receiver.uri, "--max-rate", "1M")
        assert "2" in checked(BLOCKMIG, "rate", *control, "2M")
        until(lambda: mirrored.status["sent"] > 0)
        assert mirrored.status["max_rate"] == 2 * MIB
        checked(BLOCKMIG, "break", *control)
        assert mirrored.status["state"] == "broken"
        writer.go_on()
        assert verdict_on(copy) == CopyState.NOT_CANONICAL
        assert verdict_on(disk) == CopyState.CANONICAL
        again = processes.run(BLOCKMIG, "mirror", *control, receiver.uri, "--wait", "--unlink")
        assert again.status == 0, again.stderr
        mirrored.history.add(writer.wait())
    check_handed_over(mirrored, receiver, copy, True, SIZE)
    both = inspected(processes, disk, copy)
    assert (both["verdict"], both["canonical"]) == ("canonical", str(copy))


# The hold.


class Slow:
    """The script of a destination that answers the last flush when the test says so.


    @ivar held: whether that flush is there.
    @ivar answer: to be set; of no use for another such flush.
    """

    def __init__(self, mirrored: Mirrored) -> None:
        self.held = threading.Event()
        self.answer = threading.Event()
        self.patient = False
        self._mirrored = mirrored

    def __call__(self, peer: Peer, asked: Asked | str) -> bytes | None:
        flush = isinstance(asked, Asked) and asked.command == FLUSH and not self.patient
        if flush and self._mirrored.status["state"] == "holding":
            self.held.set()
            self.answer.wait(30)
        return None


def test_clients_wait_during_the_hold_and_are_closed_after_it(
    processes: Processes, room: Path
) -> None:
    """Old and new clients are closed after the hand-off, and none was answered."""
    disk = random_image(room / "disk", 4 * MIB)
    mirrored = Mirrored(processes, room, disk)
    slow = Slow(mirrored)
    with destination(4 * MIB, slow) as other, wire.client(mirrored.uris["tcp"]) as old:
        assert old.ask(WRITE, 0, 4096, bytes(4096)) == 0
        outcome = mirrored.mirror(other.uri, max_pause=20)
        assert slow.held.wait(20)
        before = digest(disk)
        old.send(wire.request(WRITE, 8192, 4096) + b"x" * 4096)
        with wire.client(mirrored.uris["unix"]) as new:
            for client in (old, new):
                client.send(wire.request(wire.READ, 0, 512))
                client.socket.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    client.socket.recv(1)
                client.socket.settimeout(10)
            status = mirrored.status
            assert (status["state"], status["holds"]) == ("holding", 1)
            assert status["pause"] > 0.5
            assert digest(disk) == before
            slow.answer.set()
            for client in (old, new):
                with contextlib.suppress(ConnectionResetError):
                    assert client.socket.recv(1) == b""
        assert outcome.result()["status"] == 0
        mirrored.ended()
        assert other.disconnected
        assert other.data == disk.read_bytes()
        assert other.data[8192] != ord("x")


def test_clients_are_released_when_a_hold_takes_too_long(processes: Processes, room: Path) -> None:
    """No request is lost, and the mirror completes later."""
    disk = random_image(room / "disk", 8 * MIB)
    mirrored = Mirrored(processes, room, disk)
    slow = Slow(mirrored)
    with (
        destination(8 * MIB, slow) as other,
        mirrored.writer(start=4 * MIB, patience=20) as writer,
        wire.client(mirrored.uris["tcp"]) as client,
    ):
        outcome = mirrored.mirror(other.uri, max_pause=0.4)
        assert slow.held.wait(20)
        began = time.monotonic()
        assert client.ask(WRITE, MIB, 4096, b"x" * 4096) == 0
        assert 0.05 < time.monotonic() - began < 1
        writer.go_on()
        status = mirrored.status
        assert (status["state"], status["holds"]) == ("copying", 1)
        assert 0.3 < status["pause"] < 1
        slow.patient = True
        slow.answer.set()
        told = outcome.result()
        requests = writer.wait()
    mirrored.ended()
    assert told["status"] == 0
    assert told["summary"]["attempts"] == 1
    assert mirrored.running.events("released")
    assert longest(requests) < 3
    assert other.data == disk.read_bytes()
    assert other.data[MIB : MIB + 4096] == b"x" * 4096
    mirrored.history.add(requests)
    with disk.open("r+b") as file:
        file.seek(MIB)
        file.write(mirrored.history.known(MIB, 4096))
    mirrored.history.check(disk)


# Answers to the sender's question whether the copy is whole are withheld: before it is put on
# record, and after that. A file says so, and there is one more byte in another for each that is.
SILENT = """
import os
from twisted.internet.defer import Deferred
from blockmig.migration.destination.message_handler import MessageHandler
confirm = MessageHandler._confirm_copied

def confirm_silently(handler, message, attempt):
    silent = open("{room}/silent").read() if os.path.exists("{room}/silent") else ""
    if not silent:
        return confirm(handler, message, attempt)
    if silent == "after":
        answer = confirm(handler, message, attempt)
        if isinstance(answer, Deferred):
            return answer.addCallback(lambda _: withheld())
    return withheld()

def withheld():
    with open("{room}/withheld", "a") as file:
        file.write("x")
    return Deferred()

MessageHandler._confirm_copied = confirm_silently
"""


class Withholding:
    """A receiver that withholds its answers."""

    def __init__(self, processes: Processes, room: Path, copy: Path, size: int) -> None:
        self._silent, self._withheld = room / "silent", room / "withheld"
        self._withheld.touch()
        command = (*hooked(SILENT.format(room=room)), "receive")
        self.running = processes.receive(copy, "--size", size, command=command)

    def withhold(self, where: str) -> None:
        """From now on; C{before} it is recorded, or C{behind} that, or not any more."""
        self._silent.with_suffix(".new").write_text(where)
        self._silent.with_suffix(".new").rename(self._silent)

    def asked(self, more: int = 1) -> None:
        """Wait until it was asked so many times more."""
        wanted = self._withheld.stat().st_size + more
        until(lambda: self._withheld.stat().st_size >= wanted, what=self.running.stderr)


@pytest.mark.parametrize("where", ["before", "after"])
def test_clients_are_released_when_the_last_step_is_not_answered(
    processes: Processes, room: Path, where: str
) -> None:
    """A break at that point leaves no copy that looks whole."""
    size, pause = 4 * MIB, 0.3
    disk, copy = random_image(room / "disk", size), room / "copy"
    mirrored = Mirrored(processes, room, disk)
    receiver = Withholding(processes, room, copy, size)

    def phase() -> Phase | None:
        record = examine(str(copy)).record(Kind.INCOMPLETE)
        return None if record is None else record.phase

    with mirrored.writer(rate=2e6, sizes=SHORT) as writer:
        writer.go_on()
        receiver.withhold(where)
        outcome = mirrored.mirror(receiver.running, max_pause=pause)
        receiver.asked()
        assert phase() == (Phase.COPIED if where == "after" else Phase.COPYING)
        if where == "after" or FULL:
            # Here the answer is out while it is broken off.
            mirrored.ask("POST", "/break", {})
            assert outcome.result()["status"] == 4
            assert phase() == Phase.COPYING
            assert verdict_on(copy) == CopyState.NOT_CANONICAL
            assert verdict_on(disk) == CopyState.CANONICAL
            writer.go_on(5)
            outcome = mirrored.mirror(receiver.running, max_pause=pause)
            receiver.asked()
        # Here clients are released meanwhile, and the attempt is not given up.
        mirrored.running.wait_event("released")
        writer.go_on(5)
        until(lambda: phase() == Phase.COPYING)
        receiver.withhold("")
        told = outcome.result()
        requests = writer.wait()
    assert told["status"] == 0, told
    assert told["summary"]["attempts"] == 1
    assert longest(requests) < pause + 0.3
    mirrored.history.add(requests)
    check_handed_over(mirrored, receiver.running, copy, False, size)


def test_late_work_of_a_killed_client_is_mirrored(processes: Processes, room: Path) -> None:
    """What a thread still does for a client that is gone is done before the hand-off."""
    size, late = 4 * MIB, 3 * MIB
    disk, copy = random_image(room / "disk", size), room / "copy"
    begun, gate = room / "begun", room / "gate"
    mirrored = Mirrored(processes, room, disk, hook=gated(late, begun, gate))
    receiver = processes.receive(copy, "--size", size)
    with wire.client(mirrored.uris["tcp"]) as killed:
        killed.send(wire.request(ZEROES, late, MIB) + wire.request(wire.READ, 0, size) * 8)
        until(begun.exists)
        killed.socket.recv(1)
        # While it is sent what it will not take: it is gone, and does not only say no more.
    until(lambda: not mirrored.ask("GET", "/status")["clients"])
    outcome = mirrored.mirror(receiver, max_pause=0.2)
    mirrored.running.wait_event("released")
    assert not outcome.done()
    gate.touch()
    assert outcome.result()["status"] == 0
    mirrored.history.adopt(copy, late)
    assert not any(copy.read_bytes()[late:])
    check_handed_over(mirrored, receiver, copy, False, size)


# What is refused.


def test_a_refused_mirror_disturbs_nobody_and_another_may_follow(
    processes: Processes, room: Path
) -> None:
    """The refusal has a reason, and nobody notices; then a mirror elsewhere completes."""
    disk, copy = random_image(room / "disk", SIZE), room / "copy"
    mirrored = Mirrored(processes, room, disk, "--export", "web")
    good = processes.receive(copy, "--size", SIZE)
    small = processes.receive(room / "small", "--size", SIZE - 512)
    named = processes.receive(room / "named", "--size", SIZE, "--export", "other")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with mirrored.writer() as writer:
        writer.go_on()
        for uri, reason in (
            (small.uri, f"{SIZE} bytes, the destination {SIZE - 512}"),
            (named.uri.removesuffix("other"), "no export named ''"),
            (f"nbd://127.0.0.1:{port}", "refused"),
            (f"nbd+unix:///?socket={room}/nowhere", "No such file"),
        ):
            assert reason in mirrored.refused(uri, unlink=True)
            assert mirrored.status["state"] == "failed"
            assert names(disk) == [""]
            writer.go_on(5)
        for body, reason in (
            ({"uri": "nbd://"}, "uri"),
            ({"max_rate": -1}, "max_rate"),
            ({"converge": "perhaps"}, "converge"),
            ({"unlink": "no"}, "unlink"),
        ):
            with pytest.raises(ControlRefused, match=reason):
                mirrored.ask("POST", "/mirror", {"uri": good.uri, **body})
        for resource in ("/break", "/rate"):
            with pytest.raises(ControlRefused, match="no mirror is running"):
                mirrored.ask("POST", resource, {"max_rate": 1000})
        outcome = mirrored.mirror(good, max_rate=6 * MIB, unlink=True)
        assert "running already" in mirrored.refused(small.uri)
        assert "running already" in mirrored.refused(good.uri)
        mirrored.ask("POST", "/rate", {"max_rate": None})
        told = outcome.result()
        requests = writer.wait()
    assert told["status"] == 0
    assert told["summary"]["attempts"] == 1
    assert longest(requests) < 2
    mirrored.history.add(requests)
    check_handed_over(mirrored, good, copy, True, SIZE)
    for receiver in (small, named):
        assert receiver.status is None
        assert not receiver.events("attempt")


def test_a_disk_with_hard_links_is_not_unlinked(processes: Processes, room: Path) -> None:
    """Deleting one name of a file would not retire it."""
    disk = random_image(room / "disk", MIB)
    (room / "second").hardlink_to(disk)
    mirrored = Mirrored(processes, room, disk)
    receiver = processes.receive(room / "copy", "--size", MIB)
    assert "link" in mirrored.refused(receiver.uri, unlink=True)
    assert mirrored.mirror(receiver).result()["status"] == 0
    check_handed_over(mirrored, receiver, room / "copy", False, MIB)


def test_a_mirror_back_through_its_own_relay_is_refused(processes: Processes, room: Path) -> None:
    """The disk is to go back to the host that it came from: there the old server relays to us."""
    disk, copy, there = random_image(room / "disk", MIB), room / "copy", room / "there"
    old = Mirrored(processes, room, disk)
    back, control = old.uris["tcp"], room / "new-control"
    receiver = processes.receive(copy, "--size", MIB)
    port = parse_uri(back).port
    with socket.create_connection(("127.0.0.1", port)):
        relay_to = f"nbd+unix:///?socket={there}"
        mirror = old.mirror(receiver, then="relay", relay_to=relay_to)
        assert mirror.result()["status"] == 0
        options = "--file", copy, "--listen", f"unix:{there}", "--control", control
        new = processes.start(BLOCKMIG, "serve", "--log-format", "json", *options)
        until(lambda: "the server that takes over answers" in old.running.stderr)
        with pytest.raises(ControlRefused, match="serves its disk to clients"):
            ask(str(control), "POST", "/mirror", {"uri": back, "unlink": True})
        assert copy.exists()
        assert new.status is None


# The server is stopped.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] if FULL else [signal.SIGTERM])
def test_a_server_stopped_during_a_mirror_stays_canonical(
    processes: Processes, room: Path, number: int
) -> None:
    """The requests of its clients are finished, and the source stays canonical."""
    disk, copy = random_image(room / "disk", SIZE), room / "copy"
    mirrored = Mirrored(processes, room, disk)
    receiver = processes.receive(copy, "--size", SIZE)
    with mirrored.writer() as writer:
        outcome = mirrored.mirror(receiver, max_rate=2 * MIB, unlink=True)
        until(lambda: mirrored.status["sent"] > MIB)
        mirrored.running.signal(number)
        mirrored.ended()
        told = outcome.result()
        requests = writer.wait()
    assert told["status"] == 4
    assert "not retired" in told["message"]
    assert names(disk) == ["", ".MIGRATING"]  # what was acknowledged stays the same migration
    assert verdict_on(disk) == CopyState.CANONICAL
    assert verdict_on(copy) == CopyState.NOT_CANONICAL
    assert receiver.status is None
    mirrored.history.add(requests)
    mirrored.history.check(disk)
    send = processes.send(disk, receiver)
    assert (send.wait(), receiver.wait()) == (0, 0)
    mirrored.history.check(copy)


# How fast.


class Meter:
    """The script of a destination that counts the data that arrives.


    What is beyond C{end} it never takes, so that no mirror is over, however fast the machine.
    """

    def __init__(self, end: int) -> None:
        self.came: list[tuple[float, int]] = []
        self._end = end

    def __call__(self, peer: Peer, asked: Asked | str) -> bytes | None:
        if isinstance(asked, Asked):
            self.came.append((time.monotonic(), len(asked.payload)))
            if asked.command != wire.READ and asked.offset + asked.length > self._end:
                peer.hang()
        return None

    def total(self, since: float) -> int:
        """Bytes that have come."""
        return sum(count for at, count in self.came if since < at)

    def rate(self, since: float) -> float:
        """Bytes per second, from the first to the last that came."""
        came = [(at, count) for at, count in self.came if since < at and count]
        if len(came) < 2:
            return 0.0
        return sum(count for _, count in came[1:]) / (came[-1][0] - came[0][0])

    def settles(self, rate: float) -> None:
        """The rate gets there, though not at once: a busy machine stalls at times."""
        seen: list[float] = []
        while not seen or abs(seen[-1] / rate - 1) >= TOLERANCE:
            assert len(seen) < 5, [f"{each / MIB:.2f} MiB/s" for each in seen]
            since = time.monotonic()
            time.sleep(SECONDS)
            seen.append(self.rate(since))
        print(f"\n{rate / MIB:.0f} MiB/s: {seen[-1] / MIB:.2f} MiB/s")


SECONDS, TOLERANCE = (10.0, 0.05) if FULL else (0.8, 0.1)
RATES = (20 * MIB, 40 * MIB, 8 * MIB) if FULL else (20 * MIB, 8 * MIB)


def test_the_rate_limit_is_kept_and_can_be_changed(processes: Processes, room: Path) -> None:
    size = (1024 if FULL else 256) * MIB
    disk = room / "disk"
    piece = random.Random(1).randbytes(MIB)
    with disk.open("wb") as file:
        for _ in range(size // MIB):
            file.write(piece)
    mirrored, meter = Mirrored(processes, room, disk), Meter(size - MIB)
    with destination(size, meter) as other, mirrored.writer("unix", rate=2e6) as writer:
        mirrored.mirror(other.uri, max_rate=20 * MIB)
        for rate in RATES:
            mirrored.ask("POST", "/rate", {"max_rate": rate})
            assert mirrored.status["max_rate"] == rate
            # What is on its way, and the allowance of a quarter of a second, are of the old rate.
            time.sleep(0.5)
            meter.settles(rate)
        since = time.monotonic()
        mirrored.ask("POST", "/rate", {"max_rate": None})
        some = 48 * MIB
        until(lambda: meter.total(since) > some, some / (3 * rate), "three times as fast")
        mirrored.ask("POST", "/break", {})
        writer.go_on(2)
        writer.stop()
    mirrored.stop()


# Other people's destinations.


def foreign(processes: Processes, room: Path, kind: str, size: int) -> tuple[Running, str]:
    """A server of somebody else's, and its URI."""
    socket = room / "foreign"
    copy = room / "copy"
    if kind.startswith("qemu"):
        form = kind.removeprefix("qemu ")
        processes.checked("qemu-img", "create", "-f", form, copy, str(size))
        options = ("--discard=unmap", "--detect-zeroes=off", "-x", "")
        running = processes.start("qemu-nbd", "-f", form, "-k", socket, *options, copy)
    elif kind == "nbdkit file":
        with copy.open("wb") as file:
            file.truncate(size)
        running = processes.start("nbdkit", "-f", "-U", socket, "file", copy)
    elif kind == "nbdkit blocks":
        policy = ("blocksize-minimum=4096", "blocksize-error-policy=error")
        running = processes.start(
            "nbdkit", "-f", "-U", socket, "--filter=blocksize-policy", "memory", f"{size}", *policy
        )
    else:
        running = processes.start("nbdkit", "-f", "-U", socket, "memory", f"{size}")
    until(socket.exists, what=running.stderr)
    return running, f"nbd+unix:///?socket={socket}"


FOREIGN = ["qemu qcow2", "nbdkit blocks"]
if FULL:
    FOREIGN += ["qemu raw", "nbdkit file", "nbdkit memory"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_servers_can_be_destinations_of_a_mirror(
    processes: Processes, room: Path, kind: str
) -> None:
    """The order and the end are the same with plain NBD."""
    size = 8 * MIB
    disk, found = random_image(room / "disk", size), room / "found"
    mirrored = Mirrored(processes, room, disk)
    running, uri = foreign(processes, room, kind, size)
    with mirrored.writer() as writer:
        writer.go_on()
        outcome = mirrored.mirror(uri, unlink=kind.startswith("qemu"))
        assert outcome.result()["status"] == 0
        requests = writer.wait()
    mirrored.ended()
    assert len(requests) > 5
    mirrored.history.add(requests)
    if kind.startswith("qemu"):
        assert running.wait(10) == 0
        form = kind.removeprefix("qemu ")
        processes.checked("qemu-img", "convert", "-f", form, "-O", "raw", room / "copy", found)
        assert not disk.exists()
    else:
        processes.checked("nbdcopy", uri, found)
        running.signal(signal.SIGTERM)
        running.wait()
        assert digest(disk) == digest(found)
        assert names(disk) == ["", ".MIGRATED"]
        check_not_written_since(disk)
    mirrored.history.check(found)
