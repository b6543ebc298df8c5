"""What somebody who embeds blockmig implements, and what they are given.

Every layer may import this module; it imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from zope.interface import Attribute, Interface


class Extent(NamedTuple):
    """A run of bytes of a disk that the file system knows to be one thing.

    @ivar offset: bytes from the start of the disk.
    @ivar length: bytes, more than 0.
    @ivar hole: the run is not allocated, and reads as zeroes.
    """

    offset: int
    length: int
    hole: bool


class Probe(NamedTuple):
    """What a look at a few bytes of a disk told.

    @ivar zero: every byte is zero.
    @ivar cold: they had to be fetched from the medium, and are in the page cache because of us.
    """

    zero: bool
    cold: bool


class IDisk(Interface):
    """The thing that moves: so many bytes, exactly.

    Calls block. Those marked I{slow} may block for long and are made from threads, several at a
    time; they must be safe to call so on ranges that do not overlap. All raise L{OSError}.
    """

    name = Attribute("What to call the disk in messages, usually its path.")
    size = Attribute("Bytes, exact, more than 0; never changes.")
    shortest_zeroes = Attribute(
        "Bytes of the shortest run of zeroes to look for where the extents tell of no hole: a "
        "power of two from 4096 to 262144. Small where extents tell nothing, as with a device."
    )

    def fileno() -> int | None:
        """The descriptor that payloads may be sent from and spliced into.

        None where there is none: then L{read} and L{write} are used instead.
        """

    def read(offset: int, length: int) -> bytes:
        """Exactly C{length} bytes.

        @raise OSError: EIO too where the disk turned out to be shorter than its size.
        """

    def write(offset: int, data: Any) -> None:
        """Put C{data}, which has the buffer protocol, at C{offset}, all of it."""

    def zero(offset: int, length: int, allocate: bool, fast: bool = False) -> None:
        """I{Slow.} Make a range read as zeroes.

        @param allocate: keep (or get) the range's space; otherwise giving it back is preferred.
        @param fast: only if that is faster than writing zeroes would be.
        @raise OSError: EOPNOTSUPP if it would not be C{fast}, and then nothing was touched.
        """

    def trim(offset: int, length: int) -> None:
        """I{Slow.} Tell the medium that the range's content matters no more.

        Does nothing where the medium does not care.
        """

    def flush() -> None:
        """I{Slow.} Return once everything written so far would survive a power failure."""

    def extents(offset: int) -> Iterator[Extent]:
        """I{Slow.} The extents from C{offset} to the end: adjoining, none empty."""

    def probe(offset: int, length: int) -> Probe:
        """I{Slow.} Fetch at most 256 KiB, and tell whether they are all zeroes."""

    def forget(offset: int, length: int) -> None:
        """I{Slow.} Advise that a range is not wanted in the page cache any more."""

    def write_back(offset: int, length: int, wait: bool) -> None:
        """I{Slow.} Send what was written there on its way to the medium; an advice.

        @param wait: return once it is there, and forget the range.
        @raise OSError: it could not be written; every later L{flush} must raise it too, and one
            that runs at the same time must not return before it is known.
        """

    def close() -> None:
        """Give up the disk and its lock; harmless when done twice."""


class IRecordedDisk(IDisk):
    """A disk whose migrations are put on record beside it, so that a crash leaves nobody guessing.

    A disk that does not provide this is migrated without records.
    """

    record_path = Attribute("What the names of its records begin with: a path, plus a dot.")
    blank = Attribute("Whether it was only just made, so that no record can be about it.")

    def identity() -> str:
        """What tells it from another disk that later has its name; "" where nothing does."""

    def prepare() -> None:
        """I{Slow.} Called when the record of the first attempt stands, before anything is written.

        A file that was only just made gets its size here.
        """


class IUnlinkableDisk(IDisk):
    """A disk that can be retired by deleting it."""

    def check_unlink() -> None:
        """Whether deleting it would retire it.

        @raise blockmig.storage.DiskRefused: it would not.
        """

    def unlink() -> None:
        """I{Slow.} Delete it, durably.

        @raise OSError: it is still there.
        @raise blockmig.storage.DiskRefused: it is still there.
        @raise blockmig.storage.NotDurable: it is gone, but may come back after a power failure.
        """


class IWatchedDisk(IDisk):
    """A disk that can tell whether it is still what was opened, and as it was (design, R13)."""

    def check_path() -> None:
        """I{Slow.} Whether the disk's name still leads to what was opened, of the same size.

        @raise blockmig.storage.DiskChanged: it does not; the message says what was found.
        """

    def is_gone() -> bool:
        """Whether the last name of the disk's file was removed, so that nothing can open it now."""

    def version(sync: bool = True) -> Any:
        """I{Slow.} What changes whenever somebody writes to the disk, or touches it.

        @param sync: sync the disk first, or some writes do not show: those by way of a mapping,
            and those that are still on their way to a device.
        @return: a L{blockmig.storage.DiskVersion}, to be compared with another of the same disk.
        """

    def rescue(announce: Callable[[str], None] | None = None) -> str:
        """I{Slow.} Give the disk, whose name leads elsewhere (or nowhere) now, another, durably.

        @param announce: called with that name before the disk has it (or before it is returned,
            where the disk has it already); what it raises is raised, and the disk is as it was.
        @return: that name: a path.
        @raise blockmig.storage.DiskChanged: it was cut off, and cannot be saved.
        @raise OSError: it could not be done; the disk is as it was. ENODEV if it cannot be lost.
        """
