"""Loop devices: file systems and devices of any kind, in files; they need root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


def missing(kind: str = "ext4") -> str:
    """Why there is no such file system here; nothing if there can be."""
    if os.geteuid():
        return "needs root"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    if kind not in Path("/proc/filesystems").read_text().split():
        return f"the kernel has no {kind}"
    if not shutil.which(MAKE[kind][0], path=PATH):
        return f"{MAKE[kind][0]} is not installed"
    return ""


def do(*command: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, "PATH": PATH}, stdout=subprocess.PIPE, text=True, timeout=120
    )
    if done.returncode:
        raise SystemExit(f"{command}: exit status {done.returncode}")
    return done.stdout.strip()


@contextlib.contextmanager
def device(image: Path, size: int, *, direct: bool = True) -> Iterator[Path]:
    """A device of that size in a new file, whose pages are not cached twice."""
    with image.open("wb") as file:
        file.truncate(size)
    how = "on" if direct else "off"
    path = Path(do("losetup", f"--direct-io={how}", "--find", "--show", str(image)))
    try:
        yield path
    finally:
        do("losetup", "--detach", str(path))
        image.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(device: Path, kind: str, folder: Path, *options: str) -> Iterator[Path]:
    """A new file system on the device."""
    do(*MAKE[kind], str(device))
    folder.mkdir(exist_ok=True)
    do("mount", *options, "-t", kind, str(device), str(folder))
    try:
        yield folder
    finally:
        do("umount", str(folder))
