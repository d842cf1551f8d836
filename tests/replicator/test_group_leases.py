"""How leases are granted, hung, left and taken back in one region (S14, docs/leases.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import attrs
import pytest

from meshkit.codec import decode, encode
from meshkit.commands import CommandStep
from meshkit.errors import LeaseLost, OutcomeUnknown
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Group, GroupPolicy, LeasePolicy
from meshkit.names import FailoverId, GroupName
from meshkit.ordinals import LeaseId
from meshkit.regional import Attachment, Fence, LeaseClaim
from meshkit.store.memory import Fault
from meshkit.store.txn import KeyValue, Put, Txn
from replicator.attachments import place_of
from replicator.group_leases import GroupLeases
from replicator.lease_claims import LeaseClaims, LeasesTaken
from replicator.reversal import Reversal
from tests.replicator.mesh import ALWAYS, PREFIXES, A, B, G, H, Mesh, self_made

X, Y = LeaseId(7_001), LeaseId(7_002)
KEY, OTHER = b"/orders/leased", b"/orders/other"
TTL_S = 1_000


@pytest.fixture
async def pair() -> AsyncIterator[Mesh]:
    mesh = Mesh(A, B)
    await mesh.start()
    yield mesh
    await mesh.close()


async def put_leased(mesh: Mesh, *keys: bytes, lease: LeaseId = X) -> None:
    await mesh[A].store.grant(ttl_s=TTL_S, lease_id=lease)
    await mesh[A].store.commit(Txn(operations=tuple(Put(key, b"v", lease) for key in keys)))


async def attached(mesh: Mesh, *keys: bytes) -> None:
    """G is active at a; the copy at b knows of keys on lease X."""
    await mesh.found(G, A)
    await put_leased(mesh, *(keys or (KEY,)))
    await mesh.converge()


async def claim_at(mesh: Mesh, group=G) -> LeaseClaim | None:
    item = await mesh[B].store.get(RegionalKeys.lease_claim(group))
    return decode(LeaseClaim, item.value) if item else None


def under(leases: GroupLeases, policy: LeasePolicy) -> GroupLeases:
    key = CoordinationKeys.group(G)
    group = Group(name=G, prefixes=PREFIXES[G], members=(A, B), policy=GroupPolicy(leases=policy))
    leases._groups.entries[key] = self_made(key, encode(group))
    return leases


def converging(mesh: Mesh, group=G):
    return mesh.made(CommandStep.CONVERGE, B, group, mesh.epochs[group])


def lives(mesh: Mesh, at, lease: LeaseId) -> bool:
    return lease in mesh[at].store.server._leases


async def key_at(mesh: Mesh, at, key: bytes = KEY) -> KeyValue:
    item = await mesh[at].store.get(key)
    assert item is not None
    return item


async def opened(mesh: Mesh) -> Fence:
    """Move authority to b as far as its opening."""
    cut = await mesh.drain(G)
    await mesh.until(lambda: mesh.has_applied(B, G, A, cut))
    await mesh.pivot(G, B, cut)
    fence = mesh[B].fence(G)
    assert fence is not None
    return fence


# --- granting -----------------------------------------------------------------------------------


@attrs.define
class LosesReplies:
    """Of some operations the reply is lost, though they were done."""

    operations: list[str]

    async def before(self, operation: str) -> Fault:
        if self.operations and operation == self.operations[0]:
            self.operations.pop(0)
            return Fault.REPLY_LOST
        return Fault.NONE


@pytest.mark.parametrize("lost", [["commit"], ["grant"], ["commit", "grant"]])
async def test_whoever_goes_on_after_a_death_knows_its_own_leases(
    pair: Mesh, lost: list[str]
) -> None:
    """The claim was stored first; so an id that exists already is told from a stranger's."""
    await attached(pair)
    leases = pair.leases(B)
    store = pair[B].store.connect(faults=LosesReplies(lost))
    claims = LeaseClaims(regional=store, leader=ALWAYS)
    wanted = {X: TTL_S}
    for _ in list(lost):
        with pytest.raises(OutcomeUnknown):
            await claims.settle(G, wanted, failover=FailoverId("f"), policy=LeasePolicy.REFUSE)

    await leases.grant(converging(pair))

    assert (await pair[B].store.lease_ttl(X)).granted_s == TTL_S
    claim = await claim_at(pair)
    assert claim is not None
    assert [(own.lease, own.here, own.ttl_s) for own in claim.leases] == [(X, X, TTL_S)]


async def test_a_group_without_leased_keys_claims_and_grants_nothing(pair: Mesh) -> None:
    await pair.found(G, A)
    await pair.write(A, {"/orders/1": "v"})
    await pair.converge()

    await pair.leases(B).grant(converging(pair))

    assert await claim_at(pair) is None


async def test_a_strangers_lease_stays_the_strangers_however_often_it_is_tried(
    pair: Mesh,
) -> None:
    """Not even a claim that was stored for it, and a lease without keys, make it ours."""
    await attached(pair)
    await pair[B].store.grant(ttl_s=5_000, lease_id=X)
    leases = pair.leases(B)

    for _ in range(2):
        with pytest.raises(LeasesTaken, match="1b59"):
            await leases.grant(converging(pair))

    assert (await pair[B].store.lease_ttl(X)).granted_s == 5_000
    claim = await claim_at(pair)
    assert claim is None or claim.leases == ()


async def test_a_lease_of_our_own_with_a_strangers_keys_is_refused(pair: Mesh) -> None:
    """Somebody used the id between two attempts: what hangs there would go with ours."""
    await attached(pair)
    leases = pair.leases(B)
    await leases.grant(converging(pair))
    await pair[B].store.commit(Txn(operations=(Put(b"/elsewhere", b"v", X),)))

    with pytest.raises(LeasesTaken):
        await leases.grant(converging(pair))


async def test_one_lease_may_serve_two_groups_that_move_one_after_the_other(pair: Mesh) -> None:
    """The second finds the id alive, with keys, and named by the claim of the first."""
    await pair.found(H, A)
    await attached(pair, KEY, b"/users/1")
    await pair.converge()
    await pair.move(G, B)

    await pair.move(H, B)
    await pair.converge()

    assert {(await key_at(pair, B, key)).lease for key in (KEY, b"/users/1")} == {X}
    assert not lives(pair, A, X)


# --- hanging ------------------------------------------------------------------------------------


async def test_keys_hang_again_and_those_their_client_has_written_stay_as_they_are(
    pair: Mesh,
) -> None:
    """After the opening a key belongs to whoever writes it, also without a lease, also deleted."""
    await attached(pair, KEY, OTHER, b"/orders/deleted")
    await pair.leases(B).grant(converging(pair))
    fence = await opened(pair)
    await pair.write(B, {OTHER.decode(): "mine now", "/orders/deleted": None})

    await pair.leases(B).hang(fence)

    assert (await key_at(pair, B)).lease == X
    assert (await key_at(pair, B)).value == b"v"
    assert (await key_at(pair, B, OTHER)).lease == 0
    assert (await key_at(pair, B, OTHER)).value == b"mine now"
    assert await pair[B].store.get(b"/orders/deleted") is None
    assert pair.attached(B, G) == {}


async def test_a_lease_that_ran_out_before_its_keys_hang_is_granted_again(pair: Mesh) -> None:
    """Otherwise its keys would never run out, though their client is gone."""
    await attached(pair)
    await pair.leases(B).grant(converging(pair))
    fence = await opened(pair)
    await pair[B].store.revoke(X)

    await pair.leases(B).hang(fence)
    hung = (await key_at(pair, B)).lease
    await pair.clock.advance_ms((TTL_S + 1) * 1000)

    assert hung == X
    assert await pair[B].store.get(KEY) is None


async def test_what_nobody_granted_before_the_opening_is_granted_with_it(pair: Mesh) -> None:
    """A failover that skipped the granting still brings its leases."""
    await attached(pair)
    fence = await opened(pair)

    await pair.leases(B).hang(fence)

    assert (await key_at(pair, B)).lease == X


@pytest.mark.parametrize("policy", list(LeasePolicy))
async def test_after_the_opening_a_strangers_id_is_never_used(
    pair: Mesh, policy: LeasePolicy
) -> None:
    """It is too late to refuse: the keys stay, without the lease or under a new one."""
    await attached(pair)
    fence = await opened(pair)
    await pair[B].store.grant(ttl_s=50, lease_id=X)
    await pair[B].store.commit(Txn(operations=(Put(b"/elsewhere", b"v", X),)))

    await under(pair.leases(B), policy).hang(fence)

    lease = (await key_at(pair, B)).lease
    assert lease != X
    assert bool(lease) is (policy is LeasePolicy.REMAP)
    assert pair.attached(B, G) == {}


async def test_many_keys_hang_in_bounded_transactions(pair: Mesh) -> None:
    keys = [f"/orders/{n:04}".encode() for n in range(250)]
    await pair.found(G, A)
    await pair[A].store.grant(ttl_s=TTL_S, lease_id=X)
    for start in range(0, len(keys), 50):
        puts = tuple(Put(key, b"v", X) for key in keys[start : start + 50])
        await pair[A].store.commit(Txn(operations=puts))
    await pair.converge()
    before = pair[B].store.server.history.revision

    await pair.move(G, B)
    revisions = pair[B].store.server.history.revision - before
    await pair.until(lambda: pair.attached(A, G) == dict.fromkeys(keys, (X, TTL_S)))

    assert await pair[B].store.lease_keys(X) == tuple(keys)
    assert revisions < 60


# --- keeping: taking back, and what a successor finds -------------------------------------------


async def running(mesh: Mesh, holds: Callable[[], Awaitable[bool]]) -> None:
    """Run the keeping at b until something holds."""
    leases = mesh.leases(B)
    leases._groups.ready.set()
    task = asyncio.ensure_future(leases.run())
    try:
        for _ in range(200):
            if await holds():
                return
            await mesh.clock.advance_ms(50)
        raise AssertionError("it never came to hold")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_promotion_that_was_undone_takes_its_leases_back(pair: Mesh) -> None:
    """They would stand in the way of their clients, or of the next attempt."""
    await attached(pair)
    await pair.leases(B).grant(converging(pair))

    async def is_back() -> bool:
        return not lives(pair, B, X)

    await running(pair, is_back)

    assert await claim_at(pair) is None
    assert pair.attached(B, G) == {KEY: (X, TTL_S)}


async def test_nothing_is_taken_back_while_the_failover_runs(pair: Mesh) -> None:
    await attached(pair)
    await pair.leases(B).grant(converging(pair))
    key = CoordinationKeys.failover_active(G)
    running_now = Put(key, b'{"id":"f","schema":"failover-active/1"}')
    await pair.coordination.commit(Txn(operations=(running_now,)))
    waited = 0

    async def has_waited() -> bool:
        nonlocal waited
        waited += 1
        return waited > 100

    await running(pair, has_waited)

    assert lives(pair, B, X)
    assert await claim_at(pair) is not None


async def test_a_lease_with_keys_is_never_revoked(pair: Mesh) -> None:
    """Revoking would delete them, and they are somebody's."""
    await attached(pair)
    await pair.leases(B).grant(converging(pair))
    await pair[B].store.commit(Txn(operations=(Put(b"/elsewhere", b"v", X),)))

    async def is_done() -> bool:
        return await claim_at(pair) is None

    await running(pair, is_done)

    assert (await key_at(pair, B, b"/elsewhere")).lease == X


async def test_a_successor_hangs_what_its_predecessor_did_not(pair: Mesh) -> None:
    """It is derived from the fence and from what is stored, not from a command."""
    await attached(pair)
    await pair.leases(B).grant(converging(pair))
    await opened(pair)

    async def is_hung() -> bool:
        return (await key_at(pair, B)).lease == X

    await running(pair, is_hung)

    assert pair.attached(B, G) == {}


# --- looking ahead ------------------------------------------------------------------------------


async def looked(mesh: Mesh) -> dict[GroupName, str]:
    """Return what stands in the way at b."""
    leases = mesh.leases(B)
    for mirror in (leases._fences, leases._claimed):
        await mirror._load()
    await leases.obstacles.look()
    return leases.obstacles.found


async def test_an_id_that_is_taken_is_told_ahead_and_our_own_is_not(pair: Mesh) -> None:
    """So that a failover is refused by name before writes are paused, not by the target then."""
    await attached(pair)
    free = await looked(pair)
    await pair[B].store.grant(ttl_s=TTL_S, lease_id=X)
    taken = await looked(pair)
    await pair[B].store.revoke(X)
    await pair.leases(B).grant(converging(pair))

    assert free == {}
    assert taken == {G: "lease 1b59 lives here already and is not this group's"}
    assert await looked(pair) == {}


async def test_a_lease_that_two_groups_share_is_told_while_both_are_elsewhere(pair: Mesh) -> None:
    await pair.found(H, A)
    await attached(pair, KEY, b"/users/1")
    await pair.until(lambda: bool(pair.attached(B, H)))

    both = await looked(pair)
    await pair.move(G, B)

    assert both == {
        G: "lease 1b59 also has keys of group users, which stays elsewhere",
        H: "lease 1b59 also has keys of group orders, which stays elsewhere",
    }
    assert await looked(pair) == {}


# --- leaving ------------------------------------------------------------------------------------


async def test_the_old_cluster_lets_go_of_what_moved_and_of_nothing_else(pair: Mesh) -> None:
    """So the group can come back at once; a lease with other keys is somebody's still."""
    await pair.found(G, A)
    await put_leased(pair, KEY)
    await put_leased(pair, OTHER, b"/elsewhere", lease=Y)
    await pair.converge()

    await pair.move(G, B)
    await pair.until(lambda: len(pair.attached(A, G)) == 2)

    assert not lives(pair, A, X)
    assert (await key_at(pair, A, b"/elsewhere")).lease == Y
    assert (await key_at(pair, A, OTHER)).lease == 0
    assert pair.attached(A, G) == {KEY: (X, TTL_S), OTHER: (Y, TTL_S)}


async def test_a_lease_whose_keys_the_stream_took_off_is_let_go_too(pair: Mesh) -> None:
    """What hung there at the cut is known by history."""
    await attached(pair)
    await pair.leases(B).grant(converging(pair))
    fence = await opened(pair)
    await pair.leases(B).hang(fence)
    await pair.command(CommandStep.REVERSE, A, G, epoch=pair.epochs[G])
    await pair.until(lambda: pair.attached(A, G) == {KEY: (X, TTL_S)})

    command = pair.made(CommandStep.REVERSE, A, G, pair.epochs[G])
    await pair.leases(A).leave(command, set())

    assert not lives(pair, A, X)
    with pytest.raises(LeaseLost):
        await pair[A].store.lease_keys(X)


async def test_what_runs_out_past_the_cut_is_no_foreign_write_and_comes_back(pair: Mesh) -> None:
    """S14: it is not quarantined, the group is not copied anew, and the key is not lost."""
    await attached(pair)
    await pair.leases(B).grant(converging(pair))
    fence = await opened(pair)
    await pair[A].store.revoke(X)
    await pair.command(CommandStep.REVERSE, A, G, epoch=pair.epochs[G])
    await pair.until(lambda: pair.has_applied(A, G, B, 0))
    reversal = Reversal(
        regional=pair[A].store.connect(),
        leader=ALWAYS,
        group=G,
        prefixes=(b"/orders/",),
        now_ms=pair.clock.now_ms(),
    )
    command = pair.made(CommandStep.REVERSE, A, G, pair.epochs[G])
    joins = pair.joins_made(A, B, G)

    await reversal.set_aside_foreign(await pair.view(A, G), command)
    absent = await reversal.expired(command)
    await pair.leases(B).hang(fence)
    await pair.converge()

    assert absent == {KEY}
    assert await reversal.expired(command) == set()
    assert (await key_at(pair, A)).value == b"v"
    quarantined = pair[A].store.server.history.live((RegionalKeys.quarantines, b"/mesh/v1/r"))
    assert [item for item in quarantined if b"/orders" in item.value] == []
    assert pair.joins_made(A, B, G) == joins


async def test_a_foreign_delete_past_the_cut_is_set_aside_as_before(pair: Mesh) -> None:
    """Only a delete by the end of its lease is none: here the lease lives on."""
    await attached(pair)
    await opened(pair)
    await pair.write(A, {KEY.decode(): None})
    await pair.command(CommandStep.REVERSE, A, G, epoch=pair.epochs[G])
    reversal = Reversal(
        regional=pair[A].store.connect(),
        leader=ALWAYS,
        group=G,
        prefixes=(b"/orders/",),
        now_ms=pair.clock.now_ms(),
    )
    command = attrs.evolve(pair.made(CommandStep.REVERSE, A, G, pair.epochs[G]), source=B)

    await reversal.set_aside_foreign(await pair.view(A, G), command)
    await pair.converge()

    assert await reversal.expired(command) == set()
    assert pair.joins_made(A, B, G) == 1


def test_an_attachment_is_found_by_its_key() -> None:
    one = Attachment(group=G, key=KEY, lease=X, ttl_s=1)

    assert place_of(G, one.key).startswith(RegionalKeys.attachments_of(G))
