"""Flag over environment over file; and `mesh config`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.pki import CertificateAuthority, CertificateFiles, issue
from tests.cli import samples
from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi


@pytest.fixture
def contexts(operator: CertificateFiles, tmp_path: Path) -> Path:
    path = tmp_path / "config" / "meshkit" / "config.yaml"
    path.parent.mkdir(parents=True)
    files = f"ca: {operator.ca}, cert: {operator.cert}, key: {operator.key}"
    path.write_text(
        "current_context: one\ncontexts:\n"
        f"  one: {{api: ['https://one:1'], {files}}}\n"
        f"  two: {{api: ['https://two:1', 'https://two:2'], {files}}}\n"
    )
    return path


def in_force(mesh: Mesh, *flags: str) -> dict[str, dict[str, object]]:
    ran = mesh("config", "show", "--origin", "-o", "json", *flags)
    assert ran.code == 0, ran.err
    shown: dict[str, dict[str, object]] = json.loads(ran.out)
    return shown


def test_flag_goes_before_environment_before_file(
    mesh: Mesh, contexts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_force(mesh)["api"] == {
        "value": ["https://one:1"],
        "origin": f"file {contexts} (context one)",
    }

    monkeypatch.setenv("MESH_API", "https://env:1, https://env:2/")
    assert in_force(mesh)["api"] == {
        "value": ["https://env:1", "https://env:2"],
        "origin": "environment MESH_API",
    }

    flags = ("--api", "https://flag:1")
    assert in_force(mesh, *flags)["api"] == {"value": ["https://flag:1"], "origin": "flag --api"}


def test_a_context_is_chosen_by_name(
    mesh: Mesh, contexts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_CONTEXT", "two")

    assert in_force(mesh)["api"]["value"] == ["https://two:1", "https://two:2"]
    assert in_force(mesh, "--context", "one")["api"]["value"] == ["https://one:1"]


def test_an_unknown_context_is_refused_with_those_there_are(mesh: Mesh, contexts: Path) -> None:
    ran = mesh("clusters", "list", "--context", "three")

    assert ran.code == 3
    assert "there is no context 'three'" in ran.err
    assert "there are: one, two" in ran.err


def test_options_count_before_and_after_the_command(mesh: Mesh, operator_env: FakeApi) -> None:
    operator_env.on("GET /v1/clusters", {"clusters": [samples.CLUSTER]})

    before = mesh("-o", "json", "clusters", "list")
    after = mesh("clusters", "list", "-o", "json")

    assert before == after
    assert json.loads(after.out)["clusters"][0]["name"] == "eu-west"


def test_nothing_configured_says_how_to_configure(mesh: Mesh) -> None:
    ran = mesh("clusters", "list")

    assert ran.code == 2
    assert "not configured: api, ca, cert, key" in ran.err
    assert "mesh sandbox up" in ran.err


def test_a_key_that_others_can_read_is_refused(
    mesh: Mesh, operator_env: FakeApi, authority: CertificateAuthority, tmp_path: Path
) -> None:
    loose = issue(authority, "operator", "loose", directory=tmp_path)
    loose.key.chmod(0o644)

    ran = mesh("clusters", "list", "--cert", str(loose.cert), "--key", str(loose.key))

    assert ran.code == 2
    assert "has mode 0644: others can read this secret" in ran.err


def test_broken_contexts_say_where(mesh: Mesh, contexts: Path) -> None:
    contexts.write_text("contexts: {one: {api: https://one:1}}")

    ran = mesh("clusters", "list")

    assert ran.code == 2
    assert "config.yaml:1: contexts.one.api: expected a list of text" in ran.err


def write_coordinator(folder: Path, operator: CertificateFiles, timing: str) -> Path:
    path = folder / "coordinator.yaml"
    path.write_text(
        f"name: c1\nlisten: 127.0.0.1:0\ntiming: {timing}\n"
        f"identity: {{ca: {operator.ca}, cert: {operator.cert}, key: {operator.key}}}\n"
        f"coordination_etcd: {{endpoints: ['https://127.0.0.1:1'], ca: {operator.ca}}}\n"
    )
    return path


def test_validate_explains_the_timing(
    mesh: Mesh, operator: CertificateFiles, tmp_path: Path
) -> None:
    path = write_coordinator(tmp_path, operator, "{profile: fast}")

    ran = mesh("config", "validate", str(path), "-o", "json")

    assert ran.code == 0
    body = json.loads(ran.out)
    assert (body["kind"], body["valid"]) == ("coordinator", True)
    assert any(note.startswith("ok") and "safe:" in note for note in body["notes"])


def test_validate_refuses_times_that_do_not_fit(
    mesh: Mesh, operator: CertificateFiles, tmp_path: Path
) -> None:
    path = write_coordinator(tmp_path, operator, "{coordination_ttl_ms: 5000}")

    ran = mesh("config", "validate", str(path))

    assert ran.code == 2
    assert "timing: the lease times do not fit each other: safe: 2*Tr*(1+rho)" in ran.err


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("name: eu-west\nregion: eu", "clusters"),
        ("- {name: eu-west, region: eu}\n- {name: us-east, region: us}", "clusters"),
        ("name: orders\nprefixes: [/orders/]\nmembers: [us-east]", "groups"),
        ("contexts: {}", "contexts"),
    ],
)
def test_validate_recognises_what_a_file_is(
    mesh: Mesh, tmp_path: Path, text: str, kind: str
) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)

    ran = mesh("config", "validate", str(path), "-o", "json")

    assert json.loads(ran.out)["kind"] == kind


@pytest.mark.parametrize("text", ["", "colour: red", "a: [1", "- 1"])
def test_validate_refuses_what_it_does_not_know(mesh: Mesh, tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)

    assert mesh("config", "validate", str(path)).code == 2
