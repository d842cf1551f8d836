"""Bugs to plant in the product, each of which some seed must find, or the checks check nothing.

Most change transactions on their way to an etcd, so they do not depend on how the code is cut.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any

import attrs

from chaos.sim.client import SimStore
from chaos.sim.plan import Act, Fault, SimPlan
from chaos.sim.world import GROUP, PREFIX
from coordinator.leadership import Crew
from coordinator.mesh import Mesh
from coordinator.rejoin.keeper import Keeper, Member, _returned
from coordinator.rejoin.repository import LoadedRejoin
from fencing import fence
from fencing.fence_view import FenceView
from meshkit.commands import Answer, Command
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.ordinals import Revision, Token
from meshkit.quarantine import SetAside
from meshkit.store.txn import (
    Attempt,
    CreateRevisionIs,
    Delete,
    Guard,
    ModRevisionIs,
    Operation,
    Outcome,
    Put,
    Txn,
    ValueIs,
)
from replicator.agent import Agent
from replicator.divergence import Divergence
from replicator.source import Tail

Tamper = Callable[[Txn], tuple[Txn, ...]]
"""Returns what is committed instead, one after the other."""

Plant = Callable[[], contextlib.AbstractContextManager[object]]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _tampering(tamper: Tamper) -> Plant:
    original = SimStore.commit

    async def commit(self: SimStore, txn: Txn, *, timeout_ms: int | None = None) -> Outcome:
        first, *rest = tamper(txn)
        outcome = await original(self, first, timeout_ms=timeout_ms)
        for more in rest:
            outcome = await original(self, more, timeout_ms=timeout_ms)
        return outcome

    return lambda: _replaced(SimStore, "commit", commit)


def _without_guards(is_dropped: Callable[[Guard], bool]) -> Plant:
    def stripped(txn: Txn) -> Txn:
        return attrs.evolve(
            txn,
            guards=tuple(guard for guard in txn.guards if not is_dropped(guard)),
            operations=tuple(
                Attempt(stripped(o.txn)) if isinstance(o, Attempt) else o for o in txn.operations
            ),
        )

    def tamper(txn: Txn) -> tuple[Txn, ...]:
        return (stripped(txn),)

    return _tampering(tamper)


def _is_permit_delete(operation: Operation) -> bool:
    return isinstance(operation, Delete) and operation.key == RegionalKeys.permit(GROUP)


def _drain_keeps_permit(txn: Txn) -> tuple[Txn, ...]:
    if not any(isinstance(o, Put) and o.key.endswith(b"/cut") for o in txn.operations):
        return (txn,)
    kept = tuple(o for o in txn.operations if not _is_permit_delete(o))
    return (attrs.evolve(txn, operations=kept),)


def _routing_later(txn: Txn) -> tuple[Txn, ...]:
    """Commit what an authority's move does to routing in a transaction of its own."""
    keys = {o.key for o in txn.operations if isinstance(o, Put)}
    if not {CoordinationKeys.authority(GROUP), CoordinationKeys.routing(GROUP)} <= keys:
        return (txn,)

    def is_routing(operation: Operation) -> bool:
        return isinstance(operation, Put) and operation.key == CoordinationKeys.routing(GROUP)

    return (
        attrs.evolve(txn, operations=tuple(o for o in txn.operations if not is_routing(o))),
        Txn(operations=tuple(o for o in txn.operations if is_routing(o))),
    )


def _is_data(operation: Operation) -> bool:
    return isinstance(operation, Put | Delete) and operation.key.startswith(PREFIX.encode())


def _is_apply(txn: Txn) -> bool:
    return any(
        isinstance(o, Put) and o.key.startswith(RegionalKeys.checkpoints) for o in txn.operations
    )


def _checkpoint_first(txn: Txn) -> tuple[Txn, ...]:
    data = tuple(o for o in txn.operations if _is_data(o))
    if not data or not _is_apply(txn):
        return (txn,)
    rest = tuple(o for o in txn.operations if not _is_data(o))
    return (attrs.evolve(txn, operations=rest), Txn(operations=data))


def _forget_last_write(txn: Txn) -> tuple[Txn, ...]:
    data = tuple(o for o in txn.operations if _is_data(o))
    if len(data) < 5 or not _is_apply(txn):
        return (txn,)
    return (attrs.evolve(txn, operations=tuple(o for o in txn.operations if o is not data[-1])),)


def _opens_at_once() -> contextlib.AbstractContextManager[object]:
    """Have converge answered and the epoch opened, whatever was applied: two checks of three."""

    async def converged(self: Agent, command: Command, token: Token) -> Answer:
        return self._answers.done(command, token, watermark=command.cut)

    async def fits(self: Agent, command: Command, _lineage: object, _token: object) -> FenceView:
        return await self._view(command.group)

    stack = contextlib.ExitStack()
    stack.enter_context(_replaced(Agent, "_converge", converged))
    stack.enter_context(_replaced(Agent, "_fit_to_open", fits))
    return stack


def _opens_in_spite_of_promise() -> contextlib.AbstractContextManager[object]:
    stack = contextlib.ExitStack()
    stack.enter_context(_replaced(fence, "promised", lambda _: None))
    stack.enter_context(_without_guards(_on_key(RegionalKeys.promise(GROUP)))())
    return stack


def _successor_does_not_go_on() -> contextlib.AbstractContextManager[None]:
    async def find_nothing(self: Crew) -> Revision:
        return (await self.store.range((CoordinationKeys.groups, b""))).revision

    return _replaced(Crew, "_find_running", find_nothing)


def _rejoins_by_one_report() -> contextlib.AbstractContextManager[None]:
    """Take a report from before a failover had its source follow for that of one that returns."""

    async def confirmed(
        _self: Keeper, mesh: Mesh, stored: Mapping[Member, LoadedRejoin]
    ) -> list[Member]:
        return [member for member in _returned(mesh) if member not in stored]

    return _replaced(Keeper, "_confirmed", confirmed)


def _finds_no_tail() -> contextlib.AbstractContextManager[None]:
    """Let a cluster that lost an epoch be written over without looking."""

    async def nothing(_self: Divergence) -> AsyncGenerator[list[SetAside], None]:
        for batch in list[list[SetAside]]():
            yield batch

    return _replaced(Divergence, "entries", nothing)


def _sets_all_but_one_aside(txn: Txn) -> tuple[Txn, ...]:
    entries = [
        o
        for o in txn.operations
        if isinstance(o, Put) and o.key.startswith(RegionalKeys.quarantines)
    ]
    if len(entries) < 2:
        return (txn,)
    kept = tuple(o for o in txn.operations if o is not entries[0])
    return (attrs.evolve(txn, operations=kept),)


def _torn(txn: Txn) -> tuple[Txn, ...]:
    """Apply the data, then the rest."""
    data = tuple(o for o in txn.operations if _is_data(o))
    if not data or not _is_apply(txn):
        return (txn,)
    rest = tuple(o for o in txn.operations if not _is_data(o))
    return (Txn(guards=txn.guards, operations=data), Txn(operations=rest))


def _undrain_without_permit(txn: Txn) -> tuple[Txn, ...]:
    """Leave the fence drained where it should open again."""
    if any(isinstance(o, Delete) and o.key.endswith(b"/cut") for o in txn.operations):
        return (attrs.evolve(txn, operations=()),)
    return (txn,)


def _watch_skips_one() -> contextlib.AbstractContextManager[None]:
    follow = Tail._follow  # noqa: SLF001 -- to break it

    async def skipping(self: Tail) -> bool:
        self._read_through += 1  # type: ignore[assignment]
        return await follow(self)

    return _replaced(Tail, "_follow", skipping)


def _on_key(*keys: bytes) -> Callable[[Guard], bool]:
    return lambda guard: (
        isinstance(guard, ModRevisionIs | CreateRevisionIs | ValueIs) and guard.key in keys
    )


def _below(prefix: bytes) -> Callable[[Guard], bool]:
    return lambda guard: isinstance(guard, ModRevisionIs) and guard.key.startswith(prefix)


@attrs.frozen(kw_only=True)
class Planted:
    """One bug."""

    what: str
    plant: Plant
    faults: tuple[Fault, ...] = ()
    """What has to go wrong for it to show."""
    fault_ms_max: int = 1_500
    keeps: bool = False
    """Whether the group goes on by promise where the coordination etcd is lost."""
    rescue_weight: int = 0
    """How often operators begin emergencies meanwhile."""
    seed: int = 1
    """From here on some seed soon finds it."""

    def aimed(self, plan: SimPlan) -> SimPlan:
        """Return a seed's plan with many failovers, and these faults right in them."""
        return attrs.evolve(
            plan,
            faults=self.faults,
            strike_chance=0.3 if self.faults else 0.0,
            fault_interval_ms=1_500,
            fault_ms_max=self.fault_ms_max,
            act_interval_ms=300,
            acts=(Act.ABORT, Act.RESUME),
            is_hurried=False,
            rescue_weight=self.rescue_weight,
            chaos_ms=4_000,
            replicators=2,
            coordinators=2,
            begins_whole=True,
            wall_error_ms_max=0,
            keeps=self.keeps,
        )


PLANTED: Mapping[str, Planted] = {
    "drain-keeps-permit": Planted(
        what="the drain leaves the permit where it is",
        plant=_tampering(_drain_keeps_permit),
    ),
    "gate-without-compare": Planted(
        what="guarded writes do not compare the permit",
        plant=_without_guards(
            lambda g: isinstance(g, ValueIs) and g.key == RegionalKeys.permit(GROUP)
        ),
        seed=1,
    ),
    "replicator-without-term": Planted(
        what="replicators do not compare that they lead",
        plant=_without_guards(_on_key(RegionalKeys.replicator_leader)),
        fault_ms_max=5_000,
        faults=(Fault.STOP, Fault.KILL),
        seed=10,
    ),
    "transitions-unguarded": Planted(
        what="a failover's transition compares neither term nor record nor authority",
        plant=_without_guards(
            lambda g: (
                _on_key(CoordinationKeys.coordinator_leader)(g)
                or _below(CoordinationKeys.failovers)(g)
                or _below(CoordinationKeys.authorities)(g)
                or _below(CoordinationKeys.routings)(g)
            )
        ),
        faults=(Fault.STOP, Fault.KILL),
        seed=27,
    ),
    "opens-in-spite-of-promise": Planted(
        what="a cluster opens an epoch though it promised another one not to",
        plant=_opens_in_spite_of_promise,
        faults=(Fault.LOSE_COORDINATION,),
        fault_ms_max=4_500,
        keeps=True,
        rescue_weight=12,
    ),
    "opens-at-once": Planted(
        what="the target opens before it has applied the cut",
        plant=_opens_at_once,
        faults=(Fault.BREAK_LINKS, Fault.STORM),
        seed=10,
    ),
    "successor-does-not-go-on": Planted(
        what="a new coordinator does not drive what it finds",
        plant=_successor_does_not_go_on,
        faults=(Fault.KILL,),
        seed=10,
    ),
    "undrain-undoes-nothing": Planted(
        what="undrain answers and leaves the fence drained",
        plant=_tampering(_undrain_without_permit),
        faults=(Fault.STOP, Fault.BREAK_LINKS),
        seed=7,
    ),
    "torn": Planted(
        what="an apply is two transactions",
        plant=_tampering(_torn),
    ),
    "routing-later": Planted(
        what="routing moves in a transaction of its own",
        plant=_tampering(_routing_later),
    ),
    "checkpoint-first": Planted(
        what="the checkpoint is stored before the data",
        plant=_tampering(_checkpoint_first),
    ),
    "forgets-a-write": Planted(
        what="an apply of several writes leaves the last one out",
        plant=_tampering(_forget_last_write),
        seed=2,
    ),
    "rejoins-by-one-report": Planted(
        what="a rejoin begins by a report from before its cluster followed",
        plant=_rejoins_by_one_report,
        seed=4,
    ),
    "finds-no-tail": Planted(
        what="a cluster that lost an epoch is copied over without a look at its own writes",
        plant=_finds_no_tail,
        faults=(Fault.ISOLATE, Fault.BREAK_LINKS),
        fault_ms_max=4_500,
        rescue_weight=12,
    ),
    "sets-all-but-one-aside": Planted(
        what="one write of a tail never gets into quarantine",
        plant=_tampering(_sets_all_but_one_aside),
        faults=(Fault.ISOLATE, Fault.BREAK_LINKS),
        fault_ms_max=4_500,
        rescue_weight=12,
    ),
    "answer-ends-any-holder": Planted(
        what="an order to stop that is obeyed late ends the proof of life of whoever holds by then",
        plant=_without_guards(
            lambda g: isinstance(g, ValueIs) and g.key == CoordinationKeys.holder(GROUP)
        ),
        faults=(Fault.ISOLATE, Fault.BREAK_LINKS),
        fault_ms_max=4_500,
        rescue_weight=12,
        seed=20,
    ),
    "watch-skips-one": Planted(
        what="the source's watch resumes one revision too late",
        plant=_watch_skips_one,
        seed=2,
    ),
}
