"""The certificates of one `move`: a CA that signs one for each end, and is forgotten then.

Owns what is in them. Rules:

* they are made in this process, and are never in a file: not here, and not at the other end, which
  gets its own through ssh, by standard input;
* the CA's key signs twice, and goes away with the function that made it: nobody can sign a third;
* no host's name is in them. The receiver has one that no host has, which the sender demands, and
  each may be used in its own role only;
* they are valid for longer than a move takes, and for a day before they are made: the clocks of the
  two hosts differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from ..transport.certificates import Role, parse, wall_time
from ..transport.certified import held_client_tls
from ..transport.tls import ClientTLS
from .authority import USAGES, ca_certificate, certificate_builder, key_usage, pem, pem_of_key

RECEIVER_NAME: Final = "receiver.blockmig.invalid"
SENDER_NAME: Final = "sender.blockmig.invalid"
_EARLY: Final = timedelta(days=1)
_DAYS: Final = 90


@dataclass(frozen=True)
class OneTimeCertificates:
    """Each end's certificate, its key, and the CA's certificate, as PEM.

    @ivar receiver: for the end that is connected to.
    @ivar sender: for the end that connects.
    """

    receiver: bytes = field(repr=False)
    sender: bytes = field(repr=False)


def make_certificates(now: datetime | None = None) -> OneTimeCertificates:
    """Make new ones."""
    now = wall_time() if now is None else now
    key = ec.generate_private_key(ec.SECP256R1())
    ca = ca_certificate(key, now, _DAYS, _EARLY)

    def signed(name: str, role: Role) -> bytes:
        own = ec.generate_private_key(ec.SECP256R1())
        return pem(_certificate(name, role, own, (key, ca), now)) + pem(ca) + pem_of_key(own)

    return OneTimeCertificates(
        receiver=signed(RECEIVER_NAME, Role.SERVER), sender=signed(SENDER_NAME, Role.CLIENT)
    )


def sender_tls(text: bytes) -> ClientTLS:
    """How the end that connects speaks TLS.

    @param text: L{OneTimeCertificates.sender}.
    @raise TLSFailure: it is not that.
    """
    return held_client_tls(
        parse(text, "the certificates of this move", Role.CLIENT, wall_time()), RECEIVER_NAME
    )


def _certificate(
    name: str, role: Role, own: Any, by: tuple[Any, x509.Certificate], now: datetime
) -> x509.Certificate:
    key, ca = by
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = certificate_builder(
        subject, ca.subject, own, now, now + timedelta(days=_DAYS), early=_EARLY
    )
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    return (
        builder.add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([USAGES[role]]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA256())
    )
