"""Checks what a server that is not a blockmig receiver holds, before anything is written to it.

Owns no state. Such a server, qemu-nbd or nbdkit, does not say what its disk is for, so the disk
itself has to. Rules (design, section 2: R12):

* sampled places of it are read before anything is written. All of them read as zeroes, or somebody
  may miss what is there; a place that cannot be read may hold anything;
* where the sender's own record says that it was copying to this very place, what is there may be
  its own copy: each block of it zero, or equal to the source. A place that clients have written to
  since the copying began proves nothing, since the destination may have an older state of it;
* it is checked for each attempt: another server may have the address by then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from ...storage import describe_contents, sample_ranges

_BLOCK: Final = 512
"""Bytes that a server writes as one, or not at all."""

Read = Callable[[int, int], Awaitable[bytes]]
"""Reads bytes: from an offset, so many."""


class DestinationNotEmpty(Exception):
    """The destination holds something that must not be overwritten; the message says what."""


async def check_empty(
    size: int,
    longest: int,
    read: Read,
    read_own: Read | None = None,
    changed: Callable[[int, int], bool] = lambda offset, length: False,
) -> None:
    """Check that a foreign destination may be written to.

    @param size: bytes of the disk.
    @param longest: bytes of the longest READ.
    @param read: reads from the destination.
    @param read_own: reads from the source, where what is there may be our own unfinished copy.
    @param changed: whether a range of the source was changed since its copying began.
    @raise DestinationNotEmpty: it may not.
    """
    for start, length in sample_ranges(size):
        end = start + length
        for offset in range(start, end, longest):
            count = min(longest, end - offset)
            data = await read(offset, count)
            if data == bytes(count):
                continue
            if read_own is None:
                raise DestinationNotEmpty(_describe(data, offset))
            if data == (own := await read_own(offset, count)):
                continue
            if not _is_part(offset, data, own, changed):
                raise DestinationNotEmpty(
                    f"{_describe(data, offset)} that is not a part of this disk"
                )


def _is_part(offset: int, data: bytes, own: bytes, changed: Callable[[int, int], bool]) -> bool:
    """Whether the data may be what an interrupted attempt has left: a part of the disk."""
    for at in range(0, len(data), _BLOCK):
        there, here = data[at : at + _BLOCK], own[at : at + _BLOCK]
        if there not in (here, bytes(len(there))) and not changed(offset + at, len(there)):
            return False
    return True


def _describe(data: bytes, offset: int) -> str:
    return describe_contents(data) if offset == 0 else "data"
