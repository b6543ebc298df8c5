"""Whether a transport may be bypassed by its descriptor, and what the kernel knows of the socket.

Under TLS `fileno()` still returns the raw socket, and wrappers forward attributes: bypassing such a
transport would put plaintext on the wire, or take ciphertext off it. So only Twisted's own socket
transports count, and only while they do not use TLS.

What the kernel knows of the socket is asked of the one beneath where TLS is ours (`secure`): that
tells how far ciphertext has come, that something was received, and that the other end is gone.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from abc import ABC, abstractmethod
from typing import Any, Final, TypeGuard

from twisted.internet import tcp
from twisted.internet.interfaces import ISSLTransport

_CREDENTIALS: Final = struct.Struct("iII")
"""C{struct ucred}: the process, its user, its group."""

_NOBODY: Final = 0xFFFFFFFF
"""What the kernel says where there are none."""


class LayeredTransport(ABC):
    """A transport above another one, which must not be bypassed.

    @ivar beneath: the other one.
    """

    beneath: Any

    @abstractmethod
    def loseWriteConnection(self) -> None:
        """Send what is due, then say that nothing more is sent, and go on receiving."""


def unacknowledged(transport: object) -> int:
    """How many bytes (an end-of-stream counts as one) the peer's kernel has not acknowledged.

    SIOCOUTQ of tcp(7) and unix(7); 0 where that is unknown.
    """
    transport = _beneath(transport)
    if not is_plain_socket(transport):
        return 0
    try:
        answer = fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    (count,) = struct.unpack("i", answer)
    return int(count)


def has_hung_up(transport: object) -> bool:
    """Whether the peer has closed the connection, even if there is still something to be read.

    On TCP that cannot be told from a peer that only half-closed. False where it is unknown.
    """
    transport = _beneath(transport)
    if not is_plain_socket(transport):
        return False
    events = select.POLLHUP | select.POLLERR
    if transport.getHandle().family != socket.AF_UNIX:
        events |= getattr(select, "POLLRDHUP", 0)
    poll = select.poll()
    poll.register(transport.fileno(), events)
    return any(found & events for _, found in poll.poll(0))


def peer_user(transport: object) -> int | None:
    """Who has connected to a UNIX socket: the number of the user; None where it is unknown.

    SO_PEERCRED of unix(7), which the kernel keeps as of the connect(2).
    """
    if not is_plain_socket(transport):
        return None
    handle = transport.getHandle()
    if handle.family != socket.AF_UNIX:
        return None
    try:
        answer = handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(answer)
    except (OSError, struct.error):
        return None
    return None if user == _NOBODY else int(user)


def is_on_this_machine(transport: object) -> bool:
    """Whether the peer gets from this machine's memory what is sent there. False also where that is
    unknown, and where somebody is between, as TLS is."""
    if not is_plain_socket(transport):
        return False
    handle = transport.getHandle()
    if handle.family == socket.AF_UNIX:
        return True
    try:
        ours, peers = handle.getsockname()[0], handle.getpeername()[0]
    except OSError:
        return False
    # Who connects to an address of his own connects from it; but for all of 127.0.0.0/8.
    return bool(ours == peers or peers.startswith("127."))


def is_readable(transport: object) -> bool:
    """Whether the peer has sent something that was not read yet. False where it is unknown."""
    transport = _beneath(transport)
    if not is_plain_socket(transport):
        return False
    poll = select.poll()
    poll.register(transport.fileno(), select.POLLIN)
    return any(found & select.POLLIN for _, found in poll.poll(0))


def _beneath(transport: object) -> object:
    return transport.beneath if isinstance(transport, LayeredTransport) else transport


def is_plain_socket(transport: object) -> TypeGuard[tcp.Connection]:
    """Whether bytes may be moved past C{transport}, through its descriptor.

    To be asked each time anew: a connection can start TLS at any moment.
    """
    return (
        isinstance(transport, tcp.Connection)
        and not ISSLTransport.providedBy(transport)
        and not getattr(transport, "TLS", False)
    )
