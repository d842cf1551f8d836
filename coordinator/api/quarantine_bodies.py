"""What is asked about quarantine: bodies and queries, checked by hand. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from coordinator.api.bodies import Fields, cluster_field, number_field, text_field, texts_field
from meshkit.errors import InvalidInput
from meshkit.names import ClusterName, cluster_name
from meshkit.ordinals import Epoch

LIST_MAX = 500


@attrs.frozen(kw_only=True)
class QuarantineAct:
    """Which entries somebody wants replayed or discarded: some by id, or all of a cluster's."""

    cluster: ClusterName | None = None
    epoch: Epoch | None = None
    start: bytes | None = None
    """Where a request for all goes on."""
    ids: tuple[str, ...] = ()
    reason: str = ""


@attrs.frozen(kw_only=True)
class QuarantineQuery:
    """Which entries somebody wants to see."""

    cluster: ClusterName | None
    epoch: Epoch | None
    start: bytes | None
    limit: int


def quarantine_act_of(body: Mapping[str, Any]) -> QuarantineAct:
    """Return the act that `body` asks for.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    readers = {
        "cluster": cluster_field,
        "epoch": number_field,
        "after": text_field,
        "ids": texts_field,
        "reason": text_field,
    }
    given = Fields(body, readers).given
    after = given.pop("after", None)
    if given.get("ids") and (given.get("cluster") or after):
        raise InvalidInput("ids: name entries, or all of a cluster's, not both")
    return QuarantineAct(start=_place(after), **given)


def quarantine_query_of(query: Mapping[str, str]) -> QuarantineQuery:
    """Return what a query asks to see.

    Raises:
        InvalidInput: names the parameter and what it should be.
    """
    cluster, after = query.get("cluster"), query.get("after")
    for name in ("epoch", "limit"):
        if not query.get(name, "0").isdigit():
            raise InvalidInput(f"{name}: expected a number, found {query[name]!r}")
    if after and not cluster:
        raise InvalidInput("after: goes on within one cluster; name it with cluster")
    limit = int(query.get("limit", LIST_MAX))
    return QuarantineQuery(
        cluster=cluster_name(cluster) if cluster else None,
        epoch=Epoch(int(query["epoch"])) if query.get("epoch") else None,
        start=_place(after),
        limit=min(max(1, limit), LIST_MAX),
    )


def _place(text: str | None) -> bytes | None:
    if not text:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise InvalidInput("after: take it from `next` of the answer before") from error
