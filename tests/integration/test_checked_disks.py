"""Our own disks, on real media, keep what `IDisk` says; also where the kernel can do less."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.disks import MIB, loop_device, random_image, small_file_system, sparse_image

from blockmig.storage import BlockDisk, FileDisk
from blockmig.syscalls import SystemCalls
from blockmig.testing import check_disk

SIZE = 6 * MIB + 777


class Lesser(SystemCalls):
    """The real calls, some of which fail as on another kernel, or do less than they were asked.

    @ivar failed: how often those that fail were called.
    """

    def __init__(self, *without: str) -> None:
        self.failed = 0
        for name in without:
            setattr(self, name, self._fail)

    def _fail(self, *_: Any) -> Any:
        self.failed += 1
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


class WithoutHoles(Lesser):
    def lseek(self, descriptor: int, offset: int, whence: int) -> int:  # type: ignore[override]
        if whence != os.SEEK_END:
            self.failed += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.lseek(descriptor, offset, whence)


class Short(Lesser):
    def pread(self, descriptor: int, count: int, offset: int) -> bytes:  # type: ignore[override]
        self.failed += 1
        return os.pread(descriptor, min(count, 10007), offset)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:  # type: ignore[override]
        return os.pwrite(descriptor, memoryview(data)[:9001], offset)


LESSER: dict[str, Callable[[], Lesser]] = {
    "no holes": WithoutHoles,
    "no fallocate": lambda: Lesser("fallocate"),
    "no preadv": lambda: Lesser("preadv"),
    "no sync_file_range": lambda: Lesser("sync_file_range"),
    "short calls": Short,
}


@pytest.mark.parametrize("size", [1, 4096, SIZE])
def test_a_new_file_keeps_what_IDisk_says(room: Path, size: int) -> None:
    check_disk(FileDisk(str(room / "disk"), size=size))
    assert (room / "disk").stat().st_size == size


def test_a_file_in_memory_keeps_what_IDisk_says(room: Path) -> None:
    with small_file_system(room / "small", 32 * MIB) as directory:
        check_disk(FileDisk(str(directory / "disk"), size=SIZE))


def test_a_sparse_file_keeps_what_IDisk_says(room: Path) -> None:
    pieces = {0: b"x", MIB: b"y" * 70_000, SIZE - 5: b"z" * 5}
    check_disk(FileDisk(str(sparse_image(room / "disk", SIZE, pieces))))


@pytest.mark.parametrize("kernel", LESSER)
def test_a_file_keeps_what_IDisk_says_on_a_lesser_kernel(room: Path, kernel: str) -> None:
    calls = LESSER[kernel]()
    check_disk(FileDisk(str(sparse_image(room / "disk", SIZE, {MIB: b"x" * 9000})), system=calls))
    assert calls.failed


def test_a_file_that_is_only_read_is_not_changed(room: Path) -> None:
    image = random_image(room / "disk", SIZE)
    before = image.read_bytes()
    check_disk(FileDisk(str(image), writable=False), writable=False)
    assert image.read_bytes() == before


@pytest.mark.parametrize("kernel", [None, "no fallocate", "no holes", "no preadv"])
def test_a_block_device_keeps_what_IDisk_says(room: Path, kernel: str | None) -> None:
    calls = SystemCalls() if kernel is None else LESSER[kernel]()
    with loop_device(sparse_image(room / "image", 6 * MIB, {MIB: b"x" * 9000})) as device:
        check_disk(BlockDisk(str(device), state_directory=str(room / "state"), system=calls))


def test_a_block_device_that_cannot_zero_quickly_loses_nothing(room: Path) -> None:
    """A loop device on a file in memory is one: Linux drops its dirty pages as it fails."""
    with small_file_system(room / "small", 32 * MIB) as directory:
        image = sparse_image(directory / "image", 6 * MIB, {MIB: b"x" * 9000})
        with loop_device(image) as device:
            check_disk(BlockDisk(str(device), state_directory=str(room / "state")))
