"""What is: clusters, groups, authority and reported status, read at one revision.

It may be out of date as soon as it is read; whatever is decided from it is written under guards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

import attrs
import structlog

from meshkit.codec import Stored, decode
from meshkit.errors import CorruptRecord, NotFound, OutcomeUnknown, Unreachable
from meshkit.incarnations import Adoption, Suspension
from meshkit.keys import CoordinationKeys as Keys
from meshkit.keys import last_part, parts_below
from meshkit.model import (
    Authority,
    ClusterDescriptor,
    CoordinationIncarnation,
    Group,
    Routing,
    Seal,
)
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Revision
from meshkit.pauses import AutomationPause, ReplicationPause
from meshkit.promises import Pact
from meshkit.status import ClusterHealth, StreamStatus
from meshkit.store.port import Commits, Store
from meshkit.store.txn import Committed, Get, KeyValue, Txn, prefix_range
from meshkit.verification import Verify, VerifyResult

_log = structlog.get_logger()

R = TypeVar("R", bound=Stored)


@attrs.frozen
class Seen(Generic[R]):
    """A record with the mod revision it was read at, which a change of it compares."""

    record: R
    revision: Revision


@attrs.frozen(kw_only=True)
class Mesh:
    """The state of affairs at `revision` of the coordination etcd."""

    revision: Revision
    clusters: Mapping[ClusterName, Seen[ClusterDescriptor]]
    groups: Mapping[GroupName, Seen[Group]]
    authorities: Mapping[GroupName, Seen[Authority]]
    routings: Mapping[GroupName, Seen[Routing]]
    sealed: frozenset[GroupName]
    health: Mapping[ClusterName, ClusterHealth]
    streams: Mapping[tuple[ClusterName, ClusterName], StreamStatus]
    verified: Mapping[tuple[ClusterName, GroupName], VerifyResult] = attrs.field(factory=dict)
    """What came of comparing a cluster's copy of a group last."""
    verifies: Mapping[tuple[ClusterName, GroupName], Verify] = attrs.field(factory=dict)
    """What a cluster was asked last to compare."""
    automation: AutomationPause | None = None
    """Whether nothing is to be begun by itself."""
    pauses: tuple[ReplicationPause, ...] = ()
    """What of replication stands still because somebody said so."""
    suspensions: Mapping[ClusterName, Seen[Suspension]] = attrs.field(factory=dict)
    """Regions that nobody leads, because an etcd went back."""
    adoptions: Mapping[ClusterName, Seen[Adoption]] = attrs.field(factory=dict)
    """The newest incarnation that an operator had begun for each region's etcd."""
    incarnation: CoordinationIncarnation = attrs.field(factory=CoordinationIncarnation)
    incarnation_revision: Revision = ABSENT
    pacts: Mapping[GroupName, Pact] = attrs.field(factory=dict)
    """Of groups whose writes may go on by promise: who may be promoted (4.1 rule 4)."""
    reported: Mapping[ClusterName, Revision] = attrs.field(factory=dict)
    """The mod revisions of `health`: which report of a cluster this is."""

    def group(self, name: GroupName) -> Group:
        """Return a group.

        Raises:
            NotFound: there is no such group; names those there are.
        """
        if name not in self.groups:
            raise NotFound(f"there is no group {name!r}", hint=_known("groups", self.groups))
        return self.groups[name].record

    def cluster(self, name: ClusterName) -> ClusterDescriptor:
        """Return a cluster.

        Raises:
            NotFound: there is no such cluster; names those there are.
        """
        if name not in self.clusters:
            raise NotFound(f"there is no cluster {name!r}", hint=_known("clusters", self.clusters))
        return self.clusters[name].record


async def read_mesh(store: Store) -> Mesh:
    """Return the state of affairs, linearizable, at one revision.

    Raises:
        Unreachable: the coordination etcd did not answer.
        CorruptRecord: a record of authority cannot be read.
    """
    prefixes = (Keys.clusters, Keys.groups, Keys.authorities, Keys.routings, Keys.seals)
    gets = [Get(*prefix_range(prefix)) for prefix in (*prefixes, Keys.statuses)]
    gets += [Get(Keys.incarnation), Get(*prefix_range(Keys.verifies))]
    gets += [Get(Keys.automation_pause), Get(*prefix_range(Keys.pauses))]
    gets += [Get(*prefix_range(Keys.suspensions)), Get(*prefix_range(Keys.adoptions))]
    gets.append(Get(*prefix_range(Keys.pacts)))
    revision, reads = await read_at_once(store, tuple(gets))
    clusters, groups, authorities, routings, seals, statuses, *others = reads
    incarnation, verifies, automation, pauses, suspensions, adoptions, pacts = others
    health, streams = _statuses(statuses)
    reports = {item.key: item.mod_revision for item in statuses}
    return Mesh(
        revision=revision,
        clusters={s.record.name: s for s in _all(ClusterDescriptor, clusters)},
        groups={s.record.name: s for s in _all(Group, groups)},
        authorities={s.record.group: s for s in _all(Authority, authorities)},
        routings={s.record.group: s for s in _all(Routing, routings)},
        sealed=frozenset(s.record.group for s in _all(Seal, seals)),
        health=health,
        reported={name: reports[Keys.health(name)] for name in health},
        streams=streams,
        verified=_verified(verifies),
        verifies=_verifies(verifies),
        suspensions={s.record.cluster: s for s in _all(Suspension, suspensions)},
        adoptions={s.record.cluster: s for s in _all(Adoption, adoptions)},
        automation=decode(AutomationPause, automation[0].value) if automation else None,
        pacts={s.record.group: s.record for s in _all(Pact, pacts)},
        pauses=tuple(seen.record for seen in _all(ReplicationPause, pauses)),
        incarnation=(
            decode(CoordinationIncarnation, incarnation[0].value)
            if incarnation
            else CoordinationIncarnation()
        ),
        incarnation_revision=incarnation[0].mod_revision if incarnation else ABSENT,
    )


async def known_groups(store: Store) -> list[GroupName]:
    """Return the names of all groups."""
    result = await store.range(prefix_range(Keys.groups), keys_only=True)
    return [GroupName(last_part(item.key)) for item in result.items]


async def read_at_once(
    store: Commits, gets: tuple[Get, ...]
) -> tuple[Revision, tuple[tuple[KeyValue, ...], ...]]:
    """Return what each read found, all at one revision.

    Raises:
        Unreachable: the store did not answer; nothing is unknown about a read but its answer.
    """
    try:
        outcome = await store.commit(Txn(operations=gets))
    except OutcomeUnknown as error:
        raise Unreachable(f"the answer to a read was lost: {error}") from error
    assert isinstance(outcome, Committed), "a transaction without guards is not rejected"
    return outcome.revision, outcome.reads


def _known(what: str, names: Iterable[str]) -> str:
    return f"{what} there are: {', '.join(sorted(names)) or 'none yet'}"


def _all(cls: type[R], items: Iterable[KeyValue]) -> Iterable[Seen[R]]:
    return (Seen(decode(cls, item.value), item.mod_revision) for item in items)


def _statuses(
    items: Iterable[KeyValue],
) -> tuple[dict[ClusterName, ClusterHealth], dict[tuple[ClusterName, ClusterName], StreamStatus]]:
    """Return what could be read; a report that cannot counts as no report."""
    health: dict[ClusterName, ClusterHealth] = {}
    streams: dict[tuple[ClusterName, ClusterName], StreamStatus] = {}
    for item in items:
        try:
            match parts_below(Keys.statuses, item.key):
                case (cluster, "health"):
                    health[ClusterName(cluster)] = decode(ClusterHealth, item.value)
                case (source, "streams", target):
                    pair = (ClusterName(source), ClusterName(target))
                    streams[pair] = decode(StreamStatus, item.value)
                case _:
                    continue
        except CorruptRecord as error:
            _log.warning("status.unreadable", key=item.key.decode(), why=str(error))
    return health, streams


def _verified(
    items: Iterable[KeyValue],
) -> dict[tuple[ClusterName, GroupName], VerifyResult]:
    """Return the results that could be read; requests lie among them."""
    found: dict[tuple[ClusterName, GroupName], VerifyResult] = {}
    for item in items:
        match parts_below(Keys.verifies, item.key):
            case (target, group, "result"):
                try:
                    result = decode(VerifyResult, item.value)
                except CorruptRecord as error:
                    _log.warning("result.unreadable", key=item.key.decode(), why=str(error))
                else:
                    found[ClusterName(target), GroupName(group)] = result
            case _:
                continue
    return found


def _verifies(items: Iterable[KeyValue]) -> dict[tuple[ClusterName, GroupName], Verify]:
    """Return the requests that could be read."""
    found: dict[tuple[ClusterName, GroupName], Verify] = {}
    for item in items:
        match parts_below(Keys.verifies, item.key):
            case (target, group):
                try:
                    found[ClusterName(target), GroupName(group)] = decode(Verify, item.value)
                except CorruptRecord as error:
                    _log.warning("request.unreadable", key=item.key.decode(), why=str(error))
            case _:
                continue
    return found
