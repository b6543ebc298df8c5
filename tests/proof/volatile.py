"""File-system calls that can be struck at any moment, and that lose what was not synced.

Owns the points at which a program can be made to die or to hang, and the journal by which a crash
takes back what a power failure would. A program gets a L{VolatileCalls} where it would have the
real calls; what it asks for is really done, and written down so that it can be undone.

Rules:

* a directory's operations (a file made, renamed, deleted) are volatile until that directory was
  fsynced; what is synced is what was done before the sync began;
* a file's bytes and size are volatile until that file was synced, in the same sense;
  sync_file_range(2) makes nothing durable, and neither does the sync of a directory;
* a file that is deleted is moved aside, and deleted there once its directory is durable; so its
  number of links stays what it was, and the deletion can be taken back;
* lost bytes of a disk become garbage; its size, if that is lost too (as names are), is the one
  before; a record whose bytes are lost is empty, or half there;
* a state-changing call and its entry in the journal are one step; a crash stops all others first;
* each call, and each message, is a point before and a point after it, known by its name and by how
  many of that name there were. Calls that only look at the disk (stat, fstat, a lease) change
  nothing, and are points only where that is asked for.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn

from blockmig.syscalls import SystemCalls

DIED: Final = 77
"""The exit status of a process that was struck."""

THE_END: Final = "the end"
"""The name of the point after a program's work."""

ORPHANED: Final = 70
"""The exit status of a process whose harness has gone."""

LOSES: Final = {
    "process": (False, False),
    "worst": (True, True),
    "data": (False, True),
    "names": (True, False),
}
"""The kinds of crash, and whether each loses names and bytes that were not synced.

C{process}: only the process dies. C{worst}: power fails, and nothing that was not synced survives.
C{data}: directories got to the medium before the files' bytes. C{names}: the other way round.
"""

HOLD: Final = "hold"
"""The kind of a strike at which the program is held, until it may go on."""


class Point(NamedTuple):
    """A moment in a program: before or after the so-manieth call, or message, of a name."""

    name: str
    number: int
    after: bool

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} {self.name} ({self.number})"


@dataclass(frozen=True)
class Strike:
    """What is to happen where.

    @ivar hang: the thread that comes there blocks for ever; otherwise the process crashes.
    @ivar kind: of the crash; a key of L{LOSES}, or L{HOLD}.
    @ivar then: what happens next, after a L{HOLD}.
    """

    point: Point
    hang: bool = False
    kind: str = "process"
    then: Strike | None = None


@dataclass(eq=False)
class _Entry:
    """One operation on a directory."""

    directory: str
    undo: Callable[[], None]
    aside: str | None = None


@dataclass
class _File:
    """What a file would lose: ranges that were written, and sizes that it had."""

    descriptor: int
    is_disk: bool
    changes: list[tuple[int, int] | int] = field(default_factory=list)


class Journal:
    """What is not durable yet. All methods but the constructor want L{lock} to be held.

    @param aside: a directory of its own, on the same file system, for what was deleted.
    @ivar lock: held over every change, and never again released by a crash.
    """

    def __init__(self, aside: str) -> None:
        self.lock = threading.RLock()
        self._aside = aside
        self._asides = 0
        self._names: list[_Entry] = []
        self._files: dict[tuple[int, int], _File] = {}

    @property
    def dirty(self) -> tuple[bool, bool]:
        """Whether there are names, and bytes, to be lost."""
        return bool(self._names), any(file.changes for file in self._files.values())

    def _place_aside(self) -> str:
        self._asides += 1
        return os.path.join(self._aside, f"{os.getpid()}-{self._asides}")

    # Names.

    def created(self, path: str) -> None:
        """A file was made."""
        self._names.append(_Entry(os.path.dirname(path), lambda: os.unlink(path)))

    def rename(self, source: str, target: str) -> None:
        """Rename a file, so that this can be undone."""
        aside = self._place_aside()
        try:
            os.link(target, aside)
        except FileNotFoundError:
            before = None
        else:
            before = aside

        def undo() -> None:
            os.rename(target, source)
            if before is not None:
                os.rename(before, target)

        os.rename(source, target)
        self._names.append(_Entry(os.path.dirname(target), undo, before))

    def unlink(self, path: str) -> None:
        """Delete a file, so that this can be undone."""
        aside = self._place_aside()
        os.rename(path, aside)
        self._names.append(_Entry(os.path.dirname(path), lambda: os.rename(aside, path), aside))

    # Bytes.

    def _file(self, descriptor: int, is_disk: bool) -> _File:
        status = os.fstat(descriptor)
        key = status.st_dev, status.st_ino
        if key not in self._files:
            # The program's own goes. Opened anew the file would be open twice, which leases notice.
            self._files[key] = _File(os.dup(descriptor), is_disk)
        return self._files[key]

    def wrote(self, descriptor: int, is_disk: bool, offset: int, length: int) -> None:
        """Bytes of a file were changed."""
        self._file(descriptor, is_disk).changes.append((offset, length))

    def resized(self, descriptor: int, is_disk: bool, before: int) -> None:
        """A file got another size."""
        self._file(descriptor, is_disk).changes.append(before)

    # Durability.

    def sync(self, descriptor: int, path: str) -> Callable[[], None]:
        """A sync of a file or directory begins.

        @return: to be called, with the lock held, once it has ended.
        """
        entries = [entry for entry in self._names if entry.directory == path]
        status = os.fstat(descriptor)
        file = self._files.get((status.st_dev, status.st_ino))
        count = len(file.changes) if file is not None else 0

        def ended() -> None:
            for entry in entries:
                if entry in self._names:
                    self._names.remove(entry)
                    if entry.aside is not None:
                        os.unlink(entry.aside)
            if file is not None:
                del file.changes[:count]

        return ended

    def lose(self, names: bool, data: bool, torn: bool) -> None:
        """Undo what is not durable.

        @param torn: a record that loses its bytes keeps half of them.
        """
        if data:
            for file in self._files.values():
                self._lose_data(file, torn, sizes=names)
        if names:
            for entry in reversed(self._names):
                entry.undo()

    @staticmethod
    def _lose_data(file: _File, torn: bool, sizes: bool) -> None:
        size = os.fstat(file.descriptor).st_size
        if file.changes and not file.is_disk:
            os.ftruncate(file.descriptor, size // 2 if torn else 0)
            return
        for change in reversed(file.changes):
            if isinstance(change, int):
                if sizes:
                    os.ftruncate(file.descriptor, change)
                    size = change
            else:
                offset, length = change
                length = min(length, size - offset)
                if length > 0:
                    os.pwrite(file.descriptor, b"\xa5" * length, offset)


class Points:
    """Counts the points of one process, and strikes at one of them.

    @param strike: where; None for nowhere.
    @param notify: reports to the harness, such as that a thread hangs.
    @param record: keep every point, with what could have been lost there.
    @ivar recorded: those.
    """

    def __init__(
        self,
        journal: Journal,
        strike: Strike | None,
        notify: Callable[[str], None],
        record: bool = False,
    ) -> None:
        self.journal = journal
        self.recorded: list[tuple[Point, tuple[bool, bool]]] = []
        self._strike = strike
        self._notify = notify
        self._record = record
        self._counts: Counter[str] = Counter()
        self._may_go_on = threading.Event()

    def before(self, name: str) -> int:
        """Something is about to happen.

        @return: its number, for L{after}.
        """
        with self.journal.lock:
            self._counts[name] += 1
            number = self._counts[name]
        self._reach(Point(name, number, False))
        return number

    def after(self, name: str, number: int) -> None:
        """It has happened."""
        self._reach(Point(name, number, True))

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """Both; what fails has no point after it."""
        number = self.before(name)
        yield
        self.after(name, number)

    def _reach(self, point: Point) -> None:
        with self.journal.lock:
            if self._record:
                self.recorded.append((point, self.journal.dirty))
        strike = self._strike
        if strike is None or strike.point != point:
            return
        if strike.kind == HOLD:
            self._hold()
            return
        if not strike.hang:
            self.crash(strike.kind)
        self._notify("hung")
        while True:
            time.sleep(3600)

    def _hold(self) -> None:
        assert self._strike is not None
        self._strike = self._strike.then
        self._notify("held")
        self._may_go_on.wait()

    def go_on(self) -> None:
        """Let the thread that is held go on."""
        self._may_go_on.set()

    def ended(self, status: int) -> None:
        """The program is done, and about to exit with C{status}: the last point.

        Struck there it has its status all the same, and the power fails after its exit.
        """
        point = Point(THE_END, 1, True)
        if self._record:
            self.recorded.append((point, self.journal.dirty))
        if self._strike is None or self._strike.point != point:
            return
        if self._strike.kind == HOLD:
            self._hold()
            return
        self._notify("struck")
        self.crash(self._strike.kind, status)

    def crash(self, kind: str, status: int = DIED) -> NoReturn:
        """Die at once, and lose what C{kind} loses."""
        self.journal.lock.acquire()
        try:
            names, data = LOSES[kind]
            torn = bool(zlib.crc32(str(self._strike).encode()) & 1)
            self.journal.lose(names, data, torn)
        except BaseException:
            import traceback

            traceback.print_exc()
            status = ORPHANED
        os._exit(status)


class VolatileCalls(SystemCalls):
    """The real calls, each a point, and each in the journal.

    @param disk: the path of the disk; the files beside it are known by what follows its name.
    @param sent: called with a socket's descriptor and how many bytes sendfile(2) gave it.
    @param send: sends bytes by a socket, all of them.
    @param looks: calls that only look at the disk are points too.
    """

    def __init__(
        self,
        points: Points,
        disk: str,
        sent: Callable[[int, int], None],
        send: Callable[[Any, bytes, int], None],
        looks: bool = False,
    ) -> None:
        self._points = points
        self._journal = points.journal
        self._disk = disk
        self._sent = sent
        self._send = send
        self._looks = looks
        self._paths: dict[int, str] = {}

    def _role(self, path: str) -> str:
        """C{disk}, C{MIGRATING}, C{MIGRATING.tmp}, C{directory}."""
        if path == self._disk:
            return "disk"
        if path.startswith(self._disk + "."):
            return path[len(self._disk) + 1 :]
        return "directory" if path == os.path.dirname(self._disk) else os.path.basename(path)

    @contextmanager
    def _change(self, call: str, path: str) -> Iterator[None]:
        with self._points.around(f"{call} {self._role(path)}"), self._journal.lock:
            yield

    def _is_disk(self, descriptor: int) -> bool:
        return self._paths[descriptor] == self._disk

    def _look(self, call: str, path: str | None) -> AbstractContextManager[None]:
        if self._looks and path == self._disk:
            return self._points.around(f"{call} disk")
        return nullcontext()

    def stat(self, path: str) -> os.stat_result:
        with self._look("stat", path):
            return os.stat(path)

    def fstat(self, descriptor: int) -> os.stat_result:
        with self._look("fstat", self._paths.get(descriptor)):
            return os.fstat(descriptor)

    def fcntl(self, descriptor: int, command: int, argument: Any = 0) -> Any:
        leased = command == fcntl.F_SETLEASE and argument != fcntl.F_UNLCK
        with self._look("lease", self._paths.get(descriptor) if leased else None):
            return fcntl.fcntl(descriptor, command, argument)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if not flags & os.O_CREAT:
            descriptor = os.open(path, flags, mode)
        else:
            with self._change("create", path):
                there = os.path.lexists(path)
                descriptor = os.open(path, flags, mode)
                if not there:
                    self._journal.created(path)
        self._paths[descriptor] = path
        return descriptor

    def close(self, descriptor: int) -> None:
        self._paths.pop(descriptor, None)
        os.close(descriptor)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        with self._change("pwrite", self._paths[descriptor]):
            written = os.pwrite(descriptor, data, offset)
            self._journal.wrote(descriptor, self._is_disk(descriptor), offset, written)
        return written

    def splice(self, source: int, target: int, count: int, **offsets: Any) -> int:
        if target not in self._paths:
            return os.splice(source, target, count, **offsets)
        with self._change("splice", self._paths[target]):
            moved = os.splice(source, target, count, **offsets)
            self._journal.wrote(target, self._is_disk(target), offsets["offset_dst"], moved)
        return moved

    def fallocate(self, descriptor: int, mode: int, offset: int, length: int) -> None:
        with self._change("fallocate", self._paths[descriptor]):
            SystemCalls.fallocate(descriptor, mode, offset, length)
            self._journal.wrote(descriptor, self._is_disk(descriptor), offset, length)

    def ftruncate(self, descriptor: int, size: int) -> None:
        with self._change("ftruncate", self._paths[descriptor]):
            before = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, size)
            self._journal.resized(descriptor, self._is_disk(descriptor), before)

    def sync_file_range(self, descriptor: int, offset: int, length: int, flags: int) -> None:
        with self._points.around(f"sync_file_range {self._role(self._paths[descriptor])}"):
            SystemCalls.sync_file_range(descriptor, offset, length, flags)

    def _sync(self, call: Callable[[int], None], descriptor: int) -> None:
        path = self._paths[descriptor]
        with self._points.around(f"{call.__name__} {self._role(path)}"):
            with self._journal.lock:
                ended = self._journal.sync(descriptor, path)
            call(descriptor)
            with self._journal.lock:
                ended()

    def fsync(self, descriptor: int) -> None:
        self._sync(os.fsync, descriptor)

    def fdatasync(self, descriptor: int) -> None:
        self._sync(os.fdatasync, descriptor)

    def rename(self, source: str, target: str) -> None:
        with self._change("rename", source):
            self._journal.rename(source, target)

    def unlink(self, path: str) -> None:
        with self._change("unlink", path):
            self._journal.unlink(path)

    def send(self, handle: Any, data: Any, flags: int) -> int:
        self._send(handle, bytes(data), flags)
        return len(data)

    def sendfile(self, target: int, source: int, offset: int, count: int) -> int:
        with self._points.around(f"sendfile {self._role(self._paths[source])}"):
            moved = os.sendfile(target, source, offset, count)
            self._sent(target, moved)
        return moved
