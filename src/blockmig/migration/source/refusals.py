"""What a destination refuses for good: it is full, read-only, or not ours to write.

Owns the count of such refusals. One may be mended while the sender waits, and the attempts after it
cost little to find out; several at the same place say that nobody does.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from ...nbd import describe_errno

_WORDS: Final = {
    errno.ENOSPC: "ENOSPC: it has no room left",
    errno.EPERM: "EPERM: it does not permit that",
    # Not one of the protocol's, but servers pass on what they get.
    errno.EROFS: "EROFS: it is read-only",
}
MOST: Final = 3
_VAGUENESS: Final = 32 << 20
"""Bytes: as many may be in flight, and any of them may be the first to be refused."""


class Refusal(NamedTuple):
    """What a destination has answered.

    @ivar what: the command.
    @ivar offset: where; None for all of the disk.
    @ivar error: the number of the error.
    """

    what: str
    offset: int | None
    error: int

    def __str__(self) -> str:
        where = self.what if self.offset is None else f"{self.what} at {self.offset}"
        error = _WORDS.get(self.error) or describe_errno(self.error)
        return f"the destination answered {where} with {error}"

    @property
    def may_last(self) -> bool:
        """Whether it is one that somebody has to mend."""
        return self.error in _WORDS

    def equals(self, other: Refusal) -> bool:
        """Whether this is C{other} once more."""
        if self.offset is None or other.offset is None:
            place = self[:2] == other[:2]
        else:
            place = abs(self.offset - other.offset) <= _VAGUENESS
        return place and self.error == other.error


class Refusals:
    """How often the same was refused."""

    def __init__(self) -> None:
        self._first: Refusal | None = None
        self._count = 0

    def add(self, refusal: Refusal) -> bool:
        """Count one.

        @return: whether that is enough.
        """
        if self._first is None or not refusal.equals(self._first):
            self._first, self._count = refusal, 0
        self._count += 1
        return refusal.may_last and self._count >= MOST
