"""What the API shows of a region that stopped because an etcd went back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.mesh import Mesh
from meshkit.incarnations import SuspectStore
from meshkit.names import ClusterName, GroupName

Json = dict[str, Any]


def suspension_view(name: ClusterName, mesh: Mesh, *, now_ms: int) -> Json | None:
    """Return why nobody leads a region and what to do, or None if it is not suspended."""
    seen = mesh.suspensions.get(name)
    if seen is None:
        return None
    record, adopted = seen.record, mesh.adoptions.get(name)
    is_adopted = adopted is not None and adopted.record.suspension == seen.revision
    active = sorted(g for g, a in mesh.authorities.items() if a.record.active == name)
    return {
        "store": record.store.value,
        "reason": record.reason,
        "incarnation": record.incarnation,
        "replicator": record.replicator,
        "age_ms": max(0, now_ms - record.at_ms),
        "suspension": seen.revision,
        "adopted": is_adopted,
        "active_groups": active,
        "next": _way_out(name, record.store, is_adopted=is_adopted, active=active),
    }


def _way_out(
    name: ClusterName, store: SuspectStore, *, is_adopted: bool, active: Sequence[GroupName]
) -> str:
    if store is SuspectStore.COORDINATION:
        return (
            "the coordination etcd went back, not this region's: do not move authority. Stop every"
            " other copy of it, then: mesh coordination adopt --reason WHY"
        )
    if is_adopted:
        return f"it is adopted: a replicator of {name} begins the new incarnation when it leads"
    if active:
        return (
            f"{', '.join(active)} cannot be written to. Either promote a standby, which may hold"
            f" more than the restored etcd, or keep what the etcd holds now: mesh clusters adopt"
            f" {name} --reason WHY. Standbys are then copied from it, and lose what it lost"
        )
    return f"when you know why: mesh clusters adopt {name} --reason WHY. It goes on as a standby"
