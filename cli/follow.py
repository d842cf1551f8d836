"""Follows a failover to its end, telling each step as it happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import attrs
from rich.text import Text

from cli import emergency
from cli.api import MeshApi
from cli.render import Output, shown_ms, took_ms, word
from meshkit.errors import Unreachable

ENDED = frozenset({"succeeded", "rolled_back", "refused", "superseded"})
STILL_RUNNING = 5
INTERRUPTED = 130
_UNDOS = frozenset({"undrain", "release", "thaw"})
_STEP_ENDED = frozenset({"done", "skipped", "failed", "undone"})


@attrs.define
class Progress:
    """Writes each step of one failover once, when it has ended, with its time and the total."""

    output: Output
    label: str = ""
    """Put before each line, where several failovers are followed at once."""
    failover: dict[str, Any] | None = None
    _told: set[tuple[str, int | None, str]] = attrs.field(factory=set)
    """Steps by name and beginning: both plans of `--planned-then-emergency` have an `approve`."""
    _told_hold: str = ""
    _told_emergency: bool = False

    def on_failover(self, failover: dict[str, Any]) -> None:
        """Take in the newest state of the failover and write what is new in it."""
        self.failover = failover
        self._tell_emergency(failover)
        for index, step in enumerate(failover.get("steps", ())):
            told = (step["step"], step["started_ms"], step["status"])
            if step["status"] in _STEP_ENDED and told not in self._told:
                self._told.add(told)
                self.output.note(Text(self.label).append_text(step_line(failover, index)))
        problem = failover.get("problem") or {}
        if failover["phase"] == "held" and problem.get("happened") != self._told_hold:
            self._told_hold = str(problem.get("happened"))
            self.output.note(problem_lines(failover))

    def _tell_emergency(self, failover: Mapping[str, Any]) -> None:
        why = (failover.get("emergency") or {}).get("after_planned")
        if why and not self._told_emergency:
            self._told_emergency = True
            text = f"the planned failover was given up before its pivot: {why}"
            self.output.note(Text(f"! {text}\n! it goes on as an EMERGENCY", style="bold red"))


def step_line(failover: Mapping[str, Any], index: int) -> Text:
    """Return `3/10 drain  ok 0.012s (total 0.4s)` for a step that has ended."""
    step = failover["steps"][index]
    total = failover["steps_total"]
    number = f"{index + 1}/{total}" if index < total else "undo"
    if index >= total and (failover.get("emergency") or {}).get("after_planned"):
        number = "undo" if step["step"] in _UNDOS else "plan"
    ok = {"done": "ok"}.get(step["status"], step["status"])
    took = took_ms(step)
    line = Text(f"{number:>5} {step['step']:<10} ")
    line.append_text(word(ok))
    if took is not None:
        line.append(f" {took / 1000:.3f}s")
        line.append(f" (total {(step['ended_ms'] - failover['began_ms']) / 1000:.1f}s)")
    if step.get("detail"):
        line.append(f"  {step['detail'].removeprefix('skipped: ')}")
    return line


def problem_lines(failover: Mapping[str, Any]) -> Text:
    """Return what happened, the state now and what to do, as the coordinator says it."""
    problem = failover.get("problem") or {}
    lines = Text(f"{failover['phase']}: {problem.get('happened', 'no reason given')}", style="bold")
    for title, name in (("State", "state"), ("Next", "next")):
        if problem.get(name):
            lines.append(f"\n{title + ':':<7}{problem[name]}", style="not bold")
    return lines


async def follow(
    api: MeshApi,
    failover: dict[str, Any],
    *,
    output: Output,
    timeout_ms: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Follow until the failover ends or `timeout_ms` have passed; return its newest state."""
    progress = progress or Progress(output)
    progress.on_failover(failover)
    if failover["phase"] in ENDED or emergency.waits(failover):
        return failover
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            async with contextlib.aclosing(api.events(failover["id"])) as events:
                async for event in events:
                    if isinstance(newest := event.body.get("failover"), dict):
                        progress.on_failover(newest)
                        if emergency.waits(newest) and (still := await _waiting(api, newest)):
                            return still
            newest = await api.get(f"/v1/failovers/{failover['id']}")
            progress.on_failover(newest)
    except TimeoutError:
        output.note(f"still going on after {shown_ms(timeout_ms)}")
        output.note(f"reattach with: mesh failovers watch {failover['id']}")
    except Unreachable as error:
        raise Unreachable(
            f"lost sight of failover {failover['id']}, which goes on: {error}",
            hint=f"mesh failovers watch {failover['id']}",
        ) from error
    assert progress.failover is not None, "it was told of the first state above"
    return progress.failover


async def _waiting(api: MeshApi, seen: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a failover if it still waits for consent; what was seen may be long over."""
    newest = await api.get(f"/v1/failovers/{seen['id']}")
    return newest if emergency.waits(newest) else None


def exit_code(failover: Mapping[str, Any]) -> int:
    """Return the exit code for how a failover stands."""
    return int(failover.get("exit_code", STILL_RUNNING))


def conclude(output: Output, failover: Mapping[str, Any]) -> None:
    """Tell how a failover stands, on stderr."""
    match failover["phase"]:
        case "succeeded":
            paused = shown_ms(failover.get("pause_ms"))
            output.note(
                f"succeeded: {failover['target']} accepts writes for {failover['group']}"
                f" (epoch {failover['epoch_after']}); writes paused {paused}"
            )
            if failover.get("emergency"):
                output.note(emergency.outcome(failover))
            elif failover.get("planned_first"):
                output.note("planned: no emergency was needed, and nothing is lost")
        case "rolled_back" | "refused" | "superseded":
            output.note(problem_lines(failover))
        case _:
            output.note(f"{failover['id']} is {failover['phase']} at {failover['step']}")


def tell_interrupted(output: Output, failover_id: str) -> int:
    """Tell that Ctrl-C ends the watching, not the failover; return the exit code."""
    output.note(f"the failover goes on; reattach with: mesh failovers watch {failover_id}")
    return INTERRUPTED
