"""The demo's proofs must fail when there is something to find."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.demo.history import (
    NS_PER_MS,
    ClientWrite,
    History,
    Told,
    differing_keys,
    longest_pauses,
    lost_writes,
    second_writer,
    timeline,
)
from cli.demo.objects import StoredObject, batches, common_prefix, generated, load_objects
from cli.demo.report import DemoReport, Move, proofs
from cli.demo.writers import CompareWriter, changed
from meshkit.clock import SystemClock
from meshkit.codec import encode
from meshkit.errors import InvalidInput
from meshkit.keys import RegionalKeys
from meshkit.names import ClusterName, group_name
from meshkit.ordinals import Epoch, Revision, Token
from meshkit.regional import Permit
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Delete, Put, Txn, prefix_range
from tests.cli import samples


def write(
    at_ms: int, *, key: str = "/orders/1", epoch: int = 1, told: Told = Told.DONE, took_ms: int = 1
) -> ClientWrite:
    return ClientWrite(
        writer="w",
        key=key.encode(),
        value=str(at_ms).encode(),
        called_ns=at_ms * NS_PER_MS,
        returned_ns=(at_ms + took_ms) * NS_PER_MS,
        told=told,
        cluster={1: "us-east", 2: "eu-west"}[epoch],
        epoch=epoch,
    )


def test_the_pause_is_the_longest_gap_that_touches_the_failover() -> None:
    writes = [write(0), write(100), write(110), write(400, epoch=2), write(410, epoch=2)]

    pause = longest_pauses(writes, from_ns=200 * NS_PER_MS, to_ns=300 * NS_PER_MS)["w"]

    assert pause.pause_ms == 290


def test_a_write_that_failed_does_not_end_a_pause() -> None:
    writes = [write(0), write(50, told=Told.NOT_DONE), write(90, epoch=2)]

    assert longest_pauses(writes, from_ns=0, to_ns=100 * NS_PER_MS)["w"].pause_ms == 90


def test_two_writers_are_found() -> None:
    late = write(30, epoch=1)

    assert second_writer([write(0), write(10, epoch=2)]) == ""
    assert "us-east acknowledged /orders/1 under epoch 1" in (
        second_writer([write(0), write(10, epoch=2), late])
    )


def test_a_slow_answer_from_before_is_no_second_writer() -> None:
    assert second_writer([write(0, took_ms=50), write(10, epoch=2)]) == ""


def test_an_acknowledged_write_that_is_not_there_is_lost() -> None:
    writes = [write(0), write(10, key="/orders/2")]

    assert lost_writes(writes, {b"/orders/1": b"0", b"/orders/2": b"10"}) == []
    assert lost_writes(writes, {b"/orders/1": b"0"}) == [writes[1]]


def test_only_the_last_acknowledged_or_a_later_unknown_value_may_be_stored() -> None:
    writes = [write(0), write(10), write(20, told=Told.UNKNOWN)]

    assert lost_writes(writes, {b"/orders/1": b"10"}) == []
    assert lost_writes(writes, {b"/orders/1": b"20"}) == []
    assert lost_writes(writes, {b"/orders/1": b"0"}) == [writes[1]]


def test_copies_that_differ_are_named_with_their_keys() -> None:
    copies = {"a": {b"x": b"1", b"y": b"1"}, "b": {b"x": b"1"}, "c": {b"x": b"1", b"y": b"1"}}

    assert differing_keys(copies) == {"b": [b"y"], "c": []}


def test_the_timeline_shows_who_acknowledged_when() -> None:
    writes = [write(0), write(11), write(40, epoch=2), write(52, epoch=2), write(55, epoch=2)]

    lines = timeline(
        writes, ["us-east", "eu-west"], from_ns=0, to_ns=60 * NS_PER_MS, columns=6, unicode=False
    )

    assert lines == ["us-east |==    |", "eu-west |    =@|", "         60 ms, 10 ms a column"]


def test_objects_come_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "objects.jsonl"
    path.write_text(
        json.dumps({"key": "/registry/pods/a", "value": "{}"})
        + "\n"
        + json.dumps({"key": "/registry/services/b", "value": {"x": 1}})
    )

    objects = load_objects(path)

    assert [o.value for o in objects] == ["{}", '{"x":1}']
    assert common_prefix(objects) == "/registry/"


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "x", "value": ""}', '{"key": "/x"}'])
def test_a_line_that_is_no_object_is_refused_by_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "objects.jsonl"
    path.write_text('{"key": "/a/b", "value": ""}\n' + line)

    with pytest.raises(InvalidInput, match=r"objects.jsonl:2: expected"):
        load_objects(path)


@pytest.mark.parametrize("keys", [("/a/x", "/b/x"), ("/orders/1",), ("/mesh/v1/x",)])
def test_keys_that_make_no_group_are_refused(keys: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput):
        common_prefix([StoredObject(key=key, value="") for key in keys])


def test_the_first_load_is_cut_into_transactions_that_etcd_accepts() -> None:
    objects = [StoredObject(key=f"/a/{n}", value="x" * 100_000) for n in range(60)]

    sizes = [len(batch) for batch in batches(objects)]

    assert (sum(sizes), max(sizes)) == (60, 5)
    assert [len(b) for b in batches(list(generated()))] == [50, 28]


def test_the_generated_objects_make_a_group() -> None:
    assert common_prefix(list(generated())) == "/config/"


async def test_a_client_with_the_compare_alone_follows_the_permit() -> None:
    """It writes where the permit is, and nowhere else once the permit has moved."""
    us, eu = MemoryStore(clock=SystemClock()), MemoryStore(clock=SystemClock())
    stores = {ClusterName("us-east"): us, ClusterName("eu-west"): eu}
    history = History()
    writer = CompareWriter(
        name="w", group=GROUP, stores=stores, history=history, prefix="/orders/", interval_s=0.001
    )
    await us.commit(Txn(operations=(Put(PERMIT, permit(1)),)))
    stopping = asyncio.Event()
    running = asyncio.create_task(writer.run(stopping))
    await until(lambda: history.count(Told.DONE) >= 2)

    await us.commit(Txn(operations=(Delete(PERMIT),)))
    await until(lambda: history.count(Told.NOT_DONE) == 1)
    await eu.commit(Txn(operations=(Put(PERMIT, permit(2)),)))
    await until(lambda: history.writes[-1].cluster == "eu-west")
    stopping.set()
    await running

    found = [(await s.range(prefix_range(b"/orders/"))).items for s in (us, eu)]
    keys = {item.key for items in found for item in items}
    assert keys == {w.key for w in history.done()}
    assert second_writer(history.writes) == ""


def test_a_changed_object_stays_json() -> None:
    assert changed('{"a":1}', 7) == '{"a":1,"x-demo-change":7}'
    assert changed("text", 7) == "text #7"


def test_the_report_fails_when_a_proof_does() -> None:
    history = History([write(0), write(10, key="/orders/2")])
    copies = {"us-east": {b"/orders/1": b"0", b"/orders/2": b"10"}, "eu-west": {b"/orders/1": b"0"}}
    failover = samples.failover("succeeded", done=10)
    move = Move(failover=failover, group=GROUP, kind="promote", from_ns=0, to_ns=NS_PER_MS)
    found = proofs(
        objects=[StoredObject(key="/a/b", value="")],
        copied={"us-east": {b"/a/b": b""}, "eu-west": {b"/a/b": b""}},
        histories={GROUP: history},
        copies={GROUP: copies},
        moves=[move],
    )
    report = DemoReport(
        clusters=("us-east", "eu-west"),
        histories={GROUP: history},
        moves=[move],
        proofs=found,
        objects=1,
        elapsed_s=1.0,
    )

    assert not report.ok
    assert [proof.claim for proof in found if not proof.ok] == [
        "orders: every acknowledged write is in every cluster",
        "orders: all clusters are identical",
    ]
    assert report.body()["failovers"][0]["pause_ms_clients"] == {"w": 10.0}


GROUP = group_name("orders")
PERMIT = RegionalKeys.permit(GROUP)


def permit(epoch: int) -> bytes:
    token = Token(incarnation=1, revision=Revision(epoch))
    return encode(Permit(group=GROUP, epoch=Epoch(epoch), token=token))


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not claim():
            await asyncio.sleep(0)
