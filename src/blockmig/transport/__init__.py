"""Bytes between a socket and a disk, without a copy in memory where that is possible.

Owns the zero-copy paths of one connection (`RegionProducer` for sending, `PayloadReader` for
receiving), TLS (`secure`, which is imported where TLS begins, since OpenSSL takes its time), rate
limits, and endpoints. Of NBD it knows only the URIs, not the messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
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
    from .incoming import FastTurn, IPayloadReceiver, PayloadReader
    from .mover import LONGEST_MOVE
    from .outgoing import RegionProducer
    from .plain import (
        LayeredTransport,
        has_hung_up,
        is_on_this_machine,
        is_plain_socket,
        is_readable,
        peer_user,
        unacknowledged,
    )
    from .rate import Limiter, Pacer, RateLimiter, YieldingLimiter
    from .read_ahead import PIECE, ReadAhead
    from .regions import FileRegion
    from .tls import ClientTLS, ServerTLS, TLSFailure
else:
    __getattr__ = lazily(
        __name__,
        {
            "AwaitsUser": "awaits_user",
            "BadEndpoint": "endpoints",
            "CannotListen": "endpoints",
            "ClientTLS": "tls",
            "FastTurn": "incoming",
            "FileRegion": "regions",
            "IPayloadReceiver": "incoming",
            "LONGEST_MOVE": "mover",
            "LayeredTransport": "plain",
            "Limiter": "rate",
            "PIECE": "read_ahead",
            "Pacer": "rate",
            "PayloadReader": "incoming",
            "RateLimiter": "rate",
            "ReadAhead": "read_ahead",
            "RegionProducer": "outgoing",
            "ServerTLS": "tls",
            "TLSFailure": "tls",
            "YieldingLimiter": "rate",
            "accept_few": "endpoints",
            "client_endpoint": "endpoints",
            "describe_address": "endpoints",
            "has_hung_up": "plain",
            "is_on_this_machine": "plain",
            "is_plain_socket": "plain",
            "is_readable": "plain",
            "listen": "endpoints",
            "listening_uris": "endpoints",
            "peer_user": "plain",
            "server_endpoint": "endpoints",
            "stop_listening": "endpoints",
            "tune": "endpoints",
            "unacknowledged": "plain",
        },
    )

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
    "is_on_this_machine",
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
