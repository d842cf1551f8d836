"""Whether something wrote past a cut is known without reading the history for each group."""

from __future__ import annotations

from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Revision
from meshkit.store.port import RevisionChanges
from replicator.local_writes import LocalWrites, PrefixOwners
from tests.replicator.records import at, delete, put

ORDERS, USERS = GroupName("orders"), GroupName("users")
PREFIXES = {ORDERS: (b"/orders/",), USERS: (b"/users/", b"/accounts/")}
OWNERS = PrefixOwners({p: group for group, scope in PREFIXES.items() for p in scope})
CHECKPOINT = put(RegionalKeys.checkpoint(ClusterName("x")), b"{}")


def seen(*revisions: RevisionChanges, from_: int = 10) -> LocalWrites:
    local = LocalWrites(Revision(from_))
    local.set_groups(PREFIXES)
    for item in revisions:
        is_apply = any(change.key == CHECKPOINT.key for change in item.changes)
        local.take(item, OWNERS, is_apply=is_apply)
    return local


def untouched(local: LocalWrites, group: GroupName, after: int, *, deletes: bool = False) -> bool:
    return local.untouched(group, PREFIXES[group], Revision(after), deletes=deletes)


def test_what_was_written_past_a_point_is_told_for_each_group() -> None:
    local = seen(at(11, put("/orders/1")), at(12, put("/accounts/1"), delete("/users/1")))

    assert not untouched(local, ORDERS, 10)
    assert untouched(local, ORDERS, 11)
    assert not untouched(local, USERS, 11)
    assert untouched(local, ORDERS, 10, deletes=True)
    assert not untouched(local, USERS, 11, deletes=True)
    assert local.seen == 12


def test_what_an_apply_brings_is_not_local() -> None:
    local = seen(at(11, put("/orders/1"), CHECKPOINT))

    assert untouched(local, ORDERS, 10)


def test_before_it_watched_nothing_is_certain() -> None:
    """A successor reads the history of what it did not see itself."""
    assert not untouched(seen(), ORDERS, 9)
    assert untouched(seen(), ORDERS, 10)


def test_keys_that_were_not_watched_are_not_certain() -> None:
    local = seen(at(15, put("/orders/1")))

    assert not local.untouched(ORDERS, (b"/orders/", b"/more/"), Revision(15))
    assert not local.untouched(GroupName("none"), (), Revision(15))


def test_a_group_whose_prefixes_change_is_watched_from_then_on() -> None:
    local = seen(at(15, put("/orders/1")))
    wider = {**PREFIXES, ORDERS: (b"/orders/", b"/more/")}

    local.set_groups(wider)

    assert not local.untouched(ORDERS, wider[ORDERS], Revision(14))
    assert local.untouched(ORDERS, wider[ORDERS], Revision(15))
    assert untouched(local, USERS, 10)


def test_a_key_has_one_owner_also_where_prefixes_are_nested() -> None:
    nested = PrefixOwners({b"/a/b/": USERS, b"/a/": ORDERS})

    assert nested.owner_of(b"/a/c") == ORDERS
    assert nested.owner_of(b"/a/b/c") == USERS
    assert OWNERS.owner_of(b"/orders") is None
    assert OWNERS.owner_of(b"/orders/1") == ORDERS
    assert OWNERS.owner_of(b"/zebra") is None
