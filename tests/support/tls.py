"""Certificates, good ones and others, and what connections are given to speak TLS with them."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL, crypto
from service_identity.cryptography import verify_certificate_hostname
from twisted.internet import ssl
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from zope.interface import implementer

from blockmig import ClientTLS, ServerTLS

HOST = "localhost"
_HOUR = datetime.timedelta(hours=1)
_SIGNS = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Certified:
    """A certificate with its key.

    @ivar above: the certificates between it and the authority.
    """

    certificate: x509.Certificate
    key: Any
    above: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def _make(
    name: str,
    signer: Certified | None,
    *,
    authority: bool = False,
    begins: datetime.timedelta = -_HOUR,
    ends: datetime.timedelta = _HOUR,
    ballast: int = 0,
) -> Certified:
    """A certificate for C{name}, signed by C{signer} or by itself.

    @param ballast: bytes that make it longer.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = subject if signer is None else signer.certificate.subject
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), True)
    )
    if authority:
        builder = builder.add_extension(_SIGNS, True)
    if ballast:
        identifier = x509.ObjectIdentifier("1.3.6.1.4.1.55555.1")
        builder = builder.add_extension(
            x509.UnrecognizedExtension(identifier, bytes(ballast)), False
        )
    made = builder.sign((signer.key if signer else key), hashes.SHA256())
    return Certified(made, key)


class Authority:
    """A CA, and the certificates that it signs."""

    def __init__(self, name: str = "the tests' CA") -> None:
        self.own = _make(name, None, authority=True)

    def signed(self, name: str = HOST, **options: Any) -> Certified:
        return _make(name, self.own, **options)

    def expired(self, name: str = HOST) -> Certified:
        return self.signed(name, begins=-2 * _HOUR, ends=-_HOUR)

    def with_long_chain(self, name: str = HOST, bytes_each: int = 15_000) -> Certified:
        """One whose chain is longer than 32 KiB."""
        signer, above = self.own, []
        for number in range(3):
            signer = _make(f"between {number}", signer, authority=True, ballast=bytes_each)
            above.insert(0, signer.certificate)
        made = _make(name, signer)
        return Certified(made.certificate, made.key, tuple(above))


def make_context(
    own: Certified | None, trusted: Authority | None, versions: tuple[int, int] | None = None
) -> SSL.Context:
    """A context such as `blockmig` makes, as far as tests need it."""
    context = SSL.Context(SSL.TLS_METHOD)
    lowest, highest = versions or (SSL.TLS1_2_VERSION, 0)
    context.set_min_proto_version(lowest)
    if highest:
        context.set_max_proto_version(highest)
    if own is not None:
        context.use_certificate(own.certificate)
        for certificate in own.above:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(own.key)
    if trusted is not None:
        store = context.get_cert_store()
        assert store is not None
        store.add_cert(crypto.X509.from_cryptography(trusted.own.certificate))
    return context


@implementer(IOpenSSLServerConnectionCreator, IOpenSSLClientConnectionCreator)
class Creator:
    """Makes TLS connections from a context.

    @param verify: the other end has to show a certificate.
    @param host: whose name the other end's certificate must have; "" for any.
    """

    def __init__(self, context: SSL.Context, verify: bool, host: str = "") -> None:
        self._context = context
        self._verify = verify
        self._host = host

    def _connection(self, _: Any) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        if self._verify:
            mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            connection.set_verify(mode, self._check)
        return connection

    clientConnectionForTLS = _connection
    serverConnectionForTLS = _connection

    def _check(self, _: Any, certificate: Any, error: int, depth: int, good: int) -> bool:
        if good and not depth and self._host:
            verify_certificate_hostname(certificate.to_cryptography(), self._host)
        return bool(good)


def server_tls(
    own: Certified,
    clients_of: Authority | None = None,
    *,
    required: bool = True,
    refusal: Callable[[Any], str] = lambda certificate: "",
    versions: tuple[int, int] | None = None,
) -> ServerTLS:
    """A listener's policy.

    @param clients_of: who must have signed the clients' certificates; None for no certificates.
    """
    creator = Creator(make_context(own, clients_of, versions), clients_of is not None)
    return ServerTLS(lambda: creator, required, refusal)


def client_tls(
    trusted: Authority,
    own: Certified | None = None,
    host: str = HOST,
    versions: tuple[int, int] | None = None,
) -> ClientTLS:
    """A client's policy."""
    creator = Creator(make_context(own, trusted, versions), True, host)
    return ClientTLS(lambda: creator)


@dataclass(frozen=True)
class World:
    """A CA, and policies of both ends that agree with each other, each with a certificate."""

    authority: Authority
    server: ServerTLS
    client: ClientTLS


@functools.cache
def world() -> World:
    authority = Authority()
    return World(
        authority,
        server_tls(authority.signed(), authority),
        client_tls(authority, authority.signed("the sender")),
    )


def certificate() -> tuple[ssl.PrivateCertificate, ssl.Certificate]:
    """A certificate that signs itself, for localhost: for an embedder's own TLS."""
    made = _make(HOST, None, authority=True)
    return ssl.PrivateCertificate.loadPEM(made.pem + made.key_pem), ssl.Certificate.loadPEM(
        made.pem
    )
