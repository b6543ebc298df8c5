"""The phases of a connection, each of which says what the connection's events mean.

A connection goes from its handshake (`handshake`) to its session (`session`), and may be forwarded
from either (`forwarding`). This module has what they share: the context that a phase is given, and
what an event means by default, where nothing was negotiated and nothing is in progress.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..nbd import RemoteProtocolError, Request
from ..transport import FastTurn, FileRegion, IPayloadReceiver, PayloadReader, RegionProducer
from .holds import Holds
from .refused_requests import RefusedRequests
from .timeout import ConnectionTimeout
from .traffic import TrafficCounters

if TYPE_CHECKING:
    from .lifetime import LifetimeInputs

_log = Logger()


@dataclass(frozen=True, slots=True, eq=False)
class PhaseContext:
    """What a phase uses of its connection.

    @ivar peer: its address, for messages.
    @ivar outgoing: everything is sent through this.
    @ivar incoming: reads from the socket past the transport.
    @ivar holds: why nothing is read, or processed.
    @ivar timeout: gives a silent client up.
    @ivar lifetime: the machine that ends the connection.
    @ivar traffic: counts its requests.
    @ivar refused: the log of requests that are refused.
    """

    peer: str
    outgoing: RegionProducer
    incoming: PayloadReader
    holds: Holds
    timeout: ConnectionTimeout
    lifetime: LifetimeInputs
    traffic: TrafficCounters
    refused: RefusedRequests


@implementer(IPayloadReceiver)
class Phase:
    """The default: nothing was negotiated, and nothing is in progress.

    @ivar first_cookie: the cookie of the first request; None before that.
    """

    first_cookie: int | None = None

    def __init__(self, context: PhaseContext) -> None:
        self._context = context

    # From the client.

    def dataReceived(self, data: bytes) -> None:
        """Bytes that were not moved straight into the disk."""

    def bufferReceived(self, view: memoryview) -> None:
        """As L{dataReceived}, with bytes that are valid only during this call."""
        self.dataReceived(bytes(view))

    def fast_turn(self) -> FastTurn | None:
        """None: there is no fast path."""

    def payload_region(self) -> FileRegion | None:
        """None: no payload is expected."""
        return None

    def payload_moved(self, count: int) -> None:
        """Never called."""

    def payload_failed(self, error: OSError) -> None:
        """Never called."""

    def finished(self) -> None:
        """The client sends no more; it still gets the replies to what it has requested."""
        self._context.lifetime.finish()
        self.check_idle()

    def lost(self, reason: Failure) -> None:
        """The connection was lost."""

    # From our side.

    def drained(self) -> None:
        """The client has taken everything that was queued for it."""

    def released(self) -> None:
        """A hold was released."""

    def hold(self) -> Deferred[None]:
        """Begin no more requests of the client's until that is released.

        @return: fires when none of its requests is being carried out any more.
        """
        return succeed(None)

    def check_idle(self) -> None:
        """Tell an ending connection's machine if no request is being carried out any more."""
        self._context.lifetime.idle()

    def unanswered(self) -> list[bytes | FileRegion] | None:
        """Take away what the client has sent and was not answered, unchanged.

        @return: None where not all of it is available any more.
        """
        return []

    @property
    def waits_for_us(self) -> bool:
        """Whether the client can do nothing before we have done something."""
        return False

    @property
    def receiving(self) -> tuple[Request, int] | None:
        """The WRITE whose payload is on the wire, and how many bytes of that are here."""
        return None

    @property
    def has_asked(self) -> bool:
        """Whether the client has asked anything of an export."""
        return False

    @property
    def is_mid_exchange(self) -> bool:
        """Whether the client has sent a part of a request, or has replies to take."""
        return self._context.outgoing.waiting

    # For the phases.

    def _protocol_error(self, error: RemoteProtocolError) -> None:
        _log.info("{peer}: {error}; connection closed", peer=self._context.peer, error=str(error))
        self.finished()
