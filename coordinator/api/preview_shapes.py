"""The shapes of what would happen: checks, and previews of failovers. Pure."""

from __future__ import annotations

from coordinator.api.shapes import (
    FLAG,
    NUMBER,
    NUMBER_OR_NULL,
    TEXT,
    TEXT_OR_NULL,
    Json,
    list_of,
    object_of,
    one_of,
    or_null,
    ref,
)
from coordinator.failover.plan import PLANS
from coordinator.failover.record import FailoverKind
from meshkit.status import StreamState

STEP_NAMES = sorted({name for plan in PLANS.values() for name in plan.step_names})

_JUDGED = {
    "lag_ms": NUMBER_OR_NULL,
    "lag_error_ms": NUMBER_OR_NULL,
    "stream": one_of(StreamState),
    "pause_ms_predicted": NUMBER_OR_NULL,
    "pause_budget_ms": NUMBER,
    "steps": {"type": "array", "items": {"type": "string", "enum": STEP_NAMES}},
    "checks": list_of("Check"),
    "refused": FLAG,
}

PREVIEW_SHAPES: dict[str, Json] = {
    "Check": object_of(name=TEXT, ok=FLAG, detail=TEXT, waivable=FLAG, waived=FLAG, level=TEXT),
    "Preview": object_of(
        group=TEXT,
        kind=one_of(FailoverKind),
        source=TEXT,
        target=TEXT,
        epoch=NUMBER,
        epoch_after=NUMBER,
        **_JUDGED,
        loss=ref("LossStatement"),
        no_fence_wait=FLAG,
        supersedes=TEXT_OR_NULL,
        planned=or_null("PlannedPreview"),
    ),
    "PlannedPreview": object_of(**_JUDGED),
}
