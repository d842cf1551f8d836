"""The leases that belong to groups in one region: granted under known ids, and taken back.

A lease is granted only after a claim with its id was stored, so an id that exists already can be
told from somebody else's. Only leases without keys are ever revoked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs
import structlog

from meshkit.codec import decode, encode
from meshkit.errors import Conflict, LeaseLost, Refused, RevisionConflict
from meshkit.keys import RegionalKeys
from meshkit.model import LeasePolicy
from meshkit.names import FailoverId, GroupName
from meshkit.ordinals import ABSENT, NO_LEASE, LeaseId, Revision
from meshkit.regional import GroupLease, LeaseClaim
from meshkit.store.port import Store
from meshkit.store.txn import (
    Committed,
    Delete,
    Guard,
    ModRevisionIs,
    Operation,
    Put,
    Txn,
    prefix_range,
)
from replicator.together import in_parallel

_log = structlog.get_logger()

LEASES_MAX = 10_000
"""Of one group: their ids are stored in one key."""
GRANTS_PARALLEL_MAX = 32
NAMED_MAX = 5
"""So many ids are named in a refusal."""


class LeasesTaken(Refused):
    """Leases of the group's keys live here already, and belong to somebody else."""

    code = "leases_taken"

    def __init__(self, leases: Iterable[LeaseId]) -> None:
        self.leases = tuple(leases)
        named = ", ".join(f"{lease:x}" for lease in self.leases[:NAMED_MAX])
        more = f" and {len(self.leases) - NAMED_MAX} more" if len(self.leases) > NAMED_MAX else ""
        super().__init__(
            f"lease {named}{more} lives here already and is not this group's",
            hint="revoke it here, or set the group's policy `leases` to drop or remap",
        )


@attrs.frozen(kw_only=True)
class LeaseClaims:
    """What is claimed in one region, while its replicator leads."""

    regional: Store
    leader: Guard

    async def read(self, group: GroupName) -> tuple[LeaseClaim | None, Revision]:
        """Return the group's claim, and the revision to put the next one over."""
        item = await self.regional.get(RegionalKeys.lease_claim(group))
        return (decode(LeaseClaim, item.value), item.mod_revision) if item else (None, ABSENT)

    async def settle(
        self,
        group: GroupName,
        wanted: Mapping[LeaseId, int],
        *,
        failover: FailoverId,
        policy: LeasePolicy,
    ) -> LeaseClaim:
        """Grant each wanted lease (id to TTL in seconds) here under its id, or as policy says.

        May be repeated: what was granted before is found, and given its full time again.

        Raises:
            LeasesTaken: ids live here that are not ours, and the policy is to refuse.
        """
        before, revision = await self.read(group)
        known = {own.lease: own for own in before.leases} if before else {}
        ours = {own.here for own in known.values()} - {NO_LEASE}
        intent = {
            **known,
            **{id_: GroupLease(lease=id_, ttl_s=ttl, here=id_) for id_, ttl in wanted.items()},
        }
        if len(intent) > LEASES_MAX:
            raise Refused(f"{len(intent)} leases are more than {LEASES_MAX}, which is what moves")
        claim = _claim(group, failover, intent)
        revision = await self._put(claim, revision)

        async def grant(lease: LeaseId) -> bool:
            return await self._grant(group, lease, wanted[lease], ours=ours)

        asked = sorted(wanted)
        is_granted = await in_parallel(grant, asked, at_most=GRANTS_PARALLEL_MAX)
        taken = [lease for lease, granted in zip(asked, is_granted, strict=True) if not granted]
        if not taken:
            return claim
        _log.warning("leases.taken", group=group, leases=len(taken), policy=policy.value)
        for lease in taken:
            # Never claimed as it is: whoever tries again must not take it for its own.
            intent.pop(lease)
        if policy is LeasePolicy.REFUSE:
            await self._put(_claim(group, failover, intent), revision)
            raise LeasesTaken(taken)
        for lease in taken:
            here = await self._another(wanted[lease], policy)
            intent[lease] = GroupLease(lease=lease, ttl_s=wanted[lease], here=here)
        claim = _claim(group, failover, intent)
        await self._put(claim, revision)
        return claim

    async def claim(
        self, group: GroupName, leases: Mapping[LeaseId, int], *, failover: FailoverId
    ) -> None:
        """Store that these leases here, which its clients granted, are the group's."""
        before, revision = await self.read(group)
        known = {own.lease: own for own in before.leases} if before else {}
        for id_, ttl_s in leases.items():
            known[id_] = GroupLease(lease=id_, ttl_s=ttl_s, here=id_)
        await self._put(_claim(group, failover, known), revision)

    async def again(self, claim: LeaseClaim, leases: Iterable[LeaseId]) -> None:
        """Grant what was claimed and has run out since."""
        for own in claim.leases:
            if own.lease in leases and own.here != NO_LEASE:
                try:
                    await self.regional.grant(ttl_s=own.ttl_s, lease_id=own.here)
                except Conflict:
                    continue

    async def release(self, group: GroupName, prefixes: tuple[bytes, ...]) -> bool:
        """Revoke what was claimed and has no keys; return whether nothing is left to do.

        A lease with keys of the group is left for later, one with other keys to whoever put them.
        """
        claim, revision = await self.read(group)
        if claim is None:
            return True

        async def let_go(own: GroupLease) -> bool:
            return await self._let_go(group, own, prefixes)

        held = [own for own in claim.leases if own.here != NO_LEASE]
        gone = await in_parallel(let_go, held, at_most=GRANTS_PARALLEL_MAX)
        left = {own.lease: own for own, is_gone in zip(held, gone, strict=True) if not is_gone}
        if left:
            after = _claim(group, claim.failover, left)
            if after != claim:
                await self._put(after, revision)
            return False
        await self._write(Delete(RegionalKeys.lease_claim(group)), group, revision)
        _log.info("leases.released", group=group, leases=len(held))
        return True

    async def _let_go(self, group: GroupName, own: GroupLease, prefixes: tuple[bytes, ...]) -> bool:
        try:
            keys = await self.regional.lease_keys(own.here)
        except LeaseLost:
            return True
        if not keys:
            if not await self._is_claimed_by_another(group, own.here):
                await self.regional.revoke(own.here)
            return True
        return not any(key.startswith(prefixes) for key in keys)

    # --- one lease -----------------------------------------------------------------------------

    async def _grant(
        self, group: GroupName, lease: LeaseId, ttl_s: int, *, ours: set[LeaseId]
    ) -> bool:
        """Grant a lease under its id; False if that is somebody else's here."""
        try:
            await self.regional.grant(ttl_s=ttl_s, lease_id=lease)
        except Conflict:
            try:
                is_ours = lease in ours and not await self.regional.lease_keys(lease)
                if not is_ours and not await self._is_claimed_by_another(group, lease):
                    return False
                await self.regional.keep_alive(lease)
            except LeaseLost as error:
                raise RevisionConflict(f"{error}: it has just run out; granting again") from error
        return True

    async def _is_claimed_by_another(self, group: GroupName, lease: LeaseId) -> bool:
        """Return whether another group brought this lease here: one lease may serve several."""
        result = await self.regional.range(prefix_range(RegionalKeys.lease_claims))
        claims = (decode(LeaseClaim, item.value) for item in result.items)
        return any(
            own.here == lease for claim in claims if claim.group != group for own in claim.leases
        )

    async def _another(self, ttl_s: int, policy: LeasePolicy) -> LeaseId:
        if policy is LeasePolicy.REMAP:
            return (await self.regional.grant(ttl_s=ttl_s)).lease_id
        return NO_LEASE

    # --- storing -------------------------------------------------------------------------------

    async def _put(self, claim: LeaseClaim, revision: Revision) -> Revision:
        put = Put(RegionalKeys.lease_claim(claim.group), encode(claim))
        return await self._write(put, claim.group, revision)

    async def _write(self, operation: Operation, group: GroupName, revision: Revision) -> Revision:
        guard = ModRevisionIs(RegionalKeys.lease_claim(group), revision)
        outcome = await self.regional.commit(
            Txn(guards=(self.leader, guard), operations=(operation,))
        )
        if not isinstance(outcome, Committed):
            raise RevisionConflict("the claim on leases moved meanwhile")
        return outcome.revision


def _claim(
    group: GroupName, failover: FailoverId, leases: Mapping[LeaseId, GroupLease]
) -> LeaseClaim:
    ordered = tuple(leases[lease] for lease in sorted(leases))
    return LeaseClaim(group=group, failover=failover, leases=ordered)
