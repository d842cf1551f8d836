"""Stopping automation or replication, and letting it go on: stored intents, with their audit."""

from __future__ import annotations

from typing import Any

import attrs

from coordinator.api.bodies import PauseAsked
from coordinator.api.views import automation_view, pause_view
from coordinator.governance.audit import MESH_AUDIT, Act, appending, tip_of, tip_read
from coordinator.mesh import read_at_once, read_mesh
from meshkit.clock import Clock
from meshkit.codec import Stored, encode
from meshkit.errors import Conflict
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT
from meshkit.pauses import AutomationPause, ReplicationPause
from meshkit.peer import PeerIdentity
from meshkit.store.port import Store
from meshkit.store.txn import Committed, Delete, Get, ModRevisionIs, Operation, Put, Txn

Json = dict[str, Any]

ATTEMPTS_MAX = 5
"""How often a change is tried while the audit moves under it."""


@attrs.define(kw_only=True, eq=False)
class Pausing:
    """Pauses, on one coordination etcd. Repeating a request changes nothing and says so."""

    store: Store
    clock: Clock

    async def automation(self) -> Json:
        """Return whether automation is paused, and by whom."""
        return automation_view((await read_mesh(self.store)).automation)

    async def pause_automation(self, reason: str, peer: PeerIdentity) -> Json:
        """Begin nothing by itself from now on; what runs goes on, and so do writes."""
        pause = AutomationPause(by=str(peer), reason=reason, since_ms=self.clock.wall_ms())
        changed = await self._change(
            Keys.automation_pause,
            pause,
            audit=MESH_AUDIT,
            act=Act(actor=str(peer), action="automation.paused", facts={"reason": reason}),
        )
        return {"changed": changed, "automation": await self.automation()}

    async def resume_automation(self, reason: str, peer: PeerIdentity) -> Json:
        """Let automation go on."""
        changed = await self._change(
            Keys.automation_pause,
            None,
            audit=MESH_AUDIT,
            act=Act(actor=str(peer), action="automation.resumed", facts={"reason": reason}),
        )
        return {"changed": changed, "automation": await self.automation()}

    async def pause_replication(self, asked: PauseAsked, peer: PeerIdentity) -> Json:
        """Let copies stand still where they are, until resumed.

        Raises:
            NotFound: there is no such group or cluster.
        """
        return await self._set_replication(asked, peer, is_paused=True)

    async def resume_replication(self, asked: PauseAsked, peer: PeerIdentity) -> Json:
        """Let copies go on, if exactly this was paused; what else is paused stays so."""
        return await self._set_replication(asked, peer, is_paused=False)

    async def _set_replication(
        self, asked: PauseAsked, peer: PeerIdentity, *, is_paused: bool
    ) -> Json:
        mesh = await read_mesh(self.store)
        if asked.group is not None:
            mesh.group(asked.group)
        for cluster in (asked.source, asked.target):
            if cluster is not None:
                mesh.cluster(cluster)
        pause = ReplicationPause(
            group=asked.group,
            source=asked.source,
            target=asked.target,
            by=str(peer),
            reason=asked.reason,
            since_ms=self.clock.wall_ms(),
        )
        action = "replication.paused" if is_paused else "replication.resumed"
        facts = {"what": pause.what, "reason": asked.reason}
        changed = await self._change(
            _key_of(asked),
            pause if is_paused else None,
            audit=asked.group or MESH_AUDIT,
            act=Act(actor=str(peer), action=action, facts=facts),
        )
        pauses = (await read_mesh(self.store)).pauses
        return {"changed": changed, "pauses": [pause_view(each) for each in pauses]}

    async def _change(
        self, key: bytes, record: Stored | None, *, audit: GroupName, act: Act
    ) -> bool:
        """Put or delete a pause with its audit entry; False if it was so already."""
        for _ in range(ATTEMPTS_MAX):
            _, (items, tips) = await read_at_once(self.store, (Get(key), tip_read(audit)))
            if bool(items) == (record is not None):
                return False
            entry = appending(audit, tip_of(tips), [act], now_ms=self.clock.wall_ms())
            change: Operation = Put(key, encode(record)) if record else Delete(key)
            guard = ModRevisionIs(key, items[0].mod_revision if items else ABSENT)
            txn = Txn(guards=(guard, entry.guard), operations=(change, *entry.puts))
            if isinstance(await self.store.commit(txn), Committed):
                return True
        raise Conflict("the audit moves too fast; try again")


def _key_of(asked: PauseAsked) -> bytes:
    if asked.group is not None:
        return Keys.group_pause(asked.group)
    if asked.source is not None and asked.target is not None:
        return Keys.stream_pause(asked.source, asked.target)
    return Keys.pause_of_all
