"""Rejoins over the API: who may, what is answered, and what is refused with which words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

from cli.pki import CertificateAuthority, create_ca
from coordinator.failover.record import Problem
from coordinator.rejoin.record import APPROVE, RECONCILE, Rejoin, RejoinPhase
from meshkit.codec import decode, encode
from meshkit.commands import Command, CommandStep
from meshkit.keys import CoordinationKeys as Keys
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation
from meshkit.status import ClusterHealth, GroupHealth
from meshkit.store.txn import Delete, Put, Txn
from tests.coordinator.fake_region import ORDERS, A, B
from tests.coordinator.test_api import Client, Place, served

SUPERSEDED = GroupHealth(
    mode="drained", epoch=Epoch(0), command_token=NO_TOKEN, permit=False, in_step=True
)
FOLLOWS = attrs.evolve(SUPERSEDED, mode="superseded", epoch=Epoch(1))
WAITS = Rejoin(
    id="r-1",
    group=ORDERS,
    cluster=B,
    active=A,
    epoch=Epoch(1),
    incarnation=1,
    phase=RejoinPhase.HELD,
    cursor=APPROVE,
    diverged={"only here": 2, "total": 2},
    completeness="state-only",
    problem=Problem(happened="not every change is known", state="a serves", next="approve"),
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return create_ca(tmp_path_factory.mktemp("pki"))


@attrs.define
class Returned:
    """An API, and cluster b, of which the reports are the test's."""

    place: Place
    client: Client

    async def put(self, key: bytes, value: bytes) -> None:
        await self.place.mesh.store.commit(Txn(operations=(Put(key, value),)))

    async def reports(self, group: GroupHealth) -> None:
        health = ClusterHealth(
            cluster=B,
            replicator="b-0",
            incarnation=Incarnation("ib"),
            etcd_version="3.5.16",
            etcd_cluster_id="1",
            revision=1,
            raft_index=1,
            db_size_bytes=1,
            groups={ORDERS: group},
            at_ms=self.place.mesh.clock.wall_ms(),
        )
        await self.put(Keys.health(B), encode(health))

    async def stored(self, rejoin: Rejoin) -> None:
        await self.put(Keys.rejoin(ORDERS, B), encode(rejoin))

    async def begin(self, **body: object) -> tuple[int, dict]:
        return await self.client.ask("POST", f"/v1/clusters/{B}/rejoin", {"reason": "back", **body})

    async def audited(self) -> list[str]:
        _, audit = await self.client.get("/v1/audit/orders")
        return [entry["action"] for entry in audit["entries"]]


@asynccontextmanager
async def returned(authority: CertificateAuthority) -> AsyncIterator[Returned]:
    async with served(authority, leads=False) as place:
        yield Returned(place, place.client())


async def test_a_rejoin_is_begun_asks_the_cluster_and_is_audited(authority) -> None:
    async with returned(authority) as b:
        await b.reports(SUPERSEDED)

        status, begun = await b.begin(group="orders")
        command = await b.place.mesh.store.get(Keys.command(B, ORDERS))
        _, listed = await b.client.get("/v1/rejoins?group=orders")
        audited = await b.audited()

    (result,) = begun["results"]
    assert (status, result["message"]) == (200, "begun")
    assert result["rejoin"]["requested_by"] == "operator/alice"
    assert command is not None
    assert decode(Command, command.value).step is CommandStep.FENCE
    assert [each["id"] for each in listed["rejoins"]] == [result["rejoin"]["id"]]
    assert audited[-1] == "rejoin.began"


async def test_a_dry_run_says_what_is_needed_and_begins_nothing(authority) -> None:
    async with returned(authority) as b:
        await b.reports(SUPERSEDED)
        _, needed = await b.begin(dry_run=True)
        _, listed = await b.client.get("/v1/rejoins")
        await b.reports(FOLLOWS)
        _, standby = await b.begin(dry_run=True)

    (result,) = needed["results"]
    assert (result["message"], result["needed"], result["rejoin"]) == ("would begin", True, None)
    assert listed["rejoins"] == []
    assert standby["results"][0]["needed"] is False


async def test_asking_again_changes_nothing_and_says_so(authority) -> None:
    async with returned(authority) as b:
        await b.reports(SUPERSEDED)
        _, first = await b.begin()

        _, second = await b.begin()

    assert second["results"][0]["message"] == "runs already"
    assert second["results"][0]["rejoin"]["id"] == first["results"][0]["rejoin"]["id"]


async def test_a_standby_and_the_active_cluster_have_nothing_to_do(authority) -> None:
    async with returned(authority) as b:
        await b.reports(FOLLOWS)
        _, standby = await b.begin()
        active = await b.client.ask("POST", f"/v1/clusters/{A}/rejoin", {})

    assert standby["results"][0]["rejoin"] is None
    assert "it is a standby" in standby["results"][0]["message"]
    assert active[0] == 422 or "active itself" in active[1]["results"][0]["message"]


async def test_what_was_reported_before_it_rejoined_begins_nothing(authority) -> None:
    """The record of the rejoin says what was lost: nothing takes its place without need."""
    async with returned(authority) as b:
        await b.reports(SUPERSEDED)
        over = attrs.evolve(WAITS, phase=RejoinPhase.SUCCEEDED, problem=None)
        await b.stored(over)

        _, answer = await b.begin()
        _, shown = await b.client.get("/v1/rejoins/r-1")

    assert answer["results"][0]["rejoin"] is None
    assert shown["diverged"] == {"only here": 2, "total": 2}


async def test_a_cluster_that_does_not_report_is_refused(authority) -> None:
    async with returned(authority) as b:
        await b.place.mesh.store.commit(Txn(operations=(Delete(Keys.health(B)),)))
        status, problem = await b.begin()

    assert (status, problem["exit_code"]) == (422, 3)
    assert "nobody knows how it stands" in problem["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/rejoins/r-none", None),
        ("POST", "/v1/rejoins/r-none/approve", {"reason": "x"}),
        ("POST", "/v1/clusters/mars/rejoin", {}),
        ("POST", f"/v1/clusters/{B}/rejoin", {"group": "carts"}),
        ("GET", "/v1/rejoins?group=carts", None),
    ],
)
async def test_what_is_not_there_is_not_found(authority, method, path, body) -> None:
    async with returned(authority) as b:
        status, problem = await b.client.ask(method, path, body)

    assert (status, problem["code"]) == (404, "not_found")


@pytest.mark.parametrize("body", [{"grop": "orders"}, {"group": 7}, {"reason": ["x"]}])
async def test_a_body_that_says_something_else_is_refused(authority, body) -> None:
    async with returned(authority) as b:
        status, problem = await b.client.ask("POST", f"/v1/clusters/{B}/rejoin", body)

    assert (status, problem["code"]) == (400, "invalid_input")


async def test_an_approval_goes_on_and_is_audited_with_its_reason(authority) -> None:
    async with returned(authority) as b:
        await b.stored(WAITS)

        status, done = await b.client.ask(
            "POST", "/v1/rejoins/r-1/approve", {"reason": "the owners know"}
        )
        again = await b.client.ask("POST", "/v1/rejoins/r-1/approve", {"reason": "again"})
        audited = await b.audited()

    assert (status, done["changed"]) == (200, True)
    assert done["rejoin"]["approved_by"] == "operator/alice"
    assert done["rejoin"]["step"] == "reconcile"
    assert (again[0], again[1]["changed"]) == (200, False)
    assert "rejoin.approved" in audited


async def test_what_waits_for_an_approval_is_not_resumed_and_the_other_way_round(
    authority,
) -> None:
    async with returned(authority) as b:
        await b.stored(WAITS)
        resumed = await b.client.ask("POST", "/v1/rejoins/r-1/resume", {"reason": ""})
        await b.stored(attrs.evolve(WAITS, cursor=RECONCILE, completeness="complete"))
        approved = await b.client.ask("POST", "/v1/rejoins/r-1/approve", {"reason": "x"})
        again = await b.client.ask("POST", "/v1/rejoins/r-1/resume", {"reason": "repaired"})

    assert (resumed[0], approved[0], again[0]) == (422, 422, 200)
    assert "mesh rejoins approve r-1" in resumed[1]["hint"]
    assert again[1]["rejoin"]["phase"] == "advancing"


async def test_who_may_only_read_changes_nothing(authority) -> None:
    async with returned(authority) as b:
        await b.reports(SUPERSEDED)
        await b.stored(WAITS)
        reader = b.place.client("reader", "rita")
        read = await reader.get("/v1/rejoins/r-1")
        asked = [
            await reader.ask("POST", path, {"reason": "x"})
            for path in (
                "/v1/rejoins/r-1/approve",
                "/v1/rejoins/r-1/resume",
                f"/v1/clusters/{B}/rejoin",
            )
        ]
        _, shown = await b.client.get("/v1/rejoins/r-1")

    assert read[0] == 200
    assert [status for status, _ in asked] == [403, 403, 403]
    assert shown["phase"] == "held"
