"""Disks that fail for real: full, cut, read-only, limited, broken by FUSE, gone, or hung.

What is expected is what docs/failures.md says: of each fault the same comes as in the migration
from which that table was made (`tests/docs/failures_table.py`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.docs.failures_table import Result, cases, results
from tests.support import wire
from tests.support.disks import MIB, attached, digest, loop_name, random_image, small_file_system
from tests.support.failing import FailingDirectory, failing_directory
from tests.support.processes import BLOCKMIG, FULL, Processes, Running, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted by root")

SIZE = 3 * MIB


def expected(program: str, place: str, step: str, error: int) -> tuple[Result, str]:
    """What the table says: the result, and the NBD error."""
    (case,) = (
        case for case in cases() if (case.program, case.place, case.step) == (program, place, step)
    )
    name = errno.errorcode[error]
    for result, errors in results(replace(case, errors=(error,))).items():
        for group in errors:
            names, _, nbd = group.partition(" → ")
            if name in names.split(", "):
                return result, nbd
    raise AssertionError(f"{name} is not in the table for {case}")


@pytest.fixture
def failing(room: Path) -> Iterator[FailingDirectory]:
    with failing_directory(room / "failing") as directory:
        yield directory


def inspected(processes: Processes, *disks: Path) -> str:
    """The first line of the verdict."""
    inspect = processes.run(BLOCKMIG, "inspect", *disks)
    return inspect.stdout.partition("\n")[0].removesuffix(" (being copied now)")


def short(verdict: str) -> str:
    """As the table has it."""
    if verdict.startswith("canonical only if"):
        return "canonical only if …"
    return "unknown" if verdict.startswith("unknown: ") else verdict


def check_verdicts(processes: Processes, result: Result, source: Path, destination: Path) -> None:
    assert short(inspected(processes, source)) == result.here
    assert short(inspected(processes, destination)) == result.there
    which = {"source": f"canonical: {source}", "destination": f"canonical: {destination}"}
    both = short(inspected(processes, source, destination))
    assert both == which.get(result.both, "unknown")


def check_reason(why: str, nbd: str) -> None:
    """Why an attempt ended; errors of messages are put into other words."""
    words = {"ENOSPC": "it has no room left", "EPERM": "does not accept 'copied' now"}
    assert nbd in why or words[nbd] in why


def wait_or_stop(running: Running, says: str) -> None:
    """Its end as the table tells: by itself, or when it is stopped."""
    if says.isdecimal():
        assert running.wait(30) == int(says), running.stderr
        return
    assert running.status is None, running.stderr
    running.signal(signal.SIGTERM)
    assert running.wait(30) == int(says.partition("(")[2][0]), running.stderr


# By FUSE: one act of a migration fails.


@dataclass(frozen=True)
class Fault:
    """An act that fails, as the table calls it, and as the file system does."""

    place: str
    step: str
    error: int
    op: str
    name: str
    after: int = 0

    def __str__(self) -> str:
        return f"{self.place} {self.step} {errno.errorcode[self.error]}".replace("`", "")


AT_THE_DESTINATION = (
    Fault("writing data", "", errno.EDQUOT, "write", "web.img"),
    Fault("writing data", "", errno.EROFS, "write", "web.img"),
    Fault("flushing the disk", "", errno.EIO, "fsync", "web.img"),
    Fault("`INCOMPLETE` (copying)", "write", errno.ENOSPC, "write", "INCOMPLETE.tmp"),
    Fault("`INCOMPLETE` (copied)", "rename", errno.EIO, "rename", "INCOMPLETE", 1),
    Fault("`INCOMPLETE` (copied)", "write", errno.ENOSPC, "write", "INCOMPLETE.tmp", 1),
    Fault("`INCOMPLETE` (retired)", "fsync", errno.EIO, "fsync", "INCOMPLETE.tmp", 2),
    Fault("`RECEIVED`", "write", errno.ENOSPC, "write", "RECEIVED.tmp"),
    Fault("`RECEIVED`", "rename", errno.EIO, "rename", "RECEIVED"),
    Fault("removing `INCOMPLETE`", "unlink", errno.EROFS, "unlink", "INCOMPLETE"),
)
AT_THE_SOURCE = (
    Fault("reading the disk", "", errno.EIO, "read", "web.img", 1),
    Fault("`MIGRATING` (copying)", "write", errno.EDQUOT, "write", "MIGRATING.tmp"),
    Fault("`MIGRATING` (copied)", "rename", errno.EROFS, "rename", "MIGRATING", 1),
    Fault("deleting the disk", "unlink", errno.EROFS, "unlink", "web.img"),
    Fault("`MIGRATING` (told)", "write", errno.ENOSPC, "write", "MIGRATING.tmp", 2),
    Fault("`MIGRATED` (of a deleted disk)", "rename", errno.EIO, "rename", "MIGRATED"),
)
IN_SHORT = (0, 2, 5, 7)
"""Those that are run in short; the rest of them in full."""


def some(faults: tuple[Fault, ...], few: tuple[int, ...] = IN_SHORT) -> list[Fault]:
    return [fault for number, fault in enumerate(faults) if FULL or number in few]


@pytest.mark.parametrize("fault", some(AT_THE_DESTINATION), ids=str)
def test_a_fault_of_the_destination_is_what_the_table_says(
    processes: Processes, room: Path, failing: FailingDirectory, fault: Fault
) -> None:
    result, nbd = expected("receive", fault.place, fault.step, fault.error)
    source, there = random_image(room / "web.img", SIZE), failing.path / "web.img"
    before = digest(source)
    failing.fail(fault.op, fault.name, fault.error, fault.after)
    receiver = processes.receive(there, "--size", SIZE)
    port = receiver.uri
    sender = processes.send(source, receiver, "--unlink")
    assert receiver.wait(30) == int(result.status), receiver.stderr
    if nbd:
        reason = "finishing" if "retired" in fault.place else "restart"
        check_reason(sender.wait_event(reason)["why"], nbd)
    else:
        sender.wait_event("finishing")
    wait_or_stop(sender, result.other)
    failing.heal()
    check_verdicts(processes, result, source, there)
    # Nothing is lost: the same commands finish, or have nothing left to do.
    listen = "tcp:" + port.rpartition(":")[2].strip("/") + ":interface=127.0.0.1"
    again = processes.start(
        *(BLOCKMIG, "receive", "--log-format", "json", "--listen", listen),
        *("--file", there, "--size", str(SIZE)),
    )
    until(lambda: again.events("listening") or again.status is not None)
    sender = processes.send(source, port, "--unlink", "--give-up-after", "10")
    assert sender.wait(60) == 0, sender.stderr
    assert again.wait(30) == 0, again.stderr
    assert digest(there) == before


@pytest.mark.parametrize("fault", some(AT_THE_SOURCE, (0, 2, 3)), ids=str)
def test_a_fault_of_the_source_is_what_the_table_says(
    processes: Processes, room: Path, failing: FailingDirectory, fault: Fault
) -> None:
    result, _ = expected("send", fault.place, fault.step, fault.error)
    random_image(failing.backing / "web.img", SIZE)  # so that it is in no page cache here
    source, there = failing.path / "web.img", room / "copy.img"
    before = digest(source)
    failing.fail(fault.op, fault.name, fault.error, fault.after)
    receiver = processes.receive(there, "--size", SIZE)
    sender = processes.send(source, receiver, "--unlink")
    wait_or_stop(sender, result.status)
    wait_or_stop(receiver, result.other)
    failing.heal()
    check_verdicts(processes, result, source, there)
    assert digest(there if result.both == "destination" else source) == before


@pytest.mark.parametrize(
    ("place", "op", "name", "after", "error"),
    [
        ("reading the disk", "read", "web.img", 0, errno.EIO),
        ("`MIGRATING` (copying)", "write", "MIGRATING.tmp", 0, errno.ENOSPC),
    ],
    ids=["read", "record"],
)
def test_a_mirror_whose_source_fails_ends_and_its_server_goes_on(
    processes: Processes,
    room: Path,
    failing: FailingDirectory,
    place: str,
    op: str,
    name: str,
    after: int,
    error: int,
) -> None:
    step = "write" if op == "write" else ""
    result, _ = expected("mirror", place, step, error)
    random_image(failing.backing / "web.img", SIZE)  # so that it is in no page cache here
    source, there = failing.path / "web.img", room / "copy.img"
    receiver = processes.receive(there, "--size", SIZE)
    server = serve(processes, room, source)
    failing.fail(op, name, error, after)
    control = room / "control"
    mirror = processes.run(
        BLOCKMIG, "mirror", "--wait", "--control", control, receiver.uri, timeout=30
    )
    assert mirror.status == int(result.status), mirror.stderr
    failing.heal()
    with wire.client(server.uri) as client:
        assert client.ask(wire.WRITE, 0, 4096, b"x" * 4096) == 0
    wait_or_stop(receiver, result.other)
    check_verdicts(processes, result, source, there)
    server.signal(signal.SIGTERM)
    assert server.wait(30) == 0


def serve(
    processes: Processes, room: Path, disk: Path, *options: str, command: tuple[str, ...] = ()
) -> Running:
    server = processes.start(
        *(command or (BLOCKMIG,)),
        "serve",
        *("--log-format", "json", "--listen", "tcp:0:interface=127.0.0.1"),
        *("--control", room / "control", "--file", disk, *options),
    )
    server.uri = server.wait_event("listening")["uri"]
    return server


@pytest.mark.parametrize(
    ("command", "op", "error"),
    [
        (wire.READ, "read", errno.EIO),
        (wire.WRITE, "write", errno.EDQUOT),
        (wire.WRITE, "write", errno.EROFS),
        (wire.FLUSH, "fsync", errno.EIO),
    ],
    ids=["read", "quota", "read-only", "flush"],
)
def test_a_client_gets_the_error_of_a_served_disk(
    processes: Processes,
    room: Path,
    failing: FailingDirectory,
    command: int,
    op: str,
    error: int,
) -> None:
    name = {wire.READ: "READ", wire.WRITE: "WRITE", wire.FLUSH: "FLUSH"}[command]
    result, nbd = expected("serve", name, "", error)
    random_image(failing.backing / "web.img", SIZE)  # so that it is in no page cache here
    disk = failing.path / "web.img"
    server = serve(processes, room, disk)
    failing.fail(op, "web.img", error)
    offset, length = (0, 0) if command == wire.FLUSH else (2 * MIB, 4096)
    payload = b"x" * 4096 if command == wire.WRITE else b""
    with wire.client(server.uri) as client:
        assert errno.errorcode[client.ask(command, offset, length, payload)] == nbd
        failing.heal()
        assert client.ask(wire.WRITE, MIB, 4096, b"y" * 4096) == 0
    server.signal(signal.SIGTERM)
    assert server.wait(30) == int(result.status), server.stderr
    assert server.events("disk-error")
    assert inspected(processes, disk) == result.here


# A file system that is gone, or hangs.


def test_a_receiver_whose_file_system_is_aborted_fails_and_the_source_is_kept(
    processes: Processes, room: Path
) -> None:
    with failing_directory(room / "failing") as failing:
        source = random_image(room / "web.img", SIZE)
        before = digest(source)
        receiver = processes.receive(failing.path / "web.img", "--size", SIZE)
        sender = processes.send(source, receiver, "--unlink", "--max-rate", SIZE)
        receiver.wait_event("attempt")
        until((failing.backing / "web.img.INCOMPLETE").exists)
        failing.abort()
        assert receiver.wait(30) == 3, receiver.stderr
        assert "EIO" in sender.wait_event("restart")["why"]
        assert processes.run(BLOCKMIG, "inspect", failing.path / "web.img").status == 3
        assert inspected(processes, failing.backing / "web.img") == "not canonical"
    sender.signal(signal.SIGTERM)
    assert sender.wait(30) == 4, sender.stderr
    assert digest(source) == before
    assert inspected(processes, source) == "canonical"


def test_a_sender_whose_file_system_is_aborted_fails(processes: Processes, room: Path) -> None:
    with failing_directory(room / "failing") as failing:
        random_image(failing.backing / "web.img", SIZE)
        source = failing.path / "web.img"
        receiver = processes.receive(room / "copy.img", "--size", SIZE)
        sender = processes.send(source, receiver, "--unlink", "--max-rate", MIB)
        sender.wait_event("attempt")
        until((failing.backing / "web.img.MIGRATING").exists)
        until((room / "copy.img.INCOMPLETE").exists)
        failing.abort()
        assert sender.wait(30) == 3, sender.stderr
        assert inspected(processes, failing.backing / "web.img") == "canonical"
    receiver.signal(signal.SIGTERM)
    # Much may have been read before; perhaps all.
    status = receiver.wait(30)
    says = {4: "not canonical", 5: "canonical only if …"}[status]
    assert short(inspected(processes, room / "copy.img")) == says


def test_a_server_whose_file_system_is_aborted_answers_EIO(
    processes: Processes, room: Path
) -> None:
    with failing_directory(room / "failing") as failing:
        random_image(failing.backing / "web.img", SIZE)
        server = serve(processes, room, failing.path / "web.img")
        with wire.client(server.uri) as client:
            assert client.ask(wire.WRITE, 0, 4096, b"x" * 4096) == 0
            failing.abort()
            assert client.ask(wire.READ, 2 * MIB, 4096) == errno.EIO
            assert client.ask(wire.WRITE, MIB, 4096, b"x" * 4096) == errno.EIO
            assert client.ask(wire.FLUSH) == errno.EIO
        server.signal(signal.SIGTERM)
        assert server.wait(30) == 3, server.stderr
        assert inspected(processes, failing.backing / "web.img") == "canonical"


IMPATIENT = (
    sys.executable,
    "-c",
    "import blockmig.cli.operations as operations; operations.LONGEST_STOP = 1.0; "
    "operations.LONGEST_FLUSH = 2.0; "
    "from blockmig.cli.main import main; main()",
)
"""A disk that does not answer is not waited for as long as usual."""


@pytest.mark.parametrize("op", ["read", "write", "fsync"])
def test_a_server_whose_disk_hangs_serves_its_control_socket_and_can_be_stopped(
    processes: Processes, room: Path, failing: FailingDirectory, op: str
) -> None:
    server = serve(processes, room, random_image(failing.path / "web.img", SIZE), command=IMPATIENT)
    request = {
        "read": wire.request(wire.READ, 2 * MIB, 4096),
        "write": wire.request(wire.WRITE, MIB, 4096) + b"x" * 4096,
        "fsync": wire.request(wire.FLUSH),
    }[op]
    with wire.client(server.uri) as client:
        assert client.ask(wire.WRITE, 0, 4096, b"x" * 4096) == 0
        failing.hang(op, "web.img")
        client.send(request)
        until(lambda: waiting_threads(server))
        with wire.client(server.uri):  # another client is greeted
            status = processes.run(BLOCKMIG, "status", "--json", "--control", room / "control")
        assert json.loads(status.stdout)["state"] == "serving", status.stderr
        server.signal(signal.SIGTERM)
        assert server.wait(30) == 3, server.stderr
    assert "the disk has not answered for" in server.events("error")[0]["message"]


def hung_threads(running: Running) -> set[str]:
    """Those of its threads that wait for FUSE for half a second: each call waits for an instant."""
    found = waiting_threads(running)
    for _ in range(5):
        time.sleep(0.1)
        found &= waiting_threads(running)
    return found


def waiting_threads(running: Running) -> set[str]:
    found = set()
    for task in Path(f"/proc/{running.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if "request_wait_answer" in (task / "stack").read_text():
                found.add(task.name)
    return found


@pytest.mark.parametrize(
    ("op", "name", "status"),
    [("write", "web.img", 3), ("fsync", "RECEIVED.tmp", 5)],
    ids=["data", "last record"],
)
def test_a_receiver_whose_disk_hangs_can_be_stopped(
    processes: Processes,
    room: Path,
    failing: FailingDirectory,
    op: str,
    name: str,
    status: int,
) -> None:
    source = random_image(room / "web.img", SIZE)
    before = digest(source)
    there = failing.path / "web.img"
    failing.hang(op, name)
    control = room / "control"
    receiver = processes.receive(
        there, "--size", SIZE, "--control", control, command=(*IMPATIENT, "receive")
    )
    sender = processes.send(source, receiver, "--unlink")
    until(lambda: hung_threads(receiver))
    shown = processes.run(BLOCKMIG, "status", "--control", control)
    assert shown.status == 0, shown.stderr
    receiver.signal(signal.SIGTERM)
    assert receiver.wait(30) == status, receiver.stderr
    failing.heal()
    sender.signal(signal.SIGTERM)
    assert sender.wait(30) == (4 if status == 3 else 5), sender.stderr
    canonical = source if status == 3 else there
    assert inspected(processes, source, there) == f"canonical: {canonical}"
    assert digest(canonical) == before


def test_a_sender_whose_disk_hangs_can_be_stopped(
    processes: Processes, room: Path, failing: FailingDirectory
) -> None:
    random_image(failing.backing / "web.img", SIZE)
    source = failing.path / "web.img"
    failing.hang("read", "web.img")
    receiver = processes.receive(room / "copy.img", "--size", SIZE)
    sender = processes.start(
        *IMPATIENT, "send", "--log-format", "json", "--unlink", source, receiver.uri
    )
    until(lambda: waiting_threads(sender))
    time.sleep(0.2)
    sender.signal(signal.SIGTERM)
    assert sender.wait(30) == 3, sender.stderr
    failing.heal()
    assert inspected(processes, source) == "canonical"


def test_the_last_flush_of_a_server_may_take_long(
    processes: Processes, room: Path, failing: FailingDirectory
) -> None:
    server = serve(processes, room, random_image(failing.path / "web.img", SIZE), command=IMPATIENT)
    with wire.client(server.uri) as client:
        assert client.ask(wire.WRITE, 0, 4096, b"x" * 4096) == 0
    failing.hang("fsync", "web.img")
    server.signal(signal.SIGTERM)
    until(lambda: waiting_threads(server))
    time.sleep(1.5)
    failing.heal()
    assert server.wait(30) == 0, server.stderr


def test_a_receiver_that_cannot_save_the_only_copy_stays_until_it_can(
    processes: Processes, room: Path, failing: FailingDirectory
) -> None:
    there = failing.path / "web.img"
    command = (*IMPATIENT, "receive")
    receiver = processes.receive(there, "--size", SIZE, command=command)
    content = os.urandom(SIZE)
    with wire.client(receiver.uri) as client:
        assert client.ask(wire.WRITE, 0, SIZE, content) == 0
        (failing.backing / "web.img").unlink()
        for op in ("create", "rename", "rename2"):
            failing.fail(op, "", errno.ENOSPC)
        client.send(wire.request(wire.DISC))
        receiver.wait_event("not-rescued")
    receiver.signal(signal.SIGTERM)
    time.sleep(3)
    assert receiver.status is None, "the only copy is gone"
    failing.heal()
    assert receiver.wait(60) == 3, receiver.stderr
    assert (failing.backing / "web.img.rescued").read_bytes() == content


# What the kernel does by itself.


def test_a_full_file_system_is_no_room(processes: Processes, room: Path) -> None:
    result, nbd = expected("receive", "writing data", "", errno.ENOSPC)
    source = random_image(room / "web.img", SIZE)
    before = digest(source)
    with small_file_system(room / "small", 2 * MIB) as small:
        receiver = processes.receive(small / "web.img", "--size", SIZE, "--no-space-check")
        sender = processes.send(source, receiver, "--unlink")
        assert receiver.wait(30) == int(result.status), receiver.stderr
        assert "No space left on device" in receiver.events("error")[0]["why"]
        assert nbd in sender.wait_event("restart")["why"]
        wait_or_stop(sender, result.other)
        check_verdicts(processes, result, source, small / "web.img")
    assert digest(source) == before


def test_a_limit_of_the_files_size_is_no_room(processes: Processes, room: Path) -> None:
    result, nbd = expected("receive", "writing data", "", errno.EFBIG)
    source = random_image(room / "web.img", SIZE)
    there = room / "copy.img"
    with there.open("wb") as file:
        file.truncate(SIZE)
    limit = ("prlimit", f"--fsize={2 * MIB}")
    receiver = processes.receive(there, prefix=limit)
    sender = processes.send(source, receiver, "--unlink")
    assert receiver.wait(30) == int(result.status), receiver.stderr
    assert "File too large" in receiver.events("error")[0]["why"]
    assert nbd in sender.wait_event("restart")["why"]
    wait_or_stop(sender, result.other)
    check_verdicts(processes, result, source, there)


def test_a_device_whose_file_is_cut_fails_the_receiver(processes: Processes, room: Path) -> None:
    source, backing = random_image(room / "web.img", SIZE), room / "backing"
    before = digest(source)
    with backing.open("wb") as file:
        file.truncate(SIZE)
    with loop_name() as name, attached(name, backing) as device:
        state = ("--state-dir", room / "state")
        receiver = processes.receive(device, *state)
        sender = processes.send(source, receiver, "--max-rate", SIZE // 4)
        until(lambda: list((room / "state").glob("*.INCOMPLETE")))
        os.truncate(backing, MIB)
        assert receiver.wait(30) == 3, receiver.stderr
        # It has not become whole, nor did the sender take it for that.
        verdict = processes.run(BLOCKMIG, "inspect", device, *state).stdout.splitlines()[0]
        assert verdict.startswith("not canonical"), verdict
        sender.signal(signal.SIGTERM)
        assert sender.wait(30) == 4, sender.stderr
    assert digest(source) == before
    assert inspected(processes, source) == "canonical"


def test_a_served_device_whose_file_is_cut_answers_EIO(processes: Processes, room: Path) -> None:
    backing = random_image(room / "backing", SIZE)
    with loop_name() as name, attached(name, backing) as device:
        server = serve(processes, room, device, "--state-dir", str(room / "state"))
        os.truncate(backing, MIB)
        Path("/proc/sys/vm/drop_caches").write_text("1")
        with wire.client(server.uri) as client:
            assert client.ask(wire.READ, 2 * MIB, 4096) == errno.EIO
            assert client.ask(wire.READ, 0, 4096) == 0
        server.signal(signal.SIGTERM)
        assert server.wait(30) == 0, server.stderr


def test_a_source_whose_file_system_becomes_read_only_is_kept(
    processes: Processes, room: Path
) -> None:
    result, _ = expected("send", "`MIGRATING` (copied)", "write", errno.EROFS)
    with small_file_system(room / "small", 8 * MIB) as small:
        source = random_image(small / "web.img", SIZE)
        before = digest(source)
        there = room / "copy.img"
        receiver = processes.receive(there, "--size", SIZE)
        sender = processes.send(source, receiver, "--unlink", "--max-rate", 2 * MIB)
        until((small / "web.img.MIGRATING").exists)
        until(lambda: remounted(small))
        assert sender.wait(30) == int(result.status), sender.stderr
        assert "Read-only file system" in sender.events("error")[0]["why"]
        wait_or_stop(receiver, result.other)
        subprocess.run(["mount", "-o", "remount,rw", small], check=True)
        check_verdicts(processes, result, source, there)
        assert digest(source) == before


def remounted(directory: Path) -> bool:
    """Whether it is read-only now: not as long as somebody writes a file there."""
    remount = ["mount", "-o", "remount,ro", directory]
    return subprocess.run(remount, capture_output=True).returncode == 0


def test_a_receiver_whose_records_become_read_only_tells_the_sender_so(
    processes: Processes, room: Path
) -> None:
    result, nbd = expected("receive", "`INCOMPLETE` (copied)", "write", errno.EROFS)
    source, backing = random_image(room / "web.img", SIZE), room / "backing"
    with backing.open("wb") as file:
        file.truncate(SIZE)
    with (
        small_file_system(room / "state", MIB) as state,
        loop_name() as name,
        attached(name, backing) as device,
    ):
        receiver = processes.receive(device, "--state-dir", state)
        sender = processes.send(source, receiver, "--max-rate", 2 * MIB)
        until(lambda: list(state.glob("*.INCOMPLETE")))
        until(lambda: remounted(state))
        assert receiver.wait(30) == int(result.status), receiver.stderr
        check_reason(sender.wait_event("restart")["why"], nbd)
        wait_or_stop(sender, result.other)
    assert inspected(processes, source) == "canonical"


def test_a_record_that_cannot_be_read_leaves_the_verdict_open(
    processes: Processes, room: Path, failing: FailingDirectory
) -> None:
    source, there = random_image(room / "web.img", SIZE), failing.path / "web.img"
    receiver = processes.receive(there, "--size", SIZE)
    assert processes.send(source, receiver).wait(30) == 0
    assert receiver.wait(30) == 0
    assert inspected(processes, there) == "canonical"
    failing.fail("open", "web.img.RECEIVED", errno.EIO)
    inspect = processes.run(BLOCKMIG, "inspect", there)
    assert inspect.status == 5
    assert "RECEIVED cannot be read: Input/output error" in inspect.stdout
    server = processes.run(BLOCKMIG, "serve", "--listen", "tcp:0", "--file", there)
    assert server.status == 1, server.stderr
