"""Whether a passive cluster promises not to open some groups, and the transaction that does. Pure.

The transaction compares everything that the promise rests on, so that any replicator of the
region may commit it, whether it leads or not: that the fences are as they were read (a freeze or
an opening in between refuses the promise), that no command to open waits, that the region is not
suspended, and that its etcd did not go back: one that did may have forgotten what it opened.

It also compares the promise that is there already. The new one's lease is granted after that was
read, so a promise never ends earlier because another one came late. Nor is it taken back for
another one: it goes to the newest epoch that asked, in the name of the newest round.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from meshkit.asking import AskPromises
from meshkit.codec import decode, encode
from meshkit.keys import RegionalKeys as Keys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, LeaseId, Revision
from meshkit.promises import Promise, PromisesRefused
from meshkit.regional import Fence, FenceMode
from meshkit.store.txn import Guard, KeyValue, ModRevisionIs, Put, Txn, absent


@attrs.frozen(kw_only=True)
class PromiseView:
    """What is known of one group where a promise is asked for; the promise compares all of it."""

    group: GroupName
    fence: Fence | None = None
    fence_revision: Revision = ABSENT
    promise: Promise | None = None
    promise_revision: Revision = ABSENT
    opening: PromisesRefused | None = None
    opening_revision: Revision = ABSENT


KEYS_READ = (Keys.fence, Keys.promise, Keys.promises_refused)
"""What a view is made of, for each group."""


def promise_view(group: GroupName, items: Mapping[bytes, KeyValue]) -> PromiseView:
    """Return the view from the items of the group's `KEYS_READ`.

    Raises:
        CorruptRecord: a record cannot be read.
    """
    fence, promise, opening = (items.get(key_of(group)) for key_of in KEYS_READ)
    return PromiseView(
        group=group,
        fence=decode(Fence, fence.value) if fence else None,
        fence_revision=fence.mod_revision if fence else ABSENT,
        promise=decode(Promise, promise.value) if promise else None,
        promise_revision=promise.mod_revision if promise else ABSENT,
        opening=decode(PromisesRefused, opening.value) if opening else None,
        opening_revision=opening.mod_revision if opening else ABSENT,
    )


def refusal(view: PromiseView, epoch: Epoch, *, to: ClusterName) -> str:
    """Return why it is not promised `to` that `epoch` is not overtaken here, or nothing."""
    if view.opening is not None and view.opening.epoch > epoch:
        return f"epoch {view.opening.epoch} is about to be opened here"
    fence = view.fence
    if fence is None:
        return "this cluster never had to do with the group"
    if fence.epoch > epoch:
        return f"this cluster is in epoch {fence.epoch} by now"
    if fence.mode is FenceMode.HELD:
        return "the copy here is frozen for an emergency"
    is_mine = fence.mode is FenceMode.DRAINED and fence.epoch == epoch
    if is_mine or fence.mode is FenceMode.OPEN:
        return f"this cluster is active itself, in epoch {fence.epoch}"
    return _given_away(view.promise, epoch, to=to)


def _given_away(given: Promise | None, epoch: Epoch, *, to: ClusterName) -> str:
    """Return that another cluster relies on the promise that is there, or nothing.

    Of an older epoch nobody does: whoever opened the newer one had promised nothing any more, and
    without that promise the older one has no permit.
    """
    if given is None or given.epoch < epoch or (given.epoch == epoch and given.to == to):
        return ""
    return f"{given.to} was promised that epoch {given.epoch} is not overtaken here"


def overtaken_by(view: PromiseView, epoch: Epoch) -> Epoch | None:
    """Return the epoch that proves that `epoch` is over, or None.

    A fence is in an epoch that was opened, and a command to open comes after the pivot. That the
    copy is frozen proves nothing: the emergency may yet be given up.
    """
    known = [record.epoch for record in (view.fence, view.opening) if record is not None]
    newest = max(known, default=epoch)
    return newest if newest > epoch else None


def ttl_s(views: Mapping[GroupName, PromiseView], question: AskPromises) -> int:
    """Return how long the lease of the promises has to be: never shorter than what is there."""
    there = [view.promise.ttl_s for view in views.values() if view.promise is not None]
    return max(question.ttl_s, *there, 0)


def promise(
    views: Mapping[GroupName, PromiseView],
    question: AskPromises,
    *,
    to: ClusterName,
    lease: LeaseId,
    ttl_s: int,
) -> Txn:
    """Return the transaction that promises what none of `views` refuses.

    `lease` was granted after `views` were read.
    """
    guards: list[Guard] = [absent(Keys.suspended), absent(Keys.replaced)]
    puts = []
    for group, view in views.items():
        epoch = question.groups[group]
        assert not refusal(view, epoch, to=to), "only what is not refused is promised"
        term, number = _newest(view.promise, question, epoch)
        record = Promise(
            group=group,
            epoch=epoch,
            to=to,
            term=term,
            round=number,
            ttl_s=ttl_s,
        )
        guards += [
            ModRevisionIs(Keys.fence(group), view.fence_revision),
            ModRevisionIs(Keys.promise(group), view.promise_revision),
            ModRevisionIs(Keys.promises_refused(group), view.opening_revision),
        ]
        puts.append(Put(Keys.promise(group), encode(record), lease=lease))
    return Txn(guards=tuple(guards), operations=tuple(puts))


def _newest(given: Promise | None, question: AskPromises, epoch: Epoch) -> tuple[Revision, int]:
    """Return the term and round in whose name it is promised: a late question takes none over."""
    asked = (question.term, question.round)
    if given is None or given.epoch != epoch:
        return asked
    return max(asked, (given.term, given.round))


def is_ended(promise: Promise, *, to: ClusterName, term: Revision, up_to_round: int) -> bool:
    """Return whether whoever asked for a promise has said that it does not rely on it any more."""
    return promise.to == to and promise.term == term and promise.round <= up_to_round
