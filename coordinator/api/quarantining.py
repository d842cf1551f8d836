"""Quarantine through the API: asked of the replicators that keep it; every act is in the audit.

Application data passes through this process and is never stored in the coordination etcd. The
audit holds what was asked, by whom and why, and how many entries it came to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

import attrs

from coordinator.api.quarantine_bodies import QuarantineAct
from coordinator.api.quarantine_views import entry_id, entry_view, parse_id, result_view, whole_view
from coordinator.failover.repository import FailoverRepository
from coordinator.governance.audit import Act
from coordinator.mesh import Mesh, read_mesh
from meshkit import asking
from meshkit.asker import AskRegion, ask_leader
from meshkit.asking import EntryName, ReplayOutcome
from meshkit.clock import Clock
from meshkit.errors import InvalidInput, NotFound, Refused, Unreachable
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch
from meshkit.peer import PeerIdentity
from meshkit.quarantine import Origin, QuarantineClass, QuarantineEntry
from meshkit.store.port import Store

Json = dict[str, Any]
A = TypeVar(
    "A",
    asking.EntriesPage,
    asking.WholeEntries,
    asking.Counted,
    asking.ReplayResults,
    asking.KeyStates,
)

ENTRIES_MAX = 100
"""Entries that one request lists, replays or discards; the answer says where to go on."""


@attrs.frozen(kw_only=True)
class _Where:
    """Whose entries are replayed, and where to."""

    mesh: Mesh
    group: GroupName
    cluster: ClusterName
    active: ClusterName


@attrs.define(kw_only=True, eq=False)
class Quarantining:
    """What operators may do with writes that lost."""

    store: Store
    clock: Clock
    asker: AskRegion

    # --- reading -------------------------------------------------------------------------------

    async def entries(
        self,
        group: GroupName,
        cluster: ClusterName | None,
        *,
        epoch: Epoch | None,
        start: bytes | None,
        limit: int,
    ) -> Json:
        """Return the next entries of a cluster's quarantine, or the first of every member's.

        A cluster that does not answer is named with the reason, and counts as unknown.
        """
        mesh = await read_mesh(self.store)
        members = mesh.group(group).members
        if cluster is not None:
            _check_member(group, cluster, mesh)
        found = []
        for member in (cluster,) if cluster else members:
            question = asking.ListEntries(group=group, epoch=epoch, start=start, limit=limit)
            shown: Json = {"cluster": member, "entries": [], "next": None, "problem": ""}
            try:
                page = await self._ask(mesh, member, question, asking.EntriesPage)
            except (Refused, NotFound) as error:
                if cluster is not None:
                    raise
                shown["problem"] = str(error)
            else:
                shown["entries"] = [entry_view(member, entry) for entry in page.entries]
                shown["next"] = page.next_key.hex() if page.next_key else None
            found.append(shown)
        return {"group": group, "clusters": found}

    async def entry(self, group: GroupName, entry: str) -> Json:
        """Return one entry with its values whole.

        Raises:
            NotFound: there is none of that id.
        """
        mesh = await read_mesh(self.store)
        cluster, name = parse_id(group, entry)
        _check_member(group, cluster, mesh)
        question = asking.ReadEntries(group=group, entries=(name,))
        (whole,) = (await self._ask(mesh, cluster, question, asking.WholeEntries)).entries
        return whole_view(cluster, whole)

    # --- acting --------------------------------------------------------------------------------

    async def replay(self, group: GroupName, asked: QuarantineAct, peer: PeerIdentity) -> Json:
        """Write what was set aside at the active cluster, where its key still is as it was then.

        Raises:
            Refused: nobody is active, or the active cluster does not accept writes.
        """
        mesh = await read_mesh(self.store)
        cluster, entries, go_on = await self._chosen(group, asked, mesh)
        seen = mesh.authorities.get(group)
        if seen is None:
            raise Refused(f"nobody is active for {group} yet")
        active = seen.record.active
        await self._note(group, "quarantine.replay_requested", asked, peer, entries=len(entries))
        where = _Where(mesh=mesh, group=group, cluster=cluster, active=active)
        results: list[Json] = []
        chosen: list[QuarantineEntry] = []
        for entry in entries:
            reason = _no_replay(entry, is_named=bool(asked.ids))
            if entry.replayed_ms is not None:
                # Whoever had no answer asks again, and is told the same.
                told = f"replayed already by {entry.replayed_by}"
                results.append(result_view(cluster, entry, ReplayOutcome.ALREADY, told))
            elif reason:
                results.append(result_view(cluster, entry, ReplayOutcome.REFUSED, reason))
            else:
                chosen.append(entry)
        names = [EntryName(epoch=entry.epoch, name=entry.name) for entry in chosen]
        async for batch in self._whole(mesh, group, cluster, names):
            results += await self._replay_batch(where, batch, peer)
        counts = {
            outcome.value: sum(r["outcome"] == outcome.value for r in results)
            for outcome in ReplayOutcome
        }
        await self._note(group, "quarantine.replayed", asked, peer, active=active, **counts)
        return {
            "group": group,
            "cluster": cluster,
            "active": active,
            "counts": counts,
            "results": results,
            "next": go_on,
        }

    async def discard(self, group: GroupName, asked: QuarantineAct, peer: PeerIdentity) -> Json:
        """Remove entries for ever.

        Raises:
            InvalidInput: no reason is given.
        """
        if not asked.reason.strip():
            raise InvalidInput("reason: discarding writes takes a reason, which the audit keeps")
        mesh = await read_mesh(self.store)
        cluster, entries, go_on = await self._chosen(group, asked, mesh)
        ids = [entry_id(cluster, entry.epoch, entry.name) for entry in entries]
        await self._note(group, "quarantine.discard_requested", asked, peer, entries=ids)
        names = tuple(EntryName(epoch=entry.epoch, name=entry.name) for entry in entries)
        question = asking.DiscardEntries(group=group, entries=names)
        done = asking.Counted(count=0)
        if names:
            done = await self._ask(mesh, cluster, question, asking.Counted)
        await self._note(group, "quarantine.discarded", asked, peer, count=done.count)
        return {"group": group, "cluster": cluster, "discarded": done.count, "next": go_on}

    # --- parts ---------------------------------------------------------------------------------

    async def _ask(
        self, mesh: Mesh, cluster: ClusterName, question: asking.Question, expected: type[A]
    ) -> A:
        endpoints = mesh.cluster(cluster).replication_endpoints
        return await ask_leader(self.asker, cluster, endpoints, question, expected)

    async def _chosen(
        self, group: GroupName, asked: QuarantineAct, mesh: Mesh
    ) -> tuple[ClusterName, list[QuarantineEntry], str | None]:
        """Return the entries that a request is about, and where a request for all goes on."""
        if asked.ids:
            named = [parse_id(group, text) for text in asked.ids]
            clusters = {cluster for cluster, _ in named}
            if len(clusters) != 1 or len(named) > ENTRIES_MAX:
                raise InvalidInput(
                    f"ids: at most {ENTRIES_MAX} entries of one cluster in one request"
                )
            cluster = clusters.pop()
            _check_member(group, cluster, mesh)
            names = [name for _, name in named]
            batches = self._whole(mesh, group, cluster, names)
            found = [whole.entry async for batch in batches for whole in batch]
            return cluster, found, None
        if asked.cluster is None:
            raise InvalidInput("name entries by ids, or a cluster for all that it keeps")
        _check_member(group, asked.cluster, mesh)
        listing = asking.ListEntries(
            group=group, epoch=asked.epoch, start=asked.start, limit=ENTRIES_MAX
        )
        page = await self._ask(mesh, asked.cluster, listing, asking.EntriesPage)
        go_on = page.next_key.hex() if page.next_key else None
        return asked.cluster, list(page.entries), go_on

    async def _whole(
        self, mesh: Mesh, group: GroupName, cluster: ClusterName, names: Sequence[EntryName]
    ) -> AsyncIterator[Sequence[asking.WholeEntry]]:
        """Yield entries with their values, as many at a time as one message holds."""
        left = tuple(names)
        while left:
            question = asking.ReadEntries(group=group, entries=left[: asking.NAMES_MAX])
            batch = (await self._ask(mesh, cluster, question, asking.WholeEntries)).entries
            assert batch, "each answer has at least one entry"
            yield batch
            left = left[len(batch) :]

    async def _replay_batch(
        self, where: _Where, batch: Sequence[asking.WholeEntry], peer: PeerIdentity
    ) -> list[Json]:
        changes = tuple(
            asking.Change(key=whole.entry.key, here=whole.here, there=whole.there)
            for whole in batch
        )
        question = asking.ReplayChanges(group=where.group, changes=changes)
        try:
            answer = await self._ask(where.mesh, where.active, question, asking.ReplayResults)
        except Unreachable as error:
            unknown = ReplayOutcome.UNKNOWN
            return [result_view(where.cluster, w.entry, unknown, str(error)) for w in batch]
        done = tuple(
            EntryName(epoch=whole.entry.epoch, name=whole.entry.name)
            for whole, result in zip(batch, answer.results, strict=True)
            if result.outcome in {ReplayOutcome.REPLAYED, ReplayOutcome.ALREADY}
        )
        if done:
            mark = asking.MarkReplayed(group=where.group, entries=done, by=str(peer))
            await self._ask(where.mesh, where.cluster, mark, asking.Counted)
        return [
            result_view(where.cluster, whole.entry, result.outcome, result.reason)
            for whole, result in zip(batch, answer.results, strict=True)
        ]

    async def _note(
        self, group: GroupName, action: str, asked: QuarantineAct, peer: PeerIdentity, **facts: Any
    ) -> None:
        act = Act(
            actor=str(peer),
            action=action,
            facts={
                "cluster": asked.cluster or "",
                "ids": list(asked.ids),
                "reason": asked.reason,
                **facts,
            },
        )
        failovers = FailoverRepository(store=self.store, clock=self.clock)
        await failovers.append_audit(group, act)


def _check_member(group: GroupName, cluster: ClusterName, mesh: Mesh) -> None:
    members = mesh.group(group).members
    if cluster not in members:
        raise NotFound(f"{cluster} is no member of {group}", hint=f"those are {members}")


def _no_replay(entry: QuarantineEntry, *, is_named: bool) -> str:
    """Return why an entry cannot be replayed, or nothing."""
    if not entry.key:
        return "it only says that something may be missing"
    if not entry.is_newest:
        return "a later change of the same key is in quarantine"
    if entry.divergence is QuarantineClass.SAME:
        return "nothing differs"
    if entry.origin is Origin.EXPIRY and not is_named:
        return "its lease ran out; to delete it all the same, name the entry"
    return ""
