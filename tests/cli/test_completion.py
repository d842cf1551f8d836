"""Completion: a script for each shell, and names that the API knows; without it nothing, quickly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

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


def completed(shell: str, *words: str) -> list[str]:
    """Return what a shell is told when the cursor stands in the last of these words."""
    incomplete = words[-1]
    environ = os.environ | {
        "_MESH_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(words).rstrip(),
        "COMP_CWORD": incomplete if shell == "fish" else str(len(words) - 1),
    }
    command = [sys.executable, "-c", "from cli.main import main; main()"]
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    lines = [line for line in ran.stdout.splitlines() if line]
    if shell == "zsh":
        return lines[1::3]
    return [line.split(",")[1].split("\t")[0] for line in lines]


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_are_completed(shell: str) -> None:
    assert completed(shell, "mesh", "clusters", "ev") == ["evacuate"]


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
    operator_env: FakeApi, shell: str, words: tuple[str, ...], names: list[str]
) -> None:
    operator_env.on("GET /v1/clusters", {"clusters": [samples.CLUSTER, samples.LOST_CLUSTER]})
    operator_env.on("GET /v1/groups", {"groups": [samples.GROUP]})
    operator_env.on("GET /v1/failovers", {"failovers": [samples.failover()]})
    operator_env.on("GET /v1/rejoins", {"rejoins": [rejoin("held")]})

    assert completed(shell, "mesh", *words) == names


@pytest.mark.parametrize("shell", SHELLS)
def test_without_an_api_nothing_is_completed_and_nothing_is_said(shell: str) -> None:
    """A traceback in the middle of a line that is being typed helps nobody."""
    assert completed(shell, "mesh", "clusters", "promote", "eu") == []
