"""Claims about history headroom: learnt from compactions, a lower bound, and unknown until then."""

import asyncio

from meshkit.clock import ManualClock
from meshkit.names import ClusterName
from meshkit.ordinals import Revision, Sequence
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from replicator.lag import Anchor
from replicator.limits import Limits
from replicator.local_history import LocalHistory
from replicator.retention import Retention


def history_of(store: MemoryStore, clock: ManualClock) -> LocalHistory:
    return LocalHistory(
        cluster=ClusterName("a"), regional=store, coordination=MemoryStore(clock=clock), clock=clock
    )


def look(retention: Retention, at_ms: int, head: int, compacted: int = 0) -> None:
    anchor = Anchor(sent_ms=at_ms, received_ms=at_ms, revision=Revision(head))
    retention.on_look(anchor, Revision(compacted))


def periodic(rate: int, *, keep_s: int = 300, every_s: int = 300, for_s: int = 1200) -> Retention:
    """Return what is learnt of an etcd that keeps `keep_s` and compacts every so often."""
    retention, compacted = Retention(limits=Limits()), 0
    for second in range(0, for_s + 1, 5):
        if second and second % every_s == 0 and second >= keep_s:
            compacted = max(compacted, 1000 + rate * (second - keep_s))
        look(retention, second * 1000, 1000 + rate * second, compacted)
    return retention


def test_headroom_is_unknown_before_a_compaction_was_seen() -> None:
    """Nobody can know; a large number would be believed."""
    retention = Retention(limits=Limits())
    for second in range(0, 600, 5):
        look(retention, second * 1000, 10 * second + 1)

    assert retention.headroom_ms(Sequence(5991), now_ms=600_000) is None


def test_headroom_is_unknown_while_the_depth_of_the_only_compaction_is() -> None:
    """A process that has just started saw the compaction, but not the commits it reached to."""
    retention = Retention(limits=Limits())
    look(retention, 0, 1000, 100)
    look(retention, 5_000, 1005, 700)

    assert retention.headroom_ms(Sequence(1005), now_ms=5_000) is None


def test_a_position_that_is_compacted_has_no_headroom() -> None:
    retention = Retention(limits=Limits())
    look(retention, 0, 1000, 700)

    assert retention.headroom_ms(Sequence(699), now_ms=0) == 0
    assert retention.headroom_ms(Sequence(700), now_ms=0) is None


def test_a_standby_that_stops_now_has_what_periodic_compaction_keeps() -> None:
    """The alert's number: how long may the outage last that begins now."""
    retention = periodic(rate=10)

    headroom_ms = retention.headroom_ms(Sequence(retention.head), now_ms=1200_000)

    assert headroom_ms is not None
    assert 285_000 <= headroom_ms <= 300_000


def test_headroom_melts_while_a_standby_lags() -> None:
    retention = periodic(rate=10)
    at_1100_s = Sequence(1000 + 10 * 1100)

    headroom_ms = retention.headroom_ms(at_1100_s, now_ms=1200_000)

    assert headroom_ms is not None
    # 290 s kept at least, 100 s old; and the next compaction is due in 300 s, not before.
    assert headroom_ms == 300_000
    for second in range(1205, 1400, 5):
        look(retention, second * 1000, 1000 + 10 * second, retention.compacted or 0)
    later_ms = retention.headroom_ms(at_1100_s, now_ms=1395_000)
    assert later_ms is not None
    assert 100_000 <= later_ms <= 105_000


def test_a_store_compacted_by_count_is_judged_by_count() -> None:
    """Ten times the writes leave a tenth of the time, whatever the age was in the quiet before."""
    retention = Retention(limits=Limits())
    head, compacted = 10_000, 0
    for second in range(0, 1201, 5):
        head += 5 if second < 600 else 50
        if second and second % 300 == 0:
            compacted = head - 5_000
        look(retention, second * 1000, head, compacted)

    headroom_ms = retention.headroom_ms(Sequence(head), now_ms=1200_000)

    assert headroom_ms is not None
    # 5,000 revisions at 10/s; not the 600 s and more that the quiet time kept.
    assert 450_000 <= headroom_ms <= 500_000


def test_quiet_nights_do_not_cry_wolf_by_day() -> None:
    """Periodic compaction keeps few revisions at night: that is no bound for the day."""
    retention, compacted, head = Retention(limits=Limits()), 1, 1000
    heads: dict[int, int] = {}
    for second in range(0, 3001, 5):
        head += 5 if second < 2000 else 5_000
        heads[second] = head
        if second > 300 and second % 300 == 0:
            compacted = heads[second - 300]
        look(retention, second * 1000, head, compacted)

    headroom_ms = retention.headroom_ms(Sequence(head - 20_000), now_ms=3000_000)

    assert headroom_ms is not None
    assert headroom_ms >= 270_000


async def test_a_look_finds_what_was_compacted_meanwhile() -> None:
    """etcd names the compacted revision only when it refuses a watch."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    for number in range(20):
        await store.commit(Txn(operations=(Put(b"/k", str(number).encode()),)))
    history = history_of(store, clock)
    await history.look()
    assert history.retention.compacted == 0

    await store.compact(Revision(9))
    await history.look()

    assert history.retention.compacted == 9
    assert history.headroom_ms(Sequence(8)) == 0


async def test_looking_goes_on_after_the_store_was_away() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    history = history_of(store, clock)
    task = asyncio.ensure_future(history.run())
    try:
        store.partition()
        await clock.advance_ms(12_000)
        store.heal()
        await store.commit(Txn(operations=(Put(b"/k", b"1"),)))
        await clock.advance_ms(6_000)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert history.retention.head == 2
