"""S26: who may tell a region that a group is sealed, when that is believed, and what it does."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from meshkit.asking import DeclineCode, Declined, SealHeard, TellSealed
from meshkit.codec import decode, encode
from meshkit.commands import Command, CommandStep
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.names import ClusterName, FailoverId
from meshkit.ordinals import Epoch, Revision, Token
from meshkit.peer import PeerIdentity
from meshkit.regional import Fence, FenceMode, SegmentCut
from meshkit.store.txn import Put, Txn
from tests.mesh.emergencies import GROUP
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.regions import until_permit
from tests.mesh.test_whole_mesh import until_in_step

A = ClusterName("a")
PERMIT = RegionalKeys.permit(GROUP)
SEAL = Token(incarnation=1, revision=Revision(1_000_000))


def told(epoch: int = 1, seal: Token = SEAL) -> TellSealed:
    return TellSealed(group=GROUP, epoch=Epoch(epoch), seal=seal, failover=FailoverId("f-1"))


async def tell(
    mesh: MemoryMesh, what: TellSealed, *, role: str = "cluster", name: str = "b"
) -> object:
    asker = mesh.network.asker(PeerIdentity(role=role, name=name))
    return await asker.ask(A, "a-0", what)


async def fence(mesh: MemoryMesh) -> Fence:
    item = await mesh.stores["a"].get(RegionalKeys.fence(GROUP))
    assert item is not None
    return decode(Fence, item.value)


@asynccontextmanager
async def active_at_a() -> AsyncIterator[MemoryMesh]:
    mesh = MemoryMesh(clusters=("a", "b"))
    async with running(mesh):
        await mesh.apply()
        await until_in_step(mesh)
        yield mesh


@pytest.mark.slow
async def test_only_a_member_is_believed_and_only_where_nobody_else_can_be_asked() -> None:
    async with active_at_a() as mesh:
        coordinators = await tell(mesh, told(), role="coordinator", name="c-1")
        stranger = await tell(mesh, told(), name="z")
        belied = await tell(mesh, told())
        before = await mesh.stores["a"].get(PERMIT)

        mesh.sights["a-0"].partition()
        heard = await tell(mesh, told())
        after = await mesh.stores["a"].get(PERMIT)
        cut = await mesh.stores["a"].get(RegionalKeys.segment_cut(GROUP, Epoch(1)))
        again = await tell(mesh, told())

    assert isinstance(coordinators, Declined)
    assert coordinators.code is DeclineCode.NOT_ALLOWED
    assert isinstance(stranger, Declined)
    assert "no member" in stranger.text
    assert isinstance(belied, Declined)
    assert "no such seal" in belied.text
    assert before is not None
    assert (heard, after) == (SealHeard(is_cut=True), None)
    assert cut is not None
    assert decode(SegmentCut, cut.value).command_token == SEAL
    assert again == SealHeard(is_cut=True)


@pytest.mark.slow
async def test_a_word_of_another_epoch_or_of_an_older_command_stops_nothing() -> None:
    async with active_at_a() as mesh:
        mesh.sights["a-0"].partition()

        others = [await tell(mesh, told(epoch=epoch)) for epoch in (0, 7)]
        older = await tell(mesh, told(seal=Token(incarnation=1, revision=Revision(1))))
        permit = await mesh.stores["a"].get(PERMIT)

    assert others == [SealHeard(is_cut=False)] * 2
    assert older == SealHeard(is_cut=False)
    assert permit is not None


@pytest.mark.slow
async def test_it_is_as_if_the_command_had_been_read_and_a_later_one_opens_again() -> None:
    """So an undrain that was on its way when the seal was told is older, and not obeyed."""
    async with active_at_a() as mesh:
        head = (await mesh.coordination.range((b"/none", b""))).revision
        seal = Token(incarnation=1, revision=Revision(head + 20))
        mesh.sights["a-0"].partition()
        await tell(mesh, told(seal=seal))
        stopped = await fence(mesh)

        mesh.sights["a-0"].heal()
        for _ in range(30):
            await mesh.coordination.commit(Txn(operations=(Put(b"/else", b""),)))
        await release(mesh)
        await until_permit(mesh, "a", 1)
        opened = await fence(mesh)

    assert (stopped.mode, stopped.command_token) == (FenceMode.DRAINED, seal)
    assert (stopped.step, stopped.failover) == ("seal", "f-1")
    assert opened.mode is FenceMode.OPEN
    assert opened.command_token > seal


async def release(mesh: MemoryMesh) -> None:
    command = Command(
        group=GROUP,
        cluster=A,
        step=CommandStep.UNDRAIN,
        incarnation=1,
        epoch=Epoch(1),
        failover=FailoverId("f-1"),
    )
    put = Put(CoordinationKeys.command(A, GROUP), encode(command))
    await mesh.coordination.commit(Txn(operations=(put,)))
