"""When an epoch begins: whether this cluster just goes on, copies, or has to wait. Pure.

Epoch e+1 is applied only on top of exactly the parent sequence (architecture 5.1 rule 3). A planned
failover's parent ends there, with a cut. An emergency's may go on: a copy that has more of it has
what its new active cluster never had (S6): that is set aside before the copy is made anew.
"""

from __future__ import annotations

import attrs

from meshkit.model import Lineage
from meshkit.ordinals import Sequence
from meshkit.regional import CopyBasis, Fence, FenceMode
from replicator.draft import Draft, Held, Hold
from replicator.record import Opened


@attrs.frozen(kw_only=True)
class Verdict:
    """Why the group must be copied anew under a new epoch; without a reason it just goes on."""

    reason: str = ""
    basis: CopyBasis = CopyBasis.OLDER
    """What is known of the copy here: nothing, if it has what the new epoch does not stand on."""
    ahead_of: Lineage | None = None
    """The copy has more of the parent's log than this, on which the new epoch stands."""


GOES_ON = Verdict()


def take_opened(draft: Draft, mark: Opened) -> None:
    """Follow the new epoch: in the stream, or by a copy."""
    fence = draft.fence(mark.group)
    if fence is None or fence.epoch >= mark.epoch:
        return
    found = verdict(draft, mark)
    if found.reason:
        basis = CopyBasis.STRANGE if _is_undone(draft, mark) else found.basis
        draft.join(
            fence, mark.epoch, mark.token, found.reason, basis=basis, ahead_of=found.ahead_of
        )
        return
    draft.leave_joins(mark.group)
    draft.raise_fence(fence, mark.epoch, mark.token)


def _is_undone(draft: Draft, mark: Opened) -> bool:
    """Return whether the copy here may be of a history of the parent that was undone."""
    lineage = mark.lineage
    parent = draft.state.checkpoints.get(lineage.parent) if lineage else None
    return bool(lineage and parent and parent.incarnation != lineage.parent_incarnation)


def verdict(draft: Draft, mark: Opened) -> Verdict:
    """Return whether the group just goes on under the new epoch, and why not.

    Raises:
        Held: its parent's records are still to come, or a person has to decide.
    """
    fence = draft.fence(mark.group)
    if fence is None or fence.epoch >= mark.epoch:
        return GOES_ON
    check_may_follow(draft, fence, mark)
    lineage = mark.lineage
    if lineage is None:
        return Verdict(reason="the first epoch began")
    frozen = draft.frozen_at(fence, lineage.parent)
    if draft.joins_of(mark.group) and frozen is None:
        return Verdict(reason="a newer epoch began before the copy was complete")
    covered = {prefix.encode() for prefix in lineage.prefixes}
    if covered and covered != set(mark.prefixes):
        return Verdict(reason="the epoch covers other keys than the one before")
    if lineage.parent in (draft.at.me, draft.at.source) or fence.epoch > lineage.parent_epoch:
        return _same_epoch(draft, fence, mark, lineage)
    return _parent_verdict(draft, fence, mark, lineage, frozen=frozen)


def _same_epoch(draft: Draft, fence: Fence, mark: Opened, lineage: Lineage) -> Verdict:
    if fence.epoch > lineage.parent_epoch:
        reason = f"it follows epoch {fence.epoch}, on which epoch {mark.epoch} does not stand"
        return Verdict(reason=reason, basis=CopyBasis.STRANGE)
    if lineage.parent == draft.at.source:
        # After a coordination etcd was adopted. What was written past the cut is in no log.
        return Verdict(reason="the active cluster began again on its own cut")
    is_parents = fence.epoch == lineage.parent_epoch
    return GOES_ON if is_parents else Verdict(reason="an epoch was missed")


def _parent_verdict(
    draft: Draft, fence: Fence, mark: Opened, lineage: Lineage, *, frozen: Sequence | None
) -> Verdict:
    """The same, for a parent that is another cluster: its log must be applied exactly so far."""
    parent = draft.state.checkpoints.get(lineage.parent)
    if parent is not None and parent.incarnation != lineage.parent_incarnation:
        reason = f"the parent's history {lineage.parent_incarnation} is not known here"
        return Verdict(reason=reason)
    if lineage.may_go_on:
        # The parent's stream may bring more at any moment, and what was read may be older.
        draft.compares.add(lineage.parent)
    at = frozen if frozen is not None else parent.sequence if parent else None
    if at is not None and at >= lineage.sequence:
        if lineage.may_go_on and at > lineage.sequence:
            reason = f"its copy goes up to {at} of {lineage.parent}, epoch {mark.epoch} stands on"
            return Verdict(
                reason=f"{reason} {lineage.sequence}",
                basis=CopyBasis.STRANGE,
                ahead_of=lineage,
            )
        # Its opening lies before its cut, and has been read: it was missed, or it was followed.
        return _same_epoch(draft, fence, mark, lineage)
    if frozen is not None:
        return Verdict(reason=f"it was frozen at {frozen}, before {lineage.sequence}")
    if draft.at.has_given_up(lineage.parent):
        return Verdict(reason=f"its parent {lineage.parent} cannot be reached")
    raise Held(
        Hold(
            reason=f"epoch {mark.epoch} of {mark.group} stands on {lineage.parent}@"
            f"{lineage.sequence}, which is not applied here yet",
            parent=lineage.parent,
        )
    )


def check_may_follow(draft: Draft, fence: Fence, mark: Opened) -> None:
    """Allow this cluster to follow a newer epoch.

    Raises:
        Held: it is active itself, frozen, or has records its successor does not stand on.
    """
    group, lineage = mark.group, mark.lineage
    cut = draft.state.cuts.get((group, fence.epoch))
    if fence.mode is FenceMode.SUPERSEDED:
        return
    if fence.mode is FenceMode.DRAINED:
        stands_on_us = (
            lineage is not None
            and (lineage.parent, lineage.parent_epoch) == (draft.at.me, fence.epoch)
            and lineage.sequence == cut
        )
        if stands_on_us:
            return
        reason = (
            f"epoch {mark.epoch} of {group} does not stand on this cluster's cut {cut} of epoch"
            f" {fence.epoch}: it must rejoin"
        )
        raise Held(Hold(reason=reason))
    raise Held(
        Hold(
            reason=f"epoch {mark.epoch} of {group} began at {draft.at.source}, while the fence"
            f" here is {fence.mode.value} in epoch {fence.epoch}"
        )
    )
