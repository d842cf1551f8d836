"""How streams look on a terminal: what is not known says so, and is never 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from cli.render import shown_bytes, shown_lag, shown_ms, shown_time, table, word


def streams_table(streams: Sequence[Mapping[str, Any]]) -> Table:
    """Return `mesh replication status`; what is not known says so, and is never 0."""
    return table(
        (
            *("STREAM", "GROUPS", "STATE", ">EPOCH", ">HEAD", ">APPLIED", ">LAG", ">RECORDS"),
            *(">BYTES", ">RATE", ">HISTORY", "OUT OF STEP", "LAST VERIFY", "PROBLEM"),
        ),
        (
            (
                f"{s['source']} -> {s['target']}",
                s.get("groups"),
                word(s.get("state")),
                _epochs(s),
                _known(s.get("head")),
                _known(s.get("applied")),
                shown_lag(s.get("lag_ms"), s.get("lag_error_ms")),
                _known(s.get("records")),
                _known(s.get("bytes"), shown_bytes),
                _known(s.get("records_per_second"), lambda rate: f"{rate:.0f}/s"),
                _known(s.get("headroom_ms"), shown_ms),
                _out_of_step(s),
                [_verified(result) for result in s.get("last_verify", ())] or "never",
                s.get("problem"),
            )
            for s in streams
        ),
    )


def streams_view(body: Mapping[str, Any]) -> RenderableType:
    """Return `mesh replication status`: every stream, and what operators have paused."""
    streams = streams_table(body["streams"])
    paused = [pause_note(pause) for pause in body.get("pauses") or ()]
    return Group(streams, "", *paused) if paused else streams


def pause_note(pause: Mapping[str, Any]) -> str:
    """Return what a status says of something that is paused."""
    why = f": {pause['reason']}" if pause.get("reason") else ""
    since = shown_time(pause.get("since_ms"))
    return (
        f"{pause['what']} is paused by {pause['by']} since {since}{why} (mesh replication resume)"
    )


def _out_of_step(stream: Mapping[str, Any]) -> list[str]:
    """Return which groups are out of step, why, and how far behind; of a copy how far it is."""
    copies = {copy["group"]: copy for copy in stream.get("copies") or ()}
    behind = {one["group"]: one for one in stream.get("behind") or ()}
    return [
        ": ".join(
            text
            for text in (
                group,
                _behind(behind[group]) if group in behind else "",
                copied(copies[group]) if group in copies else "",
            )
            if text
        )
        for group in stream.get("groups_out_of_step") or ()
    ]


def _behind(behind: Mapping[str, Any]) -> str:
    lag = shown_lag(behind.get("lag_ms"), behind.get("lag_error_ms"))
    records = behind.get("records")
    counted = "" if records is None else f", {records:,} records"
    return f"{behind['why']}, lag {lag}{counted}"


def copied(copy: Mapping[str, Any]) -> str:
    """Return how far a copy is."""
    total = copy["keys_total"]
    percent = 100 * copy["keys_done"] // total if total else 0
    return f"{percent}% of {total:,} keys copied, {shown_bytes(copy['bytes_sent'])} sent"


def _known(value: Any, form: Callable[[Any], str] = str) -> str:
    return "unknown" if value is None else form(value)


def _epochs(stream: Mapping[str, Any]) -> str:
    """Return the epochs that flow there: one number if they are all equal."""
    epochs = stream.get("epochs") or {}
    if len(set(epochs.values())) == 1:
        return str(next(iter(epochs.values())))
    return ", ".join(f"{group} {epoch}" for group, epoch in sorted(epochs.items())) or "unknown"


def _verified(result: Mapping[str, Any]) -> str:
    return f"{result['group']} {_outcome(result)} {shown_time(result.get('ended_ms'))}"


def _outcome(result: Mapping[str, Any]) -> str:
    if result["outcome"] == "different":
        return f"{result['differing']} differ"
    return str(result["outcome"])


def foreign_table(copies: Sequence[Mapping[str, Any]]) -> Table:
    """Return `mesh replication foreign`: one line for each write that is listed."""
    return table(
        ("CLUSTER", ">COUNT", "KEY", "CHANGE", ">REVISION"),
        (
            (
                copy["cluster"],
                _known(copy["count"]),
                one.get("key"),
                ("delete" if one["deleted"] else "put") if one else None,
                one.get("revision"),
            )
            for copy in copies
            for one in copy["latest"] or [{}]
        ),
    )
