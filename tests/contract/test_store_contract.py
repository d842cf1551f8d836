"""What the docstrings of `meshkit.store.port` promise, of every implementation."""

from __future__ import annotations

import asyncio

import pytest

from meshkit.errors import (
    Compacted,
    Conflict,
    InvalidInput,
    LeaseLost,
    TooLarge,
)
from meshkit.ordinals import LeaseId, Revision
from meshkit.store.port import RevisionChanges
from meshkit.store.txn import (
    WHOLE_STORE,
    Committed,
    CreateRevisionIs,
    Delete,
    Exists,
    Get,
    ModRevisionIs,
    Nest,
    NoneModifiedSince,
    Put,
    Rejected,
    Txn,
    ValueIs,
    absent,
)
from tests.contract.conftest import DEADLINE_S, Subject, soon


async def put(subject: Subject, **values: str) -> Revision:
    """Put several keys in one transaction and return its revision."""
    operations = tuple(Put(subject.key(k), v.encode()) for k, v in values.items())
    outcome = await subject.store.commit(Txn(operations=operations))
    assert isinstance(outcome, Committed)
    return outcome.revision


# Reads and writes


async def test_all_keys_of_a_transaction_share_its_revision(subject: Subject) -> None:
    revision = await put(subject, a="1", b="2")

    a = await subject.store.get(subject.key("a"))
    b = await subject.store.get(subject.key("b"))

    assert a is not None
    assert b is not None
    assert (a.value, b.value) == (b"1", b"2")
    assert {a.mod_revision, b.mod_revision, a.create_revision, b.create_revision} == {revision}


async def test_a_key_that_is_not_there_reads_as_none(subject: Subject) -> None:
    assert await subject.store.get(subject.key("nothing")) is None


async def test_version_and_create_revision_follow_the_life_of_a_key(subject: Subject) -> None:
    created = await put(subject, a="1")
    changed = await put(subject, a="2")
    second = await subject.store.get(subject.key("a"))
    await subject.store.commit(Txn(operations=(Delete(subject.key("a")),)))
    reborn = await put(subject, a="3")
    third = await subject.store.get(subject.key("a"))

    assert second is not None
    assert third is not None
    assert (second.create_revision, second.mod_revision, second.version) == (created, changed, 2)
    assert (third.create_revision, third.mod_revision, third.version) == (reborn, reborn, 1)


async def test_a_transaction_that_changes_nothing_does_not_raise_the_revision(
    subject: Subject,
) -> None:
    revision = await put(subject, a="1")

    nothing = await subject.store.commit(Txn(operations=(Delete(subject.key("gone")),)))
    read = await subject.store.commit(Txn(operations=(Get(subject.key("a")),)))
    after = await put(subject, a="2")

    assert isinstance(nothing, Committed)
    assert isinstance(read, Committed)
    assert (nothing.revision, nothing.deleted, read.revision) == (revision, 0, revision)
    assert after == revision + 1


async def test_reads_answer_the_top_level_gets_in_order(subject: Subject) -> None:
    await put(subject, a="1", b="2", c="3")
    start, end = subject.keys

    outcome = await subject.store.commit(
        Txn(
            operations=(
                Get(subject.key("c")),
                Put(subject.key("d"), b"4"),
                Get(subject.key("gone")),
                Nest((Get(subject.key("a")),)),
                Get(start, end, limit=2, keys_only=True),
            )
        )
    )

    assert isinstance(outcome, Committed)
    shown = [[(item.key, item.value) for item in read] for read in outcome.reads]
    assert shown == [
        [(subject.key("c"), b"3")],
        [],
        [(subject.key("a"), b""), (subject.key("b"), b"")],
    ]


async def test_a_range_delete_counts_what_it_deleted(subject: Subject) -> None:
    await put(subject, a="1", b="2", c="3", d="4")

    outcome = await subject.store.commit(
        Txn(
            operations=(
                Delete(subject.key("a"), subject.key("c")),
                Nest((Delete(subject.key("d")),)),
            )
        )
    )

    assert isinstance(outcome, Committed)
    assert outcome.deleted == 3
    left = await subject.store.range(subject.keys)
    assert [item.key for item in left.items] == [subject.key("c")]


# Guards


async def test_guards_that_hold_let_the_transaction_through(subject: Subject) -> None:
    first = await put(subject, a="1")
    second = await put(subject, a="2")

    outcome = await subject.store.commit(
        Txn(
            guards=(
                ModRevisionIs(subject.key("a"), second),
                CreateRevisionIs(subject.key("a"), first),
                ValueIs(subject.key("a"), b"2"),
                Exists(subject.key("a")),
                absent(subject.key("b")),
                CreateRevisionIs(subject.key("b"), Revision(0)),
                NoneModifiedSince(subject.keys, second),
            ),
            operations=(Put(subject.key("b"), b""),),
        )
    )

    assert isinstance(outcome, Committed)
    assert outcome.revision == second + 1


async def test_a_rejected_transaction_names_exactly_the_broken_guards(subject: Subject) -> None:
    """A caller decides by which guard broke: losing the term is not losing a race."""
    first = await put(subject, a="1")
    second = await put(subject, a="2")
    a, b = subject.key("a"), subject.key("b")
    broken = (
        ModRevisionIs(a, first),
        CreateRevisionIs(a, second),
        ValueIs(a, b"1"),
        ValueIs(b, b""),
        Exists(b),
        NoneModifiedSince(subject.keys, first),
        absent(a),
    )
    held = (ModRevisionIs(a, second), Exists(a), ValueIs(a, b"2"), absent(b))

    outcome = await subject.store.commit(
        Txn(
            guards=held + broken,
            operations=(Put(b, b"never"),),
            otherwise=(Get(a), Get(b)),
        )
    )

    assert isinstance(outcome, Rejected)
    assert outcome.broken == broken
    assert outcome.revision == second
    assert [[item.value for item in read] for read in outcome.reads] == [[b"2"], []]
    assert await subject.store.get(b) is None


async def test_a_range_guard_does_not_see_deletions(subject: Subject) -> None:
    await put(subject, a="1")
    revision = await put(subject, b="1")
    await subject.store.commit(Txn(operations=(Delete(subject.key("a")),)))

    outcome = await subject.store.commit(
        Txn(guards=(NoneModifiedSince(subject.keys, revision),), operations=())
    )

    assert isinstance(outcome, Committed)


async def test_a_guard_is_judged_before_the_operations(subject: Subject) -> None:
    key = subject.key("a")

    outcome = await subject.store.commit(
        Txn(guards=(absent(key),), operations=(Put(key, b"1"), Get(key)))
    )

    assert isinstance(outcome, Committed)
    assert [item.value for item in outcome.reads[0]] == [b"1"]


# Limits


async def test_nesting_lifts_the_limit_on_operations(subject: Subject) -> None:
    """Source transactions of any size stay one revision at the target."""
    puts = [Put(subject.key(f"{n:04}"), b"x") for n in range(500)]
    nests = tuple(Nest(tuple(puts[n : n + 50])) for n in range(0, 500, 50))

    outcome = await subject.store.commit(Txn(operations=nests))

    found = await subject.store.range(subject.keys)
    assert isinstance(outcome, Committed)
    assert len(found.items) == 500
    assert {item.mod_revision for item in found.items} == {outcome.revision}


async def test_more_than_128_operations_on_one_level_are_refused(subject: Subject) -> None:
    puts = tuple(Put(subject.key(n), b"x") for n in range(129))

    with pytest.raises(InvalidInput):
        await subject.store.commit(Txn(operations=puts))
    with pytest.raises(InvalidInput):
        await subject.store.commit(Txn(operations=(Nest(puts[:128]),)))


@pytest.mark.parametrize("shape", ["flat", "nested", "deleted", "range"])
async def test_a_key_written_twice_is_refused(subject: Subject, shape: str) -> None:
    key = subject.key("a")
    second = {
        "flat": Put(key, b"2"),
        "nested": Nest((Put(key, b"2"),)),
        "deleted": Delete(key),
        "range": Delete(*subject.keys),
    }[shape]

    with pytest.raises(InvalidInput):
        await subject.store.commit(Txn(operations=(Put(key, b"1"), second)))

    assert await subject.store.get(key) is None


async def test_a_request_that_is_too_large_is_refused_as_such(subject: Subject) -> None:
    for size in (1_600_000, 2 * 1024 * 1024, 5 * 1024 * 1024):
        with pytest.raises(TooLarge):
            await subject.store.commit(Txn(operations=(Put(subject.key("a"), b"x" * size),)))


async def test_an_empty_key_is_refused(subject: Subject) -> None:
    with pytest.raises(InvalidInput):
        await subject.store.commit(Txn(operations=(Put(b"", b"x"),)))
    with pytest.raises(InvalidInput):
        await subject.store.commit(Txn(guards=(Exists(b""),), operations=()))


async def test_keeping_the_value_of_no_key_is_refused(subject: Subject) -> None:
    with pytest.raises(InvalidInput):
        await subject.store.commit(Txn(operations=(Put(subject.key("a"), b"", keep_value=True),)))


# Ranges


async def fill(subject: Subject, count: int) -> None:
    for first in range(0, count, 1000):
        puts = [Put(subject.key(f"{n:05}"), b"v") for n in range(first, min(count, first + 1000))]
        nests = tuple(Nest(tuple(puts[n : n + 100])) for n in range(0, len(puts), 100))
        await subject.store.commit(Txn(operations=nests))


async def test_a_range_of_many_keys_is_complete_and_in_order(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshkit.store.etcd._PAGE_KEYS", 700)
    await fill(subject, 3000)

    everything = await subject.store.range(subject.keys)
    some = await subject.store.range(subject.keys, limit=1500, keys_only=True)
    exact = await subject.store.range(subject.keys, limit=3000)

    assert [i.key for i in everything.items] == [subject.key(f"{n:05}") for n in range(3000)]
    assert (everything.more, everything.count) == (False, 3000)
    assert len(some.items) == 1500
    assert (some.more, some.count) == (True, 3000)
    assert {item.value for item in some.items} == {b""}
    assert (exact.more, len(exact.items)) == (False, 3000)


async def test_a_range_as_of_a_revision_shows_that_past(subject: Subject) -> None:
    first = await put(subject, a="1", b="1")
    second = await put(subject, a="2")
    await subject.store.commit(Txn(operations=(Delete(*subject.keys),)))

    then = await subject.store.range(subject.keys, revision=first)
    later = await subject.store.range(subject.keys, revision=second)
    now = await subject.store.range(subject.keys)

    assert [i.value for i in then.items] == [b"1", b"1"]
    assert [i.value for i in later.items] == [b"2", b"1"]
    assert (now.items, now.count, now.revision) == ((), 0, second + 1)
    assert then.revision == first


async def test_a_count_returns_no_items(subject: Subject) -> None:
    revision = await put(subject, a="1", b="1")

    counted = await subject.store.range(subject.keys, count_only=True)

    assert (counted.count, counted.items, counted.more) == (2, (), False)
    assert counted.revision == revision


async def test_modified_after_leaves_out_older_keys(subject: Subject) -> None:
    first = await put(subject, a="1", b="1")
    await put(subject, b="2", c="2")

    newer = await subject.store.range(subject.keys, modified_after=first)
    one = await subject.store.range(subject.keys, modified_after=first, limit=1)

    assert [item.key for item in newer.items] == [subject.key("b"), subject.key("c")]
    assert newer.count == 3
    assert ([i.key for i in one.items], one.more) == ([subject.key("b")], True)


async def test_a_future_revision_is_refused(subject: Subject) -> None:
    revision = await put(subject, a="1")

    with pytest.raises(InvalidInput):
        await subject.store.range(subject.keys, revision=Revision(revision + 1000))


async def test_compaction_takes_the_past_but_not_the_present(subject: Subject) -> None:
    first = await put(subject, a="1")
    second = await put(subject, a="2")
    third = await put(subject, b="3")

    await subject.store.compact(second)
    await subject.store.compact(second)
    await subject.store.compact(first)

    with pytest.raises(Compacted):
        await subject.store.range(subject.keys, revision=first)
    at = await subject.store.range(subject.keys, revision=second)
    assert [item.value for item in at.items] == [b"2"]
    assert (await subject.store.range(subject.keys, revision=third)).count == 2
    with pytest.raises(InvalidInput):
        await subject.store.compact(Revision(third + 1000))


# Watches


async def test_a_watch_from_the_past_delivers_each_revision_once_in_order(
    subject: Subject,
) -> None:
    first = await put(subject, a="1", b="1")
    second = await put(subject, a="2")
    deleted = await subject.store.commit(Txn(operations=(Delete(subject.key("b")),)))

    async with subject.store.watch(subject.keys, start=first) as watch:
        items = [await soon(watch) for _ in range(3)]
        live = await put(subject, c="3")
        items.append(await soon(watch))

    assert all(isinstance(item, RevisionChanges) for item in items)
    assert [item.revision for item in items] == [first, second, deleted.revision, live]
    shown = [[(c.key, c.item.value, c.is_delete) for c in item.changes] for item in items]
    assert shown == [
        [(subject.key("a"), b"1", False), (subject.key("b"), b"1", False)],
        [(subject.key("a"), b"2", False)],
        [(subject.key("b"), b"", True)],
        [(subject.key("c"), b"3", False)],
    ]


async def test_a_watch_never_splits_a_revision(subject: Subject) -> None:
    """A replicator that applied half a transaction would show a state that never was."""
    start = await put(subject, zero="0")
    puts = [Put(subject.key(f"{n:04}"), b"x" * 3000) for n in range(300)]

    async with subject.store.watch(subject.keys, start=Revision(start + 1)) as watch:
        for _ in range(3):
            await subject.store.commit(
                Txn(operations=tuple(Nest(tuple(puts[n : n + 100])) for n in (0, 100, 200)))
            )
        items = [await soon(watch) for _ in range(3)]
    async with subject.store.watch(subject.keys, start=Revision(start + 1)) as watch:
        again = [await soon(watch) for _ in range(3)]

    assert [len(item.changes) for item in items] == [300, 300, 300]
    assert again == items


async def test_a_watch_sees_only_its_range(subject: Subject) -> None:
    start = await put(subject, a="1")

    async with subject.store.watch((subject.key("b"), b""), start=start) as watch:
        await put(subject, a="2", c="2")
        revision = await put(subject, a="3", b="3")
        item = await soon(watch)

    assert item.revision == revision
    assert [change.key for change in item.changes] == [subject.key("b")]


async def test_the_whole_store_can_be_watched(subject: Subject) -> None:
    start = await put(subject, a="1")

    async with subject.store.watch(WHOLE_STORE, start=start) as watch:
        outside = Put(b"\xff" + subject.prefix, b"1")
        await subject.store.commit(Txn(operations=(outside,)))
        items = [await soon(watch), await soon(watch)]

    assert [c.key for item in items for c in item.changes] == [subject.key("a"), outside.key]


async def test_a_watch_from_a_compacted_revision_says_so(subject: Subject) -> None:
    first = await put(subject, a="1")
    await put(subject, a="2")
    third = await put(subject, a="3")
    await subject.store.compact(third)

    with pytest.raises(Compacted):
        async with subject.store.watch(subject.keys, start=first) as watch:
            await soon(watch)


async def test_a_watch_can_wait_for_a_revision_to_come(subject: Subject) -> None:
    revision = await put(subject, a="1")

    async with subject.store.watch(subject.keys, start=Revision(revision + 2)) as watch:
        await put(subject, a="2")
        await put(subject, a="3")
        item = await soon(watch)

    assert item.revision == revision + 2


async def test_giving_up_on_an_item_loses_nothing(subject: Subject) -> None:
    """Callers wait with deadlines; a deadline must not cost an event."""
    start = await put(subject, a="1")

    async with subject.store.watch(subject.keys, start=start) as watch:
        await soon(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        await put(subject, a="2")
        item = await soon(watch)

    assert waiting.cancelled()
    assert item.revision == start + 1


async def test_closing_the_store_ends_its_watches(subject: Subject) -> None:
    start = await put(subject, a="1")

    async with subject.store.watch(subject.keys, start=Revision(start + 1)) as watch:
        waiting = asyncio.ensure_future(anext(watch, None))
        await asyncio.sleep(0)
        await subject.store.close()
        async with asyncio.timeout(DEADLINE_S):
            ended = await waiting

    assert ended is None


# Leases


async def test_a_lease_may_be_granted_under_an_id_once(subject: Subject) -> None:
    granted = await subject.store.grant(ttl_s=3600, lease_id=subject.lease(1))

    assert granted.lease_id == subject.lease(1)
    assert granted.ttl_s == 3600
    with pytest.raises(Conflict):
        await subject.store.grant(ttl_s=3600, lease_id=subject.lease(1))


async def test_a_lease_id_is_made_up_when_none_is_given(subject: Subject) -> None:
    one = await subject.store.grant(ttl_s=3600)
    two = await subject.store.grant(ttl_s=3600)

    assert one.lease_id != two.lease_id
    assert one.lease_id > 0


async def test_a_lease_that_runs_out_deletes_its_keys_at_one_revision(subject: Subject) -> None:
    granted = await subject.store.grant(ttl_s=1)
    puts = tuple(Put(subject.key(k), b"1", lease=granted.lease_id) for k in "ab")
    outcome = await subject.store.commit(Txn(operations=puts))

    async with subject.store.watch(subject.keys, start=Revision(outcome.revision + 1)) as watch:
        await subject.elapse_ms(granted.ttl_s * 1000)
        item = await soon(watch)

    assert {(c.key, c.is_delete, c.item.lease) for c in item.changes} == {
        (subject.key("a"), True, 0),
        (subject.key("b"), True, 0),
    }
    with pytest.raises(LeaseLost):
        await subject.store.keep_alive(granted.lease_id)
    with pytest.raises(LeaseLost):
        await subject.store.time_to_live(granted.lease_id)


async def test_keeping_a_lease_alive_returns_its_ttl(subject: Subject) -> None:
    await subject.store.grant(ttl_s=3600, lease_id=subject.lease(1))

    assert await subject.store.keep_alive(subject.lease(1)) == 3600
    assert 3590 <= await subject.store.time_to_live(subject.lease(1)) <= 3600
    ttl = await subject.store.lease_ttl(subject.lease(1))
    assert ttl.granted_s == 3600
    assert 3590 <= ttl.remaining_s <= 3600


async def test_an_unknown_lease_is_lost(subject: Subject) -> None:
    with pytest.raises(LeaseLost):
        await subject.store.keep_alive(LeaseId(999_999_999))
    with pytest.raises(LeaseLost):
        await subject.store.time_to_live(LeaseId(999_999_999))
    with pytest.raises(LeaseLost):
        await subject.store.lease_ttl(LeaseId(999_999_999))
    with pytest.raises(LeaseLost):
        await subject.store.commit(
            Txn(operations=(Put(subject.key("a"), b"1", lease=LeaseId(999_999_999)),))
        )
    assert await subject.store.get(subject.key("a")) is None


async def test_a_broken_guard_comes_before_an_unknown_lease(subject: Subject) -> None:
    outcome = await subject.store.commit(
        Txn(
            guards=(Exists(subject.key("a")),),
            operations=(Put(subject.key("b"), b"1", lease=LeaseId(999_999_999)),),
        )
    )

    assert isinstance(outcome, Rejected)


async def test_revoking_deletes_the_keys_and_may_be_repeated(subject: Subject) -> None:
    lease_id = subject.lease(1)
    await subject.store.grant(ttl_s=3600, lease_id=lease_id)
    await subject.store.commit(Txn(operations=(Put(subject.key("a"), b"1", lease=lease_id),)))

    await subject.store.revoke(lease_id)
    await subject.store.revoke(lease_id)

    assert await subject.store.get(subject.key("a")) is None


async def test_a_put_moves_the_key_to_the_lease_it_names(subject: Subject) -> None:
    one, two = subject.lease(1), subject.lease(2)
    a, b = subject.key("a"), subject.key("b")
    for lease_id in (one, two):
        await subject.store.grant(ttl_s=3600, lease_id=lease_id)
    await subject.store.commit(Txn(operations=(Put(a, b"v", lease=one), Put(b, b"v", lease=one))))

    await subject.store.commit(
        Txn(operations=(Put(a, b"", lease=two, keep_value=True), Put(b, b"w")))
    )
    await subject.store.revoke(one)

    kept_a, kept_b = await subject.store.get(a), await subject.store.get(b)
    assert kept_a is not None
    assert kept_b is not None
    assert (kept_a.value, kept_a.lease, kept_a.version) == (b"v", two, 2)
    assert (kept_b.value, kept_b.lease) == (b"w", 0)


# The server


async def test_status_describes_the_member(subject: Subject) -> None:
    revision = await put(subject, a="1")

    status = await subject.store.status()

    assert status.revision >= revision
    assert status.version[:2] == "3."
    assert status.cluster_id
    assert status.leader_id == status.member_id
    assert status.alarms == ()
