"""A disk that is somebody else's, so that everything above sees only what `IDisk` promises.

Owns nothing but the way to the disk and what was known of it at the beginning: its name, its path,
its size, its shortest run of zeroes, and where its records are.

Rules:

* our own disks keep the promises themselves, and are called directly;
* whatever a method raises becomes an OSError, whose message names the method. An errno is kept, all
  else is EIO; what was raised is its cause, so that a traceback leads into the disk. Only errors
  that the interface lists pass as they are;
* EAGAIN becomes EIO as well: from a call that blocks it means nothing, and above it would mean that
  a socket is full;
* but an unlink that raises what the interface does not list may have deleted the disk: that is
  NotDurable, so that the copy which may be the only one is left alone;
* a result of the wrong length or type is such an error too, and never reaches the wire. So is any
  result of a method that returns nothing: a Deferred or a coroutine says that nothing is done yet.
  (An unlink that returns one may have deleted the disk, or may still do it: NotDurable.)
* a descriptor that cannot be had is none;
* what the disk has beside the interfaces is reached as before.
"""

from __future__ import annotations

import errno
import inspect
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from zope.interface import directlyProvides, providedBy

from ..interfaces import Extent, IDisk, IRecordedDisk, Probe
from .device import BlockDisk
from .disk import PROBE_SIZE, DescriptorDisk
from .errors import DiskChanged, DiskRefused, NotDurable
from .watched import DiskVersion

_SMALLEST_STEP: Final = 4096
_LARGEST_SIZE: Final = (1 << 63) - 1


def guard(disk: Any) -> IDisk:
    """The disk itself if it is one of ours, or guarded already; otherwise a proxy of it.

    @raise DiskRefused: its name, its size, its shortest run of zeroes or the path of its records is
        impossible.
    """
    guarded = disk
    if not isinstance(disk, DescriptorDisk | GuardedDisk):
        guarded = GuardedDisk(disk)
        directlyProvides(guarded, IDisk, providedBy(disk))
    return cast(IDisk, guarded)


def path_of(disk: IDisk) -> str:
    """Where a L{guard}ed disk is, for people and for records: its name where it has no path.

    Of a device it is the path that was given: what that leads to today (C{/dev/dm-3}) may be
    another device after a restart.
    """
    if isinstance(disk, BlockDisk):
        return disk.given_path
    path: str = getattr(disk, "path", disk.name)
    return path


class GuardedDisk:
    """A disk that is not ours; made by L{guard}.

    It has the methods of all interfaces, but provides only those that the disk provides.
    """

    def __init__(self, disk: Any) -> None:
        self._disk = disk
        self.name = _name(disk)
        self.size = _size(disk, self.name)
        self.shortest_zeroes = _shortest_zeroes(disk, self.name)
        self.path = _path(disk, self.name)
        if IRecordedDisk.providedBy(disk):
            self.record_path = _record_path(disk, self.name)

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._disk, name)
        except (AttributeError, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise _as_oserror(name, error) from error

    def __repr__(self) -> str:
        return f"<GuardedDisk of {self._disk!r}>"

    def _call(self, method: str, *arguments: Any, allowed: tuple[type[Exception], ...] = ()) -> Any:
        """Call a method of the disk.

        @param allowed: what may be raised as it is.
        """
        try:
            return getattr(self._disk, method)(*arguments)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except allowed:
            raise
        except BaseException as error:  # asyncio's CancelledError is one, and nobody above knows it
            raise _as_oserror(method, error) from error

    def _do(self, method: str, *arguments: Any, allowed: tuple[type[Exception], ...] = ()) -> None:
        """Call a method of the disk that returns nothing."""
        result = self._call(method, *arguments, allowed=allowed)
        if result is not None:
            raise _wrong(method, f"returned {_kind(result)}, not None")

    # IDisk.

    def fileno(self) -> int | None:
        """None also where the disk has no answer."""
        try:
            descriptor = self._disk.fileno()
            return None if descriptor is None else operator.index(_not_awaited(descriptor))
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException:
            return None

    def read(self, offset: int, length: int) -> bytes:
        data = self._call("read", offset, length)
        if not isinstance(data, bytes):
            raise _wrong("read", f"returned {_kind(data)}, not bytes")
        if len(data) != length:
            raise _wrong("read", f"returned {len(data)} bytes instead of {length}")
        return data

    def write(self, offset: int, data: Any) -> None:
        length = memoryview(data).nbytes
        written = self._call("write", offset, data)
        # What writes returns nothing; or, as a file does, how much of it was written.
        if written is not None and written != length:
            raise _wrong("write", f"wrote {_not_awaited(written)!r} of {length} bytes")

    def zero(self, offset: int, length: int, allocate: bool, fast: bool = False) -> None:
        self._do("zero", offset, length, allocate, fast)

    def trim(self, offset: int, length: int) -> None:
        self._do("trim", offset, length)

    def flush(self) -> None:
        self._do("flush")

    def extents(self, offset: int) -> Iterator[Extent]:
        """Adjacent, from C{offset} to the end; an error comes where they are not."""
        extents = self._call("extents", offset)
        position = offset
        iterator = self._of_extents(iter, _not_awaited(extents))
        while (found := self._of_extents(next, iterator, None)) is not None:
            start, length, hole = self._of_extents(_fields, found)
            if start != position:
                raise _wrong("extents", f"one begins at {start}, not at {position}")
            if length <= 0 or start + length > self.size:
                raise _wrong(
                    "extents", f"one at {start} has {length} bytes, and the disk {self.size}"
                )
            position = start + length
            yield Extent(start, length, hole)
        if position != self.size:
            raise _wrong("extents", f"they end at {position}, and the disk at {self.size}")

    def _of_extents(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise _as_oserror("extents", error) from error

    def probe(self, offset: int, length: int) -> Probe:
        probe = self._call("probe", offset, length)
        if not isinstance(probe, Probe):
            raise _wrong("probe", f"returned {_kind(probe)}, not a Probe")
        return probe

    def forget(self, offset: int, length: int) -> None:
        self._do("forget", offset, length)

    def write_back(self, offset: int, length: int, wait: bool) -> None:
        self._do("write_back", offset, length, wait)

    def close(self) -> None:
        self._do("close")

    # IReadAheadDisk.

    def read_ahead(self, offset: int, length: int) -> bool:
        missing = self._call("read_ahead", offset, length)
        if not isinstance(missing, bool):
            raise _wrong("read_ahead", f"returned {_kind(missing)}, not a bool")
        return missing

    # IRecordedDisk.

    @property
    def blank(self) -> bool:
        """Only what says clearly that it is blank: whatever is written on it may be overwritten."""
        return self.__getattr__("blank") is True

    def identity(self) -> str:
        identity = self._call("identity")
        if not isinstance(identity, str):
            raise _wrong("identity", f"returned {_kind(identity)}, not a str")
        return identity

    def prepare(self) -> None:
        self._do("prepare")

    # IUnlinkableDisk.

    def check_unlink(self) -> None:
        self._do("check_unlink", allowed=(DiskRefused,))

    def unlink(self) -> None:
        """Only what the interface lists says that the disk is still there."""
        try:
            result = self._disk.unlink()
        except (DiskRefused, NotDurable, GeneratorExit):
            raise
        except OSError as error:
            raise _as_oserror("unlink", error) from error
        except BaseException as error:
            reason = _as_oserror("unlink", error).strerror
            raise NotDurable(f"{self.name}: {reason}; it may be deleted, or not") from error
        if result is not None:
            what = f"unlink: returned {_kind(result)}, not None"
            raise NotDurable(f"{self.name}: {what}; it may be deleted, or not")

    # IWatchedDisk.

    def check_path(self) -> None:
        self._do("check_path", allowed=(DiskChanged,))

    def is_gone(self) -> bool:
        gone = self._call("is_gone")
        if not isinstance(gone, bool):
            raise _wrong("is_gone", f"returned {_kind(gone)}, not a bool")
        return gone

    def version(self, sync: bool = True) -> DiskVersion:
        version = self._call("version", sync)
        if not isinstance(version, DiskVersion):
            raise _wrong("version", f"returned {_kind(version)}, not a DiskVersion")
        return version

    def rescue(self, announce: Callable[[str], None] | None = None) -> str:
        path = self._call("rescue", announce, allowed=(DiskChanged,))
        if not isinstance(path, str):
            raise _wrong("rescue", f"returned {_kind(path)}, not a str")
        return path


def _as_oserror(method: str, error: BaseException) -> OSError:
    """What a method has raised, as an error of the disk."""
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    if isinstance(number, int) and number > 0:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        kept = errno.EIO if number == errno.EAGAIN else number
        return OSError(kept, f"{method}: {_one_line(words)}")
    words = _one_line(str(error))
    return OSError(errno.EIO, f"{method}: {type(error).__name__}" + (f": {words}" if words else ""))


def _wrong(method: str, what: str) -> OSError:
    return OSError(errno.EIO, f"{method}: {what}")


def _one_line(words: object) -> str:
    return " ".join(str(words).split())


def _kind(value: object) -> str:
    _not_awaited(value)
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _not_awaited(value: Any) -> Any:
    """C{value}; if it is a coroutine, it never runs, and Python does not complain of that."""
    if inspect.iscoroutine(value):
        value.close()
    return value


def _fields(found: Any) -> Extent:
    offset, length, hole = found
    return Extent(operator.index(offset), operator.index(length), bool(hole))


# What is looked at once.


def _attribute(disk: Any, attribute: str, name: str) -> Any:
    try:
        return getattr(disk, attribute)
    except Exception as error:
        words = _one_line(error)
        raise DiskRefused(f"{name}: {attribute}: {type(error).__name__}: {words}") from error


def _name(disk: Any) -> str:
    kind = type(disk).__name__
    name = _attribute(disk, "name", kind)
    if not isinstance(name, str) or not name or len(name.splitlines()) != 1:
        raise DiskRefused(f"{kind}: its name is {name!r}, and must be one line of text")
    return name


def _path(disk: Any, name: str) -> str:
    """Its path; its name where it has none that can be written down."""
    try:
        return _as_text(disk.path)
    except Exception:
        return name


def _record_path(disk: Any, name: str) -> str:
    path = _attribute(disk, "record_path", name)
    try:
        return _as_text(path)
    except TypeError:
        raise DiskRefused(
            f"{name}: its record_path is {path!r}, and must be a str or an os.PathLike"
        ) from None


def _as_text(path: Any) -> str:
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError("not a path that is text")
    return text


def _size(disk: Any, name: str) -> int:
    size = _attribute(disk, "size", name)
    if not isinstance(size, int) or not 0 < size <= _LARGEST_SIZE:
        raise DiskRefused(f"{name}: its size is {size!r}, and must be a number of bytes above 0")
    return int(size)


def _shortest_zeroes(disk: Any, name: str) -> int:
    step = _attribute(disk, "shortest_zeroes", name)
    if not isinstance(step, int) or not _SMALLEST_STEP <= step <= PROBE_SIZE or step & (step - 1):
        raise DiskRefused(
            f"{name}: its shortest_zeroes is {step!r}, and must be a power of two from "
            f"{_SMALLEST_STEP} to {PROBE_SIZE}"
        )
    return int(step)
