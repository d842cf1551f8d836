"""What an evacuation shows: the plan, what it may lose, who waits, how it ended."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from cli import emergency
from cli.render import table

Json = dict[str, Any]

ROWS_MAX = 20
"""Groups shown one by one; of more only the counts, and those with a problem."""


def repeat_command(
    cluster: str, body: Mapping[str, Any], request_id: str, *, accept: str = ""
) -> str:
    """Return the command that asks for the same again, perhaps with consent to a loss."""
    is_emergency = body["kind"] == "emergency"
    words = ["mesh", "clusters", "evacuate", cluster]
    if body.get("target"):
        words += ["--to", body["target"]]
    words += ["--emergency"] * is_emergency + ["--no-fence-wait"] * ("no_fence_wait" in body)
    if is_emergency:
        words += ["--reason", body["reason"]]
    for check in body.get("waive", ()):
        words += ["--waive", check]
    words += ["--yes", "--request-id", request_id]
    if accept:
        words += ["--accept-loss", accept]
    return shlex.join(words)


def plan_view(cluster: str, body: Mapping[str, Any], answer: Mapping[str, Any]) -> RenderableType:
    """Return what would happen to each group; of an emergency also what it means and may lose."""
    groups = answer["groups"]
    if body["kind"] != "emergency":
        return _plan_table(groups)
    losses = [row["loss"] for row in groups if row.get("loss")]
    warning = emergency.warned(
        cluster,
        body.get("target") or "the cluster that takes over",
        no_fence_wait=bool(body.get("no_fence_wait")),
        may_lose=any(not loss["target"]["is_none"] for loss in losses),
    )
    parts: list[RenderableType] = [_plan_table(groups, title="IF IT STOPPED NOW, OR WHY NOT")]
    if answer.get("loss"):
        parts.append(Text(f"in sum: {sum_words(answer['loss'])}"))
    return Lines(*parts, warning)


def sum_words(loss: Mapping[str, Any]) -> str:
    """Return what several groups may lose together, in plain words."""
    groups = _groups(loss["groups"])
    if loss["unbounded"]:
        return f"nobody can say for {loss['unbounded']} of {groups}; the others are shown above"
    seconds, records = loss["seconds"], loss["records_known"]
    if not seconds and not records:
        return f"nothing is known to be missing in {groups}"
    return f"up to {seconds} s of writes in {groups}, {records} of their records known"


def ended_view(
    cluster: str, progress: Mapping[str, Any], refused: Sequence[Json]
) -> RenderableType:
    """Return how each group stands that did not simply move, after the number of those that did."""
    lines = [f"{_groups(progress['moved'])} moved away from {cluster}"]
    lines += [f"{row['group']} was refused: {row['reason']}" for row in refused[:ROWS_MAX]]
    for row in progress["groups"]:
        if row["under_way"] and not row.get("waits_for_consent"):
            state = row["phase"] or "under way"
            lines.append(f"{row['group']}: {state}: mesh failovers watch {row['failover']}")
        elif not row["under_way"] and not row["moved"]:
            why = (row["problem"] or {}).get("happened", "")
            lines.append(f"{row['group']} stayed ({row['phase']}): {why}")
    head = Text("\n".join(lines))
    waiting = waiting_rows(progress)
    return Lines(head, _waiting_table(waiting)) if waiting else head


def waiting_rows(progress: Mapping[str, Any]) -> list[Json]:
    """Return the groups that wait for consent, those that may lose most first."""
    waiting = [row for row in progress["groups"] if row.get("waits_for_consent")]
    return sorted(waiting, key=lambda row: _weight(row["loss"]), reverse=True)


def ways_on(
    cluster: str, body: Mapping[str, Any], request_id: str, waiting: Sequence[Json]
) -> list[str]:
    """Return the exact commands that accept what is waited with: for all, and one by one."""
    bounds = {row["group"]: emergency.shown(row["loss"]) for row in waiting}
    unbounded = [row for row in waiting if bounds[row["group"]] == "unknown"]
    bounded = [row for row in waiting if row not in unbounded]
    common = common_bound(row["loss"] for row in bounded) if bounded else "unknown"
    command = repeat_command(cluster, body, request_id, accept=common)
    lines = [f"to accept for {_groups(len(bounded or waiting))}: {command}"]
    single = waiting if len(waiting) <= ROWS_MAX else unbounded if bounded else []
    lines += [
        f"only {row['group']}: {emergency.approve_command(row['failover'], row['loss'])}"
        for row in single[:ROWS_MAX]
    ]
    if len(waiting) > len(single):
        lines.append("one by one: mesh failovers list; mesh failovers approve ID")
    return [*lines, "to give one up: mesh failovers abort ID"]


def common_bound(losses: Iterable[Mapping[str, Any]]) -> str:
    """Return the smallest bound that covers each of these losses for itself."""
    stated = list(losses)
    records = max(loss["target"]["records_known"] for loss in stated)
    return f"records={records},seconds={max(loss['seconds'] for loss in stated)}"


def _plan_table(groups: Sequence[Json], *, title: str = "WHY") -> RenderableType:
    shown = [row for row in groups if row["outcome"] == "refused"]
    others = [row for row in groups if row["outcome"] != "refused"]
    if len(groups) <= ROWS_MAX:
        return table(("GROUP", "OUTCOME", "TO", title), map(_plan_row, [*shown, *others]))
    counts = Counter((row["outcome"], row["target"] or "-") for row in groups)
    rows = [(str(n), outcome, target, "") for (outcome, target), n in sorted(counts.items())]
    losing = sorted(
        (row for row in others if row.get("loss")),
        key=lambda row: _weight(row["loss"]),
        reverse=True,
    )
    rows += map(_plan_row, [*shown[:ROWS_MAX], *losing[:ROWS_MAX]])
    return table(("GROUP", "OUTCOME", "TO", title), rows)


def _plan_row(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    loss = row.get("loss")
    why = row["reason"] or (loss["text"] if loss else "")
    waits = (row.get("running") or {}).get("waits_for_consent")
    outcome = "waits for consent" if waits else row["outcome"]
    return row["group"], outcome, row["target"] or "-", why


def _waiting_table(waiting: Sequence[Json]) -> RenderableType:
    rows = [
        (row["group"], row["target"], "waits for consent", row["loss"]["text"])
        for row in waiting[:ROWS_MAX]
    ]
    if len(waiting) > ROWS_MAX:
        rows.append((f"and {len(waiting) - ROWS_MAX} more", "", "waits for consent", ""))
    return table(("GROUP", "TO", "STATE", "MAY LOSE"), rows)


def _weight(loss: Mapping[str, Any]) -> tuple[bool, int, int]:
    known = loss["target"]["records_known"]
    return emergency.shown(loss) == "unknown", loss["seconds"] or 0, known or 0


def _groups(count: int) -> str:
    return "1 group" if count == 1 else f"{count} groups"
