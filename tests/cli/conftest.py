from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from cli import main
from cli.pki import CertificateAuthority, CertificateFiles, create_ca, issue
from tests.cli.fake_api import FakeApi, served


@attrs.frozen
class Ran:
    code: int
    out: str
    err: str


Mesh = Callable[..., Ran]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return create_ca(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def operator(authority: CertificateAuthority) -> CertificateFiles:
    return issue(authority, "operator", "alice")


@pytest.fixture(scope="session")
def server_files(authority: CertificateAuthority) -> CertificateFiles:
    return issue(authority, "coordinator", "c1")


@pytest.fixture
def api(server_files: CertificateFiles) -> Iterator[FakeApi]:
    with served(server_files) as fake:
        yield fake


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("API", "CA", "CERT", "KEY", "CONTEXT", "CONFIG", "OUTPUT", "TIMEOUT", "DEBUG"):
        monkeypatch.delenv(f"MESH_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


class Keyboard(io.StringIO):
    """A terminal at which somebody has typed these lines."""

    def isatty(self) -> bool:
        return True


Types = Callable[..., Keyboard]


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> Types:
    """Have somebody sit at a terminal and type these lines when asked."""

    def sit(*lines: str) -> Keyboard:
        keyboard = Keyboard("".join(f"{line}\n" for line in lines))
        monkeypatch.setattr("sys.stdin", keyboard)
        return keyboard

    return sit


@pytest.fixture
def mesh(capsys: pytest.CaptureFixture[str]) -> Mesh:
    """Run one `mesh` command line in this process."""

    def run(*arguments: str) -> Ran:
        code = main.run(list(arguments))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def operator_env(
    api: FakeApi, operator: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> FakeApi:
    """The environment of an operator whose API is the fake one."""
    monkeypatch.setenv("MESH_API", api.url)
    for name in ("ca", "cert", "key"):
        monkeypatch.setenv(f"MESH_{name.upper()}", str(getattr(operator, name)))
    return api
