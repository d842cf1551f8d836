"""Streams as the API shows them: what is absent or stale is unknown, and says so. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.governance.preflight import fresh_stream
from coordinator.mesh import Mesh
from meshkit.codec import to_plain
from meshkit.names import ClusterName, GroupName
from meshkit.status import CopyProgress, GroupBehind, Lag, StreamState, StreamStatus
from meshkit.verification import VerifyResult

Json = dict[str, Any]


def stream_view(
    source: ClusterName,
    target: ClusterName,
    mesh: Mesh,
    *,
    now_ms: int,
    groups: Sequence[GroupName] = (),
) -> Json:
    """Return one stream; what is absent or stale is unknown, and says so."""
    status = mesh.streams.get((source, target))
    fresh = fresh_stream(status, now_ms=now_ms)
    problem = "" if fresh else f"{source} does not report it"
    if status is not None and fresh is None:
        problem = f"the last report of {source} is too old"
    known = _known_stream(fresh) if fresh else dict.fromkeys(_STREAM_NUMBERS)
    return {
        "source": source,
        "target": target,
        "groups": sorted(groups),
        "epochs": {
            group: mesh.authorities[group].record.epoch
            for group in sorted(groups)
            if group in mesh.authorities
        },
        **known,
        "state": fresh.lag.state.value if fresh else StreamState.UNKNOWN.value,
        "in_step": _lag_view(fresh.in_step) if fresh and fresh.in_step else None,
        "groups_out_of_step": list(fresh.groups_out_of_step) if fresh else [],
        "behind": [_behind_view(behind) for behind in fresh.behind] if fresh else [],
        "copies": [copy_view(copy) for copy in fresh.copies] if fresh else [],
        "status_age_ms": max(0, now_ms - status.at_ms) if status else None,
        "fresh": fresh is not None,
        "problem": problem or (fresh.problem if fresh else ""),
        "last_verify": [
            result_view(mesh.verified[target, group])
            for group in sorted(groups)
            if (target, group) in mesh.verified
        ],
    }


def copy_view(copy: CopyProgress) -> Json:
    """Return how far the copy of one group is."""
    return {**to_plain(copy), "bytes_total": copy.bytes_total}


_STREAM_NUMBERS = (
    "lag_ms", "lag_error_ms", "records", "bytes", "head", "applied", "records_per_second",
    "headroom_ms", "is_spooled",
)  # fmt: skip


def _lag_view(lag: Lag) -> Json:
    return {
        "state": lag.state.value,
        "lag_ms": lag.lag_ms,
        "lag_error_ms": lag.error_bound_ms,
        "records": lag.records,
        "bytes": lag.bytes,
    }


def _behind_view(behind: GroupBehind) -> Json:
    """Return how far a group is behind that is out of step, and why it is."""
    told = {"group": behind.group, "why": behind.why, "text": behind.text}
    return {**told, "position": behind.position, **_lag_view(behind.lag)}


def _known_stream(status: StreamStatus) -> Json:
    return {
        "lag_ms": status.lag.lag_ms,
        "lag_error_ms": status.lag.error_bound_ms,
        "records": status.lag.records,
        "bytes": status.lag.bytes,
        "head": status.head,
        "applied": status.applied,
        "records_per_second": status.records_per_second,
        "headroom_ms": status.headroom_ms,
        "is_spooled": status.is_spooled,
    }


def streams_view(mesh: Mesh, *, group: GroupName | None, now_ms: int) -> list[Json]:
    """Return every stream in which the target should follow, with the groups it follows."""
    wanted: dict[tuple[ClusterName, ClusterName], list[GroupName]] = {}
    for name, seen in mesh.authorities.items():
        described = mesh.groups.get(name)
        if described is None or (group is not None and name != group):
            continue
        for member in described.record.members:
            if member != seen.record.active:
                wanted.setdefault((seen.record.active, member), []).append(name)
    return [
        stream_view(source, target, mesh, now_ms=now_ms, groups=groups)
        for (source, target), groups in sorted(wanted.items())
    ]


def result_view(result: VerifyResult) -> Json:
    """Return what came of comparing one copy."""
    return {**to_plain(result), "differing": result.counts.differing}
