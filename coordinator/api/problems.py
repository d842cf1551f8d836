"""Errors as `application/problem+json` (RFC 9457). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.api.views import check_view
from coordinator.governance.check import Check
from meshkit.errors import MeshError, Refused

MEDIA_TYPE = "application/problem+json"

STATUSES: Mapping[str, int] = {
    "invalid_input": 400,
    "not_allowed": 403,
    "not_found": 404,
    "conflict": 409,
    "revision_conflict": 409,
    "unreachable": 503,
    "outcome_unknown": 504,
}
"""By error code; every other refusal is 422, everything else 500."""


class ChecksFailed(Refused):
    """Checks stand in the way of the failover; nothing was changed."""

    def __init__(self, failed: tuple[Check, ...]) -> None:
        detail = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        names = [check.name for check in failed if check.waivable]
        hint = f"to go on all the same: --waive {' --waive '.join(names)}" if names else ""
        super().__init__(detail, hint=hint)
        self.failed = failed


def problem_of(error: MeshError) -> dict[str, Any]:
    """Return the problem document of an error."""
    status = STATUSES.get(error.code, 422 if isinstance(error, Refused) else 500)
    title = (type(error).__doc__ or "").strip().splitlines()[0]
    problem: dict[str, Any] = {
        "type": f"urn:meshkit:problem:{error.code}",
        "title": title,
        "status": status,
        "detail": str(error),
        "code": error.code,
        "exit_code": error.exit_code,
        "hint": error.hint,
    }
    failover_id = getattr(error, "failover_id", None)
    if failover_id is not None:
        problem["failover_id"] = failover_id
    if isinstance(error, ChecksFailed):
        problem["checks"] = [check_view(check) for check in error.failed]
    return problem
