"""Listening on UNIX sockets that somebody else has bound: the service manager, or we ourselves.

Owns one difference to Twisted: whoever made a socket also decides who may use it, and when it goes.
Twisted, given a UNIX socket by `adoptStreamPort`, opens its file for everybody (mode 0666), and at
the end removes it and shuts the socket down, which a service manager still has: it would be exposed
at once, and of no use to the next process.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import defer, unix
from twisted.internet.error import AlreadyListened
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from zope.interface import implementer


class _AdoptedPort(unix.Port):
    """Twisted's port, which believes that its socket has no file.

    That is what a name beginning with a zero says (the abstract namespace of unix(7)). The
    addresses that the port tells are the socket's own nevertheless.
    """

    # As Twisted has it for TCP's adopted ports: shutdown(2) is not this descriptor's alone.
    _shouldShutdown = False

    def __init__(self, handle: socket.socket, factory: IProtocolFactory, reactor: Any) -> None:
        name = b"\0" + os.fsencode(handle.getsockname())
        # listen(2) is called again; what was asked for at first is not known, so the most.
        super().__init__(name, factory, backlog=socket.SOMAXCONN, reactor=reactor)
        self._preexistingSocket = handle


def adopt_unix(reactor: Any, handle: socket.socket, factory: IProtocolFactory) -> IListeningPort:
    """Accept connections on C{handle}, a UNIX stream socket that listens.

    Its file, if it has one, is neither changed nor ever removed.

    @param reactor: an C{IReactorFDSet}.
    @param handle: belongs to the port from now on, which closes it.
    """
    handle.setblocking(False)
    port: Any = _AdoptedPort(handle, factory, reactor)
    port.startListening()
    adopted: IListeningPort = port
    return adopted


@implementer(IStreamServerEndpoint)
class AdoptedUNIXEndpoint:
    """An endpoint of a UNIX socket that listens already; for one use."""

    def __init__(self, reactor: Any, handle: socket.socket) -> None:
        self._reactor = reactor
        self._handle: socket.socket | None = handle

    def listen(self, protocolFactory: IProtocolFactory) -> defer.Deferred[IListeningPort]:
        """Accept connections; see L{adopt_unix}."""
        handle, self._handle = self._handle, None
        if handle is None:
            return defer.fail(AlreadyListened())
        return defer.execute(adopt_unix, self._reactor, handle, protocolFactory)
