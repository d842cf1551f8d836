"""Cuts a region off under load, has another promoted, heals, and judges both sides' histories."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import attrs

from chaos.checkers import (
    Verdict,
    check_epochs_rise,
    check_handover,
    check_identical,
    check_inside_segments,
    check_no_ghosts,
    check_one_writer,
)
from chaos.cut_off.sides import tried
from chaos.cut_off.trial import How, Trial
from chaos.cycles.answers import Inquiry
from chaos.cycles.losses import (
    Account,
    check_answers,
    check_kept_or_lost,
    check_statement,
    is_guarded,
)
from chaos.history import History, Write
from chaos.links import Network
from cli.sandbox.sandbox import Sandbox
from meshkit.names import ClusterName
from meshkit.ordinals import Epoch

Json = dict[str, Any]


@attrs.frozen(kw_only=True)
class Isolation:
    """What came of one region that was cut off."""

    verdicts: tuple[Verdict, ...]
    failover: Json
    history: History
    source: ClusterName
    epoch: Epoch
    """The one that ended."""
    cut_ns: int
    kept: frozenset[bytes]
    """The keys in the region's quarantine."""

    @property
    def offences(self) -> list[Verdict]:
        """What was not as it has to be."""
        return [verdict for verdict in self.verdicts if not verdict.is_valid]

    def of_region(self, *, is_guarded_one: bool) -> list[Write]:
        """Return what the region acknowledged in the epoch that ended, after the cut."""
        return [
            w
            for w in self.history.acknowledged()
            if (w.cluster, w.epoch) == (self.source, self.epoch)
            and w.return_ns > self.cut_ns
            and is_guarded(w) == is_guarded_one
        ]

    def handover(self, *, is_guarded_one: bool) -> Verdict:
        """Judge whether the region's last such write came before the first of the next epoch."""
        writes = [
            w
            for w in self.history.writes
            if is_guarded(w) == (is_guarded_one or w.epoch != self.epoch)
        ]
        return check_handover(
            History(writes=writes), before=self.epoch, after=Epoch(self.epoch + 1)
        )


async def isolate(
    sandbox: Sandbox, network: Network, how: How, *, say: Callable[[str], None]
) -> Isolation:
    """Outage the active region off, promote another, heal and judge."""
    async with tried(sandbox, network, how, say) as trial:
        await trial.have_traffic()
        cut = trial.cut()
        try:
            await trial.written_on()
            async with _dying(trial):
                at_promotion = await trial.promote()
                await trial.served()
            took_effect = trial.judged(cut)
        finally:
            await trial.heal(cut)
        await trial.come_back()
        await trial.load.stop_writers()
        return await _judged(trial, at_promotion, took_effect)


async def _judged(trial: Trial, promoted: Mapping[bytes, bytes], cut: Verdict) -> Isolation:
    load = trial.load
    loss = trial.failover["emergency"]["loss"]
    account = Account(
        source=trial.source,
        epoch=trial.epoch,
        certain=loss["target"]["certain"],
        writes=tuple(load.history.writes),
        is_unheard=lambda _key: False,
    )
    kept: frozenset[bytes] = frozenset()
    verdicts = [cut, *trial.rates()]
    if trial.rejoin is not None:
        inquiry = Inquiry(
            load=load,
            cluster=trial.source,
            epoch=trial.epoch,
            rejoin=trial.rejoin,
            audit=(),
            is_whole=False,
        )
        answers = await inquiry.answers()
        kept = next(a.keys for a in answers if a.keys is not None)
        verdicts.append(check_answers(account, answers))
    states, spans = await load.states(), await load.spans()
    guarded = History(writes=[w for w in load.history.writes if is_guarded(w)])
    verdicts += [
        check_statement(account, loss, promoted),
        check_kept_or_lost(account, states, made_again=frozenset()),
        check_no_ghosts(load.history, states),
        check_identical(states),
        check_one_writer(guarded),
        check_inside_segments(load.history, spans),
        check_epochs_rise(spans),
    ]
    found = Isolation(
        verdicts=(),
        failover=trial.failover,
        history=load.history,
        source=trial.source,
        epoch=trial.epoch,
        cut_ns=trial.cut_ns,
        kept=kept,
    )
    return attrs.evolve(found, verdicts=(*verdicts, found.handover(is_guarded_one=True)))


@contextlib.asynccontextmanager
async def _dying(trial: Trial) -> AsyncIterator[None]:
    """Kill the replicators of a half dead region, and start its etcd again and again."""
    if trial.how is not How.HALF_DEAD:
        yield
        return
    for process in trial.sandbox.replicators[trial.source]:
        await asyncio.to_thread(process.kill)
    trial.over(f"the replicators of {trial.source} are dead")
    etcd, is_over = trial.sandbox.etcd(trial.source), asyncio.Event()

    async def keep_restarting() -> None:
        while not is_over.is_set():
            await asyncio.to_thread(etcd.restart)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), timeout=0.5)

    restarting = asyncio.create_task(keep_restarting())
    try:
        yield
    finally:
        is_over.set()
        await restarting
