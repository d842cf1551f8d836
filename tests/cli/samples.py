"""Bodies in the shapes of docs/api.md."""

from __future__ import annotations

from typing import Any

CLUSTER: dict[str, Any] = {
    "name": "eu-west",
    "region": "eu-west-1",
    "intent": "in-service",
    "priority": 100,
    "failover_policy": "allowed",
    "etcd_endpoints": ["https://10.0.0.1:2379"],
    "replication_endpoints": ["10.0.0.1:7000"],
    "owners": ["team"],
    "annotations": {},
    "change_ticket": "",
    "state": "passive",
    "active_groups": [],
    "health": {
        "replicator": "eu-west-1",
        "etcd_version": "3.5.1",
        "revision": 123,
        "raft_index": 130,
        "db_size_bytes": 20480,
        "alarms": [],
        "certificate_not_after_ms": 1790000000000,
        "foreign_writes": 0,
        "problems": [],
        "at_ms": 1780000000000,
        "age_ms": 120,
        "fresh": True,
    },
}
LOST_CLUSTER: dict[str, Any] = CLUSTER | {"name": "us-east", "state": "active", "health": None}

STEPS = (
    *("check", "approve", "verify", "catch_up", "drain"),
    *("converge", "pivot", "open", "reverse", "settle"),
)


def failover(phase: str = "advancing", done: int = 0, **more: Any) -> dict[str, Any]:
    """A failover of which the first `done` steps have ended, each after 12 ms."""
    code = {"succeeded": 0, "refused": 3, "rolled_back": 8}.get(phase, 5)
    steps = [
        {
            "step": name,
            "status": "done" if index < done else "pending",
            "detail": "",
            "started_ms": 1000 + 12 * index if index < done else None,
            "ended_ms": 1012 + 12 * index if index < done else None,
        }
        for index, name in enumerate(STEPS)
    ]
    return {
        "id": "f-1",
        "group": "orders",
        "kind": "promote",
        "plan": "planned/1",
        "source": "us-east",
        "target": "eu-west",
        "epoch_before": 3,
        "epoch_after": 4,
        "authority_moved": done > 6,
        "phase": phase,
        "step": STEPS[min(done, 9)],
        "step_number": min(done, 9) + 1,
        "steps_total": 10,
        "requested_by": "alice",
        "reason": "",
        "change_ticket": "",
        "waivers": [],
        "cut": 991,
        "began_ms": 1000,
        "ended_ms": 1120 if phase == "succeeded" else None,
        "pause_ms": 150 if phase == "succeeded" else None,
        "exit_code": code,
        "problem": None,
        "steps": steps,
        **more,
    }


GROUP: dict[str, Any] = {
    "group": "orders",
    "active": "us-east",
    "epoch": 3,
    "members": ["us-east", "eu-west"],
    "prefixes": ["/orders/"],
    "failover": None,
    "problem": "",
    "token": "1.42",
    "sealed": False,
    "policy": {"lag_ms_max": 5000},
    "lineage": None,
    "last_failover": None,
    "clusters": [
        {
            "cluster": "us-east",
            "active": True,
            "fence": "open",
            "fence_epoch": 3,
            "permit": True,
            "in_step": True,
            "lag_ms": None,
            "lag_error_ms": None,
            "stream": None,
            "problem": "",
            "if_promoted": None,
        },
        {
            "cluster": "eu-west",
            "active": False,
            "fence": "superseded",
            "fence_epoch": 3,
            "permit": False,
            "in_step": True,
            "lag_ms": None,
            "lag_error_ms": None,
            "stream": "unknown",
            "problem": "",
            "if_promoted": {"pause_ms": 150, "loss": "none", "blockers": ["lag"]},
        },
    ],
}


def check(name: str, *, ok: bool = True, detail: str = "fine") -> dict[str, Any]:
    return {
        "name": name,
        "ok": ok,
        "detail": detail,
        "waivable": True,
        "waived": False,
        "level": "ok" if ok else "failed",
    }


def preview(*checks: dict[str, Any], epoch: int = 3) -> dict[str, Any]:
    """The answer to a dry run."""
    refused = any(not c["ok"] and not c["waived"] for c in checks)
    return {
        "changed": False,
        "dry_run": True,
        "preview": {
            "group": "orders",
            "kind": "promote",
            "source": "us-east",
            "target": "eu-west",
            "epoch": epoch,
            "epoch_after": epoch + 1,
            "lag_ms": 12,
            "lag_error_ms": 5,
            "stream": "streaming",
            "pause_ms_predicted": 150,
            "pause_budget_ms": 10000,
            "steps": list(STEPS),
            "checks": list(checks or (check("lag", detail="12 ms behind"),)),
            "refused": refused,
        },
    }


def stream(state: str = "streaming", **more: Any) -> dict[str, Any]:
    return {
        "source": "us-east",
        "target": "eu-west",
        "groups": ["orders"],
        "epochs": {"orders": 3},
        "state": state,
        "lag_ms": 3,
        "lag_error_ms": 5,
        "records": 0,
        "bytes": 0,
        "head": 1000,
        "applied": 1000,
        "records_per_second": 120.5,
        "headroom_ms": 280_000,
        "is_spooled": False,
        "in_step": {
            "state": "streaming",
            "lag_ms": 3,
            "lag_error_ms": 5,
            "records": 0,
            "bytes": 0,
        },
        "groups_out_of_step": [],
        "behind": [],
        "status_age_ms": 80,
        "fresh": True,
        "problem": "",
        **more,
    }
