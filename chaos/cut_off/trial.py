"""What happens to a region that is cut off: another is promoted, the links heal, it rejoins.

Both sides have writers of their own (`sides.py`). Nothing in here decides whether what came of it
was right: that is `run.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from chaos.checkers import Verdict, check_rate
from chaos.cycles.command import mesh
from chaos.cycles.losses import is_guarded
from chaos.history import Write
from chaos.links import COORDINATION, Network, Outage
from chaos.planned import Load
from cli.sandbox.plan import OUTSIDE
from cli.sandbox.sandbox import Sandbox
from meshkit.codec import decode
from meshkit.errors import MeshError
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch
from meshkit.regional import Fence
from meshkit.store.txn import prefix_range

Json = dict[str, Any]

GROUP = "orders"
DEADLINE_S = 60.0
POLL_S = 0.02
INTERVAL_S = 0.01
FIRST_WRITES = 100
"""Acknowledged on each side before anything is cut."""
LATER_WRITES = 100
"""Acknowledged by the promoted region before anything heals."""
CUT_WRITES = 3
"""Acknowledged by the gates of a region that has just been cut off, which have `Tr` for it."""
LATE_WRITES = 10
"""Accepted by the etcd of a half dead region after another has begun to serve."""
INSIDE_PER_S_MIN = 10.0
"""Of the region's writers, from the cut on until they stop."""
OUTSIDE_PER_S_MIN = 10.0
"""Of those outside, from the first write of the promoted region on until the link heals."""
INSIDE = "in"


class How(enum.Enum):
    """How a region is cut off."""

    ALIVE = "from everything; all of it lives"
    HALF_DEAD = "from everything; its replicators die and its etcd starts again and again"
    """So that each lease there lives its full time once more, and with it the old permit."""
    UNCOORDINATED = "from the coordination etcd alone"


@attrs.define(kw_only=True, eq=False)
class Trial:
    """One such region while it is tried."""

    how: How
    load: Load
    network: Network
    source: ClusterName
    target: ClusterName
    epoch: Epoch
    say: Callable[[str], None]
    began: float = attrs.field(factory=time.monotonic)
    cut_ns: int = 0
    served_ns: int = 0
    healed_ns: int = 0
    failover: Json = attrs.field(factory=dict)
    rejoin: Json | None = None

    @property
    def sandbox(self) -> Sandbox:
        """The processes."""
        return self.load.sandbox

    def over(self, part: str) -> None:
        """Tell that a part is over."""
        self.say(f"{time.monotonic() - self.began:6.1f} s  {part}")

    def acknowledged(self, by: ClusterName, **of: bool) -> list[Write]:
        """Return what a region acknowledged; `inside` and `guarded` choose by whom."""
        return [
            w
            for w in self.load.history.acknowledged()
            if w.cluster == by
            and of.get("inside", is_inside(w)) == is_inside(w)
            and of.get("guarded", is_guarded(w)) == is_guarded(w)
        ]

    async def have_traffic(self) -> None:
        """Wait until writers of both sides and of both kinds were heard."""

        async def is_flowing() -> bool:
            sides = [self.acknowledged(self.source, inside=side) for side in (True, False)]
            kinds = [self.acknowledged(self.source, inside=True, guarded=g) for g in (True, False)]
            return min(map(len, sides)) >= FIRST_WRITES and min(map(len, kinds)) >= LATE_WRITES

        await self.until(is_flowing, "both sides write")
        self.over(f"both sides write to {self.source} in epoch {self.epoch}")

    def cut(self) -> Outage:
        """Outage the region off."""
        blind = self.how is How.UNCOORDINATED
        coordination = self.network.link(self.source, COORDINATION)
        cut = self.network.cut([coordination] if blind else self.network.around(self.source))
        self.cut_ns = time.monotonic_ns()
        self.over(f"{self.source} is cut off {self.how.value}")
        return cut

    def judged(self, cut: Outage) -> Verdict:
        """Judge whether the cut took effect; only those links that have to be in use."""
        needed = [self.network.link(self.source, COORDINATION)]
        if self.how is not How.UNCOORDINATED:
            needed += [self.network.link(who, self.source) for who in (self.target, OUTSIDE)]
        return cut.verdict(needed=needed)

    async def written_on(self) -> None:
        """Wait until the region's own writers have been told yes after the cut."""

        async def is_written() -> bool:
            mine = self.acknowledged(self.source, inside=True, guarded=True)
            return sum(w.call_ns > self.cut_ns for w in mine) >= CUT_WRITES

        await self.until(is_written, f"{self.source} goes on")

    async def promote(self) -> dict[bytes, bytes]:
        """Promote the target as an operator does; return what it holds then."""
        command = ("clusters", "promote", self.target, "-g", GROUP, "--emergency", "--yes")
        why = ("--reason", "the region does not answer", "--accept-loss", "unknown")
        said = await mesh(self.sandbox, *command, *why)
        assert said.code == 0, str(said)
        self.failover = said.body
        self.over(f"{self.target} is promoted: {self.failover['emergency']['loss']['text']}")
        result = await self.load.stores[self.target].range(prefix_range(self.load.prefix.encode()))
        return {item.key: item.value for item in result.items}

    async def served(self) -> None:
        """Wait until the target accepts writes, and the half dead region has late ones too."""

        async def is_serving() -> bool:
            return len(self.acknowledged(self.target)) >= LATER_WRITES

        async def has_late_writes() -> bool:
            bare = self.acknowledged(self.source, guarded=False)
            return sum(w.call_ns > self.served_ns for w in bare) >= LATE_WRITES

        await self.until(is_serving, f"{self.target} serves")
        self.served_ns = min(w.return_ns for w in self.acknowledged(self.target, guarded=True))
        self.over(f"{self.target} serves")
        if self.how is How.HALF_DEAD:
            await self.until(has_late_writes, f"the etcd of {self.source} still accepts writes")
            self.over(f"the etcd of {self.source} accepts what compares the old permit")

    async def heal(self, cut: Outage) -> None:
        """Make every link whole again, and start what died."""
        self.healed_ns = time.monotonic_ns()
        cut.heal()
        for process in self.sandbox.replicators[self.source]:
            if not process.is_running:
                await asyncio.to_thread(process.start)
        self.over("every link is whole again")

    async def come_back(self) -> None:
        """Wait until the region has rejoined and all follow."""

        async def is_back() -> bool:
            new = await self.rejoins()
            return await self.has_followed() and all(r["phase"] == "succeeded" for r in new)

        await self.until(is_back, f"{self.source} is back")
        await self.load.ready(timeout_s=DEADLINE_S)
        self.rejoin = next(iter(await self.rejoins()), None)
        self.over(f"{self.source} is back: {self.rejoin and self.rejoin['diverged']}")

    async def rejoins(self) -> list[Json]:
        """Return how the region rejoined: once, unless it had nothing that others had not."""
        listed = await self.load.api.get("/v1/rejoins", group=GROUP)
        mine = [r for r in listed["rejoins"] if r["cluster"] == self.source]
        return [r for r in mine if r["epoch"] > self.epoch]

    async def has_followed(self) -> bool:
        """Return whether the region itself has come to the next epoch."""
        item = await self.load.stores[self.source].get(RegionalKeys.fence(self.load.group))
        return item is not None and decode(Fence, item.value).epoch > self.epoch

    async def until(self, is_true: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait until something is so.

        Raises:
            AssertionError: it never was.
        """
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(MeshError):
                if await is_true():
                    return
            assert time.monotonic() < deadline, f"never in {DEADLINE_S:g} s: {what}"
            await asyncio.sleep(POLL_S)

    def rates(self) -> list[Verdict]:
        """Judge whether there was traffic on both sides while the region was cut off."""
        inside = self.acknowledged(self.source, inside=True, guarded=True)
        inside = [w for w in inside if w.epoch == self.epoch]
        outside = self.acknowledged(self.target, inside=False)
        last_ns = max(w.return_ns for w in inside)
        return [
            check_rate(
                "the region",
                inside,
                from_ns=self.cut_ns,
                to_ns=last_ns,
                per_s_min=INSIDE_PER_S_MIN,
            ),
            check_rate(
                "those outside",
                outside,
                from_ns=self.served_ns,
                to_ns=self.healed_ns,
                per_s_min=OUTSIDE_PER_S_MIN,
            ),
        ]


def is_inside(write: Write) -> bool:
    """Return whether a write is of a writer that lives in the region."""
    return f"-{INSIDE}-" in write.writer
