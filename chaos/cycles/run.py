"""Runs cycle after cycle on one sandbox, and judges each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

import attrs

from chaos.checkers import (
    Verdict,
    check_epochs_rise,
    check_identical,
    check_inside_segments,
    check_no_ghosts,
    check_one_writer,
    check_traffic,
)
from chaos.cycles.answers import Inquiry, audit_of, statements
from chaos.cycles.cycle import Cycle, Json, cycling, ready
from chaos.cycles.draw import Variation
from chaos.cycles.losses import (
    Account,
    Answer,
    check_answers,
    check_excess,
    check_kept_or_lost,
    check_stated_alike,
    check_statement,
    is_guarded,
)
from chaos.history import History
from cli.sandbox.sandbox import Sandbox
from meshkit.names import ClusterName
from meshkit.store.txn import prefix_range

CLUSTERS = ("us-east", "eu-west", "ap-south")
ACKNOWLEDGED_MIN = 150


@attrs.frozen(kw_only=True)
class Lived:
    """What came of one cycle."""

    variation: Variation
    verdicts: tuple[Verdict, ...]
    marks: dict[str, float]
    acknowledged: int
    lost: int
    excess: int
    failover: Json

    @property
    def offences(self) -> list[Verdict]:
        """What was not as it has to be."""
        return [verdict for verdict in self.verdicts if not verdict.is_valid]


@contextlib.asynccontextmanager
async def started(
    directory: Path, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Sandbox]:
    """Run a sandbox with a coordinator in each of three regions."""
    sandbox = Sandbox.create(
        directory,
        clusters=CLUSTERS,
        timing="fast",
        coordinators=len(CLUSTERS),
        environ=environ,
    )
    try:
        await sandbox.start()
        yield sandbox
    finally:
        await sandbox.stop()


async def live(
    sandbox: Sandbox, cycles: Iterable[Variation], *, say: Callable[[str], None]
) -> AsyncIterator[Lived]:
    """Run cycles one after the other and yield what came of each."""
    for variation in cycles:
        say(f"cycle {variation.number}: {variation}")
        async with cycling(sandbox, variation, say) as cycle:
            yield await _live_one(cycle)


async def _live_one(cycle: Cycle) -> Lived:
    await cycle.have_traffic()
    await cycle.spread()
    await cycle.lose()
    await cycle.promote()
    at_promotion = await _content(cycle, cycle.target)
    await cycle.served(cycle.target, cycle.failover["epoch_after"])
    await cycle.come_back()
    if cycle.variation.fails_back_at_once:
        await cycle.fail_back()
        rejoins = await cycle.rejoined()
    else:
        rejoins = await cycle.rejoined()
        await cycle.fail_back()
    await cycle.served(cycle.source, cycle.failback["epoch_after"])
    await cycle.writer.end()
    await cycle.load.stop_writers()
    cycle.over("the writers have ended")

    loss = cycle.failover["emergency"]["loss"]
    account = Account(
        source=cycle.source,
        epoch=cycle.epoch,
        certain=loss["target"]["certain"],
        writes=tuple(cycle.load.history.writes),
        is_unheard=cycle.is_unheard,
    )
    audit = await audit_of(cycle.load)
    answers, stated = await asyncio.gather(
        _answers(cycle, rejoins, audit), statements(cycle.load, cycle.failover, audit)
    )
    cycle.over("every way to ask was asked")
    tail, excess = _keys(answers.get(cycle.source, [])), _keys(answers.get(cycle.third, []))
    verdicts = [
        check_answers(account, answers.get(cycle.source, [])),
        check_statement(account, loss, at_promotion),
        check_stated_alike(stated),
    ]
    if excess or cycle.ahead_by:
        verdicts.append(
            check_excess(account, answers.get(cycle.third, []), ahead_by=cycle.ahead_by)
        )
    await cycle.dispose([(cycle.source, tail), (cycle.third, excess)])
    verdicts += await _judged(cycle, account)
    await cycle.tidy()
    await ready(cycle.load)
    cycle.over("judged, and clean again")
    return Lived(
        variation=cycle.variation,
        verdicts=tuple(verdicts),
        marks=cycle.marks,
        acknowledged=len(cycle.load.history.acknowledged()),
        lost=len(tail),
        excess=len(excess),
        failover=cycle.failover,
    )


async def _content(cycle: Cycle, cluster: ClusterName) -> dict[bytes, bytes]:
    result = await cycle.load.stores[cluster].range(prefix_range(cycle.load.prefix.encode()))
    return {item.key: item.value for item in result.items}


async def _answers(
    cycle: Cycle, rejoins: dict[ClusterName, Json], audit: list[Json]
) -> dict[ClusterName, list[Answer]]:
    asked = {
        cluster: Inquiry(
            load=cycle.load,
            cluster=cluster,
            epoch=cycle.epoch,
            rejoin=rejoin,
            audit=audit,
            is_whole=cluster == cycle.source,
        )
        for cluster, rejoin in rejoins.items()
    }
    told = await asyncio.gather(*(inquiry.answers() for inquiry in asked.values()))
    return dict(zip(asked, told, strict=True))


def _keys(answers: list[Answer]) -> frozenset[bytes]:
    return next((a.keys for a in answers if a.keys is not None), frozenset())


async def _judged(cycle: Cycle, account: Account) -> list[Verdict]:
    load = cycle.load
    states = await load.states()
    spans = await load.spans()
    writes = tuple(load.history.writes)
    guarded = History(writes=[write for write in writes if is_guarded(write)])
    whole = attrs.evolve(account, writes=writes)
    return [
        check_traffic(load.history, acknowledged_min=ACKNOWLEDGED_MIN),
        check_kept_or_lost(whole, states, made_again=cycle.made_again),
        check_no_ghosts(load.history, states),
        check_identical(states),
        check_one_writer(guarded),
        check_inside_segments(load.history, spans),
        check_epochs_rise(spans),
    ]
