"""Promise 8: every act and every refusal is in the audit, and nobody can fill the etcd by it."""

from __future__ import annotations

import re

import attrs

from cli.pki import CertificateAuthority
from coordinator.api import refusals
from coordinator.api.refusals import AGAIN_MS, Refusals
from coordinator.api.routes import ROUTES, Access
from coordinator.governance.audit import MESH_AUDIT, AuditEntry
from meshkit.clock import ManualClock
from meshkit.codec import decode
from meshkit.errors import Conflict, InvalidInput, NotAllowed
from meshkit.keys import CoordinationKeys as Keys
from meshkit.names import GroupName
from meshkit.peer import PeerIdentity
from meshkit.store.memory import Fault, MemoryStore
from meshkit.store.txn import prefix_range
from tests.coordinator.fake_region import ORDERS, A
from tests.coordinator.test_api import authority, served

__all__ = ["authority"]

PUT_GROUP = next(route for route in ROUTES if route.name == "put_group")
LIST_GROUPS = next(route for route in ROUTES if route.name == "list_groups")
BOB = PeerIdentity(role="reader", name="bob")


async def entries(store: MemoryStore, group: GroupName = MESH_AUDIT) -> list[AuditEntry]:
    found = await store.range(prefix_range(Keys.audit(group, 0)[:-10]))
    return [decode(AuditEntry, item.value) for item in found.items]


# --- what is entered ----------------------------------------------------------------------------


async def test_whoever_may_not_is_entered_in_the_audit_of_what_it_was_about(
    authority: CertificateAuthority,
) -> None:
    """A group's, by its name or a failover's; where there is no such group, the mesh's."""
    async with served(authority, leads=False) as place:
        bob, alice = place.client("reader", "bob"), place.client()
        _, begun = await alice.promote()
        failover = begun["failover"]["id"]
        before = len(await entries(place.mesh.store, ORDERS))
        await bob.promote()
        await bob.ask("POST", f"/v1/failovers/{failover}/abort")
        for path in ("/v1/groups/none", "/v1/groups/No!", "/v1/clusters/us-east"):
            await bob.ask("PUT", path, {})
        await bob.ask("POST", "/v1/failovers/f-0/abort")
        of_group = (await entries(place.mesh.store, ORDERS))[before:]
        of_mesh = await entries(place.mesh.store)
        none = await entries(place.mesh.store, GroupName("none"))

    assert [(e.actor, e.action, e.facts["code"]) for e in of_group] == [
        ("reader/bob", "request.refused", "not_allowed")
    ] * 2
    assert [e.facts["request"] for e in of_group] == [
        "POST /v1/groups/{group}/failovers",
        "POST /v1/failovers/{failover}/abort",
    ]
    assert of_group[1].facts["failover"] == failover
    assert [e.facts.get("group") or e.facts.get("name") for e in of_mesh] == [
        *("none", "No!", "us-east", None)
    ]
    assert none == []


async def test_every_change_that_somebody_may_not_make_is_entered(
    authority: CertificateAuthority,
) -> None:
    """A new route cannot be forgotten."""
    async with served(authority, leads=False) as place:
        changes = [route for route in ROUTES if route.access is Access.OPERATE]
        for number, route in enumerate(changes):
            # Of one peer only so many are entered at once.
            bob = place.client("reader", f"bob-{number}")
            await bob.ask(route.method, re.sub(r"{\w+}", "nothing", route.path), {})
            await place.mesh.clock.advance_ms(AGAIN_MS)
        entered = await entries(place.mesh.store)

    assert [entry.facts["request"] for entry in entered] == [
        f"{route.method} {route.path}" for route in changes
    ]


async def test_conflicts_and_refused_changes_are_entered(authority: CertificateAuthority) -> None:
    """What is merely written wrongly, or is not there, is not; a failed check is entered once."""
    async with served(authority, leads=False) as place:
        alice = place.client()
        await alice.promote(expect_epoch=7)
        await alice.promote(kind="failback", target=None)
        await alice.promote("mars")
        await alice.promote(colour=1)
        _, audit = await alice.get("/v1/audit/orders?after=1")
        await place.mesh.clock.advance_ms(60_000)
        await alice.promote()
        _, checked = await alice.get("/v1/audit/orders?after=3")

    refused = [(e["action"], e["facts"]["code"]) for e in audit["entries"]]
    assert refused == [("request.refused", "conflict"), ("request.refused", "refused")]
    assert "not in epoch 7" in audit["entries"][0]["facts"]["detail"]
    assert [e["action"] for e in checked["entries"]] == ["failover.refused"]


async def test_changes_of_clusters_are_in_the_audit_of_the_mesh(
    authority: CertificateAuthority,
) -> None:
    """Which no group can be mistaken for; it is listed and verified like theirs."""
    async with served(authority, leads=False) as place:
        alice = place.client()
        spec = {"region": "eu", "priority": 5}
        for _ in range(2):
            await alice.ask("PUT", "/v1/clusters/eu-north", spec)
        await alice.ask("PUT", "/v1/clusters/eu-north", {"priority": 6})
        _, audit = await alice.get("/v1/audit/_mesh")
        _, verdict = await alice.get("/v1/audit/_mesh/verify")
        status, _ = await alice.ask("PUT", "/v1/groups/_mesh", {"prefixes": ["/m/"]})

    made, changed = audit["entries"]
    assert (made["actor"], made["action"]) == ("operator/alice", "cluster.made")
    assert (made["facts"]["cluster"], made["facts"]["new"]["region"]) == ("eu-north", "eu")
    assert changed["action"] == "cluster.changed"
    assert changed["facts"] == {"cluster": "eu-north", "new": {"priority": 6}}
    assert (verdict["ok"], verdict["entries"]) == (True, 2)
    assert status == 400


async def test_who_is_nobody_here_leaves_no_trace(authority: CertificateAuthority) -> None:
    """Only a verified identity gets as far as the audit."""
    async with served(authority, leads=False) as place:
        before = await place.mesh.store.range((b"\x00", b"\x00"))
        nobody = place.client(uri="spiffe://other.domain/operator/alice")
        status, _ = await nobody.promote(A)
        after = await place.mesh.store.range((b"\x00", b"\x00"))

    assert status == 403
    assert after.revision == before.revision


# --- how much of it -----------------------------------------------------------------------------


@attrs.define
class Gone:
    is_gone: bool = False

    async def before(self, operation: str) -> Fault:
        return Fault.UNREACHABLE if self.is_gone else Fault.NONE


@attrs.define
class Bench:
    clock: ManualClock = attrs.field(factory=ManualClock)
    gone: Gone = attrs.field(factory=Gone)
    store: MemoryStore = attrs.field(init=False)
    refusals: Refusals = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.store = MemoryStore(clock=self.clock)
        self.refusals = Refusals(store=self.store.connect(faults=self.gone), clock=self.clock)

    async def refuse(self, peer: PeerIdentity = BOB, times: int = 1) -> None:
        for _ in range(times):
            await self.refusals.note(peer, PUT_GROUP, {"group": "x" * 5_000}, NotAllowed("no"))


async def test_of_a_peer_that_is_refused_again_and_again_little_is_entered() -> None:
    """And the next entry tells how much was left out."""
    bench = Bench()
    await bench.refuse(times=100)
    at_once = len(await entries(bench.store))
    other = PeerIdentity(role="reader", name="carol")
    await bench.refuse(other)
    await bench.clock.advance_ms(refusals.AGAIN_MS)
    await bench.refuse(times=5)
    after = await entries(bench.store)

    assert at_once == refusals.AT_ONCE_MAX
    assert [e.actor for e in after[at_once:]] == ["reader/carol", "reader/bob"]
    assert after[-1].facts["omitted_before"] == "80"
    assert len(after[-1].facts["group"]) == refusals.TEXT_CHARS_MAX


async def test_after_long_no_more_is_entered_at_once_than_at_first() -> None:
    bench = Bench()
    await bench.refuse()
    await bench.clock.advance_ms(1_000 * refusals.AGAIN_MS)
    await bench.refuse(times=100)

    assert len(await entries(bench.store)) == 1 + refusals.AT_ONCE_MAX


async def test_peers_are_remembered_in_bounded_number(monkeypatch) -> None:
    monkeypatch.setattr(refusals, "PEERS_MAX", 3)
    bench = Bench()
    for n in range(10):
        await bench.refuse(PeerIdentity(role="reader", name=f"r{n}"))

    assert len(bench.refusals._allowances) == 3
    assert len(await entries(bench.store)) == 10


async def test_a_refusal_that_cannot_be_entered_is_a_refusal_all_the_same() -> None:
    """The caller is told what it is, not that the audit failed; the next entry counts it."""
    bench = Bench()
    bench.gone.is_gone = True
    await bench.refuse()
    bench.gone.is_gone = False
    await bench.refuse()

    (entry,) = await entries(bench.store)
    assert entry.facts["omitted_before"] == "1"


async def test_only_refusals_are_entered() -> None:
    """What a read runs into, and mistakes, are none."""
    bench = Bench()
    await bench.refusals.note(BOB, LIST_GROUPS, {}, Conflict("moved"))
    await bench.refusals.note(BOB, PUT_GROUP, {}, InvalidInput("a typo"))
    assert await entries(bench.store) == []

    await bench.refusals.note(BOB, LIST_GROUPS, {}, NotAllowed("a wizard"))
    await bench.refusals.note(BOB, PUT_GROUP, {}, Conflict("moved"))

    assert len(await entries(bench.store)) == 2
