"""Commands whose output leads nowhere, whose directory has gone, or whose terminal hangs up."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
from tests.support.disks import MIB, digest, random_image
from tests.support.processes import ANY_PORT, BLOCKMIG, TWISTD, Processes, Running, until


def shell(command: list[str | Path], redirection: str, cwd: Path | None = None) -> tuple[int, str]:
    """Run a command with its streams redirected; its status, and what it said all the same."""
    line = f"{shlex.join(map(str, command))} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=cwd, capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout + done.stderr


SHORT = (
    (["inspect", "DISK"], 0),
    (["inspect", "DISK", "--json"], 0),
    (["inspect", "."], 5),
    (["forget", "RECEIVED"], 0),
    (["--help"], 0),
    (["--version"], 0),
    (["send", "--help"], 0),
)


@pytest.fixture
def command(room: Path, request: pytest.FixtureRequest) -> list[str | Path]:
    arguments = [str(one) for one in request.param]
    disk = random_image(room / "disk", MIB)
    if "RECEIVED" in arguments:
        with_record = room / "received"
        with_record.write_bytes(disk.read_bytes())
        processes = Processes(room)
        receiver = processes.receive(with_record, "--overwrite", listen=f"unix:{room}/s")
        assert processes.send(disk, receiver).wait() == 0
        assert receiver.wait() == 0
        processes.finish()
    places = {"DISK": disk, "RECEIVED": room / "received", ".": room}
    return [BLOCKMIG, *(places.get(one, one) for one in arguments)]


@pytest.mark.parametrize(("command", "status"), SHORT, indirect=["command"])
def test_a_full_output_is_an_error_in_one_line(
    command: list[str | Path], status: int, room: Path
) -> None:
    said = shell(command, ">/dev/full")
    assert said == (3, "blockmig: cannot write to standard output: No space left on device\n")


@pytest.mark.parametrize(("command", "status"), SHORT, indirect=["command"])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_output_changes_nothing(
    command: list[str | Path], status: int, closed: str
) -> None:
    assert shell(command, closed) == (status, "")


@pytest.mark.parametrize("arguments", [["nonsense"], ["inspect"], ["send", "x", "y"], ["status"]])
def test_a_complaint_that_cannot_be_written_leaves_the_status(arguments: list[str]) -> None:
    assert shell([BLOCKMIG, *arguments], "2>/dev/full") == (1, "")


def test_a_secret_from_a_closed_standard_input_is_refused(room: Path) -> None:
    command = [BLOCKMIG, "receive", room / "x", "--size", "1M", "--secret", "-"]
    status, said = shell(command, "<&-")
    assert (status, said.count("\n")) == (1, 1)
    assert "standard input is closed" in said


def leads_nowhere(running: Running) -> bool:
    """Whether its descriptors 0, 1 and 2 are open, and nothing else."""
    with contextlib.suppress(FileNotFoundError):
        paths = [os.readlink(f"/proc/{running.pid}/fd/{number}") for number in range(3)]
        return paths == ["/dev/null"] * 3
    return False


def test_closed_outputs_are_not_taken_for_the_disk(processes: Processes, room: Path) -> None:
    """A descriptor that is free is given to what is opened next: a disk, or a connection."""
    disk = random_image(room / "disk", 3 * MIB + 17)
    before = digest(disk)
    streams = "<&- >&- 2>&-"
    receive = [BLOCKMIG, "receive", "-v", room / "copy", "--size", 3 * MIB + 17]
    receive += ["--listen", f"unix:{room}/socket"]
    receiver = processes.start("bash", "-c", f"exec {shlex.join(map(str, receive))} {streams}")
    until((room / "socket").exists)
    send = [BLOCKMIG, "send", "-v", "--progress", "json", "--max-rate", "2M", disk]
    send += [f"nbd+unix:///?socket={room}/socket"]
    sender = processes.start("bash", "-c", f"exec {shlex.join(map(str, send))} {streams}")
    for running in (receiver, sender):
        until(partial(leads_nowhere, running), what=f"{running.arguments}")
    assert (sender.wait(), receiver.wait()) == (0, 0)
    assert digest(room / "copy") == digest(disk) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "x"],
        ["inspect", "."],
        ["accept", "x", "--i-have-checked-the-source"],
        ["forget", "x"],
        ["forget", ".", "--older-than", "1d"],
        ["receive", "x", "--size", "1M"],
        ["receive", "/dev/shm/none", "--size", "1M", "--state-dir", "x"],
        ["serve", "x"],
        ["send", "x", "nbd://127.0.0.1:1/"],
    ],
    ids=" ".join,
)
def test_a_working_directory_that_has_gone_is_refused_in_words(
    room: Path, arguments: list[str]
) -> None:
    line = f"cd {room / 'gone'}; rmdir {room / 'gone'}; exec {shlex.join([BLOCKMIG, *arguments])}"
    (room / "gone").mkdir()
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "the working directory is gone" in done.stderr
    assert "give the whole path" in done.stderr


def test_a_migration_does_not_need_its_working_directory(processes: Processes, room: Path) -> None:
    disk = random_image(room / "disk", MIB)
    gone = room / "gone"
    gone.mkdir()
    command = [BLOCKMIG, "receive", str(room / "copy"), "--size", "1M", "--log-format", "json"]
    command += ["--listen", ANY_PORT]
    line = f"cd {gone}; rmdir {gone}; exec {shlex.join(command)}"
    receiver = processes.start("bash", "-c", line)
    receiver.uri = receiver.wait_event("listening")["uri"]
    assert processes.send(disk, receiver).wait() == 0
    assert receiver.wait() == 0
    assert digest(room / "copy") == digest(disk)


# SIGHUP.


def catching(running: Running) -> Running:
    until(lambda: running.catches(signal.SIGHUP))
    return running


def test_SIGHUP_ends_a_receiver_and_a_sender_as_SIGTERM_does(
    processes: Processes, room: Path
) -> None:
    disk = random_image(room / "disk", MIB)
    receiver = catching(processes.receive(room / "copy", "--size", MIB))
    sender = processes.send(disk, receiver, "--max-rate", "100K")
    receiver.wait_event("attempt")
    for running in (catching(sender), receiver):
        running.signal(signal.SIGHUP)
        assert running.wait(15) == 4, running.stderr
        assert "stopped by SIGHUP" in running.events("error")[-1]["why"]
    assert processes.run(BLOCKMIG, "inspect", disk).stdout.startswith("canonical\n")


@pytest.mark.parametrize("command", [(BLOCKMIG,), (TWISTD, "-n", "--pidfile=", "blockmig")])
def test_SIGHUP_does_not_end_a_server(
    processes: Processes, room: Path, command: tuple[str, ...]
) -> None:
    disk = random_image(room / "disk", MIB)
    options = ["--log-format", "json", "--listen", f"unix:{room}/socket"]
    server = processes.start(*command, "serve", disk, *options)
    until((room / "socket").exists)
    catching(server).signal(signal.SIGHUP)
    until(lambda: "goes on" in server.stderr + server.stdout)
    uri = f"nbd+unix:///?socket={room}/socket"
    processes.checked("nbdcopy", uri, room / "copy")
    assert digest(room / "copy") == digest(disk)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_what_is_started_with_nohup_ignores_SIGHUP(processes: Processes, room: Path) -> None:
    receive = [BLOCKMIG, "receive", str(room / "copy"), "--size", "1M", "--log-format", "json"]
    receive += ["--listen", ANY_PORT]
    line = f"trap '' HUP; exec {shlex.join(receive)}"
    receiver = processes.start("bash", "-c", line)
    uri = receiver.wait_event("listening")["uri"]
    receiver.signal(signal.SIGHUP)
    disk = random_image(room / "disk", MIB)
    assert processes.send(disk, uri).wait() == 0
    assert receiver.wait() == 0, receiver.stderr
    assert os.path.getsize(room / "copy") == MIB
