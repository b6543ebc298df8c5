"""What a connection is given to speak TLS: policies, without a word of certificates' files.

Owns the two policies (`ServerTLS`, `ClientTLS`) and the error that keeps TLS from beginning. Where
certificates come from, and what they must be, is up to whoever makes a policy.

Rules (design, section 3):

* STARTTLS forgets all that was negotiated before it;
* a listener that requires TLS serves no option but STARTTLS and ABORT before it;
* whoever was told to use TLS never goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class TLSFailure(Exception):
    """TLS cannot begin, or its other end is not who it should be; the message says why."""


@dataclass(frozen=True)
class ServerTLS:
    """How the connections of a listener speak TLS.

    @ivar creator: called for each STARTTLS; returns an C{IOpenSSLServerConnectionCreator}.
        Raises L{TLSFailure} where the certificates cannot be used now.
    @ivar required: serve nothing before STARTTLS. Where it is not, who goes without TLS is served
        too, and C{refusal} is not asked.
    @ivar refusal: called with the client's verified certificate (an C{OpenSSL.crypto.X509}, or None
        where it sent none) once TLS stands; returns why this client is refused, "" if it is not.
    """

    creator: Callable[[], Any]
    required: bool = True
    refusal: Callable[[Any], str] = lambda certificate: ""


@dataclass(frozen=True)
class ClientTLS:
    """How a connection to a server speaks TLS; it never goes on without.

    @ivar creator: called for each connection; returns an C{IOpenSSLClientConnectionCreator}, which
        verifies the server's certificate and name as it was told. Raises L{TLSFailure} where the
        certificates cannot be used now.
    """

    creator: Callable[[], Any]
