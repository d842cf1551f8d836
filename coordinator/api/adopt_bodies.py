"""What is asked about adopting an etcd that went back, checked by hand. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from coordinator.api.bodies import Fields, number_field, text_field, texts_field
from meshkit.errors import InvalidInput
from meshkit.names import ClusterName, cluster_name


@attrs.frozen(kw_only=True)
class AdoptAsked:
    """What somebody asks to be adopted, and what they were shown of it."""

    reason: str
    expect_suspension: int | None
    dry_run: bool


def adopt_of(body: Mapping[str, Any]) -> AdoptAsked:
    """Return the adoption that `body` asks for.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    readers = {"reason": text_field, "expect_suspension": number_field, "dry_run": _flag}
    given = Fields(body, readers).given
    asked = AdoptAsked(
        reason=given.get("reason", "").strip(),
        expect_suspension=given.get("expect_suspension"),
        dry_run=given.get("dry_run", False),
    )
    if not asked.reason and not asked.dry_run:
        raise InvalidInput("reason: say why; it is kept in the record and the audit")
    return asked


@attrs.frozen(kw_only=True)
class CoordinationAsked:
    """What somebody asks about the coordination etcd, and what they were shown."""

    reason: str
    waive: tuple[ClusterName, ...] = ()
    """Regions to go on without if they do not answer."""
    expect_plan: str = ""
    dry_run: bool = False


def coordination_of(body: Mapping[str, Any]) -> CoordinationAsked:
    """Return the adoption of the coordination etcd that `body` asks for.

    Raises:
        InvalidInput: names the field and what it should be.
    """
    readers = {
        "reason": text_field,
        "waive": texts_field,
        "expect_plan": text_field,
        "dry_run": _flag,
    }
    given = Fields(body, readers).given
    asked = CoordinationAsked(
        reason=given.get("reason", "").strip(),
        waive=tuple(cluster_name(name) for name in given.get("waive", ())),
        expect_plan=given.get("expect_plan", ""),
        dry_run=given.get("dry_run", False),
    )
    if not asked.reason and not asked.dry_run:
        raise InvalidInput("reason: say why; it is kept in the record and the audit")
    return asked


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {value!r}")  # noqa: TRY004
    return value
