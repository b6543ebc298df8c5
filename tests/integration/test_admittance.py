"""Who may connect: allow-lists, users of UNIX sockets, and commands that listen to nobody unasked.

Clients come from addresses of their own, which the loopback device gets meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.support import wire
from tests.support.disks import MIB, digest, random_image
from tests.support.pki import make_hosts
from tests.support.processes import (
    ANY_PORT,
    BLOCKMIG,
    ITS_OWN,
    TWISTD,
    Processes,
    Running,
    until,
)

from blockmig.control import ask

SIZE = 8 * MIB
HERE, THERE, ELSEWHERE = "192.0.2.7", "192.0.2.8", "192.0.2.9"
HERE6, THERE6 = "2001:db8::7", "2001:db8::8"
LINK = "fe80::7"
USER, OTHER_USER = 12_341, 12_342


@pytest.fixture(scope="module", autouse=True)
def addresses() -> Iterator[None]:
    given = [*(f"{one}/32" for one in (HERE, THERE, ELSEWHERE))]
    given += [f"{one}/128" for one in (HERE6, THERE6)] + [f"{LINK}/64"]
    for one in given:
        at_once = ["nodad"] if ":" in one else []
        subprocess.run(["ip", "address", "add", one, "dev", "lo", *at_once], check=True)
    try:
        yield
    finally:
        for one in given:
            subprocess.run(["ip", "address", "del", one, "dev", "lo"], check=True)


@pytest.fixture
def disk(room: Path) -> Path:
    return random_image(room / "disk", SIZE)


@pytest.fixture
def open_room() -> Iterator[Path]:
    """A directory that other users can enter."""
    directory = Path(tempfile.mkdtemp(prefix="blockmig-test-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def serve(processes: Processes, disk: Path, *options: object) -> Running:
    running = processes.start(
        *(BLOCKMIG, "serve", "--log-format", "json", "--file", disk), *map(str, options)
    )
    running.uri = running.wait_event("listening")["uri"]
    return running


def port_of(running: Running) -> int:
    return int(urlsplit(running.uri).port or 0)


def hears(source: str, host: str, port: int) -> bytes:
    """What somebody at C{source} who connects is told."""
    (family, kind, protocol, _, there), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    with socket.socket(family, kind, protocol) as connection:
        connection.settimeout(10)
        connection.bind(socket.getaddrinfo(source, 0, type=socket.SOCK_STREAM)[0][4])
        connection.connect(there)
        try:
            return wire.read_exactly(connection, 18)
        except ConnectionResetError:
            return b""


def greets(greeting: bytes) -> bool:
    """Whether somebody was; anything but a whole greeting is to be nothing at all."""
    assert greeting == b"" or greeting.startswith(b"NBDMAGICIHAVEOPT"), greeting
    return bool(greeting)


def acl(processes: Processes, control: Path, *arguments: object) -> Any:
    command = (BLOCKMIG, "acl", "--json", "--control", control, *map(str, arguments))
    return json.loads(processes.checked(*command))


# Addresses.


def test_only_who_is_on_the_list_is_greeted(processes: Processes, disk: Path) -> None:
    """At a socket that listens on all addresses IPv4 clients have mapped ones."""
    allowed = ("--allow", THERE, "--allow", f"{THERE6}/128", "--allow", "fe80::%lo/10")
    running = serve(processes, disk, "--listen", "[::]:0", *allowed)
    port = port_of(running)
    for source, host, expected in (
        (THERE, HERE, True),
        (HERE, HERE, False),
        (ELSEWHERE, HERE, False),
        ("127.0.0.1", "127.0.0.1", False),
        (THERE6, HERE6, True),
        (HERE6, HERE6, False),
        ("::1", "::1", False),
        (f"{LINK}%lo", f"{LINK}%lo", True),
    ):
        assert greets(hears(source, host, port)) == expected, (source, host)
    assert len(running.events("not-allowed")) == 5
    assert not running.events("exposed")
    assert "clients from 192.0.2.8" in running.events("allowed")[0]["message"]


def test_whoever_is_not_on_the_list_keeps_nobody_out(processes: Processes, disk: Path) -> None:
    """Not even where there is one place only; and the log has a limited number of lines."""
    control = disk.with_suffix(".control")
    options = ("--allow", THERE, "--max-connections", 1, "--control", control)
    running = serve(processes, disk, "--listen", f"{HERE}:0", *options)
    port = port_of(running)
    with socket.create_connection((HERE, port), 10, (THERE, 0)) as mine:
        assert greets(wire.read_exactly(mine, 18))
        for _ in range(100):
            assert hears(ELSEWHERE, HERE, port) == b""
        mine.sendall(wire.FLAGS + wire.go())
        assert wire.read_exactly(mine, 20)
    status = ask(str(control), "GET", "/status")
    assert (status["allow"], status["refused"]) == ([THERE], 100)
    assert status["totals"]["connections"] == 1
    assert len(running.events("not-allowed")) == 10
    text = processes.checked(BLOCKMIG, "status", "--control", control)
    assert f"allowed: {THERE}; 100 connections refused" in text


def test_a_receiver_takes_its_sender_from_an_address_on_the_list(
    processes: Processes, room: Path, disk: Path
) -> None:
    """A sender at another address is told what may be the matter."""
    receiver = processes.receive(room / "copy", "--allow", HERE, listen=f"{HERE}:0")
    assert hears(ELSEWHERE, HERE, port_of(receiver)) == b""
    assert processes.send(disk, receiver).wait() == 0, "it comes from the address it connects to"
    assert receiver.wait() == 0
    refusing = processes.receive(room / "copy2", "--allow", ELSEWHERE, listen=f"{HERE}:0")
    sender = processes.send(disk, refusing, "--overwrite", "--id", "another")
    assert sender.wait() == 1
    assert "allow-list" in sender.stderr


# acl.


def test_a_client_that_is_taken_off_the_list_is_dropped_in_the_middle_of_a_request(
    processes: Processes, room: Path, disk: Path
) -> None:
    """Others go on, and so does the disk."""
    control = room / "control"
    where = ("--listen", f"{HERE}:0", "--allow", "192.0.2.0/24", "--control", control)
    running = serve(processes, disk, *where)
    port = port_of(running)
    before = disk.read_bytes()
    payload = b"x" * MIB
    with (
        socket.create_connection((HERE, port), 10, (THERE, 0)) as other,
        contextlib.closing(wire.Client(running.uri)) as mine,  # from HERE
    ):
        assert greets(wire.read_exactly(other, 18))
        other.sendall(wire.FLAGS + wire.go())
        other.sendall(wire.request(wire.WRITE, 0, MIB) + payload[: MIB // 2])
        until(lambda: disk.read_bytes()[:4096] == payload[:4096], what="a part of it is written")
        assert acl(processes, control, HERE)["dropped"] == 1
        with contextlib.suppress(ConnectionResetError):
            while other.recv(MIB):
                pass
        assert mine.ask(wire.WRITE, 4 * MIB, 4096, b"y" * 4096) == 0
        assert mine.ask(wire.READ, 4 * MIB, 4096) == 0
        assert wire.read_exactly(mine.socket, 4096) == b"y" * 4096
        assert hears(THERE, HERE, port) == b""
        assert acl(processes, control, "192.0.2.0/29", THERE)["dropped"] == 0
        assert greets(hears(THERE, HERE, port))
    assert disk.read_bytes()[MIB : 4 * MIB] == before[MIB : 4 * MIB]


def test_a_sender_that_is_taken_off_the_list_starts_again_when_it_is_back(
    processes: Processes, room: Path, disk: Path
) -> None:
    """Meanwhile its disk is the canonical one, and its copy is not."""
    control, copy = room / "control", room / "copy"
    options = ("--allow", HERE, "--control", str(control))
    receiver = processes.receive(copy, *options, listen=f"{HERE}:0")
    whole = digest(disk)
    sender = processes.send(disk, receiver, "--max-rate", "8M", "--unlink")
    until(lambda: (ask(str(control), "GET", "/status")["migration"]["covered"] or 0) > MIB)
    answer = acl(processes, control, ELSEWHERE)
    assert answer["dropped"] >= 1
    assert receiver.wait_event("restart")["why"] == "connection lost"
    refused = answer["refused"]
    until(lambda: acl(processes, control)["refused"] > refused, what="the sender tries again")
    verdict = processes.run(BLOCKMIG, "inspect", disk, copy)
    assert verdict.stdout.startswith(f"canonical: {disk} "), verdict.stdout
    assert sender.status is None
    acl(processes, control, "--any")
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait() == 0
    assert digest(copy) == whole
    assert not disk.exists()


def test_a_client_that_is_relayed_is_on_the_list_or_dropped(
    processes: Processes, room: Path, disk: Path
) -> None:
    control, copy = room / "control", room / "copy"
    where = ("--listen", f"{HERE}:0", "--allow", "192.0.2.0/24", "--control", control)
    old = serve(processes, disk, *where)
    target = f"unix:{room}/there"
    receiver = processes.receive(copy, "--size", SIZE, "--id", "web", listen=target)
    standby = ("--standby", "--id", "web", "--listen", target, "--log-format", "json")
    new = processes.start(BLOCKMIG, "serve", copy, *standby)
    new.wait_event("standby")
    with (
        socket.create_connection((HERE, port_of(old)), 10, (THERE, 0)) as other,
        contextlib.closing(wire.Client(old.uri)) as mine,
    ):
        assert greets(wire.read_exactly(other, 18))
        other.sendall(wire.FLAGS + wire.go())
        wire.read_exactly(other, 20)
        assert mine.ask(wire.FLUSH) == 0
        processes.checked(
            *(BLOCKMIG, "mirror", "--control", control, "--then", "relay", "--wait", "--id", "web"),
            *("--progress", "none", f"nbd+unix:///?socket={room}/there"),
        )
        assert receiver.wait() == 0
        assert mine.ask(wire.FLUSH) == 0
        status = ask(str(control), "GET", "/status")
        assert (status["state"], status["relay"]["clients"]) == ("relaying", 2)
        assert acl(processes, control, HERE)["dropped"] == 1
        with contextlib.suppress(ConnectionResetError):
            while other.recv(MIB):
                pass
        assert mine.ask(wire.FLUSH) == 0
        assert hears(THERE, HERE, port_of(old)) == b""
        assert ask(str(control), "GET", "/status")["relay"]["clients"] == 1


def test_a_list_of_ten_thousand_networks_is_taken_at_once(
    processes: Processes, room: Path, disk: Path
) -> None:
    """And one that is larger than a request may be is refused in so many words."""
    control = room / "control"
    running = serve(
        processes, disk, "--listen", f"{HERE}:0", "--allow", THERE, "--control", control
    )
    nets = [f"10.{number >> 8}.{number & 255}.0/28" for number in range(10_000)]
    answer = acl(processes, control, *nets, f"{ELSEWHERE}/32")
    assert len(answer["allow"]) == 10_001
    assert greets(hears(ELSEWHERE, HERE, port_of(running)))
    assert hears(THERE, HERE, port_of(running)) == b""
    many = [f"2001:db8:{number >> 8:x}:{number & 255:x}::/64" for number in range(50_000)]
    (room / "nets").write_text("\n".join(many))
    shell = f"exec {BLOCKMIG} acl --control {control} - < {room}/nets"
    too_many = processes.run("sh", "-c", shell)
    assert too_many.status == 1
    assert "at most 1048576" in too_many.stderr
    assert acl(processes, control)["allow"] == answer["allow"]


# Users.


def user_reads(processes: Processes, path: Path, user: int) -> Running:
    prefix = ("--reuid", str(user), "--regid", str(user), "--clear-groups")
    return processes.run("nbdinfo", "--size", f"nbd+unix:///?socket={path}", prefix=prefix)


def test_only_users_on_the_list_may_use_a_UNIX_socket(
    processes: Processes, open_room: Path, disk: Path
) -> None:
    path, control = open_room / "socket", open_room / "control"
    where = ("--listen", f"unix:{path}", "--control", control)
    running = serve(processes, disk, *where, "--allow-uid", USER)
    assert path.stat().st_mode & 0o777 == 0o666
    assert user_reads(processes, path, USER).stdout.strip() == str(SIZE)
    assert user_reads(processes, path, OTHER_USER).status != 0
    assert user_reads(processes, path, 0).status != 0, "root is not on it"
    assert len(running.events("not-allowed")) == 2
    assert f"the user {OTHER_USER}" in running.events("not-allowed")[0]["message"]
    assert ask(str(control), "GET", "/status")["allow_uid"] == [USER]


def test_a_mode_that_is_given_still_counts(
    processes: Processes, open_room: Path, disk: Path
) -> None:
    path = open_room / "socket"
    serve(processes, disk, "--listen", f"unix:{path}:mode=600", "--allow-uid", USER)
    assert path.stat().st_mode & 0o777 == 0o600
    assert user_reads(processes, path, USER).status != 0


def test_users_of_a_socket_that_systemd_has_made_are_looked_at(
    processes: Processes, open_room: Path, disk: Path
) -> None:
    path = open_room / "socket"
    program = (
        "import os, socket, sys; made = socket.socket(socket.AF_UNIX); path = sys.argv.pop(1);"
        "made.bind(path); os.chmod(path, 0o666); made.listen(5);" + ACTIVATE
    )
    command = (BLOCKMIG, "serve", disk, "--allow-uid", str(USER), "--log-format", "json")
    running = processes.start(*ITS_OWN, program, path, *command)
    running.wait_event("listening")
    assert user_reads(processes, path, USER).stdout.strip() == str(SIZE)
    assert user_reads(processes, path, OTHER_USER).status != 0


CONTROL = """
import socket, sys
handle = socket.socket(socket.AF_UNIX)
handle.settimeout(10)
handle.connect(sys.argv[1])
try:
    handle.sendall(b"GET /status HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    print(len(handle.recv(1 << 16)))
except OSError:
    print(0)
"""


def test_a_control_socket_answers_its_user_and_root_only(
    processes: Processes, open_room: Path
) -> None:
    """Whatever the mode of its file is by now."""
    disk = random_image(open_room / "disk", MIB)
    for name in (open_room, disk):
        os.chown(name, USER, USER)
    control = open_room / "control"
    where = ("--listen", f"unix:{open_room}/socket", "--control", control)
    running = serve(processes, disk, *where)
    control.chmod(0o666)

    def answered(user: int) -> bool:
        prefix = ("--reuid", str(user), "--regid", str(user), "--clear-groups")
        told = processes.run("/usr/bin/python3", "-c", CONTROL, control, prefix=prefix)
        assert told.status == 0, told.stderr
        return told.stdout.strip() != "0"

    assert answered(0)
    assert not answered(USER)
    assert running.wait_event("control-refused")["user"] == USER
    running.kill()
    assert control.exists()


# With TLS.


def test_with_TLS_the_lists_hold_as_well(processes: Processes, room: Path, disk: Path) -> None:
    """Before a word of TLS is said; and a sender is dropped in the middle of it."""
    make_hosts(room / "pki", "localhost,192.0.2.7", "peer")
    ours, theirs = f"{room}/pki/localhost", f"{room}/pki/peer"
    path = room / "socket"
    options = ("--tls-certificates", ours, "--allow-uid")
    for user, expected in ((os.geteuid(), 0), (USER, 1)):
        running = serve(processes, disk, "--listen", f"unix:{path}", *options, user)
        uri = f"{running.uri}&tls-certificates={theirs}&tls-hostname=localhost"
        told = processes.run("nbdinfo", "--size", uri)
        assert (told.status != 0) == expected, told.stderr
        assert len(running.events("not-allowed")) == expected
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    control, copy = room / "control", room / "copy"
    listen = ("--tls-certificates", ours, "--allow", HERE, "--control", str(control))
    receiver = processes.receive(copy, *listen, listen=f"{HERE}:0")
    assert receiver.uri.startswith("nbds://")
    sending = ("--tls-certificates", theirs, "--max-rate", "8M", "--unlink")
    whole = digest(disk)
    sender = processes.send(disk, receiver.uri, *sending)
    until(lambda: (ask(str(control), "GET", "/status")["migration"]["covered"] or 0) > MIB)
    refused = acl(processes, control, ELSEWHERE)["refused"]
    receiver.wait_event("restart")
    until(lambda: acl(processes, control)["refused"] > refused, what="the sender tries again")
    acl(processes, control, HERE)
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait() == 0
    assert digest(copy) == whole


# The guard.

ACTIVATE = (
    "os.dup2(made.fileno(), 3); os.set_inheritable(3, True);"
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
    "os.execv(sys.argv[1], sys.argv[1:])"
)
WAYS_OUT = ("--tls-certificates DIR", "--allow CIDR", "--insecure")


def refused(processes: Processes, *command: object) -> str:
    before = {path.name for path in processes.directory.iterdir() if "process-" not in path.name}
    ended = processes.run(*map(str, command), timeout=20)
    assert ended.status == 1, (ended.status, ended.stderr)
    assert ended.stderr.count("\n") == 1, ended.stderr
    after = {path.name for path in processes.directory.iterdir() if "process-" not in path.name}
    assert after == before
    return ended.stderr


@pytest.mark.parametrize(
    "where", ["0.0.0.0:0", "[::]:0", f"{HERE}:0", f"[{HERE6}]:0", "tcp:0", f"nbd://{HERE}"]
)
def test_a_command_does_not_listen_to_everybody_unasked(
    processes: Processes, room: Path, disk: Path, where: str
) -> None:
    for command in (
        ("receive", room / "new", "--size", "1M"),
        ("serve", disk),
        ("serve", "--standby", room / "new"),
    ):
        said = refused(processes, BLOCKMIG, *command, "--listen", where)
        assert f"{where} can be reached from other machines" in said
        for way in WAYS_OUT:
            assert way in said


def test_the_plugin_of_twistd_does_not_either(processes: Processes, room: Path) -> None:
    ended = processes.run(
        *(TWISTD, "-n", "--pidfile=", "blockmig", "receive", room / "new", "--size", "1M"),
        *("--listen", "0.0.0.0:0"),
    )
    assert ended.status == 1
    assert "can be reached from other machines" in ended.stdout + ended.stderr
    assert not (room / "new").exists()


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1"])
def test_a_socket_that_systemd_passes_is_looked_at(
    processes: Processes, disk: Path, address: str
) -> None:
    program = f"import os, socket, sys; made = socket.create_server(({address!r}, 0));" + ACTIVATE
    command = (*ITS_OWN, program, BLOCKMIG, "serve", disk, "--log-format", "json")
    if address == "127.0.0.1":
        processes.start(*command).wait_event("listening")
        return
    said = refused(processes, *command)
    assert "the socket that systemd passed can be reached from other machines" in said
    running = processes.start(*command, "--allow", THERE)
    running.wait_event("listening")
    port = int(urlsplit(running.events("listening")[0]["uri"]).port or 0)
    assert greets(hears(THERE, HERE, port))
    assert hears(ELSEWHERE, HERE, port) == b""


def test_who_insists_may_listen_to_everybody(processes: Processes, disk: Path) -> None:
    running = serve(processes, disk, "--listen", "0.0.0.0:0", "--insecure")
    assert "anybody there can read and write" in running.wait_event("exposed")["message"]
    assert greets(hears(THERE, HERE, port_of(running)))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--allow=10.0.0.0/33", "'10.0.0.0/33': an IPv4 address has 32 bits, and not 33"),
        ("--allow=192.0.2.7/24", "do you mean 192.0.2.0/24, or 192.0.2.7 alone?"),
        ("--allow=backup.example", "names are not looked up"),
        ("--allow-uid=no-such-user", "there is no user 'no-such-user'"),
        ("--allow-uid=0", "--allow-uid is for UNIX sockets, and none is listened on"),
    ],
)
def test_mistakes_are_told_in_one_line(
    processes: Processes, disk: Path, option: str, words: str
) -> None:
    said = refused(processes, BLOCKMIG, "serve", disk, "--listen", ANY_PORT, option)
    assert words in said
