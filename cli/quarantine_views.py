"""What quarantine looks like as tables (docs/api.md)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from cli.render import fields, shown_bytes, shown_time, table

VALUE_CHARS_MAX = 2_000


def entries_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return `mesh quarantine list`."""
    return table(
        ("ID", "CLASS", "CHANGE", "KEY", ">HERE", ">THERE", "KNOWN", "ORIGIN", "STATUS"),
        (
            (
                e["id"],
                e["class"],
                e["change"],
                e["key"] or "(something may be missing)",
                _size(e["here"]),
                _size(e["there"]),
                e["completeness"],
                e["origin"],
                _status(e),
            )
            for e in entries
        ),
    )


def entry_view(entry: Mapping[str, Any]) -> RenderableType:
    """Return `mesh quarantine show`."""
    return fields(
        {
            "Entry": entry["id"],
            "Key": entry["key"],
            "Change": entry["change"],
            "Class": entry["class"],
            "Origin": entry["origin"],
            "Known": entry["completeness"],
            "Why": entry["why"],
            "Epoch": entry["epoch"],
            "Sequence": entry["sequence"],
            "Successor stands on": entry["parent_sequence"],
            "Set aside": shown_time(entry["at_ms"]),
            "Here": _value(entry["here"]),
            "There": _value(entry["there"]),
            "There was": entry["there_cluster"],
            "Status": _status(entry),
        }
    )


def results_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Return `mesh quarantine replay`."""
    return table(
        ("ID", "KEY", "OUTCOME", "REASON"),
        ((r["id"], r["key"], r["outcome"], r["reason"]) for r in results),
    )


def _status(entry: Mapping[str, Any]) -> str:
    if entry["replayed_ms"]:
        return f"replayed by {entry['replayed_by']}"
    return "waits" if entry["newest"] else "overwritten by a later one"


def _size(value: Mapping[str, Any] | None) -> str:
    return shown_bytes(value["bytes"]) if value else "(none)"


def _value(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "(none)"
    if value["base64"] is None:
        return f"{shown_bytes(value['bytes'])}, SHA-256 {value['sha256']}"
    text = base64.b64decode(value["base64"]).decode(errors="backslashreplace")
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}..."
