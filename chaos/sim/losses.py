"""What emergencies said they may lose, held against what was lost. Pure, but for what it is told.

Promise 3: nothing before the stated point is lost, the seconds are an upper bound, and whatever
survives of the rest is in quarantine once the old cluster is back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from chaos.checkers import SHOWN_MAX, Judgement, State, Verdict
from chaos.history import History, Write
from chaos.sim.loop import NS_PER_MS
from chaos.sim.witness import Shadow
from coordinator.failover.loss import FenceStatus, LossStatement
from coordinator.failover.record import Failover
from meshkit.names import ClusterName

CLOCKS_DIFFER = 0.01
"""How far two clocks' rates may differ, as the product is told."""


def check_loss_as_stated(history: History, state: State, rescues: Sequence[Failover]) -> Verdict:
    """Promise 3: what a gate acknowledged is there, or lies past what an emergency called certain.

    A statement that nothing is lost holds to the letter, whatever the fence.
    """
    untold = []
    for write in history.acknowledged():
        if state.get(write.key) == write.value:
            continue
        excuses = [r for r in rescues if r.source == write.cluster and _allows(r, write)]
        later = [r for r in rescues if write.epoch is not None and r.epoch_before > write.epoch]
        if not excuses and not later:
            untold.append(f"{write.key.decode()} of {write.cluster}@{write.revision}")
    return _verdict("loss as stated", untold)


def check_window(
    history: History, state: State, shadows: Mapping[ClusterName, Shadow], rescue: Failover
) -> Verdict:
    """The seconds are an upper bound: from the first write lost to the last one acknowledged."""
    loss = _statement(rescue)
    window_ms = loss.target.window_ms if loss else None
    committed = shadows[rescue.source].committed_ns
    mine = [
        (committed[write.revision], write)
        for write in history.acknowledged()
        if (write.cluster, write.epoch) == (rescue.source, rescue.epoch_before)
        and write.revision is not None
    ]
    lost = [(at_ns, write) for at_ns, write in mine if state.get(write.key) != write.value]
    if window_ms is None or not lost:
        return _verdict("window", [])
    first_ns, first = min(lost, key=lambda each: each[0])
    span_ms = (max(at_ns for at_ns, _ in mine) - first_ns) / NS_PER_MS
    is_within = span_ms <= window_ms * (1 + CLOCKS_DIFFER) + 1
    text = (
        f"{rescue.id} said {window_ms} ms, and {first.key.decode()} was acknowledged"
        f" {span_ms:.0f} ms before the last write of {rescue.source}"
    )
    return _verdict("window", [] if is_within else [text])


def check_nothing_vanished(state: State, shadows: Mapping[ClusterName, Shadow]) -> Verdict:
    """Each write that any cluster took is where writes go on, or in quarantine somewhere.

    Whether anybody was told of it, and under whatever epoch. Every key but those that are written
    again and again has one value ever.
    """
    gone = []
    for name, shadow in shadows.items():
        for key, value in shadow.own.items():
            is_set_aside = any(value in other.aside.get(key, ()) for other in shadows.values())
            if state.get(key) != value and not is_set_aside:
                gone.append(f"{key.decode()} of {name} is neither active nor in quarantine")
    return _verdict("nothing vanished", gone)


def fence_is_known(rescue: Failover) -> bool:
    """Return whether an emergency waited until its source was fenced."""
    loss = _statement(rescue)
    return loss is not None and loss.fence is not FenceStatus.UNKNOWN


def set_aside(shadows: Mapping[ClusterName, Shadow]) -> Iterator[str]:
    """Yield what lies in quarantine, in words."""
    for name, shadow in shadows.items():
        for key in shadow.aside:
            yield f"{key.decode()} at {name}"


def _allows(rescue: Failover, write: Write) -> bool:
    """Return whether an emergency said that this write of its source may be lost."""
    loss = _statement(rescue)
    if loss is None or write.epoch != rescue.epoch_before or loss.target.is_none:
        return False
    certain = loss.target
    is_of_source = (certain.certain_of, certain.certain_epoch) == (write.cluster, write.epoch)
    return not is_of_source or (write.revision or 0) > (certain.certain or 0)


def _statement(rescue: Failover) -> LossStatement | None:
    return rescue.emergency.loss if rescue.emergency else None


def _verdict(check: str, offences: list[str]) -> Verdict:
    return Verdict(
        check=check,
        judgement=Judgement.INVALID if offences else Judgement.VALID,
        detail="; ".join(offences[:SHOWN_MAX]),
    )
