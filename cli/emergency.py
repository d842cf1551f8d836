"""Emergencies on the command line: what may be lost, shown in plain words, asked for, accepted."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from cli.preview_views import checks_table, planned_fields
from cli.render import Output, fields, shown_ms
from cli.session import Session
from meshkit.errors import InvalidInput

WAITS_FOR_CONSENT = 10
_BOUND = re.compile(r"(records|seconds)=(\d+)")


def bound_of(text: str) -> dict[str, Any]:
    """Return the bound that `records=N,seconds=S` or `unknown` names.

    Raises:
        InvalidInput: it names none.
    """
    if text == "unknown":
        return {"unknown": True}
    bound: dict[str, Any] = {}
    for part in text.split(","):
        found = _BOUND.fullmatch(part.strip())
        if found is None:
            raise InvalidInput(
                f"--accept-loss {text!r}: {part!r} is no bound",
                hint="say records=N,seconds=S, or one of them, or unknown",
            )
        bound[found[1]] = int(found[2])
    return bound


def check_asked(*, is_emergency: bool, reason: str, of_emergency: Mapping[str, Any]) -> None:
    """Demand what an emergency needs, and nothing of it without one.

    Raises:
        InvalidInput: says what is missing or too much.
    """
    if is_emergency and not reason:
        raise InvalidInput(
            "an emergency needs --reason: it is kept in the record and the audit",
            hint='say why, in a few words: --reason "us-east does not answer since 14:05"',
        )
    given = [name for name, value in of_emergency.items() if value]
    if given and not is_emergency:
        raise InvalidInput(f"{' and '.join(given)}: only for an emergency", hint="add --emergency")


def preview_view(preview: Mapping[str, Any]) -> RenderableType:
    """Return what an emergency would do and lose, with what that means in plain words."""
    if preview.get("planned"):
        return _planned_first_view(preview)
    head = fields(
        {
            "Group": preview["group"],
            "EMERGENCY": f"{preview['source']} -> {preview['target']}",
            "Epoch": f"{preview['epoch']} -> {preview['epoch_after']}",
            **_emergency_fields(preview),
            "Takes the place of": preview.get("supersedes") or "-",
        }
    )
    return Lines(head, warnings(preview), checks_table(preview["checks"]))


def _planned_first_view(preview: Mapping[str, Any]) -> RenderableType:
    """Return both parts in the order in which they would be tried."""
    planned, source, target = preview["planned"], preview["source"], preview["target"]
    budget = shown_ms(planned["pause_budget_ms"])
    head = fields(
        {
            "Group": preview["group"],
            "Planned first": f"{source} -> {target}",
            "Epoch": f"{preview['epoch']} -> {preview['epoch_after']}",
        }
    )
    if planned["refused"]:
        failed = [c["name"] for c in planned["checks"] if not c["ok"] and not c["waived"]]
        first = (
            f"1. planned: cannot begin now ({', '.join(failed)}), so the emergency begins at once"
        )
    else:
        first = (
            f"1. planned, with the help of {source}: loses nothing, pauses writes {budget} at most"
        )
    second = "2. only if that fails before its pivot: EMERGENCY, and only with consent to the loss"
    return Lines(
        head,
        Text(first, style="bold"),
        fields(planned_fields(planned)),
        checks_table(planned["checks"]),
        Text(second, style="bold"),
        fields(_emergency_fields(preview)),
        warnings(preview),
        checks_table(preview["checks"]),
    )


def _emergency_fields(preview: Mapping[str, Any]) -> dict[str, Any]:
    loss = preview["loss"]
    missing = "; ".join(loss["objections"])
    return {
        "If it stopped now": loss["text"],
        "Consent": f"not enough: {missing}" if missing else "covers that",
        "Others": _others(loss),
        "Steps": ", ".join(preview.get("steps", ())),
    }


def _others(loss: Mapping[str, Any]) -> str:
    told = [f"{o['cluster']} has up to {o['certain']}" for o in loss["others"] if o["certain"]]
    advice = ""
    if loss["most_advanced"] != loss["target"]["cluster"]:
        advice = f"; {loss['most_advanced']} is further: promote it instead"
    return ("; ".join(told) or "no other member reports") + advice


def warnings(preview: Mapping[str, Any]) -> Text:
    """Return what the operator has to know before saying yes."""
    return warned(
        preview["source"],
        preview["target"],
        no_fence_wait=bool(preview.get("no_fence_wait")),
        may_lose=not preview["loss"]["target"]["is_none"],
    )


def warned(source: str, successor: str, *, no_fence_wait: bool, may_lose: bool) -> Text:
    """Return what moving writes without the help of `source` means, in plain words."""
    meaning = (
        f"This moves writes without the help of {source}. What {source} has acknowledged and"
        f" {successor} has not received is lost to applications; what survives at {source} is put"
        " in quarantine when it is back, never merged by itself."
    )
    lines = [meaning]
    if no_fence_wait:
        lines.append(
            f"NOT WAITING FOR THE FENCE: {source} may still accept writes after {successor} does."
            " They will be lost, and nobody can say how many."
        )
    if may_lose:
        lines.append("The loss is stated exactly once the copy is frozen, before anything moves.")
    return Text("\n".join(f"! {line}" for line in lines), style="bold red")


def typed(expected: str, question: str, *, yes: bool) -> bool:
    """Ask on the terminal to type a name; with `yes` do not ask.

    Raises:
        InvalidInput: there is no terminal to ask on.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InvalidInput(
            "this needs a typed confirmation and there is no terminal to ask on", hint="pass --yes"
        )
    answer: str = click.prompt(question, default="", show_default=False, err=True)
    return answer.strip() == expected


def ask_consent(session: Session, failover: Mapping[str, Any]) -> dict[str, Any] | None:
    """Show the loss as stated and ask for consent to exactly that; None without it.

    What is accepted is a bound as large as what was shown: if more is found out, it is asked again.
    """
    loss = failover["emergency"]["loss"]
    if not sys.stdin.isatty():
        tell_waiting(session.output, failover)
        return None
    tell_loss(session.output, loss)
    group = failover["group"]
    if not typed(group, f"Type {group} to accept that loss", yes=False):
        session.output.note("not accepted: nothing moves")
        tell_ways_on(session.output, failover)
        return None
    return consent(session, failover["id"], bound_of(shown(loss)))


def tell_waiting(output: Output, failover: Mapping[str, Any]) -> None:
    """Tell that a failover waits for consent, to what, and both ways to go on."""
    loss, failover_id = failover["emergency"]["loss"], failover["id"]
    output.note(f"{failover_id} waits for consent; {failover['source']} stays sealed meanwhile")
    tell_loss(output, loss)
    tell_ways_on(output, failover)


def tell_ways_on(output: Output, failover: Mapping[str, Any]) -> None:
    """Tell both ways on from a loss that nobody has accepted yet."""
    failover_id = failover["id"]
    command = approve_command(failover_id, failover["emergency"]["loss"])
    output.note(f"to accept that: {command}")
    output.note(f"to give up:     mesh failovers abort {failover_id}")


def tell_loss(output: Output, loss: Mapping[str, Any]) -> None:
    """Tell a loss as stated, and what no consent covers yet."""
    output.note(Text(f"! {loss['text']}", style="bold red"))
    for objection in loss["objections"]:
        output.note(f"  {objection}")


def approve_command(failover_id: str, loss: Mapping[str, Any]) -> str:
    """Return the command that accepts exactly the loss as stated."""
    return f"mesh failovers approve {failover_id} --accept-loss {shown(loss)}"


def shown(loss: Mapping[str, Any]) -> str:
    """Return the bound that covers a loss as stated, as `--accept-loss` takes it."""
    known, seconds = loss["target"]["records_known"], loss["seconds"]
    if known is None or seconds is None or loss["fence"] == "unknown":
        return "unknown"
    return f"records={known},seconds={seconds}"


def consent(session: Session, failover: str, bound: Mapping[str, Any]) -> dict[str, Any]:
    """Accept a loss within a bound, and return the failover."""
    path = f"/v1/failovers/{failover}/consent"
    answer = session.run(lambda api: api.post(path, {"accept_loss": dict(bound)})).body
    found = answer["failover"]
    assert isinstance(found, dict), "docs/api.md"
    return found


def waits(failover: Mapping[str, Any]) -> bool:
    """Return whether a failover waits for somebody to accept its loss."""
    emergency = failover.get("emergency") or {}
    return bool(emergency.get("awaits_consent"))


def outcome(failover: Mapping[str, Any]) -> str:
    """Return what an emergency did, in one line, for its end."""
    emergency = failover.get("emergency")
    if not emergency:
        return ""
    lines = [f"emergency; fence: {emergency['fence']}"]
    if emergency["after_planned"]:
        lines.append(f"after a planned failover was tried: {emergency['after_planned']}")
    if emergency["loss"]:
        lines.append(emergency["loss"]["text"])
    return "; ".join(lines)
