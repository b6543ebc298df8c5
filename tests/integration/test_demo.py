"""`make demo DISK=...`: a copy of somebody's disk is migrated, and the disk stays as it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import REPOSITORY
from tests.support.disks import MIB, loop_device, random_image, small_file_system, sparse_image
from tests.support.processes import Processes, Running, until

DEMO = (sys.executable, f"{REPOSITORY}/scripts/demo.py")


def state(path: Path) -> tuple[int, ...]:
    """What changes when a file, or what stands in a directory, is changed."""
    now = path.stat()
    return now.st_ino, now.st_mode, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def left_alone(disk: Path) -> Iterator[None]:
    """Whatever happens meanwhile: the disk and its directory are as they were."""

    def everything() -> object:
        names = sorted(os.listdir(disk.parent))
        return names, state(disk.parent), state(disk), sha256(disk)

    before = everything()
    yield
    assert everything() == before


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Nobody can write in the directory, nor to what is in it, root neither."""
    mount = ["mount", "--bind", "-o", "ro", directory, directory]
    if subprocess.run(mount, capture_output=True).returncode:
        yield  # what else there is to be seen is seen all the same
        return
    try:
        with pytest.raises(OSError, match="Read-only"):
            (directory / "new").touch()
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.fixture
def disk(room: Path) -> Path:
    """An ext4 file system in a sparse image, in a directory of its own."""
    (room / "files").mkdir()
    random_image(room / "files" / "one", 3 * MIB)
    (room / "own").mkdir()
    path = room / "own" / "web disk.img"
    command = ["mke2fs", "-q", "-t", "ext4", "-d", room / "files", path, "64M"]
    subprocess.run(command, check=True)
    return path


def holds(demo: Running, room: Path) -> str:
    """The demo has succeeded and left nothing; its output."""
    assert demo.wait() == 0, demo.stdout + demo.stderr
    assert not (room / ".demo").exists()
    assert "All checks passed." in demo.stdout
    return demo.stdout


def test_the_demo_leaves_the_own_disk_as_it_was(
    processes: Processes, room: Path, disk: Path
) -> None:
    with left_alone(disk):
        said = holds(processes.start(*DEMO, disk), room)
        with read_only(disk.parent):
            holds(processes.start(*DEMO, disk), room)
    assert said.count(sha256(disk)) == 3, "of the copy, before and after"
    assert "e2fsck -fn: clean" in said
    assert "your own disk is unchanged" in said


def test_the_demo_works_without_a_file_system(processes: Processes, room: Path) -> None:
    """The size is no multiple of anything, either."""
    (room / "own").mkdir()
    size = 40 * MIB + 1234
    own = sparse_image(room / "own" / "disk", size, {MIB: os.urandom(MIB), size - 10: b"x" * 10})
    with left_alone(own):
        assert sha256(own) in holds(processes.start(*DEMO, own), room)


def test_the_demo_works_with_a_block_device(processes: Processes, room: Path, disk: Path) -> None:
    with left_alone(disk), loop_device(disk) as device:
        assert sha256(disk) in holds(processes.start(*DEMO, device), room)


def test_the_demo_keeps_the_copy_when_asked_to(
    processes: Processes, room: Path, disk: Path
) -> None:
    """The copy can be inspected; to be sent itself it must be moved away."""
    copy = room / ".demo" / "destination.img"
    with left_alone(disk):
        assert processes.run(*DEMO, "--keep", disk).status == 0
    records = [f"{copy.name}.RECEIVED", "source.img.MIGRATED"]
    assert sorted(os.listdir(copy.parent)) == sorted([copy.name, *records])
    assert sha256(copy) == sha256(disk)
    with left_alone(copy):
        refused(processes, room, copy, ".demo is emptied first", left=True)


def test_the_demo_warns_about_a_disk_in_use(processes: Processes, room: Path, disk: Path) -> None:
    """Reading does no harm, but the copy may be torn, and the demo says so."""
    with left_alone(disk), disk.open("r+b"):
        said = holds(processes.start(*DEMO, disk), room)
    assert f"(process {os.getpid()}) writes to your disk: this copy may be inconsistent" in said


def test_the_demo_skips_the_check_of_an_unclean_file_system(
    processes: Processes, room: Path, disk: Path
) -> None:
    """The demo did not cause the errors."""
    with disk.open("r+b") as file:
        file.seek(1024 + 58)
        file.write(b"\x02\x00")  # it has errors, says its superblock
        file.seek(1024 + 16)
        file.write(b"\xff\xff\xff\xff")  # more free inodes than there are
    with left_alone(disk):
        assert "e2fsck: skipped" in holds(processes.start(*DEMO, disk), room)


def refused(processes: Processes, room: Path, own: Path, why: str, left: bool = False) -> None:
    """With one line, and without a trace."""
    demo = processes.run(*DEMO, own)
    assert demo.status == 1
    assert "Traceback" not in demo.stderr
    lines = [line for line in demo.stdout.splitlines() if line.startswith("demo: ")]
    assert len(lines) == 1
    assert why in lines[0]
    assert (room / ".demo").exists() == left


def test_the_demo_refuses_what_is_no_disk(processes: Processes, room: Path) -> None:
    (room / "own").mkdir()
    empty, pipe = room / "own" / "empty", room / "own" / "pipe"
    empty.touch()
    os.mkfifo(pipe)
    before = state(room / "own")
    refused(processes, room, room / "own" / "missing", "No such file")
    refused(processes, room, room / "own", "is a directory")
    refused(processes, room, empty, "is empty")
    refused(processes, room, pipe, "neither a regular file nor a block device")
    assert state(room / "own") == before


def test_the_demo_checks_for_room_before_it_copies(processes: Processes, room: Path) -> None:
    """Holes need no room; too little room is known before anything is copied."""
    (room / "own").mkdir()
    sparse = sparse_image(room / "own" / "sparse", 1024 * MIB, {MIB: os.urandom(2 * MIB)})
    full = random_image(room / "own" / "full", 20 * MIB)
    with left_alone(sparse), small_file_system(room / "small", 90 * MIB) as small:
        there = ("env", "-C", small)
        demo = processes.run(*there, *DEMO, full)
        assert demo.status == 1
        assert "40 MiB are needed" in demo.stdout
        assert not os.listdir(small)
        holds(processes.start(*there, *DEMO, sparse), small)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing(processes: Processes, room: Path, number: int) -> None:
    """Neither files nor processes are left."""
    (room / "own").mkdir()
    own = random_image(room / "own" / "disk", 256 * MIB)
    with left_alone(own):
        demo = processes.start(*DEMO, own)
        until((room / ".demo" / "source.img").exists)
        if number == signal.SIGTERM:
            demo.signal(number)
        else:  # as a terminal does
            os.killpg(demo.pid, number)
        assert demo.wait() == 128 + number
    assert not (room / ".demo").exists()
    assert "Traceback" not in demo.stderr
    until(lambda: subprocess.run(["pgrep", "-g", str(demo.pid)]).returncode == 1)
