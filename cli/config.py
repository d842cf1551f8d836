"""`mesh config`: check configuration files, show what is in force and where it came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.lazy import LazyGroup
from cli.session import Session, with_session
from meshkit.config import TimingConfig
from meshkit.errors import InvalidConfig


@click.group(cls=LazyGroup)
def config() -> None:
    """Check configuration files and show what is in force."""


@config.command()
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    type=click.Choice(["replicator", "coordinator", "contexts", "clusters", "groups"]),
    help="What the file is; recognised by its fields if left out.",
)
@with_session
def validate(session: Session, path: Path, kind: str | None) -> None:
    """Check FILE: a replicator's, a coordinator's, contexts, clusters or groups.

    Checks fields, files, key permissions, and that the lease times fit each other.
    """
    from cli.render import fields

    kind = kind or _recognised(path)
    notes = _VALIDATORS[kind](path)
    body = {"file": str(path), "kind": kind, "valid": True, "notes": notes}
    session.output.result(body, lambda: fields({"File": str(path), "Kind": kind, "Valid": True}))
    for note in notes:
        session.output.note(note)


@config.command()
@click.option("--origin", is_flag=True, help="Tell where each value came from.")
@with_session
def show(session: Session, origin: bool) -> None:
    """Show the settings in force."""
    from cli.render import table

    rows = {n: (_shown(s.value), s.origin) for n, s in session.settings.values.items()}
    if origin:
        session.output.result(
            {name: {"value": value, "origin": whence} for name, (value, whence) in rows.items()},
            lambda: table(
                ("SETTING", "VALUE", "ORIGIN"), ((n, v, whence) for n, (v, whence) in rows.items())
            ),
        )
        return
    session.output.result(
        {name: value for name, (value, _) in rows.items()},
        lambda: table(("SETTING", "VALUE"), ((n, v) for n, (v, _) in rows.items())),
    )


def _shown(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _recognised(path: Path) -> str:
    from meshkit.yaml_records import documents, plain_of, read_text

    found = [plain_of(node) for node in documents(read_text(path), source=str(path))]
    first = found[0] if found else None
    if isinstance(first, list) and first:
        first = first[0]
    if not isinstance(first, dict):
        raise InvalidConfig(f"{path}: this is no configuration of MeshKit: it has no fields")
    for kind, marks in _MARKS:
        if marks & first.keys():
            return kind
    raise InvalidConfig(
        f"{path}: cannot tell what this configures; its fields are {', '.join(map(str, first))}",
        hint="say it with --kind",
    )


_MARKS = (
    ("contexts", {"contexts", "current_context"}),
    ("replicator", {"regional_etcd"}),
    ("coordinator", {"coordination_etcd"}),
    ("groups", {"prefixes", "members"}),
    ("clusters", {"region", "priority", "etcd_endpoints", "replication_endpoints", "intent"}),
)


def _replicator(path: Path) -> list[str]:
    from meshkit.config import load_replicator_config

    return _timing(path, load_replicator_config(path).timing)


def _coordinator(path: Path) -> list[str]:
    from meshkit.config import load_coordinator_config

    return _timing(path, load_coordinator_config(path).timing)


def _timing(path: Path, given: TimingConfig) -> list[str]:
    from fencing.timing import explain, timing_of

    try:
        return explain(timing_of(given.profile.value, given.overrides()))
    except InvalidConfig as error:
        raise InvalidConfig(f"{path}: timing: {error}", hint=error.hint) from error


def _contexts(path: Path) -> list[str]:
    from cli.settings import load_contexts
    from meshkit.config import check_private

    file = load_contexts(path)
    for context in file.contexts.values():
        check_private(context.key)
    return [f"contexts: {', '.join(file.contexts) or 'none'}"]


def _clusters(path: Path) -> list[str]:
    from cli.specs import ClusterSpec, load_specs

    return [f"clusters: {', '.join(s.name for s in load_specs(ClusterSpec, str(path)))}"]


def _groups(path: Path) -> list[str]:
    from cli.specs import GroupSpec, load_specs

    return [f"groups: {', '.join(s.name for s in load_specs(GroupSpec, str(path)))}"]


_VALIDATORS: dict[str, Callable[[Path], list[str]]] = {
    "replicator": _replicator,
    "coordinator": _coordinator,
    "contexts": _contexts,
    "clusters": _clusters,
    "groups": _groups,
}
