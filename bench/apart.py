"""Two regions on real etcds in this process, for benchmarks that must know more than a mesh tells.

Each side has a clock of its own, which may be set wrong; the link between them delivers when it is
told to.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import attrs

from cli.sandbox.etcd import EtcdProcess
from fencing import fence as fences
from fencing.fence_view import view_of, view_reads
from meshkit.clock import SystemClock
from meshkit.commands import Command, CommandStep
from meshkit.etcd_binary import find_etcd
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.ordinals import Epoch, Incarnation, Revision, Token
from meshkit.store.etcd import EtcdStore
from meshkit.store.txn import Committed, KeyValue, Txn, absent
from replicator.inbound import Inbound
from replicator.link.lossy import MemoryDialer, MemoryNetwork
from replicator.link.port import LinkLost, TargetEnd
from replicator.messages import Frame, Head, SideFrame, ToSource, ToTarget
from replicator.outbound import Outbound
from replicator.verify_messages import ToVerifier, VerifyRequest

SOURCE, TARGET = ClusterName("a"), ClusterName("b")
GROUP, PREFIX = GroupName("orders"), "/orders/"
ENDPOINT = "a:1"
TICK_S = 0.002
SPEAK_EVERY_S = 1.0
LEASE_S = 3_600
_ALWAYS = absent(b"/never/there")


class WrongClock(SystemClock):
    """A clock that runs as it should and was set wrong."""

    def __init__(self, ahead_ms: int) -> None:
        super().__init__()
        self._ahead_ms = ahead_ms

    def now_ms(self) -> int:
        """Return monotonic milliseconds, counted from elsewhere."""
        return super().now_ms() + self._ahead_ms

    def wall_ms(self) -> int:
        """Return UTC milliseconds as this side believes them to be."""
        return super().wall_ms() + self._ahead_ms


@attrs.define
class Delay:
    """How long records are under way; None: they do not arrive."""

    ms: float | None = 0


class SlowEnd:
    """The target's end of a connection whose records arrive late, in order.

    It is not silent meanwhile: a link that only is slow is no reason to dial anew.
    """

    def __init__(self, inner: TargetEnd, delay: Delay) -> None:
        self._inner = inner
        self._delay = delay
        self._records: deque[tuple[float, ToTarget]] = deque()
        self._others: deque[ToTarget] = deque()
        self._lost: Exception | None = None
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        spoke_at = 0.0
        try:
            while True:
                message = await self._inner.receive()
                if isinstance(message, Frame | SideFrame):
                    self._records.append((loop.time(), message))
                    if loop.time() - spoke_at >= SPEAK_EVERY_S:
                        spoke_at = loop.time()
                        self._others.append(Head(revision=Revision(0), at_ms=0))
                else:
                    self._others.append(message)
        except LinkLost as error:
            self._lost = error

    async def send(self, message: ToSource) -> None:
        """Hand a message over at once."""
        await self._inner.send(message)

    async def receive(self) -> ToTarget:
        """Return the next message that has arrived."""
        loop = asyncio.get_running_loop()
        while True:
            if self._others:
                return self._others.popleft()
            delay_ms = self._delay.ms
            is_due = (
                delay_ms is not None
                and self._records
                and loop.time() >= self._records[0][0] + delay_ms / 1000
            )
            if is_due:
                return self._records.popleft()[1]
            if self._lost is not None:
                raise self._lost
            await asyncio.sleep(TICK_S)

    async def close(self) -> None:
        """End the connection."""
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading
        await self._inner.close()


@attrs.frozen
class SlowDialer:
    """Dials, and makes each connection slow."""

    inner: MemoryDialer
    delay: Delay

    async def dial(self, source: ClusterName, endpoint: str) -> TargetEnd:
        """Return a slow connection."""
        return SlowEnd(await self.inner.dial(source, endpoint), self.delay)

    def ask(
        self, source: ClusterName, endpoint: str, request: VerifyRequest
    ) -> AsyncGenerator[ToVerifier, None]:
        """Yield the answer to one request to compare."""
        return self.inner.ask(source, endpoint, request)


@attrs.frozen(kw_only=True)
class Apart:
    """Both regions while they run."""

    source: EtcdStore
    target: EtcdStore
    outbound: Outbound
    delay: Delay


@asynccontextmanager
async def two_regions(
    *, source_ahead_ms: int = 0, target_ahead_ms: int = 0
) -> AsyncIterator[Apart]:
    """Run two regions with one group, active at the source and in step at the target."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mesh-bench-")))
        stores = [await _store(stack, directory / name) for name in (SOURCE, TARGET)]
        outbound = Outbound(
            store=stores[0],
            clock=WrongClock(source_ahead_ms),
            cluster=SOURCE,
            incarnation=Incarnation("bench"),
        )
        network, delay = MemoryNetwork(), Delay()
        network.listen(ENDPOINT, outbound.serve)
        inbound = Inbound(
            store=stores[1],
            clock=WrongClock(target_ahead_ms),
            cluster=TARGET,
            dialer=SlowDialer(network.dialer(TARGET), delay),
        )
        inbound.set_sources({SOURCE: (ENDPOINT,)})
        outbound.set_targets([TARGET])
        await _found(stores[0], stores[1])
        running = [asyncio.ensure_future(each) for each in (outbound.run(), inbound.run())]
        try:
            await asyncio.wait_for(inbound.wait_follow(GROUP, 1), timeout=30)
            yield Apart(source=stores[0], target=stores[1], outbound=outbound, delay=delay)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await network.close()


async def _store(stack: AsyncExitStack, directory: Path) -> EtcdStore:
    process = EtcdProcess(binary=find_etcd(), directory=directory)
    await asyncio.to_thread(process.start)
    stack.callback(process.stop)
    store = EtcdStore.connect([process.endpoint])
    stack.push_async_callback(store.close)
    return store


async def _found(source: EtcdStore, target: EtcdStore) -> None:
    """Open the group's first epoch at the source, and make the target a member."""
    lease = await source.grant(ttl_s=LEASE_S)
    view = view_of(GROUP, await _read(source))
    command = Command(
        group=GROUP,
        cluster=SOURCE,
        step=CommandStep.OPEN,
        incarnation=1,
        epoch=Epoch(1),
        failover=FailoverId("f-bench"),
    )
    decision = fences.decide(
        view,
        command,
        Token(incarnation=1, revision=Revision(1)),
        leader=_ALWAYS,
        lease=lease.lease_id,
        prefixes=(PREFIX,),
    )
    assert isinstance(decision, fences.Act), "nothing stands in the way of a first epoch"
    await source.commit(decision.txn)
    joining = fences.join(
        view_of(GROUP, await _read(target)),
        source=SOURCE,
        epoch=Epoch(1),
        leader=_ALWAYS,
        reason="new member",
    )
    await target.commit(joining)


async def _read(store: EtcdStore) -> tuple[tuple[KeyValue, ...], ...]:
    outcome = await store.commit(Txn(operations=view_reads(GROUP)))
    assert isinstance(outcome, Committed), "a read without guards is not rejected"
    return outcome.reads
