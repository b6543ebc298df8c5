"""Where the kernel or the file system lacks the fast path, a slower one gives the same bytes."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from tests.support.disks import MIB, allocated, digest, random_image, sparse_image
from tests.support.embedding import CountingCalls, receiving, sending
from twisted.internet import reactor

from blockmig.syscalls import SystemCalls

SIZE = 12 * MIB + 777


class Without(CountingCalls):
    """The real calls, one of which always fails with the same error."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__()
        self.failed: Counter[str] = Counter()

        def fail(*_: Any, **__: Any) -> Any:
            self.failed[name] += 1
            raise OSError(number, os.strerror(number))

        setattr(self, name, fail)


def no_splice() -> SystemCalls:
    calls = CountingCalls()
    calls.splice = None  # type: ignore[assignment, method-assign]
    return calls


class SpliceIntoPipeOnly(CountingCalls):
    """The socket supports splice, the disk does not."""

    def splice(self, *arguments: Any, **named: Any) -> int:
        if "offset_dst" in named:
            self.counts["refused"] += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().splice(*arguments, **named)


class Short(CountingCalls):
    """Every call moves less than it was asked to."""

    def sendfile(self, out: int, source: int, offset: int, count: int) -> int:
        return super().sendfile(out, source, offset, min(count, 70001))

    def splice(self, source: int, target: int, count: int, **named: Any) -> int:
        most = 7001 if "offset_dst" in named else 30011  # so that a pipe is not drained at once
        return super().splice(source, target, min(count, most), **named)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        self.counts["pwrite"] += 1
        return os.pwrite(descriptor, memoryview(data)[:9001], offset)

    def pread(self, descriptor: int, count: int, offset: int) -> bytes:
        self.counts["pread"] += 1
        return os.pread(descriptor, min(count, 10007), offset)


class Interrupted(CountingCalls):
    """Every second call would block."""

    def sendfile(self, *arguments: Any) -> int:
        if self.counts["sendfile"] % 2:
            self.counts["sendfile"] += 1
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return super().sendfile(*arguments)

    def splice(self, *arguments: Any, **named: Any) -> int:
        if "offset_dst" not in named:
            self.counts["from socket"] += 1
            if self.counts["from socket"] % 2:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return super().splice(*arguments, **named)


CALLS: dict[str, Callable[[], SystemCalls]] = {
    "nothing missing": CountingCalls,
    "no splice": no_splice,
    "splice EINVAL": lambda: Without("splice", errno.EINVAL),
    "splice ENOSYS": lambda: Without("splice", errno.ENOSYS),
    "splice not into the disk": SpliceIntoPipeOnly,
    "no pipe": lambda: Without("pipe", errno.EMFILE),
    "sendfile EINVAL": lambda: Without("sendfile", errno.EINVAL),
    "sendfile ENOSYS": lambda: Without("sendfile", errno.ENOSYS),
    "sendfile EOVERFLOW": lambda: Without("sendfile", errno.EOVERFLOW),
    "no fallocate": lambda: Without("fallocate", errno.EOPNOTSUPP),
    "no RWF_NOWAIT": lambda: Without("preadv", errno.EOPNOTSUPP),
    "everything is cold": lambda: Without("preadv", errno.EAGAIN),
    "no sync_file_range": lambda: Without("sync_file_range", errno.ENOSYS),
    "no locks": lambda: Without("flock", errno.ENOLCK),
    "short": Short,
    "EAGAIN": Interrupted,
}


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("name", CALLS)
@pytest_twisted.ensureDeferred
async def test_a_migration_without_one_system_call_gives_the_same_bytes(
    room: Path, name: str, kind: str
) -> None:
    source = sparse_image(
        room / "source",
        SIZE,
        {0: os.urandom(3 * MIB + 5), 5 * MIB: bytes(2 * MIB), 9 * MIB: os.urandom(3 * MIB + 700)},
    )
    destination = random_image(room / "destination", SIZE, seed=3)
    before = digest(source)
    calls = CALLS[name]()
    listen = "tcp:0:interface=127.0.0.1" if kind == "tcp" else f"unix:{room}/socket"
    async with receiving(destination, system=calls, listen=listen, overwrite=True) as (
        receiver,
        port,
    ):
        to = port.getHost().port if kind == "tcp" else f"unix:{room}/socket"
        async with sending(source, to, system=calls, unlink=True) as sender:
            await sender.run().addTimeout(20, reactor)
        outcome = await receiver.complete()
    assert outcome.attempts == 1
    assert digest(destination) == before
    assert os.path.getsize(destination) == SIZE
    assert not source.exists()
    if name == "no fallocate":
        assert allocated(destination) >= SIZE
    else:
        assert allocated(destination) < 8 * MIB
    if isinstance(calls, Without):
        # Otherwise the test would not be one.
        assert calls.failed or name == "no sync_file_range", "it was never tried"
    if name == "nothing missing":
        assert calls.counts["sendfile"]  # type: ignore[attr-defined]
        assert calls.counts["splice"]  # type: ignore[attr-defined]
    if name == "splice not into the disk":
        assert calls.counts["refused"]  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_zeroes_are_found_where_holes_are_not_reported(room: Path) -> None:
    """A file system without SEEK_HOLE: what reads as zeroes is still sent as zeroes."""

    class NoSeek(SystemCalls):
        def lseek(self, descriptor: int, offset: int, whence: int) -> int:
            if whence in (os.SEEK_DATA, os.SEEK_HOLE):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return os.lseek(descriptor, offset, whence)

    source = sparse_image(room / "source", SIZE, {5 * MIB: os.urandom(MIB)})
    async with receiving(room / "destination", SIZE) as (receiver, port):
        async with sending(source, port.getHost().port, system=NoSeek()) as sender:
            summary = await sender.run()
        await receiver.complete()
    assert summary.data == MIB
    assert digest(room / "destination") == digest(source)
