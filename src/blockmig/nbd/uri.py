"""Parsing and formatting of NBD URIs.

Source: doc/uri.md of the NetworkBlockDevice project. Supported are `nbd://HOST[:PORT]/EXPORT` and
`nbd+unix:///EXPORT?socket=PATH`, and the same with TLS, as `nbds` and `nbds+unix`; with IPv6
addresses in brackets and percent-encoding as in any URI; the zone of a link-local address follows
C{%25} (RFC 6874). `nbd+vsock` and `nbds+vsock` are recognized, but refused.

How TLS is spoken is said by parameters with libnbd's names (nbd_connect_uri(3)): `tls-certificates`
(a directory), `tls-verify-peer` and `tls-hostname`. The rule: a parameter that would be ignored is
refused, since whoever wrote it counts on what it says. So are pre-shared keys (`tls-psk-file`,
`tls-username`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from .constants import DEFAULT_PORT, MAXIMUM_NAME

_HOST_AND_PORT: Final = re.compile(r"([\w.-]+|\[[\w:.%]+\]):\d{1,5}")
_PARAMETERS: Final = ("tls-certificates", "tls-verify-peer", "tls-hostname")
_BOOLEANS: Final = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(
    ("false", "0", "no", "off"), False
)
_NEVER_IN_HOST: Final = frozenset(' /?#@[]\\"<>')
_PATHS: Final = ("socket", "tls-certificates")
"""Parameters that may be any bytes."""
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
    @ivar tls: it is only to be used with TLS.
    @ivar certificates: with TLS, the directory of our certificates; "" where the URI has none.
    @ivar verify_peer: with TLS, whether the server has to prove who it is; None where the URI does
        not say so.
    @ivar tls_hostname: with TLS, the name in the server's certificate; "" for C{host}.
    @raise BadURI: the system allows no such path, or TLS is not used, and is described.
    """

    export: str = ""
    host: str = ""
    port: int = 0
    socket: str = ""
    tls: bool = False
    certificates: str = ""
    verify_peer: bool | None = None
    tls_hostname: str = ""

    def __post_init__(self) -> None:
        length = len(os.fsencode(self.socket))
        if length > _LONGEST_PATH:
            raise BadURI(
                f"the path of a UNIX socket has at most {_LONGEST_PATH} bytes, "
                f"and {self.socket} has {length}: use a shorter one, or a relative one"
            )
        if "\0" in self.socket[1:]:
            raise BadURI(f"{self.socket!r} is no path of a UNIX socket")
        if "\0" in self.certificates:
            raise BadURI(f"tls-certificates: {self.certificates!r} is no path of a directory")
        said = self.certificates or self.tls_hostname or self.verify_peer is not None
        if said and not self.tls:
            scheme = "nbds+unix" if self.socket else "nbds"
            raise BadURI(f"tls- parameters are for TLS: use the scheme {scheme}")

    def __str__(self) -> str:
        scheme, export = "nbds" if self.tls else "nbd", quote(self.export, safe="/")
        query = []
        if self.socket:
            query.append(f"socket={_quoted(self.socket)}")
        if self.certificates:
            query.append(f"tls-certificates={_quoted(self.certificates)}")
        if self.verify_peer is not None:
            query.append(f"tls-verify-peer={'true' if self.verify_peer else 'false'}")
        if self.tls_hostname:
            query.append(f"tls-hostname={quote(self.tls_hostname, safe='')}")
        parameters = f"?{'&'.join(query)}" if query else ""
        if self.socket:
            return f"{scheme}+unix:///{export}{parameters}"
        host = self.host.replace("%", "%25")
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{self.port}/{export}{parameters}"

    @property
    def place(self) -> NBDURI:
        """The same without how TLS is spoken: by this a destination is known in records, wherever
        certificates happen to be."""
        return replace(self, certificates="", verify_peer=None, tls_hostname="")


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
    if parts.scheme in ("nbd+vsock", "nbds+vsock"):
        raise BadURI(
            f"{parts.scheme}: URIs are not supported; use nbd:, nbds:, nbd+unix: or nbds+unix:"
        )
    if parts.scheme not in ("nbd", "nbds", "nbd+unix", "nbds+unix"):
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
        query = _parameters(parts.query)
    except UnicodeError:
        raise BadURI(f"{text!r} is not UTF-8 once decoded") from None
    if parts.username is not None:
        secure = parts.scheme.startswith("nbds")
        why = (
            "those are for pre-shared keys, so use certificates"
            if secure
            else "plain NBD has no log-in"
        )
        raise BadURI(f"{text!r} has a user name; {why}")
    tls = _tls(text, parts.scheme, query)
    if parts.scheme.endswith("+unix"):
        return NBDURI(export=export, socket=_socket(text, parts.netloc, query), **tls)
    if "socket" in query:
        raise BadURI(f"{text!r} names a socket: use the scheme {parts.scheme}+unix for that")
    if port == 0:
        raise BadURI(f"{text!r} has port 0, which cannot be reached")
    host = _host(text, parts.hostname)
    return NBDURI(export=export, host=host, port=port or DEFAULT_PORT, **tls)


def _quoted(path: str) -> str:
    """A path as in a URI: the system takes any bytes as one."""
    return quote(os.fsencode(path), safe="/")


def _parameters(text: str) -> dict[str, str]:
    """The parameters in a URI's query.

    @raise UnicodeError: one is not UTF-8 once decoded, and no path.
    """
    # A plus sign stands for a space in HTML forms, not in URIs.
    pairs = parse_qsl(text.replace("+", "%2B"), keep_blank_values=True, errors="surrogateescape")
    for name, value in pairs:
        (name if name in _PATHS else name + value).encode()
    return dict(pairs)


def _tls(text: str, scheme: str, query: dict[str, str]) -> dict[str, Any]:
    """The fields of an L{NBDURI} that say how TLS is spoken."""
    for name in query:
        if name in ("tls-psk-file", "tls-username"):
            raise BadURI(f"{name}: pre-shared keys are not supported: use tls-certificates")
        if name.startswith("tls-") and name not in _PARAMETERS:
            raise BadURI(f"{name}: is not known; there are {', '.join(_PARAMETERS)}")
    if not scheme.startswith("nbds"):
        given = [name for name in _PARAMETERS if name in query]
        if given:
            secure = scheme.replace("nbd", "nbds")
            raise BadURI(f"{text!r} does not use TLS, and has {given[0]}: use the scheme {secure}")
        return {}
    for name in ("tls-certificates", "tls-hostname"):
        if query.get(name) == "":
            raise BadURI(f"{text!r}: {name} has no value")
    verify = query.get("tls-verify-peer")
    if verify is not None and verify not in _BOOLEANS:
        raise BadURI(f"tls-verify-peer: {verify!r} is neither true nor false")
    return {
        "tls": True,
        "certificates": query.get("tls-certificates", ""),
        "verify_peer": None if verify is None else _BOOLEANS[verify],
        "tls_hostname": query.get("tls-hostname", ""),
    }


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
    """The path of the socket of a nbd+unix or nbds+unix URI."""
    if host:
        raise BadURI(f"{text!r} has a host: a UNIX socket has three slashes and ?socket=PATH")
    if not query.get("socket"):
        raise BadURI(f"{text!r} does not name a socket: nbd+unix needs ?socket=PATH")
    return query["socket"]
