"""Bytes between a socket and a disk, without passing through memory where that can be had.

Owns the zero-copy paths of one connection (`RegionProducer` outwards, `PayloadReader` inwards), the
rate limit, and endpoints. Knows nothing of NBD's messages but its URIs.
"""

from .endpoints import (
    BadEndpoint,
    CannotListen,
    client_endpoint,
    describe_address,
    listen,
    listening_uri,
    server_endpoint,
    stop_listening,
    tune,
)
from .incoming import LONGEST_MOVE, IPayloadReceiver, PayloadReader
from .outgoing import RegionProducer
from .plain import has_hung_up, is_plain_socket, unacknowledged
from .rate import Limiter, Pacer, RateLimiter, YieldingLimiter
from .regions import FileRegion

__all__ = [
    "LONGEST_MOVE",
    "BadEndpoint",
    "CannotListen",
    "FileRegion",
    "IPayloadReceiver",
    "Limiter",
    "Pacer",
    "PayloadReader",
    "RateLimiter",
    "RegionProducer",
    "YieldingLimiter",
    "client_endpoint",
    "describe_address",
    "has_hung_up",
    "is_plain_socket",
    "listen",
    "listening_uri",
    "server_endpoint",
    "stop_listening",
    "tune",
    "unacknowledged",
]
