"""Where a disk is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IStreamClientEndpoint

if TYPE_CHECKING:
    from ..transport import ClientTLS


@dataclass(frozen=True, slots=True)
class Destination:
    """An export of an NBD server.

    @ivar endpoint: where that server is.
    @ivar export: the name of its export; "" is the default export.
    @ivar uri: both as a URI, for records and messages; "" if none is known.
    @ivar tls: how every connection there speaks TLS, and never without; None for not at all.
    """

    endpoint: IStreamClientEndpoint
    export: str = ""
    uri: str = ""
    tls: ClientTLS | None = None
