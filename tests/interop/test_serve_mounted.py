"""Our disk as a file and as a block device of this machine, and through nbdkit as a proxy."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.conversation import Expected
from tests.support.disks import MIB, allocated, digest, loop_device, random_image, sparse_image
from tests.support.processes import Processes, until
from tests.support.serving import DISKS, KINDS, Bench, Make, has, make, serve

__all__ = ["make"]

FILES = 3000


@contextlib.contextmanager
def fuse(
    processes: Processes, room: Path, uri: str, *options: str, naked: bool = False
) -> Iterator[Path]:
    """An NBD server's disk as a file."""
    if not os.path.exists("/dev/fuse"):
        os.mknod("/dev/fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 229))
    point = room / f"mounted-{len(os.listdir(room))}"
    if naked:
        point.touch()
        file = point
    else:
        point.mkdir()
        file = point / "nbd"
    running = processes.start("nbdfuse", *options, point, uri)
    # Not until the file is there: a naked one always is.
    until(lambda: f" {point} fuse" in Path("/proc/mounts").read_text() or running.status, 10)
    assert running.status is None, running.stderr
    try:
        yield file
        subprocess.run(["umount", point], check=True, timeout=20)
        assert running.wait(10) == 0, running.stderr
    finally:
        subprocess.run(["umount", "--lazy", point], capture_output=True)


@pytest.mark.parametrize("disk", DISKS)
def test_nbdfuse_reads_and_writes_the_disk(make: Make, disk: str) -> None:
    bench = make(disk)
    for kind in KINDS:
        before = digest(bench.disk)
        counts: Counter[str] = Counter()
        naked = kind == "unix"
        with (
            bench.recorded(kind, counts) as made,
            fuse(bench.processes, bench.room, made.uri, naked=naked) as file,
        ):
            assert file.stat().st_size == bench.size
            if disk == "huge":
                with file.open("rb") as mounted, bench.disk.open("rb") as own:
                    for at in (0, MIB, 9 * MIB, (1 << 30) - 5):
                        mounted.seek(at)
                        own.seek(at)
                        assert mounted.read(3 * MIB) == own.read(3 * MIB)
            else:
                assert digest(file) == before
            data = os.urandom(1001)
            with file.open("r+b", buffering=0) as mounted:
                for at in (3, 1500, bench.size - 1001):
                    os.pwrite(mounted.fileno(), data, at)
                    assert os.pread(mounted.fileno(), 1001, at) == data
                os.fsync(mounted.fileno())
                with bench.disk.open("rb") as own:
                    own.seek(1500)
                    assert own.read(1001) == data
            with pytest.raises(OSError, match=r"Errno"), file.open("r+b", buffering=0) as mounted:
                os.pwrite(mounted.fileno(), data, bench.size + 10)
        assert has(counts, "READ", "WRITE", "FLUSH")


def test_nbdfuse_reads_a_read_only_disk(make: Make) -> None:
    bench = make("sparse", read_only=True)
    for kind in KINDS:
        with bench.recorded(kind) as made:
            with fuse(bench.processes, bench.room, made.uri, "-r") as file:
                assert digest(file) == digest(bench.disk)
            with fuse(bench.processes, bench.room, made.uri) as file:
                with (
                    pytest.raises(OSError, match=r"Errno"),
                    file.open("r+b", buffering=0) as mounted,
                ):
                    mounted.write(b"x")
                assert file.read_bytes() == bench.disk.read_bytes()


def test_nbdfuse_reads_and_writes_an_oldstyle_server(make: Make) -> None:
    bench = make("odd", oldstyle=True)
    for kind in KINDS:
        with (
            bench.recorded(kind) as made,
            fuse(bench.processes, bench.room, made.uri, "--connections=1") as file,
        ):
            assert file.read_bytes() == bench.disk.read_bytes()
            with file.open("r+b", buffering=0) as mounted:
                mounted.write(b"old" + kind.encode())
                os.fsync(mounted.fileno())
        assert bench.disk.read_bytes().startswith(b"old" + kind.encode())


# A real file system.


def some_files() -> list[Path]:
    """Small files of this machine."""
    found: list[Path] = []
    places = (Path("/usr/share"), Path("/usr/lib"), Path("/usr/include"))
    for directory, folders, names in itertools.chain.from_iterable(map(os.walk, places)):
        folders.sort()
        for name in sorted(names):
            path = Path(directory, name)
            if not path.is_symlink() and path.is_file() and path.stat().st_size < 64 << 10:
                found.append(path)
                if len(found) == FILES:
                    return found
    raise AssertionError(f"this machine has only {len(found)} small files")


def digests(directory: Path) -> dict[str, str]:
    """Of every file in it."""
    return {
        str(path.relative_to(directory)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def run(*command: str | Path) -> str:
    said = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, (command, said.stdout, said.stderr)
    return said.stdout


@contextlib.contextmanager
def mounted(device: Path, point: Path) -> Iterator[None]:
    run("mount", "-t", "ext4", device, point)
    try:
        yield
    finally:
        run("umount", point)


def test_a_file_system_on_the_disk_is_written_trimmed_and_checked(
    processes: Processes, room: Path
) -> None:
    """ext4 on a loop device, on a FUSE file, on our server."""
    size = 256 * MIB
    image = sparse_image(room / "disk", size, {})
    served = serve(processes, image)
    bench = Bench(processes, room, image, served, Expected(size))
    point = room / "point"
    point.mkdir()
    files = some_files()
    counts: Counter[str] = Counter()
    with (
        bench.recorded("unix", counts) as made,
        fuse(processes, room, made.uri) as file,
        loop_device(file) as device,
    ):
        run("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0", device)
        with mounted(device, point):
            for number, path in enumerate(files):
                folder = point / f"{number % 40}"
                folder.mkdir(exist_ok=True)
                shutil.copyfile(path, folder / f"{number}")
                if number % 200 == 0:
                    with (folder / f"{number}").open("r+b") as synced:
                        os.fsync(synced.fileno())
            big = random_image(point / "big", 40 * MIB)
            run("sync", "-f", point)
            full = allocated(image)
            big.unlink()
            for number in range(0, FILES, 3):
                (point / f"{number % 40}" / f"{number}").unlink()
            run("sync", "-f", point)  # what was deleted is free only then
            run("fstrim", point)
            wanted = digests(point)
    assert len(wanted) == FILES - FILES // 3
    assert has(counts, "READ", "WRITE", "FLUSH", "TRIM")
    assert allocated(image) < full - 30 * MIB, "what was trimmed takes no room"
    run("e2fsck", "-fn", image)
    # And once more, from what the server gives now, over the other socket.
    with (
        bench.recorded("tcp") as made,
        fuse(processes, room, made.uri) as file,
        loop_device(file) as device,
        mounted(device, point),
    ):
        assert digests(point) == wanted
    run("e2fsck", "-fn", image)
    served.running.signal(15)
    assert served.running.wait(10) == 0
    with loop_device(image) as device, mounted(device, point):
        assert digests(point) == wanted


# nbdkit as a proxy in front of us.


@contextlib.contextmanager
def proxy(bench: Bench, *options: str) -> Iterator[str]:
    """nbdkit's nbd plugin; its URI."""
    socket = bench.room / f"proxy-{len(os.listdir(bench.room))}"
    running = bench.processes.start("nbdkit", "-f", "-U", socket, "nbd", *options)
    until(lambda: socket.exists() or running.status is not None, 10, "nbdkit listens")
    assert running.status is None, running.stderr
    yield f"nbd+unix:///?socket={socket}"
    running.signal(15)
    running.wait(10)


@pytest.mark.parametrize("disk", DISKS)
def test_clients_read_and_write_through_an_nbdkit_proxy(make: Make, disk: str) -> None:
    bench = make(disk)
    checked = bench.processes.checked
    for kind in KINDS:
        counts: Counter[str] = Counter()
        before = digest(bench.disk)
        back = bench.room / f"back-{kind}"
        with (
            bench.recorded(kind, counts) as made,
            proxy(bench, f"uri={made.uri}", "shared=true") as uri,
        ):
            assert checked("nbdinfo", "--size", uri).strip() == str(bench.size)
            checked("nbdcopy", "--connections=4", uri, back)
            assert digest(back) == before
            assert allocated(back) <= allocated(bench.disk) + MIB
            commands = "write -P 7 0 4096\nread -P 7 0 4096\nwrite -z 512 512\nflush"
            script = [word for line in commands.splitlines() for word in ("-c", line)]
            assert "failed" not in checked("qemu-io", "-f", "raw", *script, uri)
            checked("nbdcopy", back, uri)
            checked("nbdcopy", "--flush", "--allocated", back, uri)
        assert digest(bench.disk) == before
        assert has(counts, "READ", "WRITE", "FLUSH", "STATUS")


def test_a_long_name_and_a_read_only_disk_work_through_nbdkit(make: Make) -> None:
    bench = make("sparse", read_only=True, name="x" * 4096)
    for kind in KINDS:
        with bench.recorded(kind) as made, proxy(bench, f"uri={made.uri}") as uri:
            status = bench.processes.run("nbdinfo", "--is", "read-only", uri).status
            assert status == 0
            bench.processes.checked("nbdcopy", uri, bench.room / "back")
            assert digest(bench.room / "back") == digest(bench.disk)
            assert "read-only" in bench.failing("nbdcopy", bench.room / "back", uri)


def test_an_oldstyle_server_works_through_nbdkit(make: Make) -> None:
    bench = make("sparse", oldstyle=True)
    other = sparse_image(bench.room / "other", bench.size, {MIB: os.urandom(3 * MIB)})
    for kind in KINDS:
        with bench.recorded(kind) as made, proxy(bench, f"uri={made.uri}") as uri:
            bench.processes.checked("nbdcopy", uri, bench.room / "back")
            assert digest(bench.room / "back") == digest(bench.disk)
            bench.processes.checked("nbdcopy", other, uri)
        assert digest(bench.disk) == digest(other)
