"""Every schedule of `planned/1` in small worlds, and the bugs that such a walk must find.

The machine is the real one, so are the repository's transactions, and so are, in half of the
worlds, the regions' decisions. In the other half regions check tokens and nothing else: what holds
there, holds by the machine alone, and the checks of the real regions come on top. Each world is
generous with some faults and mean with the others; the product of all would not end in time.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from coordinator.failover import machine, plan
from coordinator.failover.record import Phase
from fencing import fence as fences
from tests.model.explorer import Violation, walk
from tests.model.planned_world import Left, Planned, Rules, is_end
from tests.model.regions import RealRegions, Regions, TokenRegions

MESSAGES = Left(writes=2, failovers=1, resumes=1)
REGIONS_FAIL = Left(failovers=0, resumes=0, deaths=1, lapses=1, refusals=1)
REGIONS_STOP = Left(failovers=0, resumes=0, late_commits=1, lapses=1)
DEPOSED = Left(failovers=0, resumes=0, timeouts=3, stalls=1)
DEPOSED_TWICE_OVER = Left(failovers=1, resumes=0, timeouts=1, stalls=1)

WORLDS = {
    "messages-and-a-second-failover": (MESSAGES, RealRegions),
    "regions-die-refuse-and-lose-permits": (REGIONS_FAIL, RealRegions),
    "regions-stop-before-they-commit": (REGIONS_STOP, RealRegions),
    "a-deposed-coordinator-wakes": (DEPOSED, RealRegions),
    "a-deposed-coordinator-wakes-in-the-second-failover": (DEPOSED_TWICE_OVER, RealRegions),
    "messages-by-tokens-alone": (MESSAGES._replace(writes=1), TokenRegions),
    "regions-fail-by-tokens-alone": (REGIONS_FAIL, TokenRegions),
    "deposed-by-tokens-alone": (DEPOSED, TokenRegions),
}
ATTEMPTS_BEFORE_HELD = 3
STATES_MIN = 4_000
"""A world that shrinks below this has stopped exploring what it is there for."""


def explore(left: Left, rules: Rules) -> tuple[set[Phase], int]:
    """Return the phases and the number of the states; raises Violation."""
    planned = Planned(rules)
    found = walk(planned.first(left), moves=planned.moves, check=planned.check, is_end=is_end)
    return {world.kept.record.phase for world in found}, len(found)


# --- nothing is broken --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("left", "regions"), WORLDS.values(), ids=WORLDS)
def test_every_schedule_keeps_one_writer_and_every_write_and_can_end(
    left: Left, regions: Callable[[], Regions]
) -> None:
    """Promises 1, 2, 5 and 6, in every schedule of each world; and every ending is met."""
    phases, states = explore(left, Rules(regions=regions()))

    print(f"{states} states")
    assert phases == set(Phase) - never_in(left)
    assert states > STATES_MIN


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["messages-and-a-second-failover", "a-deposed-coordinator-wakes-in-the-second-failover"]
)
def test_failovers_that_begin_with_a_drain_keep_all_that_too(name: str) -> None:
    """Whoever began one made its checks, and put its first command in the same transaction."""
    left, regions = WORLDS[name]
    phases, states = explore(left, Rules(regions=regions(), begins_checked=True))

    print(f"{states} states")
    assert phases == set(Phase) - never_in(left) - {Phase.REFUSED}
    assert states > STATES_MIN


def never_in(left: Left) -> set[Phase]:
    can_hold = left.timeouts >= ATTEMPTS_BEFORE_HELD
    return {Phase.SUPERSEDED} if can_hold else {Phase.SUPERSEDED, Phase.HELD}


# --- planted bugs -------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def with_plan(patch: Patch, *names: str) -> None:
    """Run the steps in another order."""
    steps = {step.name: step for step in plan.PLANNED_1.steps}
    assert set(names) == set(steps)
    changed = attrs.evolve(
        plan.PLANNED_1, steps=tuple(steps[name] for name in names), pivot=names.index("pivot")
    )
    patch.setattr(plan, "PLANS", {changed.name: changed})


def receivers_ignore_tokens(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, regions=type(rules.regions)(compares_tokens=False))


def one_token_per_term(_patch: Patch, rules: Rules) -> Rules:
    regions = type(rules.regions)(obeys_equal=True)
    return attrs.evolve(rules, regions=regions, token_per_save=False)


def pivot_one_step_late(patch: Patch, rules: Rules) -> Rules:
    with_plan(
        patch,
        *("check", "approve", "verify", "catch_up", "drain"),
        *("converge", "open", "pivot", "reverse", "settle"),
    )
    return rules


def abort_after_the_pivot(patch: Patch, rules: Rules) -> Rules:
    patch.setattr(machine, "_may_abort", lambda _record: True)
    return rules


def undo_skips_the_step_in_hand(patch: Patch, rules: Rules) -> Rules:
    patch.setattr(machine, "_undo_start", lambda record: record.cursor - 1)
    return rules


def replies_not_matched(patch: Patch, rules: Rules) -> Rules:
    patch.setattr(
        machine, "_answers_what_is_awaited", lambda record, _answer: record.awaiting is not None
    )
    return attrs.evolve(rules, old_answers_are_dropped=False)


def converge_before_drain(patch: Patch, rules: Rules) -> Rules:
    with_plan(
        patch,
        *("check", "approve", "verify", "catch_up", "converge"),
        *("drain", "pivot", "open", "reverse", "settle"),
    )
    return rules


def saves_not_compared(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, saves_compare_revisions=False)


def fences_not_compared(patch: Patch, rules: Rules) -> Rules:
    real = fences.fence_txn
    patch.setattr(fences, "fence_txn", lambda *a, **k: attrs.evolve(real(*a, **k), guards=()))
    return rules


def permits_not_compared(patch: Patch, rules: Rules) -> Rules:
    real = fences.permit_again

    def unguarded(*args: object, **named: object) -> object:
        txn = real(*args, **named)
        return txn and attrs.evolve(txn, guards=())

    patch.setattr(fences, "permit_again", unguarded)
    return rules


Bug = Callable[[Patch, Rules], Rules]

BUGS_OF_THE_MACHINE: list[tuple[Bug, Left, str]] = [
    (receivers_ignore_tokens, MESSAGES, "rolled_back, but nobody may write"),
    (one_token_per_term, MESSAGES, "rolled_back, but nobody may write"),
    (pivot_one_step_late, MESSAGES, "two writers"),
    (abort_after_the_pivot, MESSAGES, "two writers"),
    (undo_skips_the_step_in_hand, MESSAGES, "rolled_back, but nobody may write"),
    (replies_not_matched, MESSAGES, "rolled_back, but nobody may write"),
    (converge_before_drain, MESSAGES, "an acknowledged write was left behind"),
    (saves_not_compared, DEPOSED, "rolled_back, but nobody may write"),
]
"""What each bug does where regions check tokens and nothing else."""

BUGS_IN_REAL_REGIONS: list[tuple[Bug, Left, str]] = [
    (receivers_ignore_tokens, MESSAGES, "rolled_back, but nobody may write"),
    (one_token_per_term, MESSAGES, "rolled_back, but nobody may write"),
    (abort_after_the_pivot, REGIONS_FAIL, "stuck"),
    (undo_skips_the_step_in_hand, MESSAGES, "rolled_back, but nobody may write"),
    (replies_not_matched, MESSAGES, "rolled_back, but nobody may write"),
    (saves_not_compared, DEPOSED, "rolled_back, but nobody may write"),
    (fences_not_compared, REGIONS_STOP, "rolled_back, but nobody may write"),
    (permits_not_compared, REGIONS_STOP, "two writers"),
]
"""What it does where they check epochs and lineage too."""


def found_with(bug: Bug, left: Left, rules: Rules, patch: Patch) -> Violation:
    """Return what a walk finds; it looks for the harm that falling tokens do."""
    with pytest.raises(Violation) as caught:
        explore(left, attrs.evolve(bug(patch, rules), checks_order=False))
    return caught.value


@pytest.mark.parametrize(("bug", "left", "kind"), BUGS_OF_THE_MACHINE)
def test_a_planted_bug_is_found_where_all_rests_on_the_machine(
    bug: Bug, left: Left, kind: str, monkeypatch: Patch
) -> None:
    """A walk that finds nothing proves something only if it finds what is there."""
    violation = found_with(bug, left, Rules(regions=TokenRegions()), monkeypatch)

    print(violation)
    assert violation.kind == kind


@pytest.mark.parametrize(("bug", "left", "kind"), BUGS_IN_REAL_REGIONS)
def test_a_planted_bug_is_found_with_real_regions(
    bug: Bug, left: Left, kind: str, monkeypatch: Patch
) -> None:
    violation = found_with(bug, left, Rules(), monkeypatch)

    print(violation)
    assert violation.kind == kind


@pytest.mark.slow
@pytest.mark.parametrize("bug", [pivot_one_step_late, converge_before_drain])
def test_real_regions_do_no_harm_even_under_a_wrong_plan(bug: Bug, monkeypatch: Patch) -> None:
    """Epoch and lineage, which the regions check by themselves, keep out what tokens let in."""
    phases, _ = explore(REGIONS_FAIL, bug(monkeypatch, Rules()))

    assert Phase.HELD in phases


def test_falling_tokens_are_seen_even_before_they_do_harm(monkeypatch: Patch) -> None:
    """The order of tokens is an invariant of its own."""
    rules = receivers_ignore_tokens(monkeypatch, Rules())

    with pytest.raises(Violation, match="a command token went down"):
        explore(MESSAGES, rules)


def test_a_violation_tells_how_it_comes_about(monkeypatch: Patch) -> None:
    """The shortest schedule of the best known bug, as it is shown to whoever broke it."""
    rules = receivers_ignore_tokens(monkeypatch, Rules(checks_order=False))

    with pytest.raises(Violation) as caught:
        explore(MESSAGES, rules)

    assert str(caught.value).splitlines() == [
        "rolled_back, but nobody may write, after 8 moves:",
        "  1. coordinator: check done -> f1 advancing verify",
        "  2. coordinator: verify done -> f1 advancing catch_up",
        "  3. a answers catch_up",
        "  4. coordinator: hears catch_up done -> f1 advancing drain",
        "  5. coordinator: time is up -> f1 undoing undrain",
        "  6. a obeys undrain",
        "  7. coordinator: hears undrain done -> f1 rolled_back",
        "  8. a obeys drain",
    ]
