"""Claims about clusters that come back superseded: what they wrote is kept, and they stand by."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs

from coordinator.failover.record import Phase
from coordinator.mesh import read_mesh
from coordinator.rejoin.keeper import Keeper
from coordinator.rejoin.record import RejoinPhase
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.peer import PeerIdentity
from meshkit.quarantine import Completeness, Origin, QuarantineClass, QuarantineEntry
from meshkit.store.txn import Put, Txn, absent
from replicator.quarantine import Quarantine
from tests.mesh.emergencies import ANYTHING, begin, emergency, until_step
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.regions import (
    GROUP,
    Region,
    cut_off,
    promote,
    until_content,
    until_counted,
    until_following,
    until_permit,
    until_rejoined,
)
from tests.mesh.test_whole_mesh import OPERATOR, move, until_equal, until_in_step

COORDINATOR = PeerIdentity(role="coordinator", name="c1")


@attrs.define
class World:
    mesh: MemoryMesh
    a: Region
    b: Region
    c: Region


@asynccontextmanager
async def three_regions() -> AsyncIterator[World]:
    """Region a is active and has written a little that everybody has."""
    mesh = MemoryMesh()
    async with running(mesh):
        await mesh.apply()
        active = await mesh.until_active()
        others = [name for name in mesh.clusters if name != active]
        world = World(mesh, *(Region(mesh, name) for name in (active, *others)))
        for key in ("kept", "changed", "deleted"):
            await world.a.write(key, "before")
        await until_equal(mesh)
        yield world


async def kept_at(world: World, region: Region) -> list[QuarantineEntry]:
    quarantine = Quarantine(regional=world.mesh.stores[region.name], leader=absent(b"/nobody"))
    return [entry async for entry in quarantine.entries(GROUP)]


async def lose_a_tail(world: World) -> dict[int, tuple[str, str | None]]:
    """Write at a what nobody else gets; return the harness's own account of it."""
    cut_off(world.mesh, (world.b.name, world.a.name), (world.c.name, world.a.name))
    wanted = {
        "new": "1",
        "changed": "ours",
        "deleted": None,
        "twice": "1",
        "also-there": "equal",
    }
    tail = {await world.a.write(key, value): (key, value) for key, value in wanted.items()}
    return tail | {await world.a.write("twice", "2"): ("twice", "2")}


async def test_a_region_that_died_with_writes_comes_back_with_all_of_them_in_quarantine() -> None:
    """Promise 3, and issue 4's `what did we lose?`: every answer is the harness's own."""
    async with three_regions() as world:
        tail = await lose_a_tail(world)
        await world.a.die()
        await promote(world.mesh, world.b.name)
        await world.b.write("changed", "theirs")
        await world.b.write("also-there", "equal")
        await until_following(world.mesh, world.c.name, 2)
        cut_off(world.mesh)
        world.a.come_back()

        ended = await until_rejoined(world.mesh, world.a.name)
        await until_in_step(world.mesh)
        states = await until_equal(world.mesh)
        entries = await kept_at(world, world.a)
        shown = await world.mesh.quarantining(COORDINATOR).entries(
            GROUP, None, epoch=None, start=None, limit=100
        )
        audit = (await world.mesh.operations().audit(GROUP, after=0, limit=100))["entries"]
        counted = await until_counted(world.mesh, world.a.name)

    found = {
        e.sequence: (
            e.key.decode().removeprefix("/orders/"),
            e.here.inline.decode() if e.here and e.here.inline is not None else None,
        )
        for e in entries
    }
    assert found == tail
    newest = {e.key.decode().removeprefix("/orders/"): e.divergence for e in entries if e.is_newest}
    assert newest == {
        "new": QuarantineClass.ONLY_HERE,
        "changed": QuarantineClass.CONFLICTING,
        "deleted": QuarantineClass.ONLY_THERE,
        "twice": QuarantineClass.ONLY_HERE,
        "also-there": QuarantineClass.SAME,
    }
    assert {e.origin for e in entries} == {Origin.TAIL}
    assert (ended.diverged["total"], ended.completeness) == (len(tail), "complete")
    assert counted == {kind.value: n for kind, n in Counter(e.divergence for e in entries).items()}
    listed = [entry for page in shown["clusters"] for entry in page["entries"]]
    assert {entry["sequence"] for entry in listed} == set(tail)
    diverged = [e["facts"] for e in audit if e["action"] == "rejoin.diverged"]
    assert diverged[-1]["diverged"]["total"] == len(tail)
    content = {k.decode().removeprefix("/orders/"): v.decode() for k, v in states["b"].items()}
    assert content == {
        "kept": "before",
        "changed": "theirs",
        "deleted": "before",
        "also-there": "equal",
    }


async def test_a_region_without_a_tail_needs_nobody_and_gets_only_what_it_missed() -> None:
    async with three_regions() as world:
        await world.a.die()
        await promote(world.mesh, world.b.name)
        await world.b.write("missed", "1")
        world.a.come_back()

        ended = await until_rejoined(world.mesh, world.a.name)
        await until_in_step(world.mesh)
        await until_equal(world.mesh)

        assert (ended.has_diverged, ended.requested_by) == (False, "coordinator")
        steps = [step.step for step in ended.history]
        asked = ["fence", "find_divergence", "reconcile"]
        assert steps == [*asked[: len(steps) - 1], "stand_by"], "the stream may go on at any time"
        assert await kept_at(world, world.a) == []


async def test_a_standby_that_an_old_report_calls_superseded_goes_on_as_it_does() -> None:
    """Its later epochs are no tail of an older one, however late its report of that one is read."""
    async with three_regions() as world:
        a, b = world.a.name, world.b.name
        old = (await read_mesh(world.mesh.coordination)).health
        for number, to in enumerate((b, a, b)):
            assert await move(world.mesh, to, f"move-{number}") is Phase.SUCCEEDED
            await until_permit(world.mesh, to, number + 2)
            await (world.a if to == a else world.b).write(f"epoch-{number + 2}", "1")
            await until_in_step(world.mesh)
        await until_equal(world.mesh)
        now = await read_mesh(world.mesh.coordination)
        keeper = Keeper(store=world.mesh.coordination, clock=world.mesh.clock)

        begun = await keeper.begin(
            GROUP,
            ClusterName(a),
            attrs.evolve(now, health=old),
            requested_by="test",
            reason="an old report",
        )
        ended = await until_rejoined(world.mesh, a)

        assert begun is not None
        assert ended.id == begun.record.id
        assert [(step.step, step.detail) for step in ended.history] == [
            ("fence", "it follows already"),
            ("stand_by", ""),
        ]
        assert await kept_at(world, world.a) == []
        assert await move(world.mesh, a, "back") is Phase.SUCCEEDED


async def test_what_is_not_completely_known_waits_for_a_person() -> None:
    """S16: a key deleted in the tail is reported, not silently restored."""
    async with three_regions() as world:
        await lose_a_tail(world)
        store = world.mesh.stores[world.a.name]
        await world.a.die()
        await promote(world.mesh, world.b.name)
        await store.compact((await store.range((b"/x", b""))).revision)
        cut_off(world.mesh)
        world.a.come_back()

        held = await until_rejoined(world.mesh, world.a.name, RejoinPhase.HELD)
        entries = {e.key.decode(): e for e in await kept_at(world, world.a)}
        content = await world.a.content()

        assert held.completeness == "state-only"
        assert {e.completeness for e in entries.values()} == {Completeness.STATE_ONLY}
        assert set(entries) == {
            f"/orders/{key}" for key in ("new", "changed", "deleted", "twice", "also-there")
        }
        assert entries["/orders/deleted"].divergence is QuarantineClass.ONLY_THERE
        assert "deleted" not in content
        assert content["new"] == "1"


async def test_a_person_who_agrees_lets_the_copy_go_on() -> None:
    async with three_regions() as world:
        await lose_a_tail(world)
        store = world.mesh.stores[world.a.name]
        await world.a.die()
        await promote(world.mesh, world.b.name)
        await until_following(world.mesh, world.c.name, 2)
        await store.compact((await store.range((b"/x", b""))).revision)
        cut_off(world.mesh)
        world.a.come_back()
        held = await until_rejoined(world.mesh, world.a.name, RejoinPhase.HELD)

        await world.mesh.rejoining().approve(held.id, "the owners know", OPERATOR)
        ended = await until_rejoined(world.mesh, world.a.name)
        await until_in_step(world.mesh)
        states = await until_equal(world.mesh)

    assert ended.approved_by == "operator/test"
    assert states["a"][b"/orders/deleted"] == b"before"


async def test_a_second_failover_while_a_rejoin_waits_is_not_held_up_by_it() -> None:
    """Rule 11: a rescue is never locked out; the rejoin begins anew under the newer epoch."""
    async with three_regions() as world:
        await lose_a_tail(world)
        store = world.mesh.stores[world.a.name]
        await world.a.die()
        await promote(world.mesh, world.b.name)
        await until_following(world.mesh, world.c.name, 2)
        await store.compact((await store.range((b"/x", b""))).revision)
        cut_off(world.mesh)
        world.a.come_back()
        held = await until_rejoined(world.mesh, world.a.name, RejoinPhase.HELD)

        phase = await move(world.mesh, world.c.name, "while-it-waits")
        again = await until_rejoined(world.mesh, world.a.name, RejoinPhase.HELD, epoch=3)

    assert phase is Phase.SUCCEEDED
    assert (again.active, again.epoch, again.lineage) == (world.c.name, 3, held.lineage)


async def test_a_third_region_that_was_ahead_sets_its_excess_aside_before_it_follows() -> None:
    """S6: b had A@800, c had A@900, a is dead; also a key that is deleted in the excess."""
    async with three_regions() as world:
        cut_off(world.mesh, (world.b.name, world.a.name))
        await world.a.write("new", "1")
        await world.a.write("changed", "ours")
        await world.a.write("deleted", None)
        await until_content(world.c, {"kept": "before", "changed": "ours", "new": "1"})
        await world.a.die()
        await promote(world.mesh, world.b.name)
        await world.b.write("changed", "theirs")

        ended = await until_rejoined(world.mesh, world.c.name)
        entries = await kept_at(world, world.c)
        await until_content(world.c, {"kept": "before", "changed": "theirs", "deleted": "before"})

    found = {e.key.decode().removeprefix("/orders/"): e.divergence for e in entries}
    assert found == {
        "new": QuarantineClass.ONLY_HERE,
        "changed": QuarantineClass.CONFLICTING,
        "deleted": QuarantineClass.ONLY_THERE,
    }
    assert {e.origin for e in entries} == {Origin.EXCESS}
    assert (ended.diverged["total"], ended.completeness) == (3, "complete")


async def test_what_an_old_permit_still_let_in_is_fenced_off_and_found() -> None:
    """S1, S21: the old permit lives again, and a client that uses the compare alone writes."""
    async with three_regions() as world:
        store = world.mesh.stores[world.a.name]
        permit = await store.get(RegionalKeys.permit(GROUP))
        assert permit is not None
        await world.a.die()
        await promote(world.mesh, world.b.name)
        await store.commit(Txn(operations=(Put(permit.key, permit.value),)))
        late = await world.a.write("late", "1")
        world.a.come_back()

        ended = await until_rejoined(world.mesh, world.a.name)
        (entry,) = await kept_at(world, world.a)
        gone = await store.get(permit.key)
        await until_content(world.a, dict.fromkeys(("kept", "changed", "deleted"), "before"))

    assert gone is None
    assert (entry.key, entry.sequence, entry.epoch) == (b"/orders/late", late, 1)
    assert ended.diverged["total"] == 1


async def test_failback_after_a_rejoin_is_a_planned_failover() -> None:
    async with three_regions() as world:
        await lose_a_tail(world)
        await world.a.die()
        await promote(world.mesh, world.b.name)
        await until_following(world.mesh, world.c.name, 2)
        cut_off(world.mesh)
        world.a.come_back()
        await until_rejoined(world.mesh, world.a.name)
        await until_in_step(world.mesh)

        phase = await move(world.mesh, world.a.name, "back")
        await world.a.write("again", "1")
        states = await until_equal(world.mesh)

    assert phase is Phase.SUCCEEDED
    assert {bytes(k) for k in states["a"]} >= {b"/orders/again", b"/orders/deleted"}


async def test_a_region_that_died_between_pivot_and_opening_follows_when_it_is_back() -> None:
    """S18: its copy is frozen by a failover that nobody goes on with, and would be for ever.

    The epoch that counts stands on what the third region had, not on what it would have opened.
    """
    async with three_regions() as world:
        mesh, a, b, c = world.mesh, world.a, world.b, world.c
        cut_off(mesh, (b.name, a.name))
        await a.write("seen", "1")
        before = {"kept": "before", "changed": "before", "deleted": "before"}
        await until_content(c, before | {"seen": "1"})
        tail = await lose_a_tail(world)
        await a.die()
        request = emergency(b.name, "first", accept_loss=None, no_fence_wait=True)
        first = await begin(mesh, request)
        await until_step(mesh, first, "consent")
        await b.die()
        await mesh.operations().steering.consent(first, ANYTHING, OPERATOR)
        await until_step(mesh, first, "open")
        await promote(mesh, c.name, "second")
        await c.write("changed", "theirs")
        cut_off(mesh)
        b.come_back()
        a.come_back()

        await until_rejoined(mesh, a.name)
        await until_in_step(mesh)
        states = await until_equal(mesh)
        entries = await kept_at(world, a)

    content = {k.decode().removeprefix("/orders/"): v.decode() for k, v in states["b"].items()}
    assert content == before | {"changed": "theirs", "seen": "1"}
    assert {entry.sequence for entry in entries} == set(tail)
