"""What an emergency may lose, stated; and whether what was consented to covers it. Pure.

With the source out of sight nobody knows its last records (architecture 5.1 rule 8). Certain is
what the target has stored. All else is an upper bound with its reason, or unknown: never zero
because nothing is known. One statement is made, stored in the failover's record, and shown by
the API, the command line and the audit alike.
"""

from __future__ import annotations

import enum
import math

import attrs

from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Sequence
from meshkit.status import LogHead, TargetHead


class FenceStatus(enum.Enum):
    """How surely the source of an emergency accepts no more writes."""

    CONFIRMED = "confirmed"
    """It answered: sealed. Or its seal was seen in its log."""
    LEASE_EXPIRED = "lease-expired"
    """Its proof of life ran out: gates acknowledge nothing more there."""
    UNKNOWN = "unknown"
    """Not waited for: it may still accept writes, and they will be lost."""


@attrs.frozen(kw_only=True)
class LossBound:
    """What somebody is prepared to lose. What is left out is not consented to."""

    records: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    seconds: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    unknown: bool = False
    """By name: whatever it is, also where nobody can say."""


@attrs.frozen(kw_only=True)
class Evidence:
    """What is known of a source and of one copy of its log. Times of the source's wall clock.

    `contained_at_ms`: all that was committed by then is in the copy. `permit_ended_ms`: no
    guarded write was acknowledged after it.
    """

    cluster: ClusterName
    group: GroupName | None = None
    stands_on: Lineage | None
    """What an epoch opened there would stand on: whose log it has, and up to where."""
    head: LogHead | None = None
    cut: Sequence | None = None
    contained_at_ms: int | None = None
    permit_ended_ms: int | None = None
    source_lineage: Lineage | None = None
    """What the source's own epoch stands on."""
    source_began_ms: int | None = None
    """When the source got authority; of the coordinators' wall clock."""
    never_opened: bool = False
    """Whether the source answered that it never opened its epoch."""

    @property
    def seen(self) -> TargetHead | None:
        """What the source last knew of this copy of the group."""
        seen = self.head.targets.get(self.cluster) if self.head else None
        return seen.of(self.group) if seen else None


@attrs.frozen(kw_only=True)
class Loss:
    """What promoting one cluster may lose."""

    cluster: ClusterName
    certain: Sequence | None = None
    """Everything of the parent's log up to here is there; None: nobody can say up to where."""
    certain_of: ClusterName | None = None
    """Whose log that is."""
    certain_epoch: Epoch | None = None
    is_none: bool = False
    """Proven: the source's log ends at or before the certain point."""
    window_ms: int | None = None
    """Longest time in which writes that are not there may have been acknowledged; None: unknown."""
    records_known: int | None = None
    """At most so many records past the certain point were reported; None: unknown."""
    records_estimated: int | None = None
    """As many as the last known rate makes of the window. An estimate, never a bound."""

    @property
    def seconds(self) -> int | None:
        """The window in seconds, rounded up."""
        return None if self.window_ms is None else math.ceil(self.window_ms / 1000)


@attrs.frozen(kw_only=True)
class LossStatement:
    """What this emergency may lose, under which fence, and what promoting others would."""

    source: ClusterName
    fence: FenceStatus
    target: Loss
    others: tuple[Loss, ...] = ()
    stated_at_ms: int = 0

    @property
    def most_advanced(self) -> ClusterName:
        """The cluster that would lose least, as far as is known: the target unless one is ahead."""
        mine = self.target
        ahead = [
            other
            for other in self.others
            if (other.certain_of, other.certain_epoch) == (mine.certain_of, mine.certain_epoch)
            and (other.certain or 0) > (mine.certain or 0)
        ]
        if self.target.is_none or not ahead:
            return mine.cluster
        return max(ahead, key=lambda other: other.certain or 0).cluster


def assess(evidence: Evidence, *, fence: FenceStatus, epoch: Epoch) -> Loss:
    """Return what promoting one copy may lose; `epoch` is the source's."""
    on = evidence.stands_on
    if on is None:
        return Loss(cluster=evidence.cluster)
    loss = Loss(
        cluster=evidence.cluster,
        certain=on.sequence,
        certain_of=on.parent,
        certain_epoch=on.parent_epoch,
    )
    if on.parent_epoch != epoch:
        return _before_source(loss, evidence, on, fence=fence)
    if evidence.cut is not None and on.sequence >= evidence.cut:
        return _nothing(loss)
    head = evidence.head
    if head is None or head.incarnation != on.parent_incarnation:
        return loss
    window_ms = None if fence is FenceStatus.UNKNOWN else _window_ms(evidence, head, on.sequence)
    return attrs.evolve(
        loss,
        window_ms=window_ms,
        records_known=_known(evidence, head, on.sequence),
        records_estimated=_estimated(evidence, window_ms),
    )


def _nothing(loss: Loss) -> Loss:
    return attrs.evolve(loss, is_none=True, window_ms=0, records_known=0, records_estimated=0)


def _before_source(loss: Loss, evidence: Evidence, on: Lineage, *, fence: FenceStatus) -> Loss:
    """The same for a copy of what the source's epoch stands on: all of that epoch is missing."""
    parent, began_ms = evidence.source_lineage, evidence.source_began_ms
    is_all_of_it = (
        parent is not None
        and (parent.parent, parent.parent_incarnation) == (on.parent, on.parent_incarnation)
        and on.sequence >= parent.sequence
    )
    if not is_all_of_it:
        return loss
    if evidence.never_opened:
        return _nothing(loss)
    ended_ms = evidence.permit_ended_ms
    if fence is FenceStatus.UNKNOWN or began_ms is None or ended_ms is None:
        return loss
    return attrs.evolve(loss, window_ms=max(0, ended_ms - began_ms), records_known=0)


def _window_ms(evidence: Evidence, head: LogHead, sequence: Sequence) -> int | None:
    """From the last moment that is surely contained to the end of the source's permit."""
    target = evidence.seen
    contained = [evidence.contained_at_ms]
    if sequence >= head.sequence:
        contained.append(head.at_ms)
    elif target is not None and target.lag_ms is not None:
        contained.append(head.at_ms - target.lag_ms)
    known = [at_ms for at_ms in contained if at_ms is not None]
    if not known or evidence.permit_ended_ms is None:
        return None
    return max(0, evidence.permit_ended_ms - max(known))


def _known(evidence: Evidence, head: LogHead, sequence: Sequence) -> int:
    """At most so many records between the certain point and what is known of the log's end.

    A record is at least one revision; the source also counts what a target has not acknowledged.
    """
    end = head.sequence if evidence.cut is None else max(evidence.cut, head.sequence)
    revisions = max(0, end - sequence)
    target = evidence.seen
    is_counted = evidence.cut is None and target is not None and target.records is not None
    if is_counted and target is not None and target.records is not None:
        return min(revisions, target.records)
    return revisions


def _estimated(evidence: Evidence, window_ms: int | None) -> int | None:
    target = evidence.seen
    if window_ms is None or target is None:
        return None
    return math.ceil(target.records_per_second * window_ms / 1000)


def objections(statement: LossStatement, bound: LossBound | None) -> tuple[str, ...]:
    """Return why the consent given does not cover the loss stated; nothing if it does."""
    loss = statement.target
    if loss.is_none or (bound is not None and bound.unknown):
        return ()
    if statement.fence is FenceStatus.UNKNOWN:
        return ("the source was not fenced, so nobody can bound the loss: accept it as unknown",)
    if loss.window_ms is None or loss.records_known is None:
        return ("nobody can bound the loss: accept it as unknown, by name",)
    found = []
    seconds, accepted = loss.seconds or 0, bound or LossBound()
    if seconds and (accepted.seconds is None or seconds > accepted.seconds):
        found.append(f"up to {seconds} s of writes may be lost, {_allowed(accepted.seconds)}")
    known = loss.records_known
    if known and (accepted.records is None or known > accepted.records):
        found.append(f"up to {known} known records may be lost, {_allowed(accepted.records)}")
    return tuple(found)


def _allowed(bound: int | None) -> str:
    return "and nothing was said of that" if bound is None else f"{bound} were accepted"


def words(statement: LossStatement) -> str:
    """Return the statement in plain words, for the person who has to decide."""
    loss, source = statement.target, statement.source
    if loss.is_none:
        return f"nothing is lost: {loss.cluster} has all of {source}'s log up to its end"
    if loss.certain is None or loss.certain_of is None:
        text = f"nobody can say how much of {source}'s writes {loss.cluster} has"
    else:
        text = f"certain: {loss.cluster} has everything of {loss.certain_of} up to {loss.certain}"
    window = "an unknown time" if loss.seconds is None else f"up to {loss.seconds} s"
    records = "an unknown number" if loss.records_known is None else f"{loss.records_known}"
    text += f"; what {source} acknowledged after that, over {window}, is lost"
    text += f" ({records} of records known"
    if loss.records_estimated is not None:
        text += f", about {loss.records_estimated} by its last rate"
    text += f"); fence: {statement.fence.value}"
    if statement.most_advanced != loss.cluster:
        text += f"; {statement.most_advanced} is further: promote it instead"
    return text
