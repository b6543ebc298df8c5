"""Who may connect to a command: its allow-list, and the guard against listening to everybody.

Owns the decision whether a command listens at all at an address that other machines can reach, and
what `status` and `acl` say of the list. The list itself is an `AllowList`.

Rules:

* where other machines can connect there is TLS that nobody gets around, or an allow-list, or
  somebody has said in so many words that there is neither (C{--insecure}). That is looked at before
  anything is touched, as far as the description of an endpoint tells it, and otherwise as soon as
  the port is open, before a connection is accepted;
* loopback and UNIX sockets are for this machine; whatever is not known to be one of them is not;
* a list of users that could keep out nobody is refused: whoever has given it believes otherwise;
* the library has no such guard: a program that embeds blockmig knows where it listens.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from ..control import ControlRefused
from ..errors import Refused
from ..nets import Nets, parse_net
from ..server import AllowList
from ..transport.addresses import endpoint_string
from ..transport.adopting import AdoptedUNIXEndpoint

if TYPE_CHECKING:
    from ..control.server import Routes

_log = Logger()

_LOOPBACK: Final = Nets(map(parse_net, ("127.0.0.0/8", "::1")))
_NAMES: Final = ("localhost", "ip6-localhost")
"""Of loopback addresses, as hosts(5) has them."""

_ENCRYPTED: Final = ("ssl", "tls")
"""Kinds of Twisted's endpoints that speak TLS from the first byte."""

_SHOWN: Final = 5
"""Networks in a line of the log."""

_MOST_IN_STATUS: Final = 100


class Reach(Enum):
    """From where clients can connect."""

    UNIX = "a UNIX socket"
    LOOPBACK = "loopback"
    NETWORK = "other machines"
    UNKNOWN = "not known yet"


def reach_of_text(text: str) -> Reach:
    """From where clients can connect to an endpoint that is described by C{text}, as for
    `--listen`."""
    try:
        kind, *arguments = re.split(r"(?<!\\):", endpoint_string(text))
    except ValueError:
        return Reach.UNKNOWN  # it is refused, and says why
    if kind == "haproxy":
        kind, *arguments = arguments or [""]
    if kind == "unix":
        return Reach.UNIX
    if kind in ("tcp", "tcp6"):
        named = dict(one.split("=", 1) for one in arguments if "=" in one)
        others = [one for one in arguments if "=" not in one]
        interface = named.get("interface", others[1] if len(others) > 1 else "")
        return _reach_of_host(re.sub(r"\\(.)", r"\1", interface))
    return Reach.UNKNOWN


def _reach_of_host(host: str) -> Reach:
    """From where clients can connect to an address of this host; "" is every one."""
    if _LOOPBACK.contains(host) or host in _NAMES:
        return Reach.LOOPBACK
    is_address = not host or ":" in host or re.fullmatch(r"[\d.]+", host)
    return Reach.NETWORK if is_address else Reach.UNKNOWN


def reach_of_address(address: IAddress) -> Reach:
    """From where clients can connect to a port that is open."""
    if isinstance(address, UNIXAddress):
        return Reach.UNIX
    if isinstance(address, IPv4Address | IPv6Address):
        return _reach_of_host(address.host)
    return Reach.NETWORK


def reach_of_endpoint(endpoint: object) -> Reach:
    """From where clients can connect to a socket that the service manager has passed."""
    if isinstance(endpoint, AdoptedUNIXEndpoint):
        return Reach.UNIX
    if not isinstance(endpoint, AdoptedStreamServerEndpoint):
        return Reach.UNKNOWN
    with socket.socket(fileno=os.dup(endpoint.fileno)) as handle:
        return _reach_of_host(handle.getsockname()[0])


class Admittance:
    """Who may connect to one command.

    @param allow: the list.
    @param tls_required: no connection is served without TLS.
    @param verified: clients have to show a certificate.
    @param insecure: other machines may connect, whoever they are.
    @ivar allow: as given.
    """

    def __init__(
        self,
        allow: AllowList | None = None,
        *,
        tls_required: bool = False,
        verified: bool = False,
        insecure: bool = False,
    ) -> None:
        self.allow = allow or AllowList()
        self._tls_required = tls_required
        self._verified = verified
        self._insecure = insecure
        self._places: list[tuple[str, str]] = []

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Admittance:
        """As the options of a command say it."""
        return cls(
            AllowList(options["allow"] or None, options["allow-uid"] or None),
            tls_required=options["tls"] == "require",
            verified=bool(options["tls-verify-peer"] or options["allow-name"]),
            insecure=bool(options["insecure"]),
        )

    def endpoint(self, text: str) -> str:
        """The endpoint that C{text} describes, so that users on the list can use its file."""
        users = set(self.allow.users or ()) - {0, os.geteuid()}
        if not users or ":mode=" in text or reach_of_text(text) != Reach.UNIX:
            return text
        return f"{endpoint_string(text)}:mode=666"

    # The guard.

    def check(self, places: Iterable[tuple[str, Reach]]) -> None:
        """Check that nobody can connect who should not, before anything is opened.

        @param places: each endpoint as the user knows it, and from where it can be reached.
        @raise Refused: somebody could.
        """
        reaches = []
        for text, reach in places:
            self.check_one(text, reach)
            reaches.append(reach)
        if self.allow.users is not None and not {Reach.UNIX, Reach.UNKNOWN} & set(reaches):
            raise Refused(
                "--allow-uid is for UNIX sockets, and none is listened on: it would keep out nobody"
            )

    def check_one(self, text: str, reach: Reach) -> None:
        """Check that nobody can connect there who should not.

        @raise Refused: somebody could.
        """
        if reach != Reach.NETWORK or self._tls_required or self._insecure or self._is_listed:
            return
        if text.partition(":")[0] in _ENCRYPTED:
            return
        raise Refused(
            f"{text} can be reached from other machines, and anybody there could use the disk: "
            "give --tls-certificates DIR (TLS), or --allow CIDR (who may connect); or --insecure, "
            "to listen all the same"
        )

    @property
    def _is_listed(self) -> bool:
        return self.allow.nets is not None

    def report(self, uri: str, reach: Reach, danger: str) -> None:
        """Log who may connect from other machines, if anybody may: now, and when that changes.

        @param danger: what they can do.
        """
        if reach == Reach.NETWORK:
            self._places.append((uri, danger))
            self._report(uri, danger)

    def _report(self, uri: str, danger: str) -> None:
        if (nets := self.allow.nets) is not None:
            _log.info(
                "{uri} can be reached from other machines: clients from {allow} can {danger}"
                "{plain}",
                event="allowed",
                uri=uri,
                allow=_in_words(nets),
                danger=danger,
                plain="" if self._tls_required else " (without TLS: so can whoever is on the way)",
            )
        elif not (self._tls_required and self._verified):
            # With TLS the data is safe on its way, and anybody is still let in.
            certificates = "certificates of clients (--tls-verify-peer) or an allow-list"
            _log.warn(
                "{uri} can be reached from other machines, without {without}: anybody there can "
                "{danger}",
                without=certificates if self._tls_required else "TLS or an allow-list",
                event="exposed",
                uri=uri,
                danger=danger,
            )

    # For the control socket.

    @property
    def routes(self) -> Routes:
        """The handlers for the control socket."""
        return {("GET", "/acl"): lambda _: self._answer(), ("POST", "/acl"): self._replace}

    def _answer(self) -> dict[str, Any]:
        allow = self.allow
        return {"allow": allow.nets, "allow_uid": allow.users, "refused": allow.refused}

    def _replace(self, body: Any) -> dict[str, Any]:
        nets = body.get("allow", "") if isinstance(body, dict) else ""
        if nets is not None and not (
            isinstance(nets, list) and all(isinstance(one, str) for one in nets)
        ):
            raise ControlRefused("'allow' is to be a list of texts, or null for everybody")
        try:
            dropped = self.allow.replace(nets)
        except ValueError as error:
            raise ControlRefused(str(error)) from None
        _log.info(
            "the allow-list was replaced; {dropped} connection(s) closed",
            event="acl",
            allow=nets if nets is None else _in_words(self.allow.nets or []),
            dropped=dropped,
        )
        for place in self._places:
            self._report(*place)
        return {**self._answer(), "dropped": dropped}

    def status(self) -> dict[str, Any]:
        """What a status says of it; of a long list the first networks only."""
        nets, users = self.allow.nets, self.allow.users
        return {
            "allow": None if nets is None else nets[:_MOST_IN_STATUS],
            "allow_count": None if nets is None else len(nets),
            "allow_uid": users,
            "refused": self.allow.refused,
        }


def _in_words(nets: list[str]) -> str:
    if not nets:
        return "nobody"
    more = f" and {len(nets) - _SHOWN} more" if len(nets) > _SHOWN else ""
    return ", ".join(nets[:_SHOWN]) + more
