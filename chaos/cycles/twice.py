"""The region that is promoted dies as well, after its pivot and before it serves.

An emergency to the third takes the place of the failover that cannot go on (S18); both regions come
back, rejoin, and the first one is failed back to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos.checkers import Verdict, check_identical, check_no_ghosts, check_one_writer
from chaos.cycles.command import mesh
from chaos.cycles.cycle import GROUP, Cycle, cycling, ready
from chaos.cycles.draw import Back, Consent, Delay, End, Fate, Third, Variation
from chaos.cycles.losses import Account, check_kept_or_lost, check_statement, is_guarded
from chaos.cycles.region import Region
from chaos.history import History
from cli.sandbox.sandbox import Sandbox
from meshkit import failpoints
from meshkit.names import ClusterName
from meshkit.store.txn import prefix_range

POINT = "agent.open.received"
VARIATION = Variation(
    number=1,
    end=End.KILLED,
    third=Third.LEVEL,
    delay=Delay.PAUSED,
    consent=Consent.UNKNOWN,
    back=Back.TOGETHER,
    fate=Fate.KEPT,
    home=0,
    away=0,
    has_tail=True,
    fails_back_at_once=False,
    no_fence_wait=False,
)


async def live_twice(
    sandbox: Sandbox, armed: Path, *, say: Callable[[str], None]
) -> tuple[list[Verdict], dict[str, Any]]:
    """Lose two regions one after the other and win both back; return what was judged."""
    async with cycling(sandbox, VARIATION, say) as cycle:
        second = Region(sandbox=sandbox, cluster=cycle.target)
        await cycle.have_traffic()
        await cycle.spread()
        await cycle.lose()
        await _lose_the_promoted(cycle, second, armed)
        return await _win_back(cycle, second)


async def _lose_the_promoted(cycle: Cycle, second: Region, armed: Path) -> None:
    """Promote, and kill the region when it is told to open."""
    failpoints.arm(armed, POINT)
    wanted = ("clusters", "promote", cycle.target, "-g", GROUP, "--emergency", "--yes")
    told = (*wanted, "--reason", "the first", "--accept-loss", "unknown", "--detach")

    async def is_struck() -> bool:
        return failpoints.taken_by(armed, POINT) is not None

    said = await mesh(cycle.sandbox, *told)
    assert said.code == 0, str(said)
    await cycle.until(is_struck, f"{cycle.target} was told to open")
    await second.end(End.KILLED, cycle.writer)
    cycle.over(f"{cycle.target} died when it was told to open")
    shown = await cycle.shown()
    assert (shown["active"], shown["epoch"]) == (cycle.target, cycle.epoch + 1), shown


async def _win_back(cycle: Cycle, second: Region) -> tuple[list[Verdict], dict[str, Any]]:
    never_served, cycle.target, cycle.third = cycle.target, cycle.third, cycle.target
    await cycle.promote()
    failover = cycle.failover
    at_promotion = await _content(cycle, cycle.target)
    await cycle.served(cycle.target, failover["epoch_after"])
    assert failover["source"] == never_served, failover
    for region in (second, cycle.region):
        await region.come_back(End.KILLED, Back.TOGETHER, cycle.writer)
    cycle.over("both are back")
    await cycle.rejoined()
    await cycle.fail_back()
    await cycle.served(cycle.source, cycle.failback["epoch_after"])
    await cycle.writer.end()
    await cycle.load.stop_writers()
    await ready(cycle.load)

    loss = failover["emergency"]["loss"]
    history = cycle.load.history
    account = Account(
        source=cycle.source,
        epoch=cycle.epoch,
        certain=loss["target"]["certain"],
        writes=tuple(history.writes),
        is_unheard=cycle.is_unheard,
    )
    states = await cycle.load.states()
    verdicts = [
        check_statement(account, loss, at_promotion),
        check_kept_or_lost(account, states, made_again=frozenset()),
        check_no_ghosts(history, states),
        check_identical(states),
        check_one_writer(History(writes=[w for w in history.writes if is_guarded(w)])),
    ]
    return verdicts, failover


async def _content(cycle: Cycle, cluster: ClusterName) -> dict[bytes, bytes]:
    everything = prefix_range(cycle.load.prefix.encode())
    result = await cycle.load.stores[cluster].range(everything)
    return {item.key: item.value for item in result.items}
