"""The current connections of one factory.

Owns the set of connections, which of them have proved that they belong here, the totals over all
connections so far, and the moments when none is left, and when one comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from twisted.internet.defer import Deferred

from .connection import ServerConnection
from .traffic import TrafficCounters

_MOST_PROVED: Final = 32


class Clients:
    """The connections; one may be closed while iterating over them.

    @ivar count: how many there have been.
    """

    def __init__(self) -> None:
        self._connections: dict[ServerConnection, None] = {}
        self._proved: dict[ServerConnection, None] = {}
        self.count = 0
        self._past = TrafficCounters()
        self._until_gone: list[Deferred[None]] = []
        self._until_come: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[ServerConnection]:
        return iter(list(self._connections))

    def add(self, connection: ServerConnection) -> None:
        self._connections[connection] = None
        self.count += 1
        waiting, self._until_come = self._until_come, []
        _fire(waiting)

    def remove(self, connection: ServerConnection) -> None:
        del self._connections[connection]
        self._proved.pop(connection, None)
        self._past.add(connection.traffic)
        if not self._connections:
            waiting, self._until_gone = self._until_gone, []
            _fire(waiting)

    def prove(self, connection: ServerConnection) -> None:
        """C{connection} belongs here: it is not closed for others any more.

        That holds for the 32 that have done this last: there may be no end of those who can. One
        that is gone by now needs nothing.
        """
        if connection not in self._connections:
            return
        self._proved.pop(connection, None)
        self._proved[connection] = None
        if len(self._proved) > _MOST_PROVED:
            del self._proved[next(iter(self._proved))]

    def is_proved(self, connection: ServerConnection) -> bool:
        """Whether C{connection} was proved (L{prove})."""
        return connection in self._proved

    def all_gone(self) -> Deferred[None]:
        """Fires when there is no connection (any more)."""
        left: Deferred[None] = Deferred()
        if self._connections:
            self._until_gone.append(left)
        else:
            left.callback(None)
        return left

    def one_comes(self) -> Deferred[None]:
        """Fires when the next connection is made."""
        come: Deferred[None] = Deferred()
        self._until_come.append(come)
        return come

    def status(self, now: float) -> dict[str, Any]:
        """The connections and the totals, for a status.

        @param now: the time by the reactor's clock.
        """
        totals = TrafficCounters()
        totals.add(self._past)
        for connection in self._connections:
            totals.add(connection.traffic)
        return {
            "clients": [
                {
                    "address": connection.peer,
                    "export": connection.handler.export.name if connection.handler else None,
                    "connected": round(now - connection.connected_at, 3),
                    **connection.traffic.as_json(),
                    **_tls(connection),
                }
                for connection in self._connections
            ],
            "totals": {"connections": self.count, **totals.as_json()},
        }


def _tls(connection: ServerConnection) -> dict[str, Any]:
    """What a status says of a client that uses TLS: how, and who it is."""
    if not connection.tls_version:
        return {}
    return {"tls": connection.tls_version, "name": connection.tls_name or None}


def _fire(waiting: list[Deferred[None]]) -> None:
    for deferred in waiting:
        deferred.callback(None)
