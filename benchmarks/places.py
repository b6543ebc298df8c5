"""Where a migration goes from and to: two files, an address, and the state of their pages."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .settings import MIB

PIECE = 64 << 10
"""Bytes that are read at a time: the C library gives longer pieces back each time."""

# Written to, not only mapped; then it is free again, and known to the host.
_TOUCH = """
import mmap, sys
mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
"""


@dataclass(frozen=True)
class Place:
    """Two files and an address.

    @ivar address: the path of a UNIX socket, or a port.
    """

    source: Path
    destination: Path
    size: int
    transport: str
    address: str

    @property
    def uri(self) -> str:
        if self.transport == "unix":
            return f"nbd+unix:///?socket={self.address}"
        return f"nbd://127.0.0.1:{self.address}/"

    @property
    def endpoint(self) -> str:
        if self.transport == "unix":
            return f"unix:{self.address}"
        return f"tcp:{self.address}:interface=127.0.0.1"

    def forget(self) -> None:
        """What is finished is recorded, and would not be done again; nor is a socket made twice."""
        for record in (f"{self.source}.MIGRATED", f"{self.destination}.RECEIVED"):
            Path(record).unlink(missing_ok=True)
        for path in (self.source, self.destination):
            unmark(path)
        if self.transport == "unix":
            Path(self.address).unlink(missing_ok=True)


def unmark(path: Path) -> None:
    """A file without blockmig's marks."""
    with contextlib.suppress(OSError):
        for name in os.listxattr(path):
            if name.startswith("user.blockmig."):
                os.removexattr(path, name)


def place_in(folder: Path, size: int, transport: str, name: str = "") -> Place:
    """The files C{source} and C{copy} there."""
    address = f"{folder}/socket{name}" if transport == "unix" else str(free_port())
    return Place(folder / f"source{name}", folder / f"copy{name}", size, transport, address)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def make_random(path: Path, size: int) -> None:
    """Random data: nothing of it is a hole, and no MiB is like another."""
    block = [os.urandom(MIB) for _ in range(16)]
    with path.open("wb") as file:
        for number, offset in enumerate(range(0, size, MIB)):
            file.write((os.urandom(16) + block[number % 16][16:])[: size - offset])


def make_hole(path: Path, size: int) -> None:
    """A new file without any data."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def spoil(path: Path) -> None:
    """Have each MiB of data differ from what it was, without adding any."""
    with path.open("r+b") as file:
        number = file.fileno()
        for start, end in list(data_of(number)):
            for offset in range(start, end, MIB):
                os.pwrite(number, os.urandom(min(16, end - offset)), offset)


def data_of(file: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, as its file system knows it."""
    end, size = 0, os.lseek(file, 0, os.SEEK_END)
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a device, which does not know
                yield end, size
            return
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


def differ(source: Path, destination: Path) -> bool:
    """Whether they do: sizes, all data of the one, and what only the other has."""
    with source.open("rb") as one, destination.open("rb") as other:
        size = os.lseek(one.fileno(), 0, os.SEEK_END)
        if size != os.lseek(other.fileno(), 0, os.SEEK_END):
            return True
        ranges = list(data_of(one.fileno()))
        if size != sum(end - start for start, end in ranges):
            ranges += data_of(other.fileno())
        for start, end in ranges:
            for offset in range(start, end, PIECE):
                count = min(PIECE, end - offset)
                if os.pread(one.fileno(), count, offset) != os.pread(other.fileno(), count, offset):
                    return True
    return False


def drop(path: Path) -> None:
    """Have nothing of a file in the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(path: Path) -> None:
    """Have all of a file in the page cache."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(MIB)
        while file.readinto(buffer):
            pass


def touch(count: int) -> None:
    """Have that many bytes of free memory be there: not taken back by the host of this guest."""
    subprocess.run([sys.executable, "-ISE", "-c", _TOUCH, str(count)], check=True, timeout=120)
