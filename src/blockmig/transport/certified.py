"""The policies for TLS that certificates in a directory make: contexts, and who is let in.

Owns what TLS is like here, and when files are read. Rules (design, section 3):

* TLS 1.2 is the floor, 1.3 is preferred; a shared secret of its own for each connection, and
  authenticated encryption; no renegotiation, no compression, and no session is resumed: a resumed
  one would not be verified again;
* whoever is verified proves a chain to a CA of ours, and a server the name by which we know it. On
  a UNIX socket there is none, so the chain is enough unless a name is given;
* what a CA has taken back is not good: neither the other end's own certificate, of whose signer
  there has to be a list where there are any, nor one by which that is signed;
* a name on a list of names is that of a certificate, letter by letter: no patterns;
* files are read for each connection, if one of them has changed; or when it is asked for, and then
  what cannot be used changes nothing. What is not valid (any more, or yet) is not used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from zope.interface import implementer

from ..nbd import NBDURI
from .certificates import (
    Certificates,
    Now,
    Role,
    clean,
    fill_store,
    hosts_of,
    load,
    name_of,
    names_of,
    shown,
    stamp,
    told_of,
    wall_time,
)
from .tls import ClientTLS, ServerTLS, TLSFailure

_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; all of TLS 1.3 are as good."""

_SHOWN_NAMES: Final = 8

_PARTIAL_WRITES: Final = 1
"""SSL_MODE_ENABLE_PARTIAL_WRITE of OpenSSL, which pyOpenSSL sets and does not name."""

# X.509 errors of OpenSSL (x509_vfy.h), and what they mean of a certificate.
_WORDS: Final = {
    9: "is not valid yet",
    10: "has expired",
    12: "cannot be checked: the CA's list of revoked certificates has expired",
    3: "cannot be checked: there is no list of revoked certificates of its CA",
    23: "was revoked by its CA",
    24: "is signed by what is no CA",
    26: "is not for this use (its extended key usage does not say so)",
}


_NO_LIST: Final = 3
_UNKNOWN_CA: Final = (18, 19, 20, 21)


class PeerRefused(SSL.Error):
    """The other end's certificate is not good; the message, the only argument, says why."""

    def __str__(self) -> str:
        return str(self.args[0])


class ServerCertificates:
    """Makes a listener's L{ServerTLS}, and reads its files anew.

    @param verify_peer: clients have to show a certificate of our CA.
    @param for_each: look for each connection whether the files have changed; otherwise only when
        L{reload} is called.
    @raise TLSFailure: the certificates cannot be used.
    """

    def __init__(
        self,
        directory: str,
        *,
        verify_peer: bool = False,
        for_each: bool = False,
        now: Now = wall_time,
    ) -> None:
        self._directory = directory
        self._verify_peer = verify_peer
        self._for_each = for_each
        self._now = now
        self._stamp: Any = None
        self.reload()

    def reload(self) -> None:
        """Read the files anew.

        @raise TLSFailure: they cannot be used; what was read before stays in use.
        """
        seen = stamp(self._directory, Role.SERVER)
        certificates = load(
            self._directory, Role.SERVER, self._now(), authorities=self._verify_peer
        )
        self._creator = _ServerCreator(_context(certificates), self._verify_peer)
        self._certificates, self._stamp = certificates, seen

    def creator(self) -> Any:
        """What makes the TLS of the next connection.

        @raise TLSFailure: the certificates cannot be used now.
        """
        if self._for_each and self._stamp != stamp(self._directory, Role.SERVER):
            self.reload()
        self._certificates.check_dates(Role.SERVER, self._now())
        return self._creator

    def policy(self, *, required: bool = True, allowed: Collection[str] = ()) -> ServerTLS:
        """How a listener's connections speak TLS.

        @param allowed: names of clients; where there are none, each that the CA has signed.
        """
        assert self._verify_peer or not allowed
        return ServerTLS(self.creator, required, allow_names(allowed) if allowed else _allow_all)


def held_server_tls(
    certificates: Certificates,
    *,
    verify_peer: bool,
    required: bool = True,
    allowed: Collection[str] = (),
) -> ServerTLS:
    """How a listener's connections speak TLS, with certificates that are in no file.

    @raise TLSFailure: they cannot be used.
    """
    assert verify_peer or not allowed
    creator = _ServerCreator(_context(certificates), verify_peer)
    return ServerTLS(lambda: creator, required, allow_names(allowed) if allowed else _allow_all)


def held_client_tls(certificates: Certificates, host: str) -> ClientTLS:
    """How connections to a server speak TLS, with certificates that are in no file.

    @param host: the name or address that the server's certificate must have.
    @raise TLSFailure: they cannot be used.
    """
    creator = _ClientCreator(_context(certificates), host, verify_peer=True)
    return ClientTLS(lambda: creator)


def _allow_all(certificate: Any) -> str:
    return ""


def allow_names(allowed: Collection[str]) -> Callable[[Any], str]:
    """A L{ServerTLS.refusal} that lets in only clients whose certificate has one of these names."""
    names = frozenset(allowed)

    def refusal(certificate: Any) -> str:
        if certificate is None:
            return "it shows no certificate"
        try:
            own = names_of(certificate.to_cryptography())
        except Exception:  # OpenSSL takes what cryptography does not
            return "its certificate is malformed"
        if names.isdisjoint(own):
            return f"its certificate is for {_list(own)}, which is not on the list of names"
        return ""

    return refusal


def peer_name(certificate: crypto.X509 | None) -> str:
    """Whom a verified certificate names, for the log and for people; "" where there is none."""
    if certificate is None:
        return ""
    try:
        own = certificate.to_cryptography()
        return clean(names_of(own)[0]) if names_of(own) else name_of(own.subject)
    except Exception:  # OpenSSL takes what cryptography does not
        return "somebody whose certificate is malformed"


def client_tls(
    directory: str,
    host: str,
    *,
    verify_peer: bool = True,
    now: Now = wall_time,
) -> ClientTLS:
    """How connections to a server speak TLS.

    @param directory: that of our certificates; "" to show none, and to trust whom this system does.
    @param host: the name or address that the server's certificate must have; "" for any.
    @param verify_peer: the server has to show a certificate that a CA has signed.
    """
    host = host.partition("%")[0]  # the zone of an address is nobody else's business

    def creator() -> Any:
        if directory:
            found = load(directory, Role.CLIENT, now(), authorities=verify_peer)
            context = _context(found)
        else:
            context = _context(Certificates())
            context.set_default_verify_paths()
        return _ClientCreator(context, host, verify_peer)

    return ClientTLS(creator)


def tls_of(uri: NBDURI) -> ClientTLS | None:
    """How connections to C{uri} speak TLS, as it says; None where they do not."""
    if not uri.tls:
        return None
    return client_tls(
        uri.certificates,
        uri.tls_hostname or uri.host,
        verify_peer=uri.verify_peer is not False,
    )


def _context(certificates: Certificates) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    if hasattr(context, "clear_mode"):  # older versions of pyOpenSSL do not have it
        # Many records at a time, which takes a third less. The memory below takes all of them.
        context.clear_mode(_PARTIAL_WRITES)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(
        SSL.OP_NO_COMPRESSION
        | SSL.OP_NO_TICKET
        | SSL.OP_CIPHER_SERVER_PREFERENCE
        | SSL.OP_NO_RENEGOTIATION
    )
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"blockmig")  # without one an offered session is an error
    context.set_cipher_list(_CIPHERS)
    if certificates.chain:
        own, *above = certificates.chain
        try:
            context.use_certificate(own)
            for one in above:
                context.add_extra_chain_cert(one)
            context.use_privatekey(certificates.key)
            context.check_privatekey()
        except Exception as error:
            what = "is not fit for TLS (is its key too short, or of a kind that TLS has not?)"
            raise TLSFailure(
                f"the certificate in {certificates.directory} {what}: {error}"
            ) from None
    store = context.get_cert_store()
    assert store is not None
    with told_of(certificates.directory):
        fill_store(store, certificates.authorities, certificates.revoked, whole_chain=True)
    return context


def _set_verify(context: SSL.Context, mode: int, verifier: Any) -> None:
    try:
        context.set_verify(mode, verifier)
    except MemoryError:  # cffi makes the code by which OpenSSL calls back
        raise TLSFailure(
            "TLS needs memory that is both written and executed, and this process may have none: "
            "under systemd, give its unit MemoryDenyWriteExecute=no"
        ) from None


# The callback is the context's, not the connection's: only then pyOpenSSL raises what it raises.


@implementer(IOpenSSLServerConnectionCreator)
class _ServerCreator:
    def __init__(self, context: SSL.Context, verify_peer: bool) -> None:
        self._context = context
        if verify_peer:
            mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            _set_verify(context, mode, _verifier("the client's certificate", lambda one: None))

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return SSL.Connection(self._context, None)


@implementer(IOpenSSLClientConnectionCreator)
class _ClientCreator:
    def __init__(self, context: SSL.Context, host: str, verify_peer: bool) -> None:
        self._context = context
        self._host = host
        if verify_peer:
            verifier = _verifier("the server's certificate", self._check_name)
            _set_verify(context, SSL.VERIFY_PEER, verifier)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        if self._host and not _is_address(self._host):
            # A host that has no such form has no certificate either, which is found out later.
            with contextlib.suppress(UnicodeError):
                connection.set_tlsext_host_name(self._host.encode("idna"))
        return connection

    def _check_name(self, one: x509.Certificate) -> None:
        if not self._host:
            return
        try:
            if _is_address(self._host):
                verify_certificate_ip_address(one, self._host)
            else:
                verify_certificate_hostname(one, self._host)
        except (VerificationError, CertificateError, ValueError):
            raise PeerRefused(
                f"the server's certificate is not for {clean(self._host)}, but for "
                f"{_list(hosts_of(one)) or 'no host at all'}: use such a name in the URI, or "
                "tls-hostname"
            ) from None


def _is_address(host: str) -> bool:
    return isIPAddress(host) or isIPv6Address(host)


def _verifier(
    whose: str, check: Callable[[x509.Certificate], None]
) -> Callable[[SSL.Connection, crypto.X509, int, int, int], bool]:
    """What OpenSSL calls for each certificate of a chain, from the CA's to the other end's own."""

    def verify(_: SSL.Connection, one: crypto.X509, error: int, depth: int, good: int) -> bool:
        try:
            if not good and not (error == _NO_LIST and depth):
                raise PeerRefused(_why_not(whose, one.to_cryptography(), error, depth))
            if depth == 0:
                check(one.to_cryptography())
        except PeerRefused:
            raise
        except Exception:  # a stranger may show what OpenSSL takes and cryptography does not
            raise PeerRefused(f"{whose} is malformed") from None
        return True

    return verify


def _why_not(whose: str, certificate: x509.Certificate, error: int, depth: int) -> str:
    """What OpenSSL has found wrong with a certificate of a chain."""
    if error in _UNKNOWN_CA:
        issuer = name_of(certificate.issuer)
        return f"{whose} is not signed by a CA in our ca-cert.pem, but by {issuer}"
    words = _WORDS.get(error, f"cannot be verified (X.509 error {error})")
    if depth:
        return f"the certificate {shown(certificate)}, by which {whose} is signed, {words}"
    return f"{whose} ({shown(certificate)}) {words}"


def _list(names: Iterable[str]) -> str:
    """Some names, for a message."""
    found = list(names)
    more = f" and {len(found) - _SHOWN_NAMES} more" if len(found) > _SHOWN_NAMES else ""
    return ", ".join(map(clean, found[:_SHOWN_NAMES])) + more
