"""`move --data tls`: the data beside the ssh connection, through a real sshd."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, Final

import pytest
from tests.support.disks import MIB, digest, random_image
from tests.support.moving import (
    KILLS,
    Round,
    inspected,
    is_ssh,
    kill_something,
    message,
    move_live,
    processes_with,
    receivers,
    sshds_of,
)
from tests.support.pki import make_hosts
from tests.support.processes import BLOCKMIG, FULL, Processes, Running, until
from tests.support.sshd import HOST, SSHServer
from twisted.internet import reactor

from blockmig.cli.direct_tls import NO_ADDRESS, DirectTLS
from blockmig.runtime import Runtime

MARK = b"the mark of this disk, which nobody on the way may see " * 20
WITHOUT_TLS = (
    "import sys; sys.modules['OpenSSL'] = None; from blockmig.cli.main import main; "
    "sys.argv[0] = 'blockmig'; main()"
)


@pytest.fixture
def server(processes: Processes, room: Path) -> SSHServer:
    made = SSHServer(processes, room)
    made.options = ("--data", "tls")
    return made


@pytest.fixture
def source(room: Path) -> Path:
    return random_image(room / "source", 9 * MIB + 5)


def where(move: Running) -> tuple[str, int]:
    """Where its receiver listens, once the data goes there."""
    host, _, port = move.wait_event("data")["where"].rpartition(":")
    return host, int(port)


def wrapped(server: SSHServer, text: str) -> None:
    """Have a script run the receiver there; C{$blockmig} is what it has to start."""
    script = server.room / "wrapped"
    script.write_text(f"#!/bin/bash\nblockmig={server.remote}\n{text}\n")
    script.chmod(0o755)
    server.remote = str(script)


def said_to_listen_at(server: SSHServer, port: int) -> None:
    """Have the receiver say that it has another port than it has: one that leads elsewhere."""
    wrapped(
        server,
        f'exec $blockmig "$@" 2> >(sed -u -E "s|(nbds://[0-9.]+):[0-9]+|\\1:{port}|g" >&2)',
    )


CLOSED: Final = 1
"""A port on which nobody listens, and which the system gives to nobody who asks for any."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


# The data.


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "deleted"])
def test_a_disk_is_moved(
    processes: Processes, server: SSHServer, room: Path, source: Path, kept: bool
) -> None:
    before = digest(source)
    for _ in range(2):
        move = server.move(source, room / "copy", *([] if kept else ["--unlink"]))
        assert move.wait() == 0, move.stderr
        assert digest(room / "copy") == before
        assert source.exists() == kept
    assert inspected(processes, room / "copy") == "canonical"
    assert not receivers(room / "copy")


def test_nothing_of_it_goes_through_ssh(server: SSHServer, room: Path, source: Path) -> None:
    move = server.move(source, room / "copy", "--max-rate", "4M")
    host, port = where(move)
    assert host == HOST
    assert port != server.port
    (ssh,) = [pid for pid in processes_with(str(room / "copy")) if is_ssh(pid)]
    assert b"\0-L\0" not in Path(f"/proc/{ssh}/cmdline").read_bytes()
    assert move.wait() == 0, move.stderr


class Capture:
    """Everything that goes over the loopback device meanwhile."""

    def __enter__(self) -> Capture:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.2)
        self._stopped = threading.Event()
        self._packets: list[bytes] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def _read(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                self._packets.append(self._socket.recv(1 << 17))

    def __exit__(self, *_: Any) -> None:
        self._stopped.set()
        self._thread.join()
        self._socket.close()

    def has(self, mark: bytes) -> bool:
        return any(mark in packet for packet in self._packets)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may capture packets")
def test_nobody_on_the_way_sees_the_mark_of_the_disk(
    processes: Processes, server: SSHServer, room: Path
) -> None:
    disk = room / "marked"
    disk.write_bytes(MARK * 500)
    with Capture() as capture:
        move = server.move(disk, room / "copy")
        assert move.wait() == 0, move.stderr
    assert (room / "copy").read_bytes() == MARK * 500
    assert not capture.has(MARK[:50])
    with Capture() as capture:  # without TLS it would have been seen
        plain = processes.receive(room / "plain", "--size", str(len(MARK) * 500))
        uri = plain.wait_event("listening")["uri"]
        processes.checked(BLOCKMIG, "send", room / "copy", uri, "--overwrite", "--id", "again")
    assert capture.has(MARK[:50])


def test_certificates_and_secret_are_on_no_command_line_and_in_no_file(
    server: SSHServer, room: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = room / "tmp"
    places.mkdir()
    monkeypatch.setenv("TMPDIR", str(places))
    wrapped(server, f'tee {server.room}/input | exec $blockmig "$@"')
    move = server.move(source, room / "copy", "--max-rate", "6M")
    move.wait_event("attempt")
    secret, *lines = (server.room / "input").read_text().splitlines()
    assert lines.count("-----BEGIN PRIVATE KEY-----") == 1
    key = lines[lines.index("-----BEGIN PRIVATE KEY-----") + 1]
    telling = [one.encode() for one in (secret, key, "BEGIN PRIVATE KEY")]
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                text = (folder / name).read_bytes()
                # pytest shows in its own which test is running, and forks processes from itself.
                assert not [one for one in telling if one in text], (folder, name)
    assert move.wait() == 0, move.stderr
    (server.room / "input").unlink()
    assert "PRIVATE KEY" not in move.stderr
    assert not [one for one in telling if one.decode() in move.stderr]
    assert not list(places.iterdir())
    for path in room.rglob("*"):
        if path.is_file() and path != server.room / "user" and path != server.room / "host":
            assert not [one for one in telling if one in path.read_bytes()], path


def test_strangers_are_refused_at_the_port(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    own, _ = make_hosts(room / "pki", "localhost,127.0.0.1", "other")
    stranger = random_image(room / "stranger", 9 * MIB + 5, seed=2)
    move = server.move(source, room / "copy", "--max-rate", "4M")
    host, port = where(move)
    assert processes.run("nbdinfo", f"nbd://{host}:{port}").status != 0
    for uri, words in {
        f"nbds://{host}:{port}?tls-certificates={own}&tls-verify-peer=0": "does not know the CA",
        f"nbds://{host}:{port}?tls-verify-peer=0": "wants a certificate",
        f"nbd://{host}:{port}": "requires TLS",
    }.items():
        sent = processes.run(BLOCKMIG, "send", stranger, uri, "--overwrite")
        assert sent.status == 1, sent.stderr
        assert words in sent.stderr
    assert move.wait() == 0, move.stderr
    assert digest(room / "copy") == digest(source)
    assert len(move.events("attempt")) == 1


# Where the port is not reached.


def test_a_port_that_is_not_reached_ends_it_with_a_word(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    said_to_listen_at(server, CLOSED)
    move = server.move(source, room / "copy")
    assert move.wait() == 1
    said = message(move)
    assert said.startswith(f"{HOST}: its port for the data, {HOST}:"), said
    assert "cannot be reached from here" in said
    assert "--data ssh" in said
    assert not move.events("attempt")
    assert not (room / "copy").exists()
    assert not Path(f"{source}.MIGRATING").exists()
    assert inspected(processes, source) == "canonical"
    assert not receivers(room / "copy")


@pytest.mark.slow
def test_a_port_that_is_not_reached_is_tried_again_if_asked(
    server: SSHServer, room: Path, source: Path
) -> None:
    said_to_listen_at(server, CLOSED)
    move = server.move(source, room / "copy", "--retry")
    move.wait_event("not-reached", 60, count=2)
    move.signal(signal.SIGTERM)
    assert move.wait() == 4
    assert not move.events("attempt")
    assert not receivers(room / "copy")


def test_a_stop_while_the_port_says_nothing_is_prompt(
    server: SSHServer, room: Path, source: Path
) -> None:
    with socket.create_server((HOST, 0)) as silent:
        said_to_listen_at(server, silent.getsockname()[1])
        move = server.move(source, room / "copy")
        connection, _ = silent.accept()
        move.signal(signal.SIGINT)
        assert move.wait() == 4
        connection.close()
    assert not move.events("not-reached")  # which would have been 10 seconds later
    assert f"{source} was not retired and is the canonical copy" in message(move)
    assert not (room / "copy").exists()


def test_with_auto_it_goes_through_ssh_then(server: SSHServer, room: Path, source: Path) -> None:
    said_to_listen_at(server, CLOSED)
    move = server.move(source, room / "copy", "--data", "auto")
    assert move.wait() == 0, move.stderr
    (event,) = move.events("fallback")
    assert "so the data goes through ssh" in event["message"]
    assert len(move.events("attempt")) == 1
    assert digest(room / "copy") == digest(source)


@pytest.mark.slow
def test_with_auto_it_goes_over_TLS_where_it_can(
    server: SSHServer, room: Path, source: Path
) -> None:
    move = server.move(source, room / "copy", "--data", "auto")
    assert move.wait() == 0, move.stderr
    assert move.events("data")
    assert not move.events("fallback")


@pytest.mark.slow
def test_a_port_that_leads_to_somebody_else_gets_nothing(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    other, _ = make_hosts(room / "pki", "127.0.0.1", "other")
    elsewhere = processes.receive(
        *(room / "elsewhere", "--size", str(9 * MIB + 5)),
        *("--listen", f"{HOST}:{free_port()}", "--tls-certificates", other),
    )
    _, _, port = elsewhere.wait_event("listening")["uri"].strip("/").rpartition(":")
    said_to_listen_at(server, int(port))
    move = server.move(source, room / "copy")
    assert move.wait() == 1
    assert "is not signed by a CA" in message(move)
    assert not elsewhere.events("attempt")


def test_an_address_that_the_host_has_not(server: SSHServer, room: Path, source: Path) -> None:
    move = server.move(source, room / "copy", "--data-address", "192.0.2.77")
    assert move.wait() == 1
    said = message(move)
    assert said.startswith(f"{HOST}: cannot listen on 192.0.2.77:0: Cannot assign"), said
    assert "--data ssh" in said
    assert not (room / "copy").exists()


def test_the_port_may_be_chosen(server: SSHServer, room: Path, source: Path) -> None:
    port = free_port()
    options = ("--data-port", port, "--data-address", "127.0.0.3")
    with socket.create_server(("127.0.0.3", port)):
        move = server.move(source, room / "copy", *options)
        assert move.wait() == 1
        assert "another program listens there" in message(move)
    move = server.move(source, room / "copy", *options)
    assert where(move) == ("127.0.0.3", port)
    assert move.wait() == 0, move.stderr


def test_a_host_without_pyOpenSSL_is_named(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    python = Path(BLOCKMIG).parent / "python"
    here = server.command(source, room / "copy")
    move = processes.start(str(python), "-c", WITHOUT_TLS, *here[1:])
    assert move.wait() == 1
    assert message(move).startswith("on this host, TLS needs pyOpenSSL"), move.stderr
    wrapped(server, f'exec {python} -c "{WITHOUT_TLS}" "$@"')
    move = server.move(source, room / "copy")
    assert move.wait() == 1
    assert message(move).startswith(f"{HOST}: TLS needs pyOpenSSL"), move.stderr
    assert "--data ssh" in message(move)
    move = server.move(source, room / "copy", "--data", "auto")
    assert move.wait() == 0, move.stderr
    assert len(move.events("fallback")) == 1


@pytest.mark.parametrize(
    ("connection", "listens"),
    [
        ("192.0.2.1 40000 192.0.2.7 22", "--listen=192.0.2.7:7"),
        ("2001:db8::1 40000 2001:db8::7 22", "--listen=[2001:db8::7]:7"),
        ("", None),
    ],
)
def test_the_shell_there_knows_where_ssh_has_come(connection: str, listens: str | None) -> None:
    script = DirectTLS(Runtime.of(reactor), "web2", None, 7).script("echo", ["--id=it's"])
    ran = subprocess.run(
        ["/bin/sh", "-c", script],
        env={"SSH_CONNECTION": connection},
        capture_output=True,
        text=True,
        check=False,
    )
    if listens is None:
        assert (ran.returncode, ran.stdout) == (NO_ADDRESS, "")
    else:
        words = f"receive {listens} --tls-certificates=- --tls-verify-peer --id=it's\n"
        assert (ran.returncode, ran.stdout) == (0, words)


# Whatever ends.


def test_a_stop_says_what_became_of_both_sides(server: SSHServer, room: Path, source: Path) -> None:
    move = server.move(source, room / "copy", "--max-rate", "1M")
    move.wait_event("attempt")
    os.killpg(move.pid, signal.SIGINT)
    assert move.wait() == 4
    said = message(move)
    assert f"{source} was not retired and is the canonical copy" in said
    assert f"{HOST}:{room}/copy: stopped, since standard input has closed" in said
    assert not receivers(room / "copy")


@pytest.mark.parametrize("victim", ["ssh", pytest.param("receiver", marks=pytest.mark.slow)])
def test_what_has_died_is_started_again(
    server: SSHServer, room: Path, source: Path, victim: str
) -> None:
    move = server.move(source, room / "copy", "--max-rate", "4M")
    move.wait_event("attempt")
    found = {
        "ssh": lambda: [
            pid for pid in processes_with(f"\0{server.room}/ssh_config\0") if is_ssh(pid)
        ],
        "receiver": lambda: receivers(room / "copy"),
    }[victim]()
    assert found
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    assert move.wait() == 0, move.stderr
    assert digest(room / "copy") == digest(source)
    assert len(move.events("attempt")) > 1


def test_a_receiver_that_was_left_behind_gives_its_port_away(
    server: SSHServer, room: Path, source: Path
) -> None:
    port = free_port()
    move = server.move(source, room / "copy", "--max-rate", "1M", "--data-port", port)
    move.wait_event("attempt")
    (old,) = until(lambda: receivers(room / "copy"))
    # Its sshd does not notice that nobody is there any more: it is stopped.
    parents = sshds_of(old)
    for pid in parents:
        os.kill(pid, signal.SIGSTOP)
    try:
        move.kill()
        again = server.move(source, room / "copy", "--data-port", port)
        assert again.wait() == 0, again.stderr
        assert where(again) == (HOST, port)
        assert [one for one in again.events("far") if "ended the receiver" in one["message"]]
    finally:
        for pid in parents:
            os.kill(pid, signal.SIGCONT)
    assert digest(room / "copy") == digest(source)


@pytest.mark.parametrize("kind", ["deleted", pytest.param("device", marks=pytest.mark.slow)])
def test_whatever_is_killed_the_same_command_ends_well(
    processes: Processes, server: SSHServer, room: Path, kind: str
) -> None:
    killed, kills = 0, KILLS if FULL else 2
    while killed < kills:
        seed = f"tls {kind} {killed} {os.environ.get('BLOCKMIG_SEED', '1')}"
        one = Round(processes, server, room / f"round-{killed}", kind, seed)
        killed += one.run(kills - killed)


@pytest.mark.slow
def test_what_one_way_has_begun_the_other_may_finish(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    for data in ("tls", "ssh", "tls"):
        move = server.move(source, room / "copy", "--max-rate", "2M", "--data", data)
        move.wait_event("attempt")
        move.kill()
    move = server.move(source, room / "copy", "--data", "ssh")
    assert move.wait() == 0, move.stderr
    assert digest(room / "copy") == digest(source)


# A disk that is served.


@pytest.fixture
def served(processes: Processes, room: Path, source: Path) -> Running:
    """A server of the disk, with a control socket."""
    server = processes.start(
        *(BLOCKMIG, "serve", "--file", source, "--listen", f"unix:{room}/clients"),
        *("--control", room / "control", "--log-format", "json"),
    )
    server.wait_event("listening")
    return server


@pytest.mark.parametrize("data", ["tls", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_served_disk_is_moved(
    processes: Processes, server: SSHServer, room: Path, source: Path, served: Running, data: str
) -> None:
    before = digest(source)
    if data == "auto":
        said_to_listen_at(server, CLOSED)
    move = move_live(processes, server, room, "--data", data)
    assert move.wait() == 0, move.stderr
    assert served.wait() == 0, served.stderr
    assert len(move.events("data")) == int(data == "tls")
    assert digest(room / "copy") == before
    assert inspected(processes, source) == "not canonical"
    assert inspected(processes, room / "copy") == "canonical"
    assert "PRIVATE KEY" not in served.stderr + move.stderr


@pytest.mark.slow
def test_a_served_disk_is_moved_though_ssh_dies(
    processes: Processes, server: SSHServer, room: Path, source: Path, served: Running
) -> None:
    before = digest(source)
    move = move_live(processes, server, room, "--max-rate", "3M")
    move.wait_event("mirroring")
    for pid in processes_with(f"\0{server.room}/ssh_config\0"):
        if is_ssh(pid):
            os.kill(pid, signal.SIGKILL)
    assert move.wait() == 0, move.stderr
    assert served.wait() == 0, served.stderr
    assert digest(room / "copy") == before


@pytest.mark.slow
def test_a_served_disk_is_moved_whatever_is_killed(
    processes: Processes, server: SSHServer, room: Path, source: Path, served: Running
) -> None:
    before = digest(source)
    generator = random.Random(f"live tls {os.environ.get('BLOCKMIG_SEED', '1')}")
    for _ in range(KILLS):
        if served.status is not None:
            break
        move = move_live(processes, server, room, "--max-rate", "2M")
        until(lambda move=move: move.status is not None or move.events("mirroring"))
        kill_something(generator, move, room / "copy")
        move.kill()
        verdicts = inspected(processes, source), inspected(processes, room / "copy")
        assert verdicts not in (("canonical",) * 2, ("not canonical",) * 2)
    if served.status is None:
        move = move_live(processes, server, room)
        assert move.wait() == 0, move.stderr
    assert served.wait() == 0, served.stderr
    assert server.move(source, room / "copy").wait() == 0
    assert digest(room / "copy") == before


def test_a_retired_source_is_finished_by_the_way_that_leads_there(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    assert server.move(source, room / "copy").wait() == 0
    # As if both ends had died when the source was retired.
    path, there = Path(f"{source}.MIGRATED"), room / "copy.RECEIVED"
    record = json.loads(path.read_text())
    record.update(confirmed="", record="MIGRATING", phase="copied")
    Path(f"{source}.MIGRATING").write_text(json.dumps(record))
    record["record"] = "MIGRATED"
    path.write_text(json.dumps(record))
    received = json.loads(there.read_text())
    received.update(confirmed="", record="INCOMPLETE", phase="copied")
    (room / "copy.INCOMPLETE").write_text(json.dumps(received))
    there.unlink()
    said_to_listen_at(server, CLOSED)
    move = server.move(source, room / "copy")
    assert move.wait() == 5, move.stderr
    assert "its port for the data" in message(move)
    move = server.move(source, room / "copy", "--data", "auto")
    assert move.wait() == 0, move.stderr
    assert not move.events("attempt")
    assert json.loads(path.read_text())["confirmed"]
    assert inspected(processes, room / "copy") == "canonical"
