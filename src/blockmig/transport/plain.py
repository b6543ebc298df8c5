"""Whether a transport's descriptor is the wire itself, and what the kernel knows of it.

Under TLS `fileno()` still answers with the raw socket, and a wrapper forwards whatever it is asked:
going round such a transport would put plaintext on the wire, or take ciphertext off it. So only a
real socket transport of Twisted's, which is not doing TLS at this moment, counts.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from typing import TypeGuard

from twisted.internet import tcp
from twisted.internet.interfaces import ISSLTransport


def unacknowledged(transport: object) -> int:
    """How many bytes (and marks of their end) given to the kernel the peer's has not confirmed.

    SIOCOUTQ of tcp(7) and unix(7); 0 where it cannot be known.
    """
    if not is_plain_socket(transport):
        return 0
    try:
        answer = fcntl.ioctl(transport.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    (count,) = struct.unpack("i", answer)
    return int(count)


def has_hung_up(transport: object) -> bool:
    """Whether the peer has closed the connection, behind what is still to be read from it.

    TCP does not tell that from a peer that only sends no more. No where it cannot be known.
    """
    if not is_plain_socket(transport):
        return False
    events = select.POLLHUP | select.POLLERR
    if transport.getHandle().family != socket.AF_UNIX:
        events |= getattr(select, "POLLRDHUP", 0)
    poll = select.poll()
    poll.register(transport.fileno(), events)
    return any(found & events for _, found in poll.poll(0))


def is_plain_socket(transport: object) -> TypeGuard[tcp.Connection]:
    """Whether bytes may be moved past C{transport}, by its descriptor.

    To be asked anew each time: a connection can start TLS at any moment.
    """
    return (
        isinstance(transport, tcp.Connection)
        and not ISSLTransport.providedBy(transport)
        and not getattr(transport, "TLS", False)
    )
