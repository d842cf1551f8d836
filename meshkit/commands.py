"""What the coordinator asks of a cluster and what the cluster answers. Pure.

Both are keys in the coordination etcd. A command is put in the transaction that stores the
failover record which makes it due, so the mod revision of its key *is* its token's revision. The
replicator obeys no token below the greatest its fence record has seen, and repeats its answer to
one it has already obeyed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import ClassVar

import attrs

from meshkit.codec import Stored
from meshkit.model import Lineage
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, Incarnation, Sequence, Token
from meshkit.vector import ClusterVersionVector


class CommandStep(enum.Enum):
    """The acts a region's replicator can be asked for."""

    CATCH_UP = "catch_up"
    """To the source: answer when `target` lags no more than `lag_ms_max`."""
    DRAIN = "drain"
    """To the source: mark the fence drained and delete the permit; answer the cut."""
    UNDRAIN = "undrain"
    """To the source: open the fence again under the same epoch."""
    CONVERGE = "converge"
    """To the target: answer once everything up to `cut` of `source` is applied."""
    OPEN = "open"
    """To the new active cluster: open the fence with `epoch` and put the permit."""
    REVERSE = "reverse"
    """To the old active cluster: become passive; answer when it follows `source`'s new epoch."""
    SEAL = "seal"
    """To the source of an emergency: stop being active; answer the cut, if there is one."""
    RELEASE = "release"
    """To the source of an emergency that is undone: be active again, as the authority says."""
    TAKE_IN = "take_in"
    """To the target: answer once `source`'s cut is applied, or nothing more arrives for a while."""
    FREEZE = "freeze"
    """To the target: apply nothing more of the group; answer exactly what is contained."""
    THAW = "thaw"
    """To the target: follow again, from where the freeze stopped it."""
    FENCE = "fence"
    """To a superseded cluster: be active in no epoch below this one; answer where that ended."""
    FIND = "find_divergence"
    """To it: answer how much it has that its successor does not stand on. Changes nothing."""
    QUARANTINE = "quarantine"
    """To it: set that aside; answer what is in quarantine then."""
    RECONCILE = "reconcile"
    """To it: follow `source` from now on, by a copy or, if nothing diverged, by its stream."""
    STAND_BY = "stand_by"
    """To it: answer once it is in step with `source`'s epoch and no key of it hangs on a lease."""


class AnswerOutcome(enum.Enum):
    """What came of a command."""

    DONE = "done"
    REFUSED = "refused"
    """It was not done and will not be by repeating it; `reason` says why."""


@attrs.frozen(kw_only=True)
class Command(Stored):
    """One act that is due. Its token is (`incarnation`, mod revision of its key)."""

    SCHEMA: ClassVar[str] = "command"

    group: GroupName
    cluster: ClusterName
    """To whom."""
    step: CommandStep
    incarnation: int
    """Of the coordination etcd: the first part of the token."""
    epoch: Epoch
    """The epoch the act is about; for `open` and `reverse` the new one."""
    failover: FailoverId
    source: ClusterName | None = None
    """The cluster writes move away from; for `reverse` the one that is followed (new active)."""
    target: ClusterName | None = None
    """The cluster writes move to."""
    cut: Sequence | None = None
    cut_incarnation: Incarnation | None = None
    seal: Token | None = None
    """For `take_in`: of the seal that stops the source; an older cut does not count."""
    lag_ms_max: int | None = None
    token: Token | None = None
    """The epoch's fencing token, for `open` and `undrain`. None: the command's own (epoch 1)."""
    lineage: Lineage | None = None
    """For `open` and `reverse`: what the new epoch stands on. For `freeze` and `release`: what the
    source's own epoch stands on. For the steps of a rejoin: what the first epoch past this
    cluster's stands on."""
    quiet_ms: int | None = None
    """For `take_in`: how long nothing must have been heard of the source."""
    is_diverged: bool = True
    """For `reconcile`: whether the group must be copied, because something had diverged."""


class Standing(enum.Enum):
    """How a cluster that is asked to rejoin stands to the epoch it is to follow."""

    UNSAID = ""
    ENDED = "ended"
    """Its own epoch has ended, and it follows no other yet: it may have a tail."""
    AHEAD = "ahead"
    """Set apart: it has more than some newer epoch stands on."""
    FOLLOWS = "follows"
    """It is a standby, or being copied: it has nothing that would have to be looked for."""


@attrs.frozen(kw_only=True)
class Answer(Stored):
    """What a cluster did about one command, matched by token."""

    SCHEMA: ClassVar[str] = "answer"

    group: GroupName
    cluster: ClusterName
    step: CommandStep
    failover: FailoverId
    token: Token
    """The command's token."""
    outcome: AnswerOutcome
    reason: str = ""
    cut: Sequence | None = None
    incarnation: Incarnation | None = None
    """Of the answering cluster's etcd."""
    watermark: Sequence | None = None
    opened: Sequence | None = None
    prefixes: tuple[str, ...] = ()
    """For `drain` and `seal`: what the segment covered at its cut."""
    at_ms: int | None = None
    """For `seal`: the source's wall clock after its permit was deleted. For `take_in`: everything
    the source had committed by then, on its own clock, is contained here."""
    stands_on: Lineage | None = None
    """For `freeze`: what an epoch opened here would stand on. For `fence`, of a cluster that is
    ahead: what the epoch stands on that it has more than; None: it does not know."""
    vector: ClusterVersionVector = attrs.field(factory=ClusterVersionVector)
    diverged: Mapping[str, int] = attrs.field(factory=dict)
    """For `find_divergence` and `quarantine`: how many changes, by class and in all (`total`)."""
    completeness: str = ""
    """For the same: how much of it is known."""
    standing: Standing = Standing.UNSAID
    """For `fence`, `find_divergence` and `quarantine`."""
    own_epoch: Epoch | None = None
    """For `fence`: the epoch of the cluster's own fence."""
