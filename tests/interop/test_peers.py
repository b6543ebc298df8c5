"""Real NBD peers, as senders to us and as destinations of ours."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from tests.support.disks import MIB, digest, random_image, size_of, sparse_image
from tests.support.processes import ANY_PORT, Processes, until

SIZE = 24 * MIB


@pytest.fixture
def source(room: Path) -> Path:
    """Data, holes, and zeroes that are written."""
    return sparse_image(
        room / "source",
        SIZE,
        {
            0: os.urandom(3 * MIB + 512),
            5 * MIB: bytes(2 * MIB),
            9 * MIB + 4096: os.urandom(6 * MIB),
        },
    )


def same(processes: Processes, source: Path, image: str | Path, kind: str = "raw") -> None:
    """`qemu-img compare` says identical, and the size is too."""
    said = processes.checked("qemu-img", "compare", "-f", "raw", "-F", kind, source, image)
    assert "Images are identical." in said
    if isinstance(image, Path) and kind == "raw":
        assert size_of(image) == size_of(source)


# Into blockmig.

CONVERT = ("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw")
SENDERS = {
    "qemu-img": CONVERT,
    "qemu-img -W -m 16": (*CONVERT, "-W", "-m", "16"),
    "qemu-img -S 0": (*CONVERT, "-S", "0"),
    "nbdcopy": ("nbdcopy",),
    "nbdcopy --flush": ("nbdcopy", "--flush"),
    "nbdcopy --connections=4 --threads=4": ("nbdcopy", "--connections=4", "--threads=4"),
    "nbdcopy --synchronous": ("nbdcopy", "--synchronous"),
    "nbdcopy --allocated": ("nbdcopy", "--allocated"),
    "nbdcopy --request-size=2097152": ("nbdcopy", "--request-size=2097152"),
}


@pytest.mark.parametrize("oldstyle", [False, True], ids=["newstyle", "oldstyle"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("sender", SENDERS)
def test_foreign_senders_can_send_to_blockmig(
    processes: Processes, room: Path, source: Path, sender: str, kind: str, oldstyle: bool
) -> None:
    listen = ANY_PORT if kind == "tcp" else f"unix:{room}/socket"
    options = ["--oldstyle"] if oldstyle else []
    receiver = processes.receive(room / "destination", "--size", SIZE, *options, listen=listen)
    processes.checked(*SENDERS[sender], source, receiver.uri)
    assert receiver.wait(10) == 0, receiver.stderr
    same(processes, source, room / "destination")
    assert digest(room / "destination") == digest(source)


@pytest.mark.parametrize("oldstyle", [False, True], ids=["newstyle", "oldstyle"])
def test_blockmig_can_send_to_blockmig(
    processes: Processes, room: Path, source: Path, oldstyle: bool
) -> None:
    options = ["--oldstyle"] if oldstyle else []
    receiver = processes.receive(room / "destination", "--size", SIZE, *options)
    sender = processes.send(source, receiver, "--unlink")
    before = digest(source)
    assert sender.wait() == 0, sender.stderr
    assert receiver.wait(10) == 0
    assert digest(room / "destination") == before


def test_nbdcopy_can_send_a_disk_of_an_odd_size(processes: Processes, room: Path) -> None:
    source = random_image(room / "source", 3 * MIB + 777)
    receiver = processes.receive(room / "destination", "--size", size_of(source))
    processes.checked("nbdcopy", source, receiver.uri)
    assert receiver.wait(10) == 0
    assert digest(room / "destination") == digest(source)
    assert size_of(room / "destination") == 3 * MIB + 777


def test_a_killed_nbdcopy_may_be_followed_by_another(
    processes: Processes, room: Path, source: Path
) -> None:
    receiver = processes.receive(room / "destination", "--size", SIZE)
    rated = ("nbdkit", "-f", "-U", room / "socket", "--filter=rate", "file", source, "rate=40M")
    processes.start(*rated)
    until((room / "socket").exists)
    first = processes.start("nbdcopy", f"nbd+unix:///?socket={room}/socket", receiver.uri)
    receiver.wait_event("attempt")
    first.kill()
    receiver.wait_event("restart")
    processes.checked(*CONVERT, source, receiver.uri)
    assert receiver.wait(10) == 0
    same(processes, source, room / "destination")


def test_a_named_export_can_be_received(processes: Processes, room: Path, source: Path) -> None:
    receiver = processes.receive(room / "destination", "--size", SIZE, "--export", "a disk/ü")
    processes.checked("nbdcopy", source, receiver.uri)
    assert receiver.wait(10) == 0
    assert digest(room / "destination") == digest(source)


def test_nbdinfo_shows_a_receiver_and_completes_nothing(processes: Processes, room: Path) -> None:
    receiver = processes.receive(room / "destination", "--size", 12345678, "--export", "one")
    (export,) = json.loads(processes.checked("nbdinfo", "--json", receiver.uri))["exports"]
    assert export["export-size"] == 12345678
    assert export["export-name"] == "one"
    assert export["is_read_only"] is False
    for can in ("flush", "fua", "trim", "zero"):
        assert export[f"can_{can}"] is True, can
    assert export["can_multi_conn"] is False, "a migration has one sender"
    assert export["block_size_minimum"] == 1
    assert export["block_size_maximum"] == 32 * MIB
    listed = json.loads(processes.checked("nbdinfo", "--list", "--json", receiver.uri))
    assert "one" in [entry["export-name"] for entry in listed["exports"]]
    assert listed["protocol"] == "newstyle-fixed"
    assert processes.checked("nbdinfo", "--size", receiver.uri).strip() == "12345678"
    assert processes.run("nbdinfo", receiver.uri.replace("/one", "/two")).status != 0
    assert receiver.status is None
    assert not receiver.events("attempt")


# Out of blockmig.


def serve(processes: Processes, room: Path, *command: str | Path) -> str:
    """Start a peer that listens on the socket; its URI."""
    processes.start(*command)
    until((room / "socket").exists)
    return f"nbd+unix:///?socket={room}/socket"


def send(processes: Processes, source: Path, uri: str, *options: str) -> int:
    """Send it all; how many bytes travelled as data."""
    sender = processes.send(source, uri, *options)
    assert sender.wait(20) == 0, sender.stderr
    data = sender.events("complete")[0]["data"]
    assert isinstance(data, int)
    return data


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_blockmig_can_send_to_qemu_nbd(
    processes: Processes, room: Path, source: Path, kind: str
) -> None:
    image = room / "image"
    processes.checked("qemu-img", "create", "-f", kind, image, str(SIZE))
    processes.start("qemu-nbd", "-f", kind, "-k", room / "socket", image)
    until((room / "socket").exists)
    assert send(processes, source, f"nbd+unix:///?socket={room}/socket") < 10 * MIB
    until(lambda: not (room / "socket").exists(), what="qemu-nbd ends with its client")
    same(processes, source, image, kind)


def test_blockmig_can_send_to_a_named_export_of_qemu_nbd_over_TCP(
    processes: Processes, room: Path, source: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    image = sparse_image(room / "image", SIZE, {0: os.urandom(20 * MIB)})
    processes.start(
        "qemu-nbd", "-f", "raw", "-b", "127.0.0.1", "-p", str(port), "-x", "disk", image
    )
    send(
        processes,
        source,
        f"nbd://127.0.0.1:{port}/disk",
        "--retry",
        "--overwrite",
        "-v",
        "--unlink",
    )
    assert not source.exists()


NBDKITS = {
    "file": (),
    "oldstyle": ("--oldstyle",),
    "oldstyle without zeroes": ("--oldstyle", "--filter=nozero"),
    "nozero": ("--filter=nozero",),
    "nozero emulated": ("--filter=nozero", "zeromode=emulate"),
    "fua emulated": ("--filter=fua", "fuamode=emulate"),
    "one at a time": ("--filter=noparallel",),
    "no structured replies": ("--no-sr",),
    "newstyle not fixed": ("--mask-handshake=0",),
    "fixed only": ("--mask-handshake=1",),
    "minimum 4096": (
        "--filter=blocksize-policy",
        "blocksize-minimum=4096",
        "blocksize-error-policy=error",
    ),
    "minimum 64K": (
        "--filter=blocksize-policy",
        "blocksize-minimum=65536",
        "blocksize-preferred=65536",
        "blocksize-maximum=33554432",
        "blocksize-error-policy=error",
    ),
    "maximum 128K": (
        "--filter=blocksize-policy",
        "blocksize-minimum=512",
        "blocksize-preferred=4096",
        "blocksize-maximum=131072",
        "blocksize-error-policy=error",
    ),
}


@pytest.mark.parametrize("peer", NBDKITS)
def test_blockmig_can_send_to_nbdkit_file(
    processes: Processes, room: Path, source: Path, peer: str
) -> None:
    options = [text for text in NBDKITS[peer] if text.startswith("--")]
    parameters = [text for text in NBDKITS[peer] if not text.startswith("--")]
    image = random_image(room / "image", SIZE, seed=9)
    command = ("nbdkit", "-f", "-U", room / "socket", *options, "file", image, *parameters)
    uri = serve(processes, room, *command)
    data = send(processes, source, uri, "--overwrite")
    same(processes, source, image)
    no_zeroes = peer == "nozero"
    if "oldstyle" not in peer:  # nbdkit offers there what it then refuses
        assert (data == SIZE) if no_zeroes else (data < 10 * MIB)


def test_a_size_that_does_not_fit_the_blocks_of_the_peer_is_refused(
    processes: Processes, room: Path
) -> None:
    odd = random_image(room / "odd", 5000)
    image = sparse_image(room / "image", 5000, {})
    policy = ("--filter=blocksize-policy", "file", image, "blocksize-minimum=4096")
    uri = serve(processes, room, "nbdkit", "-f", "-U", room / "socket", *policy)
    sender = processes.send(odd, uri)
    assert sender.wait() == 1
    assert "multiples of 4096" in sender.stderr


def test_blockmig_can_send_to_nbdkit_memory(processes: Processes, room: Path, source: Path) -> None:
    uri = serve(processes, room, "nbdkit", "-f", "-U", room / "socket", "memory", str(SIZE))
    send(processes, source, uri)
    same(processes, source, uri)


def test_blockmig_can_send_an_odd_size_to_nbdkit_memory(processes: Processes, room: Path) -> None:
    odd = random_image(room / "odd", 3 * MIB + 777)
    size = str(size_of(odd))
    uri = serve(processes, room, "nbdkit", "-f", "-U", room / "socket", "memory", size)
    send(processes, odd, uri)
    processes.checked("nbdcopy", uri, room / "back")
    assert digest(room / "back") == digest(odd)


def test_errors_of_nbdkit_are_retried(processes: Processes, room: Path, source: Path) -> None:
    """Some writes fail for a while; then they do not, and the migration completes.


    nbdkit before 1.34 aborts (C{raw_send_socket: Assertion `sock >= 0'}) when a client hangs up and
    two of a connection's threads have replies for it; a sender that met EIO does hang up with
    writes in flight. With one thread to a connection that cannot happen.
    """
    image = random_image(room / "image", SIZE, seed=9)
    trigger = room / "trigger"
    trigger.touch()
    uri = serve(
        processes,
        room,
        *("nbdkit", "-f", "-t", "1", "-U", room / "socket", "--filter=error", "file", image),
        *("error-pwrite=EIO", "error-pwrite-rate=100%", f"error-file={trigger}"),
    )
    sender = processes.send(source, uri, "--overwrite", "--unlink")
    before = digest(source)
    first = sender.wait_event("restart")
    assert "EIO" in first["why"]
    assert "WRITE" in first["why"]
    sender.wait_event("restart", count=2)
    assert source.exists()
    trigger.unlink()
    assert sender.wait() == 0, sender.stderr
    assert sender.events("complete")[0]["attempts"] >= 3
    assert digest(image) == before
    assert not source.exists()


def test_a_flush_that_fails_retires_nothing(processes: Processes, room: Path, source: Path) -> None:
    image = sparse_image(room / "image", SIZE, {})
    (room / "plugin").write_text(
        f"""case "$1" in
        get_size) echo {SIZE} ;;
        can_write|can_flush) exit 0 ;;
        pread) dd if={image} bs=65536 iflag=skip_bytes,count_bytes skip=$4 count=$3 2>/dev/null ;;
        pwrite) dd of={image} bs=65536 conv=notrunc oflag=seek_bytes seek=$4 2>/dev/null ;;
        flush) echo EIO broken >&2; exit 1 ;;
        *) exit 2 ;;
        esac
        """
    )
    (room / "plugin").chmod(0o755)
    small = random_image(room / "small", SIZE, seed=5)
    uri = serve(processes, room, "nbdkit", "-f", "-U", room / "socket", "sh", room / "plugin")
    sender = processes.send(small, uri, "--unlink")
    assert "FLUSH" in sender.wait_event("restart", 30)["why"]
    assert sender.status is None
    assert small.exists()


def test_unlink_is_refused_for_a_peer_without_flush(
    processes: Processes, room: Path, source: Path
) -> None:
    (room / "plugin").write_text(
        f"""case "$1" in
        get_size) echo {SIZE} ;;
        can_write) exit 0 ;;
        pwrite) cat >/dev/null ;;
        *) exit 2 ;;
        esac
        """
    )
    (room / "plugin").chmod(0o755)
    uri = serve(processes, room, "nbdkit", "-f", "-U", room / "socket", "sh", room / "plugin")
    sender = processes.send(source, uri, "--unlink")
    assert sender.wait() == 1
    assert "FLUSH" in sender.stderr
    assert source.exists()


def test_blockmig_can_send_to_nbd_server(processes: Processes, room: Path, source: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    image = random_image(room / "image", SIZE, seed=9)
    (room / "config").write_text(
        f"[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\n"
        f"[disk]\nexportname = {image}\nflush = true\nfua = true\ntrim = true\n"
    )
    command = ("nbd-server", "-d", "-C", room / "config", "-p", room / "pid")
    processes.start(*command)
    send(processes, source, f"nbd://127.0.0.1:{port}/disk", "--overwrite", "--retry")
    same(processes, source, image)
