"""TLS by the commands, as their users see it: certificates in directories, who is let in, and what
is said to whom is not."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from tests.support import wire
from tests.support.disks import MIB, digest, random_image
from tests.support.pki import DAY, NOW, Signer, make_hosts, write
from tests.support.processes import ANY_PORT, BLOCKMIG, TWISTD, Processes, Running, until

SIZE = 3 * MIB + 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "pki"
    make_hosts(directory, "localhost,127.0.0.1", "web2", "stranger")
    return directory


@pytest.fixture
def pki(made: Path, room: Path) -> Path:
    """Of three hosts, this one (127.0.0.1) among them."""
    return Path(shutil.copytree(made, room / "pki"))


@pytest.fixture
def disk(room: Path) -> Path:
    return random_image(room / "disk", SIZE)


def start(
    processes: Processes, command: str, path: Path, pki: Path, *options: object, listen: str = ""
) -> Running:
    """`serve` or `receive` with the certificates of this host; ready."""
    running = processes.start(
        *[BLOCKMIG, command, str(path), "--listen", listen or ANY_PORT, "--log-format=json"],
        *["--tls-certificates", str(pki / "localhost"), *map(str, options)],
    )
    running.uri = str(running.wait_event("listening")["uri"])
    return running


def send(processes: Processes, path: Path, uri: str, *options: object) -> Running:
    return processes.run(BLOCKMIG, "send", str(path), uri, *map(str, options), timeout=30)


def refused(ended: Running, *words: str, status: int = 1) -> None:
    assert ended.status == status, ended.stderr
    for word in words:
        assert word in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr


def mirror(processes: Processes, control: Path, uri: str, *options: object) -> None:
    processes.checked(
        *[BLOCKMIG, "mirror", "--control", str(control), "--wait", *map(str, options), uri]
    )


# Those who belong.


@pytest.mark.parametrize("listen", ["tcp", "unix"])
def test_a_disk_moves_to_a_receiver_that_lets_in_only_one(
    processes: Processes, room: Path, disk: Path, pki: Path, listen: str
) -> None:
    listen = f"nbds+unix:///?socket={room}/socket" if listen == "unix" else ANY_PORT
    before = digest(disk)
    options = ("--allow-name", "web2", "--allow-name", "web3")
    receiver = start(processes, "receive", room / "copy", pki, *options, listen=listen)
    assert receiver.uri.startswith("nbds")
    ended = send(processes, disk, receiver.uri, "--tls-certificates", pki / "web2", "--unlink")
    assert ended.status == 0, ended.stderr
    assert receiver.wait() == 0
    assert digest(room / "copy") == before
    assert receiver.events("tls-client")[0]["name"] == "web2"
    assert not receiver.events("exposed")


def test_the_URI_alone_can_say_it_all(
    processes: Processes, room: Path, disk: Path, pki: Path
) -> None:
    receiver = start(processes, "receive", room / "copy", pki, "--tls-verify-peer")
    uri = f"{receiver.uri}?tls-certificates={pki}/web2&tls-hostname=localhost&tls-verify-peer=true"
    assert send(processes, disk, uri).status == 0
    assert receiver.wait() == 0
    assert digest(room / "copy") == digest(disk)
    record = json.loads(Path(f"{disk}.MIGRATED").read_text())
    assert record["destination"]["address"] == receiver.uri


def test_a_check_and_a_dry_run_use_TLS(
    processes: Processes, room: Path, disk: Path, pki: Path
) -> None:
    receiver = start(processes, "receive", room / "copy", pki, "--allow-name", "web2")
    for command in (["check"], ["send", "--dry-run"]):
        arguments = [str(disk), receiver.uri, "--tls-certificates", str(pki / "web2")]
        assert "can begin" in processes.checked(BLOCKMIG, *command, *arguments)
    ended = processes.run(BLOCKMIG, "check", str(disk), receiver.uri.replace("nbds", "nbd"))
    assert ended.status == 1
    assert "TLS" in ended.stdout
    assert receiver.status is None


def test_a_status_says_who_is_connected(
    processes: Processes, room: Path, disk: Path, pki: Path
) -> None:
    control = room / "control"
    server = start(processes, "serve", disk, pki, "--tls-verify-peer", "--control", control)
    script = (
        "import time; h.set_uri_allow_local_file(True); "
        f"h.connect_uri('{server.uri}?tls-certificates={pki}/web2'); "
        "print('there', flush=True); time.sleep(60)"
    )
    # nbdsh runs the python3 that comes first, and python3-libnbd is Debian's.
    client = processes.start("env", "PATH=/usr/bin:/bin", "nbdsh", "-c", script)
    until(lambda: client.stdout, what="the client is connected")
    text = processes.checked(BLOCKMIG, "status", "--control", str(control))
    assert "(web2)" in text
    assert f"listening on {server.uri}" in text
    status = json.loads(processes.checked(BLOCKMIG, "status", "--control", str(control), "--json"))
    assert status["tls"] == "require"
    assert (status["clients"][0]["tls"], status["clients"][0]["name"]) == ("TLSv1.3", "web2")


@pytest.mark.parametrize("command", ["serve", "receive"])
def test_twistd_has_the_same_options(
    processes: Processes, room: Path, disk: Path, pki: Path, command: str
) -> None:
    path = disk if command == "serve" else room / "copy"
    running = processes.start(
        *[TWISTD, "-n", "--pidfile=", "blockmig", command, str(path), "--listen", ANY_PORT],
        *["--log-format=json", "--tls-certificates", str(pki / "localhost")],
        *(["--size", str(SIZE)] if command == "receive" else []),
    )
    uri = str(running.wait_event("listening")["uri"])
    assert "tls" in processes.checked("nbdinfo", f"{uri}?tls-certificates={pki}/web2").lower()


# Mirrors and relays.


def test_a_mirror_and_the_relay_after_it_use_TLS_and_so_after_a_restart(
    processes: Processes, room: Path, disk: Path, pki: Path
) -> None:
    """The server has certificates of its own, which it shows to the new server too."""
    before, control = digest(disk), room / "control"
    receiver = start(processes, "receive", room / "copy", pki, "--allow-name", "localhost")
    options = ("--tls-verify-peer", "--control", control, "--linger", "forever")
    server = start(processes, "serve", disk, pki, *options)
    new = f"nbds+unix:///?socket={room}/new&tls-hostname=localhost"
    mirror(processes, control, receiver.uri, "--then", "relay", "--relay-to", new)
    assert receiver.wait() == 0
    assert digest(room / "copy") == before
    listen = f"nbds+unix:///?socket={room}/new"
    start(processes, "serve", room / "copy", pki, "--tls-verify-peer", listen=listen)
    mine = f"?tls-certificates={pki}/web2"
    info = json.loads(processes.checked("nbdinfo", "--json", server.uri + mine))
    assert info["exports"][0]["export-size"] == SIZE
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    again = start(processes, "serve", disk, pki, *options)
    info = json.loads(processes.checked("nbdinfo", "--json", again.uri + mine))
    assert info["exports"][0]["export-size"] == SIZE


def test_a_mirror_may_show_certificates_of_its_own(
    processes: Processes, room: Path, disk: Path, pki: Path
) -> None:
    control = room / "control"
    receiver = start(processes, "receive", room / "copy", pki, "--allow-name", "web2")
    server = processes.start(
        *[BLOCKMIG, "serve", str(disk), "--listen", ANY_PORT, "--log-format=json"],
        *["--control", str(control)],
    )
    server.wait_event("listening")
    mirror(processes, control, receiver.uri, "--tls-certificates", pki / "web2")
    assert (receiver.wait(), server.wait()) == (0, 0)
    assert digest(room / "copy") == digest(disk)


# Those who do not.


def test_strangers_are_refused_by_a_receiver_and_told_why(
    processes: Processes, room: Path, disk: Path, pki: Path
) -> None:
    """One after another, and then the right one is served."""
    before = digest(disk)
    receiver = start(processes, "receive", room / "copy", pki, "--allow-name", "web2")
    plain = receiver.uri.replace("nbds", "nbd")
    refused(send(processes, disk, plain), "TLS")
    none = room / "none"
    none.mkdir()
    shutil.copy(pki / "ca-cert.pem", none)
    own = ("--tls-certificates", pki / "web2")
    refused(
        send(processes, disk, receiver.uri, "--tls-certificates", none), "certificate", status=1
    )
    refused(send(processes, disk, receiver.uri, "--tls-certificates", pki / "stranger"), status=1)
    other = Signer("Another CA").fill(room / "other", "client", "web2")
    refused(
        send(processes, disk, receiver.uri, "--tls-certificates", other),
        "is not signed by a CA in our ca-cert.pem",
    )
    write(other / "ca-cert.pem", (pki / "ca-cert.pem").read_bytes())
    refused(
        send(processes, disk, receiver.uri, "--tls-certificates", other),
        "client-cert.pem: is not signed by the CA in",
    )
    refused(
        send(processes, disk, receiver.uri, *own, "--tls-hostname", "web9"),
        "is not for web9, but for localhost, 127.0.0.1",
    )
    said = receiver.stderr
    assert "is for stranger, which is not on the list of names" in said
    assert "shown no certificate" in said
    assert "Traceback" not in said
    assert (room / "copy").stat().st_size == 0 if (room / "copy").exists() else True
    assert not receiver.events("attempt")
    assert digest(disk) == before
    assert send(processes, disk, receiver.uri, *own).status == 0
    assert receiver.wait() == 0
    assert digest(room / "copy") == before


def test_a_sender_that_is_to_use_TLS_does_not_go_on_without(
    processes: Processes, room: Path, disk: Path, pki: Path
) -> None:
    receiver = processes.start(
        *[BLOCKMIG, "receive", str(room / "copy"), "--listen", ANY_PORT, "--log-format=json"]
    )
    uri = str(receiver.wait_event("listening")["uri"])
    own = ("--tls-certificates", pki / "web2")
    refused(send(processes, disk, uri.replace("nbd", "nbds"), *own), "TLS")
    refused(send(processes, disk, uri, *own, "--tls", "require"), "TLS")
    assert not receiver.events("attempt")


@pytest.mark.parametrize("option", [(), ("--tls", "require")])
def test_bad_certificates_are_refused_before_anything_is_touched(
    processes: Processes, room: Path, disk: Path, pki: Path, option: tuple[str, ...]
) -> None:
    (pki / "localhost" / "server-key.pem").chmod(0o644)
    (pki / "web2" / "client-key.pem").chmod(0o644)
    for command in (
        ["receive", str(room / "copy"), "--tls-certificates", str(pki / "localhost"), *option],
        ["serve", str(disk), "--tls-certificates", str(pki / "localhost"), *option],
        ["send", str(disk), "nbds://127.0.0.1:1", "--tls-certificates", str(pki / "web2"), *option],
    ):
        ended = processes.run(BLOCKMIG, *command)
        refused(ended, "others have access to the key (mode 0644): chmod 600 ")
        assert ended.stderr.count("\n") == 1
    assert not (room / "copy").exists()


def test_what_was_done_already_needs_no_certificates(
    processes: Processes, room: Path, disk: Path, pki: Path
) -> None:
    """The same commands exit with 0 when they are run again, though these have expired since."""
    receiver = start(processes, "receive", room / "copy", pki, "--allow-name", "web2")
    own = ("--tls-certificates", pki / "web2")
    assert send(processes, disk, receiver.uri, *own).status == 0
    assert receiver.wait() == 0
    for key in pki.rglob("*-key.pem"):
        key.unlink()
    again = send(processes, disk, receiver.uri, *own)
    assert again.status == 0, again.stderr
    again = processes.run(*receiver.arguments)
    assert again.status == 0, again.stderr


def test_a_port_that_others_can_reach_is_warned_of_unless_they_need_a_certificate(
    processes: Processes, disk: Path, pki: Path
) -> None:
    every = "tcp:0:interface=0.0.0.0"
    server = start(processes, "serve", disk, pki, listen=every)
    (exposed,) = server.events("exposed")
    assert "without certificates of clients (--tls-verify-peer)" in exposed["message"]
    assert exposed["uri"].startswith("nbds://")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    server = start(processes, "serve", disk, pki, "--tls-verify-peer", listen=every)
    assert not server.events("exposed")


def test_with_TLS_on_both_kinds_of_clients_are_served(
    processes: Processes, disk: Path, pki: Path
) -> None:
    server = start(processes, "serve", disk, pki, "--tls", "on")
    assert server.uri.startswith("nbd://")
    with wire.client(server.uri) as client:
        assert client.ask(wire.READ, 0, 512) == 0
    secure = server.uri.replace("nbd", "nbds") + f"?tls-certificates={pki}/web2"
    assert "with TLS" in processes.checked("nbdinfo", secure)


# Renewal.


def test_a_receiver_reads_its_certificates_for_each_connection(
    processes: Processes, room: Path, disk: Path, pki: Path
) -> None:
    """Those that are not valid yet too, which is tried again."""
    receiver = start(processes, "receive", room / "copy", pki)
    ca = Signer("Another CA")
    ca.fill(pki / "localhost", "server", "localhost", begin=NOW + DAY / 2)
    ca.fill(room / "mine", "client", "web2")
    options = ("--tls-certificates", room / "mine", "--tls-hostname", "localhost")
    refused(send(processes, disk, receiver.uri, *options))
    assert "is not valid before" in receiver.stderr
    ca.fill(pki / "localhost", "server", "localhost")
    assert send(processes, disk, receiver.uri, *options).status == 0
    assert receiver.wait() == 0


def test_a_server_reads_its_certificates_on_SIGHUP(
    processes: Processes, room: Path, disk: Path, pki: Path
) -> None:
    server = start(processes, "serve", disk, pki)
    old, new = (f"?tls-certificates={where}" for where in (pki / "web2", room / "mine"))
    host = server.uri.replace("127.0.0.1", "localhost")
    ca = Signer("Another CA")
    ca.fill(room / "mine", "client", "web2")

    def hang_up(words: str, count: int) -> None:
        server.signal(signal.SIGHUP)
        server.wait_event("certificates", count=count)
        assert words in server.events("certificates")[-1]["message"]

    ca.fill(pki / "localhost", "server", "localhost", end=NOW - DAY / 2)
    assert processes.run("nbdinfo", host + old).status == 0
    hang_up("were not replaced", 1)
    assert "server-cert.pem: has expired" in server.stderr
    assert processes.run("nbdinfo", host + old).status == 0
    ca.fill(pki / "localhost", "server", "localhost")
    hang_up("were read again", 2)
    assert processes.run("nbdinfo", host + old).status != 0
    assert processes.run("nbdinfo", host + new).status == 0
