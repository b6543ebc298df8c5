"""The NBD wire, sans-IO: bytes in, events out; intentions in, bytes (and payloads) out.

Owns the protocol's numbers, its two phases in both roles, its URIs, and the rules of which request
may be asked of which export. Imports no reactor, opens nothing, waits for nothing.
"""

from .constants import (
    DEFAULT_PORT,
    MAXIMUM_LENGTH,
    MAXIMUM_NAME,
    MAXIMUM_PAYLOAD,
    Command,
    CommandFlag,
    Errno,
    HandshakeFlag,
    InfoType,
    Option,
    OptionReply,
    TransmissionFlag,
)
from .errors import (
    HandshakeRefused,
    LocalProtocolError,
    NotNBD,
    ProtocolError,
    RemoteProtocolError,
    describe_errno,
    errno_to_wire,
)
from .export import Export
from .handshake import Aborted, ClientHandshake, Negotiated, ServerHandshake, oldstyle_hello
from .rules import changes_the_disk, check_request
from .transmission import (
    REQUEST_SIZE,
    ClientTransmission,
    EndOfPayload,
    Payload,
    Reply,
    Request,
    ServerTransmission,
)
from .uri import NBDURI, BadURI, parse_uri

__all__ = [
    "DEFAULT_PORT",
    "MAXIMUM_LENGTH",
    "MAXIMUM_NAME",
    "MAXIMUM_PAYLOAD",
    "NBDURI",
    "REQUEST_SIZE",
    "Aborted",
    "BadURI",
    "ClientHandshake",
    "ClientTransmission",
    "Command",
    "CommandFlag",
    "EndOfPayload",
    "Errno",
    "Export",
    "HandshakeFlag",
    "HandshakeRefused",
    "InfoType",
    "LocalProtocolError",
    "Negotiated",
    "NotNBD",
    "Option",
    "OptionReply",
    "Payload",
    "ProtocolError",
    "RemoteProtocolError",
    "Reply",
    "Request",
    "ServerHandshake",
    "ServerTransmission",
    "TransmissionFlag",
    "changes_the_disk",
    "check_request",
    "describe_errno",
    "errno_to_wire",
    "oldstyle_hello",
    "parse_uri",
]
