"""The API over real mutual TLS: who may, what is answered, and every error with its exit code."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import attrs
import pytest

from cli.pki import CertificateAuthority, create_ca, issue
from coordinator.api.app import Api, identify_by_tls
from coordinator.api.openapi import SCHEMAS, document
from coordinator.api.problems import problem_of
from coordinator.api.routes import ROUTES, Access
from meshkit import errors
from meshkit.commands import CommandStep
from meshkit.config import HostPort
from meshkit.identity import IdentityFiles
from meshkit.keys import ROOT
from meshkit.keys import CoordinationKeys as Keys
from meshkit.model import GroupPolicy
from meshkit.serving import listening
from meshkit.store.memory import Fault
from meshkit.store.txn import Put, Txn
from tests.coordinator.fake_region import ORDERS, A, B, FakeMesh, background, settle_until
from tests.coordinator.test_driver import leading


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return create_ca(tmp_path_factory.mktemp("pki"))


def files(authority: CertificateAuthority, role: str, name: str, **more) -> IdentityFiles:
    made = issue(authority, role, name, **more)
    return IdentityFiles(ca=made.ca, cert=made.cert, key=made.key)


@attrs.define(kw_only=True)
class Client:
    """Somebody with a certificate."""

    url: str
    session: aiohttp.ClientSession
    identity: IdentityFiles

    async def ask(self, method: str, path: str, body=None, **headers) -> tuple[int, dict]:
        async with self.session.request(
            method, self.url + path, json=body, headers=headers, ssl=self.identity.client_context()
        ) as answer:
            return answer.status, json.loads(await answer.read())

    async def get(self, path: str) -> tuple[int, dict]:
        return await self.ask("GET", path)

    async def promote(self, target=B, **more) -> tuple[int, dict]:
        return await self.ask("POST", "/v1/groups/orders/failovers", {"target": target, **more})


@attrs.define(kw_only=True)
class Place:
    mesh: FakeMesh
    authority: CertificateAuthority
    url: str
    session: aiohttp.ClientSession

    def client(self, role: str = "operator", name: str = "alice", **more) -> Client:
        identity = files(self.authority, role, name, **more)
        return Client(url=self.url, session=self.session, identity=identity)


@asynccontextmanager
async def served(
    authority: CertificateAuthority, mesh: FakeMesh | None = None, *, leads: bool = True, store=None
) -> AsyncIterator[Place]:
    mesh = mesh or FakeMesh()
    identity = files(authority, "coordinator", "c1")
    api = Api(
        store=store or mesh.store,
        clock=mesh.clock,
        identify=identify_by_tls("mesh.local"),
        is_leading=lambda: True,
    )
    work = [leading(mesh)] if leads else []
    async with (
        mesh.running(),
        background(*work),
        listening(api.application(), HostPort("127.0.0.1", 0), identity) as port,
        aiohttp.ClientSession() as session,
    ):
        url = f"https://127.0.0.1:{port}"
        yield Place(mesh=mesh, authority=authority, url=url, session=session)


async def ended(client: Client, failover: str) -> dict:
    for _ in range(100):
        _, shown = await client.get(f"/v1/failovers/{failover}")
        if shown["phase"] in {"succeeded", "rolled_back", "refused"}:
            return shown
        await asyncio.sleep(0)
    raise AssertionError(shown)


# --- who may ------------------------------------------------------------------------------------


async def test_without_a_certificate_nothing_is_answered(authority) -> None:
    """Mutual TLS: the handshake itself refuses."""
    async with served(authority, leads=False) as place:
        context = ssl.create_default_context(cafile=str(authority.cert))

        with pytest.raises(aiohttp.ClientError):
            async with place.session.get(f"{place.url}/livez", ssl=context):
                pass


async def test_a_certificate_of_another_authority_is_refused(authority, tmp_path: Path) -> None:
    """Whatever it claims to be."""
    async with served(authority, leads=False) as place:
        foreign = issue(create_ca(tmp_path / "other"), "operator", "mallory")
        identity = IdentityFiles(ca=authority.cert, cert=foreign.cert, key=foreign.key)
        client = Client(url=place.url, session=place.session, identity=identity)

        with pytest.raises(aiohttp.ClientError):
            await client.get("/livez")


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://other.domain/operator/alice",
        "spiffe://mesh.local/operator",
        "spiffe://mesh.local/wizard/alice",
        "https://mesh.local/operator/alice",
    ],
)
async def test_an_identity_that_is_nobody_here_is_refused(authority, uri: str) -> None:
    """Exact trust domain, known role; everything else may nothing."""
    async with served(authority, leads=False) as place:
        status, problem = await place.client(uri=uri).get("/v1/clusters")

    assert (status, problem["code"], problem["exit_code"]) == (403, "not_allowed", 4)


async def test_a_reader_reads_and_changes_nothing(authority) -> None:
    """Every route that changes something is for operators."""
    async with served(authority, leads=False) as place:
        reader = place.client("reader", "bob")
        for route in ROUTES:
            path = re.sub(r"{\w+}", "orders", route.path)
            if route.access is Access.OPERATE:
                status, problem = await reader.ask(route.method, path, {})
                assert (status, problem["exit_code"]) == (403, 4), route.path
        assert (await reader.get("/v1/groups"))[0] == 200


async def test_every_route_has_a_rule_and_every_rule_a_handler(authority) -> None:
    """Default deny: what is not in the table is not served."""
    async with served(authority, leads=False) as place:
        api = Api(
            store=place.mesh.store,
            clock=place.mesh.clock,
            identify=identify_by_tls("mesh.local"),
            is_leading=lambda: False,
        )
        routed = {
            (route.method, route.resource.canonical if route.resource else "")
            for route in api.application().router.routes()
        }

    assert {(method, path) for method, path in routed if method != "HEAD"} == {
        (route.method, route.path) for route in ROUTES
    }
    assert all(isinstance(route.access, Access) for route in ROUTES)
    assert all(not Access.READ.allows(role) for role in ("", "wizard"))


def test_the_description_names_every_route_and_only_known_schemas() -> None:
    """A new route cannot be forgotten in the OpenAPI document, nor in docs/api.md."""
    described = document()
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()

    for route in ROUTES:
        assert route.method.lower() in described["paths"][route.path]
        assert {route.answer, route.body} - {""} <= set(SCHEMAS)
        shown = route.path.replace("{failover}", "{id}")
        assert shown in text, f"{route.path} is not in docs/api.md"
    referred = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(described)))
    assert referred <= set(SCHEMAS)


# --- what is answered ---------------------------------------------------------------------------


async def test_a_promotion_is_begun_followed_and_repeated(authority) -> None:
    """The same request id leads to the same failover, whatever became of it."""
    async with served(authority) as place:
        alice = place.client()
        status, begun = await alice.promote(request_id="r-1", expect_epoch=1)
        failover = begun["failover"]["id"]
        shown = await ended(alice, failover)
        again_status, again = await alice.ask(
            "POST", "/v1/groups/orders/failovers", {"target": B}, **{"Idempotency-Key": "r-1"}
        )
        other_status, other = await alice.promote(A, request_id="r-1")

    assert (status, begun["changed"]) == (202, True)
    assert (shown["phase"], shown["exit_code"], shown["epoch_after"]) == ("succeeded", 0, 2)
    assert shown["pause_ms"] is not None
    assert [step["status"] for step in shown["steps"]] == [
        "done", "skipped", "done", "done", "done", "done", "done", "done", "done", "done",
    ]  # fmt: skip
    assert (again_status, again["changed"], again["failover"]["id"]) == (200, False, failover)
    assert (other_status, other["exit_code"]) == (409, 6)


async def test_promoting_the_active_cluster_changes_nothing_and_says_so(authority) -> None:
    """It is what the caller wanted: not an error."""
    async with served(authority, leads=False) as place:
        status, answer = await place.client().promote(A)

    assert (status, answer["changed"], answer["failover"]) == (200, False, None)
    assert answer["message"] == "us-east is already active for orders (epoch 1)"


async def test_a_dry_run_shows_everything_and_changes_nothing(authority) -> None:
    """Not even the audit."""
    async with served(authority, leads=False) as place:
        before = await place.mesh.store.range((b"\x00", b"\x00"))
        status, answer = await place.client().promote(dry_run=True)
        after = await place.mesh.store.range((b"\x00", b"\x00"))

    assert status == 200
    assert answer["preview"]["epoch_after"] == 2
    assert answer["preview"]["refused"] is False
    assert answer["preview"]["lag_ms"] == 12
    assert before.revision == after.revision


async def test_the_group_on_one_screen(authority) -> None:
    """Who writes, how the others stand, and what if."""
    async with served(authority, leads=False) as place:
        alice = place.client()
        _, view = await alice.get("/v1/groups/orders")
        _, groups = await alice.get("/v1/groups")
        _, clusters = await alice.get("/v1/clusters")
        _, streams = await alice.get("/v1/replication?group=orders")

    members = {member["cluster"]: member for member in view["clusters"]}
    assert (view["active"], view["epoch"], view["failover"]) == (A, 1, None)
    assert members[A]["permit"] is True
    assert members[A]["if_promoted"] is None
    assert members[B]["if_promoted"] == {"pause_ms": 162, "loss": "none", "blockers": []}
    assert groups["groups"][0]["group"] == "orders"
    states = {cluster["name"]: cluster["state"] for cluster in clusters["clusters"]}
    assert states == {A: "active", B: "passive", "ap-south": "passive"}
    assert [(s["source"], s["target"], s["lag_ms"]) for s in streams["streams"]] == [(A, B, 12)]


async def test_silence_is_unknown_and_never_a_number(authority) -> None:
    """A report that is stale counts as none: promise 7."""
    async with served(authority, leads=False) as place:
        alice = place.client()
        await place.mesh.clock.advance_ms(60_000)
        _, streams = await alice.get("/v1/replication")
        _, view = await alice.get("/v1/groups/orders")
        status, problem = await alice.promote()

    stream = streams["streams"][0]
    assert (stream["state"], stream["lag_ms"], stream["fresh"]) == ("unknown", None, False)
    assert "too old" in stream["problem"]
    assert {member["fence"] for member in view["clusters"]} == {"unknown"}
    assert status == 422
    assert {"source_healthy", "lag"} <= {check["name"] for check in problem["checks"]}


async def test_clusters_and_groups_are_put(authority) -> None:
    """The same again changes nothing; endpoints of a member reach the routing."""
    async with served(authority, leads=False) as place:
        alice = place.client()
        spec = {"etcd_endpoints": ["https://new:2379"]}
        first = await alice.ask("PUT", "/v1/clusters/us-east", spec)
        second = await alice.ask("PUT", "/v1/clusters/us-east", spec)
        body = {"prefixes": ["/users/"], "members": [A, B], "active": B}
        made = await alice.ask("PUT", "/v1/groups/users", body)
        again = await alice.ask("PUT", "/v1/groups/users", body)
        routing = await place.mesh.store.get(Keys.routing(ORDERS))

    assert (first[1]["changed"], second[1]["changed"]) == (True, False)
    assert (made[0], made[1]["changed"], made[1]["group"]["active"]) == (200, True, B)
    assert made[1]["group"]["epoch"] == 1
    assert again[1]["changed"] is False
    assert routing is not None
    assert b"https://new:2379" in routing.value


async def test_a_dry_run_of_a_group_is_checked_and_stores_nothing(authority) -> None:
    """Overlapping prefixes must be refused before anybody relies on the preview."""
    async with served(authority, leads=False) as place:
        alice = place.client()
        fits = {"prefixes": ["/users/"], "members": [A, B]}
        overlaps = {"prefixes": ["/orders/late/"], "members": [A, B]}
        allowed = await alice.ask("PUT", "/v1/groups/users?dry_run=true", fits)
        refused = await alice.ask("PUT", "/v1/groups/users?dry_run=true", overlaps)
        stored = await place.mesh.store.get(Keys.group("users"))

    assert allowed == (200, {"changed": True, "dry_run": True})
    assert (refused[0], refused[1]["exit_code"]) == (400, 2)
    assert stored is None


async def test_followers_see_each_transition_and_the_end(authority) -> None:
    """Server-sent events; past ones first; resumable after the last one seen."""
    async with served(authority) as place:
        alice = place.client()
        _, begun = await alice.promote()
        failover = begun["failover"]["id"]
        path = f"{place.url}/v1/failovers/{failover}/events"
        tls = alice.identity.client_context()
        async with place.session.get(path, ssl=tls) as answer:
            text = (await answer.read()).decode()
        async with place.session.get(path, ssl=tls, headers={"Last-Event-ID": "4"}) as answer:
            rest = (await answer.read()).decode()

    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    whats = [event.get("what") for event in events[:-1]]
    assert whats == [
        "began, check done, approve skipped",
        "verify done",
        "catch_up done",
        "drain done",
        "converge done, pivot done",
        "open done",
        "reverse done, settle done",
    ]
    assert events[-1] == {"phase": "succeeded", "exit_code": 0}
    assert "id: 5\n" in rest
    assert "id: 4\n" not in rest


async def test_the_audit_tells_the_story_and_verifies(authority) -> None:
    """And shows when somebody changed the past."""
    async with served(authority) as place:
        alice = place.client()
        _, begun = await alice.promote()
        await ended(alice, begun["failover"]["id"])
        _, audit = await alice.get("/v1/audit/orders")
        _, part = await alice.get("/v1/audit/orders?after=1&limit=1")
        _, good = await alice.get("/v1/audit/orders/verify")
        await place.mesh.store.commit(Txn(operations=(Put(Keys.audit(ORDERS, 2), b"scribble"),)))
        _, bad = await alice.get("/v1/audit/orders/verify")

    assert [entry["action"] for entry in audit["entries"]] == [
        "group.founded",
        "failover.began",
        "failover.authority_moved",
        "failover.succeeded",
    ]
    assert audit["entries"][1]["actor"] == "operator/alice"
    assert [entry["n"] for entry in part["entries"]] == [2]
    assert (good["ok"], good["entries"]) == (True, 4)
    assert bad["ok"] is False


async def test_what_this_process_says_of_itself(authority) -> None:
    """For orchestrators and for Prometheus."""
    async with served(authority) as place:
        reader = place.client("reader", "prometheus")
        live = await reader.get("/livez")
        ready = await settle_until_ready(reader)
        async with place.session.get(
            f"{place.url}/metrics", ssl=reader.identity.client_context()
        ) as answer:
            metrics = await answer.text()

    assert (live[0], live[1]["ok"]) == (200, True)
    assert ready["leader"] == "c1"
    assert "mesh_coordinator_leading 1.0" in metrics
    assert 'mesh_replication_lag_seconds{source="us-east",target="eu-west"} 0.012' in metrics


async def settle_until_ready(client: Client) -> dict:
    for _ in range(50):
        _, body = await client.get("/readyz")
        if body["leader"]:
            return body
    raise AssertionError(body)


# --- every error --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "exit_code", "says"),
    [
        ("GET", "/v1/clusters/nowhere", None, 404, 3, "clusters there are"),
        ("GET", "/v1/groups/nothing", None, 404, 3, "groups there are"),
        ("GET", "/v1/failovers/f-0", None, 404, 3, "no failover"),
        ("GET", "/v1/nothing", None, 404, 3, "openapi.json"),
        ("DELETE", "/v1/groups", None, 400, 2, "takes GET"),
        ("GET", "/v1/groups/Orders!", None, 400, 2, "lower-case"),
        ("POST", "/v1/groups/nothing/failovers", {"target": B}, 404, 3, "no group"),
        ("POST", "/v1/groups/orders/failovers", {"target": "mars"}, 404, 3, "no cluster"),
        ("POST", "/v1/groups/orders/failovers", {"target": "ap-south"}, 404, 3, "no member"),
        ("POST", "/v1/groups/orders/failovers", {}, 400, 2, "target"),
        ("POST", "/v1/groups/orders/failovers", {"kind": "failback"}, 422, 3, "never active"),
        ("POST", "/v1/groups/orders/failovers", {"target": B, "kind": "x"}, 400, 2, "promote"),
        ("POST", "/v1/groups/orders/failovers", {"target": B, "colour": 1}, 400, 2, "colour"),
        (
            "POST",
            "/v1/groups/orders/failovers",
            {"target": B, "waive": ["x"]},
            400,
            2,
            "checks are",
        ),
        (
            "POST",
            "/v1/groups/orders/failovers",
            {"target": B, "expect_epoch": 7},
            409,
            6,
            "epoch 1",
        ),
        (
            "PUT",
            "/v1/groups/other",
            {"prefixes": ["/orders/x"], "members": [A]},
            400,
            2,
            "overlaps",
        ),
        (
            "PUT",
            "/v1/groups/other",
            {"prefixes": ["/o"], "members": ["mars"]},
            400,
            2,
            "no cluster",
        ),
        ("PUT", "/v1/groups/orders", {"members": [A]}, 400, 2, "cannot lose"),
        ("PUT", "/v1/groups/orders", {"prefixes": ["/other/"]}, 400, 2, "cannot lose its prefix"),
        ("PUT", "/v1/groups/orders", {"policy": {"lag_ms_max": 0}}, 400, 2, "policy"),
        (
            "PUT",
            "/v1/groups/orders",
            {"policy": {"failover": "automatic", "on_coordination_loss": "keep"}},
            400,
            2,
            "does not go with on_coordination_loss: keep",
        ),
        ("PUT", "/v1/clusters/us-east", {"name": "eu-west"}, 400, 2, "path"),
        ("PUT", "/v1/clusters/us-east", {"intent": "gone"}, 400, 2, "in-service"),
    ],
)
async def test_wrong_input_is_refused_with_its_exit_code(
    authority, method, path, body, status, exit_code, says
) -> None:
    """A sentence that helps, and nothing changed."""
    async with served(authority, leads=False) as place:
        before = await place.mesh.store.range((b"\x00", b"\x00"))
        answered, problem = await place.client().ask(method, path, body)
        after = await place.mesh.store.range((b"\x00", b"\x00"), modified_after=before.revision)

    assert (answered, problem["status"]) == (status, status), problem
    assert problem["exit_code"] == exit_code
    assert says in problem["detail"] + problem["hint"]
    assert all(item.key.startswith(ROOT + b"audit") for item in after.items)
    assert bool(after.items) == (status in {409, 422})


async def test_a_failed_check_refuses_and_the_refusal_is_audited(authority) -> None:
    """And waiving it by name lets it pass."""
    mesh = FakeMesh(policy=GroupPolicy(lag_ms_max=5))
    async with served(authority, mesh, leads=False) as place:
        alice = place.client()
        status, problem = await alice.promote()
        _, audit = await alice.get("/v1/audit/orders")
        waived, _ = await alice.promote(waive=["lag"])

    assert (status, problem["code"], problem["exit_code"]) == (422, "refused", 3)
    assert [check["name"] for check in problem["checks"]] == ["lag"]
    assert "--waive lag" in problem["hint"]
    assert audit["entries"][-1]["action"] == "failover.refused"
    assert waived == 202


async def test_there_is_one_failover_at_a_time(authority) -> None:
    """The other one is named; promoting its source back is no no-op either."""
    async with served(authority, leads=False) as place:
        alice = place.client()
        _, begun = await alice.promote()
        status, problem = await alice.promote()
        source_status, _ = await alice.promote(A)

    assert (status, problem["exit_code"]) == (409, 6)
    assert problem["failover_id"] == begun["failover"]["id"]
    assert source_status == 409


async def test_a_group_keeps_its_prefixes_while_a_failover_runs(authority) -> None:
    """The target opens with what the source covered at its cut; policy may change meanwhile."""
    async with served(authority, leads=False) as place:
        alice = place.client()
        wider = {"prefixes": ["/orders/", "/carts/"]}
        _, begun = await alice.promote()
        status, problem = await alice.ask("PUT", "/v1/groups/orders", wider)
        policy = await alice.ask("PUT", "/v1/groups/orders", {"policy": {"cool_down_ms": 5}})
        await alice.ask("POST", f"/v1/failovers/{begun['failover']['id']}/abort")
        after = await alice.ask("PUT", "/v1/groups/orders", wider)

    assert (status, problem["exit_code"]) == (409, 6)
    assert problem["failover_id"] == begun["failover"]["id"]
    assert (policy[0], policy[1]["changed"]) == (200, True)
    assert (after[0], after[1]["changed"]) == (200, True)
    assert after[1]["group"]["prefixes"] == ["/orders/", "/carts/"]


async def test_two_who_begin_at_once_get_one_failover(authority) -> None:
    """Created only if absent, under the authority that both were shown."""
    async with served(authority, leads=False) as place:
        alice, bob = place.client(), place.client("operator", "bob")
        answers = await asyncio.gather(alice.promote(), bob.promote())

    assert sorted(status for status, _ in answers) == [202, 409]


async def test_abort_and_resume_by_their_rules(authority) -> None:
    """Abort until the pivot; resume only what is held."""
    mesh = FakeMesh()
    mesh.regions[B].silent.add(CommandStep.OPEN)
    async with served(authority, mesh) as place:
        alice = place.client()
        _, begun = await alice.promote()
        path = f"/v1/failovers/{begun['failover']['id']}"
        await settle_until(lambda: mesh.regions[A].fence().mode == "drained")
        for _ in range(50):
            _, shown = await alice.get(path)
            if shown["authority_moved"]:
                break
        too_late = await alice.ask("POST", f"{path}/abort")
        not_held = await alice.ask("POST", f"{path}/resume", {"reason": "x"})

    assert (too_late[0], too_late[1]["exit_code"]) == (422, 3)
    assert "failback" in too_late[1]["hint"]
    assert (not_held[0], not_held[1]["exit_code"]) == (422, 3)


@attrs.define
class Gone:
    fault: Fault = Fault.NONE

    async def before(self, operation: str) -> Fault:
        return self.fault


async def test_an_etcd_out_of_reach_is_said_so(authority) -> None:
    """Unreachable is 7; a change whose fate nobody knows is 9."""
    mesh, gone = FakeMesh(), Gone()
    async with served(authority, mesh, leads=False, store=mesh.store.connect(faults=gone)) as place:
        alice = place.client()
        gone.fault = Fault.UNREACHABLE
        unreachable = await alice.get("/v1/groups")
        ready = await alice.get("/readyz")
        gone.fault = Fault.NONE

    assert (unreachable[0], unreachable[1]["exit_code"]) == (503, 7)
    assert (ready[0], ready[1]["ok"]) == (503, False)
    unknown = problem_of(errors.OutcomeUnknown("the reply was lost"))
    assert (unknown["status"], unknown["exit_code"]) == (504, 9)
