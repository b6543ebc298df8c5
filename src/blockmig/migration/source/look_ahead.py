"""How far the scan runs ahead of what is sent.

Owns that limit, and the calls that advance the scan in a thread. There are two kinds, since a peer
on this machine is not like another one.

Towards another machine the scan is far ahead: it finds holes quickly, and data slowly.

A peer on this machine is given pages of the cache (sendfile(2)), and it is the peer that copies
them, on its processor, while ours has little to do. What is in no processor's cache then costs it
a wait for memory at each line: as much as the writing does. So the scan reads, on our processor,
what is about to be sent, and throws it away: what the peer copies a little later is in a cache that
both share. Rules of that:

* it is not far ahead of what the kernel has taken: else it would be out of that cache again. How
  much is in flight does not matter for that: the peer may be a relay to another machine;
* it is read with few calls, into a buffer that is used again, and so stays in our own cache;
* a short piece is not read: the call would cost more than it gives;
* beside clients of the disk nothing is read: the processor is theirs, and what a mirror sends they
  have often just written;
* that it cannot be read is met by whoever sends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Final

from ...interfaces import IDisk
from ...storage import Scan, Segment, held_descriptor
from ...syscalls import SystemCalls
from ...transport import is_on_this_machine

_MOST_SEGMENTS: Final = 64
_MOST_WARM: Final = 4 << 20
"""Bytes, scanned and not requested yet; and those of a step of such a scan."""

_WORTH_A_CALL: Final = 256 << 10
_BUFFER: Final = 256 << 10


class LookAhead:
    """Towards another machine.

    @ivar most_unsent: bytes of data that were requested to be written and not given to the kernel
        yet, from which on nothing more is requested.
    """

    most_unsent: int = 1 << 62

    def is_enough(self, segments: Collection[Segment], being_read: int = 0) -> bool:
        """Whether the scan may rest for now.

        @param segments: those that were scanned, and not requested yet.
        @param being_read: how many more there are.
        """
        return len(segments) + being_read >= _MOST_SEGMENTS

    def advance(self, scan: Scan) -> list[Segment]:
        """I{Slow.} The next segments; none at the end.

        @raise OSError: the disk could not be read.
        """
        return scan.advance()


class WarmLookAhead(LookAhead):
    """Towards a peer on this machine.

    @param disk: it has a descriptor.
    """

    most_unsent = 8 << 20

    def __init__(self, disk: IDisk, system: SystemCalls) -> None:
        self._disk = disk
        self._system = system
        self._buffer = memoryview(bytearray(_BUFFER))

    def is_enough(self, segments: Collection[Segment], being_read: int = 0) -> bool:
        return (
            super().is_enough(segments, being_read)
            or sum(segment.length for segment in segments if not segment.zero) >= _MOST_WARM
        )

    def advance(self, scan: Scan) -> list[Segment]:
        segments = scan.advance(_MOST_WARM)
        with contextlib.suppress(OSError), held_descriptor(self._disk) as descriptor:
            for segment in segments:
                if not segment.zero and segment.length >= _WORTH_A_CALL:
                    self._read(descriptor, segment)
        return segments

    def _read(self, descriptor: int, segment: Segment) -> None:
        """All of it with one call, into the same memory again and again."""
        times, rest = divmod(segment.length, _BUFFER)
        self._system.preadv(
            descriptor, [*[self._buffer] * times, self._buffer[:rest]], segment.offset
        )


def look_ahead_for(
    disk: IDisk, transport: object, system: SystemCalls, *, in_use: bool
) -> LookAhead:
    """The one for what is sent of a disk on a connection.

    @param transport: connected.
    @param in_use: the disk has clients.
    """
    if not in_use and disk.fileno() is not None and is_on_this_machine(transport):
        return WarmLookAhead(disk, system)
    return LookAhead()
