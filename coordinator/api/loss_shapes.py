"""The shapes of emergencies and of what they may lose, for the API's description. Pure."""

from __future__ import annotations

from coordinator.api.shapes import (
    FLAG,
    NUMBER,
    NUMBER_OR_NULL,
    TEXT,
    TEXT_OR_NULL,
    TEXTS,
    Json,
    list_of,
    object_of,
    one_of,
    or_null,
    ref,
)
from coordinator.failover.loss import FenceStatus

LOSS_SHAPES: dict[str, Json] = {
    "LossBound": object_of(records=NUMBER_OR_NULL, seconds=NUMBER_OR_NULL, unknown=FLAG),
    "Loss": object_of(
        cluster=TEXT,
        certain=NUMBER_OR_NULL,
        certain_of=TEXT_OR_NULL,
        certain_epoch=NUMBER_OR_NULL,
        is_none=FLAG,
        window_ms=NUMBER_OR_NULL,
        records_known=NUMBER_OR_NULL,
        records_estimated=NUMBER_OR_NULL,
    ),
    "LossStatement": object_of(
        source=TEXT,
        fence=one_of(FenceStatus),
        target=ref("Loss"),
        others=list_of("Loss"),
        stated_at_ms=NUMBER,
        seconds=NUMBER_OR_NULL,
        text=TEXT,
        most_advanced=TEXT,
        objections=TEXTS,
    ),
    "Emergency": object_of(
        fence=TEXT_OR_NULL,
        no_fence_wait=FLAG,
        after_planned=TEXT,
        supersedes=TEXT_OR_NULL,
        accepted=or_null("LossBound"),
        accepted_by=TEXT,
        automatic=FLAG,
        awaits_consent=FLAG,
        loss=or_null("LossStatement"),
    ),
    "Consent": object_of(accept_loss=ref("LossBound")),
}
