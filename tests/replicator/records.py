"""Small records and changes, for the tests of the pure parts."""

from __future__ import annotations

from meshkit.codec import encode
from meshkit.keys import RegionalKeys
from meshkit.model import Lineage
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import NO_LEASE, Epoch, Incarnation, LeaseId, Revision, Sequence, Token
from meshkit.regional import SegmentCut, SegmentOpened, SegmentScope
from meshkit.store.port import Change, RevisionChanges
from meshkit.store.txn import Delete, KeyValue, Put
from replicator.record import GroupPart, Record, Write
from tests.replicator.mesh import PREFIXES, G

TOKEN = Token(incarnation=1, revision=Revision(7))


def put(key: str | bytes, value: str | bytes = b"v", *, lease: int = NO_LEASE) -> Change:
    raw_key = key.encode() if isinstance(key, str) else key
    raw = value.encode() if isinstance(value, str) else value
    return Change(item=_item(raw_key, raw, lease), is_delete=False)


def delete(key: str | bytes) -> Change:
    return Change(item=_item(key.encode() if isinstance(key, str) else key, b""), is_delete=True)


def _item(key: bytes, value: bytes, lease: int = NO_LEASE) -> KeyValue:
    return KeyValue(
        key=key,
        value=value,
        mod_revision=Revision(1),
        create_revision=Revision(1),
        version=1,
        lease=LeaseId(lease),
    )


def at(revision: int, *changes: Change) -> RevisionChanges:
    return RevisionChanges(revision=Revision(revision), changes=changes)


def opened(
    group: GroupName = G, epoch: int = 1, lineage: Lineage | None = None
) -> tuple[Change, Change]:
    segment = SegmentOpened(group=group, epoch=Epoch(epoch), token=TOKEN, lineage=lineage)
    return (
        put(RegionalKeys.segment_opened(group, Epoch(epoch)), encode(segment)),
        scoped(group, epoch, PREFIXES[group]),
    )


def scoped(group: GroupName, epoch: int, prefixes: tuple[str, ...]) -> Change:
    scope = SegmentScope(group=group, epoch=Epoch(epoch), prefixes=prefixes)
    return put(RegionalKeys.segment_scope(group, Epoch(epoch)), encode(scope))


def cut(group: GroupName = G, epoch: int = 1) -> Change:
    segment = SegmentCut(group=group, epoch=Epoch(epoch), command_token=TOKEN)
    return put(RegionalKeys.segment_cut(group, Epoch(epoch)), encode(segment))


def uncut(group: GroupName = G, epoch: int = 1) -> Change:
    return delete(RegionalKeys.segment_cut(group, Epoch(epoch)))


def write(key: str, value: str | None = "v") -> Write:
    return Delete(key.encode()) if value is None else Put(key.encode(), value.encode())


def record(sequence: int, *writes: Write, group: GroupName = G, epoch: int = 1) -> Record:
    part = GroupPart(group=group, epoch=Epoch(epoch), writes=writes or (write("/orders/1"),))
    return Record(sequence=Sequence(sequence), parts=(part,))


def lineage(parent: ClusterName, sequence: int, epoch: int = 1) -> Lineage:
    return Lineage(
        parent=parent,
        parent_incarnation=Incarnation(f"{parent}-1"),
        parent_epoch=Epoch(epoch),
        sequence=Sequence(sequence),
        prefixes=PREFIXES[G],
    )
