"""The two regions of the small world: what they do about a command, by two different rules.

`RealRegions` asks `fencing.fence` itself: a region becomes the very records in etcd, the real
decision is taken on them, its transaction is carried out on them, and they are read back.
`TokenRegions` check tokens and nothing else, neither epochs nor lineage: with them everything rests
on the machine alone.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import attrs

from fencing import fence as fences
from fencing.fence_view import view_of, view_reads
from meshkit.codec import decode, encode
from meshkit.commands import Command, CommandStep
from meshkit.keys import RegionalKeys as Keys
from meshkit.model import Authority
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_LEASE, Epoch, LeaseId, Revision, Token
from meshkit.regional import Fence, FenceIndex, FenceMode, Permit, SegmentCut, SegmentOpened
from meshkit.store.txn import Delete, Get, KeyValue, ModRevisionIs, Put, Txn
from tests.model.explorer import Broken

GROUP = GroupName("orders")
LEASE = LeaseId(7)
LEADER = ModRevisionIs(Keys.replicator_leader, Revision(1))
READ_ONLY = {CommandStep.CATCH_UP, CommandStep.CONVERGE}

UNCHANGED, CHANGED = 1, 2
"""Mod revisions of a key: as it was when somebody read it, and since."""
_COMMIT = Revision(100)
_SEEN = 50
"""The greatest token obeyed, while a decision is taken: only the order of tokens matters."""

Mode = Literal["open", "drained", "superseded", "held"]


class Region(NamedTuple):
    """One cluster's fence with what belongs to it."""

    mode: Mode
    epoch: int
    seen: int
    """Revision of the greatest command token obeyed."""
    permit: int = 0
    """Epoch of the permit that is there; 0 if there is none."""
    cut: int = 0
    """How many writes lie before the cut; 0 if there is none."""
    fence_revision: int = UNCHANGED
    permit_revision: int = UNCHANGED


class Obeyed(NamedTuple):
    """What came of a command."""

    kind: Literal["acted", "repeated", "ignored", "refused"]
    after: Region


def token_of_epoch(epoch: int) -> Token:
    """Return the token that names an epoch. Only its equality matters, so any will do."""
    return Token(incarnation=1, revision=Revision(epoch))


def with_tokens(region: Region, seen: int) -> Region:
    return region if region.seen == seen else region._replace(seen=seen)


# --- as they are --------------------------------------------------------------------------------


@attrs.define(eq=False)
class RealRegions:
    """Decides by `fencing.fence`. What it does depends on the order of tokens only; it is kept."""

    compares_tokens: bool = True
    obeys_equal: bool = False
    """As receivers must where all commands of a term carry one token."""
    _obeyed: dict[tuple[Region, int, int, bool], Obeyed] = attrs.field(factory=dict)
    _late: dict[tuple[Region, Region, int], Region | None] = attrs.field(factory=dict)
    _permitted: dict[tuple[Region, Region, ClusterName], Region | None] = attrs.field(factory=dict)

    follows_epochs = True

    def obey(
        self, region: Region, command: Command, command_id: int, *, token: int, head: int, fit: bool
    ) -> Obeyed:
        """Return what the region does about a command; `head` is how many writes it contains."""
        order = (token > region.seen) - (token < region.seen)
        if not self.compares_tokens or (self.obeys_equal and order == 0):
            order = 1
        key = (with_tokens(region, _SEEN), command_id, order, fit)
        found = self._obeyed.get(key)
        if found is None:
            found = self._obeyed[key] = _obey(key[0], command, _SEEN + order, fit=fit)
        seen = token if found.kind == "acted" else region.seen
        after = found.after
        if after.cut == _COMMIT:
            after = after._replace(cut=head)
        return Obeyed(found.kind, with_tokens(after, seen))

    def commit_late(
        self,
        region: Region,
        view: Region,
        command: Command,
        command_id: int,
        *,
        token: int,
        head: int,
    ) -> Region | None:
        """Carry out what was decided on an earlier view; None if the transaction is refused."""
        key = (with_tokens(region, _SEEN), with_tokens(view, _SEEN), command_id)
        if key not in self._late:
            decision = _decide(key[1], command, _SEEN + 1)
            assert isinstance(decision, fences.Act)
            self._late[key] = _commit(key[0], decision.txn)
        after = self._late[key]
        if after is None:
            return None
        after = after._replace(cut=head) if after.cut == _COMMIT else after
        return with_tokens(after, token)

    def permit_again(
        self, region: Region, me: ClusterName, *, view: Region | None = None
    ) -> Region | None:
        """Put a lapsed permit again, on the authority that gave the region its epoch."""
        key = (with_tokens(region, _SEEN), with_tokens(view or region, _SEEN), me)
        if key not in self._permitted:
            self._permitted[key] = _permit_again(*key)
        after = self._permitted[key]
        return after and with_tokens(after, region.seen)


def _permit_again(region: Region, view: Region, me: ClusterName) -> Region | None:
    epoch = Epoch(view.epoch)
    authority = Authority(group=GROUP, epoch=epoch, token=token_of_epoch(epoch), active=me)
    seen = view_of(GROUP, _reads(_stored(view)))
    txn = fences.permit_again(seen, authority, me=me, leader=LEADER, lease=LEASE)
    return None if txn is None else _commit(region, txn)


def _obey(region: Region, command: Command, token: int, *, fit: bool) -> Obeyed:
    if command.step is CommandStep.OPEN and token > region.seen and not fit:
        return Obeyed("refused", region)
    match _decide(region, command, token):
        case fences.Ignore():
            return Obeyed("ignored", region)
        case fences.Repeat():
            return Obeyed("repeated", region)
        case fences.Refuse():
            return Obeyed("refused", region)
        case fences.Act(txn):
            after = _commit(region, txn)
            assert after is not None, "nothing moved since the view"
            return Obeyed("acted", after)


def _decide(region: Region, command: Command, token: int) -> fences.Decision:
    view = view_of(GROUP, _reads(_stored(region)))
    at = Token(incarnation=1, revision=Revision(token))
    prefixes = ("/orders/",)
    return fences.decide(view, command, at, leader=LEADER, lease=LEASE, prefixes=prefixes)


_Keys = dict[bytes, KeyValue]


def _stored(region: Region) -> _Keys:
    """Return the region as its etcd holds it."""
    epoch = Epoch(region.epoch)
    fence = Fence(
        group=GROUP,
        epoch=epoch,
        mode=FenceMode(region.mode),
        token=token_of_epoch(region.epoch),
        command_token=Token(incarnation=1, revision=Revision(region.seen)),
    )
    keys: _Keys = {}

    def put(key: bytes, value: bytes, revision: int, lease: LeaseId = NO_LEASE) -> None:
        keys[key] = _item(key, value, Revision(revision), lease)

    put(Keys.replicator_leader, b"", 1)
    put(Keys.fence(GROUP), encode(fence), region.fence_revision)
    put(Keys.fence_index, encode(FenceIndex(count=1)), region.fence_revision)
    if region.permit:
        permitted = Epoch(region.permit)
        permit = Permit(group=GROUP, epoch=permitted, token=token_of_epoch(region.permit))
        put(Keys.permit(GROUP), encode(permit), region.permit_revision, LEASE)
    if region.cut or region.mode == "open":
        opened = SegmentOpened(group=GROUP, epoch=epoch, token=fence.token)
        put(Keys.segment_opened(GROUP, epoch), encode(opened), 1)
    if region.cut:
        cut = SegmentCut(group=GROUP, epoch=epoch, command_token=fence.command_token)
        put(Keys.segment_cut(GROUP, epoch), encode(cut), region.cut)
    return keys


def reads_of(region: Region) -> tuple[tuple[KeyValue, ...], ...]:
    """Return what a region's etcd answers to `view_reads`."""
    return _reads(_stored(region))


def supersede(region: Region, *, below: int, head: int) -> Region | None:
    """Stop being active in any epoch below this one, as upkeep does; None if it is not."""
    view = view_of(GROUP, reads_of(region))
    txn = fences.supersede(view, below=Epoch(below), leader=LEADER, reason="superseded")
    if txn is None:
        return None
    after = _commit(region, txn)
    assert after is not None, "nothing moved since the view"
    return after._replace(cut=head) if after.cut == _COMMIT else after


def _item(key: bytes, value: bytes, revision: Revision, lease: LeaseId) -> KeyValue:
    return KeyValue(
        key=key,
        value=value,
        mod_revision=revision,
        create_revision=revision,
        version=1,
        lease=lease,
    )


def _reads(keys: _Keys) -> tuple[tuple[KeyValue, ...], ...]:
    return tuple(_read(keys, get) for get in view_reads(GROUP))


def _read(keys: _Keys, get: Get) -> tuple[KeyValue, ...]:
    if not get.end:
        return (keys[get.key],) if get.key in keys else ()
    return tuple(keys[key] for key in sorted(keys) if get.key <= key < get.end)


def _commit(region: Region, txn: Txn) -> Region | None:
    """Carry a transaction out on the region's keys; None if a guard does not hold."""
    keys = _stored(region)
    for guard in txn.guards:
        assert isinstance(guard, ModRevisionIs), "fences are guarded by mod revisions"
        item = keys.get(guard.key)
        if (item.mod_revision if item else 0) != guard.revision:
            return None
    for operation in txn.operations:
        match operation:
            case Put(key=key, value=value, lease=lease):
                keys[key] = _item(key, value, _COMMIT, lease)
            case Delete(key=key):
                keys.pop(key, None)
            case _:
                raise AssertionError(f"unexpected in a fence's transaction: {operation}")
    return _region_of(keys, region)


def _region_of(keys: _Keys, before: Region) -> Region:
    view = view_of(GROUP, _reads(keys))
    assert view.fence is not None
    permit = keys.get(Keys.permit(GROUP))
    return Region(
        mode=view.fence.mode.value,
        epoch=view.fence.epoch,
        seen=view.fence.command_token.revision,
        permit=decode(Permit, permit.value).epoch if permit else 0,
        cut=view.cut or 0,
        fence_revision=CHANGED if view.fence_revision == _COMMIT else before.fence_revision,
        permit_revision=CHANGED if view.permit_revision == _COMMIT else before.permit_revision,
    )


# --- with tokens alone --------------------------------------------------------------------------


@attrs.define(eq=False)
class TokenRegions:
    """Does what it is told, unless it has been told something newer."""

    compares_tokens: bool = True
    obeys_equal: bool = False

    follows_epochs = False

    def obey(
        self, region: Region, command: Command, command_id: int, *, token: int, head: int, fit: bool
    ) -> Obeyed:
        if self.compares_tokens and token < region.seen:
            return Obeyed("ignored", region)
        if self.compares_tokens and token == region.seen and not self.obeys_equal:
            return Obeyed("repeated", region)
        done = region._replace(seen=token, fence_revision=CHANGED)
        match command.step:
            case CommandStep.DRAIN:
                return Obeyed("acted", done._replace(mode="drained", permit=0, cut=head))
            case CommandStep.REVERSE:
                return Obeyed("acted", done._replace(mode="superseded", permit=0))
            case _:
                opened = done._replace(mode="open", epoch=command.epoch, permit=command.epoch)
                return Obeyed("acted", opened._replace(cut=0))

    def commit_late(
        self,
        region: Region,
        view: Region,
        command: Command,
        command_id: int,
        *,
        token: int,
        head: int,
    ) -> Region | None:
        if region.fence_revision != view.fence_revision:
            return None
        return self.obey(region, command, command_id, token=token, head=head, fit=True).after

    def permit_again(
        self, region: Region, me: ClusterName, *, view: Region | None = None
    ) -> Region | None:
        if region.mode != "open" or (view and view.fence_revision != region.fence_revision):
            return None
        return region._replace(permit=region.epoch, permit_revision=CHANGED)


Regions = RealRegions | TokenRegions


def check_order(before: Region, after: Region) -> None:
    """Epochs and command tokens never go down."""
    if after.epoch < before.epoch:
        raise Broken("an epoch went down")
    if after.seen < before.seen:
        raise Broken("a command token went down")
