"""One transition of a failover as one transaction, with all that belongs to it. Pure.

The record under its own mod revision, its event, the command that is due, the audit; at the pivot
authority and routing; and of an emergency the seal, the holder, and the failover it supersedes.
"""

from __future__ import annotations

from typing import Any

import attrs

from coordinator.failover import loss
from coordinator.failover.asking import thaw_of
from coordinator.failover.due import command_to_put
from coordinator.failover.machine import lineage_of
from coordinator.failover.record import ActiveFailover, Failover, FailoverEvent, Phase
from coordinator.governance.audit import Act, Appending, Tip
from meshkit.codec import decode, encode, to_plain
from meshkit.commands import CommandStep
from meshkit.errors import Conflict
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import Authority, Routing, Seal
from meshkit.ordinals import ABSENT, Revision
from meshkit.store.txn import (
    Delete,
    Guard,
    KeyValue,
    ModRevisionIs,
    Operation,
    Put,
    Txn,
    absent,
)


class AuthorityMovedElsewhere(Conflict):
    """The authority of the group is no longer what the failover was begun on, or it is sealed."""


@attrs.frozen(kw_only=True)
class Loaded:
    """A record as stored at `revision`, with its command's token filled in."""

    record: Failover
    revision: Revision


@attrs.frozen(kw_only=True)
class Surroundings:
    """What a transition of a group writes beside its record."""

    tip: Tip
    authority: KeyValue | None
    routing: KeyValue | None

    def shows(self, authority: Revision) -> bool:
        """Return whether the authority in here is the one of that revision."""
        return self.authority is not None and self.authority.mod_revision == authority


@attrs.frozen(kw_only=True)
class Superseding:
    """A failover that ends because an emergency takes its place."""

    before: Loaded
    ended: Failover


@attrs.frozen(kw_only=True)
class Beside:
    """What else a beginning compares and writes, in the same transaction."""

    guards: tuple[Guard, ...]
    operations: tuple[Operation, ...]


def transition(
    before: Loaded,
    after: Failover,
    around: Surroundings,
    *,
    what: str,
    audit: Appending | None,
    now_ms: int,
    superseding: Superseding | None = None,
    beside: Beside | None = None,
) -> Txn:
    """Return the one transaction that stores `after` with all that belongs to it."""
    group = after.group
    guards: list[Guard] = [ModRevisionIs(Keys.failover(group, after.id), before.revision)]
    operations = _stored(after, what=what, now_ms=now_ms)
    if before.revision == ABSENT:
        more_guards, more = _beginning(after, superseding, now_ms=now_ms)
        guards += more_guards
        operations += more
    if after.authority_moved and not before.record.authority_moved:
        pivot_guards, pivot_puts = _pivot(after, around)
        guards += pivot_guards
        operations += pivot_puts
    command = command_to_put(after)
    if command is not None:
        operations.append(Put(Keys.command(command.cluster, group), encode(command)))
        if command.step is CommandStep.SEAL:
            guards.append(ModRevisionIs(Keys.seal(group), _seal_revision(after)))
            operations.append(Put(Keys.seal(group), encode(_seal(after))))
        elif command.step is CommandStep.RELEASE:
            operations.append(Delete(Keys.seal(group)))
    if after.phase.is_final:
        operations.append(Delete(Keys.failover_active(group)))
    if beside is not None:
        guards += beside.guards
        operations += beside.operations
    if audit is not None:
        guards.append(audit.guard)
        operations += audit.puts
    return Txn(guards=tuple(guards), operations=tuple(operations))


def _stored(record: Failover, *, what: str, now_ms: int) -> list[Operation]:
    group, number = record.group, record.transitions
    event = FailoverEvent(number=number, at_ms=now_ms, what=what, record=record)
    return [
        Put(Keys.failover(group, record.id), encode(record)),
        Put(Keys.failover_event(group, record.id, number), encode(event)),
    ]


def _beginning(
    after: Failover, superseding: Superseding | None, *, now_ms: int
) -> tuple[list[Guard], list[Operation]]:
    """Return what makes a failover the one that runs: alone, or in another one's place."""
    group = after.group
    guards: list[Guard] = [ModRevisionIs(Keys.authority(group), after.authority_revision)]
    active = Put(Keys.failover_active(group), encode(ActiveFailover(id=after.id)))
    if superseding is None:
        return [absent(Keys.failover_active(group)), absent(Keys.seal(group)), *guards], [active]
    before, ended = superseding.before, superseding.ended
    guards.append(ModRevisionIs(Keys.failover(group, ended.id), before.revision))
    operations: list[Operation] = [
        active,
        *_stored(ended, what=f"superseded by {after.id}", now_ms=now_ms),
    ]
    thaw = thaw_of(before.record, besides=after.target)
    if thaw is not None:
        operations.append(Put(Keys.command(thaw.cluster, group), encode(thaw)))
    return guards, operations


def _seal(record: Failover) -> Seal:
    return Seal(
        group=record.group, epoch=record.epoch_before, failover=record.id, reason=record.reason
    )


def _seal_revision(record: Failover) -> Revision:
    assert record.emergency is not None, "only an emergency seals"
    return record.emergency.seal_revision


def _pivot(after: Failover, around: Surroundings) -> tuple[list[Guard], list[Operation]]:
    """Return what moves authority and routing, and what must not have changed for that."""
    group = after.group
    assert after.target_token is not None, "the pivot has a token"
    authority = Authority(
        group=group,
        epoch=after.epoch_after,
        token=after.target_token,
        active=after.target,
        lineage=lineage_of(after),
    )
    if not around.shows(after.authority_revision):
        raise AuthorityMovedElsewhere(f"the authority of group {group} changed meanwhile")
    if around.routing is None:
        raise AuthorityMovedElsewhere(f"the routing of group {group} is gone")
    routing = attrs.evolve(
        decode(Routing, around.routing.value),
        epoch=authority.epoch,
        token=authority.token,
        active=authority.active,
    )
    guards: list[Guard] = [
        ModRevisionIs(Keys.authority(group), after.authority_revision),
        ModRevisionIs(Keys.routing(group), around.routing.mod_revision),
    ]
    puts: list[Operation] = [
        Put(Keys.authority(group), encode(authority)),
        Put(Keys.routing(group), encode(routing)),
    ]
    emergency = after.emergency
    if emergency is None:
        return [*guards, absent(Keys.seal(group))], puts
    # From here on the authority itself keeps the source out, and the target needs a holder.
    guards.append(ModRevisionIs(Keys.seal(group), emergency.seal_revision))
    puts.append(Delete(Keys.seal(group)))
    if not emergency.no_fence_wait:
        guards.append(absent(Keys.holder(group)))
    return guards, puts


def acts_of(before: Loaded, after: Failover) -> tuple[Act, ...]:
    """Return what the audit has to say about a transition."""
    facts = {
        "failover": after.id,
        "source": after.source,
        "target": after.target,
        "requested_by": after.requested_by,
    }
    acts: list[Act] = []
    if after.authority_moved and not before.record.authority_moved:
        moved = {**facts, "epoch": after.epoch_after, "token": str(after.target_token)}
        moved |= {"cut": after.cut, "watermark": after.watermark, **_risk(after)}
        acts.append(Act(actor="coordinator", action="failover.authority_moved", facts=moved))
    stated = after.emergency.loss if after.emergency else None
    if stated and not (before.record.emergency and before.record.emergency.loss):
        told = {**facts, **_risk(after)}
        acts.append(Act(actor="coordinator", action="failover.loss_stated", facts=told))
    if after.kind is not before.record.kind and before.record.transitions and after.emergency:
        why = {**facts, "why": after.emergency.after_planned}
        acts.append(Act(actor="coordinator", action="failover.became_emergency", facts=why))
    if after.phase is not before.record.phase and after.phase in _PHASES_AUDITED:
        happened = after.problem.happened if after.problem else ""
        action = f"failover.{after.phase.value}"
        acts.append(Act(actor="coordinator", action=action, facts={**facts, "why": happened}))
    return tuple(acts)


def _risk(record: Failover) -> dict[str, Any]:
    """Return what an emergency says of fence and loss: the very statement everybody is shown."""
    emergency = record.emergency
    if emergency is None or emergency.loss is None:
        return {}
    return {
        "fence": emergency.fence.value if emergency.fence else None,
        "loss": to_plain(emergency.loss),
        "loss_text": loss.words(emergency.loss),
        "accepted": to_plain(emergency.accept),
        "accepted_by": emergency.accepted_by,
    }


_PHASES_AUDITED = frozenset(
    {Phase.UNDOING, Phase.HELD, Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.REFUSED}
)
