"""Promises to other clusters, stored in the region's etcd before they are given (4.1 rule 4).

Any replicator of the region promises, also one that stands by: whoever starts while the
coordination etcd is lost leads nothing. `fencing.promising` says what the transaction compares.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import structlog

from fencing import promising
from fencing.promising import KEYS_READ, PromiseView
from fencing.timing import PROMISE_MS_MAX
from meshkit.asking import (
    AboutPromises,
    Answer,
    AskPromises,
    Counted,
    DeclineCode,
    Declined,
    EndPromises,
    Promised,
)
from meshkit.codec import decode
from meshkit.errors import MeshError, RevisionConflict
from meshkit.incarnations import FIRST_INCARNATION
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation
from meshkit.peer import PeerIdentity
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Delete, KeyValue, ModRevisionIs, Txn
from replicator.recognition import Observation

_log = structlog.get_logger()

GROUPS_AT_ONCE = 24
"""In one transaction, below etcd's limit of 128 comparisons."""
ATTEMPTS_MAX = 3


@attrs.frozen(kw_only=True)
class Refusal:
    """Why one group is not promised, and by which epoch it was overtaken, if it was."""

    why: str
    by: Epoch | None


async def answer_about_promises(
    store: Store, question: AboutPromises, peer: PeerIdentity, *, me: ClusterName
) -> Answer:
    """Return what is promised to another cluster, or which promises were taken back."""
    if peer.role != "cluster":
        return Declined(code=DeclineCode.NOT_ALLOWED, text=f"{peer} is no cluster")
    to = ClusterName(peer.name)
    try:
        match question:
            case AskPromises():
                return await _promised(store, question, to=to, me=me)
            case EndPromises():
                return await _ended(store, question, to=to)
    except MeshError as error:
        return Declined(code=DeclineCode.REFUSED, text=f"the region's etcd: {error}")


async def known_coordination(store: Store) -> Incarnation:
    """Return the coordination etcd's incarnation as the region knows it."""
    item = await store.get(RegionalKeys.coordination_seen)
    known = decode(Observation, item.value).incarnation if item else FIRST_INCARNATION
    return known or FIRST_INCARNATION


async def _promised(
    store: Store, question: AskPromises, *, to: ClusterName, me: ClusterName
) -> Promised:
    refused: dict[GroupName, Refusal] = {}
    if question.ttl_s * 1000 > PROMISE_MS_MAX:
        why = f"{question.ttl_s} s is too long a time to promise"
        return Promised(cluster=me, refused=dict.fromkeys(question.groups, why))
    known = await known_coordination(store)
    if known != question.coordination:
        why = (
            f"the coordination etcd was adopted: it is incarnation {known} here, and"
            f" {question.coordination} at {to}"
        )
        return Promised(cluster=me, refused=dict.fromkeys(question.groups, why))
    names = sorted(question.groups)
    for at in range(0, len(names), GROUPS_AT_ONCE):
        refused |= await _promise(store, question, names[at : at + GROUPS_AT_ONCE], to=to)
    groups = tuple(name for name in names if name not in refused)
    return Promised(
        cluster=me,
        groups=groups,
        ttl_s=question.ttl_s,
        refused={name: refusal.why for name, refusal in refused.items()},
        overtaken={name: r.by for name, r in refused.items() if r.by is not None},
    )


async def _promise(
    store: Store, question: AskPromises, names: list[GroupName], *, to: ClusterName
) -> dict[GroupName, Refusal]:
    """Promise what can be, and return why the rest cannot.

    The lease is granted after the promises that are there were read: see `fencing.promising`.

    Raises:
        RevisionConflict: everything moves too fast.
    """
    for _ in range(ATTEMPTS_MAX):
        views = await _views(store, names)
        refused = _refused(views, question.groups, to=to)
        wanted = {name: view for name, view in views.items() if name not in refused}
        if not wanted:
            return refused
        ttl_s = promising.ttl_s(wanted, question)
        granted = await store.grant(ttl_s=ttl_s)
        txn = promising.promise(wanted, question, to=to, lease=granted.lease_id, ttl_s=ttl_s)
        if isinstance(await store.commit(txn), Committed):
            return refused
        await store.revoke(granted.lease_id)
    raise RevisionConflict(
        "the groups' fences move too fast, or the region is suspended or its etcd went back"
    )


def _refused(
    views: Mapping[GroupName, PromiseView], epochs: Mapping[GroupName, Epoch], *, to: ClusterName
) -> dict[GroupName, Refusal]:
    return {
        name: Refusal(why=why, by=promising.overtaken_by(view, epochs[name]))
        for name, view in views.items()
        if (why := promising.refusal(view, epochs[name], to=to))
    }


async def _views(store: Store, names: list[GroupName]) -> dict[GroupName, PromiseView]:
    """Return what is known of groups whose names are sorted.

    By plain reads: whoever asks may go away at any time, and etcd 3.5.1 dies of a transaction that
    only reads and is cancelled. They need not be of one revision: all of it is compared.
    """
    items: dict[bytes, KeyValue] = {}
    for key_of in KEYS_READ:
        found = await store.range((key_of(names[0]), key_of(names[-1]) + b"\x00"))
        items |= {item.key: item for item in found.items}
    return {name: promising.promise_view(name, items) for name in names}


async def _ended(store: Store, question: EndPromises, *, to: ClusterName) -> Counted:
    """Take back what is not relied on any more; a promise asked for since stands."""
    count = 0
    names = sorted(question.groups)
    for at in range(0, len(names), GROUPS_AT_ONCE):
        for name, view in (await _views(store, names[at : at + GROUPS_AT_ONCE])).items():
            if view.promise is None or not promising.is_ended(
                view.promise, to=to, term=question.term, up_to_round=question.round
            ):
                continue
            key = RegionalKeys.promise(name)
            guard = ModRevisionIs(key, view.promise_revision)
            outcome = await store.commit(Txn(guards=(guard,), operations=(Delete(key),)))
            count += isinstance(outcome, Committed)
    _log.info("promises.ended", to=to, count=count)
    return Counted(count=count)
