"""What hangs on a lease, in every store alike."""

from __future__ import annotations

import pytest

from meshkit.errors import LeaseLost
from meshkit.ordinals import LeaseId
from meshkit.store.txn import Put, Txn
from tests.contract.conftest import Subject


async def test_a_lease_tells_its_keys(subject: Subject) -> None:
    """A lease is revoked only if nothing hangs on it."""
    lease, one, other = subject.lease(1), subject.key("a"), subject.key("b")
    await subject.store.grant(ttl_s=3600, lease_id=lease)
    none = await subject.store.lease_keys(lease)
    puts = (Put(other, b"1", lease=lease), Put(one, b"1", lease=lease))
    await subject.store.commit(Txn(operations=puts))
    both = await subject.store.lease_keys(lease)
    await subject.store.commit(Txn(operations=(Put(other, b"", keep_value=True),)))

    assert none == ()
    assert both == (one, other)
    assert await subject.store.lease_keys(lease) == (one,)
    with pytest.raises(LeaseLost):
        await subject.store.lease_keys(LeaseId(999_999_999))
