"""Golden transcripts: everything a planned failover writes, revision by revision.

A change of the machine shows here as a difference to be reviewed. To record anew:
`MESH_RECORD=1 pytest tests/coordinator/test_transcript.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from coordinator.api.operations import Operations
from coordinator.failover.record import Phase
from meshkit.clock import settle
from meshkit.commands import CommandStep
from meshkit.keys import ROOT
from meshkit.model import GroupPolicy
from meshkit.ordinals import Revision
from meshkit.store.port import Change, RevisionChanges, Store
from meshkit.store.txn import prefix_range
from tests.coordinator.fake_region import A, B, FakeMesh, background
from tests.coordinator.test_driver import ALICE, begin, leading, stored, until, until_step

FOLDER = Path(__file__).parents[1] / "transcripts"
SHOWN = {
    "commands": ("step", "epoch", "cut", "token"),
    "answers": ("step", "outcome", "token", "cut", "watermark"),
    "authority": ("epoch", "active", "token", "lineage"),
    "routing": ("epoch", "active", "token"),
    "failovers": ("phase", "cursor", "undoing", "attempt", "awaiting", "what", "target_token"),
    "rejoins": ("phase", "cursor", "attempt", "awaiting", "diverged", "completeness"),
    "seals": ("epoch",),
    "audit": ("n", "actor", "action"),
}


def shown(change: Change) -> str:
    name = change.key.removeprefix(ROOT).decode()
    if change.is_delete:
        return f"  delete {name}"
    fields = json.loads(change.item.value or b"{}")
    words = " ".join(
        f"{field}={json.dumps(fields[field], separators=(',', ':'))}"
        for field in SHOWN.get(name.split("/")[0], ())
        if fields.get(field) is not None
    )
    return f"  put {name} {words}".rstrip()


async def transcript(store: Store, since: Revision, *, besides: bytes = b"") -> str:
    """Return what was written after `since`, but for what lies below `besides`."""
    lines: list[str] = []
    head = (await store.range((ROOT, b""))).revision
    async with store.watch(prefix_range(ROOT), start=Revision(since + 1)) as items:
        async for item in items:
            if isinstance(item, RevisionChanges):
                told = [c for c in item.changes if not (besides and c.key.startswith(besides))]
                lines += [f"@{item.revision}"] if told else []
                lines += [shown(change) for change in told]
                if item.revision >= head:
                    break
    return "\n".join(lines) + "\n"


async def succeeds(mesh: FakeMesh) -> str:
    failover = await begin(mesh)
    await until(mesh, failover, Phase.SUCCEEDED)
    return failover


async def runs_out_of_time(mesh: FakeMesh) -> str:
    mesh.regions[B].silent.add(CommandStep.CONVERGE)
    failover = await begin(mesh)
    await until_step(mesh, failover, "converge")
    await mesh.clock.advance_ms(1_100)
    await until(mesh, failover, Phase.ROLLED_BACK)
    return failover


async def is_held_and_goes_on(mesh: FakeMesh) -> str:
    mesh.regions[A].refuses[CommandStep.REVERSE] = "the link is down"
    failover = await begin(mesh)
    await until_step(mesh, failover, "reverse")
    await mesh.clock.advance_ms(500)
    await until(mesh, failover, Phase.HELD)
    mesh.regions[A].refuses.clear()
    await Operations(store=mesh.store, clock=mesh.clock).steering.resume(failover, "", ALICE)
    await until(mesh, failover, Phase.SUCCEEDED)
    return failover


@pytest.mark.parametrize("story", [succeeds, runs_out_of_time, is_held_and_goes_on])
async def test_a_planned_failover_writes_exactly_this(story) -> None:
    """The whole of it, in order, with every token."""
    mesh = FakeMesh(policy=GroupPolicy(pause_budget_ms=1_000))
    async with mesh.running(), background(leading(mesh)):
        await settle(100)
        since = (await mesh.store.range((ROOT, b""))).revision
        failover = await story(mesh)
        await settle(50)
        text = await transcript(mesh.store, since)
        record = await stored(mesh, failover)

    assert text == golden(f"planned-{story.__name__}", text)
    assert record.phase.is_final


def golden(name: str, text: str) -> str:
    """Return the transcript of that name, after storing `text` as such if it is to be recorded."""
    path = FOLDER / f"{name.replace('_', '-')}.txt"
    if os.environ.get("MESH_RECORD"):
        path.write_text(text)
    return path.read_text()
