"""Claims about fencing by etcd's own access control, for clients that look at no permit."""

import asyncio
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from cli.sandbox.etcd import EtcdProcess
from meshkit.clock import ManualClock, SystemClock, settle
from meshkit.codec import encode
from meshkit.commands import AnswerOutcome, CommandStep
from meshkit.errors import NotAllowed, OutcomeUnknown, Unreachable
from meshkit.etcd_binary import EtcdBinary
from meshkit.keys import RegionalKeys
from meshkit.names import GroupName
from meshkit.ordinals import NO_TOKEN, Epoch
from meshkit.regional import Fence, FenceMode
from meshkit.store.etcd import EtcdStore
from meshkit.store.etcd_roles import Access, EtcdRoles
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Committed, KeyRange, Put, Txn, prefix_range
from replicator.access import KEEP_INTERVAL_MS, RoleFence
from tests.conftest import FAST_FLAGS
from tests.replicator.test_agent import GROUP, authority, leading, new_world

ROLE = "application"
ORDERS = prefix_range(b"/orders/")
G = GroupName(GROUP)


@attrs.define
class MemoryRoles:
    """One role, and what its permissions were when each change was made."""

    regional: MemoryStore
    granted: dict[KeyRange, Access] = attrs.field(factory=dict)
    changes: list[tuple[Access, bool]] = attrs.field(factory=list)
    """Each change, and whether there was a permit at that time."""
    is_down: bool = False

    async def permissions(self, role: str) -> dict[KeyRange, Access]:
        assert role == ROLE
        return dict(self.granted)

    async def permit(self, role: str, key_range: KeyRange, access: Access) -> None:
        assert role == ROLE
        if self.is_down:
            raise Unreachable("no member answers")
        has_permit = await self.regional.get(RegionalKeys.permit(G)) is not None
        self.granted[key_range] = access
        self.changes.append((access, has_permit))


def fence_of(mode: FenceMode) -> bytes:
    return encode(Fence(group=G, epoch=Epoch(1), token=NO_TOKEN, command_token=NO_TOKEN, mode=mode))


async def test_writes_are_taken_away_before_the_drain_and_given_after_the_open() -> None:
    world = new_world()
    roles = MemoryRoles(world.regional)
    fence = RoleFence(roles=roles, role=ROLE, regional=world.regional, clock=world.clock)
    region = attrs.evolve(world.agent.region, access=fence)
    world.agent.region = world.upkeep.region = region
    await authority(world, "a")

    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        opened = roles.changes[-1]
        drained = await world.answered(await world.order(CommandStep.DRAIN))
        closed = roles.changes[-1]
        await world.answered(await world.order(CommandStep.UNDRAIN))

    assert drained.outcome is AnswerOutcome.DONE
    assert opened == (Access.READ_WRITE, True)
    assert closed == (Access.READ, True)
    assert roles.changes[-1] == (Access.READ_WRITE, True)


async def test_a_drain_waits_while_writes_cannot_be_taken_away() -> None:
    """An answer would say that nobody writes there any more."""
    world = new_world()
    roles = MemoryRoles(world.regional)
    fence = RoleFence(roles=roles, role=ROLE, regional=world.regional, clock=world.clock)
    world.agent.region = attrs.evolve(world.agent.region, access=fence)
    await authority(world, "a")

    async with leading(world):
        await world.answered(await world.order(CommandStep.OPEN))
        roles.is_down = True
        token = await world.order(CommandStep.DRAIN)
        for _ in range(20):
            await world.clock.advance_ms(100)
        answer = await world.answer()
        assert answer is not None
        assert answer.token < token
        assert await world.has_permit()

        roles.is_down = False
        await world.answered(token)

    assert roles.granted[ORDERS] is Access.READ


@pytest.mark.parametrize("mode", FenceMode)
async def test_what_was_given_late_is_taken_back(mode: FenceMode) -> None:
    """A deposed replicator woke in the middle of giving; or the first look after a crash."""
    clock = ManualClock()
    regional = MemoryStore(clock=clock)
    roles = MemoryRoles(regional)
    wrong = Access.READ if mode is FenceMode.OPEN else Access.READ_WRITE
    roles.granted[ORDERS] = wrong
    await regional.commit(Txn(operations=(Put(RegionalKeys.fence(G), fence_of(mode)),)))
    fence = RoleFence(roles=roles, role=ROLE, regional=regional, clock=clock)
    scopes = {G: ("/orders/",)}

    await fence.keep(scopes)
    assert roles.granted[ORDERS] is not wrong

    roles.granted[ORDERS] = wrong
    await fence.keep(scopes)
    assert roles.granted[ORDERS] is wrong, "it looks once a second"
    await clock.advance_ms(KEEP_INTERVAL_MS)
    await fence.keep(scopes)
    assert roles.granted[ORDERS] is not wrong


async def test_nothing_is_given_while_a_fence_is_being_closed() -> None:
    clock = ManualClock()
    regional = MemoryStore(clock=clock)
    roles = MemoryRoles(regional)
    fence = RoleFence(roles=roles, role=ROLE, regional=regional, clock=clock)
    await regional.commit(Txn(operations=(Put(RegionalKeys.fence(G), fence_of(FenceMode.OPEN)),)))
    await fence.keep({G: ("/orders/",)})
    await clock.advance_ms(KEEP_INTERVAL_MS)

    async with fence.closing(("/orders/",)):
        keeping = asyncio.ensure_future(fence.keep({G: ("/orders/",)}))
        await settle(20)
        assert roles.granted[ORDERS] is Access.READ
        drained = Txn(operations=(Put(RegionalKeys.fence(G), fence_of(FenceMode.DRAINED)),))
        await regional.commit(drained)
    await keeping

    assert roles.granted[ORDERS] is Access.READ


async def etcdctl(etcd: EtcdProcess, *words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        str(etcd.binary.etcdctl),
        f"--endpoints={etcd.endpoint}",
        *words,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"ETCDCTL_API": "3"},
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.etcd
async def test_etcd_itself_refuses_a_client_that_looks_at_no_permit(
    etcd_binary: EtcdBinary, start_etcd: Callable[..., EtcdProcess]
) -> None:
    """Writes already on their way are refused too: none lands past the closing of the fence."""
    etcd = start_etcd(etcd_binary, flags=attrs.evolve(FAST_FLAGS, extra=("--bcrypt-cost", "4")))
    for words in (
        ("user", "add", "root:pw"),
        ("user", "grant-role", "root", "root"),
        ("role", "add", ROLE),
        ("role", "grant-permission", ROLE, "--prefix=true", "read", "/other/"),
        ("user", "add", "shop:secret"),
        ("user", "grant-role", "shop", ROLE),
        ("auth", "enable"),
    ):
        await etcdctl(etcd, *words)
    root = EtcdStore.connect([etcd.endpoint], username="root", password="pw")
    shop = EtcdStore.connect([etcd.endpoint], username="shop", password="secret")
    fence = RoleFence(roles=EtcdRoles(store=root), role=ROLE, regional=root, clock=SystemClock())
    write: Any = Txn(operations=(Put(b"/orders/1", b"x"),))
    try:
        async with fence.opening(("/orders/",)):
            with pytest.raises(NotAllowed):
                await shop.commit(write)
        await shop.commit(write)

        under_way = [asyncio.ensure_future(shop.commit(write)) for _ in range(50)]
        async with fence.closing(("/orders/",)):
            cut = await root.commit(Txn(operations=(Put(RegionalKeys.fence(G), b"cut"),)))
        ended = await asyncio.gather(*under_way, return_exceptions=True)

        landed = await root.get(b"/orders/1")
        assert landed is not None
        assert landed.mod_revision < cut.revision
        errors = [e for e in ended if isinstance(e, BaseException)]
        assert {type(e) for e in errors} <= {NotAllowed, OutcomeUnknown}
        assert all(e.revision < cut.revision for e in ended if isinstance(e, Committed))
        assert await shop.get(b"/orders/1") is not None, "it may still read"
        permissions = await EtcdRoles(store=root).permissions(ROLE)
        assert permissions[prefix_range(b"/other/")] is Access.READ
    finally:
        await shop.close()
        await root.close()
