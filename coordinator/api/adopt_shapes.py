"""The shapes of requests and answers about adopting an etcd that went back. Pure."""

from __future__ import annotations

from coordinator.adoption_regions import Answering
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
)
from meshkit.incarnations import SuspectStore

ADOPT_SHAPES: dict[str, Json] = {
    "AdoptRequest": object_of(reason=TEXT, expect_suspension=NUMBER_OR_NULL, dry_run=FLAG),
    "AdoptChange": object_of(
        changed=FLAG, incarnation=TEXT_OR_NULL, suspended=or_null("Suspended")
    ),
    "Suspended": object_of(
        store=one_of(SuspectStore),
        reason=TEXT,
        incarnation=TEXT,
        replicator=TEXT,
        age_ms=NUMBER,
        suspension=NUMBER,
        adopted=FLAG,
        active_groups=TEXTS,
        next=TEXT,
    ),
    "CoordinationAdoptRequest": object_of(reason=TEXT, waive=TEXTS, expect_plan=TEXT, dry_run=FLAG),
    "CoordinationAdoption": object_of(
        changed=FLAG,
        number=NUMBER,
        plan=TEXT,
        regions=list_of("RegionAnswer"),
        groups=list_of("GroupGiven"),
        problems=TEXTS,
        warnings=TEXTS,
        waived=TEXTS,
        wait_ms=NUMBER,
    ),
    "RegionAnswer": object_of(cluster=TEXT, answer=one_of(Answering), detail=TEXT),
    "GroupGiven": object_of(
        group=TEXT,
        active=TEXT,
        epoch=NUMBER,
        was_active=TEXT_OR_NULL,
        was_epoch=NUMBER_OR_NULL,
        why=TEXT,
    ),
}
