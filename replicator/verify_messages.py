"""What a target asks of a source to compare a group at one revision, and the answers. Pure."""

from __future__ import annotations

import enum

import attrs

from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import Epoch, Incarnation, Sequence
from replicator.digest import Digest

Entry = tuple[bytes, bytes]
"""A key and the hash of it with its value."""


@attrs.frozen(kw_only=True)
class VerifyRequest:
    """Asks for the group's digest as of `sequence`, or for the entries of some of its buckets."""

    target: ClusterName
    source: ClusterName
    incarnation: Incarnation
    """The source's, as the target's checkpoint names it."""
    group: GroupName
    epoch: Epoch
    """The one that the target follows."""
    sequence: Sequence
    buckets: frozenset[int] | None = None
    """None: the digest. Otherwise the entries of these buckets, in key order."""


@attrs.frozen(kw_only=True, eq=False)
class GroupDigest:
    """The digest of a group's scope, with what the scope was."""

    prefixes: tuple[bytes, ...]
    digest: Digest


@attrs.frozen(kw_only=True)
class Entries:
    """Some of the entries that were asked for; they come in key order."""

    entries: tuple[Entry, ...]


class VerifyRefusalCode(enum.Enum):
    """Why a source does not answer."""

    NOT_LEADING = "not-leading"
    """Another replicator of this cluster leads: try the next endpoint."""
    NOT_ALLOWED = "not-allowed"
    WRONG_SOURCE = "wrong-source"
    """This is another cluster, or its etcd is not the one the checkpoint is of."""
    NOT_COMPARABLE = "not-comparable"
    """The group was not open here in that epoch at that revision: try a later pair."""
    FAILED = "failed"
    """It could not be read, or is compacted away: try a later pair."""


@attrs.frozen(kw_only=True)
class VerifyRefusal:
    """The source does not answer this request."""

    code: VerifyRefusalCode
    text: str = ""


ToVerifier = GroupDigest | Entries | VerifyRefusal
