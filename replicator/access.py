"""Fencing by etcd's own access control, for clients that know nothing of permits (architecture 4).

One role per cluster carries the application's users. Here it may write a group's keys exactly while
the group's fence is open, and only read them otherwise. That is taken away *before* the transaction
that closes a fence, and given back *after* the one that opens it, so that the cut is the end of
everybody's writes and not only of guarded ones.

Roles know no compare: a deposed replicator that was stopped in the middle of giving may give late.
So this is an addition to the permit and never instead of it; `keep` takes back what was given late.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Protocol

import attrs
import structlog

from meshkit.clock import Clock
from meshkit.codec import decode
from meshkit.errors import MeshError
from meshkit.keys import RegionalKeys, last_part
from meshkit.names import GroupName
from meshkit.regional import Fence, FenceMode
from meshkit.store.etcd_roles import Access, RolesPort
from meshkit.store.port import Store
from meshkit.store.txn import KeyRange, prefix_range

_log = structlog.get_logger()

KEEP_INTERVAL_MS = 1_000
"""Between two looks at the role, besides the changes of fences."""


class AccessFence(Protocol):
    """What the region's hand does about clients that do not look at the permit."""

    def closing(self, prefixes: Collection[str]) -> contextlib.AbstractAsyncContextManager[None]:
        """Take the writes away, then run the block that closes the fence."""

    def opening(self, prefixes: Collection[str]) -> contextlib.AbstractAsyncContextManager[None]:
        """Run the block that opens the fence, then give the writes."""

    async def keep(self, scopes: Mapping[GroupName, Collection[str]]) -> None:
        """Make the role fit the fences as they are now, for every group and its prefixes."""


class NoAccessFence:
    """`fence_mode: permit`: the compare of the permit is the fence."""

    @contextlib.asynccontextmanager
    async def closing(self, _prefixes: Collection[str]) -> AsyncIterator[None]:
        """Run the block."""
        yield

    @contextlib.asynccontextmanager
    async def opening(self, _prefixes: Collection[str]) -> AsyncIterator[None]:
        """Run the block."""
        yield

    async def keep(self, scopes: Mapping[GroupName, Collection[str]]) -> None:
        """Do nothing."""


@attrs.define(kw_only=True, eq=False)
class RoleFence:
    """`fence_mode: rbac`: the application's role in this region's etcd.

    Invariant: within one process, giving never runs beside the closing of a fence.
    """

    roles: RolesPort
    role: str
    regional: Store
    clock: Clock
    _lock: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    _kept_at_ms: int | None = attrs.field(default=None, init=False)

    @contextlib.asynccontextmanager
    async def closing(self, prefixes: Collection[str]) -> AsyncIterator[None]:
        """Take the writes away, then run the block that closes the fence.

        Raises:
            MeshError: etcd did not take them away; the block was not run.
        """
        async with self._lock:
            for key_range in _ranges(prefixes):
                await self.roles.permit(self.role, key_range, Access.READ)
            yield

    @contextlib.asynccontextmanager
    async def opening(self, prefixes: Collection[str]) -> AsyncIterator[None]:
        """Run the block that opens the fence, then give the writes; `keep` does what fails here."""
        async with self._lock:
            yield
            try:
                for key_range in _ranges(prefixes):
                    await self.roles.permit(self.role, key_range, Access.READ_WRITE)
            except MeshError as error:
                self._kept_at_ms = None
                _log.warning("role.not_opened", role=self.role, why=str(error))

    async def keep(self, scopes: Mapping[GroupName, Collection[str]]) -> None:
        """Make the role fit the fences as they are now; looks at most once a second.

        Raises:
            MeshError: the role could not be read or changed.
        """
        now_ms = self.clock.now_ms()
        if self._kept_at_ms is not None and now_ms - self._kept_at_ms < KEEP_INTERVAL_MS:
            return
        async with self._lock:
            wanted = self._wanted(scopes, await self._open_groups())
            actual = await self.roles.permissions(self.role)
            for key_range, access in wanted.items():
                if actual.get(key_range) is not access:
                    await self.roles.permit(self.role, key_range, access)
                    _log.warning(
                        "role.corrected",
                        role=self.role,
                        prefix=key_range[0].decode(errors="replace"),
                        access=access.name.lower(),
                    )
            self._kept_at_ms = now_ms

    def _wanted(
        self, scopes: Mapping[GroupName, Collection[str]], opened: Collection[GroupName]
    ) -> Mapping[KeyRange, Access]:
        return {
            key_range: Access.READ_WRITE if group in opened else Access.READ
            for group, prefixes in scopes.items()
            for key_range in _ranges(prefixes)
        }

    async def _open_groups(self) -> Collection[GroupName]:
        found = await self.regional.range(prefix_range(RegionalKeys.fences))
        fences = {last_part(item.key): decode(Fence, item.value) for item in found.items}
        return {GroupName(g) for g, fence in fences.items() if fence.mode is FenceMode.OPEN}


def _ranges(prefixes: Iterable[str]) -> tuple[KeyRange, ...]:
    return tuple(prefix_range(prefix.encode()) for prefix in sorted(prefixes))
