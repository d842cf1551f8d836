"""Copies onto a region that holds something already: only what differs is sent, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import attrs
import pytest

from meshkit.ordinals import LeaseId, Revision
from meshkit.status import CopyProgress
from meshkit.store.txn import Put, Txn, prefix_range
from replicator.limits import Limits
from replicator.messages import Compared, CopyPage, Join, Outline, Verdict
from replicator.outline import FINGERPRINT_BYTES, PART_KEYS
from tests.replicator.mesh import A, B, G, H, Mesh


@pytest.fixture
async def wide() -> AsyncIterator[Mesh]:
    """The limits of production, but small pages."""
    mesh = Mesh(A, B, limits=Limits(page_keys_max=40))
    await mesh.start()
    yield mesh
    await mesh.close()


async def nothing(_answer: Compared) -> None:
    pass


class Sent:
    """What the source sends to b, by kind, from now on."""

    def __init__(self, mesh: Mesh) -> None:
        self.outlines: list[Outline] = []
        self.pages: list[CopyPage] = []
        self.answers: list[Compared] = []
        self.on_answer: Callable[[Compared], Awaitable[None]] = nothing
        self.knows_parts = True
        """Whether the source is told that the target takes outlines in parts."""
        self.lost: int | None = None
        """Which of the pages never arrives, counted from 1."""
        self._mesh = mesh

    def watch(self) -> None:
        for connection in self._mesh.network.connections:
            if (connection.source, connection.target) == (A, B):
                put, told = connection.to_target.put, connection.to_source.put

                async def spy(message, put=put):  # type: ignore[no-untyped-def]
                    if isinstance(message, Outline):
                        self.outlines.append(message)
                    elif isinstance(message, CopyPage):
                        self.pages.append(message)
                        if len(self.pages) == self.lost:
                            return
                    await put(message)

                async def spy_back(message, told=told):  # type: ignore[no-untyped-def]
                    if isinstance(message, Join) and not self.knows_parts:
                        message = attrs.evolve(message, compares_parts=False)
                    if isinstance(message, Compared):
                        self.answers.append(message)
                        await self.on_answer(message)
                    await told(message)

                connection.to_target.put = spy  # type: ignore[method-assign]
                connection.to_source.put = spy_back  # type: ignore[method-assign]

    @property
    def items(self) -> list[bytes]:
        return [key for page in self.pages for key, _ in page.items]


async def filled(mesh: Mesh, count: int) -> None:
    for start in range(0, count, 50):
        await mesh.write(A, {f"/orders/{n:04}": f"v{n}" for n in range(start, start + 50)})
    await mesh.found(G, A)
    await mesh.converge()


async def copy_again(mesh: Mesh, *, knows_parts: bool = True) -> Sent:
    sent = Sent(mesh)
    sent.knows_parts = knows_parts
    sent.watch()
    await mesh.join(B, G)
    await mesh.until(lambda: mesh[B].is_out_of_step(G))
    await mesh.converge()
    return sent


async def test_a_second_copy_sends_only_what_differs(wide: Mesh) -> None:
    await filled(wide, 400)
    await wide[B].store.commit(
        Txn(
            operations=(
                Put(b"/orders/0007", b"changed here"),
                Put(b"/orders/0007x", b"only here"),
            )
        )
    )
    before = {i.key: i.mod_revision for i in live(wide)}

    sent = await copy_again(wide)

    assert sent.items == [b"/orders/0007"]
    after = {i.key: i.mod_revision for i in live(wide)}
    moved = {key for key in before if after.get(key) != before[key]}
    assert moved == {b"/orders/0007", b"/orders/0007x"}
    assert len(sent.answers) == len(sent.outlines) > 5
    (different,) = (a for a in sent.answers if a.verdict is Verdict.DIFFERENT)
    assert different.parts == (0,)
    assert len(different.fingerprints) == (PART_KEYS + 1) * FINGERPRINT_BYTES


async def test_a_peer_that_knows_no_parts_gets_one_digest_for_each_page(wide: Mesh) -> None:
    """Regions are upgraded one after the other."""
    await filled(wide, 400)
    changed = (Put(b"/orders/0007", b"changed here"), Put(b"/orders/0007x", b"only here"))
    await wide[B].store.commit(Txn(operations=changed))

    sent = await copy_again(wide, knows_parts=False)

    assert sent.items == [b"/orders/0007"]
    assert not any(outline.part_digests for outline in sent.outlines)
    assert all(outline.digest for outline in sent.outlines)
    (different,) = (a for a in sent.answers if a.verdict is Verdict.DIFFERENT)
    assert len(different.fingerprints) > (PART_KEYS + 1) * FINGERPRINT_BYTES
    assert wide.scope(A, G) == wide.scope(B, G)


def live(mesh: Mesh):  # type: ignore[no-untyped-def]
    return mesh[B].store.server.history.live(prefix_range(b"/orders/"))


async def test_equal_copies_cost_a_digest_for_each_page_and_hardly_a_transaction(
    wide: Mesh,
) -> None:
    await filled(wide, 400)
    before = wide[B].store.server.history.revision

    sent = await copy_again(wide)

    assert sent.items == []
    assert not any(answer.fingerprints for answer in sent.answers)
    assert wide[B].store.server.history.revision - before <= 5


async def test_a_first_copy_pays_for_one_outline(wide: Mesh) -> None:
    """Onto an empty region pages stream at full speed, without waiting for answers."""
    for start in range(0, 400, 50):
        await wide.write(A, {f"/orders/{n:04}": "v" for n in range(start, start + 50)})
    sent = Sent(wide)
    sent.watch()
    await wide.found(G, A)
    await wide.converge()

    assert len(sent.items) == 400
    assert [answer.verdict for answer in sent.answers] == [Verdict.EMPTY]
    assert len(sent.outlines) == 1


async def test_a_page_that_is_lost_is_missed_and_sent_again(wide: Mesh) -> None:
    """Its keys would be neither here nor in the stream that follows (seed 460 of the simulation)."""
    for start in range(0, 400, 50):
        await wide.write(A, {f"/orders/{n:04}": "v" for n in range(start, start + 50)})
    sent = Sent(wide)
    sent.lost = 4
    sent.watch()
    await wide.found(G, A)
    await wide.converge()

    assert len(sent.pages) >= 4
    assert len(live(wide)) == 400


async def test_a_prefix_that_holds_far_more_here_is_sent_whole(wide: Mesh) -> None:
    """Otherwise the target would have to read without a bound to say what it holds."""
    await wide.found(G, A)
    for n in range(300):
        await wide.write(B, {f"/orders/extra-{n:04}": "not at the source"})
    await wide.write(A, {"/orders/1": "1"})
    await wide.converge()

    sent = await copy_again(wide)

    assert wide.scope(B, G) == wide.scope(A, G) == {b"/orders/1": b"1"}
    assert sent.items == [b"/orders/1"] or not sent.items


async def test_a_copy_of_several_prefixes_compares_each(wide: Mesh) -> None:
    for n in range(60):
        await wide.write(A, {f"/users/{n:03}": "u", f"/accounts/{n:03}": "a"})
    await wide.found(H, A)
    await wide.converge()
    await wide.write(B, {"/accounts/only-here": "x"})
    sent = Sent(wide)
    sent.watch()
    await wide.join(B, H)
    await wide.converge()

    assert sent.items == []
    assert sorted(wide.scope(B, H)) == sorted(wide.scope(A, H))


async def test_what_something_else_writes_during_a_copy_is_looked_at_again(wide: Mesh) -> None:
    """A key is never overwritten on the strength of an older look."""
    await filled(wide, 120)
    await wide.write(A, {"/orders/0050": "new at the source"})
    await wide.converge()
    server = wide[B].store.server
    await wide.write(B, {"/orders/0050": "differs"})
    sent = Sent(wide)
    sent.watch()

    async def interfere(answer: Compared) -> None:
        if answer.verdict is Verdict.DIFFERENT:
            await wide.write(B, {"/orders/0050": "differs again"})

    sent.on_answer = interfere
    await wide.join(B, G)
    await wide.converge()

    values = [
        change.item.value
        for changes in server.history._log
        for change in changes.changes
        if change.key == b"/orders/0050"
    ]
    assert values[-2:] == [b"differs again", b"new at the source"]


async def test_a_copy_whose_cut_is_compacted_halfway_sends_again_only_what_changed() -> None:
    """S15: the cut is compacted halfway and the keys come at newer revisions.

    No key goes back, the group is not promotable before it has passed the newest revision that was
    fetched, and what had been copied before costs a digest.
    """
    mesh = Mesh(A, B, limits=Limits(page_keys_max=40, side_window_bytes_max=4_000))
    await mesh.start()
    for n in range(400):
        await mesh.write(
            A, {f"/orders/{n:04}": f"{n:04} at {mesh[A].store.server.history.revision + 1:08}"}
        )
    sent = Sent(mesh)
    sent.watch()
    await mesh.found(G, A)
    await mesh.until(lambda: len(mesh.scope(B, G)) > 150)
    copied = len(mesh.scope(B, G))
    revision = 0
    for n in range(0, 400, 20):
        at = mesh[A].store.server.history.revision + 1
        revision = await mesh.write(A, {f"/orders/{n:04}": f"{n:04} at {at:08}"})
    await mesh[A].store.compact(Revision(revision))
    fetched = 0
    while not mesh.is_converged():
        fetched = max([fetched, *(page.cut for page in sent.pages)])
        own = mesh[B].checkpoint(A)
        if not mesh[B].is_out_of_step(G):
            assert own is not None
            assert own.sequence >= fetched
        await mesh.clock.advance_ms(1)

    assert copied < 400, "the schedule was not reached"
    assert len({page.cut for page in sent.pages}) == 2
    seen: dict[bytes, bytes] = {}
    for changes in mesh[B].store.server.history._log:
        for change in changes.changes:
            if change.key.startswith(b"/orders/"):
                assert seen.get(change.key, b"") < change.item.value, "a key went back"
                seen[change.key] = change.item.value
    assert len(sent.items) < 400 + 40 + copied // 2
    await mesh.close()


async def test_a_copy_that_compares_does_not_pass_over_what_hangs_on_leases(wide: Mesh) -> None:
    """A digest of keys and values says nothing of leases: such keys are sent whatever they hold."""
    await filled(wide, 120)
    key, other = b"/orders/0003", b"/orders/0077"
    await wide[A].store.grant(ttl_s=1_000, lease_id=LeaseId(7))
    await wide[A].store.commit(Txn(operations=(Put(key, b"v3", LeaseId(7)),)))
    await wide.until(lambda: wide.attached(B, G) == {key: (7, 1_000)})
    await wide.stop(B)
    await wide[A].store.commit(Txn(operations=(Put(key, b"v3"), Put(other, b"v77", LeaseId(7)))))
    await wide[A].store.compact(wide[A].store.server.history.revision)
    await wide.start(B)

    await wide.until(lambda: wide.attached(B, G) == {other: (7, 1_000)})


async def test_a_copy_says_how_far_it_is() -> None:
    mesh = Mesh(A, B, limits=Limits(page_keys_max=40, side_window_bytes_max=4_000))
    await mesh.start()
    for start in range(0, 400, 50):
        await mesh.write(A, {f"/orders/{n:04}": "v" for n in range(start, start + 50)})
    await mesh.found(G, A)
    seen: list[CopyProgress] = []
    while not mesh.is_converged():
        await mesh.clock.advance_ms(1)
        seen += [c for status in mesh[A].outbound.statuses() for c in status.copies]

    done = [progress.keys_done for progress in seen]
    assert done == sorted(done)
    assert 0 < done[len(done) // 2] < 400
    assert {progress.keys_total for progress in seen} == {400}
    assert all(p.bytes_total // 400 == p.bytes_done // p.keys_done for p in seen if p.keys_done)
    (status,) = mesh[A].outbound.statuses()
    assert status.copies == ()
    await mesh.close()


async def test_a_copy_goes_no_faster_than_it_may_and_what_is_equal_costs_nothing() -> None:
    mesh = Mesh(A, B, limits=Limits(page_keys_max=40, copy_bytes_per_s_max=10_000))
    await mesh.start()
    for n in range(100):
        await mesh.write(A, {f"/orders/{n:04}": "x" * 1_000})
    began_ms = mesh.clock.now_ms()
    await mesh.found(G, A)
    await mesh.converge()
    took_ms = mesh.clock.now_ms() - began_ms
    await mesh.clock.advance_ms(10_000)
    began_ms = mesh.clock.now_ms()
    await copy_again(mesh)
    again_ms = mesh.clock.now_ms() - began_ms

    # 108 KB at 10 KB a second, less what is saved up and the last page.
    assert 5_000 < took_ms < 11_500
    assert again_ms < 500
    await mesh.close()
