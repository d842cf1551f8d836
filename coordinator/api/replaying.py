"""Asking for a group's history to be sent to its copies again, and reading what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs

from coordinator.api.bodies import ReplayAsked
from coordinator.governance.audit import Act, appending, tip_of, tip_read
from coordinator.mesh import read_at_once, read_mesh
from meshkit.clock import Clock
from meshkit.codec import decode, encode, to_plain
from meshkit.errors import Conflict, InvalidInput, NotFound, Refused
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT
from meshkit.peer import PeerIdentity
from meshkit.replay import Replay, ReplayResult
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Get, KeyValue, ModRevisionIs, Put, Txn

Json = dict[str, Any]
Stored = Mapping[ClusterName, tuple[KeyValue | None, KeyValue | None]]
"""The newest request to each copy, and the newest result, as stored."""

ATTEMPTS_MAX = 5
"""How often a request is tried while the audit moves under it."""


@attrs.define(kw_only=True, eq=False)
class Replaying:
    """Requests to send history again, on one coordination etcd."""

    store: Store
    clock: Clock

    async def ask(self, group: GroupName, asked: ReplayAsked, peer: PeerIdentity) -> Json:
        """Ask the target, or every cluster with a copy; repeating is harmless.

        Raises:
            NotFound, InvalidInput: the request names what is not there.
        """
        targets = await self._targets(group, asked.target)
        name = f"{group}\0{asked.request_id}"
        replay_id = f"p-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        for _ in range(ATTEMPTS_MAX):
            before = await self._read(group, targets)
            if all(_id_of(stored) == replay_id for stored, _ in before.values()):
                return {"changed": False, "group": group, "replays": _views(before)}
            requests = [
                Replay(
                    id=replay_id,
                    group=group,
                    target=target,
                    start=asked.start,
                    requested_by=str(peer),
                    requested_ms=self.clock.wall_ms(),
                )
                for target in targets
            ]
            if await self._put(group, requests, before, peer):
                after = await self._read(group, targets)
                return {"changed": True, "group": group, "replays": _views(after)}
        raise Conflict(f"the audit of {group} moves too fast; try again")

    async def results(self, group: GroupName) -> Json:
        """Return what was asked of each cluster last, and what came of it."""
        members = (await read_mesh(self.store)).group(group).members
        return {"group": group, "replays": _views(await self._read(group, members))}

    async def _targets(
        self, group: GroupName, target: ClusterName | None
    ) -> tuple[ClusterName, ...]:
        mesh = await read_mesh(self.store)
        members, seen = mesh.group(group).members, mesh.authorities.get(group)
        if target is not None and target not in members:
            raise NotFound(f"{target} is no member of {group}", hint=f"those are {members}")
        if seen is None:
            raise Refused(f"nobody is active for {group} yet: it has no history")
        active = seen.record.active
        if target == active:
            raise InvalidInput(f"{target} is active for {group}: history is sent to copies")
        return (target,) if target else tuple(m for m in members if m != active)

    async def _read(self, group: GroupName, targets: tuple[ClusterName, ...]) -> Stored:
        gets = [
            Get(key)
            for target in targets
            for key in (Keys.replay(target, group), Keys.replay_result(target, group))
        ]
        _, reads = await read_at_once(self.store, tuple(gets))
        firsts = [items[0] if items else None for items in reads]
        return dict(zip(targets, zip(firsts[::2], firsts[1::2], strict=True), strict=True))

    async def _put(
        self, group: GroupName, requests: list[Replay], before: Stored, peer: PeerIdentity
    ) -> bool:
        """Put the requests with their audit entry; False if something moved meanwhile."""
        _, (tips,) = await read_at_once(self.store, (tip_read(group),))
        first = requests[0]
        facts = {
            "replay": first.id,
            "start": first.start,
            "targets": [request.target for request in requests],
        }
        act = Act(actor=str(peer), action="replay.requested", facts=facts)
        audit = appending(group, tip_of(tips), [act], now_ms=self.clock.wall_ms())
        unmoved = tuple(
            ModRevisionIs(
                Keys.replay(request.target, group),
                stored.mod_revision if (stored := before[request.target][0]) else ABSENT,
            )
            for request in requests
        )
        puts = tuple(Put(Keys.replay(r.target, group), encode(r)) for r in requests)
        txn = Txn(guards=(audit.guard, *unmoved), operations=(*puts, *audit.puts))
        return isinstance(await self.store.commit(txn), Committed)


def _id_of(stored: KeyValue | None) -> str:
    return decode(Replay, stored.value).id if stored else ""


def _views(found: Stored) -> list[Json]:
    """Return each request with its result; those never asked are left out."""
    return [
        _view(decode(Replay, asked.value), decode(ReplayResult, got.value) if got else None)
        for asked, got in found.values()
        if asked is not None
    ]


def _view(request: Replay, newest: ReplayResult | None) -> Json:
    is_done = newest is not None and newest.id == request.id
    return {
        **to_plain(request),
        "status": "done" if is_done else "running",
        "result": to_plain(newest) if newest is not None and is_done else None,
    }
