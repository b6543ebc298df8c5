"""Directories of certificates, good and bad, under the names that blockmig looks for."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blockmig.cli.authority import Host, authority_in

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)


def make_hosts(directory: Path, *names: str) -> list[Path]:
    """Folders as `blockmig certificates` makes them, of one CA."""
    with authority_in(str(directory), 30) as authority:
        for name in names:
            first, *others = name.split(",")
            authority.add(Host(first, tuple(others)), 10)
    return [directory / name.split(",")[0] for name in names]


class Signer:
    """A CA that signs what it is told to.

    @param parent: another CA that has signed it; None for itself.
    """

    def __init__(
        self, name: str = "Test CA", parent: Signer | None = None, *, ca: bool = True
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        by = parent or self
        self.certificate = (
            _builder(self.name, by.name, self.key, NOW - DAY, NOW + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(by.key, hashes.SHA256())
        )

    def sign(
        self,
        name: str,
        *alternatives: str,
        begin: datetime.datetime = NOW - DAY,
        end: datetime.datetime = NOW + DAY,
        usage: x509.ObjectIdentifier | None = None,
        subject: x509.Name | None = None,
    ) -> tuple[Any, x509.Certificate]:
        """A key, and its certificate for C{name} and C{alternatives} (DNS names)."""
        key = ec.generate_private_key(ec.SECP256R1())
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(own if subject is None else subject, self.name, key, begin, end)
        if alternatives:
            names = [x509.DNSName(each) for each in alternatives]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return key, builder.sign(self.key, hashes.SHA256())

    def revoke(self, *certificates: x509.Certificate) -> bytes:
        """A list of these certificates as PEM."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(NOW - DAY)
            .next_update(NOW + DAY)
        )
        for one in certificates:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(one.serial_number)
                .revocation_date(NOW - DAY)
                .build()
            )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def fill(self, directory: Path, role: str, name: str = "localhost", **how: Any) -> Path:
        """Put the files of C{role} into C{directory}: the CA's certificate, and those of a host."""
        directory.mkdir(exist_ok=True)
        how.setdefault("usage", USAGES[role])
        key, certificate = self.sign(name, name, **how)
        write(directory / "ca-cert.pem", pem(self.certificate))
        write(directory / f"{role}-cert.pem", pem(certificate))
        write(directory / f"{role}-key.pem", pem_of_key(key))
        return directory


USAGES = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
}


def write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(content)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def pem_of_key(key: Any, password: bytes = b"") -> bytes:
    encryption: Any = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    text: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    return text


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Any,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
