"""What a role of etcd's own access control may do, read and changed (etcd docs, "RBAC").

Only this and `replicator.access` know of it. The caller needs etcd's role `root`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Protocol

import attrs

from meshkit.store.etcd import EtcdStore
from meshkit.store.etcd_channel import Method
from meshkit.store.etcd_errors import Subject
from meshkit.store.etcd_pb import etcd_wire_pb2 as wire
from meshkit.store.etcd_pool import Kind
from meshkit.store.txn import KeyRange

_ROLE_GET = Method(path="/etcdserverpb.Auth/RoleGet", response=wire.AuthRoleGetResponse)
_ROLE_GRANT = Method(
    path="/etcdserverpb.Auth/RoleGrantPermission",
    response=wire.AuthRoleGrantPermissionResponse,
)


class Access(enum.Enum):
    """What a role may do with the keys of a range."""

    READ = wire.Permission.READ
    WRITE = wire.Permission.WRITE
    READ_WRITE = wire.Permission.READWRITE


class RolesPort(Protocol):
    """Etcd's roles, or something that behaves like them."""

    async def permissions(self, role: str) -> Mapping[KeyRange, Access]:
        """Return what the role may do, by exactly the ranges it was granted.

        Raises:
            NotAllowed: there is no such role, or we may not ask.
        """

    async def permit(self, role: str, key_range: KeyRange, access: Access) -> None:
        """Let the role do this with the range, no more and no less; other ranges stay.

        Etcd checks each request again when it is applied: once this has returned, no write that
        the role may no longer do is applied, however early it was sent.

        Raises:
            NotAllowed: there is no such role, or we may not change it.
            OutcomeUnknown: read the permissions back.
        """


@attrs.frozen(kw_only=True)
class EtcdRoles:
    """The roles of the etcd that a store is connected to. Satisfies `RolesPort`."""

    store: EtcdStore

    async def permissions(self, role: str) -> Mapping[KeyRange, Access]:
        """Return what the role may do; see the port."""
        answer = await self.store.pool.call(
            _ROLE_GET,
            wire.AuthRoleGetRequest(role=role),
            kind=Kind.READ,
            subject=Subject(operation=f"role {role}"),
        )
        return {(p.key, p.range_end): Access(p.permType) for p in answer.perm}

    async def permit(self, role: str, key_range: KeyRange, access: Access) -> None:
        """Let the role do this with the range, no more and no less; see the port."""
        key, end = key_range
        permission = wire.Permission(permType=access.value, key=key, range_end=end)
        await self.store.pool.call(
            _ROLE_GRANT,
            wire.AuthRoleGrantPermissionRequest(name=role, perm=permission),
            kind=Kind.WRITE,
            subject=Subject(operation=f"permit role {role}"),
        )
