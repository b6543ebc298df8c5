"""Which connection is closed for a new one, when there are as many as there may be.

Owns that decision, for the connections of a server, of a receiver, or of a port that several share;
the connections are theirs.

A connection is I{proved} once it has done what only somebody who belongs here does; what that is
says whoever asks. Until then it may be a port scan, a forgotten client, or somebody who wants to
keep others out.

Rules (design, section 2: R10):

* nobody is turned away for the sake of a connection that is not proved: when there are as many as
  there may be, the one that has been silent longest is closed for the new one;
* a connection that waits for us is not silent;
* a proved connection is closed for nobody; if there are as many of those, the new one is refused;
* so many descriptors are kept free that the process can always open its own files (records above
  all), whatever its connections do. They are counted when a connection comes, and not estimated:
  a connection takes between one and four (socket, its duplicate, the two ends of a pipe), and
  whatever else has files open in this process needs no word with us. Nothing has to be opened
  beforehand, nor given up when a record is written, which happens in threads. Whoever is closed
  has its descriptors until the reactor's next turn (a number that was used again at once could be
  given events of the old one), so that those accepted in one turn (L{transport.tune}: some 20) come
  on top;
* who was closed, for whom, and who was refused, is logged, in a bounded number of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from ..runtime import Runtime
from ..transport import describe_address
from .connection import ServerConnection
from .limited_log import LimitedLog

_log = Logger()

MOST_UNPROVED: Final = 128
"""Connections that have proved nothing."""

KEPT_FREE: Final = 64
"""Descriptors that connections leave to the process's own files; or a quarter of all, if less."""

_MOST_LINES: Final = 100


class Admission:
    """Makes room for new connections.

    @param connections: returns those that there are, the oldest first.
    @param is_proved: whether one is proved.
    @param most: how many there may be, proved or not; 0 for no limit.
    @param full: says, for the client and the log, that there are so many.
    """

    def __init__(
        self,
        runtime: Runtime,
        connections: Callable[[], Iterable[ServerConnection]],
        is_proved: Callable[[ServerConnection], bool],
        most: int = 0,
        full: str = "{most} clients are connected already",
    ) -> None:
        self._runtime = runtime
        self._connections = connections
        self._is_proved = is_proved
        self._most = most
        self._full = full.format(most=most)
        self._closed = LimitedLog(runtime.reactor.seconds, _MOST_LINES)
        self._refused = LimitedLog(runtime.reactor.seconds, 1)

    def refusal(self, address: IAddress | None = None) -> str:
        """Why one more connection is refused now, which is logged; "" if it is not.

        @param address: whose it is, for the log.
        """
        if self._unproved():
            return ""
        if self._most and self._count() >= self._most:
            why = self._full
        elif self._is_scarce:
            why = "this process has no descriptors left for another client"
        else:
            return ""
        if self._refused.has_room():
            _log.warn(
                "{peer}: refused: {why}{others}",
                event="full",
                peer="a client" if address is None else describe_address(address),
                why=why,
                most=self._most,
                others=self._refused.others(),
            )
        return why

    def make_room(self, peer: str) -> None:
        """Close whoever has to go for one more connection, of C{peer}, that was not refused."""
        unproved = self._unproved()
        if self._most and self._count() >= self._most:
            why = self._full
        elif len(unproved) >= MOST_UNPROVED:
            why = f"{len(unproved)} connections have asked for nothing yet"
        elif self._is_scarce:
            why = "this process has few descriptors left"
        else:
            return
        if unproved:
            self._close(min(unproved, key=_silent_since), peer, why)

    def _close(self, connection: ServerConnection, peer: str, why: str) -> None:
        if self._closed.has_room():
            _log.info(
                "{peer}: silent for {silent} s; closed for a connection of {other}: {why}{others}",
                event="replaced",
                peer=connection.peer,
                silent=round(self._runtime.reactor.seconds() - connection.heard_at, 1),
                other=peer,
                why=why,
                others=self._closed.others(),
            )
        connection.give_way()

    def _unproved(self) -> list[ServerConnection]:
        return [one for one in self._staying() if not self._is_proved(one)]

    def _count(self) -> int:
        return sum(1 for _ in self._staying())

    def _staying(self) -> Iterable[ServerConnection]:
        """Those that do not leave already."""
        return (one for one in self._connections() if not one.gave_way)

    @property
    def _is_scarce(self) -> bool:
        free, limit = self._runtime.system.descriptors()
        return free < min(KEPT_FREE, limit // 4)


def _silent_since(connection: ServerConnection) -> tuple[bool, float]:
    return connection.waits_for_us, connection.heard_at
