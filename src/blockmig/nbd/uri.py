"""Parsing and formatting of NBD URIs.

Source: doc/uri.md of the NetworkBlockDevice project. Supported are `nbd://HOST[:PORT]/EXPORT` and
`nbd+unix:///EXPORT?socket=PATH`, with IPv6 addresses in brackets and percent-encoding as in any
URI; the zone of a link-local address follows C{%25} (RFC 6874). `nbds`, `nbds+unix`, `nbd+vsock`
and `nbds+vsock` are recognized, but refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from .constants import DEFAULT_PORT, MAXIMUM_NAME

_HOST_AND_PORT: Final = re.compile(r"([\w.-]+|\[[\w:.%]+\]):\d{1,5}")
_NEVER_IN_HOST: Final = frozenset(' /?#@[]\\"<>')
_LONGEST_PATH: Final = 107
"""Bytes of a UNIX socket's path: sun_path has 108, with a zero after the name (unix(7))."""


class BadURI(ValueError):
    """The text is not an NBD URI that we can use; the message says why."""


@dataclass(frozen=True, slots=True)
class NBDURI:
    """Where an export is: a host and port, or the path of a UNIX socket, and the export's name.

    @ivar export: the export's name, decoded; "" is the default export.
    @ivar host: a name or address without brackets; "" with a socket.
    @ivar port: the TCP port; 0 with a socket.
    @ivar socket: the path of a UNIX socket; "" with TCP.
    @raise BadURI: the system allows no such path.
    """

    export: str = ""
    host: str = ""
    port: int = 0
    socket: str = ""

    def __post_init__(self) -> None:
        length = len(os.fsencode(self.socket))
        if length > _LONGEST_PATH:
            raise BadURI(
                f"the path of a UNIX socket has at most {_LONGEST_PATH} bytes, "
                f"and {self.socket} has {length}: use a shorter one, or a relative one"
            )
        if "\0" in self.socket[1:]:
            raise BadURI(f"{self.socket!r} is no path of a UNIX socket")

    def __str__(self) -> str:
        export = quote(self.export, safe="/")
        if self.socket:
            # The kernel takes any bytes as a path.
            path = quote(os.fsencode(self.socket), safe="/")
            return f"nbd+unix:///{export}?socket={path}"
        host = self.host.replace("%", "%25")
        host = f"[{host}]" if ":" in host else host
        return f"nbd://{host}:{self.port}/{export}"


def parse_uri(text: str) -> NBDURI:
    """Parse an NBD URI.

    @raise BadURI: it is none; the message says why.
    """
    try:
        text.encode()
        parts = urlsplit(text)
        port = parts.port
    except UnicodeError:
        raise BadURI(f"{text!r} is not UTF-8") from None
    except ValueError:
        what = "the port is a number up to 65535, and an IPv6 address is in brackets"
        raise BadURI(f"{text!r} is not a URI: {what}") from None
    if parts.scheme in ("nbds", "nbds+unix", "nbd+vsock", "nbds+vsock"):
        raise BadURI(f"{parts.scheme}: URIs are not supported; use nbd: or nbd+unix:")
    if parts.scheme not in ("nbd", "nbd+unix"):
        expected = "nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH is expected"
        if _HOST_AND_PORT.fullmatch(text):
            expected = f"write nbd://{text}/"
        raise BadURI(f"{text!r} is not an NBD URI: {expected}")
    if parts.fragment:
        raise BadURI(f"{text!r} has a fragment (#{parts.fragment}), which has no meaning here")
    try:
        export = unquote(parts.path.removeprefix("/"), errors="strict")
        if len(export.encode()) > MAXIMUM_NAME:
            raise BadURI(f"the export's name is longer than {MAXIMUM_NAME} bytes")
        # A plus sign stands for a space in HTML forms, not in URIs.
        text_of_query = parts.query.replace("+", "%2B")
        # The path of a socket may be any bytes.
        query = dict(parse_qsl(text_of_query, keep_blank_values=True, errors="surrogateescape"))
    except UnicodeError:
        raise BadURI(f"{text!r} is not UTF-8 once decoded") from None
    if parts.username is not None:
        raise BadURI(f"{text!r} has a user name; plain NBD has no log-in")
    if parts.scheme == "nbd+unix":
        return NBDURI(export=export, socket=_socket(text, parts.netloc, query))
    if "socket" in query:
        raise BadURI(f"{text!r} names a socket: use the scheme nbd+unix for that")
    if port == 0:
        raise BadURI(f"{text!r} has port 0, which cannot be reached")
    return NBDURI(export=export, host=_host(text, parts.hostname), port=port or DEFAULT_PORT)


def _host(text: str, given: str | None) -> str:
    """The host of a URI, decoded."""
    if not given:
        raise BadURI(f"{text!r} does not name a host")
    host = _decoded(given)
    odd = any(letter in _NEVER_IN_HOST or not letter.isprintable() for letter in host)
    if not host or odd or ("%" in host and ":" not in host):
        raise BadURI(f"{text!r}: {host!r} cannot be a host")
    return host


def _decoded(text: str) -> str:
    """A host as in a URI, decoded; many write a zone with C{%} alone."""
    address, percent, zone = text.partition("%")
    if ":" in address and percent and not zone.startswith("25"):
        return text
    # Lower case as what is not percent-encoded is; but the names of interfaces have any.
    return unquote(text) if ":" in address else unquote(text).lower()


def _socket(text: str, host: str, query: dict[str, str]) -> str:
    """The path of a nbd+unix URI's socket."""
    if host:
        raise BadURI(f"{text!r} has a host: nbd+unix has three slashes and ?socket=PATH")
    if not query.get("socket"):
        raise BadURI(f"{text!r} does not name a socket: nbd+unix needs ?socket=PATH")
    return query["socket"]
