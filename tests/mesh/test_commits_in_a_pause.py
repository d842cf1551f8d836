"""How many commits a planned failover's pause is made of: each costs a round trip and an fsync."""

import asyncio

from bench.pause import COMMITS_IN_A_ROW
from coordinator.failover.record import Phase
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.names import ClusterName
from meshkit.store.port import RevisionChanges, Store
from meshkit.store.txn import WHOLE_STORE
from tests.mesh.inmemory import MemoryMesh, running
from tests.mesh.test_whole_mesh import GROUP, move, until_in_step

A, B = ClusterName("a"), ClusterName("b")
FIRST_WRITE = 1


async def record(store: Store, seen: list[frozenset[bytes]], *, puts_only: bool) -> None:
    start = (await store.status()).revision + 1
    async with store.watch(WHOLE_STORE, start=start) as items:  # type: ignore[arg-type]
        async for item in items:
            if isinstance(item, RevisionChanges):
                changed = [c for c in item.changes if not (puts_only and c.is_delete)]
                seen.append(frozenset(change.key for change in changed))


async def test_seven_commits_follow_each_other_between_the_drain_and_the_first_write() -> None:
    """No step waits for a commit that is not needed: what the pause cannot be shorter than."""
    mesh = MemoryMesh()
    outside: list[frozenset[bytes]] = []
    inside: list[frozenset[bytes]] = []
    async with running(mesh):
        await mesh.apply(GROUP)
        await until_in_step(mesh)
        recording = [
            asyncio.create_task(record(mesh.coordination, outside, puts_only=True)),
            asyncio.create_task(record(mesh.stores[B], inside, puts_only=True)),
        ]
        await asyncio.sleep(0)
        assert await move(mesh, B, "r1") is Phase.SUCCEEDED
        for task in recording:
            task.cancel()

    commands, answers = CoordinationKeys.command(A, GROUP), CoordinationKeys.answer(A, GROUP)
    group_keys = {
        commands,
        answers,
        CoordinationKeys.command(B, GROUP),
        CoordinationKeys.answer(B, GROUP),
        CoordinationKeys.holder(GROUP),
    }
    steps = [keys & group_keys for keys in outside if keys & group_keys]
    begins = max(n for n, keys in enumerate(steps) if keys == {commands})  # Of the reverse.
    drained = max(n for n, keys in enumerate(steps[:begins]) if answers in keys)
    opened = max(n for n, keys in enumerate(steps) if CoordinationKeys.holder(GROUP) in keys)
    opens = [keys for keys in inside if RegionalKeys.permit(GROUP) in keys]

    in_a_row = (opened - drained + 1) + len(opens) + FIRST_WRITE
    assert steps[drained : opened + 1] == [
        {answers},
        {CoordinationKeys.command(B, GROUP)},
        {CoordinationKeys.answer(B, GROUP)},
        {CoordinationKeys.command(B, GROUP)},
        {CoordinationKeys.holder(GROUP)},
    ]
    assert in_a_row == COMMITS_IN_A_ROW
