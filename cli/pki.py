"""A small certificate authority, for the sandbox and the tests.

Keys are ECDSA P-256 in files of mode 0600. Every leaf names its holder by one `spiffe://` URI and
is good for both ends of a connection. Not meant for production: it has no revocation.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "mesh.local"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
_BACKDATED = dt.timedelta(minutes=5)
"""So that a peer whose clock is a little behind accepts a fresh certificate."""


@attrs.frozen(kw_only=True)
class CertificateFiles:
    """Where a certificate, its key and its issuer's certificate are."""

    ca: Path
    cert: Path
    key: Path


@attrs.frozen(kw_only=True)
class CertificateAuthority:
    """An issuer: its certificate and key, and the trust domain it vouches for."""

    directory: Path
    cert: Path
    key: Path
    trust_domain: str = TRUST_DOMAIN

    def identity(self, role: str, name: str) -> str:
        """Return the URI that names `name` in `role`."""
        return f"spiffe://{self.trust_domain}/{role}/{name}"


def create_ca(
    directory: Path, *, trust_domain: str = TRUST_DOMAIN, valid_days: float = 3650
) -> CertificateAuthority:
    """Return the CA in `directory`, made now if there is none yet."""
    authority = CertificateAuthority(
        directory=directory,
        cert=directory / "ca.pem",
        key=directory / "ca.key",
        trust_domain=trust_domain,
    )
    if authority.cert.is_file() and authority.key.is_file():
        return authority
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"MeshKit CA {trust_domain}")])
    builder = (
        _certificate(subject, subject, key.public_key(), valid_days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    _write_key(authority.key, key)
    _write(authority.cert, _pem(builder.sign(key, hashes.SHA256())), mode=0o644)
    return authority


def issue(
    authority: CertificateAuthority,
    role: str,
    name: str,
    *,
    hosts: Iterable[str] = LOOPBACK_HOSTS,
    valid_days: float = 365,
    uri: str | None = None,
    directory: Path | None = None,
) -> CertificateFiles:
    """Issue a certificate to `name` in `role`, replacing the one it has; return its files.

    `uri` replaces the identity derived from role and name. `valid_days` may be negative, for a
    certificate that has expired.
    """
    folder = directory or authority.directory
    files = CertificateFiles(
        ca=authority.cert,
        cert=folder / f"{role}-{name}.pem",
        key=folder / f"{role}-{name}.key",
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    issuer = x509.load_pem_x509_certificate(authority.cert.read_bytes())
    issuer_key = serialization.load_pem_private_key(authority.key.read_bytes(), password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey), "create_ca makes no other"
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role} {name}"[:64])])
    names = [
        x509.UniformResourceIdentifier(uri or authority.identity(role, name)),
        *(_host(host) for host in hosts),
    ]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _certificate(subject, issuer.subject, key.public_key(), valid_days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    _write_key(files.key, key)
    _write(files.cert, _pem(builder.sign(issuer_key, hashes.SHA256())), mode=0o644)
    return files


def expired_at(cert: Path) -> str | None:
    """Return when the certificate in a file expired (ISO 8601, UTC); None if it has not."""
    try:
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    except (OSError, ValueError):
        return None
    ended = certificate.not_valid_after_utc
    if ended > dt.datetime.now(dt.UTC):
        return None
    return ended.strftime("%Y-%m-%dT%H:%M:%SZ")


def is_issued_by(cert: Path, ca: Path) -> bool:
    """Return whether the certificate in a file was signed by one of those in `ca`."""
    try:
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
        issuers = x509.load_pem_x509_certificates(ca.read_bytes())
    except (OSError, ValueError):
        return False
    return any(_signed(certificate, issuer) for issuer in issuers)


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _certificate(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, valid_days: float
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    ends = now + dt.timedelta(days=valid_days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - _BACKDATED)
        .not_valid_after(ends)
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(path, pem, mode=0o600)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file of `mode` in one step: readers see the old or the new, never a part."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)
