"""Every schedule of `rejoin/1` in a small world, and the bugs that such a walk must find."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from coordinator.rejoin import machine, record
from coordinator.rejoin.record import RejoinPhase
from fencing import rejoin
from tests.model.explorer import Violation, walk
from tests.model.rejoin_world import Left, RejoinWorld, Rules, is_end, record_of

NOTHING = Left(writes=1, deaths=0, late=0, moves=0, overtakes=0, silences=0, compactions=1)
WORLDS = {
    "replicators-die-and-fall-silent": NOTHING._replace(writes=2, deaths=1, silences=1),
    "authority-moves-on": NOTHING._replace(moves=1, deaths=1),
    "a-deposed-replicator-wakes": NOTHING._replace(late=1, moves=1),
    "a-failover-asks-too": NOTHING._replace(overtakes=1, deaths=1),
}
"""Each is generous with some faults and mean with the others."""
STATES_MIN = 1_000

Patch = pytest.MonkeyPatch
Bug = Callable[[Patch, Rules], Rules]


def explore(left: Left, rules: Rules) -> tuple[set[RejoinPhase], int]:
    """Return the phases and the number of the states; raises Violation."""
    world = RejoinWorld(rules)
    found = walk(world.first(left), moves=world.moves, check=world.check, is_end=is_end)
    return {record_of(state).phase for state in found}, len(found)


@pytest.mark.slow
@pytest.mark.parametrize("left", WORLDS.values(), ids=WORLDS)
def test_every_schedule_loses_nothing_silently_and_can_end(left: Left) -> None:
    """Promises 3, 5 and 7 of a return at any moment, whatever dies, lags or moves meanwhile."""
    phases, states = explore(left, Rules())

    print(f"{states} states")
    can_move = bool(left.moves)
    assert phases == (set(RejoinPhase) if can_move else set(RejoinPhase) - {RejoinPhase.ABANDONED})
    assert states > STATES_MIN


def in_order(patch: Patch, *names: str) -> None:
    steps = {step.name: step for step in record.STEPS}
    changed = tuple(steps[name] for name in names)
    for module in (record, machine):
        patch.setattr(module, "STEPS", changed)
        patch.setattr(module, "RECONCILE", names.index("reconcile"))
        patch.setattr(module, "APPROVE", names.index("approve"))
        patch.setattr(module, "STAND_BY", names.index("stand_by"))
        patch.setattr(module, "FIND", names.index("find_divergence"), raising=False)


def quarantine_comes_last(patch: Patch, rules: Rules) -> Rules:
    in_order(patch, "fence", "find_divergence", "approve", "reconcile", "quarantine", "stand_by")
    return rules


def nobody_is_asked(patch: Patch, rules: Rules) -> Rules:
    patch.setattr(record.Rejoin, "needs_approval", False)
    return rules


def what_was_found_is_forgotten(patch: Patch, rules: Rules) -> Rules:
    patch.setattr(record.Rejoin, "has_diverged", False)
    return attrs.evolve(rules, looks_again=False)


def answers_are_not_matched(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, answers_are_matched=False)


def a_newer_epoch_forgets_what_is_too_much(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, ahead_stays=False)


def an_open_fence_is_no_obstacle(patch: Patch, rules: Rules) -> Rules:
    patch.setattr(rejoin, "_why_not", lambda *_: "")
    in_order(patch, "find_divergence", "quarantine", "approve", "reconcile", "fence", "stand_by")
    return rules


def fences_are_not_compared(_patch: Patch, rules: Rules) -> Rules:
    return attrs.evolve(rules, fences_compare=False)


def standing_by_is_believed(patch: Patch, rules: Rules) -> Rules:
    in_order(patch, "fence", "find_divergence", "quarantine", "approve", "stand_by", "reconcile")
    return rules


def a_moved_authority_is_overlooked(patch: Patch, rules: Rules) -> Rules:
    real = machine.advance

    def deaf(before: object, event: object, *, now_ms: int) -> object:
        return before if isinstance(event, machine.Moved) else real(before, event, now_ms=now_ms)

    patch.setattr(machine, "advance", deaf)
    return rules


DEATHS, MOVES, LATE = (
    NOTHING._replace(deaths=1, silences=1),
    NOTHING._replace(moves=1),
    NOTHING._replace(late=1),
)

BUGS: list[tuple[Bug, Left, str]] = [
    (quarantine_comes_last, DEATHS, "a tail was written over"),
    (nobody_is_asked, DEATHS, "nobody agreed"),
    (what_was_found_is_forgotten, DEATHS, "a diverged copy just goes on"),
    (answers_are_not_matched, DEATHS, "succeeded, and it does not stand by"),
    (
        a_newer_epoch_forgets_what_is_too_much,
        MOVES,
        "what nobody knows was written over unasked",
    ),
    (an_open_fence_is_no_obstacle, DEATHS, "a permit without an open fence"),
    (fences_are_not_compared, LATE, "succeeded, and it does not stand by"),
    (standing_by_is_believed, DEATHS, "succeeded, and it does not stand by"),
    (a_moved_authority_is_overlooked, MOVES, "stuck"),
]


@pytest.mark.parametrize(("bug", "left", "kind"), BUGS)
def test_a_planted_bug_is_found(bug: Bug, left: Left, kind: str, monkeypatch: Patch) -> None:
    """A walk that finds nothing proves something only if it finds what is there."""
    with pytest.raises(Violation) as caught:
        explore(left, bug(monkeypatch, Rules()))

    print(caught.value)
    assert caught.value.kind == kind
