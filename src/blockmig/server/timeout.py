"""When a connection is given up, since its client says nothing, or takes nothing.

Owns the only timer of a connection. Rules:

* whoever has leave to be silent is not silent, however long it says nothing;
* a client that takes its replies, be it slowly, is not silent either;
* a time limit is another thing: nothing that the client does moves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..transport import unacknowledged


class ConnectionTimeout:
    """That of one connection.

    @param clock: tells the time.
    @param transport: of the connection.
    @param waiting: whether the client has not taken all that was sent.
    @param given_up: called with the seconds of silence that were too many.
    """

    def __init__(
        self,
        clock: IReactorTime,
        transport: Any,
        waiting: Callable[[], bool],
        given_up: Callable[[float], None],
    ) -> None:
        self._clock = clock
        self._seconds = clock.seconds
        self._transport = transport
        self._waiting = waiting
        self._given_up = given_up
        self._latest = clock.seconds()
        self._untaken = 0
        self._timer: IDelayedCall | None = None

    def note(self) -> None:
        """Something has happened."""
        self._latest = self._seconds()

    def watch(self, seconds: float, excused: Callable[[], bool]) -> None:
        """Give the client up once it has been silent for so long, from now on.

        @param seconds: 0 for never.
        @param excused: whether it has leave to be silent.
        """
        self.note()
        self._start(seconds, self._check, seconds, excused)

    def limit(self, seconds: float, late: Callable[[float], None]) -> None:
        """Call C{late} after C{seconds}; 0 for never."""
        self._start(seconds, late, seconds)

    def stop(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _start(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        self.stop()
        if seconds:
            self._timer = self._clock.callLater(seconds, function, *arguments)

    def _check(self, seconds: float, excused: Callable[[], bool]) -> None:
        now = self._seconds()
        untaken, self._untaken = self._untaken, unacknowledged(self._transport)
        # A socket is writable only when much of it is free; until then a slow reader shows here.
        takes = self._waiting() and self._untaken != untaken
        if takes or excused():
            self._latest = now
        left = self._latest + seconds - now
        if left > 0:
            self._timer = self._clock.callLater(left, self._check, seconds, excused)
        else:
            self._timer = None
            self._given_up(seconds)
