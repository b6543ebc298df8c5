"""Every command that README.md and docs/ show is run here, and must do what they say.


A fenced block that is tagged ``sh`` is run by bash. What stands behind the tag says where and how:

* ``on=source`` and ``on=destination``: on that host, a folder of its own in place of
  /var/lib/images, /run and /etc/pki; a 20 GiB disk is there on the source at the start of each
  section. 192.0.2.7 becomes a loopback address that no other test has, and 192.0.2.4, its client,
  127.0.0.1.
* ``wait``: in the background; has to end with status 0 when the section's other blocks are done.
* ``server``, ``tunnel``: in the background; has to live until then, and is stopped.
* ``look``: changes nothing; a section of nothing else moves no disk.
* ``install``: from a copy of this repository.
* ``on=systemd``: one block after the other on a host of its own with a systemd, as root; before one
  that is also tagged ``sent``, a disk is sent there.
* ``on=tls``: between hosts that have certificates, with what belongs on the other side: in
  test_tls.py.

After each section with a disk in it, the destination's disk is compared with the source's, and the
source is gone if and only if ``--unlink`` was given. Blocks tagged ``json events=…`` have to show
the fields that there really are. ``text`` is not run. Blocks tagged ``python`` are; again, what
stands behind the tag says how:

* ``run=migrate``, ``run=resume``, ``run=check``, ``run=service``, ``run=mirror``, ``run=tls``: a
  program, which has a test of its own here, as have the lines of ``run=receive``;
* ``run=web.tac``, ``run=disks.tac``: a file for twistd, likewise;
* ``file=…``: a module that is there under this name when the document's tests run;
* ``trial``, ``pytest``: tests, which have to pass, and to fail where that module is broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from tests.support.disks import random_image
from tests.support.namespaces import OUTSIDE
from tests.support.systemd import systemd_host
from tests.support.tls import Authority

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
DOCUMENTS = [*(ROOT / page for page in PAGES), *sorted((ROOT / "docs").glob("*.md"))]
GIB = 1 << 30
SIZE = 20 * GIB
PATIENCE = 60.0
TWISTD = str(Path(sys.executable).with_name("twistd"))

# A tunnel, as `ssh -N -L /path:/path host` makes it, and what `blockmig move` makes of it, with a
# command there; without an sshd.
SSH = """
import asyncio, os, sys

words = sys.argv[1:]
near = far = None
if "-L" in words:
    near, far = words[words.index("-L") + 1].split(":")
if words[0] == "-N":
    assert words == ["-N", "-L", f"{near}:{far}", "root@destination.example"], words
    command = None
else:
    assert words[-3:-1] == ["--", "root@destination.example"], words
    command = words[-1].replace("/source/", "/destination/")
if far is not None:
    far = far.replace("/source/", "/destination/")
os.environ["SSH_CONNECTION"] = "127.0.0.1 40000 127.0.0.1 22"


async def pump(reader, writer):
    while data := await reader.read(1 << 20):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def connected(reader, writer):
    far_reader, far_writer = await asyncio.open_unix_connection(far)
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
    writer.close()
    far_writer.close()


async def main():
    server = None if near is None else await asyncio.start_unix_server(connected, near)
    if command is None:
        await server.serve_forever()
    home = os.environ["HOME"].replace("/source/", "/destination/")
    shell = await asyncio.create_subprocess_shell(command, cwd=home)
    os._exit(await shell.wait())


asyncio.run(main())
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: Path
    section: str
    tags: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        return self.tags[0] if self.tags else ""

    @property
    def host(self) -> str:
        (host,) = [tag[3:] for tag in self.tags if tag.startswith("on=")]
        return host


def read_blocks(document: Path) -> Iterator[Block]:
    section, tags, lines = "", None, []
    for line in document.read_text().splitlines():
        if line.startswith("```"):
            if tags is None:
                tags, lines = tuple(line.removeprefix("```").split()), []
            else:
                yield Block(document, section, tags, "\n".join(lines) + "\n")
                tags = None
        elif tags is not None:
            lines.append(line)
        elif line.startswith("#"):
            section = line.lstrip("# ")
    assert tags is None, f"{document.name}: a block is not closed"


BLOCKS = [block for document in DOCUMENTS for block in read_blocks(document)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
ELSEWHERE = {"install", "on=systemd", "on=tls"}
SECTIONS = list(
    dict.fromkeys((b.document, b.section) for b in SHELL if not ELSEWHERE & set(b.tags))
)


def write_disk(path: Path) -> None:
    """A file of 20 GiB, nearly all of it a hole; the same each time."""
    data = random.Random(20)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset in (0, GIB - 4096, 7 * GIB + 512, SIZE - (3 << 20)):
            file.seek(offset)
            file.write(data.randbytes(3 << 20))


class Hosts:
    """Two hosts, as far as the documents need them."""

    def __init__(self, folder: Path, reference: Path) -> None:
        self.folder = folder
        self.reference = reference
        network = f"127.{random.randint(10, 250)}.{os.getpid() % 250}"
        self.address, self.next_address = (
            f"{network}.{number}" for number in random.sample(range(2, 250), 2)
        )
        for host in ("source", "destination"):
            for place in ("images", "run", "home", "pki"):
                (folder / host / place).mkdir(parents=True)
        (folder / "bin").mkdir()
        ssh = folder / "bin" / "ssh"
        ssh.write_text(f"#!{sys.executable}{SSH}")
        ssh.chmod(0o755)
        self.source = folder / "source" / "images" / "web.img"
        # Hosts are folders here, and /etc/pki is a folder in each.
        scp = folder / "bin" / "scp"
        scp.write_text(
            "#!/bin/bash\nset -eu\nto=${@: -1}\n[[ $1 = -p* && $to = root@*:* ]]\n"
            'far=${to#*:}\ncp "${@:1:$#-1}" "${far/\\/source\\//\\/destination\\/}"\n'
        )
        scp.chmod(0o755)
        write_disk(self.source)

    def environment(self, host: str) -> dict[str, str]:
        path = os.pathsep.join(
            [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        home = str(self.folder / host / "home")
        return {**os.environ, "PATH": path + ":/usr/sbin:/sbin", "HOME": home}

    def start(self, block: Block) -> subprocess.Popen[str]:
        return self.start_text(block.text, block.host)

    def start_text(self, text: str, host: str) -> subprocess.Popen[str]:
        """Run commands as the documents have them."""
        place = self.folder / host
        text = text.replace("/var/lib/images", str(place / "images"))
        text = text.replace("/run/", f"{place}/run/").replace("192.0.2.7", self.address)
        text = text.replace("192.0.2.8", self.next_address)
        text = text.replace("/etc/pki/", f"{place}/pki/")
        text = text.replace("192.0.2.4", "127.0.0.1")  # from there the kernel connects to it
        return subprocess.Popen(
            ["bash", "-euc", text],
            cwd=place / "home",
            env=self.environment(host),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def check(self, unlinked: bool) -> None:
        """The destination has the disk, and the source only if it should."""
        assert self.source.exists() != unlinked
        there = (self.folder / "destination" / "images").iterdir()
        arrived = [path for path in there if path.suffix != ".RECEIVED"]
        assert arrived, "nothing arrived"
        for disk in arrived:
            kind = "qcow2" if disk.suffix == ".qcow2" else "raw"
            command = ["qemu-img", "compare", "-f", "raw", "-F", kind]
            command += [str(self.reference), str(disk)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr


def group_sockets(group: int) -> set[str]:
    """The inodes of the sockets of a process group."""
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[2]) != group:
                continue
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(descriptor)
                    if target.startswith("socket:["):
                        inodes.add(target[8:-1])
    return inodes


def listening_sockets() -> set[str]:
    """The inodes of all sockets that listen; looked up, since some servers take one connection.

    But for control sockets, which listen before anything else does.
    """
    tcp = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    inodes = {fields[9] for fields in tcp if fields[3] == "0A"}
    for fields in unix:
        if int(fields[3], 16) & 0x10000 and not fields[-1].endswith(".control"):
            inodes.add(fields[6])
    return inodes


def wait_until_listening(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not group_sockets(process.pid) & listening_sockets():
        assert process.poll() is None, f"ended with {process.returncode}: {process.stdout.read()}"
        assert time.monotonic() < deadline, "does not listen"
        time.sleep(0.05)


def end_group(process: subprocess.Popen[str], number: int) -> str:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    return process.communicate(timeout=PATIENCE)[0]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "web.img"
    write_disk(path)
    return path


@pytest.fixture
def hosts(reference: Path) -> Iterator[Hosts]:
    folder = Path(tempfile.mkdtemp(prefix="docs-"))  # short, for the paths of UNIX sockets
    yield Hosts(folder, reference)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("document", "section"), SECTIONS, ids=[f"{d.name}: {s}" for d, s in SECTIONS]
)
def test_the_commands_of_a_section_do_what_it_says(
    document: Path, section: str, hosts: Hosts
) -> None:
    blocks = [b for b in SHELL if (b.document, b.section) == (document, section)]
    background: list[tuple[Block, subprocess.Popen[str]]] = []
    try:
        for block in blocks:
            process = hosts.start(block)
            if {"wait", "server", "tunnel"} & set(block.tags):
                background.append((block, process))
                wait_until_listening(process)
            else:
                said = process.communicate(timeout=PATIENCE)[0]
                assert process.returncode == 0, f"{block.text}{said}"
                if block.text.startswith("stat "):
                    assert said.strip() == str(SIZE)
        for block, process in background:
            if "wait" in block.tags:
                said = process.communicate(timeout=PATIENCE)[0]
                assert process.returncode == 0, f"{block.text}{said}"
            else:
                assert process.poll() is None, f"{block.text}{process.stdout.read()}"
                end_group(process, signal.SIGINT if "tunnel" in block.tags else signal.SIGTERM)
    finally:
        for _, process in background:
            if process.poll() is None:
                end_group(process, signal.SIGKILL)
    if all("look" in block.tags for block in blocks):
        return
    hosts.check(unlinked=any("--unlink" in b.text for b in blocks))


@pytest.mark.parametrize(
    "block", [b for b in SHELL if "install" in b.tags], ids=lambda b: b.section
)
def test_the_installation_instructions_work(block: Block, tmp_path: Path) -> None:
    copy = tmp_path / "clone"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    done = subprocess.run(
        [*OUTSIDE, "bash", "-euc", block.text],
        cwd=copy,
        env={**os.environ, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"blockmig \d+\.\d+\.\d+\n", done.stdout)


def test_the_commands_for_systemd_work(tmp_path: Path) -> None:
    blocks = [block for block in SHELL if "on=systemd" in block.tags]
    assert len(blocks) == 6
    with systemd_host(tmp_path, units=False) as there:
        random_image(there.path("/root/web.img"), 1 << 20)
        pki = "/opt/blockmig/bin/blockmig certificates pki web1 127.0.0.1; mkdir -p /etc/pki"
        there.checked("bash", "-euc", f"cd /root; {pki}; cp -r pki/127.0.0.1 /etc/pki/blockmig")
        for block in blocks:
            if "sent" in block.tags:
                send = "/opt/blockmig/bin/blockmig send --id web-7 /root/web.img nbd://127.0.0.1"
                there.checked(*send.split())
                there.wait_for("blockmig-receive@web.service", "ActiveState", "inactive")
            text = block.text.replace("192.0.2.0/24", "127.0.0.0/8")
            text = text.replace("192.0.2.7", "127.0.0.1").replace("192.0.2.4", "127.0.0.1")
            text = f"cd {ROOT}; PATH=/opt/blockmig/bin:$PATH; {text}"
            there.checked("bash", "-euc", text)
        there.checked("nbdinfo", "nbds://127.0.0.1/?tls-certificates=/root/pki/web1")
        found = there.show("blockmig-receive@web.service", "Environment")
        assert "/run/credentials/blockmig-receive@web.service/secret" in found


def program(kind: str, folder: Path) -> list[str]:
    """The command that runs the one program of its kind."""
    (block,) = [b for b in BLOCKS if f"run={kind}" in b.tags]
    path = folder / "program.py"
    path.write_text(block.text)
    return [sys.executable, str(path)]


AROUND_THE_THREE_LINES = """
import sys
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from blockmig import FileDisk, Receiver

async def main(reactor, where, path, size):
    endpoint, size = serverFromString(reactor, where), int(size)
{lines}
    print(f"{{summary.bytes}} bytes")

task.react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:])))
"""


def test_the_three_lines_of_the_documents_receive_a_disk(tmp_path: Path) -> None:
    (block,) = [b for b in BLOCKS if "run=receive" in b.tags]
    assert len(block.text.splitlines()) == 3
    program = AROUND_THE_THREE_LINES.format(lines=textwrap.indent(block.text, "    "))
    (tmp_path / "program.py").write_text(program)
    disk, copy, socket_path = tmp_path / "disk", tmp_path / "copy", tmp_path / "receiver"
    disk.write_bytes(random.Random(5).randbytes(3_000_001))
    command = [sys.executable, str(tmp_path / "program.py"), f"unix:{socket_path}"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, str(copy), "3000001"], stdout=pipe, text=True) as process:
        try:
            wait_until_listening_at(socket_path)
            uri = f"nbd+unix:///?socket={socket_path}"
            send = [sys.executable, "-m", "blockmig", "send", str(disk), uri]
            subprocess.run(send, check=True, capture_output=True, timeout=PATIENCE)
            assert process.communicate(timeout=PATIENCE)[0] == "3000001 bytes\n"
        finally:
            process.kill()
    assert copy.read_bytes() == disk.read_bytes()


def test_the_migrating_program_of_the_documents_works(tmp_path: Path) -> None:
    source, destination = tmp_path / "a", tmp_path / "b"
    source.write_bytes(random.Random(1).randbytes(5_000_001))
    command = [*program("migrate", tmp_path), str(source), str(destination)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5000001 bytes in 1 attempt(s), 5000001 of them data\n"
    assert destination.read_bytes() == source.read_bytes()


# Runs a program, and dies as soon as it has deleted a file.
DIES_AFTER_UNLINK = """
import os, runpy, sys

unlink = os.unlink


def unlink_and_die(path, *arguments, **keywords):
    unlink(path, *arguments, **keywords)
    if str(path) == sys.argv[1]:
        os._exit(86)


os.unlink = unlink_and_die
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_resuming_program_of_the_documents_works_before_and_after_a_crash(
    tmp_path: Path,
) -> None:
    source, copy, data = tmp_path / "a", tmp_path / "b", random.Random(6).randbytes(5_000_001)
    source.write_bytes(data)
    where = f"unix:{tmp_path}/receiver"
    receive = [sys.executable, "-m", "blockmig", "receive", "--file", str(copy)]
    receive += ["--size", "5000001", "--listen", where]
    python, path = program("resume", tmp_path)

    def run(*before: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [python, *before, path, str(source), where],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout, done.stderr

    with subprocess.Popen(receive, stderr=subprocess.PIPE, text=True) as receiver:
        try:
            wait_until_listening_at(tmp_path / "receiver")
            (tmp_path / "dying.py").write_text(DIES_AFTER_UNLINK)
            assert run(str(tmp_path / "dying.py"))[0] == 86
            assert not source.exists()
            assert receiver.poll() is None
            said = run()
            assert said == (0, "all 5000001 bytes are there, 0 of them sent by this run\n", "")
            assert receiver.wait(PATIENCE) == 0, receiver.stderr.read()
        finally:
            receiver.kill()
    assert copy.read_bytes() == data
    status, said, _ = run()
    assert status == 0
    assert "there is nothing to do" in said


def test_the_checking_program_of_the_documents_says_whether_a_migration_could_begin(
    tmp_path: Path,
) -> None:
    source, where = tmp_path / "a", f"unix:{tmp_path}/receiver"
    source.write_bytes(random.Random(8).randbytes(5_000_001))
    receive = [sys.executable, "-m", "blockmig", "receive", "--file", str(tmp_path / "b")]
    receive += ["--size", "5000001", "--listen", where, "--id", "nightly"]

    def run(id: str) -> tuple[int, str]:
        done = subprocess.run(
            [*program("check", tmp_path), str(source), where, id],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    with subprocess.Popen(receive, stderr=subprocess.PIPE, text=True) as receiver:
        try:
            wait_until_listening_at(tmp_path / "receiver")
            assert run("nightly") == (0, "the migration can begin\n")
            status, said = run("weekly")
            assert status == 1
            assert "receiver: the receiver there was started for another migration" in said
            assert "the migration cannot begin: 1 of" in said
        finally:
            receiver.kill()
    assert source.exists()


@contextlib.contextmanager
def service(folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """The serving program, and its ports by their names."""
    (folder / "served").write_bytes(random.Random(3).randbytes(3_000_000))
    command = [*program("service", folder), str(folder / "served"), str(folder / "in"), "5000001"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        found = [re.fullmatch(r"(\w+): port (\d+)\n", line) for line in lines]
        assert all(found), (lines, process.poll())
        yield process, {match[1]: int(match[2]) for match in found}
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def ended(process: subprocess.Popen[str]) -> str:
    """What the program prints when it is asked to end, which it must do in good order."""
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    return said


def roles(port: int) -> dict[str, dict[str, object]]:
    """What the status page says."""
    with urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
        assert answer.headers["content-type"] == "application/json"
        return {part["role"]: part for part in json.load(answer)}


def test_the_serving_program_of_the_documents_works(tmp_path: Path) -> None:
    source, copy = tmp_path / "a", tmp_path / "copy"
    source.write_bytes(random.Random(4).randbytes(5_000_001))
    with service(tmp_path) as (process, ports):
        assert set(ports) == {"disk", "incoming", "status"}
        assert roles(ports["status"])["receive"]["state"] == "waiting"
        send = [sys.executable, "-m", "blockmig", "send", str(source)]
        for command in (
            [*send, f"nbd://127.0.0.1:{ports['incoming']}/"],
            ["nbdcopy", f"nbd://127.0.0.1:{ports['disk']}/", str(copy)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            assert done.returncode == 0, done.stderr
        status = roles(ports["status"])
        assert status["receive"]["state"] == "complete"
        assert status["serve"]["totals"]["bytes_read"] >= 3_000_000
        assert process.stdout.readline() == "received: 5000001 bytes\n"
        assert ended(process) == ""
    assert (tmp_path / "in").read_bytes() == source.read_bytes()
    assert copy.read_bytes() == (tmp_path / "served").read_bytes()


def test_the_serving_program_can_be_stopped_with_nothing_received(tmp_path: Path) -> None:
    with (
        service(tmp_path) as (process, ports),
        socket.create_connection(("127.0.0.1", ports["disk"]), PATIENCE) as client,
    ):
        assert client.recv(8) == b"NBDMAGIC"
        said = ended(process)
    assert re.fullmatch(r"not received: .*nothing was received into .*\n", said)


def test_the_mirroring_program_of_the_documents_works(tmp_path: Path) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.write_bytes(random.Random(5).randbytes(5_000_001))
    where = f"unix:{tmp_path}/receiver"
    command = [*program("mirror", tmp_path), str(disk), where]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            port = int(process.stdout.readline().removeprefix("port "))
            process.send_signal(signal.SIGUSR1)
            assert process.stdout.readline().startswith("not moved: cannot connect")
            receive = [sys.executable, "-m", "blockmig", "receive", "--file", str(copy)]
            receive += ["--size", "5000001", "--listen", where]
            with subprocess.Popen(receive, stderr=pipe, text=True) as receiver:
                wait_until_listening_at(tmp_path / "receiver")
                change = ["qemu-io", "-f", "raw", "-c", "write -P 7 4096 4096"]
                subprocess.run([*change, f"nbd://127.0.0.1:{port}/"], check=True, timeout=PATIENCE)
                process.send_signal(signal.SIGUSR1)
                said, errors = process.communicate(timeout=PATIENCE)
                assert (said, errors) == ("moved in 1 attempt(s)\n", "")
                assert receiver.wait(PATIENCE) == 0, receiver.stderr.read()
        finally:
            process.kill()
    assert copy.read_bytes() == disk.read_bytes()
    assert copy.read_bytes()[4096:8192] == b"\7" * 4096


def tac_command(name: str, folder: Path) -> list[str]:
    """twistd with one of the files, whose folders and socket are in C{folder}."""
    (block,) = [b for b in BLOCKS if f"run={name}" in b.tags]
    where = '"tcp:10809:interface=127.0.0.1"'
    assert where in block.text
    text = block.text.replace(where, f'"unix:{folder}/socket"').replace("/var/lib", str(folder))
    text = text.replace("size=20 << 30", "size=5_000_001")
    (folder / name).write_text(text)
    return [TWISTD, "-n", "--pidfile=", "-y", name]


@contextlib.contextmanager
def tac(name: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """twistd with one of the files, and the URI of its port."""
    command, pipe = tac_command(name, folder), subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            wait_until_listening_at(folder / "socket")
            yield process, f"nbd+unix:///%s?socket={folder}/socket"
            process.send_signal(signal.SIGTERM)
            said, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == -signal.SIGTERM, said  # twistd's own way
            assert errors == ""
            assert "Traceback" not in said
            assert "Unhandled" not in said
            assert not (folder / "socket").exists()
        finally:
            process.kill()


def test_the_tac_file_of_the_documents_serves_its_disk(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    disk = tmp_path / "images" / "web.img"
    disk.write_bytes(random.Random(6).randbytes(3_000_000))
    with tac("web.tac", tmp_path) as (_, uri):
        copy = ["nbdcopy", uri % "", str(tmp_path / "copy")]
        subprocess.run(copy, check=True, timeout=PATIENCE)
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()
    subprocess.run(["flock", "--nonblock", str(disk), "true"], check=True)


def test_a_tac_file_that_cannot_begin_ends_twistd_and_says_why(tmp_path: Path) -> None:
    command = tac_command("web.tac", tmp_path)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert f"DiskRefused: {tmp_path}/images/web.img: no such file" in done.stdout + done.stderr


def test_the_tac_file_of_several_exports_serves_and_receives(tmp_path: Path) -> None:
    for name in ("images", "incoming"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / "images" / f"{name}.img").write_bytes(random.Random(name).randbytes(1_000_000))
    source = tmp_path / "source"
    source.write_bytes(random.Random(7).randbytes(5_000_001))
    with tac("disks.tac", tmp_path) as (_, uri):
        found = subprocess.run(
            ["nbdinfo", "--list", "--json", uri % ""],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        names = {export["export-name"] for export in json.loads(found.stdout)["exports"]}
        assert names == {"a", "a.served", "b", "b.served", "new", "new.handoff"}
        for command in (
            [sys.executable, "-m", "blockmig", "send", str(source), uri % "new"],
            ["nbdcopy", uri % "b", str(tmp_path / "copy")],
        ):
            subprocess.run(command, check=True, timeout=PATIENCE)
        again = subprocess.run(["nbdinfo", uri % "new"], capture_output=True, timeout=PATIENCE)
        assert again.returncode != 0
    images = tmp_path / "images"
    assert (tmp_path / "copy").read_bytes() == (images / "b.img").read_bytes()
    assert (tmp_path / "incoming" / "new.img").read_bytes() == source.read_bytes()


def wait_until_listening_at(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run_tests(runner: str, page: str, folder: Path, modules: dict[str, str]) -> str:
    """Run a document's tests with C{modules} beside them; what the runner says."""
    (block,) = [b for b in BLOCKS if b.document.name == page and runner in b.tags]
    folder.mkdir()
    for name, text in {**modules, "test_example.py": block.text}.items():
        (folder / name).write_text(text)
    command = {
        "trial": ["-m", "twisted.trial", "test_example"],
        "pytest": ["-m", "pytest", "-p", "no:cacheprovider", "test_example.py"],
    }[runner]
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode == 0) == ("FAILED" not in done.stdout), done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("runner", "page", "module", "passed", "mistakes"),
    [
        (
            "trial",
            "embedding.md",
            "joined.py",
            "PASSED (successes=5)",
            (
                ("            view = view[count:]\n", ""),
                ("            part.flush()", "            pass"),
                ("offset, length = 0, length - count", "offset, length = 0, length"),
                ("    def forget", "    def forgotten"),
                ("part.extents(max(0, offset - base))", "part.extents(0)"),
            ),
        ),
        (
            "trial",
            "testing.md",
            "product.py",
            "PASSED (successes=4)",
            (
                ("retry=True", "retry=False"),
                ("unlink=True", "unlink=False"),
                ("except Unconfirmed:", "except ZeroDivisionError:"),
                ('inventory["disk"] = "here"', "pass"),
                ("await sending.run()", "await Sender(disk, destination, runtime=runtime).run()"),
            ),
        ),
        (
            "pytest",
            "testing.md",
            "product.py",
            "2 passed",
            (
                ("unlink=True", "unlink=False"),
                ('    inventory["disk"] = "there"\n', ""),
                ("await sending.run()", "sending.run()"),
            ),
        ),
    ],
    ids=["embedding-trial", "testing-trial", "testing-pytest"],
)
def test_the_tests_of_the_documents_pass_and_catch_mistakes(
    runner: str,
    page: str,
    module: str,
    passed: str,
    mistakes: tuple[tuple[str, str], ...],
    tmp_path: Path,
) -> None:
    (text,) = [b.text for b in BLOCKS if f"file={module}" in b.tags]
    assert passed in run_tests(runner, page, tmp_path / "right", {module: text})
    for number, (right, wrong) in enumerate(mistakes):
        assert right in text
        broken = {module: text.replace(right, wrong)}
        assert "FAILED" in run_tests(runner, page, tmp_path / f"wrong-{number}", broken), wrong


def test_the_program_that_speaks_TLS_moves_a_disk(tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "ca-cert.pem").write_bytes(authority.own.pem)
    for role, name in (("server", "localhost"), ("client", "the sender")):
        made = authority.signed(name)
        (tmp_path / f"{role}-cert.pem").write_bytes(made.pem)
        (tmp_path / f"{role}-key.pem").write_bytes(made.key_pem)
    source = tmp_path / "source"
    source.write_bytes(random.Random(8).randbytes(3_000_001))
    (program,) = [block.text for block in BLOCKS if "run=tls" in block.tags]
    done = subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "copy"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (0, "3000001 bytes moved\n"), done.stderr
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_every_python_block_is_run() -> None:
    for block in BLOCKS:
        if block.language == "python":
            assert len(block.tags) == 2, block
            assert block.tags[1] in (
                *("run=receive", "run=migrate", "run=resume", "run=check"),
                *("run=service", "run=mirror", "run=tls"),
                *("run=web.tac", "run=disks.tac", "file=joined.py", "file=product.py"),
                *("trial", "pytest"),
            ), block


def test_every_command_of_the_documents_is_tagged() -> None:
    commands = re.compile(r"^\$? ?(blockmig|twistd?|nbdcopy|nbdkit|qemu-\w+|ssh|make|perf) ", re.M)
    for block in BLOCKS:
        if block.language == "sh":
            assert set(block.tags) & {"on=source", "on=destination", *ELSEWHERE}, block
        else:
            assert block.language in ("json", "python", "text", "mermaid"), block
            assert not commands.search(block.text), block


def test_the_make_targets_of_the_documents_exist() -> None:
    shown = set()
    for document in DOCUMENTS:
        shown |= set(re.findall(r"`make (\w+)", document.read_text()))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert shown
    assert shown <= targets


def test_links_of_the_documents_lead_somewhere() -> None:
    def anchors(document: Path) -> set[str]:
        headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
        return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}

    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
            parts = urlsplit(link)
            target = document.parent / parts.path if parts.path else document
            assert target.exists(), f"{document.name}: {link}"
            assert not parts.fragment or parts.fragment in anchors(target), link


def fields_by_event(lines: str) -> dict[str, set[str]]:
    return {event["event"]: set(event) for event in map(json.loads, lines.splitlines())}


def shown_fields(what: str) -> dict[str, set[str]]:
    (block,) = [b for b in BLOCKS if f"events={what}" in b.tags]
    return fields_by_event(block.text)


def test_events_have_the_fields_that_the_documents_show(tmp_path: Path) -> None:
    source, destination = tmp_path / "a", tmp_path / "b"
    source.write_bytes(random.Random(2).randbytes(4 << 20))
    blockmig = [sys.executable, "-m", "blockmig"]
    receive = [*blockmig, "receive", "--file", str(destination), "--size", "4M"]
    receive += ["--log-format", "json", "--listen", "tcp:0:interface=127.0.0.1"]
    with subprocess.Popen(receive, stderr=subprocess.PIPE, text=True) as receiver:
        try:
            first = receiver.stderr.readline()
            uri = json.loads(first)["uri"]
            send = [*blockmig, "send", "--progress", "json"]
            slow = [*send, "--max-rate", "1M", str(source), uri]
            with subprocess.Popen(slow, stdout=subprocess.PIPE, text=True) as sender:
                sender.stdout.readline()
                time.sleep(0.5)
                sender.kill()
            done = subprocess.run(
                [*send, str(source), uri], capture_output=True, text=True, timeout=PATIENCE
            )
            assert done.returncode == 0, done.stderr
            said = first + receiver.communicate(timeout=PATIENCE)[1]
        finally:
            receiver.kill()
    assert receiver.returncode == 0
    gave_up = subprocess.run(
        [*receive, "--file", str(tmp_path / "c"), "--give-up-after", "0.1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert gave_up.returncode == 4
    events = fields_by_event(said + gave_up.stderr)
    events.pop("in-memory", None)  # of the machine's, where tests run in memory
    assert events == shown_fields("receive")
    assert fields_by_event(done.stdout) == shown_fields("progress")
