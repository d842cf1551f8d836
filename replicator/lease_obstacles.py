"""Looks ahead at what would stand in the way of leases, should a group move here.

Not what decides (granting does), but told in time: a check by name refuses a planned failover
before writes are paused.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

import structlog

from meshkit.codec import decode
from meshkit.errors import CorruptRecord, LeaseLost, MeshError
from meshkit.keys import RegionalKeys, parts_below
from meshkit.mirror import PrefixMirror
from meshkit.names import GroupName
from meshkit.ordinals import LeaseId
from meshkit.regional import Fence, FenceMode, LeaseClaim
from meshkit.store.txn import KeyValue, prefix_range
from replicator.agent_ports import Region
from replicator.together import in_parallel

_log = structlog.get_logger()

LOOK_INTERVAL_MS = 10_000
PAGE_KEYS = 500
ATTACHMENTS_MAX = 20_000
"""So many attachments are looked at, and so many leases asked for, in one look."""
LEASES_MAX = 1_000
ASKED_PARALLEL_MAX = 4
NAMED_MAX = 3

Hung = Mapping[GroupName, frozenset[LeaseId]]


class LeaseObstacles:
    """What stands in the way, by group, as of the last look; nothing is said of what is well."""

    def __init__(self, region: Region, *, fences: PrefixMirror, claims: PrefixMirror) -> None:
        self.found: dict[GroupName, str] = {}
        self.region = region
        self._fences = fences
        self._claims = claims

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            try:
                await self.look()
            except MeshError as error:
                _log.info("lease_obstacles.not_seen", why=str(error))
            await self.region.clock.sleep_ms(LOOK_INTERVAL_MS)

    async def look(self) -> None:
        """Look once.

        Raises:
            Unreachable: nothing was learnt.
        """
        hung = await self._hung()
        asked = sorted({lease for leases in hung.values() for lease in leases})[:LEASES_MAX]
        lives = await in_parallel(self._lives, asked, at_most=ASKED_PARALLEL_MAX)
        claimed = self._claimed()
        taken = {
            lease
            for lease, is_there in zip(asked, lives, strict=True)
            if is_there and lease not in claimed
        }
        found = {group: obstacles_of(group, hung, taken=taken) for group in hung}
        self.found.clear()
        self.found.update({group: text for group, text in found.items() if text})

    async def _hung(self) -> Hung:
        """Return which leases keys of each passive copy hang on."""
        hung: dict[GroupName, set[LeaseId]] = defaultdict(set)
        is_passive: dict[GroupName, bool] = {}
        at, end = prefix_range(RegionalKeys.attachments)
        for _ in range(ATTACHMENTS_MAX // PAGE_KEYS):
            result = await self.region.regional.range((at, end), limit=PAGE_KEYS)
            for item in result.items:
                group = _group_of(item)
                if group not in is_passive:
                    is_passive[group] = self._is_passive(group)
                if is_passive[group]:
                    hung[group].add(_lease_in(item))
            if not result.more or not result.items:
                break
            at = result.items[-1].key + b"\x00"
        return {group: frozenset(leases) for group, leases in hung.items()}

    def _is_passive(self, group: GroupName) -> bool:
        item = self._fences.entries.get(RegionalKeys.fence(group))
        return item is not None and decode(Fence, item.value).mode is FenceMode.SUPERSEDED

    def _claimed(self) -> set[LeaseId]:
        claims = (decode(LeaseClaim, item.value) for item in self._claims.entries.values())
        return {own.here for claim in claims for own in claim.leases}

    async def _lives(self, lease: LeaseId) -> bool:
        try:
            await self.region.regional.lease_ttl(lease)
        except LeaseLost:
            return False
        return True


def obstacles_of(group: GroupName, hung: Hung, *, taken: set[LeaseId]) -> str:
    """Return what stands in a group's way: ids that live here, and leases it shares."""
    own = hung[group]
    parts = []
    if here := sorted(own & taken):
        parts.append(f"{_named(here)} lives here already and is not this group's")
    for other, leases in sorted(hung.items()):
        if other != group and (shared := sorted(own & leases)):
            parts.append(f"{_named(shared)} also has keys of group {other}, which stays elsewhere")
    return "; ".join(parts)


def _named(leases: list[LeaseId]) -> str:
    named = ", ".join(f"{lease:x}" for lease in leases[:NAMED_MAX])
    more = f" and {len(leases) - NAMED_MAX} more" if len(leases) > NAMED_MAX else ""
    return f"lease {named}{more}"


def _group_of(item: KeyValue) -> GroupName:
    parts = parts_below(RegionalKeys.attachments, item.key)
    assert parts is not None, "it was read below the prefix"
    return GroupName(parts[0])


def _lease_in(item: KeyValue) -> LeaseId:
    """Return the lease of an attachment, without reading all of it: there may be many."""
    try:
        return LeaseId(int(json.loads(item.value)["lease"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRecord(f"not an attachment: {item.key.decode()}") from error
