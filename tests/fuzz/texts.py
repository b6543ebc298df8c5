"""What people and other programs write in one line: URIs, endpoints, numbers, places, ids."""

from __future__ import annotations

import math

from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.task import Clock
from zope.interface import implementer

from blockmig.cli.remote_place import BadPlace, is_remote, parse_place
from blockmig.cli.values import (
    parse_age,
    parse_bytes,
    parse_count,
    parse_linger,
    parse_milliseconds,
    parse_rate,
    parse_seconds,
    parse_some_seconds,
)
from blockmig.migration.identity import BadIdentity, Identity, check_id
from blockmig.nbd import BadURI, parse_uri
from blockmig.transport.addresses import endpoint_string
from blockmig.transport.endpoints import BadEndpoint, client_endpoint, server_endpoint
from blockmig.units import describe_size, format_bytes, format_duration, printable

from .target import need, target


@implementer(IReactorPluggableNameResolver)
class _Reactor(Clock):
    """One that endpoints are made for, and nothing else."""

    nameResolver = None


def _text(data: bytes) -> str:
    """As the operating system gives arguments to a program."""
    return data.decode(errors="surrogateescape")


@target("uri", longest=300)
def uri(data: bytes) -> None:
    """A URI is refused in words, or is the same after it was written and read again."""
    text = _text(data)
    try:
        found = parse_uri(text)
    except BadURI as error:
        need(str(error), "a refusal without words")
        return
    need(bool(found.socket) != bool(found.host), "one of a socket and a host")
    need(found.socket or 0 < found.port < 65536, "a port that there is not")
    need(parse_uri(str(found)) == found, "another one once it is written")
    client_endpoint(_Reactor(), found)


@target("endpoint", longest=120)
def endpoint(data: bytes) -> None:
    """Where to listen is refused in words, or is an endpoint; nothing is opened for it."""
    text = _text(data)
    if "systemd" in text or "fd:" in text or text.startswith(("ssl", "tls", "haproxy:ssl")):
        return  # these open descriptors and files
    try:
        endpoint_string(text)
    except ValueError as error:
        need(str(error), "a refusal without words")
    try:
        server_endpoint(_Reactor(), text)
    except BadEndpoint as error:
        need(str(error), "a refusal without words")


_PARSERS = (
    parse_age,
    parse_bytes,
    parse_count,
    parse_linger,
    parse_milliseconds,
    parse_rate,
    parse_seconds,
    parse_some_seconds,
)


@target("values", longest=80, seeds="texts")
def values(data: bytes) -> None:
    """Numbers as people write them."""
    text = _text(data)
    for parse in _PARSERS:
        try:
            found = parse(text)
        except ValueError:
            continue
        need(found is None or (found >= 0 and not math.isnan(found)), f"{parse.__name__}: {found}")
        if found is not None and found < 1e15:
            format_bytes(found)
            format_duration(found)
    try:
        size = parse_bytes(text)
    except ValueError:
        pass
    else:
        need(0 < size < 1 << 63 and describe_size(size), "no size of a disk")


@target("places", longest=200, seeds="texts")
def places(data: bytes) -> None:
    """HOST:PATH, ids, and what is printed of others' texts."""
    text = _text(data)
    need(printable(text).isprintable(), "what cannot be printed")
    is_remote(text)
    try:
        place = parse_place(text)
    except BadPlace as error:
        need(str(error), "a refusal without words")
    else:
        need(not place.ssh_host.startswith("-"), "an option of ssh")
        need(place.path and "\0" not in place.path, "no path")
        need(parse_place(str(place)) == place, "another one once it is written")
    try:
        check_id(text)
        need(text.isascii() and text.isprintable() and " " not in text, "an odd id")
        Identity(text, data)
    except BadIdentity:
        pass
