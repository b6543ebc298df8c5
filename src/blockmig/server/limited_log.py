"""A bound on the lines of a log whose number is up to whoever connects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_INTERVAL: Final = 60.0


class LimitedLog:
    """Bounds the lines of one kind, since whoever connects decides how many there are.

    @param most: how many lines are written a minute; the others are counted.
    """

    def __init__(self, seconds: Callable[[], float], most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._since = float("-inf")
        self._lines = 0
        self._left_out = 0

    def has_room(self) -> bool:
        """Whether one more line is written."""
        now = self._seconds()
        if now - self._since >= _INTERVAL:
            self._since, self._lines = now, 0
        if self._lines >= self._most:
            self._left_out += 1
            return False
        self._lines += 1
        return True

    def others(self) -> str:
        """What to add to a line about those that were left out before it."""
        count, self._left_out = self._left_out, 0
        return f" (and {count} more since the line before)" if count else ""
