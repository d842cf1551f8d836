"""Failback: a rejoin if it is needed, then a planned failover back. Shows both parts."""

from __future__ import annotations

from typing import Any

import attrs

from cli.api import MeshApi
from cli.moves import Move, move
from cli.rejoins import follow
from cli.session import Session

Json = dict[str, Any]


def failback(session: Session, request: Move) -> int:
    """Give write authority back and return the exit code of the part that decided."""
    if request.group is None:
        return move(session, request)
    group = request.group
    target = request.target or session.run(lambda api: _before(api, group))
    if target is None:
        return move(session, request)
    session.output.note(f"part 1 of 2: {target} has to be a standby of {group}")
    found = session.run(lambda api: _rejoin(api, group, target, request))
    if found is None:
        session.output.note(f"{target} needs no rejoin")
    elif request.dry_run:
        session.output.note(f"{target} rejoins first: {found['id']} is {found['phase']}")
    else:
        code = follow(session, [found], wait=True, is_part=True)
        if code:
            session.output.note("part 2 was not begun: no writes were moved")
            return code
    session.output.note(f"part 2 of 2: a planned failover to {target}")
    return move(session, attrs.evolve(request, target=target))


async def _before(api: MeshApi, group: str) -> str | None:
    """Return the cluster that was active before, as the API would choose it."""
    shown = await api.get(f"/v1/groups/{group}")
    lineage = shown.get("lineage")
    return str(lineage["parent"]) if lineage else None


async def _rejoin(api: MeshApi, group: str, target: str, request: Move) -> Json | None:
    """Return the rejoin that the target is in, or begin the one it needs; None if it needs none."""
    listed = await api.get("/v1/rejoins", group=group)
    for rejoin in listed["rejoins"]:
        if rejoin["cluster"] == target and rejoin["phase"] in {"advancing", "held"}:
            found: Json = rejoin
            return found
    if request.dry_run:
        return None
    body = {"group": group, "reason": request.reason or "failback"}
    answer = (await api.post(f"/v1/clusters/{target}/rejoin", body)).body
    return next((result["rejoin"] for result in answer["results"] if result["rejoin"]), None)
