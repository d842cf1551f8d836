"""Claims about comparing a copy with its source: no false alarm under load, no difference missed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from meshkit.clock import settle
from meshkit.codec import decode, encode
from meshkit.errors import RevisionConflict, Unreachable
from meshkit.keys import CoordinationKeys, RegionalKeys
from meshkit.model import Authority
from meshkit.names import ClusterName
from meshkit.ordinals import NO_TOKEN, Epoch, Incarnation
from meshkit.store.memory import MemoryStore
from meshkit.store.txn import Put, Txn
from meshkit.verification import Verify, VerifyFindings, VerifyOutcome, VerifyResult
from replicator.agent_ports import Region
from replicator.comparer import Comparer, NoCopy, NotComparable
from replicator.digest import Digest
from replicator.examiner import Examiner
from replicator.quarantine import Quarantine
from replicator.verifier import Verifier
from replicator.verify_messages import GroupDigest, ToVerifier, VerifyRequest
from tests.replicator.mesh import ALWAYS, A, B, G, Mesh

KEYS = 40


class Comparing:
    """A mesh in which B compares its copy of the group with A."""

    def __init__(self) -> None:
        self.mesh = Mesh(A, B)
        self.coordination = MemoryStore(clock=self.mesh.clock)
        self.tasks: list[asyncio.Task[None]] = []
        self.dwell_ms = 0
        """How long the source takes to answer; everything else goes on meanwhile."""

    async def start(self) -> None:
        await self.mesh.start()
        await self.mesh.found(G, A)
        await self.activate(A, epoch=1)
        for number in range(KEYS):
            await self.mesh.write(A, {f"/orders/{number:03d}": f"value-{number}"})
        await self.mesh.converge(G)
        self.listen(A)

    def listen(self, name: ClusterName) -> None:
        """Answer those who compare with this cluster."""
        examiner = Examiner(
            store=self.mesh[name].store.connect(),
            cluster=name,
            incarnation=Incarnation(f"{name}-1"),
            limits=self.mesh.limits,
        )

        async def answer(
            request: VerifyRequest, peer: ClusterName | None
        ) -> AsyncIterator[ToVerifier]:
            if self.dwell_ms:
                await self.mesh.clock.advance_ms(self.dwell_ms)
            async for message in examiner.answer(request, peer):
                yield message

        serve = self.mesh[name].outbound.serve
        self.mesh.network.listen(f"{name}:1", serve, answer=answer)

    async def activate(self, name: ClusterName, *, epoch: int) -> None:
        authority = Authority(group=G, epoch=Epoch(epoch), token=NO_TOKEN, active=name)
        await self.coordination.commit(
            Txn(operations=(Put(CoordinationKeys.authority(G), encode(authority)),))
        )

    def comparer(self, name: ClusterName = B) -> Comparer:
        return Comparer(
            cluster=name,
            regional=self.mesh[name].store.connect(),
            coordination=self.coordination.connect(),
            dialer=self.mesh.network.dialer(name),
            endpoints=lambda source: (f"{source}:0", f"{source}:1"),
            limits=self.mesh.limits,
        )

    def verify(self) -> Verifier:
        """Run what carries out requests at B."""
        region = Region(
            cluster=B,
            incarnation=Incarnation("b-1"),
            replicator="b-0",
            leader=ALWAYS,
            regional=self.mesh[B].store.connect(),
            coordination=self.coordination.connect(),
            clock=self.mesh.clock,
        )
        inbound = self.mesh[B].inbound
        assert inbound is not None
        verifier = Verifier(region, self.comparer(), on_join=inbound.refresh)
        self.tasks.append(asyncio.get_running_loop().create_task(verifier.run()))
        return verifier

    async def ask(self, verify_id: str, *, repair: bool = False) -> VerifyResult:
        request = Verify(
            id=verify_id, group=G, target=B, repair=repair, requested_by="me", requested_ms=1
        )
        put = Put(CoordinationKeys.verify(B, G), encode(request))
        await self.coordination.commit(Txn(operations=(put,)))
        await self.mesh.until(lambda: self._newest() == verify_id)
        item = await self.coordination.get(CoordinationKeys.verify_result(B, G))
        assert item is not None
        return decode(VerifyResult, item.value)

    def _newest(self) -> str:
        item = self.coordination.server.history.lookup(CoordinationKeys.verify_result(B, G))
        return decode(VerifyResult, item.value).id if item else ""

    async def findings(self) -> VerifyFindings:
        item = await self.mesh[B].store.get(RegionalKeys.findings(G))
        assert item is not None
        return decode(VerifyFindings, item.value)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.mesh.close()


@pytest.fixture
async def comparing() -> object:
    made = Comparing()
    await made.start()
    yield made
    await made.close()


async def test_under_running_writes_there_is_no_false_alarm(comparing: Comparing) -> None:
    mesh, rng = comparing.mesh, random.Random(7)

    async def write() -> None:
        for number in range(400):
            key = f"/orders/{rng.randrange(KEYS + 20):03d}"
            await mesh.write(A, {key: None if rng.random() < 0.2 else f"new-{number}"})
            await mesh.clock.sleep_ms(3)

    comparing.dwell_ms = 40
    writing = asyncio.get_running_loop().create_task(write())
    comparer = comparing.comparer()
    pairs = set()
    while not writing.done():
        await mesh.clock.advance_ms(10)
        compared = await comparer.compare(G)
        assert compared.is_equal, compared.found
        pairs.add((compared.at.sequence, compared.at.revision))
    await writing
    assert len(pairs) > 10, "writes went on while states were compared"


async def test_every_kind_of_difference_is_found(comparing: Comparing) -> None:
    await comparing.mesh.write(B, {"/orders/001": "foreign", "/orders/002": None, "/orders/x": "y"})

    found = (await comparing.comparer().compare(G)).found

    assert found.different == [b"/orders/001"]
    assert found.only_source == [b"/orders/002"]
    assert found.only_target == [b"/orders/x"]
    assert (found.counts.source_keys, found.counts.target_keys) == (KEYS, KEYS)


async def test_an_idle_stream_does_not_hide_a_foreign_write(comparing: Comparing) -> None:
    """What was written after the last checkpoint is there at the revision that is compared."""
    await comparing.mesh.until(lambda: True)
    own = await comparing.mesh[B].store.get(RegionalKeys.checkpoint(A))
    revision = await comparing.mesh.write(B, {"/orders/idle": "foreign"})

    compared = await comparing.comparer().compare(G)

    assert own is not None
    assert own.mod_revision < revision <= compared.at.revision
    assert compared.found.only_target == [b"/orders/idle"]


async def test_a_copy_that_is_being_made_is_not_compared(comparing: Comparing) -> None:
    mesh = comparing.mesh
    await mesh.stop(A)
    await mesh.join(B, G)
    with pytest.raises(NotComparable, match="not in step"):
        await comparing.comparer().compare(G)


async def test_the_active_cluster_has_no_copy_to_compare(comparing: Comparing) -> None:
    with pytest.raises(NoCopy):
        await comparing.comparer(A).compare(G)


async def test_a_source_that_is_drained_is_not_compared_with(comparing: Comparing) -> None:
    """Past the cut the source's scope may already hold another cluster's epoch."""
    cut = await comparing.mesh.drain(G)
    await comparing.mesh.until(lambda: comparing.mesh.has_applied(B, G, A, cut))
    with pytest.raises(NotComparable, match="was not open"):
        await comparing.comparer().compare(G)


async def test_a_source_out_of_reach_is_not_called_equal(comparing: Comparing) -> None:
    comparing.mesh.network.hang_up("a:1")
    with pytest.raises(Unreachable, match="does not answer"):
        await comparing.comparer().compare(G)


async def test_a_request_ends_in_numbers_and_the_keys_stay_in_the_region(
    comparing: Comparing,
) -> None:
    comparing.verify()
    assert (await comparing.ask("v-1")).outcome is VerifyOutcome.EQUAL
    await comparing.mesh.write(B, {"/orders/001": "foreign", "/orders/x": "y"})

    result = await comparing.ask("v-2")

    assert result.outcome is VerifyOutcome.DIFFERENT
    assert (result.counts.different, result.counts.only_target) == (1, 1)
    assert (await comparing.findings()).only_target == (b"/orders/x",)
    stored = comparing.coordination.server.history.live((b"\x00", b"\x00"))
    assert not [item for item in stored if b"/orders/" in item.value or b"foreign" in item.value]


async def test_a_request_that_is_made_again_meanwhile_gets_its_result_too(
    comparing: Comparing,
) -> None:
    """A failover's new coordinator may ask again, by the same id, for what is being compared."""
    comparing.verify()
    comparing.dwell_ms = 400
    answering = asyncio.get_running_loop().create_task(comparing.ask("v-again"))
    await settle()

    result = await comparing.ask("v-again")

    assert result.outcome is VerifyOutcome.EQUAL
    assert await answering == result


async def test_a_repair_makes_the_copy_equal_under_running_writes(comparing: Comparing) -> None:
    mesh = comparing.mesh
    comparing.verify()
    await mesh.write(B, {"/orders/001": "foreign", "/orders/002": None, "/orders/x": "y"})

    async def write() -> None:
        for number in range(100):
            await mesh.write(A, {f"/orders/{number % 7:03d}": f"new-{number}"})
            await mesh.clock.sleep_ms(20)

    writing = asyncio.get_running_loop().create_task(write())
    result = await comparing.ask("v-1", repair=True)
    await mesh.until(writing.done)

    assert result.outcome is VerifyOutcome.REPAIRED, result
    assert result.counts.differing == 3
    await mesh.converge(G)
    quarantine = Quarantine(regional=mesh[B].store, leader=ALWAYS)
    kept = {entry.key async for entry in quarantine.entries(G)}
    assert kept == {b"/orders/001", b"/orders/x"}, "what the repair replaced, and nothing older"
    assert (await comparing.ask("v-2")).outcome is VerifyOutcome.EQUAL


async def test_a_fault_while_comparing_ends_the_request_and_nothing_else(
    comparing: Comparing,
) -> None:
    async def broken(
        _request: VerifyRequest, _peer: ClusterName | None
    ) -> AsyncIterator[ToVerifier]:
        raise ZeroDivisionError
        yield

    comparing.verify()
    serve = comparing.mesh[A].outbound.serve
    comparing.mesh.network.listen("a:1", serve, answer=broken)
    result = await comparing.ask("v-1")
    assert result.outcome is VerifyOutcome.REFUSED
    assert "ZeroDivisionError" in result.reason

    comparing.listen(A)
    assert (await comparing.ask("v-2")).outcome is VerifyOutcome.EQUAL


async def test_a_copy_that_cannot_be_compared_is_refused_after_a_while(
    comparing: Comparing,
) -> None:
    comparing.verify()
    comparing.mesh.network.hang_up("a:1")
    result = await comparing.ask("v-1")
    assert result.outcome is VerifyOutcome.REFUSED
    assert "does not answer" in result.reason


async def test_a_source_of_another_version_is_not_called_different(comparing: Comparing) -> None:
    async def narrow(
        _request: VerifyRequest, _peer: ClusterName | None
    ) -> AsyncIterator[ToVerifier]:
        yield GroupDigest(prefixes=(b"/orders/",), digest=Digest(8))

    serve = comparing.mesh[A].outbound.serve
    comparing.mesh.network.listen("a:1", serve, answer=narrow)
    with pytest.raises(NotComparable, match="version"):
        await comparing.comparer().compare(G)


async def test_without_a_difference_a_repair_copies_nothing(comparing: Comparing) -> None:
    comparing.verify()
    before = comparing.mesh.joins_made(B, A, G)
    result = await comparing.ask("v-1", repair=True)
    assert result.outcome is VerifyOutcome.EQUAL
    assert comparing.mesh.joins_made(B, A, G) == before


async def test_a_successor_ends_a_repair_that_was_begun(comparing: Comparing) -> None:
    """The findings that were stored with the join say what was found before it."""
    mesh = comparing.mesh
    comparing.verify()
    await mesh.write(B, {"/orders/x": "y"})
    await mesh.stop(A)
    request = asyncio.get_running_loop().create_task(comparing.ask("v-1", repair=True))
    await settle()
    await mesh.start(A)
    comparing.listen(A)
    await mesh.until(lambda: mesh[B].is_out_of_step(G))
    comparing.tasks.pop().cancel()
    comparing.verify()

    result = await request

    assert result.outcome is VerifyOutcome.REPAIRED
    assert result.counts.only_target == 1


async def test_a_copy_that_became_active_meanwhile_is_not_put_out_of_step(
    comparing: Comparing,
) -> None:
    """The join of a repair compares the fence that was compared under."""
    mesh = comparing.mesh
    await mesh.write(B, {"/orders/x": "y"})
    compared = await comparing.comparer().compare(G)
    await mesh.move(G, B)
    verifier = comparing.verify()
    findings = VerifyFindings(
        id="v-1",
        group=G,
        source=A,
        epoch=Epoch(1),
        source_sequence=compared.at.sequence,
        target_revision=compared.at.revision,
        counts=compared.found.counts,
        repairing=True,
    )

    with pytest.raises(RevisionConflict):
        await verifier._join(compared, findings)

    assert not mesh[B].is_out_of_step(G)
