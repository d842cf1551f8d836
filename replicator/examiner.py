"""The source's side of comparing: answers targets with digests of its state at a revision."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from meshkit.errors import MeshError
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Revision
from meshkit.store.port import Store
from replicator.limits import DEFAULT_LIMITS, Limits
from replicator.scan import digest_at, entries_at
from replicator.source import load_segments
from replicator.verify_messages import (
    Entries,
    GroupDigest,
    ToVerifier,
    VerifyRefusal,
    VerifyRefusalCode,
    VerifyRequest,
)


class Examiner:
    """Reads this region's etcd for those who compare their copy with it. Changes nothing."""

    def __init__(
        self,
        *,
        store: Store,
        cluster: ClusterName,
        incarnation: Incarnation,
        is_leading: Callable[[], bool] = lambda: True,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._incarnation = incarnation
        self._is_leading = is_leading
        self._limits = limits

    async def answer(
        self, request: VerifyRequest, peer: ClusterName | None
    ) -> AsyncIterator[ToVerifier]:
        """Yield the answer to one request; `peer` is who the link has verified the target to be."""
        refusal = self._refusal(request, peer)
        if refusal is not None:
            yield refusal
            return
        try:
            async for message in self._read(request):
                yield message
        except MeshError as error:
            yield VerifyRefusal(code=VerifyRefusalCode.FAILED, text=str(error))

    def _refusal(self, request: VerifyRequest, peer: ClusterName | None) -> VerifyRefusal | None:
        if not self._is_leading():
            return not_leading(f"this replicator of {self._cluster} does not lead")
        if peer is not None and peer != request.target:
            text = f"certificate of {peer}, request of {request.target}"
            return VerifyRefusal(code=VerifyRefusalCode.NOT_ALLOWED, text=text)
        asked, here = (request.source, request.incarnation), (self._cluster, self._incarnation)
        if asked != here:
            text = f"this is {here[0]} in {here[1]}, not {asked[0]} in {asked[1]}"
            return VerifyRefusal(code=VerifyRefusalCode.WRONG_SOURCE, text=text)
        return None

    async def _read(self, request: VerifyRequest) -> AsyncIterator[ToVerifier]:
        revision = Revision(request.sequence)
        segments = await load_segments(self._store, revision, group=request.group)
        segment = segments.newest(request.group)
        if segment is None or segment.epoch != request.epoch or not segment.is_open:
            text = (
                f"{request.group} was not open in {self._cluster} in epoch {request.epoch}"
                f" at revision {revision}"
            )
            yield VerifyRefusal(code=VerifyRefusalCode.NOT_COMPARABLE, text=text)
            return
        prefixes = segment.prefixes
        if request.buckets is None:
            digest = await digest_at(self._store, prefixes, revision, limits=self._limits)
            yield GroupDigest(prefixes=prefixes, digest=digest)
            return
        async for entries in entries_at(
            self._store, prefixes, revision, request.buckets, limits=self._limits
        ):
            yield Entries(entries=entries)


def not_leading(text: str) -> VerifyRefusal:
    """Return the refusal by which the asker tries the next endpoint."""
    return VerifyRefusal(code=VerifyRefusalCode.NOT_LEADING, text=text)
