"""Says that the destination does not answer, as long as somebody waits for its answer.

Owns when it was last heard. What follows from silence is not up to this: whoever waits has a time
limit of its own.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

_log = Logger()

_FIRST: Final = 10.0
_AGAIN: Final = 60.0


class Silence:
    """The silence of one destination.

    @param reactor: the clock.
    @param destination: what to call it.
    """

    def __init__(self, reactor: Any, destination: str) -> None:
        self._reactor = reactor
        self._destination = destination or "the destination"
        self._heard_at = 0.0
        self._said_at: float | None = None
        self._timer: IDelayedCall | None = None
        self._waiting: set[str] = set()

    def begins(self, what: str) -> None:
        """An answer to C{what} is waited for from now on, unless it was already."""
        self._waiting.add(what)
        if self._timer is None:
            self.broken()
            self._timer = self._reactor.callLater(_FIRST, self._look)

    def broken(self) -> None:
        """Something was heard of the destination, or it has taken something."""
        self._heard_at = self._reactor.seconds()
        self._said_at = None

    def ends(self, what: str) -> None:
        """No answer to C{what} is waited for any more."""
        self._waiting.discard(what)
        if not self._waiting:
            self.over()

    def over(self) -> None:
        """No answer is waited for at all."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self._reactor.seconds()
        due = self._heard_at + _FIRST if self._said_at is None else self._said_at + _AGAIN
        if now >= due:
            _log.warn(
                "no answer from {destination} for {seconds:.0f} s",
                event="no-answer",
                destination=self._destination,
                seconds=now - self._heard_at,
            )
            self._said_at, due = now, now + _AGAIN
        self._timer = self._reactor.callLater(due - now, self._look)
