"""What the API shows of an adoption of the coordination etcd: regions, groups, dangers. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coordinator.adoption import AdoptionPlan, Choice
from coordinator.mesh import Mesh

Json = dict[str, Any]


def plan_view(planned: AdoptionPlan, mesh: Mesh, *, fingerprint: str, changed: bool) -> Json:
    """Return what an adoption does, or has done, and what may come of it."""
    return {
        "changed": changed,
        "number": planned.number,
        "plan": fingerprint,
        "regions": [
            {"cluster": name, "answer": how.value, "detail": planned.details[name]}
            for name, how in sorted(planned.regions.items())
        ],
        "groups": [_group_view(choice, mesh) for choice in planned.choices],
        "problems": list(planned.problems),
        "warnings": list(_warnings(planned)),
        "waived": list(planned.waived),
        "wait_ms": planned.wait_ms,
    }


def _group_view(choice: Choice, mesh: Mesh) -> Json:
    seen = mesh.authorities.get(choice.group)
    return {
        "group": choice.group,
        "active": choice.active,
        "epoch": choice.epoch,
        "was_active": seen.record.active if seen else None,
        "was_epoch": seen.record.epoch if seen else None,
        "why": choice.why,
    }


def _warnings(planned: AdoptionPlan) -> Iterator[str]:
    yield (
        "what was only in the lost coordination etcd is lost: failovers and approvals under way,"
        " and audit entries after the snapshot"
    )
    if not planned.waived:
        return
    names = ", ".join(planned.waived)
    yield (
        f"{names}: nobody knows what its fences prove. If it was made active after what the others"
        " have seen, the writes it accepted since are not in the new epoch: they are set aside"
        " (quarantine) when it comes back"
    )
    yield (
        f"{names}: if it still reaches another copy of the coordination etcd, it goes on accepting"
        " writes there. Stop every other copy first. The regions wait"
        f" {planned.wait_ms // 1000} s before they go on, which is enough only then"
    )
