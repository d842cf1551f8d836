"""Claims about the opt-in compactor: what a standby needs stays, but not for ever."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.clock import ManualClock
from meshkit.codec import encode
from meshkit.errors import Compacted
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Revision, Sequence
from meshkit.regional import RegionIncarnation
from meshkit.status import StandbyPosition
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from replicator.compaction import CompactionChoice, CompactionRule, choose
from replicator.compactor import Compactor
from replicator.lag import Anchor, CommitTimes
from replicator.local_history import LocalHistory
from replicator.spool.keep import Standby
from tests.replicator.mesh import A, B, C

ONE = Incarnation("one")
RULE = CompactionRule(keep_ms=60_000, hold_ms=600_000, step_revisions=10)


def steady(seconds: int, *, first: int = 1000) -> CommitTimes:
    """Return what is known of a store with one revision a second."""
    times = CommitTimes()
    for second in range(seconds + 1):
        at_ms = second * 1000
        times.on_anchor(Anchor(sent_ms=at_ms, received_ms=at_ms, revision=Revision(first + second)))
    return times


def standby(target: ClusterName, position: int, age_ms: int | None) -> Standby:
    return Standby(target=target, position=Sequence(position), age_ms=age_ms)


def chosen(
    *standbys: Standby, compacted: int = 0, seconds: int = 1000, rule: CompactionRule = RULE
) -> CompactionChoice:
    return choose(
        rule,
        standbys,
        times=steady(seconds),
        compacted=Revision(compacted),
        now_ms=seconds * 1000,
    )


def test_history_younger_than_it_is_kept_stays() -> None:
    """Watchers of applications come back after a moment, too."""
    assert chosen(standby(B, 2000, 0)).through == 1940


def test_the_slowest_standby_holds_history_back() -> None:
    choice = chosen(standby(B, 2000, 0), standby(C, 1500, 499_000))

    assert (choice.through, choice.held_by) == (1500, C)
    assert choice.left_behind == ()


def test_a_standby_is_left_behind_by_name_after_the_hold() -> None:
    choice = chosen(standby(B, 1900, 99_000), standby(C, 1300, 699_000))

    assert (choice.through, choice.held_by, choice.left_behind) == (1900, B, (C,))
    assert "c stored nothing for 600 s" in choice.why


def test_a_standby_of_unknown_age_is_not_given_up() -> None:
    """A process that has just begun to watch has no right to say how long."""
    choice = chosen(standby(B, 1100, None))

    assert (choice.through, choice.held_by) == (1100, B)


def test_nothing_is_compacted_before_anything_is_known_to_be_old() -> None:
    assert chosen(standby(B, 1050, 0), seconds=50).through is None


def test_few_revisions_are_not_worth_it() -> None:
    choice = chosen(standby(B, 1205, 400_000), compacted=1200)

    assert choice.through is None
    assert choice.why == "b needs it"


def test_a_position_that_is_gone_holds_nothing() -> None:
    assert chosen(standby(B, 1100, None), standby(C, 2000, 0), compacted=1200).through == 1940


@given(
    positions=st.lists(
        st.tuples(st.integers(900, 2000), st.one_of(st.none(), st.integers(0, 900_000))),
        max_size=5,
    ),
    compacted=st.integers(0, 1990),
)
def test_it_never_takes_what_is_needed_within_the_hold(
    positions: list[tuple[int, int | None]], compacted: int
) -> None:
    standbys = [
        standby(ClusterName(f"s{n}"), position, age) for n, (position, age) in enumerate(positions)
    ]

    choice = chosen(*standbys, compacted=compacted)

    if choice.through is not None:
        assert compacted < choice.through <= 1940
        for one in standbys:
            is_needed = one.position >= compacted and (
                one.age_ms is None or one.age_ms < RULE.hold_ms
            )
            if is_needed:
                assert choice.through <= one.position
            elif compacted <= one.position < choice.through:
                assert one.target in choice.left_behind


async def test_it_compacts_the_store_up_to_what_is_written_down_and_no_further() -> None:
    """Also for a standby that this process has never met."""
    clock = ManualClock()
    store, coordination = MemoryStore(clock=clock), MemoryStore(clock=clock)
    identity = RegionIncarnation(cluster=A, incarnation=ONE)
    await store.commit(Txn(operations=(Put(RegionalKeys.incarnation, encode(identity)),)))
    history = LocalHistory(cluster=A, regional=store, coordination=coordination, clock=clock)
    position = StandbyPosition(source=A, target=C, incarnation=ONE, sequence=Sequence(40))
    key = CoordinationKeys.standby_position(A, C)
    await coordination.commit(Txn(operations=(Put(key, encode(position)),)))
    leads = [False]
    compactor = Compactor(
        CompactionRule(keep_ms=10_000, hold_ms=10**9, step_revisions=1),
        store=store,
        clock=clock,
        history=history,
        incarnation=ONE,
        is_leading=lambda: leads[0],
        needs=lambda: {B: Sequence(90), C: None},
    )
    running = asyncio.ensure_future(history.run())
    for n in range(100):
        await store.commit(Txn(operations=(Put(b"/orders/1", b"%d" % n),)))
        await clock.advance_ms(1_000)

    assert (await compactor.compact_once()) is not None
    await store.range((b"/orders/1", b""), revision=Revision(2))
    leads[0] = True
    choice = await compactor.compact_once()

    assert choice is not None
    assert (choice.through, choice.held_by) == (40, C)
    await store.range((b"/orders/1", b""), revision=Revision(40))
    with pytest.raises(Compacted):
        await store.range((b"/orders/1", b""), revision=Revision(39))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
