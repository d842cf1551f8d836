"""Transactions larger than any at the target: applied in marked parts, never half promotable."""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
import pytest

from meshkit.codec import decode
from meshkit.errors import Unreachable
from meshkit.keys import RegionalKeys
from meshkit.ordinals import Revision
from meshkit.regional import ParkedWrite, PartsCheckpoint
from meshkit.store.memory import Fault
from meshkit.store.port import RevisionChanges
from meshkit.store.txn import Delete, Put, Txn
from replicator.in_parts import REFUSALS
from replicator.receiver import Receiver
from replicator.transaction import nested
from tests.replicator.mesh import PREFIXES, SMALL, A, B, G, H, Mesh

LIMITS = attrs.evolve(SMALL, record_whole_bytes_max=2_000, record_bytes_max=100_000)
PARTS = RegionalKeys.parts(A)


class Frail:
    """An etcd that goes away at chosen commits of B's stream, before or after they happen."""

    def __init__(self) -> None:
        self.fate: dict[int, Fault] = {}
        self.commits = 0

    async def before(self, operation: str) -> Fault:
        if operation != "commit":
            return Fault.NONE
        self.commits += 1
        return self.fate.get(self.commits, Fault.NONE)


FRAIL = Frail()


@pytest.fixture
async def pair() -> AsyncIterator[Mesh]:
    FRAIL.__init__()  # type: ignore[misc]
    mesh = Mesh(A, B, limits=LIMITS, faults=lambda name: FRAIL if name == B else None)
    await mesh.start()
    await mesh.found(G, A)
    await mesh.found(H, A)
    yield mesh
    await mesh.close()


async def fill(mesh: Mesh, count: int) -> None:
    for start in range(0, count, 100):
        keys = range(start, min(count, start + 100))
        await mesh.write(A, {f"/orders/{n:05}": f"v{n}" for n in keys})
    await mesh.converge()


async def delete_all(mesh: Mesh) -> Revision:
    """Delete everything of a group, and something is put beside it: one revision of the source."""
    outcome = await mesh[A].store.commit(
        Txn(operations=(Delete(b"/orders/", end=b"/orders0"), Put(b"/users/1", b"also")))
    )
    return outcome.revision


def log(mesh: Mesh) -> list[RevisionChanges]:
    return list(mesh[B].store.server.history._log)


def parts_in(mesh: Mesh, after: int = 0) -> list[RevisionChanges]:
    """Return the revisions of the target that are a part, and not the last."""
    return [
        item
        for item in log(mesh)
        if item.revision > after and any(c.key == PARTS and not c.is_delete for c in item.changes)
    ]


def changed(items: list[RevisionChanges]) -> list[bytes]:
    scope = tuple(p.encode() for prefixes in PREFIXES.values() for p in prefixes)
    return [c.key for item in items for c in item.changes if c.key.startswith(scope)]


async def test_a_range_delete_of_many_keys_is_applied_in_marked_parts(pair: Mesh) -> None:
    """A small request at the source is many changes: they arrive in order, once, and marked."""
    await fill(pair, 900)
    joins, before = pair.joins_made(B, A, G), pair[B].store.server.history.revision

    await delete_all(pair)
    await pair.converge()

    parts = parts_in(pair, before)
    assert len(parts) > 20
    assert pair.joins_made(B, A, G) == joins, "nothing had to be copied"
    applied = changed([item for item in log(pair) if item.revision > before])
    assert sorted(applied) == [*(f"/orders/{n:05}".encode() for n in range(900)), b"/users/1"]
    assert pair[B].store.server.history.lookup(PARTS) is None
    assert pair.check_history() > 1


async def test_what_fits_a_message_and_not_a_transaction_is_applied_in_parts(pair: Mesh) -> None:
    """The target's limits may be lower than the source's: it halves until etcd takes it."""
    await pair.converge()
    before = pair[B].store.server.history.revision
    pair[B].store.server.request_bytes_max = 1_200
    puts = tuple(Put(f"/orders/{n}".encode(), b"x" * 150) for n in range(9))

    await pair[A].store.commit(Txn(operations=puts))
    await pair.converge()

    assert len(parts_in(pair, before)) >= 1
    assert pair.joins_made(B, A, G) == 1
    assert pair.check_history() > 1


async def test_a_transaction_up_to_a_request_stays_one(pair: Mesh) -> None:
    """Hundreds of keys in one transaction are one transaction of the target, by nesting."""
    await pair.converge()
    before = pair[B].store.server.history.revision
    writes = {f"/orders/{n}": "v" for n in range(60)}

    revision = await pair.write(A, writes)
    await pair.converge()

    assert parts_in(pair, before) == []
    (whole,) = [i for i in log(pair) if i.revision > before and changed([i])]
    assert len(changed([whole])) == len(writes)
    assert (pair[B].checkpoint(A)).sequence >= revision


async def until_torn(mesh: Mesh) -> None:
    await mesh.until(lambda: mesh[B].store.server.history.lookup(PARTS) is not None)


async def test_a_crash_between_two_parts_goes_on_at_the_next(pair: Mesh) -> None:
    """Nothing of what is applied is applied again, and nothing of the rest is left out."""
    await fill(pair, 600)
    before = pair[B].store.server.history.revision
    await delete_all(pair)
    for _ in range(4):
        await until_torn(pair)
        seen = len(parts_in(pair, before))
        await pair.until(lambda: len(parts_in(pair, before)) > seen + 2)  # noqa: B023
        await pair.stop(B)
        await pair.start(B)

    await pair.converge()

    applied = changed([item for item in log(pair) if item.revision > before])
    assert len(applied) == len(set(applied)) == 601
    assert pair.joins_made(B, A, G) == 1
    assert pair.check_history() > 1


@pytest.mark.parametrize("fault", [Fault.REPLY_LOST, Fault.REQUEST_LOST, Fault.UNREACHABLE])
async def test_an_unknown_outcome_of_a_part_is_read_back(pair: Mesh, fault: Fault) -> None:
    """Whatever of it happened: each key is changed once."""
    await fill(pair, 300)
    before = pair[B].store.server.history.revision
    FRAIL.fate = {FRAIL.commits + n: fault for n in range(2, 60, 3)}

    await delete_all(pair)
    await pair.converge()

    applied = changed([item for item in log(pair) if item.revision > before])
    assert len(applied) == len(set(applied)) == 301
    assert pair.check_history() > 1


async def test_a_group_in_parts_is_not_in_step_and_the_checkpoint_waits(pair: Mesh) -> None:
    """Converge and verify must not answer in between: half a transaction is no state."""
    await fill(pair, 900)
    inbound = pair[B].inbound
    assert inbound is not None
    revision = await delete_all(pair)
    await until_torn(pair)
    own = pair[B].checkpoint(A)
    mark = decode(PartsCheckpoint, pair[B].store.server.history.lookup(PARTS).value)
    torn = (inbound.in_step(G), inbound.mirror.torn())
    await pair.converge()

    assert own.sequence == revision - 1
    assert mark.sequence == revision
    assert torn == (False, frozenset({G}))
    assert inbound.in_step(G)


async def test_a_group_that_joins_meanwhile_gets_its_half_whole(pair: Mesh) -> None:
    """S27 with pieces: the side stream does not meet the main one in the middle of a record."""
    await fill(pair, 900)
    await pair.write(A, {f"/users/{n}": "old" for n in range(40)})
    await pair.converge()
    await pair[A].store.commit(
        Txn(
            operations=(
                Delete(b"/orders/", end=b"/orders0"),
                Delete(b"/users/", end=b"/users0"),
            )
        )
    )
    await until_torn(pair)
    await pair.join(B, H)
    await pair.join(B, G)
    await pair.clock.advance_ms(100)
    pair.network.break_all()

    await pair.converge()

    assert pair[B].store.server.history.lookup(PARTS) is None
    assert pair.scope(B, G) == pair.scope(B, H) == {}
    assert pair.check_history() > 1


async def test_a_target_that_knows_no_pieces_is_told_to_copy(
    pair: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older replicator would take a piece for a whole record."""
    await fill(pair, 400)
    await pair.stop(B)

    def old(self: object) -> object:
        return attrs.evolve(hello(self), takes_pieces=False)

    hello = Receiver.hello
    monkeypatch.setattr(Receiver, "hello", old)
    await pair.start(B)
    before = pair[B].store.server.history.revision
    await delete_all(pair)
    await pair.converge()

    assert parts_in(pair, before) == []
    assert pair.joins_made(B, A, G) == 2


async def test_a_write_that_etcd_refuses_parks_its_group_alone(pair: Mesh) -> None:
    """The reason is stored and shown, other groups go on, and it heals by itself."""
    await pair.write(A, {"/orders/1": "fits"})
    await pair.converge()
    server = pair[B].store.server
    server.request_bytes_max = 1_000
    await pair.write(A, {"/orders/2": "x" * 900, "/orders/3": "fits", "/users/1": "other"})
    await pair.write(A, {"/users/2": "goes on"})
    await pair.until(lambda: pair.is_converged(H))
    parked = decode(ParkedWrite, server.history.lookup(RegionalKeys.parked(G)).value)
    await pair.clock.advance_ms(5_000)
    is_in_step = pair[B].inbound.in_step(G)
    problems = pair[B].inbound.problems()[A]
    server.request_bytes_max = 100_000
    await pair.converge()

    assert (parked.key, parked.value_bytes) == ("/orders/2", 900)
    assert "etcd accepts 1000" in parked.reason
    assert "orders: parked: etcd here refuses '/orders/2'" in problems
    assert not is_in_step
    assert server.history.lookup(RegionalKeys.parked(G)) is None
    assert pair.check_history() > 1


async def test_a_parked_group_heals_when_the_key_changes_at_the_source(pair: Mesh) -> None:
    """What the operator is told to do works: nothing has to be done at the target."""
    await pair.converge()
    server = pair[B].store.server
    server.request_bytes_max = 1_000
    await pair.write(A, {"/orders/2": "x" * 900})
    await pair.until(lambda: server.history.lookup(RegionalKeys.parked(G)) is not None)
    await pair.write(A, {"/orders/2": "small again"})

    await pair.converge()

    assert server.history.lookup(RegionalKeys.parked(G)) is None


async def test_the_largest_nested_transaction_still_fits_beside_the_marks(pair: Mesh) -> None:
    """Guards and marks stand beside what is nested, within etcd's 128 operations a level."""
    await pair.converge()
    await pair[A].store.commit(
        Txn(operations=nested([Put(f"/orders/{n:05}".encode(), b"") for n in range(3_600)]))
    )

    await pair.converge()

    assert len(pair.scope(B, G)) == 3_600


def test_unreachable_is_no_refusal() -> None:
    """What may pass by itself never parks a group."""
    assert not issubclass(Unreachable, REFUSALS)
