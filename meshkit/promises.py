"""What lets a group's writes outlive the coordination etcd: pacts and promises. Pure.

A **pact** says without whose promise the active cluster does not go on. It is stored in the
coordination etcd before it is worth anything, so that whoever decides there knows that a lease
which ran out proves nothing, and promotes nobody whose promise is not asked for. A **promise** is
stored by a passive cluster, in its own etcd, on a lease: until that has run out it opens no epoch.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from meshkit.codec import Stored
from meshkit.names import ClusterName, GroupName
from meshkit.ordinals import ABSENT, Epoch, Revision, Token


@attrs.frozen(kw_only=True)
class Pact(Stored):
    """Without whose promise `cluster` does not go on in `epoch` when coordination is lost.

    Invariant: the members in the region's own pact are a superset of those in the coordination
    etcd's, and there is none in the region unless there is one in the coordination etcd.
    """

    SCHEMA: ClassVar[str] = "pact"

    group: GroupName
    epoch: Epoch
    cluster: ClusterName
    members: tuple[ClusterName, ...] = ()
    """All that may be promoted over `cluster`, itself included."""
    is_in_force: bool = True
    """False in a region whose group does not keep any more; a deletion would not be noticed."""
    replaces: Revision = ABSENT
    """In a region, not in force: the coordination etcd's pact that was to be changed or deleted.
    That may yet happen, so no pact in force rests on it (`replicator/pacts.py`)."""


@attrs.frozen(kw_only=True)
class Promise(Stored):
    """That a passive cluster opens no epoch of a group as long as this key is there."""

    SCHEMA: ClassVar[str] = "promise"

    group: GroupName
    epoch: Epoch
    """In which `to` is active."""
    to: ClusterName
    term: Revision
    """Of the replicator that asked."""
    round: int
    """Which of its rounds asked; it takes back no promise that a later one asked for."""
    ttl_s: int


@attrs.frozen(kw_only=True)
class PromisesRefused(Stored):
    """That a command to open `epoch` waits here: no older epoch is promised anything any more.

    Without it an active cluster that hears nothing else would ask again and again, and the command
    would wait for ever.
    """

    SCHEMA: ClassVar[str] = "promises-refused"

    group: GroupName
    epoch: Epoch
    command_token: Token
