"""What an attempt sends of a disk, and when that is all: pass after pass over its ranges.

Owns the interface between an attempt, which sends what it is given, and whoever knows what is left
to send; and its simple implementation, for a disk that nobody changes. The other one, for a disk
that clients go on writing to, is `mirror.pre_copy`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...storage import Segment, Survey
from ...transport import Limiter

Ranges = list[tuple[int, int]]
"""Runs of bytes: where each begins, and where it ends."""


class PassSender(Protocol):
    """Sends passes: one attempt."""

    async def send_pass(self, take: Callable[[], Ranges]) -> None:
        """Send what C{take} returns, until it returns nothing; back when all was acknowledged."""

    def cut_pass(self, give_back: Callable[[int, int], None]) -> None:
        """End the pass with what was requested of the destination already.

        @param give_back: called with the start and the end of each range that was taken, and is not
            sent now; before C{send_pass} returns.
        """

    async def flush_now(self) -> None:
        """Have the destination make durable what it has."""

    async def disk_is_quiescent(self) -> None:
        """From now on nobody changes the disk, unless C{release} is called."""

    def release(self) -> None:
        """C{send} has returned, or is about to, but more is to be sent now: it is called again.

        Not after C{retiring}.
        """


class CopyPasses(Protocol):
    """What attempts call; all of it in the reactor's thread.

    @ivar in_use: clients change the disk while it is sent, through a server of ours.
    @ivar limiter: limits the rate of the data; None for no limit.
    @ivar survey: where the disk has data; of this attempt.
    """

    in_use: bool
    limiter: Limiter | None
    survey: Survey

    @property
    def data_left(self) -> int:
        """About how many bytes of data are still to be sent."""

    def changed(self, offset: int, length: int) -> bool:
        """Whether clients have changed anything there since the first attempt began."""

    def begin(self, took: float = 0.0) -> None:
        """An attempt begins: all of the disk is to be sent.

        @param took: seconds that both ends took to agree on that, and to record it.
        """

    async def send(self, attempt: PassSender) -> None:
        """Send all of it; back when nothing is left, and nobody changes the disk any more."""

    def acknowledged(self, segment: Segment) -> None:
        """The destination has C{segment}."""

    def flushed(self) -> None:
        """All of it is durable at the destination."""

    def retiring(self) -> None:
        """The source is being retired: there is no way back."""

    def finishing(self) -> None:
        """The source is retired, and the destination is being looked for to notify it; that may
        take long."""

    def dropped(self) -> None:
        """The attempt ended early; the source is canonical."""


class FullCopy:
    """All of a disk that nobody changes, once.

    @param size: bytes of the disk.
    @param limiter: limits the rate of the data; None for no limit.
    """

    in_use = False

    def __init__(self, size: int, limiter: Limiter | None = None) -> None:
        self.limiter = limiter
        self.survey = Survey(size)
        self._size = size
        self._left: Ranges = []
        self._acknowledged = 0

    @property
    def data_left(self) -> int:
        return self.survey.data(self._acknowledged, self._size)

    def changed(self, offset: int, length: int) -> bool:
        return False

    def begin(self, took: float = 0.0) -> None:
        self.survey = Survey(self._size)
        self._acknowledged = 0
        self._left = [(0, self._size)]

    async def send(self, attempt: PassSender) -> None:
        await attempt.send_pass(self._take)

    def _take(self) -> Ranges:
        left, self._left = self._left, []
        return left

    def acknowledged(self, segment: Segment) -> None:
        self._acknowledged += segment.length

    def flushed(self) -> None: ...

    def retiring(self) -> None: ...

    def finishing(self) -> None: ...

    def dropped(self) -> None: ...
