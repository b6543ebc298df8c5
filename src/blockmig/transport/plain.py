"""Whether a transport's descriptor is the wire itself.

Under TLS `fileno()` still answers with the raw socket, and a wrapper forwards whatever it is asked:
going round such a transport would put plaintext on the wire, or take ciphertext off it. So only a
real socket transport of Twisted's, which is not doing TLS at this moment, counts.
"""

from __future__ import annotations

from typing import TypeGuard

from twisted.internet import tcp
from twisted.internet.interfaces import ISSLTransport


def is_plain_socket(transport: object) -> TypeGuard[tcp.Connection]:
    """Whether bytes may be moved past C{transport}, by its descriptor.

    To be asked anew each time: a connection can start TLS at any moment.
    """
    return (
        isinstance(transport, tcp.Connection)
        and not ISSLTransport.providedBy(transport)
        and not getattr(transport, "TLS", False)
    )
