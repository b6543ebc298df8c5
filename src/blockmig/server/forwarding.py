"""The phase of a connection that another server answers: bytes are only moved.

Owns nothing: what arrives is given to whoever forwards the connection (`relay`). What was already
queued for the client is sent first.
"""

from __future__ import annotations

import typing

from twisted.python.failure import Failure

from ..transport import FileRegion
from .phase import Phase, PhaseContext


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

    def dataReceived(self, data: bytes) -> None:
        self._forwarder.received(data)

    def bufferReceived(self, view: memoryview) -> None:
        self._forwarder.received(view)

    def finished(self) -> None:
        self._forwarder.finished()

    def lost(self, reason: Failure) -> None:
        self._forwarder.lost(reason)

    def drained(self) -> None:
        self._forwarder.drained()
