"""A private CA in a directory, and the certificates that it makes for hosts.

Owns what is written there: `ca-cert.pem`, `ca-key.pem`, and a folder for each host with the five
files that other programs want too (`blockmig.transport.certificates` has their names). Rules:

* nothing is ever overwritten;
* a host's folder is there with all of its files, durable, or not at all: it is made under another
  name, which begins with a dot, and renamed. What a run that was killed has left is removed by the
  next;
* the CA's key comes before its certificate: one without a certificate gets one. It leaves the
  directory in no host's folder;
* keys have mode 0600, and folders 0700, from the first instant.

Keys are of the curve P-256, which all versions of GnuTLS and OpenSSL that know TLS 1.2 accept.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import LocalFailure, Refused
from ..transport.certificates import CA, Role, wall_time
from ..units import printable

CA_KEY: Final = "ca-key.pem"
_UNFINISHED: Final = ".new-"
_LONGEST_COMMON_NAME: Final = 64
_EARLY: Final = timedelta(hours=1)
"""Clocks differ: what is made now has been valid for a while."""
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
USAGES: Final = {
    Role.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
    Role.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
}


@dataclass(frozen=True)
class Host:
    """Whom certificates are for.

    @ivar name: what it is called, in allow-lists too; its folder has this name.
    @ivar others: further names and addresses by which clients reach it.
    """

    name: str
    others: tuple[str, ...] = ()


def parse_host(text: str) -> Host:
    """A host as on the command line: C{NAME[,NAME…]}, of DNS names and addresses.

    @raise ValueError: it is none.
    """
    names = tuple(dict.fromkeys(map(_host_name, text.split(","))))
    return Host(names[0], names[1:])


def _host_name(text: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text.strip("[]")))
    name = text.lower().removesuffix(".")
    if name.replace(".", "").isdigit():
        raise ValueError(f"{text!r} is not an IP address")
    if not name or len(name) > 253 or not all(map(_LABEL.fullmatch, name.split("."))):
        raise ValueError(f"{text!r} is neither the name of a host nor an address")
    return name


class Authority:
    """The CA in a directory, which is made if it is not there. To be used within `authority_in`."""

    def __init__(self, directory: str, now: datetime, days: int) -> None:
        self._directory = directory
        self._now = now
        self.is_new = False
        key_path, path = (os.path.join(directory, name) for name in (CA_KEY, CA))
        if os.path.lexists(path) and not os.path.lexists(key_path):
            raise Refused(
                f"{path}: is there without its key, {CA_KEY}: nothing can be signed by it"
            )
        if not os.path.lexists(key_path):
            key = ec.generate_private_key(ec.SECP256R1())
            _publish(directory, CA_KEY, pem_of_key(key))
        self._key = _load_key(key_path)
        if not os.path.lexists(path):
            self.is_new = True
            _publish(directory, CA, pem(ca_certificate(self._key, now, days)))
        self.certificate = _load_certificate(path)
        if self.certificate.public_key() != self._key.public_key():
            raise Refused(f"{key_path}: is not the key of the certificate in {CA}")
        if now > self.certificate.not_valid_after_utc:
            raise Refused(f"{path}: has expired: make another CA, in another directory")

    def add(self, host: Host, days: int) -> datetime:
        """Make the folder of a host.

        @return: when its certificates expire: never after the CA's own.
        @raise Refused: it is there already.
        """
        end = min(self._now + timedelta(days=days), self.certificate.not_valid_after_utc)
        final = os.path.join(self._directory, host.name)
        folder = os.path.join(self._directory, _UNFINISHED + host.name)
        os.mkdir(folder, 0o700)
        _write(os.path.join(folder, CA), pem(self.certificate))
        for role in Role:
            key = ec.generate_private_key(ec.SECP256R1())
            _write(os.path.join(folder, role.key), pem_of_key(key))
            _write(os.path.join(folder, role.certificate), pem(self._sign(key, host, role, end)))
        _sync(folder)
        if os.path.lexists(final):  # rename(2) would replace an empty folder
            raise already_there(final)
        os.rename(folder, final)
        _sync(self._directory)
        return end

    def _sign(self, key: Any, host: Host, role: Role, end: datetime) -> x509.Certificate:
        names = x509.SubjectAlternativeName([*map(_general_name, (host.name, *host.others))])
        subject = _subject(host.name)
        builder = certificate_builder(subject, self.certificate.subject, key, self._now, end)
        return (
            # Without a subject, the alternative names are all there is, and have to be understood.
            builder.add_extension(names, critical=not subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([USAGES[role]]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
            )
            .sign(self._key, hashes.SHA256())
        )


@contextlib.contextmanager
def authority_in(directory: str, days: int) -> Iterator[Authority]:
    """The CA in C{directory}; both are made if they are not there. One process at a time has it.

    @param days: for which a new CA is valid.
    @raise Refused: it cannot be used.
    @raise LocalFailure: something cannot be read or written.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(f"{directory}: another process makes certificates there") from None
            for name in os.listdir(directory):
                if name.startswith(_UNFINISHED):
                    _remove(os.path.join(directory, name))
            yield Authority(directory, wall_time(), days)
        finally:
            os.close(descriptor)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else directory
        raise LocalFailure(f"{where}: {error.strerror}") from None


def already_there(path: str) -> Refused:
    """The error where a host has a folder."""
    return Refused(
        f"{path}: is there already, and nothing is overwritten: to renew its certificates, give it "
        "another name (mv) first"
    )


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


# Files.


def _write(path: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _publish(directory: str, name: str, content: bytes) -> None:
    """Make a file that appears with all of its content, and replaces none."""
    temporary = os.path.join(directory, _UNFINISHED + name)
    _write(temporary, content)
    os.link(temporary, os.path.join(directory, name))
    os.unlink(temporary)
    _sync(directory)


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load_key(path: str) -> Any:
    with open(path, "rb") as file:
        try:
            return serialization.load_pem_private_key(file.read(), None)
        except TypeError:
            raise Refused(f"{path}: is encrypted: decrypt it first (openssl pkey)") from None
        except Exception:
            raise Refused(f"{path}: is not a private key in PEM form") from None


def _load_certificate(path: str) -> x509.Certificate:
    with open(path, "rb") as file:
        try:
            found = x509.load_pem_x509_certificate(file.read())
            basic = found.extensions.get_extension_for_class(x509.BasicConstraints).value
        except Exception:
            raise Refused(f"{path}: is not the certificate of a CA in PEM form") from None
    if not basic.ca:
        raise Refused(f"{path}: is not the certificate of a CA")
    return found


def pem(one: x509.Certificate) -> bytes:
    return one.public_bytes(serialization.Encoding.PEM)


def pem_of_key(key: Any) -> bytes:
    text: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return text


# Certificates.


def ca_certificate(
    key: Any, now: datetime, days: int, early: timedelta = _EARLY
) -> x509.Certificate:
    name = f"blockmig CA at {printable(os.uname().nodename)[:20]}, {now:%Y-%m-%d %H:%M:%S}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    end = now + timedelta(days=days)
    builder = certificate_builder(subject, subject, key, now, end, early=early)
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def certificate_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Any,
    now: datetime,
    end: datetime,
    *,
    early: timedelta = _EARLY,
) -> x509.CertificateBuilder:
    """What every certificate has.

    @param early: for so long it has been valid when it is made.
    """
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - early)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str) -> x509.Name:
    """X.509 has no longer common names than 64 letters, and hosts have."""
    if len(name) > _LONGEST_COMMON_NAME:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(text: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(text))
    return x509.DNSName(text)


def key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
