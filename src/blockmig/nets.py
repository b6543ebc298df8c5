"""Networks as people write them, and whether an address is in one of them.

Owns what a text such as C{192.0.2.0/24} means, and the set of addresses that a list of them stands
for. Imports nothing that takes long: options are checked with it.

Rules:

* names are never looked up: what an allow-list means must not depend on a name server;
* bits behind the prefix are an error: whoever has written them meant something else;
* an IPv4 address and the IPv6 address that it is mapped to (C{::ffff:192.0.2.7}) are the same one,
  in a list as well as on a connection: a socket that listens on C{::} sees IPv4 peers like that.
  No IPv6 network that is larger than all of those contains an IPv4 address;
* a zone (C{fe80::1%eth0}) in a list is for peers behind that interface only; without one the peer's
  zone does not count;
* a look takes as long for ten thousand networks as for ten: they are joined, sorted, and searched
  by bisection.
"""

from __future__ import annotations

import socket
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

_LONGEST: Final = 100
"""Letters of a text that can be a network; and of one that is not, in a message."""

_BITS: Final[dict[int, int]] = {socket.AF_INET: 32, socket.AF_INET6: 128}
_MAPPED: Final = bytes(10) + b"\xff\xff"
"""What an IPv6 address begins with that stands for one of IPv4 (RFC 4291, section 2.5.5.2)."""


class Net(NamedTuple):
    """A network.

    @ivar family: C{AF_INET} or C{AF_INET6}.
    @ivar address: its first address, packed.
    @ivar prefix: how many bits all of its addresses have in common.
    @ivar zone: the interface behind which it is; "" for any.
    """

    family: int
    address: bytes
    prefix: int
    zone: str = ""

    def __str__(self) -> str:
        text = socket.inet_ntop(self.family, self.address)
        if self.zone:
            text += f"%{self.zone}"
        return text if self.prefix == _BITS[self.family] else f"{text}/{self.prefix}"

    @property
    def span(self) -> tuple[int, int]:
        """Its first address, and the one behind its last, as numbers."""
        first = int.from_bytes(self.address)
        return first, first + (1 << (_BITS[self.family] - self.prefix))


def parse_net(text: str) -> Net:
    """The network that C{text} means: an address with a prefix, or an address alone.

    @raise ValueError: it means none; the message quotes it, and says why.
    """
    try:
        return _parse(text)
    except ValueError as error:
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
        raise ValueError(f"{shown!r}: {error}") from None


def _parse(text: str) -> Net:
    address, slash, digits = text.partition("/")
    address, percent, zone = address.partition("%")
    family, packed = _packed(address, len(text))
    is_mapped = family == socket.AF_INET6 and packed.startswith(_MAPPED)
    if percent and (not zone or is_mapped or family == socket.AF_INET):
        raise ValueError("a zone is the name of an interface, as in fe80::1%eth0")
    bits = _BITS[family]
    prefix = bits
    if slash:
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > 3:
            raise ValueError(
                f"behind the / belongs the number of bits that count, 0 to {bits}, as in "
                "192.0.2.0/24"
            )
        prefix = int(digits)
        if prefix > bits:
            kind = "IPv4" if family == socket.AF_INET else "IPv6"
            raise ValueError(f"an {kind} address has {bits} bits, and not {prefix}")
    elif not any(packed):
        raise ValueError(f"no client has this address; every address is {address}/0")
    rest = int.from_bytes(packed) & ((1 << (bits - prefix)) - 1)
    if rest:
        whole = (int.from_bytes(packed) - rest).to_bytes(bits // 8)
        net = Net(family, whole, prefix, zone)
        raise ValueError(
            f"there are bits behind the first {prefix}: do you mean {net}, or {address} alone?"
        )
    if is_mapped and prefix >= 96:
        return Net(socket.AF_INET, packed[12:], prefix - 96)
    return Net(family, packed, prefix, zone)


def _packed(text: str, length: int) -> tuple[int, bytes]:
    """The family and the bytes of an address.

    @param length: of all that was given.
    """
    if length <= _LONGEST and "\0" not in text:
        for family in _BITS:
            try:
                return family, socket.inet_pton(family, text)
            except (OSError, ValueError):
                continue
    if "," in text or " " in text.strip():
        raise ValueError("one address or network is expected, such as 192.0.2.7 or 192.0.2.0/24")
    if text.startswith("["):
        raise ValueError("an IPv6 address is written without brackets here")
    raise ValueError(
        "is not an address (192.0.2.7, 2001:db8::7) or a network (192.0.2.0/24, 2001:db8::/64); "
        "names are not looked up"
    )


class Nets:
    """The addresses of any number of networks.

    @param nets: those networks.
    """

    def __init__(self, nets: Iterable[Net]) -> None:
        self._nets = sorted(set(nets), key=lambda net: (net.family, net.zone, net.span, net.prefix))
        self._spans = {
            key: _Spans(net.span for net in self._nets if (net.family, net.zone) == key)
            for key in {(net.family, net.zone) for net in self._nets}
        }
        self._zones = sorted({net.zone for net in self._nets if net.zone})

    def __len__(self) -> int:
        return len(self._nets)

    def texts(self) -> list[str]:
        """The networks as they are written, sorted, each once."""
        return [str(net) for net in self._nets]

    def contains(self, address: str, zone: int | str = 0) -> bool:
        """Whether an address is in one of them; not one that cannot be read.

        @param zone: the interface behind which it is, by number or name; 0 where that is not known.
        """
        address, _, name = address.partition("%")
        for family in _BITS:
            try:
                packed = socket.inet_pton(family, address)
                break
            except (OSError, ValueError):
                continue
        else:
            return False
        if family == socket.AF_INET6 and packed.startswith(_MAPPED):
            family, packed = socket.AF_INET, packed[12:]
        number = int.from_bytes(packed)
        if self._has(family, "", number):
            return True
        if family == socket.AF_INET or not self._zones or not (name or zone):
            return False
        names = {name, str(zone), _interface(zone)} - {"", "0"}
        return any(zoned in names and self._has(family, zoned, number) for zoned in self._zones)

    def _has(self, family: int, zone: str, number: int) -> bool:
        spans = self._spans.get((family, zone))
        return spans is not None and spans.has(number)


class _Spans:
    """Numbers, as spans that neither touch nor overlap.

    @param spans: each from its first number to the one behind its last; sorted.
    """

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []
        for first, end in spans:
            if self._ends and first <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._firsts.append(first)
                self._ends.append(end)

    def has(self, number: int) -> bool:
        index = bisect_right(self._firsts, number)
        return index > 0 and number < self._ends[index - 1]


def _interface(zone: int | str) -> str:
    """The name of an interface; "" where there is none of that number."""
    try:
        return socket.if_indextoname(zone) if zone and isinstance(zone, int) else ""
    except OSError:
        return ""
