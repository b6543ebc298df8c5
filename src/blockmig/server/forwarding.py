"""The phase of a connection that another server answers: bytes are only moved.

What arrives is given to whoever forwards the connection (`relay`), and counted, since the count
tells whether the client does more than shake hands. What was already queued for the client is sent
first.
"""

from __future__ import annotations

import typing
from typing import Final

from twisted.python.failure import Failure

from ..transport import FileRegion
from .phase import Phase, PhaseContext

_LONGEST_HANDSHAKE: Final = 512


class Forwarder(typing.Protocol):
    """Forwards a connection to another server, and receives its events."""

    def begin(self, unanswered: list[bytes | FileRegion] | None) -> None:
        """The connection is yours, and paused.

        @param unanswered: what the peer has sent and was not answered, in order; None where not all
            of it is available any more.
        """

    def received(self, data: bytes | memoryview) -> None:
        """The peer sent C{data}; a view is valid only during this call."""

    def drained(self) -> None:
        """The peer has taken everything that was queued for it."""

    def finished(self) -> None:
        """The peer has closed its sending side, and may still receive."""

    def lost(self, reason: Failure) -> None:
        """The connection was lost."""


class Forwarding(Phase):
    """The phase of a connection that is forwarded.

    @param context: the connection.
    @param forwarder: receives every event.
    """

    def __init__(self, context: PhaseContext, forwarder: Forwarder) -> None:
        super().__init__(context)
        self._forwarder = forwarder
        self._received = 0

    def dataReceived(self, data: bytes) -> None:
        self._count(len(data))
        self._forwarder.received(data)

    def bufferReceived(self, view: memoryview) -> None:
        self._count(len(view))
        self._forwarder.received(view)

    def _count(self, count: int) -> None:
        self._context.timeout.reset()
        self._received += count

    @property
    def has_asked(self) -> bool:
        """Whether the client has asked here before, or has sent more than a handshake takes."""
        return self._context.traffic.any or self._received > _LONGEST_HANDSHAKE

    def finished(self) -> None:
        self._forwarder.finished()

    def lost(self, reason: Failure) -> None:
        self._forwarder.lost(reason)

    def drained(self) -> None:
        self._forwarder.drained()
