"""The shapes of rejoins as the API takes and answers them. Pure."""

from __future__ import annotations

from coordinator.api.shapes import FLAG, NUMBER, NUMBER_OR_NULL, TEXT, Json, list_of, or_null
from coordinator.api.shapes import ref as reference
from coordinator.rejoin.record import RejoinPhase

_REJOIN: Json = {
    "id": TEXT,
    "group": TEXT,
    "cluster": TEXT,
    "active": TEXT,
    "epoch": NUMBER,
    "plan": TEXT,
    "step_number": NUMBER,
    "steps_total": NUMBER,
    "requested_by": TEXT,
    "reason": TEXT,
    "began_ms": NUMBER,
    "ended_ms": NUMBER_OR_NULL,
    "cut": NUMBER_OR_NULL,
    "lineage": {"type": ["object", "null"]},
    "phase": {"type": "string", "enum": [phase.value for phase in RejoinPhase]},
    "step": TEXT,
    "diverged": {"type": "object", "additionalProperties": NUMBER},
    "completeness": TEXT,
    "needs_approval": FLAG,
    "approved_by": TEXT,
    "exit_code": NUMBER,
    "problem": {"type": ["object", "null"]},
    "steps": {"type": "array", "items": reference("FailoverStep")},
}


def _object(**fields: Json) -> Json:
    return {"type": "object", "properties": fields}


REJOIN_SCHEMAS: Json = {
    "Rejoin": _object(**_REJOIN),
    "Rejoins": _object(rejoins={"type": "array", "items": reference("Rejoin")}),
    "RejoinRequest": _object(group=TEXT, reason=TEXT, dry_run=FLAG),
    "RejoinBegun": _object(group=TEXT, message=TEXT, needed=FLAG, rejoin=or_null("Rejoin")),
    "RejoinsBegun": _object(cluster=TEXT, results=list_of("RejoinBegun")),
    "RejoinChange": _object(changed=FLAG, rejoin=reference("Rejoin")),
}
