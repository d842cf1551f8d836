"""What becomes of a group's writes without the coordination etcd, as it is told to people. Pure."""

from __future__ import annotations

from typing import Any

from coordinator.api.shapes import FLAG, TEXT, TEXT_OR_NULL, TEXTS, one_of
from coordinator.governance.preflight import fresh_health
from coordinator.mesh import Mesh
from meshkit.model import CoordinationLoss, Group
from meshkit.names import ClusterName
from meshkit.promises import Pact

Json = dict[str, Any]

KEEPING_SHAPE: Json = {
    "type": "object",
    "properties": {
        "policy": one_of(CoordinationLoss),
        "cluster": TEXT_OR_NULL,
        "members": TEXTS,
        "promised_by": TEXTS,
        "goes_on": FLAG,
        "text": TEXT,
    },
}


def keeping_view(group: Group, mesh: Mesh, *, now_ms: int) -> Json:
    """Return whether writes go on by promise, could, or would stop; and by whose promise."""
    pact = mesh.pacts.get(group.name)
    promised = _promised_by(group, mesh, pact, now_ms=now_ms)
    others = [member for member in pact.members if member != pact.cluster] if pact else []
    goes_on = bool(promised) and set(others) <= set(promised)
    return {
        "policy": group.policy.on_coordination_loss.value,
        "cluster": pact.cluster if pact else None,
        "members": list(pact.members) if pact else [],
        "promised_by": promised,
        "goes_on": goes_on,
        "text": _text(group, pact, others, promised, goes_on=goes_on),
    }


def _promised_by(group: Group, mesh: Mesh, pact: Pact | None, *, now_ms: int) -> list[ClusterName]:
    """Return which members report that they have promised the pact's cluster not to open."""
    found = []
    for member in group.members:
        health = fresh_health(mesh.health.get(member), now_ms=now_ms)
        known = health.groups.get(group.name) if health else None
        if pact is not None and known is not None and known.promised_to == pact.cluster:
            found.append(member)
    return found


def _text(
    group: Group,
    pact: Pact | None,
    others: list[ClusterName],
    promised: list[ClusterName],
    *,
    goes_on: bool,
) -> str:
    wanted = group.policy.on_coordination_loss is CoordinationLoss.KEEP
    if pact is None:
        return "writes would stop: the active cluster has made no pact yet" if wanted else ""
    if goes_on:
        return (
            f"writes go on at {pact.cluster} by the promise of {', '.join(promised)}: it does not"
            " reach the coordination etcd. In an emergency its fence is confirmed, or unknown"
        )
    if promised:
        missing = ", ".join(member for member in others if member not in promised)
        return f"{pact.cluster} asked for promises; not given, as far as is known, by {missing}"
    asked = ", ".join(others) or "nobody"
    return f"writes would go on at {pact.cluster}, by the promise of {asked}"
