"""Asking clusters to compare their copies with the active one, and reading what they found.

The API asks through the coordination etcd, and reads only numbers there: application data never
enters it. Which keys differ is said by the cluster whose copy it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import attrs

from coordinator.api.bodies import VerifyAsked
from coordinator.api.stream_views import result_view
from coordinator.governance.audit import Act, appending, tip_of, tip_read
from coordinator.mesh import read_at_once, read_mesh
from meshkit.clock import Clock
from meshkit.codec import decode, encode, to_plain
from meshkit.errors import Conflict, InvalidInput, NotFound, Refused
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT
from meshkit.peer import PeerIdentity
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Get, Guard, KeyValue, ModRevisionIs, Put, Txn, absent
from meshkit.verification import Verify, VerifyResult

Json = dict[str, Any]

ATTEMPTS_MAX = 5
"""How often a request is tried while the audit moves under it."""


@attrs.define(kw_only=True, eq=False)
class Verifying:
    """Requests to compare copies, on one coordination etcd."""

    store: Store
    clock: Clock

    async def ask(self, group: GroupName, asked: VerifyAsked, peer: PeerIdentity) -> Json:
        """Ask the target, or every cluster with a copy, to compare it; repeating is harmless.

        Raises:
            NotFound, InvalidInput: the request names what is not there.
            Conflict: a repair is asked for while a failover is running.
        """
        targets = await self._targets(group, asked.target)
        name = f"{group}\0{asked.request_id}"
        verify_id = f"v-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        for _ in range(ATTEMPTS_MAX):
            before = await self._read(group, targets)
            if all(_id_of(stored) == verify_id for stored, _ in before.values()):
                return {"changed": False, "group": group, "verifications": _views(before)}
            requests = [
                Verify(
                    id=verify_id,
                    group=group,
                    target=target,
                    repair=asked.repair,
                    requested_by=str(peer),
                    requested_ms=self.clock.wall_ms(),
                )
                for target in targets
            ]
            if await self._put(group, requests, before, peer):
                after = await self._read(group, targets)
                return {"changed": True, "group": group, "verifications": _views(after)}
        raise Conflict(f"the audit of {group} moves too fast; try again")

    async def results(self, group: GroupName, target: ClusterName | None) -> Json:
        """Return what was asked of each cluster last, and what it found."""
        targets = await self._targets(group, target, is_past=True)
        found = await self._read(group, targets)
        return {"group": group, "verifications": _views(found)}

    async def _targets(
        self, group: GroupName, target: ClusterName | None, *, is_past: bool = False
    ) -> tuple[ClusterName, ...]:
        mesh = await read_mesh(self.store)
        members = mesh.group(group).members
        seen = mesh.authorities.get(group)
        if target is not None and target not in members:
            raise NotFound(f"{target} is no member of {group}", hint=f"those are {members}")
        if is_past:
            return (target,) if target else members
        if seen is None:
            raise Refused(f"nobody is active for {group} yet: there is nothing to compare with")
        active = seen.record.active
        if target == active:
            raise InvalidInput(f"{target} is active for {group}: copies are compared with it")
        return (target,) if target else tuple(m for m in members if m != active)

    async def _read(
        self, group: GroupName, targets: Sequence[ClusterName]
    ) -> dict[ClusterName, tuple[KeyValue | None, KeyValue | None]]:
        """Return the newest request to each target, and the newest result, as stored."""
        gets = [
            Get(key)
            for target in targets
            for key in (Keys.verify(target, group), Keys.verify_result(target, group))
        ]
        _, reads = await read_at_once(self.store, tuple(gets))
        firsts = [items[0] if items else None for items in reads]
        return dict(zip(targets, zip(firsts[::2], firsts[1::2], strict=True), strict=True))

    async def _put(
        self,
        group: GroupName,
        requests: Sequence[Verify],
        before: dict[ClusterName, tuple[KeyValue | None, KeyValue | None]],
        peer: PeerIdentity,
    ) -> bool:
        """Put the requests with their audit entry; False if something moved meanwhile."""
        _, reads = await read_at_once(self.store, (tip_read(group),))
        first = requests[0]
        act = Act(
            actor=str(peer),
            action="verify.repair_requested" if first.repair else "verify.requested",
            facts={"verify": first.id, "targets": [request.target for request in requests]},
        )
        audit = appending(group, tip_of(reads[0]), [act], now_ms=self.clock.wall_ms())
        guards: list[Guard] = [audit.guard]
        for request in requests:
            stored, _ = before[request.target]
            revision = stored.mod_revision if stored else ABSENT
            guards.append(ModRevisionIs(Keys.verify(request.target, group), revision))
        running = absent(Keys.failover_active(group))
        if first.repair:
            guards.append(running)
        puts = [Put(Keys.verify(r.target, group), encode(r)) for r in requests]
        txn = Txn(guards=tuple(guards), operations=(*puts, *audit.puts))
        outcome = await self.store.commit(txn)
        if isinstance(outcome, Committed):
            return True
        if running in outcome.broken:
            raise Conflict(
                f"a failover of {group} is running: a copy under repair could not be promoted",
                hint=f"mesh failovers list --group {group}",
            )
        return False


def _id_of(stored: KeyValue | None) -> str:
    return decode(Verify, stored.value).id if stored else ""


def _views(
    found: dict[ClusterName, tuple[KeyValue | None, KeyValue | None]],
) -> list[Json]:
    """Return each request with its result; those never asked are left out."""
    return [
        verify_view(decode(Verify, asked.value), decode(VerifyResult, got.value) if got else None)
        for asked, got in found.values()
        if asked is not None
    ]


def verify_view(request: Verify, newest: VerifyResult | None) -> Json:
    """Return one request with its result; null while it is under way."""
    is_done = newest is not None and newest.id == request.id
    return {
        **to_plain(request),
        "status": "done" if is_done else "running",
        "result": result_view(newest) if newest is not None and is_done else None,
    }
