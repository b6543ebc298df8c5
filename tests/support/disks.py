"""Images: how to make them, and how to tell whether two are the same."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

MIB = 1 << 20
_CHUNK = 1 << 16


def random_image(path: Path, size: int, seed: int = 1) -> Path:
    """A file without a zero run or a repetition."""
    generator = random.Random(seed)
    with path.open("wb") as file:
        while size:
            count = min(size, 4 * MIB)
            file.write(generator.randbytes(count))
            size -= count
    return path


def sparse_image(path: Path, size: int, pieces: dict[int, bytes]) -> Path:
    """A file with data at some offsets, and holes elsewhere."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
    return path


def size_of(path: Path | str) -> int:
    """Bytes, of a file or a device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def digest(path: Path | str) -> str:
    """Of size and content; holes and zeroes are the same, and quickly passed over."""
    size = size_of(path)
    whole = hashlib.blake2b(str(size).encode())
    zeroes = bytes(_CHUNK)
    with open(path, "rb", buffering=0) as file:
        descriptor = file.fileno()
        position = 0
        while position < size:
            try:
                position = os.lseek(descriptor, position, os.SEEK_DATA) // _CHUNK * _CHUNK
            except OSError:  # a hole to the end, or a device
                if os.path.isfile(path):
                    break
            chunk = os.pread(descriptor, _CHUNK, position)
            if chunk != zeroes[: len(chunk)]:
                whole.update(position.to_bytes(8, "big") + chunk)
            position += _CHUNK
    return whole.hexdigest()


def allocated(path: Path) -> int:
    """Bytes that the file takes from its file system."""
    return path.stat().st_blocks * 512


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    """The file as a block device."""
    attach = ["losetup", "--find", "--show", str(path)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


_LOOP_CTL_ADD, _LOOP_CTL_REMOVE = 0x4C80, 0x4C81


@contextlib.contextmanager
def loop_name() -> Iterator[Path]:
    """A loop device of the test's own, with nothing attached: nobody else takes its name."""
    number = 1000 + os.getpid()
    control = os.open("/dev/loop-control", os.O_RDWR)
    try:
        fcntl.ioctl(control, _LOOP_CTL_ADD, number)
        try:
            yield Path(f"/dev/loop{number}")
        finally:
            fcntl.ioctl(control, _LOOP_CTL_REMOVE, number)
    finally:
        os.close(control)


@contextlib.contextmanager
def attached(device: Path, path: Path) -> Iterator[Path]:
    """The file as that loop device."""
    subprocess.run(["losetup", str(device), str(path)], check=True)
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


@contextlib.contextmanager
def real_file_system(directory: Path, size: int) -> Iterator[Path]:
    """A directory on ext4, whatever is around it."""
    directory.mkdir()
    image = sparse_image(directory.with_name(directory.name + ".image"), size, {})
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextlib.contextmanager
def small_file_system(directory: Path, size: int) -> Iterator[Path]:
    """A directory in which there is so much room and no more."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "blockmig-test", str(directory)]
    subprocess.run(mount, check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
