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


def lasting(ms: int) -> str:
    """Return how long that is for people, in the two units that matter: `364 days 23 h`."""
    minutes, hours, days = ms // 60_000 % 60, ms // 3_600_000 % 24, ms // 86_400_000
    parts = [(days, "days" if days != 1 else "day"), (hours, "h"), (minutes, "min")]
    first = next((index for index, (number, _) in enumerate(parts) if number), None)
    if first is None:
        return "less than 1 min"
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number)


def checked(
    name: str, ok: bool, detail: str, *, waivable: bool = False, warning: bool = False
) -> Check:
    """Return a check as it came out."""
    level = Level.FAILED if not ok else Level.WARNING if warning else Level.OK
    return Check(name=name, ok=ok, detail=detail, waivable=waivable, level=level)
