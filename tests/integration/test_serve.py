"""`blockmig serve` and `blockmig status` as their users see them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import wire
from tests.support.disks import MIB, digest, loop_device, random_image, sparse_image
from tests.support.processes import (
    ANY_PORT,
    BLOCKMIG,
    ITS_OWN,
    TWIST,
    TWISTD,
    Processes,
    Running,
    until,
)
from tests.support.serving import KINDS, serve

SIZE = 8 * MIB
OK = struct.pack("!IIQ", 0x67446698, 0, 7)
SHUTDOWN = struct.pack("!IIQ", 0x67446698, wire.ESHUTDOWN, 7)
TWISTD_SERVE = (TWISTD, "-n", "--pidfile=", "blockmig", "serve")


@pytest.fixture
def disk(room: Path) -> Path:
    return random_image(room / "disk", SIZE)


def serve_command(path: Path | str, *options: object) -> list[str]:
    return [BLOCKMIG, "serve", "--file", str(path), *map(str, options)]


def listens(running: Running) -> list[str]:
    """Where, once it does."""
    running.wait_event("listening")
    return [str(event["uri"]) for event in running.events("listening")]


def stopped(running: Running, number: int = signal.SIGTERM, within: float = 5.0) -> None:
    """It ends soon with 0 on a signal, and logs that."""
    began = time.monotonic()
    running.signal(number)
    assert running.wait(30) == 0, running.stderr
    assert time.monotonic() - began < within
    assert "the disk was flushed" in running.events("stopped")[0]["message"]


def refused(
    processes: Processes, command: list[str], *words: object, prefix: tuple[str, ...] = ()
) -> None:
    """It ends at once with 1 and one line that has all the words; nothing was touched."""

    def tree() -> dict[str, Any]:
        return {
            path.name: (path.lstat().st_ino, path.lstat().st_mtime_ns, path.lstat().st_size)
            for path in processes.directory.iterdir()
            if "process-" not in path.name
        }

    before = tree()
    ended = processes.run(*command, prefix=prefix, timeout=15)
    assert ended.status == 1, (ended.status, ended.stderr)
    assert ended.stderr.count("\n") == 1, ended.stderr
    for word in words:
        assert str(word) in ended.stderr
    assert ended.stdout == ""
    assert tree() == before


def reads(uri: str, offset: int = 0, count: int = 4096) -> bytes:
    with wire.client(uri) as client:
        assert client.ask(wire.READ, offset, count) == 0
        return wire.read_exactly(client.socket, count)


def connectable(uri: str) -> bool:
    with contextlib.suppress(OSError):
        wire.connect(uri).close()
        return True
    return False


# The end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "command",
    [(BLOCKMIG, "serve"), TWISTD_SERVE, (TWIST, "blockmig", "serve")],
    ids=["blockmig", "twistd", "twist"],
)
def test_a_signal_stops_the_server_in_order(
    processes: Processes, disk: Path, number: int, command: tuple[str, ...]
) -> None:
    """Idle clients are closed, nobody is accepted, the UNIX socket is removed, and the process
    ends.
    """
    served = serve(processes, disk, command=command)
    with wire.client(served.uris["tcp"]) as idle, wire.client(served.uris["unix"]) as other:
        assert idle.ask(wire.WRITE, 0, 4096, b"x" * 4096) == 0
        negotiating = wire.connect(served.uris["tcp"])
        stopped(served.running, number)
        assert idle.closed()
        assert other.closed()
        negotiating.close()
    assert not any(connectable(uri) for uri in served.uris.values())
    assert not disk.with_suffix(".socket").exists()
    assert disk.read_bytes()[:4096] == b"x" * 4096
    assert [event["event"] for event in served.running.events()][-2:] == ["stopping", "stopped"]


def test_the_disk_is_flushed_after_the_last_reply(
    processes: Processes, room: Path, disk: Path
) -> None:
    """At that time nobody is connected any more."""
    trace = room / "trace"
    calls = "trace=fdatasync,fsync,close"
    command = ("strace", "-f", "-y", "-e", calls, "-o", str(trace), BLOCKMIG, "serve")
    for options, flushes in (((), 1), (("--read-only",), 0)):
        served = serve(processes, disk, *options, command=command)
        reads(served.uris["unix"])
        children = f"/proc/{served.running.pid}/task/{served.running.pid}/children"
        os.kill(int(Path(children).read_text().split()[0]), signal.SIGTERM)
        assert served.running.wait(30) == 0
        lines = [line for line in trace.read_text().splitlines() if f"<{disk}>" in line]
        assert sum("sync(" in line for line in lines) == flushes, lines
        if flushes:
            assert "sync(" in lines[-2], "and then it is closed"


@pytest.mark.parametrize("kind", KINDS)
def test_requests_under_way_are_finished_and_later_ones_refused(
    processes: Processes, disk: Path, kind: str
) -> None:
    """Requests that arrived, and a WRITE whose payload is half here, are finished."""
    served = serve(processes, disk)
    uri = served.uris[kind]
    with wire.client(uri) as writer, wire.client(uri) as reader, wire.client(uri) as late:
        payload = os.urandom(2 * MIB)
        writer.send(wire.request(wire.WRITE, MIB, 2 * MIB) + payload[:MIB])
        # More than any socket takes, so that it is not through with it.
        reader.send(wire.request(wire.READ, 0, SIZE) * 6)
        first = wire.read_exactly(reader.socket, 16)
        assert first == OK
        late.send(wire.request(wire.WRITE, 6 * MIB, 100_000) + bytes(500))
        time.sleep(0.3)
        served.running.signal(signal.SIGTERM)
        until(lambda: not connectable(uri), 3)
        assert served.running.status is None, "somebody still waits for something"
        time.sleep(0.3)
        late.send(bytes(99_500) + wire.request(wire.WRITE, 7 * MIB, 4096) + b"y" * 4096)
        heard = wire.read_exactly(late.socket, 32)
        assert heard in (OK + SHUTDOWN, OK), heard.hex()
        writer.send(payload[MIB:])
        assert wire.read_exactly(writer.socket, 100) == OK
        whole = 6 * (SIZE + 16) - 16
        assert len(wire.read_exactly(reader.socket, whole)) == whole
        assert reader.closed()
        assert late.closed()
    assert served.running.wait(5) == 0
    content = disk.read_bytes()
    assert content[MIB : 3 * MIB] == payload
    assert content[6 * MIB : 6 * MIB + 100_000] == bytes(100_000)
    assert b"y" * 4096 not in content


def test_busy_clients_do_not_delay_the_stop(processes: Processes, disk: Path) -> None:
    """A client that always has a next request is answered ESHUTDOWN, or closed."""
    served = serve(processes, disk)
    fio = processes.start(
        *("fio", "--thread", "--ioengine=nbd", f"--uri={served.uris['unix']}", "--name=load"),
        *("--rw=randrw", "--bs=4k", "--iodepth=32", "--time_based", "--runtime=60", "--size=8m"),
        "--numjobs=3",
    )
    until(lambda: fio.stdout.count("connected") == 3)
    time.sleep(0.3)
    stopped(served.running, within=3.0)
    fio.wait(20)


def test_stubborn_clients_do_not_delay_the_stop_for_ever(processes: Processes, disk: Path) -> None:
    """Neither half a request nor unread replies do, and another signal changes nothing."""
    served = serve(processes, disk)
    with wire.client(served.uris["tcp"]) as half, wire.client(served.uris["unix"]) as deaf:
        half.send(wire.request(wire.WRITE, 0, MIB) + bytes(1000))
        deaf.send(wire.request(wire.READ, 0, SIZE) * 20)
        time.sleep(0.3)
        began = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            served.running.signal(number)
            time.sleep(0.2)
        assert served.running.wait(30) == 0
        assert 8 <= time.monotonic() - began < 13
    assert len(served.running.events("stopping")) == 1


def test_a_signal_before_the_server_listens_exits_with_status_4(
    processes: Processes, disk: Path
) -> None:
    command = serve_command(disk, "--listen", "tcp:0:interface=192.0.2.1", "--insecure")
    running = processes.start(*command)
    until(lambda: "trying again" in running.stderr)
    running.signal(signal.SIGTERM)
    assert running.wait(5) == 4


PECULIAR = """
import errno, os, sys, time
from dataclasses import replace
from twisted.internet import reactor
from blockmig.cli.commands import parse
from blockmig.cli.logs import begin_logging, line_writer
from blockmig.cli.operations import report, run_operation
from blockmig.cli.serve_operation import ServeOperation
from blockmig.runtime import Runtime
from blockmig.syscalls import SystemCalls

class Peculiar(SystemCalls):
    def fdatasync(self, descriptor):
        if sys.argv[1] == "slow":
            time.sleep(1.5)
            return os.fdatasync(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

_, options = parse(sys.argv[2:])
begin_logging(options, line_writer(2))
operation = ServeOperation(options, replace(Runtime.of(reactor), system=Peculiar()))
raise SystemExit(run_operation(reactor, report(operation), operation.stop))
"""


@pytest.mark.parametrize("command", [wire.READ, wire.WRITE])
def test_requests_while_the_server_stops_are_refused(
    processes: Processes, disk: Path, command: int
) -> None:
    before = disk.read_bytes()
    served = serve(processes, disk, command=(sys.executable, "-c", PECULIAR, "slow", "serve"))
    with wire.client(served.uris["unix"]) as client:
        client.send(wire.request(wire.FLUSH, cookie=1))
        time.sleep(0.3)
        served.running.signal(signal.SIGTERM)
        served.running.wait_event("stopping")
        length = 0 if command == wire.FLUSH else 4096
        payload = bytes(4096 if command == wire.WRITE else 0)
        client.send(wire.request(command, 0, length, cookie=2) + payload)
        assert client.reply() == (wire.ESHUTDOWN, 2)
        assert client.reply() == (0, 1), "what was under way is finished"
        assert client.closed()
    assert served.running.wait(10) == 0
    assert disk.read_bytes() == before


def test_a_failed_last_flush_exits_with_an_error(processes: Processes, disk: Path) -> None:
    served = serve(processes, disk, command=(sys.executable, "-c", PECULIAR, "failing", "serve"))
    with wire.client(served.uris["unix"]) as client:
        assert client.ask(wire.FLUSH) == 5
        assert client.ask(wire.WRITE, 0, 512, bytes(512)) == 0, "it goes on"
    served.running.signal(signal.SIGTERM)
    assert served.running.wait(10) == 3
    (error,) = served.running.events("error")
    assert str(disk) in error["why"]
    assert "Input/output error" in error["why"]


# Where it listens.


def test_several_addresses_are_listened_on(processes: Processes, room: Path, disk: Path) -> None:
    where = [ANY_PORT, f"unix:{room}/a:mode=600", f"unix:{room}/b"]
    where += ["tcp6:0:interface=\\:\\:1"]
    listen = [part for text in where for part in ("--listen", text)]
    running = processes.start(*serve_command(disk, "--log-format", "json", *listen))
    until(lambda: len(running.events("listening")) == 4 or running.status is not None)
    uris = [str(event["uri"]) for event in running.events("listening")]
    assert len(uris) == 4, running.stderr
    assert [uri.partition("//")[0] for uri in uris] == ["nbd:", "nbd+unix:", "nbd+unix:", "nbd:"]
    assert "[::1]" in uris[3]
    assert (room / "a").stat().st_mode & 0o777 == 0o600
    assert {reads(uri) for uri in uris} == {disk.read_bytes()[:4096]}
    for uri in uris:
        assert f'"export-size": {SIZE}' in processes.checked("nbdinfo", "--json", uri)
    assert not running.events("exposed")
    stopped(running)
    assert not (room / "a").exists()
    assert not (room / "b").exists()


@pytest.mark.parametrize("name", ["", "a b/ä"])
def test_the_default_port_and_the_export_name_are_used(
    processes: Processes, disk: Path, name: str
) -> None:
    options = ["--export", name] if name else []
    running = processes.start(*serve_command(disk, "--log-format", "json", *options))
    (uri,) = listens(running)
    assert uri == ("nbd://127.0.0.1:10809/a%20b/%C3%A4" if name else "nbd://127.0.0.1:10809/")
    assert f'"export-size": {SIZE}' in processes.checked("nbdinfo", "--json", uri)
    if name:
        with pytest.raises(AssertionError, match="no export"):
            wire.Client(uri, "another")
    stopped(running)


def test_an_address_in_use_is_fatal(processes: Processes, room: Path, disk: Path) -> None:
    """What was opened before is closed again; another's UNIX socket stays."""
    other = random_image(room / "other", MIB)
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        listen = ("--listen", f"unix:{room}/first", "--listen", f"tcp:{port}:interface=127.0.0.1")
        ended = processes.run(*serve_command(disk, *listen), timeout=15)
        assert ended.status == 1
        last = ended.stderr.splitlines()[-1]
        assert str(port) in last
        assert "in use" in last
        assert not (room / "first").exists()
        only = ("--listen", f"tcp:{port}:interface=127.0.0.1")
        refused(processes, serve_command(disk, *only), port, "in use")
    served = serve(processes, other)
    listen = ("--listen", f"unix:{other.with_suffix('.socket')}")
    refused(processes, serve_command(disk, *listen), "in use")
    assert reads(served.uris["unix"]) == other.read_bytes()[:4096]
    stopped(served.running)


def test_bad_usage_is_refused_with_the_reason(processes: Processes, disk: Path) -> None:
    for options, words in (
        (["--listen", "nonsense:1"], ["nonsense"]),
        (["--listen", "tcp:x"], ["tcp:x"]),
        (["--max-connections", "-1"], ["--max-connections"]),
        (["--request-timeout", "soon"], ["--request-timeout"]),
        (["--oldstyle", "--export", "x"], ["--oldstyle"]),
        (["--export", "x" * 5000], ["--export"]),
        (["--size", "5"], ["size"]),
        (["--read"], ["--read"]),
    ):
        refused(processes, serve_command(disk, *options), *words)
    refused(processes, [BLOCKMIG, "serve"], "FILE is missing")
    refused(processes, [BLOCKMIG, "status"], "--control is missing")


@pytest.mark.parametrize("read_only", [False, True])
def test_an_address_that_others_can_reach_is_warned_of(
    processes: Processes, disk: Path, read_only: bool
) -> None:
    options = ["--listen", "tcp:0:interface=0.0.0.0", "--log-format", "json", "--insecure"]
    options += ["--read-only"] * read_only
    running = processes.start(*serve_command(disk, *options))
    warning = running.wait_event("exposed")
    assert warning["level"] == "warn"
    can = "anybody there can read this disk" if read_only else "can read and write this disk"
    assert can in warning["message"]
    stopped(running)


def test_an_oldstyle_server_speaks_oldstyle_only(processes: Processes, disk: Path) -> None:
    served = serve(processes, disk, "--oldstyle")
    for uri in served.uris.values():
        with wire.connect(uri) as connection:
            hello = wire.read_exactly(connection, 152)
            assert hello[:16] == b"NBDMAGIC" + bytes.fromhex("00420281861253")[:0] + hello[8:16]
            assert struct.unpack("!QQ", hello[8:24]) == (0x00420281861253, SIZE)
            assert hello[28:] == bytes(124)
            connection.sendall(wire.request(wire.READ, 0, 4096))
            assert wire.read_exactly(connection, 4112) == OK + disk.read_bytes()[:4096]
            connection.sendall(wire.request(wire.DISC))
            assert connection.recv(10) == b""
    stopped(served.running)


# Disks.


def test_a_read_only_server_needs_no_write_permission(processes: Processes, disk: Path) -> None:
    before = digest(disk)
    disk.chmod(0o400)
    without = ("--bounding-set", "-dac_override,-dac_read_search,-fowner")
    command = serve_command(disk, "--read-only", "--listen", ANY_PORT, "--log-format", "json")
    running = processes.start(*command, prefix=without)
    (uri,) = listens(running)
    with wire.client(uri) as client:
        payload = b"x" * 4096
        assert client.ask(wire.WRITE, 0, 4096, payload) == wire.EPERM
        # Which are not offered.
        assert client.ask(wire.TRIM, 0, 4096) in (wire.EPERM, wire.EINVAL)
        assert client.ask(wire.ZEROES, 0, 4096) in (wire.EPERM, wire.EINVAL)
        assert client.ask(wire.FLUSH) == 0
        assert client.ask(wire.READ, 0, 100) == 0
    info = json.loads(processes.checked("nbdinfo", "--json", uri))["exports"][0]
    assert info["is_read_only"] is True
    stopped(running)
    assert digest(disk) == before
    refused(processes, serve_command(disk), "Permission denied", prefix=without)


@pytest.mark.parametrize(("options", "mode"), [("", 0o600), (":mode=660", 0o660)])
def test_a_UNIX_socket_belongs_to_its_owner_by_default(
    processes: Processes, room: Path, disk: Path, options: str, mode: int
) -> None:
    path = room / "socket"
    command = serve_command(disk, "--listen", f"unix:{path}{options}", "--log-format", "json")
    running = processes.start(*command)
    listens(running)
    assert path.stat().st_mode & 0o777 == mode
    stopped(running)


def test_a_file_with_other_hard_links_is_warned_of(
    processes: Processes, room: Path, disk: Path
) -> None:
    os.link(disk, room / "another")
    running = processes.start(*serve_command(disk, "--listen", ANY_PORT, "--log-format", "json"))
    listens(running)
    assert "2 names (hard links)" in running.stderr
    stopped(running)


def test_a_read_only_server_keeps_others_from_opening_the_disk(
    processes: Processes, disk: Path
) -> None:
    first = serve(processes, disk, "--read-only")
    for options in ((), ("--read-only",)):
        refused(processes, serve_command(disk, "--listen", ANY_PORT, *options), disk, "in use")
    assert reads(first.uris["tcp"]) == disk.read_bytes()[:4096]
    stopped(first.running)


def test_a_writing_server_keeps_others_from_opening_the_disk(
    processes: Processes, disk: Path
) -> None:
    served = serve(processes, disk)
    for options in ((), ("--read-only",)):
        refused(processes, serve_command(disk, "--listen", ANY_PORT, *options), disk, "in use")
    receive = [BLOCKMIG, "receive", "--file", str(disk), "--listen", ANY_PORT]
    refused(processes, receive, disk, "in use")
    refused(processes, [BLOCKMIG, "send", str(disk), "nbd://127.0.0.1:1/"], disk, "in use")
    said = processes.run("qemu-io", "-f", "raw", "-c", "write 0 512", disk)
    assert "lock" in said.stdout + said.stderr
    assert reads(served.uris["unix"]) == disk.read_bytes()[:4096]
    stopped(served.running)
    receiver = processes.receive(disk, "--overwrite")
    refused(processes, serve_command(disk, "--listen", ANY_PORT), disk, "in use")
    receiver.signal(signal.SIGTERM)
    assert receiver.wait(10) == 4


def test_locks_of_QEMU_are_respected(processes: Processes, room: Path, disk: Path) -> None:
    """A QEMU that writes has the disk to itself; one that only reads shares it with readers."""
    for options, ours, status in (
        ((), (), 1),
        ((), ("--read-only",), 1),
        (("--read-only",), (), 1),
        (("--read-only",), ("--read-only",), None),
    ):
        where = room / "qemu"
        qemu = processes.start(
            *("qemu-nbd", "--persistent", "--format=raw", f"--socket={where}", *options), disk
        )
        wire.wait_until_greeted(where)
        command = serve_command(disk, "--listen", ANY_PORT, *ours)
        if status:
            refused(processes, command, disk, "in use", "QEMU")
        else:
            running = processes.start(*command, "--log-format", "json")
            assert reads(listens(running)[0]) == disk.read_bytes()[:4096]
            stopped(running)
        qemu.signal(signal.SIGTERM)
        qemu.wait(10)
        where.unlink(missing_ok=True)


def test_what_is_no_disk_is_refused(processes: Processes, room: Path) -> None:
    (room / "folder").mkdir()
    (room / "empty").touch()
    os.mkfifo(room / "pipe")
    for name, words in (
        ("missing", "o such file"),
        ("folder", "irectory"),
        ("empty", "empty"),
        ("pipe", "neither a regular file nor a block device"),
    ):
        for options in ((), ("--read-only",)):
            refused(processes, serve_command(room / name, *options), room / name, words)


def test_a_migrated_disk_is_not_served_and_its_copy_is(
    processes: Processes, room: Path, disk: Path
) -> None:
    """Neither the retired source nor an unfinished copy is served."""
    copy = room / "copy"
    receiver = processes.receive(copy, "--size", SIZE)
    sender = processes.send(disk, receiver, "--max-rate", "8M")
    receiver.wait_event("attempt")
    until((room / "copy.INCOMPLETE").exists)
    until(lambda: copy.stat().st_size)
    for end in (sender, receiver):
        end.kill()
    refused(processes, serve_command(copy), copy, "not canonical")
    refused(processes, serve_command(copy, "--read-only"), copy, "not canonical")
    record = json.loads((room / "copy.INCOMPLETE").read_text())
    assert record["phase"] == "copying"
    assert reads(serve(processes, disk).uris["unix"]) == disk.read_bytes()[:4096]
    for running in processes._all:
        running.kill()
    (room / "disk.socket").unlink()
    (room / "disk.socket.lock").unlink(missing_ok=True)
    receiver = processes.receive(copy)
    assert processes.send(disk, receiver).wait() == 0
    assert receiver.wait(10) == 0
    for options in ((), ("--read-only",)):
        refused(processes, serve_command(disk, *options), disk, "not canonical", "migrated")
    served = serve(processes, copy)
    assert reads(served.uris["unix"]) == disk.read_bytes()[:4096]
    stopped(served.running)


def test_a_whole_unconfirmed_copy_is_not_served(processes: Processes, room: Path) -> None:
    """All the data is here, and the source may be retired: only a human can tell."""
    copy = room / "copy"
    receiver = processes.receive(copy, "--size", MIB)
    with wire.client(receiver.uri) as client:
        assert client.ask(wire.WRITE, 0, MIB, b"x" * MIB) == 0
        assert client.ask(wire.FLUSH) == 0
        receiver.kill()
    record = room / "copy.INCOMPLETE"
    if json.loads(record.read_text())["phase"] != "copied":
        text = record.read_text().replace('"copying"', '"copied"')
        record.write_text(text)
    refused(processes, serve_command(copy), copy)
    processes.checked(BLOCKMIG, "accept", copy, "--i-have-checked-the-source")
    served = serve(processes, copy)
    assert reads(served.uris["unix"]) == b"x" * 4096
    stopped(served.running)


def test_a_disk_with_a_bad_record_is_not_served(
    processes: Processes, room: Path, disk: Path
) -> None:
    (room / "disk.INCOMPLETE").write_text("nonsense")
    refused(processes, serve_command(disk), disk, "INCOMPLETE")


def test_a_block_device_is_served(processes: Processes, room: Path, disk: Path) -> None:
    (room / "state").mkdir()
    with loop_device(disk) as device:
        listen = ["--listen", ANY_PORT, "--log-format", "json", "--state-dir", str(room / "state")]
        running = processes.start(*serve_command(device, *listen))
        (uri,) = listens(running)
        with wire.client(uri) as client:
            assert client.size == SIZE
            assert client.ask(wire.WRITE, 4 * MIB, MIB, b"x" * MIB) == 0
            assert client.ask(wire.WRITE, 512, 512, b"y" * 512) == 0
            assert client.ask(wire.TRIM, MIB, MIB) == 0
            assert client.ask(wire.ZEROES, 2 * MIB, MIB) == 0
            assert client.ask(wire.FLUSH) == 0
        stopped(running)
        content = Path(device).read_bytes()
    assert content[4 * MIB : 5 * MIB] == b"x" * MIB
    assert content[512:1024] == b"y" * 512
    assert content[2 * MIB : 3 * MIB] == bytes(MIB)
    assert os.listdir(room / "state") == []


# Under twistd, and under systemd.


def test_twistd_takes_the_same_options(processes: Processes, room: Path, disk: Path) -> None:
    """A refusal is 1 there too; without a command it receives."""
    served = serve(processes, disk, "--read-only", "--max-connections", "2", command=TWISTD_SERVE)
    assert reads(served.uris["tcp"]) == disk.read_bytes()[:4096]
    stopped(served.running)
    ended = processes.run(*TWISTD_SERVE, "--file", room / "missing", timeout=15)
    assert ended.status == 1
    assert "o such file" in ended.stdout + ended.stderr
    help_text = processes.checked(TWISTD, "blockmig", "serve", "--help")
    assert "--max-connections" in help_text
    assert "--request-timeout" in processes.checked(TWISTD, "blockmig", "serve", "--help")
    plain = (TWISTD, "-n", "--pidfile=", "blockmig")
    receiver = processes.receive(room / "new", "--size", SIZE, command=plain)
    assert processes.send(disk, receiver, "--unlink").wait() == 0
    assert receiver.wait(10) == 0


class Manager:
    """Like systemd, passes listening sockets, and is notified.


    @ivar said: what it was told, a dictionary of each message.
    """

    def __init__(self, processes: Processes, *sockets: socket.socket) -> None:
        self.processes = processes
        self.sockets = sockets
        self.said: list[dict[str, str]] = []
        path = processes.directory / "notify"
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(path))
        self.notified.setblocking(False)
        self._environment = {"NOTIFY_SOCKET": str(path)}

    def start(self, *command: str | Path) -> Running:
        """With the sockets as descriptors 3 and on."""
        count = len(self.sockets)
        moves = "".join(
            f"os.dup2({each.fileno()}, {200 + number}); "
            for number, each in enumerate(self.sockets)
        ) + "".join(f"os.dup2({200 + number}, {3 + number}); " for number in range(count))
        variables = dict(self._environment)
        if count:
            variables["LISTEN_FDS"] = str(count)
        program = (
            f"import os, sys; {moves}os.closerange({3 + count}, 300); "
            f"os.environ.update({variables!r}); "
            f"os.environ.update(LISTEN_PID=str(os.getpid())) if {count} else None; "
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        for each in self.sockets:
            each.set_inheritable(True)
        # Popen closes what it is not told of: a socket is passed by the one that stays open.
        popen = self.processes.start
        with passing(*(each.fileno() for each in self.sockets)):
            return popen(*ITS_OWN, program, *command)

    def heard(self) -> list[dict[str, str]]:
        with contextlib.suppress(BlockingIOError):
            while True:
                text = self.notified.recv(4096).decode()
                self.said.append(dict(line.split("=", 1) for line in text.splitlines()))
        return self.said

    def close(self) -> None:
        for each in (*self.sockets, self.notified):
            each.close()


@contextlib.contextmanager
def passing(*descriptors: int) -> Iterator[None]:
    """Have the processes that are started meanwhile inherit C{descriptors}."""
    import subprocess

    real = subprocess.Popen.__init__

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, pass_fds=descriptors, **named)

    subprocess.Popen.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = real  # type: ignore[method-assign]


@pytest.fixture
def manager(processes: Processes, room: Path) -> Iterator[Manager]:
    """With a TCP socket and a UNIX socket."""
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(room / "activated"))
    unix.listen(5)
    (room / "activated").chmod(0o600)
    made = Manager(processes, socket.create_server(("127.0.0.1", 0)), unix)
    yield made
    made.close()


@pytest.mark.parametrize("command", [(BLOCKMIG, "serve"), TWISTD_SERVE], ids=["blockmig", "twistd"])
def test_passed_sockets_are_served_by_one_process_after_another(
    processes: Processes, room: Path, disk: Path, manager: Manager, command: tuple[str, ...]
) -> None:
    """Clients that connected in between are served too."""
    port = manager.sockets[0].getsockname()[1]
    uris = [f"nbd://127.0.0.1:{port}/", f"nbd+unix:///?socket={room}/activated"]
    before = (room / "activated").lstat()
    for turn in range(2):
        early = wire.connect(uris[turn])
        running = manager.start(*command, "--file", disk, "--log-format", "json")
        ready = until(lambda turn=turn: [m for m in manager.heard() if "READY" in m][turn:])[0]
        assert ready["READY"] == "1"
        assert str(disk) in ready["STATUS"]
        found = [str(event["uri"]) for event in running.events("listening")]
        assert found == uris, "it listens before it says so, and nowhere else"
        assert len(wire.read_exactly(early, 18)) == 18
        early.close()
        assert {reads(uri) for uri in uris} == {disk.read_bytes()[:4096]}
        assert not [m for m in manager.heard() if "STOPPING" in m][turn:]
        stopped(running)
        assert [m for m in manager.heard() if "STOPPING" in m][turn:][0]["STOPPING"] == "1"
        after = (room / "activated").lstat()
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_twistd_as_a_daemon_serves_the_sockets_that_it_was_started_with(
    processes: Processes, room: Path, disk: Path, manager: Manager
) -> None:
    pidfile = room / "daemon.pid"
    command = (TWISTD, "--pidfile", pidfile, "--logfile", room / "log", "blockmig", "serve")
    assert manager.start(*command, "--file", disk).wait(20) == 0
    until(lambda: any("READY" in message for message in manager.heard()))
    pid = int(pidfile.read_text())
    try:
        assert {message["MAINPID"] for message in manager.heard() if "READY" in message} == {
            str(pid)
        }
        port = manager.sockets[0].getsockname()[1]
        for uri in (f"nbd://127.0.0.1:{port}/", f"nbd+unix:///?socket={room}/activated"):
            assert reads(uri) == disk.read_bytes()[:4096]
        assert (room / "log").read_text().count("listening on") == 2
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not pidfile.exists())


def test_receive_uses_passed_sockets(processes: Processes, disk: Path, room: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        manager = Manager(processes, listening)
        command = (BLOCKMIG, "receive", "--file", room / "copy", "--size", str(SIZE))
        receiver = manager.start(*command, "--log-format", "json")
        until(lambda: any("READY" in message for message in manager.heard()))
        uri = f"nbd://127.0.0.1:{listening.getsockname()[1]}/"
        assert [event["uri"] for event in receiver.events("listening")] == [uri]
        assert processes.send(disk, uri, "--unlink").wait() == 0
        assert receiver.wait(10) == 0
        until(lambda: any("STOPPING" in message for message in manager.heard()))
        manager.notified.close()


def test_readiness_is_notified_only_once_the_server_listens(
    processes: Processes, disk: Path
) -> None:
    """And not at all if it cannot listen."""
    manager = Manager(processes)
    where = ("--listen", "tcp:0:interface=192.0.2.1", "--insecure")
    running = manager.start(*serve_command(disk, *where))
    until(lambda: "trying again" in running.stderr)
    assert not any("READY" in message for message in manager.heard())
    running.signal(signal.SIGTERM)
    assert running.wait(5) == 4
    assert manager.start(*serve_command(disk.parent / "missing")).wait(10) == 1
    assert not any("READY" in message for message in manager.heard())
    manager.close()


def test_listen_beside_passed_sockets_is_refused(
    processes: Processes, disk: Path, manager: Manager
) -> None:
    """Clients of one of the two would never be answered."""
    running = manager.start(*serve_command(disk, "--listen", ANY_PORT))
    assert running.wait(10) == 1
    assert "systemd passed sockets" in running.stderr


# The status.


def status(processes: Processes, control: Path) -> dict[str, Any]:
    told = processes.checked(BLOCKMIG, "status", "--json", "--control", control)
    assert told.count("\n") == 1
    found: dict[str, Any] = json.loads(told)
    return found


def test_the_status_of_a_server_has_every_field(
    processes: Processes, room: Path, disk: Path
) -> None:
    control = room / "control"
    served = serve(processes, disk, "--control", str(control), "--export", "web")
    uris = served.uris
    told = status(processes, control)
    assert {name: told[name] for name in ("role", "state", "disk", "size", "export", "pid")} == {
        "role": "serve",
        "state": "serving",
        "disk": str(disk),
        "size": SIZE,
        "export": "web",
        "pid": served.running.pid,
    }
    assert sorted(told["listening"]) == sorted(uris.values())
    assert told["read_only"] is False
    assert told["clients"] == []
    text = processes.checked(BLOCKMIG, "status", "--control", control)
    assert f"serve: serving, {disk}, 8 MiB (8388608 bytes), export 'web'" in text
    assert "no clients" in text
    with wire.client(uris["tcp"], "web") as first, wire.client(uris["unix"], "web") as second:
        for _ in range(3):
            assert first.ask(wire.WRITE, 0, 5000, bytes(5000)) == 0
        assert second.ask(wire.READ, 0, MIB) == 0
        wire.read_exactly(second.socket, MIB)
        assert second.ask(wire.FLUSH) == 0
        assert second.ask(wire.READ, SIZE, 1) == wire.EINVAL
        told = status(processes, control)
        host, port = first.socket.getsockname()
        clients = {client["address"]: client for client in told["clients"]}
        assert len(clients) == 2
        mine = clients[f"{host}:{port}"]
        counted = ("writes", "bytes_written", "reads", "bytes_read", "other", "requests", "export")
        assert [mine[name] for name in counted] == [3, 15000, 0, 0, 0, 3, "web"]
        (other,) = (c for address, c in clients.items() if address != f"{host}:{port}")
        assert [other[name] for name in counted[2:5]] == [1, MIB, 1]  # the refused one is none
        assert 0 <= mine["connected"] <= told["uptime"]
        text = processes.checked(BLOCKMIG, "status", "--control", control)
        assert re.search(rf"^{host}:{port} +\d\.\d s +0 +0 bytes +3 +14\.6 KiB +0$", text, re.M)
    until(lambda: not status(processes, control)["clients"])
    told = status(processes, control)
    assert told["totals"]["connections"] == 2
    assert told["totals"]["bytes_written"] == 15000
    stopped(served.running)
    assert not control.exists()
    ended = processes.run(BLOCKMIG, "status", "--control", control)
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)


def test_the_status_is_answered_under_load(processes: Processes, room: Path, disk: Path) -> None:
    """It is answered soon, its counters grow, and it shows that the server is stopping."""
    control = room / "control"
    served = serve(processes, disk, "--control", str(control))
    fio = processes.start(
        *("fio", "--thread", "--ioengine=nbd", f"--uri={served.uris['tcp']}", "--name=load"),
        *("--rw=randrw", "--bs=4k", "--iodepth=32", "--time_based", "--runtime=60", "--size=8m"),
        "--numjobs=2",
    )
    until(lambda: fio.stdout.count("connected") == 2)
    before = status(processes, control)["totals"]["requests"]
    for _ in range(4):
        began = time.monotonic()
        told = status(processes, control)
        assert time.monotonic() - began < 3
        assert told["totals"]["requests"] > before
        assert len(told["clients"]) == 2
        assert sum(each["requests"] for each in told["clients"]) == told["totals"]["requests"]
        before = told["totals"]["requests"]
    fio.kill()
    until(lambda: not status(processes, control)["clients"])
    with wire.client(served.uris["tcp"]) as half:
        half.send(wire.request(wire.WRITE, 0, MIB))
        time.sleep(0.1)
        served.running.signal(signal.SIGTERM)
        until(lambda: served.running.events("stopping"))
        assert status(processes, control)["state"] == "stopping"
        half.send(bytes(MIB))
        assert wire.read_exactly(half.socket, 17) == OK
    assert served.running.wait(10) == 0


def grows(seen: list[Any]) -> bool:
    """Whether more was written from one to the other of these answers, and never less."""
    written = [each["totals"]["bytes_written"] for each in seen if each["state"] == "copying"]
    assert written == sorted(written)
    return written[-1] > written[0]


def test_the_status_of_a_receiver_has_every_field(
    processes: Processes, room: Path, disk: Path
) -> None:
    control = room / "control"
    copy = room / "copy"
    receiver = processes.receive(copy, "--size", SIZE, "--control", str(control))
    told = status(processes, control)
    assert (told["role"], told["disk"], told["size"]) == ("receive", str(copy), SIZE)
    assert told["listening"] == [receiver.uri]
    assert told["state"] != "copying"
    sender = processes.send(disk, receiver, "--max-rate", "1M")
    receiver.wait_event("attempt")
    seen = [status(processes, control)]
    while sender.status is None and (len(seen) < 4 or not grows(seen)):
        asked = processes.run(BLOCKMIG, "status", "--control", control)
        if asked.status == 0 and "complete" not in asked.stdout:
            assert "receive: " in asked.stdout, asked.stdout
        asked = processes.run(BLOCKMIG, "status", "--json", "--control", control)
        if asked.status == 0:
            seen.append(json.loads(asked.stdout))
    print("\n", json.dumps(seen[-1]))
    assert seen[0]["state"] == "copying"
    assert len(seen) >= 2
    assert any(each["address"].startswith("127.0.0.1:") for each in seen[0]["clients"])
    assert grows(seen)
    assert sender.wait() == 0
    assert receiver.wait(10) == 0
    assert not control.exists()


def test_a_control_socket_in_use_is_refused(processes: Processes, room: Path, disk: Path) -> None:
    control = room / "control"
    served = serve(processes, disk, "--control", str(control))
    other = random_image(room / "other", MIB)
    command = serve_command(other, "--listen", ANY_PORT, "--control", str(control))
    refused(processes, command, control, "in use")
    assert status(processes, control)["pid"] == served.running.pid
    stopped(served.running)


def test_the_help_of_serve_and_status_names_every_option(processes: Processes) -> None:
    for command, names in (
        ("serve", ("--file", "--listen", "--read-only", "--max-connections", "--control")),
        ("status", ("--control", "--json")),
    ):
        text = processes.checked(BLOCKMIG, command, "--help")
        assert text.startswith(f"Usage: blockmig {command} ")
        assert all(len(line) <= 80 for line in text.splitlines()), text
        for name in names:
            assert name in text
        assert "Exit statuses" in " ".join(text.split())


@pytest.mark.parametrize("command", [(BLOCKMIG, "serve"), TWISTD_SERVE], ids=["blockmig", "twistd"])
def test_standby_ends_with_4_and_tells_the_service_manager_that_it_waits(
    processes: Processes, room: Path, command: tuple[str, ...]
) -> None:
    manager = Manager(processes)
    standby = ("--standby", "--file", room / "new", "--listen", ANY_PORT)
    running = manager.start(*command, *standby, "--log-format", "json")
    said = until(manager.heard)
    assert said[0] == {"STATUS": f"waiting until a migration into {room / 'new'} is complete"}
    until(lambda: running.catches(signal.SIGTERM))
    running.signal(signal.SIGTERM)
    assert running.wait(10) == 4
    assert "stopped before it could listen" in running.events("error")[0]["message"]
    assert not list(room.glob("new*"))
    assert not any("READY" in message for message in manager.heard())
    manager.close()


def test_standby_may_give_up(processes: Processes, room: Path) -> None:
    ended = processes.run(
        *serve_command(room / "new", "--standby", "--give-up-after", "0.2", "--id", "web")
    )
    assert ended.status == 4
    assert "gave up after 0.2 seconds" in ended.stderr


def test_options_of_standby_are_refused_without_it(processes: Processes, disk: Path) -> None:
    refused(processes, serve_command(disk, "--id", "web"), "--id is only for --standby")
    refused(processes, serve_command(disk, "--give-up-after", "1"), "only for --standby")


def test_requests_of_64_MiB_are_served_and_longer_ones_logged(
    processes: Processes, room: Path
) -> None:
    """As of old clients, which cannot be told what the longest is; memory stays bounded."""
    longest = 64 * MIB
    disk = sparse_image(room / "big", 3 * longest, {})
    running = processes.start(*serve_command(disk, "--listen", ANY_PORT, "--log-format", "json"))
    (uri,) = listens(running)
    before = running.peak
    for length in (32 * MIB + 1, 49_900_000, longest):
        payload = os.urandom(1 << 20) * (longest >> 20)
        with wire.client(uri) as client:
            assert client.ask(wire.WRITE, 5, length, payload[:length]) == 0
            assert client.ask(wire.READ, 5, length) == 0
            assert wire.read_exactly(client.socket, length) == payload[:length]
    assert running.peak - before < 40
    with wire.client(uri) as client, wire.client(uri) as other:
        for _ in range(3):
            for one in (client, other):
                assert one.ask(wire.READ, 0, longest + 1) == 22
        assert client.ask(wire.WRITE, 0, longest + 1, bytes(longest + 1)) == 22
        assert client.ask(wire.READ, disk.stat().st_size, 1) == 22
        assert client.ask(wire.READ, 0, 1) == 0
    stopped(running)
    said = [event["message"].partition(": ")[2] for event in running.events("request-refused")]
    too_long = f"of {longest + 1} bytes at 0: at most {longest} bytes are served at a time"
    assert said == [
        f"refused a READ {too_long}",
        f"refused a WRITE {too_long}",
        f"refused a READ of 1 bytes at {3 * longest}: the disk has {3 * longest} bytes",
    ]
