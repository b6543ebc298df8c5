"""`blockmig check` and `send --dry-run`: what a person sees, and that nothing follows from it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.disks import (
    MIB,
    digest,
    loop_device,
    random_image,
    small_file_system,
    sparse_image,
)
from tests.support.processes import BLOCKMIG, Processes, Running, until

SIZE = 8 * MIB


class Pair:
    """A source, a receiver, and checks of one by the other."""

    def __init__(self, room: Path, processes: Processes) -> None:
        self.room = room
        self.processes = processes
        self.source = random_image(room / "source", SIZE)
        self.there = room / "there"
        self.there.mkdir()
        self.copy = self.there / "copy"

    def receive(self, *options: str | Path | int) -> Running:
        sized = ("--size", SIZE) if not self.copy.exists() else ()
        return self.processes.receive(
            self.copy, *sized, "--state-dir", self.room / "state", *options
        )

    def check(self, uri: str | Running, *options: str | Path, status: int) -> dict[str, Any]:
        """What is found, by name."""
        uri = uri.uri if isinstance(uri, Running) else uri
        running = self.processes.run(BLOCKMIG, "check", self.source, uri, "--json", *options)
        assert running.status == status, running.stdout + running.stderr
        self.found: dict[str, Any] = json.loads(running.stdout)
        assert self.found["can_begin"] is (status == 0)
        return {item["name"]: item for item in self.found["checks"]}

    def fails(self, uri: str | Running, name: str, words: str, *options: str | Path) -> None:
        found = self.check(uri, *options, status=1)
        failed = [item["name"] for item in found.values() if item["result"] == "failed"]
        assert failed == [name], found
        assert words in found[name]["message"], found[name]


@pytest.fixture
def attached(room: Path) -> Iterator[contextlib.ExitStack]:
    """What is unmounted once all processes are gone."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def pair(room: Path, processes: Processes) -> Pair:
    return Pair(room, processes)


def state(*paths: Path) -> list[Any]:
    """What would show that anything was changed."""
    found: list[Any] = []
    for path in paths:
        status = path.stat()
        found.append((path, status.st_mtime_ns, status.st_ctime_ns, status.st_blocks))
        if path.is_dir():
            found.append(sorted(os.listdir(path)))
    return found


def test_a_good_pair(pair: Pair) -> None:
    receiver = pair.receive("--id", "web-7")
    before = state(pair.source, pair.there, pair.copy)
    found = pair.check(receiver, "--id", "web-7", "--unlink", status=0)
    assert {item["result"] for item in found.values()} == {"ok"}, found
    assert pair.found["conclusion"] == "the migration can begin"
    assert found["export"]["figures"]["size"] == SIZE
    assert found["room"]["figures"]["free"] > 0
    assert found["rate"]["figures"]["rate"] > MIB
    assert state(pair.source, pair.there, pair.copy) == before

    sender = pair.processes.send(pair.source, receiver, "--id", "web-7", "--unlink")
    expected = digest(pair.source)
    assert (sender.wait(), receiver.wait()) == (0, 0)
    assert digest(pair.copy) == expected


def test_a_line_for_each_thing(pair: Pair) -> None:
    receiver = pair.receive("--id", "web-7")
    running = pair.processes.run(
        BLOCKMIG, "send", "--dry-run", pair.source, receiver.uri, "--id", "web-7"
    )
    assert running.status == 0, running.stderr
    assert running.stderr == ""
    *lines, last = running.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"ok"}
    assert last == "the migration can begin"
    assert pair.source.exists()
    assert not list(pair.room.glob("source.*"))


def test_what_the_receiver_does_not_tell_to_everybody(pair: Pair) -> None:
    found = pair.check(pair.receive(), status=0)
    assert found["not-told"]["result"] == "warning"
    assert "--id or --secret" in found["not-told"]["message"]
    assert "room" not in found


def test_another_size(pair: Pair) -> None:
    sparse_image(pair.copy, SIZE + MIB, {})
    pair.fails(pair.receive(), "export", f"{SIZE} bytes, the destination {SIZE + MIB}")


def test_no_room(attached: contextlib.ExitStack, pair: Pair) -> None:
    pair.there = attached.enter_context(small_file_system(pair.room / "small", SIZE // 2))
    pair.copy = pair.there / "copy"
    receiver = pair.receive("--id", "web-7", "--no-space-check")
    pair.fails(receiver, "room", "8 MiB of data do not fit", "--id", "web-7")


def test_no_room_for_all_of_it(attached: contextlib.ExitStack, pair: Pair) -> None:
    pair.there = attached.enter_context(small_file_system(pair.room / "small", SIZE // 2))
    pair.copy = pair.there / "copy"
    sparse_image(pair.source, SIZE, {MIB: b"x" * MIB})
    for option, failed in ((), True), (("--no-space-check",), False):
        receiver = pair.processes.receive(
            pair.copy, "--state-dir", pair.room / "state", "--id", "web-7", *option
        )
        if failed:
            words = "nothing else is taken there without --no-space-check"
            pair.fails(receiver, "room", words, "--id", "web-7")
        else:
            found = pair.check(receiver, "--id", "web-7", status=0)
            assert found["room"]["result"] == "warning"
        sender = pair.processes.send(pair.source, receiver, "--id", "web-7")
        assert sender.wait() == (1 if failed else 0), sender.stderr
        receiver.kill()


def test_a_disk_in_use(pair: Pair) -> None:
    with pair.source.open("r+b"):
        pair.fails(pair.receive(), "in-use", "is open in")


def test_a_directory_that_is_read_only(attached: contextlib.ExitStack, pair: Pair) -> None:
    place = attached.enter_context(small_file_system(pair.room / "small", 4 * SIZE))
    pair.source = random_image(place / "source", SIZE)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    pair.fails(pair.receive(), "records", "Read-only file system")


def test_nobody_listens(pair: Pair) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair.fails(f"nbd://127.0.0.1:{port}/", "destination", "nobody listens on 127.0.0.1")


def test_one_that_is_silent(pair: Pair) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"nbd://127.0.0.1:{silent.getsockname()[1]}/"
        began = time.monotonic()
        pair.fails(uri, "destination", "within 1 s", "--timeout", "1")
        assert time.monotonic() - began < 10


def test_another_id(pair: Pair) -> None:
    receiver = pair.receive("--id", "web-7")
    pair.fails(receiver, "receiver", "compare --id and --secret", "--id", "web-8")
    refused = receiver.wait_event("refused")
    assert refused["phase"] == "'checking'"


def test_another_secret(pair: Pair) -> None:
    for name, text in (("right", "a" * 32), ("wrong", "b" * 32)):
        (pair.room / name).write_text(text)
        (pair.room / name).chmod(0o600)
    receiver = pair.receive("--secret", pair.room / "right")
    pair.fails(receiver, "receiver", "--secret", "--secret", pair.room / "wrong")
    found = pair.check(receiver, "--secret", pair.room / "right", status=0)
    assert found["rate"]["result"] == "ok"


def test_another_programs_server(pair: Pair) -> None:
    sparse_image(pair.copy, SIZE, {})
    place = pair.room / "socket"
    pair.processes.start("qemu-nbd", "-t", "-f", "raw", "-k", place, pair.copy)
    until(place.exists)
    uri = f"nbd+unix:///?socket={place}"
    before = digest(pair.copy)
    found = pair.check(uri, status=0)
    assert found["receiver"]["result"] == "warning"
    assert "is not a blockmig receiver" in found["receiver"]["message"]
    assert found["content"]["result"] == "ok"
    assert digest(pair.copy) == before
    with pair.copy.open("r+b") as file:
        file.write(b"somebody's data")
    pair.fails(uri, "content", "holds data")
    pair.fails(uri, "content", "cannot check the --id", "--id", "web-7")
    assert pair.check(uri, "--overwrite", status=0)["content"]["result"] == "warning"


def test_an_interrupt_ends_it(pair: Pair) -> None:
    receiver = pair.receive("--id", "web-7")
    running = pair.processes.start(
        BLOCKMIG, "check", pair.source, receiver.uri, "--id", "web-7", "--max-rate", "1M"
    )
    until(lambda: "clocks agree" in running.stdout, what=running.stdout)
    running.signal(signal.SIGINT)
    assert running.wait() == 4
    assert "the check has changed nothing" in running.stderr
    assert running.stderr.count("\n") == 1
    sender = pair.processes.send(pair.source, receiver, "--id", "web-7")
    assert (sender.wait(), receiver.wait()) == (0, 0)


def test_an_output_that_is_full(pair: Pair) -> None:
    line = f"{BLOCKMIG} check {pair.source} nbd://127.0.0.1:1/ >/dev/full"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "cannot write to standard output" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves(pair: Pair) -> None:
    line = f"{BLOCKMIG} check {pair.source} nbd://127.0.0.1:1/ | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_other_programs_list_the_exports_as_before(pair: Pair) -> None:
    receiver = pair.receive("--id", "web-7")
    names = pair.processes.checked("nbdinfo", "--list", "--json", receiver.uri)
    assert [one["export-name"] for one in json.loads(names)["exports"]] == ["", ".handoff"]
    scratch = receiver.uri.rstrip("/") + "/.scratch"
    refused = pair.processes.run("qemu-img", "info", scratch)
    assert refused.status != 0
    assert "check was accepted" in refused.stderr


def test_a_receiver_that_gets_its_size_from_the_sender(pair: Pair) -> None:
    receiver = pair.processes.receive(
        pair.copy, "--state-dir", pair.room / "state", "--id", "web-7"
    )
    found = pair.check(receiver, "--id", "web-7", status=0)
    assert found["export"]["figures"]["size"] == SIZE
    assert {item["result"] for item in found.values()} == {"ok"}, found
    assert (pair.copy.stat().st_size, os.listdir(pair.there)) == (0, ["copy"])
    sender = pair.processes.send(pair.source, receiver, "--id", "web-7")
    assert (sender.wait(), receiver.wait()) == (0, 0)
    assert digest(pair.copy) == digest(pair.source)


def test_a_device_of_which_no_record_was_ever_kept(
    attached: contextlib.ExitStack, pair: Pair
) -> None:
    """Nothing is made for them: the directory may be mistyped."""
    receiver = pair.receive("--id", "web-7")
    file, pair.source = pair.source, attached.enter_context(loop_device(pair.source))
    usual = Path("/var/lib/blockmig")
    before = sorted(usual.rglob("*")) if usual.exists() else None
    states = pair.room / "mistyped" / "and" / "nested"
    found = pair.check(receiver, "--id", "web-7", "--state-dir", states, status=0)
    assert f"{states} would be made" in found["records"]["message"]
    assert not (pair.room / "mistyped").exists()
    assert (sorted(usual.rglob("*")) if usual.exists() else None) == before
    below = file / "state"
    pair.fails(
        receiver, "records", f"{file} is no directory", "--id", "web-7", "--state-dir", below
    )


def test_a_device_in_use(attached: contextlib.ExitStack, pair: Pair) -> None:
    receiver = pair.receive("--id", "web-7")
    pair.source = attached.enter_context(loop_device(pair.source))
    options = ("--id", "web-7", "--state-dir", pair.room / "state")
    descriptor = os.open(pair.source, os.O_RDWR | os.O_EXCL)
    try:
        pair.fails(receiver, "in-use", "mounted, part of another device", *options)
    finally:
        os.close(descriptor)
    pair.check(receiver, *options, status=0)


def test_a_machine_that_runs(pair: Pair) -> None:
    """Of a receiver without a size, too, all else is found out."""
    pair.processes.start("qemu-nbd", "-t", "-f", "raw", "-k", pair.room / "socket", pair.source)
    until((pair.room / "socket").exists)
    receiver = pair.processes.receive(
        pair.copy, "--state-dir", pair.room / "state", "--id", "web-7"
    )
    pair.fails(receiver, "in-use", "QEMU", "--id", "web-7")
    assert len(pair.found["checks"]) > 12


def test_an_append_only_directory(pair: Pair) -> None:
    place = pair.room / "append-only"
    place.mkdir()
    pair.source = random_image(place / "source", SIZE)
    subprocess.run(["chattr", "+a", place], check=True)
    try:
        pair.fails(pair.receive(), "records", "append-only: chattr -a")
        assert os.listdir(place) == ["source"]
    finally:
        subprocess.run(["chattr", "-a", place], check=True)
