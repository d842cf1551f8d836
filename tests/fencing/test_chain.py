"""A region's permits end before anyone else may be given the right to write."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from meshkit.clock import settle
from meshkit.codec import decode, encode
from meshkit.errors import (
    InvalidConfig,
    LeaseLost,
    OutcomeUnknown,
    Refused,
    RevisionConflict,
    TermEnded,
)
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import CoordinationIncarnation
from meshkit.ordinals import Revision
from meshkit.regional import ChainLeases
from meshkit.store.memory import Fault
from meshkit.store.txn import Put, Txn
from tests.fencing.region import FAST, STEP_MS, A, B, G, World, permit_of

TC_MS, TR_MS = FAST.coordination_ttl_ms, FAST.regional_ttl_ms


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.close()


async def test_the_permit_the_holder_and_the_beat_go_on_while_rounds_do(world: World) -> None:
    await world.serve()
    beats = set()

    def all_there() -> bool:
        assert world.beat is not None
        beats.add(world.beat.mod_revision)
        return world.permit is not None and world.holder is not None

    await world.always(all_there, for_ms=20_000)

    assert len(beats) >= 38


async def test_no_beat_before_seals_and_authority_were_obeyed(world: World) -> None:
    """S1: gates must not open on the word of a replicator that knows nothing yet."""
    replicator = await world.elect()
    replicator.may_obey.clear()
    replicator.start()

    await world.always(lambda: world.beat is None, for_ms=10_000)
    assert replicator.chain.current_leases() is not None
    replicator.may_obey.set()
    await world.clock.advance_ms(1)

    assert world.beat is not None
    assert replicator.obeyed == 1


async def test_the_permit_ends_before_the_holder_when_the_region_is_cut_off(world: World) -> None:
    replicator = await world.serve()
    replicator.coordination.partition()

    await world.until(lambda: world.permit is None)

    assert world.holder is not None
    assert replicator.chain.current_lease() is None
    assert replicator.chain.problem() != ""
    await world.until(lambda: world.holder is None)


async def test_only_an_acknowledged_coordination_renewal_allows_a_regional_one(
    world: World,
) -> None:
    """Its renewals are lost on the way, while every read still works."""
    replicator = await world.serve()
    replicator.to_coordination.plan["keep_alive"] = [Fault.REQUEST_LOST] * 1_000

    await world.until(lambda: world.permit is None)

    assert world.holder is not None


async def test_a_stop_within_a_round_makes_it_begin_anew(world: World) -> None:
    """What the coordination etcd allowed before the stop is too old, though etcd kept the lease."""
    replicator = await world.serve()
    asked: list[str] = []

    async def stop() -> Fault:
        world.clock.jump_ms(TR_MS)
        world.regional.restart_refreshing_leases()
        replicator.to_region.plan["keep_alive"] = [lambda: note("regional")]
        replicator.to_coordination.plan["keep_alive"] = [lambda: note("coordination")]
        return Fault.NONE

    async def note(who: str) -> Fault:
        asked.append(who)
        return Fault.NONE

    replicator.to_region.plan["commit"] = [stop]
    await world.until(lambda: len(asked) == 2)

    assert asked == ["coordination", "regional"]


@pytest.mark.parametrize("stopped_ms", range(0, 4 * TR_MS, 133))
async def test_a_stop_between_the_two_renewals_ends_the_permit_in_time(
    world: World, stopped_ms: int
) -> None:
    """S11: the seals are read, the seal is put, the process is stopped, the region is cut off."""
    replicator = await world.serve()
    stopped: list[int] = []

    async def stop() -> Fault:
        await world.seal()
        stopped.append(world.clock.now_ms())
        replicator.coordination.partition()
        world.clock.jump_ms(stopped_ms)
        return Fault.NONE

    replicator.to_region.plan["keep_alive"] = [stop]
    await world.until(lambda: bool(stopped))
    gone_at_ms = await world.until(lambda: world.permit is None)

    assert gone_at_ms <= max(stopped[0] + TC_MS, stopped[0] + stopped_ms)


async def test_a_renewal_that_arrives_late_prolongs_nothing(world: World) -> None:
    """Its reply was lost, it lingers on the way, and lands when nothing justifies it any more."""
    replicator = await world.serve()
    leases = replicator.chain.current_leases()
    assert leases is not None
    replicator.to_region.plan["keep_alive"] = [Fault.REQUEST_LOST]

    await world.until(lambda: replicator.chain.current_lease() not in {None, leases.regional})
    permit = world.permit
    world.regional.server.keep_alive(leases.regional)

    assert permit is not None
    assert permit.lease == replicator.chain.current_lease()
    assert permit.value == permit_of(1)


async def test_an_unknown_regional_renewal_does_not_stop_writes(world: World) -> None:
    replicator = await world.serve()
    replicator.to_region.plan["keep_alive"] = [Fault.REPLY_LOST]
    replicator.to_region.plan["commit"] = [Fault.NONE, Fault.REPLY_LOST, Fault.REQUEST_LOST]

    await world.always(lambda: world.permit is not None, for_ms=20_000)

    assert replicator.to_region.plan == {"keep_alive": [], "commit": []}
    assert replicator.chain.state.is_healthy
    assert replicator.obeyed >= 2


async def test_a_stalled_coordination_etcd_does_not_end_permits(world: World) -> None:
    """S23: its leader dies and renewals stall for up to 1.6 s (here: within `Tr` less a round)."""
    replicator = await world.serve()
    began_ms = world.clock.now_ms()

    async def stall() -> Fault:
        stalls = world.clock.now_ms() < began_ms + 1_400
        return Fault.REQUEST_LOST if stalls else Fault.NONE

    replicator.to_coordination.plan["keep_alive"] = [stall] * 1_000
    await world.always(lambda: world.permit is not None, for_ms=5_000)

    assert replicator.chain.state.is_healthy
    assert replicator.obeyed == 1


async def test_a_hung_call_is_noticed_in_time(world: World) -> None:
    replicator = await world.serve()

    async def hang() -> Fault:
        await asyncio.Event().wait()
        return Fault.NONE

    replicator.to_region.plan["keep_alive"] = [hang]

    await world.always(lambda: world.permit is not None, for_ms=5_000)

    assert replicator.chain.state.is_healthy


async def test_a_successor_adopts_and_writes_never_stop(world: World) -> None:
    """The predecessor died without a word; its permit is the same bytes throughout."""
    first = await world.serve("r1")
    before = first.chain.current_leases()
    assert before is not None
    await first.stop()
    await first.term.resign()

    def same_permit() -> bool:
        return world.permit is not None and world.permit.value == permit_of(1)

    electing = asyncio.ensure_future(world.lead("r2"))
    await world.always(same_permit, for_ms=10_000)
    after = (await electing).chain.current_leases()

    assert after is not None
    assert after.coordination == before.coordination
    assert after.regional != before.regional


async def test_the_last_renewal_of_a_stopped_predecessor_prolongs_nothing(world: World) -> None:
    first = await world.serve("r1")
    leases = first.chain.current_leases()
    assert leases is not None
    await first.stop()
    await first.term.resign()
    second = await world.lead("r2")

    world.regional.server.keep_alive(leases.regional)
    second.coordination.partition()
    gone_at_ms = await world.until(lambda: world.permit is None)

    assert world.holder is not None
    assert gone_at_ms < world.clock.now_ms() + TC_MS


async def test_a_permit_without_a_holder_is_not_adopted(world: World) -> None:
    first = await world.serve("r1")
    await first.chain.release(G)
    await first.stop()
    await first.term.resign()

    await world.lead("r2")

    assert world.permit is None


async def test_after_the_coordination_lease_was_lost_permits_go_before_new_leases_come(
    world: World,
) -> None:
    """Even where etcd has refreshed the regional lease meanwhile."""
    replicator = await world.serve()
    before = replicator.chain.current_leases()
    assert before is not None
    replicator.coordination.partition()
    for _ in range(8):
        await world.clock.advance_ms(1_000)
        world.regional.restart_refreshing_leases()
    assert (world.permit is not None, world.holder is not None) == (True, False)

    replicator.coordination.heal()
    await world.until(lambda: replicator.chain.state.is_healthy)
    after = replicator.chain.current_leases()

    assert (world.permit is not None, world.holder is not None) == (False, False)
    assert after is not None
    assert after.coordination != before.coordination
    assert after.regional != before.regional
    assert replicator.obeyed == 2


async def test_a_replicator_that_cannot_reach_its_region_lets_the_holder_go(world: World) -> None:
    """4.1 rule 3: the chain breaks both ways."""
    replicator = await world.serve()
    replicator.regional.partition()
    began_ms = world.clock.now_ms()

    gone_at_ms = await world.until(lambda: world.holder is None)

    assert gone_at_ms <= began_ms + TR_MS + TC_MS + 1_000
    replicator.regional.heal()
    await world.until(lambda: replicator.chain.state.is_healthy)


async def test_it_obeys_again_before_it_beats_again_after_a_silence(world: World) -> None:
    replicator = await world.serve()
    replicator.may_obey.clear()
    replicator.coordination.partition()
    await world.clock.advance_ms(TR_MS + 500)
    replicator.coordination.heal()
    beat = world.beat

    await world.always(lambda: world.beat in {beat, None}, for_ms=5_000)

    replicator.may_obey.set()
    await world.until(lambda: world.beat not in {beat, None})
    assert replicator.obeyed == 2


async def test_a_sealed_group_is_told_to_the_owner_and_its_permit_goes(world: World) -> None:
    """The owner here does nothing about it, so the chain deletes the permit itself."""
    replicator = await world.serve()

    await world.seal()
    gone_at_ms = await world.until(lambda: world.permit is None)

    assert gone_at_ms <= world.clock.now_ms() + FAST.round_interval_ms
    assert set(replicator.sealed) == {G}
    await world.until(lambda: replicator.chain.state.is_healthy)


async def test_a_permit_on_its_way_when_the_seal_came_does_not_live(world: World) -> None:
    """It was justified before the seal, hung in the network, and arrives after the rounds saw it."""
    replicator = await world.lead()
    await world.put_authority(A, 1)
    lease = await world.permit_lease(replicator)
    await world.seal()
    await world.until(lambda: bool(replicator.sealed))
    await replicator.put_permit(lease)

    gone_at_ms = await world.until(lambda: world.permit is None)

    assert gone_at_ms <= world.clock.now_ms() + TR_MS


async def test_a_seal_of_an_older_epoch_concerns_nobody(world: World) -> None:
    replicator = await world.lead()
    await world.put_authority(A, 2)
    await replicator.put_permit(await world.permit_lease(replicator), epoch=2)
    await world.seal(epoch=1)

    await world.always(lambda: world.permit is not None, for_ms=5_000)


async def test_no_holder_is_made_for_a_sealed_group_or_a_moved_authority(world: World) -> None:
    """S12, S22: the pivot compares the seal present; the holder compares it absent."""
    replicator = await world.lead()
    await world.put_authority(A, 1)
    await world.seal()
    with pytest.raises(Refused, match="sealed"):
        await world.permit_lease(replicator)

    await world.unseal()
    item = await world.coordination.get(CoordinationKeys.authority(G))
    assert item is not None
    await world.put_authority(B, 2)
    with pytest.raises(RevisionConflict):
        await world.permit_lease(replicator)

    assert world.holder is None


async def test_a_permit_justified_before_a_long_stop_is_refused_after_it(world: World) -> None:
    """S24: confirmed, stopped for 60 s, woken; the lease of that round is gone, a newer is refused."""
    replicator = await world.lead()
    await world.put_authority(A, 1)
    confirmed_at_ms = world.clock.now_ms()
    lease = await world.permit_lease(replicator)
    assert replicator.chain.regional_lease_for_permit(confirmed_at_ms=confirmed_at_ms) == lease

    world.clock.jump_ms(60_000)
    with pytest.raises(LeaseLost):
        await replicator.regional.commit(
            Txn(operations=(Put(RegionalKeys.permit(G), permit_of(1), lease),))
        )
    await replicator.stop()
    await replicator.term.abandon()
    second = await world.lead("r2")

    assert second.chain.current_lease() is not None
    assert second.chain.regional_lease_for_permit(confirmed_at_ms=confirmed_at_ms) is None


async def test_a_deposed_replicator_ends_and_its_late_beat_is_refused(world: World) -> None:
    first = await world.serve("r1")
    beat = world.beat
    assert beat is not None
    await first.term.resign()
    await settle()

    assert first.running is not None
    with pytest.raises(TermEnded):
        await first.running
    with pytest.raises(TermEnded):
        await first.put_permit(beat.lease)


async def test_a_planned_hand_over_leaves_both_leases_to_the_successor(world: World) -> None:
    first = await world.serve("r1")
    await world.clock.advance_ms(FAST.round_interval_ms // 2)

    first.chain.hand_over()
    await settle()

    assert first.running is not None
    await first.running
    stored = await world.regional.get(RegionalKeys.leases)
    assert stored is not None
    leases = decode(ChainLeases, stored.value)
    assert await world.regional.time_to_live(leases.regional) == TR_MS // 1000
    assert world.permit is not None


async def test_ttls_that_etcd_raised_are_refused(world: World) -> None:
    world.regional.server.lease_ttl_s_min = 3
    replicator = await world.elect()

    with pytest.RaisesGroup(InvalidConfig):
        await replicator.chain.run()


async def test_many_groups_move_to_the_new_lease_in_one_transaction(world: World) -> None:
    """Over etcd's limit of 128 operations."""
    replicator = await world.serve()
    lease = replicator.chain.current_lease()
    assert lease is not None
    outer = replicator.chain.coordination_lease()
    own = world.holder
    assert outer is not None
    assert own is not None
    for number in range(300):
        name = f"g{number:03d}".encode()
        permit = permit_of(1).replace(b"orders", name)
        holder = own.value.replace(b"orders", name)
        await world.regional.commit(
            Txn(operations=(Put(RegionalKeys.permits + name, permit, lease),))
        )
        await world.coordination.commit(
            Txn(operations=(Put(CoordinationKeys.holders + name, holder, outer),))
        )
    replicator.to_region.plan["keep_alive"] = [Fault.REQUEST_LOST]

    await world.until(lambda: replicator.chain.current_lease() not in {None, lease})

    moved = await world.regional.range((RegionalKeys.permits, RegionalKeys.permits[:-1] + b"0"))
    assert len(moved.items) == 301
    assert {item.lease for item in moved.items} == {replicator.chain.current_lease()}
    assert {item.mod_revision for item in moved.items} == {Revision(moved.items[0].mod_revision)}


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_goes_wrong_no_permit_outlives_the_holder(world: World, seed: int) -> None:
    """Lost requests and replies, cuts, stops and changes of leader, all at random."""
    chance = random.Random(seed)
    replicator = await world.serve("r0")

    async def fate() -> Fault:
        if chance.random() < 0.02:
            world.clock.jump_ms(chance.randrange(2_500))
        return chance.choices(list(Fault), weights=[20, 1, 1, 1])[0]

    for number in range(1, 25):
        for faulty in (replicator.to_coordination, replicator.to_region):
            faulty.plan = {op: [fate] * 40 for op in ("keep_alive", "commit", "grant", "range")}
        for link in (replicator.coordination, replicator.regional):
            if chance.random() < 0.25:
                link.partition()
        until_ms = world.clock.now_ms() + chance.randrange(6_000)
        while world.clock.now_ms() < until_ms:
            assert world.permit is None or world.holder is not None, f"seed {seed}"
            await world.clock.advance_ms(STEP_MS)
        for link in (replicator.coordination, replicator.regional):
            if link.is_cut:
                link.heal()
        if chance.random() < 0.3 or not replicator.term.is_held():
            await replicator.stop()
            await replicator.term.resign()
            electing = asyncio.ensure_future(world.elect(f"r{number}"))
            await world.until(electing.done)
            replicator = electing.result()
            replicator.start()
        if world.permit is None and replicator.chain.current_leases() is not None:
            try:
                await replicator.put_permit(await world.permit_lease(replicator))
            except (Refused, OutcomeUnknown):
                continue


async def test_a_new_incarnation_of_the_coordination_etcd_ends_permits_within_tc(
    world: World,
) -> None:
    """Whoever adopts a restored coordination etcd waits for that, and for nothing else (ADR 24).

    Its lease may have come back with the snapshot, so that every renewal still succeeds.
    """
    replicator = await world.serve()
    adopted = CoordinationIncarnation(number=2, adoption="x")
    await world.coordination.commit(
        Txn(operations=(Put(CoordinationKeys.incarnation, encode(adopted)),))
    )
    began_at_ms = world.clock.now_ms()

    gone_at_ms = await world.until(lambda: world.permit is None)

    assert gone_at_ms <= began_at_ms + TC_MS
    assert "incarnation" in replicator.term.reason
