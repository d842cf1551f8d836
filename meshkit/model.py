"""Clusters, groups and who has authority over what: the records of the coordination etcd. Pure.

Stored state is an intent or a fact, never a copy (architecture 5.1 rule 12): a descriptor stores
what operators decide; `active` and `passive` are derived from authority records.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import ClassVar

import attrs

from meshkit import keys
from meshkit.codec import Stored
from meshkit.errors import InvalidInput
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, Incarnation, Sequence, Token
from meshkit.prefixes import overlaps


class ClusterIntent(enum.Enum):
    """What operators have decided about a cluster. Stored in its descriptor."""

    IN_SERVICE = "in-service"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"


class ClusterState(enum.Enum):
    """How a cluster stands, as shown: derived from its intent, seals and authority."""

    ACTIVE = "active"
    PASSIVE = "passive"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    FENCED = "fenced"


INTENT_TRANSITIONS: Mapping[ClusterIntent, frozenset[ClusterIntent]] = {
    ClusterIntent.IN_SERVICE: frozenset({ClusterIntent.DRAINING, ClusterIntent.MAINTENANCE}),
    ClusterIntent.DRAINING: frozenset({ClusterIntent.IN_SERVICE, ClusterIntent.MAINTENANCE}),
    ClusterIntent.MAINTENANCE: frozenset({ClusterIntent.IN_SERVICE}),
}
"""From a cluster's intent to those it may go to. Staying where it is, is always allowed."""


class FailoverPolicy(enum.Enum):
    """Whether a cluster may be chosen as a target without an operator naming it."""

    PREFERRED = "preferred"
    ALLOWED = "allowed"
    NEVER = "never"


@attrs.frozen(kw_only=True)
class ClusterDescriptor(Stored):
    """One region's control plane, as operators describe it."""

    SCHEMA: ClassVar[str] = "cluster"

    name: ClusterName
    region: str = ""
    intent: ClusterIntent = ClusterIntent.IN_SERVICE
    priority: int = 100
    """Among possible targets the lowest goes first."""
    failover_policy: FailoverPolicy = FailoverPolicy.ALLOWED
    etcd_endpoints: tuple[str, ...] = ()
    """Where applications of any region reach this cluster's etcd: `https://host:port`."""
    replication_endpoints: tuple[str, ...] = ()
    """Where the other clusters' replicators reach this cluster's: `host:port`."""
    owners: tuple[str, ...] = ()
    annotations: Mapping[str, str] = attrs.field(factory=dict)
    change_ticket: str = ""


class VerifyMode(enum.Enum):
    """Whether a copy is compared with its source before writes are moved to it."""

    OFF = "off"
    RECENT = "recent"
    """Unless it was found equal no longer than `verify_age_ms_max` ago, in the present epoch."""
    ALWAYS = "always"


class LeasePolicy(enum.Enum):
    """What becomes of a lease whose id is somebody else's at the cluster a group moves to."""

    REFUSE = "refuse"
    """The failover is refused; the old active cluster goes on."""
    DROP = "drop"
    """The keys that hang on it are left without a lease."""
    REMAP = "remap"
    """They hang on a new lease with the same TTL, under an id that no client knows."""


class Fidelity(enum.Enum):
    """Which of a key's values arrive at the copies."""

    LATEST = "latest"
    """Of the values that a key had within one batch only the last: the fastest."""
    EVERY_REVISION = "every-revision"
    """Each, as a revision of the copy's etcd; but for what a copy made anew skips."""


class CoordinationLoss(enum.Enum):
    """What an active cluster does that does not reach the coordination etcd."""

    LAPSE = "lapse"
    """Its permits run out, and writes stop."""
    KEEP = "keep"
    """Writes go on while every other member promises not to open the group (ADR 26)."""


class FailoverMode(enum.Enum):
    """Who begins an emergency when a group's active cluster is gone."""

    MANUAL = "manual"
    """A person, or whatever calls the API."""
    AUTOMATIC = "automatic"
    """The leading coordinator, within the bounds of the policy (ADR 23)."""


@attrs.frozen(kw_only=True)
class GroupPolicy:
    """What a failover and the copies of the group must respect. Milliseconds throughout."""

    lag_ms_max: int = attrs.field(default=5_000, validator=attrs.validators.gt(0))
    """A planned failover is refused while the target lags more than this."""
    catch_up_lag_ms_max: int = attrs.field(default=200, validator=attrs.validators.gt(0))
    """Writes are paused only once the target lags no more than this."""
    catch_up_ms_max: int = attrs.field(default=60_000, validator=attrs.validators.gt(0))
    pause_budget_ms: int = attrs.field(default=10_000, validator=attrs.validators.gt(0))
    """From the drain on; when it runs out before the pivot, the drain is undone."""
    cool_down_ms: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """After a failover succeeded, the next is refused for so long (waived by name)."""
    verify: VerifyMode = VerifyMode.RECENT
    """Whether a planned failover compares the target's copy first."""
    verify_age_ms_max: int = attrs.field(default=86_400_000, validator=attrs.validators.gt(0))
    verify_ms_max: int = attrs.field(default=600_000, validator=attrs.validators.gt(0))
    """How long a planned failover waits for the comparison; writes go on meanwhile."""
    verify_every_ms: int = attrs.field(default=21_600_000, validator=attrs.validators.ge(0))
    """Each copy is compared so often by itself; 0: never."""
    leases: LeasePolicy = LeasePolicy.REFUSE
    """What becomes of a lease whose id is somebody else's at the target."""
    fidelity: Fidelity = Fidelity.LATEST
    """Whether a key that is written several times in a row arrives with each of its values."""
    on_coordination_loss: CoordinationLoss = CoordinationLoss.LAPSE
    """Whether writes stop when the active cluster does not reach the coordination etcd."""
    failover: FailoverMode = FailoverMode.MANUAL
    """Who begins an emergency when the active cluster is gone."""
    automatic_after_ms: int = attrs.field(default=15_000, validator=attrs.validators.gt(0))
    """An automatic one only after the leading coordinator has seen it gone for so long."""
    automatic_cool_down_ms: int = attrs.field(default=600_000, validator=attrs.validators.ge(0))
    """An automatic one not before so long after any failover of the group has ended."""
    automatic_loss_records_max: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    """How many known records an automatic one may lose."""
    automatic_loss_seconds_max: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.gt(0))
    )
    """Over how many seconds the writes lie that an automatic one may lose."""


@attrs.frozen(kw_only=True)
class Group(Stored):
    """The unit of failover: key prefixes, and the clusters that hold them, preferred first."""

    SCHEMA: ClassVar[str] = "group"

    name: GroupName
    prefixes: tuple[str, ...]
    members: tuple[ClusterName, ...]
    policy: GroupPolicy = attrs.field(factory=GroupPolicy)

    @property
    def prefix_bytes(self) -> tuple[bytes, ...]:
        """The prefixes as key bytes."""
        return tuple(prefix.encode() for prefix in self.prefixes)


@attrs.frozen(kw_only=True)
class Lineage:
    """Where an epoch goes on from: epoch e+1 is applied only on top of exactly this.

    `sequence` is the cut of the parent's log (or the promoted cluster's watermark of it).
    """

    parent: ClusterName
    parent_incarnation: Incarnation
    parent_epoch: Epoch
    sequence: Sequence
    prefixes: tuple[str, ...] = ()
    """What the parent's segment covered at its cut; the child opens with exactly this scope."""
    may_go_on: bool = False
    """Whether the parent's log may hold records of the group past `sequence`: the promoted cluster
    did not have them, so they are no part of the new epoch (an emergency)."""


@attrs.frozen(kw_only=True)
class Authority(Stored):
    """Which cluster may accept writes for a group, since which pivot, and on top of what."""

    SCHEMA: ClassVar[str] = "authority"

    group: GroupName
    epoch: Epoch
    token: Token
    active: ClusterName
    lineage: Lineage | None = None
    """None only for the group's first epoch."""


@attrs.frozen(kw_only=True)
class Routing(Stored):
    """What clients and proxies watch: a documented contract (docs/keyspace.md).

    Moves in the very transaction that moves authority. `endpoints` lists every member's etcd, so
    that a client keeps warm connections to all of them; only `active` accepts writes, and only
    with a permit of exactly this `epoch` and `token`.
    """

    SCHEMA: ClassVar[str] = "routing"

    group: GroupName
    epoch: Epoch
    token: Token
    active: ClusterName
    endpoints: Mapping[ClusterName, tuple[str, ...]] = attrs.field(factory=dict)
    prefixes: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Seal(Stored):
    """Fences the active cluster of a group: no holder may be made, no permit renewed."""

    SCHEMA: ClassVar[str] = "seal"

    group: GroupName
    epoch: Epoch
    failover: FailoverId
    reason: str = ""


@attrs.frozen(kw_only=True)
class Holder(Stored):
    """The active cluster's proof of life for a group; hangs on its coordination lease."""

    SCHEMA: ClassVar[str] = "holder"

    group: GroupName
    epoch: Epoch
    cluster: ClusterName


@attrs.frozen(kw_only=True)
class CoordinationIncarnation(Stored):
    """Counts the adoptions of a restored coordination etcd; part of every token."""

    SCHEMA: ClassVar[str] = "coordination-incarnation"

    number: int = 1
    adoption: str = ""
    """Names the adoption that began it; two adoptions might take the same number."""

    @property
    def identity(self) -> Incarnation:
        """What regions remember of the coordination etcd, to know it by."""
        name = f"{self.number}-{self.adoption}" if self.adoption else str(self.number)
        return Incarnation(name)


def check_transition(before: ClusterIntent, after: ClusterIntent) -> None:
    """Allow a change of intent.

    Raises:
        InvalidInput: the table has no such transition; says which there are.
    """
    if after is not before and after not in INTENT_TRANSITIONS[before]:
        allowed = ", ".join(sorted(intent.value for intent in INTENT_TRANSITIONS[before]))
        raise InvalidInput(
            f"a cluster in {before.value} cannot go to {after.value}: it may go to {allowed}"
        )


def derived_state(
    descriptor: ClusterDescriptor, *, authorities: Iterable[Authority], sealed: frozenset[GroupName]
) -> ClusterState:
    """Return how a cluster stands: its intent first, then whether any group is active there."""
    if descriptor.intent is ClusterIntent.MAINTENANCE:
        return ClusterState.MAINTENANCE
    if descriptor.intent is ClusterIntent.DRAINING:
        return ClusterState.DRAINING
    mine = [a for a in authorities if a.active == descriptor.name]
    if mine and all(a.group in sealed for a in mine):
        return ClusterState.FENCED
    return ClusterState.ACTIVE if mine else ClusterState.PASSIVE


def check_group(group: Group, *, others: Iterable[Group], clusters: Iterable[ClusterName]) -> None:
    """Allow a group beside the others.

    Raises:
        InvalidInput: names what is wrong: no prefix, an empty or reserved or overlapping prefix,
            an unknown, repeated or missing member.
    """
    if not group.prefixes:
        raise InvalidInput(f"group {group.name} has no prefix")
    known = set(clusters)
    if not group.members:
        raise InvalidInput(f"group {group.name} has no member cluster")
    if len(set(group.members)) != len(group.members):
        raise InvalidInput(f"group {group.name} names a member twice")
    for member in group.members:
        if member not in known:
            raise InvalidInput(
                f"group {group.name}: there is no cluster {member!r}",
                hint="apply the cluster first: mesh clusters apply -f FILE",
            )
    taken: list[tuple[str, bytes]] = [("MeshKit itself", keys.RESERVED)]
    taken += [
        (f"group {o.name}", p) for o in others if o.name != group.name for p in o.prefix_bytes
    ]
    for prefix in group.prefix_bytes:
        if not prefix:
            raise InvalidInput(f"group {group.name} has an empty prefix, which is every key")
        for owner, other in taken:
            if overlaps(prefix, other):
                raise InvalidInput(
                    f"prefix {prefix.decode()!r} of group {group.name} overlaps {other.decode()!r}"
                    f" of {owner}",
                    hint="choose prefixes that share no key with another's: mesh groups list",
                )
        taken.append((f"the same group {group.name}", prefix))
