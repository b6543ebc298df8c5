"""What a connection is in: a phase, which says what the events of the connection mean.

A connection goes from its handshake (`handshake`) to its session (`session`), and may be forwarded
from either (`forwarding`). Here is what they have in common: the connection as its phases have it,
and what an event means where nothing was agreed on and nothing is under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..nbd import RemoteProtocolError
from ..transport import FileRegion, IPayloadReceiver, PayloadReader, RegionProducer
from .holds import Holds
from .timeout import ConnectionTimeout
from .traffic import TrafficCounters

if TYPE_CHECKING:
    from .lifetime import LifetimeInputs

_log = Logger()


@dataclass(frozen=True, slots=True, eq=False)
class PhaseContext:
    """A connection as its phases have it.

    @ivar peer: who it is, for messages.
    @ivar outgoing: everything is sent through here.
    @ivar incoming: reads past the transport.
    @ivar holds: why nothing is read, or acted on.
    @ivar timeout: when the client is given up.
    @ivar lifetime: how the connection ends.
    @ivar traffic: what was asked for.
    """

    peer: str
    outgoing: RegionProducer
    incoming: PayloadReader
    holds: Holds
    timeout: ConnectionTimeout
    lifetime: LifetimeInputs
    traffic: TrafficCounters


@implementer(IPayloadReceiver)
class Phase:
    """Nothing was agreed on, and nothing is under way.

    @ivar first_cookie: the cookie of the first request; None before that.
    """

    first_cookie: int | None = None

    def __init__(self, context: PhaseContext) -> None:
        self._context = context

    # What comes from the client.

    def dataReceived(self, data: bytes) -> None:
        """Bytes that were not moved past us."""

    def bufferReceived(self, view: memoryview) -> None:
        """The same, with bytes that will not last."""

    def fast_responder(self) -> Any:
        """There is no shorter way."""

    def payload_region(self) -> FileRegion | None:
        """No payload belongs anywhere."""
        return None

    def payload_moved(self, count: int) -> None:
        """Nothing is."""

    def payload_failed(self, error: OSError) -> None:
        """Nothing does."""

    def finished(self) -> None:
        """The client sends no more; it still hears of what it has asked for."""
        self._context.lifetime.finish()
        self.check_idle()

    def lost(self, reason: Failure) -> None:
        """The connection is gone."""

    # What comes from us.

    def drained(self) -> None:
        """The client has taken all there was for it."""

    def released(self) -> None:
        """Something does not hold the client any more."""

    def hold(self) -> Deferred[None]:
        """Begin nothing more for the client until that is released.

        @return: fires when nothing of it is being carried out any more.
        """
        return succeed(None)

    def check_idle(self) -> None:
        """Go on towards the end, if there is one, once nothing is being carried out any more."""
        self._context.lifetime.idle()

    def unanswered(self) -> list[bytes | FileRegion] | None:
        """What the client has sent that was not answered, as it came, taken from here.

        @return: None where not all of it is to be had any more.
        """
        return []

    @property
    def is_mid_exchange(self) -> bool:
        """Whether the client has begun what it has to finish: a request, or taking its replies."""
        return self._context.outgoing.waiting

    # For the phases.

    def _protocol_error(self, error: RemoteProtocolError) -> None:
        _log.info("{peer}: {error}; connection closed", peer=self._context.peer, error=str(error))
        self.finished()
