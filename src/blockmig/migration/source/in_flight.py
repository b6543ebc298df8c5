"""How much a destination is asked for at a time.

Owns the count of what was requested and not acknowledged yet. Rules:

* data is counted by its bytes, which the destination has to have room for;
* zeroes are counted apart: they take no room, but a destination may have to write them out, and
  goes on with that when the connection is lost, before another attempt can begin to write;
* an oldstyle server, which numbers nothing, gets one request at a time.
"""

from __future__ import annotations

from typing import Final

from ...client import PendingRequests
from ...storage import Segment

_MOST_REQUESTS: Final = 256
_MOST_DATA: Final = 32 << 20
_MOST_ZEROES: Final = 64 << 30


class InFlight:
    """What is in flight in one attempt.

    @param requests: those that are, a FLUSH among them.
    @param one_at_a_time: there may be one request at most.
    """

    def __init__(self, requests: PendingRequests, *, one_at_a_time: bool) -> None:
        self._requests = requests
        self._most_requests = 1 if one_at_a_time else _MOST_REQUESTS
        self._data = 0
        self._zeroes = 0

    @property
    def has_room(self) -> bool:
        """Whether one segment more may be requested."""
        return (
            self._requests.in_flight < self._most_requests
            and self._data < _MOST_DATA
            and self._zeroes < _MOST_ZEROES
        )

    def requested(self, segment: Segment) -> None:
        self._count(segment, segment.length)

    def acknowledged(self, segment: Segment) -> None:
        """It was requested before."""
        self._count(segment, -segment.length)

    def _count(self, segment: Segment, length: int) -> None:
        if segment.zero:
            self._zeroes += length
        else:
            self._data += length
