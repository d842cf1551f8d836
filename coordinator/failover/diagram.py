"""Draws a plan as a mermaid state diagram, so that `docs/machines/` cannot rot. Pure.

python -m coordinator.failover.diagram emergency/1 > docs/machines/emergency.md
"""

from __future__ import annotations

import itertools
import sys

from coordinator.failover.plan import EMERGENCY_1, PLANNED_1, Limit, Plan, Step, plan_named


def page(plan: Plan) -> str:
    """Return the page of a plan: its diagram and the table of its steps."""
    rows = "\n".join(_row(plan, index) for index in range(len(plan.steps)))
    edges = "\n".join(f"    {edge}" for edge in _edges(plan))
    return f"""# The machine of `{plan.name}`

Generated from `coordinator/failover/plan.py` by
`python -m coordinator.failover.diagram {plan.name}`.

```mermaid
stateDiagram-v2
{edges}
```

| # | Step | Who | Undo | Attempts | Time limit | Before the pivot |
|---|---|---|---|---|---|---|
{rows}

* A step before the pivot that fails or runs out of time is undone, beginning with the step in
  hand; so is every step when an operator aborts. After the pivot the way is only forward.
* A step that is refused is tried again after a pause ({_pause(plan)}), so that what refuses for a
  moment does not use up every attempt. One that is not answered is tried again at once.
* A failing undo, and a failing step after the pivot, hold the failover. It goes on by itself when
  the answer to the outstanding command comes after all, or when an operator resumes it. After a
  refusal, which will not be answered again, it takes the operator.
{_LAST_WORD[plan.name]}
"""


_LAST_WORD = {
    PLANNED_1.name: (
        "* The pause budget runs from the drain command to the pivot, over all steps that name it."
    ),
    EMERGENCY_1.name: (
        "* The fence ends with the source's answer, or when its proof of life has run out under\n"
        "  the seal, or (`--no-fence-wait`) at once. Consent waits for a person, without a limit.\n"
        "* Taking in, thaw and release go on without the answer: whoever was asked may be dead\n"
        "  for good. The command stays, and is obeyed whenever they come back."
    ),
}


def _edges(plan: Plan) -> list[str]:
    names = plan.step_names
    edges = [f"[*] --> {names[0]}"]
    edges += [f"{one} --> {two}" for one, two in itertools.pairwise(names)]
    edges.append(f"{names[-1]} --> succeeded")
    first_remote = next(i for i, step in enumerate(plan.steps) if step.is_remote)
    for index, step in enumerate(plan.steps):
        edges += _ways_out(plan, index, step, first_remote=first_remote)
    edges.append("held --> succeeded: late answer or resume")
    if any(step.undo and not step.undo.goes_on for step in plan.steps):
        edges.append("held --> rolled_back: the same")
    edges += [f"{end} --> [*]" for end in ("succeeded", "rolled_back", "refused")]
    return edges


def _ways_out(plan: Plan, index: int, step: Step, *, first_remote: int) -> list[str]:
    if index > plan.pivot:
        return [f"{step.name} --> held: fails"] if step.is_remote else []
    undo = next((s.undo for s in reversed(plan.steps[: index + 1]) if s.undo), None)
    if undo is not None:
        edges = [f"{step.name} --> {undo.name}: fails, abort"]
        if step.undo is undo:
            before = next((s.undo for s in reversed(plan.steps[:index]) if s.undo), None)
            edges.append(f"{undo.name} --> {before.name if before else 'rolled_back'}")
            edges += [] if undo.goes_on else [f"{undo.name} --> held: fails"]
        return edges
    if index < first_remote:
        return [f"{step.name} --> refused: fails", f"{step.name} --> rolled_back: abort"]
    return [f"{step.name} --> rolled_back: fails, abort"]


def _row(plan: Plan, index: int) -> str:
    step = plan.steps[index]
    undo = step.undo.name if step.undo else ""
    before = "pivot" if index == plan.pivot else "yes" if index < plan.pivot else "no"
    cells = (index + 1, step.name, step.party.value, undo, step.attempts_max, _limit(step), before)
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _pause(plan: Plan) -> str:
    undos = [step.undo for step in plan.steps if step.undo]
    pauses = sorted({step.retry_ms for step in (*plan.steps, *undos) if step.attempts_max > 1})
    return " or ".join(f"{pause} ms" for pause in pauses)


def _limit(step: Step) -> str:
    match step.limit:
        case Limit.PAUSE:
            return "pause budget"
        case Limit.CATCH_UP:
            return "catch-up limit of the policy"
        case Limit.STEP:
            return f"{step.timeout_ms} ms" if step.is_remote else ""


if __name__ == "__main__":
    sys.stdout.write(page(plan_named(sys.argv[1])))
