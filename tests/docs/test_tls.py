"""The commands in docs/tls.md work, and the messages there are those that there are."""

from __future__ import annotations

import ast
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.docs.test_documents import (
    PATIENCE,
    SHELL,
    SIZE,
    Hosts,
    end_group,
    wait_until_listening,
    write_disk,
)
from tests.support.pki import make_hosts

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tls.md").read_text()
ROWS = PAGE.partition("## What is wrong")[2].split("\n| --- | --- |\n")[1].split("\n\n")[0]
MESSAGES = [
    message for row in ROWS.splitlines() for message in re.findall(r"`([^`]+)`", row.split("|")[1])
]
RECEIVE = (
    "blockmig receive /var/lib/images/web.img --tls-certificates /etc/pki/blockmig "
    "--allow-name web1 --listen 192.0.2.7:10809"
)
SERVERS = ("nbdkit", "qemu-nbd")
CLIENTS = ("nbdcopy", "qemu-img")


def command(begin: str) -> str:
    """The one block of the page that begins like this."""
    (text,) = [
        block.text
        for block in SHELL
        if block.document.name == "tls.md" and block.text.startswith(f"{begin} ")
    ]
    return text


class Certified(Hosts):
    """Hosts that have certificates: of the source web1's, of the destination 192.0.2.7's.

    The CA is at the source, in its home directory, as the page has it.
    """

    def __init__(self, folder: Path, reference: Path) -> None:
        super().__init__(folder, reference)
        self.ca = folder / "source" / "home" / "pki"
        make_hosts(self.ca, "web1", "vm1", self.address, self.next_address)
        self.give("source", "web1")
        self.give("destination", self.address)
        self._running: list[subprocess.Popen[str]] = []

    def give(self, host: str, name: str) -> None:
        shutil.copytree(self.ca / name, self.pki(host), dirs_exist_ok=True)

    def pki(self, host: str) -> Path:
        return self.folder / host / "pki" / "blockmig"

    def begin(self, text: str, host: str, *, listens: bool = True) -> subprocess.Popen[str]:
        process = self.start_text(text, host)
        self._running.append(process)
        if listens:
            wait_until_listening(process)
        return process

    def run(self, text: str, host: str = "source") -> None:
        ended(self.start_text(text, host), text)

    def is_let_in(self, name: str) -> bool:
        """Whether a client at the source sees the disk at 192.0.2.7."""
        uri = f"nbds://{self.address}/?tls-certificates={self.ca / name}"
        done = subprocess.run(
            ["nbdinfo", "--size", uri], capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode or done.stdout.strip() == str(SIZE)
        return not done.returncode

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                end_group(process, signal.SIGKILL)
        shutil.rmtree(self.folder)


def ended(process: subprocess.Popen[str], text: str = "") -> None:
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, f"{text}{said}"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "web.img"
    write_disk(path)
    return path


@pytest.fixture
def hosts(reference: Path) -> Iterator[Certified]:
    made = Certified(Path(tempfile.mkdtemp(prefix="docs-")), reference)
    yield made
    made.close()


def test_every_command_is_run_by_a_test_here() -> None:
    blocks = [block for block in SHELL if "on=tls" in block.tags]
    assert {block.document.name for block in blocks} == {"tls.md"}
    words = [block.text.split()[0] for block in blocks]
    assert sorted(words) == sorted(["blockmig", "blockmig", "mv", *SERVERS, *CLIENTS])


def test_a_served_disk_is_mirrored_and_its_clients_are_relayed(hosts: Certified) -> None:
    hosts.give("source", hosts.address)
    hosts.give("destination", hosts.next_address)
    old = hosts.begin(command("blockmig serve"), "source")
    assert hosts.is_let_in("vm1")
    assert not hosts.is_let_in("web1")

    def at_the_new_host(text: str) -> str:
        return text.replace("192.0.2.7", "192.0.2.8").replace("web1", "192.0.2.7")

    standby = RECEIVE.replace("receive", "serve --standby", 1)
    new = hosts.begin(at_the_new_host(standby), "destination", listens=False)
    receiver = hosts.begin(at_the_new_host(RECEIVE), "destination")
    hosts.run(command("blockmig mirror"))
    ended(receiver)
    assert hosts.is_let_in("vm1")  # relayed
    for server in (old, new):
        said = end_group(server, signal.SIGTERM)
        assert server.returncode == 0, said
    hosts.check(unlinked=False)


def test_renewed_certificates_are_used_by_a_receiver_that_runs(hosts: Certified) -> None:
    receiver = hosts.begin(RECEIVE, "destination")
    hosts.run(command("mv"))
    at_home, there = hosts.ca / hosts.address, hosts.pki("destination")
    for path in at_home.iterdir():
        assert (there / path.name).read_bytes() == path.read_bytes()
        assert (there / path.name).stat().st_mode == path.stat().st_mode
    certificate = "server-cert.pem"
    old = hosts.ca / f"{hosts.address}.old" / certificate
    assert (there / certificate).read_bytes() != old.read_bytes()
    hosts.run(command("blockmig send"))
    ended(receiver)
    hosts.check(unlinked=True)


@pytest.mark.parametrize("program", CLIENTS)
def test_another_program_sends_to_a_receiver(hosts: Certified, program: str) -> None:
    receiver = hosts.begin(f"{RECEIVE} --size {SIZE}", "destination")
    hosts.run(command(program))
    ended(receiver)
    hosts.check(unlinked=False)


@pytest.mark.parametrize("program", SERVERS)
def test_another_program_receives(hosts: Certified, program: str) -> None:
    hosts.run(f"truncate --size={SIZE} /var/lib/images/web.img", "destination")
    (hosts.ca / "nobody").mkdir()
    shutil.copy(hosts.ca / "ca-cert.pem", hosts.ca / "nobody")
    server = hosts.begin(command(program), "destination")
    assert not hosts.is_let_in("nobody")
    hosts.run(command("blockmig send"))
    if program == "nbdkit":  # qemu-nbd ends with its client
        end_group(server, signal.SIGTERM)
    else:
        ended(server)
    hosts.check(unlinked=True)


@cache
def said() -> list[str]:
    """The pieces of text in the program, with no bounds between lines."""
    return [
        node.value
        for path in (ROOT / "src" / "blockmig").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


@pytest.mark.parametrize("message", [one for one in MESSAGES if one != "ca-cert.pem"])
def test_a_message_in_the_table_is_one_of_the_program(message: str) -> None:
    texts = said()
    for piece in re.split("…|NAME|server(?:'s certificate)?|client", message):
        assert any(piece.strip(" ,") in text for text in texts), piece


def test_the_table_has_them_all() -> None:
    assert len(MESSAGES) > 15
