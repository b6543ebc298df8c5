"""`make demo`: migrate a real disk between two real processes, and check the result.

Makes an ext4 image of the machine's own files (or a copy of a given disk, which is only read),
migrates it with `blockmig receive` and `blockmig send`, and then checks what was promised; exits
with 0 if every check passes. All that it creates is in `.demo`, and is removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from blockmig.storage import is_open_elsewhere, users_of
from blockmig.syscalls import SYSTEM

TREES = ("/usr/lib/python3", "/usr/share/doc", "/usr/share", "/usr/lib", "/usr/bin")
ENOUGH = 400 << 20
MOST_FILES = 20_000
IMAGE = 1 << 30
EXT_MAGIC = (1080, b"\x53\xef")

console = Console(highlight=False, soft_wrap=True)


class Failed(Exception):
    """The demo cannot go on; the message says why."""


def say(mark: str, text: str) -> None:
    console.print(f" {mark} {text}")


def heading(text: str) -> None:
    console.print(f"\n[bold]{text}[/]")


def size(count: float) -> str:
    return f"{count / (1 << 20):,.0f} MiB"


def real_files() -> Iterator[tuple[Path, os.stat_result]]:
    seen = set()
    for tree in TREES:
        for folder, folders, names in os.walk(tree):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                try:
                    status = path.lstat()
                except OSError:
                    continue
                if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK) and path not in seen:
                    seen.add(path)
                    yield path, status


def make_image(image: Path, staging: Path) -> None:
    """Make an ext4 file system with up to L{ENOUGH} bytes of this machine's files."""
    count = total = 0
    for path, status in real_files():
        copy = staging / path.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        count += 1
        total += status.st_size
        if total >= ENOUGH or count >= MOST_FILES:
            break
    run("mke2fs", "-q", "-t", "ext4", "-d", str(staging), str(image), f"{IMAGE >> 20}M")
    shutil.rmtree(staging)
    say("[green]•[/]", f"{count:,} files of this machine, {size(total)}, in an ext4 image of 1 GiB")


def run(*command: str) -> None:
    """Run a tool whose output matters only if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{shlex.join(command)}: {(done.stderr or done.stdout).strip()}")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def length(path: Path) -> int:
    """The size of a file or block device."""
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def is_ext(path: Path) -> bool:
    """Whether the disk, without partitions, has an ext2, 3 or 4 file system."""
    offset, magic = EXT_MAGIC
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(len(magic)) == magic


def check_room(work: Path, needed: int) -> None:
    """Check that there is room for so many bytes, before anything is written."""
    free = shutil.disk_usage(work).free
    if free < needed + (64 << 20):
        raise Failed(f"{work}: {size(needed)} are needed, but only {size(free)} are free")


def allocated(path: Path) -> int:
    """Bytes that the disk occupies: all of a device, and of a file what is not a hole."""
    status = path.stat()
    return length(path) if stat.S_ISBLK(status.st_mode) else status.st_blocks * 512


def check_own(disk: Path) -> None:
    """Check that it is a disk."""
    try:
        mode = disk.stat().st_mode
        if stat.S_ISDIR(mode):
            raise Failed(f"{disk}: is a directory, not a disk")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise Failed(f"{disk}: is neither a regular file nor a block device")
        if not length(disk):
            raise Failed(f"{disk}: is empty, there is nothing to migrate")
    except OSError as error:
        raise Failed(f"{disk}: {error.strerror}") from None


def state(disk: Path) -> tuple[int, ...]:
    """Values that change when the disk is written to, or replaced."""
    now = disk.stat()
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def writers(disk: Path) -> list[str]:
    """Who else may be writing to it, as far as the system shows."""
    exclusive = os.O_EXCL if disk.is_block_device() else 0
    try:
        descriptor = os.open(disk, os.O_RDONLY | exclusive)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return ["a mounted file system"]
    try:
        if is_open_elsewhere(descriptor, False, SYSTEM) is False:
            return []
        return [user.what for user in users_of(descriptor) if user.writes is not False]
    finally:
        os.close(descriptor)


def copy_disk(own: Path, copy: Path) -> None:
    """Make a reflink if the file system supports it, otherwise a sparse copy."""
    needed = allocated(own)
    cloned = False
    with contextlib.suppress(Failed):
        run("cp", "--reflink=always", "--", str(own), str(copy))
        cloned = True
    check_room(copy.parent, needed if cloned else 2 * needed)
    if not cloned:
        copy.unlink(missing_ok=True)
        run("cp", "--sparse=always", "--", str(own), str(copy))
    say("[green]•[/]", f"{copy}: a copy of it, {size(allocated(copy))} of data")


def fsck(path: Path) -> subprocess.CompletedProcess[str]:
    """Check the file system without changing it (-n)."""
    return subprocess.run(
        ["e2fsck", "-fn", str(path)],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


class Demo:
    """One migration, and its checks."""

    def __init__(self, source: Path, destination: Path, check: bool) -> None:
        self.source = source
        self.destination = destination
        self.check = check
        self.blockmig = str(Path(sys.executable).with_name("blockmig"))
        self.failures = 0

    def prove(self, holds: bool, text: str) -> None:
        self.failures += not holds
        say("[green]✔[/]" if holds else "[red]✘[/]", text if holds else f"[red]{text}[/]")

    def migrate(self, before: str) -> None:
        heading("Two processes")
        receiver = self.start_receiver()
        try:
            self.send(receiver, before)
        finally:
            if receiver.poll() is None:
                receiver.kill()
                receiver.wait()

    def start_receiver(self) -> subprocess.Popen[str]:
        command = ["receive", str(self.destination)]
        if shutil.disk_usage(self.destination.parent).free < length(self.source):
            command.append("--no-space-check")  # its data is less: that was checked before
        command += ["--listen", "tcp:0:interface=127.0.0.1"]
        console.print(f"   [cyan]$ blockmig {escape(shlex.join(command))}[/]")
        return subprocess.Popen(
            [self.blockmig, *command, "--log-format", "json"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def send(self, receiver: subprocess.Popen[str], before: str) -> None:
        """Run the sender, wait for both processes, and check the result."""
        assert receiver.stderr is not None
        uri = None
        for line in receiver.stderr:
            event = json.loads(line)
            if event["event"] == "listening":
                uri = event["uri"]
                break
            console.print(f"   {escape(event['message'])}")
        if uri is None:
            raise Failed(f"the receiver ended with status {receiver.wait()}")
        command = ["send", "--unlink", "--progress", "bar", str(self.source), uri]
        console.print(f"   [cyan]$ blockmig {escape(shlex.join(command))}[/]")
        taken = allocated(self.source)
        sys.stdout.flush()
        began = time.monotonic()
        sender = subprocess.run([self.blockmig, *command], stdin=subprocess.DEVNULL, check=False)
        if sender.returncode:
            receiver.terminate()
        for line in receiver.stderr:
            event = json.loads(line)
            if event["event"] in ("complete", "restart", "error"):
                console.print(f"   receiver: {escape(event['message'])}")
        receiver.wait()
        seconds = time.monotonic() - began

        heading("Checks")
        self.prove(sender.returncode == 0, f"blockmig send: exit status {sender.returncode}")
        self.prove(receiver.returncode == 0, f"blockmig receive: exit status {receiver.returncode}")
        after = digest(self.destination)
        self.prove(after == before, f"sha256 before {before}\n            after {after}")
        self.check_file_system()
        there = self.source.exists()
        self.prove(not there, "the source is " + ("still there" if there else "gone"))
        now = allocated(self.destination)
        say("[green]•[/]", f"allocated: {size(taken)} before, {size(now)} after")
        say("[green]•[/]", f"{seconds:.1f} s from the start of the sender to the end of both")

    def check_file_system(self) -> None:
        """Check that the file system is still clean."""
        if not is_ext(self.destination):
            say("[yellow]•[/]", "e2fsck: skipped, since this is not an ext file system")
            return
        if not self.check:
            say("[yellow]•[/]", "e2fsck: skipped, since it was not clean before")
            return
        done = fsck(self.destination)
        last = (done.stdout.strip().splitlines() or ["no output"])[-1].rpartition("/")[2]
        self.prove(done.returncode == 0, f"e2fsck -fn: {'clean' if not done.returncode else last}")


def demonstrate(work: Path, own: Path | None, keep: bool) -> int:
    """Run the demo, and return how many checks failed."""
    heading("A disk")
    source, destination = work / "source.img", work / "destination.img"
    stands_still, check = False, True
    if own is None:
        check_room(work, 3 * ENOUGH)
        make_image(source, work / "files")
    else:
        check_own(own)
        say(
            "[green]•[/]",
            f"{escape(str(own))}: {length(own):,} bytes, your disk, which is only read",
        )
        others, as_it_was = writers(own), state(own)
        copy_disk(own, source)
        stands_still = not others and state(own) == as_it_was
        if not stands_still:
            who = ", ".join(others) or "somebody"
            say("[yellow]•[/]", f"{escape(who)} writes to your disk: this copy may be inconsistent")
        check = not is_ext(source) or fsck(source).returncode == 0
    before = digest(source)
    say("[green]•[/]", f"sha256 {before}")
    demo = Demo(source, destination, check)
    demo.migrate(before)
    if own is not None and stands_still:
        holds = state(own) == as_it_was
        demo.prove(holds, "your own disk is unchanged" if holds else "your own disk has changed")
    if keep:
        say("[green]•[/]", f"kept: {escape(str(destination))}")
    return demo.failures


def main() -> int:
    """Run the demo in a directory of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("disk", nargs="?", type=Path, help="an image or device to copy and migrate")
    parser.add_argument("--keep", action="store_true", help="do not remove the destination")
    options = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    work = Path(".demo")
    if options.disk and work.resolve() in options.disk.resolve().parents:
        console.print(
            f"[red]demo: {escape(str(options.disk))}: .demo is emptied first: give another disk[/]"
        )
        return 1
    kept = False
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(0o700)
        failures = demonstrate(work, options.disk, options.keep)
        kept = options.keep
    except (Failed, OSError) as error:
        console.print(f"\n[red]demo: {escape(str(error))}[/]")
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130
    finally:
        if not kept:
            shutil.rmtree(work, ignore_errors=True)
    if failures:
        console.print(f"\n[bold red]{failures} of the checks failed.[/]")
        return 1
    console.print("\n[bold green]All checks passed.[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
