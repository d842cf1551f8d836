"""A SIGKILL at step boundaries of an emergency and of the rejoin after it, of whoever stands there.

The active region is dead meanwhile (replicators and etcd, killed under load). Each time the
emergency succeeds without an operator, the region rejoins once it is back, and promises 1 and 3
hold for what clients were told.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from chaos.checkers import (
    State,
    check_epochs_rise,
    check_identical,
    check_inside_segments,
    check_no_ghosts,
    check_one_writer,
    check_traffic,
)
from chaos.cycles.answers import Inquiry
from chaos.cycles.losses import (
    Account,
    check_answers,
    check_kept_or_lost,
    check_statement,
    is_guarded,
)
from chaos.emergency import kill_region
from chaos.history import History
from chaos.planned import Load, loaded
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch
from meshkit.store.txn import prefix_range
from tests.e2e.conftest import Rig
from tests.e2e.test_kills import DEADLINE_S, boundaries, next_target, ready, struck

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

EMERGENCY_POINTS = [
    "coordinator.after-save.fence",
    "coordinator.after-save.freeze",
    # Consent and pivot are stored with the statement of the loss.
    "coordinator.before-save.state_loss",
    "coordinator.after-save.state_loss",
    "agent.freeze.acted",
    "agent.open.received",
    "agent.open.acted",
]
REJOIN_POINTS = [
    "agent.fence.acted",
    "agent.find_divergence.acted",
    "agent.quarantine.acted",
    "agent.reconcile.acted",
]
SMOKE = {"coordinator.after-save.state_loss", "agent.quarantine.acted"}


@attrs.define(kw_only=True)
class Loss:
    """A region that is lost, and what came of it."""

    load: Load
    source: ClusterName
    target: ClusterName
    epoch: Epoch
    failover: dict[str, Any] = attrs.field(factory=dict)
    promoted: State = attrs.field(factory=dict)

    async def begin(self) -> str:
        """Ask for the emergency until the API takes it."""
        asked = {"kind": "emergency", "reason": "it was killed", "accept_loss": {"unknown": True}}
        return str((await self.load.begin(self.target, **asked))["id"])

    async def ended(self, failover: str) -> None:
        self.failover = await self.load.settled(failover)
        prefix = prefix_range(self.load.prefix.encode())
        found = await self.load.stores[self.target].range(prefix)
        self.promoted = {item.key: item.value for item in found.items}
        assert self.failover["phase"] == "succeeded", self.failover

    async def served(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while sum(w.cluster == self.target for w in self.load.history.acknowledged()) < 20:
                await asyncio.sleep(0.02)

    async def rejoined(self) -> Mapping[str, Any]:
        """Wait until the region has rejoined and all follow; return how."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            listed = await self.load.api.get("/v1/rejoins", group=self.load.group)
            mine = [r for r in listed["rejoins"] if r["cluster"] == self.source]
            new = [r for r in mine if r["epoch"] > self.epoch]
            if new and new[0]["phase"] == "succeeded":
                await ready(self.load)
                return dict(new[0])
            assert time.monotonic() < deadline, f"it does not rejoin: {new}"
            await asyncio.sleep(0.05)

    async def judged(self, rejoin: Mapping[str, Any]) -> list[object]:
        """Return what is not as it has to be."""
        load = self.load
        await load.stop_writers()
        account = Account(
            source=self.source,
            epoch=self.epoch,
            certain=self.failover["emergency"]["loss"]["target"]["certain"],
            writes=tuple(load.history.writes),
            is_unheard=lambda _key: False,
        )
        inquiry = Inquiry(
            load=load,
            cluster=self.source,
            epoch=self.epoch,
            rejoin=dict(rejoin),
            audit=(),
            is_whole=False,
        )
        states, spans = await load.states(), await load.spans()
        verdicts = [
            check_traffic(load.history, acknowledged_min=80),
            check_answers(account, await inquiry.answers()),
            check_statement(account, self.failover["emergency"]["loss"], self.promoted),
            check_kept_or_lost(account, states, made_again=frozenset()),
            check_no_ghosts(load.history, states),
            check_identical(states),
            check_one_writer(History(writes=[w for w in load.history.writes if is_guarded(w)])),
            check_inside_segments(load.history, spans),
            check_epochs_rise(spans),
        ]
        return [verdict for verdict in verdicts if not verdict.is_valid]


async def lost(rig: Rig, load: Load) -> Loss:
    """Kill the active region under load."""
    await ready(load)
    async with asyncio.timeout(DEADLINE_S):
        while len(load.history.acknowledged()) < 60:
            await asyncio.sleep(0.02)
    view = await load.api.get(f"/v1/groups/{load.group}")
    loss = Loss(
        load=load,
        source=ClusterName(view["active"]),
        target=ClusterName(await next_target(load)),
        epoch=Epoch(view["epoch"]),
    )
    await asyncio.to_thread(kill_region, rig.sandbox, loss.source)
    return loss


async def won_back(rig: Rig, loss: Loss) -> None:
    """Start the region on what is on its disks, and whoever else is dead."""
    await asyncio.to_thread(rig.sandbox.etcd(loss.source).start)
    await asyncio.to_thread(rig.sandbox.etcd(loss.source).wait_ready)
    rig.revive()


def own_prefix(point: str) -> str:
    return f"/orders/{point}-{time.time_ns():x}/"


@pytest.mark.parametrize("point", boundaries(EMERGENCY_POINTS, smoke=SMOKE))
async def test_one_process_killed_in_an_emergency(rig: Rig, point: str) -> None:
    """The leading coordinator, or the target's leading replicator: its successor finishes."""
    prefix = own_prefix(point)
    async with loaded(rig.sandbox, prefix=prefix, guarded=2, bare=1) as load:
        loss = await lost(rig, load)
        rig.arm(point)
        failover = await loss.begin()
        await struck(rig, point)

        await loss.ended(failover)

        await loss.served()
        await won_back(rig, loss)
        assert await loss.judged(await loss.rejoined()) == []


@pytest.mark.parametrize("point", boundaries(REJOIN_POINTS, smoke=SMOKE))
async def test_the_replicator_killed_while_its_region_rejoins(rig: Rig, point: str) -> None:
    """Its successor takes the step again, and sets nothing aside twice."""
    prefix = own_prefix(point)
    async with loaded(rig.sandbox, prefix=prefix, guarded=2, bare=1) as load:
        loss = await lost(rig, load)
        await loss.ended(await loss.begin())
        await loss.served()
        await won_back(rig, loss)
        rig.arm(point)
        await struck(rig, point)

        rejoin = await loss.rejoined()

        rig.revive()
        assert await loss.judged(rejoin) == []
