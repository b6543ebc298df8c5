"""Why nothing is read from a client, or acted on.

Owns the reasons, of which there may be several at a time. Rules:

* while there is a reason to hold the client, its socket is not read from;
* what was read already goes on being acted on, unless the reason forbids that as well;
* that a connection is to end is a reason too: it holds nobody, but new requests are refused, or
  nothing is acted on any more. Such a reason stays.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..transport import PayloadReader

_log = Logger()


class Hold(Enum):
    """A reason."""

    # That of Enum is no built-in function, and is asked for with each request.
    __hash__ = object.__hash__

    BACKLOG = "so much of it is under way that it must wait"
    BACKPRESSURE = "its handler's disk is behind, or the server that it was passed on to"
    ADMITTING = "it is not known yet whether its latest request is admitted"
    WRITING = "a part of its payload is being written by a thread"
    HELD = "all clients are held while the disk is handed over"
    DRAINING = "the connection is to end: what has begun is finished, and new requests are refused"
    CLOSING = "the connection ends: nothing more is acted on"


BACKLOG: Final = Hold.BACKLOG
HELD: Final = Hold.HELD
DRAINING: Final = Hold.DRAINING
CLOSING: Final = Hold.CLOSING

CLIENT_WAITS: Final = frozenset({Hold.BACKPRESSURE, Hold.HELD})
"""The client waits for us, and may be silent."""

IN_PROGRESS: Final = frozenset({Hold.ADMITTING, Hold.WRITING})
"""Something of the client's is being carried out."""

BLOCKING: Final = frozenset({BACKLOG, *IN_PROGRESS, HELD, CLOSING})
"""Not even what was received already is to be acted on yet."""

ENDING: Final = frozenset({DRAINING, CLOSING})
"""The connection is to end."""


class Holds:
    """Those of one connection.

    @param incoming: what is held.
    @param released: called when something was released.
    @ivar reasons: what holds at present; always the same set, only to be looked at.
    """

    def __init__(self, incoming: PayloadReader, released: Callable[[], None]) -> None:
        self.reasons: set[Hold] = set()
        self._incoming = incoming
        self._released = released

    def add(self, reason: Hold) -> None:
        """There is a reason."""
        self.reasons.add(reason)
        if reason not in ENDING:
            self._incoming.pause()

    def release(self, reason: Hold) -> None:
        """There is that reason no more."""
        self.reasons.discard(reason)
        if self.reasons <= ENDING:
            self._incoming.resume()
        self._released()

    def until(
        self, reason: Hold, working: Deferred[Any], then: Callable[[Any | Failure], None]
    ) -> None:
        """Hold until C{working} is done, and C{then} has been told what came of it."""
        self.add(reason)

        def done(result: Any | Failure) -> None:
            try:
                then(result)
            finally:
                self.release(reason)

        working.addBoth(done).addErrback(_bug)

    def clear(self) -> None:
        """There is no reason any more but that it ends; nothing is read before one was released.

        What was handed on to somebody else must not be acted on here as well.
        """
        self.reasons.intersection_update(ENDING)


def _bug(failure: Failure) -> None:
    _log.failure("while answering a request", failure=failure)
