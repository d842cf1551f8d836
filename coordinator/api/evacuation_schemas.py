"""The shapes of requests and answers about evacuations. Pure."""

from __future__ import annotations

from typing import Any

from coordinator.api.shapes import or_null
from coordinator.failover.record import FailoverKind, Phase
from coordinator.governance.preflight import WAIVABLE_NAMES

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_TEXT_OR_NULL: Json = {"type": ["string", "null"]}
_FLAG: Json = {"type": "boolean"}
_NUMBER: Json = {"type": "integer"}
_NUMBER_OR_NULL: Json = {"type": ["integer", "null"]}
_LOSS: Json = or_null("LossStatement")


def _object(**fields: Json) -> Json:
    return {"type": "object", "properties": fields}


def _rows(**fields: Json) -> Json:
    return {"type": "array", "items": _object(**fields)}


EVACUATION_SCHEMAS: dict[str, Json] = {
    "LossInSum": _object(
        groups=_NUMBER,
        unbounded=_NUMBER,
        seconds=_NUMBER_OR_NULL,
        records_known=_NUMBER_OR_NULL,
    ),
    "EvacuationRequest": _object(
        target=_TEXT,
        kind={"type": "string", "enum": [kind.value for kind in FailoverKind]},
        reason=_TEXT,
        change=_TEXT,
        waive={"type": "array", "items": {"type": "string", "enum": sorted(WAIVABLE_NAMES)}},
        accept_loss=_object(records=_NUMBER, seconds=_NUMBER, unknown=_FLAG),
        no_fence_wait=_FLAG,
        planned_first=_FLAG,
        dry_run=_FLAG,
        request_id=_TEXT,
    ),
    "Evacuation": _object(
        cluster=_TEXT,
        kind=_TEXT,
        request_id=_TEXT,
        dry_run=_FLAG,
        changed=_FLAG,
        loss=or_null("LossInSum"),
        groups=_rows(
            group=_TEXT,
            target=_TEXT_OR_NULL,
            failover=_TEXT_OR_NULL,
            outcome={
                "type": "string",
                "enum": ["begun", "under_way", "would_move", "moved", "refused"],
            },
            reason=_TEXT,
            loss=_LOSS,
            running={"type": ["object", "null"]},
        ),
    ),
    "EvacuationProgress": _object(
        cluster=_TEXT,
        request_id=_TEXT,
        under_way=_NUMBER,
        moved=_NUMBER,
        waiting=_NUMBER_OR_NULL,
        loss=or_null("LossInSum"),
        groups=_rows(
            group=_TEXT,
            failover=_TEXT,
            moved=_FLAG,
            under_way=_FLAG,
            waits_for_consent=_FLAG,
            target=_TEXT_OR_NULL,
            step=_TEXT_OR_NULL,
            loss=_LOSS,
            phase={"type": ["string", "null"], "enum": [*(p.value for p in Phase), None]},
            problem={"type": ["object", "null"]},
        ),
    ),
}
