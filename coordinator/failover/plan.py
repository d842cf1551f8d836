"""The plans of failovers, as data: named, versioned, kept for as long as a record names them. Pure.

A record stores a plan's name, not its steps. A coordinator that meets a plan it does not know
refuses to go on with it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

from meshkit.errors import NewerSchema


class Party(enum.Enum):
    """Who carries a step out."""

    COORDINATOR = "coordinator"
    SOURCE = "source"
    """The replicator of the cluster that writes move away from."""
    TARGET = "target"
    """The replicator of the cluster that writes move to."""


class Limit(enum.Enum):
    """What bounds the time of a step."""

    STEP = "step"
    """The step's own `timeout_ms`, anew for each attempt."""
    CATCH_UP = "catch_up"
    """`catch_up_ms_max` of the group's policy."""
    PAUSE = "pause"
    """`pause_budget_ms` of the group's policy: one budget for all such steps, from the first on."""


@attrs.frozen(kw_only=True)
class Step:
    """One step: who does it, how it is undone, how often and for how long it is tried."""

    name: str
    party: Party = Party.COORDINATOR
    undo: Step | None = None
    attempts_max: int = attrs.field(default=1, validator=attrs.validators.gt(0))
    limit: Limit = Limit.STEP
    timeout_ms: int = attrs.field(default=30_000, validator=attrs.validators.gt(0))
    retry_ms: int = attrs.field(default=500, validator=attrs.validators.ge(0))
    """From a refusal to the next attempt: what refuses for a moment must not use them all up."""
    command: str = ""
    """What the region is told to do, if that is not the step's own name."""
    goes_on: bool = False
    """Whether the failover goes on without the answer: whoever was asked may be dead for good. The
    command stays, and is obeyed whenever they come back."""
    may_skip: bool = False
    """Whether whoever knows that it would change nothing may pass it, before its command is put."""

    @property
    def is_remote(self) -> bool:
        """Whether a region is asked by a command, and answers."""
        return self.party is not Party.COORDINATOR


@attrs.frozen(kw_only=True)
class Plan:
    """Steps in order. At `steps[pivot]` authority moves; from then on the way is forward only."""

    name: str
    steps: tuple[Step, ...]
    pivot: int

    def __attrs_post_init__(self) -> None:
        assert 0 < self.pivot < len(self.steps), "the pivot is one of the steps"
        undone = [step.undo for step in self.steps[self.pivot :]]
        assert not any(undone), "nothing is undone from the pivot on"

    @property
    def step_names(self) -> tuple[str, ...]:
        """The names of the steps, in order."""
        return tuple(step.name for step in self.steps)


UNDRAIN = Step(name="undrain", party=Party.SOURCE, attempts_max=3, timeout_ms=10_000)

# The pivot has no act of its own: authority moves in the transaction that stores its record.
PLANNED_1 = Plan(
    name="planned/1",
    steps=(
        Step(name="check"),
        Step(name="approve"),
        Step(name="verify"),
        Step(name="catch_up", party=Party.SOURCE, limit=Limit.CATCH_UP, may_skip=True),
        Step(name="drain", party=Party.SOURCE, undo=UNDRAIN, limit=Limit.PAUSE),
        Step(name="converge", party=Party.TARGET, limit=Limit.PAUSE),
        Step(name="pivot", limit=Limit.PAUSE),
        Step(name="open", party=Party.TARGET, attempts_max=3, timeout_ms=10_000),
        Step(name="reverse", party=Party.SOURCE, attempts_max=2, timeout_ms=30_000),
        Step(name="settle"),
    ),
    pivot=6,
)

RELEASE = Step(name="release", party=Party.SOURCE, timeout_ms=3_000, goes_on=True)
THAW = Step(name="thaw", party=Party.TARGET, timeout_ms=3_000, goes_on=True)

FENCE_MS_MAX = 60_000
"""A source that neither answers nor lets its proof of life run out for so long is not fenced."""

TAKE_IN_MS_MAX = 5_000
QUIET_MS = 1_000
"""A source that lives is heard several times a second; after so long nothing more arrives."""

EMERGENCY_1 = Plan(
    name="emergency/1",
    steps=(
        Step(name="assess"),
        Step(name="approve"),
        Step(
            name="fence",
            party=Party.SOURCE,
            command="seal",
            undo=RELEASE,
            timeout_ms=FENCE_MS_MAX,
        ),
        Step(name="take_in", party=Party.TARGET, timeout_ms=TAKE_IN_MS_MAX, goes_on=True),
        Step(name="freeze", party=Party.TARGET, undo=THAW, attempts_max=3, timeout_ms=10_000),
        Step(name="state_loss"),
        Step(name="consent"),
        Step(name="pivot"),
        Step(name="open", party=Party.TARGET, attempts_max=3, timeout_ms=10_000),
        Step(name="settle"),
    ),
    pivot=7,
)

PLANS: Mapping[str, Plan] = {plan.name: plan for plan in (PLANNED_1, EMERGENCY_1)}


def plan_named(name: str) -> Plan:
    """Return the plan a record names.

    Raises:
        NewerSchema: this coordinator does not know it.
    """
    plan = PLANS.get(name)
    if plan is None:
        raise NewerSchema(
            f"failover plan {name!r} is unknown here; known: {', '.join(sorted(PLANS))}",
            hint="upgrade this coordinator: another one has already been upgraded",
        )
    return plan
