"""Claims about a standby that takes nothing in for minutes: bounded, unnoticed, back by itself."""

from __future__ import annotations

import attrs

from replicator.outbound_session import OutboundSession
from replicator.weight import changes_bytes
from tests.replicator.mesh import SMALL, A, B, C, G, Mesh

LIMITS = attrs.evolve(SMALL, source_backlog_bytes_max=20_000)
WRITE_BYTES, WRITES = 2_000, 150


def session_of(mesh: Mesh) -> OutboundSession | None:
    return mesh[A].outbound._targets[B].session


def held_bytes(mesh: Mesh) -> tuple[int, int]:
    """What the source holds for B: read and not framed, and framed or sent and not taken in."""
    session = session_of(mesh)
    if session is None or session._tail is None:
        return 0, 0
    backlog = sum(changes_bytes(changes) for changes, _ in session._tail._backlog)
    return backlog, session._sender._queued_bytes + session._sender.outstanding_bytes


async def test_a_stalled_standby_costs_bounded_memory_and_nobody_else_notices() -> None:
    """Backpressure ends at the stalled stream: its watch is not read, all others go on.

    B's etcd is away while writes weigh more than ten times what may be held for it.
    """
    mesh = Mesh(A, B, C, limits=LIMITS)
    await mesh.start()
    await mesh.found(G, A)
    await mesh.write(A, {"/orders/begin": "1"})
    await mesh.converge()
    inbound = mesh[B].inbound
    assert inbound is not None
    inbound._store.partition()  # type: ignore[attr-defined]

    greatest = [0, 0]
    for n in range(WRITES):
        await mesh.write(A, {f"/orders/{n % 50}": f"{n}".ljust(WRITE_BYTES, ".")})
        await mesh.clock.advance_ms(20)
        greatest = [max(pair) for pair in zip(greatest, held_bytes(mesh), strict=True)]
        if n % 30 == 29:
            await mesh.until(lambda: mesh.scope(C, G) == mesh.scope(A, G), within_ms=300)

    written = WRITES * WRITE_BYTES
    one = WRITE_BYTES + 1_000
    assert written > 10 * (LIMITS.source_backlog_bytes_max + LIMITS.window_bytes_max)
    assert 0 < greatest[0] <= LIMITS.source_backlog_bytes_max + one
    assert greatest[1] <= LIMITS.window_bytes_max + 2 * LIMITS.frame_bytes_max + one
    assert mesh.scope(B, G) != mesh.scope(A, G)
    joins = mesh.joins_made(B, A, G)

    inbound._store.heal()  # type: ignore[attr-defined]
    await mesh.converge()

    assert mesh.joins_made(B, A, G) == joins, "it caught up by the stream, not by a copy"
    await mesh.close()
