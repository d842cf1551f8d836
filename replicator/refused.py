"""What a source's refusal to serve means for whoever dialled it. Pure."""

from __future__ import annotations

from meshkit.errors import NotAllowed, Refused, StoreReplaced
from replicator.messages import Refusal, RefusalCode


class NotLeading(Refused):
    """That replicator does not lead its region."""

    code = "not_leading"


def refused_by(refusal: Refusal) -> Refused:
    """Return the error that a refusal is."""
    match refusal.code:
        case RefusalCode.NOT_LEADING:
            return NotLeading(refusal.text)
        case RefusalCode.WRONG_INCARNATION | RefusalCode.AHEAD:
            return StoreReplaced(refusal.text)
        case RefusalCode.WRONG_IDENTITY | RefusalCode.WRONG_SOURCE:
            return NotAllowed(refusal.text)
