"""The certificates in a directory: found by the names that other programs use, read, and checked.

Owns what they must be before TLS is begun with them, so that a mistake is said in words here rather
than by the other end, in a code. The files have the names of QEMU, nbdkit and libnbd: `ca-cert.pem`
(who signs the other end's certificate), `server-cert.pem` with `server-key.pem` or
`client-cert.pem` with `client-key.pem`, and, where there is one, `ca-crl.pem` (what those who sign
have taken back).

Rules (design, section 3):

* a key that others can read is not used. As for PostgreSQL, that is any access by others, and by
  its group unless root owns the file: so keys of the group ssl-cert, and systemd's credentials, are
  taken;
* what is read was bounded, and is a regular file: a FIFO does not block, a device does not flood;
* a set is whole: the certificate is that of the key, is valid now, may be used for this role, and
  is signed by the CA in the directory, as the other end will demand.

Needs the cryptography library and pyOpenSSL: nothing imports this module before TLS is wanted.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from .tls import TLSFailure

CA: Final = "ca-cert.pem"
CRL: Final = "ca-crl.pem"
_LARGEST: Final = 1 << 20
"""Bytes of a file; a bundle of all public CAs has a quarter of that."""
_MOST: Final = 1000
"""Certificates in a file."""
_MAKE: Final = "`blockmig certificates` makes certificates"
_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [^\n]*\n?", re.DOTALL)
_USAGES: Final = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
}
_DATE: Final = "%Y-%m-%d %H:%M:%S UTC"

Stamp = tuple[tuple[int, ...] | None, ...]
Now = Callable[[], datetime]


class Role(StrEnum):
    """Which of the certificates in a directory is meant."""

    SERVER = "server"
    CLIENT = "client"

    @property
    def certificate(self) -> str:
        return f"{self}-cert.pem"

    @property
    def key(self) -> str:
        return f"{self}-key.pem"


def wall_time() -> datetime:
    """The time by which certificates expire."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Certificates:
    """What one end has, checked.

    @ivar directory: where it was; "" for nowhere.
    @ivar chain: its own certificate, and those between that and the CA; none for a client that
        shows none.
    @ivar key: that of the first of them.
    @ivar authorities: who may sign the other end's.
    @ivar revoked: lists of what those have taken back.
    """

    directory: str = ""
    chain: tuple[x509.Certificate, ...] = ()
    key: Any = None
    authorities: tuple[x509.Certificate, ...] = ()
    revoked: tuple[x509.CertificateRevocationList, ...] = ()

    def check_dates(self, role: Role, now: datetime) -> None:
        """Check that what is shown is valid now.

        @raise TLSFailure: it is not.
        """
        if self.chain:
            path = os.path.join(self.directory, role.certificate)
            _check_dates(path, self.chain[0], now)


def load(directory: str, role: Role, now: datetime, *, authorities: bool) -> Certificates:
    """Read and check the certificates for C{role}. I{Reads up to five small files.}

    @param authorities: the other end's certificate will be verified, so there has to be a CA.
    @raise TLSFailure: something is wrong with them.
    """
    with told_of(directory):
        return _load(directory, role, now, authorities)


@contextlib.contextmanager
def told_of(directory: str) -> Iterator[None]:
    """Have whatever a parser raises of what is in C{directory} be a L{TLSFailure}: a file may be
    damaged, or have a key of a kind that is not known here."""
    try:
        yield
    except TLSFailure:
        raise
    except Exception as error:
        raise TLSFailure(
            f"{directory}: a certificate there is malformed, or of a kind that cannot be used: "
            f"{clean(error)}"
        ) from None


def _load(directory: str, role: Role, now: datetime, authorities: bool) -> Certificates:
    if not os.path.isdir(directory):
        what = "is not a directory" if os.path.lexists(directory) else "there is no such directory"
        raise TLSFailure(f"{directory}: {what}; {_MAKE}")
    certificate, key, ca, crl = _paths(directory, role)
    signers: tuple[x509.Certificate, ...] = ()
    if authorities or os.path.lexists(ca):
        signers = _authorities(ca, now)
    revoked = _revoked(crl) if os.path.lexists(crl) else ()
    if role == Role.CLIENT and not os.path.lexists(certificate) and not os.path.lexists(key):
        return Certificates(directory, authorities=signers, revoked=revoked)
    found = Certificates(directory, _certificates(certificate), _key(key), signers, revoked)
    _check_set(found, certificate, key, role, now)
    return found


def parse(text: bytes, where: str, role: Role, now: datetime) -> Certificates:
    """Take and check the certificates for C{role} from one text in PEM form, which never was in a
    file: the own certificate, those between that and the CA, the CA's, and the own key somewhere.

    @param where: the text is from, for messages.
    @raise TLSFailure: something is wrong with them; no message has a part of the text.
    """
    found = _parsed(where, text)
    key = _KEY.search(text)
    if len(found) < 2 or key is None:
        raise TLSFailure(f"{where}: has not a certificate, its key, and the CA's certificate")
    *chain, authority = found
    if not _may_sign(where, authority):
        raise TLSFailure(f"{where}: the last certificate is not that of a CA")
    made = Certificates(where, tuple(chain), _parsed_key(where, key[0]), (authority,))
    _check_set(made, where, where, role, now)
    return made


def _check_set(found: Certificates, certificate: str, key: str, role: Role, now: datetime) -> None:
    """Check that all of that belongs together, and may be used.

    @param certificate: where the certificate is from, and the key, for messages.
    """
    own = found.chain[0]
    if _public(found.key.public_key()) != _public(own.public_key()):
        raise TLSFailure(f"{key}: does not belong to the certificate in {role.certificate}")
    _check_dates(certificate, own, now)
    _check_usage(certificate, own, role)
    if found.authorities:
        _check_signed(certificate, found, now)


def stamp(directory: str, role: Role) -> Stamp:
    """What differs once a file of C{role} was replaced or changed."""
    return tuple(map(_stamp, _paths(directory, role)))


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _paths(directory: str, role: Role) -> list[str]:
    return [os.path.join(directory, name) for name in (role.certificate, role.key, CA, CRL)]


def store_of(
    authorities: tuple[x509.Certificate, ...], revoked: tuple[x509.CertificateRevocationList, ...]
) -> crypto.X509Store:
    """What the certificates of others are verified against."""
    store = crypto.X509Store()
    fill_store(store, authorities, revoked)
    return store


def fill_store(
    store: crypto.X509Store,
    authorities: tuple[x509.Certificate, ...],
    revoked: tuple[x509.CertificateRevocationList, ...],
    *,
    whole_chain: bool = False,
) -> None:
    """Have C{store} trust whom C{authorities} are, as GnuTLS does: whether or not they sign
    themselves.

    @param whole_chain: those that sign may have been revoked as well; whoever verifies has to make
        an exception for those of whose signer there is no list.
    """
    for one in authorities:
        store.add_cert(crypto.X509.from_cryptography(one))
    flags = crypto.X509StoreFlags.PARTIAL_CHAIN
    if revoked:
        flags |= crypto.X509StoreFlags.CRL_CHECK
        if whole_chain:
            flags |= crypto.X509StoreFlags.CRL_CHECK_ALL
    for each in revoked:
        store.add_crl(each)
    store.set_flags(flags)


# The files.


def _read(path: str, *, secret: bool = False) -> bytes:
    """The content of a file.

    @param secret: nobody else may have access to it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise TLSFailure(f"{path}: there is no such file; {_MAKE}") from None
    except PermissionError:
        raise TLSFailure(f"{path}: this user cannot read it (chown, chmod)") from None
    except OSError as error:
        raise TLSFailure(f"{path}: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TLSFailure(f"{path}: is not a file")
        if secret:
            _check_private(path, status)
        try:
            text = file.read(_LARGEST + 1)
        except OSError as error:
            raise TLSFailure(f"{path}: {error.strerror}") from None
    if len(text) > _LARGEST:
        raise TLSFailure(f"{path}: has more than {_LARGEST} bytes")
    return text


def _check_private(path: str, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    allowed = 0o740 if status.st_uid == 0 else 0o700
    if mode & ~allowed & 0o077:
        raise TLSFailure(
            f"{path}: others have access to the key (mode {mode:04o}): chmod 600 {path}"
        )


def _certificates(path: str) -> tuple[x509.Certificate, ...]:
    return _parsed(path, _read(path))


def _parsed(path: str, text: bytes) -> tuple[x509.Certificate, ...]:
    try:
        found = tuple(x509.load_pem_x509_certificates(text))
    except Exception:  # whatever a parser of others' bytes raises
        raise TLSFailure(f"{path}: is not a certificate in PEM form") from None
    if len(found) > _MOST:
        raise TLSFailure(f"{path}: has more than {_MOST} certificates")
    return found


def _revoked(path: str) -> tuple[x509.CertificateRevocationList, ...]:
    text = _read(path)
    begin, end = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
    lists = [begin + part.partition(end)[0] + end + b"\n" for part in text.split(begin)[1:]]
    try:
        found = tuple(map(x509.load_pem_x509_crl, lists))
    except Exception:
        found = ()
    if not found:
        raise TLSFailure(f"{path}: is not a list of revoked certificates in PEM form")
    return found


def _key(path: str) -> Any:
    return _parsed_key(path, _read(path, secret=True))


def _parsed_key(path: str, text: bytes) -> Any:
    try:
        return serialization.load_pem_private_key(text, None)
    except TypeError:
        raise TLSFailure(
            f"{path}: the key is encrypted, and nobody is there to be asked for its password: "
            f"openssl pkey -in {path} decrypts it"
        ) from None
    except Exception:
        raise TLSFailure(f"{path}: is not a private key in PEM form") from None


def _public(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


# What they say.


def _authorities(path: str, now: datetime) -> tuple[x509.Certificate, ...]:
    found = _certificates(path)
    for one in found:
        if not _may_sign(path, one):
            raise TLSFailure(
                f"{path}: {shown(one)} is no certificate of a CA: it may not sign others"
            )
    if len(found) == 1:  # a bundle may well have old ones
        _check_dates(path, found[0], now)
    return found


def _may_sign(path: str, one: x509.Certificate) -> bool:
    basic = _extension(path, one, x509.BasicConstraints)
    # Version 1 has no such extension, and old private CAs are of that.
    return one.version == x509.Version.v1 if basic is None else bool(basic.ca)


def _check_dates(path: str, one: x509.Certificate, now: datetime) -> None:
    begins, ends = one.not_valid_before_utc, one.not_valid_after_utc
    if now > ends:
        raise TLSFailure(f"{path}: has expired on {ends.strftime(_DATE)}: it has to be renewed")
    if now < begins:
        raise TLSFailure(
            f"{path}: is not valid before {begins.strftime(_DATE)}, and it is "
            f"{now.strftime(_DATE)} here: is a clock wrong?"
        )


def _check_usage(path: str, one: x509.Certificate, role: Role) -> None:
    usage = _extension(path, one, x509.ExtendedKeyUsage)
    if usage is None:
        return
    if not {_USAGES[role], ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usage):
        raise TLSFailure(
            f"{path}: may not be used by a {role} (its extended key usage does not say so)"
        )


def _check_signed(path: str, found: Certificates, now: datetime) -> None:
    own, *above = (crypto.X509.from_cryptography(one) for one in found.chain)
    store = store_of(found.authorities, found.revoked)
    store.set_time(now.replace(tzinfo=None))
    try:
        crypto.X509StoreContext(store, own, above).verify_certificate()
    except crypto.X509StoreContextError as error:
        ca, issuer = os.path.join(found.directory, CA), name_of(found.chain[-1].issuer)
        if (code := error.errors[0] if error.errors else 0) in _OF_LISTS:
            raise TLSFailure(f"{path}: {_OF_LISTS[code]} ({CRL})") from None
        raise TLSFailure(
            f"{path}: is not signed by the CA in {ca}, but by {issuer} ({error})"
        ) from None


_OF_LISTS: Final = {
    3: "cannot be checked: there is no list of what its CA has revoked",
    12: "cannot be checked: the list of what its CA has revoked has expired",
    23: "was revoked by its CA",
}
"""X.509 errors of OpenSSL, and what they mean."""


def _extension(path: str, one: x509.Certificate, kind: Any) -> Any:
    """The extension of that class; None if there is none."""
    try:
        return one.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except ValueError as error:
        raise TLSFailure(f"{path}: {shown(one)} is malformed: {clean(error)}") from None


# Names.

_LONGEST_NAME: Final = 256


def clean(text: object) -> str:
    """What somebody else has written, for a message: without control characters, and cut."""
    letters = str(text)[: _LONGEST_NAME + 1]
    if len(letters) > _LONGEST_NAME:
        letters = f"{letters[:_LONGEST_NAME]}…"
    return "".join(letter if letter.isprintable() else "?" for letter in letters)


def name_of(subject: x509.Name) -> str:
    """A subject or an issuer, for a message: the common name if it has one."""
    for attribute in subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME):
        return repr(clean(_text(attribute.value)))
    return repr(clean(subject.rfc4514_string())) if subject else "nobody"


def shown(one: x509.Certificate) -> str:
    return name_of(one.subject)


def names_of(one: x509.Certificate) -> list[str]:
    """The names by which an allow-list knows the owner of a certificate: the common names of its
    subject, then its DNS names."""
    common = one.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return list(
        dict.fromkeys([*(_text(each.value) for each in common), *_alternatives(one, "dns")])
    )


def hosts_of(one: x509.Certificate) -> list[str]:
    """The hosts for which a certificate is good: DNS names and addresses."""
    return [*_alternatives(one, "dns"), *_alternatives(one, "ip")]


def _alternatives(one: x509.Certificate, kind: str) -> Iterator[str]:
    try:
        found = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return
    if kind == "dns":
        yield from found.get_values_for_type(x509.DNSName)
    else:
        yield from map(str, found.get_values_for_type(x509.IPAddress))


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
