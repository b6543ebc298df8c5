"""Bytes between a socket and a disk, without a copy in memory where that is possible.

Owns the zero-copy paths of one connection (`RegionProducer` for sending, `PayloadReader` for
receiving), rate limits, and endpoints. Of NBD it knows only the URIs, not the messages.
"""

from .endpoints import (
    BadEndpoint,
    CannotListen,
    accept_few,
    client_endpoint,
    describe_address,
    listen,
    listening_uris,
    server_endpoint,
    stop_listening,
    tune,
)
from .incoming import LONGEST_MOVE, IPayloadReceiver, PayloadReader
from .outgoing import RegionProducer
from .plain import has_hung_up, is_plain_socket, is_readable, unacknowledged
from .rate import Limiter, Pacer, RateLimiter, YieldingLimiter
from .read_ahead import PIECE, ReadAhead
from .regions import FileRegion

__all__ = [
    "LONGEST_MOVE",
    "PIECE",
    "BadEndpoint",
    "CannotListen",
    "FileRegion",
    "IPayloadReceiver",
    "Limiter",
    "Pacer",
    "PayloadReader",
    "RateLimiter",
    "ReadAhead",
    "RegionProducer",
    "YieldingLimiter",
    "accept_few",
    "client_endpoint",
    "describe_address",
    "has_hung_up",
    "is_plain_socket",
    "is_readable",
    "listen",
    "listening_uris",
    "server_endpoint",
    "stop_listening",
    "tune",
    "unacknowledged",
]
