"""Endpoint strings and NBD URIs to Twisted endpoints, and ports back to NBD URIs.

Owns the rules of listening (design, section 2): an address that is in use is fatal at once, since
clients would connect to whoever uses it, unless its user is known to be about to end; a failure
that may pass (the address is not on this host yet, no descriptors or buffers) is retried once a
second, with one log line a minute.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

from twisted.internet import defer, endpoints
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..nbd import NBDURI
from .addresses import endpoint_string, host_addresses
from .plain import is_plain_socket

_log = Logger()

_TRANSIENT = frozenset(
    {
        errno.EADDRNOTAVAIL,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENETDOWN,
        errno.ENETUNREACH,
    }
)
_QUEUING: Final = ("tcp:", "tcp6:", "unix:")
_BACKLOG: Final = 1024
"""Twisted's default is 50."""
_SEND_BUFFER: Final = 4 << 20
_RETRY_INTERVAL: Final = 1.0
_BUSY_INTERVAL: Final = 0.01
_REPORT_INTERVAL: Final = 60.0
# Milliseconds. It also runs while a live peer takes nothing, so it cannot be short.
_USER_TIMEOUT: Final = 300_000


class BadEndpoint(ValueError):
    """The text does not say where to listen; the message says why."""


class CannotListen(Exception):
    """Listening failed, and will not be retried; the message says where and why."""


def server_endpoint(reactor: Any, text: str) -> IStreamServerEndpoint:
    """The endpoint that C{text} describes: a Twisted server endpoint string, or one of the other
    forms that L{endpoint_string<blockmig.transport.addresses.endpoint_string>} takes.

    A UNIX socket gets mode 600 unless C{text} has a mode: Twisted's default would let everybody on
    this machine use it. So many connections may wait to be accepted, unless C{text} says how many,
    that a burst of strangers does not have the kernel drop those of others, which costs them a
    second each.

    @raise BadEndpoint: it describes none.
    """
    try:
        text, given = endpoint_string(text), text
    except ValueError as error:
        raise BadEndpoint(f"{text!r}: {error}") from None
    if text.startswith("unix:") and ":mode=" not in text:
        text += ":mode=600"
    queue = text
    if text.startswith(_QUEUING) and ":backlog=" not in text:
        queue += f":backlog={_BACKLOG}"
    try:
        endpoint: IStreamServerEndpoint = endpoints.serverFromString(reactor, queue)
    except Exception:  # each parser raises exceptions of its own, in words for programmers
        raise BadEndpoint(
            f"{given!r} says nowhere to listen: 192.0.2.7:10809, [::1]:10809, 10809, "
            "tcp:10809:interface=192.0.2.7 and unix:/run/blockmig.sock would"
        ) from None
    if isinstance(endpoint, endpoints.StandardIOEndpoint):
        raise BadEndpoint(f"{given!r} accepts no connections")
    return endpoint


def client_endpoint(reactor: Any, uri: NBDURI) -> Any:
    """The client endpoint that reaches the server of C{uri}."""
    if uri.socket:
        return endpoints.UNIXClientEndpoint(reactor, uri.socket)
    # An address needs no lookup, and no second attempt at another one.
    if isIPAddress(uri.host):
        return endpoints.TCP4ClientEndpoint(reactor, uri.host, uri.port)
    if isIPv6Address(uri.host):
        return endpoints.TCP6ClientEndpoint(reactor, uri.host, uri.port)
    return endpoints.HostnameEndpoint(reactor, uri.host, uri.port)


async def listen(
    reactor: Any,
    endpoint: IStreamServerEndpoint,
    factory: IProtocolFactory,
    text: str,
    give_up_after: float | None = None,
    *,
    busy_for: float = 0.0,
) -> IListeningPort:
    """Listen on C{endpoint}, and retry failures that may pass.

    @param text: the endpoint as the user wrote it, for messages.
    @param give_up_after: seconds; None to retry for ever.
    @param busy_for: seconds for which the address may be in use by a process that is about to end.
    @raise CannotListen: the failure is permanent.
    @raise TimeoutError: C{give_up_after} is over.
    """
    began = reactor.seconds()
    reported = began - _REPORT_INTERVAL
    while True:
        try:
            port: IListeningPort = await _shielded(endpoint.listen(factory))
        except defer.CancelledError:  # by us, most likely; it is no reason to refuse anything
            raise
        except CannotListenError as error:
            reason = error.socketError
        except OSError as error:
            reason = error
        except Exception as error:  # each endpoint fails in its own ways
            raise CannotListen(f"cannot listen on {text}: {error}") from None
        else:
            if not IListeningPort.providedBy(port):
                raise CannotListen(f"{text} accepts no connections")
            accept_few(port)
            return port
        number = getattr(reason, "errno", None)
        why, busy = _why_not(reason)
        if busy and reactor.seconds() - began < busy_for:
            await deferLater(reactor, _BUSY_INTERVAL)
            continue
        if number not in _TRANSIENT:
            raise CannotListen(f"cannot listen on {text}: {why}")
        now = reactor.seconds()
        if give_up_after is not None and now - began >= give_up_after:
            raise TimeoutError(f"gave up listening on {text}: {why}")
        if now - reported >= _REPORT_INTERVAL:
            reported = now
            _log.warn(
                "cannot listen on {endpoint} yet: {why}; trying again",
                event="cannot-listen",
                endpoint=text,
                why=why,
            )
        await deferLater(reactor, _RETRY_INTERVAL)


def _why_not(reason: Any) -> tuple[str, bool]:
    """Why listening failed, and whether somebody else listens there."""
    why = getattr(reason, "strerror", None) or str(reason)
    if why == "Cannot acquire lock":  # Twisted's words for a UNIX socket that has an owner
        return "the socket is in use by another process", True
    if getattr(reason, "errno", None) == errno.EADDRINUSE:
        return f"{why}: another program listens there", True
    return why, False


def _shielded(listening: defer.Deferred[IListeningPort]) -> defer.Deferred[IListeningPort]:
    """The same; where nobody waits any more, a port that opens later is closed again."""
    waiting: defer.Deferred[IListeningPort] = defer.Deferred()

    def opened(result: Any) -> None:
        if not waiting.called:
            waiting.callback(result)  # of a Failure as well
        elif not isinstance(result, Failure):
            defer.maybeDeferred(result.stopListening).addErrback(lambda _: None)

    listening.addBoth(opened)
    return waiting


def listening_uris(
    port: IListeningPort, export: str, *, tls: bool = False
) -> tuple[list[str], bool]:
    """The URIs that reach C{port}, and whether only this machine can use them.

    Where it listens on every address of this machine, there is one for each that others can use.

    @param tls: clients have to use TLS.
    """
    address = port.getHost()
    if isinstance(address, UNIXAddress):
        path = os.fsdecode(address.name or b"")  # any bytes
        return [str(NBDURI(export=export, socket=path, tls=tls))], True
    if isinstance(address, IPv4Address | IPv6Address):
        host = address.host
        local = host.startswith("127.") or host == "::1"
        hosts = [host]
        if host == "0.0.0.0":
            hosts = host_addresses(socket.AF_INET) or ["127.0.0.1"]
        elif host == "::":
            hosts = host_addresses(_families(port)) or ["::1"]
        port_number = address.port
        found = [NBDURI(export=export, host=one, port=port_number, tls=tls) for one in hosts]
        return list(map(str, found)), local
    return [str(address)], False


def _families(port: Any) -> int:
    """Whom a port that listens on C{::} hears: IPv4 as well, unless the system was told not to."""
    handle = getattr(port, "socket", None)
    if handle is not None and handle.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return socket.AF_INET6
    return socket.AF_UNSPEC


def describe_address(address: object) -> str:
    """An address for log lines: C{192.0.2.7:4711}, C{[::1]:4711}, or its string form."""
    if isinstance(address, IPv4Address):
        return f"{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"[{address.host}]:{address.port}"
    if isinstance(address, UNIXAddress):
        return "a UNIX socket"
    return str(address)


def tune(transport: Any) -> None:
    """Set the options of a connection's socket, before anything is sent.

    On TCP messages are sent without delay, and the kernel notices within minutes that the peer's
    machine is gone. A UNIX socket gets a larger send buffer than its 208 KiB, which saves wake-ups
    (a quarter of the time of a migration on one machine); TCP's grows by itself, and is worse when
    set. Does nothing on a transport that is no plain socket.

    """
    if not is_plain_socket(transport):
        return
    accept_few(getattr(transport, "server", None))
    handle = transport.getHandle()
    if handle.family == socket.AF_UNIX:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        return
    transport.setTcpKeepAlive(True)
    transport.setTcpNoDelay(True)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 8)):
        if hasattr(socket, name):
            handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT)


def accept_few(port: Any) -> None:
    """Have a port of Twisted's accept only some 20 connections in a turn of the reactor.

    By itself it accepts 100 and more; and others can be closed for them only in the next turn.
    """
    if hasattr(port, "numberAccepts"):
        port.numberAccepts = 1  # it adds 20 whenever it has accepted as many


async def stop_listening(port: IListeningPort) -> None:
    """Stop listening, and return when that is done.

    Errors (such as that somebody removed the socket's file) are only logged.
    """
    try:
        await defer.maybeDeferred(port.stopListening)
    except Exception as error:
        _log.warn("while closing {port}: {error}", port=str(port), error=str(error))
