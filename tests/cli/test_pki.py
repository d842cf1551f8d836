"""The small certificate authority."""

from __future__ import annotations

import datetime as dt
import ipaddress
import stat
from pathlib import Path

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from cli.pki import create_ca, expired_at, is_issued_by, issue


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_leaf_names_its_holder_once_and_the_loopback_hosts(tmp_path: Path) -> None:
    files = issue(create_ca(tmp_path, trust_domain="mesh.test"), "cluster", "us-east")

    names = load(files.cert).extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == ["spiffe://mesh.test/cluster/us-east"]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert ipaddress.ip_address("127.0.0.1") in names.get_values_for_type(x509.IPAddress)


def test_a_leaf_passes_a_strict_verifier_as_server_and_as_client(tmp_path: Path) -> None:
    authority = create_ca(tmp_path)
    leaf = load(issue(authority, "coordinator", "c1").cert)
    builder = PolicyBuilder().store(Store([load(authority.cert)]))

    server = builder.build_server_verifier(x509.DNSName("localhost")).verify(leaf, [])
    client = builder.build_client_verifier().verify(leaf, [])

    assert server[0] == leaf
    assert client.chain[0] == leaf


def test_keys_are_private(tmp_path: Path) -> None:
    authority = create_ca(tmp_path)
    files = issue(authority, "operator", "alice")

    modes = {stat.S_IMODE(path.stat().st_mode) for path in (authority.key, files.key)}

    assert modes == {0o600}


def test_a_ca_is_made_once(tmp_path: Path) -> None:
    first = create_ca(tmp_path).cert.read_bytes()

    assert create_ca(tmp_path).cert.read_bytes() == first


def test_an_expired_certificate_says_when(tmp_path: Path) -> None:
    authority = create_ca(tmp_path)
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)

    old = expired_at(issue(authority, "operator", "old", valid_days=-1).cert)

    assert old is not None
    assert old.startswith(yesterday.strftime("%Y-%m-%dT"))
    assert expired_at(issue(authority, "operator", "new").cert) is None


def test_only_the_issuer_counts_as_issuer(tmp_path: Path) -> None:
    mine, other = create_ca(tmp_path / "mine"), create_ca(tmp_path / "other")
    leaf = issue(mine, "operator", "alice").cert

    assert is_issued_by(leaf, mine.cert)
    assert not is_issued_by(leaf, other.cert)
