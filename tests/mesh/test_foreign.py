"""Claims about listing writes that bypassed the permit: asked of the region that has them."""

from __future__ import annotations

import pytest

from coordinator.api.foreign import ForeignListing
from meshkit.asking import DeclineCode, Declined, ForeignListed, ReadForeign
from meshkit.errors import NotFound
from meshkit.names import ClusterName
from meshkit.peer import PeerIdentity
from meshkit.store.txn import Delete, Put, Txn
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_pausing import B, founded, until, write
from tests.mesh.test_whole_mesh import GROUP

COORDINATOR = PeerIdentity(role="coordinator", name="c1")


def listing(mesh: MemoryMesh) -> ForeignListing:
    return ForeignListing(store=mesh.coordination, asker=mesh.network.asker(COORDINATOR))


async def test_foreign_writes_are_listed_by_key_at_the_copy_that_has_them() -> None:
    """Whoever is told that there are two wants to know which."""
    mesh = MemoryMesh(clusters=("a", "b", "c"))
    async with running(mesh):
        await founded(mesh)
        await mesh.stores["b"].commit(Txn(operations=(Put(b"/orders/1", b"x"),)))
        await mesh.stores["b"].commit(Txn(operations=(Delete(b"/orders/1"),)))

        async def are_listed() -> bool:
            return (await listing(mesh).writes(GROUP, B))["clusters"][0]["count"] == 2

        await until(are_listed)
        (at_b, at_c) = (await listing(mesh).writes(GROUP, None))["clusters"]

        assert (at_b["cluster"], at_b["problem"]) == ("b", "")
        found = [(one["key"], one["deleted"]) for one in at_b["latest"]]
        assert found == [("/orders/1", False), ("/orders/1", True)]
        assert at_b["latest"][0]["revision"] < at_b["latest"][1]["revision"]
        assert (at_c["cluster"], at_c["count"], at_c["latest"]) == ("c", 0, [])


async def test_what_nobody_answers_is_unknown_and_says_why() -> None:
    """Promise 7: an empty list must never mean that nobody could look."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await founded(mesh)
        await write(mesh, "/orders/1")
        await mesh.processes["b-0"].kill()
        mesh.network.hang_up("b-0")

        (copy,) = (await listing(mesh).writes(GROUP, None))["clusters"]

        assert copy["count"] is None
        assert copy["problem"]
        with pytest.raises(NotFound):
            await listing(mesh).writes(GROUP, ClusterName("nowhere"))


@pytest.mark.parametrize("role", ["cluster", "operator"])
async def test_only_a_coordinator_may_ask(role: str) -> None:
    """Keys are application data."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await founded(mesh)
        asker = mesh.network.asker(PeerIdentity(role=role, name="a"))

        answer = await asker.ask(B, "b-0", ReadForeign(group=GROUP))

        assert isinstance(answer, Declined)
        assert answer.code is DeclineCode.NOT_ALLOWED
        allowed = await mesh.network.asker(COORDINATOR).ask(B, "b-0", ReadForeign(group=GROUP))
        assert allowed == ForeignListed()
