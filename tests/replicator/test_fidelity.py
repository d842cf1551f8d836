"""`fidelity: every-revision`: each value of a key arrives as a revision; the default coalesces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import attrs
import pytest

from cli.sandbox.etcd import EtcdProcess
from coordinator.api.bodies import group_of
from meshkit.errors import InvalidInput
from meshkit.etcd_binary import EtcdBinary
from meshkit.model import Fidelity, GroupPolicy
from meshkit.store.port import RevisionChanges
from meshkit.store.txn import WHOLE_STORE
from tests.conftest import etcd_params
from tests.replicator.mesh import SMALL, A, B, G, H, Mesh
from tests.replicator.real import real_mesh

ROOMY = attrs.evolve(SMALL, frame_bytes_max=4_000, frame_writes_max=100, batch_writes_max=100)


@pytest.fixture
async def pair() -> AsyncIterator[Mesh]:
    mesh = Mesh(A, B, limits=ROOMY)
    await mesh.start()
    await mesh.found(G, A)
    await mesh.found(H, A)
    await mesh.converge()
    yield mesh
    await mesh.close()


def values_of(mesh: Mesh, key: bytes) -> list[bytes | None]:
    """Return every value the key has had at the target, in order."""
    return [
        None if change.is_delete else change.item.value
        for item in mesh[B].store.server.history._log
        for change in item.changes
        if change.key == key
    ]


async def write_all(mesh: Mesh) -> list[bytes | None]:
    """Write two keys of two groups many times, deletes among it; return the values in order."""
    expected: list[bytes | None] = []
    for n in range(30):
        value = None if n % 7 == 3 else f"v{n}"
        await mesh.write(A, {"/orders/k": value, "/users/k": value, f"/orders/{n}": "once"})
        expected.append(value.encode() if value else None)
    return expected


async def test_every_value_arrives_where_the_policy_says_so(pair: Mesh) -> None:
    """Auditors and watchers of such a group see at the copy what they would see at the source."""
    pair[B].inbound.set_exact([G])

    expected = await write_all(pair)
    await pair.converge()

    assert values_of(pair, b"/orders/k") == expected
    assert pair.check_history() > 10


async def test_by_default_values_in_between_are_left_out(pair: Mesh) -> None:
    """Otherwise the other test would prove nothing."""
    expected = await write_all(pair)
    await pair.converge()

    arrived = values_of(pair, b"/orders/k")
    assert len(arrived) < len(expected)
    assert arrived[-1] == expected[-1]


async def test_one_groups_fidelity_does_not_split_the_batches_of_another(pair: Mesh) -> None:
    """The price is paid by the keys that are written again and again."""
    pair[B].inbound.set_exact([H])
    for n in range(30):
        await pair.write(A, {"/orders/k": f"v{n}"})
    await pair.converge()

    assert len(values_of(pair, b"/orders/k")) < 30


async def test_every_value_arrives_beside_the_main_stream_too(pair: Mesh) -> None:
    """A group that follows after its copy is applied from side frames: they are cut as well."""
    pair[B].inbound.set_exact([G])
    await pair.join(B, G)
    skipped = len(values_of(pair, b"/orders/k"))
    expected = await write_all(pair)
    await pair.converge()

    arrived = values_of(pair, b"/orders/k")[skipped:]
    # What was written before the copy's cut is in the copy; all that follows it arrives.
    assert arrived == expected[-len(arrived) :]
    assert pair.check_history() > 1


@pytest.mark.etcd
@pytest.mark.parametrize("etcd", etcd_params(newest_only=True))
async def test_every_value_is_a_revision_of_a_real_etcd(
    etcd: EtcdBinary, start_etcd: Callable[..., EtcdProcess]
) -> None:
    """What a plain etcd watch at the standby reports, value for value."""
    source, target = start_etcd(etcd), start_etcd(etcd)
    async with real_mesh(source.endpoint, target.endpoint) as mesh:
        await mesh.found(G, A)
        await mesh.copied(G)
        assert mesh[B].inbound is not None
        mesh[B].inbound.set_exact([G])
        revision = 0
        for n in range(300):
            revision = await mesh.write(A, {"/orders/k": f"{n}"})
        await mesh.applied(revision)

        seen: list[bytes] = []
        async with mesh.stores[B].watch(WHOLE_STORE, start=1) as items:  # type: ignore[arg-type]
            async for item in items:
                assert isinstance(item, RevisionChanges)
                seen += [c.item.value for c in item.changes if c.key == b"/orders/k"]
                if seen and seen[-1] == b"299":
                    break
        assert seen == [b"%d" % n for n in range(300)]


def test_the_policy_reads_and_keeps_its_fidelity() -> None:
    """The default coalesces; a policy that is changed elsewhere keeps it; nonsense is refused."""
    body = {"prefixes": ["/orders/"], "members": ["a", "b"]}
    made, _ = group_of(G, {**body, "policy": {"fidelity": "every-revision"}}, before=None)
    kept, _ = group_of(G, {"policy": {"lag_ms_max": 9}}, before=made)

    assert GroupPolicy().fidelity is Fidelity.LATEST
    assert kept.policy.fidelity is Fidelity.EVERY_REVISION
    with pytest.raises(InvalidInput):
        group_of(G, {"policy": {"fidelity": "most"}}, before=made)
