"""Completes names of clusters, groups and failovers by asking the API, for at most a second."""

from __future__ import annotations

from typing import Any

import click

_TIMEOUT_MS = 1_000


def _names(ctx: click.Context, path: str, items: str, name: str) -> list[str]:
    from cli.session import open_session

    try:
        body: dict[str, Any] = open_session(ctx).run(
            lambda api: api.get(path), timeout_ms=_TIMEOUT_MS
        )
        return [str(item[name]) for item in body[items]]
    except Exception:  # noqa: BLE001 a completion that fails completes nothing
        return []


def clusters(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of clusters that begin with `incomplete`."""
    return [n for n in _names(ctx, "/v1/clusters", "clusters", "name") if n.startswith(incomplete)]


def groups(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of groups that begin with `incomplete`."""
    return [n for n in _names(ctx, "/v1/groups", "groups", "group") if n.startswith(incomplete)]


def rejoins(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of rejoins that begin with `incomplete`."""
    return [n for n in _names(ctx, "/v1/rejoins", "rejoins", "id") if n.startswith(incomplete)]


def failovers(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of failovers that begin with `incomplete`."""
    return [n for n in _names(ctx, "/v1/failovers", "failovers", "id") if n.startswith(incomplete)]
