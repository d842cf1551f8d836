"""The shapes of automatic failovers as the API takes and answers them. Pure."""

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
from coordinator.automatic.judging import Standing
from coordinator.automatic.record import Obstacle
from meshkit.model import FailoverMode

AUTOMATIC_POLICY: dict[str, Json] = {
    "failover": one_of(FailoverMode),
    "automatic_after_ms": NUMBER,
    "automatic_cool_down_ms": NUMBER,
    "automatic_loss_records_max": NUMBER_OR_NULL,
    "automatic_loss_seconds_max": NUMBER_OR_NULL,
}

AUTOMATIC_SCHEMAS: dict[str, Json] = {
    "AutomaticReason": object_of(
        obstacle=one_of(Obstacle), detail=TEXT, cluster=TEXT_OR_NULL, until_ms=NUMBER_OR_NULL
    ),
    "AutomaticLast": object_of(
        failover=TEXT,
        source=TEXT,
        target=TEXT,
        began_ms=NUMBER,
        acknowledged_by=TEXT,
        acknowledged_ms=NUMBER_OR_NULL,
        acknowledged_reason=TEXT,
    ),
    "AutomaticFailover": object_of(
        group=TEXT,
        mode=one_of(FailoverMode),
        standing=one_of(Standing),
        proof_of_life=FLAG,
        target=TEXT_OR_NULL,
        reasons=list_of("AutomaticReason"),
        withheld_since_ms=NUMBER_OR_NULL,
        after_ms=NUMBER,
        cool_down_ms=NUMBER,
        loss_records_max=NUMBER_OR_NULL,
        loss_seconds_max=NUMBER_OR_NULL,
        needs_acknowledgement=FLAG,
        last=or_null("AutomaticLast"),
    ),
    "Acknowledgement": object_of(failover=TEXT, reason=TEXT),
    "AcknowledgementChange": object_of(changed=FLAG, automatic=ref("AutomaticFailover")),
}
