"""Draws `rejoin/1` as a mermaid state diagram, so that `docs/machines/rejoin.md` cannot rot. Pure.

python -m coordinator.rejoin.diagram > docs/machines/rejoin.md
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

from coordinator.rejoin.machine import FIND_ROUNDS_MAX
from coordinator.rejoin.record import APPROVE, FIND, PLAN, RECONCILE, STAND_BY, STEPS, RejoinStep


def page() -> str:
    """Return the page of the machine: its diagram and the table of its steps."""
    edges = "\n".join(f"    {edge}" for edge in _edges())
    rows = "\n".join(_row(number, step) for number, step in enumerate(STEPS, 1))
    return f"""# The machine of `{PLAN}`

Generated from `coordinator/rejoin/record.py` by `python -m coordinator.rejoin.diagram`.

```mermaid
stateDiagram-v2
{edges}
```

| # | Step | Who | Attempts | Somebody is told after |
|---|---|---|---|---|
{rows}

* It has no pivot and no undo: authority does not move, and nothing is given away. Only
  `{STEPS[RECONCILE].name}` lets anything be written over, and it comes after `quarantine`.
* A step that is refused is asked again, as often as the table says; then the rejoin is held until
  an operator resumes it. One that is not answered in time is held too, so that somebody is told,
  and goes on by itself when the answer comes after all.
* `{STEPS[APPROVE].name}` waits for a person only if not all of what diverged is known; else it is
  passed with the step before it.
* If more was written meanwhile, what diverged is looked for again, {FIND_ROUNDS_MAX} times at most.
* A cluster that says that it follows already only stands by. When authority moves, the rejoin is
  abandoned from wherever it is; another one begins, if it is needed still.
"""


def _edges() -> Iterator[str]:
    names = [step.name for step in STEPS]
    yield f"[*] --> {names[0]}"
    for one, two in itertools.pairwise(names):
        yield f"{one} --> {two}"
    yield f"{names[-1]} --> succeeded"
    yield f"{names[FIND]} --> {names[RECONCILE]}: nothing diverged"
    yield f"{names[RECONCILE]} --> {names[FIND]}: more was written meanwhile"
    yield f"{names[APPROVE]} --> held: not all of it is known"
    yield f"held --> {names[RECONCILE]}: approved"
    for step in STEPS:
        if step.command is not None:
            yield f"{step.name} --> held: refused, or silent"
            yield f"held --> {step.name}: late answer or resume"
    for name in names[:RECONCILE]:
        if name != names[APPROVE]:
            yield f"{name} --> {names[STAND_BY]}: it follows already"
    yield "held --> abandoned: authority moved"
    for ending in ("succeeded", "abandoned"):
        yield f"{ending} --> [*]"


def _row(number: int, step: RejoinStep) -> str:
    is_asked = step.command is not None
    who = "the cluster" if is_asked else "a person, or nobody"
    limits = (step.attempts_max, f"{step.timeout_ms} ms") if is_asked else ("", "")
    cells = (number, step.name, who, *limits)
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    sys.stdout.write(page())
