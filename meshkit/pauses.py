"""What operators have told the mesh to leave alone for a while: intents, with who and why. Pure."""

from __future__ import annotations

from typing import ClassVar

import attrs

from meshkit.codec import Stored
from meshkit.names import ClusterName, GroupName


@attrs.frozen(kw_only=True)
class AutomationPause(Stored):
    """Nothing is begun by itself while this is there. Writes, and what runs already, go on."""

    SCHEMA: ClassVar[str] = "automation-pause"

    by: str
    reason: str = ""
    since_ms: int = 0
    """The coordinator's wall clock."""


@attrs.frozen(kw_only=True)
class ReplicationPause(Stored):
    """Copies stand still while this is there: of one group, of one stream, or (neither) all."""

    SCHEMA: ClassVar[str] = "replication-pause"

    group: GroupName | None = None
    source: ClusterName | None = None
    target: ClusterName | None = None
    by: str
    reason: str = ""
    since_ms: int = 0

    @property
    def what(self) -> str:
        """What stands still, in words."""
        if self.group is not None:
            return f"group {self.group}"
        if self.source is not None and self.target is not None:
            return f"the stream {self.source} -> {self.target}"
        return "all replication"

    def stops_stream(self, source: ClusterName, target: ClusterName) -> bool:
        """Return whether nothing is sent from `source` to `target`."""
        if self.group is not None:
            return False
        return (self.source, self.target) in {(None, None), (source, target)}
