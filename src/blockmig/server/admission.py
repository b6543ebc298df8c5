"""Which connection is closed for a new one, when there are as many as there may be.

Owns that decision, for the connections of a server, of a receiver, or of a port that several share;
the connections are theirs.

A connection is I{proved} once it has done what only somebody who belongs here does; what that is
says whoever asks. Until then it may be a port scan, a forgotten client, or somebody who wants to
keep others out.

Rules (design, section 2: R10):

* nobody is turned away for the sake of a connection that is not proved: when there are as many as
  there may be, the one that has got no further for longest is closed for the new one;
* to get further is to be made, to take one of the first steps of a handshake, and to end it. What
  somebody can do for ever without proving anything (reading, asking for the list of exports,
  waiting for a slow disk) keeps nobody: those who do that would keep out whoever has just come;
* where one origin (L{origin}) has more than a few of those that are not proved, it is one of the
  origin that has most: whoever comes a thousand times a second then closes only his own, and a
  sender whose packets take long has the time that it needs;
* a proved connection is closed for nobody; if there are as many of those, the new one is refused;
* there may be a limit for each origin as well, which is kept in the same way: one of its own is
  closed, and where all of them are proved the new one is refused. What comes from this host has
  none: everybody who is relayed or tunnelled has the same origin;
* so many descriptors are kept free that the process can always open its own files (records above
  all), whatever its connections do. They are counted when a connection comes, and not estimated:
  a connection takes between one and four (socket, its duplicate, the two ends of a pipe), and
  whatever else has files open in this process needs no word with us. Nothing has to be opened
  beforehand, nor given up when a record is written, which happens in threads;
* whoever is closed has its descriptors until the reactor's next turn (a number that was used again
  at once could be given events of the old one), so that those accepted in one turn come on top.
  They are few (L{transport.tune}); but if several ports, or somebody else's, have accepted so many
  that half of what is kept is gone, the next one is refused in that turn;
* who was closed, for whom, and who was refused, is logged, in a bounded number of lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Final, Protocol

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from ..runtime import Runtime
from ..transport import describe_address
from .connection import ServerConnection
from .limited_log import LimitedLog
from .origin import LOCAL, origin_of

_log = Logger()

MOST_UNPROVED: Final = 128
"""Connections that have proved nothing."""

KEPT_FREE: Final = 64
"""Descriptors that connections leave to the process's own files; or a quarter of all, if less."""

A_FEW: Final = 16
"""Unproved connections that an origin may have without being chosen for that."""

_MOST_LINES: Final = 100

# They are called for every connection that there is, for every one that comes.
_advanced_at: Final = attrgetter("advanced_at")
_origin: Final = attrgetter("origin")


class Connections(Protocol):
    """Some connections, the oldest first."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[ServerConnection]: ...


class Admission:
    """Makes room for new connections.

    @param connections: returns those that there are.
    @param is_proved: whether one is proved.
    @param most: how many there may be, proved or not; 0 for no limit.
    @param full: says, for the client and the log, that there are so many.
    @param most_of_one: how many one origin may have; 0 for no limit.
    """

    def __init__(
        self,
        runtime: Runtime,
        connections: Callable[[], Connections],
        is_proved: Callable[[ServerConnection], bool],
        most: int = 0,
        *,
        full: str = "{most} clients are connected already",
        most_of_one: int = 0,
    ) -> None:
        self._runtime = runtime
        self._connections = connections
        self._is_proved = is_proved
        self._most = most
        self._most_of_one = most_of_one
        self._fewest = min(number or MOST_UNPROVED for number in (0, most, most_of_one))
        self._full = full.format(most=most)
        self._closed = LimitedLog(runtime.reactor.seconds, _MOST_LINES)
        self._refused = LimitedLog(runtime.reactor.seconds, 1)

    def admit(self, address: IAddress) -> str:
        """Make room for one more connection, which was just accepted.

        @param address: whose it is.
        @return: why it is refused instead, which is logged; "" if it is not.
        """
        free, kept = self._descriptors()
        if free >= kept and len(self._connections()) < self._fewest:
            return ""
        peer = describe_address(address)
        staying, unproved = self._look()
        if crowd := self._crowd_of(address, staying):
            why = f"{self._most_of_one} clients from {origin_of(address)} are connected already"
            own = [one for one in unproved if one in crowd]
            if not own:
                return self._refuse(peer, why)
            self._close(min(own, key=_advanced_at), peer, why)
            return ""
        if not unproved:
            return self._refuse(peer, self._why_full(len(staying), free < kept))
        self._close_one(peer, len(staying), unproved, free < kept)
        at_once = "too many have come at once for the descriptors that are left"
        return self._refuse(peer, at_once if free < kept // 2 else "")

    def refusal(self) -> str:
        """Why one more connection, which has its descriptors already, is refused now; "" if it is
        not. That is logged."""
        staying, unproved = self._look()
        return self._refuse("a client", "" if unproved else self._why_full(len(staying), False))

    def make_room(self, peer: str) -> None:
        """Close whoever has to go for one more connection, that of C{peer}, which has its
        descriptors already and was not refused."""
        staying, unproved = self._look()
        self._close_one(peer, len(staying), unproved, False)

    def _look(self) -> tuple[list[ServerConnection], list[ServerConnection]]:
        """Those that do not leave already; and those of them that are not proved."""
        is_proved = self._is_proved
        staying = [one for one in self._connections() if not one.gave_way]
        return staying, [one for one in staying if one.said_nothing or not is_proved(one)]

    def _crowd_of(
        self, address: IAddress, staying: list[ServerConnection]
    ) -> set[ServerConnection]:
        """All connections of the origin that C{address} has, if it has as many as it may have."""
        origin = origin_of(address) if self._most_of_one else LOCAL
        if origin == LOCAL:
            return set()
        crowd = {one for one in staying if one.origin == origin}
        return crowd if len(crowd) >= self._most_of_one else set()

    def _descriptors(self) -> tuple[int, int]:
        """How many descriptors are free, and how many are to be."""
        free, limit = self._runtime.system.descriptors()
        return free, min(KEPT_FREE, limit // 4)

    def _why_full(self, staying: int, scarce: bool) -> str:
        if self._most and staying >= self._most:
            return self._full
        return "this process has no descriptors left for another client" if scarce else ""

    def _refuse(self, peer: str, why: str) -> str:
        """Log why, if for anything; returns it."""
        if why and self._refused.has_room():
            _log.warn(
                "{peer}: refused: {why}{others}",
                event="full",
                peer=peer,
                why=why,
                most=self._most,
                others=self._refused.others(),
            )
        return why

    def _close_one(
        self, peer: str, staying: int, unproved: list[ServerConnection], scarce: bool
    ) -> None:
        if self._most and staying >= self._most:
            why = self._full
        elif len(unproved) >= MOST_UNPROVED:
            why = f"{len(unproved)} connections have asked for nothing yet"
        elif scarce:
            why = "this process has few descriptors left"
        else:
            return
        if unproved:
            self._close(min(_most_crowded(unproved), key=_advanced_at), peer, why)

    def _close(self, connection: ServerConnection, peer: str, why: str) -> None:
        if self._closed.has_room():
            _log.info(
                "{peer}: no further for {silent} s; closed for a connection of {other}: "
                "{why}{others}",
                event="replaced",
                peer=connection.peer,
                silent=round(self._runtime.reactor.seconds() - connection.advanced_at, 1),
                other=peer,
                why=why,
                others=self._closed.others(),
            )
        connection.give_way()


def _most_crowded(unproved: list[ServerConnection]) -> list[ServerConnection]:
    """Those of the origin that has most, if that are more than a few; else all."""
    counts = Counter(map(_origin, unproved))
    ((origin, count),) = counts.most_common(1)
    if count <= A_FEW or len(counts) == 1:
        return unproved
    return [one for one in unproved if one.origin == origin]
