"""What a passive copy knows of the leases its keys hang on at the active cluster (ADR 9)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from meshkit.clock import ManualClock
from meshkit.ordinals import NOTHING, Epoch, Incarnation, LeaseId, Sequence
from meshkit.regional import FenceMode, GroupCheckpoint, JoinPhase
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Delete, Put, Txn
from replicator import attachments
from replicator.attachments import AttachmentChanges, KnownAttachments, place_of
from replicator.draft import ApplyPlan, Standpoint
from replicator.lease_terms import AGE_MS_MAX, GONE_TTL_S, LEASES_MAX, LeaseTerms
from replicator.messages import CopyPage
from replicator.plan import plan_page
from replicator.record import GroupPart, LeaseTerm, Record, Write
from replicator.region_state import RegionState
from tests.replicator.mesh import A, B, C, G, Mesh
from tests.replicator.test_plan import region

X, Y = LeaseId(7_001), LeaseId(7_002)
KEY = b"/orders/leased"
PLACE = place_of(G, KEY)


def part(*writes: Write, leases: tuple[LeaseTerm, ...] = ()) -> GroupPart:
    return GroupPart(group=G, epoch=Epoch(1), writes=writes, leases=leases)


def leased(lease: LeaseId = X, ttl_s: int = 30) -> GroupPart:
    return part(Put(KEY, b"v", lease), leases=(LeaseTerm(lease, ttl_s),))


def knowing(*parts: GroupPart) -> KnownAttachments:
    known = KnownAttachments()
    for one in parts:
        changes = AttachmentChanges(known)
        changes.take(one)
        known.take(changes.changed)
    return known


def changed(known: KnownAttachments, *parts: GroupPart) -> dict[bytes, tuple[int, int] | None]:
    changes = AttachmentChanges(known)
    for one in parts:
        changes.take(one)
    return {p: (a.lease, a.ttl_s) if a else None for p, a in changes.changed.items()}


# --- pure ---------------------------------------------------------------------------------------


def test_a_leased_put_is_attached_and_every_later_change_is_taken_in() -> None:
    plain, gone = part(Put(KEY, b"w")), part(Delete(KEY))

    assert changed(knowing(), leased()) == {PLACE: (X, 30)}
    assert changed(knowing(leased()), leased(Y, 9)) == {PLACE: (Y, 9)}
    assert changed(knowing(leased()), plain) == {PLACE: None}
    assert changed(knowing(leased()), gone) == {PLACE: None}
    assert changed(knowing(leased(), plain), leased()) == {PLACE: (X, 30)}


def test_what_comes_last_in_a_batch_counts() -> None:
    plain = part(Put(KEY, b"w"))

    assert changed(knowing(), leased(), plain) == {PLACE: None}
    assert changed(knowing(leased()), plain, leased()) == {PLACE: (X, 30)}
    assert changed(knowing(leased()), leased(Y), leased(X)) == {PLACE: (X, 30)}


def test_what_has_no_lease_costs_nothing_and_a_repeated_lease_is_not_written_again() -> None:
    """Most keys hang on none; a heartbeat puts the same key under the same lease again and again."""
    assert changed(knowing(), part(Put(KEY, b"w"), Delete(b"/orders/2"))) == {}
    assert changed(knowing(leased()), part(Put(b"/orders/other", b"w"))) == {}
    assert changed(knowing(leased()), leased()) == {}


def test_with_more_than_can_be_remembered_every_change_says_where_its_key_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The memory is bounded, and what is stored stays exact."""
    monkeypatch.setattr(attachments, "ATTACHED_KEYS_MAX", 1)
    known = knowing(part(Put(b"/orders/0", b"v", X), leases=(LeaseTerm(X, 30),)), leased())

    assert not known.is_whole
    assert changed(known, part(Put(KEY, b"w"))) == {PLACE: None}


def test_a_lease_that_an_old_source_says_nothing_more_about_attaches_nothing() -> None:
    """Without its TTL it cannot be granted; the key is then one without a lease, as before."""
    assert changed(knowing(leased()), part(Put(KEY, b"v", Y))) == {PLACE: None}


def page_plan(state: RegionState, *, has_lease: bool) -> ApplyPlan:
    page = CopyPage(
        group=G,
        number=1,
        cut=Sequence(9),
        start=b"/orders/",
        end=b"/orders0",
        items=((KEY, b"v"),),
        leased={KEY: X} if has_lease else {},
        leases=(LeaseTerm(X, 30),) if has_lease else (),
        is_first=True,
        is_final=True,
    )
    state.joins[B, G] = GroupCheckpoint(
        source=B,
        group=G,
        incarnation=Incarnation("b-1"),
        phase=JoinPhase.JOINING,
        epoch=Epoch(1),
        sequence=NOTHING,
    )
    at = Standpoint(me=C, source=B, incarnation=Incarnation("b-1"))
    writes: dict[bytes, Write] = {b"/orders/extra": Delete(b"/orders/extra")}
    plan = plan_page(state, page, at, writes=writes, start=page.start, end=page.end)
    assert isinstance(plan, ApplyPlan)
    return plan


def test_a_page_of_a_copy_attaches_and_detaches_also_what_it_does_not_rewrite() -> None:
    """A value that is equal already may hang on another lease by now."""
    extra = place_of(G, b"/orders/extra")
    fresh, stale = region(), region()
    stale.attachments = knowing(
        leased(), part(Put(b"/orders/extra", b"v", Y), leases=(LeaseTerm(Y, 5),))
    )

    attached = page_plan(fresh, has_lease=True).attachments
    detached = page_plan(stale, has_lease=False).attachments

    assert {p: a and a.lease for p, a in attached.items()} == {PLACE: X}
    assert detached == {PLACE: None, extra: None}


# --- what leases were granted for ---------------------------------------------------------------


async def test_a_lease_is_asked_for_once_until_the_answer_is_old() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    await store.grant(ttl_s=300, lease_id=X)
    terms = LeaseTerms(store, clock=clock)

    first = await terms.of([X])
    await store.revoke(X)
    await store.grant(ttl_s=40, lease_id=X)
    remembered = await terms.of([X, X])
    await clock.advance_ms(AGE_MS_MAX // 2)
    await store.keep_alive(X)
    await clock.advance_ms(AGE_MS_MAX // 2 + 1)

    assert first == remembered == (LeaseTerm(X, 300),)
    assert await terms.of([X]) != first


async def test_a_lease_that_is_gone_has_the_least_and_is_asked_for_again() -> None:
    """Its delete follows in the log; and the id may be granted anew at any moment."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    terms = LeaseTerms(store, clock=clock)

    gone = await terms.of([X])
    await store.grant(ttl_s=30, lease_id=X)

    assert gone == (LeaseTerm(X, GONE_TTL_S),)
    assert await terms.of([X]) == (LeaseTerm(X, 30),)


async def test_no_more_leases_are_remembered_than_allowed() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    terms = LeaseTerms(store, clock=clock)
    ids = [LeaseId(n) for n in range(1, LEASES_MAX + 10)]
    for lease in ids:
        store.server.grant(ttl_s=10_000, lease_id=lease)

    known = await terms.known(ids)

    assert len(known) == len(ids)
    assert len(terms._known) == LEASES_MAX


# --- streams ------------------------------------------------------------------------------------


@pytest.fixture
async def pair() -> AsyncIterator[Mesh]:
    mesh = Mesh(A, B)
    await mesh.start()
    yield mesh
    await mesh.close()


async def put_leased(mesh: Mesh, key: bytes, lease: LeaseId, *, ttl_s: int = 1_000) -> None:
    store = mesh[A].store
    await store.grant(ttl_s=ttl_s, lease_id=lease)
    await store.commit(Txn(operations=(Put(key, b"v", lease),)))


async def test_attachments_follow_puts_deletes_and_expiry(pair: Mesh) -> None:
    """They change in the transactions that apply the copy, so they are as exact as it is."""
    await pair.found(G, A)
    await put_leased(pair, KEY, X)
    await put_leased(pair, b"/orders/short", Y, ttl_s=5)
    await pair.converge()
    both = pair.attached(B, G)
    copies = pair[B].store.server.history.live((b"/orders/", b"/orders0"))

    await pair.clock.advance_ms(6_000)
    await pair.converge()
    one = pair.attached(B, G)
    await pair.write(A, {KEY.decode(): "plain"})
    await pair.converge()

    assert both == {KEY: (X, 1_000), b"/orders/short": (Y, 5)}
    assert {copy.lease for copy in copies} == {0}
    assert one == {KEY: (X, 1_000)}
    assert pair.attached(B, G) == {}


async def test_a_copy_brings_attachments_and_takes_away_those_that_ended(pair: Mesh) -> None:
    """First copy, repair and rejoin: leases of a group that was copied are not lost."""
    await put_leased(pair, KEY, X)
    await pair.write(A, {f"/orders/{n}": "v" for n in range(9)})
    await pair.found(G, A)
    await pair.converge()
    copied = pair.attached(B, G)
    await pair.stop(B)
    await pair.write(A, {KEY.decode(): "v"})
    await put_leased(pair, b"/orders/3", Y)
    await pair[A].store.compact(pair[A].store.server.history.revision)
    await pair.start(B)
    await pair.converge()

    assert copied == {KEY: (X, 1_000)}
    assert pair.attached(B, G) == {b"/orders/3": (Y, 1_000)}
    assert pair[B].fence(G).mode is FenceMode.SUPERSEDED


async def test_a_transaction_that_names_leases_comes_whole_with_their_terms(pair: Mesh) -> None:
    """Leases are learnt before anything is taken, however much is in the backlog."""
    await pair.found(G, A)
    await pair.converge()
    for n in range(30):
        await put_leased(pair, f"/orders/{n}".encode(), LeaseId(100 + n), ttl_s=1_000 + n)
    await pair.converge()

    assert pair.attached(B, G) == {f"/orders/{n}".encode(): (100 + n, 1_000 + n) for n in range(30)}
    assert pair.check_history() > 3


def test_what_a_record_says_of_leases_is_only_what_its_parts_name() -> None:
    other = GroupPart(group=G, epoch=Epoch(1), writes=(Put(b"/orders/2", b"v"),))
    record = Record(sequence=Sequence(5), parts=(part(Put(KEY, b"v", X)), other))

    told = record.with_terms({X: LeaseTerm(X, 30), Y: LeaseTerm(Y, 9)})

    assert [p.leases for p in told.parts] == [(LeaseTerm(X, 30),), ()]
    assert told.weight_bytes > record.weight_bytes
