"""Who a process is to its peers, and who its peers are: mutual TLS and SPIFFE names.

A peer's identity is the one URI SAN of its certificate, `spiffe://<trust domain>/<role>/<name>`,
compared exactly. Anything else, and more than one, is no identity. TLS has verified the chain
before any of this is asked.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import attrs
import grpc
from cryptography import x509

from meshkit.errors import InvalidConfig, NotAllowed
from meshkit.peer import PeerIdentity

_SPIFFE = re.compile(r"spiffe://(?P<domain>[a-z0-9.-]+)/(?P<role>[a-z0-9-]+)/(?P<name>[a-z0-9-]+)")


@attrs.frozen(kw_only=True)
class IdentityFiles:
    """Certificate, key and the CA that vouches for peers. Read anew each time it is asked."""

    ca: Path
    cert: Path
    key: Path
    trust_domain: str = "mesh.local"

    def not_after_ms(self) -> int:
        """Return when the own certificate ends, in UTC milliseconds since 1970.

        Raises:
            InvalidConfig: it cannot be read.
        """
        certificate = x509.load_pem_x509_certificate(_read(self.cert))
        return int(certificate.not_valid_after_utc.timestamp() * 1000)

    def server_context(self) -> ssl.SSLContext:
        """Return a TLS context for a server that demands a client certificate.

        Raises:
            InvalidConfig: a file cannot be read or does not fit.
        """
        context = self._context(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a TLS context for a client that shows its certificate.

        Raises:
            InvalidConfig: a file cannot be read or does not fit.
        """
        return self._context(ssl.Purpose.SERVER_AUTH)

    def grpc_server_credentials(self) -> grpc.ServerCredentials:
        """Return gRPC credentials of a server that demands a client certificate.

        Raises:
            InvalidConfig: a file cannot be read.
        """
        return grpc.ssl_server_credentials(
            [(_read(self.key), _read(self.cert))],
            root_certificates=_read(self.ca),
            require_client_auth=True,
        )

    def grpc_channel_credentials(self) -> grpc.ChannelCredentials:
        """Return gRPC credentials of a client that shows its certificate.

        Raises:
            InvalidConfig: a file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca),
            private_key=_read(self.key),
            certificate_chain=_read(self.cert),
        )

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(purpose, cafile=str(self.ca))
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidConfig(f"cannot use {self.cert} with {self.key}: {error}") from error
        return context


def peer_of_uris(uris: list[str], *, trust_domain: str) -> PeerIdentity:
    """Return the peer that a certificate's URI SANs name.

    Raises:
        NotAllowed: there is not exactly one, or it is not of our form and trust domain.
    """
    if len(uris) != 1:
        raise NotAllowed(f"the certificate has {len(uris)} URI SANs; exactly one is needed")
    match = _SPIFFE.fullmatch(uris[0])
    if match is None or match["domain"] != trust_domain:
        raise NotAllowed(f"{uris[0]!r} is not spiffe://{trust_domain}/<role>/<name>")
    return PeerIdentity(role=match["role"], name=match["name"])


def peer_of_pem(pem: bytes, *, trust_domain: str) -> PeerIdentity:
    """Return the peer of a certificate in PEM that TLS has verified.

    Raises:
        NotAllowed: it names no one of the mesh.
    """
    return _peer_of(x509.load_pem_x509_certificate(pem), trust_domain)


def peer_of_der(der: bytes, *, trust_domain: str) -> PeerIdentity:
    """Return the peer of a certificate in DER that TLS has verified.

    Raises:
        NotAllowed: it names no one of the mesh.
    """
    return _peer_of(x509.load_der_x509_certificate(der), trust_domain)


def _peer_of(certificate: x509.Certificate, trust_domain: str) -> PeerIdentity:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        raise NotAllowed("the certificate has no subject alternative name") from None
    uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    return peer_of_uris(uris, trust_domain=trust_domain)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidConfig(f"cannot read {path}: {error.strerror}") from error
