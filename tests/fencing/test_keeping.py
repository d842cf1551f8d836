"""Writes go on without the coordination etcd only while nobody else may begin to accept them."""

import random
from collections.abc import AsyncIterator

import pytest

from fencing import fence as fences
from meshkit.clock import settle
from meshkit.codec import decode, encode
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority
from meshkit.ordinals import Epoch, Revision
from meshkit.promises import Pact
from meshkit.regional import Permit
from meshkit.store.memory import Fault
from meshkit.store.txn import Delete, Exists, Put, Txn
from tests.fencing.kept import LAPSING, LEADER, C, KeptWorld
from tests.fencing.region import FAST, STEP_MS, A, B, G, token_of

TC_MS, TR_MS = FAST.coordination_ttl_ms, FAST.regional_ttl_ms
PROMISE_MS = FAST.promise_ttl_s * 1000


@pytest.fixture
async def world() -> AsyncIterator[KeptWorld]:
    world = KeptWorld()
    yield world
    await world.close()


async def test_a_group_that_keeps_goes_on_and_one_that_lapses_stops(world: KeptWorld) -> None:
    replicator = await world.keeping()
    before = world.permit
    assert before is not None
    beats = set()

    replicator.coordination.partition()

    def goes_on() -> bool:
        assert world.beat is not None
        beats.add(world.beat.mod_revision)
        return world.permit is not None and world.permit.value == before.value

    await world.always(goes_on, for_ms=TR_MS)
    assert world.lapsing_permit is None
    assert replicator.chain.kept == (G,)
    await world.always(lambda: goes_on() and world.lapsing_permit is None, for_ms=60_000)
    assert len(beats) > 100
    assert world.holder is None


async def test_no_beat_by_promise_while_a_permit_of_a_lapsing_group_is_there(
    world: KeptWorld,
) -> None:
    """The beat is everybody's: gates of a group that lapses would stay open on it."""
    replicator = await world.keeping()
    replicator.coordination.partition()
    silent_since = world.clock.now_ms()

    def is_known_by_then() -> bool:
        beat = world.beat
        is_new = beat is not None and beat.lease != first_lease
        return not (is_new and world.lapsing_permit is not None)

    first_lease = world.beat.lease if world.beat else None
    await world.always(is_known_by_then, for_ms=2 * TR_MS)
    assert world.clock.now_ms() > silent_since
    permit = world.permit
    assert permit is not None
    late = Put(RegionalKeys.permit(LAPSING), b"{}", lease=permit.lease)
    await world.regional.commit(Txn(operations=(late,)))
    before = world.beat
    await world.until(lambda: world.beat != before)

    assert world.lapsing_permit is None


async def test_a_short_silence_costs_nobody_anything(world: KeptWorld) -> None:
    """S23 for a cluster with both kinds of groups; members may be asked, and are released."""
    replicator = await world.keeping()
    began_ms = world.clock.now_ms()

    async def stall() -> Fault:
        stalls = world.clock.now_ms() < began_ms + TR_MS * 6 // 10
        return Fault.REQUEST_LOST if stalls else Fault.NONE

    replicator.to_coordination.plan["keep_alive"] = [stall] * 1_000
    await world.always(
        lambda: world.permit is not None and world.lapsing_permit is not None, for_ms=10_000
    )

    assert replicator.chain.state.is_healthy
    assert world.promise_of(B) is None


async def test_a_regional_lease_that_is_given_up_just_then_is_no_obstacle(
    world: KeptWorld,
) -> None:
    """The chain then begins anew again and again, which must not keep others from beating."""
    replicator = await world.keeping()

    async def lose_both() -> Fault:
        replicator.coordination.partition()
        return Fault.REQUEST_LOST

    replicator.to_region.plan["keep_alive"] = [lose_both]
    await world.until(lambda: replicator.chain.kept == (G,), within_ms=3 * TR_MS)
    before = world.beat
    await world.until(lambda: world.beat is not None and world.beat != before, within_ms=TR_MS)

    await world.always(lambda: world.permit is not None, for_ms=20_000)


@pytest.mark.parametrize("missing", [B, C])
async def test_without_every_promise_writes_stop(world: KeptWorld, missing: str) -> None:
    replicator = await world.keeping()
    world.unreachable.add(missing)
    replicator.coordination.partition()

    stopped_ms = world.clock.now_ms()
    gone_ms = await world.until(lambda: world.permit is None)

    assert gone_ms - stopped_ms <= TR_MS
    await world.always(lambda: world.permit is None, for_ms=20_000)
    assert replicator.chain.kept == ()
    world.unreachable.clear()
    await world.until(lambda: world.permit is not None, within_ms=3_000)


async def test_without_a_pact_nobody_is_asked(world: KeptWorld) -> None:
    replicator = await world.keeping()
    await world.regional.commit(Txn(operations=(Delete(RegionalKeys.pact(G)),)))
    replicator.coordination.partition()

    await world.until(lambda: world.permit is None, within_ms=2 * TR_MS)

    assert world.asked == []


async def test_a_pact_of_an_older_epoch_is_worth_nothing(world: KeptWorld) -> None:
    replicator = await world.keeping()
    old = Pact(group=G, epoch=Epoch(0), cluster=A, members=(A, B, C))
    await world.regional.commit(Txn(operations=(Put(RegionalKeys.pact(G), encode(old)),)))
    replicator.coordination.partition()

    await world.until(lambda: world.permit is None, within_ms=2 * TR_MS)


async def test_s13_opening_waits_until_the_promise_has_ended(world: KeptWorld) -> None:
    """B promised, the coordination etcd heals for B alone, and B is promoted within `Tr`."""
    replicator = await world.keeping()
    replicator.coordination.partition()
    await world.until(lambda: world.promise_of(B) is not None)
    await world.until(lambda: replicator.chain.kept == (G,))
    await world.freeze(B)

    began_ms = world.clock.now_ms()
    waits = await world.opening(B)
    while not await world.open(B):
        await world.clock.advance_ms(STEP_MS)

    assert isinstance(waits, fences.Wait)
    assert world.permit is None
    assert world.clock.now_ms() - began_ms <= PROMISE_MS + FAST.expiry_delay_ms + STEP_MS
    await world.always(lambda: world.permit is None, for_ms=20_000)


async def test_a_promise_given_between_looking_and_opening_stops_the_opening(
    world: KeptWorld,
) -> None:
    """The key is compared absent in the very transaction that opens."""
    replicator = await world.keeping()
    decided = await world.opening(B)
    assert isinstance(decided, fences.Act)

    replicator.coordination.partition()
    await world.until(lambda: world.promise_of(B) is not None)
    outcome = await world.passive[B].commit(decided.txn)

    assert "broken" in str(outcome)
    assert (await world.view(B)).promise is not None


async def test_a_frozen_copy_promises_nothing_and_a_thawed_one_does_again(
    world: KeptWorld,
) -> None:
    """An emergency at B ends what A does by B's promise, long before B opens."""
    replicator = await world.keeping()
    replicator.coordination.partition()
    await world.until(lambda: replicator.chain.kept == (G,))

    await world.freeze(B)
    await world.until(lambda: world.permit is None, within_ms=TR_MS)
    await world.thaw(B)
    await world.until(lambda: world.permit is not None, within_ms=TR_MS)

    # It knows when the reply to its put has come: a moment after others see the permit.
    await settle()
    assert replicator.chain.kept == (G,)


async def test_a_cluster_that_opened_promises_nothing_to_the_old_one(world: KeptWorld) -> None:
    """Authority went to C while A was silent: B's word is not enough."""
    replicator = await world.keeping()
    await world.freeze(C)
    assert await world.open(C)
    replicator.coordination.partition()

    await world.until(lambda: world.permit is None, within_ms=TR_MS + STEP_MS)
    await world.always(lambda: world.permit is None, for_ms=10_000)


async def test_coming_back_is_not_noticed_by_writers(world: KeptWorld) -> None:
    replicator = await world.keeping()
    before = world.permit
    assert before is not None
    replicator.coordination.partition()
    await world.always(lambda: world.permit is not None, for_ms=3 * TC_MS)
    assert world.holder is None
    silences: list[int] = []
    seen = [world.beat, world.clock.now_ms()]

    def writes_go_on() -> bool:
        if world.beat != seen[0]:
            seen[:] = [world.beat, world.clock.now_ms()]
        silences.append(world.clock.now_ms() - seen[1])  # type: ignore[operator]
        return world.permit is not None and world.permit.value == before.value

    replicator.coordination.heal()
    await world.always(writes_go_on, for_ms=5_000)

    assert max(silences) < TR_MS
    assert world.holder is not None
    assert replicator.chain.state.is_healthy
    assert replicator.chain.kept == ()
    assert world.promise_of(B) is None
    assert world.promise_of(C) is None


async def test_a_seal_that_was_put_meanwhile_ends_it(world: KeptWorld) -> None:
    """Just before the loss, so that A never saw it; the coordination etcd comes back."""
    replicator = await world.keeping()
    replicator.coordination.partition()
    await world.seal()
    await world.until(lambda: replicator.chain.kept == (G,))
    await world.clock.advance_ms(2 * TC_MS)

    replicator.coordination.heal()
    await world.until(lambda: world.permit is None, within_ms=3_000)

    assert world.holder is None
    await world.always(lambda: world.holder is None, for_ms=10_000)


@pytest.mark.parametrize("for_ms", [0, 2 * TC_MS])
async def test_an_authority_that_moved_meanwhile_ends_it(world: KeptWorld, for_ms: int) -> None:
    """Also while the holder lives on, where somebody did not wait for the fence."""
    replicator = await world.keeping()
    replicator.coordination.partition()
    await world.until(lambda: replicator.chain.kept == (G,))
    await world.clock.advance_ms(for_ms)
    moved = Authority(group=G, epoch=Epoch(2), token=token_of(2), active=B)
    put = Put(CoordinationKeys.authority(G), encode(moved))
    await world.coordination.commit(Txn(operations=(put,)))

    replicator.coordination.heal()
    await world.until(lambda: world.permit is None, within_ms=3_000)

    await world.always(lambda: world.permit is None, for_ms=10_000)


async def test_a_drain_ends_it_for_good(world: KeptWorld) -> None:
    """Nothing but the fence decides, also while nothing is heard."""
    replicator = await world.keeping()
    replicator.coordination.partition()
    await world.until(lambda: replicator.chain.kept == (G,))
    item = await world.regional.get(RegionalKeys.fence(G))
    assert item is not None
    drained = item.value.replace(b'"open"', b'"drained"')
    await world.regional.commit(
        Txn(operations=(Put(item.key, drained), Delete(RegionalKeys.permit(G))))
    )

    await world.always(lambda: world.permit is None, for_ms=10_000)


@pytest.mark.parametrize("stopped_ms", range(0, 5 * TR_MS, 173))
@pytest.mark.parametrize("where", ["keep_alive", "commit"])
async def test_a_stop_between_promise_and_renewal_ends_the_permit_before_the_promise(
    world: KeptWorld, stopped_ms: int, where: str
) -> None:
    """The replicator is stopped with the promises in hand; afterwards it reaches nobody."""
    replicator = await world.keeping()
    replicator.coordination.partition()
    await world.until(lambda: replicator.chain.kept == (G,))
    stopped: list[int] = []

    async def stop() -> Fault:
        stopped.append(world.clock.now_ms())
        world.unreachable.update((B, C))
        world.clock.jump_ms(stopped_ms)
        return Fault.NONE

    replicator.to_region.plan[where] = [stop]
    await world.until(lambda: bool(stopped))
    await world.until(lambda: world.promise_of(B) is None or world.promise_of(C) is None)

    assert world.permit is None


async def test_a_successor_that_hears_nothing_goes_on_by_promises_of_its_own(
    world: KeptWorld,
) -> None:
    first = await world.keeping()
    first.coordination.partition()
    await world.until(lambda: first.chain.kept == (G,))
    await first.stop()
    await first.term.resign()

    second = await world.elect("r2")
    second.coordination.partition()
    second.start()
    await world.until(lambda: second.chain.kept == (G,), within_ms=10_000)

    assert world.permit is not None
    await world.always(lambda: world.permit is not None, for_ms=10_000)


async def test_a_deposed_replicator_cannot_go_on(world: KeptWorld) -> None:
    first = await world.keeping()
    first.coordination.partition()
    await world.until(lambda: first.chain.kept == (G,))
    assert first.running is not None
    key = RegionalKeys.replicator_leader
    await world.regional.commit(Txn(operations=(Delete(key),)))

    await world.until(first.running.done)
    await world.until(lambda: world.permit is None, within_ms=TR_MS + 1_000)


async def test_a_members_etcd_that_refreshes_leases_only_waits_longer(world: KeptWorld) -> None:
    replicator = await world.keeping()
    replicator.coordination.partition()
    await world.until(lambda: replicator.chain.kept == (G,))
    await world.freeze(B)
    await world.clock.advance_ms(PROMISE_MS - 500)

    world.passive[B].restart_refreshing_leases()

    assert world.permit is None
    assert not await world.open(B)


async def test_a_member_that_joins_has_to_promise_too(world: KeptWorld) -> None:
    replicator = await world.keeping(B)
    replicator.coordination.partition()
    await world.until(lambda: replicator.chain.kept == (G,))
    world.unreachable.add(C)
    more = Pact(group=G, epoch=Epoch(1), cluster=A, members=(A, B, C))
    await world.regional.commit(Txn(operations=(Put(RegionalKeys.pact(G), encode(more)),)))

    await world.until(lambda: world.permit is None, within_ms=2 * TR_MS)


@pytest.mark.parametrize("seed", range(40))
async def test_no_schedule_makes_two_writers(world: KeptWorld, seed: int) -> None:
    """Cuts, stops, freezes, openings, restarts and successors, drawn at random."""
    assert not await two_writers(world, seed)


async def test_the_schedules_find_an_opening_that_ignores_promises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else they prove nothing."""
    monkeypatch.setattr(fences, "promised", lambda _: None)
    monkeypatch.setattr(fences, "no_promise", lambda _: Exists(LEADER))
    found = []
    for seed in (1, 10, 13):
        world = KeptWorld()
        found.append(await two_writers(world, seed))
        await world.close()

    assert any(found)


async def two_writers(world: KeptWorld, seed: int) -> bool:
    """Return whether B opened while A had a permit, in the schedule of a seed."""
    rng = random.Random(seed)
    replicator = await world.keeping()
    is_wanted, opened = False, False
    for number in range(60):
        match rng.randrange(12):
            case 0 | 1 | 2:
                replicator.coordination.partition()
            case 3:
                replicator.coordination.heal()
            case 4:
                world.unreachable.symmetric_difference_update({rng.choice((B, C))})
            case 5 | 6 if not opened and world.holder is None:
                await world.freeze(B)
                is_wanted = True
            case 7 if not opened and not await _has_moved(world):
                await world.thaw(B)
                is_wanted = False
            case 8:
                operation = rng.choice(("keep_alive", "commit", "grant"))
                stop = _stop(world, rng.randrange(3 * TR_MS), rng.choice(list(Fault)))
                replicator.to_region.plan.setdefault(operation, []).append(stop)
            case 9:
                operation = rng.choice(("keep_alive", "commit"))
                fault = rng.choice(list(Fault))
                replicator.to_region.plan.setdefault(operation, []).append(fault)
            case 10 if number % 3 == 0:
                if rng.random() < 0.5:
                    await replicator.stop()
                leader = Delete(RegionalKeys.replicator_leader)
                await world.regional.commit(Txn(operations=(leader,)))
                replicator = await world.elect(f"r{number}")
                replicator.start()
            case 11:
                world.passive[rng.choice((B, C))].restart_refreshing_leases()
            case _:
                pass
        for _ in range(rng.randrange(1, 40)):
            if is_wanted and not opened and await _is_fenced(world):
                opened = await world.open(B)
            if opened and world.permit is not None:
                return True
            await world.clock.advance_ms(STEP_MS)
    return False


def _stop(world: KeptWorld, for_ms: int, fault: Fault):  # type: ignore[no-untyped-def]
    async def stop() -> Fault:
        world.clock.jump_ms(for_ms)
        return fault

    return stop


async def _has_moved(world: KeptWorld) -> bool:
    authority = await world.coordination.get(CoordinationKeys.authority(G))
    assert authority is not None
    return decode(Authority, authority.value).epoch == 2


async def _is_fenced(world: KeptWorld) -> bool:
    """Seal, and pivot as soon as the proof of life is gone: whatever the promises are."""
    if await _has_moved(world):
        return True
    if await world.coordination.get(CoordinationKeys.seal(G)) is None:
        await world.seal()
        return False
    if world.holder is not None:
        return False
    moved = Authority(group=G, epoch=Epoch(2), token=token_of(2), active=B)
    put = Put(CoordinationKeys.authority(G), encode(moved))
    await world.coordination.commit(Txn(operations=(put,)))
    return True


def test_the_tokens_of_the_permit_do_not_change() -> None:
    """What is kept is the very permit that clients compare."""
    permit = Permit(group=G, epoch=Epoch(1), token=token_of(1))

    assert permit.token.revision == Revision(100)
