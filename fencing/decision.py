"""What may come of a command, and the transaction that replaces a fence. Pure."""

from __future__ import annotations

import attrs

from fencing.fence_view import FenceView, view_reads
from meshkit.codec import encode
from meshkit.commands import Command
from meshkit.keys import RegionalKeys as Keys
from meshkit.ordinals import LeaseId, Token
from meshkit.regional import Fence, FenceIndex, FenceMode, Permit
from meshkit.store.txn import Guard, ModRevisionIs, Operation, Put, Txn, absent


@attrs.frozen
class Act:
    """Commit this transaction; its revision is the fact to answer with."""

    txn: Txn


@attrs.frozen
class Repeat:
    """This very command was obeyed before, or asks for what already is: answer from the view."""


@attrs.frozen
class Ignore:
    """A newer command has been obeyed; nobody waits for an answer to this one."""

    token_seen: Token


@attrs.frozen
class Refuse:
    """It cannot be done here, and repeating will not change that."""

    reason: str


@attrs.frozen
class Wait:
    """It may be done later: a promise to another cluster stands in the way until it runs out."""

    reason: str


Decision = Act | Repeat | Ignore | Refuse | Wait


def obeyed(fence: Fence, command: Command, token: Token, *, mode: FenceMode) -> Fence:
    """Return the fence after this command, which is the greatest obeyed from now on."""
    return attrs.evolve(
        fence,
        mode=mode,
        command_token=token,
        step=command.step.value,
        failover=command.failover,
    )


def epoch_text(fence: Fence | None) -> str:
    """Return the epoch a fence is in, in words."""
    return f"epoch {fence.epoch}" if fence else "no epoch"


def epoch_reason(view: FenceView, command: Command) -> str:
    """Return that a command is for another epoch, in words."""
    return f"the command is for epoch {command.epoch}; this cluster is in {epoch_text(view.fence)}"


def fence_txn(
    view: FenceView,
    fence: Fence,
    *,
    leader: Guard,
    operations: tuple[Operation, ...] = (),
    guards: tuple[Guard, ...] = (),
) -> Txn:
    """Return the transaction that replaces the fence, only if it did not move since the view.

    The fence index is put and not compared: it exists to break the transactions of appliers, and
    fences of different groups do not stand in each other's way.
    """
    index = FenceIndex(count=view.index_count + 1)
    return Txn(
        guards=(
            leader,
            ModRevisionIs(Keys.fence(view.group), view.fence_revision),
            *guards,
        ),
        operations=(
            Put(Keys.fence(view.group), encode(fence)),
            Put(Keys.fence_index, encode(index)),
            *operations,
        ),
        otherwise=view_reads(view.group),
    )


def permit_put(fence: Fence, lease: LeaseId) -> Put:
    """Return the put of the permit that an open fence allows, on the region's lease."""
    permit = Permit(group=fence.group, epoch=fence.epoch, token=fence.token)
    return Put(Keys.permit(fence.group), encode(permit), lease=lease)


def promised(view: FenceView) -> Wait | None:
    """Return that a promise to another cluster forbids a permit for now, or None.

    Beside this, whatever may put a permit compares the promise absent (`no_promise`).
    """
    if view.promise is None:
        return None
    to, epoch = view.promise.to, view.promise.epoch
    return Wait(f"{to} was promised that epoch {epoch} is not overtaken here; that has to run out")


def no_promise(view: FenceView) -> Guard:
    """Return the guard without which no permit is put: this cluster has promised nothing."""
    return absent(Keys.promise(view.group))
