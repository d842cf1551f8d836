"""Enters what was refused into the audit: of verified peers only, and a bounded number of each.

Whoever is refused again and again would otherwise fill the coordination etcd. What is left out is
counted, and the next entry says how many there were.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import structlog

from coordinator.api.problems import ChecksFailed, problem_of
from coordinator.api.routes import Access, Route
from coordinator.failover.repository import FailoverRepository
from coordinator.governance.audit import MESH_AUDIT, Act
from coordinator.mesh import known_groups
from meshkit.clock import Clock
from meshkit.errors import MeshError
from meshkit.names import FailoverId, GroupName
from meshkit.peer import PeerIdentity
from meshkit.store.port import Store

_log = structlog.get_logger()

AT_ONCE_MAX = 20
"""Refusals of one peer that are entered one by one, however fast they come."""

AGAIN_MS = 60_000
"""After which one more is."""

PEERS_MAX = 1_000
"""Peers whose refusals are counted; beyond that those that were refused first are forgotten."""

TEXT_CHARS_MAX = 500

_STATUSES_OF_CHANGES = frozenset({409, 422})


@attrs.define
class _Allowance:
    """How many refusals of one peer may still be entered."""

    left: int
    since_ms: int
    omitted: int = 0


@attrs.define(kw_only=True, eq=False)
class Refusals:
    """Notes refusals in the audit of the group they are about, or else in that of the mesh."""

    store: Store
    clock: Clock
    _allowances: dict[PeerIdentity, _Allowance] = attrs.field(factory=dict, init=False)

    async def note(
        self, peer: PeerIdentity, route: Route, names: Mapping[str, str], error: MeshError
    ) -> None:
        """Enter a refusal, if it is one. What cannot be entered is logged: it stays refused."""
        if not _is_audited(route, error):
            return
        allowance = self._allowance(peer)
        if not allowance.left:
            allowance.omitted += 1
            return
        allowance.left -= 1
        facts = {
            "request": f"{route.method} {route.path}",
            **{name: value[:TEXT_CHARS_MAX] for name, value in names.items()},
            "code": error.code,
            "detail": str(error)[:TEXT_CHARS_MAX],
        }
        if allowance.omitted:
            facts["omitted_before"] = str(allowance.omitted)
        act = Act(actor=str(peer), action="request.refused", facts=facts)
        try:
            failovers = FailoverRepository(store=self.store, clock=self.clock)
            await failovers.append_audit(await self._chain(failovers, names), act)
            allowance.omitted = 0
        except MeshError as failed:
            allowance.omitted += 1
            _log.warning("refusal.not_audited", why=str(failed), actor=str(peer), **facts)

    async def _chain(self, failovers: FailoverRepository, names: Mapping[str, str]) -> GroupName:
        """Return whose audit it belongs in; only groups that are there have one of their own."""
        groups = await known_groups(self.store)
        group = GroupName(names.get("group", ""))
        if group in groups:
            return group
        if "failover" in names:
            found = await failovers.find(FailoverId(names["failover"]), groups)
            if found is not None:
                return found.record.group
        return MESH_AUDIT

    def _allowance(self, peer: PeerIdentity) -> _Allowance:
        now_ms = self.clock.now_ms()
        known = self._allowances.get(peer)
        if known is None:
            while len(self._allowances) >= PEERS_MAX:
                del self._allowances[next(iter(self._allowances))]
            known = self._allowances[peer] = _Allowance(left=AT_ONCE_MAX, since_ms=now_ms)
        more = (now_ms - known.since_ms) // AGAIN_MS
        known.left = min(AT_ONCE_MAX, known.left + more)
        known.since_ms += more * AGAIN_MS
        return known


def _is_audited(route: Route, error: MeshError) -> bool:
    """Whether it was not allowed, or a change was refused; a failed check is entered already."""
    status = problem_of(error)["status"]
    is_change = route.access is Access.OPERATE
    is_refusal = status == 403 or (is_change and status in _STATUSES_OF_CHANGES)
    return is_refusal and not isinstance(error, ChecksFailed)
