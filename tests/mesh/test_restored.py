"""A whole mesh whose etcds are restored from snapshots: suspended, told, adopted, copied anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from coordinator.api.adopt_bodies import AdoptAsked
from coordinator.api.adopting import Adopting
from coordinator.governance.audit import MESH_AUDIT
from meshkit.asking import AskPromises, Promised
from meshkit.codec import decode
from meshkit.errors import Conflict, Refused
from meshkit.incarnations import FIRST_INCARNATION
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Revision
from meshkit.peer import PeerIdentity
from meshkit.regional import Checkpoint, Fence, RegionIncarnation
from meshkit.store.txn import Put, Txn, prefix_range
from tests.mesh.inmemory import MemoryMesh, running

A, B = ClusterName("a"), ClusterName("b")
OPERATOR = PeerIdentity(role="operator", name="alice")
WITHIN_S = 30.0


async def until(claim: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(WITHIN_S):
        while not (found := await claim()):
            await asyncio.sleep(0.05)
    return found


@pytest.fixture
async def mesh() -> AsyncIterator[MemoryMesh]:
    async with running(MemoryMesh(clusters=("a", "b"))) as found:
        await found.apply()
        yield found


async def active(mesh: MemoryMesh) -> str:
    async def known() -> str | None:
        view = await mesh.operations().group(GroupName("orders"))
        members = {c["cluster"]: c for c in view["clusters"]}
        name = view["active"]
        ready = name and members[name]["permit"] and all(c["in_step"] for c in members.values())
        return str(name) if ready else None

    return str(await until(known))


async def suspended(mesh: MemoryMesh, name: str) -> dict[str, Any]:
    async def known() -> Any:
        return (await mesh.operations().cluster(ClusterName(name)))["suspended"]

    found: dict[str, Any] = await until(known)
    return found


async def write(mesh: MemoryMesh, name: str, key: str, value: str) -> None:
    await mesh.stores[name].commit(Txn(operations=(Put(key.encode(), value.encode()),)))


async def same(mesh: MemoryMesh) -> bool:
    return await mesh.content("a") == await mesh.content("b")


async def incarnation(mesh: MemoryMesh, name: str) -> str:
    item = await mesh.stores[name].get(RegionalKeys.incarnation)
    assert item is not None
    return decode(RegionIncarnation, item.value).incarnation


def asked(*, expect: int | None = None, dry_run: bool = False) -> AdoptAsked:
    return AdoptAsked(reason="disk lost", expect_suspension=expect, dry_run=dry_run)


async def restored(mesh: MemoryMesh, name: str, *, bump: int = 0) -> None:
    """Write, take a snapshot, write on, and put the snapshot in the etcd's place."""
    await write(mesh, name, "/orders/1", "kept")
    await until(lambda: same(mesh))
    snapshot = mesh.stores[name].server.snapshot()
    await write(mesh, name, "/orders/2", "lost")
    await until(lambda: same(mesh))
    mesh.stores[name].server.restore(snapshot, bump_revision=bump)


@pytest.mark.parametrize("bump", [0, 1_000_000])
async def test_a_restored_etcd_stops_its_region_until_it_is_adopted(
    mesh: MemoryMesh, bump: int
) -> None:
    """S25 for a region: ids and keys are unchanged, and with a bump even the revision is higher.

    The active region stops while its replicator leads: no permit is left, and its standby takes in
    nothing of the history that is no longer one. The operator is told, and decides.
    """
    source = await active(mesh)
    target = "b" if source == "a" else "a"
    before = await incarnation(mesh, source)

    await restored(mesh, source, bump=bump)
    told = await suspended(mesh, source)

    assert told["store"] == "regional"
    assert told["active_groups"] == ["orders"]
    assert f"mesh clusters adopt {source}" in told["next"]
    permits = await mesh.stores[source].range(prefix_range(RegionalKeys.permits))
    assert permits.items == ()
    assert b"/orders/2" in await mesh.content(target)
    # Whatever the marks do from now on: the region stays suspended.
    for n in range(50):
        await write(mesh, source, "/unrelated", str(n))
    again = await suspended(mesh, source)
    assert again["suspension"] == told["suspension"]
    assert await incarnation(mesh, source) == before


async def test_an_adopted_etcd_begins_a_new_incarnation_and_its_standbys_are_copied(
    mesh: MemoryMesh,
) -> None:
    """What the operator chose is the truth: the standby loses what the restored etcd lost."""
    source = await active(mesh)
    target = "b" if source == "a" else "a"
    before = await incarnation(mesh, source)
    await restored(mesh, source)
    told = await suspended(mesh, source)
    adopting = Adopting(store=mesh.coordination, clock=mesh.clock)

    shown = await adopting.adopt(ClusterName(source), asked(dry_run=True), OPERATOR)
    assert shown["changed"] is False
    answer = await adopting.adopt(ClusterName(source), asked(expect=told["suspension"]), OPERATOR)
    repeated = await adopting.adopt(ClusterName(source), asked(expect=told["suspension"]), OPERATOR)

    assert answer["changed"] is True
    assert (repeated["changed"], repeated["incarnation"]) == (False, answer["incarnation"])

    async def is_over() -> bool:
        view = await mesh.operations().cluster(ClusterName(source))
        return view["suspended"] is None and await incarnation(mesh, source) != before

    await until(is_over)
    assert await incarnation(mesh, source) == answer["incarnation"]
    assert await active(mesh) == source
    await write(mesh, source, "/orders/3", "after")
    await until(lambda: same(mesh))
    copied = await mesh.content(target)
    assert copied == {b"/orders/1": b"kept", b"/orders/3": b"after"}
    item = await mesh.stores[target].get(RegionalKeys.checkpoint(ClusterName(source)))
    assert item is not None
    checkpoint = decode(Checkpoint, item.value)
    assert checkpoint.incarnation == answer["incarnation"]
    audit = await mesh.operations().audit(MESH_AUDIT, after=0, limit=100)
    entry = next(e for e in audit["entries"] if e["action"] == "cluster.adopted")
    assert entry["actor"] == "operator/alice"
    assert entry["facts"]["reason"] == "disk lost"
    assert (await mesh.operations().verify_audit(MESH_AUDIT))["ok"]


async def test_a_restored_standby_goes_on_as_one_once_it_is_adopted(mesh: MemoryMesh) -> None:
    """Its checkpoint went back with its state, so the stream repeats what it lost."""
    source = await active(mesh)
    target = "b" if source == "a" else "a"
    await restored_standby(mesh, source, target)
    told = await suspended(mesh, target)
    assert told["active_groups"] == []
    assert await promised(mesh, source, target) == ()

    adopting = Adopting(store=mesh.coordination, clock=mesh.clock)
    await adopting.adopt(ClusterName(target), asked(expect=told["suspension"]), OPERATOR)
    await write(mesh, source, "/orders/3", "after")

    await until(lambda: same(mesh))
    assert set(await mesh.content(target)) == {b"/orders/1", b"/orders/2", b"/orders/3"}
    assert await promised(mesh, source, target) == ("orders",)


async def test_a_restored_etcd_promises_nothing_though_nobody_remembers_why(
    mesh: MemoryMesh,
) -> None:
    """Who promises needs neither lead nor reach the coordination etcd: it is in the region."""
    source = await active(mesh)
    target = "b" if source == "a" else "a"
    await restored_standby(mesh, source, target)
    await suspended(mesh, target)
    for name in [name for name in mesh.processes if name.startswith(f"{target}-")]:
        await mesh.processes.pop(name).kill()
    mesh.start_replicator(target, 0)

    assert await promised(mesh, source, target) == ()


async def promised(mesh: MemoryMesh, source: str, target: str) -> tuple[str, ...]:
    """Return what any replicator of the target promises the source."""
    seen = await mesh.stores[source].get(RegionalKeys.fence(GroupName("orders")))
    assert seen is not None
    question = AskPromises(
        groups={GroupName("orders"): decode(Fence, seen.value).epoch},
        coordination=FIRST_INCARNATION,
        term=Revision(1),
        round=1,
        ttl_s=1,
    )
    asker = mesh.network.asker(PeerIdentity(role="cluster", name=source))
    for endpoint in [name for name in mesh.processes if name.startswith(f"{target}-")]:
        answer = await asker.ask(ClusterName(target), endpoint, question)
        if isinstance(answer, Promised) and answer.groups:
            return answer.groups
    return ()


async def restored_standby(mesh: MemoryMesh, source: str, target: str) -> None:
    await write(mesh, source, "/orders/1", "kept")
    await until(lambda: same(mesh))
    snapshot = mesh.stores[target].server.snapshot()
    await write(mesh, source, "/orders/2", "lost there")
    await until(lambda: same(mesh))
    mesh.stores[target].server.restore(snapshot)


async def test_a_restored_coordination_etcd_suspends_every_region(mesh: MemoryMesh) -> None:
    """S19, up to the adoption: what the regions remember of it is in their own etcds."""
    source = await active(mesh)
    await until(lambda: mesh.stores["a"].get(RegionalKeys.coordination_seen))
    await until(lambda: mesh.stores["b"].get(RegionalKeys.coordination_seen))
    snapshot = mesh.coordination.server.snapshot()

    async def has_moved() -> bool:
        now = mesh.coordination.server.history.revision
        return now > snapshot.history.revision + 20

    await until(has_moved)
    mesh.coordination.server.restore(snapshot)

    for name in ("a", "b"):
        await until(lambda name=name: mesh.stores[name].get(RegionalKeys.suspended))  # type: ignore[misc]
        permits = await mesh.stores[name].range(prefix_range(RegionalKeys.permits))
        assert permits.items == ()
    told = await suspended(mesh, source)
    assert told["store"] == "coordination"
    adopting = Adopting(store=mesh.coordination, clock=mesh.clock)
    with pytest.raises(Refused, match="the coordination etcd"):
        await adopting.adopt(ClusterName(source), asked(), OPERATOR)


async def test_only_what_is_suspended_and_was_shown_can_be_adopted(mesh: MemoryMesh) -> None:
    source = await active(mesh)
    adopting = Adopting(store=mesh.coordination, clock=mesh.clock)
    with pytest.raises(Refused, match="not suspended"):
        await adopting.adopt(ClusterName(source), asked(), OPERATOR)

    await restored(mesh, source)
    told = await suspended(mesh, source)

    with pytest.raises(Conflict, match="something else"):
        await adopting.adopt(ClusterName(source), asked(expect=told["suspension"] + 1), OPERATOR)
