"""A connection that another server answers: only bytes are moved here.

Owns nothing: what comes is for whoever passes the connection on (`relay`). What was being sent to
the client when it began goes out first.
"""

from __future__ import annotations

import typing

from twisted.python.failure import Failure

from ..transport import FileRegion
from .phase import Phase, PhaseContext


class Forwarder(typing.Protocol):
    """Whoever passes a connection on to another server, and is told of what happens to it."""

    def begin(self, unanswered: list[bytes | FileRegion] | None) -> None:
        """It is yours, and paused.

        @param unanswered: what the peer has sent so far that was not answered, in order; None where
            not all of it is to be had any more.
        """

    def received(self, data: bytes | memoryview) -> None:
        """The peer sent this; a view will not last."""

    def drained(self) -> None:
        """The peer has taken all there was for it."""

    def finished(self) -> None:
        """The peer sends no more, and still listens."""

    def lost(self, reason: Failure) -> None:
        """The connection is gone."""


class Forwarding(Phase):
    """The phase of a connection that was passed on.

    @param context: the connection.
    @param forwarder: who is told of everything.
    """

    def __init__(self, context: PhaseContext, forwarder: Forwarder) -> None:
        super().__init__(context)
        self._forwarder = forwarder

    def dataReceived(self, data: bytes) -> None:
        """From the client."""
        self._forwarder.received(data)

    def bufferReceived(self, view: memoryview) -> None:
        """From the client, and not to last."""
        self._forwarder.received(view)

    def finished(self) -> None:
        """The client sends no more."""
        self._forwarder.finished()

    def lost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._forwarder.lost(reason)

    def drained(self) -> None:
        """The client has taken all there was for it."""
        self._forwarder.drained()
