"""The stored record of a rejoin: all that a successor needs in order to go on. Pure."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from typing import ClassVar

import attrs

from coordinator.failover.record import Problem, StepRecord, StepStatus
from meshkit.codec import Stored
from meshkit.commands import CommandStep
from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, Revision, Sequence

PLAN = "rejoin/1"


@attrs.frozen(kw_only=True)
class RejoinStep:
    """One step: what the cluster is asked, and how long that may take until somebody is told."""

    name: str
    command: CommandStep | None
    """None: a person's, or nobody's."""
    timeout_ms: int = 60_000
    attempts_max: int = 3
    """How often it is asked again after a refusal."""


STEPS = (
    RejoinStep(name="fence", command=CommandStep.FENCE),
    RejoinStep(name="find_divergence", command=CommandStep.FIND, timeout_ms=600_000),
    RejoinStep(name="quarantine", command=CommandStep.QUARANTINE, timeout_ms=1_800_000),
    RejoinStep(name="approve", command=None),
    RejoinStep(name="reconcile", command=CommandStep.RECONCILE),
    RejoinStep(name="stand_by", command=CommandStep.STAND_BY, timeout_ms=3_600_000),
)
"""`rejoin/1`. Only `reconcile` lets anything be written over, and it comes after `quarantine`."""

FIND, APPROVE, RECONCILE, STAND_BY = 1, 3, 4, 5
HISTORY_MAX = 100


class RejoinPhase(enum.Enum):
    """Where a rejoin stands as a whole."""

    ADVANCING = "advancing"
    HELD = "held"
    """Waits for a late answer or for a person; `problem` says which and why."""
    SUCCEEDED = "succeeded"
    ABANDONED = "abandoned"
    """Authority moved meanwhile; another one begins, if it is needed still."""

    @property
    def is_final(self) -> bool:
        """Whether nothing is due any more, ever."""
        return self in {RejoinPhase.SUCCEEDED, RejoinPhase.ABANDONED}

    @property
    def exit_code(self) -> int:
        """Exit code of a command that followed the rejoin to here."""
        return {RejoinPhase.SUCCEEDED: 0, RejoinPhase.ABANDONED: 6}.get(self, 5)


@attrs.frozen(kw_only=True)
class Rejoin(Stored):
    """A rejoin from its beginning to its end.

    Invariant: past `reconcile`, `completeness` is `complete`, or `approved_by` says who agreed.
    """

    SCHEMA: ClassVar[str] = "rejoin"

    id: str
    group: GroupName
    cluster: ClusterName
    """Which one rejoins."""
    active: ClusterName
    """Whom it is to follow."""
    epoch: Epoch
    """The epoch it is to follow."""
    incarnation: int
    """Of the coordination etcd: the first part of every token."""
    lineage: Lineage | None = None
    """What the first epoch past the cluster's own stands on, as its answer to `fence` has it;
    None: nobody knows (yet)."""
    plan: str = PLAN
    requested_by: str = ""
    reason: str = ""
    began_ms: int = 0
    ended_ms: int | None = None

    phase: RejoinPhase = RejoinPhase.ADVANCING
    cursor: int = 0
    attempt: int = 1
    awaiting: Revision | None = None
    """The revision of the command whose answer is awaited; 0 in stored bytes: of this record."""
    since_ms: int = 0
    """When the step in hand began (wall clock), for its time limit."""
    transitions: int = 0
    history: tuple[StepRecord, ...] = ()
    problem: Problem | None = None

    cut: Sequence | None = None
    """Where the cluster's own epoch ended there, if it was active."""
    diverged: Mapping[str, int] = attrs.field(factory=dict)
    """How many changes diverged, by class and in all (`total`)."""
    completeness: str = ""
    """How much of that is known."""
    approved_by: str = ""

    @property
    def step(self) -> RejoinStep:
        """The step in hand."""
        return STEPS[self.cursor]

    @property
    def has_diverged(self) -> bool:
        """Whether anything was found."""
        return bool(self.diverged.get("total")) or self.completeness not in ("", "complete")

    @property
    def needs_approval(self) -> bool:
        """Whether a person has to agree before anything is written over."""
        return self.completeness not in ("", "complete") and not self.approved_by


def rejoin_id(group: GroupName, cluster: ClusterName, epoch: Epoch, began_ms: int) -> str:
    """Return the id of a rejoin."""
    name = f"{group}\0{cluster}\0{epoch}\0{began_ms}"
    return f"r-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def with_revision(record: Rejoin, revision: Revision) -> Rejoin:
    """Return the record read or stored at `revision`, with its command's token filled in."""
    if record.awaiting != ABSENT:
        return record
    return attrs.evolve(record, awaiting=revision)


def ended_step(record: Rejoin, status: StepStatus, *, detail: str, now_ms: int) -> Rejoin:
    """Return the record with the newest entry of its history closed."""
    if not record.history:
        return record
    *earlier, last = record.history
    closed = attrs.evolve(last, status=status, ended_ms=now_ms, detail=detail)
    return attrs.evolve(record, history=(*earlier, closed)[-HISTORY_MAX:])
