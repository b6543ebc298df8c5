"""Values as people write and read them: bytes, seconds, rates, names.

Nothing here knows what a value is for. Text that is not valid raises L{ValueError}, quoting it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final

_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)(B?)", re.IGNORECASE)
_SPANS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_NO_USER: Final = 2**32 - 1
_LONGEST_USER: Final = 20
"""Digits."""
_AGE: Final = re.compile(r"(\d{1,6})([smhdw])")


def parse_bytes(text: str) -> int:
    """A number of bytes such as C{4096}, C{100M}, C{1.5TiB} or C{20GB}.

    As others read them: C{G} and C{GiB} are powers of 1024, as QEMU's; C{GB} is one of 1000.

    @raise ValueError: it is not, or it is less than one byte.
    """
    from decimal import Decimal  # noqa: PLC0415 (few give one)

    match = _NUMBER.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is not a number of bytes such as 4096, 100M or 20G")
    number, unit, binary, decimal = match.groups()
    exact = Decimal(number) * (1000 if decimal and not binary else 1024) ** _POWERS[unit.upper()]
    count = int(exact)
    if count != exact:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if count < 1:
        raise ValueError(f"{text!r} is less than one byte")
    if count >= 2**63:
        raise ValueError(f"{text!r} is more than a disk can have")
    return count


def parse_seconds(text: str) -> float:
    """A number of seconds, 0 or more.

    @raise ValueError: it is not.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise ValueError(f"{text!r} is not a number of seconds")
    return seconds


def parse_linger(text: str) -> float:
    """A number of seconds as for `parse_seconds`; infinite for C{forever}.

    @raise ValueError: it is neither.
    """
    if text == "forever":
        return math.inf
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise ValueError(f"{error} (or forever)") from None


def parse_age(text: str) -> float:
    """A time span such as C{30d}, C{12h} or C{90s}, in seconds.

    @raise ValueError: it is not.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an age such as 90s, 12h, 30d or 4w")
    return int(match[1]) * _SPANS[match[2]]


def parse_milliseconds(text: str) -> float:
    """A number of milliseconds, 1 or more.

    @raise ValueError: it is not.
    """
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 1 <= milliseconds < 1e9:
        raise ValueError(f"{text!r} is not a number of milliseconds, 1 or more")
    return milliseconds


def parse_rate(text: str) -> int | None:
    """Bytes per second, as for `parse_bytes`; None, no limit, for C{none}.

    @raise ValueError: it is neither.
    """
    if text == "none":
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise ValueError(f"{error} (or none, for no limit)") from None


def parse_some_seconds(text: str) -> float:
    """A number of seconds, more than 0.

    @raise ValueError: it is not.
    """
    seconds = parse_seconds(text)
    if not seconds:
        raise ValueError(f"{text!r} is not a number of seconds, more than 0")
    return seconds


def parse_count(text: str) -> int:
    """A whole number, 0 or more.

    @raise ValueError: it is not.
    """
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def parse_port(text: str) -> int:
    """A TCP port.

    @raise ValueError: it is none.
    """
    port = parse_count(text)
    if not 1 <= port <= 65535:
        raise ValueError(f"{text!r} is not a port from 1 to 65535")
    return port


def parse_address(text: str) -> str:
    """An IP address that one host has, without brackets.

    @raise ValueError: it is none.
    """
    import ipaddress  # noqa: PLC0415 (few need it)

    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address, such as 192.0.2.7") from None
    if "%" in text:
        raise ValueError(f"{text!r}: the two hosts do not have the same interfaces: leave out %")
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{text!r} is not the address of one host")
    return str(address)


def parse_network(text: str) -> str:
    """An address or a network, as it is usually written.

    @raise ValueError: it is neither.
    """
    from ..nets import parse_net  # noqa: PLC0415

    return str(parse_net(text))


def parse_user(text: str) -> int:
    """The number of a user, given by that or by name.

    @raise ValueError: there is no user of that name, or the number is too large.
    """
    if text.isascii() and text.isdecimal():
        if len(text) <= _LONGEST_USER and int(text) < _NO_USER:
            return int(text)
        raise ValueError(f"{text!r} is higher than the number of any user")
    import pwd  # noqa: PLC0415

    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        raise ValueError(f"there is no user {text!r} on this host") from None


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser that accepts only these words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def integer_field(fields: dict[str, Any], name: str) -> int | None:
    """The number C{name} of a JSON object, as an integer; None if there is none."""
    value = fields.get(name)
    return int(value) if isinstance(value, int | float) else None
