"""One cycle: a region is lost under load, another is promoted; it returns and is failed back to.

Everything an operator does is done with the real command line. Nothing in here decides whether what
came of it was right: that is `losses.py` and `checkers.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import attrs

from chaos.checkers import Verdict
from chaos.cycles.command import Said, done, insist, mesh
from chaos.cycles.draw import Consent, Delay, Fate, Third, Variation
from chaos.cycles.region import Region, RegionWriter, writing_in
from chaos.history import Outcome
from chaos.planned import Load, loaded
from cli.sandbox.sandbox import Sandbox
from meshkit.errors import MeshError, OutcomeUnknown
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch
from meshkit.store.txn import Delete, prefix_range

Json = dict[str, Any]

GROUP = "orders"
DEADLINE_S = 120.0
POLL_S = 0.05
FIRST_WRITES = 60
"""Acknowledged before anything is done."""
EXCESS_WRITES = 40
"""What one standby has more than the other, at least."""
TAIL_WRITES = 30
"""What nobody else has, at least."""
LATER_WRITES = 40
"""Acknowledged by a cluster that was promoted, before anything more is done."""
INTERVAL_S = 0.02
WAITS_FOR_CONSENT, REFUSED, CONFLICT, UNREACHABLE = 10, 3, 6, 7
BOUND = "records=1000000,seconds=60"


@attrs.define(kw_only=True, eq=False)
class Cycle:
    """One cycle in progress, and what it has come to so far."""

    variation: Variation
    load: Load
    writer: RegionWriter
    writer_name: str
    region: Region
    """The one that is lost."""
    source: ClusterName
    target: ClusterName
    third: ClusterName
    say: Callable[[str], None]
    began: float = attrs.field(factory=time.monotonic)
    epoch: Epoch = attrs.field(factory=lambda: Epoch(0))
    """The one that is lost."""
    failover: Json = attrs.field(factory=dict)
    failback: Json = attrs.field(factory=dict)
    third_had: set[bytes] = attrs.field(factory=set)
    """What the third cluster held when the region was gone."""
    ahead_by: frozenset[bytes] = frozenset()
    """What the third cluster had of the lost epoch, and its successor had not."""
    made_again: frozenset[bytes] = frozenset()
    verdicts: list[Verdict] = attrs.field(factory=list)
    marks: dict[str, float] = attrs.field(factory=dict)
    """When each part was over, in seconds since the beginning."""

    @property
    def sandbox(self) -> Sandbox:
        """The processes."""
        return self.load.sandbox

    def over(self, part: str) -> None:
        """Remember that a part is over."""
        self.marks[part] = time.monotonic() - self.began
        self.say(f"{self.marks[part]:6.1f} s  {part}")

    # --- before --------------------------------------------------------------------------------

    async def have_traffic(self) -> None:
        """Wait until every writer was heard, the one in the region too."""

        async def is_flowing() -> bool:
            mine = [w for w in self.load.history.acknowledged() if w.writer == self.writer_name]
            return len(mine) >= 5 and len(self.load.history.acknowledged()) >= FIRST_WRITES

        await self.until(is_flowing, "every writer was heard")
        shown = await self.load.api.get(f"/v1/groups/{GROUP}")
        self.epoch = Epoch(shown["epoch"])
        assert shown["active"] == self.source, shown
        self.over(f"writes flow to {self.source} in epoch {self.epoch}")

    async def spread(self) -> None:
        """Let one standby have less than the other, and both less than the source, as drawn."""
        variation = self.variation
        laggard = {Third.AHEAD: self.target, Third.BEHIND: self.third}.get(variation.third)
        if laggard is not None:
            await self.hold(laggard)
            await self.until(lambda: self._lacks(laggard, EXCESS_WRITES), f"{laggard} is behind")
            self.over(f"{laggard} is behind: {variation.delay.value}")
        if variation.has_tail:
            for standby in (self.target, self.third):
                await self.pause(standby)
            await self.until(self._has_tail, f"{self.source} has a tail")
            self.over(f"{self.source} has a tail")

    async def hold(self, standby: ClusterName) -> None:
        """Keep a standby from receiving any more."""
        if self.variation.delay is Delay.PAUSED:
            await self.pause(standby)
        else:
            await Region(sandbox=self.sandbox, cluster=standby).fall_asleep()

    async def pause(self, standby: ClusterName) -> None:
        """Pause the stream from the source to a standby."""
        body = {"source": self.source, "target": standby, "reason": "a cycle"}
        await self.asked("/v1/replication/pause", body)

    async def release(self) -> None:
        """Let both standbys receive again what still comes."""
        for standby in (self.target, self.third):
            Region(sandbox=self.sandbox, cluster=standby).wake()
            body = {"source": self.source, "target": standby, "reason": "a cycle"}
            await self.asked("/v1/replication/resume", body)

    # --- the loss ------------------------------------------------------------------------------

    async def lose(self) -> None:
        """Lose the region, and see what the third cluster has more than the target."""
        await self.region.end(self.variation.end, self.writer)
        self.over(f"{self.source} is {self.variation.end.value}")
        await self.release()
        self.third_had = await self.keys_at(self.third)
        self.over("the standbys are released")

    async def promote(self) -> None:
        """Promote the target as the operator does, and wait until it serves."""
        wanted = ("clusters", "promote", self.target, "-g", GROUP, "--emergency", "--yes")
        arguments = (*wanted, "--reason", f"cycle {self.variation.number}")
        accepted = {
            Consent.UNKNOWN: ("--accept-loss", "unknown"),
            Consent.BOUND: ("--accept-loss", BOUND),
            Consent.SHOWN: (),
        }[self.variation.consent]
        hurry = ("--no-fence-wait",) if self.variation.no_fence_wait else ()
        said = await insist(
            self.sandbox,
            *(*arguments, *accepted, *hurry),
            say=self.say,
            codes=(0, WAITS_FOR_CONSENT),
        )
        self.failover = said.body
        while said.code == WAITS_FOR_CONSENT:
            said = await self.consented()
        assert said.body["phase"] == "succeeded", str(said)
        self.failover = said.body
        certain = self.failover["emergency"]["loss"]["target"]["certain"]
        self.ahead_by = frozenset(
            w.key
            for w in self.load.history.acknowledged()
            if (w.cluster, w.epoch) == (self.source, self.epoch)
            and (w.revision or 0) > certain
            and w.key in self.third_had
        )
        self.over(f"{self.target} is promoted, {self.failover['emergency']['loss']['text']}")

    async def consented(self) -> Said:
        """Accept exactly what is shown."""
        loss = self.failover["emergency"]["loss"]
        known, seconds = loss["target"]["records_known"], loss["seconds"]
        is_known = known is not None and seconds is not None and loss["fence"] != "unknown"
        bound = f"records={known},seconds={seconds}" if is_known else "unknown"
        approve = ("failovers", "approve", self.failover["id"], "--accept-loss", bound)
        return await insist(self.sandbox, *approve, say=self.say, codes=(0, WAITS_FOR_CONSENT))

    async def served(self, by: ClusterName, epoch: int) -> None:
        """Wait until clients were told by a cluster that it accepts their writes."""

        async def is_serving() -> bool:
            acknowledged = self.load.history.acknowledged()
            return sum((w.cluster, w.epoch) == (by, epoch) for w in acknowledged) >= LATER_WRITES

        await self.until(is_serving, f"{by} serves epoch {epoch}")
        self.over(f"clients go on at {by}")

    # --- the return ----------------------------------------------------------------------------

    async def come_back(self) -> None:
        """Bring the region back."""
        await self.region.come_back(self.variation.end, self.variation.back, self.writer)
        self.over(f"{self.source} is back")

    async def rejoined(self) -> dict[ClusterName, Json]:
        """Wait until whoever has to has rejoined and all follow; return the rejoins."""
        found: dict[ClusterName, Json] = {}

        async def is_over() -> bool:
            listed = await self.load.api.get("/v1/rejoins", group=GROUP)
            found.clear()
            for rejoin in listed["rejoins"]:
                assert rejoin["phase"] != "held" or rejoin["step"] != "approve", rejoin
                if rejoin["epoch"] > self.epoch:
                    found[ClusterName(rejoin["cluster"])] = rejoin
            needed = {self.source} | ({self.third} if self.ahead_by else set())
            follow = following(await self.load.api.get(f"/v1/groups/{GROUP}"))
            return needed <= found.keys() and all(
                has_rejoined(rejoin, follows=cluster in follow) for cluster, rejoin in found.items()
            )

        await self.until(is_over, "every cluster has rejoined")
        await ready(self.load)
        self.over("rejoined: " + ", ".join(f"{c} {r['diverged']}" for c, r in found.items()))
        return found

    async def fail_back(self) -> None:
        """Give write authority back with the one command for it."""
        back = ("clusters", "failback", self.source, "-g", GROUP, "--yes")
        reason = f"cycle {self.variation.number}"
        said = await insist(self.sandbox, *back, "--reason", reason, say=self.say)
        self.failback = said.body
        assert self.failback["phase"] == "succeeded", str(said)
        self.over(f"failed back to {self.source}, epoch {self.failback['epoch_after']}")

    async def dispose(self, kept: Sequence[tuple[ClusterName, frozenset[bytes]]]) -> None:
        """Do with what is in quarantine what was drawn."""
        epoch = ("--epoch", str(self.epoch), "--reason", f"cycle {self.variation.number}", "--yes")
        for cluster, keys in kept:
            if not keys or self.variation.fate is Fate.KEPT:
                continue
            everything = (GROUP, "--all", "--cluster", cluster, *epoch)
            if self.variation.fate is Fate.REPLAYED and cluster == self.source:
                await self.replayed(everything)
                self.made_again = keys
            said = await done(self.sandbox, "quarantine", "discard", *everything)
            assert said.body["discarded"] == len(keys), str(said)
        self.over(f"quarantine: {self.variation.fate.value}")

    async def replayed(self, everything: Sequence[str]) -> None:
        """Make again what was lost; every key was written once, so nothing can be in the way."""
        said = await mesh(self.sandbox, "quarantine", "replay", *everything)
        if said.code == OutcomeUnknown.exit_code:
            # No answer in time, which a busy machine may mean: what was made is `already` there.
            said = await mesh(self.sandbox, "quarantine", "replay", *everything)
        assert said.out, str(said)
        results = said.body["results"]
        kept = [r for r in results if r["outcome"] not in {"replayed", "already"}]
        assert said.code == 0, f"{len(kept)} of {len(results)} not replayed: {kept[:3]}"

    async def tidy(self) -> None:
        """Delete what the cycle wrote, through the guard, and wait until it is gone everywhere."""
        everything = prefix_range(self.load.prefix.encode())
        await self.load.gates[0].write((Delete(*everything),))

        async def is_gone() -> bool:
            states = await self.load.states()
            return not any(states.values())

        await self.until(is_gone, "what the cycle wrote is deleted everywhere")

    # --- waiting -------------------------------------------------------------------------------

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

    async def shown(self) -> Json:
        """Return the group as the API shows it, as soon as a coordinator leads."""
        found: Json = {}

        async def is_shown() -> bool:
            found.update(await self.load.api.get(f"/v1/groups/{GROUP}"))
            return True

        await self.until(is_shown, "the group is shown")
        return found

    async def asked(self, path: str, body: Json) -> None:
        """Ask the API for a change until it is made."""

        async def is_made() -> bool:
            await self.load.api.post(path, body)
            return True

        await self.until(is_made, f"{path} {body}")

    async def keys_at(self, cluster: ClusterName) -> set[bytes]:
        """Return the keys that a cluster has of this cycle."""
        everything = prefix_range(self.load.prefix.encode())
        result = await self.load.stores[cluster].range(everything, keys_only=True)
        return {item.key for item in result.items}

    async def _lacks(self, standby: ClusterName, count: int) -> bool:
        other = self.third if standby == self.target else self.target
        there, here = await self.keys_at(other), await self.keys_at(standby)
        return len(there - here) >= count

    async def _has_tail(self) -> bool:
        both = await self.keys_at(self.target) | await self.keys_at(self.third)
        return sum(w.key not in both for w in self.load.history.acknowledged()) >= TAIL_WRITES

    def is_unheard(self, key: bytes) -> bool:
        """Return whether a key may be of the region's writer, which was killed while writing."""
        mine = f"{self.load.prefix}{self.writer_name}/".encode()
        known = {w.key for w in self.load.history.writes if w.writer == self.writer_name}
        return key.startswith(mine) and key not in known and key > max(known)

    def unknown(self) -> int:
        """Return of how many writes the clients do not know what became."""
        return self.load.history.count(Outcome.INFO)


def following(group: Json) -> set[str]:
    """Return the clusters that are in step in the epoch that a group is in."""
    return {
        member["cluster"]
        for member in group["clusters"]
        if member["in_step"] and member["fence_epoch"] == group["epoch"]
    }


def has_rejoined(rejoin: Json, *, follows: bool) -> bool:
    """Return whether a cluster is back: nothing of its rejoin is left to do.

    A failback at once may overtake a rejoin. Then another one begins, unless the cluster follows:
    that it could not while it had anything that its successor has not.
    """
    return rejoin["phase"] == "succeeded" or (rejoin["phase"] == "abandoned" and follows)


async def ready(load: Load) -> None:
    """Wait until nothing stands in the way of a failover to any member."""
    await load.ready(timeout_s=DEADLINE_S)


@contextlib.asynccontextmanager
async def cycling(
    sandbox: Sandbox, variation: Variation, say: Callable[[str], None]
) -> AsyncIterator[Cycle]:
    """Put a sandbox under load, with the drawn region active."""
    prefix = f"/{GROUP}/c{variation.number:04d}-{time.time_ns():x}/"
    clusters = [ClusterName(name) for name in sandbox.spec.clusters]
    source = clusters[variation.home]
    others = [name for name in clusters if name != source]
    name = f"sdk-in-{source}"
    async with loaded(
        sandbox, group=GROUP, prefix=prefix, guarded=2, bare=1, interval_s=INTERVAL_S
    ) as load:
        await ready(load)
        if await load.active() != source:
            promote = ("clusters", "promote", source, "-g", GROUP, "--yes")
            await insist(sandbox, *promote, say=say)
        region = Region(sandbox=sandbox, cluster=source)
        async with writing_in(
            sandbox, name=name, group=GROUP, prefix=prefix, history=load.history
        ) as writer:
            yield Cycle(
                variation=variation,
                load=load,
                writer=writer,
                writer_name=name,
                region=region,
                source=source,
                target=others[variation.away],
                third=others[1 - variation.away],
                say=say,
            )
