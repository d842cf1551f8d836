"""Who writes into the mesh, and records what they were told."""

from __future__ import annotations

import itertools

import attrs

from chaos.history import Outcome, Write
from chaos.sim.plan import TIMING
from chaos.sim.witness import WRITTEN_AGAIN
from chaos.sim.world import GROUP, PREFIX, Process, World
from fencing.write_gate import WriteGate
from meshkit.codec import decode
from meshkit.errors import MeshError, OutcomeUnknown, Refused
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch, Revision
from meshkit.regional import Permit
from meshkit.store.txn import Committed, Put, Txn, ValueIs

WRITE_PATIENCE_MS = 500


def add_writers(world: World) -> None:
    """Add writers, each at a site of its own."""
    sites = world.sites
    for number in range(world.plan.writers):
        world.add(f"writer-{number}", sites[number % len(sites)], _write_guarded)
    for number in range(world.plan.compare_writers):
        world.add(f"compare-{number}", sites[-1 - number], _write_compared)


# --- writers ------------------------------------------------------------------------------------


@attrs.define(kw_only=True, eq=False)
class _Attempt:
    """One write under way: two keys in one transaction, so that a torn one would show."""

    process: Process
    number: int
    call_ns: int = 0
    is_over: bool = False

    def __attrs_post_init__(self) -> None:
        self.call_ns = self.process.world.loop.now_ns
        self.process.world.under_way[self.key] = self

    @property
    def key(self) -> bytes:
        return f"{PREFIX}{self.process.domain.name}/{self.number:05d}".encode()

    @property
    def value(self) -> bytes:
        return f"{self.process.domain.name}-{self.number}".encode()

    def puts(self) -> tuple[Put, Put]:
        """Return both halves; the second key is shared by all writes of this process."""
        shared = f"{PREFIX}{self.process.domain.name}".encode() + WRITTEN_AGAIN
        return Put(self.key, self.value), Put(shared, self.value)

    def end(
        self,
        outcome: Outcome,
        *,
        cluster: ClusterName | None = None,
        epoch: Epoch | None = None,
        revision: Revision | None = None,
    ) -> None:
        """Record what became of it, once."""
        world = self.process.world
        if world.under_way.pop(self.key, None) is None:
            return
        world.history.record(
            Write(
                writer=self.process.domain.name,
                key=self.key,
                value=self.value,
                call_ns=self.call_ns,
                return_ns=world.loop.now_ns,
                outcome=outcome,
                cluster=cluster,
                epoch=epoch,
                revision=revision,
            )
        )
        world.trace.count_in(self.key + outcome.value.encode())


async def _write_guarded(process: Process) -> None:
    """Write through the SDK."""
    world = process.world
    gate = WriteGate(
        GROUP,
        routing=(process.store(world.coordination),),
        members={name: process.store(etcd) for name, etcd in world.etcds.items()},
        regional_ttl_ms=TIMING.regional_ttl_ms,
        clock=process.clock,
    )
    async with gate:
        for number in itertools.count():
            attempt = _Attempt(process=process, number=number)
            try:
                written = await gate.write(attempt.puts(), deadline_ms=WRITE_PATIENCE_MS)
            except OutcomeUnknown:
                attempt.end(Outcome.INFO)
            except Refused:
                attempt.end(Outcome.FAIL)
            else:
                attempt.end(
                    Outcome.OK,
                    cluster=written.cluster,
                    epoch=written.epoch,
                    revision=written.revision,
                )
            await process.clock.sleep_ms(world.plan.write_interval_ms)


async def _write_compared(process: Process) -> None:
    """Write as any etcd client that adds the one compare, and knows nothing of beats."""
    world = process.world
    stores = {name: process.store(etcd) for name, etcd in world.etcds.items()}
    for number in itertools.count():
        await process.clock.sleep_ms(world.plan.write_interval_ms)
        for cluster, store in stores.items():
            try:
                item = await store.get(RegionalKeys.permit(GROUP))
            except MeshError:
                continue
            if item is None:
                continue
            permit = decode(Permit, item.value)
            attempt = _Attempt(process=process, number=number)
            guard = ValueIs(RegionalKeys.permit(GROUP), item.value)
            try:
                outcome = await store.commit(Txn(guards=(guard,), operations=attempt.puts()))
            except OutcomeUnknown:
                attempt.end(Outcome.INFO)
            except Refused:
                attempt.end(Outcome.FAIL)
            else:
                if isinstance(outcome, Committed):
                    attempt.end(
                        Outcome.OK, cluster=cluster, epoch=permit.epoch, revision=outcome.revision
                    )
                else:
                    attempt.end(Outcome.FAIL)
            break
