"""History that is sent again changes nothing, from wherever it is sent."""

from __future__ import annotations

import asyncio
import random

import attrs
import pytest

from meshkit.errors import Refused
from meshkit.ordinals import Sequence
from meshkit.store.port import RevisionChanges
from replicator.messages import Hello, Welcome
from replicator.receiver import Receiver
from replicator.resend import Resend
from tests.replicator.mesh import A, B, C, G, H, Mesh


def records_of(mesh: Mesh, at, prefix: bytes, *, after: int, through: int) -> int:
    """How many revisions in `(after, through]` changed a key below `prefix` there."""
    log: list[RevisionChanges] = mesh[at].store.server.history._log
    return sum(
        any(change.key.startswith(prefix) for change in revision.changes)
        for revision in log
        if after < revision.revision <= through
    )


def data_of(mesh: Mesh, at) -> list[RevisionChanges]:
    """Every revision that changed a key of an application there."""
    return [
        revision
        for revision in mesh[at].store.server.history._log
        if any(not c.key.startswith(b"/mesh/") for c in revision.changes)
    ]


async def resent(mesh: Mesh, after: int, *, at=B, source=A) -> Resend:
    inbound = mesh[at].inbound
    assert inbound is not None
    asking = asyncio.ensure_future(inbound.resend(source, Sequence(after)))
    await mesh.until(asking.done)
    return asking.result()


async def written(mesh: Mesh, count: int, seed: int = 1) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        key = f"/orders/{rng.randint(1, 9)}"
        await mesh.write(A, {key: rng.choice([None, str(rng.random())]), "/users/1": "x"})


async def streaming(**kwargs) -> Mesh:
    mesh = Mesh(A, B, **kwargs)
    await mesh.start()
    await mesh.found(G, A)
    await mesh.found(H, A)
    await mesh.converge()
    return mesh


async def test_replaying_from_any_earlier_position_changes_nothing() -> None:
    """Every record comes again, and is dropped by its sequence: not one key is written."""
    mesh = await streaming()
    await written(mesh, 12)
    await mesh.converge()
    own = mesh[B].checkpoint(A)
    assert own is not None
    state, log = mesh.scope(B, G), data_of(mesh, B)

    for after in range(1, own.sequence):
        came = await resent(mesh, after)
        assert came.is_whole
        assert came.through >= own.sequence
        for group, prefix in ((G, b"/orders/"), (H, b"/users/")):
            expected = records_of(mesh, A, prefix, after=after, through=came.through)
            assert came.records.get(group, 0) == expected

    assert data_of(mesh, B) == log
    assert mesh.scope(B, G) == state
    assert mesh.joins_made(B, A, G) == 1
    await mesh.close()


async def test_writes_go_on_while_history_comes_again() -> None:
    """What is new is applied as ever, behind what came again."""
    mesh = await streaming()
    await written(mesh, 30)
    await mesh.converge()
    inbound = mesh[B].inbound
    assert inbound is not None

    asking = asyncio.ensure_future(inbound.resend(A, Sequence(3)))
    for n in range(20):
        await mesh.write(A, {f"/orders/new-{n}": "x"})
        await mesh.clock.advance_ms(5)
    await mesh.until(asking.done)
    await mesh.converge()

    assert asking.result().is_whole
    assert mesh.check_history() > 0
    await mesh.close()


async def test_what_comes_again_is_no_lag() -> None:
    """It is applied; the metric must not say otherwise for as long as it takes."""
    mesh = await streaming()
    await written(mesh, 30)
    await mesh.converge()
    await mesh.until(lambda: mesh[A].outbound.lag(B).lag_ms == 0)
    await mesh.clock.advance_ms(6_000)
    inbound = mesh[B].inbound
    assert inbound is not None

    asking = asyncio.ensure_future(inbound.resend(A, Sequence(3)))
    said: list[int] = []
    while not asking.done():
        await mesh.clock.advance_ms(1)
        lag = mesh[A].outbound.lag(B)
        said.append(lag.lag_ms or 0)
        assert lag.records in (0, None)

    assert max(said) < 1_000
    await mesh.close()


async def test_compacted_history_is_refused_and_the_stream_goes_on() -> None:
    """It says where the history ends; nothing is copied anew because of it."""
    mesh = await streaming()
    await written(mesh, 20)
    await mesh.converge()
    own = mesh[B].checkpoint(A)
    assert own is not None
    await mesh[A].store.compact(own.sequence - 5)

    came = await resent(mesh, 3)
    assert not came.is_whole
    assert "compacted away" in came.refused
    again = await resent(mesh, own.sequence - 4)
    assert again.is_whole
    await mesh.write(A, {"/orders/after": "x"})
    await mesh.converge()

    assert mesh.joins_made(B, A, G) == 1
    await mesh.close()


async def test_what_is_not_applied_yet_cannot_come_again() -> None:
    """There is nothing to be recognised; it comes by itself."""
    mesh = await streaming()
    own = mesh[B].checkpoint(A)
    assert own is not None
    inbound = mesh[B].inbound
    assert inbound is not None

    with pytest.raises(Refused, match="there is nothing to send again"):
        await resent(mesh, own.sequence + 100)
    with pytest.raises(Refused, match="no stream from"):
        await inbound.resend(C, Sequence(3))
    await mesh.close()


async def test_a_group_out_of_step_does_not_meet_a_stream_that_is_behind() -> None:
    """A side stream that met the replayed position would leave out what lies past it."""
    mesh = await streaming()
    await written(mesh, 40)
    await mesh.converge()
    inbound = mesh[B].inbound
    assert inbound is not None
    asking = asyncio.ensure_future(inbound.resend(A, Sequence(3)))
    await mesh.join(B, G)
    await mesh.until(asking.done)
    await mesh.converge()

    assert asking.result().is_whole
    assert mesh.check_history() > 0
    assert mesh.scope(B, G) == mesh.scope(A, G)
    await mesh.close()


async def test_a_lost_connection_is_told_and_nothing_is_changed() -> None:
    """Whoever asked may ask again; the stream resumes from the checkpoint."""
    mesh = await streaming()
    await written(mesh, 60)
    await mesh.converge()
    inbound = mesh[B].inbound
    assert inbound is not None
    log = data_of(mesh, B)
    asking = asyncio.ensure_future(inbound.resend(A, Sequence(3)))
    while not asking.done():
        await mesh.clock.advance_ms(1)
        if any(c.source == A for c in mesh.network.connections):
            mesh.network.break_all()
    error = asking.exception()
    again = await resent(mesh, 3) if error else asking.result()

    assert again.is_whole
    assert data_of(mesh, B) == log
    await mesh.close()


def test_a_source_that_does_not_know_how_is_recognised_by_where_it_begins() -> None:
    """Old replicators ignore what they do not know, and begin at the position."""
    resend = Resend(after=Sequence(5), through=Sequence(50))
    receiver = Receiver(
        source=A, target=B, incarnation=None, position=Sequence(50), now_ms=0, resend=resend
    )
    hello = receiver.hello()
    assert isinstance(hello, Hello)
    assert (hello.position, hello.resend_after) == (50, 5)

    receiver.receive(Welcome(source=A, incarnation="i", start=Sequence(50)), now_ms=1)

    assert "too old" in resend.refused
    assert [type(event) for event in receiver.events()] == [Welcome]
    assert attrs.evolve(resend).is_over
