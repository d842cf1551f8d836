"""Completion: a script for each shell, and names that the API knows; without it nothing, quickly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
from click.shell_completion import get_completion_class

from cli import complete
from cli.main import mesh as root
from tests.cli import samples
from tests.cli.conftest import Mesh
from tests.cli.fake_api import FakeApi
from tests.cli.test_rejoins import rejoin

SHELLS = ("bash", "zsh", "fish")


@pytest.mark.parametrize(
    ("shell", "hook"),
    [
        ("bash", "complete -o nosort -F _mesh_completion mesh"),
        ("zsh", "compdef _mesh_completion mesh"),
        ("fish", "complete --no-files --command mesh"),
    ],
)
def test_the_script_hooks_mesh_up_and_is_one_that_the_shell_can_read(
    mesh: Mesh, shell: str, hook: str
) -> None:
    ran = mesh("completion", shell)

    assert ran.code == 0
    assert f"_MESH_COMPLETE={shell}_complete" in ran.out
    assert hook in ran.out
    if path := shutil.which(shell):
        read = subprocess.run(
            [path, "-n"], input=ran.out, text=True, capture_output=True, check=False
        )
        assert read.returncode == 0, read.stderr


def test_another_shell_is_refused_by_name(mesh: Mesh) -> None:
    ran = mesh("completion", "tcsh")

    assert ran.code == 2
    assert "'bash', 'zsh', 'fish'" in ran.err


Completed = Callable[..., list[str]]


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch) -> Completed:
    """Return what a shell is told when the cursor stands in the last of some words.

    Without the second that names are waited for: whether they come in time is the machine's affair.
    """
    monkeypatch.setattr(complete, "_TIMEOUT_MS", 60_000)

    def run(shell: str, *words: str) -> list[str]:
        for name, value in environment(shell, words).items():
            monkeypatch.setenv(name, value)
        made = get_completion_class(shell)
        assert made is not None
        return values(shell, made(root, {}, "mesh", "_MESH_COMPLETE").complete())

    return run


def environment(shell: str, words: tuple[str, ...]) -> dict[str, str]:
    return {
        "COMP_WORDS": " ".join(words).rstrip(),
        "COMP_CWORD": words[-1] if shell == "fish" else str(len(words) - 1),
    }


def values(shell: str, told: str) -> list[str]:
    lines = [line for line in told.splitlines() if line]
    if shell == "zsh":
        return lines[1::3]
    return [line.split(",")[1].split("\t")[0] for line in lines]


@pytest.mark.parametrize("shell", SHELLS)
def test_what_the_script_calls_completes_commands_and_says_nothing_else(shell: str) -> None:
    words = ("mesh", "clusters", "ev")
    environ = os.environ | environment(shell, words) | {"_MESH_COMPLETE": f"{shell}_complete"}
    command = [sys.executable, "-c", "from cli.main import main; main()"]

    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    assert (values(shell, ran.stdout), ran.stderr) == (["evacuate"], "")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("clusters", "promote", "eu"), ["eu-west"]),
        (("clusters", "promote", ""), ["eu-west", "us-east"]),
        (("clusters", "evacuate", "us-east", "--to", "eu"), ["eu-west"]),
        (("clusters", "failback", "--group", "o"), ["orders"]),
        (("groups", "show", "x"), []),
        (("failovers", "approve", "f"), ["f-1"]),
        (("rejoins", "approve", "r"), ["r-1"]),
        (("quarantine", "list", "orders", "--cluster", "us"), ["us-east"]),
    ],
)
def test_names_are_those_that_the_api_knows(
    completed: Completed,
    operator_env: FakeApi,
    shell: str,
    words: tuple[str, ...],
    names: list[str],
) -> None:
    operator_env.on("GET /v1/clusters", {"clusters": [samples.CLUSTER, samples.LOST_CLUSTER]})
    operator_env.on("GET /v1/groups", {"groups": [samples.GROUP]})
    operator_env.on("GET /v1/failovers", {"failovers": [samples.failover()]})
    operator_env.on("GET /v1/rejoins", {"rejoins": [rejoin("held")]})

    assert completed(shell, "mesh", *words) == names


@pytest.mark.parametrize("shell", SHELLS)
def test_without_an_api_nothing_is_completed(completed: Completed, shell: str) -> None:
    """A traceback in the middle of a line that is being typed helps nobody."""
    assert completed(shell, "mesh", "clusters", "promote", "eu") == []
