"""TLS with other programs, both ways, each end with certificates of the same CA; those of GnuTLS
(libnbd, QEMU, nbdkit, nbd-server) among them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.disks import MIB, digest, random_image, sparse_image
from tests.support.pki import make_hosts
from tests.support.processes import ANY_PORT, BLOCKMIG, Processes, Running, until

SIZE = 12 * MIB
NOBODY = 65534


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "pki"
    make_hosts(directory, "localhost,127.0.0.1", "peer,localhost,127.0.0.1", "stranger")
    return directory


@pytest.fixture
def pki(made: Path, room: Path) -> Path:
    return Path(shutil.copytree(made, room / "pki"))


@pytest.fixture
def source(room: Path) -> Path:
    return sparse_image(
        room / "source", SIZE, {0: os.urandom(MIB + 512), 5 * MIB: os.urandom(3 * MIB)}
    )


@pytest.fixture(params=["tcp", "unix"])
def listen(request: pytest.FixtureRequest, room: Path) -> str:
    return ANY_PORT if request.param == "tcp" else f"unix:{room}/ours"


def listening(
    processes: Processes, pki: Path, command: str, path: Path, listen: str, *options: str
) -> Running:
    """`serve` or `receive`, which lets in only the peer."""
    running = processes.start(
        *[BLOCKMIG, command, str(path), "--listen", listen, "--log-format=json"],
        *["--tls-certificates", str(pki / "localhost"), "--allow-name", "peer", *options],
    )
    running.uri = str(running.wait_event("listening")["uri"])
    return running


def with_certificates(uri: str, pki: Path, host: str = "peer") -> str:
    """For programs that use libnbd."""
    return f"{uri}{'&' if '?' in uri else '?'}tls-certificates={pki / host}"


def qemu(uri: str, pki: Path, host: str = "peer") -> tuple[list[str], str]:
    """The options that make QEMU's credentials, and the image at C{uri}."""
    credentials = f"tls-creds-x509,id=tls,dir={pki / host},endpoint=client,verify-peer=yes"
    where = uri.split("/", 2)[2]
    if "socket=" in uri:
        place = f"server.type=unix,server.path={where.partition('socket=')[2]}"
        place += ",tls-hostname=localhost"
    else:
        address, _, port = where.partition("/")[0].partition(":")
        place = f"server.type=inet,server.host={address},server.port={port}"
    return ["--object", credentials], f"driver=nbd,{place},tls-creds=tls"


# Programs that connect to us.


def test_nbdinfo_and_nbdcopy_at_our_server(
    processes: Processes, room: Path, pki: Path, source: Path, listen: str
) -> None:
    server = listening(processes, pki, "serve", source, listen)
    uri = with_certificates(server.uri, pki)
    assert "newstyle-fixed with TLS, using structured packets" in processes.checked("nbdinfo", uri)
    assert json.loads(processes.checked("nbdinfo", "--json", uri))["exports"][0]["export-size"] == (
        SIZE
    )
    processes.checked("nbdcopy", "--connections=4", uri, room / "copy")
    assert digest(room / "copy") == digest(source)


def test_nbdcopy_sends_to_our_receiver(
    processes: Processes, room: Path, pki: Path, source: Path, listen: str
) -> None:
    options = ("--size", str(SIZE))
    receiver = listening(processes, pki, "receive", room / "copy", listen, *options)
    processes.checked("nbdcopy", "--flush", source, with_certificates(receiver.uri, pki))
    assert receiver.wait() == 0, receiver.stderr
    assert digest(room / "copy") == digest(source)


def test_qemu_img_sends_to_our_receiver(
    processes: Processes, room: Path, pki: Path, source: Path, listen: str
) -> None:
    options = ("--size", str(SIZE))
    receiver = listening(processes, pki, "receive", room / "copy", listen, *options)
    credentials, image = qemu(receiver.uri, pki)
    processes.checked(
        *["qemu-img", "convert", "-n", *credentials, "-f", "raw", "--target-image-opts"],
        *[str(source), image],
    )
    assert receiver.wait() == 0, receiver.stderr
    assert digest(room / "copy") == digest(source)


def test_qemu_img_compares_with_our_server(
    processes: Processes, pki: Path, source: Path, listen: str
) -> None:
    server = listening(processes, pki, "serve", source, listen)
    credentials, image = qemu(server.uri, pki)
    said = processes.checked(
        *["qemu-img", "compare", *credentials, "--image-opts"],
        *[f"driver=raw,file.driver=file,file.filename={source},file.locking=off", image],
    )
    assert "Images are identical." in said


def test_qemu_io_reads_and_writes_at_our_server(
    processes: Processes, pki: Path, source: Path, listen: str
) -> None:
    server = listening(processes, pki, "serve", source, listen)
    credentials, image = qemu(server.uri, pki)
    commands = ["-c", "write -P 7 1M 1M", "-c", "flush", "-c", "read -P 7 1M 1M"]
    said = processes.checked("qemu-io", *credentials, "--image-opts", *commands, image)
    assert "failed" not in said
    with source.open("rb") as file:
        file.seek(MIB)
        assert file.read(MIB) == b"\7" * MIB


# Done with libnbd's API, as its own test of TLS does it.
NBDSH = """
h.set_uri_allow_local_file(True)
h.add_meta_context("base:allocation")
h.connect_uri({uri!r})
assert h.get_tls_negotiated() is True
assert h.get_size() == {size}
data = bytearray(range(256)) * 2048
h.pwrite(data, 4096)
h.flush()
assert h.pread(len(data), 4096) == data
found = []
h.block_status(h.get_size(), 0, lambda name, offset, extents, error: found.append(extents))
assert found
for _ in range(50):
    assert h.pread(65536, 5 << 20) is not None
h.shutdown()
print("to the end")
"""


def test_nbdsh_at_our_server(processes: Processes, pki: Path, source: Path, listen: str) -> None:
    server = listening(processes, pki, "serve", source, listen)
    script = NBDSH.format(uri=with_certificates(server.uri, pki), size=SIZE)
    said = processes.checked("env", "PATH=/usr/bin:/bin", "nbdsh", "-c", script)
    assert "to the end" in said


def test_fio_at_our_server(processes: Processes, room: Path, pki: Path, source: Path) -> None:
    """fio lets a URI name no certificates: libnbd finds those of the user who runs it."""
    listen = f"unix:{room}/ours:mode=666"
    server = listening(processes, pki, "serve", source, listen)
    home = room / "home"
    own = shutil.copytree(pki / "peer", home / ".pki" / "libnbd")
    for path in (home, home / ".pki", own, *own.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    room.chmod(0o755)
    processes.checked(
        *["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"],
        *["env", f"--chdir={home}", f"HOME={home}", "fio", "--name=tls", "--ioengine=nbd"],
        *[f"--uri={server.uri}", "--rw=randwrite", "--bs=64k", "--iodepth=16", "--size=8M"],
        *["--verify=crc32c", "--time_based=0"],
    )
    assert server.events("tls-client")[0]["name"] == "peer"


@pytest.mark.parametrize("program", ["nbdinfo", "qemu-img"])
def test_a_stranger_is_not_served(
    processes: Processes, pki: Path, source: Path, program: str
) -> None:
    server = listening(processes, pki, "serve", source, ANY_PORT)
    if program == "nbdinfo":
        ended = processes.run("nbdinfo", with_certificates(server.uri, pki, "stranger"))
        plain = processes.run("nbdinfo", server.uri.replace("nbds", "nbd"))
    else:
        credentials, image = qemu(server.uri, pki, "stranger")
        ended = processes.run("qemu-img", "info", *credentials, "--image-opts", image)
        plain = processes.run("qemu-img", "info", server.uri.replace("nbds", "nbd"))
    assert ended.status == 1, ended.stdout
    assert plain.status == 1, plain.stdout
    assert "is for stranger, which is not on the list of names" in server.stderr


# Servers that we connect to.


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("127.0.0.1", 0))
        yield found.getsockname()[1]


def qemu_nbd(processes: Processes, pki: Path, image: Path, port: int) -> list[str]:
    credentials = f"tls-creds-x509,id=tls,dir={pki / 'peer'},endpoint=server,verify-peer=yes"
    return [
        *["qemu-nbd", "--object", credentials, "--tls-creds", "tls", "-f", "raw", "-t"],
        *["-x", "", "-b", "127.0.0.1", "-p", str(port), str(image)],
    ]


def nbdkit(processes: Processes, pki: Path, image: Path, port: int) -> list[str]:
    return [
        *["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "--tls=require"],
        *[f"--tls-certificates={pki / 'peer'}", "--tls-verify-peer", "file", str(image)],
    ]


def nbd_server(processes: Processes, pki: Path, image: Path, port: int) -> list[str]:
    own = pki / "peer"
    path = processes.directory / "nbd-server.conf"
    path.write_text(
        f"[generic]\nport = {port}\nlistenaddr = 127.0.0.1\nforce_tls = true\n"
        f"certfile = {own}/server-cert.pem\nkeyfile = {own}/server-key.pem\n"
        f"cacertfile = {own}/ca-cert.pem\n"
        f"[disk]\nexportname = {image}\nflush = true\nfua = true\ntrim = true\n"
    )
    return ["nbd-server", "-d", "-C", str(path)]


SERVERS = {"qemu-nbd": qemu_nbd, "nbdkit": nbdkit, "nbd-server": nbd_server}


@pytest.mark.parametrize("server", SERVERS)
def test_we_send_to_other_servers(
    processes: Processes, room: Path, pki: Path, source: Path, server: str
) -> None:
    before = digest(source)
    image = sparse_image(room / "image", SIZE, {})
    with free_port() as port:
        pass
    running = processes.start(*SERVERS[server](processes, pki, image, port))
    uri = f"nbds://localhost:{port}/{'disk' if server == 'nbd-server' else ''}"

    # Until it listens; nbd-server serves one client and ends, so nobody else may try.
    own = ["--tls-certificates", str(pki / "localhost"), "--retry"]
    ended = processes.run(BLOCKMIG, "send", str(source), uri, *own)
    # nbd-server ends without a word when it is told to, and resets the connection: what is left to
    # be known is whether it was told.
    expected = (0, 5) if server == "nbd-server" else (0,)
    assert ended.status in expected, (ended.stderr, running.stderr)
    if running.status is None:
        running.signal(15)
    running.wait()
    assert digest(image) == before


@pytest.mark.parametrize("server", ["qemu-nbd", "nbdkit"])
def test_a_server_that_requires_TLS_is_sent_nothing_without(
    processes: Processes, room: Path, pki: Path, server: str
) -> None:
    source = random_image(room / "small", MIB)
    image = sparse_image(room / "image", MIB, {})
    with free_port() as port:
        pass
    running = processes.start(*SERVERS[server](processes, pki, image, port))
    until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, what=f"{server} listens")
    ended = processes.run(BLOCKMIG, "send", str(source), f"nbd://localhost:{port}/")
    assert ended.status == 1
    assert "TLS" in ended.stderr
    ended = processes.run(BLOCKMIG, "send", str(source), f"nbds://localhost:{port}/")
    assert ended.status == 1  # it is no CA of this system that has signed
    assert "is not signed by a CA" in ended.stderr
    assert running.status is None
    assert digest(image) == digest(sparse_image(room / "zeroes", MIB, {}))
