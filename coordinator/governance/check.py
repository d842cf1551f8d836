"""One named check before a failover, and how it came out. Pure."""

from __future__ import annotations

import enum

import attrs


class Level(enum.Enum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@attrs.frozen(kw_only=True)
class Check:
    """One named check."""

    name: str
    ok: bool
    detail: str
    waivable: bool = False
    waived: bool = False
    level: Level = Level.OK

    @property
    def refuses(self) -> bool:
        """Whether it stands in the way."""
        return not self.ok and not self.waived


def checked(
    name: str, ok: bool, detail: str, *, waivable: bool = False, warning: bool = False
) -> Check:
    """Return a check as it came out."""
    level = Level.FAILED if not ok else Level.WARNING if warning else Level.OK
    return Check(name=name, ok=ok, detail=detail, waivable=waivable, level=level)
