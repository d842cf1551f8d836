"""What can be due in a failover, and what can happen to it: the words of its machine. Pure."""

from __future__ import annotations

import attrs

from coordinator.failover.loss import FenceStatus, LossBound, LossStatement
from meshkit.commands import Answer, Command
from meshkit.names import FailoverId
from meshkit.ordinals import Revision, Token

# --- what is due --------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Perform:
    """The coordinator itself has to carry out `step`."""

    step: str


@attrs.frozen(kw_only=True)
class AwaitConsent:
    """Somebody has to accept the loss as it was stated, or abort."""

    objections: tuple[str, ...]


@attrs.frozen(kw_only=True)
class MoveAuthority:
    """The pivot: to be stored as `AuthorityMoved`, in one transaction with authority itself."""


@attrs.frozen(kw_only=True)
class AwaitAnswer:
    """`command` is put (in the transaction of the record); its answer is awaited."""

    command: Command
    revision: Revision
    """The command's token; 0 while the record is not stored yet."""


Due = Perform | MoveAuthority | AwaitAnswer | AwaitConsent


@attrs.frozen(kw_only=True)
class Timer:
    """How long what is awaited may take. `key` tells one stretch of time from the next."""

    key: str
    limit_ms: int
    since_ms: int | None = None
    """Wall time at which it began, for a budget that a successor must not begin anew."""


# --- what happens -------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class StepDone:
    """A step of the coordinator's own was carried out, or one was skipped: `detail` says why."""

    step: str
    detail: str = ""
    skipped: bool = False


@attrs.frozen(kw_only=True)
class StepFailed:
    """A step of the coordinator's own cannot be carried out."""

    step: str
    detail: str


@attrs.frozen(kw_only=True)
class AuthorityMoved:
    """The pivot, under the token that names the new epoch: the revision of the record before."""

    token: Token


@attrs.frozen(kw_only=True)
class Answered:
    """A region answered a command."""

    answer: Answer


@attrs.frozen(kw_only=True)
class FenceEnded:
    """The source did not answer, but is fenced as surely as `fence` says."""

    fence: FenceStatus
    permit_ended_ms: int | None = None
    detail: str = ""


@attrs.frozen(kw_only=True)
class LossStated:
    """What may be lost was found out, with the copy frozen."""

    statement: LossStatement


@attrs.frozen(kw_only=True)
class ConsentGiven:
    """Somebody accepts a loss, within a bound."""

    bound: LossBound
    actor: str


@attrs.frozen(kw_only=True)
class Superseded:
    """An emergency of the same group takes over."""

    by: FailoverId


@attrs.frozen(kw_only=True)
class TimedOut:
    """The answer to the command with token `revision` did not come in time."""

    revision: Revision
    detail: str


@attrs.frozen(kw_only=True)
class AbortRequested:
    """An operator wants the source to keep (or get back) the writes."""

    actor: str
    reason: str = ""


@attrs.frozen(kw_only=True)
class ResumeRequested:
    """An operator wants a held failover to be tried again."""

    actor: str
    reason: str = ""


Event = (
    StepDone
    | StepFailed
    | AuthorityMoved
    | Answered
    | TimedOut
    | AbortRequested
    | ResumeRequested
    | FenceEnded
    | LossStated
    | ConsentGiven
    | Superseded
)
