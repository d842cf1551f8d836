"""Writers on both sides of a cut, each of which sees what it would see there.

Those of the region see its own etcd and nothing else, as applications there would; those outside
reach it through the same network as everybody. All keep their history on one machine's monotonic
clock, so that the sides can be held against each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from chaos.cut_off.trial import DEADLINE_S, GROUP, INSIDE, INTERVAL_S, How, Trial
from chaos.cycles.losses import BARE
from chaos.links import Network
from chaos.planned import Load, stop
from chaos.traffic import CompareWriter, GuardedWriter
from cli.sandbox.plan import OUTSIDE
from cli.sandbox.sandbox import Sandbox
from fencing.write_gate import WriteGate
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch
from meshkit.store.etcd import EtcdStore
from meshkit.store.port import Store


@contextlib.asynccontextmanager
async def tried(
    sandbox: Sandbox, network: Network, how: How, say: Callable[[str], None]
) -> AsyncIterator[Trial]:
    """Put both sides under load, with whichever region is active as the one to be cut off."""
    clusters = [ClusterName(name) for name in sandbox.spec.clusters]
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(sandbox.api())
        load = Load(
            sandbox=sandbox,
            api=api,
            group=GroupName(GROUP),
            prefix=f"/{GROUP}/{how.name.lower()}-{time.time_ns():x}/",
            stores=await _closed_later(stack, {c: sandbox.store(c) for c in clusters}),
            gates=[],
        )
        await load.ready(timeout_s=DEADLINE_S)
        view = await api.get(f"/v1/groups/{GROUP}")
        source = ClusterName(view["active"])
        seen = await _closed_later(stack, {c: network.store(c) for c in clusters})
        own = await _closed_later(stack, {source: sandbox.store(source)})
        writers = [
            *(await _writers(stack, load, OUTSIDE, seen)),
            *(await _writers(stack, load, INSIDE, own)),
        ]
        load.writers = [asyncio.create_task(writer.run()) for writer in writers]
        stack.push_async_callback(stop, load.writers)
        yield Trial(
            how=how,
            load=load,
            network=network,
            source=source,
            target=clusters[(clusters.index(source) + 1) % len(clusters)],
            epoch=Epoch(view["epoch"]),
            say=say,
        )


async def _closed_later(
    stack: contextlib.AsyncExitStack, stores: dict[ClusterName, EtcdStore]
) -> dict[ClusterName, EtcdStore]:
    for store in stores.values():
        stack.push_async_callback(store.close)
    return stores


async def _writers(
    stack: contextlib.AsyncExitStack, load: Load, side: str, stores: Mapping[ClusterName, Store]
) -> Iterable[GuardedWriter | CompareWriter]:
    """Return two writers with the SDK and one with the compare alone, which see those stores."""
    made: list[GuardedWriter | CompareWriter] = [
        CompareWriter(
            name=f"{BARE}{side}-0",
            group=load.group,
            stores=stores,
            prefix=load.prefix,
            history=load.history,
        )
    ]
    for number in range(2):
        gate = WriteGate(load.group, routing=tuple(stores.values()), members=stores)
        await stack.enter_async_context(gate)
        made.append(
            GuardedWriter(
                name=f"sdk-{side}-{number}",
                gate=gate,
                prefix=load.prefix,
                history=load.history,
                interval_s=INTERVAL_S,
            )
        )
    return made
