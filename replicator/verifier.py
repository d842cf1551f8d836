"""Carries out requests to compare this cluster's copies with their sources, and repairs them.

Runs in the leading replicator of the copy's region. It may die anywhere: its successor finds the
request without a result and compares anew; a repair that was begun is found with the findings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs
import structlog

from fencing import fence as fences
from meshkit.codec import decode, encode
from meshkit.errors import CorruptRecord, MeshError, OutcomeUnknown, RevisionConflict
from meshkit.keys import CoordinationKeys, RegionalKeys, parts_below
from meshkit.mirror import PrefixMirror
from meshkit.names import GroupName
from meshkit.ordinals import Revision
from meshkit.regional import CopyBasis
from meshkit.store.txn import Committed, KeyValue, ModRevisionIs, Put, Txn
from meshkit.verification import Verify, VerifyFindings, VerifyOutcome, VerifyResult
from replicator.agent_ports import Region
from replicator.comparer import Compared, Comparer, NoCopy

_log = structlog.get_logger()

RETRY_MS = 200
COMPARE_PATIENCE_MS = 15_000
"""How long a copy that cannot be compared is asked again before that is the result."""
REPAIR_PATIENCE_MS = 10 * 60 * 1000
"""How long a repaired copy may take to be in step again."""
ATTEMPTS_MAX = 5
LOGGED_KEYS_MAX = 10


class Verifier:
    """Compares copies when asked to.

    Invariant: at most one comparison per group is under way, that of the newest request.
    """

    def __init__(self, region: Region, comparer: Comparer, *, on_join: Callable[[], None]) -> None:
        self.region = region
        self._comparer = comparer
        self._on_join = on_join
        self._mirror = PrefixMirror(
            region.coordination,
            CoordinationKeys.verifies_at(region.cluster),
            clock=region.clock,
        )
        self._working: dict[GroupName, tuple[str, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Carry out requests until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mirror.run())
            async for _ in self._mirror.changes():
                self._dispatch(tasks)

    def _dispatch(self, tasks: asyncio.TaskGroup) -> None:
        for key, item in self._mirror.entries.items():
            parts = parts_below(CoordinationKeys.verifies_at(self.region.cluster), key)
            if parts is None or len(parts) != 1:
                continue
            try:
                request = decode(Verify, item.value)
                is_done = self._has_result(request)
            except CorruptRecord as error:
                _log.error("verify.unreadable", key=key.decode(), why=str(error))
                continue
            working = self._working.get(request.group)
            if is_done or (working is not None and working[0] == request.id):
                continue
            if working is not None:
                working[1].cancel()
            task = tasks.create_task(self._carry_out(request, item.mod_revision))
            self._working[request.group] = (request.id, task)

    def _has_result(self, request: Verify) -> bool:
        item = self._mirror.entries.get(
            CoordinationKeys.verify_result(request.target, request.group)
        )
        return item is not None and decode(VerifyResult, item.value).id == request.id

    # --- one request ---------------------------------------------------------------------------

    async def _carry_out(self, request: Verify, revision: Revision) -> None:
        began_ms = self.region.clock.wall_ms()
        try:
            result = await self._settled(request, began_ms)
        except MeshError as error:
            result = _refused(request, str(error), began_ms)
        except Exception as error:  # noqa: BLE001  a bug here must not end the region's term
            _log.exception("verify.failed", group=request.group, id=request.id)
            reason = f"{type(error).__name__}; the log of {self.region.replicator} has it"
            result = _refused(request, reason, began_ms)
        result = attrs.evolve(result, ended_ms=self.region.clock.wall_ms())
        _log.info("verify.ended", group=request.group, id=request.id, outcome=result.outcome.value)
        await self._put_result(request, revision, result)

    async def _settled(self, request: Verify, began_ms: int) -> VerifyResult:
        """Return the result, beginning again where the region moved or a reply was lost."""
        for _ in range(ATTEMPTS_MAX - 1):
            try:
                return await self._result(request, began_ms)
            except (OutcomeUnknown, RevisionConflict) as error:
                _log.info("verify.begun_again", group=request.group, why=str(error))
                await self.region.clock.sleep_ms(RETRY_MS)
        return await self._result(request, began_ms)

    async def _result(self, request: Verify, began_ms: int) -> VerifyResult:
        findings = await self._repair_under_way(request)
        if findings is None:
            compared = await self._compared(request.group, COMPARE_PATIENCE_MS)
            is_repair = request.repair and not compared.is_equal
            findings = _findings(request, compared, is_repair=is_repair, began_ms=began_ms)
            self._tell(findings)
            if is_repair:
                await self._join(compared, findings)
            else:
                await self._commit(_keep(findings, self.region))
        outcome = VerifyOutcome.DIFFERENT if findings.counts.differing else VerifyOutcome.EQUAL
        result = _result(request, findings, outcome)
        return await self._repaired(result) if findings.repairing else result

    async def _repaired(self, result: VerifyResult) -> VerifyResult:
        """Return the result once the copy has been made anew and compared again."""
        try:
            again = await self._compared(result.group, REPAIR_PATIENCE_MS)
        except MeshError as error:
            reason = f"it is being copied anew and could not be compared again: {error}"
            return attrs.evolve(result, reason=reason)
        if not again.is_equal:
            reason = "it was copied anew and differs still: something else writes here"
            return attrs.evolve(result, reason=reason)
        _log.info("copy.repaired", group=result.group, source=result.source)
        return attrs.evolve(result, outcome=VerifyOutcome.REPAIRED)

    async def _compared(self, group: GroupName, patience_ms: int) -> Compared:
        """Compare, as often as it takes to find a pair of revisions that can be.

        Raises:
            MeshError: none was found in time.
        """
        deadline_ms = self.region.clock.now_ms() + patience_ms
        while True:
            try:
                return await self._comparer.compare(group)
            except (NoCopy, CorruptRecord):
                raise
            except MeshError as error:
                if self.region.clock.now_ms() >= deadline_ms:
                    raise
                _log.info("verify.delayed", group=group, why=str(error))
            await self.region.clock.sleep_ms(RETRY_MS)

    # --- what is kept in this region -----------------------------------------------------------

    async def _repair_under_way(self, request: Verify) -> VerifyFindings | None:
        """Return the findings with which an earlier leader began to repair for this request."""
        item = await self.region.regional.get(RegionalKeys.findings(request.group))
        findings = decode(VerifyFindings, item.value) if item else None
        is_ours = findings is not None and findings.id == request.id and findings.repairing
        return findings if is_ours else None

    async def _join(self, compared: Compared, findings: VerifyFindings) -> None:
        """Put the group out of step, so that it is copied anew; only if nothing moved since.

        Raises:
            RevisionConflict: the fence, or what is in step, moved since it was compared.
        """
        at = compared.at
        reason = f"repair {findings.id}: {findings.counts.differing} keys differed from the source"
        join = fences.join(
            at.view,
            source=at.source,
            epoch=at.epoch,
            leader=self.region.leader,
            reason=reason,
            basis=CopyBasis.DOUBTFUL,
        )
        guard = ModRevisionIs(RegionalKeys.fence_index, at.index_revision)
        keep = _keep(findings, self.region)
        await self._commit(
            attrs.evolve(
                join,
                guards=(*join.guards, guard),
                operations=(*join.operations, *keep.operations),
            )
        )
        _log.warning("copy.repair_begun", group=findings.group, source=at.source)
        self._on_join()

    async def _commit(self, txn: Txn) -> None:
        outcome = await self.region.regional.commit(txn)
        if not isinstance(outcome, Committed):
            broken = ", ".join(str(guard) for guard in outcome.broken)
            raise RevisionConflict(f"the region's state moved since it was compared: {broken}")

    def _tell(self, findings: VerifyFindings) -> None:
        log = _log.bind(
            group=findings.group,
            source=findings.source,
            source_sequence=findings.source_sequence,
            target_revision=findings.target_revision,
        )
        if not findings.counts.differing:
            log.info("copy.equal", keys=findings.counts.target_keys)
            return
        log.warning(
            "copy.differs",
            only_source=_shown(findings.only_source),
            only_target=_shown(findings.only_target),
            different=_shown(findings.different),
            keys_count=findings.counts.differing,
            where=RegionalKeys.findings(findings.group).decode(),
        )

    async def _put_result(self, request: Verify, revision: Revision, result: VerifyResult) -> None:
        """Store the result, unless another request has taken its place.

        The same request may have been put again meanwhile: whoever asks does so by its id, as often
        as it takes. The result is an answer to that one too.
        """
        key = CoordinationKeys.verify_result(request.target, request.group)
        asked_at = CoordinationKeys.verify(request.target, request.group)
        known: Revision | None = revision
        while known is not None:
            txn = Txn(
                guards=(ModRevisionIs(asked_at, known),),
                operations=(Put(key, encode(result)),),
            )
            try:
                outcome = await self.region.coordination.commit(txn)
                if isinstance(outcome, Committed):
                    return
                known = _still_asked(await self.region.coordination.get(asked_at), request)
            except MeshError as error:
                # Putting the same result again changes nothing.
                _log.warning("verify.result_delayed", group=request.group, why=str(error))
                await self.region.clock.sleep_ms(RETRY_MS)


def _still_asked(item: KeyValue | None, request: Verify) -> Revision | None:
    """Return the revision at which the same request stands; None if another does, or none."""
    try:
        is_same = item is not None and decode(Verify, item.value).id == request.id
    except CorruptRecord:
        is_same = False
    return item.mod_revision if item is not None and is_same else None


def _findings(
    request: Verify, compared: Compared, *, is_repair: bool, began_ms: int
) -> VerifyFindings:
    at, found = compared.at, compared.found
    return VerifyFindings(
        id=request.id,
        group=request.group,
        source=at.source,
        epoch=at.epoch,
        source_sequence=at.sequence,
        target_revision=at.revision,
        counts=found.counts,
        only_source=tuple(found.only_source),
        only_target=tuple(found.only_target),
        different=tuple(found.different),
        more=found.more,
        repairing=is_repair,
        began_ms=began_ms,
    )


def _refused(request: Verify, reason: str, began_ms: int) -> VerifyResult:
    return VerifyResult(
        id=request.id,
        group=request.group,
        target=request.target,
        outcome=VerifyOutcome.REFUSED,
        reason=reason,
        began_ms=began_ms,
    )


def _keep(findings: VerifyFindings, region: Region) -> Txn:
    put = Put(RegionalKeys.findings(findings.group), encode(findings))
    return Txn(guards=(region.leader,), operations=(put,))


def _result(request: Verify, findings: VerifyFindings, outcome: VerifyOutcome) -> VerifyResult:
    return VerifyResult(
        id=request.id,
        group=request.group,
        target=request.target,
        outcome=outcome,
        source=findings.source,
        epoch=findings.epoch,
        source_sequence=findings.source_sequence,
        target_revision=findings.target_revision,
        counts=findings.counts,
        where=RegionalKeys.findings(request.group).decode() if findings.counts.differing else "",
        began_ms=findings.began_ms,
    )


def _shown(keys: tuple[bytes, ...]) -> list[str]:
    return [key.decode(errors="backslashreplace") for key in keys[:LOGGED_KEYS_MAX]]
