"""How the old active cluster of a group becomes a passive one that can be followed back.

Whatever something that ignores the permit wrote past the cut is set aside before it is overwritten
(architecture 5.1 rule 10), and no key keeps a lease that would delete it here alone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from collections.abc import Sequence as Ordered
from contextlib import aclosing
from typing import Protocol

import attrs
import structlog

from fencing import fence as fences
from fencing.fence_view import FenceView
from meshkit.commands import Command
from meshkit.errors import Compacted, RevisionConflict
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_LEASE, LeaseId, Revision, Sequence
from meshkit.quarantine import Origin, SetAside, key_of, unknown_entry
from meshkit.regional import CopyBasis, FenceMode
from meshkit.store.port import Store
from meshkit.store.txn import (
    Committed,
    Guard,
    KeyValue,
    ModRevisionIs,
    Operation,
    Put,
    Txn,
    prefix_range,
)
from replicator.agent_ports import Inbound
from replicator.group_leases import GroupLeases
from replicator.quarantine import Quarantine
from replicator.tail import TailReader, at_revision, head_of, local_changes, ran_out, read_now

_log = structlog.get_logger()

READ_KEYS_MAX = 5_000
FIRST_KEYS_MAX = 100
"""Small enough that the first pages of many groups share a request."""
DETACH_KEYS_MAX = 50
DETACH_ATTEMPTS_MAX = 20
BACK_PATIENCE_MS = 3_000
"""How long a key that ran out here may take to come back from the new active cluster."""
BACK_INTERVAL_MS = 50

_RAN_OUT = "keys ran out here past the cut and did not come back"
_WHY = "written past the cut by something that ignores the permit"


class Untouched(Protocol):
    """What watches the region anyway. Implemented by `replicator.foreign_watch.ForeignWatch`."""

    async def untouched(
        self, group: GroupName, prefixes: Iterable[bytes], after: Sequence, *, deletes: bool = False
    ) -> bool:
        """Return whether nothing but applies changed (or deleted) keys, up to now, for certain."""


@attrs.frozen(kw_only=True)
class Reversal:
    """One group's way from active to passive, in the region of `regional`."""

    regional: Store
    leader: Guard
    group: GroupName
    prefixes: tuple[bytes, ...]
    now_ms: int
    """Wall clock, for people."""
    local: Untouched | None = None
    """Knows what was changed here without reading the history again, as far as it watched."""

    async def set_aside_foreign(self, view: FenceView, command: Command) -> None:
        """Quarantine what was written past the cut, and have the group copied anew (S17).

        The last entry and the join are one transaction, so this is done exactly once, whoever
        begins it and however often it is asked.

        Raises:
            RevisionConflict: the fence moved meanwhile; look again.
        """
        assert command.source is not None
        if await self._untouched(command):
            return
        quarantine = Quarantine(regional=self.regional, leader=self.leader)
        last = await self._all_but_last(quarantine, command)
        if last is None or await self.regional.get(key_of(last.entry)) is not None:
            return
        if view.mode is not FenceMode.SUPERSEDED:
            raise RevisionConflict("the fence is not passive yet")
        join = fences.join(
            view,
            source=command.source,
            epoch=command.epoch,
            leader=self.leader,
            reason=_WHY,
            basis=CopyBasis.DOUBTFUL,
        )
        entry = await quarantine.put_with(last)
        whole = attrs.evolve(join, operations=(*join.operations, entry))
        if not isinstance(await self.regional.commit(whole), Committed):
            raise RevisionConflict("the fence moved while foreign writes were set aside")
        _log.warning("foreign_writes.quarantined", group=self.group, last=last.entry.name)

    async def _untouched(self, command: Command, *, deletes: bool = False) -> bool:
        if self.local is None:
            return False
        assert command.lineage is not None
        after = command.lineage.sequence
        return await self.local.untouched(self.group, self.prefixes, after, deletes=deletes)

    async def _all_but_last(self, quarantine: Quarantine, command: Command) -> SetAside | None:
        """Store every foreign change of the group but the last one, and return that."""
        lineage = command.lineage
        assert lineage is not None
        reader = TailReader(
            regional=self.regional,
            group=self.group,
            epoch=lineage.parent_epoch,
            prefixes=self.prefixes,
            after=lineage.sequence,
            origin=Origin.FOREIGN,
            read_there=at_revision(self.regional, Revision(lineage.sequence)),
            now_ms=self.now_ms,
            why=_WHY,
        )
        last: list[SetAside] = []
        try:
            async with aclosing(reader.batches()) as batches:
                async for batch in batches:
                    # What ran out here is at the successor, which hangs it on its lease there.
                    kept = [one for one in batch if one.entry.origin is not Origin.EXPIRY]
                    if not kept:
                        continue
                    *first, newest = [*last, *kept]
                    await quarantine.put(first)
                    last = [newest]
        except Compacted as error:
            await quarantine.put(last)
            return unknown_entry(
                self.group,
                lineage.parent_epoch,
                lineage.sequence,
                origin=Origin.FOREIGN,
                why=str(error),
                now_ms=self.now_ms,
            )
        return last[0] if last else None

    async def expired(self, command: Command) -> set[bytes]:
        """Return the keys whose lease ended here past the cut and that are not back yet.

        Their deletes are in no log; the successor has them, and puts them again as it hangs them
        on their leases. To be asked when no key of the group hangs on a lease here any more.
        """
        assert command.lineage is not None
        if await self._untouched(command, deletes=True):
            return set()
        head = await head_of(self.regional)
        keys: set[bytes] = set()
        try:
            changes = local_changes(self.regional, self.prefixes, command.lineage.sequence, head)
            async with aclosing(changes) as batches:
                async for batch in batches:
                    for revision, change in batch:
                        if change.is_delete and await ran_out(self.regional, change.key, revision):
                            keys.add(change.key)
        except Compacted:
            # Then nobody knows what was written here, and the copy is made anew already.
            return set()
        return await self.still_absent(keys)

    async def still_absent(self, keys: set[bytes]) -> set[bytes]:
        """Return which of the keys are not there."""
        return keys - (await read_now(self.regional, list(keys))).keys()

    async def copy_again(self, view: FenceView, command: Command, reason: str) -> None:
        """Have the group copied anew from the successor.

        Raises:
            RevisionConflict: the fence moved meanwhile; look again.
        """
        assert command.source is not None
        join = fences.join(
            view,
            source=command.source,
            epoch=command.epoch,
            leader=self.leader,
            reason=reason,
            basis=CopyBasis.OLDER,
        )
        if not isinstance(await self.regional.commit(join), Committed):
            raise RevisionConflict("the fence moved meanwhile")

    async def detach_leases(self, source: ClusterName) -> set[LeaseId]:
        """Take every key of the group off its lease, and return the leases there were.

        A passive copy must not expire by itself. Each transaction also puts the checkpoint of
        `source` as it is, and so counts as an apply and not as a foreign write.
        """
        leases: set[LeaseId] = set()
        for prefix in self.prefixes:
            async for page in self._pages(prefix):
                leased = [item for item in page if item.lease != NO_LEASE]
                leases |= {item.lease for item in leased}
                for start in range(0, len(leased), DETACH_KEYS_MAX):
                    await self._detach(leased[start : start + DETACH_KEYS_MAX], source)
        return leases

    async def _pages(self, prefix: bytes) -> AsyncGenerator[Ordered[KeyValue], None]:
        at, end = prefix_range(prefix)
        has_more = True
        limit = FIRST_KEYS_MAX
        while has_more:
            result = await self.regional.range((at, end), limit=limit, keys_only=True)
            limit = READ_KEYS_MAX
            yield result.items
            has_more = result.more and bool(result.items)
            if has_more:
                at = result.items[-1].key + b"\x00"

    async def _detach(self, leased: list[KeyValue], source: ClusterName) -> None:
        """Take some keys off their leases; the stream may write them meanwhile."""
        key = RegionalKeys.checkpoint(source)
        for _ in range(DETACH_ATTEMPTS_MAX):
            checkpoint = await self.regional.get(key)
            if checkpoint is None:
                raise RevisionConflict(f"nothing of {source} is applied here yet")
            guards = [ModRevisionIs(item.key, item.mod_revision) for item in leased]
            puts: list[Operation] = [Put(item.key, b"", keep_value=True) for item in leased]
            tagged = ModRevisionIs(key, checkpoint.mod_revision)
            outcome = await self.regional.commit(
                Txn(
                    guards=(self.leader, tagged, *guards),
                    operations=(*puts, Put(key, checkpoint.value)),
                )
            )
            if isinstance(outcome, Committed) or self.leader in outcome.broken:
                return
            # A key that the stream has put carries no lease any more; one that ran out is gone.
            moved = {guard.key for guard in outcome.broken if isinstance(guard, ModRevisionIs)}
            leased = [item for item in leased if item.key not in moved]
            if not leased:
                return
        raise RevisionConflict("the stream moved each time keys were taken off their leases")


async def follow_back(
    reversal: Reversal, command: Command, inbound: Inbound, leases: GroupLeases
) -> None:
    """Bring a group that is passive now, and was active until the cut, in step with its successor.

    Raises:
        RevisionConflict: something moved meanwhile; begin again.
    """
    assert command.source is not None
    clock, group = leases.region.clock, command.group
    await reversal.set_aside_foreign(await leases.view(group), command)
    inbound.refresh()
    await inbound.wait_follow(group, command.epoch)
    held = await reversal.detach_leases(command.source)
    await leases.leave(command, held)
    absent = await reversal.expired(command)
    until_ms = clock.now_ms() + BACK_PATIENCE_MS
    while absent and clock.now_ms() < until_ms:
        await clock.sleep_ms(BACK_INTERVAL_MS)
        absent = await reversal.still_absent(absent)
    if absent:
        # Deleted there as well, or a copy from before leases moved with their groups.
        _log.warning("leases.keys_ran_out", group=group, keys=len(absent))
        await reversal.copy_again(await leases.view(group), command, _RAN_OUT)
        inbound.refresh()
        await inbound.wait_follow(group, command.epoch)
