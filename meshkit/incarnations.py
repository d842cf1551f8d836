"""What is recorded when an etcd turns out not to be the one it was, and the way out. Pure.

An etcd restored from a snapshot keeps its ids and its keys: only from outside is it seen that it
went back (architecture 4.1 rule 5). The region is then *suspended*: nobody leads it, so nothing is
sent, applied or permitted. The record stays, because the marks by which a restore is seen grow past
their old values. An *adoption* is the operator's word that the etcd is to be used as it is now.
"""

from __future__ import annotations

import enum
from typing import ClassVar

import attrs

from meshkit.codec import Stored
from meshkit.names import ClusterName
from meshkit.ordinals import Incarnation, Revision, Token


class SuspectStore(enum.Enum):
    """Which etcd went back."""

    REGIONAL = "regional"
    COORDINATION = "coordination"
    """Told by the region that remembers what it saw of it; the way out is another one."""


@attrs.frozen(kw_only=True)
class Suspension(Stored):
    """A region that stopped because an etcd went back. Its key's mod revision names it."""

    SCHEMA: ClassVar[str] = "suspension"

    cluster: ClusterName
    store: SuspectStore
    incarnation: Incarnation
    """Of the history that was known; of the coordination etcd, if that is what went back."""
    reason: str
    replicator: str
    at_ms: int


@attrs.frozen(kw_only=True)
class Adoption(Stored):
    """The word of an operator that a region's etcd begins a new incarnation as it is now."""

    SCHEMA: ClassVar[str] = "adoption"

    cluster: ClusterName
    incarnation: Incarnation
    """Begins with this adoption."""
    replaced: tuple[Incarnation, ...]
    """All that came before it, the newest last: logs that nobody goes on with."""
    suspension: Revision
    """Mod revision of the suspension that this answers, and no other."""
    requested_by: str
    reason: str
    at_ms: int


REPLACED_MAX = 32
"""How many replaced incarnations an adoption names; older ones are copied by hand."""


@attrs.frozen(kw_only=True)
class CoordinationAdoption(Stored):
    """The word of an operator that the coordination etcd is to be used as it is now.

    Its authority records were made anew from the regions' fences. A region that is suspended for
    the coordination etcd goes on once this is complete, and is newer than all it knows.
    """

    SCHEMA: ClassVar[str] = "coordination-adoption"

    number: int
    """The coordination etcd's incarnation that it began: the first part of every token since."""
    adoption: str
    """Its name, as in the incarnation's record."""
    floor: Token
    """Above every token of the incarnations before, and below every command of this one."""
    is_complete: bool
    """Whether every group has its authority; until then no region goes on."""
    waived: tuple[ClusterName, ...] = ()
    """Regions that did not say what they know, and were gone on without."""
    wait_ms: int = 0
    """How long each region waits first: as long as a permit of a waived one may live."""
    requested_by: str
    reason: str
    at_ms: int


FIRST_INCARNATION = Incarnation("1")
"""Of a coordination etcd that was never adopted."""


def number_of(identity: Incarnation) -> int:
    """Return the number in the identity of a coordination etcd's incarnation."""
    number = (identity or FIRST_INCARNATION).partition("-")[0]
    return int(number) if number.isdigit() else 0
