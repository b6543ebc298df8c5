"""`make demo`: a real disk moves between two real processes, and arrived whole.

Makes an ext4 image of the machine's own files (or takes a disk that is given), migrates it with
`blockmig receive` and `blockmig send`, and then checks what was promised; exits 0 if all holds.
"""

from __future__ import annotations

import argparse
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

TREES = ("/usr/lib/python3", "/usr/share/doc", "/usr/share", "/usr/lib", "/usr/bin")
ENOUGH = 400 << 20
MOST_FILES = 20_000
IMAGE = 1 << 30
EXT_MAGIC = (1080, b"\x53\xef")

console = Console(highlight=False, soft_wrap=True)


class Failed(Exception):
    """The demo cannot go on; the message says why."""


def say(mark: str, text: str) -> None:
    """One line, with its mark in front."""
    console.print(f" {mark} {text}")


def heading(text: str) -> None:
    """The name of what comes next."""
    console.print(f"\n[bold]{text}[/]")


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / (1 << 20):,.0f} MiB"


def real_files() -> Iterator[tuple[Path, os.stat_result]]:
    """Files of this machine."""
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
    """An ext4 file system that holds some hundred MiB of them."""
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
    """Run a tool that says nothing when all is well."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{shlex.join(command)}: {(done.stderr or done.stdout).strip()}")


def digest(path: Path) -> str:
    """SHA-256 of the whole disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def length(path: Path) -> int:
    """Bytes of a file or block device."""
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END)


def is_ext(path: Path) -> bool:
    """Whether there is an ext2, 3 or 4 file system on the whole disk."""
    offset, magic = EXT_MAGIC
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(len(magic)) == magic


def check_room(work: Path, needed: int) -> None:
    """Whether there is room for a copy, before anything is begun."""
    free = shutil.disk_usage(work).free
    if free < needed + (64 << 20):
        raise Failed(f"{work}: {size(needed)} are needed, and only {size(free)} are free")


class Demo:
    """One migration, and what was found out about it."""

    def __init__(self, source: Path, destination: Path, unlink: bool) -> None:
        self.source = source
        self.destination = destination
        self.unlink = unlink
        self.blockmig = str(Path(sys.executable).with_name("blockmig"))
        self.failures = 0

    def prove(self, holds: bool, text: str) -> None:
        """One thing that was promised."""
        self.failures += not holds
        say("[green]✔[/]" if holds else "[red]✘[/]", text if holds else f"[red]{text}[/]")

    def migrate(self, before: str, total: int) -> None:
        """Run both processes, and prove what they did."""
        heading("Two processes")
        receiver = self.start_receiver(total)
        try:
            self.send(receiver, before)
        finally:
            if receiver.poll() is None:
                receiver.kill()
                receiver.wait()

    def start_receiver(self, total: int) -> subprocess.Popen[str]:
        """Start the destination's."""
        command = ["receive", "--file", str(self.destination), "--size", str(total)]
        command += ["--listen", "tcp:0:interface=127.0.0.1"]
        console.print(f"   [cyan]$ blockmig {escape(shlex.join(command))}[/]")
        return subprocess.Popen(
            [self.blockmig, *command, "--log-format", "json"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def send(self, receiver: subprocess.Popen[str], before: str) -> None:
        """Run the source's, wait for both, and look at what is there."""
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
        unlink = ["--unlink"] if self.unlink else []
        command = ["send", *unlink, "--progress", "bar", str(self.source), uri]
        console.print(f"   [cyan]$ blockmig {escape(shlex.join(command))}[/]")
        allocated = os.stat(self.source).st_blocks * 512
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

        heading("Proofs")
        self.prove(sender.returncode == 0, f"blockmig send: exit status {sender.returncode}")
        self.prove(receiver.returncode == 0, f"blockmig receive: exit status {receiver.returncode}")
        after = digest(self.destination)
        self.prove(after == before, f"sha256 before {before}\n            after {after}")
        self.check_file_system()
        there = self.source.exists()
        if self.unlink:
            self.prove(not there, "the source is " + ("still there" if there else "gone"))
        else:
            self.prove(there, "your own disk is " + ("still there" if there else "gone"))
        now = os.stat(self.destination).st_blocks * 512
        say("[green]•[/]", f"allocated: {size(allocated)} before, {size(now)} after")
        say("[green]•[/]", f"{seconds:.1f} s from the start of the sender to the end of both")

    def check_file_system(self) -> None:
        """Only looks (-n), as something on the destination would before mounting it."""
        if not is_ext(self.destination):
            say("[yellow]•[/]", "e2fsck: skipped, since this is not an ext file system")
            return
        done = subprocess.run(
            ["e2fsck", "-fn", str(self.destination)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        last = (done.stdout.strip().splitlines() or ["nothing said"])[-1].rpartition("/")[2]
        self.prove(done.returncode == 0, f"e2fsck -fn: {'clean' if not done.returncode else last}")


def demonstrate(work: Path, own: Path | None, keep: bool) -> int:
    """The whole demo; how many proofs failed."""
    heading("A disk")
    destination = work / "destination.img"
    if own is None:
        check_room(work, 3 * ENOUGH)
        source = work / "source.img"
        make_image(source, work / "files")
    else:
        source = own
        try:
            total = length(source)
        except OSError as error:
            raise Failed(f"{source}: {error.strerror}") from None
        check_room(work, os.stat(source).st_blocks * 512 or total)
        say("[green]•[/]", f"{escape(str(source))}: {total:,} bytes, yours: it will not be deleted")
    before = digest(source)
    say("[green]•[/]", f"sha256 {before}")
    demo = Demo(source, destination, unlink=own is None)
    demo.migrate(before, length(source))
    if keep:
        say("[green]•[/]", f"kept: {escape(str(destination))}")
    return demo.failures


def main() -> int:
    """Run it in a folder of its own, which goes when it is over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("disk", nargs="?", type=Path, help="an image or device, instead of ours")
    parser.add_argument("--keep", action="store_true", help="leave the destination where it is")
    options = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = Path(".demo")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    kept = False
    try:
        failures = demonstrate(work, options.disk, options.keep)
        kept = options.keep
    except Failed as error:
        console.print(f"\n[red]demo: {escape(str(error))}[/]")
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130
    finally:
        if not kept:
            shutil.rmtree(work, ignore_errors=True)
    if failures:
        console.print(f"\n[bold red]{failures} of these do not hold.[/]")
        return 1
    console.print("\n[bold green]All of it holds.[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
