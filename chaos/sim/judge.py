"""What is judged when all faults have healed: liveness, and the promises over the history."""

from __future__ import annotations

from collections.abc import Mapping

from chaos.checkers import (
    SHOWN_MAX,
    Judgement,
    SegmentSpan,
    State,
    Verdict,
    check_epochs_rise,
    check_identical,
    check_inside_segments,
    check_no_ghosts,
    check_nothing_lost,
    check_one_writer,
)
from chaos.history import History
from chaos.sim.losses import (
    check_loss_as_stated,
    check_nothing_vanished,
    check_window,
    fence_is_known,
    set_aside,
)
from chaos.sim.witness import Shadow
from chaos.sim.world import GROUP, World
from coordinator.failover.record import Failover
from coordinator.governance.audit import tip_of, verify
from meshkit.codec import decode
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority
from meshkit.names import ClusterName
from meshkit.regional import FenceMode
from meshkit.store.txn import KeyValue, prefix_range


def waiting_for(world: World, shadows: Mapping[ClusterName, Shadow]) -> str:
    """Return what is not yet as it must become once nothing goes wrong any more, or nothing.

    Promise 5: no failover hangs, the active cluster has its permit, all others are in step.
    """
    store = world.coordination.history
    item = store.lookup(CoordinationKeys.authority(GROUP))
    if item is None:
        return "the group has no authority"
    authority = decode(Authority, item.value)
    if store.lookup(CoordinationKeys.failover_active(GROUP)) is not None:
        return f"a failover is still running: {_last_failover(world)}"
    if world.etcds[authority.active].history.lookup(RegionalKeys.permit(GROUP)) is None:
        return f"{authority.active} is active and has no permit"
    problems = (_not_following(name, shadow, authority) for name, shadow in shadows.items())
    return next(filter(None, problems), "")


def _not_following(name: ClusterName, shadow: Shadow, authority: Authority) -> str:
    if shadow.fence is None or shadow.fence.epoch != authority.epoch:
        return f"{name} is not in epoch {authority.epoch}: {shadow.fence}"
    if name == authority.active:
        return ""
    if shadow.fence.mode is not FenceMode.SUPERSEDED:
        return f"{name} is {shadow.fence.mode.value} and {authority.active} is active"
    return f"{name} is out of step with {sorted(shadow.joins)}" if shadow.joins else ""


def unsettled(world: World, shadows: Mapping[ClusterName, Shadow]) -> str:
    """Return what is missing now that nobody writes: the above, and every copy equal."""
    problem = waiting_for(world, shadows)
    first, *others = shadows.items()
    different = [name for name, shadow in others if shadow.content != first[1].content]
    if not problem and different:
        return f"{', '.join(different)} does not hold what {first[0]} holds"
    return problem


def verdicts(world: World, shadows: Mapping[ClusterName, Shadow]) -> list[Verdict]:
    """Judge the whole run."""
    history = world.history
    states: dict[ClusterName, State] = {name: each.content for name, each in shadows.items()}
    spans = [
        SegmentSpan(cluster=name, epoch=epoch, opened=opened, cut=shadow.cut.get(epoch))
        for name, shadow in shadows.items()
        for epoch, opened in shadow.opened.items()
    ]
    if world.rescues:
        return [check_epochs_rise(spans), *_after_emergencies(world, shadows, states)]
    return [
        check_undisturbed(world, shadows),
        check_nothing_lost(history, states),
        check_no_ghosts(history, states),
        check_identical(states),
        check_one_writer(history),
        check_inside_segments(history, spans),
        check_epochs_rise(spans),
    ]


def _after_emergencies(
    world: World, shadows: Mapping[ClusterName, Shadow], states: Mapping[ClusterName, State]
) -> list[Verdict]:
    history, state = world.history, states[_active(world)]
    gated = History([w for w in history.writes if w.writer.startswith("writer")])
    rescues = list(world.rescues.values())
    found = [
        check_loss_as_stated(gated, state, rescues),
        check_nothing_vanished(state, shadows),
        check_no_ghosts(history, states),
        check_identical(states),
    ]
    if all(fence_is_known(rescue) for rescue in rescues):
        found.append(check_one_writer(gated))
    if not world.plan.wall_error_ms_max:
        # Of two wall clocks nobody can know how far they differ; the documents say so.
        found += [check_window(gated, state, shadows, rescue) for rescue in rescues]
    return found


def check_undisturbed(world: World, shadows: Mapping[ClusterName, Shadow]) -> Verdict:
    """Where only planned failovers ran, no cluster has to rejoin and nothing is in quarantine."""
    found = [*world.rejoins.values(), *set_aside(shadows)]
    return Verdict(
        check="undisturbed",
        judgement=Judgement.INVALID if found else Judgement.VALID,
        detail="; ".join(found[:SHOWN_MAX]),
    )


def _active(world: World) -> ClusterName:
    item = world.coordination.history.lookup(CoordinationKeys.authority(GROUP))
    assert item is not None, "authority is never deleted"
    return decode(Authority, item.value).active


def audit_problems(world: World) -> list[str]:
    """Return what is wrong with the group's audit (promise 8)."""
    history = world.coordination.history
    entries = history.live(prefix_range(CoordinationKeys.audit(GROUP, 0)[:-10]))
    tip = history.lookup(CoordinationKeys.audit_tip(GROUP))
    tips: tuple[KeyValue, ...] = () if tip is None else (tip,)
    return list(verify(tuple(entries), tip_of(tips).tip))


def _last_failover(world: World) -> str:
    records = world.coordination.history.live(
        prefix_range(CoordinationKeys.failover_records(GROUP))
    )
    if not records:
        return "no record"
    newest = max(records, key=lambda item: item.mod_revision)
    record = decode(Failover, newest.value)
    problem = record.problem.happened if record.problem else "no problem"
    awaited = record.awaiting.step if record.awaiting else "nothing"
    return f"{record.id} is {record.phase.value}, awaits {awaited}: {problem}"
