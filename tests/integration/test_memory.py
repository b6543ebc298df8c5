"""What is finished is remembered: commands that are run again, in real processes."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.support.disks import MIB, digest, loop_device, random_image
from tests.support.processes import (
    ANY_PORT,
    BLOCKMIG,
    TWIST,
    TWISTD,
    Processes,
    Running,
    until,
)

SIZE = 3 * MIB


def times(*directories: Path) -> dict[Path, tuple[int, int, int]]:
    """When everything there was last written to or touched."""
    found = {}
    for directory in directories:
        for path in (directory, *directory.iterdir()):
            status = path.stat()
            found[path] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return found


def record_of(disk: Path, kind: str) -> Any:
    return json.loads(disk.with_name(f"{disk.name}.{kind}").read_text())


class Hosts:
    """Two hosts between which one disk is migrated."""

    def __init__(self, processes: Processes, room: Path, *options: str) -> None:
        self.processes = processes
        self.options = options
        for name in ("a", "b", "c"):
            (room / name).mkdir()
        self.room = room
        self.source, self.copy = room / "a" / "disk", room / "b" / "disk"
        random_image(self.source, SIZE)
        self.digest = digest(self.source)
        self.uri = ""

    def migrate(self) -> None:
        receiver = self.processes.receive(self.copy, "--size", SIZE)
        self.uri = receiver.uri
        assert self.send().status == 0
        assert receiver.wait() == 0, receiver.stderr

    def send(self, *options: str) -> Running:
        return self.processes.run(BLOCKMIG, "send", self.source, self.uri, *self.options, *options)

    def receive(
        self, *options: str | Path, command: tuple[str, ...] = (BLOCKMIG, "receive")
    ) -> Running:
        """To its end, which must be near."""
        given = ("--file", self.copy, "--size", str(SIZE), "--listen", ANY_PORT)
        return self.processes.run(*command, *given, *options, timeout=20)

    def times(self) -> dict[Path, tuple[int, int, int]]:
        return times(*(self.room / name for name in ("a", "b", "c")))

    def verdict(self, path: Path, *more: str | Path) -> str:
        return self.processes.run(BLOCKMIG, "inspect", path, *more).stdout.splitlines()[0]


@pytest.mark.parametrize("options", [(), ("--unlink",)], ids=["keep", "unlink"])
def test_the_same_commands_run_again_exit_with_0_and_write_nothing(
    processes: Processes, room: Path, options: tuple[str, ...]
) -> None:
    hosts = Hosts(processes, room, *options)
    hosts.migrate()
    before = hosts.times()
    for _ in range(2):
        sent = hosts.send()
        assert sent.status == 0, sent.stderr
        assert "there is nothing to do" in sent.stderr
        for more in ((), ("--overwrite",), ("--again",)):
            received = hosts.receive(*more)
            assert received.status == 0, received.stderr
            assert "there is nothing to do" in received.stderr
            assert "nobody is listening on" in received.stderr
    assert hosts.times() == before
    assert digest(hosts.copy) == hosts.digest
    assert hosts.verdict(hosts.source) == "not canonical"
    assert hosts.verdict(hosts.copy) == "canonical"
    assert hosts.verdict(hosts.source, hosts.copy) == f"canonical: {hosts.copy}"


@pytest.mark.parametrize("options", [(), ("--unlink",)], ids=["keep", "unlink"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_retired_disk_that_is_sent_again_is_not_canonical_whatever_becomes_of_that(
    processes: Processes, room: Path, how: signal.Signals, options: tuple[str, ...]
) -> None:
    hosts = Hosts(processes, room)
    hosts.migrate()
    new = ("--overwrite", "--id", "new", *options)
    other = room / "c" / "disk"
    receiver = processes.receive(other, "--size", SIZE)
    sender = processes.send(hosts.source, receiver, *new, "--max-rate", "100K")
    until(hosts.source.with_name("disk.MIGRATING").exists)
    sender.process.send_signal(how)
    sender.wait()
    said = processes.run(BLOCKMIG, "inspect", hosts.source).stdout
    assert said.startswith("not canonical\n")
    assert hosts.verdict(hosts.source, hosts.copy) == f"canonical: {hosts.copy}"
    if how == signal.SIGKILL:
        assert f"it was migrated to {os.uname().nodename}:{hosts.copy}" in said
        assert "it is being sent again" in said
    before = hosts.times()
    for id in ((), ("--id", record_of(hosts.source, "MIGRATED")["id"])):
        first = hosts.send(*id)
        assert first.status == 0, first.stderr
        assert "there is nothing to do" in first.stderr
    refused = processes.run(BLOCKMIG, "send", hosts.source, receiver.uri, "--id", "third")
    assert refused.status == 1, "the permission is not this one's"
    assert hosts.times() == before
    sender = processes.send(hosts.source, receiver, *new)
    assert (sender.wait(), receiver.wait()) == (0, 0), sender.stderr
    assert hosts.verdict(hosts.source, other) == f"canonical: {other}"
    record = record_of(hosts.source, "MIGRATED")
    assert record["id"] == "new"
    assert len(record["ids"]) == 1


@pytest.mark.parametrize("how", ["written", "mapped", "touched"])
def test_a_kept_disk_that_was_written_since_is_not_called_sent(
    processes: Processes, room: Path, how: str
) -> None:
    """Whatever was written there is nowhere else."""
    hosts = Hosts(processes, room)
    hosts.migrate()
    # What changes only the ctime is no write: another mode, the mark.
    hosts.source.chmod(0o640)
    assert hosts.send().status == 0
    with hosts.source.open("r+b") as file:
        if how == "written":
            file.write(b"new")
        elif how == "mapped":
            with mmap.mmap(file.fileno(), 0) as mapped:
                mapped[:3] = b"new"
                mapped.flush()
        else:
            os.utime(hosts.source)
    for more in ((), ("--overwrite",), ("--id", "new"), ("--unlink",)):
        sent = hosts.send(*more)
        assert sent.status == 1, sent.stderr
        assert "was written after it went to" in sent.stderr
    said = processes.run(BLOCKMIG, "inspect", hosts.source).stdout
    assert said.startswith("not canonical\n")
    assert "it was written after that" in said
    # As it is now, elsewhere.
    receiver = processes.receive(room / "c" / "disk", "--size", SIZE)
    sender = processes.send(hosts.source, receiver, "--overwrite", "--id", "new")
    assert (sender.wait(), receiver.wait()) == (0, 0), sender.stderr
    assert digest(room / "c" / "disk") == digest(hosts.source)


@pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")
def test_a_kept_device_that_was_written_since_is_not_called_sent(
    processes: Processes, room: Path
) -> None:
    hosts = Hosts(processes, room)
    state = ("--state-dir", str(room / "state"))
    with loop_device(hosts.source) as device:
        receiver = processes.receive(hosts.copy, "--size", SIZE)
        sender = processes.send(device, receiver, *state)
        assert (sender.wait(), receiver.wait()) == (0, 0), sender.stderr
        command = (BLOCKMIG, "send", device, receiver.uri, *state)
        assert processes.run(*command).status == 0
        with device.open("r+b") as file:
            file.write(b"new")
        sent = processes.run(*command)
        assert sent.status == 1, sent.stderr
        assert "was written after it went to" in sent.stderr


@pytest.mark.parametrize(
    "command",
    [(TWISTD, "-n", "--pidfile=", "blockmig"), (TWIST, "blockmig")],
    ids=["twistd", "twist"],
)
def test_twistd_and_twist_exit_with_0_where_there_is_nothing_to_do(
    processes: Processes, room: Path, command: tuple[str, ...]
) -> None:
    hosts = Hosts(processes, room)
    hosts.migrate()
    before = hosts.times()
    again = hosts.receive(command=(*command, "receive"))
    assert again.status == 0, again.stdout + again.stderr
    assert hosts.times() == before


def test_what_was_received_is_looked_at_before_locks(processes: Processes, room: Path) -> None:
    """By now a machine uses it."""
    hosts = Hosts(processes, room)
    hosts.migrate()
    server = processes.start(
        BLOCKMIG, "serve", "--file", hosts.copy, "--listen", f"unix:{room}/socket",
        "--log-format", "json",
    )  # fmt: skip
    server.wait_event("listening")
    assert hosts.receive("--overwrite").status == 0
    other = room / "c" / "disk"
    other.write_bytes(b"x" * SIZE)
    taken = processes.run(BLOCKMIG, "receive", "--file", other, "--size", str(SIZE), timeout=20)
    assert taken.status == 1, "this one is only full of data"


def test_what_was_received_is_known_after_a_send_onward_was_stopped(
    processes: Processes, room: Path
) -> None:
    """So that `receive && serve` starts again after a cancelled migration."""
    hosts = Hosts(processes, room)
    hosts.migrate()
    receiver = processes.receive(room / "c" / "disk", "--size", SIZE)
    sender = processes.send(hosts.copy, receiver, "--max-rate", "100K")
    until(hosts.copy.with_name("disk.MIGRATING").exists)
    sender.process.send_signal(signal.SIGINT)
    assert sender.wait() == 4, sender.stderr
    receiver.kill()
    before = hosts.times()
    for more in ((), ("--overwrite",)):
        received = hosts.receive(*more)
        assert received.status == 0, received.stderr
    with hosts.copy.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert hosts.receive("--overwrite").status == 0, "a machine uses it"
    assert hosts.receive("--id", "another").status == 1
    assert hosts.times() == before
    assert hosts.verdict(hosts.copy) == "canonical"


def test_another_size_is_not_what_was_received(processes: Processes, room: Path) -> None:
    hosts = Hosts(processes, room)
    hosts.migrate()
    refused = hosts.receive("--size", str(2 * SIZE))
    assert refused.status == 1
    assert f"has {SIZE} bytes" in refused.stderr


@pytest.mark.parametrize("options", [(), ("--unlink",)], ids=["keep", "unlink"])
def test_what_differs_is_refused_and_nothing_is_written(
    processes: Processes, room: Path, options: tuple[str, ...]
) -> None:
    hosts = Hosts(processes, room, *options)
    hosts.migrate()
    other = random_image(room / "other", SIZE)
    before = hosts.times()
    uri, hosts.uri = hosts.uri, "nbd://127.0.0.1:1/elsewhere"
    refused = hosts.send()
    assert refused.status == 1, refused.stderr
    assert "blockmig forget" in refused.stderr
    hosts.uri = uri
    assert hosts.times() == before
    # Another file has the name of each disk.
    for path in (hosts.source, hosts.copy):
        path.unlink(missing_ok=True)
        path.write_bytes(other.read_bytes())
    before = hosts.times()
    for again in (hosts.send(), hosts.send("--overwrite"), hosts.receive()):
        assert again.status == 1, again.stderr
        assert "blockmig forget" in again.stderr
        assert "Traceback" not in again.stderr
    assert hosts.receive("--overwrite").status == 1, "it needs a new id"
    assert hosts.times() == before
    assert hosts.verdict(hosts.source).startswith(
        "unknown: another file has the name of the disk that went to"
    )
    assert hosts.verdict(hosts.copy) == "canonical"
    told = processes.run(BLOCKMIG, "inspect", hosts.copy)
    assert "RECEIVED there is about another file" in told.stdout


def test_the_advice_of_a_refusal_works_as_it_stands(processes: Processes, room: Path) -> None:
    hosts = Hosts(processes, room, "--unlink")
    hosts.migrate()
    random_image(hosts.source, SIZE)
    refused = hosts.send()
    command = refused.stderr.strip().rpartition("blockmig forget ")[2].split()
    assert processes.run(BLOCKMIG, "forget", *command).status == 0
    assert processes.run(BLOCKMIG, "forget", hosts.copy).status == 0
    hosts.copy.unlink()
    hosts.migrate()
    assert hosts.send().status == 0
    assert hosts.receive().status == 0


def test_a_receiver_in_a_restart_loop_writes_the_disk_once(
    processes: Processes, room: Path
) -> None:
    """A supervisor starts it anew at once, with --overwrite."""
    hosts = Hosts(processes, room)
    hosts.copy.write_bytes(b"old data" * (SIZE // 8))
    receiver = processes.receive(hosts.copy, "--overwrite")
    hosts.uri = receiver.uri
    port = receiver.uri.rpartition(":")[2].strip("/")
    assert hosts.send().status == 0
    assert receiver.wait() == 0
    before = hosts.times()
    for _ in range(3):
        again = hosts.receive("--overwrite", "--listen", f"tcp:{port}:interface=127.0.0.1")
        assert again.status == 0, again.stderr
    assert hosts.times() == before
    assert digest(hosts.copy) == hosts.digest


def test_a_disk_that_goes_on_is_remembered_at_each_place(processes: Processes, room: Path) -> None:
    """A to B, then B to C; what is said of each is true, and nothing is done twice."""
    hosts = Hosts(processes, room, "--unlink")
    hosts.migrate()
    third = room / "c" / "disk"
    receiver = processes.receive(third, "--size", SIZE)
    on = (BLOCKMIG, "send", hosts.copy, receiver.uri, "--unlink")
    assert processes.run(*on).status == 0
    assert receiver.wait() == 0
    before = hosts.times()
    assert hosts.verdict(hosts.copy) == "not canonical"
    assert hosts.verdict(third) == "canonical"
    assert hosts.verdict(hosts.copy, third) == f"canonical: {third}"
    first = json.loads(Path(f"{hosts.copy}.RECEIVED").read_text())
    second = json.loads(Path(f"{hosts.copy}.MIGRATED").read_text())
    assert second["follows"] == first["migration"]
    assert hosts.send().status == 0
    assert processes.run(*on).status == 0
    refused = hosts.receive()
    assert refused.status == 1, "it has gone on since"
    assert hosts.times() == before
