"""What a sender looks at before it writes to a server that is no receiver of blockmig's.

Owns nothing. Such a server, qemu-nbd or nbdkit, does not tell what its disk is for, so that the
disk itself has to. Rules (design, section 2: R12):

* sampled places of it are read before anything is written. All of them read as zeroes, or somebody
  may miss what is there; a place that cannot be read may hold anything;
* where the sender's own record says that it was copying to this very place, what is there may be
  its own: each block of it zero, or equal to the source. A place that clients have written to
  since the copying began tells nothing, since the destination may have an older state of it;
* one look for each attempt: another server may have the address by then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from ...storage import describe_contents, sample_ranges

_BLOCK: Final = 512
"""Bytes that a server writes as one, or not at all."""

Read = Callable[[int, int], Awaitable[bytes]]
"""Reads bytes: from an offset, so many."""


class NotBlank(Exception):
    """The destination has something that is not to be overwritten; the message says what."""


async def check_blank(
    size: int,
    longest: int,
    read: Read,
    read_own: Read | None = None,
    changed: Callable[[int, int], bool] = lambda offset, length: False,
) -> None:
    """See whether a foreign destination may be written to.

    @param size: bytes of the disk.
    @param longest: bytes of the longest READ.
    @param read: reads from the destination.
    @param read_own: reads from the source, where what is there may be our own unfinished copy.
    @param changed: whether a range of the source was changed since its copying began.
    @raise NotBlank: it may not.
    """
    for start, length in sample_ranges(size):
        end = start + length
        for offset in range(start, end, longest):
            count = min(longest, end - offset)
            data = await read(offset, count)
            if data == bytes(count):
                continue
            if read_own is None:
                raise NotBlank(_what(data, offset))
            if data == (own := await read_own(offset, count)):
                continue
            if not _is_part(offset, data, own, changed):
                raise NotBlank(f"{_what(data, offset)} that is not a part of this disk")


def _is_part(offset: int, data: bytes, own: bytes, changed: Callable[[int, int], bool]) -> bool:
    """Whether what is there may be what an attempt that was cut off has left: a part of it."""
    for at in range(0, len(data), _BLOCK):
        there, here = data[at : at + _BLOCK], own[at : at + _BLOCK]
        if there not in (here, bytes(len(there))) and not changed(offset + at, len(there)):
            return False
    return True


def _what(data: bytes, offset: int) -> str:
    return describe_contents(data) if offset == 0 else "data"
