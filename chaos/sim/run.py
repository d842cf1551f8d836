"""Runs one seed: begin, safety phase, liveness phase, judgement."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import attrs
import structlog

from chaos.history import Outcome
from chaos.sim.clients import add_writers
from chaos.sim.faults import Chaos
from chaos.sim.judge import audit_problems, unsettled, verdicts, waiting_for
from chaos.sim.loop import NS_PER_MS, Stuck, VirtualLoop, current_domain
from chaos.sim.network import sleep_ns
from chaos.sim.operators import add_caretaker, add_operator, describe
from chaos.sim.plan import Act, Fault, SimPlan, plan_of
from chaos.sim.trace import Trace
from chaos.sim.witness import Shadow, watch_over
from chaos.sim.world import World
from meshkit.names import ClusterName

SETTLE_MS_MAX = 30_000
"""After the faults have healed, all must be well within so much virtual time."""

QUIET_MS_MAX = 5_000
"""And so long after the last write all clusters must hold the same."""

BEGIN_MS_MAX = 20_000
"""So long the mesh may take to begin: where round trips take a good part of `Tr`, leases run out
now and then before they are renewed for the first time."""

ACKNOWLEDGED_AGAIN = 3
"""So many writes must be accepted after the faults."""

LOOK_AGAIN_NS = 100 * NS_PER_MS


@attrs.frozen(kw_only=True)
class Result:
    """How one seed went."""

    seed: int
    digest: str
    """Of every event; equal for equal seeds."""
    problems: tuple[str, ...]
    """What must not be; none for a good run."""
    last_lines: tuple[str, ...] = attrs.field(repr=False)
    acknowledged: int
    moves: int
    """How often authority moved."""
    faults: Mapping[Fault, int]
    """How often each kind of fault took place."""
    acts: Mapping[Act, int]
    """How often operators asked for each thing and were not refused."""
    rejoins: int
    """How many rejoins began."""
    set_aside: int
    """How many writes came to lie in quarantine."""
    promises: int
    """How often a region promised not to open the group."""
    virtual_ms: int
    settled_ms: int
    """How long after the faults all was well again."""
    steps: int


def run_seed(
    seed: int, *, is_live: bool = False, change: Callable[[SimPlan], SimPlan] = lambda plan: plan
) -> Result:
    """Run a seed to its end; with its plan changed, if somebody looks for something particular."""
    # What needs a socket, a thread or a signal is not there, so that nothing can use it.
    loop = VirtualLoop()  # type: ignore[abstract]
    trace = Trace(loop=loop, is_live=is_live)
    with _logging_to(trace), _without_garbage_collection():
        rng = random.Random(seed)
        world = World(plan=change(plan_of(seed, rng)), rng=rng, loop=loop, trace=trace)
        simulation = Simulation(world=world)
        try:
            loop.run_until_complete(simulation.run())
        except Stuck as error:
            world.failures.append(str(error))
        result = simulation.result()
        _take_apart(world)
        loop.close()
        return result


@attrs.define(kw_only=True, eq=False)
class Simulation:
    """One world from its beginning to its judgement."""

    world: World
    chaos: Chaos = attrs.field(init=False)
    problems: list[str] = attrs.field(factory=list, init=False)
    settled_ms: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.chaos = Chaos(world=self.world)

    async def run(self) -> None:
        """Run it."""
        world = self.world
        world.trace.note("sim", f"{world.plan}")
        shadows = watch_over(world)
        world.add_mesh()
        self._start_all()
        await describe(world)
        add_writers(world)
        add_operator(world)
        if world.plan.begins_whole:
            await self._until_whole(shadows)
        self._start_all()
        await self.chaos.run()
        self.chaos.heal()
        world.processes["operator"].kill()
        add_caretaker(world)
        world.processes["caretaker"].start()
        await self._until_well(shadows)
        for process in world.processes.values():
            if process.name.startswith(("writer", "compare")):
                process.kill()
        await self._until_quiet(shadows)
        self.problems += [
            f"{verdict.check}: {verdict.detail}"
            for verdict in verdicts(world, shadows)
            if not verdict.is_valid
        ]
        self.problems += audit_problems(world)

    def _start_all(self) -> None:
        for process in self.world.processes.values():
            process.start()

    async def _until_whole(self, shadows: Mapping[ClusterName, Shadow]) -> None:
        """Wait until every copy is there; nothing hinders them yet."""
        began_ns = self.world.loop.now_ns
        while problem := waiting_for(self.world, shadows):
            if self.world.loop.now_ns > began_ns + BEGIN_MS_MAX * NS_PER_MS:
                self.problems.append(f"{BEGIN_MS_MAX} ms after the beginning: {problem}")
                break
            await sleep_ns(self.world.loop, LOOK_AGAIN_NS // 2)

    async def _until_well(self, shadows: Mapping[ClusterName, Shadow]) -> None:
        """Wait for the end of what was under way, and for writes to be accepted again."""
        world = self.world
        healed_ns = world.loop.now_ns
        wanted = world.history.count(Outcome.OK) + ACKNOWLEDGED_AGAIN
        problem = "no write is accepted"
        while world.loop.now_ns < healed_ns + SETTLE_MS_MAX * NS_PER_MS:
            await sleep_ns(world.loop, LOOK_AGAIN_NS)
            problem = waiting_for(world, shadows)
            if not problem and world.history.count(Outcome.OK) >= wanted:
                break
        else:
            self.problems.append(f"not well {SETTLE_MS_MAX} ms after the faults: {problem}")
        self.settled_ms = (world.loop.now_ns - healed_ns) // NS_PER_MS

    async def _until_quiet(self, shadows: Mapping[ClusterName, Shadow]) -> None:
        """Wait until every cluster holds the same, now that nobody writes."""
        world = self.world
        stopped_ns = world.loop.now_ns
        while problem := unsettled(world, shadows):
            if world.loop.now_ns > stopped_ns + QUIET_MS_MAX * NS_PER_MS:
                self.problems.append(f"{QUIET_MS_MAX} ms after the last write: {problem}")
                break
            await sleep_ns(world.loop, LOOK_AGAIN_NS)

    def result(self) -> Result:
        """Return how it went."""
        world = self.world
        uncaught = [
            f"nobody caught {failure.get('exception')!r} {failure.get('message')}"
            for failure in world.loop.failures
        ]
        return Result(
            seed=world.plan.seed,
            digest=world.trace.digest(),
            problems=(*world.failures, *self.problems, *uncaught),
            last_lines=tuple(world.trace.last_lines()),
            acknowledged=world.history.count(Outcome.OK),
            moves=world.moves,
            faults=self.chaos.done,
            acts=world.acts,
            rejoins=len(world.rejoins),
            set_aside=world.set_aside,
            promises=world.promises,
            virtual_ms=world.loop.now_ns // NS_PER_MS,
            settled_ms=self.settled_ms,
            steps=world.loop.steps,
        )


def _take_apart(world: World) -> None:
    """End every task, those of killed processes too, so that nothing is left behind."""
    world.is_over = True
    loop = world.loop
    for process in world.processes.values():
        process.kill()
    for domain in world.domains:
        loop.revive_domain(domain)
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()

    async def ended() -> None:
        while asyncio.all_tasks(loop) - {asyncio.current_task()}:
            for task in asyncio.all_tasks(loop) - {asyncio.current_task()}:
                task.cancel()
            await sleep_ns(loop, LOOK_AGAIN_NS)

    loop.run_until_complete(ended())


@contextlib.contextmanager
def _logging_to(trace: Trace) -> Iterator[None]:
    """Have the product's log among the lines of a live trace, and nowhere otherwise."""

    def to_trace(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        domain = current_domain()
        words = [str(event.pop("event")), *(f"{key}={value}" for key, value in event.items())]
        trace.show(domain.name if domain else "?", "  . " + " ".join(words))
        raise structlog.DropEvent

    before = structlog.get_config()
    level = logging.DEBUG if trace.is_live else logging.CRITICAL
    structlog.configure(
        processors=[to_trace],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Collect no cycles meanwhile: what a collected generator does would come at no fixed time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
