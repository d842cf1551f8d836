"""What one seed means: the shape of the mesh, its weather, and which faults come how often. Pure.

Swarm testing: every seed enables only some kinds of faults, at rates of its own, and only some of
what operators do, so that no kind drowns the others and rare combinations come up.
"""

from __future__ import annotations

import enum
import random

import attrs

from chaos.sim.network import Weather
from fencing.timing import Timing, check
from replicator.limits import Limits


class Fault(enum.Enum):
    """What may happen to the mesh."""

    KILL = "kill a process"
    STOP = "stop a process"
    LOSE_REGION = "lose a region"
    FREEZE_REGION = "freeze a region"
    KILL_ETCD = "kill an etcd"
    FREEZE_ETCD = "freeze an etcd"
    ELECT = "elect a leader in an etcd"
    PARTITION = "partition two sites"
    ISOLATE = "isolate a site"
    COMPACT = "compact an etcd"
    STORM = "bad weather"
    BREAK_LINKS = "break the links"
    LOSE_COORDINATION = "lose the coordination etcd at some sites"


class Act(enum.Enum):
    """What operators do."""

    MOVE = "begin a planned failover"
    ABORT = "abort the failover"
    RESUME = "resume the failover"
    RESCUE = "begin an emergency failover"
    EVACUATE = "evacuate a cluster"
    VERIFY = "have the copies compared"


WEIGHTS = {Act.MOVE: 6, Act.ABORT: 2, Act.RESUME: 2, Act.EVACUATE: 2, Act.VERIFY: 2}
"""How often operators do what a plan enables. They always move; how often they rescue, it says."""


_KEEPS = 0.25
"""Of seeds. Drawn by itself, so that the other seeds mean what they always did."""

_DRAWN = [fault for fault in Fault if fault is not Fault.LOSE_COORDINATION]

_SOMETIMES = [act for act in WEIGHTS if act is not Act.MOVE]

TIMING = Timing(
    coordination_ttl_ms=3_000,
    regional_ttl_ms=1_000,
    round_interval_ms=250,
    election_timeout_ms=200,
    leader_ttl_ms=2_000,
)
check(TIMING)


@attrs.frozen(kw_only=True)
class SimPlan:
    """All that is decided before the first event; later draws come from the same generator."""

    seed: int
    clusters: tuple[str, ...]
    replicators: int
    coordinators: int
    writers: int
    compare_writers: int
    write_interval_ms: int
    weather: Weather
    limits: Limits
    faults: tuple[Fault, ...]
    fault_interval_ms: int
    fault_ms_max: int
    strike_chance: float
    """Of a fault within moments of a transition of a failover."""
    strike_delay_ms: float
    acts: tuple[Act, ...]
    """What operators do besides moving and rescuing."""
    rescue_weight: int
    """How often operators begin an emergency, against six planned failovers."""
    act_interval_ms: int
    is_hurried: bool
    """Whether they ask for the next thing right after the one before has ended."""
    pause_budget_ms: int
    begins_whole: bool
    """Whether faults wait until every copy is there."""
    chaos_ms: int
    rate_ppm_max: int
    wall_error_ms_max: int
    keeps: bool = False
    """Whether the group's writes may go on by promise where the coordination etcd is lost."""

    def weight_of(self, act: Act) -> int:
        """Return how often operators do something, against all else that they do."""
        if act is Act.RESCUE:
            return self.rescue_weight
        return WEIGHTS[act] if act is Act.MOVE or act in self.acts else 0


def plan_of(seed: int, rng: random.Random) -> SimPlan:
    """Draw a plan."""
    wanted = rng.randint(1, 4)
    plan = SimPlan(
        seed=seed,
        clusters=("a", "b", "c")[: 3 if rng.random() < 0.25 else 2],
        replicators=1 if rng.random() < 0.6 else 2,
        coordinators=rng.choice((1, 2, 2)),
        writers=rng.choice((1, 2)),
        compare_writers=rng.choice((0, 0, 1)),
        write_interval_ms=rng.choice((40, 80, 160)),
        weather=_weather(rng),
        limits=_limits(rng),
        faults=tuple(rng.sample(_DRAWN, k=wanted)) if rng.random() < 0.95 else (),
        fault_interval_ms=rng.choice((300, 700, 1_500)),
        fault_ms_max=rng.choice((300, 1_500, 4_500)),
        strike_chance=rng.choice((0.0, 0.1, 0.3)),
        strike_delay_ms=rng.choice((5.0, 50.0)),
        acts=tuple(rng.sample(_SOMETIMES, k=rng.randint(0, len(_SOMETIMES)))),
        rescue_weight=rng.choice((0, 0, 4, 10)),
        act_interval_ms=rng.choice((200, 400, 800)),
        is_hurried=rng.random() < 0.3,
        pause_budget_ms=rng.choice((600, 1_500, 3_000)),
        begins_whole=rng.random() < 0.8,
        chaos_ms=rng.choice((2_000, 3_000, 4_500)),
        rate_ppm_max=rng.choice((0, 100, 4_500)),
        wall_error_ms_max=rng.choice((0, 0, 3_600_000)),
    )
    return keeping(plan) if random.Random(f"keeps {seed}").random() < _KEEPS else plan


def keeping(plan: SimPlan) -> SimPlan:
    """Return the plan with a group that keeps, and the fault that this is for."""
    faults = (*plan.faults, Fault.LOSE_COORDINATION)
    return attrs.evolve(plan, keeps=True, faults=faults)


def _weather(rng: random.Random) -> Weather:
    return Weather(
        near_ms=rng.choice((0.3, 0.3, 5.0)),
        far_ms=rng.choice((1.0, 5.0, 40.0)),
        jitter=rng.choice((0.1, 1.0, 3.0)),
        spike=rng.choice((0.0, 0.0, 0.01)),
        spike_ms=rng.choice((100.0, 800.0)),
        loss=rng.choice((0.0, 0.0, 0.002, 0.02)),
    )


def _limits(rng: random.Random) -> Limits:
    """Limits small enough that every bound is met, and slow enough to be quick to simulate."""
    return Limits(
        frame_writes_max=rng.choice((3, 1000)),
        batch_writes_max=rng.choice((3, 2000)),
        page_keys_max=rng.choice((3, 50)),
        catch_up_revisions=rng.choice((20, 5_000)),
        catch_up_watches=2,
        catch_up_span_revisions=7,
        linger_ms=rng.choice((0, 5)),
        coverage_interval_ms=200,
        head_interval_ms=400,
        silence_ms_max=1_500,
        checkpoint_idle_ms=2_000,
        held_ms_min=300,
        held_ms_max=2_000,
        parent_patience_ms=1_000,
        redial_ms_min=50,
        redial_ms_max=600,
        hello_ms_max=1_500,
        anchor_interval_ms=200,
        catching_up_ms=1_000,
        stalled_ms=3_000,
    )
