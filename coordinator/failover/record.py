"""The stored record of a failover: all that a successor needs in order to go on. Pure."""

from __future__ import annotations

import enum
from typing import ClassVar

import attrs

from coordinator.failover.loss import FenceStatus, LossBound, LossStatement
from meshkit.codec import Stored
from meshkit.model import GroupPolicy, Lineage
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import ABSENT, Epoch, Incarnation, Revision, Sequence, Token
from meshkit.vector import ClusterVersionVector


class FailoverKind(enum.Enum):
    """What the operator asked for. The first two run the same plan."""

    PROMOTE = "promote"
    FAILBACK = "failback"
    EMERGENCY = "emergency"
    """Without the source's help; may lose, and says how much."""


class Phase(enum.Enum):
    """Where a failover stands as a whole."""

    ADVANCING = "advancing"
    UNDOING = "undoing"
    HELD = "held"
    """Waits for a late answer or for an operator; `problem` says which and why."""
    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled_back"
    """Undone: the source serves as before."""
    REFUSED = "refused"
    """A check failed before anything was done."""
    SUPERSEDED = "superseded"
    """An emergency of the same group took over; `problem` names it."""

    @property
    def is_final(self) -> bool:
        """Whether nothing is due any more, ever."""
        return self in {Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.REFUSED, Phase.SUPERSEDED}

    @property
    def exit_code(self) -> int:
        """Exit code of a command that followed the failover to here."""
        return _EXIT_CODES.get(self, 5)


_EXIT_CODES = {
    Phase.SUCCEEDED: 0,
    Phase.REFUSED: 3,
    Phase.SUPERSEDED: 6,
    Phase.ROLLED_BACK: 8,
}


class StepStatus(enum.Enum):
    """How one step stands."""

    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    UNDONE = "undone"


@attrs.frozen(kw_only=True)
class StepRecord:
    """One step as it happened. Times are the coordinators' wall clocks, for people."""

    step: str
    status: StepStatus
    started_ms: int
    ended_ms: int | None = None
    detail: str = ""


@attrs.frozen(kw_only=True)
class Problem:
    """Why a failover does not simply go on, for the person on call."""

    happened: str
    state: str = ""
    """What the state of things is now."""
    next: str = ""
    """What to do, or what will happen by itself."""


@attrs.frozen(kw_only=True)
class Awaiting:
    """The command whose answer is awaited, also while the failover is held.

    `revision` is the revision of the transaction that put the command, hence its token. In stored
    bytes 0 means "the revision of this very record"; the repository fills it in when it reads.
    """

    cluster: ClusterName
    step: str
    revision: Revision = ABSENT


@attrs.frozen(kw_only=True)
class Emergency:
    """What an emergency was asked, has found out, and has consent for."""

    no_fence_wait: bool = False
    """By name: go on without knowing that the source accepts no more writes."""
    accept: LossBound | None = None
    accepted_by: str = ""
    automatic: bool = False
    """Begun by the group's policy: undone, not waited with, if the loss exceeds its bound."""
    source_lineage: Lineage | None = None
    """What the source's epoch stands on."""
    source_began_ms: int | None = None
    """When the source got authority, if that is known."""
    supersedes: FailoverId | None = None
    after_planned: str = ""
    """Why the planned failover, which was to be tried first, was given up."""
    seal_revision: Revision = ABSENT
    """Mod revision of the seal. In stored bytes 0 means, from the fence on, this very record's."""
    fence: FenceStatus | None = None
    permit_ended_ms: int | None = None
    """By when the source's permit had ended, on the source's wall clock as far as is known."""
    never_opened: bool = False
    """The source answered that it never opened its epoch."""
    contained_at_ms: int | None = None
    """All that the source had committed by then, on its wall clock, is at the target."""
    stands_on: Lineage | None = None
    """Where the target is frozen: what the new epoch stands on."""
    loss: LossStatement | None = None


@attrs.frozen(kw_only=True)
class Failover(Stored):
    """A failover from request to end.

    Invariants: `awaiting` names the step in hand or is None; `target_token` is there exactly if
    authority has moved.
    """

    SCHEMA: ClassVar[str] = "failover"

    id: FailoverId
    group: GroupName
    kind: FailoverKind
    plan: str
    source: ClusterName
    target: ClusterName
    epoch_before: Epoch
    incarnation: int
    """Of the coordination etcd: the first part of every token of this failover."""
    authority_revision: Revision
    """Mod revision of the authority that the operator was shown; the pivot compares it."""
    source_token: Token
    """The fencing token of the source's epoch; `undrain` gives it back."""
    policy: GroupPolicy = attrs.field(factory=GroupPolicy)
    """The group's policy when the failover began."""
    requested_by: str = ""
    reason: str = ""
    change_ticket: str = ""
    request_id: str = ""
    expect_epoch: Epoch | None = None
    waivers: tuple[str, ...] = ()
    began_ms: int = 0
    ended_ms: int | None = None

    phase: Phase = Phase.ADVANCING
    undoing: bool = False
    """Whether the way is back; tells a held failover's direction."""
    cursor: int = 0
    """Index of the step in hand; while undoing, of the step being undone."""
    attempt: int = 1
    awaiting: Awaiting | None = None
    transitions: int = 0
    """How often the record was stored; numbers its events."""
    history: tuple[StepRecord, ...] = ()
    problem: Problem | None = None

    cut: Sequence | None = None
    cut_incarnation: Incarnation | None = None
    cut_prefixes: tuple[str, ...] = ()
    """What the source's segment covered at the cut; the target opens with exactly this scope."""
    watermark: Sequence | None = None
    opened: Sequence | None = None
    vector: ClusterVersionVector = attrs.field(factory=ClusterVersionVector)
    target_token: Token | None = None
    """The fencing token of the new epoch, from the pivot on."""
    emergency: Emergency | None = None
    """There exactly if the plan is an emergency's."""
    fallback: Emergency | None = None
    """Goes on as this emergency if the planned failover fails before its pivot."""

    @property
    def authority_moved(self) -> bool:
        """Whether the pivot has happened."""
        return self.target_token is not None

    @property
    def epoch_after(self) -> Epoch:
        """The target's epoch, if the failover gets that far."""
        return Epoch(self.epoch_before + 1)


@attrs.frozen(kw_only=True)
class FailoverEvent(Stored):
    """One stored transition: the record as it was then, for those who follow."""

    SCHEMA: ClassVar[str] = "failover-event"

    number: int
    at_ms: int
    what: str
    record: Failover


@attrs.frozen(kw_only=True)
class ActiveFailover(Stored):
    """Names the one failover that runs for a group."""

    SCHEMA: ClassVar[str] = "failover-active"

    id: FailoverId


FENCE = "fence"
"""The step in which an emergency's seal is put."""


def with_revision(record: Failover, revision: Revision) -> Failover:
    """Return the record read or stored at `revision`, with its command's token filled in."""
    if record.awaiting is None or record.awaiting.revision != ABSENT:
        return record
    emergency = record.emergency
    if emergency is not None and record.awaiting.step == FENCE:
        # The seal is put with the command to obey it.
        emergency = attrs.evolve(emergency, seal_revision=revision)
    awaiting = attrs.evolve(record.awaiting, revision=revision)
    return attrs.evolve(record, awaiting=awaiting, emergency=emergency)


def pause_ms(record: Failover) -> int | None:
    """Return how long writes were paused, from drain to open or undrain, if that has ended."""
    began = next((s.started_ms for s in record.history if s.step == "drain"), None)
    ended = next(
        (s.ended_ms for s in record.history if s.step in {"open", "undrain"} and s.ended_ms), None
    )
    return max(0, ended - began) if began is not None and ended is not None else None
