"""The fence of a group with all that belongs to it, read at one revision. Pure."""

from __future__ import annotations

import attrs

from meshkit.codec import decode
from meshkit.keys import RegionalKeys as Keys
from meshkit.names import GroupName
from meshkit.ordinals import ABSENT, NO_TOKEN, Epoch, LeaseId, Revision, Sequence, Token
from meshkit.promises import Promise
from meshkit.regional import Fence, FenceIndex, FenceMode, SegmentScope
from meshkit.store.txn import Get, KeyValue


@attrs.frozen(kw_only=True)
class FenceView:
    """The fence of one group with all that belongs to it, read at one revision."""

    group: GroupName
    fence: Fence | None
    fence_revision: Revision
    index_count: int
    permit_revision: Revision
    permit_lease: LeaseId
    cut: Sequence | None
    """Where the segment of the fence's epoch was cut, if it was."""
    opened: Sequence | None
    """Where the segment of the fence's epoch opened, if it did here."""
    scope: tuple[str, ...] | None = None
    """The prefixes that segment covers, if it opened here."""
    promise: Promise | None = None
    """What this cluster has promised another one, and keeps until it has run out."""

    @property
    def mode(self) -> FenceMode | None:
        """The fence's mode; None if this cluster never had to do with the group."""
        return self.fence.mode if self.fence else None

    @property
    def command_token(self) -> Token:
        """The greatest command obeyed."""
        return self.fence.command_token if self.fence else NO_TOKEN


def view_reads(group: GroupName) -> tuple[Get, ...]:
    """Return the reads that `view_of` understands, to be done in one transaction."""
    segments_from, segments_to = _segment_range(group)
    return (
        Get(Keys.fence(group)),
        Get(Keys.fence_index),
        Get(Keys.permit(group)),
        Get(segments_from, end=segments_to),
        Get(Keys.promise(group)),
    )


def view_of(group: GroupName, reads: tuple[tuple[KeyValue, ...], ...]) -> FenceView:
    """Return the view from what `view_reads` returned.

    Raises:
        CorruptRecord: a record cannot be read.
    """
    fence_items, index_items, permit_items, segment_items, promise_items = reads
    fence = decode(Fence, fence_items[0].value) if fence_items else None
    revisions = {item.key: item.mod_revision for item in segment_items}
    epoch = fence.epoch if fence else Epoch(0)
    cut = revisions.get(Keys.segment_cut(group, epoch))
    opened = revisions.get(Keys.segment_opened(group, epoch))
    scopes = [i.value for i in segment_items if i.key == Keys.segment_scope(group, epoch)]
    return FenceView(
        group=group,
        fence=fence,
        fence_revision=fence_items[0].mod_revision if fence_items else ABSENT,
        index_count=decode(FenceIndex, index_items[0].value).count if index_items else 0,
        permit_revision=permit_items[0].mod_revision if permit_items else ABSENT,
        permit_lease=permit_items[0].lease if permit_items else LeaseId(0),
        cut=Sequence(cut) if cut else None,
        opened=Sequence(opened) if opened else None,
        scope=decode(SegmentScope, scopes[0]).prefixes if scopes else None,
        promise=decode(Promise, promise_items[0].value) if promise_items else None,
    )


def _segment_range(group: GroupName) -> tuple[bytes, bytes]:
    prefix = Keys.segments + f"{group}/".encode()
    return prefix, prefix[:-1] + b"0"
