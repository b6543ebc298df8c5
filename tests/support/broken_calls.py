"""System calls that fail at one act of a migration, each time that it is tried.

Owns what has been done by them so far, by which an act is told from the same one before and after
it: the second time that a record gets its name is not the first.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from blockmig.syscalls import SystemCalls


class BrokenCalls(SystemCalls):
    """The real calls, but for those for which C{fails} says otherwise.

    @ivar fails: asked with the call's name and the path that it concerns.
    @ivar renamed: how many times a path with that end was renamed to, by what it ends with.
    @ivar latest: the last act that changed a directory: its name, and the path.
    @ivar hits: how many calls have failed.
    """

    def __init__(self) -> None:
        self.fails: Callable[[str, str, BrokenCalls], bool] = lambda call, path, calls: False
        self.error = 0
        self.renamed: Counter[str] = Counter()
        self.latest = ("", "")
        self.hits = 0

    def _check(self, call: str, path: str) -> None:
        if self.error and self.fails(call, path, self):
            self.hits += 1
            raise OSError(self.error, os.strerror(self.error))

    def _check_descriptor(self, call: str, descriptor: int) -> None:
        self._check(call, os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)"))

    def open(self, path: str, *arguments: Any) -> int:  # type: ignore[override]
        self._check("open", os.fspath(path))
        return os.open(path, *arguments)

    def rename(self, old: str, new: str) -> None:  # type: ignore[override]
        self._check("rename", new)
        os.rename(old, new)
        self.renamed[new.rpartition(".")[2]] += 1
        self.latest = ("rename", new)

    def unlink(self, path: str) -> None:  # type: ignore[override]
        self._check("unlink", path)
        os.unlink(path)
        self.latest = ("unlink", path)

    def fsync(self, descriptor: int) -> None:  # type: ignore[override]
        self._check_descriptor("fsync", descriptor)
        os.fsync(descriptor)

    def fdatasync(self, descriptor: int) -> None:  # type: ignore[override]
        self._check_descriptor("fdatasync", descriptor)
        os.fdatasync(descriptor)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:  # type: ignore[override]
        self._check_descriptor("pwrite", descriptor)
        return os.pwrite(descriptor, data, offset)

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:  # type: ignore[override]
        self._check_descriptor("pread", descriptor)
        return os.pread(descriptor, length, offset)

    def preadv(self, descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        self._check_descriptor("pread", descriptor)
        return os.preadv(descriptor, buffers, offset, flags)

    def fallocate(self, descriptor: int, mode: int, offset: int, length: int) -> None:
        self._check_descriptor("fallocate", descriptor)
        SystemCalls.fallocate(descriptor, mode, offset, length)


Predicate = Callable[[str, str, BrokenCalls], bool]


def on_disk(*calls: str, name: str = "web.img") -> Predicate:
    """These calls on the disk itself."""
    return lambda call, path, _: call in calls and path.endswith(f"/{name}")


def on_record(kind: str, step: str, number: int = 1) -> Predicate:
    """One step of writing the record of that kind for the C{number}th time, or of removing it."""

    def fails(call: str, path: str, calls: BrokenCalls) -> bool:
        before = calls.renamed[kind] == number - 1
        temporary, record = path.endswith(f".{kind}.tmp"), path.endswith(f".{kind}")
        if step == "write":
            return before and temporary and call == "pwrite"
        if step == "fsync":
            return before and temporary and call == "fsync"
        if step == "rename":
            return before and record and call == "rename"
        if step == "unlink":
            return record and call == "unlink"
        act = "rename" if step == "fsync of the directory" else "unlink"
        done, what = calls.latest
        return (
            call == "fsync"
            and os.path.isdir(path)
            and done == act
            and what.endswith(f".{kind}")
            and (act == "unlink" or calls.renamed[kind] == number)
        )

    return fails


def on_deletion(step: str, name: str = "web.img") -> Predicate:
    """One step of deleting the disk."""

    def fails(call: str, path: str, calls: BrokenCalls) -> bool:
        if step == "unlink":
            return call == "unlink" and path.endswith(f"/{name}")
        done, what = calls.latest
        is_deleted = done == "unlink" and what.endswith(f"/{name}")
        return call == "fsync" and os.path.isdir(path) and is_deleted

    return fails
