"""An apply plan as it grows: which writes, which fences, which checkpoints. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import attrs

from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, NOTHING, Epoch, Incarnation, Revision, Sequence, Token
from meshkit.regional import (
    Attachment,
    CopyBasis,
    Fence,
    FenceMode,
    GroupCheckpoint,
    JoinPhase,
    ParkedWrite,
    PartsCheckpoint,
)
from replicator.attachments import AttachmentChanges
from replicator.record import Record, Write
from replicator.region_state import JoinKey, RegionState
from replicator.shield import Shield

_BY_DOUBT = (CopyBasis.STRANGE, CopyBasis.DOUBTFUL, CopyBasis.OLDER)


@attrs.frozen(kw_only=True)
class ApplyPlan:
    """One apply transaction. `through` may fall short of the batch: what is left waits.

    `is_durable`: the checkpoint must be stored with it. Otherwise nothing in the batch concerned
    this cluster, and reading it again would change nothing.
    """

    through: Sequence
    writes: dict[bytes, Write] = attrs.field(factory=dict)
    fences: dict[GroupName, Fence] = attrs.field(factory=dict)
    joins: dict[JoinKey, GroupCheckpoint | None] = attrs.field(factory=dict)
    """Groups' own checkpoints to put, or (None) to delete."""
    attachments: dict[bytes, Attachment | None] = attrs.field(factory=dict)
    """Which lease keys hang on at the source, by the key it is stored under; None: on none."""
    parts: PartsCheckpoint | None = None
    """Of a transaction that is applied in parts: how far it is after this part, not the last."""
    parked: Mapping[GroupName, ParkedWrite | None] = attrs.field(factory=dict)
    """Writes that etcd here refuses, to be told of; None: the group waits for none any more."""
    refused: Mapping[GroupName, int] = attrs.field(factory=dict)
    """How many writes of each group are not applied because this cluster is active for the keys."""
    is_durable: bool = False
    records: int = 0
    compares: frozenset[ClusterName] = frozenset()
    """Other sources of which exactly so much must be here as was read."""

    @property
    def moves_index(self) -> bool:
        """Whether other streams must look again: a fence or who is in step has changed."""
        return bool(self.fences or self.joins)


@attrs.frozen(kw_only=True)
class Hold:
    """The next record cannot be applied yet. `parent`: it waits for that cluster's stream."""

    reason: str
    parent: ClusterName | None = None
    parked: ParkedWrite | None = None
    """The write that etcd here refuses, if that is why."""


@attrs.frozen
class Stale:
    """The work belongs to a side stream that has since been begun anew."""


@attrs.frozen
class Overtaken:
    """Something else wrote to keys that were to be overwritten, after they were looked at."""


class Held(Exception):
    """Control flow of planning: raised where a record cannot be applied yet."""

    def __init__(self, hold: Hold) -> None:
        super().__init__(hold.reason)
        self.hold = hold


@attrs.frozen(kw_only=True)
class Standpoint:
    """Who applies whose log."""

    me: ClusterName
    source: ClusterName
    incarnation: Incarnation
    has_given_up: Callable[[ClusterName], bool] = lambda _: False
    """Whether a cluster's stream is gone for longer than an epoch waits for its parent."""
    is_exact: Callable[[GroupName], bool] = lambda _: False
    """Whether every value of the group's keys is to arrive (`fidelity: every-revision`)."""


class Draft:
    """The plan as it grows; sees its own changes over the region's state."""

    def __init__(self, state: RegionState, at: Standpoint) -> None:
        self.state = state
        self.at = at
        self.writes: dict[bytes, Write] = {}
        self.fences: dict[GroupName, Fence] = {}
        self.joins: dict[JoinKey, GroupCheckpoint | None] = {}
        self.attachments = AttachmentChanges(state.attachments)
        self.parked: dict[GroupName, ParkedWrite | None] = {}
        self.refused: Counter[GroupName] = Counter()
        self.is_durable = False
        self.records = 0
        self.compares: set[ClusterName] = set()
        self.before: Sequence | None = None
        """What comes before the record in hand."""
        self._shield: Shield | None = None

    @property
    def shield(self) -> Shield:
        """What this cluster is active for, as this plan leaves it."""
        if self._shield is None:
            self._shield = self.state.shield(self.fences)
        return self._shield

    def repeats(self, record: Record) -> bool:
        """Return whether a record overwrites a value that still has to be seen by itself."""
        for part in record.parts:
            if self.at.is_exact(part.group) and any(w.key in self.writes for w in part.writes):
                return True
        return False

    def fence(self, group: GroupName) -> Fence | None:
        """Return the group's fence as this plan leaves it."""
        return self.fences.get(group) or self.state.fences.get(group)

    def joins_of(self, group: GroupName) -> list[JoinKey]:
        """Return the group's own checkpoints, whatever source, as this plan leaves them."""
        if not self.joins and not self.state.joins:
            return []
        keys = {*self.state.joins_of(group), *(key for key in self.joins if key[1] == group)}
        return sorted(k for k in keys if self.joins.get(k, self.state.joins.get(k)) is not None)

    def own_join(self, group: GroupName) -> GroupCheckpoint | None:
        """Return the group's own checkpoint under this source."""
        key = (self.at.source, group)
        return self.joins.get(key, self.state.joins.get(key))

    def join(
        self,
        fence: Fence,
        epoch: Epoch,
        token: Token,
        reason: str,
        *,
        basis: CopyBasis = CopyBasis.OLDER,
        ahead_of: Lineage | None = None,
    ) -> None:
        """Put the group out of step: it is copied from this source, under `epoch`.

        Not before what it has past `ahead_of` of the parent's log has been set aside (a rejoin).

        `basis`: what is known of the keys here. Of a group that was out of step before no more is
        known than then; and what it has too much still has to be set aside first, whoever is
        active by now.
        """
        known = self._ahead(fence.group)
        ahead = known.lineage if known is not None else ahead_of
        is_ahead = known is not None or ahead_of is not None
        before = self.joins_of(fence.group)
        bases = [basis, *(self._join(key).basis for key in before)]
        since = min((self._begun(key) for key in before), default=ABSENT)
        left_at = self._left_at(fence, epoch, before)
        for key in before:
            self.joins[key] = None
        self.joins[self.at.source, fence.group] = GroupCheckpoint(
            source=self.at.source,
            group=fence.group,
            incarnation=self.at.incarnation,
            phase=JoinPhase.AHEAD if is_ahead else JoinPhase.JOINING,
            epoch=epoch,
            sequence=NOTHING if ahead is None else ahead.sequence,
            lineage=ahead,
            reason=reason,
            basis=min(bases, key=_BY_DOUBT.index),
            since=since,
            left_at=left_at,
        )
        self.raise_fence(fence, epoch, token)
        self.is_durable = True

    def _left_at(self, fence: Fence, epoch: Epoch, before: list[JoinKey]) -> Sequence | None:
        """Return up to where this log is applied of a group that falls out of step, if known."""
        if not before:
            return self.before if fence.epoch == epoch else None
        own = self.own_join(fence.group)
        is_of_this_log = own is not None and own.incarnation == self.at.incarnation
        return own.contained if own is not None and is_of_this_log else None

    def _join(self, key: JoinKey) -> GroupCheckpoint:
        own = self.joins.get(key) or self.state.joins.get(key)
        assert own is not None, "only of a group that is out of step"
        return own

    def _begun(self, key: JoinKey) -> Revision:
        return self._join(key).since or self.state.join_begun.get(key, ABSENT)

    def leave_joins(self, group: GroupName) -> None:
        """Let the group follow the main stream: its own checkpoints have served their purpose."""
        for key in self.joins_of(group):
            self.joins[key] = None

    def frozen_at(self, fence: Fence, parent: ClusterName) -> Sequence | None:
        """Return where a copy of `parent`'s log is frozen, or follows again since; else None."""
        keys = self.joins_of(fence.group)
        if keys != [(parent, fence.group)]:
            return None
        own = self.joins.get(keys[0], self.state.joins.get(keys[0]))
        is_whole = own is not None and own.phase is JoinPhase.FOLLOWING
        return own.sequence if own and is_whole and own.epoch == fence.epoch else None

    def _ahead(self, group: GroupName) -> GroupCheckpoint | None:
        joins = (self.joins.get(k, self.state.joins.get(k)) for k in self.joins_of(group))
        return next((j for j in joins if j and j.phase is JoinPhase.AHEAD), None)

    def raise_fence(self, fence: Fence, epoch: Epoch, token: Token) -> None:
        """Follow `epoch` from now on; nothing below it is ever applied again."""
        if (fence.epoch, fence.mode) != (epoch, FenceMode.SUPERSEDED):
            self.fences[fence.group] = attrs.evolve(
                fence, epoch=epoch, mode=FenceMode.SUPERSEDED, token=token
            )
            self._shield = None
        self.is_durable = True

    def plan(self, through: Sequence) -> ApplyPlan:
        """Return the plan so far, applied up to `through`."""
        return ApplyPlan(
            through=through,
            writes=self.writes,
            fences=self.fences,
            joins=self.joins,
            attachments=self.attachments.changed,
            parked=self.parked,
            refused=self.refused,
            is_durable=self.is_durable or bool(self.writes),
            records=self.records,
            compares=frozenset(self.compares),
        )
