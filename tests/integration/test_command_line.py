"""The commands as scripts see them: bad input, exit statuses, signals, progress and rates."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from tests.support import wire
from tests.support.disks import MIB, digest, random_image, sparse_image
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

NOWHERE = "nbd://127.0.0.1:1/"

# Root with the file permissions of anybody else.
UNPRIVILEGED = ("--bounding-set", "-dac_override,-dac_read_search,-fowner")


def receive_command(path: Path | str, *options: object, listen: str = ANY_PORT) -> list[str]:
    return [BLOCKMIG, "receive", "--file", str(path), "--listen", listen, *map(str, options)]


def send_command(path: Path | str, uri: str, *options: object) -> list[str]:
    return [BLOCKMIG, "send", *map(str, options), str(path), uri]


def refused(
    processes: Processes,
    command: list[str],
    *words: object,
    status: int = 1,
    prefix: tuple[str, ...] = (),
) -> Running:
    """The command ends at once with C{status} and one line that has all the words."""
    before = {path.name for path in processes.directory.iterdir() if "process-" not in path.name}
    ended = processes.run(*command, prefix=prefix, timeout=15)
    said = ended.stderr
    assert ended.status == status, said
    assert said.count("\n") == 1, said
    for word in words:
        assert str(word) in said
    assert ended.stdout == ""
    after = {path.name for path in processes.directory.iterdir() if "process-" not in path.name}
    assert after == before, "something was left behind, or taken away"
    return ended


@pytest.fixture
def disk(room: Path) -> Path:
    return random_image(room / "disk", MIB)


# Disks that will not do.


def test_a_missing_file_is_refused(processes: Processes, room: Path) -> None:
    missing = room / "missing"
    refused(processes, receive_command(missing, "--oldstyle"), missing, "no such file")
    refused(processes, send_command(missing, NOWHERE), missing, "no such file")
    nested = room / "no" / "such" / "disk"
    refused(processes, receive_command(nested, "--size", 5000), nested, "there is no directory")


def test_a_directory_is_refused(processes: Processes, room: Path) -> None:
    (room / "folder").mkdir()
    for command in (
        receive_command(room / "folder"),
        receive_command(room / "folder", "--size", 5000),
        send_command(room / "folder", NOWHERE),
    ):
        refused(processes, command, room / "folder", "irectory")


def test_what_is_neither_a_file_nor_a_device_is_refused(processes: Processes, room: Path) -> None:
    os.mkfifo(room / "pipe")
    refused(processes, receive_command(room / "pipe"), "neither a regular file nor a block device")
    refused(processes, send_command(room / "pipe", NOWHERE), "neither")
    refused(processes, send_command("/dev/null", NOWHERE), "neither")


def test_a_disk_without_permission_is_refused(processes: Processes, room: Path, disk: Path) -> None:
    disk.chmod(0)
    refused(processes, receive_command(disk), disk, "Permission denied", prefix=UNPRIVILEGED)
    refused(processes, send_command(disk, NOWHERE), "Permission denied", prefix=UNPRIVILEGED)
    disk.chmod(0o400)
    refused(processes, receive_command(disk), "Permission denied", prefix=UNPRIVILEGED)
    closed = room / "closed"
    closed.mkdir(0o500)
    command = receive_command(closed / "new", "--size", 5000)
    refused(processes, command, closed / "new", "Permission denied", prefix=UNPRIVILEGED)
    assert not list(closed.iterdir())


@pytest.mark.parametrize("options", [("--unlink",), ()], ids=["unlink", "keep"])
def test_a_directory_without_permission_for_records_is_refused_at_the_start(
    processes: Processes, room: Path, options: tuple[str, ...]
) -> None:
    closed = room / "closed"
    closed.mkdir()
    source = random_image(closed / "source", MIB)
    before = digest(source)
    closed.chmod(0o500)
    receiver = processes.receive(room / "destination", "--size", MIB)
    command = send_command(source, receiver.uri, *options)
    refused(processes, command, closed, "ermission", prefix=UNPRIVILEGED)
    assert digest(source) == before
    assert os.listdir(closed) == ["source"]
    assert receiver.status is None, "the destination must not become canonical"
    assert not receiver.events("attempt")


@pytest.mark.parametrize("options", [("--unlink",), ()], ids=["unlink", "keep"])
def test_a_directory_that_becomes_unwritable_keeps_the_source_canonical(
    processes: Processes, room: Path, options: tuple[str, ...]
) -> None:
    """The directory of the source may become unwritable during the copy."""
    closed = room / "closed"
    closed.mkdir()
    source = random_image(closed / "source", MIB)
    before = digest(source)
    receiver = processes.receive(room / "destination", "--size", MIB)
    sender = processes.send(source, receiver, "--max-rate", MIB // 2, *options, prefix=UNPRIVILEGED)
    receiver.wait_event("attempt")
    closed.chmod(0o500)
    assert sender.wait() == 3, sender.stderr
    assert "Permission denied" in sender.events("error")[0]["why"]
    assert digest(source) == before
    assert receiver.status is None, "the destination must not become canonical"
    verdict = processes.run(BLOCKMIG, "inspect", source)
    assert verdict.stdout.splitlines()[0] == "canonical"
    both = processes.run(BLOCKMIG, "inspect", source, room / "destination")
    assert both.stdout.splitlines()[0] == f"canonical: {source}"


def test_an_empty_disk_is_refused(processes: Processes, room: Path) -> None:
    (room / "empty").touch()
    refused(processes, receive_command(room / "empty", "--oldstyle"), "empty")
    refused(processes, send_command(room / "empty", NOWHERE), "empty")
    refused(processes, receive_command(room / "new", "--size", 0), "less than one byte")


def test_an_existing_disk_of_another_size_is_refused(processes: Processes, disk: Path) -> None:
    before = digest(disk)
    refused(processes, receive_command(disk, "--size", "2M"), MIB, 2 * MIB)
    assert digest(disk) == before


@pytest.mark.parametrize("size", ["", "x", "-5", "1.5", "20Q", "99999999999P"])
def test_a_bad_size_is_refused(processes: Processes, room: Path, size: str) -> None:
    refused(processes, receive_command(room / "new", "--size", size))


def test_a_disk_that_a_receiver_has_open_is_refused(processes: Processes, disk: Path) -> None:
    processes.receive(disk, "--overwrite")
    refused(processes, receive_command(disk), disk, "in use")
    refused(processes, send_command(disk, NOWHERE), disk, "in use")


def test_a_disk_that_a_sender_has_open_is_refused(
    processes: Processes, room: Path, disk: Path
) -> None:
    receiver = processes.receive(room / "destination", "--size", MIB)
    processes.send(disk, receiver, "--max-rate", "100K")
    until((room / "destination.INCOMPLETE").exists)
    refused(processes, receive_command(disk), disk, "in use")
    refused(processes, send_command(disk, receiver.uri), disk, "in use")


def test_a_disk_that_QEMU_has_open_is_refused(processes: Processes, room: Path, disk: Path) -> None:
    processes.start("qemu-nbd", "-t", "-f", "raw", "-k", room / "socket", disk)
    wire.wait_until_greeted(room / "socket")
    refused(processes, receive_command(disk), disk, "in use", "QEMU")


def test_a_source_with_hard_links_is_not_unlinked(
    processes: Processes, room: Path, disk: Path
) -> None:
    os.link(disk, room / "other")
    refused(processes, send_command(disk, NOWHERE, "--unlink"), "2 hard links")


# Command lines that will not do.


@pytest.mark.parametrize(
    "endpoint",
    ["nonsense:1", "tcp", "tcp:port", "tcp:99999999", "tcp:1:interface", "", "unix", "127.0.0.1"],
)
def test_a_bad_endpoint_is_refused(processes: Processes, room: Path, endpoint: str) -> None:
    refused(processes, receive_command(room / "new", "--size", 5000, listen=endpoint))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "nonsense",
        "http://localhost/",
        "nbd:///",
        "nbd://localhost:0/",
        "nbd://localhost:x/",
        "nbd://localhost:99999/",
        "nbd://[::1/",
        "nbd+unix:///",
        "nbd+unix://host/?socket=x",
        "nbds+vsock://1/",
        "nbd://localhost/?socket=/x",
        "nbd://localhost/%ff",
    ],
)
def test_a_bad_URI_is_refused(processes: Processes, disk: Path, uri: str) -> None:
    refused(processes, send_command(disk, uri))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("--nonsense",),
        ("receive",),
        ("send",),
        ("send", "one"),
        ("send", "one", "nbd://localhost/", "three"),
        ("receive", "--file", "x", "extra"),
        ("receive", "--file", "x", "-v", "-q"),
        ("receive", "--file", "x", "--idle-timeout", "-1"),
        ("receive", "--file", "x", "--idle-timeout", "soon"),
        ("receive", "--file", "x", "--log-format", "xml"),
        ("send", "--max-rate", "fast", "one", "nbd://localhost/"),
        ("send", "--max-rate", "0", "one", "nbd://localhost/"),
        ("send", "--progress", "song", "one", "nbd://localhost/"),
    ],
)
def test_bad_usage_is_refused_with_status_1(
    processes: Processes, arguments: tuple[str, ...]
) -> None:
    refused(processes, [BLOCKMIG, *arguments])


def test_an_export_name_that_is_too_long_is_refused(
    processes: Processes, room: Path, disk: Path
) -> None:
    receiver = processes.receive(room / "destination", "--size", MIB)
    refused(processes, send_command(disk, receiver.uri + "x" * 5000), "4096")


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("send", "--help")])
def test_help_and_version_are_printed(processes: Processes, arguments: tuple[str, ...]) -> None:
    said = processes.checked(BLOCKMIG, *arguments)
    assert ("blockmig 0." if "--version" in arguments else "Usage: blockmig") in said


def test_help_of_receive_names_every_option(processes: Processes) -> None:
    said = processes.checked(BLOCKMIG, "receive", "--help")
    for name in (
        "file",
        "size",
        "listen",
        "export",
        "oldstyle",
        "handshake-timeout",
        "idle-timeout",
        "give-up-after",
        "log-format",
    ):
        assert f"--{name}" in said


UNDER_TWISTED = pytest.mark.parametrize(
    "runner", [(TWISTD, "-n", "--pidfile="), (TWIST,)], ids=["twistd", "twist"]
)


@UNDER_TWISTED
def test_twistd_and_twist_list_the_plugin_and_its_options(
    processes: Processes, runner: tuple[str, ...]
) -> None:
    program, *_ = runner
    assert "blockmig" in processes.checked(program, "--help")
    said = processes.checked(program, "blockmig", "receive", "--help")
    name = Path(program).name
    assert said.startswith(f"Usage: {name} [{name} options] blockmig receive ")
    assert "--handshake-timeout" in said


@UNDER_TWISTED
@pytest.mark.parametrize(
    ("options", "words"),
    [(("--file", "missing/disk"), "there is no directory"), (("serve",), "FILE is missing")],
    ids=["refused", "bad usage"],
)
def test_twistd_and_twist_exit_with_status_1_when_refused(
    processes: Processes,
    room: Path,
    runner: tuple[str, ...],
    options: tuple[str, ...],
    words: str,
) -> None:
    ended = processes.run(*runner, "blockmig", *options, timeout=15)
    assert ended.status == 1
    assert words in ended.stdout + ended.stderr


def test_options_may_follow_the_arguments(processes: Processes, room: Path) -> None:
    """As in the synopsis: blockmig send DISK URI [--unlink] ..."""
    disk = random_image(room / "source", MIB)
    receiver = processes.receive(room / "destination", "--size", MIB)
    sender = processes.start(BLOCKMIG, "send", disk, receiver.uri, "--unlink", "--max-rate", "50M")
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait(10) == 0
    assert not disk.exists()


def test_a_file_may_look_like_an_option(processes: Processes, room: Path) -> None:
    disk = random_image(room / "-q", MIB)
    receiver = processes.receive(room / "destination", "--size", MIB)
    sender = processes.start(BLOCKMIG, "send", "--unlink", "--", "-q", receiver.uri)
    assert sender.wait() == 0, sender.stderr
    assert not disk.exists()


# Listening.


def test_address_in_use_is_fatal_at_once(processes: Processes, room: Path) -> None:
    first = processes.receive(room / "first", "--size", 5000)
    port = first.uri.split(":")[2].rstrip("/")
    began = time.monotonic()
    for name in ("second", "third"):
        command = receive_command(
            room / name, "--size", 5000, listen=f"tcp:{port}:interface=127.0.0.1"
        )
        refused(processes, command, port, "in use")
    assert time.monotonic() - began < 5
    assert first.status is None


def test_a_UNIX_socket_in_use_is_fatal(processes: Processes, room: Path) -> None:
    first = processes.receive(room / "first", "--size", 5000, listen=f"unix:{room}/socket")
    command = receive_command(room / "second", "--size", 5000, listen=f"unix:{room}/socket")
    refused(processes, command, room / "socket", "in use")
    assert first.status is None
    source = random_image(room / "source", 5000)
    assert processes.send(source, first).wait() == 0, "the first still has its socket"
    assert first.wait(10) == 0


def test_a_UNIX_socket_of_a_dead_receiver_is_replaced(processes: Processes, room: Path) -> None:
    first = processes.receive(room / "first", "--size", 5000, listen=f"unix:{room}/socket")
    first.kill()
    second = processes.receive(room / "second", "--size", 5000, listen=f"unix:{room}/socket")
    source = random_image(room / "source", 5000)
    assert processes.send(source, second).wait() == 0
    assert second.wait(10) == 0


def test_a_directory_without_permission_to_listen_is_refused(
    processes: Processes, room: Path
) -> None:
    (room / "closed").mkdir(0o500)
    listen = f"unix:{room}/closed/socket"
    command = receive_command(room / "new", "--size", 5000, listen=listen)
    refused(processes, command, "closed/socket", "Permission denied", prefix=UNPRIVILEGED)


def test_an_address_that_is_not_on_this_host_is_retried(processes: Processes, room: Path) -> None:
    """It is retried once a second with one log line a minute, until it gives up with 4."""
    began = time.monotonic()
    command = receive_command(
        room / "new",
        *("--size", 5000, "--give-up-after", 3.5, "--insecure"),
        listen="tcp:0:interface=192.0.2.1",
    )
    traced = processes.run("strace", "-f", "-e", "trace=bind", "-o", room / "trace", *command)
    assert traced.status == 4, traced.stderr
    assert 3 <= time.monotonic() - began < 30
    lines = traced.stderr.splitlines()
    assert len(lines) == 2, lines
    assert "trying again" in lines[0]
    assert "gave up" in lines[1]
    binds = (room / "trace").read_text().count("EADDRNOTAVAIL")
    assert 4 <= binds <= 6, "once a second"
    assert not (room / "new").exists()


@contextlib.contextmanager
def address(text: str) -> Iterator[None]:
    subprocess.run(["ip", "address", "add", f"{text}/32", "dev", "lo"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "address", "del", f"{text}/32", "dev", "lo"], check=True)


def test_an_address_that_is_added_later_is_listened_on(processes: Processes, room: Path) -> None:
    command = receive_command(
        room / "new",
        *("--size", 5000, "--log-format", "json", "--insecure"),
        listen="tcp:0:interface=192.0.2.77",
    )
    receiver = processes.start(*command)
    until(lambda: "trying again" in receiver.stderr)
    with address("192.0.2.77"):
        uri = receiver.wait_event("listening")["uri"]
        source = random_image(room / "source", 5000)
        assert processes.send(source, uri).wait() == 0
        assert receiver.wait(10) == 0
    assert receiver.events("exposed"), "it could be reached from elsewhere, and must say so"


@pytest.mark.parametrize("thread", ["", "threading.Thread(target=time.sleep, args=[60]"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_after_the_end_does_not_change_the_status(
    processes: Processes, room: Path, number: int, thread: str
) -> None:
    """A process that has done its work takes a while to exit.

    So does a thread, for the system, after it has ended for Python and was waited for.
    """
    source = random_image(room / "source", MIB)
    there = f"{thread}, daemon=True).start();" if thread else ""
    ended = processes.run(
        *ITS_OWN,
        f"import atexit, os, sys, threading, time; {there} "
        f"atexit.register(lambda: os.kill(os.getpid(), {int(number)})); "
        "from blockmig.cli.main import main; main()",
        "send",
        source,
        NOWHERE,
    )
    assert ended.status == 1, ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_receiver_that_cannot_listen(
    processes: Processes, room: Path, number: int
) -> None:
    receiver = processes.start(
        *receive_command(
            room / "new", "--size", 5000, "--insecure", listen="tcp:0:interface=192.0.2.1"
        )
    )
    until(lambda: "trying again" in receiver.stderr)
    receiver.signal(number)
    assert receiver.wait(5) == 4
    assert not (room / "new").exists()


# Destinations that will not do.


def test_a_size_mismatch_shows_both_sizes(processes: Processes, room: Path, disk: Path) -> None:
    receiver = processes.receive(room / "destination", "--size", MIB + 1)
    refused(processes, send_command(disk, receiver.uri, "--unlink"), MIB, MIB + 1)
    assert receiver.status is None
    assert not receiver.events("attempt")
    assert disk.exists()


def test_an_unknown_export_is_refused(processes: Processes, room: Path, disk: Path) -> None:
    receiver = processes.receive(room / "destination", "--size", MIB, "--export", "right one/ä")
    assert receiver.uri.endswith("/right%20one/%C3%A4")
    wrong = receiver.uri.rpartition("/right")[0] + "/wrong"
    refused(processes, send_command(disk, wrong), "no export named 'wrong'")
    assert processes.send(disk, receiver).wait() == 0
    assert receiver.wait(10) == 0


def listening_socket(path: Path) -> str:
    until(path.exists)
    return f"nbd+unix:///?socket={path}"


def test_read_only_destinations_are_refused(processes: Processes, room: Path, disk: Path) -> None:
    processes.start("nbdkit", "-f", "-r", "-U", room / "nbdkit", "memory", "1M")
    uri = listening_socket(room / "nbdkit")
    refused(processes, send_command(disk, uri, "--unlink"), "read-only")
    other = sparse_image(room / "other", MIB, {})
    processes.start("qemu-nbd", "-t", "-r", "-f", "raw", "-k", room / "qemu", other)
    refused(processes, send_command(disk, listening_socket(room / "qemu")), "read-only")


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"NBDMAGICnonsense" + bytes(200), b"", b"NBD", bytes(99)],
    ids=["http", "half", "close", "short", "zeroes"],
)
def test_a_server_that_does_not_speak_NBD_is_refused(
    processes: Processes, disk: Path, greeting: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(greeting)
                    connection.shutdown(socket.SHUT_WR)
                    with contextlib.suppress(OSError):
                        connection.recv(4096)
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        uri = f"nbd://127.0.0.1:{server.getsockname()[1]}/"
        refused(processes, send_command(disk, uri, "--unlink"))
        server.shutdown(socket.SHUT_RDWR)


def test_a_refused_connection_is_reported_with_status_1(
    processes: Processes, room: Path, disk: Path
) -> None:
    start = "start `blockmig receive` there first"
    refused(processes, send_command(disk, NOWHERE), "nobody listens on 127.0.0.1:1", start, "port")
    none = f"nbd+unix:///?socket={room}/none"
    refused(
        processes, send_command(disk, none), f"there is no socket {room}/none (No such file", start
    )
    refused(
        processes,
        send_command(disk, "nbd://does-not-exist.invalid/"),
        "'does-not-exist.invalid' cannot be looked up",
    )


def test_a_refused_connection_is_retried_with_retry(processes: Processes, disk: Path) -> None:
    began = time.monotonic()
    command = send_command(disk, NOWHERE, "--retry", "--give-up-after", 3)
    ended = processes.run(*command, timeout=12)
    assert ended.status == 4
    assert 2.5 <= time.monotonic() - began < 10
    assert ended.stderr.count("trying again") >= 2
    assert "gave up" in ended.stderr.splitlines()[-1]


@contextlib.contextmanager
def port_that_never_answers() -> Iterator[int]:
    """One whose backlog is full, so that connecting hangs."""
    with contextlib.ExitStack() as sockets:
        server = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(server.getsockname())
        time.sleep(0.1)
        yield server.getsockname()[1]


def test_a_signal_ends_a_sender_that_connects(processes: Processes, disk: Path) -> None:
    with port_that_never_answers() as port:
        sender = processes.send(disk, f"nbd://127.0.0.1:{port}/", "--retry", "--unlink")
        until(lambda: sender.catches(signal.SIGTERM))
        time.sleep(0.5)
        assert sender.status is None
        sender.signal(signal.SIGTERM)
        assert sender.wait(20) == 4
    assert disk.exists()


def test_a_sender_gives_up_while_it_connects(processes: Processes, disk: Path) -> None:
    with port_that_never_answers() as port:
        began = time.monotonic()
        sender = processes.send(
            disk, f"nbd://127.0.0.1:{port}/", "--retry", "--unlink", "--give-up-after", 2
        )
        assert sender.wait(10) == 4
        assert time.monotonic() - began >= 2
    assert disk.exists()


def test_a_sender_with_retry_waits_for_a_receiver(
    processes: Processes, room: Path, disk: Path
) -> None:
    uri = f"nbd+unix:///?socket={room}/socket"
    sender = processes.send(disk, uri, "--retry")
    sender.wait_event("restart")
    receiver = processes.receive(room / "new", "--size", MIB, listen=f"unix:{room}/socket")
    assert sender.wait(20) == 0
    assert receiver.wait(10) == 0


def test_a_receiver_gives_up_with_status_4(processes: Processes, room: Path) -> None:
    began = time.monotonic()
    ended = processes.run(*receive_command(room / "new", "--size", 5000, "--give-up-after", 2))
    assert ended.status == 4
    assert 1.9 <= time.monotonic() - began < 6
    assert "gave up" in ended.stderr
    assert not (room / "new").exists(), "an empty file is no copy of anything"


# While it goes on.


def test_progress_is_printed_as_JSON(processes: Processes, room: Path) -> None:
    source = random_image(room / "source", 12 * MIB)
    receiver = processes.receive(room / "destination", "--size", 12 * MIB)
    sender = processes.send(source, receiver, "--progress", "json", "--max-rate", "4M")
    assert sender.wait() == 0
    lines = [json.loads(line) for line in sender.stdout.splitlines()]
    seconds = [line["seconds"] for line in lines]
    gaps = [after - before for before, after in pairwise(seconds[:-1])]
    if seconds[-1] < 3.4:  # a busy machine is late with one, and then not the next
        assert 4 <= len(lines) <= 6
        assert all(0.8 <= gap <= 1.2 for gap in gaps), seconds
    assert len(lines) >= 4
    assert all(second >= number - 0.2 for number, second in enumerate(seconds[:-1])), seconds
    done = [line["done"] for line in lines]
    assert done == sorted(done)
    assert done[-1] == lines[-1]["total"] == 12 * MIB
    assert {line["event"] for line in lines} == {"progress"}
    assert lines[-1]["attempt"] == 1
    # Over all that has passed: a line that comes soon after a late one may see a burst.
    assert all(line["done"] <= 4 * MIB * line["seconds"] + 2 * MIB for line in lines), lines
    for before, after in pairwise(lines[:-1]):
        passed = after["seconds"] - before["seconds"]
        assert after["rate"] == pytest.approx((after["done"] - before["done"]) / passed, rel=0.02)


def test_the_bar_does_not_spoil_the_log_lines(processes: Processes, room: Path) -> None:
    """On request, even without a terminal."""
    source = random_image(room / "source", 6 * MIB)
    receiver = processes.receive(room / "destination", "--size", 6 * MIB)
    command = send_command(source, receiver.uri, "--progress", "bar", "--max-rate", "6M")
    sender = processes.run("script", "-qec", " ".join(command), "/dev/null")
    assert sender.status == 0, sender.stdout
    assert "attempt 1" in sender.stdout
    assert "MiB" in sender.stdout or "MB" in sender.stdout
    assert "6291456 bytes" in sender.stdout


def test_quiet_prints_nothing(processes: Processes, room: Path, disk: Path) -> None:
    receiver = processes.start(
        *receive_command(room / "new", "--size", MIB, "-q", listen=f"unix:{room}/socket")
    )
    until((room / "socket").exists)
    sender = processes.send(disk, f"nbd+unix:///?socket={room}/socket", "-q")
    assert sender.wait() == 0
    assert receiver.wait(10) == 0
    for end in (sender, receiver):
        said = [line for line in end.stderr.splitlines() if "is in memory" not in line]
        assert said == [], "and that only where tests run in memory"
        assert end.stdout == ""


@pytest.mark.parametrize(("rate", "size"), [("10M", 30), ("50M", 150)])
def test_the_maximum_rate_is_kept(processes: Processes, room: Path, rate: str, size: int) -> None:
    source = random_image(room / "source", size * MIB)
    receiver = processes.receive(room / "destination", "--size", size * MIB)
    sender = processes.send(source, receiver, "--max-rate", rate, "--progress", "json")
    assert sender.wait() == 0
    (told,) = sender.events("complete")
    wanted = int(rate.rstrip("M")) * MIB
    print(f"\n--max-rate {rate}: {told['rate'] / MIB:.2f} MiB/s")
    # A busy machine may be slower: what it could not send for a quarter of a second is not made up.
    assert 0.7 * wanted <= told["rate"] <= 1.05 * wanted
    lines = [json.loads(line) for line in sender.stdout.splitlines()]
    for line in lines[2:-1]:
        assert 0.7 * wanted <= line["rate"] <= 1.3 * wanted, "smoothly"


def test_zeroes_do_not_count_towards_the_rate(processes: Processes, room: Path) -> None:
    source = sparse_image(room / "source", 1024 * MIB, {0: os.urandom(MIB)})
    receiver = processes.receive(room / "destination", "--size", "1G")
    began = time.monotonic()
    assert processes.send(source, receiver, "--max-rate", "1M").wait() == 0
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_sender_ends_it_with_status_4(
    processes: Processes, room: Path, number: int
) -> None:
    source = random_image(room / "source", 20 * MIB)
    before = digest(source)
    receiver = processes.receive(room / "destination", "--size", 20 * MIB)
    sender = processes.send(source, receiver, "--max-rate", "10M", "--unlink")
    receiver.wait_event("attempt")
    time.sleep(0.3)
    sender.signal(number)
    assert sender.wait(5) == 4
    assert "canonical" in sender.events("error")[0]["why"]
    assert digest(source) == before
    receiver.wait_event("restart", 5)
    assert processes.send(source, receiver, "--unlink").wait() == 0
    assert receiver.wait(10) == 0
    assert digest(room / "destination") == before


def test_a_signal_ends_a_sender_that_waits_to_retry(processes: Processes, disk: Path) -> None:
    sender = processes.send(disk, NOWHERE, "--retry")
    sender.wait_event("restart")
    sender.signal(signal.SIGTERM)
    assert sender.wait(5) == 4
    assert disk.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["waiting", "copying"])
def test_a_signal_to_the_receiver_ends_it_with_status_4(
    processes: Processes, room: Path, number: int, when: str
) -> None:
    source = random_image(room / "source", 20 * MIB)
    before = digest(source)
    receiver = processes.receive(room / "destination", "--size", 20 * MIB)
    sender = None
    if when == "copying":
        sender = processes.send(source, receiver, "--max-rate", "10M", "--unlink")
        receiver.wait_event("attempt")
    receiver.signal(number)
    assert receiver.wait(5) == 4
    assert not receiver.events("complete")
    expected = "nothing was received" if when == "waiting" else "not canonical"
    assert expected in receiver.events("error")[0]["why"]
    assert (room / "destination").exists() is (when == "copying")
    if sender is not None:
        sender.wait_event("restart")
        assert sender.status is None, "it goes on trying"
        assert digest(source) == before


def test_an_existing_disk_stays_when_nothing_was_received(processes: Processes, disk: Path) -> None:
    before = digest(disk)
    receiver = processes.receive(disk, "--overwrite")
    receiver.signal(signal.SIGTERM)
    assert receiver.wait(5) == 4
    assert digest(disk) == before


def test_both_ends_print_one_summary_line(processes: Processes, room: Path) -> None:
    """The line has bytes, data, zeroes, seconds, rate and attempts."""
    source = sparse_image(room / "source", 3 * MIB, {MIB: os.urandom(MIB)})
    receiver = processes.start(
        *receive_command(room / "new", "--size", "3M", listen=f"unix:{room}/socket")
    )
    until((room / "socket").exists)
    sender = processes.run(*send_command(source, f"nbd+unix:///?socket={room}/socket"))
    assert sender.status == 0
    assert receiver.wait(10) == 0
    for end in (sender, receiver):
        (line,) = [line for line in end.stderr.splitlines() if "complete" in line]
        assert re.search(
            r"3145728 bytes \(1048576 of data, 2097152 of zeroes\) in \d+\.\d+ s, "
            r"\d+\.\d MB/s of data, 1 attempt",
            line,
        ), line


def test_inspect_says_first_that_a_disk_is_being_copied(processes: Processes, room: Path) -> None:
    disk, copy = random_image(room / "disk", MIB), room / "copy"
    receiver = processes.receive(copy, "--size", MIB)
    sender = processes.send(disk, receiver, "--max-rate", "100K")
    receiver.wait_event("attempt")
    until(Path(f"{disk}.MIGRATING").exists)

    def first(*disks: Path) -> str:
        return processes.run(BLOCKMIG, "inspect", *disks).stdout.splitlines()[0]

    assert first(disk) == "canonical (being copied now)"
    assert first(copy) == "not canonical (being copied now)"
    assert first(disk, copy) == f"canonical: {disk} (being copied now)"
    assert (
        f"{copy}: not canonical (being copied now)"
        in processes.run(BLOCKMIG, "inspect", room).stdout.splitlines()
    )
    said = processes.run(BLOCKMIG, "inspect", copy).stdout
    assert "do: wait for the end of the migration that is going on" in said
    assert "now:" not in said
    for running in (sender, receiver):
        running.signal(signal.SIGTERM)
        running.wait()
    assert (first(disk), first(copy)) == ("canonical", "not canonical")


@pytest.mark.parametrize("columns", [40, 80])
def test_the_bar_fits_into_a_real_terminal(processes: Processes, room: Path, columns: int) -> None:
    source = random_image(room / "source", 3 * MIB)
    receiver = processes.receive(room / "destination", "--size", 3 * MIB)
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, columns))
    sender = subprocess.Popen(
        send_command(source, receiver.uri, "--max-rate", "2M"),
        stdin=subprocess.DEVNULL,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
    )
    os.close(slave)
    said = b""
    with contextlib.suppress(OSError):  # EIO, once nobody has the other end
        while data := os.read(master, 4096):
            said += data
    os.close(master)
    assert sender.wait() == 0
    frames = said.decode().split("\r\x1b[K")
    drawn = [row for frame in frames for row in frame.splitlines() if "%" in row]
    assert len(drawn) > 3
    for row in drawn:
        assert len(row) < columns, row
    assert any(row.startswith("copying") for row in drawn)
    assert "complete: 3145728 bytes" in said.decode()
