"""What a revision weighs. Pure."""

from __future__ import annotations

from meshkit.store.port import RevisionChanges

CHANGE_OVERHEAD_BYTES = 256
"""What a change weighs in memory beside its key and value."""


def changes_bytes(changes: RevisionChanges) -> int:
    """Return what a revision weighs in memory, roughly."""
    if len(changes.changes) == 1:
        item = changes.changes[0].item
        return len(item.key) + len(item.value) + CHANGE_OVERHEAD_BYTES
    return changes.data_bytes + CHANGE_OVERHEAD_BYTES * len(changes.changes)
