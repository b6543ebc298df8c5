"""`move`: a disk to another host with one command, through a real sshd, and scripted ones."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.support.disks import MIB, digest, loop_device, random_image, sparse_image
from tests.support.moving import (
    KILLS,
    Round,
    inspected,
    is_ssh,
    kill_something,
    message,
    move_live,
    processes_with,
    receivers,
    sshds_of,
)
from tests.support.processes import BLOCKMIG, Processes, Running, until
from tests.support.sshd import HOST, SSHServer


@pytest.fixture
def server(processes: Processes, room: Path) -> SSHServer:
    return SSHServer(processes, room)


@pytest.fixture
def source(room: Path) -> Path:
    return random_image(room / "source", 9 * MIB + 5)


# Through a real sshd.


def test_a_disk_is_moved_and_kept(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    before = digest(source)
    move = server.move(source, room / "copy")
    assert move.wait() == 0, move.stderr
    assert digest(room / "copy") == digest(source) == before
    assert inspected(processes, source) == "not canonical"
    assert inspected(processes, room / "copy") == "canonical"
    (summary,) = move.events("complete")
    assert summary["bytes"] == 9 * MIB + 5
    assert not receivers(room / "copy")
    assert not list(server.state.glob("*.receiver*"))


def test_once_more_says_that_it_was_done(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    assert server.move(source, room / "copy").wait() == 0
    server.server.kill()
    again = server.move(source, room / "copy")
    assert again.wait() == 0, again.stderr
    assert "there is nothing to do" in message(again)


def test_a_disk_is_moved_and_deleted(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    before = digest(source)
    for _ in range(2):
        move = server.move(source, room / "copy", "--unlink")
        assert move.wait() == 0, move.stderr
        assert digest(room / "copy") == before
        assert not source.exists()


def test_the_secret_is_on_no_command_line_and_in_no_file(
    server: SSHServer, room: Path, source: Path
) -> None:
    spy = server.room / "spy"
    spy.write_text(
        f'#!/bin/sh\nread -r line; echo "$line" >{room}/secret\n'
        f'(echo "$line"; exec cat) | exec {server.remote} "$@"\n'
    )
    spy.chmod(0o755)
    server.remote = str(spy)
    move = server.move(source, room / "copy", "--max-rate", "6M")
    move.wait_event("attempt")
    secret = until(lambda: (room / "secret").exists() and (room / "secret").read_text().strip())
    assert len(secret) >= 32
    assert not processes_with(secret)
    assert move.wait() == 0, move.stderr
    assert secret not in move.stderr
    for path in room.rglob("*"):
        if path.is_file() and path.name != "secret":
            assert secret.encode() not in path.read_bytes(), path


def test_a_device_is_moved(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    image = sparse_image(room / "image", 8 * MIB, {MIB + 512: b"data" * 1000})
    sparse_image(room / "target", 8 * MIB, {})
    state = ("--state-dir", str(room / "near-state"))
    with loop_device(image) as near, loop_device(room / "target") as far:
        for _ in range(2):
            move = server.move(near, far, *state)
            assert move.wait() == 0, move.stderr
        assert digest(near) == digest(far)
        assert inspected(processes, near, *state) == "not canonical"
        assert inspected(processes, far, "--state-dir", str(server.state)) == "canonical"


def test_a_home_directory_and_odd_names(server: SSHServer, room: Path) -> None:
    odd = random_image(room / 'it\'s a "disk" $x', 70_001)
    move = server.move(odd, room / "a copy's; name")
    assert move.wait() == 0, move.stderr
    assert digest(room / "a copy's; name") == digest(odd)


def test_a_connection_that_others_share_does_not_carry_it(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    master = f"ControlPath {server.room}/master"
    server.config("ControlMaster auto", master, "ControlPersist 60", "RemoteCommand uptime")
    move = server.move(source, room / "copy")
    assert move.wait() == 0, move.stderr
    assert not (server.room / "master").exists()


def test_data_there_is_not_overwritten_unasked(server: SSHServer, room: Path, source: Path) -> None:
    copy = random_image(room / "copy", 9 * MIB + 5, seed=2)
    before = digest(copy)
    move = server.move(source, copy)
    assert move.wait() == 1
    assert message(move).startswith(f"{HOST}: {copy}: ")
    assert "holds data" in message(move)
    assert digest(copy) == before
    move = server.move(source, copy, "--overwrite")
    assert move.wait() == 0, move.stderr
    assert digest(copy) == digest(source)


def test_what_is_wrong_there_is_told_with_its_host(
    server: SSHServer, room: Path, source: Path
) -> None:
    move = server.move(source, room / "missing" / "copy")
    assert move.wait() == 1
    assert message(move).startswith(f"{HOST}: {room}/missing/copy: cannot be created: ")
    small = sparse_image(room / "small", 4096, {})
    move = server.move(source, small)
    assert move.wait() == 1
    assert message(move).startswith(f"{HOST}: {small}")
    server.remote = "/nowhere/blockmig"
    move = server.move(source, room / "copy")
    assert move.wait() == 1
    assert "/nowhere/blockmig: not found: is blockmig installed there?" in message(move)
    old = server.room / "old"
    old.write_text(
        "#!/bin/sh\necho 'blockmig: option --replace not recognized (see `blockmig receive --help`)"
        "' >&2\nexit 1\n"
    )
    old.chmod(0o755)
    server.remote = str(old)
    move = server.move(source, room / "copy")
    assert move.wait() == 1
    assert message(move).startswith(f"{HOST}: the blockmig there is too old for `move`")
    assert not (room / "copy").exists()
    assert not (room / "source.MIGRATING").exists()


def test_what_ssh_says_is_told(server: SSHServer, room: Path, source: Path) -> None:
    (server.room / "known").write_text("")
    server.config("BatchMode yes")
    move = server.move(source, room / "copy")
    assert move.wait() == 1
    assert message(move) == f"{HOST}: ssh failed: Host key verification failed."


def test_an_sshd_that_forwards_no_sockets(processes: Processes, room: Path, source: Path) -> None:
    server = SSHServer(processes, room, "AllowStreamLocalForwarding no")
    move = server.move(source, room / "copy")
    assert move.wait() == 1, move.stderr
    assert "AllowStreamLocalForwarding" in message(move)
    assert inspected(processes, source) == "canonical"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_says_what_became_of_both_sides(
    server: SSHServer, room: Path, source: Path, number: int
) -> None:
    move = server.move(source, room / "copy", "--max-rate", "1M")
    move.wait_event("attempt")
    if number == signal.SIGINT:
        os.killpg(move.pid, number)  # as a terminal does
    else:
        move.signal(number)
    assert move.wait() == 4
    said = message(move)
    assert f"{source} was not retired and is the canonical copy" in said
    assert f"{HOST}:{room}/copy: stopped, since standard input has closed" in said
    assert not receivers(room / "copy")
    again = server.move(source, room / "copy")
    assert again.wait() == 0, again.stderr
    assert digest(room / "copy") == digest(source)


def test_a_lost_ssh_is_started_again(server: SSHServer, room: Path, source: Path) -> None:
    move = server.move(source, room / "copy", "--max-rate", "4M")
    move.wait_event("attempt")
    for pid in processes_with(f"\0{server.room}/ssh_config\0"):
        if is_ssh(pid):
            os.kill(pid, signal.SIGKILL)
    assert move.wait() == 0, move.stderr
    assert digest(room / "copy") == digest(source)
    assert len(move.events("attempt")) > 1


def test_a_killed_receiver_is_started_again(server: SSHServer, room: Path, source: Path) -> None:
    move = server.move(source, room / "copy", "--max-rate", "4M")
    move.wait_event("attempt")
    (receiver,) = until(lambda: receivers(room / "copy"))
    os.kill(receiver, signal.SIGKILL)
    assert move.wait() == 0, move.stderr
    assert digest(room / "copy") == digest(source)


def test_a_receiver_that_was_left_behind_gives_way(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    move = server.move(source, room / "copy", "--max-rate", "1M")
    move.wait_event("attempt")
    (old,) = until(lambda: receivers(room / "copy"))
    # Its sshd does not notice that nobody is there any more: it is stopped.
    parents = sshds_of(old)
    for pid in parents:
        os.kill(pid, signal.SIGSTOP)
    try:
        move.kill()
        assert receivers(room / "copy") == [old]
        again = server.move(source, room / "copy")
        assert again.wait() == 0, again.stderr
        (event,) = [one for one in again.events("far") if "ended the receiver" in one["message"]]
        assert str(old) in event["message"]
    finally:
        for pid in parents:
            os.kill(pid, signal.SIGCONT)
    assert digest(room / "copy") == digest(source)
    assert inspected(processes, room / "copy") == "canonical"


# Killed at random.


@pytest.mark.parametrize("kind", ["kept", "deleted", "device"])
def test_whatever_is_killed_the_same_command_ends_well(
    processes: Processes,
    server: SSHServer,
    room: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (room / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(room / "tmp"))
    killed = 0
    while killed < KILLS:
        seed = f"{kind} {killed} {os.environ.get('BLOCKMIG_SEED', '1')}"
        one = Round(processes, server, room / f"round-{killed}", kind, seed)
        killed += one.run(KILLS - killed)
        assert not list((room / "tmp").iterdir())


@pytest.mark.parametrize("victim", ["move", "receiver"])
def test_what_dies_as_soon_as_the_source_is_retired_is_finished(
    processes: Processes, server: SSHServer, room: Path, source: Path, victim: str
) -> None:
    before = digest(source)
    move = server.move(source, room / "copy")
    until(lambda: receivers(room / "copy"))
    (receiver,) = receivers(room / "copy")
    mark = f"{source}.MIGRATED"
    end = time.monotonic() + 20
    while not os.path.exists(mark):
        assert time.monotonic() < end, move.stderr
    if victim == "move":
        move.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(receiver, signal.SIGKILL)
        assert move.wait() == 0, move.stderr
    again = server.move(source, room / "copy")
    assert again.wait() == 0, again.stderr
    assert not again.events("attempt")
    assert digest(room / "copy") == before
    assert inspected(processes, source) == "not canonical"
    assert inspected(processes, room / "copy") == "canonical"
    assert json.loads(Path(mark).read_text())["confirmed"]


def test_one_that_is_killed_when_all_is_done_leaves_nothing_to_the_next(
    server: SSHServer, room: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = room / "tmp"
    places.mkdir()
    monkeypatch.setenv("TMPDIR", str(places))
    move = server.move(source, room / "copy")
    until(lambda: list(places.iterdir()))
    (left,) = places.iterdir()
    assert move.wait() == 0, move.stderr
    assert not left.exists()
    # As if it had died before it removed that.
    left.mkdir(mode=0o700)
    (left / "nbd").touch()
    again = server.move(source, room / "copy")
    assert again.wait() == 0, again.stderr
    assert not list(places.iterdir())


# A disk that is served.


@pytest.fixture
def served(processes: Processes, room: Path, source: Path) -> Running:
    """A server of the disk, with a control socket."""
    server = processes.start(
        *(BLOCKMIG, "serve", "--file", source, "--listen", f"unix:{room}/clients"),
        *("--control", room / "control", "--log-format", "json"),
    )
    server.wait_event("listening")
    return server


def test_a_served_disk_is_moved(
    processes: Processes, server: SSHServer, room: Path, source: Path, served: Running
) -> None:
    before = digest(source)
    move = move_live(processes, server, room)
    assert move.wait() == 0, move.stderr
    assert served.wait() == 0, served.stderr
    assert digest(room / "copy") == before
    assert inspected(processes, source) == "not canonical"
    assert inspected(processes, room / "copy") == "canonical"
    assert json.loads(Path(f"{source}.MIGRATED").read_text())["destination"]["address"] == (
        f"ssh://{HOST}{room}/copy"
    )
    # The same by its name, once it is not served any more.
    again = server.move(source, room / "copy")
    assert again.wait() == 0, again.stderr
    assert "there is nothing to do" in message(again)


def test_a_stop_cancels_the_mirror(
    processes: Processes, server: SSHServer, room: Path, source: Path, served: Running
) -> None:
    move = move_live(processes, server, room, "--max-rate", "1M")
    move.wait_event("mirroring")
    os.killpg(move.pid, signal.SIGINT)
    assert move.wait() == 4, move.stderr
    assert f"{HOST}:{room}/copy: stopped, since standard input has closed" in message(move)
    assert served.status is None
    assert not receivers(room / "copy")
    assert move_live(processes, server, room).wait() == 0


def test_what_is_wrong_with_a_served_disk(
    processes: Processes, server: SSHServer, room: Path, source: Path, served: Running
) -> None:
    copy = random_image(room / "copy", 9 * MIB + 5, seed=2)
    move = move_live(processes, server, room)
    assert move.wait() == 1
    assert message(move).startswith(f"{HOST}: {copy}: ")
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    move = move_live(processes, server, room)
    assert move.wait() == 1
    assert "blockmig move FILE HOST:PATH" in message(move)


def test_a_served_disk_is_moved_whatever_is_killed(
    processes: Processes, server: SSHServer, room: Path, source: Path, served: Running
) -> None:
    before = digest(source)
    generator = random.Random(f"live {os.environ.get('BLOCKMIG_SEED', '1')}")
    for turn in range(KILLS):
        if served.status is not None:
            break
        move = move_live(processes, server, room, "--max-rate", generator.choice(["1M", "3M"]))
        time.sleep(generator.uniform(0.3, 2.5))
        what = kill_something(generator, move, room / "copy")
        if what in ("receiver", "ssh") and (turn < KILLS // 2 or generator.random() < 0.5):
            time.sleep(generator.uniform(0, 2))
            move.kill()
        elif what in ("receiver", "ssh"):
            status = move.wait()
            expected = {0} if move.events("mirroring") else {0, 1}
            assert status in expected, f"turn {turn}, {what}: {move.stderr}"
        verdicts = inspected(processes, source), inspected(processes, room / "copy")
        assert verdicts not in (("canonical",) * 2, ("not canonical",) * 2), f"turn {turn}, {what}"
    if served.status is None:
        move = move_live(processes, server, room)
        assert move.wait() == 0, move.stderr
    assert served.wait() == 0, served.stderr
    assert server.move(source, room / "copy").wait() == 0
    assert digest(room / "copy") == before
    assert inspected(processes, source) == "not canonical"
    assert inspected(processes, room / "copy") == "canonical"


# Without any sshd: an ssh that is scripted.


def scripted(room: Path, text: str) -> str:
    path = room / "fake-ssh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_an_ssh_that_hangs_can_be_stopped(processes: Processes, room: Path, source: Path) -> None:
    ssh = scripted(room, f"echo $$ >{room}/pid; exec sleep 1000")
    move = processes.start(
        *(BLOCKMIG, "move", source, "nowhere:/x", "--ssh", ssh, "--log-format", "json")
    )
    pid = int(until(lambda: (room / "pid").exists() and (room / "pid").read_text()))
    move.signal(signal.SIGINT)
    assert move.wait(30) == 4
    assert f"{source} was not retired and is the canonical copy" in message(move)
    assert "no receiver was running at nowhere:/x" in message(move)
    assert not Path(f"/proc/{pid}").exists()


def test_an_ssh_that_is_not_there(processes: Processes, source: Path) -> None:
    move = processes.run(BLOCKMIG, "move", source, "nowhere:/x", "--ssh", "no-such-ssh -p 1")
    assert move.status == 1
    assert "no-such-ssh: command not found" in move.stderr


def test_a_disk_that_cannot_be_sent_starts_no_ssh(processes: Processes, room: Path) -> None:
    ssh = scripted(room, f"touch {room}/started")
    move = processes.run(BLOCKMIG, "move", room / "missing", "nowhere:/x", "--ssh", ssh)
    assert move.status == 1
    assert "no such file" in move.stderr
    assert not (room / "started").exists()


def test_a_first_failure_is_retried_only_if_asked(
    processes: Processes, room: Path, source: Path
) -> None:
    ssh = scripted(room, f"echo x >>{room}/tries; echo 'no route to host' >&2; exit 255")
    command = (BLOCKMIG, "move", source, "nowhere:/x", "--ssh", ssh, "--log-format", "json")
    move = processes.run(*command)
    assert (move.status, message(move)) == (1, "nowhere: ssh failed: no route to host")
    (room / "tries").unlink()
    move = processes.run(*command, "--retry", "--give-up-after", "3")
    assert move.status == 4
    assert "no route to host" in move.stderr
    assert len((room / "tries").read_text().split()) > 1


def test_that_it_is_there_already_does_not_retire_a_source(
    processes: Processes, room: Path, source: Path
) -> None:
    said = json.dumps({"event": "already-done", "level": "info", "message": "was received"})
    ssh = scripted(room, f"echo '{said}' >&2")
    move = processes.run(
        *(BLOCKMIG, "move", source, "nowhere:/x", "--ssh", ssh, "--log-format", "json")
    )
    assert move.status == 1, move.stderr
    assert f"{source} is not marked as migrated" in message(move)
    assert inspected(processes, source) == "canonical"


def test_a_retired_source_is_finished_by_what_the_other_host_says(
    processes: Processes, server: SSHServer, room: Path, source: Path
) -> None:
    assert server.move(source, room / "copy").wait() == 0
    # As if this host had died before it saw the other end.
    path = Path(f"{source}.MIGRATED")
    record = json.loads(path.read_text())
    record.update(confirmed="", record="MIGRATING", phase="copied")
    Path(f"{source}.MIGRATING").write_text(json.dumps(record))
    record["record"] = "MIGRATED"
    path.write_text(json.dumps(record))
    move = server.move(source, room / "copy")
    assert move.wait() == 0, move.stderr
    assert json.loads(path.read_text())["confirmed"]
    assert not Path(f"{source}.MIGRATING").exists()


# The receiver by itself.


def test_a_receiver_ends_when_its_standard_input_closes(room: Path) -> None:
    command = [BLOCKMIG, "receive", "--file", room / "copy", "--size", "1M", "--end-with-stdin"]
    command += ["--listen", f"unix:{room}/s", "--secret", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, text=True) as receiver:
        assert receiver.stdin
        assert receiver.stderr
        receiver.stdin.write("a secret of some length\n")
        receiver.stdin.flush()
        assert "listening" in receiver.stderr.readline()
        receiver.stdin.close()
        said = receiver.stderr.read()
        assert receiver.wait(20) == 4
    assert "stopped, since standard input has closed" in said
    assert not (room / "copy").exists()


def test_of_two_receivers_of_one_migration_the_later_one_stays(
    processes: Processes, room: Path
) -> None:
    options = ("--size", "1M", "--replace", "--state-dir", room / "state")
    first = processes.receive(room / "copy", *options, "--id", "one")
    other = processes.receive(room / "other", *options, "--id", "one")
    second = processes.receive(room / "copy", *options, "--id", "one")
    assert first.wait() == 4
    assert "another receiver of the same migration takes its place" in first.stderr
    assert (other.status, second.status) == (None, None)
    third = processes.run(
        *(BLOCKMIG, "receive", "--file", room / "copy", *options, "--id", "two"),
        *("--listen", f"unix:{room}/s"),
    )
    assert third.status == 1
    assert "in use" in third.stderr
    assert second.status is None
