"""Listening on UNIX sockets that are bound already, by the service manager or by ourselves.

Owns one difference from Twisted: whoever made a socket decides who may use it, and when it is
removed. Twisted's `adoptStreamPort` changes a UNIX socket's file to mode 0666, and at the end
removes the file and shuts down the socket, which a service manager still holds: the socket would be
open to everybody at once, and useless to the next process.
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
    """Twisted's port, made to believe that its socket has no file.

    A name that begins with a zero byte says so (the abstract namespace of unix(7)). The port still
    reports the socket's real address.
    """

    # As in Twisted's adopted TCP ports: shutdown(2) would affect every descriptor of the socket.
    _shouldShutdown = False

    def __init__(self, handle: socket.socket, factory: IProtocolFactory, reactor: Any) -> None:
        name = b"\0" + os.fsencode(handle.getsockname())
        # listen(2) is called again; the first backlog is not known, so use the maximum.
        super().__init__(name, factory, backlog=socket.SOMAXCONN, reactor=reactor)
        self._preexistingSocket = handle


def adopt_unix(reactor: Any, handle: socket.socket, factory: IProtocolFactory) -> IListeningPort:
    """Accept connections on C{handle}, a listening UNIX stream socket.

    Its file, if it has one, is neither changed nor removed.

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
    """An endpoint for a UNIX socket that listens already; can be used once."""

    def __init__(self, reactor: Any, handle: socket.socket) -> None:
        self._reactor = reactor
        self._handle: socket.socket | None = handle

    def listen(self, protocolFactory: IProtocolFactory) -> defer.Deferred[IListeningPort]:
        """Accept connections; see L{adopt_unix}."""
        handle, self._handle = self._handle, None
        if handle is None:
            return defer.fail(AlreadyListened())
        return defer.execute(adopt_unix, self._reactor, handle, protocolFactory)
