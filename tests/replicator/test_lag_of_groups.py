"""Lag counts what groups out of step lack: it is never a wrong zero, and of each group its own.

The main stream goes on past a group that is paused, frozen, parked or copied, so its
acknowledgements alone would say that nothing is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import attrs
import pytest

from fencing.decision import Act
from fencing.freeze import Copy, freeze, stands_on, thaw
from meshkit.clock import settle
from meshkit.codec import decode
from meshkit.commands import CommandStep
from meshkit.keys import RegionalKeys as Keys
from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation
from meshkit.regional import Checkpoint
from meshkit.status import StreamState, StreamStatus
from meshkit.store.txn import Committed
from replicator.limits import Limits
from replicator.link.port import TargetEnd
from replicator.messages import Ack, Hello, ToSource
from tests.replicator.mesh import ALWAYS, A, B, G, H, Mesh

LIMITS = Limits(held_ms_min=1_000, held_ms_max=4_000)


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    made = Mesh(A, B, limits=LIMITS)
    await made.start()
    await made.found(G, A)
    await made.found(H, A)
    await made.write(A, {"/orders/1": "1", "/users/1": "1"})
    await made.converge()
    yield made
    await made.close()


def status(mesh: Mesh) -> StreamStatus:
    return mesh[A].outbound.statuses()[0]


async def until_proven(mesh: Mesh) -> None:
    """Until nothing is missing, and that is known of every group."""
    await mesh.until(lambda: mesh[A].outbound.lag(B).state is StreamState.STREAMING)
    await mesh.until(lambda: mesh[A].outbound.lag(B).lag_ms == 0)


async def park(mesh: Mesh) -> int:
    """Write what B's etcd refuses, and return when that was."""
    mesh[B].store.server.request_bytes_max = 3_000
    at_ms = mesh.clock.now_ms()
    await mesh.write(A, {"/orders/huge": "x" * 5_000})
    await mesh.until(lambda: mesh[B].is_out_of_step(G))
    return at_ms


async def test_a_group_with_a_refused_write_lags_since_that_write(mesh: Mesh) -> None:
    """However often it is copied in vain; the other group is not held up."""
    at_ms = await park(mesh)

    for n in range(60):
        await mesh.write(A, {"/users/2": str(n)})
        await mesh.clock.advance_ms(200)
        shown = status(mesh)
        true_ms = mesh.clock.now_ms() - at_ms
        assert shown.lag.lag_ms is not None
        assert abs(shown.lag.lag_ms - true_ms) <= max(60, true_ms // 20), n
        assert shown.lag_of(G) == attrs.evolve(
            shown.lag, records=shown.lag_of(G).records, bytes=shown.lag_of(G).bytes
        )
        other = shown.lag_of(H)
        assert other.state is StreamState.STREAMING
        assert (other.lag_ms or 0) <= 100
    assert shown.groups_out_of_step == (G,)
    assert shown.behind[0].why == "parked"
    assert "/orders/huge" in shown.behind[0].text
    assert shown.lag.state is StreamState.STALLED
    assert shown.lag_of(G).records == 1


async def test_when_the_refused_write_is_gone_the_lag_falls_to_a_proven_zero(mesh: Mesh) -> None:
    """Not before the copy has met the main stream."""
    await park(mesh)
    await mesh.clock.advance_ms(2_000)

    await mesh.write(A, {"/orders/huge": "small"})
    await mesh.until(lambda: mesh.is_converged(G))
    await until_proven(mesh)

    assert status(mesh).groups_out_of_step == ()
    assert status(mesh).lag.records == 0


async def test_a_reconnect_to_a_target_with_a_parked_group_never_says_zero(mesh: Mesh) -> None:
    """The target tells where the group is before it acknowledges anything."""
    at_ms = await park(mesh)
    await mesh.clock.advance_ms(3_000)

    mesh.network.break_all()
    for _ in range(300):
        await mesh.clock.advance_ms(10)
        lag = mesh[A].outbound.lag(B)
        assert lag.lag_ms is None or lag.lag_ms >= 2_900, lag
        assert mesh[A].outbound.lag(B, G).lag_ms in {None, lag.lag_ms}
    assert lag.lag_ms is not None
    assert abs(lag.lag_ms - (mesh.clock.now_ms() - at_ms)) <= 300


async def test_a_new_leader_of_the_source_never_says_zero_of_a_parked_group(mesh: Mesh) -> None:
    """It has counted nothing itself; what it does not know it calls unknown."""
    await park(mesh)
    await mesh.write(A, {"/users/3": "later"})
    await mesh.clock.advance_ms(6_000)
    await mesh.stop(A)
    mesh[A].outbound = mesh.outbound_over(A, mesh[A].store)

    await mesh.start(A)
    await mesh.until(lambda: mesh[A].outbound.lag(B, H).lag_ms == 0)
    for _ in range(100):
        await mesh.clock.advance_ms(10)
        shown = status(mesh)
        assert shown.lag.lag_ms is None or shown.lag.error_bound_ms is None
        assert shown.lag.lag_ms != 0
        assert shown.lag_of(G).records is None
        assert shown.lag_of(H).state is StreamState.STREAMING


async def freeze_at_b(mesh: Mesh) -> None:
    """Fix the copy where it stands, as an emergency does before it states the loss."""
    command = attrs.evolve(mesh.made(CommandStep.FREEZE, B, G, 1), target=B)
    view, main = await mesh.view(B, G), await mesh[B].store.get(Keys.checkpoint(A))
    assert main is not None
    copy = Copy(source=A, main=decode(Checkpoint, main.value), main_revision=main.mod_revision)
    on = stands_on(view, command, [copy], me=B, incarnation=Incarnation("b-1"))
    assert isinstance(on, Lineage), on
    act = freeze(view, command, mesh.token(), ALWAYS, on=on, copy=copy)
    assert isinstance(await mesh[B].store.commit(act.txn), Committed)


async def thaw_at_b(mesh: Mesh) -> None:
    command = mesh.made(CommandStep.THAW, B, G, 1)
    act = thaw(await mesh.view(B, G), command, mesh.token(), ALWAYS)
    assert isinstance(act, Act)
    assert isinstance(await mesh[B].store.commit(act.txn), Committed)


async def test_a_frozen_group_lags_until_it_is_thawed_and_has_followed(mesh: Mesh) -> None:
    """An emergency that was called off leaves nothing that looks well and is not."""
    await mesh.clock.advance_ms(6_000)
    await freeze_at_b(mesh)
    at_ms = mesh.clock.now_ms()
    await mesh.write(A, {"/orders/2": "2", "/users/2": "2"})
    await mesh.write(A, {"/orders/3": "3"})
    await mesh.clock.advance_ms(3_000)

    shown = status(mesh)
    assert (shown.behind[0].why, shown.lag.state) == ("held", StreamState.PAUSED)
    assert shown.lag.lag_ms is not None
    assert abs(shown.lag.lag_ms - (mesh.clock.now_ms() - at_ms)) <= 60
    assert (shown.lag.records, shown.lag_of(G).records) == (2, 2)
    assert (shown.lag_of(H).state, shown.lag_of(H).lag_ms) == (StreamState.STREAMING, 0)

    await thaw_at_b(mesh)
    await mesh.until(lambda: mesh.is_converged(G))
    await until_proven(mesh)
    assert status(mesh).lag.records == 0


class OldTarget:
    """The end of a target that does not know how to tell what is out of step."""

    def __init__(self, end: TargetEnd) -> None:
        self._end = end

    async def send(self, message: ToSource) -> None:
        if isinstance(message, Hello):
            message = attrs.evolve(message, tells_out_of_step=False)
        if isinstance(message, Ack):
            message = attrs.evolve(message, out_of_step=None)
        await self._end.send(message)

    def __getattr__(self, name: str) -> object:
        return getattr(self._end, name)


async def test_an_old_target_leaves_the_lag_unknown_and_follows_as_ever(mesh: Mesh) -> None:
    """Nobody can say that nothing stands still there."""
    dialer = mesh.network.dialer(B)
    inner = dialer.dial

    async def dial(source: ClusterName, endpoint: str) -> OldTarget:
        return OldTarget(await inner(source, endpoint))

    dialer.dial = dial  # type: ignore[method-assign,assignment]
    inbound = mesh[B].inbound
    assert inbound is not None
    inbound._streams[A]._dialer = dialer
    await park(mesh)
    mesh.network.break_all()
    await mesh.clock.advance_ms(3_000)

    shown = status(mesh)

    assert (shown.lag.state, shown.lag.lag_ms, shown.lag.records) == (
        StreamState.UNKNOWN,
        None,
        None,
    )
    assert shown.lag_of(H).lag_ms is not None
    assert shown.lag_of(H).lag_ms <= 100
    await mesh.write(A, {"/users/4": "4"})
    await mesh.until(lambda: mesh.is_converged(H))


async def test_catching_up_in_one_group_does_not_wait_for_a_parked_one(mesh: Mesh) -> None:
    """A group that stands still must not hold up the failover of another."""
    await park(mesh)
    outbound = mesh[A].outbound
    other = asyncio.ensure_future(outbound.wait_caught_up(B, lag_ms_max=200, group=H))
    same = asyncio.ensure_future(outbound.wait_caught_up(B, lag_ms_max=200, group=G))
    every = asyncio.ensure_future(outbound.wait_caught_up(B, lag_ms_max=200))

    await mesh.until(other.done, within_ms=1_000)
    await mesh.clock.advance_ms(5_000)
    await settle()

    assert (await other).state is StreamState.STREAMING
    assert not same.done()
    assert not every.done()
    for waiting in (same, every):
        waiting.cancel()


async def test_an_emergency_is_not_told_that_a_group_contains_what_its_stream_brought(
    mesh: Mesh,
) -> None:
    """The window of what may be lost begins where the group stands, not where the stream does."""
    inbound = mesh[B].inbound
    assert inbound is not None

    async def contained(group: GroupName) -> int | None:
        taking = asyncio.ensure_future(
            inbound.wait_taken_in(A, group, Epoch(1), seal=NO_TOKEN, quiet_ms=0)
        )
        await mesh.until(taking.done)
        return (await taking).contained_at_ms

    await mesh.clock.advance_ms(1_000)
    before = await contained(G)
    await park(mesh)
    await mesh.clock.advance_ms(1_000)

    assert before is not None
    assert await contained(G) is None
    assert await contained(H) is not None
