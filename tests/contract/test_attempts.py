"""Transactions inside a transaction, on every store."""

from meshkit.store.txn import (
    Attempt,
    Committed,
    Delete,
    Get,
    ModRevisionIs,
    Put,
    Rejected,
    Txn,
    absent,
)
from tests.contract.conftest import Subject
from tests.contract.test_store_contract import put


async def test_attempts_are_decided_each_for_itself_and_share_a_revision(
    subject: Subject,
) -> None:
    before = await put(subject, a="1", b="2")
    a, b, c = subject.key("a"), subject.key("b"), subject.key("c")
    attempts = (
        Txn(guards=(ModRevisionIs(a, before),), operations=(Put(a, b"new"), Get(c))),
        Txn(guards=(absent(b),), operations=(Delete(b),), otherwise=(Get(b),)),
        Txn(operations=(Put(c, b"3"),)),
    )

    outcome = await subject.store.commit(Txn(operations=tuple(map(Attempt, attempts))))

    assert isinstance(outcome, Committed)
    first, second, third = outcome.attempts
    assert first == Committed(revision=before + 1, reads=((),))
    assert isinstance(second, Rejected)
    assert second.broken == (absent(b),)
    assert [item.value for item in second.reads[0]] == [b"2"]
    assert third == Committed(revision=before + 1)
    left = await subject.store.range(subject.keys)
    assert [item.value for item in left.items] == [b"new", b"2", b"3"]
    assert {item.mod_revision for item in left.items} == {before, before + 1}
