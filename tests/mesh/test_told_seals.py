"""S26: who may tell a region that a group is sealed, and what it answers."""

import pytest

from meshkit.asking import DeclineCode, Declined, SealHeard, TellSealed
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Revision, Token
from meshkit.peer import PeerIdentity
from tests.mesh.emergencies import GROUP
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_whole_mesh import until_in_step

A = ClusterName("a")


def told(epoch: int = 1, revision: int = 1_000_000) -> TellSealed:
    seal = Token(incarnation=1, revision=Revision(revision))
    return TellSealed(group=GROUP, epoch=Epoch(epoch), seal=seal)


async def tell(mesh: MemoryMesh, what: TellSealed, role: str, name: str) -> object:
    asker = mesh.network.asker(PeerIdentity(role=role, name=name))
    return await asker.ask(A, "a-0", what)


@pytest.mark.slow
async def test_only_a_member_stops_a_group_and_only_in_the_epoch_it_names() -> None:
    """S26: the word of a cluster can stop writes of its own groups, and nothing else."""
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        permit = RegionalKeys.permit(GROUP)

        coordinators = await tell(mesh, told(), "coordinator", "c-1")
        stranger = await tell(mesh, told(), "cluster", "z")
        other_epoch = await tell(mesh, told(epoch=7), "cluster", "b")
        overtaken = await tell(mesh, told(revision=1), "cluster", "b")
        before = await mesh.stores["a"].get(permit)
        heard = await tell(mesh, told(), "cluster", "b")
        after = await mesh.stores["a"].get(permit)
        again = await tell(mesh, told(), "cluster", "b")

    assert isinstance(coordinators, Declined)
    assert coordinators.code is DeclineCode.NOT_ALLOWED
    assert isinstance(stranger, Declined)
    assert stranger.code is DeclineCode.REFUSED
    assert "no member" in stranger.text
    assert other_epoch == overtaken == SealHeard(is_cut=False)
    assert before is not None
    assert (heard, after) == (SealHeard(is_cut=True), None)
    assert again == SealHeard(is_cut=True)
