"""Where a connection comes from, as far as one who may have many addresses can be told from others.

An IPv6 host has as many addresses as it likes of a network of 64 bits, so such a network counts as
one. An IPv4 address is the same, whether the port speaks IPv4 or IPv6.
"""

from __future__ import annotations

import socket
from typing import Any, Final

LOCAL: Final = ""
"""This host: a loopback address, a UNIX socket, or something that has no address."""

_MAPPED: Final = bytes(10) + b"\xff\xff"
_LOOPBACK: Final = bytes(15) + b"\x01"


def origin_of(address: Any) -> str:
    """The origin of a connection from C{address}, to be compared and shown; or L{LOCAL}."""
    host = getattr(address, "host", None)
    if not isinstance(host, str):
        return LOCAL
    if ":" in host:
        try:
            packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        except OSError:
            return host
        if packed == _LOOPBACK:
            return LOCAL
        if not packed.startswith(_MAPPED):
            return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"
        host = socket.inet_ntop(socket.AF_INET, packed[12:])
    return LOCAL if host.startswith("127.") else host
