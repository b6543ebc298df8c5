"""Where to listen, as people write it, to Twisted's endpoint strings; and this host's addresses.

Rule: what Twisted knows is Twisted's (C{tcp:10809} and C{unix:/path} mean what they always did);
the rest is one of C{PORT} (loopback only), C{ADDRESS:PORT}, and the URI that clients are to use.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterator
from typing import Final

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import getPlugins

from ..nbd import NBDURI, parse_uri

_LOOPBACK: Final = "127.0.0.1"
_HIGHEST_PORT: Final = 65535
_KNOWN: Final = ("tcp", "tcp6", "unix", "ssl", "tls", "systemd", "stdio", "fd", "haproxy", "domain")
"""Kinds of Twisted's endpoint strings, and words that look like one; plugins may add others."""

_ADDRESS_AND_PORT: Final = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*):(\d+)")


class BadAddress(ValueError):
    """The text does not say where to listen; the message says why, without the text itself."""


def endpoint_string(text: str) -> str:
    """Twisted's endpoint string for C{text}, which may be one already.

    @raise BadAddress: it says nowhere to listen, or something that is none of the forms.
    """
    if not text:
        raise BadAddress("it is empty")
    if "://" in text:
        return _of_uri(parse_uri(text))
    if text.isdecimal() and text.isascii():
        return _tcp(_LOOPBACK, text)
    kind = text.partition(":")[0]
    match = _ADDRESS_AND_PORT.fullmatch(text)
    if match is not None and not _is_kind(kind):
        host, port = match.groups()
        if not host:
            raise BadAddress(
                f"no address before the port: {_LOOPBACK}:{port} is for this host only, "
                f"0.0.0.0:{port} for every IPv4 address of it, [::]:{port} for every address"
            )
        if host.isalnum() and not _is_this_host(host):
            raise BadAddress(
                f"{host!r} is neither a kind of endpoint (tcp, unix …) nor the name of this host: "
                f"write its address, or nbd://{text}"
            )
        if host.startswith("[") and not isIPv6Address(host[1:-1]):
            raise BadAddress(f"{host} is not an IPv6 address")
        return _tcp(host.strip("[]"), port)
    if "/" in kind or text.startswith("@"):
        raise BadAddress(f"a UNIX socket is written unix:{text}")
    if isIPv6Address(text.strip("[]")) or isIPAddress(text):
        host = f"[{text.strip('[]')}]" if ":" in text else text
        raise BadAddress(f"the port is missing, as in {host}:10809")
    address, _, port = text.rpartition(":")
    if isIPv6Address(address) and port.isdecimal():
        raise BadAddress(f"an IPv6 address is written in brackets: [{address}]:{port}")
    if not _is_kind(kind):
        raise BadAddress("it has no port" if ":" not in text else f"{kind!r} is not known")
    if kind in ("tcp", "tcp6"):
        _check_port(text.split(":")[1:2])
    return text


def _of_uri(uri: NBDURI) -> str:
    if uri.tls:
        raise BadAddress("an endpoint does not begin TLS: that is up to who listens there")
    if uri.export:
        raise BadAddress(
            f"the name of the export, {uri.export!r}, does not belong here: it is given by itself"
        )
    if uri.socket:
        return f"unix:{quoteStringArgument(uri.socket)}"
    return _tcp(uri.host, str(uri.port))


def _tcp(host: str, port: str) -> str:
    _check_port([port])
    kind = "tcp6" if isIPv6Address(host) else "tcp"
    return f"{kind}:{port}:interface={quoteStringArgument(host)}"


def _check_port(numbers: list[str]) -> None:
    for port in numbers:
        if port.isdecimal() and int(port) > _HIGHEST_PORT:
            raise BadAddress(f"the port {port} is higher than {_HIGHEST_PORT}")


def _is_this_host(name: str) -> bool:
    """Whether a name without a dot is this host's; otherwise it may well be a slip."""
    own = socket.gethostname()
    return name in ("localhost", own, own.partition(".")[0])


def _is_kind(word: str) -> bool:
    """Whether Twisted's endpoint strings can begin with C{word}."""
    if word in _KNOWN:
        return True
    if not word.isalnum():
        return False
    return any(plugin.prefix == word for plugin in getPlugins(IStreamServerEndpointStringParser))


# This host's addresses (rtnetlink(7)).

_GET_ADDRESSES: Final = 22
_NEW_ADDRESS: Final = 20
_DONE: Final = (2, 3)  # an error, the end
_DUMP: Final = 0x301  # a request, of all there are
_HEADER: Final = struct.Struct("=IHHII")
_MESSAGE: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ADDRESS, _LOCAL = 1, 2
_GLOBAL: Final = 0
_SITE: Final = 200
_UNUSABLE: Final = 0x08 | 0x40  # its duplicate was found; tentative


def host_addresses(family: int) -> list[str]:
    """The addresses of this host by which other hosts can reach it, as far as it knows.

    @param family: C{AF_INET}, C{AF_INET6}, or C{AF_UNSPEC} for both.
    @return: in the kernel's order; none if the kernel does not tell.
    """
    found: list[str] = []
    with contextlib.suppress(OSError):
        for kind, address in _addresses(family):
            if family in (kind, socket.AF_UNSPEC) and address not in found:
                found.append(address)
    return found


def _addresses(family: int) -> Iterator[tuple[int, str]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(1.0)  # it answers at once
        size = _HEADER.size + _MESSAGE.size
        header = _HEADER.pack(size, _GET_ADDRESSES, _DUMP, 1, 0)
        kernel.send(header + _MESSAGE.pack(family, 0, 0, 0, 0))
        while True:
            data = kernel.recv(1 << 16)
            while len(data) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in _DONE:
                    return
                if kind == _NEW_ADDRESS:
                    yield from _address(data[_HEADER.size : length])
                data = data[(length + 3) & ~3 :]


def _address(message: bytes) -> Iterator[tuple[int, str]]:
    """The address in a message of the kernel's, if others can use it."""
    family, _, flags, scope, _ = _MESSAGE.unpack_from(message)
    if family not in (socket.AF_INET, socket.AF_INET6) or flags & _UNUSABLE:
        return
    if scope not in (_GLOBAL, _SITE):
        return
    rest, attributes = message[_MESSAGE.size :], {}
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        attributes[kind] = rest[_ATTRIBUTE.size : length]
        rest = rest[(max(length, _ATTRIBUTE.size) + 3) & ~3 :]
    # The local end of a point-to-point link has an attribute of its own.
    packed = attributes.get(_LOCAL) or attributes.get(_ADDRESS)
    if packed:
        yield family, socket.inet_ntop(family, packed)
