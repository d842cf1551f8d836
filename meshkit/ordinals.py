"""The counters MeshKit orders things by, kept apart by type so that they cannot be mixed up.

Pure. Nothing here knows how a counter is stored.
"""

from typing import NewType

import attrs

Revision = NewType("Revision", int)
"""etcd's store-wide counter. Compared and used as a token; never a version of anything else."""

Sequence = NewType("Sequence", int)
"""Place of a record in its source's log: the etcd revision that committed it."""

Epoch = NewType("Epoch", int)
"""The right of one cluster to accept writes for a group. Raised by exactly one, never lowered."""

LeaseId = NewType("LeaseId", int)
"""An etcd lease id. Zero means "no lease"."""

Incarnation = NewType("Incarnation", str)
"""One unbroken history of an etcd cluster: an opaque id; a restore begins another."""

NO_LEASE = LeaseId(0)
ABSENT = Revision(0)
"""The mod revision and create revision of a key that does not exist."""


@attrs.frozen(kw_only=True, order=True)
class Token:
    """A command token or a fencing token: ordered by coordination incarnation, then by revision.

    The revision is the mod revision of the command's key in the coordination etcd, which is also
    the revision of the failover record that made the command due (they are put in one
    transaction). `incarnation` counts the adoptions of a restored coordination etcd, so tokens
    rise even where revisions fell (architecture 4.1 rules 1 and 5).

    As a *fencing token* it names an epoch: the revision of the record that the pivot compared.
    """

    incarnation: int = attrs.field(validator=attrs.validators.ge(0))
    revision: Revision = attrs.field(validator=attrs.validators.ge(Revision(0)))

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.revision}"


NO_TOKEN = Token(incarnation=0, revision=Revision(0))
"""Lower than every token that was ever issued."""


@attrs.frozen(kw_only=True, order=True)
class Position:
    """A place in one cluster's log for one group: `(epoch, sequence)`.

    Comparable only within one cluster; across clusters only vectors compare.
    """

    epoch: Epoch
    sequence: Sequence

    def __str__(self) -> str:
        return f"{self.epoch}@{self.sequence}"


NOTHING = Sequence(0)
"""Before the first record of any log."""
