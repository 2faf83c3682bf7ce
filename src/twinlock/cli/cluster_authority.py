"""A certificate authority of a cluster's own: its certificates let servers and nodes know one another."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_NAME = "ca.pem"
AUTHORITY_KEY_NAME = "ca.key"
AUTHORITY_DAYS = 3650
# Certificates are valid a little before they are made, since clocks differ.
_EARLIER = datetime.timedelta(hours=1)


class Authority:
    """The authority whose certificate and key lie in a folder; the key is wanted only to issue."""

    __slots__ = ("_certificate", "_key", "certificate_path")

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate_path = folder / AUTHORITY_NAME
        self._certificate = certificate
        self._key = key

    @property
    def pem(self) -> bytes:
        """Return the certificate, which everybody may have."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Open the authority of a folder, or make one if there is none.

        Raises:
            ValueError: the files are no certificate and key of an authority.
        """
        certificate_path, key_path = folder / AUTHORITY_NAME, folder / AUTHORITY_KEY_NAME
        if not certificate_path.exists() and not key_path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _authority_certificate(key)
            write_secret(key_path, _private_pem(key))
            certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            return cls(folder, certificate, key)
        loaded = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key_path} is not the key of an authority that this command made")
        return cls(folder, x509.load_pem_x509_certificate(certificate_path.read_bytes()), loaded)

    def issue(self, names: Sequence[str], certificate_path: Path, key_path: Path, days: int) -> None:
        """Make a certificate with a new key for a machine that is dialled by any of these names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        builder = _builder(subject, self._certificate.subject, key.public_key(), now, days)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(list(map(_general_name, names))), critical=False)
            # Servers of one cluster dial one another, so each is also a client.
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        write_secret(key_path, _private_pem(key))
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may ever read, in place of one that may be there."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def expiry_of(path: Path) -> datetime.datetime:
    """Return until when a certificate is valid."""
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc


def _authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Twinlock cluster")])
    now = datetime.datetime.now(datetime.UTC)
    builder = _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    end = now + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder(issuer, subject, public_key, x509.random_serial_number(), now - _EARLIER, end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
