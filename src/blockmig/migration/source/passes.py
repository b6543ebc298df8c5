"""What an attempt sends of a disk, and when that is all: pass after pass over its ranges.

Owns the interface between an attempt (`sender`), which sends what it is context, and whoever knows
what is left to be sent; and its simple half, a disk that nobody changes. The other half, a disk
that clients go on writing to, is `live`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...storage import Segment
from ...transport import Limiter

Ranges = list[tuple[int, int]]
"""Runs of bytes: where each begins, and where it ends."""


class PassSender(Protocol):
    """What passes are sent by: one attempt."""

    async def send_pass(self, take: Callable[[], Ranges]) -> None:
        """Send what C{take} gives, until it gives nothing; back when all was acknowledged."""

    async def flush_now(self) -> None:
        """Have the destination make durable what it has."""

    async def disk_is_still(self) -> None:
        """From now on nobody changes the disk, unless C{release} is called."""

    def release(self) -> None:
        """C{send} has come to its end, but more is to be sent now: it is called again, or soon.

        Not behind C{retiring}.
        """


class CopyPasses(Protocol):
    """What attempts ask and tell; all of it in the reactor's thread.

    @ivar in_use: clients change the disk while it is sent, by way of a server of ours.
    @ivar limiter: holds the data back; None for no limit.
    """

    in_use: bool
    limiter: Limiter | None

    def changed(self, offset: int, length: int) -> bool:
        """Whether clients have changed anything there since the first attempt began."""

    def begin(self) -> None:
        """An attempt begins: all of the disk is to be sent."""

    async def send(self, attempt: PassSender) -> None:
        """Send all of it; back when nothing is left, and nobody changes the disk any more."""

    def acknowledged(self, piece: Segment) -> None:
        """The destination has C{piece}."""

    def flushed(self) -> None:
        """All of it is durable at the destination."""

    def retiring(self) -> None:
        """The source is being retired: there is no way back."""

    def finishing(self) -> None:
        """It is retired, and the destination is looked for, to be told so; that may take long."""

    def dropped(self) -> None:
        """The attempt ended early; the source is canonical."""


class FullCopy:
    """All of a disk that nobody changes, once.

    @param size: bytes of the disk.
    @param limiter: holds the data back; None for no limit.
    """

    in_use = False

    def __init__(self, size: int, limiter: Limiter | None = None) -> None:
        self.limiter = limiter
        self._size = size
        self._left: Ranges = []

    def changed(self, offset: int, length: int) -> bool:
        """Nobody does."""
        return False

    def begin(self) -> None:
        """All of the disk is left."""
        self._left = [(0, self._size)]

    async def send(self, attempt: PassSender) -> None:
        """Send it."""
        await attempt.send_pass(self._take)

    def _take(self) -> Ranges:
        left, self._left = self._left, []
        return left

    def acknowledged(self, piece: Segment) -> None:
        """Nothing depends on it."""

    def flushed(self) -> None:
        """Nobody waits for it."""

    def retiring(self) -> None:
        """Nobody waits for it."""

    def finishing(self) -> None:
        """Nobody waits for it."""

    def dropped(self) -> None:
        """Nobody waits for it."""
