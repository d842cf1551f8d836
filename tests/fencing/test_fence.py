"""Claims about fences: what a region does about commands, in any order, late, lost and repeated."""

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencing import fence as fences
from fencing.fence_view import FenceView, view_of, view_reads
from meshkit.clock import ManualClock
from meshkit.codec import decode
from meshkit.commands import Command, CommandStep
from meshkit.keys import RegionalKeys as Keys
from meshkit.model import Authority, Lineage
from meshkit.ordinals import NO_TOKEN, Epoch, LeaseId, Revision, Sequence, Token
from meshkit.regional import Fence, FenceMode, Permit
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Committed, Exists, Put, Rejected, Txn, ValueIs

GROUP = "orders"
LEADER = Exists(Keys.replicator_leader)


def token(revision: int, incarnation: int = 1) -> Token:
    return Token(incarnation=incarnation, revision=Revision(revision))


def command(step: CommandStep, epoch: int = 1, **more: object) -> Command:
    fields: dict[str, object] = {
        "group": GROUP,
        "cluster": "a",
        "step": step,
        "incarnation": 1,
        "epoch": epoch,
        "failover": "f1",
    }
    return Command(**{**fields, **more})  # type: ignore[arg-type]


class Region:
    """A regional etcd in memory and one replicator's hands on it."""

    def __init__(self) -> None:
        self.store = MemoryStore(clock=ManualClock())
        self.lease = LeaseId(0)

    async def begin(self) -> "Region":
        self.lease = (await self.store.grant(ttl_s=1000)).lease_id
        await self.store.commit(Txn(operations=(Put(Keys.replicator_leader, b"me"),)))
        return self

    async def view(self) -> FenceView:
        outcome = await self.store.commit(Txn(operations=view_reads(GROUP)))
        assert isinstance(outcome, Committed)
        return view_of(GROUP, outcome.reads)

    async def decide(self, order: Command, order_token: Token) -> fences.Decision:
        return fences.decide(
            await self.view(),
            order,
            order_token,
            leader=LEADER,
            lease=self.lease,
            prefixes=("/orders/",),
        )

    async def obey(self, order: Command, order_token: Token) -> fences.Decision:
        decision = await self.decide(order, order_token)
        if isinstance(decision, fences.Act):
            assert isinstance(await self.store.commit(decision.txn), Committed)
        return decision

    async def may_write(self) -> bool:
        item = await self.store.get(Keys.permit(GROUP))
        return item is not None


async def opened_region() -> Region:
    region = await Region().begin()
    await region.obey(command(CommandStep.OPEN), token(10))
    return region


async def test_opening_puts_permit_segment_and_scope_at_one_revision() -> None:
    region = await opened_region()

    view = await region.view()
    permit = await region.store.get(Keys.permit(GROUP))

    assert view.mode is FenceMode.OPEN
    assert permit is not None
    assert permit.mod_revision == view.opened == view.fence_revision
    assert permit.lease == region.lease
    assert decode(Permit, permit.value) == Permit(group=GROUP, epoch=Epoch(1), token=token(10))


async def test_the_cut_is_the_revision_of_the_drain_even_if_the_permit_had_lapsed() -> None:
    region = await opened_region()
    await region.store.revoke(region.lease)

    await region.obey(command(CommandStep.DRAIN), token(20))

    view = await region.view()
    assert view.cut == view.fence_revision
    assert not await region.may_write()


async def test_s2_a_successor_finds_the_same_cut_and_does_not_put_the_permit_again() -> None:
    """R1 drains at the cut and dies before answering; R2 still sees authority here."""
    region = await opened_region()
    await region.obey(command(CommandStep.DRAIN), token(20))
    cut = (await region.view()).cut
    await region.store.commit(Txn(operations=(Put(b"/orders/later", b"x"),)))

    decision = await region.obey(command(CommandStep.DRAIN), token(20))
    authority = Authority(group=GROUP, epoch=Epoch(1), token=token(10), active="a")
    again = fences.permit_again(
        await region.view(), authority, me="a", leader=LEADER, lease=region.lease
    )

    assert decision == fences.Repeat()
    assert (await region.view()).cut == cut
    assert again is None


async def test_s3_a_delayed_permit_put_is_refused_after_a_drain() -> None:
    """R1 prepared to put a lapsed permit again, and its transaction arrives after R2 drained."""
    region = await opened_region()
    await region.store.revoke(region.lease)
    lease = (await region.store.grant(ttl_s=1000)).lease_id
    authority = Authority(group=GROUP, epoch=Epoch(1), token=token(10), active="a")
    delayed = fences.permit_again(
        await region.view(), authority, me="a", leader=LEADER, lease=lease
    )
    assert delayed is not None

    await region.obey(command(CommandStep.DRAIN), token(20))
    outcome = await region.store.commit(delayed)

    assert isinstance(outcome, Rejected)
    assert not await region.may_write()


async def test_s3_a_delayed_permit_put_is_refused_after_another_leads() -> None:
    region = await opened_region()
    await region.store.revoke(region.lease)
    lease = (await region.store.grant(ttl_s=1000)).lease_id
    leader = await region.store.get(Keys.replicator_leader)
    assert leader is not None
    authority = Authority(group=GROUP, epoch=Epoch(1), token=token(10), active="a")
    delayed = fences.permit_again(
        await region.view(),
        authority,
        me="a",
        leader=ValueIs(Keys.replicator_leader, leader.value),
        lease=lease,
    )
    assert delayed is not None

    await region.store.commit(Txn(operations=(Put(Keys.replicator_leader, b"other"),)))
    outcome = await region.store.commit(delayed)

    assert isinstance(outcome, Rejected)
    assert not await region.may_write()


async def test_s4_a_drain_that_arrives_after_its_undrain_is_ignored() -> None:
    region = await opened_region()
    await region.obey(command(CommandStep.DRAIN), token(20))
    await region.obey(command(CommandStep.UNDRAIN), token(30))

    late = await region.obey(command(CommandStep.DRAIN), token(20))

    assert late == fences.Ignore(token(30))
    assert await region.may_write()
    assert (await region.view()).cut is None


async def test_an_undrain_that_overtakes_its_drain_keeps_the_drain_out() -> None:
    region = await opened_region()
    await region.obey(command(CommandStep.UNDRAIN), token(30))

    late = await region.obey(command(CommandStep.DRAIN), token(20))

    assert late == fences.Ignore(token(30))
    assert await region.may_write()


async def test_a_prepared_transaction_fails_once_a_newer_command_was_obeyed() -> None:
    """Between deciding and committing, a successor may have obeyed something newer."""
    region = await opened_region()
    prepared = await region.decide(command(CommandStep.DRAIN), token(20))
    assert isinstance(prepared, fences.Act)

    await region.obey(command(CommandStep.UNDRAIN), token(30))
    outcome = await region.store.commit(prepared.txn)

    assert isinstance(outcome, Rejected)
    assert await region.may_write()


async def test_a_permit_on_a_lease_that_is_gone_cannot_be_put() -> None:
    """S24: the lease was granted before the round that confirmed authority, and has run out."""
    region = await opened_region()
    await region.obey(command(CommandStep.DRAIN), token(20))
    gone = region.lease
    await region.store.revoke(gone)

    decision = await region.decide(command(CommandStep.UNDRAIN), token(30))
    assert isinstance(decision, fences.Act)
    with pytest.raises(Exception, match="does not exist"):
        await region.store.commit(decision.txn)

    assert (await region.view()).mode is FenceMode.DRAINED


async def test_a_cluster_that_was_superseded_cannot_be_undrained() -> None:
    region = await opened_region()
    await region.obey(command(CommandStep.DRAIN), token(20))
    lineage = Lineage(
        parent="a",
        parent_incarnation="i",
        parent_epoch=Epoch(1),
        sequence=Sequence((await region.view()).cut or 0),
    )
    await region.obey(command(CommandStep.REVERSE, epoch=2, lineage=lineage), token(40))

    decision = await region.obey(command(CommandStep.UNDRAIN), token(50))

    assert isinstance(decision, fences.Refuse)
    assert not await region.may_write()


async def test_tokens_of_a_new_incarnation_are_above_all_of_the_old() -> None:
    """S19: after adopting a restored coordination etcd its revisions are lower."""
    region = await opened_region()

    old = await region.obey(command(CommandStep.DRAIN), token(9_000))
    new = await region.obey(command(CommandStep.UNDRAIN), token(3, incarnation=2))
    late = await region.obey(command(CommandStep.DRAIN), token(9_999))

    assert isinstance(old, fences.Act)
    assert isinstance(new, fences.Act)
    assert isinstance(late, fences.Ignore)
    assert await region.may_write()


async def test_an_opened_cluster_must_follow_exactly_the_parent_epoch() -> None:
    region = await Region().begin()
    passive = Fence(group=GROUP, epoch=Epoch(1), mode=FenceMode.SUPERSEDED, token=NO_TOKEN)
    await region.store.commit(fences.fence_txn(await region.view(), passive, leader=LEADER))
    lineage = Lineage(
        parent="b", parent_incarnation="i", parent_epoch=Epoch(2), sequence=Sequence(5)
    )

    skipped = await region.decide(command(CommandStep.OPEN, epoch=3, lineage=lineage), token(9))
    next_one = await region.decide(
        command(CommandStep.OPEN, epoch=2, lineage=attrs.evolve(lineage, parent_epoch=Epoch(1))),
        token(9),
    )

    assert isinstance(skipped, fences.Refuse)
    assert isinstance(next_one, fences.Act)


STEPS = st.sampled_from([CommandStep.DRAIN, CommandStep.UNDRAIN, CommandStep.OPEN])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(STEPS, st.integers(1, 12)), max_size=14))
async def test_in_any_order_of_commands_only_the_greatest_counts(
    orders: list[tuple[CommandStep, int]],
) -> None:
    """Tokens never go down, and there is a permit exactly if the greatest command allows it."""
    region = await opened_region()
    steps = {token(10): CommandStep.OPEN}
    for step, n in orders:
        steps.setdefault(token(10 + n), step)
    greatest = token(10)
    for _, n in orders:
        await region.obey(command(steps[token(10 + n)]), token(10 + n))
        greatest = max(greatest, token(10 + n))
        view = await region.view()

        assert view.command_token <= greatest
        assert await region.may_write() == (view.mode is FenceMode.OPEN)
        assert (view.cut is not None) == (view.mode is FenceMode.DRAINED)
        if steps[greatest] is not CommandStep.OPEN:
            assert view.command_token == greatest
            assert await region.may_write() == (steps[greatest] is CommandStep.UNDRAIN)


async def test_a_cluster_that_is_released_before_it_ever_opened_its_group_opens_it() -> None:
    """An emergency came before the group's first opening, took that command's place, and is undone."""
    region = await Region().begin()
    refused = await region.obey(command(CommandStep.SEAL), token(11))
    await region.obey(command(CommandStep.RELEASE), token(12))
    late = await region.obey(command(CommandStep.OPEN), token(10))

    assert isinstance(refused, fences.Refuse)
    assert isinstance(late, fences.Ignore)
    assert (await region.view()).mode is FenceMode.OPEN
    assert await region.may_write()
