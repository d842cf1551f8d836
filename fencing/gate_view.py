"""When a gate is open: what one client has seen of the members of a group. Pure.

A permit that is read from an etcd proves little: an etcd that was frozen, or restarted, shows
permits whose leases it has given their full time again. So a gate opens only on a beat that is
*provably* young. The proof does not rest on when the beat arrived, because it may have waited in
the buffers of a stopped client, or be the backlog of a watch that was resumed. It rests on
**anchors**: a request sent at `t` was answered at revision `r`, so whatever has a revision above
`r` was committed after `t`. The gate closes `Tr` after the `t` of the last beat's best anchor.
"""

from __future__ import annotations

from collections import deque

import attrs

from meshkit.codec import decode
from meshkit.errors import CorruptRecord
from meshkit.names import ClusterName
from meshkit.ordinals import ABSENT, NO_TOKEN, Epoch, Revision, Token
from meshkit.regional import Beat, Permit

ANCHORS_MAX = 32

Rank = tuple[Epoch, Token]
NO_RANK: Rank = (Epoch(0), NO_TOKEN)


@attrs.frozen(kw_only=True)
class Opening:
    """Where writes go now: one cluster, in one epoch."""

    cluster: ClusterName
    epoch: Epoch
    token: Token
    permit: bytes = attrs.field(repr=False)
    """What each write compares the permit key with."""


@attrs.define(kw_only=True)
class MemberView:
    """What was seen of one member's permit and beat.

    Invariant: a beat at `beat_revision` was committed no earlier than `vouched_at_ms`.
    """

    cluster: ClusterName
    regional_ttl_ms: int
    permit: bytes | None = None
    permit_revision: Revision = ABSENT
    permit_rank: Rank = NO_RANK
    beat_revision: Revision = ABSENT
    vouched_at_ms: int | None = None
    _anchors: deque[tuple[int, Revision]] = attrs.field(
        factory=lambda: deque(maxlen=ANCHORS_MAX), init=False
    )

    def on_permit(self, value: bytes | None, revision: Revision) -> None:
        """Take in the permit as of `revision`; None: there is none. Older news are ignored."""
        if revision < self.permit_revision:
            return
        self.permit, self.permit_revision, self.permit_rank = None, revision, NO_RANK
        if value is None:
            return
        try:
            permit = decode(Permit, value)
        except CorruptRecord:
            return
        self.permit, self.permit_rank = value, (permit.epoch, permit.token)

    def on_refusal(self, permit: bytes, revision: Revision) -> None:
        """Note that etcd's permit was not this one at `revision`; the watch will say what it is."""
        if self.permit == permit and self.permit_revision <= revision:
            self.permit, self.permit_rank = None, NO_RANK

    def on_anchor(self, *, sent_at_ms: int, revision: Revision) -> None:
        """Note that a linearizable request sent at `sent_at_ms` was answered at `revision`."""
        spacing_ms = self.regional_ttl_ms // ANCHORS_MAX * 2
        if not self._anchors or sent_at_ms >= self._anchors[-1][0] + spacing_ms:
            self._anchors.append((sent_at_ms, revision))

    def on_beat(self, value: bytes, revision: Revision) -> None:
        """Take in a beat; it also says for how long it vouches."""
        if revision <= self.beat_revision:
            return
        self.beat_revision = revision
        self._trust_no_longer_than(value)
        proofs = [sent_at_ms for sent_at_ms, before in self._anchors if before < revision]
        if proofs:
            self.vouched_at_ms = max(proofs[-1], self.vouched_at_ms or proofs[-1])

    def _trust_no_longer_than(self, value: bytes) -> None:
        try:
            stated_ms = decode(Beat, value).regional_ttl_ms
        except CorruptRecord:
            return
        if stated_ms > 0:
            self.regional_ttl_ms = min(self.regional_ttl_ms, stated_ms)

    def on_lost(self) -> None:
        """Forget what vouches for the member: it is another connection from here on."""
        self.vouched_at_ms = None
        self._anchors.clear()

    @property
    def closes_at_ms(self) -> int | None:
        """When the gate closes unless another beat comes; None: nothing vouches for it."""
        return None if self.vouched_at_ms is None else self.vouched_at_ms + self.regional_ttl_ms

    def is_vouched(self, *, now_ms: int) -> bool:
        """Return whether an answer that arrives now may be believed."""
        return self.closes_at_ms is not None and now_ms < self.closes_at_ms


def opening_of(view: MemberView, *, now_ms: int, rank_seen: Rank) -> Opening | None:
    """Return the opening at this member, or None while the gate is closed there.

    `rank_seen` is the greatest (epoch, token) seen in any routing record or permit.
    """
    if view.permit is None or view.permit_rank < rank_seen or not view.is_vouched(now_ms=now_ms):
        return None
    epoch, token = view.permit_rank
    return Opening(cluster=view.cluster, epoch=epoch, token=token, permit=view.permit)


def why_closed(view: MemberView, *, now_ms: int, rank_seen: Rank) -> str:
    """Say why the gate is closed at a member, for the person who waits."""
    if view.permit is None:
        return f"{view.cluster} has no permit"
    if view.permit_rank < rank_seen:
        return f"{view.cluster} has a permit of epoch {view.permit_rank[0]}, which is over"
    if view.closes_at_ms is None:
        return f"{view.cluster} has a permit, but no beat was seen since we connected"
    silent_ms = now_ms - view.closes_at_ms + view.regional_ttl_ms
    return f"{view.cluster} has a permit, but its last beat is {silent_ms} ms old"
