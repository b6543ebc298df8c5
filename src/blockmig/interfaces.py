"""The interfaces that embedders of blockmig implement, and the objects that they are given.

Every layer may import this module; it imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from zope.interface import Attribute, Interface


class Extent(NamedTuple):
    """A run of bytes of a disk that the file system reports as data, or as a hole.

    @ivar offset: bytes from the start of the disk.
    @ivar length: bytes, more than 0.
    @ivar hole: the run is not allocated, and reads as zeroes.
    """

    offset: int
    length: int
    hole: bool


class Probe(NamedTuple):
    """The result of L{IDisk.probe}.

    @ivar zero: every byte is zero.
    @ivar cold: the bytes were not in the page cache, and are there now because of us.
    """

    zero: bool
    cold: bool


class IDisk(Interface):
    """A disk: what a migration moves.

    Calls block. Those marked I{slow} may block for long and are made from threads, several at a
    time; they must be safe to call so on ranges that do not overlap. L{read} and L{write} are slow
    where L{fileno} is None: then they too are only called from threads. (Of a disk with a
    descriptor they are called in the reactor's thread as well, and must not wait for a network.)
    L{fileno} and the attributes are never slow.

    All methods raise L{OSError}, and only that, except for what the interfaces below list. Anything
    else that they raise counts as EIO, and so does a result of the wrong length or type. What
    returns nothing has done its work when it returns: a Deferred or a coroutine is a wrong result.
    The attributes are looked at once, when the disk is given to a C{Sender}, C{Receiver} or
    C{Server}. L{blockmig.testing.check_disk} checks what is said here of a disk.

    A disk may also have a C{path}, a str or an L{os.PathLike}: where it is, as records and messages
    say it. Without one, or with anything else in it, that is its C{name}.
    """

    name = Attribute("The disk's name in messages, usually its path.")
    size = Attribute("Bytes, exact, more than 0; never changes.")
    shortest_zeroes = Attribute(
        "Bytes of the shortest run of zeroes to look for where the extents report data: a power of "
        "two from 4096 to 262144. Small where extents are unknown, as with a device."
    )

    def fileno() -> int | None:
        """The descriptor from which payloads may be sent, and into which they may be spliced.

        None where there is none: then L{read} and L{write} are used instead, in threads.
        """

    def read(offset: int, length: int) -> bytes:
        """Exactly C{length} bytes. I{Slow} without a descriptor.

        @raise OSError: EIO also if the disk turns out to be shorter than its size.
        """

    def write(offset: int, data: Any) -> None:
        """Write all of C{data}, which has the buffer protocol, at C{offset}. I{Slow} without a
        descriptor.

        C{data} may be changed once this has returned.
        """

    def zero(offset: int, length: int, allocate: bool, fast: bool = False) -> None:
        """I{Slow.} Make a range read as zeroes.

        @param allocate: keep (or allocate) the range's space; otherwise deallocating is preferred.
        @param fast: only if that is faster than writing zeroes.
        @raise OSError: EOPNOTSUPP if it would not be C{fast}; then nothing was changed.
        """

    def trim(offset: int, length: int) -> None:
        """I{Slow.} Tell the medium that the range's content is no longer needed.

        Does nothing where the medium does not support that.
        """

    def flush() -> None:
        """I{Slow.} Return once everything written so far would survive a power failure."""

    def extents(offset: int) -> Iterator[Extent]:
        """I{Slow.} The extents from C{offset} to the end: adjacent, none empty.

        The iterator is advanced in a thread, too, and may be dropped before its end.
        """

    def probe(offset: int, length: int) -> Probe:
        """I{Slow.} Read a range of at most 256 KiB; return whether it is all zeroes."""

    def forget(offset: int, length: int) -> None:
        """I{Slow.} Advise that a range is not needed in the page cache any more."""

    def write_back(offset: int, length: int, wait: bool) -> None:
        """I{Slow.} Start writing a range back to the medium; an advice.

        @param wait: return once it is written, and L{forget} the range.
        @raise OSError: it could not be written; every later L{flush} must raise it too, and one
            that runs at the same time must not return before the result is known.
        """

    def close() -> None:
        """Close the disk and give up its lock; harmless if repeated."""


class IReadAheadDisk(IDisk):
    """A disk that can begin to read what will be asked for soon, so that its medium never rests."""

    def read_ahead(offset: int, length: int) -> bool:
        """I{Slow.} Begin to read a range of at most 1 MiB into the page cache; do not wait for it.

        @return: whether its end was missing there: it is there only because of us.
        """


class IRecordedDisk(IDisk):
    """A disk whose migrations are recorded beside it, so that its state is known after a crash.

    A disk that does not provide this is migrated without records.
    """

    record_path = Attribute(
        "What the paths of its records begin with, before a dot: a str or an os.PathLike. It is "
        "looked at once, like the other attributes."
    )
    blank = Attribute(
        "True if it was only just created, so that no record can be about it; looked at each time."
    )

    def identity() -> str:
        """Distinguishes it from another disk that has its name later; "" where nothing does."""

    def prepare() -> None:
        """I{Slow.} Called when the record of the first attempt is durable, before any write.

        A file that was only just created gets its size here.
        """


class ISizedLater(IRecordedDisk):
    """A disk that may get its size from the first migration into it.

    Its C{size} is 0, and it is C{blank}, until a C{Receiver} says what it will be; the file has it
    once it is L{prepare}d. Nothing is read from it or written to it before.
    """

    def determine_size(size: int) -> None:
        """This is the size, in bytes; called once, before L{prepare}, of a disk that has none."""

    def check_size(size: int, room: bool = True) -> None:
        """I{Slow.} Check that the disk can have that size; nothing is changed.

        @param room: also check that there is room for all of it, beside what it has already.
        @raise blockmig.storage.DiskRefused: it cannot.
        @raise OSError: that cannot be found out.
        """

    def room() -> Any:
        """I{Slow.} The room for it: a L{blockmig.storage.Room}; None where that is not known.

        @raise OSError: that cannot be found out.
        """


class IUnlinkableDisk(IDisk):
    """A disk that can be retired by deleting it."""

    def check_unlink() -> None:
        """Check that deleting it would retire it.

        @raise blockmig.storage.DiskRefused: it would not.
        """

    def unlink() -> None:
        """I{Slow.} Delete it, durably. Whatever else it raises, it may be deleted.

        @raise OSError: it is still there.
        @raise blockmig.storage.DiskRefused: it is still there.
        @raise blockmig.storage.NotDurable: it is gone, but may come back after a power failure; or
            it may be gone.
        """


class IWatchedDisk(IDisk):
    """A disk that can detect whether it was replaced or changed since it was opened (R13)."""

    def check_path() -> None:
        """I{Slow.} Check that the disk's path still leads to what was opened, of the same size.

        @raise blockmig.storage.DiskChanged: it does not; the message says what was found.
        """

    def is_gone() -> bool:
        """Whether the last name of the disk's file was removed, so that it cannot be opened.

        @return: True or False, and nothing else.
        @raise OSError: that cannot be found out, which is not the same as True.
        """

    def version(sync: bool = True) -> Any:
        """I{Slow.} A value that changes whenever somebody writes to the disk, or touches it.

        @param sync: sync the disk first; otherwise some writes are missed: those through a mapping,
            and those that are still on their way to a device.
        @return: a L{blockmig.storage.DiskVersion}, to be compared with another of the same disk.
        """

    def rescue(announce: Callable[[str], None] | None = None) -> str:
        """I{Slow.} Give the disk a new name, durably, after its own was lost or taken.

        @param announce: called with the new path before the disk has it (or before it is returned,
            if the disk has it already); what it raises is raised here, and the disk is unchanged.
        @return: the new path.
        @raise blockmig.storage.DiskChanged: the disk was truncated, and cannot be saved.
        @raise OSError: it failed; the disk is unchanged. ENODEV if the disk cannot be lost.
        """
