"""What may be asked of a failover that runs: to be undone, tried again, or to lose something."""

from __future__ import annotations

from typing import Any

import attrs

from coordinator.api import views
from coordinator.failover import machine
from coordinator.failover.loss import LossBound
from coordinator.failover.past import PastFailovers
from coordinator.failover.record import Failover, Phase
from coordinator.failover.repository import FailoverRepository, Loaded
from coordinator.governance.audit import Act
from coordinator.mesh import known_groups
from meshkit.clock import Clock
from meshkit.codec import to_plain
from meshkit.errors import Conflict, NotFound, RevisionConflict
from meshkit.names import FailoverId
from meshkit.peer import PeerIdentity
from meshkit.store.port import Store

Json = dict[str, Any]

ATTEMPTS_MAX = 5
"""How often something is asked while the record moves under it."""


@attrs.frozen(kw_only=True)
class Steering:
    """Asks of running failovers; each ask is one guarded transaction, and is audited."""

    store: Store
    clock: Clock

    async def load(self, failover: FailoverId) -> Loaded:
        """Return one failover.

        Raises:
            NotFound: there is none of that id.
        """
        loaded = await self._failovers().find(failover, await known_groups(self.store))
        if loaded is None:
            raise NotFound(
                f"there is no failover {failover!r}", hint="see them: mesh failovers list"
            )
        return loaded

    async def repeated(self, before: Loaded, bound: LossBound | None, peer: PeerIdentity) -> Json:
        """Return the answer to a repeated request; a loss that it accepts by now is accepted."""
        if bound is None or not machine.wants_consent(before.record):
            return unchanged(before)
        return await self.consent(before.record.id, bound, peer)

    async def consent(self, failover: FailoverId, bound: LossBound, peer: PeerIdentity) -> Json:
        """Accept a loss within a bound; the failover goes on if that covers what was stated.

        Raises:
            Refused: it is no emergency, or does not wait for consent any more.
        """
        event = machine.ConsentGiven(bound=bound, actor=str(peer))
        for _ in range(ATTEMPTS_MAX):
            before = await self.load(failover)
            machine.check_consent(before.record)
            after = machine.advance(before.record, event, now_ms=self.clock.wall_ms())
            if after == before.record:
                return unchanged(before)
            facts = {"failover": failover, "accepted": to_plain(bound)}
            act = Act(actor=str(peer), action="failover.loss_accepted", facts=facts)
            what = f"loss accepted by {peer}"
            try:
                stored = await self._failovers().save(before, after, what=what, acts=[act])
            except RevisionConflict:
                continue
            view = views.failover_view(stored.record, stored.revision)
            return {"changed": True, "failover": view}
        raise Conflict(f"failover {failover} moves too fast; try again")

    async def abort(self, failover: FailoverId, reason: str, peer: PeerIdentity) -> Json:
        """Undo a failover, if authority has not moved yet.

        Raises:
            Refused: it has moved, or the failover has ended otherwise.
        """
        return await self._ask(
            failover, machine.AbortRequested(actor=str(peer), reason=reason), peer
        )

    async def resume(self, failover: FailoverId, reason: str, peer: PeerIdentity) -> Json:
        """Try a held failover again; whoever repeats the request changes nothing.

        Raises:
            Refused: it is not held.
        """
        return await self._ask(
            failover, machine.ResumeRequested(actor=str(peer), reason=reason), peer
        )

    async def _ask(
        self,
        failover: FailoverId,
        event: machine.AbortRequested | machine.ResumeRequested,
        peer: PeerIdentity,
    ) -> Json:
        is_abort = isinstance(event, machine.AbortRequested)
        verb = "abort" if is_abort else "resume"
        what = f"{verb} requested by {peer}"
        for _ in range(ATTEMPTS_MAX):
            before = await self.load(failover)
            if is_abort:
                if before.record.undoing or before.record.phase is Phase.ROLLED_BACK:
                    return unchanged(before)
                machine.check_abort(before.record)
            elif before.record.phase is not Phase.HELD:
                if await self._ended_its_hold(before.record, what):
                    return unchanged(before)
                machine.check_resume(before.record)
            after = machine.advance(before.record, event, now_ms=self.clock.wall_ms())
            act = Act(
                actor=str(peer),
                action=f"failover.{verb}_requested",
                facts={"failover": failover, "reason": event.reason},
            )
            try:
                stored = await self._failovers().save(before, after, what=what, acts=[act])
            except RevisionConflict:
                continue
            view = views.failover_view(stored.record, stored.revision)
            return {"changed": True, "failover": view}
        raise Conflict(f"failover {failover} moves too fast; try again")

    async def _ended_its_hold(self, record: Failover, what: str) -> bool:
        """Return whether it was held, and goes on because of exactly this: a repeated request."""
        events = await self._past().events(record)
        held = next((e for e in reversed(events) if e.record.phase is Phase.HELD), None)
        return held is not None and any(
            event.number == held.number + 1 and event.what == what for event in events
        )

    def _failovers(self) -> FailoverRepository:
        return FailoverRepository(store=self.store, clock=self.clock)

    def _past(self) -> PastFailovers:
        return PastFailovers(store=self.store)


def unchanged(loaded: Loaded) -> Json:
    """Return the answer to what was asked or done before."""
    return {"changed": False, "failover": views.failover_view(loaded.record, loaded.revision)}
