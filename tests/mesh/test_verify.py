"""Claims about comparing copies in a whole mesh: API, replicators and streams together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coordinator.api.bodies import VerifyAsked
from coordinator.api.verifying import Verifying
from meshkit.errors import Conflict, InvalidInput, NotFound
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.names import ClusterName
from meshkit.store.txn import Delete, Put, Txn, prefix_range
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_whole_mesh import DEADLINE_S, GROUP, OPERATOR, until_equal, until_in_step


def asked(request_id: str, *, target: str | None = None, repair: bool = False) -> VerifyAsked:
    name = ClusterName(target) if target else None
    return VerifyAsked(target=name, repair=repair, request_id=request_id)


async def verified(mesh: MemoryMesh, request: VerifyAsked) -> dict[str, dict[str, Any]]:
    """Ask, and return each cluster's result."""
    verifying = Verifying(store=mesh.coordination, clock=mesh.clock)
    assert (await verifying.ask(GROUP, request, OPERATOR))["changed"]
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = (await verifying.results(GROUP, request.target))["verifications"]
            if all(each["status"] == "done" for each in found):
                return {each["target"]: each["result"] for each in found}
            await asyncio.sleep(0.02)


async def test_a_planted_difference_is_found_and_repaired_and_the_others_are_equal() -> None:
    mesh = MemoryMesh()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        active = (await mesh.operations().group(GROUP))["active"]
        for number in range(50):
            put = Put(f"/orders/{number:02d}".encode(), b"x")
            await mesh.stores[active].commit(Txn(operations=(put,)))
        await until_equal(mesh)
        first = await verified(mesh, asked("r-1"))
        copies = [name for name in mesh.clusters if name != active]
        assert {name: result["outcome"] for name, result in first.items()} == dict.fromkeys(
            copies, "equal"
        )

        await mesh.stores[copies[0]].commit(
            Txn(operations=(Put(b"/orders/01", b"foreign"), Delete(b"/orders/02")))
        )
        second = await verified(mesh, asked("r-2"))
        assert (second[copies[0]]["outcome"], second[copies[0]]["differing"]) == ("different", 2)
        assert second[copies[1]]["outcome"] == "equal"
        assert await mesh.stores[copies[0]].get(RegionalKeys.findings(GROUP)) is not None

        third = await verified(mesh, asked("r-3", target=copies[0], repair=True))
        assert third[copies[0]]["outcome"] == "repaired", third
        await until_in_step(mesh)
        assert await mesh.content(copies[0]) == await mesh.content(active)
        streams = (await mesh.operations().streams(GROUP))["streams"]
        shown = {s["target"]: [r["outcome"] for r in s["last_verify"]] for s in streams}
        assert shown == {copies[0]: ["repaired"], copies[1]: ["equal"]}
        audit = (await mesh.operations().audit(GROUP, after=0, limit=50))["entries"]
        actions = [entry["action"] for entry in audit if entry["action"].startswith("verify.")]
        assert actions == ["verify.requested", "verify.requested", "verify.repair_requested"]
        stored = await mesh.coordination.range(prefix_range(CoordinationKeys.verifies))
        assert not [item for item in stored.items if b"/orders/0" in item.value]


async def test_what_cannot_be_asked_for_is_refused() -> None:
    mesh = MemoryMesh()
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        verifying = Verifying(store=mesh.coordination, clock=mesh.clock)
        active = (await mesh.operations().group(GROUP))["active"]
        with pytest.raises(InvalidInput, match="active"):
            await verifying.ask(GROUP, asked("r-1", target=active), OPERATOR)
        with pytest.raises(NotFound, match="no member"):
            await verifying.ask(GROUP, asked("r-1", target="nowhere"), OPERATOR)
        key = CoordinationKeys.failover_active(GROUP)
        await mesh.coordination.commit(Txn(operations=(Put(key, b"f-1"),)))
        with pytest.raises(Conflict, match="failover"):
            await verifying.ask(GROUP, asked("r-1", repair=True), OPERATOR)
        await mesh.coordination.commit(Txn(operations=(Delete(key),)))
        assert (await verifying.ask(GROUP, asked("r-1"), OPERATOR))["changed"]
        assert not (await verifying.ask(GROUP, asked("r-1"), OPERATOR))["changed"]
