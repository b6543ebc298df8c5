"""The reasons why a client's socket is not read, or its requests are not processed.

Owns these reasons, of which several can hold at a time. Rules:

* while there is a reason to hold the client, its socket is not read;
* what was read before is still processed, unless the reason blocks that as well;
* that a connection is ending is a reason too: it does not stop the reading, but new requests are
  refused (draining), or nothing is processed any more (closing). Such a reason is never released.
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
    # Enum's own is a Python function, and is called several times for each request.
    __hash__ = object.__hash__

    BACKLOG = "too many of its requests, or bytes for them, are being processed"
    BACKPRESSURE = "its handler's disk, or the server that it is forwarded to, is slower than it"
    ADMITTING = "its latest request is waiting to be admitted"
    WRITING = "a thread is writing a part of its payload"
    HELD = "all clients are held while the disk is handed over"
    DRAINING = "requests in progress are finished, new ones are refused"
    CLOSING = "the connection ends: nothing more is processed"


BACKLOG: Final = Hold.BACKLOG
HELD: Final = Hold.HELD
DRAINING: Final = Hold.DRAINING
CLOSING: Final = Hold.CLOSING

CLIENT_WAITS: Final = frozenset({Hold.BACKPRESSURE, Hold.HELD})
"""The client is waiting for us, so its silence does not count."""

IN_PROGRESS: Final = frozenset({Hold.ADMITTING, Hold.WRITING})
"""A request of the client's is being carried out."""

BLOCKING: Final = frozenset({BACKLOG, *IN_PROGRESS, HELD, CLOSING})
"""Not even what was already received may be processed."""

ENDING: Final = frozenset({DRAINING, CLOSING})
"""The connection is ending."""


class Holds:
    """The reasons of one connection.

    @param incoming: what is paused and resumed.
    @param released: called when a reason was released.
    @ivar reasons: those that hold now; always the same set object, for reading only.
    """

    def __init__(self, incoming: PayloadReader, released: Callable[[], None]) -> None:
        self.reasons: set[Hold] = set()
        self._incoming = incoming
        self._released = released

    def add(self, reason: Hold) -> None:
        self.reasons.add(reason)
        if reason not in ENDING:
            self._incoming.pause()

    def release(self, reason: Hold) -> None:
        self.reasons.discard(reason)
        if self.reasons <= ENDING:
            self._incoming.resume()
        self._released()

    def until(
        self, reason: Hold, working: Deferred[Any], then: Callable[[Any | Failure], None]
    ) -> None:
        """Hold until C{working} has fired, and C{then} was called with its result."""
        self.add(reason)

        def done(result: Any | Failure) -> None:
            try:
                then(result)
            finally:
                self.release(reason)

        working.addBoth(done).addErrback(_bug)

    def clear(self) -> None:
        """Drop every reason except that it is ending; reading resumes only with the next release.

        For a connection that is forwarded: its requests must not be processed here as well.
        """
        self.reasons.intersection_update(ENDING)


def _bug(failure: Failure) -> None:
    _log.failure("while answering a request", failure=failure)
