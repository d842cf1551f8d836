"""What there is, and that `mesh --help` costs nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import click
import pytest

from cli.lazy import LazyGroup
from cli.main import mesh as root
from tests.cli.conftest import Mesh

HEAVY = ("aiohttp", "grpc", "rich", "yaml", "cryptography", "structlog", "google.protobuf")
COMMANDS = {
    "audit": ["export", "list", "verify"],
    "clusters": ["adopt", "apply", "evacuate", "failback", "list", "promote", "rejoin", "show"],
    "completion": [],
    "config": ["show", "validate"],
    "coordination": ["adopt"],
    "coordinator": ["run"],
    "demo": [],
    "failovers": ["abort", "approve", "list", "resume", "show", "watch"],
    "groups": ["acknowledge", "apply", "list", "show"],
    "quarantine": ["discard", "export", "list", "replay", "show"],
    "pause": [],
    "rejoins": ["approve", "list", "resume", "show"],
    "replication": ["foreign", "pause", "replay", "resume", "status", "verify"],
    "replicator": ["run"],
    "resume": [],
    "sandbox": ["down", "show", "status", "up"],
    "version": [],
}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, cli.main; code = cli.main.run(['--help']); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stderr.strip()) == (0, "[]")


def test_help_lists_every_command(mesh: Mesh) -> None:
    shown = mesh("--help").out

    assert [name for name in COMMANDS if f"\n  {name}  " not in shown] == []
    assert "Exit codes:" in shown


def commands_of(name: str) -> dict[str, click.Command]:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    return dict(command.commands) if isinstance(command, click.Group) else {}


def test_there_are_exactly_these_commands() -> None:
    assert {name: sorted(commands_of(name)) for name in root.lazy} == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_one_line_help_is_the_commands_own(name: str) -> None:
    where, line = root.lazy[name]
    module, _, attribute = where.partition(":")
    command = getattr(importlib.import_module(module), attribute)

    assert command.get_short_help_str(limit=200) == line


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g, names in COMMANDS.items() for n in names]
)
def test_every_command_has_help_and_the_common_options(mesh: Mesh, group: str, name: str) -> None:
    ran = mesh(group, name, "--help")

    assert ran.code == 0
    assert "--context NAME" in ran.out
    first = next(line for line in ran.out.splitlines()[1:] if line.strip())
    assert len(first.strip()) <= 80


def test_version_is_machine_readable(mesh: Mesh) -> None:
    assert "meshkit" in json.loads(mesh("version", "-o", "json").out)


def test_completion_prints_a_script(mesh: Mesh) -> None:
    assert "_MESH_COMPLETE=bash_complete" in mesh("completion", "bash").out


def test_groups_are_lazy_groups() -> None:
    assert isinstance(root, LazyGroup)
