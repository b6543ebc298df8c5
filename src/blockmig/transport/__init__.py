"""Bytes between a socket and a disk, without a copy in memory where that is possible.

Owns the zero-copy paths of one connection (`RegionProducer` for sending, `PayloadReader` for
receiving), TLS (`secure`, which is imported where TLS begins, since OpenSSL takes its time), rate
limits, and endpoints. Of NBD it knows only the URIs, not the messages.
"""

from .awaits_user import AwaitsUser
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
from .incoming import LONGEST_MOVE, FastTurn, IPayloadReceiver, PayloadReader
from .outgoing import RegionProducer
from .plain import (
    LayeredTransport,
    has_hung_up,
    is_plain_socket,
    is_readable,
    peer_user,
    unacknowledged,
)
from .rate import Limiter, Pacer, RateLimiter, YieldingLimiter
from .read_ahead import PIECE, ReadAhead
from .regions import FileRegion
from .tls import ClientTLS, ServerTLS, TLSFailure

__all__ = [
    "LONGEST_MOVE",
    "PIECE",
    "AwaitsUser",
    "BadEndpoint",
    "CannotListen",
    "ClientTLS",
    "FastTurn",
    "FileRegion",
    "IPayloadReceiver",
    "LayeredTransport",
    "Limiter",
    "Pacer",
    "PayloadReader",
    "RateLimiter",
    "ReadAhead",
    "RegionProducer",
    "ServerTLS",
    "TLSFailure",
    "YieldingLimiter",
    "accept_few",
    "client_endpoint",
    "describe_address",
    "has_hung_up",
    "is_plain_socket",
    "is_readable",
    "listen",
    "listening_uris",
    "peer_user",
    "server_endpoint",
    "stop_listening",
    "tune",
    "unacknowledged",
]
