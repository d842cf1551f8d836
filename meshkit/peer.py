"""Who a verified peer is: the role and the name that its certificate gave it. Pure."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class PeerIdentity:
    """A verified peer: its role and its name within the trust domain."""

    role: str
    name: str

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"
