"""Every schedule of an emergency in the small worlds, and planted bugs that must turn them red."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from coordinator.failover import due, loss, plan
from coordinator.failover.record import Phase
from tests.model.emergency_state import Left, Rules, is_end
from tests.model.emergency_world import Emergencies
from tests.model.explorer import Violation, walk

Patch = pytest.MonkeyPatch

RETURNS = Left(writes=1, cuts=1, timeouts=0, resumes=0)
"""Either cluster is cut off once, at any moment, and comes back at any moment."""
ABORTED = Left(writes=0, cuts=1, timeouts=0, resumes=0, aborts=1)
STOPPED = Left(writes=1, cuts=1, timeouts=0, resumes=0, late_commits=1, permit=False)
DEPOSED = Left(writes=1, cuts=0, timeouts=0, resumes=0, stalls=1)
SUPERSEDES = Left(writes=0, cuts=1, timeouts=0, resumes=0, emergencies=1)
NOT_WAITING = Left(writes=1, cuts=1, timeouts=0, resumes=0, no_wait=True)
BOUNDED = Left(writes=1, cuts=0, timeouts=0, resumes=0, bounds=1)
DIES = Left(writes=1, cuts=0, timeouts=0, resumes=0, deaths=1)
"""Either cluster, the target too: everything there but its etcd, at any moment, until it returns."""
HELD = Left(writes=0, cuts=0, timeouts=3, resumes=1, deaths=1)
"""The target may die after the pivot, and not answer in time however often it is asked."""

WORLDS = {
    "a-region-returns-at-any-moment": RETURNS,
    "aborted-at-any-moment": ABORTED,
    "a-region-stops-before-its-permit": STOPPED,
    "a-deposed-coordinator-wakes": DEPOSED,
    "the-fence-is-not-waited-for": NOT_WAITING,
    "less-than-everything-is-accepted": BOUNDED,
    "in-place-of-a-planned-failover": SUPERSEDES,
    "a-region-dies-at-any-moment": DIES,
    "a-dead-target-is-waited-for": HELD,
}
ENDINGS = frozenset({Phase.ADVANCING, Phase.UNDOING, Phase.SUCCEEDED, Phase.ROLLED_BACK})
"""What some schedule of every world comes to."""
ALSO = {HELD: {Phase.HELD}, SUPERSEDES: {Phase.SUPERSEDED}}
STATES_MIN = 500
"""A world that shrinks below this has stopped exploring what it is there for."""


def explore(left: Left, rules: Rules | None = None) -> tuple[set[Phase], int]:
    """Return the phases and the number of the states; raises Violation."""
    world = Emergencies(rules)
    first = world.first(left, is_planned=left is SUPERSEDES)
    found = walk(first, moves=world.moves, check=world.check, is_end=is_end)
    records = [each.kept.record for each in found]
    phases = {record.phase for record in records}
    if any(record.emergency and record.emergency.supersedes for record in records):
        # The world goes on with the record of whichever took the other's place.
        phases.add(Phase.SUPERSEDED)
    return phases, len(found)


# --- nothing is broken --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("left", WORLDS.values(), ids=WORLDS)
def test_every_schedule_tells_the_truth_about_loss_and_can_end(left: Left) -> None:
    """Promises 1, 3, 5, 6 and 7: one writer, no loss but what was accepted, never stuck."""
    phases, states = explore(left)

    print(f"{states} states; {sorted(phase.value for phase in phases)}")
    assert phases == ENDINGS | ALSO.get(left, frozenset())
    assert states > STATES_MIN


# --- planted bugs -------------------------------------------------------------------------------

Bug = Callable[[Patch, Rules], Rules]


def the_fence_is_not_waited_for(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, fence_waits=False)


def a_holder_is_made_under_the_seal(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, holder_compares_seal=False)


def a_late_answer_ends_the_proof_of_life_of_another(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, answers_end_own_holder=False)


def a_permit_outlives_its_holder(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, permit_ends_before_holder=False)


def a_permit_hangs_on_a_lease_that_is_gone(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, permit_needs_its_lease=False)


def appliers_do_not_see_the_freeze(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, applies_compare_fences=False)


def saves_are_not_compared(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, saves_compare=False)


def nobody_is_asked(patch: Patch, rules: Rules) -> Rules:
    patch.setattr(due, "objections", lambda *_: ())
    return rules


def a_reported_head_counts_as_the_end(patch: Patch, rules: Rules) -> Rules:
    """As if nothing could have been written since the last report."""
    real = loss.assess

    def assess(evidence: loss.Evidence, **named: object) -> loss.Loss:
        found = real(evidence, **named)
        if evidence.head is not None and (found.certain or 0) >= evidence.head.sequence:
            return attrs.evolve(found, is_none=True)
        return found

    patch.setattr("tests.model.emergency_records.assess", assess)
    return rules


def _without_undo(patch: Patch, name: str) -> None:
    steps = [
        attrs.evolve(step, undo=None) if step.name == name else step
        for step in plan.EMERGENCY_1.steps
    ]
    changed = attrs.evolve(plan.EMERGENCY_1, steps=tuple(steps))
    patch.setattr(plan, "PLANS", {changed.name: changed, plan.PLANNED_1.name: plan.PLANNED_1})


def the_seal_is_not_released(patch: Patch, rules: Rules) -> Rules:
    _without_undo(patch, "fence")
    return rules


def the_copy_is_not_thawed(patch: Patch, rules: Rules) -> Rules:
    _without_undo(patch, "freeze")
    return rules


def a_frozen_copy_counts_as_all_of_the_log(patch: Patch, rules: Rules) -> Rules:
    """Any watermark is passed off as the cut; so the old active cluster never finds its tail."""
    assess = loss.assess

    def all_of_it(evidence: loss.Evidence, **named: object) -> loss.Loss:
        on = evidence.stands_on
        cut = on.sequence if on is not None else None
        return assess(attrs.evolve(evidence, cut=cut), **named)

    patch.setattr("tests.model.emergency_records.assess", all_of_it)
    return rules


NOT_ALIVE = "whoever serves has no proof of life"
BEHIND_FENCE = "a write was acknowledged behind the fence"
BUGS: list[tuple[Bug, Left, str]] = [
    (the_fence_is_not_waited_for, RETURNS, BEHIND_FENCE),
    (a_holder_is_made_under_the_seal, RETURNS, BEHIND_FENCE),
    (a_permit_outlives_its_holder, RETURNS, NOT_ALIVE),
    (a_late_answer_ends_the_proof_of_life_of_another, RETURNS, NOT_ALIVE),
    (a_permit_hangs_on_a_lease_that_is_gone, STOPPED, NOT_ALIVE),
    (appliers_do_not_see_the_freeze, NOT_WAITING, "the copy moved after it was frozen"),
    (saves_are_not_compared, DEPOSED, "authority does not say what the record says"),
    (nobody_is_asked, RETURNS, "nobody accepted a loss that was not excluded"),
    (a_reported_head_counts_as_the_end, RETURNS, "nobody had said so"),
    (a_frozen_copy_counts_as_all_of_the_log, RETURNS, "nobody had said so"),
    (the_seal_is_not_released, ABORTED, "but the seal stands"),
    (the_copy_is_not_thawed, ABORTED, "but the standby stays frozen"),
]


@pytest.mark.parametrize(("bug", "left", "kind"), BUGS, ids=[each[0].__name__ for each in BUGS])
def test_a_planted_bug_is_found(bug: Bug, left: Left, kind: str, monkeypatch: Patch) -> None:
    """A walk that finds nothing proves something only if it finds what is there."""
    rules = bug(monkeypatch, Rules())

    with pytest.raises(Violation) as caught:
        explore(left, rules)

    print(caught.value)
    assert kind in caught.value.kind
