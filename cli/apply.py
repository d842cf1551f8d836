"""`apply -f` of clusters and groups: shows what differs, puts it, says what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cli.api import MeshApi
from cli.session import Session, differences
from meshkit.errors import MeshError, NotFound, OutcomeUnknown


async def apply(
    session: Session,
    api: MeshApi,
    *,
    kind: str,
    bodies: Sequence[Mapping[str, Any]],
    dry_run: bool,
) -> list[dict[str, Any]]:
    """Put each specification and return what became of each, in order."""
    results: list[dict[str, Any]] = []
    for body in bodies:
        path = f"/v1/{kind}s/{body['name']}"
        before = await _current(api, path)
        wanted = {k: v for k, v in body.items() if k != "active" or before is None}
        lines = differences(
            before, _beside(before, wanted), names=[k for k in wanted if k != "name"]
        )
        sent = {k: v for k, v in body.items() if k != "name"}
        changed = bool(lines) or before is None
        try:
            changed = bool((await api.put(path, sent, dry_run=dry_run))["changed"])
        except MeshError as error:
            error.state = "" if dry_run else _state_after(results, error)
            raise
        became = ("created" if before is None else "changed") if changed else "unchanged"
        results.append({"kind": kind, "name": body["name"], "became": became, "differs": lines})
        session.output.note(f"{kind} {body['name']} {became}{' (dry run)' if dry_run else ''}")
        for line in lines:
            session.output.note(f"  {line}")
    return results


def _state_after(results: Sequence[Mapping[str, Any]], error: MeshError) -> str:
    """Return what was applied before a failure; empty if the error's class says enough."""
    done = [f"{r['name']} {r['became']}" for r in results if r["became"] != "unchanged"]
    if not done:
        return ""
    doubt = "unknown: it may have happened; " if isinstance(error, OutcomeUnknown) else ""
    return f"{doubt}applied before it: {', '.join(done)}; nothing after it was"


def _beside(before: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return `wanted` with its policy completed from `before`, as the API completes it."""
    if not before or "policy" not in wanted:
        return dict(wanted)
    return {**wanted, "policy": {**(before.get("policy") or {}), **wanted["policy"]}}


async def _current(api: MeshApi, path: str) -> dict[str, Any] | None:
    try:
        return await api.get(path)
    except NotFound:
        return None
