"""The mistakes that people make, each with the one line that it gets, and its exit status.

All of them run side by side, before the first is looked at.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.disks import MIB
from tests.support.processes import BLOCKMIG, Processes, Running

# What was typed, after `blockmig`; the exit status; what is said, without the time in front.
# DIR is the folder of the test, PORT that of a receiver of 1 MiB, WEB of a server that is none of
# NBD's, and SERVED of a `blockmig serve`.
TABLE: tuple[tuple[str, int, str], ...] = (
    # What: the disk.
    ("receive", 1, "FILE is missing: give the path of the disk (see `blockmig receive --help`)"),
    (
        "receive new --oldstyle",
        1,
        "error: new: no such file (--oldstyle needs --size to create it)",
    ),
    (
        "receive new --size 1.5",
        1,
        "--size: '1.5' is not a whole number of bytes (see `blockmig receive --help`)",
    ),
    (
        "receive new --size twenty",
        1,
        "--size: 'twenty' is not a number of bytes such as 4096, 100M or 20G "
        "(see `blockmig receive --help`)",
    ),
    (
        "receive new --size 9000P",
        1,
        "--size: '9000P' is more than a disk can have (see `blockmig receive --help`)",
    ),
    (
        "receive disk --size 2M --overwrite",
        1,
        "error: disk: has 1048576 bytes, but 2097152 are needed; an existing disk must have "
        "exactly that size",
    ),
    (
        "receive disk",
        1,
        "error: disk: holds data, and no record says that it may be overwritten (if a migration "
        "into it has ended, it is presumably complete, and nothing is left to do); --overwrite "
        "overwrites it",
    ),
    (
        "receive no/such/new --size 1M",
        1,
        "error: no/such/new: cannot be created: there is no directory no/such",
    ),
    (
        "receive dangling --size 1M",
        1,
        "error: dangling: cannot be created: it is a symbolic link that leads nowhere",
    ),
    ("receive folder", 1, "error: folder: Is a directory"),
    ("receive pipe", 1, "error: pipe: is neither a regular file nor a block device"),
    ("serve empty", 1, "error: empty: the disk is empty (0 bytes)"),
    (
        "receive /dev/no-such-device --size 1M",
        1,
        "error: /dev/no-such-device: there is no such device, and a file in /dev would be in "
        "memory: the device must exist",
    ),
    (
        "receive nbd://host/ --size 1M",
        1,
        "'nbd://host/' is a URI, where the path of a disk is expected "
        "(see `blockmig receive --help`)",
    ),
    (
        "receive disk new --size 1M",
        1,
        "one disk is expected, and 2 are given: 'disk', 'new' (see `blockmig receive --help`)",
    ),
    ("serve none", 1, "error: none: no such file"),
    ("send none nbd://127.0.0.1:PORT/", 1, "error: DIR/none: no such file"),
    ("send folder nbd://127.0.0.1:PORT/", 1, "error: folder: is a directory, not a disk"),
    (
        "send disk.qcow2 nbd://127.0.0.1:PORT/",
        1,
        "error: disk.qcow2: looks like a qcow2 image, and only raw disks are sent: convert it "
        "(qemu-img convert -O raw disk.qcow2 NEW), or give --raw-anyway to send its bytes as they "
        "are",
    ),
    (
        "send disk nbd://127.0.0.1:PORT/ --json",
        1,
        "--json is for --dry-run: use --progress json, or --log-format json "
        "(see `blockmig send --help`)",
    ),
    ("check disk", 1, "expected two arguments: DISK URI (see `blockmig check --help`)"),
    (
        "send linked nbd://127.0.0.1:PORT/ --unlink",
        1,
        "error: linked: has 2 hard links; deleting one would not retire the disk",
    ),
    # Where: addresses and URIs.
    (
        "receive new --size 1M --listen 127.0.0.1",
        1,
        "error: --listen: '127.0.0.1': the port is missing, as in 127.0.0.1:10809",
    ),
    (
        "receive new --size 1M --listen ::1:10809",
        1,
        "error: --listen: '::1:10809': an IPv6 address is written in brackets: [::1]:10809",
    ),
    (
        "receive new --size 1M --listen /run/x",
        1,
        "error: --listen: '/run/x': a UNIX socket is written unix:/run/x",
    ),
    (
        "receive new --size 1M --listen nbd://127.0.0.1/web",
        1,
        "error: --listen: 'nbd://127.0.0.1/web': the name of the export, 'web', does not belong "
        "here: it is given by itself",
    ),
    (
        "receive new --size 1M --listen PORT",
        1,
        "error: cannot listen on PORT: Address already in use: another program listens there",
    ),
    (
        "serve other --listen unix:no/such/socket",
        1,
        "error: cannot listen on unix:no/such/socket: No such file or directory",
    ),
    ("send disk", 1, "expected two arguments: DISK URI (see `blockmig send --help`)"),
    (
        "send nbd://127.0.0.1:PORT/ disk",
        1,
        "DISK and URI are swapped: the disk comes first, then where to (nbd://127.0.0.1:PORT/) "
        "(see `blockmig send --help`)",
    ),
    (
        "send disk host:10809",
        1,
        "'host:10809' is not an NBD URI: write nbd://host:10809/ (see `blockmig send --help`)",
    ),
    (
        "send disk http://host/",
        1,
        "'http://host/' is not an NBD URI: nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket="
        "PATH is expected (see `blockmig send --help`)",
    ),
    (
        "send disk nbds://host/?tls-psk-file=keys",
        1,
        "tls-psk-file: pre-shared keys are not supported: use tls-certificates (see `blockmig "
        "send --help`)",
    ),
    (
        "send disk nbd://host:99999/",
        1,
        "'nbd://host:99999/' is not a URI: the port is a number up to 65535, and an IPv6 address "
        "is in brackets (see `blockmig send --help`)",
    ),
    (
        "send disk nbd://127.0.0.1:1/",
        1,
        "error: cannot connect to the destination: nobody listens on 127.0.0.1:1 (connection "
        "refused): start `blockmig receive` there first, or is the port wrong?",
    ),
    (
        "send disk nbd+unix:///?socket=none",
        1,
        "error: cannot connect to the destination: there is no socket none (No such "
        "file or directory): start `blockmig receive` there first",
    ),
    (
        "send disk nbd://no-such-host.invalid/",
        1,
        "error: cannot connect to the destination: the name 'no-such-host.invalid' cannot be "
        "looked up (DNS): is it spelled right?",
    ),
    (
        "send disk nbd://127.0.0.1:WEB/",
        1,
        "error: what answers there does not speak NBD: is the port right?",
    ),
    (
        "send other nbd://127.0.0.1:PORT/",
        1,
        "error: size mismatch: other has 300000 bytes, the destination 1048576",
    ),
    (
        "send disk nbd://127.0.0.1:PORT/web",
        1,
        "error: the destination has no export named 'web'",
    ),
    (
        "send disk nbd://127.0.0.1:SERVED/",
        1,
        "error: the destination is a `blockmig serve`, which serves its disk to clients: a disk in "
        "use cannot be a destination",
    ),
    # How, and who.
    (
        "send disk nbd://127.0.0.1:PORT/ --max-rate fast",
        1,
        "--max-rate: 'fast' is not a number of bytes such as 4096, 100M or 20G "
        "(see `blockmig send --help`)",
    ),
    (
        "send disk nbd://127.0.0.1:PORT/ --unlnk",
        1,
        "option --unlnk not recognized: do you mean --unlink? (see `blockmig send --help`)",
    ),
    (
        "send disk nbd://127.0.0.1:PORT/ --unl",
        1,
        "--unlink: options must be spelled out in full (see `blockmig send --help`)",
    ),
    (
        "receive new --size 1M --secret open",
        1,
        "--secret: open: others can read it: chmod 600 open (see `blockmig receive --help`)",
    ),
    (
        "receive new --size 1M --id 'my disk'",
        1,
        "--id: 'my disk': an id has 1 to 64 letters, digits, dots, hyphens and underscores "
        "(see `blockmig receive --help`)",
    ),
    ("recieve new", 1, "unknown command: recieve: do you mean receive? (see `blockmig --help`)"),
    # Running commands, and records.
    (
        "mirror nbd://host/",
        1,
        "--control is missing: give the control socket of the running command "
        "(see `blockmig mirror --help`)",
    ),
    ("status --control none", 1, "there is no control socket at none"),
    ("status --control other", 1, "other is not a socket"),
    (
        "accept disk --i-have-checked-the-source",
        1,
        "disk: is not the destination of a migration: there is no DIR/disk.INCOMPLETE",
    ),
    ("forget disk", 1, "disk: there is no record of a finished migration of it"),
    (
        "forget folder",
        1,
        "folder is a directory: give --older-than too (see `blockmig forget --help`)",
    ),
)


def answer_like_a_web_server(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def furnish(folder: Path) -> Path:
    """A folder with what the commands are about."""
    folder.mkdir()
    for name, size in (("disk", MIB), ("linked", MIB), ("other", 300_000)):
        with (folder / name).open("wb") as file:
            file.write(b"data")
            file.truncate(size)
    os.link(folder / "linked", folder / "link")
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "open").write_text("a secret that others can read\n")
    (folder / "open").chmod(0o644)
    (folder / "disk.qcow2").write_bytes(b"QFI\xfb\0\0\0\3".ljust(MIB, b"\0"))
    return folder


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, tuple[Running, dict[str, str]]]]:
    """Each command, run to its end, and what the words of its line stand for."""
    room = Path(tempfile.mkdtemp(prefix="mistakes-"))
    processes = Processes(room)
    with socket.create_server(("127.0.0.1", 0)) as web:
        threading.Thread(target=answer_like_a_web_server, args=(web,), daemon=True).start()
        receiver = processes.receive(room / "destination", "--size", MIB)
        served = furnish(room / "served") / "disk"
        server = processes.receive(served, command=(BLOCKMIG, "serve"))
        words = {
            "PORT": receiver.uri.rstrip("/").rpartition(":")[2],
            "SERVED": server.uri.rstrip("/").rpartition(":")[2],
            "WEB": str(web.getsockname()[1]),
        }
        started = {}
        for number, (line, _, _) in enumerate(TABLE):
            folder = furnish(room / str(number))
            its_words = {**words, "DIR": str(folder)}
            command = [BLOCKMIG, *shlex.split(filled(line, its_words))]
            started[line] = (Running(command, room / f"said-{number}", folder, []), its_words)
        for running, _ in started.values():
            running.wait()
        yield started
        web.shutdown(socket.SHUT_RDWR)
    assert receiver.status is None, "nobody has disturbed it"
    processes.finish()
    shutil.rmtree(room)


def filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"\b(DIR|PORT|SERVED|WEB)\b", lambda match: words[match[1]], text)


@pytest.mark.parametrize(("line", "status", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_a_mistake_gets_one_line(
    line: str, status: int, expected: str, made: dict[str, tuple[Running, dict[str, str]]]
) -> None:
    running, words = made[line]
    said = re.sub(r"^\d\d:\d\d:\d\d ", "", running.stderr)
    kept = expected.replace("nbd://HOST:PORT/EXPORT", "nbd://HOST:%/EXPORT")
    shown = filled(kept, words).replace("nbd://HOST:%/EXPORT", "nbd://HOST:PORT/EXPORT")
    assert (said, running.status, running.stdout) == (f"blockmig: {shown}\n", status, "")
