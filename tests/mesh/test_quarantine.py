"""Claims about quarantine in a whole mesh: API, replicators and the guarded path together."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from coordinator.api.quarantine_bodies import QuarantineAct
from coordinator.api.quarantining import Quarantining
from meshkit.asking import Answer, Declined, ListEntries, Question, ReadKeys
from meshkit.errors import InvalidInput, NotFound, Refused
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Sequence
from meshkit.peer import PeerIdentity
from meshkit.quarantine import (
    Completeness,
    Origin,
    QuarantineEntry,
    SetAside,
    classed,
    set_aside,
)
from meshkit.store.txn import Put, absent
from replicator.quarantine import Quarantine
from tests.mesh.inmemory import MemoryMesh, running

GROUP = GroupName("orders")
OPERATOR = PeerIdentity(role="operator", name="test")
COORDINATOR = PeerIdentity(role="coordinator", name="c1")
LARGE = b"x" * 300_000


def lost(sequence: int, key: bytes, here: bytes | None, there: bytes | None) -> SetAside:
    entry = QuarantineEntry(
        group=GROUP,
        epoch=Epoch(1),
        sequence=Sequence(sequence),
        key=key,
        is_delete=here is None,
        origin=Origin.TAIL,
        divergence=classed(here, there),
        completeness=Completeness.COMPLETE,
    )
    return set_aside(entry, here=here, there=there)


TAIL = (
    lost(101, b"/orders/new", b"1", None),
    lost(102, b"/orders/both", b"ours", b"theirs"),
    lost(103, b"/orders/deleted", None, b"old"),
    lost(104, b"/orders/large", LARGE, None),
    lost(105, b"/orders/moved-on", b"ours", b"before"),
)


@asynccontextmanager
async def with_tail() -> AsyncIterator[tuple[MemoryMesh, str, str, Quarantining]]:
    """A mesh in which one passive cluster keeps a tail; yields it, that one and the active one."""
    mesh = MemoryMesh()
    async with running(mesh):
        await mesh.apply()
        active = await mesh.until_active()
        passive = next(name for name in mesh.clusters if name != active)
        async with mesh.gate() as gate:
            for key, value in {"both": b"theirs", "deleted": b"old", "moved-on": b"after"}.items():
                await gate.write([Put(f"/orders/{key}".encode(), value)])
        nobody = absent(b"/no-other-leader")
        await Quarantine(regional=mesh.stores[passive], leader=nobody).put(TAIL)
        yield mesh, passive, active, mesh.quarantining(COORDINATOR)


async def listed(quarantining: Quarantining, cluster: str | None = None) -> list[dict[str, Any]]:
    found = await quarantining.entries(
        GROUP, ClusterName(cluster) if cluster else None, epoch=None, start=None, limit=500
    )
    assert not any(page["problem"] for page in found["clusters"])
    return [entry for page in found["clusters"] for entry in page["entries"]]


async def test_operators_see_what_a_cluster_keeps_and_the_coordination_etcd_never_does() -> None:
    async with with_tail() as (mesh, passive, _, quarantining):
        entries = await listed(quarantining)
        large = next(e for e in entries if e["key"] == "/orders/large")
        whole = await quarantining.entry(GROUP, large["id"])

        assert {e["cluster"] for e in entries} == {passive}
        assert [e["class"] for e in entries] == [
            "only here",
            "conflicting",
            "only there",
            "only here",
            "conflicting",
        ]
        assert large["here"]["base64"] is None
        assert base64.b64decode(whole["here"]["base64"]) == LARGE
        everything = await mesh.coordination.range((b"\x00", b"\x00"))
        assert not [
            i.key for i in everything.items if b"/orders/" in i.value and b"ours" in i.value
        ]


async def test_replay_writes_only_where_nothing_else_changed_the_key() -> None:
    """Each key for itself; what is refused stays, and repeating a replay changes nothing."""
    async with with_tail() as (mesh, passive, active, quarantining):
        asked = QuarantineAct(cluster=ClusterName(passive), reason="told by the owners")
        done = await quarantining.replay(GROUP, asked, OPERATOR)
        content = await mesh.content(active)
        again = await quarantining.replay(GROUP, asked, OPERATOR)
        audit = (await mesh.operations().audit(GROUP, after=0, limit=100))["entries"]

    outcomes = {result["key"]: result["outcome"] for result in done["results"]}
    assert outcomes == {
        "/orders/new": "replayed",
        "/orders/both": "replayed",
        "/orders/deleted": "replayed",
        "/orders/large": "replayed",
        "/orders/moved-on": "refused",
    }
    assert content[b"/orders/new"] == b"1"
    assert content[b"/orders/both"] == b"ours"
    assert content[b"/orders/large"] == LARGE
    assert b"/orders/deleted" not in content
    assert content[b"/orders/moved-on"] == b"after"
    repeated = {result["key"]: result["outcome"] for result in again["results"]}
    told_before = {key: told.replace("replayed", "already") for key, told in outcomes.items()}
    assert repeated == told_before, "whoever had no answer asks again"
    actions = [e["action"] for e in audit if e["action"].startswith("quarantine.")]
    assert actions == ["quarantine.replay_requested", "quarantine.replayed"] * 2


@pytest.mark.parametrize(
    ("bytes_max", "asked"),
    [
        (2_000_000, ["ListEntries", "ReadEntries", "ReplayChanges", "MarkReplayed"]),
        # The large value travels alone; of the last message nothing is replayed.
        (1_000, ["ListEntries", *(["ReadEntries", "ReplayChanges", "MarkReplayed"] * 3)[:-1]]),
    ],
)
async def test_a_replay_asks_once_for_as_much_as_a_message_holds(
    bytes_max: int, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question takes a connection of its own, with two handshakes: one for each entry is slow."""
    monkeypatch.setattr("replicator.desk.VALUES_BYTES_MAX", bytes_max)
    async with with_tail() as (_, passive, _, quarantining):
        questions: list[str] = []
        ask = quarantining.asker.ask

        async def noting(cluster: ClusterName, endpoint: str, question: Question) -> Answer:
            questions.append(type(question).__name__)
            return await ask(cluster, endpoint, question)

        monkeypatch.setattr(quarantining.asker, "ask", noting)
        act = QuarantineAct(cluster=ClusterName(passive))

        done = await quarantining.replay(GROUP, act, OPERATOR)

    assert len(done["results"]) == len(TAIL)
    assert questions == asked


async def test_a_replay_that_nobody_answers_is_unknown_and_marks_nothing() -> None:
    """Promise 7: unknown is reported as unknown, and the entries go on waiting."""
    async with with_tail() as (mesh, passive, active, quarantining):
        await mesh.processes[f"{active}-0"].kill()
        asked = QuarantineAct(cluster=ClusterName(passive))

        done = await quarantining.replay(GROUP, asked, OPERATOR)

        assert {result["outcome"] for result in done["results"]} == {"unknown"}
        assert b"/orders/new" not in await mesh.content(active)
        assert len([e for e in await listed(quarantining, passive) if e["replayed_ms"]]) == 0


async def test_discarding_takes_a_reason_and_is_in_the_audit_entry_by_entry() -> None:
    async with with_tail() as (mesh, passive, _, quarantining):
        entries = await listed(quarantining, passive)
        some = tuple(entry["id"] for entry in entries[:2])
        with pytest.raises(InvalidInput):
            await quarantining.discard(GROUP, QuarantineAct(ids=some), OPERATOR)

        asked = QuarantineAct(ids=some, reason="agreed with the owners")
        done = await quarantining.discard(GROUP, asked, OPERATOR)
        left = await listed(quarantining, passive)
        audit = (await mesh.operations().audit(GROUP, after=0, limit=100))["entries"]

        assert done["discarded"] == 2
        assert [entry["id"] for entry in left] == [entry["id"] for entry in entries[2:]]
        act = next(e for e in audit if e["action"] == "quarantine.discard_requested")
        assert (act["actor"], act["facts"]["entries"]) == ("operator/test", list(some))
        with pytest.raises(NotFound):
            await quarantining.entry(GROUP, some[0])


async def test_a_cluster_that_does_not_answer_is_named_and_never_counts_as_empty() -> None:
    """Promise 7: unknown is reported as unknown."""
    async with with_tail() as (mesh, passive, _, quarantining):
        await mesh.processes[f"{passive}-0"].kill()

        found = await quarantining.entries(GROUP, None, epoch=None, start=None, limit=10)

        problems = {page["cluster"]: page["problem"] for page in found["clusters"]}
        assert problems[passive]
        assert [name for name, problem in problems.items() if problem] == [passive]
        with pytest.raises(Refused):
            await listed(quarantining, passive)


@pytest.mark.parametrize(
    ("role", "question"),
    [
        ("cluster", ListEntries(group=GROUP)),
        ("operator", ListEntries(group=GROUP)),
        ("coordinator", ReadKeys(group=GROUP, keys=(b"/orders/a",))),
        ("reader", ReadKeys(group=GROUP, keys=(b"/orders/a",))),
    ],
)
async def test_a_replicator_answers_only_those_who_may_ask(role: str, question: Question) -> None:
    async with with_tail() as (mesh, passive, _, _):
        peer = PeerIdentity(role=role, name="b")

        answer = await mesh.network.asker(peer).ask(ClusterName(passive), f"{passive}-0", question)

        assert isinstance(answer, Declined)
        assert "may not ask" in answer.text


async def test_a_replay_cannot_reach_beyond_the_groups_own_keys() -> None:
    async with with_tail() as (mesh, passive, active, quarantining):
        nobody = absent(b"/no-other-leader")
        forged = lost(900, b"/mesh/v1/permit/orders", b"1", None)
        await Quarantine(regional=mesh.stores[passive], leader=nobody).put([forged])
        ids = [e["id"] for e in await listed(quarantining, passive) if e["sequence"] == 900]

        done = await quarantining.replay(GROUP, QuarantineAct(ids=tuple(ids)), OPERATOR)

        assert [r["outcome"] for r in done["results"]] == ["refused"]
        permit = await mesh.stores[active].get(b"/mesh/v1/permit/orders")
        assert permit is not None
        assert permit.value != b"1"
