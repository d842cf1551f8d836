"""How automatic failovers stand, and their acknowledgement, as the API tells and takes them."""

from __future__ import annotations

from typing import Any

import attrs

from coordinator.automatic.candidates import Around
from coordinator.automatic.facts import Known, Seen, facts_of
from coordinator.automatic.judging import Standing, Verdict, judge
from coordinator.automatic.repository import AutomaticRepository
from coordinator.governance.audit import Act
from coordinator.mesh import Mesh, read_mesh
from coordinator.rejoin.record import Rejoin
from meshkit.clock import Clock
from meshkit.codec import decode, to_plain
from meshkit.errors import Conflict, MeshError, Refused
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import FailoverMode, Group
from meshkit.names import ClusterName, FailoverId, GroupName
from meshkit.peer import PeerIdentity
from meshkit.status import LogHead
from meshkit.store.port import Store, StoreStatus

Json = dict[str, Any]

ATTEMPTS_MAX = 5
"""How often an acknowledgement is tried while the group moves under it."""


@attrs.frozen(kw_only=True)
class Automating:
    """What the API does about automatic failovers; it begins none."""

    store: Store
    clock: Clock
    coordination_ttl_ms: int

    async def standing(self, group: Group, mesh: Mesh) -> Json:
        """Return how an automatic failover of a group stands, and why."""
        return (await self._standings([group], mesh))[0]

    async def all_standing(self) -> list[Json]:
        """Return the same of every group whose policy has automatic failovers."""
        mesh = await read_mesh(self.store)
        groups = [seen.record for _, seen in sorted(mesh.groups.items())]
        automatic = [g for g in groups if g.policy.failover is FailoverMode.AUTOMATIC]
        return await self._standings(automatic, mesh) if automatic else []

    async def acknowledge(
        self, group: GroupName, failover: FailoverId | None, reason: str, peer: PeerIdentity
    ) -> Json:
        """Note that a person has looked at the last automatic failover; another may begin.

        Raises:
            NotFound: there is no such group.
            Conflict: the last one is another than `failover`.
            Refused: it is still running.
        """
        for _ in range(ATTEMPTS_MAX):
            mesh = await read_mesh(self.store)
            described = mesh.group(group)
            known = (await self._repository.known([group]))[group]
            last = known.record
            if failover is not None and failover != last.failover:
                raise Conflict(
                    f"the last automatic failover of group {group} is {last.failover or 'none'},"
                    f" not {failover}",
                    hint=f"look again: mesh groups show {group}",
                )
            if not last.needs_acknowledgement(mesh.incarnation.number):
                return {"changed": False, "automatic": await self.standing(described, mesh)}
            if known.running is not None and known.running == last.failover:
                raise Refused(
                    f"automatic failover {last.failover} is still running",
                    hint=f"see how it ends first: mesh failovers watch {last.failover}",
                )
            after = attrs.evolve(
                last,
                acknowledged_by=str(peer),
                acknowledged_ms=self.clock.wall_ms(),
                acknowledged_reason=reason,
                incarnation=mesh.incarnation.number,
            )
            facts = {"failover": last.failover, "reason": reason}
            act = Act(actor=str(peer), action="automatic.acknowledged", facts=facts)
            if await self._repository.acknowledge(known, after, act=act) is not None:
                shown = await self.standing(described, await read_mesh(self.store))
                return {"changed": True, "automatic": shown}
        raise Conflict(f"group {group} moves too fast; try again")

    # --- parts ---------------------------------------------------------------------------------

    @property
    def _repository(self) -> AutomaticRepository:
        return AutomaticRepository(store=self.store, clock=self.clock)

    async def _standings(self, groups: list[Group], mesh: Mesh) -> list[Json]:
        known = await self._repository.known([group.name for group in groups])
        rejoins = await self._repository.rejoins()
        status = await self._status()
        heads = await self._heads(mesh)
        shown = []
        for group in groups:
            each = known[group.name]
            verdict = self._judged(group, each, mesh, status=status, rejoins=rejoins, heads=heads)
            shown.append(_view(group, each, verdict, mesh))
        return shown

    def _judged(
        self,
        group: Group,
        known: Known,
        mesh: Mesh,
        *,
        status: StoreStatus | None,
        rejoins: tuple[Rejoin, ...],
        heads: dict[ClusterName, LogHead],
    ) -> Verdict:
        """Judge by what is stored. For how long a cluster is gone only the leader knows."""
        seen = mesh.authorities.get(group.name)
        if seen is None:
            return Verdict(standing=Standing.BLOCKED)
        now_ms = self.clock.wall_ms()
        around = Around(
            mesh=mesh,
            coordination=status,
            rejoins=rejoins,
            head=heads.get(seen.record.active),
            # If it died now, its lease would run out for so long.
            permit_ended_ms=now_ms + self.coordination_ttl_ms if known.holder else None,
            now_ms=now_ms,
        )
        return judge(facts_of(known, around, Seen(is_missing=not known.holder)))

    async def _heads(self, mesh: Mesh) -> dict[ClusterName, LogHead]:
        found: dict[ClusterName, LogHead] = {}
        for cluster in sorted({seen.record.active for seen in mesh.authorities.values()}):
            item = await self.store.get(Keys.head(cluster))
            if item is not None:
                found[cluster] = decode(LogHead, item.value)
        return found

    async def _status(self) -> StoreStatus | None:
        try:
            return await self.store.status()
        except MeshError:
            return None


def _view(group: Group, known: Known, verdict: Verdict, mesh: Mesh) -> Json:
    """Return how it stands; what the leader stored of a failover it withholds comes first."""
    policy, record = group.policy, known.record
    seen = mesh.authorities.get(group.name)
    standing, reasons, since_ms = verdict.standing, verdict.reasons, None
    withheld = record.withheld
    is_current = withheld is not None and seen is not None and withheld.epoch == seen.record.epoch
    if standing is Standing.OBSERVING and withheld is not None and is_current:
        standing, reasons, since_ms = Standing.WITHHELD, withheld.reasons, withheld.since_ms
    return {
        "group": group.name,
        "mode": policy.failover.value,
        "standing": standing.value,
        "proof_of_life": known.holder,
        "target": verdict.target,
        "reasons": [to_plain(reason) for reason in reasons],
        "withheld_since_ms": since_ms,
        "after_ms": policy.automatic_after_ms,
        "cool_down_ms": policy.automatic_cool_down_ms,
        "loss_records_max": policy.automatic_loss_records_max,
        "loss_seconds_max": policy.automatic_loss_seconds_max,
        "needs_acknowledgement": record.needs_acknowledgement(mesh.incarnation.number),
        "last": None if record.failover is None else _last(known),
    }


def _last(known: Known) -> Json:
    record = known.record
    return {
        "failover": record.failover,
        "source": record.source,
        "target": record.target,
        "began_ms": record.began_ms,
        "acknowledged_by": record.acknowledged_by,
        "acknowledged_ms": record.acknowledged_ms,
        "acknowledged_reason": record.acknowledged_reason,
    }
