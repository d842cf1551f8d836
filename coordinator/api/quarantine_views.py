"""Entries of quarantine as the API shows them, and their ids. Pure."""

from __future__ import annotations

import base64
import re
from typing import Any

from meshkit.asking import EntryName, ReplayOutcome, WholeEntry
from meshkit.errors import InvalidInput
from meshkit.names import ClusterName, GroupName, cluster_name
from meshkit.ordinals import Epoch
from meshkit.quarantine import KeptValue, QuarantineEntry

Json = dict[str, Any]

_ID = re.compile(r"(?P<cluster>[^.]+)\.(?P<epoch>\d{1,10})\.(?P<name>\d{16}-[0-9a-f]{24})")


def entry_id(cluster: ClusterName, epoch: Epoch, name: str) -> str:
    """Return what names an entry in the whole mesh, for one group."""
    return f"{cluster}.{epoch}.{name}"


def parse_id(group: GroupName, text: str) -> tuple[ClusterName, EntryName]:
    """Return the cluster and the entry that an id names.

    Raises:
        InvalidInput: it is no id of an entry.
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise InvalidInput(
            f"{text!r} is no id of an entry in quarantine",
            hint=f"see them: mesh quarantine list {group}",
        )
    name = EntryName(epoch=Epoch(int(match["epoch"])), name=match["name"])
    return cluster_name(match["cluster"]), name


def entry_view(cluster: ClusterName, entry: QuarantineEntry) -> Json:
    """Return an entry as it is listed; a large value without its bytes."""
    return {
        "id": entry_id(cluster, entry.epoch, entry.name),
        "cluster": cluster,
        "group": entry.group,
        "epoch": entry.epoch,
        "sequence": entry.sequence,
        "key": entry.key.decode(errors="backslashreplace"),
        "key_base64": _base64(entry.key),
        "change": "delete" if entry.is_delete else "put",
        "class": entry.divergence.value,
        "origin": entry.origin.value,
        "completeness": entry.completeness.value,
        "newest": entry.is_newest,
        "here": _kept_view(entry.here),
        "there": _kept_view(entry.there),
        "there_cluster": entry.there_cluster,
        "there_sequence": entry.there_sequence,
        "parent_sequence": entry.parent_sequence,
        "at_ms": entry.at_ms,
        "why": entry.why,
        "replayed_ms": entry.replayed_ms,
        "replayed_by": entry.replayed_by,
    }


def whole_view(cluster: ClusterName, whole: WholeEntry) -> Json:
    """Return an entry with the bytes of its values, however large."""
    shown = entry_view(cluster, whole.entry)
    for side, value in (("here", whole.here), ("there", whole.there)):
        if value is not None:
            shown[side] = {**shown[side], "base64": _base64(value)}
    return shown


def result_view(
    cluster: ClusterName, entry: QuarantineEntry, outcome: ReplayOutcome, reason: str
) -> Json:
    """Return what came of replaying one entry."""
    return {
        "id": entry_id(cluster, entry.epoch, entry.name),
        "key": entry.key.decode(errors="backslashreplace"),
        "outcome": outcome.value,
        "reason": reason,
    }


def _kept_view(value: KeptValue | None) -> Json | None:
    if value is None:
        return None
    return {
        "bytes": value.size,
        "sha256": value.digest,
        "base64": _base64(value.inline) if value.inline is not None else None,
    }


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
