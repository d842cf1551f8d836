"""A target whose etcd takes nothing: the stream stalls with a reason, and goes on by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from meshkit.errors import NoSpace, NotAllowed, Unreachable
from meshkit.status import StreamState, StreamStatus
from meshkit.store.memory import Fault
from replicator.stalls import stall_reason
from tests.replicator.mesh import A, B, G, Mesh


class Quorum:
    """Answers while there is a quorum; every call fails while there is none."""

    is_there = True

    async def before(self, _operation: str) -> Fault:
        return Fault.NONE if self.is_there else Fault.UNREACHABLE


QUORUM = Quorum()


@pytest.fixture
async def pair() -> AsyncIterator[Mesh]:
    QUORUM.is_there = True
    mesh = Mesh(A, B, faults=lambda name: QUORUM if name == B else None)
    mesh[A].outbound.set_targets([B])
    await mesh.start()
    await mesh.found(G, A)
    await mesh.write(A, {"/orders/1": "before"})
    await mesh.converge()
    yield mesh
    await mesh.close()


def status(mesh: Mesh) -> StreamStatus:
    (found,) = mesh[A].outbound.statuses()
    return found


def streaming(mesh: Mesh) -> bool:
    return status(mesh).lag.state is StreamState.STREAMING


async def test_a_full_target_stalls_the_stream_and_says_so(pair: Mesh) -> None:
    """NOSPACE is what an operator clears: until then both ends name it, and nothing is skipped."""
    await pair.until(lambda: streaming(pair))
    server = pair[B].store.server
    server.has_space = False
    for n in range(30):
        await pair.write(A, {f"/orders/{n}": "while full", f"/orders/{n - 3}": None})
    await pair.until(lambda: status(pair).lag.state is StreamState.STALLED)
    stalled = status(pair)
    at_target = pair[B].inbound.problems()[A]
    connections = len(pair.network.connections)
    await pair.clock.advance_ms(20_000)
    still = status(pair)
    server.has_space = True
    await pair.converge()
    await pair.until(lambda: streaming(pair))

    assert "stalled: the etcd of b is full (NOSPACE)" in stalled.problem
    assert at_target == stalled.problem
    assert still.lag.state is StreamState.STALLED
    assert status(pair).problem == ""
    assert pair[B].inbound.problems() == {}
    assert pair.joins_made(B, A, G) == 1, "nothing had to be copied"
    assert len(pair.network.connections) == connections, "it waits, and does not dial again"
    assert pair.check_history() > 1


async def test_a_target_without_quorum_stalls_the_stream_and_says_so(pair: Mesh) -> None:
    """An etcd that lost its majority comes back: the stream goes on where it stood."""
    await pair.until(lambda: streaming(pair))
    QUORUM.is_there = False
    for n in range(30):
        await pair.write(A, {f"/orders/{n}": "while gone"})
    await pair.until(lambda: status(pair).lag.state is StreamState.STALLED)
    stalled = status(pair)
    QUORUM.is_there = True
    await pair.converge()
    await pair.until(lambda: streaming(pair))

    assert "stalled: the etcd of b does not answer or has no quorum" in stalled.problem
    assert status(pair).problem == ""
    assert pair.joins_made(B, A, G) == 1, "nothing had to be copied"
    assert pair.check_history() > 1


async def test_a_stalled_stream_is_given_up_when_its_link_is(pair: Mesh) -> None:
    """Waiting for an etcd must not outlive the connection that the work came by."""
    server = pair[B].store.server
    server.has_space = False
    await pair.write(A, {"/orders/1": "while full"})
    await pair.until(lambda: status(pair).lag.state is StreamState.STALLED)
    pair.network.break_all(drop=True)
    await pair.clock.advance_ms(1_000)
    server.has_space = True

    await pair.converge()

    assert pair.check_history() > 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoSpace("database space exceeded"), "disarm the alarm"),
        (NotAllowed("permission denied"), "give its user the role"),
        (Unreachable("no member answered"), "bring its members back"),
    ],
)
def test_a_stall_says_what_to_do(error: NoSpace | NotAllowed | Unreachable, words: str) -> None:
    """The person on call reads what happened, what is safe, and what to do next."""
    reason = stall_reason(B, error)

    assert str(error) in reason
    assert words in reason
    assert "nothing is lost" in reason
