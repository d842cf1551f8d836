"""Carries the leases of applications along with their group (docs/leases.md, 5.1 rule 7).

For any step of a failover that runs at the target before the pivot: `grant`. For the old active
cluster once it follows: `leave`. What comes after `open` needs no call: `run` hangs keys on their
leases wherever a group is open, and takes back what a failover that ended otherwise has left.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

import structlog

from fencing.fence_view import FenceView, view_of, view_reads
from meshkit.codec import decode
from meshkit.commands import Command
from meshkit.errors import Compacted, CorruptRecord, LeaseLost, MeshError, RevisionConflict
from meshkit.keys import CoordinationKeys, RegionalKeys, last_part
from meshkit.mirror import PrefixMirror
from meshkit.model import Group, LeasePolicy
from meshkit.names import FailoverId, GroupName
from meshkit.ordinals import LeaseId, Revision
from meshkit.regional import Attachment, Fence, FenceMode, LeaseClaim
from meshkit.store.txn import (
    Committed,
    Delete,
    Get,
    Guard,
    KeyValue,
    ModRevisionIs,
    Operation,
    Put,
    Txn,
    prefix_range,
)
from replicator.agent_ports import Region
from replicator.lease_claims import LeaseClaims
from replicator.lease_obstacles import LeaseObstacles
from replicator.lease_terms import GONE_TTL_S
from replicator.together import in_parallel, together
from replicator.transaction import nested

_log = structlog.get_logger()

HANG_KEYS_MAX = 60
"""Keys that one transaction hangs on their leases: each is a guard and two operations."""
FIRST_ATTACHMENTS_MAX = 100
"""Small enough that the first pages of many groups share a request: most have none."""
READ_ATTACHMENTS_MAX = 1_000
HANG_ATTEMPTS_MAX = 20
"""A batch is derived anew so often when its keys move, before the others get a turn."""
GROUPS_PARALLEL_MAX = 8
RETRY_MS = 1_000
"""Until what could not be done is tried again."""
NO_FAILOVER = FailoverId("")


class GroupLeases:
    """The leases of every group of one region, while its replicator leads.

    Invariant: at most one of `grant`, `leave` and the keeping of a group is under way.
    """

    def __init__(self, region: Region, groups: PrefixMirror) -> None:
        self.region = region
        self._groups = groups
        self._claims = LeaseClaims(regional=region.regional, leader=region.leader)
        regional, clock = region.regional, region.clock
        self._fences = PrefixMirror(regional, RegionalKeys.fences, clock=clock)
        self._claimed = PrefixMirror(regional, RegionalKeys.lease_claims, clock=clock)
        self.obstacles = LeaseObstacles(region, fences=self._fences, claims=self._claimed)
        self._hung: dict[GroupName, int] = {}
        self._locks: defaultdict[GroupName, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._pending: set[GroupName] = set()
        self._left: set[GroupName] = set()
        self._due = asyncio.Event()

    # --- for the steps of a failover -----------------------------------------------------------

    async def grant(self, command: Command, *, may_refuse: bool = True) -> None:
        """Grant here, under the same ids, the leases that keys of the group's copy hang on.

        To be called at the target when nothing more is applied under the old epoch, and before
        authority moves. May be repeated, by whoever leads. Without `may_refuse` an id that is
        somebody else's is dropped where the policy is to refuse: a rescue is not locked out by it.

        Raises:
            LeasesTaken: an id lives here and is somebody else's; the group must not open here.
            MeshError: try again.
        """
        async with self._locks[command.group]:
            wanted = await self._attached(command.group)
            if wanted:
                await self._claims.settle(
                    command.group,
                    wanted,
                    failover=command.failover,
                    policy=self._policy(command.group, may_refuse=may_refuse),
                )
                _log.info("leases.granted", group=command.group, leases=len(wanted))

    async def leave(self, command: Command, held: Iterable[LeaseId]) -> None:
        """Give up here the leases that have gone with the group, so that it can come back.

        To be called at the old active cluster when it follows the new one and its copies hang on
        no lease any more; `held` are those they were taken off. What the reverse stream took off
        before is known by what the keys hung on at the cut.
        """
        async with self._locks[command.group]:
            gone = set(held) | await self._hung_at_the_cut(command)
            if gone:
                terms = dict.fromkeys(gone, GONE_TTL_S)
                await self._claims.claim(command.group, terms, failover=command.failover)
            if gone or RegionalKeys.lease_claim(command.group) in self._claimed.entries:
                await self._claims.release(command.group, self._prefixes(command.group))

    async def view(self, group: GroupName) -> FenceView:
        """Return the group's fence here, with all that belongs to it."""
        return (await self._keys(group, []))[0]

    # --- keeping -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep what the fences ask for until cancelled."""
        for mirror in (self._fences, self._claimed):
            mirror.on_change(self._on_change)
        await together(
            self._fences.run(),
            self._claimed.run(),
            self._keep(),
            self._try_again(),
            self._look_ahead(),
        )

    def _on_change(self, keys: frozenset[bytes]) -> None:
        """Look at the groups whose fence or claim has changed, and at no other."""
        self._pending.update(GroupName(last_part(key)) for key in keys)
        self._due.set()

    async def _try_again(self) -> None:
        while True:
            await self.region.clock.sleep_ms(RETRY_MS)
            if self._left:
                self._pending |= self._left
                self._left.clear()
                self._due.set()

    async def _look_ahead(self) -> None:
        for mirror in (self._fences, self._claimed):
            await mirror.ready.wait()
        await self.obstacles.run()

    async def _keep(self) -> None:
        for mirror in (self._fences, self._claimed, self._groups):
            await mirror.ready.wait()
        while True:
            await self._due.wait()
            self._due.clear()
            groups = sorted(self._pending)
            self._pending.clear()
            is_done = await in_parallel(self._keep_one, groups, at_most=GROUPS_PARALLEL_MAX)
            self._left |= {g for g, done in zip(groups, is_done, strict=True) if not done}

    async def _keep_one(self, group: GroupName) -> bool:
        """Do what one group's fence asks for; return whether nothing is left to do."""
        item = self._fences.entries.get(RegionalKeys.fence(group))
        if item is None:
            return True
        try:
            fence = decode(Fence, item.value)
            match fence.mode:
                case FenceMode.OPEN:
                    return await self._keep_open(fence)
                case FenceMode.SUPERSEDED:
                    return await self._keep_passive(group)
                case _:
                    return True
        except MeshError as error:
            _log.warning("leases.delayed", group=group, why=str(error))
            return False

    async def _keep_open(self, fence: Fence) -> bool:
        if self._hung.get(fence.group) != fence.epoch:
            await self.hang(fence)
            self._hung[fence.group] = fence.epoch
        return True

    async def _keep_passive(self, group: GroupName) -> bool:
        """Take back what was granted for a promotion, once its failover is over."""
        item = self._claimed.entries.get(RegionalKeys.lease_claim(group))
        if item is None:
            return True
        active = await self.region.coordination.get(CoordinationKeys.failover_active(group))
        if active is not None and _id_in(active) == decode(LeaseClaim, item.value).failover:
            return False
        async with self._locks[group]:
            view = await self.view(group)
            if view.mode is not FenceMode.SUPERSEDED:
                return False
            return await self._claims.release(group, self._prefixes(group))

    # --- hanging keys on their leases ----------------------------------------------------------

    async def hang(self, fence: Fence) -> None:
        """Hang every attached key of an open group on its lease, but for those that moved since.

        These are ordinary writes of the epoch: other clusters learn of them by the stream.
        """
        async with self._locks[fence.group]:
            count = await self._hang_all(fence)
        if count:
            _log.info("leases.hung", group=fence.group, keys=count)

    async def _hang_all(self, fence: Fence) -> int:
        group = fence.group
        count = attempts = 0
        claim: LeaseClaim | None = None
        while page := await self._attachments(group, limit=HANG_KEYS_MAX):
            if claim is None:
                claim, _ = await self._claims.read(group)
            claim = await self._settle_late(fence, claim, page.values())
            if await self._hang_some(group, page, claim):
                count, attempts = count + len(page), 0
            elif (attempts := attempts + 1) > HANG_ATTEMPTS_MAX:
                raise RevisionConflict("keys move while they are to be hung on their leases")
        return count

    async def _settle_late(
        self, fence: Fence, claim: LeaseClaim | None, attachments: Iterable[Attachment]
    ) -> LeaseClaim:
        """Grant what was not granted before the group opened: then it is too late to refuse."""
        known = {own.lease for own in claim.leases} if claim else set()
        missing = {a.lease: a.ttl_s for a in attachments if a.lease not in known}
        if claim is not None and not missing:
            return claim
        return await self._claims.settle(
            fence.group,
            missing,
            failover=fence.failover or NO_FAILOVER,
            policy=self._policy(fence.group, may_refuse=False),
        )

    async def _hang_some(
        self, group: GroupName, page: Mapping[bytes, Attachment], claim: LeaseClaim
    ) -> bool:
        """Hang some keys; return False if one of them moved, or a lease had run out."""
        view, items = await self._keys(group, [one.key for one in page.values()])
        if view.mode is not FenceMode.OPEN or view.opened is None:
            raise RevisionConflict(f"{group} is no longer open here")
        here = {own.lease: own.here for own in claim.leases}
        guards: list[Guard] = [
            self.region.leader,
            ModRevisionIs(RegionalKeys.fence(group), view.fence_revision),
        ]
        operations: list[Operation] = [Delete(place) for place in page]
        for one in page.values():
            item = items.get(one.key)
            if item is None or item.mod_revision > view.opened:
                # Its client has written it since, under whatever lease, or deleted it.
                continue
            guards.append(ModRevisionIs(one.key, item.mod_revision))
            operations.append(Put(one.key, b"", lease=here[one.lease], keep_value=True))
        txn = Txn(guards=tuple(guards), operations=nested(operations))
        try:
            return isinstance(await self.region.regional.commit(txn), Committed)
        except LeaseLost:
            # Nobody kept one alive since it was granted: it begins anew, and may run out again.
            await self._claims.again(claim, {one.lease for one in page.values()})
            return False

    # --- reading -------------------------------------------------------------------------------

    async def _attachments(
        self, group: GroupName, *, limit: int, after: bytes | None = None
    ) -> dict[bytes, Attachment]:
        """Return some of what is stored, by the key it is stored under."""
        start, end = prefix_range(RegionalKeys.attachments_of(group))
        begin = start if after is None else after + b"\x00"
        result = await self.region.regional.range((begin, end), limit=limit)
        return {item.key: decode(Attachment, item.value) for item in result.items}

    async def _attached(self, group: GroupName) -> dict[LeaseId, int]:
        """Return every lease that keys of the copy here hang on, with its TTL."""
        return {one.lease: one.ttl_s for one in (await self._one_each(group)).values()}

    async def _one_each(self, group: GroupName) -> dict[LeaseId, Attachment]:
        """Return one attachment of each lease."""
        found: dict[LeaseId, Attachment] = {}
        after: bytes | None = None
        limit = FIRST_ATTACHMENTS_MAX
        while page := await self._attachments(group, limit=limit, after=after):
            for one in page.values():
                found.setdefault(one.lease, one)
            after = max(page)
            if len(page) < limit:
                break
            limit = READ_ATTACHMENTS_MAX
        return found

    async def _hung_at_the_cut(self, command: Command) -> set[LeaseId]:
        """Return the leases of which a key hung here when this cluster's epoch ended."""
        if command.lineage is None:
            return set()
        cut = Revision(command.lineage.sequence)

        async def hung(one: Attachment) -> LeaseId | None:
            result = await self.region.regional.range((one.key, b""), revision=cut, keys_only=True)
            return one.lease if any(item.lease == one.lease for item in result.items) else None

        stored = list((await self._one_each(command.group)).values())
        try:
            found = await in_parallel(hung, stored, at_most=GROUPS_PARALLEL_MAX)
        except Compacted:
            return set()
        return {lease for lease in found if lease is not None}

    async def _keys(
        self, group: GroupName, keys: list[bytes]
    ) -> tuple[FenceView, dict[bytes, KeyValue]]:
        """Return the group's fence and some of its keys, read at one revision."""
        reads = view_reads(group)
        gets = tuple(Get(key, keys_only=True) for key in keys)
        outcome = await self.region.regional.commit(Txn(operations=(*reads, *gets)))
        assert isinstance(outcome, Committed), "a transaction without guards is never rejected"
        items = {item.key: item for found in outcome.reads[len(reads) :] for item in found}
        return view_of(group, outcome.reads[: len(reads)]), items

    def _policy(self, group: GroupName, *, may_refuse: bool) -> LeasePolicy:
        item = self._groups.entries.get(CoordinationKeys.group(group))
        policy = decode(Group, item.value).policy.leases if item else LeasePolicy.REFUSE
        return LeasePolicy.DROP if policy is LeasePolicy.REFUSE and not may_refuse else policy

    def _prefixes(self, group: GroupName) -> tuple[bytes, ...]:
        item = self._groups.entries.get(CoordinationKeys.group(group))
        return decode(Group, item.value).prefix_bytes if item else ()


def _id_in(active: KeyValue) -> str:
    """Return the id of the failover that runs, from the coordinator's own record of it."""
    try:
        return str(json.loads(active.value)["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRecord(f"not a running failover: {active.value[:80]!r}") from error
